"""The reverse diffusion of a network that was trained to predict E[x | x_t, y]."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor

from invem import ChainSampler, Karras, Measurement, Prior, Rng, Schedule, Unsupported
from invem.diffusion import Stepping, count_calls, integrate


@dataclass(frozen=True, kw_only=True)
class Conditional(ChainSampler):
    """The E-step of DiffEM (arXiv 2510.12691): runs a network that predicts E[x | x_t, y].

    The only approximation is E[x | x_t, c], where c is the condition that `Prior.conditioning`
    makes of the measurement. Random projections are not in c, nor are kernels and levels that
    differ between observations. The draws are then those of p(x | c), which knows less than p(x |
    y).

    The chain starts from x_T = x_hat + sigma (z/2 + sqrt(3)/2 z') with x_hat = D(mean + sigma z,
    sigma, y). At large sigma the slope of D is Cov[x | y]/sigma^2. So x_T has the mean E[x | y] and
    the covariance sigma^2 I + Cov[x | y] of a posterior draw plus sigma z, up to terms of order
    1/sigma^2.

    Attributes:
        steps: The number of noise levels.
        stepping: The rule of the reverse diffusion.
        guidance: 1 is the posterior given c, 0 the prior. Another g is classifier-free guidance (Ho
            & Salimans 2022, arXiv 2207.12598), D(x_t) + g (D(x_t, y) - D(x_t)), at twice the cost.
            Above 1 the draws fit y too closely and vary too little.
        schedule: The noise levels.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"adjoint", "conditional"})

    steps: Annotated[int, Ge(2), Le(100_000)] = 24
    stepping: Stepping = "heun"
    guidance: Annotated[float, Ge(0)] = 1.0
    schedule: Schedule = Karras()

    @property
    def cost(self) -> tuple[int, int]:
        return (count_calls(self.stepping, self.steps) + 1) * (1 if self.guidance == 1 else 2), 0

    @torch.no_grad()
    def __call__(
        self, prior: Prior, m: Measurement, rng: Rng, start: Tensor | None = None
    ) -> Tensor:
        if prior.conditioning is None:
            raise Unsupported(
                "it needs a prior that predicts E[x | x_t, y]: train one by a conditional objective"
            )
        cond = prior.conditioning(m)

        def denoise(x_t: Tensor, sigma: float) -> Tensor:
            given: Tensor = prior(x_t, sigma, cond)
            if self.guidance == 1:
                return given
            x_hat: Tensor = prior(x_t, sigma)
            return x_hat + self.guidance * (given - x_hat)

        sigmas = self.schedule.grid(self.steps)
        first = float(sigmas[0])
        z = rng.normal(*m.shape).to(cond)
        if start is not None:
            x_t = start + first * z
        else:
            mean = 0.0 if prior.moments is None else prior.moments.mean
            x_t = denoise(mean + first * z, first) + first * (
                0.5 * z + 0.75**0.5 * rng.normal(*m.shape).to(cond)
            )
        return integrate(self.stepping, denoise, x_t, sigmas, rng)
