"""The spectrum of operators that are formed as matrices, for small signals."""

import math
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from invem.analysis.operators import HIDDEN, OperatorSample, as_matrices, squared_norms
from invem.analysis.pairs import Pairs, random_choice, seen_together, unseen_second_moments
from invem.analysis.spectrum import Levels, Spectrum, common_basis_spectrum
from invem.batched import Rng

__all__ = ["dense_spectrum"]

_MOST_ROWS = 8192  # the most rows of all matrices together
_MOST_MOMENT_DIRECTIONS = 32  # up to this many, all second moments are examined together
_APPLICATIONS = 2**14  # operator calls if the singular vectors are known and the values are not
_PAIRED = 64  # directions whose pairs are examined then


def dense_spectrum(sample: OperatorSample, levels: Levels, x: Tensor | None = None) -> Spectrum:
    """Returns the spectrum of operators that are formed as matrices.

    As many are formed as have 8,192 rows together. Others are applied to the directions that the
    formed ones hide.

    Args:
        sample: The operators.
        levels: The variances of signal and noise.
        x: Signals at which the Jacobians of operators that are not linear are formed, shape (n,
            *shape); None for linear operators.
    """
    k = min(sample.n, max(_MOST_ROWS // math.prod(sample.measured), 2))
    matrices = as_matrices(sample, k, x)
    rows = matrices.reshape(-1, sample.entries)
    mean = rows.T @ rows / k
    if k == 1 or x is not None:
        values, v = torch.linalg.eigh(mean)
        found = common_basis_spectrum(
            values.clamp(min=0)[None], levels, sample.total, _Columns(v, sample.A.shape)
        )
        return replace(found, operators=k)
    common = _common_eigenvectors(matrices, mean) if _commute(matrices) else None
    if common is not None:
        return _commuting_spectrum(sample, levels, matrices, *common)
    return _general_spectrum(sample, levels, matrices, mean)


class _Columns:
    """Maps indices, shape (k,), to columns of a matrix as signals, shape (k, *shape)."""

    def __init__(self, v: Tensor, shape: tuple[int, ...]) -> None:
        self.v, self.shape = v, shape

    def __call__(self, index: Tensor) -> Tensor:
        return self.v[:, index].T.reshape(-1, *self.shape)


def _commute(matrices: Tensor) -> bool:
    """Whether A_i^T A_i and A_j^T A_j commute, so that they have common eigenvectors.

    Tested on a random vector for the first six. matrices: shape (k, m, d).
    """
    few = matrices[:6]
    x = torch.randn(few.shape[2], generator=Rng.generator("identify", "probe"), dtype=torch.float64)
    for a, b in pairwise(few):
        g, h = a.T @ (a @ x), b.T @ (b @ x)
        commutator = a.T @ (a @ h) - b.T @ (b @ g)
        if float(commutator.norm() * x.norm()) > 1e-5 * float(g.norm() * h.norm()):
            return False
    return True


def _common_eigenvectors(matrices: Tensor, mean: Tensor) -> tuple[Tensor, Tensor] | None:
    """Returns the eigenvalues of the mean, shape (d,), and the common eigenvectors, shape (d, d).

    None if the latter are not eigenvectors of the mean. They are those of a sum with random
    weights, since the mean itself may have repeated eigenvalues.
    """
    k, m, d = matrices.shape
    rows = matrices.reshape(-1, d)
    weights = torch.rand(k, generator=Rng.generator("identify", "weights"), dtype=torch.float64)
    v = torch.linalg.eigh(rows.T @ (weights.repeat_interleave(m)[:, None] * rows)).eigenvectors
    values = (rows @ v).square().sum(0) / k
    if float((mean @ v - v * values).abs().max()) < 1e-5 * float(values.max()):
        return values, v
    return None


def _commuting_spectrum(
    sample: OperatorSample, levels: Levels, matrices: Tensor, values: Tensor, v: Tensor
) -> Spectrum:
    """Returns the spectrum of operators with common eigenvectors v, shape (d, d)."""
    n = sample.n
    examined = min(n, max(len(matrices), _APPLICATIONS // sample.entries))
    found = common_basis_spectrum(
        squared_norms(sample.A, examined, v), levels, sample.total, _Columns(v, sample.A.shape)
    )
    if examined < n:
        found = _with_other_operators(sample, levels, found, v, _largest_norm(matrices))
    seen = (values > HIDDEN * values.max()).nonzero()[:, 0]
    power = squared_norms(
        sample.A, min(n, 2 * _APPLICATIONS // _PAIRED), v[:, random_choice(seen, _PAIRED)]
    )
    return replace(found, pairs=seen_together("directions", power, sample.total))


def _general_spectrum(
    sample: OperatorSample, levels: Levels, matrices: Tensor, mean: Tensor
) -> Spectrum:
    """Returns the spectrum of operators that have no common eigenvectors."""
    values, v = torch.linalg.eigh(mean)
    few = matrices[: max(1, _MOST_ROWS // (2 * matrices.shape[1]))]
    floor = 1e-9 * levels.signal * float(values[-1])
    found = Spectrum(
        values.clamp(min=0),
        _information(few, v, Levels(levels.signal, levels.noise.clamp(min=floor))),
        len(matrices),
        _Columns(v, sample.A.shape),
    )
    if len(few) < sample.n:
        found = _with_other_operators(sample, levels, found, v, _largest_norm(matrices))
    seen = v[:, values > HIDDEN * values[-1]]
    if seen.shape[1] <= _MOST_MOMENT_DIRECTIONS:
        return replace(found, pairs=Pairs("second moments", unseen_second_moments(matrices @ seen)))
    pairs = seen_together(sample.entry_name, matrices.square().sum(1), sample.total)
    # Pixels that are seen together leave covariances between combinations of them open.
    return replace(found, pairs=replace(pairs, complete=False))


def _largest_norm(matrices: Tensor) -> float:
    """Returns the largest |A_i|^2, by power iteration. matrices: shape (k, m, d)."""
    k, _, d = matrices.shape
    x = torch.randn(k, d, 1, generator=Rng.generator("identify", "norm"), dtype=torch.float64)
    for _ in range(20):
        x = matrices.mT @ (matrices @ (x / x.norm(dim=1, keepdim=True).clamp(min=1e-300)))
    return float(x.norm(dim=1).max())


def _information(matrices: Tensor, v: Tensor, levels: Levels) -> Tensor:
    """Returns the mean over operators of w^2 for each column v, shape (d,).

    w = c v^T A^T (c A A^T + noise)^-1 A v.

    Args:
        matrices: The operators, shape (k, m, d).
        v: Directions as columns, shape (d, d).
        levels: Variances, those of the noise positive.
    """
    k, m, d = matrices.shape
    signal = levels.signal
    noise = levels.noise.expand(k) if len(levels.noise) == 1 else levels.noise[:k]
    total = torch.zeros(v.shape[1], dtype=torch.float64)
    for matrix, level in zip(matrices, noise, strict=True):
        if m <= d:
            cov = signal * matrix @ matrix.T + level * torch.eye(m, dtype=torch.float64)
            root = torch.linalg.cholesky(cov)
            shown = torch.linalg.solve_triangular(root, matrix @ v, upper=False)
            w = signal * shown.square().sum(0)
        else:
            precision = signal * matrix.T @ matrix + level * torch.eye(d, dtype=torch.float64)
            root = torch.linalg.cholesky(precision)
            w = 1 - level * torch.linalg.solve_triangular(root, v, upper=False).square().sum(0)
        total += w.clamp(min=0).square() / k
    return total


def _with_other_operators(
    sample: OperatorSample, levels: Levels, found: Spectrum, v: Tensor, norm: float
) -> Spectrum:
    """Adds the information of all other operators on directions that the examined ones hide.

    The hidden directions are applied to one random combination of the rows of every other operator.
    The information along all directions then has bounds only.

    Args:
        sample: The operators.
        levels: The variances of signal and noise.
        found: The spectrum of the first operators.
        v: Its eigenvectors as columns, shape (d, d).
        norm: The largest |A|^2 of the first operators.
    """
    A, n, first = sample.A, sample.n, found.operators
    hidden = (found.eigenvalues <= HIDDEN * found.eigenvalues.max()).nonzero()[:, 0]
    if len(hidden) and first < n:
        shape = sample.measured
        lost, gram = v[:, hidden], torch.zeros(len(hidden), len(hidden), dtype=torch.float64)
        rng = Rng.generator("identify", "search")
        for start in range(first, n, 256):
            part = torch.arange(start, min(start + 256, n))
            weights = torch.randn(len(part), *shape, generator=rng)
            rows = A[part].adjoint(weights).detach().flatten(1).double() @ lost
            gram += rows.T @ rows / n
        values, turn = torch.linalg.eigh(gram)
        found = replace(
            found,
            eigenvalues=found.eigenvalues.index_copy(0, hidden, values.clamp(min=0)),
            operators=n,
            vectors=_Columns(v.index_copy(1, hidden, lost @ turn), A.shape),
        )
    low, high = levels.information_bounds(found.eigenvalues, norm)
    return replace(
        found, information=found.information.maximum(low), ceiling=found.information.maximum(high)
    )
