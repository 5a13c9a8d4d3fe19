"""The spectrum of operators on large signals, estimated by stochastic Lanczos quadrature."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from invem.analysis.operators import HIDDEN, OperatorSample, squared_norms
from invem.analysis.pairs import Pairs
from invem.analysis.spectrum import Levels, Spectrum, common_basis_spectrum
from invem.batched import Rng
from invem.operator import Operator

__all__ = ["PROBES", "lanczos_spectrum"]

PROBES = 2  # random vectors from which the spectral density is estimated
_STEPS = 32


def lanczos_spectrum(sample: OperatorSample, levels: Levels) -> Spectrum:
    """Returns estimated quantiles of the spectrum of the mean of A^T A.

    Stochastic Lanczos quadrature (S. Ubaru, J. Chen & Y. Saad 2017, doi:10.1137/16M1104974) on the
    mean of a few operators. If all operators are the same, the information is that of the one
    operator. Otherwise it has bounds only.

    Args:
        sample: Linear operators.
        levels: The variances of signal and noise.
    """
    A, n, d = sample.A.to(dtype=torch.float64), sample.n, sample.entries
    k = min(n, max(2**17 // d, 8))
    signs = torch.randint(2, (PROBES, d), generator=Rng.generator("identify", "probe")).double()
    start = (2 * signs - 1) / d**0.5
    basis, projected = _lanczos(_mean_normal_operator(A, k), start, min(_STEPS, d))
    nodes, turns = torch.linalg.eigh(projected)
    weights = turns[:, 0].square()
    values = _quantiles(nodes.flatten(), weights.flatten(), d).clamp(min=0)
    largest = float(nodes.max())
    lowest = torch.where(weights > 1e-10, nodes, math.inf).argmin(1)
    if n > k and bool((nodes.gather(1, lowest[:, None]) <= HIDDEN * largest).any()):
        # Other operators may show directions that these few hide. So all are applied to one random
        # hidden direction per probe.
        lost = torch.einsum("pjd,pj->pd", basis, turns[torch.arange(PROBES), :, lowest])
        shown = squared_norms(A, n, (lost / lost.norm(dim=1, keepdim=True)).T).mean()
        values = torch.where(values <= HIDDEN * largest, shown, values)
    if n == 1:
        return common_basis_spectrum(values[None], levels, 1, None)
    low, high = levels.information_bounds(values, _largest_norm(A[:k], k))
    return Spectrum(values, low, k, pairs=Pairs(complete=False), ceiling=high)


def _mean_normal_operator(A: Operator, k: int) -> Callable[[Tensor], Tensor]:
    """Returns v -> the mean of A_i^T A_i v over the first k operators. v: shape (PROBES, d)."""
    each = [A[torch.full((PROBES,), i)] for i in range(k)]

    def apply(v: Tensor) -> Tensor:
        x = v.reshape(-1, *A.shape)
        return torch.stack([one.adjoint(one(x)).flatten(1) for one in each]).mean(0)

    return apply


def _lanczos(apply: Callable[[Tensor], Tensor], q: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Runs Lanczos steps with full reorthogonalisation.

    Args:
        apply: A symmetric matrix, on vectors of shape (P, d).
        q: Unit vectors to begin with, shape (P, d).
        steps: The number of steps.

    Returns:
        The orthonormal bases, shape (P, steps, d), and the tridiagonal projections of the matrix on
        them, shape (P, steps, steps), both float64.
    """
    probes, d = q.shape
    basis = torch.zeros(probes, steps, d, dtype=torch.float64)
    projected = torch.zeros(probes, steps, steps, dtype=torch.float64)
    for j in range(steps):
        basis[:, j] = q
        w = apply(q)
        size = w.norm(dim=1, keepdim=True)
        projected[:, j, j] = (w * q).sum(1)
        for _ in range(2):
            w = w - torch.einsum("pjd,pj->pd", basis, torch.einsum("pjd,pd->pj", basis, w))
        left = w.norm(dim=1, keepdim=True)
        alive = left > 1e-10 * size
        q = torch.where(alive, w / left.clamp(min=1e-300), 0.0)
        if j + 1 < steps:
            projected[:, j, j + 1] = projected[:, j + 1, j] = torch.where(alive, left, 0.0)[:, 0]
    return basis, projected


def _quantiles(nodes: Tensor, weights: Tensor, d: int) -> Tensor:
    """Returns d quantiles of a discrete distribution, descending, shape (d,).

    nodes, weights: shape (k,).
    """
    order = nodes.argsort(descending=True)
    reached = weights[order].cumsum(0) / weights.sum()
    ranks = (torch.arange(d, dtype=torch.float64) + 0.5) / d
    return nodes[order][torch.searchsorted(reached, ranks).clamp(max=len(order) - 1)]


def _largest_norm(A: Operator, k: int) -> float:
    """Returns the largest |A_i|^2 of k operators, by power iteration."""
    x = torch.randn(k, *A.shape, generator=Rng.generator("identify", "norm"), dtype=torch.float64)
    for _ in range(20):
        norm = x.flatten(1).norm(dim=1).clamp(min=1e-300)
        x = A.adjoint(A(x / norm.reshape(-1, *[1] * len(A.shape))))
    return float(x.flatten(1).norm(dim=1).max())
