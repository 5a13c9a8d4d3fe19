"""Poisson noise of photon counts, with Gaussian read-out noise."""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Self

import torch
from annotated_types import Gt, Le
from invem_plugins.noises.photons import variance
from torch import Generator, Tensor

from invem import NoiseModel, examples


@dataclass(frozen=True, eq=False)
class PoissonGaussian(NoiseModel):
    """y = 2 k/peak - 1 + sigma z with k ~ Poisson(peak (A(x) + 1)/2).

    The density has no closed form. `log_prob` is that of a Gaussian with the same mean and
    variance, which depend on A(x) (Foi et al. 2008). It is accurate above some ten photons, or
    where sigma peak/2 exceeds one.

    Attributes:
        peak: The mean count of a pixel of value 1, shape (B, 1, ...).
        sigma: The standard deviation of the read-out noise, in units of the data, shape (B, 1,
            ...).
        variance: The variance of both noises, estimated from y, in units of the data, shape (B,
            *measurement shape); None before `given`. It is not stored: it follows from y.
    """

    peak: Tensor
    sigma: Tensor
    variance: Tensor | None = None

    def _rate(self, clean: Tensor) -> Tensor:
        return (self.peak * (clean + 1) / 2).clamp(min=1e-3)

    def sample(self, clean: Tensor, rng: Generator) -> Tensor:
        counts = torch.poisson(self._rate(clean).cpu(), generator=rng).to(clean)
        z = torch.randn(clean.shape, generator=rng, dtype=clean.dtype).to(clean.device)
        return 2 * counts / self.peak - 1 + self.sigma * z

    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        rate = self._rate(clean)
        var = 4 * rate / self.peak**2 + self.sigma**2
        z2 = (y - (2 * rate / self.peak - 1)) ** 2 / var
        return -0.5 * (z2 + var.log() + math.log(2 * math.pi)).flatten(1).sum(1)

    def given(self, y: Tensor, seen: Tensor | None = None) -> Self:
        return replace(self, variance=variance(y, self.peak, seen, self.sigma))

    def var(self) -> Tensor:
        return super().var() if self.variance is None else self.variance

    @property
    def provides(self) -> frozenset[str]:
        return frozenset() if self.variance is None else frozenset({"var"})


@examples({"peak": 20.0, "sigma": 0.1})
def poisson_gaussian(
    n: int,
    shape: tuple[int, ...],
    rng: Generator,
    *,
    peak: Annotated[float, Gt(0)] = 100.0,
    sigma: Annotated[float, Gt(0), Le(1e15)] = 0.05,
) -> PoissonGaussian:
    """Counts photons and adds Gaussian read-out noise, as a camera does.

    Args:
        n: The number of observations.
        shape: The shape of one measurement.
        rng: Not used.
        peak: The mean count of the brightest pixel.
        sigma: The standard deviation of the read-out noise, in units of the data.
    """
    ones = torch.ones(n, *[1] * len(shape))
    return PoissonGaussian(peak * ones, sigma * ones)
