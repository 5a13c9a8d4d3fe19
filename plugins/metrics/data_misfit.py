"""How well draws explain the measurement."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from invem import Measurement, Metric, Outcome, RecipeError, Unsupported

CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class DataMisfit(Metric):
    """The root mean square of (y - A(x)) / sigma over all entries of y; sigma^2 is the variance of
    the noise.

    The truth scores 1 but for 1/(4 m) with m entries, and so does a draw of the true posterior, as
    the pair (x, y) has the same law. Entries that A hides hold nothing but noise, and count. A
    value above 1 means that the measurement is contradicted; below 1, that noise is fitted. It says
    nothing about what A hides.

    Attributes:
        of: "draw" for the average over draws of the misfit of each; "mean" for the misfit of the
            mean of the draws, which is below 1 for a perfect posterior.
    """

    of: Literal["draw", "mean"] = "draw"
    needs: ClassVar[frozenset[str]] = frozenset({"draws", "measurement", "var"})
    unit: ClassVar[str] = "sigma"

    def __call__(self, outcome: Outcome, state: Mapping[str, Tensor]) -> Tensor:
        """Returns misfits in standard deviations of the noise, shape (N,).

        Raises:
            RecipeError: If the noise has variance 0 somewhere.
        """
        if outcome.draws is None or outcome.measurement is None:
            raise Unsupported("data-misfit needs posterior draws and the measurements")
        x = outcome.draws.mean(1, keepdim=True) if self.of == "mean" else outcome.draws
        chunks = [slice(i, i + CHUNK) for i in range(0, len(x), CHUNK)]
        return torch.cat([self._misfit(outcome.measurement[rows], x[rows]) for rows in chunks])

    def _misfit(self, m: Measurement, x: Tensor) -> Tensor:
        """Returns the misfit of each of B observations, shape (B,). x: (B, K, *shape)."""
        var = m.noise.var()
        if not bool((var > 0).all()):
            raise RecipeError(
                "data-misfit counts in standard deviations of the noise, which is 0: leave the"
                " metric out"
            )
        squares = torch.stack(
            [((m.y - m.A(draw)).abs().square() / var).flatten(1).mean(1) for draw in x.unbind(1)]
        )
        return squares.sqrt().mean(0)
