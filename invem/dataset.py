"""Data sets of clean signals, or of existing observations."""

from abc import ABC, abstractmethod

from torch import Tensor

from invem.measurement import Example

__all__ = ["Dataset"]


class Dataset(ABC):
    """A data set of signals, read by batches of indices.

    The factory of a data set takes ``split`` ("train" or "test") as its only positional parameter.
    Its keyword-only parameters are the options of the recipe.

    A data set for `observations` gives y in place of x, and may give more by `measured`.

    Attributes:
        shape: The shape of one signal, (channels, height, width) for images.
        range: The lowest and highest value of a signal, (-1.0, 1.0) for images.
        skipped: Items left out as broken, such as file names, for a warning.
    """

    shape: tuple[int, ...]
    range: tuple[float, float]
    skipped: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int:
        """Returns the number of signals."""

    @abstractmethod
    def __getitem__(self, index: Tensor) -> Example:
        """Returns x of shape (B, *shape) for these indices, and labels if there are any."""

    def measured(self, index: Tensor) -> dict[str, Tensor] | None:
        """Returns y of some observations, and the stored tensors of their operators and noise.

        The tensors have paths ("A.mask", "noise.sigma") and B as the first axis. None if there is
        only y.
        """
        return None
