"""Sliced Wasserstein distance between samples and reference signals."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor

from invem import Metric, Outcome, Rng, Unsupported


@dataclass(frozen=True, kw_only=True)
class SlicedWasserstein(Metric):
    """The root mean square over directions of the 2-Wasserstein distance between the projections of two sets.

    Directions are unit vectors, orthogonal within groups of d (M. Rowland et al., AISTATS 2019, arXiv
    1903.03784), which leaves the mean over directions as it is and lowers its variance. As the mean of
    <theta, v>^2 is |v|^2 / d, the value is in units of the data per pixel: adding c to every pixel of one set
    makes it about c (exactly c if d divides `projections`). Sets of different sizes are compared by their
    quantile functions, linear between order statistics. Two sets drawn from one law have a value above 0 that
    falls with their sizes: compare values of equal sizes only.

    Attributes:
        projections: The number of directions.
        seed: Which directions.
    """

    projections: Annotated[int, Ge(1)] = 256
    seed: Annotated[int, Ge(0)] = 0
    needs: ClassVar[frozenset[str]] = frozenset({"samples", "reference"})

    def __call__(self, outcome: Outcome, state: Mapping[str, Tensor]) -> Tensor:
        """Returns the distance in units of the data, shape ()."""
        if outcome.samples is None or outcome.reference is None:
            raise Unsupported("sliced-wasserstein needs samples of the prior and reference signals")
        x, y = outcome.samples.flatten(1), outcome.reference.flatten(1)
        theta = self._directions(x.shape[1]).to(x)
        count = max(len(x), len(y))
        return (_quantiles(x @ theta, count) - _quantiles(y @ theta, count)).square().mean().sqrt()

    def _directions(self, d: int) -> Tensor:
        """Returns unit vectors as columns, shape (d, projections)."""
        rng = Rng.generator("sliced-wasserstein", self.seed)
        bases = []
        for start in range(0, self.projections, d):
            normal = torch.randn(d, min(d, self.projections - start), generator=rng, dtype=torch.float64)
            bases.append(torch.linalg.qr(normal).Q)
        return torch.cat(bases, 1)


def _quantiles(x: Tensor, count: int) -> Tensor:
    """Returns `count` evenly spaced quantiles of each column, shape (count, P). x: (N, P)."""
    x = x.sort(0).values
    if len(x) == count:
        return x
    place = ((torch.arange(count, dtype=torch.float64) + 0.5) * (len(x) / count) - 0.5).clamp(0, len(x) - 1)
    below = place.long().clamp(max=max(len(x) - 2, 0))
    weight = (place - below)[:, None].to(x)
    below = below.to(x.device)
    return x[below] + weight * (x[(below + 1).clamp(max=len(x) - 1)] - x[below])
