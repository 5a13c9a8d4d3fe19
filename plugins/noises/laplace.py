"""Laplace noise."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Generator, Tensor

from invem import NoiseModel


@dataclass(frozen=True, eq=False)
class Laplace(NoiseModel):
    """y = A(x) + b e, where e has density exp(-|e|)/2.

    Attributes:
        scale: b, in units of the data, shape (B, 1, ...).
    """

    scale: Tensor

    def sample(self, clean: Tensor, rng: Generator) -> Tensor:
        u = torch.rand(clean.shape, generator=rng, dtype=clean.dtype).to(clean.device) - 0.5
        tiny = torch.finfo(clean.dtype).tiny
        return clean - self.scale * u.sign() * torch.log((1 - 2 * u.abs()).clamp(min=tiny))

    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        return -((y - clean).abs() / self.scale + (2 * self.scale).log()).flatten(1).sum(1)


def laplace(
    n: int, shape: tuple[int, ...], rng: Generator, *, scale: Annotated[float, Gt(0)] = 0.05
) -> Laplace:
    """Adds Laplace noise, which has heavy tails.

    Args:
        n: The number of observations.
        shape: The shape of one measurement.
        rng: Not used.
        scale: The mean absolute deviation, in units of the data. The standard deviation is 1.41
            times it.
    """
    return Laplace(torch.full((n, *[1] * len(shape)), scale))
