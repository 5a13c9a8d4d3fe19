"""Data sets of clean signals, or of observations that exist already."""

from abc import ABC, abstractmethod

from torch import Tensor

from invem.measurement import Example

__all__ = ["Dataset"]


class Dataset(ABC):
    """Signals by batched index.

    A factory of a data set takes ``split`` ("train" or "test") as its only positional parameter;
    its keyword-only parameters are the options of the recipe.

    A data set for `observations` gives y in place of x, and may give more by `measured`.

    Attributes:
        shape: The shape of one signal, (channels, height, width) for images.
        range: The lowest and highest value of a signal, (-1.0, 1.0) for images.
        skipped: What was left out because it is broken, such as names of files: for a warning.
    """

    shape: tuple[int, ...]
    range: tuple[float, float]
    skipped: tuple[str, ...] = ()

    @abstractmethod
    def __len__(self) -> int:
        """Returns the number of signals."""

    @abstractmethod
    def __getitem__(self, index: Tensor) -> Example:
        """Returns the signals of these indices: x of shape (B, *shape), and labels where there are
        any."""

    def measured(self, index: Tensor) -> dict[str, Tensor] | None:
        """Returns y of some observations, and the tensors of operator and noise that they were made
        with ("A.mask", "noise.sigma"), each with B first; None if y is all there is."""
        return None
