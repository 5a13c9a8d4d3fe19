"""Fashion-MNIST, or another data set in the four idx files of MNIST."""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from invem import DataError, Dataset, Example, RecipeError
from invem.hookspecs import FilePath

IMAGES, LABELS = 0x803, 0x801
LARGEST = 1_000_000


@dataclass(frozen=True, eq=False)
class FashionMNIST(Dataset):
    """Images of 28 x 28 bytes in memory.

    Attributes:
        images: Shape (N, 28, 28), uint8.
        labels: Shape (N,), int64.
        size: The height and width of the returned images.
    """

    images: Tensor
    labels: Tensor
    size: Literal[28, 16]
    range = (-1.0, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", (1, self.size, self.size))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor) -> Example:
        x = self.images[index, None].to(torch.float32) / 127.5 - 1
        if self.size == 16:
            x = pad(avg_pool2d(x, 2), (1, 1, 1, 1), value=-1.0)
        return Example(x, label=self.labels[index])


def fashion_mnist(
    split: str, *, root: FilePath = "/usr/share/datasets/fashion-mnist", size: Literal[28, 16] = 28
) -> FashionMNIST:
    """70,000 grey-scale images of ten classes of clothing.

    Source: H. Xiao, K. Rasul, R. Vollgraf, arXiv 1708.07747, MIT licence; the Debian package
    dataset-fashion-mnist.

    Args:
        split: "train" (60,000 images) or "test" (10,000, the files named t10k).
        root: The folder of the idx files, compressed (.gz) or not.
        size: 28 as published; 16 for averages over 2 x 2 pixels, with a border of one background
            pixel.

    Raises:
        DataError: If a file is missing, truncated or not in the idx format.
    """
    if split not in ("train", "test"):
        raise RecipeError(f"split '{split}' is not one of: train, test")
    folder, prefix = Path(root).expanduser(), "train" if split == "train" else "t10k"
    images = _read(folder / f"{prefix}-images-idx3-ubyte", IMAGES)
    labels = _read(folder / f"{prefix}-labels-idx1-ubyte", LABELS)
    if images.shape[1:] != (28, 28):
        raise DataError(
            f"{folder}: the {split} images are {images.shape[1]} x {images.shape[2]}, not 28 x 28"
        )
    if len(images) != len(labels):
        raise DataError(
            f"{folder}: there are {len(images)} {split} images but {len(labels)} labels"
        )
    return FashionMNIST(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)), size)


def _read(stem: Path, magic: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Reads an idx file of bytes: a magic number, one big-endian int32 per axis, then the bytes."""
    path = next((p for p in (stem.with_name(stem.name + ".gz"), stem) if p.is_file()), None)
    if path is None:
        raise DataError(
            f"{stem}.gz does not exist: apt-get install dataset-fashion-mnist, or download the four"
            " files named *-ubyte.gz from github.com/zalandoresearch/fashion-mnist and set root to"
            " their folder"
        )
    axes = magic & 0xFF
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            start = file.read(4 * (1 + axes))
            header = np.frombuffer(start.ljust(4 * (1 + axes), b"\0"), ">i4").tolist()
            if len(start) != 4 * (1 + axes) or header[0] != magic:
                raise DataError(f"{path} is not an idx file of {axes}-dimensional bytes")
            shape = tuple(header[1:])
            if min(shape) < 1 or shape[0] > LARGEST or max(shape[1:], default=1) > 28:
                raise DataError(
                    f"{path} claims the shape {shape}, which is not plausible: the file is damaged"
                )
            wanted = int(np.prod(shape))
            data = file.read(wanted + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}): fetch it again") from None
    if len(data) != wanted:
        amount = "more" if len(data) > wanted else "fewer"
        raise DataError(
            f"{path} has {amount} than the {wanted} bytes that its header claims: fetch it again"
        )
    return np.frombuffer(bytearray(data), np.uint8).reshape(shape)
