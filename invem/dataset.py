"""Data sets of clean signals, or of existing observations."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from invem.frames import Units
from invem.measurement import Example

__all__ = ["Dataset", "digest_of"]

_DIGESTED = 64  # items of a data set that its digest is made of


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Returns a digest of the names, shapes and values of tensors."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


class Dataset(ABC):
    """A data set of signals, read by batches of indices.

    The factory of a data set takes ``split`` ("train" or "test") as its only positional parameter.
    Its keyword-only parameters are the options of the recipe.

    A data set for `observations` gives y in place of x, and may give more by `measured`.

    Attributes:
        shape: The shape of one signal, (channels, height, width) for images.
        range: The lowest and highest value of a signal, (-1.0, 1.0) for images.
        skipped: Items left out as broken, such as file names, for a warning.
        units: The map from stored values to signals, of a data set of files; None if there is none.
        windowed: Whether the signals are windows of larger ones. An operator that sees beyond a
            pixel would have seen beyond such a window.
    """

    shape: tuple[int, ...]
    range: tuple[float, float]
    skipped: tuple[str, ...] = ()
    units: Units | None = None
    windowed: bool = False

    @abstractmethod
    def __len__(self) -> int:
        """Returns the number of signals."""

    @abstractmethod
    def __getitem__(self, index: Tensor) -> Example:
        """Returns x of shape (B, *shape) for these indices, and labels if there are any."""

    def digest(self) -> str:
        """Returns a digest of the data, by which a run that goes on knows them again.

        It is of up to 64 evenly spaced items, with what was measured of them; a data set that can
        cheaply say more overrides it.
        """
        n = len(self)
        index = torch.linspace(0, n - 1, min(n, _DIGESTED), dtype=torch.float64).long()
        example = self[index]
        tensors = {"x": example.x, "label": example.label} | (self.measured(index) or {})
        return digest_of({name: t for name, t in tensors.items() if t is not None})

    def check(self, observed: bool) -> list[str]:
        """Looks at the data before anything is computed, as far as that is quick.

        Args:
            observed: Whether the items are measurements, not clean signals.

        Returns:
            What a person should know of them, such as that images are resized, one line each.

        Raises:
            DataError: If some cannot be used.
        """
        return []

    def measured(self, index: Tensor) -> dict[str, Tensor] | None:
        """Returns y of some observations, and the stored tensors of their operators and noise.

        The tensors have paths ("A.mask", "noise.sigma") and B as the first axis. None if there is
        only y.
        """
        return None
