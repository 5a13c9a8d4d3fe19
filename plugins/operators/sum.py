"""The sum of operators."""

import torch
from torch import Generator

from invem import Mask, Operator, RecipeError, examples
from invem.compose import operator_sum
from invem.operator import OperatorLaw


def _mask(n: int, shape: tuple[int, ...], rng: Generator) -> Operator:
    return Mask(shape, (torch.rand(n, *shape, generator=rng) < 0.5).float())


@examples({"of": [_mask, _mask]})
def added(n: int, shape: tuple[int, ...], rng: Generator, *, of: list[OperatorLaw]) -> Operator:
    """Adds the measurements of several operators.

    Args:
        n: The number of observations.
        shape: The shape of one signal.
        rng: Draws each operator.
        of: The operators; their measurements have the same shape.

    Raises:
        RecipeError: If the list is empty or the shapes differ.
    """
    if not of:
        raise RecipeError("sum: of is empty")
    parts = [law(n, shape, rng) for law in of]
    shapes = [tuple(part[0](torch.zeros(1, *shape)).shape[1:]) for part in parts]
    if len(set(shapes)) > 1:
        raise RecipeError(
            f"sum: the measurements have different shapes: {', '.join(map(str, shapes))}"
        )
    return operator_sum(*parts)
