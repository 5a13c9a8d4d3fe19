"""Operators made of operators: stacks and sums."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from invem.operator import LinearOperator, Operator

__all__ = ["LinearStack", "LinearSum", "Stack", "Sum", "operator_sum", "stack"]


@dataclass(frozen=True, eq=False)
class Stack(Operator):
    """A(x) = (parts[0](x), parts[1](x), ...), flattened and joined.

    Attributes:
        parts: The operators.
        shapes: The shapes of their measurements.
    """

    parts: tuple[Operator, ...]
    shapes: tuple[tuple[int, ...], ...]

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([part(x).flatten(1) for part in self.parts], 1)

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        pieces = _split(v, self.shapes)
        return torch.stack(
            [part.vjp(x, piece) for part, piece in zip(self.parts, pieces, strict=True)]
        ).sum(0)


@dataclass(frozen=True, eq=False)
class LinearStack(LinearOperator):
    """A x = (parts[0] x, parts[1] x, ...), flattened and joined, with linear parts.

    Attributes:
        parts: The operators.
        shapes: The shapes of their measurements.
    """

    parts: tuple[Operator, ...]
    shapes: tuple[tuple[int, ...], ...]

    def __call__(self, x: Tensor) -> Tensor:
        return torch.cat([part(x).flatten(1) for part in self.parts], 1)

    def adjoint(self, y: Tensor) -> Tensor:
        pieces = _split(y, self.shapes)
        return torch.stack(
            [part.adjoint(piece) for part, piece in zip(self.parts, pieces, strict=True)]
        ).sum(0)


@dataclass(frozen=True, eq=False)
class Sum(Operator):
    """A(x) = parts[0](x) + parts[1](x) + ...

    Attributes:
        parts: The operators, with measurements of one shape.
    """

    parts: tuple[Operator, ...]

    def __call__(self, x: Tensor) -> Tensor:
        return torch.stack([part(x) for part in self.parts]).sum(0)

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return torch.stack([part.vjp(x, v) for part in self.parts]).sum(0)


@dataclass(frozen=True, eq=False)
class LinearSum(LinearOperator):
    """A x = parts[0] x + parts[1] x + ..., with linear parts.

    Attributes:
        parts: The operators, with measurements of one shape.
    """

    parts: tuple[Operator, ...]

    def __call__(self, x: Tensor) -> Tensor:
        return torch.stack([part(x) for part in self.parts]).sum(0)

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.stack([part.adjoint(y) for part in self.parts]).sum(0)


def _split(y: Tensor, shapes: tuple[tuple[int, ...], ...]) -> list[Tensor]:
    pieces = torch.split(y, [prod(shape) for shape in shapes], 1)
    return [piece.reshape(len(y), *shape) for piece, shape in zip(pieces, shapes, strict=True)]


def _linear(parts: tuple[Operator, ...]) -> bool:
    return all(isinstance(part, LinearOperator) for part in parts)


def stack(*parts: Operator) -> Operator:
    """Returns the operator that joins the flattened measurements of all parts, shape (B, m).

    It is linear if all parts are.
    """
    empty = torch.zeros(1, *parts[0].shape)
    shapes = tuple(tuple(part[0](empty).shape[1:]) for part in parts)
    return (LinearStack if _linear(parts) else Stack)(parts[0].shape, parts, shapes)


def operator_sum(*parts: Operator) -> Operator:
    """Returns the sum of operators with measurements of one shape; linear if all parts are."""
    return (LinearSum if _linear(parts) else Sum)(parts[0].shape, parts)
