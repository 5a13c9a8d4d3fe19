"""The files of frames of a folder, in every format of this family."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from invem import DataError
from invem.fileformat import FileFormat
from invem.frames import FrameFormat

from ._reading import shown
from .fits import Fits
from .hdf5 import Hdf5
from .nifti import Nifti
from .npy import Npy
from .npz import Npz
from .pictures import Jpeg, Png
from .tiff import Tiff
from .zarr import Zarr

FORMATS: tuple[FrameFormat, ...] = (
    Tiff(),
    Png(),
    Jpeg(),
    Npy(),
    Npz(),
    Hdf5(),
    Zarr(),
    Nifti(),
    Fits(),
)
_FOLDER = ".zarr"


@dataclass(frozen=True, kw_only=True)
class Frames(FileFormat):
    """Files of frames, one or all of a folder, read by window and written back as they came."""

    def accepts(self, path: Path) -> bool:
        return path.is_dir() or _format_of(path) is not None

    def files(self, path: Path) -> list[tuple[Path, FrameFormat]]:
        own = _format_of(path)
        if own is not None:
            return [(path, own)]
        endings = ", ".join(suffix for fmt in FORMATS for suffix in fmt.suffixes)
        if not path.is_dir():
            raise DataError(f"{shown(path)} has no name of frames: known endings are {endings}")
        found = [(file, fmt) for file in _walk(path) if (fmt := _format_of(file)) is not None]
        if not found:
            raise DataError(
                f"{shown(path)} holds no file of frames: put files there that end in {endings}"
            )
        return found


def _format_of(path: Path) -> FrameFormat | None:
    """Returns the format of a path by its name; folders have one only where they are one file."""
    if path.is_dir() and not path.name.lower().endswith(_FOLDER):
        return None
    return next((fmt for fmt in FORMATS if fmt.accepts(path)), None)


def _walk(root: Path) -> list[Path]:
    """Returns the files below a folder, and the folders that are files, in natural order."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{shown(Path(error.filename))} cannot be listed: {error.strerror}")

    found: list[Path] = []
    seen: set[str] = set()
    for where, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:  # a link to a folder above
            folders[:] = []
            continue
        seen.add(real)
        visible = sorted(name for name in folders if name[0] != ".")
        whole = [name for name in visible if name.lower().endswith(_FOLDER)]
        folders[:] = [name for name in visible if name not in whole]
        found += [Path(where, name) for name in [*files, *whole] if name[0] != "."]
    return sorted(found, key=lambda path: _natural(path.relative_to(root)))


def _natural(path: Path) -> list[tuple[list[tuple[int, int, str]], str]]:
    """Returns a key that sorts 2 before 10, folder by folder."""
    return [([_piece(p) for p in re.split(r"(\d+)", part)], part) for part in path.parts]


def _piece(text: str) -> tuple[int, int, str]:
    return (0, int(text), "") if text.isdecimal() and text.isascii() else (1, 0, text.casefold())
