"""Compressed sensing by a fast transform, as in a single-pixel camera with random patterns."""

from dataclasses import dataclass
from math import prod
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Generator, Tensor

from invem import LinearOperator
from invem.operator import SVD


def _hartley(x: Tensor) -> Tensor:
    """The orthonormal discrete Hartley transform along the last axis, its own inverse."""
    z: Tensor = torch.fft.fft(x, norm="ortho")
    return z.real - z.imag


@dataclass(frozen=True, eq=False)
class StructuredProjection(LinearOperator):
    """A x = (H D x)[index]: random signs, a fast orthogonal transform, a random subset.

    The rows of A are orthonormal.

    Attributes:
        signs: D, +1 or -1, shape (B, d).
        order: A random permutation of the d entries; the first m are measured, shape (B, d).
        measurements: m.
    """

    signs: Tensor
    order: Tensor
    measurements: int

    def __call__(self, x: Tensor) -> Tensor:
        return self._turn(x)[:, : self.measurements]

    def adjoint(self, y: Tensor) -> Tensor:
        return self._back(
            torch.cat([y, y.new_zeros(len(y), prod(self.shape) - self.measurements)], 1)
        )

    def pinv(self, y: Tensor) -> Tensor:
        return self.adjoint(y)

    def svd(self) -> SVD:
        def same(z: Tensor) -> Tensor:
            return z

        return SVD(self.signs.new_ones(1, self.measurements), same, same, self._back, self._turn)

    def _turn(self, x: Tensor) -> Tensor:
        return _hartley(self.signs * x.flatten(1)).gather(1, self.order.expand(len(x), -1))

    def _back(self, z: Tensor) -> Tensor:
        whole = torch.zeros_like(z).scatter(1, self.order.expand(len(z), -1), z)
        return (self.signs * _hartley(whole)).reshape(len(z), *self.shape)


def structured_projection(
    n: int,
    shape: tuple[int, ...],
    rng: Generator,
    *,
    share: Annotated[float, Interval(gt=0, le=1)] = 0.25,
) -> StructuredProjection:
    """Measures a random part of the Hartley coefficients of the randomly sign-flipped signal.

    It behaves like dense random projections, at O(d log d), and stores only signs and indices.

    Args:
        n: The number of observations.
        shape: The shape of one signal.
        rng: Draws signs and indices per observation.
        share: The number of measurements as a fraction of the number of entries.
    """
    d = prod(shape)
    signs = 1 - 2 * torch.randint(2, (n, d), generator=rng).float()
    order = torch.rand(n, d, generator=rng).argsort(1)
    return StructuredProjection(shape, signs, order, max(1, round(share * d)))
