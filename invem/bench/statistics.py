"""How draws are compared with the truth, and with the exact posterior where it is known.

``data/metrics.yaml`` says which metric uses which function.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from invem.batched import Rng, to_float64
from invem.bench.metrics import LEVELS
from invem.bench.observations import Observations
from invem.bench.problems import Problem
from invem.compare import directions, ranks, share_inside
from invem.measurement import Measurement
from invem.metric import Outcome

__all__ = [
    "PER_OBSERVATION",
    "PER_SEED",
    "RATIOS",
    "Batch",
    "SeedDraws",
    "coverage_curve",
    "is_finite",
    "uniformity_gap",
]

_DIRECTIONS = 128


@dataclass(frozen=True, eq=False)
class Batch:
    """B observations of one seed with K finite draws each.

    Attributes:
        problem: The problem.
        observations: All observations of the seed.
        rows: Which of them, shape (B,).
        draws: Their draws, shape (B, K, *shape).
    """

    problem: Problem
    observations: Observations
    rows: Tensor
    draws: Tensor

    @cached_property
    def m(self) -> Measurement:
        """The measurements, on the CPU."""
        m = self.observations.m
        return m[self.rows.to(m.y.device)].to("cpu")

    @cached_property
    def truth(self) -> Tensor:
        """The signals, flattened, shape (B, d), float64."""
        return self.observations.truth[self.rows].flatten(1).double()

    @cached_property
    def flat(self) -> Tensor:
        """The draws, flattened, shape (B, K, d), float64."""
        return self.draws.flatten(2).double()

    @cached_property
    def ranks(self) -> Tensor:
        """The interval of [0, 1] of the rank of the truth among the draws, shape (B, d, 2)."""
        return ranks(self.flat, self.truth)

    @cached_property
    def reference(self) -> Tensor | None:
        """Exact draws, shape (B, K', d), or None."""
        reference = self.observations.reference
        return None if reference is None else reference[self.rows]

    @property
    def outcome(self) -> Outcome:
        """The draws as a metric of the catalogue reads them."""
        return Outcome(
            self.problem.range, self.observations.truth[self.rows], self.draws, measurement=self.m
        )


def misfit(batch: Batch) -> Tensor | None:
    """|y - A x|^2 per entry of y in variances of the noise, averaged over draws, shape (B,)."""
    if not batch.m.provides >= {"var", "density"}:
        return None
    b, k = batch.draws.shape[:2]
    m = batch.m[torch.arange(b).repeat_interleave(k)]
    gap: Tensor = (m.y - m.A(batch.draws.flatten(0, 1))).abs()
    squared: Tensor = gap.square() / m.noise.var()
    return squared.flatten(1).mean(1).reshape(b, k).mean(1)


def coverage(batch: Batch, level: float) -> Tensor:
    """The share of coordinates of the truth in the central interval of a level, shape (B,)."""
    return coverage_curve(batch.ranks)[:, LEVELS.index(level)]


def mean_error(batch: Batch) -> Tensor | None:
    """The error of the mean of the draws in posterior standard deviations, shape (B,).

    The root mean square over the coordinates that whiten the exact posterior.
    """
    posterior = batch.observations.posterior
    if posterior is None:
        return None
    root = torch.linalg.cholesky(posterior.cov[batch.rows])
    gap = (batch.flat.mean(1) - posterior.mean[batch.rows])[..., None]
    white: Tensor = torch.linalg.solve_triangular(root, gap, upper=False)[..., 0]
    return white.square().mean(1).sqrt()


def sliced_wasserstein(batch: Batch) -> Tensor | None:
    """The sliced 2-Wasserstein distance to exact draws of the posterior, shape (B,).

    If the numbers of draws differ, the quantiles of the exact draws are taken at the levels of the
    others.
    """
    if batch.reference is None:
        return None
    axes = _axes(batch.flat.shape[2])
    a, b = ((z @ axes).sort(1).values for z in (batch.flat, batch.reference))
    if a.shape[1] != b.shape[1]:
        u = (torch.arange(a.shape[1], dtype=torch.float64) + 0.5) / a.shape[1]
        b = b.quantile(u, dim=1).movedim(0, 1)
    return (a - b).square().mean((1, 2)).sqrt()


@cache
def _axes(d: int) -> Tensor:
    """Returns 128 directions or more, so that all groups of d orthogonal ones are whole."""
    count = _DIRECTIONS if d > _DIRECTIONS else d * math.ceil(_DIRECTIONS / d)
    return directions(d, count, Rng.generator("bench", "directions"))


def mmd2(batch: Batch) -> Tensor | None:
    """The squared maximum mean discrepancy to exact draws of the posterior, unbiased, shape (B,).

    The kernel is Gaussian. Its width is the median distance of two exact draws.
    """
    if batch.reference is None:
        return None
    pairs = zip(batch.flat, batch.reference, strict=True)
    return torch.stack([_mmd2(draws, exact) for draws, exact in pairs])


def _mmd2(x: Tensor, y: Tensor) -> Tensor:
    """x: (K, d), y: (K', d)."""
    k, n = len(x), len(y)
    own = torch.cdist(y, y)
    width = own[~torch.eye(n, dtype=torch.bool)].median().clamp(min=1e-12)

    def kernel(distance: Tensor) -> Tensor:
        return torch.exp(-0.5 * (distance / width).square())

    within = (kernel(torch.cdist(x, x)).sum() - k) / (k * (k - 1))
    within = within + (kernel(own).sum() - n) / (n * (n - 1))
    return within - 2 * kernel(torch.cdist(x, y)).mean()


def spread_error(batch: Batch) -> tuple[Tensor, Tensor]:
    """The mean squared distance of two draws, and that of a draw and the truth, (B,) each.

    Their expectations are equal for exact draws.
    """
    spread = 2 * batch.flat.var(1).sum(1)
    error = (batch.flat - batch.truth[:, None]).square().sum(2).mean(1)
    return spread, error


def coverage_curve(ranks: Tensor) -> Tensor:
    """Returns the share of coordinates inside the central interval of each of `LEVELS`.

    Args:
        ranks: Shape (B, d, 2).

    Returns:
        Shape (B, number of levels).
    """
    return torch.stack([share_inside(ranks, 0.5 - p / 2, 0.5 + p / 2).mean(1) for p in LEVELS], 1)


def uniformity_gap(ranks: Tensor) -> float:
    """Returns the Kolmogorov-Smirnov distance of ranks from the uniform distribution.

    Args:
        ranks: Shape (n, 2).
    """
    return max(
        abs(float(share_inside(ranks, 0.0, i / 100).mean()) - i / 100) for i in range(1, 100)
    )


def is_finite(x: Tensor) -> Tensor:
    """Returns which draws are finite, shape (N, K). x: (N, K, *shape)."""
    return x.flatten(2).isfinite().all(2)


@dataclass(frozen=True, eq=False)
class SeedDraws:
    """All draws of one seed.

    Attributes:
        problem: The problem.
        observations: The observations of the seed.
        draws: The draws, shape (N, K, *shape).
    """

    problem: Problem
    observations: Observations
    draws: Tensor

    @cached_property
    def batches(self) -> list[Batch]:
        """Observations with equally many finite draws, two at least, and those draws."""
        good, made = is_finite(self.draws), []
        counts = good.sum(1)
        for k in sorted(set(counts.tolist())):
            rows = (counts == k).nonzero()[:, 0]
            if k > 1:
                x = self.draws[rows][good[rows]].reshape(len(rows), k, *self.draws.shape[2:])
                made.append(Batch(self.problem, self.observations, rows, x))
        return made

    @cached_property
    def finite(self) -> dict[int, Tensor]:
        """The finite draws of each observation that has two at least, (K', d) each, float64."""
        flat, good = self.draws.flatten(2).double(), is_finite(self.draws)
        used = (good.sum(1) > 1).nonzero()[:, 0].tolist()
        return {i: flat[i][good[i]] for i in used}

    @cached_property
    def posterior_eigenvalues(self) -> Tensor | None:
        """The eigenvalues of P^-1 P_hat in rising order, shape (d,), for a Gaussian prior.

        P is the exact posterior covariance. P_hat is the covariance of the draws about their own
        mean, pooled over observations. None if there are too few draws.
        """
        posterior, exact = self.observations.posterior, self.problem.exact
        if posterior is None or exact is None or len(exact.weights) != 1:
            return None
        total, n = torch.zeros_like(posterior.cov[0]), 0
        for i, x in self.finite.items():
            root = torch.linalg.cholesky(posterior.cov[i])
            white = torch.linalg.solve_triangular(root, (x - x.mean(0)).T, upper=False)
            total, n = total + white @ white.T, n + len(x) - 1
        return torch.linalg.eigvalsh(total / n) if n > len(total) else None

    @cached_property
    def prior_eigenvalues(self) -> Tensor | None:
        """The eigenvalues of C^-1 C_hat in rising order, shape (d,).

        C is the covariance of the prior. C_hat is that of all draws together, less what exact draws
        of the same observations would have, so that few observations are enough.
        """
        posterior, exact = self.observations.posterior, self.problem.exact
        if posterior is None or exact is None or not self.finite:
            return None
        moments = exact.moments()
        mean, cov = to_float64(moments.mean).flatten(), to_float64(moments.cov.dense())
        excess = torch.zeros_like(cov)
        for i, x in self.finite.items():
            gap, off = x - mean, posterior.mean[i] - mean
            own = gap.T @ gap / len(gap) - posterior.cov[i] - off.outer(off)
            excess += own / len(self.finite)
        root = torch.linalg.cholesky(cov)
        half = torch.linalg.solve_triangular(root, excess, upper=False)
        white = torch.linalg.solve_triangular(root, half.mT, upper=False)
        values: Tensor = torch.linalg.eigvalsh(white)
        return 1 + values


def rank_ks(seed: SeedDraws) -> float:
    """The Kolmogorov-Smirnov distance of the ranks of the truth from the uniform distribution."""
    return uniformity_gap(torch.cat([batch.ranks.flatten(0, 1) for batch in seed.batches]))


def covariance_error(seed: SeedDraws) -> float | None:
    """The largest distance from 1 of an eigenvalue of P^-1 P_hat."""
    values = seed.posterior_eigenvalues
    return None if values is None else float((values - 1).abs().max())


def _eigenvalue(name: str, index: int) -> Callable[[SeedDraws], float | None]:
    def statistic(seed: SeedDraws) -> float | None:
        values: Tensor | None = getattr(seed, name)
        return None if values is None else float(values[index])

    return statistic


PER_OBSERVATION: dict[str, Callable[..., Tensor | None]] = {
    function.__name__: function
    for function in (misfit, coverage, mean_error, sliced_wasserstein, mmd2)
}
RATIOS: dict[str, Callable[[Batch], tuple[Tensor, Tensor]]] = {"spread_error": spread_error}
PER_SEED: dict[str, Callable[[SeedDraws], float | None]] = {
    "rank_ks": rank_ks,
    "covariance_error": covariance_error,
    "eigenvalue_min": _eigenvalue("posterior_eigenvalues", 0),
    "eigenvalue_max": _eigenvalue("posterior_eigenvalues", -1),
    "prior_min": _eigenvalue("prior_eigenvalues", 0),
    "prior_max": _eigenvalue("prior_eigenvalues", -1),
}
