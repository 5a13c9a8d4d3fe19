"""Measurement noise: the distribution of y given the clean measurement A(x)."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

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
        """Returns the variance, broadcastable to y.

        That of Gaussian noise is exact. Noise whose variance depends on the signal has one after
        `given`, an estimate. Other noise has none.

        Raises:
            Unsupported: If there is none.
        """
        raise Unsupported(
            f"{type(self).__name__} is not Gaussian: it has no variance that is free of the signal"
        )

    def given(self, y: Tensor, seen: Tensor | None = None) -> Self:
        """Returns the noise with what its own observations say of it; by default nothing new.

        Noise whose variance depends on the signal estimates it here, so that methods for Gaussian
        noise can use it. `sample` and `log_prob` stay those of the law itself.

        Args:
            y: The observations, shape (B, *measurement shape).
            seen: 1 where an entry of y depends on the signal and 0 elsewhere, broadcastable to y;
                None if all do (`Operator.seen`).
        """
        del y, seen
        return self

    @property
    def provides(self) -> frozenset[str]:
        """The capabilities that this noise has.

        "var": a variance is known. "normal": the law is Gaussian with that variance. A noise that
        defines `var` has both, unless it says otherwise.
        """
        known = type(self).var is not NoiseModel.var
        return frozenset({"var", "normal"}) if known else frozenset()
