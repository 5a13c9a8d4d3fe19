"""Identity: every pixel is measured (denoising)."""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
from torch import Generator, Tensor

from invem import LinearOperator
from invem.operator import SVD


@dataclass(frozen=True, eq=False)
class Identity(LinearOperator):
    """A = I."""

    local: ClassVar[bool] = True

    def __call__(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return y

    def pinv(self, y: Tensor) -> Tensor:
        return y

    def svd(self) -> SVD:
        def flat(x: Tensor) -> Tensor:
            return x.flatten(1)

        def whole(z: Tensor) -> Tensor:
            return z.reshape(len(z), *self.shape)

        return SVD(torch.ones(1, prod(self.shape)), whole, flat, whole, flat)


def identity(n: int, shape: tuple[int, ...], rng: Generator) -> Identity:
    """Measures the signal itself: y = x + noise."""
    return Identity(shape)
