"""FITS files of telescopes and cameras."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from invem import DataError
from invem.frames import FrameFile, FrameFormat, FrameWriter

from ._layout import Array, Key, Layout
from ._reading import (
    ArrayFile,
    ArrayWriter,
    Part,
    library,
    native,
    parts_like,
    refusing,
    reserve,
    shown,
)

_AXES = {2: "YX", 3: "TYX", 4: "TZYX", 5: "NTZYX"}
_BLOCK = 2880  # bytes, of which every part of a file has a whole number
_SHIFTED = {"uint16": 2**15, "uint32": 2**31, "uint64": 2**63, "int8": -(2**7)}
_BITPIX = {"uint8": 8, "int16": 16, "int32": 32, "int64": 64, "float32": -32, "float64": -64}
_BITPIX |= {"uint16": 16, "uint32": 32, "uint64": 64, "int8": 8}
_STRUCTURE: tuple[str, ...] = (
    "SIMPLE",
    "XTENSION",
    "BITPIX",
    "NAXIS",
    "EXTEND",
    "PCOUNT",
    "GCOUNT",
    "BSCALE",
)
_STRUCTURE += ("BZERO", "BLANK", "EXTNAME", "EXTVER", "EXTLEVEL", "CHECKSUM", "DATASUM", "END")
_DEPTHS = ("BITDEPTH", "BITCAMPX", "BITS", "ADCBITS")
_NAMES = {"INSTRUME": "instrument", "TELESCOP": "telescope", "OBJECT": "object"}
_NAMES |= {"DATE-OBS": "date", "BUNIT": "values in", "GAIN": "gain", "EXPTIME": "exposure"}


@dataclass(frozen=True, kw_only=True)
class Fits(FrameFormat):
    """The first picture of a FITS file, or the one that `inside` names or counts. The new file has
    it as its only one, with the headers of the file and of the picture."""

    suffixes: ClassVar[tuple[str, ...]] = (".fits", ".fit", ".fts")
    extra: ClassVar[str] = "invem[fits]"

    def open(self, path: Path, *, axes: str | None = None, inside: str | None = None) -> FrameFile:
        with refusing(path):
            # Not mapped: astropy refuses that for shifted values, and sections read what they
            # need anyway.
            file = library("astropy.io.fits", self.extra).open(path, memmap=False)
            try:
                return FitsFrames(path, file, axes, inside)
            except BaseException:
                file.close()
                raise

    def create(
        self, path: Path, like: FrameFile, *, dtype: str | None = None, name: str = ""
    ) -> FrameWriter:
        (part,) = parts_like(like)
        kind = native(dtype or part.dtype)
        if kind.name not in _BITPIX:
            raise DataError(f"{shown(path)}: FITS does not hold {kind.name}: use .npy or TIFF")

        def begin(temporary: Path) -> list[Part]:
            old = like.headers() if isinstance(like, FitsFrames) else []
            header = self._header(old, part.layout.shape, kind, name)
            header.tofile(temporary, overwrite=True)
            return [_begin(temporary, part.layout, kind)]

        return ArrayWriter(path, begin)

    def _header(
        self, old: list[Any], shape: tuple[int, ...], dtype: np.dtype[Any], name: str
    ) -> Any:
        """Returns the header of a new file: its own structure, and what the old one says."""
        header = library("astropy.io.fits", self.extra).Header()
        header["SIMPLE"] = True
        header["BITPIX"] = _BITPIX[dtype.name]
        header["NAXIS"] = len(shape)
        for i, size in enumerate(reversed(shape)):
            header[f"NAXIS{i + 1}"] = size
        if dtype.name in _SHIFTED:
            header["BSCALE"] = 1
            header["BZERO"] = _SHIFTED[dtype.name]
        for cards in old:
            header.extend(
                [c for c in cards.cards if not c.keyword.startswith(_STRUCTURE)],
                strip=True,
                update=True,
                end=True,
            )
        if name:
            header["HISTORY"] = f"values: {name}"
        return header


class FitsFrames(ArrayFile):
    """An open FITS file.

    Args:
        path: The path of the file.
        file: The file.
        axes: The axes of the picture, slowest first.
        inside: The name or number of its part.
    """

    def __init__(self, path: Path, file: Any, axes: str | None, inside: str | None) -> None:
        self._file = file
        self._unit = unit = _choose(file, inside)
        shape = tuple(unit.shape)
        info = unit.fileinfo()
        if info and info["datLoc"] + info["datSpan"] > path.stat().st_size:
            raise DataError("is cut off: its header says more values than it holds")
        layout = Layout(shape, axes or _AXES.get(len(shape), "?" * len(shape)))
        first = unit.section[tuple(slice(0, 1) for _ in shape)]
        dtype = native(first.dtype)
        header = unit.header
        about: dict[str, Any] = {"axes": layout.axes, "dtype": dtype.name}
        if unit.name:
            about["inside"] = unit.name
        steps = [header.get("CDELT2"), header.get("CDELT1")]
        if all(isinstance(step, int | float) and step for step in steps):
            about |= {"pixel size": [abs(float(s)) for s in steps]}
            about["unit"] = str(header.get("CUNIT1", "deg"))
        for key, label in _NAMES.items():
            value = header.get(key, file[0].header.get(key))
            if value not in (None, ""):
                about[label] = value
        bits = next((header[key] for key in _DEPTHS if isinstance(header.get(key), int)), 0)
        most = 8 * dtype.itemsize
        white = 2.0**bits - 1 if dtype.kind in "ui" and 0 < bits < most else None
        super().__init__(path, [Part(unit.section, layout, dtype, white)], about, file.close)

    def headers(self) -> list[Any]:
        """Returns the headers of the picture and of the file, each once."""
        own = self._unit.header
        return [own] if self._unit is self._file[0] else [own, self._file[0].header]


def _choose(file: Any, inside: str | None) -> Any:
    """Returns the part of a file that is read."""
    pictures = [unit for unit in file if unit.is_image and len(unit.shape) > 1]
    listed = ", ".join(f"{file.index(u)} {u.name} {u.shape}" for u in pictures[:10]) or "none"
    if inside is None:
        if not pictures:
            raise DataError("holds no pictures")
        return pictures[0]
    for unit in pictures:
        if inside.upper() == unit.name.upper() or inside == str(file.index(unit)):
            return unit
    raise DataError(f"has no picture {inside!r}; there are {listed}")


class _Shifted:
    """Unsigned integers as FITS stores them: signed, shifted by half of their range.

    Args:
        stored: The array on disk.
    """

    def __init__(self, stored: np.memmap[Any, Any]) -> None:
        self._stored = stored

    def __setitem__(self, key: Key, values: Array) -> None:
        # Shifting by half of the range flips the highest bit.
        bit = (
            values.dtype.type(1 << (8 * values.dtype.itemsize - 1))
            if (values.dtype.kind == "u")
            else values.dtype.type(-128)
        )
        self._stored[key] = (values ^ bit).view(self._stored.dtype.newbyteorder("="))

    def flush(self) -> None:
        self._stored.flush()


def _begin(path: Path, layout: Layout, dtype: np.dtype[Any]) -> Part:
    """Maps the values of a file that has its header for writing."""
    offset = path.stat().st_size
    size = int(np.prod(layout.shape, dtype=object)) * dtype.itemsize
    reserve(path, offset + -(-size // _BLOCK) * _BLOCK)
    bits = _BITPIX[dtype.name]
    letter = "f" if bits < 0 else "u" if bits == 8 else "i"
    stored = np.dtype(f">{letter}{abs(bits) // 8}")
    values = np.memmap(path, stored, "r+", offset, layout.shape)
    shifted = dtype.name in _SHIFTED
    return Part(_Shifted(values) if shifted else values, layout, dtype)
