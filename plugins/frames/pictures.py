"""PNG and JPEG pictures."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import ExifTags, Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from invem import DataError
from invem.frames import FrameFile, FrameFormat, FrameWriter

from ._layout import Array, Layout
from ._reading import ArrayFile, ArrayWriter, Lazy, Part, native, parts_like, refusing, shown
from .tiff import plain_tiff

_PNG = ("uint8", "uint16")
_QUARTER_TURN = 5  # from which an orientation swaps rows and columns
_DEEP = ("I", "I;16", "I;16B", "I;16L")
_GREY = ("1", "L", "LA", *_DEEP)
_GREY_16, _BITS, _COLOUR, _HEAD = 16, 24, 25, 26  # where a PNG's header has its depth and kind


@dataclass(frozen=True, kw_only=True)
class Png(FrameFormat):
    """A PNG picture: grey of 8 or 16 bits, or colour of 8 bits as three channels. Transparent
    pixels are laid on black. Floating-point values are written as NAME.tif."""

    suffixes: ClassVar[tuple[str, ...]] = (".png",)

    def open(self, path: Path, *, axes: str | None = None, inside: str | None = None) -> FrameFile:
        with refusing(path):
            return Picture(path, "PNG")

    def create(
        self, path: Path, like: FrameFile, *, dtype: str | None = None, name: str = ""
    ) -> FrameWriter:
        parts = parts_like(like)
        kind = native(dtype or parts[0].dtype)
        if path.suffix.lower() in (".tif", ".tiff"):
            return plain_tiff(path, parts, kind.name)
        (part,) = parts
        colour = part.layout.frame[0] > 1
        if path.suffix.lower() != ".png":
            raise DataError(
                f"{shown(path)}: JPEG would change the values: write {path.stem}.png, or"
                f" {path.stem}.tif for floating point"
            )
        if kind.name not in _PNG or (colour and kind.name == "uint16"):
            what = "colours of 16 bits" if kind.name in _PNG else kind.name
            raise DataError(f"{shown(path)}: PNG does not hold {what}: write {path.stem}.tif")
        values = np.zeros(part.layout.shape, kind)

        def save(temporary: Path) -> None:
            extra = like.kept() if isinstance(like, Picture) else {}
            Image.fromarray(values).save(temporary, format="PNG", **extra)

        return ArrayWriter(path, lambda _: [Part(values, part.layout, kind)], save)

    def name_for(self, path: Path, dtype: str | None = None) -> Path:
        return path.with_suffix(".png" if dtype is None or dtype in _PNG else ".tif")


@dataclass(frozen=True, kw_only=True)
class Jpeg(Png):
    """A JPEG picture. JPEG changes values, so that it is restored as NAME.png."""

    suffixes: ClassVar[tuple[str, ...]] = (".jpg", ".jpeg")

    def open(self, path: Path, *, axes: str | None = None, inside: str | None = None) -> FrameFile:
        with refusing(path):
            return Picture(path, "JPEG")


class Picture(ArrayFile):
    """An open picture. It is decoded once, when it is first read.

    Args:
        path: The file.
        kind: Its format, as Pillow names it.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self._kind = kind
        with Image.open(path, formats=(kind,)) as image:
            grey, deep = image.mode in _GREY, image.mode in _DEEP
            self._info, exif = dict(image.info), Image.Image.getexif(image)
            height, width = image.height, image.width
            if exif.get(ExifTags.Base.Orientation, 1) >= _QUARTER_TURN:
                height, width = width, height
        self._exif = exif
        about: dict[str, Any] = {"kind": kind}
        if kind == "PNG":
            about |= _png_bits(path)
            if about.pop("depth") == _GREY_16 and not deep:
                raise DataError(
                    "has colours or transparency of 16 bits, of which 8 would be read: save it as"
                    " TIFF"
                )
        layout = Layout((height, width) if grey else (height, width, 3), "YX" if grey else "YXS")
        dtype = np.dtype(np.uint16 if deep else np.uint8)
        about |= {"axes": layout.axes, "dtype": dtype.name}
        for tag in ("Make", "Model", "DateTime", "Software"):
            if exif.get(ExifTags.Base[tag]):
                about[tag.lower()] = str(exif[ExifTags.Base[tag]]).strip()
        load = _loader(path, kind, dtype, layout.shape)
        super().__init__(path, [Part(Lazy(load), layout, dtype)], about)

    def kept(self) -> dict[str, Any]:
        """Returns what a PNG file takes over: colour profile, resolution, EXIF and texts."""
        own: dict[str, Any] = {
            name: self._info[name] for name in ("icc_profile", "dpi") if name in self._info
        }
        texts = PngInfo()
        for name, text in self._info.items():
            if isinstance(name, str) and isinstance(text, str) and self._kind == "PNG":
                texts.add_text(name, text)
        own["pnginfo"] = texts
        exif = Image.Exif()
        exif.update({k: v for k, v in self._exif.items() if k != ExifTags.Base.Orientation})
        if len(exif):
            own["exif"] = exif
        return own


def _loader(
    path: Path, kind: str, dtype: np.dtype[Any], shape: tuple[int, ...]
) -> Callable[[], Array]:
    """Returns what decodes a picture, upright."""

    def load() -> Array:
        with Image.open(path, formats=(kind,)) as image:
            image.load()
            upright = ImageOps.exif_transpose(image)
            if dtype == np.uint16:
                return np.asarray(upright).astype(dtype)
            if upright.has_transparency_data:
                upright = upright.convert("RGBA")
                black = Image.new("RGBA", upright.size, "black")
                upright = Image.alpha_composite(black, upright)
            values = np.asarray(upright.convert("L" if len(shape) == 2 else "RGB"))
            if values.shape != shape:
                raise DataError(f"has the shape {values.shape}, and its header says {shape}")
            return values

    return load


def _png_bits(path: Path) -> dict[str, Any]:
    """Returns the depth of a PNG file, and its significant bits, if it says them.

    Such values fill the whole range all the same (PNG specification, section 11.3.2.7), so that
    the largest is not smaller.
    """
    found: dict[str, Any] = {}
    with path.open("rb") as file:
        found["depth"] = file.read(_HEAD)[_BITS]
        file.seek(8)
        while len(head := file.read(8)) == 8 and head[4:] not in (b"IDAT", b"IEND"):
            size = int.from_bytes(head[:4], "big")
            if head[4:] == b"sBIT" and 0 < size <= 4:
                found["significant bits"] = list(file.read(size))
                size = 0
                file.seek(4, 1)
                continue
            file.seek(size + 4, 1)
    return found
