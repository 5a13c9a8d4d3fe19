"""Annealed Langevin dynamics."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from invem import ChainSampler, Measurement, Prior, Rng, Schedule
from invem.diffusion import initial_state
from invem.likelihood import sharpness
from invem.schedule import Geometric


@dataclass(frozen=True, kw_only=True)
class AnnealedLangevin(ChainSampler):
    """Annealed Langevin dynamics for posteriors (Jalal et al. 2021, arXiv 2108.01368, algorithm 1),
    for any A and Gaussian noise.

    At each level, `inner` times, x <- x + l ((x_hat - x)/sigma^2 + J_A^T (y - A(x))/(var +
    sigma^2)) + sqrt(2 l) noise, with l = rate/(1/sigma^2 + |A|^2/(var + sigma^2)) for each
    observation. Exact as steps get small and many and the last level goes to zero; slow.

    Attributes:
        steps: Noise levels.
        inner: Steps at each level, one call of the denoiser each.
        rate: The length of a step as a share of the curvature's inverse.
        schedule: The noise levels.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"vjp", "var", "density"})

    steps: Annotated[int, Ge(2)] = 100
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
            # The curvature of |y - A(x)|^2/(2 var), of which the widened likelihood has at most the
            # share var/(var + sigma^2).
            share = (var / (var + sigma**2)).flatten(1).amax(1, keepdim=True)
            length = self.rate / (1 / sigma**2 + share * sharpness(m, x, 5)).reshape(
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
