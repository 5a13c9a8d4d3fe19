"""Data sets of clean signals, or of observations that exist already."""

from typing import Protocol

from torch import Tensor

from invem.measurement import Example

__all__ = ["Dataset"]


class Dataset(Protocol):
    """Signals by batched index.

    A factory of a data set takes ``split`` ("train" or "test") as its only positional parameter;
    its keyword-only parameters are the options of the recipe.

    A data set for `observations` gives y in place of x. If operators differ between its
    observations it has a method ``measured(index) -> {"y": ..., "A.mask": ..., ...}``.

    Attributes:
        shape: The shape of one signal, (channels, height, width) for images.
        range: The lowest and highest value of a signal, (-1.0, 1.0) for images.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def range(self) -> tuple[float, float]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor) -> Example:
        """Returns the signals of these indices: x of shape (B, *shape), and labels where there are
        any."""
