"""Ambient Tweedie: denoising score matching on noisy observations."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from invem import Denoiser, Example, Measurement, Objective, RecipeError, Rng, examples
from invem.objective import edm_weight, noise_levels, score_matching

_REACH = 2.0  # the consistency term begins at most at this multiple of the noise of the data


@examples({"consistency": 1.0, "branch_steps": 2})
@dataclass(frozen=True, kw_only=True)
class AmbientTweedie(Objective):
    """Ambient Tweedie (arXiv 2404.10177): denoising score matching on noisy observations.

    Daras et al. 2024. With the noise s_n of the observation, at levels sigma above it, the loss is

        E w |a D(x_t, sigma) + (1 - a) x_t - y|^2 / d

    with x_t = y + sqrt(sigma^2 - s_n^2) e and a = 1 - s_n^2/sigma^2. Each observation has its own
    level, so that images of several qualities are learned together (Ambient-o, arXiv 2506.10038),
    clean ones with s_n = 0 (arXiv 2411.02780).

    a D + (1 - a) x_t is E[y | x_t] if D is E[x | x_t]. The gradient is a^2 times that of the loss
    on the clean signals. The distribution and the weight of sigma are those of EDM (arXiv
    2206.00364, table 1), truncated below at s_n. The code of arXiv 2411.02780 moves lower levels to
    s_n itself, where a = 0 and nothing is learned.

    The loss does not depend on D below s_n. There `consistency` adds w (D' - D).(D'' - D) / d, with
    mean w |E[D(x_s, s) | x_t] - D(x_t, sigma)|^2 / d: along the true reverse diffusion D is a
    martingale. D' and D'' are two independent branches. `branch_steps` ancestral steps of the
    network, without gradient, take one x_t to x_s. The product is that of the released code; the
    square of the mean of a few branches (arXiv 2411.02780) adds their variance.

    sigma is log-uniform between s_n and 2 s_n, because nothing fixes D at s_n itself. s is
    log-uniform between `end` and s_n, so that every level is evaluated. Each step has the right
    mean but lacks the variance of x given x_t. The bias is of order 1/branch_steps, and zero for a
    Gaussian, where D is linear.

    D(x_t, sigma) is a target without gradient, as in the released code without its option
    `with_grad`. In the code of arXiv 2411.02780 a gradient flows through it. That moves D above
    s_n, where a^2 is small, towards its values below. On a mixture in one dimension samples were
    then worse than without the term.

    Attributes:
        p_mean: The mean of log sigma before truncation, sigma in units of the data.
        p_std: The standard deviation of log sigma before truncation.
        consistency: The weight of the consistency term. With 0, D below s_n is arbitrary, and
            samples must stop there.
        branch_steps: Reverse steps of each branch of the consistency term: 2 branch_steps - 1
            network calls without gradient, and two with.
        end: The lowest level of the consistency term, in units of the data. It skips observations
            with less noise.
    """

    p_mean: float = -1.2
    p_std: Annotated[float, Gt(0)] = 1.2
    consistency: Annotated[float, Ge(0)] = 0.0
    branch_steps: Annotated[int, Ge(1)] = 4
    end: Annotated[float, Gt(0)] = 0.01

    needs: ClassVar[frozenset[str]] = frozenset({"measurement", "identity", "var", "one level"})

    def __post_init__(self) -> None:
        if not self.consistency and (self.branch_steps, self.end) != (
            AmbientTweedie.branch_steps,
            AmbientTweedie.end,
        ):
            raise RecipeError(
                "ambient-tweedie: branch_steps and end belong to the consistency term: give its"
                " weight, `consistency`"
            )

    def loss(self, model: Denoiser, batch: Example, rng: Rng) -> Tensor:
        m = batch.measurement
        if m is None:
            if batch.x is None:
                raise RecipeError("ambient-tweedie was given neither measurements nor clean images")
            sigma = noise_levels(rng, batch.x, self.p_mean, self.p_std)
            return score_matching(model, batch.x, sigma, edm_weight(model, sigma), rng)
        least = m.level("ambient-tweedie")
        sigma = noise_levels(rng, m.y, self.p_mean, self.p_std, least)
        x_t, share = _noisier(m.y, least, sigma, rng)
        error = share * model(x_t, sigma) + (1 - share) * x_t - m.y
        loss = torch.mean((edm_weight(model, sigma) * error.square()).flatten(1), dim=1)
        return (
            loss + self.consistency * self._consistency(model, m, least, rng)
            if self.consistency
            else loss
        )

    def _consistency(self, model: Denoiser, m: Measurement, least: Tensor, rng: Rng) -> Tensor:
        """Returns an unbiased estimate of w |E[D(x_s, s) | x_t] - D(x_t, sigma)|^2 / d, shape (B,).

        w is the weight at sigma.
        """
        noisy = least > self.end
        floor = least.clamp(min=self.end)
        up, down = (
            rng.uniform(2, dtype=torch.float64)
            .to(m.y)
            .reshape(-1, 2, *[1] * (m.y.ndim - 1))
            .unbind(1)
        )
        sigma = floor * _REACH**up
        s = self.end * (floor / self.end) ** down
        x_t, _ = _noisier(m.y, least, sigma, rng)
        with torch.no_grad():
            x_hat = model(x_t, sigma)
        first, second = (
            model(self._reverse(model, x_t, x_hat, sigma, s, rng), s) - x_hat for _ in range(2)
        )
        loss = torch.mean((edm_weight(model, sigma) * first * second).flatten(1), dim=1)
        return torch.where(noisy.flatten(), loss, 0.0)

    @torch.no_grad()
    def _reverse(
        self, model: Denoiser, x_t: Tensor, x_hat: Tensor, sigma: Tensor, end: Tensor, rng: Rng
    ) -> Tensor:
        """Steps from sigma to `end`, levels (B, 1, ...), at equal ratios; x_hat = D(x_t, sigma)."""
        ratio = (end / sigma) ** (1 / self.branch_steps)
        for k in range(self.branch_steps):
            x_hat = model(x_t, sigma) if k else x_hat
            s = sigma * ratio
            x_t = (
                x_hat + ratio**2 * (x_t - x_hat) + s * (1 - ratio**2).sqrt() * rng.normal_like(x_t)
            )
            sigma = s
        return x_t


def _noisier(y: Tensor, least: Tensor, sigma: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
    """Returns x_t at level sigma, from y at level `least`, and a = 1 - least^2/sigma^2."""
    more = (sigma**2 - least**2).clamp(min=0)
    return y + more.sqrt() * rng.normal_like(y), more / sigma**2
