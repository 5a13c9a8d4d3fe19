"""Maximisation within bounds: Newton steps by finite differences, and Broyden's rule."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Maximum", "broyden_update", "free_coordinates", "maximise", "newton_step"]

_LONGEST_STEP = 0.5  # the largest step in any coordinate
_DIFFERENCE = 0.01  # the distance between neighbours of a finite-difference stencil
_ITERATIONS = 60


class Maximum(NamedTuple):
    """The result of a search.

    Attributes:
        u: The coordinates, shape (P,).
        converged: Whether the last step was shorter than the tolerance.
        path: The coordinates after each step, the start first.
    """

    u: Tensor
    converged: bool
    path: list[Tensor]


def maximise(
    f: Callable[[Tensor], float], start: Tensor, low: Tensor, high: Tensor, tol: float
) -> Maximum:
    """Maximises a smooth function within bounds by Newton's method.

    Gradient and Hessian come from finite differences. Each step uses the absolute values of the
    eigenvalues of the Hessian, so that it leads uphill. It is halved until f increases.

    Args:
        f: The function of coordinates, shape (P,).
        start: Where the search begins, shape (P,).
        low: The lower bounds, shape (P,).
        high: The upper bounds, shape (P,).
        tol: The length of a step, in each coordinate, at which the search ends.
    """
    u, path = start, [start]
    for _ in range(_ITERATIONS):
        # The stencil is moved inwards where it would leave the bounds.
        centre = u.clamp(low + _DIFFERENCE, high - _DIFFERENCE)
        gradient, hessian = _derivatives(f, centre)
        gradient = gradient + hessian @ (u - centre)
        free = free_coordinates(u, gradient, low, high)
        step = torch.zeros_like(u)
        if bool(free.any()):
            values, vectors = torch.linalg.eigh(hessian[free][:, free])
            step[free] = vectors @ ((vectors.T @ gradient[free]) / values.abs().clamp(min=1e-9))
        before, new = f(u), (u + _shortened(step)).clamp(low, high)
        while f(new) < before and float((new - u).abs().max()) > tol:
            new = u + (new - u) / 2
        moved, u = float((new - u).abs().max()), new
        path.append(u)
        if moved < tol:
            return Maximum(u, True, path)
    return Maximum(u, False, path)


def _derivatives(f: Callable[[Tensor], float], u: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the gradient, shape (P,), and the Hessian, shape (P, P), by finite differences."""
    p, h = len(u), _DIFFERENCE
    here = f(u)
    axes = torch.eye(p, dtype=torch.float64) * h
    up, down = [f(u + e) for e in axes], [f(u - e) for e in axes]
    pairs = list(zip(up, down, strict=True))
    gradient = torch.tensor([(a - b) / (2 * h) for a, b in pairs], dtype=torch.float64)
    hessian = torch.diag(
        torch.tensor([(a - 2 * here + b) / h**2 for a, b in pairs], dtype=torch.float64)
    )
    for i in range(p):
        for j in range(i):
            corner = f(u + axes[i] + axes[j])
            hessian[i, j] = hessian[j, i] = (corner - up[i] - up[j] + here) / h**2
    return gradient, hessian


def free_coordinates(u: Tensor, gradient: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Returns which coordinates can move uphill without leaving the bounds, shape (P,), boolean."""
    return ~(((u <= low) & (gradient < 0)) | ((u >= high) & (gradient > 0)))


def newton_step(slope: Tensor, fallback: Tensor, gradient: Tensor, free: Tensor) -> Tensor:
    """Returns a Newton step on the free coordinates, of limited length, shape (P,).

    Args:
        slope: The negative derivative of the gradient, shape (P, P).
        fallback: A positive definite matrix that replaces `slope` where its step would lead
            downhill, shape (P, P).
        gradient: Shape (P,).
        free: Which coordinates may move, shape (P,).
    """
    step = torch.zeros_like(gradient)
    if not bool(free.any()):
        return step
    for matrix in (slope, fallback):
        inner = matrix[free][:, free]
        step[free] = torch.linalg.lstsq(inner, gradient[free, None]).solution[:, 0]
        if bool(step @ gradient > 0) and bool(step.isfinite().all()):
            break
    return _shortened(step)


def broyden_update(slope: Tensor, du: Tensor, change: Tensor) -> Tensor:
    """Returns the slope closest to `slope` that explains a change of the gradient, shape (P, P).

    C. G. Broyden 1965, doi:10.1090/S0025-5718-1965-0198670-6.

    Args:
        slope: The negative derivative of the gradient so far, shape (P, P).
        du: The step that was taken, shape (P,).
        change: By how much the gradient increased, shape (P,).
    """
    return slope - torch.outer(change + slope @ du, du) / (du @ du)


def _shortened(step: Tensor) -> Tensor:
    return step * min(1.0, _LONGEST_STEP / max(float(step.abs().max()), 1e-30))
