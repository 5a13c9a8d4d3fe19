"""Peak signal-to-noise ratio."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from invem import Metric, Outcome, Unsupported


@dataclass(frozen=True, kw_only=True)
class PSNR(Metric):
    """20 log10(peak) - 10 log10(mean squared error), where the peak is the width of the range.

    Nothing is clipped.

    Attributes:
        of: "mean" is for the posterior mean, the estimate with the least squared error: that of the
            K draws, or the exact one where the sampler knows it. "draw" is the average over draws
            of the ratio of each, where a perfect posterior scores about 3 dB less. It is never the
            best of K.
    """

    of: Literal["mean", "draw"] = "mean"
    needs: ClassVar[frozenset[str]] = frozenset({"truth", "draws"})
    default: ClassVar[bool] = True
    unit: ClassVar[str] = "dB"
    higher_is_better: ClassVar[bool] = True

    def __call__(self, outcome: Outcome, state: Mapping[str, Tensor]) -> Tensor:
        """Returns decibels, shape (N,); infinite where an estimate equals the truth."""
        if outcome.truth is None or outcome.draws is None:
            raise Unsupported("psnr needs the truth and posterior draws")
        low, high = outcome.range
        x = outcome.estimate()[:, None] if self.of == "mean" else outcome.draws
        error = (x - outcome.truth[:, None]).square().flatten(2).mean(2)
        return (20 * math.log10(high - low) - 10 * error.log10()).mean(1)
