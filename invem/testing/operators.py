"""What every forward operator must do."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invem.batched import Rng
from invem.errors import RecipeError, Unsupported
from invem.operator import LinearOperator, Operator
from invem.testing.base import (
    BATCH,
    LARGE,
    SHAPES,
    Factory,
    Kind,
    example_options,
    inner_products,
    normal_like,
    relative_error,
)

__all__ = ["OPERATORS"]

_COMPILED_SHAPES = ((1, 8, 8), (2, 8, 8), (6,))  # compilation is slow: not on all shapes


@dataclass
class _Case:
    """An operator with one set of options, in float64.

    Attributes:
        draw: Draws n operators; the same at every call.
        A: The operators of the batch.
        x: Signals, shape (B, *shape).
        v: What is pulled back, shape of A(x).
    """

    draw: Callable[[int], Operator]
    A: Operator
    x: Tensor
    v: Tensor

    @property
    def linear(self) -> bool:
        return isinstance(self.A, LinearOperator)


def _cases(
    factory: Factory, folder: Path, shapes: Iterable[tuple[int, ...]] = SHAPES
) -> Iterator[tuple[str, _Case]]:
    for shape in shapes:
        for label, options in example_options(factory, shape, folder):

            def draw(
                n: int, shape: tuple[int, ...] = shape, options: dict[str, Any] = options
            ) -> Operator:
                operator: Operator = factory(n, shape, Rng.generator("contracts"), **options)
                return operator

            try:
                A = draw(BATCH).to(dtype=torch.float64)
            except RecipeError:
                continue
            x = 0.4 * normal_like(torch.empty(BATCH, *shape, dtype=torch.float64), "x")
            yield f"{shape}, {label}", _Case(draw, A, x, normal_like(A(x), "v"))


OPERATORS = Kind(
    "operators",
    "Tried on images (odd and even, square and oblong, one to three channels) and on vectors, on"
    " batches of three samples in float64.",
    _cases,
    large=lambda factory, folder: _cases(factory, folder, LARGE),
)


@OPERATORS.contract("adjoint", tolerance=1e-9)
def adjoint(case: _Case) -> float | None:
    """`<A x, v> = <x, A^T v>` for each sample, relative to the norms of A x and v; linear operators
    only."""
    if not case.linear:
        return None
    y, adjoint_v = case.A(case.x), case.A.adjoint(case.v)
    if adjoint_v.shape != case.x.shape:
        raise AssertionError(f"adjoint returns {tuple(adjoint_v.shape)}, not {tuple(case.x.shape)}")
    size = (y.flatten(1).norm(dim=1) * case.v.flatten(1).norm(dim=1)).clamp(min=1e-12)
    gap = inner_products(y, case.v) - inner_products(case.x, adjoint_v)
    return float((gap.abs() / size).max())


@OPERATORS.contract("linear", tolerance=1e-9)
def linear(case: _Case) -> float | None:
    """A(2 x - 3 z) = 2 A(x) - 3 A(z); linear operators only."""
    if not case.linear:
        return None
    z = normal_like(case.x, "z")
    return relative_error(case.A(2 * case.x - 3 * z), 2 * case.A(case.x) - 3 * case.A(z))


@OPERATORS.contract("per sample", tolerance=1e-9)
def per_sample(case: _Case) -> float:
    """Operator i acts on sample i alone: other samples, a batch of one and a selection of rows
    change neither A(x) nor the vector-Jacobian product."""
    A, x, v = case.A, case.x, case.v
    y, pulled = A(x), A.vjp(x, v)
    rows = [slice(i, i + 1) for i in range(len(x))]
    order = torch.tensor([2, 0, 2])
    other_x, other_v = torch.cat([x[:1], 3 * x[1:] + 1]), torch.cat([v[:1], -2 * v[1:]])
    return max(
        relative_error(torch.cat([A[i](x[row]) for i, row in enumerate(rows)]), y),
        relative_error(A(other_x)[:1], y[:1]),
        relative_error(A[order](x[order]), y[order]),
        relative_error(A.vjp(x, other_v)[:1], pulled[:1]),
        relative_error(torch.cat([A[i].vjp(x[row], v[row]) for i, row in enumerate(rows)]), pulled),
    )


@OPERATORS.contract("vjp is the derivative", tolerance=1e-7)
def vjp_is_the_derivative(case: _Case) -> float:
    """`vjp` equals the vector-Jacobian product of automatic differentiation."""
    x = case.x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(case.A(x), x, case.v)
    return relative_error(case.A.vjp(case.x, case.v), gradient)


@OPERATORS.contract("vjp by differences", tolerance=1e-5)
def vjp_by_differences(case: _Case) -> float | None:
    """`vjp` agrees with central differences of A along a random direction; not for operators with
    straight-through gradients."""
    if case.A.straight_through:
        return None
    d, h = normal_like(case.x, "d"), 1e-6
    difference = (case.A(case.x + h * d) - case.A(case.x - h * d)) / (2 * h)
    numerical = inner_products(difference, case.v)
    exact = inner_products(case.A.vjp(case.x, case.v), d)
    return float(((numerical - exact).abs() / (numerical.abs() + 1)).max())


@OPERATORS.contract("A pinv A = A", tolerance=1e-3)
def pseudo_inverse(case: _Case) -> float | None:
    """A(pinv(A(x))) = A(x), and for a linear operator pinv(y) is a least-squares solution for any
    y; only where `pinv` is provided."""
    if "pinv" not in case.A.provides:
        return None
    y, left = case.A(case.x), 0.0
    if case.linear:
        # The residual of a least-squares solution is orthogonal to the range of A.
        normal_residual = case.A.adjoint(case.v - case.A(case.A.pinv(case.v)))
        size = case.A.adjoint(case.v).abs().max().clamp(min=1e-12)
        left = float(normal_residual.abs().max() / size)
    return max(relative_error(case.A(case.A.pinv(y)), y), left)


@OPERATORS.contract("svd", tolerance=1e-8)
def singular_values(case: _Case) -> float | None:
    """A = U S V^T with orthonormal U and V and no negative singular value; only where `svd` is
    provided."""
    if "svd" not in case.A.provides:
        return None
    svd, y = case.A.svd(), case.A(case.x)
    z, r = svd.vt(case.x), svd.s.shape[1]
    if (
        z.shape[1] != math.prod(case.A.shape)
        or r != min(z.shape[1], math.prod(y.shape[1:]))
        or float(svd.s.min()) < 0
    ):
        raise AssertionError(f"s has {r} entries and vt {z.shape[1]}")
    head = z[:, :r]
    return max(
        relative_error(svd.u(svd.s * head), y),
        relative_error(svd.v(z), case.x),
        relative_error(svd.ut(svd.u(head)), head),
        relative_error(
            inner_products(svd.ut(case.v), head)[:, None],
            inner_products(case.v, svd.u(head))[:, None],
        ),
        relative_error(z.square().sum(1), case.x.flatten(1).square().sum(1)),
    )


@OPERATORS.contract("changes nothing", tolerance=0.0)
def changes_nothing(case: _Case) -> float:
    """Calls change neither their inputs nor the tensors of the operator, and a second call returns
    the same."""
    x, v = case.x.clone(), case.v.clone()
    before = {name: tensor.clone() for name, tensor in case.A.tensors().items()}
    first = case.A(case.x)
    copy_of_first = first.clone()
    case.A(2 * case.x)
    case.A.vjp(case.x, case.v)
    if case.linear:
        case.A.adjoint(case.v)
    again = case.A(case.x)
    after = case.A.tensors()
    tensors_changed = any(not torch.equal(after[name], before[name]) for name in after)
    inputs_changed = not (torch.equal(x, case.x) and torch.equal(v, case.v))
    return max(
        relative_error(again, copy_of_first),
        relative_error(first, copy_of_first),
        float(tensors_changed),
        float(inputs_changed),
    )


@OPERATORS.contract("drawn once", tolerance=0.0)
def drawn_once(case: _Case) -> float:
    """The same generator draws the same operators, and the global generator of torch is not
    used."""
    one, two = case.draw(BATCH).tensors(), case.draw(BATCH).tensors()
    state = torch.random.get_rng_state()
    case.draw(BATCH)
    touched = not torch.equal(state, torch.random.get_rng_state())
    return max([relative_error(one[name], two[name]) for name in one] + [float(touched)])


@OPERATORS.contract("dtype and device", tolerance=1e-4)
def dtype_and_device(case: _Case) -> float:
    """In float32 all results are float32, on the device of x, and A(x) is close to that of
    float64."""
    A, x = case.A.to(dtype=torch.float32), case.x.float()
    y = A(x)
    results = [y, A.vjp(x, y)]
    if case.linear:
        results.append(A.adjoint(y))
    if "pinv" in A.provides:
        results.append(A.pinv(y))
    wrong = [t for t in results if t.dtype != torch.float32 or t.device != x.device]
    return max(relative_error(y, case.A(case.x)), float(len(wrong)))


@OPERATORS.contract("stored whole", tolerance=0.0)
def stored_whole(case: _Case) -> float:
    """`tensors()` holds the whole state: an operator that is rebuilt from it returns the same."""
    tensors = {name: tensor.clone() for name, tensor in case.A.tensors().items()}
    blank = case.A.with_tensors({name: torch.zeros_like(t) for name, t in tensors.items()})
    return relative_error(blank.with_tensors(tensors)(case.x), case.A(case.x))


@OPERATORS.contract("claims", tolerance=0.0)
def claims(case: _Case) -> float:
    """`provides` names exactly those of adjoint, pinv and svd that work; the results have the shape
    of x and are finite."""
    wrong = 0
    y = case.A(case.x)
    for name in ("adjoint", "pinv"):
        try:
            result = getattr(case.A, name)(y)
            wrong += (
                name not in case.A.provides
                or result.shape != case.x.shape
                or not bool(result.isfinite().all())
            )
        except Unsupported:
            wrong += name in case.A.provides
    try:
        case.A.svd()
        wrong += "svd" not in case.A.provides
    except Unsupported:
        wrong += "svd" in case.A.provides
    return float(wrong)


@OPERATORS.contract("vmap", tolerance=1e-9)
def vmap(case: _Case) -> float:
    """`torch.func.vmap` over a further dimension returns the same as a loop."""
    stacked = torch.stack([case.x, 2 * case.x])
    return relative_error(
        torch.func.vmap(case.A)(stacked), torch.stack([case.A(x) for x in stacked])
    )


@OPERATORS.contract("compile", tolerance=1e-9)
def compiled(case: _Case) -> float | None:
    """`torch.compile` returns the same; on three of the shapes."""
    if tuple(case.x.shape[1:]) not in _COMPILED_SHAPES:
        return None
    torch.compiler.reset()
    run = torch.compile(lambda x: case.A(x), backend="eager")
    return relative_error(run(case.x), case.A(case.x))
