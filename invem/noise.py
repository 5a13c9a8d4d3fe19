"""Measurement noise: the distribution of y given the clean measurement A(x)."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Generator, Tensor

from invem.batched import Batched
from invem.errors import Unsupported

__all__ = ["NoiseModel"]


@dataclass(frozen=True, eq=False)
class NoiseModel(Batched, ABC):
    """A batch of B noise distributions p(y | clean), clean = A(x)."""

    @abstractmethod
    def sample(self, clean: Tensor, rng: Generator) -> Tensor:
        """Draws y given the clean measurement, both (B, *measurement shape)."""

    @abstractmethod
    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        """Returns log p(y | clean), shape (B,)."""

    def var(self) -> Tensor:
        """Returns the variance of Gaussian noise, broadcastable to y; other noise has none."""
        raise Unsupported(
            f"{type(self).__name__} is not Gaussian: it has no variance that is free of the signal"
        )

    @property
    def provides(self) -> frozenset[str]:
        """The capabilities that this noise has."""
        return frozenset({"var"}) if type(self).var is not NoiseModel.var else frozenset()
