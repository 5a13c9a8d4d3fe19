"""Compressed sensing: a few random projections of the signal."""

from math import prod
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Generator

from invem import Matrix


def random_projection(
    n: int, shape: tuple[int, ...], rng: Generator, *, measurements: Annotated[int, Ge(1)] = 2
) -> Matrix:
    """Projects each signal on its own directions, drawn uniformly on the sphere.

    Args:
        n: The number of observations.
        shape: The shape of one signal.
        rng: Draws the directions.
        measurements: The number m of directions per observation.
    """
    matrix = torch.randn(n, measurements, prod(shape), generator=rng)
    return Matrix(shape, matrix / matrix.norm(dim=-1, keepdim=True))
