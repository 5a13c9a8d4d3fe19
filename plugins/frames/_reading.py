"""What the formats share: open files and unfinished files over arrays that are sliced."""

import importlib
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from invem import DataError
from invem.atomic import replacing
from invem.errors import InvemError
from invem.frames import Frame, FrameFile, FrameWriter, Window

from ._layout import Array, Layout

_NUMBERS = "uifc"
_LOGS = ("tifffile", "nibabel.global", "astropy")
_BLOCK = 2**20  # bytes that are unpacked at once


def shown(path: Path) -> str:
    """Returns a path as it can be printed."""
    name = str(path)
    return name if name.isprintable() else ascii(name)


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Turns any error of a decoder on a broken file into a DataError of one line."""
    try:
        with warnings.catch_warnings(), _silence():
            warnings.simplefilter("ignore")
            yield
    except DataError as error:
        text = str(error)
        raise DataError(text if text.startswith(shown(path)) else f"{shown(path)} {text}") from None
    except InvemError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{shown(path)} cannot be read: {reason[:300]}") from error


@contextmanager
def _silence() -> Iterator[None]:
    """Keeps libraries from printing what becomes an error, or harms nothing."""
    # Loggers that exist alone: astropy needs a class of its own under its name when it is imported.
    known = logging.Logger.manager.loggerDict
    found = [log for name in _LOGS if isinstance(log := known.get(name), logging.Logger)]
    loud = [log for log in found if not log.disabled]
    for log in loud:
        log.disabled = True
    try:
        yield
    finally:
        for log in loud:
            log.disabled = False


def library(name: str, extra: str) -> Any:
    """Imports the library of a format.

    Raises:
        DataError: If it is missing; it says what to install.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise DataError(f"needs {package}, which is missing: pip install '{extra}'") from None


def native(dtype: Any) -> np.dtype[Any]:
    """Returns a type of numbers in the byte order of this machine.

    Raises:
        DataError: If it is no type of numbers.
    """
    found: np.dtype[Any] = np.dtype(dtype).newbyteorder("=")
    if found.kind not in _NUMBERS:
        raise DataError(f"holds values of type {found}; allowed are integers, floats and complex")
    return found


@dataclass(frozen=True)
class Part:
    """An array of frames in a file.

    Attributes:
        values: What is sliced: an array in memory or on disk.
        layout: Its axes.
        dtype: The type of its values.
        white: The largest value that can occur, if the file says it.
    """

    values: Any
    layout: Layout
    dtype: np.dtype[Any]
    white: float | None = None


class ArrayFile(FrameFile):
    """An open file of one or more arrays.

    Args:
        path: The file.
        parts: Its arrays. Their frames are in this order.
        about: What it says of itself.
        close: Closes it.
    """

    def __init__(
        self,
        path: Path,
        parts: Sequence[Part],
        about: Mapping[str, Any],
        close: Callable[[], None] | None = None,
    ) -> None:
        self.path, self.parts, self.about = path, tuple(parts), dict(about)
        self._close = close
        self._places = [(part, i) for part in self.parts for i in range(part.layout.count)]
        many = len(self._places) > 1
        self.frames = tuple(
            Frame(
                name=f"{path.name}#{number}" if many else path.name,
                shape=part.layout.frame,
                dtype=part.dtype.name,
                white=part.white,
            )
            for number, (part, _) in enumerate(self._places)
        )

    def read(self, index: int, window: Window | None = None) -> Array:
        part, number = self._places[index]
        with refusing(self.path):
            values = np.asarray(part.values[part.layout.key(number, window)])
            return np.ascontiguousarray(part.layout.to_frame(values).astype(part.dtype, copy=False))

    def close(self) -> None:
        if self._close is not None:
            self._close()
            self._close = None


class _Dropped(Exception):
    """A file that shall not be."""


