"""The composition of operators."""

import torch
from torch import Generator

from invem import Mask, Operator, RecipeError, examples
from invem.linear import Separable
from invem.operator import OperatorLaw, chain


def _mask(n: int, shape: tuple[int, ...], rng: Generator) -> Operator:
    return Mask(shape, (torch.rand(n, *shape, generator=rng) < 0.5).float())


def _half(n: int, shape: tuple[int, ...], rng: Generator) -> Operator:
    if len(shape) != 3:
        raise RecipeError("images only")
    return Separable(shape, torch.eye(shape[1]), torch.eye(shape[2])[::2])


@examples({"of": [_mask, _half, _mask]}, {"of": [_mask]})
def in_turn(n: int, shape: tuple[int, ...], rng: Generator, *, of: list[OperatorLaw]) -> Operator:
    """Applies operators one after the other.

    In a recipe, ``operator: [first, second]`` is short for it.

    Args:
        n: The number of observations.
        shape: The shape of one signal. The first operator measures it; each further one measures
            the measurement before it.
        rng: Draws each operator.
        of: The operators, in the order in which they act.

    Raises:
        RecipeError: If the list is empty, or an operator does not take the measurement before it.
    """
    if not of:
        raise RecipeError("chain: of is empty")
    parts: list[Operator] = []
    for law in of:
        parts.append(law(n, shape, rng))
        shape = tuple(parts[-1][0](torch.zeros(1, *shape)).shape[1:])
    return chain(*parts)
