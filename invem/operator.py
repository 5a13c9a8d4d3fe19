"""Forward operators: y = A(x)."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from invem.batched import Batched
from invem.errors import RecipeError, Unsupported

__all__ = [
    "SVD",
    "Chain",
    "LinearChain",
    "LinearOperator",
    "Operator",
    "OperatorLaw",
    "chain",
    "image_shape",
]


class Rotation(Protocol):
    """An orthogonal change of basis of a batch: (B, ...) to (B, ...)."""

    def __call__(self, x: Tensor, /) -> Tensor: ...


class SVD(NamedTuple):
    """A = U diag(s) V^T, each factor a function on batches.

    `s` has shape (B, r), or (1, r) if it is common to the batch, with r = min(m, d). `u` maps (B,
    r) to y, `ut` maps y to (B, r), `v` maps (B, d) to x and `vt` maps x to (B, d). The first r
    entries of V^T x belong to `s`, the others to the null space.
    """

    s: Tensor
    u: Rotation
    ut: Rotation
    v: Rotation
    vt: Rotation


@dataclass(frozen=True, eq=False)
class Operator(Batched, ABC):
    """A batch of B forward operators, where operator i acts on sample i alone.

    So ``A[i](x[i:i+1]) == A(x)[i:i+1]``.

    Attributes:
        shape: The shape of one signal, without the batch axis.
        straight_through: Whether `vjp` is a useful substitute for a derivative that is zero or
            undefined, as that of rounding.
        local: Whether it acts on each pixel by itself, so that a window of y is y of a window.

    An operator provides the optional methods that its class overrides: `adjoint`, `pinv`, `svd`.
    Samplers and objectives name the ones that they need. The plan compares the two before anything
    runs.
    """

    shape: tuple[int, ...]

    straight_through: ClassVar[bool] = False
    local: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Applies A. x: (B, *shape); returns y: (B, *measurement shape)."""

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """Returns J^T v with J the Jacobian of A at x, shape (B, *shape).

        x: (B, *shape), v: shape of y.
        """
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = self(x)
        (grad,) = torch.autograd.grad(y, x, v)
        return grad

    def adjoint(self, y: Tensor) -> Tensor:
        """Returns A^T y, shape (B, *shape), of a linear operator."""
        raise Unsupported(f"{type(self).__name__} has no adjoint")

    def pinv(self, y: Tensor) -> Tensor:
        """Returns A^+ y, shape (B, *shape), with A A^+ A = A."""
        raise Unsupported(f"{type(self).__name__} has no pseudo-inverse")

    def svd(self) -> SVD:
        """Returns the singular value decomposition of each operator."""
        raise Unsupported(f"{type(self).__name__} has no singular value decomposition")

    @property
    def seen(self) -> Tensor | None:
        """1 where an entry of y depends on x and 0 where it is noise alone; None if all do.

        Broadcastable to y.
        """
        return None

    def __matmul__(self, other: "Operator") -> "Operator":
        """Returns A @ B, which applies B first."""
        return chain(other, self)

    @property
    def provides(self) -> frozenset[str]:
        """The capabilities that this operator has."""
        optional = ("adjoint", "pinv", "svd")
        return frozenset(
            {"vjp"} | {n for n in optional if getattr(type(self), n) is not getattr(Operator, n)}
        )


@dataclass(frozen=True, eq=False)
class LinearOperator(Operator):
    """A linear operator. Automatic differentiation gives the adjoint unless it is overridden."""

    def adjoint(self, y: Tensor) -> Tensor:
        """Returns A^T y, shape (B, *shape), with <A x, y> = <x, A^T y> for each sample."""
        return Operator.vjp(self, y.new_zeros(len(y), *self.shape), y)

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        """Returns A^T v: a linear operator is its own Jacobian."""
        return self.adjoint(v)


@dataclass(frozen=True, eq=False)
class Chain(Operator):
    """A(x) = parts[-1](... parts[0](x)).

    Attributes:
        parts: The operators, in the order in which they act.
    """

    parts: tuple[Operator, ...]

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "straight_through", any(part.straight_through for part in self.parts)
        )
        object.__setattr__(self, "local", all(part.local for part in self.parts))

    def __call__(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        states = [x]
        for part in self.parts[:-1]:
            states.append(part(states[-1]))
        for part, state in zip(reversed(self.parts), reversed(states), strict=True):
            v = part.vjp(state, v)
        return v


@dataclass(frozen=True, eq=False)
class LinearChain(LinearOperator):
    """A x = parts[-1] ... parts[0] x, with linear parts.

    Attributes:
        parts: The operators, in the order in which they act.
    """

    parts: tuple[Operator, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "local", all(part.local for part in self.parts))

    def __call__(self, x: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        for part in reversed(self.parts):
            y = part.adjoint(y)
        return y

    @property
    def seen(self) -> Tensor | None:
        return self.parts[-1].seen


def chain(*parts: Operator) -> Operator:
    """Returns the operator that applies the parts in order; linear if all are."""
    linear = all(isinstance(part, LinearOperator) for part in parts)
    return (LinearChain if linear else Chain)(parts[0].shape, parts)


class OperatorLaw(Protocol):
    """An operator factory: draws n operators for a data set. A plugin offers it under a name.

    It is called once per data set, and the operators are stored beside y. So every round, method
    and rerun uses the same operators. Its keyword-only parameters are the options of the recipe.
    """

    def __call__(self, n: int, shape: tuple[int, ...], rng: Generator, /) -> Operator: ...


def image_shape(name: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Returns (channels, height, width), for an operator factory that acts on images.

    Raises:
        RecipeError: If the signals are not images; `name` is the operator.
    """
    if len(shape) != 3:
        raise RecipeError(
            f"{name} acts on images (channels, height, width), not on signals of shape {shape}"
        )
    return shape[0], shape[1], shape[2]
