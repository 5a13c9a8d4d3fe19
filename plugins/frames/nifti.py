"""NIfTI volumes of scanners."""

import gzip
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from invem.frames import FrameFile, FrameFormat, FrameWriter

from ._layout import Array, Layout
from ._reading import (
    ArrayFile,
    ArrayWriter,
    Lazy,
    Part,
    library,
    native,
    parts_like,
    refusing,
    reserve,
    unpacked,
)

_AXES = {2: "YX", 3: "ZYX", 4: "TZYX", 5: "CTZYX"}
_PACKED = ".gz"


@dataclass(frozen=True, kw_only=True)
class Nifti(FrameFormat):
    """A NIfTI file. Its stored order X Y Z T is read as T Z Y X, and `axes` are in this order too.
    Values are those that are stored, before the scale of the header, which is kept. Compressed
    files are unpacked beside memory, into a temporary file."""

    suffixes: ClassVar[tuple[str, ...]] = (".nii", ".nii.gz")
    extra: ClassVar[str] = "invem[nifti]"

    def open(self, path: Path, *, axes: str | None = None, inside: str | None = None) -> FrameFile:
        with refusing(path):
            image = library("nibabel", self.extra).load(path)
            return NiftiFrames(path, image, axes)

    def create(
        self, path: Path, like: FrameFile, *, dtype: str | None = None, name: str = ""
    ) -> FrameWriter:
        (part,) = parts_like(like)
        kind = native(dtype or part.dtype)

        def begin(temporary: Path) -> list[Part]:
            if isinstance(like, NiftiFrames):
                header = like.header()
            else:
                header = library("nibabel", self.extra).Nifti1Header()
                header.set_data_shape(part.layout.shape[::-1])
            header.set_data_dtype(kind)
            if name:
                header["intent_name"] = name[:15].encode("ascii", "replace")
            return [_begin(temporary, header, part.layout, kind)]

        packs = path.name.lower().endswith(_PACKED)
        return ArrayWriter(path, begin, _pack if packs else None)


class NiftiFrames(ArrayFile):
    """An open NIfTI file.

    Args:
        path: The file.
        image: The image of nibabel.
        axes: The axes, slowest first.
    """

    def __init__(self, path: Path, image: Any, axes: str | None) -> None:
        self._image = image
        proxy = image.dataobj
        stored = np.dtype(image.header.get_data_dtype())
        dtype = native(stored)
        shape = tuple(int(n) for n in proxy.shape)
        layout = Layout(shape[::-1], axes or _AXES.get(len(shape), "?" * len(shape)))

        def load() -> Array:
            if not path.name.lower().endswith(_PACKED):
                return np.memmap(path, stored, "r", proxy.offset, shape, "F").T
            with gzip.open(path) as stream:
                size = int(np.prod(shape, dtype=object)) * stored.itemsize
                file = unpacked(stream, proxy.offset, size)
            return np.memmap(file, stored, "r", proxy.offset, shape, "F").T

        sizes = [float(size) for size in image.header.get_zooms()[:2]]
        unit = image.header.get_xyzt_units()[0]
        about: dict[str, Any] = {"axes": layout.axes, "dtype": dtype.name}
        about |= {"pixel size": sizes[::-1], "unit": unit if unit != "unknown" else ""}
        text = bytes(image.header["descrip"].tobytes()).rstrip(b"\0").decode("latin-1").strip()
        if text:
            about["description"] = text
        slope, inter = proxy.slope, proxy.inter
        if (slope, inter) != (1, 0):
            about["scale"] = f"{slope:g} x stored value + {inter:g}"
        super().__init__(path, [Part(Lazy(load), layout, dtype)], about)

    def header(self) -> Any:
        """Returns a copy of the header, with the scale of its values and its extensions."""
        header = self._image.header.copy()
        header.set_slope_inter(self._image.dataobj.slope, self._image.dataobj.inter)
        return header


def _begin(path: Path, header: Any, layout: Layout, dtype: np.dtype[Any]) -> Part:
    """Writes a header alone, and maps the values for writing."""
    header["magic"] = header.single_magic
    header["vox_offset"] = 0  # so that the header finds the first place by itself
    first = header.single_vox_offset + header.extensions.get_sizeondisk()
    header.set_data_offset(-(-first // 16) * 16)
    with path.open("wb") as file:
        header.write_to(file)
    offset = int(header.get_data_offset())
    reserve(path, offset + int(np.prod(layout.shape, dtype=object)) * dtype.itemsize)
    stored = dtype.newbyteorder(header.endianness)
    values = np.memmap(path, stored, "r+", offset, layout.shape[::-1], "F")
    return Part(values.T, layout, dtype)


def _pack(temporary: Path) -> None:
    raw = temporary.with_name(temporary.name + ".raw")
    temporary.replace(raw)
    try:
        with raw.open("rb") as source, gzip.open(temporary, "wb", compresslevel=6) as target:
            shutil.copyfileobj(source, target, 2**20)
    finally:
        raw.unlink()
