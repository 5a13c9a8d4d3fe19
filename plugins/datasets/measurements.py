"""Existing measurements, each with its operator and noise."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge, Lt
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from invem import DataError, Dataset, Example, RecipeError, examples
from invem.dataset import digest_of
from invem.hookspecs import FilePath
from invem.store import check_header

LARGEST = 1e15  # sums of squares of larger numbers leave the range of float32


@dataclass(frozen=True, eq=False)
class Measurements(Dataset):
    """Measurements in memory.

    Attributes:
        tensors: "y", shape (N, *measurement shape), and the tensors of operator and noise that
            differ between observations, by their path ("A.mask", "noise.sigma"), each of length N.
        shape: The shape of one signal.
    """

    tensors: dict[str, Tensor]
    shape: tuple[int, ...]
    range = (-1.0, 1.0)

    def __len__(self) -> int:
        return len(self.tensors["y"])

    def __getitem__(self, index: Tensor) -> Example:
        return Example(self.tensors["y"][index])

    def digest(self) -> str:
        return digest_of(self.tensors)

    def measured(self, index: Tensor) -> dict[str, Tensor]:
        """Returns y and the other tensors of the observations at `index`."""
        return {name: tensor[index] for name, tensor in self.tensors.items()}


def _example(shape: tuple[int, ...], folder: Path) -> dict[str, str]:
    save_file({"y": torch.linspace(-1, 1, 20 * 64).reshape(20, 1, 8, 8)}, folder / "y.safetensors")
    return {"file": str(folder / "y.safetensors")}


@examples(_example)
def measurements(
    split: str,
    *,
    file: FilePath,
    shape: list[Annotated[int, Ge(1)]] | None = None,
    test: Annotated[float, Ge(0), Lt(1)] = 0.1,
) -> Measurements:
    """Reads measurements from a safetensors file, for a recipe's `observations`.

    Args:
        split: "train", or "test" for the last observations.
        file: The file holds `y`, and the tensors of the operator or noise that differ between
            observations. Their names are those in the `measurements/` of a run: `A.mask`,
            `A.kernel`, `noise.sigma`, each with one entry per observation.
        shape: The shape of one signal, if it differs from that of a measurement.
        test: The fraction held out for testing.

    Raises:
        DataError: If the file is missing or damaged, its tensors have different lengths, or its
            values are not finite or beyond 1e15.
    """
    if split not in ("train", "test"):
        raise RecipeError(f"split '{split}' is not one of: train, test")
    try:
        check_header(Path(file).expanduser())
        tensors = load_file(Path(file).expanduser())
    except FileNotFoundError:
        raise DataError(f"{file} does not exist") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {error}") from None
    # Most functions do not take numbers of 8 bits.
    tensors = {
        name: t.float() if t.is_floating_point() and t.itemsize < 4 else t
        for name, t in tensors.items()
    }
    n = len(tensors["y"]) if "y" in tensors and tensors["y"].ndim else 0
    if not n:
        raise DataError(f"{file} holds no tensor y with an observation in it")
    for name, tensor in tensors.items():
        if not tensor.ndim or len(tensor) != n:
            raise DataError(
                f"{file}: {name} has the shape {tuple(tensor.shape)}, but there are {n}"
                " observations"
            )
        if bad := tensor.numel() - int(tensor.isfinite().sum()):
            first = int((~tensor.isfinite()).flatten(1).any(1).nonzero()[0])
            raise DataError(
                f"{file}: {name} has values that are not finite (NaN or infinity): {bad} of"
                f" {tensor.numel()}, the first in observation {first}"
            )
        if tensor.is_floating_point() and float(tensor.abs().max()) > LARGEST:
            raise DataError(
                f"{file}: {name} has values beyond {LARGEST:g}: write it in other units"
            )
    if tensors["y"].ndim < 2:
        raise DataError(
            f"{file}: y has the shape ({n},), without a dimension beside that of the observations:"
            f" write it as ({n}, 1)"
        )
    first = n - round(test * n)
    rows = slice(0, first) if split == "train" else slice(first, n)
    if not len(range(*rows.indices(n))):
        fits = f"test: {1 / n:.2g} holds out 1 of them"
        if n == 1:
            fits = "give more, or test: 0 and evaluate: {observations: 0}"
        raise DataError(
            f"{file}: of {n} observations none is for {split} with test: {test:g}; {fits}"
        )
    signal = tuple(tensors["y"].shape[1:]) if shape is None else tuple(shape)
    return Measurements(
        {
            name: t[rows].float() if t.is_floating_point() else t[rows]
            for name, t in tensors.items()
        },
        signal,
    )
