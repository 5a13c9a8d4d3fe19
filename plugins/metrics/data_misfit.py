"""Consistency of draws with the measurement."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from invem import Measurement, Metric, Outcome, RecipeError, Unsupported

CHUNK = 256


@dataclass(frozen=True, kw_only=True)
class DataMisfit(Metric):
    """The root mean square of (y - A(x)) / sigma over the entries of y.

    sigma^2 is the variance of the noise. The truth scores 1 up to 1/(4 m), with m entries. So does
    a draw from the true posterior, as the pair (x, y) has the same distribution. Entries that A
    hides hold only noise, and count. A value above 1 contradicts the measurement; a value below 1
    fits the noise. It says nothing about the part of x that A hides.

    Attributes:
        of: "draw" is the average over draws of the misfit of each. "mean" is the misfit of the mean
            of the draws, which is below 1 for a perfect posterior.
    """

    of: Literal["draw", "mean"] = "draw"
    needs: ClassVar[frozenset[str]] = frozenset({"draws", "measurement", "var"})
    default: ClassVar[bool] = True
    unit: ClassVar[str] = "sigma"
    higher_is_better: ClassVar[bool | None] = None
    below: ClassVar[str] = "the restorations fit the noise, or sigma is assumed too large"
    above: ClassVar[str] = (
        "the restorations contradict the observations: sigma is assumed too small, the operator is"
        " not the true one, or the sampler needs more steps"
    )

    @property
    def target(self) -> float | None:
        """1 for a draw; the value of a perfect mean depends on the posterior."""
        return 1.0 if self.of == "draw" else None

    def __call__(self, outcome: Outcome, state: Mapping[str, Tensor]) -> Tensor:
        """Returns misfits in standard deviations of the noise, shape (N,).

        Raises:
            RecipeError: If the noise has variance 0 somewhere.
        """
        if outcome.draws is None or outcome.measurement is None:
            raise Unsupported("data-misfit needs posterior draws and the measurements")
        x = outcome.estimate()[:, None] if self.of == "mean" else outcome.draws
        chunks = [slice(i, i + CHUNK) for i in range(0, len(x), CHUNK)]
        return torch.cat([self._misfit(outcome.measurement[rows], x[rows]) for rows in chunks])

    def _misfit(self, m: Measurement, x: Tensor) -> Tensor:
        """Returns the misfit of each observation, shape (B,). x: (B, K, *shape)."""
        var = m.noise.var()
        if not bool((var > 0).all()):
            raise RecipeError(
                "data-misfit divides by the standard deviation of the noise, which is 0: leave the"
                " metric out"
            )
        squares = torch.stack(
            [((m.y - m.A(draw)).abs().square() / var).flatten(1).mean(1) for draw in x.unbind(1)]
        )
        return squares.sqrt().mean(0)
