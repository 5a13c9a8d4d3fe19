"""Reading pictures: pages, stored values and their range, rotation and transparency."""

import math
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from invem import DataError, InvemError, RecipeError

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
EXTENSIONS = (*PICTURES, ".npy")
PILLOW_LIMIT = 178_956_970

# Tags of TIFF and EXIF.
_SUBFILE = 254
_BITS = 258
_PHOTOMETRIC = 262
_ORIENTATION = 274
_LARGEST = (341, 281)  # SMaxSampleValue, MaxSampleValue
_SAMPLE_FORMAT = 339

_LESS_THAN_A_PAGE = 1 | 4  # a thumbnail, a mask of transparency
_QUARTER_TURN = 5  # EXIF orientations from here on swap height and width
_LEAST_CLAIM = 255.0  # a smaller value in the metadata is no range of a detector
_STRIPS = ((273, 279), (324, 325))  # places and lengths of strips and of tiles
_JPEG_END, _JPEG_TAIL = b"\xff\xd9", 2**12  # the end, before what cameras append
_METADATA = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]


class Item(NamedTuple):
    """One image: a file, a page of a TIFF file or a row of a .npy file.

    Attributes:
        name: The path of the file below the root.
        page: The page or the row, from 0.
        size: (height, width) after rotation, before resizing.
        white: The stored value that is white; None where the file does not say it.
        bits: The bits of a stored value.
        pages: The pages of the file, read or not.
    """

    name: str
    page: int
    size: tuple[int, int]
    white: float | None
    bits: int
    pages: int


