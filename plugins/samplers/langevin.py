"""Annealed Langevin dynamics."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Interval, Le
from torch import Tensor

from invem import ChainSampler, Measurement, Prior, Rng, Schedule
from invem.diffusion import initial_state
from invem.likelihood import largest_curvature
from invem.schedule import Geometric


@dataclass(frozen=True, kw_only=True)
class AnnealedLangevin(ChainSampler):
    """Annealed Langevin dynamics for posteriors (arXiv 2108.01368), for any A and Gaussian noise.

    Jalal et al. 2021, algorithm 1. At each level it repeats `inner` times

        x <- x + l ((x_hat - x)/sigma^2 + J_A^T (y - A(x))/(var + sigma^2)) + sqrt(2 l) noise

    with l = rate/(1/sigma^2 + |A|^2/(var + sigma^2)) for each observation. It is exact in the limit
    of many small steps with the last level at zero. It is slow.

    Attributes:
        steps: The number of noise levels.
        inner: Steps at each level, one denoiser call each.
        rate: The step size as a share of the inverse curvature.
        schedule: The noise levels.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"vjp", "var", "density"})

    steps: Annotated[int, Ge(2), Le(100_000)] = 100
    inner: Annotated[int, Ge(1)] = 5
    rate: Annotated[float, Interval(gt=0, le=1)] = 0.2
    schedule: Schedule = Geometric()

    @property
    def cost(self) -> tuple[int, int]:
        return self.steps * self.inner + 1, 0

    @torch.no_grad()
    def __call__(
        self, prior: Prior, m: Measurement, rng: Rng, start: Tensor | None = None
    ) -> Tensor:
        sigmas: list[float] = self.schedule.grid(self.steps).tolist()
        m = m.floored(sigmas[-1])
        var = m.noise.var().expand_as(m.y)
        x = initial_state(prior, sigmas[0], rng, m.shape, m.y, start)
        for sigma in sigmas:
            # `largest_curvature` is that for the variance var. With the variance var + sigma^2 the
            # curvature is at most the share var/(var + sigma^2) of it.
            share = (var / (var + sigma**2)).flatten(1).amax(1, keepdim=True)
            length = self.rate / (1 / sigma**2 + share * largest_curvature(m, x, 5)).reshape(
                -1, *[1] * (x.ndim - 1)
            )
            for _ in range(self.inner):
                data = m.A.vjp(x, (m.y - m.A(x)) / (var + sigma**2))
                x = (
                    x
                    + length * ((prior(x, sigma) - x) / sigma**2 + data)
                    + (2 * length).sqrt() * rng.normal_like(x)
                )
        return prior(x, sigmas[-1])
