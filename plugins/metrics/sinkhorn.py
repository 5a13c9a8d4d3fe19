"""Sinkhorn divergence between samples and reference signals."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from invem import Metric, Outcome, Unsupported

ENTRIES = 2**18  # entries of the matrix of all pairs in memory at once
PAIRS = 2**23  # the maximum of non-negligible pairs in a plan
# A pair is negligible below exp(-REACH) times its mass in the independent plan.
REACH = 30.0
COARSE = 2e-2  # the tolerance of the marginals while epsilon falls
TRUST = 3.0  # how far a Newton step may change the logarithm of the mass of a pair
PASSES, STEPS, ITERATIONS = 200, 20, 1000


@dataclass(frozen=True, kw_only=True)
class Sinkhorn(Metric):
    """Debiased Sinkhorn divergence between samples and references.

        OT(a, b) - OT(a, a)/2 - OT(b, b)/2,
        OT(a, b) = min_P <P, C> + epsilon KL(P | a b^T),   C_ij = |x_i - y_j|^2

    for two sets of points with equal weights (J. Feydy et al., AISTATS 2019, arXiv 1810.08278, eq.
    3). The cost is the squared distance, not half of it, as in the code of DiEM (arXiv 2405.13712),
    whose epsilon is 0.001. The value is in squared units of the data, summed over pixels. A
    translation by c gives |c|^2 for any epsilon. As epsilon falls, the value tends to the squared
    2-Wasserstein distance. Two sets from one distribution have a value above 0 that falls with
    their sizes: compare values for equal sizes only. (The published number is <P, C> between 16,384
    samples and as many true points, less that between two sets of true points, and at least 1e-6.)

    It is computed in float64, in the log domain, without a matrix of all pairs. Epsilon falls from
    the squared diameter by factors of 4, with one Sinkhorn iteration per level. Once enough pairs
    are negligible, they are left out (as by B. Schmitzer, SIAM J. Sci. Comput. 41, 2019), and
    Newton's method on the semi-dual finishes a level. The number of plain iterations would grow
    with (diameter)^2/epsilon. It ends when an iteration on all pairs confirms the marginals.

    Attributes:
        epsilon: The regularisation, in squared units of the data; null is a hundredth of the
            variance of the reference, summed over pixels.
        samples: The number of points compared per set, the first ones; the cost is quadratic in it.
        clip: Points with a coordinate of absolute value at or above it are removed first, in units
            of the data (DiEM: 3), which favours a prior that has some. null keeps them.
        tol: The tolerance of the marginals of the plan: the sum of absolute differences from
            weights that sum to 1.
    """

    epsilon: Annotated[float, Gt(0)] | None = None
    samples: Annotated[int, Ge(1)] = 4096
    clip: Annotated[float, Gt(0)] | None = None
    tol: Annotated[float, Gt(0)] = 1e-4
    needs: ClassVar[frozenset[str]] = frozenset({"samples", "reference"})

    def __call__(self, outcome: Outcome, state: Mapping[str, Tensor]) -> Tensor:
        """Returns the divergence in squared units of the data, shape ().

        It is NaN if no point is left, a point is not finite, or the marginals do not converge in
        200 passes over all pairs.
        """
        if outcome.samples is None or outcome.reference is None:
            raise Unsupported("sinkhorn needs samples of the prior and reference signals")
        x, y = (self._points(z) for z in (outcome.samples, outcome.reference))
        if not (len(x) and len(y) and bool(x.isfinite().all() and y.isfinite().all())):
            return torch.tensor(math.nan)
        epsilon = (
            max(float((y - y.mean(0)).square().sum(1).mean()) / 100, 1e-12)
            if self.epsilon is None
            else self.epsilon
        )
        f, g = transport(x, y, epsilon, self.tol)
        return (f - symmetric(x, epsilon, self.tol)).mean() + (
            g - symmetric(y, epsilon, self.tol)
        ).mean()

    def _points(self, x: Tensor) -> Tensor:
        x = x.flatten(1).cpu().double()
        if self.clip is not None:
            x = x[~(x.abs() >= self.clip).any(1)]
        return x[: self.samples]


def symmetric(x: Tensor, epsilon: float, tol: float) -> Tensor:
    """Returns f with OT(a, a) = 2 mean(f), shape (N,); NaN if it does not converge.

    x: (N, d), float64. The mean of an iterate and its image converges in a few iterations from zero
    (Feydy et al., section 3.1). Both together are dual feasible, so the error of the value is of
    second order in `tol`.
    """
    f = torch.zeros(len(x), dtype=x.dtype)
    for _ in range(PASSES):
        image = _softmin(x, x, f, epsilon)
        off, f = _off(f, image, epsilon), (f + image) / 2
        if off < tol:
            return f
    return torch.full_like(f, math.nan)


def transport(x: Tensor, y: Tensor, epsilon: float, tol: float) -> tuple[Tensor, Tensor]:
    """Returns the potentials f, (N,), and g, (M,), of OT(a, b) = mean(f) + mean(g).

    They are NaN if they do not converge.

    Args:
        x: Points, shape (N, d), float64.
        y: Points, shape (M, d), float64.
        epsilon: The regularisation.
        tol: The tolerance of the marginals.
    """
    g = torch.zeros(len(y), dtype=x.dtype)
    for level in _levels(x, y, epsilon):
        f = _softmin(x, y, g, level)
        g = _newton(x, y, f, _softmin(y, x, f, level), level, COARSE)
    for _ in range(PASSES // 2):
        f = _softmin(x, y, g, epsilon)
        image = _softmin(y, x, f, epsilon)
        if _off(g, image, epsilon) < tol:
            return f, g
        g = _newton(x, y, f, image, epsilon, tol / 4)
    return torch.full_like(f, math.nan), torch.full_like(g, math.nan)


def _levels(x: Tensor, y: Tensor, epsilon: float) -> list[float]:
    """Returns decreasing levels above epsilon, the first about the squared diameter."""
    both = torch.cat([x, y])
    widest = float((both.max(0).values - both.min(0).values).square().sum())
    return [
        epsilon * 4.0**k for k in range(math.ceil(math.log(max(widest / epsilon, 1.0), 4)), 0, -1)
    ]


def _factors(x: Tensor, y: Tensor, g: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Returns (N, d + 1) and (d + 1, M) factors of (g_j - |x_i - y_j|^2 + |x_i|^2)/epsilon."""
    right = torch.cat([2 / epsilon * y.T, ((g - y.square().sum(1)) / epsilon)[None]])
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1), right


