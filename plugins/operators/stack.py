"""Several measurements of the same signal."""

import torch
from torch import Generator

from invem import Mask, Matrix, Operator, RecipeError, examples
from invem.compose import stack
from invem.operator import OperatorLaw


def _mask(n: int, shape: tuple[int, ...], rng: Generator) -> Operator:
    return Mask(shape, (torch.rand(n, *shape, generator=rng) < 0.5).float())


def _rows(n: int, shape: tuple[int, ...], rng: Generator) -> Operator:
    return Matrix(shape, torch.randn(n, 3, torch.Size(shape).numel(), generator=rng))


@examples({"of": [_mask, _rows]})
def beside(n: int, shape: tuple[int, ...], rng: Generator, *, of: list[OperatorLaw]) -> Operator:
    """Measures each signal by every operator, and concatenates the flattened measurements.

    Args:
        n: The number of observations.
        shape: The shape of one signal.
        rng: Draws each operator.
        of: The operators.

    Raises:
        RecipeError: If the list is empty.
    """
    if not of:
        raise RecipeError("stack: of is empty")
    return stack(*(law(n, shape, rng) for law in of))
