"""DiffPIR: plug-and-play restoration by a diffusion model."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Interval, Le
from torch import Tensor

from invem import ChainSampler, Karras, Measurement, Prior, Rng, Schedule
from invem.diffusion import posterior_state, reverse_diffusion
from invem.likelihood import proximal_point


@dataclass(frozen=True, kw_only=True)
class DiffPIR(ChainSampler):
    """DiffPIR, plug-and-play restoration (arXiv 2305.08995), for linear A and Gaussian noise.

    Zhu et al. 2023, algorithm 1. It needs no vector-Jacobian product of the network. The clean
    estimate minimises |y - A z|^2/(2 var) + lam |z - x_hat|^2/(2 sigma^2). A step then keeps the
    share 1 - zeta of the noise and renews the rest.

    The method is biased: it takes Cov[x | x_t] as sigma^2 I / lam, and a constant zeta does not
    preserve the prior.

    Attributes:
        steps: The number of noise levels, one denoiser call each.
        lam: The weight of the prior (paper: 7 to 8). The released code has the noise of y on [0, 1]
            and sigma on [-1, 1], so that its 7 is 1.75 here.
        zeta: The share of the noise that a step renews.
        schedule: The noise levels.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"adjoint", "var"})

    steps: Annotated[int, Ge(2), Le(100_000)] = 100
    lam: Annotated[float, Gt(0)] = 7.0
    zeta: Annotated[float, Interval(ge=0, le=1)] = 0.3
    schedule: Schedule = Karras()

    @property
    def cost(self) -> tuple[int, int]:
        return self.steps, 0

    @torch.no_grad()
    def __call__(
        self, prior: Prior, m: Measurement, rng: Rng, start: Tensor | None = None
    ) -> Tensor:
        sigmas = self.schedule.grid(self.steps)
        m = m.floored(float(sigmas[-1]))

        def posterior(x_t: Tensor, sigma: float) -> Tensor:
            return proximal_point(m, prior(x_t, sigma), sigma / self.lam**0.5)

        return reverse_diffusion(
            posterior,
            posterior_state(prior, float(sigmas[0]), rng, m, start),
            sigmas,
            rng,
            zeta=self.zeta,
        )