class _Raw(NamedTuple):
    """Decoded values: bands as pictures less `shift`, and the stored value of white."""

    bands: list[Image.Image]
    white: float | None
    shift: float = 0.0
    inverted: bool = False


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Turns files into images, with the options of `folder` of the same names."""

    root: Path
    size: int | None = None
    fit: Literal["crop", "resize", "cut"] = "crop"
    channels: Literal[1, 3] = 3
    max_pixels: int = 100_000_000
    low: float | None = None
    high: float | None = None
    pages: Literal["first", "all"] = "all"

    def scan(self, name: str) -> list[Item]:
        """Lists the images in a file from its headers; decodes it only if it seems cut off."""
        with self.refusing(name):
            if name.lower().endswith(".npy"):
                array = self._memory(name)
                n, size = len(array), (array.shape[-2], array.shape[-1])
                white, bits = _white(array.dtype), 8 * array.dtype.itemsize
                items, whole = [Item(name, i, size, white, bits, n) for i in range(n)], True
            else:
                items, whole = self._scan_picture(name)
            for item in items:
                self.ends(item)
                self._check_cut(item)
        if not whole:
            self.decode(items)
        return items

    def _scan_picture(self, name: str) -> tuple[list[Item], bool]:
        """Lists the pages of a picture; also says whether the file seems to be whole."""
        with self._picture(name) as image:
            items = []
            for page in range(getattr(image, "n_frames", 1) if image.format == "TIFF" else 1):
                size = self._seek(image, page)
                if _is_cut_off(image):
                    raise DataError("is cut off: its pixels go on after its end")
                if page and _tag(image, _SUBFILE, 0) & _LESS_THAN_A_PAGE:
                    continue
                items.append(Item(name, page, size, _white(image), _bits(image), 0))
            kept = items if self.pages == "all" else items[:1]
            whole = self._seems_whole(image, name)
            return [item._replace(pages=len(items)) for item in kept], whole

    def decode(self, items: Iterable[Item]) -> list[Tensor]:
        """Returns images, each of shape (channels, H, W), float32 in [-1, 1].

        A file is opened once for pages that follow each other: to find a page, all before it are
        gone through.
        """
        found = []
        for name, of_file in groupby(items, key=lambda item: item.name):
            with self.refusing(name):
                if name.lower().endswith(".npy"):
                    found += [self._scaled(item, self._row(item)) for item in of_file]
                else:
                    with self._picture(name) as image:
                        found += [self._scaled(item, self._page(image, item)) for item in of_file]
        return found

    def _scaled(self, item: Item, raw: _Raw) -> Tensor:
        """Returns an image, shape (channels, H, W), from its decoded values."""
        bands = self._fit(raw.bands)
        low, high = (end - raw.shift for end in self.ends(item._replace(white=raw.white)))
        x = torch.from_numpy(bands.astype(np.float32))
        if len(x) > self.channels:
            x = torch.einsum("c,chw->hw", x.new_tensor([0.299, 0.587, 0.114]), x)[None]
        x = (2 * (x - low) / (high - low) - 1).clamp(-1, 1)
        return (-x if raw.inverted else x).expand(self.channels, -1, -1)

    def ends(self, item: Item) -> tuple[float, float]:
        """Returns the stored values that become -1 and 1."""
        if self.low is not None and self.high is not None:
            return self.low, self.high
        if item.white is None:
            raise RecipeError(
                f"{shown(item.name)} holds floating-point or 32-bit values: "
                "set low and high to the values that become -1 and 1"
            )
        return 0.0, item.white

    def check_agreement(self, items: list[Item]) -> None:
        """Compares sizes, and what the files say of their range.

        Raises:
            DataError: If the sizes differ and none is set.
            RecipeError: If files of 16 bits name different largest values and none is set.
        """
        odd = next((item for item in items if item.size != items[0].size), None)
        if self.size is None and odd is not None:
            (h, w), (h_odd, w_odd) = items[0].size, odd.size
            raise DataError(
                f"{shown(items[0].name)} has {w} x {h} pixels, {shown(odd.name)} {w_odd} x {h_odd}:"
                " set size"
            )
        deep = [item for item in items if item.bits == 16 and self.low is None]
        other = next((item for item in deep if item.white != deep[0].white), None)
        if other is not None:
            raise RecipeError(
                f"{shown(deep[0].name)} says that its largest value is {deep[0].white:g},"
                f" {shown(other.name)} {other.white:g}: set low and high to the values that become"
                " -1 and 1 in all of them"
            )

    def resizes(self, item: Item) -> bool:
        """Whether the pixels of an image are not those of its file."""
        if self.size is None or self.fit == "cut":
            return False
        height, width = item.size
        # A square of the right size that is cut between two pixels is interpolated.
        cut = self.fit == "crop" and min(item.size) == self.size and (height - width) % 2 == 0
        return not cut and item.size != (self.size, self.size)

    def check_finite(self, name: str) -> None:
        """Reads a whole .npy file.

        Raises:
            DataError: If there are values that are NaN or infinite; it says how many.
        """
        with self.refusing(name):
            rows = self._memory(name)
            _refuse_not_finite(sum(map(_not_finite, rows)), rows.size)

    @contextmanager
    def refusing(self, name: str) -> Iterator[None]:
        """Turns any error of a decoder on a broken file into a DataError.

        Pillow alone raises ten kinds.
        """
        path = shown(str(self.root / name))
        try:
            yield
        except DataError as error:
            raise DataError(f"{path} {error}") from None
        except InvemError:
            raise
        except UnidentifiedImageError as error:
            raise DataError(
                f"{path} cannot be read: it is no PNG, JPEG or TIFF picture, or one of a rare kind;"
                " save it as PNG, or as TIFF with values of 8, 16 or 32 bits"
            ) from error
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{path} cannot be read: {reason}") from error

    @contextmanager
    def _picture(self, name: str) -> Iterator[Image.Image]:
        """Opens a picture from a file object.

        Given a name, Pillow 13 maps the file into memory and garbles a rotated TIFF.
        """
        with warnings.catch_warnings(), open(self.root / name, "rb") as file:
            warnings.simplefilter("ignore")
            with Image.open(file, formats=("PNG", "JPEG", "TIFF")) as image:
                if image.format == "PNG" and self._chunks(name)[1]:
                    self._check(image.height, image.width)
                    image.load()  # which reads what follows the pixels
                yield image

    def _chunks(self, name: str) -> tuple[bool, bool]:
        """Goes through the headers of a PNG file: whether it has an end, and whether it has
        metadata, such as its orientation, after its pixels."""
        pixels = late = False
        with open(self.root / name, "rb") as file:
            file.seek(8)
            while len(head := file.read(8)) == 8 and head[4:] != b"IEND":
                pixels |= head[4:] == b"IDAT"
                late |= pixels and head[4:] in _METADATA
                file.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
        return head[4:] == b"IEND", late

    def _seems_whole(self, image: Image.Image, name: str) -> bool:
        """Whether a file is not cut off, as far as that can be told without decoding it."""
        if image.format == "PNG":
            return self._chunks(name)[0]
        if image.format != "JPEG":
            return True
        with open(self.root / name, "rb") as file:
            file.seek(-min(_JPEG_TAIL, os.fstat(file.fileno()).st_size), os.SEEK_END)
            return _JPEG_END in file.read()

    def _seek(self, image: Image.Image, page: int) -> tuple[int, int]:
        """Goes to a page and returns its height and width after rotation. Decodes nothing."""
        if page != image.tell():
            image.seek(page)
        width, height = image.size
        self._check(height, width)
        # Pillow turns the size of a TIFF by its tag, and no size by XMP.
        turned = isinstance(image, TiffImageFile) and _ORIENTATION in image.tag_v2
        # PNG's own `getexif` decodes the whole picture.
        if not turned and Image.Image.getexif(image).get(_ORIENTATION, 1) >= _QUARTER_TURN:
            width, height = height, width
        return height, width

    def _check(self, height: int, width: int) -> None:
        if not 0 < height * width <= self.max_pixels:
            raise DataError(
                f"has {width} x {height} pixels; max_pixels allows 1 to {self.max_pixels}"
            )

    def _check_cut(self, item: Item) -> None:
        if self.fit == "cut" and self.size is not None and min(item.size) < self.size:
            height, width = item.size
            raise DataError(
                f"has {width} x {height} pixels, too few to cut {self.size} x {self.size} from it:"
                " choose a smaller size, or fit: crop, which resizes"
            )

    def _page(self, picture: Image.Image, item: Item) -> _Raw:
        """Decodes a page of a picture."""
        self._seek(picture, item.page)
        _check_clear_colour(picture)
        image = ImageOps.exif_transpose(picture)
        if image.mode.startswith(("I", "F")):
            return self._grey(picture, np.asarray(image), item)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
        image = image.convert("L" if image.mode in ("1", "L") else "RGB")
        return _Raw([image], _white(picture))

    def _grey(self, picture: Image.Image, values: Array, item: Item) -> _Raw:
        """Returns the values of a grey picture of more than 8 bits.

        Args:
            picture: The picture, for its metadata.
            values: The values as Pillow returns them, shape (H, W).
            item: Which picture.
        """
        white = _white(picture)
        if _bits(picture) == 32 and picture.mode == "I" and _tag(picture, _SAMPLE_FORMAT, 1) == 1:
            values = values.view(np.uint32)  # Pillow knows no unsigned numbers of 32 bits
        largest = float(values.max())
        if self.low is None and white is not None and largest > white:
            raise DataError(
                f"holds the value {largest:g}, and its metadata say at most {white:g}: set low and"
                " high to the values that become -1 and 1"
            )
        clear = picture.info.get("transparency")
        if clear is not None:
            values = np.where(values == clear, 0, values)
        inverted = picture.format == "TIFF" and _tag(picture, _PHOTOMETRIC, 1) == 0
        if inverted and white is not None:
            # As Pillow does for 8 bits: low and high count from black.
            values, inverted = white - values.astype(np.float32), False
        return self._raw([values], white, item, inverted)

    def _memory(self, name: str) -> Array:
        """Maps a .npy file whose header agrees with its length, shape (N, H, W) or (N, C, H, W)."""
        with open(self.root / name, "rb") as file:
            version = np.lib.format.read_magic(file)
            layout = np.lib.format
            read = (
                layout.read_array_header_1_0 if version == (1, 0) else layout.read_array_header_2_0
            )
            shape, fortran, dtype = read(file)
            offset, length = file.tell(), os.fstat(file.fileno()).st_size
        if not (dtype.kind == "f" or (dtype.kind == "u" and dtype.itemsize <= 2)):
            raise DataError(f"holds {dtype}; allowed are uint8, uint16 and floating point")
        if not (len(shape) == 3 or (len(shape) == 4 and shape[1] in (1, 3))):
            raise DataError(
                f"has the shape {shape}; allowed are (N, H, W), (N, 1, H, W) and (N, 3, H, W)"
            )
        if length - offset != math.prod(shape) * dtype.itemsize:
            raise DataError(
                f"has {length - offset} bytes where its header claims {shape} of {dtype}: it is"
                " damaged"
            )
        self._check(shape[-2], shape[-1])
        if not shape[0]:
            return np.empty(shape, dtype)
        return np.memmap(self.root / name, dtype, "r", offset, shape, "F" if fortran else "C")

    def _row(self, item: Item) -> _Raw:
        """Reads a row of a .npy file."""
        row = self._memory(item.name)[item.page]
        bands = list(row if row.ndim == 3 else row[None])
        return self._raw(bands, _white(row.dtype), item)

    def _raw(
        self, bands: list[Array], white: float | None, item: Item, inverted: bool = False
    ) -> _Raw:
        """Returns bands of any number type, each of shape (H, W), as pictures of float32.

        Of numbers that float32 cannot hold, low is subtracted first.
        """
        where = f"its image {item.page} " if item.pages > 1 else ""
        _refuse_not_finite(sum(map(_not_finite, bands)), sum(b.size for b in bands), where)
        wide = bands[0].dtype.itemsize > 2 and bands[0].dtype != np.float32
        shift = self.low or 0.0 if wide else 0.0
        if shift:
            bands = [band.astype(np.float64) - shift for band in bands]
        pictures = [Image.fromarray(np.ascontiguousarray(band, np.float32)) for band in bands]
        return _Raw(pictures, white, shift, inverted)

    def _fit(self, images: list[Image.Image]) -> Array:
        """Cuts or resizes pictures and stacks their bands, shape (bands, H, W)."""
        bands = []
        for image in images:
            width, height = image.size
            if self.size is not None and self.fit == "cut":
                x, y = (width - self.size) // 2, (height - self.size) // 2
                image = image.crop((x, y, x + self.size, y + self.size))
            elif self.size is not None:
                dx, dy = (
                    (0, 0) if self.fit == "resize" else ((width - height) / 2, (height - width) / 2)
                )
                box = (max(dx, 0), max(dy, 0), width - max(dx, 0), height - max(dy, 0))
                image = image.resize((self.size, self.size), Image.Resampling.BICUBIC, box)
            values = np.asarray(image)
            bands.append(values[None] if values.ndim == 2 else values.transpose(2, 0, 1))
        return np.concatenate(bands)


def shown(name: str) -> str:
    """Returns a name of a file as it can be printed."""
    return name if name.isprintable() else ascii(name)


def _tag(image: Image.Image, tag: int, default: int) -> int:
    """Returns the first number of a tag of a TIFF file, rounded; `default` if there is none."""
    found = image.tag_v2.get(tag) if isinstance(image, TiffImageFile) else None
    values = np.ravel(np.asarray(default if found is None else found, dtype=np.float64))
    return int(values[0]) if len(values) and np.isfinite(values[0]) else default


def _is_cut_off(image: Image.Image) -> bool:
    """Whether pixels of a page of a TIFF file would be after its end."""
    if not isinstance(image, TiffImageFile) or image.fp is None:
        return False
    length = os.fstat(image.fp.fileno()).st_size
    for place, extent in _STRIPS:
        places, extents = (np.ravel(image.tag_v2.get(tag, ())) for tag in (place, extent))
        if len(places) and len(places) == len(extents):
            return bool((np.float64(places) + np.float64(extents)).max() > length)
    return False


def _bits(image: Image.Image) -> int:
    """Returns the bits of a stored value."""
    known = {"I": 16 if image.format == "PNG" else 32, "F": 32}
    ours = 16 if image.mode.startswith("I;16") else known.get(image.mode, 8)
    return _tag(image, _BITS, ours) if image.mode.startswith(("I", "F")) else ours


def _white(kind: Image.Image | np.dtype[Any]) -> float | None:
    """Returns the value that is white in a picture or array; None for floats and 32 bits.

    It is the largest that fits, or what a TIFF of 16 bits names as its largest: a detector of 12
    bits.
    """
    if isinstance(kind, np.dtype):
        return None if kind.kind == "f" else float(np.iinfo(kind).max)
    if kind.mode.startswith("I;16") or (kind.mode == "I" and kind.format == "PNG"):
        full = 2.0 ** _bits(kind) - 1
        claims = (float(_tag(kind, tag, 0)) for tag in _LARGEST)
        return next((claim for claim in claims if _LEAST_CLAIM <= claim < full), full)
    return None if kind.mode in ("I", "F") else 255.0


def _check_clear_colour(image: Image.Image) -> None:
    """Refuses a transparent colour of 16 bits, which Pillow compares with values of 8."""
    clear = image.info.get("transparency")
    if isinstance(image, PngImageFile) and isinstance(clear, tuple) and max(clear) > 255:
        raise DataError("has a transparent colour of 16 bits: save it with an alpha channel")


def _not_finite(values: Array) -> int:
    if values.dtype.kind != "f":
        return 0
    with np.errstate(over="ignore"):
        return int(values.size - np.isfinite(values.astype(np.float32, copy=False)).sum())


def _refuse_not_finite(count: int, of: int, where: str = "") -> None:
    if count:
        raise DataError(
            f"{where}holds values that are not finite (NaN or infinity): {count} of {of}"
        )
