"""New observations from files, and results into files, in any format that a plugin offers."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from invem.config import Catalog, Component
from invem.errors import DataError, InvemError, PluginError, RecipeError
from invem.fileformat import Expected, FileFormat
from invem.frames import FrameFormat
from invem.planning.origin import Origins
from invem.planning.plan import Plan

__all__ = [
    "check_observations",
    "frame_files",
    "observation_names",
    "read_observations",
    "writer",
]


class _Named(FileFormat):
    """A format whose errors name the component.

    Args:
        component: The component.

    Raises:
        InvemError: If it cannot be built.
    """

    def __init__(self, component: Component) -> None:
        self.name, self._origins = component.name, Origins()
        make: Callable[[], Any] = component.load()
        self._origins.add(component, make)
        with self._origins.naming():
            self._format: FileFormat = make()
        if not isinstance(self._format, FileFormat):
            raise PluginError(f"{component.label}: it is not a FileFormat")
        self._origins.add_built(component, self._format)

    def accepts(self, path: Path) -> bool:
        with self._origins.naming():
            return self._format.accepts(path)

    def read(self, path: Path, expected: Expected) -> dict[str, Tensor]:
        with self._origins.naming():
            return self._format.read(path, expected)

    def names(self, path: Path, expected: Expected) -> list[str]:
        with self._origins.naming():
            return self._format.names(path, expected)

    def check(self, path: Path, expected: Expected) -> list[str]:
        with self._origins.naming():
            return self._format.check(path, expected)

    def write(self, path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        with self._origins.naming():
            self._format.write(path, tensors, about)

    def files(self, path: Path) -> list[tuple[Path, FrameFormat]]:
        with self._origins.naming():
            return self._format.files(path)

    @property
    def provides(self) -> frozenset[str]:
        return self._format.provides


def _accepting(path: Path, ability: str) -> tuple[FileFormat | None, str]:
    """Returns the format of a path that reads or writes, and what there is in words, for where
    there is none."""
    names, broken = [], []
    for _, offers in sorted(Catalog.load().offers["formats"].items()):
        for component in offers:
            try:
                fmt = _Named(component)
                if ability not in fmt.provides:
                    continue
                names.append(fmt.name)
                if fmt.accepts(path):
                    return fmt, ""
            except InvemError as error:  # it may be the format of other files
                broken.append(str(error))
    return None, "; ".join([f"known: {', '.join(names)}", *broken])


def read_observations(path: Path, plan: Plan) -> dict[str, Tensor]:
    """Reads new observations for the priors of a plan.

    Args:
        path: A file or a folder.
        plan: The plan.

    Raises:
        DataError: If there are none, they cannot be read, or no format is that of the path.
    """
    return _reader(path).read(path, _expected(plan))


def observation_names(path: Path, plan: Plan) -> list[str]:
    """Returns the names of new observations, such as those of files; empty if they have none.

    Args:
        path: A file or a folder.
        plan: The plan.

    Raises:
        DataError: If there are none, they cannot be read, or no format is that of the path.
    """
    return _reader(path).names(path, _expected(plan))


def frame_files(path: Path) -> list[tuple[Path, FrameFormat]]:
    """Returns the files of frames at a path, in natural order, each with the format that reads it.

    Args:
        path: A file, or a folder of files.

    Raises:
        DataError: If there are none, or no format reads them.
    """
    if not path.exists():
        raise DataError("there is no such file or folder")
    fmt, known = _accepting(path, "frames")
    if fmt is None:
        raise DataError(f"no format of frames reads it ({known})")
    return fmt.files(path)


def check_observations(path: Path, plan: Plan) -> list[str]:
    """Returns what a person should know of new observations, one line each.

    Args:
        path: A file or a folder.
        plan: The plan.

    Raises:
        DataError: If there are none, they cannot be read, or no format is that of the path.
    """
    return _reader(path).check(path, _expected(plan))


def _expected(plan: Plan) -> Expected:
    given = plan.recipe.data or plan.recipe.observations
    assert given is not None
    measurement = tuple(plan.model.example().y.shape[1:])
    return Expected(plan.shape, given.name, given.options, plan.observed, measurement)


def _reader(path: Path) -> FileFormat:
    """Returns the format that a path is read in."""
    if not path.exists():
        raise DataError("there is no such file or folder")
    fmt, known = _accepting(path, "read")
    if fmt is None:
        raise DataError(f"no file format reads it ({known})")
    return fmt


def writer(path: Path) -> FileFormat:
    """Returns the format that results are written in.

    Raises:
        RecipeError: If no format is that of the file's name.
    """
    fmt, known = _accepting(path, "write")
    if fmt is None:
        raise RecipeError(f"{path}: no file format writes it ({known})")
    return fmt
