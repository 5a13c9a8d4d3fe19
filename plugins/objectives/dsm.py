"""Denoising score matching on signals: posterior draws, or clean images where the recipe grants some."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from invem import Denoiser, Example, Objective, RecipeError, Rng


@dataclass(frozen=True, kw_only=True)
class DSM(Objective):
    """E w(sigma) |D(x + sigma z, sigma) - x|^2 / d (Vincent 2011), with the noise levels and the weights of EDM (Karras et al. 2022,
    arXiv 2206.00364, table 1): log sigma ~ N(p_mean, p_std^2), w = (sigma^2 + s^2)/(sigma s)^2, s the denoiser's sigma_data.

    The M-step of EMDiffusion (arXiv 2407.01014, eq. 13) and of DiEM (arXiv 2405.13712).

    Attributes:
        p_mean: The mean of log sigma, sigma in units of the data.
        p_std: The standard deviation of log sigma.
    """

    p_mean: float = -1.2
    p_std: Annotated[float, Gt(0)] = 1.2

    needs = frozenset({"x"})

    def loss(self, denoiser: Denoiser, batch: Example, rng: Rng) -> Tensor:
        x = batch.x
        if x is None:
            raise RecipeError("dsm learns from signals, and was given measurements only")
        sigma = (self.p_mean + self.p_std * rng.normal(*[1] * (x.ndim - 1)).to(x)).exp()
        data = float(getattr(denoiser, "sigma_data", 0.5))
        weight = (sigma**2 + data**2) / (sigma * data) ** 2
        error = denoiser(x + sigma * rng.normal_like(x), sigma) - x
        return torch.mean((weight * error.square()).flatten(1), dim=1)
