"""Compressed sensing: a few random projections of the signal."""

from dataclasses import dataclass
from math import prod
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Generator, Tensor

from invem import SVD, LinearOperator


@dataclass(frozen=True, eq=False)
class Projection(LinearOperator):
    """A x = P x with a dense matrix for each sample.

    Attributes:
        matrix: P, shape (B, m, d), d = prod(shape).
    """

    matrix: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return torch.einsum("bmd,bd->bm", self.matrix, x.flatten(1))

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.einsum("bmd,bm->bd", self.matrix, y).reshape(len(y), *self.shape)

    def pinv(self, y: Tensor) -> Tensor:
        return torch.einsum("bdm,bm->bd", torch.linalg.pinv(self.matrix), y).reshape(len(y), *self.shape)

    def svd(self) -> SVD:
        u, s, vt = torch.linalg.svd(self.matrix, full_matrices=True)
        r = s.shape[1]
        return SVD(
            s,
            lambda z: torch.einsum("bmr,br->bm", u[:, :, :r], z),
            lambda y: torch.einsum("bmr,bm->br", u[:, :, :r], y),
            lambda z: torch.einsum("bkd,bk->bd", vt, z).reshape(len(z), *self.shape),
            lambda x: torch.einsum("bkd,bd->bk", vt, x.flatten(1)),
        )


def random_projection(
    n: int, shape: tuple[int, ...], rng: Generator, *, measurements: Annotated[int, Ge(1)] = 2
) -> Projection:
    """Projects each signal on directions of its own, drawn uniformly on the sphere.

    Args:
        n: The number of observations.
        shape: The shape of one signal.
        rng: The source of the directions.
        measurements: The number m of directions for each observation.
    """
    matrix = torch.randn(n, measurements, prod(shape), generator=rng)
    return Projection(shape, matrix / matrix.norm(dim=-1, keepdim=True))
