"""Speckle: multiplicative gamma noise."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Generator, Tensor

from invem import NoiseModel, examples


@dataclass(frozen=True, eq=False)
class Speckle(NoiseModel):
    """(y + 1)/2 = g (A(x) + 1)/2 with g ~ Gamma(looks, 1/looks), of mean one.

    This is the intensity of radar or ultrasound, averaged over looks.

    Attributes:
        looks: The number of looks L, shape (B, 1, ...); the variance of g is 1/L.
    """

    looks: Tensor

    def _intensity(self, clean: Tensor) -> Tensor:
        return ((clean + 1) / 2).clamp(min=1e-3)

    def sample(self, clean: Tensor, rng: Generator) -> Tensor:
        # A sum of L exponential variables, so that the draw depends on `rng` alone.
        looks = int(self.looks.max())
        u = torch.rand(looks, *clean.shape, generator=rng, dtype=torch.float64).to(clean)
        kept = torch.arange(looks, device=clean.device).reshape(-1, *[1] * clean.ndim) < self.looks
        g = (-torch.log1p(-u.clamp(max=1 - 1e-7)) * kept).sum(0) / self.looks
        return 2 * g * self._intensity(clean) - 1

    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        looks, mean = self.looks, self._intensity(clean)
        seen = ((y + 1) / 2).clamp(min=torch.finfo(y.dtype).tiny)
        density = (
            looks * (looks / mean).log()
            + (looks - 1) * seen.log()
            - looks * seen / mean
            - torch.lgamma(looks)
        )
        return (density - torch.log(torch.tensor(2.0))).flatten(1).sum(1)


@examples({"looks": 1})
def speckle(
    n: int, shape: tuple[int, ...], rng: Generator, *, looks: Annotated[int, Ge(1)] = 10
) -> Speckle:
    """Multiplies the intensity (x + 1)/2 by gamma noise of mean one.

    Args:
        n: The number of observations.
        shape: The shape of one measurement.
        rng: Not used.
        looks: The number of independent looks that are averaged; 1 is fully developed speckle.
    """
    return Speckle(torch.full((n, *[1] * len(shape)), float(looks)))
