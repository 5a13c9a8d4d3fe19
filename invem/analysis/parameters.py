"""The unknown options of a calibration: their bounds, and the coordinates of the search."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from invem.errors import RecipeError

__all__ = ["Parameters"]


@dataclass(frozen=True)
class Parameters:
    """The options that are sought, and the bounds of each.

    The search runs in coordinates u. Where the lower bound is positive, u is the logarithm of the
    value. Elsewhere u is the position between the bounds, from 0 to 1.

    Attributes:
        bounds: The lowest and the highest value, by name.

    Raises:
        RecipeError: If there is no name, or a lower bound is not below the upper one.
    """

    bounds: Mapping[str, tuple[float, float]]

    def __post_init__(self) -> None:
        if not self.bounds:
            raise RecipeError("calibrate: there is nothing to calibrate")
        for name, (low, high) in self.bounds.items():
            if not low < high:
                raise RecipeError(
                    f"calibrate: {name} is between two numbers in order, got {low:g} and {high:g}"
                )

    def limits(self) -> tuple[Tensor, Tensor]:
        """Returns the lowest and the highest coordinates, each of shape (P,), float64."""
        ends = [
            (math.log(a), math.log(b)) if a > 0 else (0.0, 1.0) for a, b in self.bounds.values()
        ]
        low, high = torch.tensor(ends, dtype=torch.float64).unbind(1)
        return low, high

    def coordinates(self, values: Mapping[str, float]) -> Tensor:
        """Returns the coordinates of values, shape (P,), float64.

        Raises:
            RecipeError: If a value is outside its bounds.
        """
        found = []
        for name, (low, high) in self.bounds.items():
            if not low <= values[name] <= high:
                raise RecipeError(
                    f"calibrate: {name} = {values[name]:g} is not between {low:g} and {high:g}"
                )
            found.append(math.log(values[name]) if low > 0 else (values[name] - low) / (high - low))
        return torch.tensor(found, dtype=torch.float64)

    def values(self, u: Tensor) -> dict[str, float]:
        """Returns the values at coordinates, clipped to the bounds. u: shape (P,)."""
        found = {}
        for (name, (low, high)), c in zip(self.bounds.items(), u.tolist(), strict=True):
            value = math.exp(c) if low > 0 else low + c * (high - low)
            found[name] = min(max(value, low), high)
        return found

    def errors(self, u: Tensor, covariance: Tensor) -> dict[str, float]:
        """Returns the standard errors of the values, to first order.

        Args:
            u: The coordinates of the values, shape (P,).
            covariance: The covariance of the coordinates, shape (P, P).
        """
        slope = [
            value if low > 0 else high - low
            for (low, high), value in zip(
                self.bounds.values(), self.values(u).values(), strict=True
            )
        ]
        std = covariance.diagonal().clamp(min=0).sqrt()
        errors = std * torch.tensor(slope, dtype=torch.float64)
        return dict(zip(self.bounds, errors.tolist(), strict=True))
