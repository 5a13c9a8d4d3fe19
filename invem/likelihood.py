"""Proximal steps for a linear measurement with Gaussian noise, without the network."""

import torch
from torch import Tensor

from invem.batched import Rng
from invem.linalg import cg, sqrt_matvec
from invem.measurement import Measurement

__all__ = [
    "largest_curvature",
    "largest_singular_value",
    "proximal_draw",
    "proximal_point",
    "regularised_backprojection",
]


def regularised_backprojection(
    m: Measurement, r: Tensor, weight: Tensor | float, iterations: int = 100, tol: float = 1e-5
) -> Tensor:
    """Returns A^T (weight A A^T + S)^-1 r, shape (B, *shape), with S the noise covariance.

    Args:
        m: Linear A, Gaussian noise.
        r: Residuals, shape of y.
        weight: A variance, one number or (B, 1).
        iterations: The largest number of conjugate gradient iterations, each an application of A
            and of its adjoint.
        tol: The relative residual at which a sample stops.
    """
    var = m.noise.var().expand_as(m.y).flatten(1)

    def matvec(u: Tensor) -> Tensor:
        return weight * m.A(m.A.adjoint(u.reshape(m.y.shape))).flatten(1) + var * u

    r = r if m.A.seen is None else r * m.A.seen
    solved = cg(matvec, r.flatten(1), iterations, tol)
    solved.warn_unless(tol, "proximal step")
    return m.A.adjoint(solved.x.reshape(m.y.shape))


def _wide(weight: Tensor | float, x: Tensor) -> Tensor | float:
    return weight.reshape(-1, *[1] * (x.ndim - 1)) if isinstance(weight, Tensor) else weight


def proximal_point(m: Measurement, x: Tensor, rho: Tensor | float) -> Tensor:
    """Returns the z that minimises |S^-1/2 (y - A z)|^2 + |z - x|^2/rho^2, shape (B, *shape).

    Args:
        m: Linear A, Gaussian noise.
        x: The centre, shape (B, *shape).
        rho: A standard deviation: one number or (B, 1).
    """
    return x + _wide(rho**2, x) * regularised_backprojection(m, m.y - m.A(x), rho**2)


def proximal_draw(
    m: Measurement, x: Tensor, rho: Tensor | float, rng: Rng, matched: bool = False
) -> Tensor:
    """Draws z from N(z; x, rho^2 I) p(y | z), normalised, by Matheron's rule, shape (B, *shape).

    Args:
        m: Linear A, Gaussian noise.
        x: The centre, shape (B, *shape).
        rho: A standard deviation: one number or (B, 1).
        rng: B streams.
        matched: Whether p(y | z) has the covariance S - rho^2 A A^T in place of S. Given x, y then
            has the covariance S, without smoothing. rho must be at most 1/`strength`.
    """
    x = x + _wide(rho, x) * rng.normal_like(x)
    e, var = rng.normal_like(m.y), m.noise.var().expand_as(m.y)
    if not matched:
        return x + _wide(rho**2, x) * regularised_backprojection(
            m, m.y + var.sqrt() * e - m.A(x), rho**2
        )
    flat = var.flatten(1)

    def matvec(v: Tensor) -> Tensor:
        return flat * v - rho**2 * m.A(m.A.adjoint(v.reshape(e.shape))).flatten(1)

    y = m.y + sqrt_matvec(matvec, e.flatten(1), min(flat.shape[1], 30)).reshape(e.shape)
    return x + _wide(rho**2, x) * m.A.adjoint((y - m.A(x)) / var)


def largest_singular_value(m: Measurement, iterations: int = 30) -> Tensor:
    """Returns the largest singular value of S^-1/2 A, shape (B, 1), by power iteration.

    Its inverse is the finest scale that y resolves.
    """
    scale = m.noise.var().expand_as(m.y).rsqrt()
    v = Rng.keyed("power", items=[0]).normal(*m.shape).to(m.y).expand(len(m), *m.shape)
    size = v.flatten(1).norm(dim=1, keepdim=True)
    for _ in range(iterations):
        v = m.A.adjoint(scale.square() * m.A(v / _wide(size.clamp(min=1e-30), v)))
        size = v.flatten(1).norm(dim=1, keepdim=True)
    found: Tensor = size.sqrt()
    return found


def largest_curvature(m: Measurement, x: Tensor, iterations: int = 10) -> Tensor:
    """Returns the largest curvature of -log p(y | x) near x, shape (B, 1).

    It uses power iteration on differences of the score.

    Args:
        m: The likelihood.
        x: Shape (B, *shape).
        iterations: The number of evaluations of the score, minus one.
    """
    v = Rng.keyed("power", items=[0]).normal(*m.shape).to(x).expand_as(x)
    score, h = m.score(x), 1e-2
    size = torch.ones(len(x), 1, dtype=x.dtype, device=x.device)
    for _ in range(iterations):
        v = v / _wide(v.flatten(1).norm(dim=1, keepdim=True).clamp(min=1e-30), v)
        v = (score - m.score(x + h * v)) / h
        size = v.flatten(1).norm(dim=1, keepdim=True)
    return size
