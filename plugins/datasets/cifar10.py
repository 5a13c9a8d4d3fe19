"""CIFAR-10 in its binary distribution."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from invem import DataError, Dataset, Example, RecipeError, examples
from invem.hookspecs import FilePath

RECORDS, RECORD = 10_000, 1 + 3 * 32 * 32


@dataclass(frozen=True, eq=False)
class CIFAR10(Dataset):
    """Colour images in memory.

    Attributes:
        records: One byte of label and 3,072 bytes of image per row, shape (N, 3073), uint8.
    """

    records: Tensor
    shape = (3, 32, 32)
    range = (-1.0, 1.0)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Tensor) -> Example:
        rows = self.records[index]
        return Example(
            rows[:, 1:].to(torch.float32).reshape(-1, *self.shape) / 127.5 - 1,
            label=rows[:, 0].long(),
        )


def _example(shape: tuple[int, ...], folder: Path) -> dict[str, str]:
    records = np.random.default_rng(0).integers(0, 256, (RECORDS, RECORD), np.uint8)
    records[:, 0] %= 10
    for name in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"):
        records.tofile(folder / name)
    return {"root": str(folder)}


@examples(_example)
def cifar10(split: str, *, root: FilePath = "data/cifar-10-batches-bin") -> CIFAR10:
    """60,000 colour photographs of ten classes, 32 x 32 pixels.

    Source: A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009. Its
    licence is not stated, so invem does not download it.

    Args:
        split: "train" (data_batch_1.bin to data_batch_5.bin, 50,000 images) or "test"
            (test_batch.bin).
        root: The folder of the .bin files.

    Raises:
        DataError: If a file is missing or has the wrong length or content.
    """
    if split not in ("train", "test"):
        raise RecipeError(f"split '{split}' is not one of: train, test")
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if split == "train" else ["test_batch.bin"]
    records = np.empty((len(names) * RECORDS, RECORD), np.uint8)
    for i, name in enumerate(names):
        path = Path(root).expanduser() / name
        if not path.is_file():
            raise DataError(
                f"{path} does not exist: unpack cifar-10-binary.tar.gz"
                " (www.cs.toronto.edu/~kriz/cifar.html) and set root to the folder"
                " cifar-10-batches-bin"
            )
        length = path.stat().st_size
        if length != RECORDS * RECORD:
            raise DataError(f"{path} has {length} bytes, not {RECORDS * RECORD}: fetch it again")
        try:
            rows = np.fromfile(path, np.uint8).reshape(RECORDS, RECORD)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        if rows[:, 0].max() > 9:
            raise DataError(f"{path} has labels above 9: it is not a binary batch of CIFAR-10")
        records[i * RECORDS : (i + 1) * RECORDS] = rows
    return CIFAR10(torch.from_numpy(records))