class ArrayWriter(FrameWriter):
    """Fills the arrays of a new file.

    Args:
        path: The file.
        begin: Makes the file under a temporary path, with its arrays.
        end: Completes it under that path before it is renamed.
        drop: Closes what is open of it where it is not completed.
    """

    def __init__(
        self,
        path: Path,
        begin: Callable[[Path], Sequence[Part]],
        end: Callable[[Path], None] | None = None,
        drop: Callable[[], None] | None = None,
    ) -> None:
        self._path, self._end, self._drop, self._stack = path, end, drop, ExitStack()
        self._temporary = self._stack.enter_context(replacing(path, _Dropped))
        with self._dropping():
            self.parts = tuple(begin(self._temporary))
        self._places = [(part, i) for part in self.parts for i in range(part.layout.count)]

    def write(self, index: int, values: Array, window: Window | None = None) -> None:
        with self._dropping():
            fill(*self._places[index], values, window)

    def finish(self) -> None:
        with self._dropping():
            for part in self.parts:
                flush = getattr(part.values, "flush", None)
                if flush is not None:
                    flush()
            self.parts, self._places = (), []  # unmapped, so that it can be renamed anywhere
            if self._end is not None:
                self._end(self._temporary)
        self._stack.close()

    def discard(self) -> None:
        error = _Dropped("not finished")
        if self._drop is not None:
            self._drop()
        try:
            self._stack.__exit__(type(error), error, None)
        except DataError:
            return

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        """Leaves nothing where the file cannot be made or completed."""
        try:
            yield
        except OSError as error:
            self._stack.__exit__(type(error), error, error.__traceback__)
            raise
        except InvemError:
            self.discard()
            raise
        except Exception as error:
            self.discard()
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{shown(self._path)}: cannot be written: {reason[:300]}") from error


def fill(part: Part, number: int, values: Array, window: Window | None) -> None:
    """Puts values of a frame, shape (channels, *space), or of a window of it, into its array.

    Integers are rounded and held within their type.
    """
    key = part.layout.key(number, window)
    part.values[key] = cast(part.layout.from_frame(np.asarray(values)), part.dtype)


def cast(values: Array, dtype: np.dtype[Any]) -> Array:
    """Returns values of another type; integers are rounded and held within its ends."""
    if dtype.kind in "ui" and values.dtype != dtype:
        ends = np.iinfo(dtype)
        # The float above the last integer of 64 bits does not fit into it.
        high = ends.max if dtype.itemsize < 8 else np.nextafter(float(ends.max), 0)
        values = np.clip(np.rint(np.nan_to_num(values)), ends.min, high)
    found: Array = values.astype(dtype, copy=False)
    return found


def reserve(path: Path, size: int) -> None:
    """Makes a file at least as long as this. A mapped file that outgrows its disk kills a process.

    Raises:
        OSError: If there is no room.
    """
    with path.open("r+b") as file:
        if hasattr(os, "posix_fallocate") and size:
            os.posix_fallocate(file.fileno(), 0, size)
        elif file.seek(0, os.SEEK_END) < size:
            file.truncate(size)


def parts_like(like: FrameFile) -> tuple[Part, ...]:
    """Returns the arrays of an open file of this family.

    Raises:
        DataError: If it is of another.
    """
    if not isinstance(like, ArrayFile):
        raise DataError(f"{shown(like.path)} is not an open file of these formats")
    return like.parts


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class Lazy:
    """An array that is made when it is first sliced.

    Args:
        make: Makes it.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._made: Any = None

    def __getitem__(self, key: Any) -> Any:
        if self._made is None:
            self._made = self._make()
        return self._made[key]


def unpacked(stream: _Readable, offset: int, size: int) -> IO[bytes]:
    """Unpacks a compressed stream into a temporary file without a name, as far as it is needed.

    Args:
        stream: The stream.
        offset: The number of bytes before the values.
        size: The number of bytes of the values.

    Raises:
        DataError: If there are fewer.
    """
    file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
    left = offset + size
    while left and (block := stream.read(min(left, _BLOCK))):
        file.write(block)
        left -= len(block)
    if left:
        raise DataError(f"is cut off: {left} bytes of its values are missing")
    file.flush()
    return file


def chosen(shapes: Mapping[str, tuple[int, ...]], inside: str | None) -> str:
    """Returns the name of the array to read: the given one, or the largest.

    Args:
        shapes: The shape of each array of numbers, by its path.
        inside: The path that was given.

    Raises:
        DataError: If there is none of that name, or none that is largest; it lists what there is.
    """
    usable = {name: shape for name, shape in shapes.items() if len(shape) > 1}
    if inside is not None:
        match = next((name for name in shapes if name.strip("/") == inside.strip("/")), None)
        if match is None:
            raise DataError(f"has no array {inside!r}; there are {_listed(shapes)}")
        return match
    if not usable:
        raise DataError(f"holds no array of two or more dimensions; there are {_listed(shapes)}")
    sizes = {name: math.prod(shape) for name, shape in usable.items()}
    largest = [name for name, size in sizes.items() if size == max(sizes.values())]
    if len(largest) > 1:
        raise DataError(f"holds several arrays: set inside to one of {_listed(usable)}")
    return largest[0]


def _listed(shapes: Mapping[str, tuple[int, ...]]) -> str:
    shown = [f"{name} {shape}" for name, shape in list(shapes.items())[:10]]
    return (
        ", ".join(shown) + (f" and {len(shapes) - 10} more" if len(shapes) > 10 else "") or "none"
    )
