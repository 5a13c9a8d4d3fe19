"""Calibration of posterior draws."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Interval
from torch import Tensor

from invem import DataError, Metric, Outcome, Unsupported, examples
from invem.compare import ranks, share_inside


@examples({"of": "spread-error"})
@dataclass(frozen=True, kw_only=True)
class Calibration(Metric):
    """Coverage of the truth by central intervals of the draws, or the spread-to-error ratio.

    It needs the truth. With K draws from the true posterior, the rank of the truth among them is
    uniform on 0..K in every entry. Rank r stands for all levels in [r, r + 1]/(K + 1), and the
    fraction of these in the central interval counts. The expected value is then `level` for any K,
    as in `coverage-90` of `invem bench`. Few draws limit the value: if the truth is never among K <
    (1 + level)/(1 - level) draws, it is 1 - (1 - level)(K + 1)/2, thus 0.85 at K = 2 and level 0.9.
    Calibration on average is not calibration for each y: draws too narrow for some y and too wide
    for others may cancel.

    Attributes:
        of: "coverage" is the fraction of entries whose truth lies in the central interval. `level`
            is ideal; less means that draws are too narrow. "spread-error" is the mean squared
            distance of two draws over that of a draw and the truth. It is a ratio of means over all
            observations, since the ratio per observation is biased. 1 is ideal for any K >= 2; less
            is too narrow.
        level: The level of the interval.
    """

    of: Literal["coverage", "spread-error"] = "coverage"
    level: Annotated[float, Interval(gt=0, lt=1)] = 0.9
    needs: ClassVar[frozenset[str]] = frozenset({"truth", "draws", "several draws"})
    below: ClassVar[str] = "the draws are too narrow, or too few to tell"
    above: ClassVar[str] = "the draws are too wide"

    @property
    def target(self) -> float:
        return self.level if self.of == "coverage" else 1.0

    def __call__(self, outcome: Outcome, state: Mapping[str, Tensor]) -> Tensor:
        """Returns coverages, shape (N,), or the ratio, shape (); NaN where a draw is not finite.

        Raises:
            DataError: If there are fewer than two draws per observation.
        """
        if outcome.truth is None or outcome.draws is None:
            raise Unsupported("calibration needs the truth and posterior draws")
        if outcome.draws.shape[1] < 2:
            raise DataError(
                "calibration needs at least two draws per observation: set evaluate.draws"
            )
        draws, truth = outcome.draws.flatten(2).double(), outcome.truth.flatten(1).double()
        if self.of == "spread-error":
            return (
                2 * draws.var(1).sum() / (draws - truth[:, None]).square().mean(1).sum()
            ).float()
        share = share_inside(ranks(draws, truth), 0.5 - self.level / 2, 0.5 + self.level / 2).mean(
            1
        )
        return share.masked_fill(~draws.isfinite().flatten(1).all(1), math.nan).float()
