"""Real handwritten digits of 8 x 8 pixels, for a first run without a download."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from invem import DataError, Dataset, Example, RecipeError

TRAIN = 1500


@dataclass(frozen=True, eq=False)
class Digits(Dataset):
    """Digits in memory.

    Attributes:
        images: Shape (N, 1, H, W), float32 in [-1, 1].
        labels: The digits 0 to 9, shape (N,), int64.
    """

    images: Tensor
    labels: Tensor
    range = (-1.0, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.images.shape[1:]))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor) -> Example:
        return Example(self.images[index], label=self.labels[index])


def digits(split: str, *, pad: Annotated[int, Ge(0)] = 0) -> Digits:
    """The 1,797 UCI digits that scikit-learn includes, in a fixed order.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine
    Learning Repository, 1998, doi:10.24432/C50P49, CC BY 4.0.

    Args:
        split: "train" (1,500 digits) or "test" (the other 297).
        pad: Background pixels (-1) added on each side; images are then 8 + 2 pad pixels high and
            wide.

    Raises:
        DataError: If the file, which is part of invem, is missing or damaged.
    """
    if split not in ("train", "test"):
        raise RecipeError(f"split '{split}' is not one of: train, test")
    path = Path(__file__).with_name("digits.safetensors")
    try:
        stored = load_file(path)
        images, labels = stored["images"], stored["labels"].long()
    except (OSError, SafetensorError, KeyError) as error:
        raise DataError(f"{path} is missing or damaged ({error}): install invem again") from None
    rows = slice(TRAIN) if split == "train" else slice(TRAIN, None)
    x = images[rows, None].to(torch.float32) / 8 - 1
    return Digits(torch.nn.functional.pad(x, (pad, pad, pad, pad), value=-1.0), labels[rows])
