"""DDS: decomposed diffusion sampling."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Interval, Le
from torch import Tensor

from invem import ChainSampler, Karras, Measurement, Prior, Rng, Schedule
from invem.diffusion import initial_state
from invem.linalg import cg


@dataclass(frozen=True, kw_only=True)
class DDS(ChainSampler):
    """DDS, decomposed diffusion sampling (arXiv 2303.05754), for linear A.

    Chung et al. 2024, algorithm 1. It needs no vector-Jacobian product of the network. The clean
    estimate is `iterations` steps of conjugate gradients on (I + gamma A^T A) z = x_hat + gamma A^T
    y from x_hat. A step then takes sqrt(1 - eta^2) of the predicted noise and eta of new noise.

    The noise level of y is not used. gamma stands for a ratio of variances, which is right at one
    level only.

    Attributes:
        steps: The number of noise levels, one denoiser call each.
        gamma: The weight of the data.
        iterations: Conjugate gradient iterations per step, without the network.
        eta: The share of new noise in a step.
        schedule: The noise levels.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"adjoint"})

    steps: Annotated[int, Ge(2), Le(100_000)] = 50
    gamma: Annotated[float, Gt(0)] = 1.0
    iterations: Annotated[int, Ge(1), Le(1_000_000)] = 5
    eta: Annotated[float, Interval(ge=0, le=1)] = 0.85
    schedule: Schedule = Karras()

    @property
    def cost(self) -> tuple[int, int]:
        return self.steps, 0

    @torch.no_grad()
    def __call__(
        self, prior: Prior, m: Measurement, rng: Rng, start: Tensor | None = None
    ) -> Tensor:
        sigmas: list[float] = self.schedule.grid(self.steps).tolist()
        known = m.A.adjoint(m.y)

        def closer(x_hat: Tensor) -> Tensor:
            def matvec(z: Tensor) -> Tensor:
                return z + self.gamma * m.A.adjoint(m.A(z.reshape(x_hat.shape))).flatten(1)

            b = (x_hat + self.gamma * known).flatten(1)
            return cg(matvec, b, self.iterations, x0=x_hat.flatten(1)).x.reshape(x_hat.shape)

        x_t = initial_state(prior, sigmas[0], rng, m.shape, m.y, start)
        for sigma, s in pairwise(sigmas):
            x_hat = prior(x_t, sigma)
            noise = (1 - self.eta**2) ** 0.5 * (x_t - x_hat) / sigma + self.eta * rng.normal_like(
                x_t
            )
            x_t = closer(x_hat) + s * noise
        return closer(prior(x_t, sigmas[-1]))
