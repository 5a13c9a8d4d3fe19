"""New observations from files, and results into files, in any format that a plugin offers."""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from invem.config import Catalog
from invem.errors import DataError, RecipeError
from invem.fileformat import Expected, FileFormat
from invem.planning.build import defaults
from invem.planning.plan import Plan

__all__ = ["check_observations", "observation_names", "read_observations", "writer"]


def _formats(catalog: Catalog, ability: str) -> Iterator[FileFormat]:
    for _, fmt in defaults(catalog, "formats"):
        if ability in fmt.provides:
            yield fmt


def _names(catalog: Catalog, ability: str) -> str:
    return ", ".join(name for name, f in defaults(catalog, "formats") if ability in f.provides)


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
    catalog = Catalog.load()
    for fmt in _formats(catalog, "read"):
        if fmt.accepts(path):
            return fmt
    raise DataError(f"no file format reads it (known: {_names(catalog, 'read')})")


def writer(path: Path) -> FileFormat:
    """Returns the format that results are written in.

    Raises:
        RecipeError: If no format is that of the file's name.
    """
    catalog = Catalog.load()
    for fmt in _formats(catalog, "write"):
        if fmt.accepts(path):
            return fmt
    raise RecipeError(f"{path}: no file format writes it (known: {_names(catalog, 'write')})")
