"""NumPy's .npz archives."""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np

from invem import DataError
from invem.frames import FrameFile, FrameFormat, FrameWriter

from ._layout import Array, Layout, usual_axes
from ._reading import (
    ArrayFile,
    ArrayWriter,
    Lazy,
    Part,
    chosen,
    native,
    parts_like,
    refusing,
    unpacked,
)
from .npy import new_array

_ENDING = ".npy"


@dataclass(frozen=True, kw_only=True)
class Npz(FrameFormat):
    """One array of an archive, the largest unless `inside` names one. It is unpacked beside memory,
    into a temporary file. The new archive holds this array alone."""

    suffixes: ClassVar[tuple[str, ...]] = (".npz",)

    def open(self, path: Path, *, axes: str | None = None, inside: str | None = None) -> FrameFile:
        with refusing(path):
            return NpzFrames(path, axes, inside)

    def create(
        self, path: Path, like: FrameFile, *, dtype: str | None = None, name: str = ""
    ) -> FrameWriter:
        (part,) = parts_like(like)
        kind = native(dtype or part.dtype)
        member = like.member if isinstance(like, NpzFrames) else "values" + _ENDING
        method = like.method if isinstance(like, NpzFrames) else zipfile.ZIP_DEFLATED

        def pack(temporary: Path) -> None:
            raw = temporary.with_name(temporary.name + ".raw")
            temporary.replace(raw)
            try:
                with zipfile.ZipFile(temporary, "w", method) as archive:
                    archive.write(raw, member)
            finally:
                raw.unlink()

        return ArrayWriter(path, lambda temporary: [new_array(temporary, part, kind)], pack)


class NpzFrames(ArrayFile):
    """An open archive.

    Args:
        path: The file.
        axes: The axes of the array.
        inside: Its name.
    """

    def __init__(self, path: Path, axes: str | None, inside: str | None) -> None:
        with zipfile.ZipFile(path) as archive:
            shapes = {}
            for member in archive.namelist():
                if member.endswith(_ENDING):
                    with archive.open(member) as stream:
                        shapes[member.removesuffix(_ENDING)] = _header(stream)
            name = chosen({n: shape for n, (shape, _, kind) in shapes.items() if kind}, inside)
            self.member = name + _ENDING
            self.method = archive.getinfo(self.member).compress_type
        shape, fortran, kind = shapes[name]
        dtype = native(kind)
        layout = Layout(shape, axes or usual_axes(shape))

        def load() -> Array:
            with zipfile.ZipFile(path) as archive:
                with archive.open(self.member) as stream:
                    _header(stream)
                    offset = stream.tell()
                with archive.open(self.member) as stream:
                    size = int(np.prod(shape, dtype=object)) * kind.itemsize
                    file = unpacked(stream, offset, size)
            return np.memmap(file, kind, "r", offset, shape, "F" if fortran else "C")

        about = {"axes": layout.axes, "dtype": dtype.name, "inside": name}
        super().__init__(path, [Part(Lazy(load), layout, dtype)], about)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Returns shape, order and type of an array, and leaves the stream where its values begin."""
    version = np.lib.format.read_magic(stream)
    layout = np.lib.format
    read = layout.read_array_header_1_0 if version == (1, 0) else layout.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if dtype.hasobject:
        raise DataError("holds Python objects, which are not read")
    return shape, fortran, dtype
