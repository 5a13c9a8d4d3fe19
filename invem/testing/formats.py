"""What every file format must do."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from invem.errors import DataError, ResourceError
from invem.fileformat import Expected, FileFormat
from invem.testing.base import Factory, Kind, example_options, normal_like, relative_error

__all__ = ["FORMATS"]

_EXPECTED = Expected((1, 8, 8), "contracts", {})
_DAMAGES = ("missing", "empty", "noise", "cut in two", "its end lost")


@dataclass
class _Case:
    """A file format with one set of options.

    Attributes:
        format: The format.
        folder: An empty folder.
    """

    format: FileFormat
    folder: Path

    @property
    def path(self) -> Path:
        """A path with a name of the format."""
        return self.folder / f"example{self.format.suffix}"

    @property
    def reads(self) -> bool:
        return "read" in self.format.provides

    @property
    def writes(self) -> bool:
        return "write" in self.format.provides


def _cases(factory: Factory, folder: Path) -> Iterator[tuple[str, _Case]]:
    for i, (label, options) in enumerate(example_options(factory, _EXPECTED.shape, folder)):
        own = folder / f"formats-{i}"
        own.mkdir()
        yield label, _Case(factory(**options), own)


FORMATS = Kind(
    "formats",
    "Tried on three observations of 8 x 8 pixels, on damaged files and on a place that cannot be"
    " written to.",
    _cases,
)


def _observations() -> Tensor:
    y = normal_like(torch.empty(3, *_EXPECTED.shape), "y")
    return (y / 3).clamp(-1, 1)


@FORMATS.contract("reads or writes", tolerance=0.0)
def reads_or_writes(case: _Case) -> float:
    """It can read, write or list frames, and does not accept a file of another name."""
    other = case.folder / "example.of-no-format"
    other.write_bytes(b"?")
    accepts = case.format.accepts(other)
    other.unlink()
    return float(not case.format.provides) + float(accepts)


@FORMATS.contract("accepts its own", tolerance=0.0)
def accepts_its_own(case: _Case) -> float | None:
    """It accepts the name that it is asked to write under, and the file that it wrote; only where
    it writes."""
    if not case.writes:
        return None
    before = not case.format.suffix or case.format.accepts(case.path)
    case.format.write(case.path, {"x": _observations()}, {})
    return float(not (before and case.format.accepts(case.path)))


@FORMATS.contract("read back", tolerance=0.01)
def read_back(case: _Case) -> float | None:
    """The observations that were written are read back, the relative error no larger than that of
    images of 8 bits; only where it reads and writes."""
    if not (case.reads and case.writes):
        return None
    y = _observations()
    case.format.write(case.path, {"y": y}, {})
    found = case.format.read(case.path, _EXPECTED)
    return relative_error(found["y"], y)


@FORMATS.contract("refuses a damaged file", tolerance=0.0)
def refuses_a_damaged_file(case: _Case) -> float | None:
    """A file that is missing, empty, noise or cut off is a `DataError`, and so is a folder that
    holds nothing but noise; the number of damages that are not; only where it reads."""
    if not case.reads:
        return None
    return float(sum(not _is_refused(case, damage) for damage in _DAMAGES))


def _is_refused(case: _Case, damage: str) -> bool:
    noise = bytes(range(7, 250, 3)) * 8
    whole = noise
    if case.writes:
        case.format.write(case.path, {"y": _observations()}, {})
        whole = case.path.read_bytes() if case.path.is_file() else noise
    content = {
        "missing": None,
        "empty": b"",
        "noise": noise,
        "cut in two": whole[: len(whole) // 2],
        "its end lost": whole[: len(whole) * 7 // 8],
    }[damage]
    place = case.path
    if not case.format.suffix:
        place = case.folder / damage
        place.mkdir(exist_ok=True)
    file = place / "example.png" if place.is_dir() else place
    file.unlink(missing_ok=True)
    if content is not None:
        file.write_bytes(content)
    try:
        case.format.read(place, _EXPECTED)
    except DataError:
        return True
    return False


@FORMATS.contract("whole or not at all", tolerance=0.0)
def whole_or_not_at_all(case: _Case) -> float | None:
    """Where a file cannot be written, it is a `DataError` or a `ResourceError`, and nothing is
    left; only where it writes."""
    if not case.writes:
        return None
    blocked = case.folder / "no-folder"
    blocked.write_bytes(b"")
    try:
        case.format.write(blocked / f"example{case.format.suffix}", {"x": _observations()}, {})
    except (DataError, ResourceError):
        return float(blocked.stat().st_size != 0)
    return 1.0
