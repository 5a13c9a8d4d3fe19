"""LGD: loss-guided diffusion by Monte Carlo."""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from invem import GuidedSampler, Measurement, Prior, Rng
from invem.diffusion import Denoise, Stepping


@dataclass(frozen=True, kw_only=True)
class LGD(GuidedSampler):
    """LGD, loss-guided diffusion by Monte Carlo, for any differentiable A and noise with a density.

    Song et al. 2023, ICML, algorithm 1. p(y | x_t) is the mean of p(y | x_hat + r z) over `samples`
    draws of z, with r = sigma/sqrt(1 + sigma^2). Its gradient goes through the prior. With many
    measurements one draw outweighs the others, and the method becomes DPS at a random point.

    A guidance step is no longer than the one that would remove the misfit if A were linear along
    it. Without that bound the chain diverges at low noise.

    Attributes:
        steps: The number of noise levels.
        stepping: The rule of the reverse diffusion.
        schedule: The noise levels.
        samples: Draws of z per state. Each costs an application of A and no network call.
    """

    steps: Annotated[int, Ge(2), Le(100_000)] = 100
    stepping: Stepping = "ancestral"
    samples: Annotated[int, Ge(1)] = 8

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"vjp", "density"})

    @property
    def products(self) -> int:
        return 1

    def denoise(self, prior: Prior, m: Measurement, rng: Rng) -> Denoise:
        rows = torch.arange(len(m)).repeat_interleave(self.samples)
        several = m[rows]

        def posterior(x_t: Tensor, sigma: float) -> Tensor:
            with torch.enable_grad():
                x_t = x_t.detach().requires_grad_()
                x_hat = prior(x_t, sigma)
            r = sigma / math.sqrt(1 + sigma**2)
            x = x_hat.detach()[rows] + r * rng.normal(self.samples, *m.shape).to(x_t).flatten(0, 1)
            weights = several.log_prob(x).reshape(-1, self.samples).softmax(1).flatten()
            pulled = weights.reshape(-1, *[1] * (x.ndim - 1)) * several.score(x)
            score = pulled.reshape(-1, self.samples, *m.shape).sum(1)
            (grad,) = torch.autograd.grad(x_hat, x_t, score)
            estimate: Tensor = x_hat.detach()
            step: Tensor = sigma**2 * grad
            flat = step.flatten(1).norm(dim=1).clamp(min=1e-12)
            way = (1e-2 / flat).reshape(-1, *[1] * (estimate.ndim - 1))
            clean = m.A(estimate)
            along = (
                (m.A(estimate + way * step) - clean) / way.reshape(-1, *[1] * (clean.ndim - 1))
            ).flatten(1)
            best: Tensor = ((m.y - clean).flatten(1) * along).sum(1) / along.square().sum(1).clamp(
                min=1e-20
            )
            return estimate + best.clamp(0, 1).reshape(way.shape) * step

        return posterior
