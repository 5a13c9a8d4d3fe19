"""SURE-Score: Stein's estimate of the denoising error, and score matching on denoised signals."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from invem import Denoiser, Example, Objective, RecipeError, Rng, Unsupported, examples
from invem.objective import edm_weight, noise_levels, score_matching


@examples({"through": False}, {"score": 0.0})
@dataclass(frozen=True, kw_only=True)
class SUREScore(Objective):
    """SURE-Score (arXiv 2305.01166), for A = I and Gaussian noise of one level.

    Aali et al. 2023. With h = D(y, s_n) and s_n the noise of the observation, the loss is

        w(s_n) SURE(h)/d + score E w(sigma) |D(h + sigma z, sigma) - h|^2 / d.

    SURE(h) = |h - y|^2 + 2 s_n^2 div h - d s_n^2 is unbiased for |h - x|^2 (Stein 1981). So the
    first term is denoising score matching at one level. It may be negative. div h uses one
    Hutchinson probe and an exact Jacobian product (the released code takes a difference). The
    second term learns all levels from h, which is E[x | y] and not x: the result lacks the
    covariance of x given y. The weights and the distribution of sigma are those of EDM (arXiv
    2206.00364, table 1), which puts both terms on one scale. The publication has the weight 1, and
    1/sigma^2 on a grid.

    Attributes:
        score: The weight of the second term; 0 fits the level s_n alone.
        through: Whether the gradient of the second term flows into h too, as published. h then
            moves to signals that are easy to denoise, which narrows it further. If not, the first
            term alone determines h.
        p_mean: The mean of log sigma, sigma in units of the data.
        p_std: The standard deviation of log sigma.
    """

    score: Annotated[float, Ge(0)] = 1.0
    through: bool = True
    p_mean: float = -1.2
    p_std: Annotated[float, Gt(0)] = 1.2

    needs: ClassVar[frozenset[str]] = frozenset(
        {"measurement", "identity", "var", "one level", "density"}
    )
    compiles: ClassVar[bool] = False  # the loss differentiates twice

    def __post_init__(self) -> None:
        if not self.score and (self.through, self.p_mean, self.p_std) != (
            SUREScore.through,
            SUREScore.p_mean,
            SUREScore.p_std,
        ):
            raise RecipeError(
                "sure-score: through, p_mean and p_std belong to the second term: give its weight,"
                " `score`"
            )

    def loss(self, model: Denoiser, batch: Example, rng: Rng) -> Tensor:
        m = batch.measurement
        if m is None:
            if batch.x is None:
                raise RecipeError("sure-score was given neither measurements nor clean images")
            return self._match(model, batch.x, rng)
        level = m.level("sure-score")
        if not bool((level > 0).all()):
            raise Unsupported(
                "sure-score needs noise of one level above zero for all entries of an observation"
            )
        probe = torch.where(rng.normal_like(m.y) < 0, -1.0, 1.0).to(m.y)
        with torch.enable_grad():
            y = m.y.detach().requires_grad_()
            h = model(y, level)
            (product,) = torch.autograd.grad(h, y, probe, create_graph=True)
        sure = (h - m.y).square() + level**2 * (2 * probe * product - 1)
        loss = torch.mean((edm_weight(model, level) * sure).flatten(1), dim=1)
        return (
            loss + self.score * self._match(model, h if self.through else h.detach(), rng)
            if self.score
            else loss
        )

    def _match(self, model: Denoiser, x: Tensor, rng: Rng) -> Tensor:
        sigma = noise_levels(rng, x, self.p_mean, self.p_std)
        return score_matching(model, x, sigma, edm_weight(model, sigma), rng)
