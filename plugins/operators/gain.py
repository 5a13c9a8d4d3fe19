"""A gain: y = gain x."""

from dataclasses import dataclass
from math import prod
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt
from torch import Generator, Tensor

from invem import LinearOperator, shared
from invem.operator import SVD


@dataclass(frozen=True, eq=False)
class Gain(LinearOperator):
    """A = gain I.

    Attributes:
        gain: The factor, shape ().
    """

    local: ClassVar[bool] = True

    gain: Tensor = shared()

    def __call__(self, x: Tensor) -> Tensor:
        return self.gain * x

    def adjoint(self, y: Tensor) -> Tensor:
        return self.gain * y

    def pinv(self, y: Tensor) -> Tensor:
        return y / self.gain

    def svd(self) -> SVD:
        def flat(x: Tensor) -> Tensor:
            return x.flatten(1)

        def whole(z: Tensor) -> Tensor:
            return z.reshape(len(z), *self.shape)

        return SVD(self.gain.expand(1, prod(self.shape)), whole, flat, whole, flat)


def gain(
    n: int, shape: tuple[int, ...], rng: Generator, *, gain: Annotated[float, Gt(0)] = 1.0
) -> Gain:
    """Measures the signal times a factor.

    The factor is the sensitivity of a device. It can be calibrated in a chain with other operators.

    Args:
        n: The number of observations; the gain is the same for all.
        shape: The shape of one signal.
        rng: Not used.
        gain: The factor, in units of the measurement per unit of the signal.
    """
    return Gain(shape, torch.tensor(float(gain)))
