"""RED-diff: regularisation by denoising with diffusion."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from invem import Karras, Measurement, PosteriorSampler, Prior, Rng, Schedule


@dataclass(frozen=True, kw_only=True)
class REDDiff(PosteriorSampler):
    """RED-diff, regularisation by denoising (arXiv 2305.04391), for any differentiable A.

    Mardani et al. 2024, algorithm 1. It needs no vector-Jacobian product of the network. Adam moves
    a point mu along the gradient of

        |y - A(mu)|^2/2 + lam sigma <sg[z_hat - z], mu>

    with z_hat = (x_t - x_hat(x_t))/sigma and x_t = mu + sigma z. Each level has one new z. The
    levels are passed once, from the highest to the lowest. The method seeks a mode and returns a
    point. The results vary only through z and are not posterior draws.

    Attributes:
        steps: The number of noise levels, one denoiser call each.
        lam: The weight of the prior.
        rate: The step size of Adam, with momenta 0.9 and 0.99, in units of the data.
        schedule: The noise levels.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"vjp"})

    steps: Annotated[int, Ge(2), Le(100_000)] = 200
    lam: Annotated[float, Gt(0)] = 0.25
    rate: Annotated[float, Gt(0)] = 0.1
    schedule: Schedule = Karras()

    @property
    def cost(self) -> tuple[int, int]:
        return self.steps, 0

    @torch.no_grad()
    def __call__(self, prior: Prior, m: Measurement, rng: Rng) -> Tensor:
        zero = m.y.new_zeros(len(m), *m.shape)
        mu = zero + (prior.moments.mean if prior.moments is not None else 0.0)
        first, second = zero, zero
        for k, sigma in enumerate(self.schedule.grid(self.steps).tolist(), 1):
            z = rng.normal_like(mu)
            x_t = mu + sigma * z
            pull = (x_t - prior(x_t, sigma)) / sigma - z
            grad = self.lam * sigma * pull - m.A.vjp(mu, m.y - m.A(mu))
            first, second = 0.9 * first + 0.1 * grad, 0.99 * second + 0.01 * grad.square()
            mu = mu - self.rate * (first / (1 - 0.9**k)) / ((second / (1 - 0.99**k)).sqrt() + 1e-8)
        return mu