def _softmin(x: Tensor, y: Tensor, g: Tensor, epsilon: float) -> Tensor:
    """Returns -epsilon log mean_j exp((g_j - |x_i - y_j|^2)/epsilon), shape (N,)."""
    left, right = _factors(x, y, g, epsilon)
    total = torch.cat(
        [(part @ right).logsumexp(1) for part in left.split(max(ENTRIES // len(y), 1))]  # type: ignore[no-untyped-call]
    )
    return x.square().sum(1) - epsilon * (total - math.log(len(y)))


def _off(g: Tensor, image: Tensor, epsilon: float) -> float:
    """Returns the error of one marginal where the other is exact.

    It follows from the change of the potential in an iteration.
    """
    return float(torch.expm1(((g - image) / epsilon).clamp(max=100)).abs().mean())


class _Plan:
    """P_ij = exp((f_i + g_j - C_ij)/epsilon)/(N M) without its negligible pairs.

    It is stored by rows and by columns. If too many pairs remain for the memory, `sparse` is False
    and there are no other attributes.
    """

    def __init__(self, x: Tensor, y: Tensor, f: Tensor, g: Tensor, epsilon: float) -> None:
        left, right = _factors(x, y, g, epsilon)
        size = max(ENTRIES // len(y), 1)
        shift = (f - x.square().sum(1)) / epsilon
        rows: list[Tensor] = []
        cols: list[Tensor] = []
        values: list[Tensor] = []
        count = 0
        self.sparse = False
        for first in range(0, len(x), size):
            log = (left[first : first + size] @ right).add_(shift[first : first + size, None])
            i, j = (log > -REACH).nonzero(as_tuple=True)
            rows, cols, values = [*rows, i + first], [*cols, j], [*values, log[i, j]]
            count += len(i)
            if count > PAIRS:
                return
        self.sparse, self.n, self.m = True, len(x), len(y)
        self.rows, self.cols, log = torch.cat(rows), torch.cat(cols), torch.cat(values)
        self.order = self.cols.argsort(stable=True)
        self.turned = self.rows[self.order]
        self.row_ends = torch.bincount(self.rows, minlength=self.n).cumsum(0)
        self.col_ends = torch.bincount(self.cols, minlength=self.m).cumsum(0)
        self.set((log - math.log(self.n * self.m)).exp())

    def set(self, values: Tensor) -> None:
        """Sets the values, with rows scaled to sum to 1/N."""
        self.values = values / (self.n * _sums(values, self.row_ends))[self.rows]
        self.by_col = self.values[self.order]
        self.col_sums = _sums(self.by_col, self.col_ends)

    def times(self, q: Tensor) -> Tensor:
        """Returns N P q, shape (N,)."""
        return self.n * _sums(self.values * q[self.cols], self.row_ends)

    def hessian(self, q: Tensor) -> Tensor:
        """Returns (diag(P^T 1) - N P^T P) q, shape (M,)."""
        return self.col_sums * q - _sums(self.by_col * self.times(q)[self.turned], self.col_ends)


def _sums(values: Tensor, ends: Tensor) -> Tensor:
    """Returns the sums of the segments of a vector that end before `ends`."""
    total = torch.cat([values.new_zeros(1), values.cumsum(0)])
    return total[ends].diff(prepend=total[:1])


def _newton(x: Tensor, y: Tensor, f: Tensor, g: Tensor, epsilon: float, tol: float) -> Tensor:
    """Improves g on the non-negligible pairs; returns it unchanged if these are too many.

    Newton's method with a backtracking line search minimises the semi-dual mean_i log(N sum_j P_ij
    exp(v_j)) - mean(v) of the plan P. Conjugate gradients solve its system.
    """
    plan = _Plan(x, y, f, g, epsilon)
    v = torch.zeros_like(g)
    for _ in range(STEPS if plan.sparse else 0):
        r = 1 / len(y) - plan.col_sums
        if not tol <= float(r.abs().sum()):
            break
        dv = _solve(plan.hessian, r, plan.col_sums)
        du = -plan.times(dv)
        change = du[plan.rows] + dv[plan.cols]
        t, slope = min(1.0, TRUST / float(change.abs().max())), float((r * dv).sum())
        while t > 1e-3:
            values = plan.values * (t * change).exp()
            fall = float(
                (len(x) * _sums(values, plan.row_ends)).log().mean() - t * (du.mean() + dv.mean())
            )
            if fall < -1e-4 * t * slope:
                break
            t /= 2
        else:
            break
        plan.set(values)
        v = v + t * dv
    return g + epsilon * v


def _solve(product: Callable[[Tensor], Tensor], b: Tensor, diagonal: Tensor) -> Tensor:
    """Solves a positive semi-definite system to a tenth of its residual.

    It uses conjugate gradients with a diagonal preconditioner.
    """
    x, r, p = torch.zeros_like(b), b, b / diagonal
    first = last = float((r * p).sum())
    for _ in range(ITERATIONS):
        t = product(p)
        a = last / float((p * t).sum())
        x, r = x + a * p, r - a * t
        z = r / diagonal
        now = float((r * z).sum())
        if now < 1e-2 * first:
            break
        p, last = z + now / last * p, now
    return x
