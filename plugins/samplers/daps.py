"""DAPS: decoupled annealing posterior sampling."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Interval, Le
from torch import Tensor

from invem import ChainSampler, Karras, Measurement, Prior, Rng, Schedule
from invem.diffusion import initial_state, reverse_diffusion
from invem.likelihood import largest_curvature, proximal_draw


@dataclass(frozen=True, kw_only=True)
class DAPS(ChainSampler):
    """DAPS, decoupled annealing posterior sampling, for any A and any noise with a density.

    Zhang et al. 2025, arXiv 2407.01521, algorithm 1. Each level has three steps:

    - A few Euler steps of the probability flow take x_t to the clean point h.
    - A chain that begins at h seeks a draw z of N(h, sigma^2 I) p(y | z).
    - The next state is z + s noise.

    N(h, sigma^2 I) is not p(x | x_t). With an exact draw of z, the variance of the directions that
    y does not show is doubled. With few steps of the chain it is that of the flow.

    Attributes:
        steps: The number of noise levels of the outer loop.
        flow: Euler steps from each level to the last, one denoiser call each.
        kernel: The draw of z: "langevin", "hmc" (Langevin with momentum), or "exact", which needs a
            linear A and Gaussian noise.
        inner: Steps of the chain, each a gradient of log p(y | z), without the network.
        rate: The step size as a share of 1/(curvature of log p(y | z) + 1/sigma^2). The curvature
            is found for each observation.
        friction: The share of the momentum that "hmc" loses per step.
        schedule: The noise levels.
    """

    steps: Annotated[int, Ge(2), Le(100_000)] = 50
    flow: Annotated[int, Ge(1)] = 5
    kernel: Literal["langevin", "hmc", "exact"] = "langevin"
    inner: Annotated[int, Ge(1)] = 50
    rate: Annotated[float, Interval(gt=0, le=1)] = 0.3
    friction: Annotated[float, Interval(gt=0, le=1)] = 0.3
    schedule: Schedule = Karras()

    @property
    def needs(self) -> frozenset[str]:
        exact = self.kernel == "exact"
        return frozenset({"adjoint", "var"} if exact else {"vjp", "density"})

    @property
    def cost(self) -> tuple[int, int]:
        return self.steps * self.flow, 0

    @torch.no_grad()
    def __call__(
        self, prior: Prior, m: Measurement, rng: Rng, start: Tensor | None = None
    ) -> Tensor:
        sigmas: list[float] = self.schedule.grid(self.steps).tolist()
        if self.kernel == "exact":
            m = m.floored(sigmas[-1])
        x_t = initial_state(prior, sigmas[0], rng, m.shape, m.y, start)
        for sigma, s in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
            levels = Karras(sigma_max=sigma, sigma_min=min(sigmas[-1], 0.5 * sigma)).grid(self.flow)
            h = reverse_diffusion(prior, x_t, levels, rng, eta=0.0)
            z = (
                proximal_draw(m, h, sigma, rng)
                if self.kernel == "exact"
                else self._chain(m, h, sigma, rng)
            )
            x_t = z + s * rng.normal_like(z) if s else z
        return x_t

    def _chain(self, m: Measurement, h: Tensor, sigma: float, rng: Rng) -> Tensor:
        curvature = largest_curvature(m, h).reshape(-1, *[1] * (h.ndim - 1))
        length = self.rate / (curvature + 1 / sigma**2)
        z, u = h, rng.normal_like(h)
        for _ in range(self.inner):
            g = m.score(z) - (z - h) / sigma**2
            if self.kernel == "langevin":
                z = z + length * g + (2 * length).sqrt() * rng.normal_like(z)
            else:
                kept = 1 - self.friction
                u = kept * u + length.sqrt() * g + (1 - kept**2) ** 0.5 * rng.normal_like(z)
                z = z + length.sqrt() * u
        return z
