"""Where the frames of an array are: its axes by their letters."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from invem import DataError
from invem.frames import Window

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]
Key = tuple[int | slice, ...]

CHANNELS = "CS"
SPACE = "DYX"
_COLOURS = (3, 4)
_MOST_FRAMES = 2_000_000  # a damaged header can claim any number
_USUAL = {2: "YX", 3: "TYX", 4: "TCYX", 5: "TZCYX", 6: "TZCYXS"}


def usual_axes(shape: Sequence[int]) -> str:
    """Returns the axes that an array has by its number of dimensions.

    Raises:
        DataError: If there is no usual order.
    """
    if len(shape) == 4 and shape[3] in _COLOURS and shape[1] not in _COLOURS:
        return "TYXC"
    if len(shape) not in _USUAL:
        raise DataError(
            f"has the shape {tuple(shape)}: set axes to one letter for each of its dimensions"
        )
    return _USUAL[len(shape)]


@dataclass(frozen=True)
class Layout:
    """The frames of an array.

    Attributes:
        shape: The shape of the array.
        axes: One letter for each dimension. Y and X are rows and columns, D the depth of a volume,
            C and S are channels; any other counts frames, with the last axis fastest.
    """

    shape: tuple[int, ...]
    axes: str

    def __post_init__(self) -> None:
        axes = self.axes
        if len(axes) != len(self.shape):
            raise DataError(
                f"has {len(self.shape)} dimensions, {self.shape}, and axes names"
                f" {len(axes)} ({axes})"
            )
        if len(set(axes)) != len(axes) or not {"Y", "X"} <= set(axes):
            raise DataError(f"axes ({axes}) must name Y and X, and no letter twice")
        if not all(self.shape):
            raise DataError(f"holds nothing: its shape is {self.shape}")
        if self.count > _MOST_FRAMES:
            raise DataError(f"claims {self.count} frames; at most {_MOST_FRAMES} are read")

    @property
    def counting(self) -> list[int]:
        """The dimensions that count frames."""
        return [i for i, letter in enumerate(self.axes) if letter not in CHANNELS + SPACE]

    @property
    def inner(self) -> list[int]:
        """The dimensions of a frame: channels first, then space."""
        order = [self.axes.find(letter) for letter in CHANNELS + SPACE]
        return [i for i in order if i >= 0]

    @property
    def count(self) -> int:
        """The number of frames."""
        return math.prod(self.shape[i] for i in self.counting)

    @property
    def frame(self) -> tuple[int, ...]:
        """The shape of a frame, (channels, *space)."""
        sizes = [self.shape[i] for i in self.inner]
        space = sum(letter in SPACE for letter in self.axes)
        return (math.prod(sizes[:-space]), *sizes[-space:])

    def key(self, index: int, window: Window | None) -> Key:
        """Returns where the values of a window of a frame are in the array.

        Raises:
            DataError: If there is no such frame, or the window is none of its space.
        """
        if not 0 <= index < self.count:
            raise DataError(f"has {self.count} frames, and none of number {index}")
        space = self.frame[1:]
        window = window or tuple(slice(None) for _ in space)
        if len(window) != len(space):
            raise DataError(f"has {len(space)} axes of space, and the window {len(window)}")
        key: list[int | slice] = [slice(0, size) for size in self.shape]
        place = np.unravel_index(index, [self.shape[i] for i in self.counting] or [1])
        for axis, number in zip(self.counting, place, strict=False):
            key[axis] = int(number)
        for axis, part, size in zip(self.inner[-len(space) :], window, space, strict=True):
            start, stop, step = part.indices(size)
            if step != 1 or stop <= start:
                raise DataError(f"a window takes neighbours of its {size}, and not {part}")
            key[axis] = slice(start, stop)
        return tuple(key)

    def to_frame(self, values: Array) -> Array:
        """Returns what the array has at a key as (channels, *space)."""
        ranks = self._ranks()
        space = len(self.frame) - 1
        moved = values.transpose(ranks)
        found: Array = moved.reshape(-1, *moved.shape[moved.ndim - space :])
        return found

    def from_frame(self, values: Array) -> Array:
        """Returns values of shape (channels, *space) as the array has them at a key."""
        names = [i for i in self.inner if self.axes[i] in CHANNELS]
        channels = [self.shape[i] for i in names]
        if values.shape[0] != math.prod(channels):
            raise DataError(f"has {math.prod(channels)} channels, and not {values.shape[0]}")
        found: Array = values.reshape(*channels, *values.shape[1:]).transpose(
            np.argsort(self._ranks())
        )
        return found

    def _ranks(self) -> list[int]:
        """Returns the order of the dimensions of a frame among themselves."""
        order = sorted(self.inner)
        return [order.index(i) for i in self.inner]
