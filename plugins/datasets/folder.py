"""A folder of the user's images."""

import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from PIL import Image
from torch import Tensor

from invem import DataError, Dataset, Example, RecipeError, examples
from invem.hookspecs import FilePath

from ._images import EXTENSIONS, PILLOW_LIMIT, Item, Reader, shown

TOGETHER = 64  # images that are decoded before they are stored
LOOKED_AT = 32  # images that are decoded before a run, evenly spread
COUNTED = 2**30  # values of .npy files that are looked at before a run
DEPTHS = (8, 10, 12, 14)  # bits of a camera, stored in 16
DIM = -0.5  # images whose largest value is below this use less than a quarter of the range


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

    def check(self, observed: bool) -> list[str]:
        """Decodes 32 images evenly spread over the folder, and counts what is not finite in the
        .npy files, as far as they are not too large."""
        arrays = Counter[str]()
        for item in self.items:
            if not _is_picture(item):
                arrays[item.name] += math.prod(item.size)
        left = COUNTED
        for name, values in arrays.items():
            left -= values
            if left >= 0:
                self.reader.check_finite(name)
        rows = torch.linspace(0, len(self) - 1, min(len(self), LOOKED_AT), dtype=torch.float64)
        looked_at = [self.items[i] for i in rows.round().int().tolist()]
        stored = replace(self.reader, size=None)  # resizing can go beyond the largest value
        largest = max(float(image.max()) for image in stored.decode(looked_at))
        lines = [*self._left_out(), *self._dim(largest, len(looked_at))]
        return [*lines, *self._resized()] if observed else lines

    def _left_out(self) -> Iterator[str]:
        """Says which pages are not read."""
        if self.reader.pages == "first":
            more = [item for item in self.items if item.pages > 1 and _is_picture(item)]
            if more:
                pages = sum(item.pages - 1 for item in more)
                files = f"{len(more)} files" if len(more) > 1 else shown(more[0].name)
                yield f"of {files} {_some(pages, 'page')} left out: pages: all reads them"

    def _dim(self, largest: float, looked_at: int) -> Iterator[str]:
        """Says that the images use a small part of their range."""
        low, high = self.reader.ends(max(self.items, key=lambda item: item.bits))
        if largest >= DIM:
            return
        value = round(low + (largest + 1) / 2 * (high - low), 6)
        text = f"{_some(looked_at, 'image')} decoded, with no value above {value:g}, and"
        fits = [f"{2**b - 1} ({b} bits)" for b in DEPTHS if value < 2**b <= high]
        if self.reader.low is not None or not fits:
            yield f"{text} {high:g} becomes 1: set low and high to the range of the images"
        else:
            yield (
                f"{text} {high:g} becomes 1: if that is not the range of the camera, set low: 0 and"
                f" high: {' or '.join(fits)}"
            )

    def _resized(self) -> Iterator[str]:
        """Says that measured images are resized."""
        size = self.reader.size
        sizes = Counter(item.size for item in self.items if self.reader.resizes(item))
        if sizes:
            (h, w), _ = sizes.most_common(1)[0]
            first = f"{w} x {h} pixels" + (" and other sizes" if len(sizes) > 1 else "")
            yield (
                f"{_some(sizes.total(), 'image')} resized from {first} to {size} x {size}, which"
                " changes the noise: its level falls and neighbouring pixels share it; fit: cut"
                " takes the centre as it is, and without size the images keep theirs"
            )

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
        chosen = [self.items[i] for i in index.tolist()]
        x = torch.empty(len(chosen), *self.shape)
        for first in range(0, len(chosen), TOGETHER):
            part = chosen[first : first + TOGETHER]
            for row, item, image in zip(x[first:], part, self.reader.decode(part), strict=False):
                if image.shape != self.shape:
                    raise DataError(
                        f"{shown(item.name)} has the shape {tuple(image.shape)}, not {self.shape}"
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
    fit: Literal["crop", "resize", "cut"] = "crop",
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
    extensions, and names that begin with a dot, are ignored. Links to folders are followed; a
    folder that is reached twice is read once. Rotation by EXIF or XMP is applied; colour profiles
    are not. Transparent pixels are composited on black. Of an animation, the first frame is read.
    Grey-scale images of 16 bits keep their precision; Pillow reads colour images of 16 bits as 8
    bits. A TIFF whose white is 0 is inverted before low and high count.

    `invem plan` reads the headers of all files, and decodes 32 images evenly spread over them. A
    run decodes all of them before it computes anything.

    Args:
        split: "train" or "test".
        root: The folder.
        size: The height and width to resize to, in pixels; None if all images have the same size.
        fit: "crop" takes the largest centred square; "resize" takes the whole image and changes its
            aspect ratio. Both then resize with a bicubic filter, which changes the noise of
            measured images. "cut" takes the centre of the image in that size and resizes nothing.
        channels: 1 for grey-scale (ITU-R 601 luma of colour images) or 3 for colour (grey-scale
            images are repeated).
        test: The fraction held out for testing. A hash of its path assigns an image, so the
            assignment stays when others are added. Pages of a file stay together, unless it is the
            only file; rows of a .npy file are separate.
        broken: "refuse" reads the headers at the start, and fails at a broken file then or when it
            is decoded. "skip" decodes every file at the start and leaves out the broken ones,
            listed in `skipped`.
        max_pixels: The largest number of pixels of an image; larger ones are refused before
            decoding.
        low: The stored value that becomes -1; values below are clipped. 0 unless set.
        high: The stored value that becomes 1; values above are clipped. Unless set, it is the
            largest value of 8, 12 or 16 bits, or the one that a TIFF file of 16 bits names as its
            largest (SMaxSampleValue). Floating-point and 32-bit files need low and high.
        pages: The "first" page of a TIFF file, or "all" pages as separate images. Thumbnails are no
            pages.
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
    reader = Reader(
        root=base,
        size=size,
        fit=fit,
        channels=channels,
        max_pixels=max_pixels,
        low=low,
        high=high,
        pages=pages,
    )
    items: list[Item] = []
    skipped: list[str] = []
    names = files_of(base)
    for name in names:
        try:
            found = reader.scan(name)
            if broken == "skip":
                for first in range(0, len(found), TOGETHER):
                    reader.decode(found[first : first + TOGETHER])
        except DataError as error:
            if broken == "refuse":
                raise DataError(f"{error} (broken: skip leaves such files out)") from error
            skipped.append(name)
        else:
            items += found
    if not items:
        what = f"only broken images, such as {shown(skipped[0])}" if skipped else "no image"
        raise DataError(
            f"{shown(root)} holds {what}: put files there that end in {', '.join(EXTENSIONS)}"
        )
    reader.check_agreement(items)
    classes = tuple(sorted({_class(item.name) for item in items})) if labels else ()
    shares = _shares(items)
    mine = [
        i for i, share in zip(items, shares, strict=True) if (share < test) == (split == "test")
    ]
    if not mine:
        raise DataError(f"{shown(root)}: {_nothing_for(split, items, shares, test)}")
    shape = (channels, *(items[0].size if size is None else (size, size)))
    targets = torch.tensor([classes.index(_class(item.name)) for item in mine]) if labels else None
    return Folder(reader, tuple(mine), shape, targets, classes, tuple(skipped))


def files_of(root: Path) -> list[str]:
    """Returns the paths of the image files relative to root, in natural order, with slashes.

    Raises:
        DataError: If root is no folder, or a folder in it cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise DataError(
            f"{shown(str(error.filename))} cannot be listed: {error.strerror}"
        ) from error

    if not root.is_dir():
        raise DataError(f"{shown(str(root))} is not a folder: set root to the folder of the images")
    seen: set[str] = set()
    names, tops = [], [str(root)]
    for top in tops:  # which grows: links are followed last, so that a folder has its own name
        for where, folders, files in os.walk(top, onerror=refuse):
            real = os.path.realpath(where)
            folders[:] = sorted(
                (f for f in folders if f[0] != "." and real not in seen), key=_natural
            )
            paths = [Path(where, name) for name in files if real not in seen and name[0] != "."]
            seen.add(real)
            tops += [path for f in folders if os.path.islink(path := os.path.join(where, f))]
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


def _shares(items: list[Item]) -> list[float]:
    """Returns a number in [0, 1) for each image, a hash of its name: the smallest `test` that does
    not hold it out. Pages of a file have the same one, unless there is no other file."""
    alone = len({item.name for item in items}) == 1
    keys = [
        i.name if _is_picture(i) and not (alone and i.page) else f"{i.name}#{i.page}" for i in items
    ]
    digests = [hashlib.blake2b(os.fsencode(key), digest_size=8).digest() for key in keys]
    return [int.from_bytes(digest, "big") / 2**64 for digest in digests]


def _nothing_for(split: str, items: list[Item], shares: list[float], test: float) -> str:
    """Says why no image is for a split, and what would fit."""
    text = f"none of the {len(items)} images is for {split}"
    if len(set(shares)) == 1:
        if items[0].pages > len(items):
            return (
                f"{text}: {shown(items[0].name)} has {items[0].pages} pages, and one of them is"
                " read; pages: all reads and splits them"
            )
        return (
            f"{text}: one image is for training or for testing; give more images, or test: 0 and"
            " evaluate: {observations: 0}"
        )
    digits = 2
    while not min(shares) < (fits := round(min(shares) + 10.0**-digits, digits)) <= max(shares):
        digits += 1
    together = " (pages of a file stay together)" if len(set(shares)) < len(shares) else ""
    held = sum(share < fits for share in shares)
    return f"{text} with test: {test:g}; test: {fits:g} holds out {held} of them{together}"


def _some(n: int, what: str) -> str:
    """Returns a number of things with its verb."""
    return f"{n} {what} is" if n == 1 else f"{n} {what}s are"


def _is_picture(item: Item) -> bool:
    return not item.name.lower().endswith(".npy")


def _class(name: str) -> str:
    first, slash, _ = name.partition("/")
    if not slash:
        raise DataError(
            f"{shown(name)} has no label: with labels, images are in one folder per class"
        )
    return first
