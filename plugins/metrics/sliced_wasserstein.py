"""Sliced Wasserstein distance between samples and reference signals."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge
from torch import Tensor

from invem import Metric, Outcome, Rng, Unsupported
from invem.compare import directions, sliced_wasserstein


@dataclass(frozen=True, kw_only=True)
class SlicedWasserstein(Metric):
    """The root mean square over directions of the 2-Wasserstein distance of projections.

    Directions are unit vectors, orthogonal within groups of d (M. Rowland et al., AISTATS 2019,
    arXiv 1903.03784). This keeps the mean over directions and lowers its variance. The mean of
    <theta, v>^2 is |v|^2 / d, so the value is in units of the data per pixel: adding c to every
    pixel of one set makes it about c (exactly c if d divides `projections`). Sets of different
    sizes are compared by their quantile functions, linear between order statistics. Two sets from
    one distribution have a value above 0 that falls with their sizes: compare values for equal
    sizes only.

    Attributes:
        projections: The number of directions.
        seed: The seed of the directions.
    """

    projections: Annotated[int, Ge(1)] = 256
    seed: Annotated[int, Ge(0)] = 0
    needs: ClassVar[frozenset[str]] = frozenset({"samples", "reference"})

    def __call__(self, outcome: Outcome, state: Mapping[str, Tensor]) -> Tensor:
        """Returns the distance in units of the data, shape ()."""
        if outcome.samples is None or outcome.reference is None:
            raise Unsupported("sliced-wasserstein needs samples of the prior and reference signals")
        x, y = outcome.samples.flatten(1), outcome.reference.flatten(1)
        theta = directions(
            x.shape[1], self.projections, Rng.generator("sliced-wasserstein", self.seed)
        )
        return sliced_wasserstein(x, y, theta.to(x))
