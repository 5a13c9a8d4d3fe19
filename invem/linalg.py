"""Batched linear algebra: every inner product, step and stopping test is per sample.

Vectors are (B, d). Scalars are float64, so that short recurrences stay precise while vectors are
float32.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from invem.batched import Batched, Rng, shared, to_float64
from invem.operator import LinearOperator

__all__ = [
    "DPLR",
    "Krylov",
    "Solution",
    "cg",
    "gmres",
    "least_norm",
    "sqrt_matvec",
    "warn_once",
]

_WARNED: set[str] = set()  # what a warning was given of

Matvec = Callable[[Tensor], Tensor]


class Krylov(NamedTuple):
    """The result of `gmres`: x = sum_k weights[:, k] q_k.

    M was applied to the orthonormal vectors q_k in order. A caller that kept a linear function of
    each q_k obtains that of x without further products.
    """

    x: Tensor
    weights: Tensor


class Solution(NamedTuple):
    """The result of `cg`.

    Attributes:
        x: The solution, shape (B, d).
        iterations: The iterations of each sample, shape (B,).
        negative: Whether a sample met negative curvature, shape (B,).
        residual: |b - M x| / |b| of each sample as the recurrence has it, shape (B,); 0 where b is
            0.
    """

    x: Tensor
    iterations: Tensor
    negative: Tensor
    residual: Tensor

    def warn_unless(self, tol: float, what: str, advice: str = "") -> None:
        """Warns, once per process, of samples that stopped with a residual above `tol`.

        Args:
            tol: The relative residual that was asked for.
            what: What was solved for, for the message.
            advice: What a person can do, such as "raise `iterations`".
        """
        late = self.residual > tol
        if not bool(late.any()):
            return
        warn_once(
            what,
            f"conjugate gradients stopped after {int(self.iterations.max())} iterations in"
            f" {int(late.sum())} of {len(late)} systems, at a relative residual of up to"
            f" {float(self.residual.max()):.1e}, not {tol:.0e}: the result is approximate",
            advice,
        )


def warn_once(what: str, text: str, advice: str = "") -> None:
    """Warns, once per process for each `what`, of a computation that ended before it was done.

    Args:
        what: What was computed.
        text: What happened.
        advice: What a person can do.
    """
    if what in _WARNED:
        return
    _WARNED.add(what)
    more = f"; {advice}" if advice else ""
    warnings.warn(f"{what}: {text}{more}", RuntimeWarning, stacklevel=4)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (to_float64(a) * to_float64(b)).sum(-1, keepdim=True)


def cg(
    matvec: Matvec, b: Tensor, iterations: int, tol: float = 0.0, x0: Tensor | None = None
) -> Solution:
    """Solves M x = b by conjugate gradients for symmetric M, with one step size per sample.

    A sample stops, and keeps its last iterate, when its residual falls below `tol` times |b|, or
    when it meets negative curvature (the truncated-Newton rule). A learned Jacobian is not exactly
    symmetric or positive, and a further step would divide by almost zero.

    Args:
        matvec: v -> M v, both (B, d).
        b: The right-hand side, (B, d).
        iterations: The largest number of iterations.
        tol: The relative residual at which a sample stops.
        x0: An initial guess; None is zero, which costs no product with M.

    Returns:
        x (B, d), the iterations per sample (B,), whether a sample met negative curvature (B,), and
        the relative residual (B,).
    """
    x = torch.zeros_like(b) if x0 is None else x0
    r = b if x0 is None else b - matvec(x0)
    p, rr = r, _dot(r, r)
    size = _dot(b, b)
    stop = tol**2 * size
    live = rr > stop
    negative = torch.zeros_like(live)
    used = torch.zeros_like(rr, dtype=torch.long)
    # Reading the flags waits for an accelerator, so they are read rarely there.
    stride = 1 if b.device.type == "cpu" else 8
    for k in range(iterations):
        if k % stride == 0 and not bool(live.any()):
            break
        t = matvec(p)
        curvature = _dot(p, t)
        scale = _dot(p, p).sqrt() * _dot(t, t).sqrt()
        bad = live & (curvature <= 1e-6 * scale)
        negative, live = negative | bad, live & ~bad
        a = torch.where(live, rr / curvature, 0.0)
        x = x + a.to(b.dtype) * p
        r = r - a.to(b.dtype) * t
        new = _dot(r, r)
        used = used + live
        p = torch.where(live, r + torch.where(live, new / rr, 0.0).to(b.dtype) * p, p)
        rr = torch.where(live, new, rr)
        live = live & (rr > stop)
    residual = torch.where(size > 0, (rr / torch.where(size > 0, size, 1)).sqrt(), 0.0)
    return Solution(x, used.squeeze(-1), negative.squeeze(-1), residual.squeeze(-1))


def gmres(matvec: Matvec, b: Tensor, iterations: int) -> Krylov:
    """Minimises |b - M x| over span{b, M b, ...}, one Krylov space per sample.

    Saad & Schultz 1986.

    The residual never grows for any M. With a wrong Jacobian, guidance gets weaker, while conjugate
    gradients diverge. A breakdown (convergence) pads the space with zeros, so that it does not
    affect other samples.

    Args:
        matvec: v -> M v, both (B, d).
        b: The right-hand side, (B, d).
        iterations: The dimension K of the Krylov space, which is the number of products with M.

    Returns:
        x (B, d), and its weights (B, K) in the Krylov basis.
    """
    beta = _dot(b, b).sqrt()
    basis = [_unit(b, beta, beta)]
    h = b.new_zeros(len(b), iterations + 1, iterations, dtype=beta.dtype)
    for j in range(iterations):
        w = matvec(basis[j])
        size = _dot(w, w).sqrt()
        for _ in range(2):
            for i, q in enumerate(basis):
                c = _dot(q, w)
                h[:, i, j] += c.squeeze(-1)
                w = w - c.to(w.dtype) * q
        left = _dot(w, w).sqrt()
        h[:, j + 1, j] = torch.where(left > 1e-6 * size, left, 0.0).squeeze(-1)
        if j + 1 < iterations:
            basis.append(_unit(w, left, size))
    rhs = torch.zeros_like(h[:, :, :1])
    rhs[:, 0] = beta
    broken = ~(
        h.isfinite().all(-1).all(-1, keepdim=True)
        & rhs.squeeze(-1).isfinite().all(-1, keepdim=True)
    )
    weights = (torch.linalg.pinv(h.masked_fill(broken[:, :, None], 0.0)) @ rhs).squeeze(-1)
    weights = weights.masked_fill(broken, torch.nan).to(b.dtype)
    return Krylov(torch.einsum("kbd,bk->bd", torch.stack(basis), weights), weights)


def least_norm(A: LinearOperator, y: Tensor, iterations: int = 5000, tol: float = 1e-4) -> Tensor:
    """Returns A^+ y, shape (B, *shape), for operators whose pseudo-inverse has no closed form.

    Conjugate gradients for least squares (CGLS, Hestenes & Stiefel 1952) in float64, from zero, so
    that the result has the least norm. It works with y - A x and A^T (y - A x) as they are: to form
    A^T A would square the condition of A, and single precision ends before the small singular
    values are reached.

    A sample stops where |y - A x| <= tol |y|, which a y in the range of A comes to, or where
    |A^T (y - A x)| <= tol |A| |y - A x|, which any other comes to (Paige & Saunders 1982, section
    6; |A| is estimated from below). It warns of samples that come to neither.

    Args:
        A: A batch of B operators.
        y: Measurements, shape (B, *measurement shape).
        iterations: The largest number of iterations, each an application of A and of its adjoint.
        tol: When a sample stops.
    """
    dtype = to_float64(y).dtype
    A, r = A.to(dtype=dtype), y.to(dtype)

    def norm(v: Tensor) -> Tensor:
        return _dot(v.flatten(1), v.flatten(1)).sqrt().reshape(-1, *[1] * (v.ndim - 1))

    s = A.adjoint(r)
    x, p, gamma = torch.zeros_like(s), s, norm(s)
    wide, enough = [1] * (s.ndim - 1), tol * norm(r)
    live, largest = gamma.flatten() > 0, torch.zeros_like(gamma.flatten())
    used = torch.zeros_like(live, dtype=torch.long)
    for _ in range(iterations):
        if not bool(live.any()):
            break
        q = A(p)
        size = norm(q).flatten()
        largest = torch.maximum(largest, size / norm(p).flatten().clamp(min=1e-300))
        step = torch.where(live & (size > 0), (gamma.flatten() / size).square(), 0.0)
        x = x + step.reshape(-1, *wide) * p
        r = r - step.reshape(-1, *[1] * (r.ndim - 1)) * q
        s = A.adjoint(r)
        new = norm(s)
        p = s + (new / gamma.clamp(min=1e-300)).square() * p
        gamma, used = new, used + live
        left = norm(r).flatten()
        done = (left <= enough.flatten()) | (gamma.flatten() <= tol * largest * left)
        live = live & ~done
    if bool(live.any()):
        residual = torch.where(live, gamma.flatten() / (largest * norm(r).flatten()), 0.0)
        Solution(x, used, torch.zeros_like(live), residual).warn_unless(tol, "least-norm solution")
    return x.to(y.dtype)


def _unit(w: Tensor, norm: Tensor, size: Tensor) -> Tensor:
    return torch.where((norm > 1e-6 * size) & (norm > 0), w / norm.to(w.dtype), torch.zeros_like(w))


def sqrt_matvec(matvec: Matvec, v: Tensor, iterations: int) -> Tensor:
    """Approximates M^(1/2) v for symmetric positive semi-definite M by Lanczos, per sample.

    Negative Ritz values, which only a learned Jacobian has, are set to zero. It is exact once
    `iterations` reaches the number of distinct eigenvalues in v.

    Args:
        matvec: v -> M v, both (B, d).
        v: (B, d).
        iterations: The number of products with M.

    Returns:
        (B, d).
    """
    norm = _dot(v, v).sqrt()
    basis = [_unit(v, norm, norm)]
    t = v.new_zeros(len(v), iterations, iterations, dtype=norm.dtype)
    for j in range(iterations):
        w = matvec(basis[j])
        size = _dot(w, w).sqrt()
        t[:, j, j] = _dot(basis[j], w).squeeze(-1)
        for _ in range(2):
            for q in basis:
                w = w - _dot(q, w).to(w.dtype) * q
        left = _dot(w, w).sqrt()
        if j + 1 < iterations:
            off = torch.where(left > 1e-6 * size, left, 0.0).squeeze(-1)
            t[:, j, j + 1] = t[:, j + 1, j] = off
            basis.append(_unit(w, left, size))
    broken = ~t.isfinite().all(-1).all(-1)
    values, vectors = torch.linalg.eigh(t.masked_fill(broken[:, None, None], 0.0))
    values = values.masked_fill(broken[:, None], torch.nan)
    first = vectors[:, 0, :]
    coefficients = torch.einsum("bkj,bj->bk", vectors, values.clamp(min=0).sqrt() * first)
    return (norm * torch.einsum("kbd,bk->bd", to_float64(torch.stack(basis)), coefficients)).to(
        v.dtype
    )


@dataclass(frozen=True, eq=False)
class DPLR(Batched):
    """A covariance diag(D) + F F^T, diagonal plus low rank, common to a batch.

    Attributes:
        diag: D, shape (d,), positive.
        factor: F, shape (d, r).
    """

    diag: Tensor = shared()
    factor: Tensor = shared()

    def __call__(self, v: Tensor) -> Tensor:
        """Returns C v. v: (B, d)."""
        return v * self.diag + (v @ self.factor) @ self.factor.T

    def draw(self, rng: Rng) -> Tensor:
        """Draws N(0, C), shape (B, d)."""
        e = rng.normal(len(self.diag) + self.factor.shape[1]).to(self.diag)
        return e[:, : len(self.diag)] * self.diag.sqrt() + e[:, len(self.diag) :] @ self.factor.T

    def _capacitance(self, var: Tensor) -> tuple[Tensor, Tensor]:
        """Returns E = 1/(D + var) and L with L L^T = I + F^T E F. var: () or (B, 1)."""
        e = 1 / (to_float64(self.diag) + to_float64(var))
        f = to_float64(self.factor)
        k = torch.einsum("dr,...d,ds->...rs", f, e, f) + torch.eye(
            f.shape[1], dtype=f.dtype, device=f.device
        )
        return e, torch.linalg.cholesky(k)

    def solve(self, v: Tensor, var: Tensor | float = 0.0) -> Tensor:
        """Returns (C + var I)^-1 v by Woodbury. v: (B, d), var: () or (B, 1)."""
        e, chol = self._capacitance(torch.as_tensor(var, device=v.device))
        ev = e * to_float64(v)
        fev = (ev @ to_float64(self.factor)).unsqueeze(-1)
        kfev = torch.cholesky_solve(
            fev, chol.expand(len(v), -1, -1) if chol.ndim == 2 else chol
        ).squeeze(-1)
        return (ev - e * (kfev @ to_float64(self.factor).T)).to(v.dtype)

    def given(self, sigma: Tensor | float) -> "DPLR":
        """Returns (C^-1 + sigma^-2 I)^-1, the covariance of x given x + sigma z, for one sigma."""
        var = (
            torch.as_tensor(sigma, dtype=to_float64(self.diag).dtype, device=self.diag.device) ** 2
        )
        e, chol = self._capacitance(var)
        f = e[:, None] * to_float64(self.factor)
        factor = var * torch.linalg.solve_triangular(chol, f.T, upper=False).T
        return DPLR((var * self.diag * e).to(self.diag.dtype), factor.to(self.diag.dtype))

    def logdet(self) -> Tensor:
        """Returns log det C, shape ()."""
        _, chol = self._capacitance(torch.zeros((), device=self.diag.device))
        value: Tensor = to_float64(self.diag).log().sum() + 2 * chol.diagonal().log().sum()
        return value.to(self.diag.dtype)

    def dense(self) -> Tensor:
        """Returns the matrix, shape (d, d)."""
        return torch.diag(self.diag) + self.factor @ self.factor.T
