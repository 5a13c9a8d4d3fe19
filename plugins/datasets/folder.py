"""A folder of the user's images."""

import hashlib
import math
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from PIL import Image, ImageOps
from torch import Tensor

from invem import DataError, Dataset, Example, InvemError, RecipeError, examples
from invem.hookspecs import FilePath

EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".npy")
PILLOW_LIMIT = 178_956_970
ORIENTATION = 0x0112

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]


class Item(NamedTuple):
    """One image: a file, a page of a TIFF file or a row of a .npy file, with (height, width)."""

    name: str
    page: int
    size: tuple[int, int]


@dataclass(frozen=True)
class Reader:
    """Turns files into images, with the options of `folder` of the same names."""

    root: Path
    size: int | None
    fit: Literal["crop", "resize"]
    channels: Literal[1, 3]
    max_pixels: int
    low: float | None
    high: float | None
    pages: Literal["first", "all"]

    def scan(self, name: str) -> list[Item]:
        """Lists the images in a file from its headers alone."""
        with self.refusing(name):
            if name.lower().endswith(".npy"):
                array = self._memory(name)
                self._ends(name, _white(array.dtype))
                return [
                    Item(name, i, (array.shape[-2], array.shape[-1])) for i in range(len(array))
                ]
            with self._picture(name) as image:
                count = (
                    getattr(image, "n_frames", 1)
                    if image.format == "TIFF" and self.pages == "all"
                    else 1
                )
                items = []
                for page in range(count):
                    items.append(Item(name, page, self._seek(image, page)))
                    self._ends(name, _white(image))
                return items

    def decode(self, item: Item) -> Tensor:
        """Returns an image, shape (channels, H, W), float32 in [-1, 1]."""
        with self.refusing(item.name):
            bands, white = (
                self._row(item) if item.name.lower().endswith(".npy") else self._page(item)
            )
            if not np.isfinite(bands).all():
                raise DataError("holds values that are not finite")
        low, high = self._ends(item.name, white)
        x = torch.from_numpy(bands.astype(np.float32))
        if len(x) > self.channels:
            x = torch.einsum("c,chw->hw", x.new_tensor([0.299, 0.587, 0.114]), x)[None]
        x = (2 * (x - low) / (high - low) - 1).clamp(-1, 1)
        return x.expand(self.channels, -1, -1)

    def _ends(self, name: str, white: float | None) -> tuple[float, float]:
        """Returns the stored values that become -1 and 1."""
        if self.low is not None and self.high is not None:
            return self.low, self.high
        if white is None:
            raise RecipeError(
                f"{_show(name)} holds floating-point or 32-bit values: "
                "set low and high to the values that become -1 and 1"
            )
        return 0.0, white

    @contextmanager
    def refusing(self, name: str) -> Iterator[None]:
        """Turns any error of a decoder on a broken file into a DataError.

        Pillow alone raises ten kinds.
        """
        try:
            yield
        except DataError as error:
            raise DataError(f"{_show(str(self.root / name))} {error}") from None
        except InvemError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{_show(str(self.root / name))} cannot be read: {reason}") from error

    @contextmanager
    def _picture(self, name: str) -> Iterator[Image.Image]:
        """Opens a picture from a file object.

        Given a name, Pillow 13 maps the file into memory and garbles a rotated TIFF.
        """
        with warnings.catch_warnings(), open(self.root / name, "rb") as file:
            warnings.simplefilter("ignore")
            with Image.open(file, formats=("PNG", "JPEG", "TIFF")) as image:
                yield image

    def _seek(self, image: Image.Image, page: int) -> tuple[int, int]:
        """Goes to a page and returns its height and width after rotation. Decodes nothing."""
        if page:
            image.seek(page)
        width, height = image.size
        self._check(height, width)
        if (
            image.format != "TIFF"
            and "exif" in image.info
            and image.getexif().get(ORIENTATION, 1) >= 5
        ):
            width, height = height, width
        return height, width

    def _check(self, height: int, width: int) -> None:
        if not 0 < height * width <= self.max_pixels:
            raise DataError(
                f"has {width} x {height} pixels; max_pixels allows 1 to {self.max_pixels}"
            )

    def _page(self, item: Item) -> tuple[Array, float | None]:
        """Decodes a picture to stored values, (1 or 3, H, W), and the value of white."""
        with self._picture(item.name) as picture:
            self._seek(picture, item.page)
            white = _white(picture)
            image = ImageOps.exif_transpose(picture)
            if image.mode.startswith(("I", "F")):
                return self._fit([_floats(np.asarray(image))]), white
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
            image = image.convert("L" if image.mode in ("1", "L") else "RGB")
            return self._fit([image]), white

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

    def _row(self, item: Item) -> tuple[Array, float | None]:
        """Reads a row of a .npy file; returns the same as `_page`."""
        row = self._memory(item.name)[item.page]
        return self._fit([_floats(band) for band in (row if row.ndim == 3 else row[None])]), _white(
            row.dtype
        )

    def _fit(self, images: list[Image.Image]) -> Array:
        """Resizes pictures and stacks their bands, shape (bands, H, W)."""
        bands = []
        for image in images:
            width, height = image.size
            if self.size is not None:
                dx, dy = (
                    (0, 0) if self.fit == "resize" else ((width - height) / 2, (height - width) / 2)
                )
                box = (max(dx, 0), max(dy, 0), width - max(dx, 0), height - max(dy, 0))
                image = image.resize((self.size, self.size), Image.Resampling.BICUBIC, box)
            values = np.asarray(image)
            bands.append(values[None] if values.ndim == 2 else values.transpose(2, 0, 1))
        return np.concatenate(bands)


