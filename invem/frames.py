"""Frames: the files of cameras, microscopes, scanners and telescopes, read by window and written
back as they came."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from invem.errors import DataError

__all__ = ["Frame", "FrameFile", "FrameFormat", "FrameWriter", "Units", "Window"]

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]
Window = tuple[slice, ...]
"""One slice for each axis of space: (rows, columns) of an image."""


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One frame of a file: a page of a stack, a row of an array, a time and position of a movie.

    Attributes:
        name: The path of its file below the root, with "#7" for the eighth of several.
        shape: (channels, *space): (C, H, W) for images, (C, D, H, W) for volumes.
        dtype: The type of its stored values, as NumPy names it: "uint16", "complex64".
        white: The largest value that can occur, if the file says it, such as 4095 of 12 bits.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    white: float | None = None


class FrameFile(ABC):
    """An open file. It reads values when it is asked for them, and closes as a context manager.

    Attributes:
        path: The file; or the folder, of formats that are folders.
        frames: What it holds, in order.
        about: What it says of itself, as plain data for display: "axes" (such as "TCYX"),
            "pixel size" and its unit, and so on.
    """

    path: Path
    frames: tuple[Frame, ...]
    about: Mapping[str, Any]

    @abstractmethod
    def read(self, index: int, window: Window | None = None) -> Array:
        """Returns stored values of a frame, shape (channels, *space), or of a window of it.

        Only what the window needs is read, as far as the format allows.

        Raises:
            DataError: If the file is damaged.
        """

    def close(self) -> None:  # noqa: B027
        """Closes the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FrameWriter(ABC):
    """Writes the frames of one file, in any order and by windows.

    The file appears whole when `finish` is called, and nothing is left where it is not: use it as
    a context manager, which finishes unless an error leaves the block.
    """

    @abstractmethod
    def write(self, index: int, values: Array, window: Window | None = None) -> None:
        """Writes stored values of a frame, shape (channels, *space), or of a window of it."""

    @abstractmethod
    def finish(self) -> None:
        """Completes the file and gives it its name."""

    @abstractmethod
    def discard(self) -> None:
        """Removes what was written."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.finish() if kind is None else self.discard()


@dataclass(frozen=True, kw_only=True)
class FrameFormat(ABC):
    """A format of files of frames.

    Attributes:
        suffixes: The endings of its files, in lower case: (".tif", ".tiff").
        extra: What to install if its library is missing, such as "invem[zarr]"; empty if it comes
            with invem.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""

    def accepts(self, path: Path) -> bool:
        """Whether a file, or a folder that is one file (as of Zarr), has this format by its
        name."""
        return path.name.lower().endswith(self.suffixes)

    @abstractmethod
    def open(self, path: Path, *, axes: str | None = None, inside: str | None = None) -> FrameFile:
        """Opens a file; reads its headers alone.

        Args:
            path: The file.
            axes: The meaning of each axis, one letter each: T or N frames, Z depth, C or S
                channels, Y rows, X columns. What the file says, or the usual order, if left out.
                Z counts as frames unless the signals are volumes.
            inside: The path of the array inside of a file that holds several (HDF5, Zarr, .npz).

        Raises:
            DataError: If it cannot be read, or its library is missing: the message says what to
                install.
        """

    @abstractmethod
    def create(
        self, path: Path, like: FrameFile, *, dtype: str | None = None, name: str = ""
    ) -> FrameWriter:
        """Begins a file with the frames, axes and metadata of another one of this format.

        Args:
            path: The new file. JPEG files are lossy: a format may refuse its name.
            like: The open file whose frames are restored.
            dtype: The type of the values; that of `like` if left out.
            name: What its values are ("mean", "standard deviation"), for the metadata.

        Raises:
            DataError: If it cannot be written, or does not hold `dtype`: the message says which
                format does (`name_for`).
        """

    def name_for(self, path: Path, dtype: str | None = None) -> Path:
        """Returns the name under which `create` writes: `path`, or one with another ending, where
        the format of `path` does not hold values as they are.

        Args:
            path: The new file, named as the old one.
            dtype: The type of the values; that of the old file if left out.
        """
        return path


@dataclass(frozen=True, kw_only=True)
class Units:
    """The map from stored values to the range of signals: low becomes -1 and high 1.

    Nothing is clipped on the way in. With `gain`, stored values are first made to have noise of
    one level, by the generalised Anscombe transform (Starck, Murtagh & Bijaoui 1998, eq. 18.4) of
    photon noise `var = gain (value - offset) + read^2`; low and high are then transformed too.

    Attributes:
        low: The stored value that becomes -1.
        high: The stored value that becomes 1.
        how: Where they come from, in words: "given", "12 bits", "percentiles 0.1 and 99.9".
        gain: Stored units per photon; 0 for no transform.
        offset: The stored value without light.
        read: The standard deviation of the read-out noise, in stored units.
    """

    low: float
    high: float
    how: str = "given"
    gain: float = 0.0
    offset: float = 0.0
    read: float = 0.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise DataError(f"low ({self.low:g}) must be below high ({self.high:g})")

    def signal(self, stored: Array) -> Array:
        """Returns values in the range of signals, float32, of the shape of `stored`."""
        values = np.asarray(stored, dtype=np.float64)
        low, high = self._ends()
        found: Array = (2 * (self._stabilised(values) - low) / (high - low) - 1).astype(np.float32)
        return found

    def stored(self, signal: Array) -> Array:
        """Returns stored values, float64, of signals: the inverse of `signal`."""
        low, high = self._ends()
        return self._destabilised((np.asarray(signal, np.float64) + 1) / 2 * (high - low) + low)

    def spread(self, signal: Array, std: Array) -> Array:
        """Returns standard deviations in stored units, to first order.

        Args:
            signal: Where they are, in the range of signals.
            std: Standard deviations in that range.
        """
        x, h = np.asarray(signal, np.float64), 1e-3
        slope = (self.stored(x + h) - self.stored(x - h)) / (2 * h)
        found: Array = slope * std
        return found

    def as_dict(self) -> dict[str, Any]:
        """Returns plain data, for the files of a run: `Units(**data)` reads them."""
        return asdict(self)

    @property
    def sigma(self) -> float:
        """The level of the noise in the range of signals, after the transform; it needs `gain`."""
        low, high = self._ends()
        return 2 / (high - low)

    def _ends(self) -> tuple[float, float]:
        low, high = self._stabilised(np.array([self.low, self.high], np.float64))
        return float(low), float(high)

    def _stabilised(self, values: Array) -> Array:
        if not self.gain:
            return values
        inner = self.gain * (values - self.offset) + 0.375 * self.gain**2 + self.read**2
        found: Array = 2 / self.gain * np.sqrt(np.maximum(inner, 0))
        return found

    def _destabilised(self, values: Array) -> Array:
        if not self.gain:
            return values
        root = np.maximum(values, 0) * self.gain / 2
        found: Array = (root**2 - 0.375 * self.gain**2 - self.read**2) / self.gain + self.offset
        return found
