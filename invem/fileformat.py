"""File formats: reading new observations and writing results."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from invem.errors import Unsupported
from invem.frames import FrameFormat

__all__ = ["Expected", "FileFormat"]


@dataclass(frozen=True)
class Expected:
    """The properties that a run expects of new observations.

    Attributes:
        shape: The shape of one signal.
        source: The name of the data set that the run learned from.
        options: The options of that data set, as written in the recipe.
        observed: Whether that data set holds observations. It holds clean signals otherwise, and
            options that prepare signals do not fit what was measured of them.
        measurement: The shape of one y; that of a signal if left out.
    """

    shape: tuple[int, ...]
    source: str
    options: Mapping[str, Any]
    observed: bool = False
    measurement: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.measurement:
            object.__setattr__(self, "measurement", self.shape)


class FileFormat:
    """A format of files or folders; a subclass overrides `read`, `write`, or both.

    Attributes:
        suffix: The ending of its files, such as ".npz"; empty for a format of folders, which
            overrides `accepts`.
    """

    suffix: ClassVar[str] = ""

    def accepts(self, path: Path) -> bool:
        """Whether a path has this format, by its name or its content."""
        return bool(self.suffix) and path.suffix.lower() == self.suffix

    def read(self, path: Path, expected: Expected) -> dict[str, Tensor]:
        """Returns y, shape (N, *measurement shape), and tensors of operator and noise by path.

        The latter are those that differ between observations, such as "A.mask".

        Raises:
            DataError: If there are no observations, or they cannot be read.
        """
        raise Unsupported(f"{type(self).__name__} cannot be read")

    def names(self, path: Path, expected: Expected) -> list[str]:
        """Returns the name of each observation, in the order of `read`; empty if they have none.

        Raises:
            DataError: If there are no observations, or they cannot be read.
        """
        return []

    def check(self, path: Path, expected: Expected) -> list[str]:
        """Returns what a person should know of new observations, such as that they are resized, one
        line each.

        Raises:
            DataError: If there are no observations, or they cannot be read.
        """
        return []

    def write(self, path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        """Writes results, completely or not at all.

        Args:
            path: The file.
            tensors: "mean", "std" and "draws", or "x".
            about: Plain data that describe the results.

        Raises:
            ResourceError: If the disk is full.
            DataError: If the file cannot be written.
        """
        raise Unsupported(f"{type(self).__name__} cannot be written")

    def files(self, path: Path) -> list[tuple[Path, FrameFormat]]:
        """Returns the files of frames at a path, in natural order, each with the format that reads
        it.

        Args:
            path: A file, or a folder of files.

        Raises:
            DataError: If there are none, or the folder cannot be listed.
        """
        raise Unsupported(f"{type(self).__name__} has no files of frames")

    @property
    def provides(self) -> frozenset[str]:
        """What the format can do: "read", "write", "frames"."""
        own, base = type(self), FileFormat
        able = {
            "read": own.read is not base.read,
            "write": own.write is not base.write,
            "frames": own.files is not base.files,
        }
        return frozenset(name for name, can in able.items() if can)
