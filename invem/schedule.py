"""Schedules of noise levels sigma, with x_t = x + sigma z."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from invem.errors import RecipeError

__all__ = ["Geometric", "Karras", "Schedule"]


class Schedule(ABC):
    """A decreasing path of noise levels from sigma_max (t = 0) to sigma_min (t = 1)."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Returns the noise level at t, elementwise."""

    def grid(self, steps: int) -> Tensor:
        """Returns `steps` decreasing levels, shape (steps,).

        They are float64, so that ratios of small levels are precise.
        """
        return self.sigma(torch.linspace(0, 1, steps, dtype=torch.float64))


@dataclass(frozen=True, kw_only=True)
class Karras(Schedule):
    """sigma^(1/rho) is linear in t (Karras et al. 2022, arXiv 2206.00364, eq. 5).

    Attributes:
        sigma_max: The first level, in units of the data.
        sigma_min: The last level, in units of the data.
        rho: How strongly the levels concentrate at small sigma.
    """

    sigma_max: Annotated[float, Gt(0)] = 20.0
    sigma_min: Annotated[float, Gt(0)] = 0.005
    rho: Annotated[float, Ge(0.1), Le(100)] = 7.0

    def __post_init__(self) -> None:
        _decreasing(self.sigma_max, self.sigma_min)

    def sigma(self, t: Tensor) -> Tensor:
        first, last = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        sigma: Tensor = (first + t * (last - first)) ** self.rho
        return sigma


@dataclass(frozen=True, kw_only=True)
class Geometric(Schedule):
    """log sigma is linear in t (Song & Ermon 2019, arXiv 1907.05600).

    It is the grid of DiEM, arXiv 2405.13712.

    Attributes:
        sigma_max: The first level, in units of the data.
        sigma_min: The last level, in units of the data.
    """

    sigma_max: Annotated[float, Gt(0)] = 20.0
    sigma_min: Annotated[float, Gt(0)] = 0.005

    def __post_init__(self) -> None:
        _decreasing(self.sigma_max, self.sigma_min)

    def sigma(self, t: Tensor) -> Tensor:
        sigma: Tensor = self.sigma_max * (self.sigma_min / self.sigma_max) ** t
        return sigma


def _decreasing(first: float, last: float) -> None:
    if not first > last > 0:
        raise RecipeError(f"sigma_min must be below sigma_max, got {last} and {first}")