@dataclass(frozen=True, eq=False)
class Folder(Dataset):
    """Images on disk, decoded on access.

    Attributes:
        reader: Turns a file into an image.
        items: The images of this split, in the natural order of their names (2 before 10).
        shape: The shape of one image.
        labels: Shape (N,), int64; or None.
        classes: The names of the labels.
        skipped: The names of the broken files that were left out.
    """

    reader: Reader
    items: tuple[Item, ...]
    shape: tuple[int, ...]
    labels: Tensor | None
    classes: tuple[str, ...]
    skipped: tuple[str, ...]
    range = (-1.0, 1.0)

    def __len__(self) -> int:
        return len(self.items)

    def digest(self) -> str:
        """Returns a digest of the names and the bytes of all files of this split."""
        found = hashlib.sha256()
        for name in dict.fromkeys(item.name for item in self.items):
            with self.reader.refusing(name), open(self.reader.root / name, "rb") as file:
                found.update(
                    os.fsencode(name) + b"\0" + hashlib.file_digest(file, "sha256").digest()
                )
        return found.hexdigest()

    @property
    def names(self) -> list[str]:
        """The path of each image below the root; "#2" says that it is the third of its file."""
        several = {item.name for item in self.items if item.page}
        return [f"{i.name}#{i.page}" if i.name in several else i.name for i in self.items]

    def __getitem__(self, index: Tensor) -> Example:
        x = torch.empty(len(index), *self.shape)
        for row, i in zip(x, index.tolist(), strict=True):
            image = self.reader.decode(self.items[i])
            if image.shape != self.shape:
                raise DataError(
                    f"{_show(self.items[i].name)} has the shape {tuple(image.shape)}, not"
                    f" {self.shape}"
                )
            row.copy_(image)
        return Example(x, label=None if self.labels is None else self.labels[index])


def _example(shape: tuple[int, ...], root: Path) -> dict[str, Any]:
    values = np.random.default_rng(0).integers(0, 256, (24, 9, 10, 3), np.uint8)
    for i, value in enumerate(values):
        Image.fromarray(value).save(root / f"{i:02d}.png")
    return {"root": str(root), "size": 8, "test": 0.3}


