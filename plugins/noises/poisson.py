"""Poisson noise of photon counts."""

from dataclasses import dataclass, replace
from typing import Annotated, Self

import torch
from annotated_types import Gt
from invem_plugins.noises.photons import variance
from torch import Generator, Tensor

from invem import NoiseModel, examples

FLOOR = 1e-3  # photons; the rate is constant below it, so that the logarithm stays finite


@dataclass(frozen=True, eq=False)
class Poisson(NoiseModel):
    """y = 2 k/peak - 1 with k ~ Poisson(peak (A(x) + 1)/2).

    k counts photons; y is mapped back to the range of the data. The variance depends on the signal.
    Methods for Gaussian noise take that of the local mean of y (`given`).

    Attributes:
        peak: The mean count of a pixel of value 1, shape (B, 1, ...).
        variance: The variance estimated from y, in units of the data, shape (B, *measurement
            shape); None before `given`. It is not stored: it follows from y.
    """

    peak: Tensor
    variance: Tensor | None = None

    def _rate(self, clean: Tensor) -> Tensor:
        return (self.peak * (clean + 1) / 2).clamp(min=FLOOR)

    def sample(self, clean: Tensor, rng: Generator) -> Tensor:
        counts = torch.poisson(self._rate(clean).cpu(), generator=rng).to(clean)
        return 2 * counts / self.peak - 1

    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        rate, counts = self._rate(clean), self.peak * (y + 1) / 2
        return (
            (counts * rate.log() - rate - torch.lgamma(counts.clamp(min=0) + 1)).flatten(1).sum(1)
        )

    def given(self, y: Tensor, seen: Tensor | None = None) -> Self:
        return replace(self, variance=variance(y, self.peak, seen))

    def var(self) -> Tensor:
        return super().var() if self.variance is None else self.variance

    @property
    def provides(self) -> frozenset[str]:
        return frozenset() if self.variance is None else frozenset({"var"})


@examples({"peak": 5.0})
def poisson(
    n: int, shape: tuple[int, ...], rng: Generator, *, peak: Annotated[float, Gt(0)] = 100.0
) -> Poisson:
    """Replaces each value by a photon count (Poisson noise).

    On average, a value of -1 gives none and a value of 1 gives `peak` photons.

    Args:
        n: The number of observations.
        shape: The shape of one measurement.
        rng: Not used: the peak is the same for all.
        peak: The mean count of the brightest pixel. A low peak is a dim image.
    """
    return Poisson(torch.full((n, *[1] * len(shape)), peak))
