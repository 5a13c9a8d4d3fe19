"""MPGD: manifold-preserving guided diffusion."""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from invem import GuidedSampler, Measurement, Prior, Rng
from invem.diffusion import Denoise, Stepping


@dataclass(frozen=True, kw_only=True)
class MPGD(GuidedSampler):
    """MPGD, manifold-preserving guided diffusion (arXiv 2311.16424), for any differentiable A.

    He et al. 2024, without an autoencoder. The clean estimate moves along the gradient of the data
    misfit at x_hat, without a vector-Jacobian product of the network:

        x_hat <- x_hat - weight sqrt(1 + sigma^2) grad |y - A(x_hat)|

    The norm is that of one sample. A step is no longer than the one that would remove the misfit if
    A were linear along it. Unobserved entries see the data only through the denoiser, so guidance
    is weak where much is hidden.

    Attributes:
        steps: The number of noise levels.
        stepping: The rule of the reverse diffusion.
        schedule: The noise levels.
        weight: The length of a guidance step, in units of the data.
    """

    weight: Annotated[float, Gt(0)] = 1.0
    stepping: Stepping = "ancestral"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"vjp"})

    def denoise(self, prior: Prior, m: Measurement, rng: Rng) -> Denoise:
        def posterior(x_t: Tensor, sigma: float) -> Tensor:
            x_hat = prior(x_t, sigma)
            r = m.residual(x_hat)
            pulled = m.A.vjp(x_hat, r)
            size = r.flatten(1).norm(dim=1).clamp(min=1e-12)
            force = pulled.flatten(1).square().sum(1).clamp(min=1e-12)
            length = torch.minimum(self.weight * math.sqrt(1 + sigma**2) / size, size**2 / force)
            return x_hat + length.reshape(-1, *[1] * (x_hat.ndim - 1)) * pulled

        return posterior
