"""Gaussian noise."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le, Len
from torch import Generator, Tensor

from invem import NoiseModel, RecipeError, examples

_Level = Annotated[float, Ge(0), Le(1e15)]  # squares of larger numbers leave the range of float32


@dataclass(frozen=True, eq=False)
class Gaussian(NoiseModel):
    """y = A(x) + sigma z.

    Attributes:
        sigma: The standard deviation, in units of the data, shape (B, 1, ...) or (B, *measurement
            shape).
    """

    sigma: Tensor

    def sample(self, clean: Tensor, rng: Generator) -> Tensor:
        return clean + self.sigma * torch.randn(clean.shape, generator=rng, dtype=clean.dtype).to(
            clean.device
        )

    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        z = (y - clean) / self.sigma
        scale = self.sigma.log().expand_as(z)
        return -(0.5 * z.square() + scale + 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)

    def var(self) -> Tensor:
        return self.sigma.square()


@examples({"sigma": [0.05, 0.3]}, {"sigma": [0.05, 0.3], "per": "pixel"})
def gaussian(
    n: int,
    shape: tuple[int, ...],
    rng: Generator,
    *,
    sigma: _Level | Annotated[list[_Level], Len(2, 2)] = 0.05,
    per: Literal["sample", "pixel"] = "sample",
) -> Gaussian:
    """Adds white Gaussian noise.

    Args:
        n: The number of observations.
        shape: The shape of one measurement.
        rng: Draws the noise levels, where they vary.
        sigma: The standard deviation, in units of the data (images span 2 units, from -1 to 1). Two
            values are a range, from which it is drawn uniformly on a logarithmic scale.
        per: Whether a level is drawn per "sample" or per "pixel".

    Raises:
        RecipeError: If the two levels are not in order or one is zero.
    """
    if not isinstance(sigma, list):
        return Gaussian(torch.full((n, *[1] * len(shape)), float(sigma)))
    low, high = sigma
    if not 0 < low <= high:
        raise RecipeError(
            f"gaussian: sigma as a range is two positive numbers in order, got {sigma}"
        )
    drawn = torch.rand(n, *(shape if per == "pixel" else [1] * len(shape)), generator=rng)
    return Gaussian(low * (high / low) ** drawn)
