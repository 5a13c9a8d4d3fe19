"""Gaussian noise."""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Generator, Tensor

from invem import NoiseModel


@dataclass(frozen=True, eq=False)
class Gaussian(NoiseModel):
    """y = A(x) + sigma z.

    Attributes:
        sigma: The standard deviation, in units of the data, shape (B, 1, ...) with as many axes as y.
    """

    sigma: Tensor

    def sample(self, clean: Tensor, rng: Generator) -> Tensor:
        return clean + self.sigma * torch.randn(clean.shape, generator=rng, dtype=clean.dtype).to(clean.device)

    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        z = (y - clean) / self.sigma
        scale = self.sigma.log().expand_as(z)
        return -(0.5 * z.square() + scale + 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)

    def var(self) -> Tensor:
        return self.sigma.square()


def gaussian(n: int, shape: tuple[int, ...], rng: Generator, *, sigma: Annotated[float, Ge(0)] = 0.05) -> Gaussian:
    """Adds white Gaussian noise of one standard deviation.

    Args:
        n: The number of observations.
        shape: The shape of one measurement.
        rng: Not used: the level is the same for all.
        sigma: The standard deviation, in units of the data (images span 2 units, from -1 to 1).
    """
    return Gaussian(torch.full((n, *[1] * len(shape)), float(sigma)))
