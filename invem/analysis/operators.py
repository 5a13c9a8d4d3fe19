"""A sample of the operators of the training observations, applied and written as matrices."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from invem.operator import Operator

__all__ = ["HIDDEN", "OperatorSample", "as_matrices", "squared_norms"]

_AT_ONCE = 2**20  # numbers of the signals, or measurements, that operators are applied to together

HIDDEN = 1e-6  # A direction counts as hidden if its eigenvalue is below this share of the largest.


@dataclass(frozen=True)
class OperatorSample:
    """The first n operators of the training observations.

    Attributes:
        A: The operators, a batch of n.
        n: Their number.
        total: The number of training observations.
    """

    A: Operator
    n: int
    total: int

    @property
    def entries(self) -> int:
        """The number d of entries of a signal."""
        return math.prod(self.A.shape)

    @property
    def measured(self) -> tuple[int, ...]:
        """The shape of one measurement."""
        return tuple(self.A[0](torch.zeros(1, *self.A.shape)).shape[1:])

    @property
    def entry_name(self) -> str:
        """The plural noun for the entries of a signal."""
        return "pixels" if len(self.A.shape) == 3 else "entries"


def as_matrices(sample: OperatorSample, k: int, x: Tensor | None = None) -> Tensor:
    """Returns the first k operators as matrices on flattened signals, shape (k, m, d), float64.

    They are applied in their own precision, float32. An error of e in A is an error of e^2 in its
    smallest squared singular values.

    Args:
        sample: The operators.
        k: How many of them.
        x: Signals at which the Jacobians of the operators are formed, shape (k, *shape); None for
            linear operators.
    """
    A, d, shape = sample.A, sample.entries, sample.measured
    m = math.prod(shape)
    by_row = m < d or x is not None
    size, other = (m, d) if by_row else (d, m)
    found = torch.empty(k * size, other, dtype=torch.float64)
    at_once = max(1, _AT_ONCE // max(m, d))
    for first in range(0, k * size, at_once):
        part = torch.arange(first, min(first + at_once, k * size))
        rows, e = part // size, torch.nn.functional.one_hot(part % size, size).float()
        if x is not None:
            out = A[rows].vjp(x[rows], e.reshape(-1, *shape))
        elif by_row:
            out = A[rows].adjoint(e.reshape(-1, *shape))
        else:
            out = A[rows](e.reshape(-1, *A.shape))
        found[part] = out.detach().flatten(1).double()
    whole = found.reshape(k, size, other)
    return whole if by_row else whole.mT


def squared_norms(A: Operator, k: int, v: Tensor) -> Tensor:
    """Returns |A_i v_p|^2 for the first k operators and each column of v, shape (k, P), float64.

    Args:
        A: At least k operators.
        k: How many of them.
        v: Directions as columns, shape (d, P).
    """
    x = v.T.to(_precision(A)).reshape(-1, *A.shape)
    step = max(1, 2**16 // len(x))
    found = []
    for first in range(0, k, step):
        rows = torch.arange(first, min(first + step, k))
        y = A[rows.repeat_interleave(len(x))](x.repeat(len(rows), *[1] * len(A.shape)))
        found.append(y.flatten(1).double().square().sum(1).reshape(len(rows), -1))
    return torch.cat(found)


def _precision(A: Operator) -> torch.dtype:
    return next((t.dtype for t in A.tensors().values() if t.is_floating_point()), torch.float64)
