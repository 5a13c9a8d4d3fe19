"""Salt-and-pepper noise: broken pixels."""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt, Interval, Le
from torch import Generator, Tensor

from invem import NoiseModel


@dataclass(frozen=True, eq=False)
class SaltPepper(NoiseModel):
    """Each entry is replaced by -1 or 1 with probability p; Gaussian noise is added to all.

    Attributes:
        p: The probability, shape (B, 1, ...).
        sigma: The standard deviation of the Gaussian noise, of replaced entries too, in units of
            the data, shape (B, 1, ...).
    """

    p: Tensor
    sigma: Tensor

    def sample(self, clean: Tensor, rng: Generator) -> Tensor:
        u = torch.rand(clean.shape, generator=rng, dtype=clean.dtype).to(clean.device)
        z = torch.randn(clean.shape, generator=rng, dtype=clean.dtype).to(clean.device)
        centre = torch.where(u < self.p / 2, -1.0, torch.where(u < self.p, 1.0, clean))
        return centre + self.sigma * z

    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        def density(centre: Tensor | float, share: Tensor) -> Tensor:
            return share.log() - 0.5 * ((y - centre) / self.sigma) ** 2

        parts = torch.stack(
            [density(clean, 1 - self.p), density(-1.0, self.p / 2), density(1.0, self.p / 2)]
        )
        scale = self.sigma.log() + 0.5 * math.log(2 * math.pi)
        return (torch.logsumexp(parts, 0) - scale).flatten(1).sum(1)


def salt_pepper(
    n: int,
    shape: tuple[int, ...],
    rng: Generator,
    *,
    p: Annotated[float, Interval(gt=0, lt=1)] = 0.1,
    sigma: Annotated[float, Gt(0), Le(1e15)] = 0.05,
) -> SaltPepper:
    """Replaces a fraction of the entries by black or white.

    Args:
        n: The number of observations.
        shape: The shape of one measurement.
        rng: Not used.
        p: The fraction of broken entries.
        sigma: The standard deviation of the noise of all entries, in units of the data.
    """
    ones = torch.ones(n, *[1] * len(shape))
    return SaltPepper(p * ones, sigma * ones)
