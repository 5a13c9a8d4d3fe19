"""A folder of images, or one image file, as observations."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from invem import DataError
from invem.fileformat import Expected, FileFormat

from ..datasets._images import EXTENSIONS, PICTURES, Item, Reader, shown
from ..datasets.folder import Folder, files_of

DATA_SET = "folder"
UNITS = ("low", "high", "max_pixels")  # options that hold for any image of the same source
SHAPING = ("size", "fit")  # options that hold for images measured like those of the run


@dataclass(frozen=True, kw_only=True)
class ImageFolder(FileFormat):
    """The images of a folder or of one file, all pages and rows of them, in their own size.

    Of the options of the data set `folder`, low, high and max_pixels apply again if the run learned
    from one, and size and fit if it was one of observations. Clean images are resized before they
    are measured; measurements are not.
    """

    def accepts(self, path: Path) -> bool:
        return path.is_dir() or path.suffix.lower() in PICTURES

    def read(self, path: Path, expected: Expected) -> dict[str, Tensor]:
        images = _images(path, expected)
        x = images[torch.arange(len(images))].x
        assert x is not None
        return {"y": x}

    def names(self, path: Path, expected: Expected) -> list[str]:
        return _images(path, expected).names

    def check(self, path: Path, expected: Expected) -> list[str]:
        return _images(path, expected).check(observed=True)


def _images(path: Path, expected: Expected) -> Folder:
    shape = expected.measurement
    channels: Literal[1, 3] = 3 if shape[:1] == (3,) else 1
    if len(shape) != 3 or shape[0] != channels:
        raise DataError(
            f"observations of this recipe have the shape {shape}, which no image has: give a"
            " safetensors file with y"
        )
    learned = expected.options if expected.source == DATA_SET else {}
    again = UNITS + SHAPING if expected.observed else UNITS
    options = {name: learned[name] for name in again if learned.get(name) is not None}
    root = path if path.is_dir() else path.parent
    reader = Reader(root=root, channels=channels, pages="all", **options)
    names = files_of(path) if path.is_dir() else [path.name]
    items = [item for name in names for item in reader.scan(name)]
    if not items:
        raise DataError(f"there is no image in it: no file ends in {', '.join(EXTENSIONS)}")
    reader.check_agreement(items)
    _check_size(items[0], reader, shape[1:], "size" in learned and not expected.observed)
    return Folder(reader, tuple(items), shape, None, (), ())


def _check_size(item: Item, reader: Reader, size: tuple[int, ...], resized: bool) -> None:
    """Refuses images of another size than the observations of the run have."""
    if reader.size is not None or item.size == size:
        return
    (h, w), (height, width) = item.size, size
    why = " (the size of the recipe's data is that of clean images)" if resized else ""
    raise DataError(
        f"{shown(item.name)} has {w} x {h} pixels, and observations of this run have"
        f" {width} x {height}: cut them to that size{why}; to resize them would change their noise"
    )