@examples(_example)
def folder(
    split: str,
    *,
    root: FilePath,
    size: Annotated[int, Ge(1), Le(16_384)] | None = None,
    fit: Literal["crop", "resize"] = "crop",
    channels: Literal[1, 3] = 3,
    test: Annotated[float, Ge(0), Le(1)] = 0.1,
    broken: Literal["refuse", "skip"] = "refuse",
    max_pixels: Annotated[int, Gt(0), Le(PILLOW_LIMIT)] = 100_000_000,
    low: float | None = None,
    high: float | None = None,
    pages: Literal["first", "all"] = "first",
    labels: bool = False,
) -> Folder:
    """Reads the PNG, JPEG, TIFF and .npy files in a folder and its subfolders.

    A .npy file holds (N, H, W) or (N, C, H, W) values and counts as N images. Files with other
    extensions, and names that begin with a dot, are ignored. EXIF rotation is applied; colour
    profiles are not. Transparent pixels are composited on black. Of an animation, the first frame
    is read. Grey-scale images of 16 bits keep their precision; Pillow reads colour images of 16
    bits as 8 bits.

    Args:
        split: "train" or "test".
        root: The folder.
        size: The height and width to resize to, in pixels; None if all images have the same size.
        fit: "crop" takes the largest centred square; "resize" takes the whole image and changes its
            aspect ratio. Both then resize with a bicubic filter.
        channels: 1 for grey-scale (ITU-R 601 luma of colour images) or 3 for colour (grey-scale
            images are repeated).
        test: The fraction held out for testing. A hash of its path assigns an image, so the
            assignment stays when others are added. Pages of a file stay together; rows of a .npy
            file are separate.
        broken: "refuse" reads the headers at the start, and fails at a broken file then or when it
            is decoded. "skip" decodes every file at the start and leaves out the broken ones,
            listed in `skipped`.
        max_pixels: The largest number of pixels of an image; larger ones are refused before
            decoding.
        low: The stored value that becomes -1; values below are clipped. 0 unless set.
        high: The stored value that becomes 1; values above are clipped. 255 or 65535 unless set.
            Floating-point and 32-bit files need low and high.
        pages: The "first" page of a TIFF file, or "all" pages as separate images.
        labels: Whether the first folder below root names the class of an image.

    Raises:
        DataError: If the folder is missing, it holds no image for this split, a file is broken, or
            sizes differ.
        RecipeError: If low and high are needed or inconsistent.
    """
    if split not in ("train", "test"):
        raise RecipeError(f"split '{split}' is not one of: train, test")
    if (low is None) != (high is None) or (low is not None and high is not None and not low < high):
        raise RecipeError(f"low ({low}) and high ({high}) go together, low below high")
    base = Path(root).expanduser()
    reader = Reader(base, size, fit, channels, max_pixels, low, high, pages)
    items: list[Item] = []
    skipped: list[str] = []
    names = _files(base)
    for name in names:
        try:
            found = reader.scan(name)
            for item in found if broken == "skip" else ():
                reader.decode(item)
        except DataError as error:
            if broken == "refuse":
                raise DataError(f"{error} (broken: skip leaves such files out)") from error
            skipped.append(name)
        else:
            items += found
    if not items:
        what = f"only broken images, such as {_show(skipped[0])}" if skipped else "no image"
        raise DataError(
            f"{_show(root)} holds {what}: put files there that end in {', '.join(EXTENSIONS)}"
        )
    if size is None:
        odd = next((item for item in items if item.size != items[0].size), None)
        if odd is not None:
            (h, w), (h_odd, w_odd) = items[0].size, odd.size
            raise DataError(
                f"{_show(items[0].name)} has {w} x {h} pixels, {_show(odd.name)} {w_odd} x {h_odd}:"
                " set size"
            )
    classes = tuple(sorted({_class(item.name) for item in items})) if labels else ()
    mine = [item for item in items if _held_out(item, test) == (split == "test")]
    if not mine:
        raise DataError(
            f"none of the {len(items)} images of {_show(root)} is for {split}: change test ({test})"
        )
    shape = (channels, *(items[0].size if size is None else (size, size)))
    targets = torch.tensor([classes.index(_class(item.name)) for item in mine]) if labels else None
    return Folder(reader, tuple(mine), shape, targets, classes, tuple(skipped))


def _files(root: Path) -> list[str]:
    """Returns the paths of the image files relative to root, in natural order, with slashes."""

    def refuse(error: OSError) -> None:
        raise DataError(
            f"{_show(str(error.filename))} cannot be listed: {error.strerror}"
        ) from error

    if not root.is_dir():
        raise DataError(f"{_show(str(root))} is not a folder: set root to the folder of the images")
    names = []
    for where, folders, files in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(where, name) for name in files if not name.startswith(".")]
        names += [
            p.relative_to(root).as_posix()
            for p in paths
            if p.suffix.lower() in EXTENSIONS and p.is_file()
        ]
    return sorted(names, key=_natural)


def _natural(name: str) -> tuple[list[str | int], str]:
    """Orders names with their numbers by value, so that 2.png comes before 10.png."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def _held_out(item: Item, fraction: float) -> bool:
    key = f"{item.name}#{item.page}" if item.name.lower().endswith(".npy") else item.name
    digest = hashlib.blake2b(os.fsencode(key), digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def _class(name: str) -> str:
    first, slash, _ = name.partition("/")
    if not slash:
        raise DataError(
            f"{_show(name)} has no label: with labels, images are in one folder per class"
        )
    return first


def _white(kind: Image.Image | np.dtype[Any]) -> float | None:
    """Returns the largest value that a picture or array can store; None for floats and 32 bits."""
    if isinstance(kind, np.dtype):
        return None if kind.kind == "f" else float(np.iinfo(kind).max)
    if kind.mode.startswith("I;16") or (kind.mode == "I" and kind.format == "PNG"):
        return 65535.0
    return None if kind.mode in ("I", "F") else 255.0


def _floats(values: Array) -> Image.Image:
    """Returns a picture of floating-point values, shape (H, W)."""
    return Image.fromarray(np.ascontiguousarray(values, np.float32))


def _show(name: str) -> str:
    return name if name.isprintable() else ascii(name)
