"""The data of a recipe: signals to measure, or observations that exist already."""

from collections.abc import Callable

import torch
from torch import Tensor

from invem.config import Recipe
from invem.dataset import Dataset
from invem.errors import DataError, RecipeError
from invem.measurement import Example
from invem.planning.build import Builder, listing
from invem.planning.model import MeasurementModel

__all__ = ["Source", "check_observations"]


class Source(Dataset):
    """A data set whose errors name the place in the recipe that asked for it.

    Args:
        data: The data set.
        error: Returns the error with the place.
    """

    def __init__(self, data: Dataset, error: Callable[[str], RecipeError]) -> None:
        self.data, self.error = data, error
        self.shape, self.range = tuple(data.shape), data.range
        self.skipped = tuple(data.skipped)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Tensor) -> Example:
        try:
            return self.data[index]
        except DataError as error:
            raise self.error(str(error)) from error

    def measured(self, index: Tensor) -> dict[str, Tensor] | None:
        return self.data.measured(index)


def check_observations(
    recipe: Recipe, builder: Builder, model: MeasurementModel, data: Dataset
) -> None:
    """Compares observations that exist already with what operator and noise would make."""
    first = torch.tensor([0])
    y = data[first].x
    assert y is not None
    measured = data.measured(first)
    given = {"y"} if measured is None else set(measured)
    there, expected = tuple(y.shape[1:]), tuple(model.example().y.shape[1:])
    if there != expected:
        builder.fail(
            ("observations",),
            f"{recipe.operator.name} measures signals of shape {model.shape} as {expected}, and"
            f" the observations are {there}",
        )
    known = model.paths()
    if unknown := given - set(known):
        builder.fail(
            ("observations",),
            f"{listing(unknown)} is no tensor of {recipe.operator.name} or {recipe.noise.name}"
            f" (known: {', '.join(known)})",
        )
    if drawn := model.drawn_anew() - given:
        builder.fail(
            ("operator",),
            f"{listing(drawn)} would be drawn anew, and the observations were made with others:"
            " give them beside y (data set `measurements`), or choose an operator and a noise that"
            " are the same for all",
        )
