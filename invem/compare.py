"""Comparisons of sets of signals: distances, principal components, and ranks of a truth."""

import math

import torch
from torch import Generator, Tensor

from invem.batched import Rng, to_float64

__all__ = [
    "canonical_order",
    "directions",
    "frechet_distance",
    "principal_components",
    "ranks",
    "share_inside",
    "sliced_wasserstein",
]

_ROWS = 1024  # principal components use at most so many signals if there are more pixels than this


def directions(d: int, count: int, rng: Generator) -> Tensor:
    """Returns unit vectors as columns, orthogonal within groups of d, shape (d, count), float64."""
    bases = []
    for start in range(0, count, d):
        normal = torch.randn(d, min(d, count - start), generator=rng, dtype=torch.float64)
        bases.append(torch.linalg.qr(normal).Q)
    return torch.cat(bases, 1)


def sliced_wasserstein(x: Tensor, y: Tensor, theta: Tensor) -> Tensor:
    """Returns the sliced 2-Wasserstein distance of two sets, shape ().

    It is the root mean square, over directions, of the distance between the projections. Sets of
    different sizes are compared by their quantile functions, linear between order statistics.

    Args:
        x: One set, shape (N, d).
        y: The other, shape (M, d).
        theta: Directions as columns, shape (d, P).
    """
    count = max(len(x), len(y))
    return (_quantiles(x @ theta, count) - _quantiles(y @ theta, count)).square().mean().sqrt()


def _quantiles(x: Tensor, count: int) -> Tensor:
    """Returns `count` evenly spaced quantiles of each column, shape (count, P). x: (N, P)."""
    x = x.sort(0).values
    if len(x) == count:
        return x
    place = ((torch.arange(count, dtype=torch.float64) + 0.5) * (len(x) / count) - 0.5).clamp(
        0, len(x) - 1
    )
    below = place.long().clamp(max=max(len(x) - 2, 0))
    weight = (place - below)[:, None].to(x)
    below = below.to(x.device)
    return x[below] + weight * (x[(below + 1).clamp(max=len(x) - 1)] - x[below])


def frechet_distance(a: Tensor, b: Tensor) -> Tensor:
    """Returns the Fréchet distance of two sets, shape ().

    It is |m1 - m2|^2 + tr(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2) for their means and covariances: the
    squared 2-Wasserstein distance of two Gaussians. It is NaN if an entry is not finite.

    Args:
        a: One set, shape (N, F), N >= 2.
        b: The other, shape (M, F), M >= 2.
    """
    if not bool(a.isfinite().all() and b.isfinite().all()):
        return a.new_tensor(math.nan)
    size = (a.shape[1], a.shape[1])
    cov_a, cov_b = torch.cov(a.T).reshape(size), torch.cov(b.T).reshape(size)
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    gap = (a.mean(0) - b.mean(0)).square().sum()
    distance: Tensor = gap + cov_a.trace() + cov_b.trace() - 2 * overlap
    return distance.clamp(min=0)


def principal_components(x: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the leading principal components of a set.

    Args:
        x: Shape (N, d), N >= 2. If d > 1,024, only the first 1,024 rows are used.
        rank: The number of components; at most min(N - 1, d) are returned.

    Returns:
        The mean (d,), the components as orthonormal columns, the leading one first, (d, rank), and
        their variances (rank,); float64.
    """
    x = to_float64(x if x.shape[1] <= _ROWS else x[:_ROWS])
    mean = x.mean(0)
    x = x - mean
    n, d = x.shape
    rank = min(rank, n - 1, d)
    if d <= n:
        values, vectors = torch.linalg.eigh(x.T @ x)
    else:
        values, left = torch.linalg.eigh(x @ x.T)
        vectors = torch.linalg.qr((x.T @ left[:, n - rank :]).flip(1)).Q.flip(1)
    return (
        mean,
        vectors[:, vectors.shape[1] - rank :].flip(1),
        values[len(values) - rank :].flip(0).clamp(min=0) / (n - 1),
    )


def canonical_order(x: Tensor) -> Tensor:
    """Returns the indices that sort a set in an order of its own, shape (N,). x: (N, ...).

    A random subset then depends on the set, and not on the order in which it came.
    """
    flat = x.flatten(1).cpu()
    weights = torch.randn(flat.shape[1], generator=Rng.generator("canonical"), dtype=torch.float64)
    return (flat.double() @ weights).argsort(stable=True).to(x.device)


def ranks(draws: Tensor, truth: Tensor) -> Tensor:
    """Returns the rank of each coordinate of the truth among K draws, shape (B, d, 2), float64.

    The rank is an interval of levels in [0, 1]. With r of K draws below the truth it is [r, r +
    1]/(K + 1). If the draws have the distribution of the truth, r is uniform on 0..K, and a uniform
    point of the interval is uniform in [0, 1]. Draws that equal the truth widen the interval.

    Args:
        draws: Shape (B, K, d).
        truth: Shape (B, d).
    """
    k = draws.shape[1]
    less, ties = ((sign(draws, truth[:, None])).sum(1) for sign in (torch.lt, torch.eq))
    return torch.stack([less / (k + 1), (less + ties + 1) / (k + 1)], -1).double()


def share_inside(ranks: Tensor, low: float, high: float) -> Tensor:
    """Returns the fraction of each interval of `ranks` between two levels, shape (...).

    Its mean is high - low for calibrated draws, whatever their number. ranks: (..., 2).
    """
    a, b = ranks.unbind(-1)
    return (b.clamp(max=high) - a.clamp(min=low)).clamp(min=0) / (b - a)
