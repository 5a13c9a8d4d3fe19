"""The data of a recipe: signals to measure, or observations that exist already."""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from invem.batched import Rng
from invem.config import Recipe
from invem.dataset import Dataset
from invem.errors import DataError, PluginError, RecipeError
from invem.measurement import Example, Measurement
from invem.planning.build import Builder, listing
from invem.planning.model import MeasurementModel
from invem.planning.origin import Origins

__all__ = ["Source", "check_observations", "conform"]

_ROWS = 2  # observations that operator and noise are tried on


def conform(name: str, tensor: Tensor, like: Tensor) -> Tensor:
    """Returns a tensor of observations in the number type that the model has for it.

    Floating-point numbers of any precision are converted.

    Args:
        name: Its path, for messages.
        tensor: The tensor.
        like: The tensor of this path that the model draws.

    Raises:
        DataError: If it holds integers, booleans or complex numbers in place of floating-point
            ones, or the other way round.
    """
    if tensor.dtype == like.dtype:
        return tensor
    if tensor.is_floating_point() and like.is_floating_point():
        return tensor.to(like.dtype)
    kind, wanted = (str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, like.dtype))
    raise DataError(f"'{name}' holds {kind}, and must hold {wanted}")


class Source(Dataset):
    """A data set whose errors name the place in the recipe that asked for it.

    Args:
        data: The data set.
        error: Returns the error with the place.
        origins: The components of the plan, for messages.
        signals: Whether it gives signals of `shape`, and not observations.
    """

    def __init__(
        self,
        data: Dataset,
        error: Callable[[str], RecipeError],
        origins: Origins,
        signals: bool,
    ) -> None:
        self.data, self.error, self.origins, self.signals = data, error, origins, signals
        self.shape, self.range = tuple(data.shape), data.range
        self.skipped, self.units = tuple(data.skipped), data.units
        self.windowed = data.windowed

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Tensor) -> Example:
        try:
            example = self.data[index]
        except DataError as error:
            raise self.error(str(error)) from error
        x: object = getattr(example, "x", None)
        n, shape = len(index), tuple(self.shape) if self.signals else ("...",)
        rows = isinstance(x, Tensor) and x.ndim and len(x) == n
        if not isinstance(x, Tensor) or not rows or (self.signals and x.shape[1:] != shape):
            found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise PluginError(
                f"{self.origins.of(self.data)}: it gave x of {found} for {n} indices, not a tensor"
                f" of shape {(n, *shape)}"
            )
        return example._replace(x=_single(x))

    def digest(self) -> str:
        try:
            return self.data.digest()
        except DataError as error:
            raise self.error(str(error)) from error

    def check(self, observed: bool) -> list[str]:
        try:
            return self.data.check(observed)
        except DataError as error:
            raise self.error(str(error)) from error

    def measured(self, index: Tensor) -> dict[str, Tensor] | None:
        given = self.data.measured(index)
        return given and {name: _single(tensor) for name, tensor in given.items()}


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def check_observations(
    recipe: Recipe, builder: Builder, model: MeasurementModel, data: Dataset
) -> None:
    """Compares observations that exist already with what operator and noise would make."""
    first = torch.arange(min(_ROWS, len(data)))
    y = data[first].x
    assert y is not None
    measured = {"y": y} | (data.measured(first) or {})
    given = set(measured)
    example = model.example()
    if data.windowed and not (example.A.local or example.changes_nothing):
        builder.fail(
            ("operator",),
            f"{recipe.operator.name} sees beyond a pixel, and the observations are windows of"
            " larger frames: what is next to a window has a part in it, and is not in it; leave"
            " out `crop` (frames of one size), or choose an operator that acts on each pixel by"
            " itself, such as a mask",
        )
    there, expected = tuple(y.shape[1:]), tuple(example.y.shape[1:])
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
    if there == expected and not unknown:
        for reason in _misfits(model, measured, len(data)):
            builder.fail(("observations",), reason)


def _misfits(model: MeasurementModel, given: Mapping[str, Tensor], n: int) -> Iterator[str]:
    """Yields why operator and noise cannot be used with the tensors of a few observations.

    Args:
        model: How signals are measured.
        given: y and other tensors by path, each of length B.
        n: The number of all observations, for messages.
    """
    m = _measurement(model, len(given["y"]))
    known, fit = m.tensors(), True
    for name, tensor in given.items():
        try:
            conform(name, tensor, known[name])
        except DataError as error:
            fit = False
            yield str(error)
        if tensor.ndim != known[name].ndim:
            fit = False
            shapes = [(n, *value.shape[1:]) for value in (tensor, known[name])]
            yield f"'{name}' has the shape {shapes[0]}, and must have {shapes[1]}"
    if not fit:
        return
    for name, tensor in given.items():
        try:
            alone = m.with_tensors(known | {name: tensor})
            clean = alone.A(torch.zeros(len(tensor), *model.shape))
            fits = clean.shape == m.y.shape and alone.log_prob(
                torch.zeros(len(tensor), *model.shape)
            ).shape == (len(tensor),)
        except (RuntimeError, ValueError, IndexError):
            fits = False
        if not fits:
            shapes = [(n, *value.shape[1:]) for value in (tensor, known[name])]
            yield f"'{name}' of shape {shapes[0]} does not fit y, as {shapes[1]} does"


def _measurement(model: MeasurementModel, n: int) -> Measurement:
    """Returns n measurements of signals of zeros, without their noise."""
    operator, noise = model.draw(n, Rng.generator(0))
    return Measurement(operator(torch.zeros(n, *model.shape)), operator, noise)
