"""A folder of images as observations."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invem.fileformat import Expected, FileFormat

from ..datasets.folder import Folder, folder

DATA_SET = "folder"  # its options apply again if the run learned from one


@dataclass(frozen=True, kw_only=True)
class ImageFolder(FileFormat):
    """The images of a folder, read as by the data set `folder`.

    Its options are those of the recipe, if the run learned from such a data set.
    """

    def accepts(self, path: Path) -> bool:
        return path.is_dir()

    def read(self, path: Path, expected: Expected) -> dict[str, Tensor]:
        images = _images(path, expected)
        x = images[torch.arange(len(images))].x
        assert x is not None
        return {"y": x}

    def names(self, path: Path, expected: Expected) -> list[str]:
        return _images(path, expected).names


def _images(path: Path, expected: Expected) -> Folder:
    options: dict[str, Any] = {"channels": expected.shape[0]}
    if expected.source == DATA_SET:
        options = dict(expected.options)
    return folder("train", **{**options, "root": str(path), "test": 0.0})
