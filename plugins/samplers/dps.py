"""DPS: diffusion posterior sampling."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from invem import ChainSampler, Karras, Measurement, Prior, RecipeError, Rng, Schedule
from invem.diffusion import initial_state


@dataclass(frozen=True, kw_only=True)
class DPS(ChainSampler):
    """DPS, diffusion posterior sampling (arXiv 2209.14687), for any differentiable A.

    Chung et al. 2023, algorithm 1. After an ancestral step from sigma to s, the state moves along
    the gradient of the data misfit of x_hat(x_t). With guidance "norm", as published,

        x_s <- x_s - weight ((1 + s^2)(1 + sigma^2))^1/2 grad_{x_t} |y - A(x_hat)|

    and with guidance "likelihood"

        x_s <- x_s - weight (1 - s^2/sigma^2) sigma^2 grad_{x_t} |y - A(x_hat)|^2 / (2 var)

    The second is the score of EMDiffusion (Bai et al. 2024, arXiv 2407.01014, eq. 10) in the same
    step; its lambda is `weight`. The root in the first changes the variance-preserving state of the
    publication to x_t = x + sigma z. The norm is that of one sample. Several public codes take that
    of the batch, so that their result depends on the batch size.

    The method is biased in mean and covariance (docs/contracts.md). The `weight` of the norm is a
    strength per step: choose it anew when `steps` changes. ``weight="auto"`` chooses it before each
    E-step on a few observations, among 0.1, 0.3, 1, 3, 10 and 30. It takes the candidate whose
    draws have the least data misfit E|y - A(x)|^2 (arXiv 2407.01014, eq. 12).

    Attributes:
        steps: The number of noise levels. The denoiser is called and differentiated once per level.
        weight: The strength of the guidance, or "auto". For the norm it is `scale` of the released
            code and twice zeta' of the paper, whose gradient is that of the square.
        guidance: "norm" or "likelihood"; the latter needs Gaussian noise.
        schedule: The noise levels.
    """

    steps: Annotated[int, Ge(2), Le(100_000)] = 256
    weight: Annotated[float, Gt(0)] | Literal["auto"] = 1.0
    guidance: Literal["norm", "likelihood"] = "norm"
    schedule: Schedule = Karras()

    candidates: ClassVar[tuple[float, ...]] = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"vjp", "var"} if self.guidance == "likelihood" else {"vjp"})

    @property
    def cost(self) -> tuple[int, int]:
        return self.steps, self.steps

    def tune(self, prior: Prior, m: Measurement, rng: Rng) -> Self:
        """Replaces `weight: auto` by the candidate with the least data misfit on m."""
        if self.weight != "auto":
            return self
        options = [dataclasses.replace(self, weight=weight) for weight in self.candidates]
        misfits = [m.residual(option(prior, m, rng[:])).square().mean() for option in options]
        return options[int(torch.stack(misfits).nan_to_num(nan=torch.inf).argmin())]

    @torch.no_grad()
    def __call__(
        self, prior: Prior, m: Measurement, rng: Rng, start: Tensor | None = None
    ) -> Tensor:
        if self.weight == "auto":
            raise RecipeError("dps: weight 'auto' is set by tune(), which was not called")
        sigmas: list[float] = self.schedule.grid(self.steps).tolist()
        x_t = initial_state(prior, sigmas[0], rng, m.shape, m.y, start)
        for sigma, s in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
            with torch.enable_grad():
                x_t = x_t.detach().requires_grad_()
                x_hat = prior(x_t, sigma)
                r = m.residual(x_hat).flatten(1)
                if self.guidance == "norm":
                    misfit = r.square().sum(1).add(1e-12).sqrt()
                    strength = self.weight * ((1 + s**2) * (1 + sigma**2)) ** 0.5
                else:
                    var = m.noise.var().clamp(min=sigmas[-1] ** 2).expand_as(m.y).flatten(1)
                    misfit = (r.square() / (2 * var)).sum(1)
                    strength = self.weight * (sigma**2 - s**2)
                (grad,) = torch.autograd.grad(misfit.sum(), x_t)
            keep = s**2 / sigma**2
            x_t = x_hat.detach() + keep * (x_t.detach() - x_hat.detach()) - strength * grad
            if s > 0:
                x_t = x_t + s * (1 - keep) ** 0.5 * rng.normal_like(x_t)
        return x_t
