"""Blind EM: maximum-likelihood estimates of options of operator and noise, during EM.

The marginal likelihood p(y | theta) = E_x p(y | x, theta) is maximised over the options theta.
There are three methods:

- `by_moments` is in closed form. It takes the prior to be Gaussian, with given mean and covariance.
  A must be linear and the noise Gaussian.
- `by_score` uses Fisher's identity, grad log p(y | theta) = E[grad log p(y | x, theta) | y, theta].
  It finds the root of this gradient. At each theta it draws posterior samples anew, with the same
  random numbers. It works for any prior, operator and noise for which there is a sampler.
- `by_draws` maximises the mean of log p(y | x, theta) over given posterior draws. This is the
  M-step of EM. It needs no new draws. Its steps are short, by the fraction of missing information:
  at low noise, draws made with a wrong blur favour that blur again.

None of them can detect a wrong operator that the prior has absorbed: a prior that was learned from
y alone with a wrong blur or gain explains y with it. Clean images, or a prior from elsewhere,
separate the two.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from invem.analysis.parameters import Parameters
from invem.analysis.search import broyden_update, free_coordinates, maximise, newton_step
from invem.errors import NumericalError, Unsupported
from invem.gaussian import Gaussian
from invem.measurement import Measurement
from invem.noise import NoiseModel
from invem.operator import LinearOperator, Operator

__all__ = [
    "TRIALS",
    "Calibrated",
    "MeasurementAt",
    "by_draws",
    "by_moments",
    "by_score",
    "calibrate",
    "calibrate_by_moments",
    "rebuilt",
    "score",
]

MeasurementAt = Callable[[Mapping[str, float]], Measurement]
"""The observations, with operator and noise at given values of their options. y and the random
numbers of each observation are the same for all values."""

TRIALS = 8  # the most values at which `calibrate` has draws made
_SCORE_OBSERVATIONS = 128  # observations with posterior draws
# Observations for the moments, where operator or noise differ between observations.
_LEAST_MOMENT_OBSERVATIONS, _MOST_MOMENT_OBSERVATIONS = 16, 512
_MULTIPLICATIONS = 3e10  # the largest cost of one evaluation of the likelihood by moments
_ENTRIES = 2**22  # the most entries of matrices in memory at once


@dataclass(frozen=True)
class Calibrated:
    """The estimated options.

    Attributes:
        values: The estimates by name.
        how: The method: "moments", "draws" or "score".
        settled: Whether the search converged. If not, it continues in the next round.
        path: The values that were tried, in order.
        error: Standard errors of the values by name, from the scatter of observations and draws.
            They hold if the prior is right. Empty where they were not estimated.
    """

    values: dict[str, float]
    how: str
    settled: bool
    path: list[dict[str, float]]
    error: dict[str, float]


def calibrate(
    measurement_at: Callable[[Mapping[str, float], Tensor], Measurement],
    rows: Tensor,
    parameters: Parameters,
    start: Mapping[str, float],
    draw: Callable[[Measurement], Tensor],
    clean: Tensor | None = None,
) -> Calibrated:
    """Estimates the options for one round of a run.

    With clean images, A linear, Gaussian noise and matrices of moderate size it uses `by_moments`.
    Otherwise it uses `by_score` under the prior of the round. In a first round the moments are the
    better choice: a network trained on few clean images has too little variance, and the missing
    variance would count as noise.

    Args:
        measurement_at: The observations of given rows, shape (n,), with operator and noise at given
            values.
        rows: The rows of the observations that may be used, in random order, shape (N,).
        parameters: The options that are sought.
        start: The present estimates, within the bounds.
        draw: Draws one posterior sample per observation, shape (n, *shape), with the same random
            numbers at each call.
        clean: Clean images for the first round, shape (K, *shape); None later.
    """
    if clean is not None and len(clean) > 1:
        prior = Gaussian.shrunk_to_diagonal(clean)
        found = calibrate_by_moments(prior, measurement_at, rows, parameters, start)
        if found is not None:
            return found
    return by_score(
        draw, lambda values: measurement_at(values, rows[:_SCORE_OBSERVATIONS]), parameters, start
    )


def calibrate_by_moments(
    prior: Gaussian,
    measurement_at: Callable[[Mapping[str, float], Tensor], Measurement],
    rows: Tensor,
    parameters: Parameters,
    start: Mapping[str, float],
) -> Calibrated | None:
    """Estimates the options by `by_moments`, from as many observations as can be afforded.

    None if A is not linear, the noise not Gaussian, or the matrices are too large. Arguments are
    those of `calibrate`; prior is the Gaussian with the moments of the signals.
    """
    few = measurement_at(start, rows[:_MOST_MOMENT_OBSERVATIONS])
    if not isinstance(few.A, LinearOperator) or "normal" not in few.noise.provides:
        return None
    affordable = int(_MULTIPLICATIONS // (math.prod(few.shape) * few.y[0].numel() ** 2))
    common = few.shares_operator_and_noise
    if affordable < (1 if common else _LEAST_MOMENT_OBSERVATIONS):
        return None
    used = rows if common else rows[: min(affordable, _MOST_MOMENT_OBSERVATIONS)]
    return by_moments(prior, lambda values: measurement_at(values, used), parameters, start)


def by_moments(
    prior: Gaussian,
    measurement_at: MeasurementAt,
    parameters: Parameters,
    start: Mapping[str, float],
    tol: float = 1e-4,
) -> Calibrated:
    """Maximises log N(y; A mean, A C A^T + S) over the options.

    The estimate depends on the prior through its first two moments alone. It is consistent if they
    are right, whatever the prior's distribution. Where all observations share operator and noise,
    the cost of one evaluation is m^3 + m d^2 + m^2 d for any number of observations.

    Args:
        prior: The Gaussian with mean and covariance of the prior, such as
            `Gaussian.shrunk_to_diagonal` of clean images.
        measurement_at: The observations, for linear A and Gaussian noise.
        parameters: The options that are sought.
        start: Where the search begins.
        tol: The step, in coordinates of `Parameters`, at which it ends.

    Raises:
        Unsupported: If A is not linear or the noise is not Gaussian.
        NumericalError: If the likelihood is not a number.
    """
    prior = prior.to("cpu", torch.float64)
    m = measurement_at(start).to("cpu", torch.float64)
    if not isinstance(m.A, LinearOperator) or "normal" not in m.noise.provides:
        raise Unsupported("a calibration by moments is for linear operators and Gaussian noise")
    y = m.y.flatten(1)
    scatter: Tensor | None = None
    if m.shares_operator_and_noise:
        # The mean of y and the scatter around it are then sufficient statistics.
        mean = y.mean(0, keepdim=True)
        y, scatter = mean, (y - mean).T @ (y - mean) / len(y)

    def log_likelihood(values: Mapping[str, float]) -> float:
        m = measurement_at(values).to("cpu", torch.float64)
        return _gaussian_log_likelihood(prior, m, y, scatter)

    return _maximised(log_likelihood, parameters, start, tol, "moments")


def _gaussian_log_likelihood(
    prior: Gaussian, m: Measurement, y: Tensor, scatter: Tensor | None
) -> float:
    """Returns the mean of log N(y; A mean, A C A^T + S), up to a constant.

    Args:
        prior: Mean and C.
        m: A and S. Its own y is not used.
        y: The observations, shape (n, k), n at most the length of m.
        scatter: The covariance of observations of which y is the mean, shape (k, k); None if there
            is none.
    """
    rows = torch.arange(len(y))
    size = max(1, _ENTRIES // (math.prod(prior.shape) * y.shape[1]))
    parts = []
    for first in range(0, len(y), size):
        piece = m[rows[first : first + size]]
        root = _observation_covariance_root(prior, piece)
        gap = y[first : first + size] - piece.A(
            prior.mean.expand(len(piece), *prior.shape)
        ).flatten(1)
        whitened = torch.linalg.solve_triangular(root, gap[:, :, None], upper=False)
        total = -0.5 * whitened.square().sum() - root.diagonal(dim1=1, dim2=2).log().sum()
        if scatter is not None:
            total = total - 0.5 * torch.cholesky_solve(scatter, root[0]).trace()
        parts.append(float(total))
    return math.fsum(parts) / len(y)


def _observation_covariance_root(prior: Gaussian, m: Measurement) -> Tensor:
    """Returns the Cholesky factors of A C A^T + S, shape (B, k, k), float64."""
    columns = torch.cat([torch.diag(prior.cov.diag.sqrt()), prior.cov.factor.T]).reshape(
        -1, *prior.shape
    )
    n, k = len(m), len(columns)
    pushed = m.A[torch.arange(n).repeat_interleave(k)](
        columns.repeat(n, *[1] * len(prior.shape))
    ).reshape(n, k, -1)
    var = m.noise.var().expand_as(m.y).flatten(1)
    root: Tensor = torch.linalg.cholesky(pushed.mT @ pushed + torch.diag_embed(var))
    return root


def by_draws(
    x: Tensor,
    measurement_at: MeasurementAt,
    parameters: Parameters,
    start: Mapping[str, float],
    tol: float = 1e-4,
) -> Calibrated:
    """Maximises the mean of log p(y | x, theta) over given draws: the M-step of EM for theta.

    For Gaussian noise, sigma^2 becomes the mean of (y - A x)^2 and a gain the regression of y on x.

    Args:
        x: One posterior draw per observation, shape (N, *shape).
        measurement_at: The N observations.
        parameters: The options that are sought.
        start: Where the search begins.
        tol: The step, in coordinates of `Parameters`, at which it ends.

    Raises:
        NumericalError: If the likelihood is not a number.
    """
    x = x.to("cpu", torch.float64)
    return _maximised(
        lambda values: float(measurement_at(values).to("cpu", torch.float64).log_prob(x).mean()),
        parameters,
        start,
        tol,
        "draws",
    )


def _maximised(
    f: Callable[[Mapping[str, float]], float],
    parameters: Parameters,
    start: Mapping[str, float],
    tol: float,
    how: str,
) -> Calibrated:
    """Maximises a likelihood over the options, within their bounds."""

    def value(u: Tensor) -> float:
        found = f(parameters.values(u))
        if math.isnan(found):
            raise NumericalError(
                f"calibrate: the likelihood at {_shown(parameters.values(u))} is not a number"
            )
        return found

    found = maximise(value, parameters.coordinates(start), *parameters.limits(), tol)
    path = [parameters.values(u) for u in found.path]
    return Calibrated(path[-1], how, found.converged, path, {})


def score(
    x: Tensor,
    measurement_at: MeasurementAt,
    parameters: Parameters,
    u: Tensor,
    step: float = 1e-3,
) -> Tensor:
    """Returns the gradient of log p(y | x, theta) with respect to the coordinates, shape (N, P).

    It is computed by central differences.

    Args:
        x: One draw per observation, shape (N, *shape).
        measurement_at: The N observations.
        parameters: The options that are sought.
        u: The coordinates, shape (P,).
        step: Half of the distance between the two points of a difference.
    """
    x = x.to("cpu", torch.float64)
    low, high = parameters.limits()
    columns = []
    for k in range(len(u)):
        e = torch.zeros_like(u)
        e[k] = step
        above, below = torch.minimum(u + e, high), torch.maximum(u - e, low)
        ends = [
            measurement_at(parameters.values(end)).to("cpu", torch.float64).log_prob(x)
            for end in (above, below)
        ]
        columns.append((ends[0] - ends[1]) / (above - below)[k])
    return torch.stack(columns, 1)


def by_score(
    draw: Callable[[Measurement], Tensor],
    measurement_at: MeasurementAt,
    parameters: Parameters,
    start: Mapping[str, float],
    draws: int = 2,
    evaluations: int = TRIALS,
    tol: float = 5e-3,
) -> Calibrated:
    """Finds the root of E[grad log p(y | x, theta) | y, theta], the gradient of the marginal
    likelihood under the present prior.

    Draws are made anew at each theta: steps are not shortened by missing information. The first
    slope is the covariance between the scores of two draws of one observation; this is the observed
    information if the prior is right. Far from the maximum it is too large, and the first step is
    the longer one of EM. Broyden's rule then updates the slope.

    Args:
        draw: Draws one posterior sample per observation, with the same random numbers at each call.
        measurement_at: The N observations. Each is repeated `draws` times.
        parameters: The options that are sought.
        start: Where the search begins.
        draws: Draws per observation, at least 2.
        evaluations: The largest number of thetas at which draws are made.
        tol: The step, in coordinates of `Parameters`, at which the search ends.

    Raises:
        NumericalError: If draws are not finite.
    """
    low, high = parameters.limits()
    u = parameters.coordinates(start)
    n = len(measurement_at(start))
    rows = torch.arange(n).repeat_interleave(draws)

    def repeated(values: Mapping[str, float]) -> Measurement:
        return measurement_at(values)[rows]

    path: list[dict[str, float]] = []
    slope = first = scatter = torch.eye(len(u), dtype=torch.float64)
    last, settled = None, False
    while len(path) < evaluations and not settled:
        path.append(here := parameters.values(u))
        x = _finite_draws(draw, repeated(here), here)
        scores = score(x, repeated, parameters, u).reshape(n, draws, -1)
        gradient = scores.mean((0, 1))
        free = free_coordinates(u, gradient, low, high)
        if last is None:
            slope = first = _information(scores)
            m_step = by_draws(x, repeated, parameters, here, tol=1e-3).values
            slope = _slope_of_longer_step(slope, gradient, free, parameters.coordinates(m_step) - u)
        else:
            slope = broyden_update(slope, u - last[0], gradient - last[1])
        centred = scores.mean(1) - gradient
        scatter = centred.T @ centred / n**2
        last = (u, gradient)
        u = (u + newton_step(slope, first, gradient, free)).clamp(low, high)
        settled = bool(((u - last[0]).abs() < tol).all())
    inverse = torch.linalg.pinv(slope)
    error = parameters.errors(u, inverse @ scatter @ inverse.T)
    return Calibrated(parameters.values(u), "score", settled, path, error)


def _finite_draws(
    draw: Callable[[Measurement], Tensor], m: Measurement, values: Mapping[str, float]
) -> Tensor:
    x = draw(m)
    if not bool(x.isfinite().all()):
        raise NumericalError(f"calibrate: draws at {_shown(values)} are not finite")
    return x


def _slope_of_longer_step(slope: Tensor, gradient: Tensor, free: Tensor, em_step: Tensor) -> Tensor:
    """Returns the slope whose step is that of EM if this is longer, else `slope`, shape (P, P)."""
    if float(em_step.norm()) > float(newton_step(slope, slope, gradient, free).norm()):
        return slope + torch.outer(gradient - slope @ em_step, em_step) / (em_step @ em_step)
    return slope


def _information(scores: Tensor) -> Tensor:
    """Returns the covariance between the scores of two draws of one observation, shape (P, P).

    It is made positive definite. scores: (N, K, P).
    """
    n, k, _ = scores.shape
    centred = scores - scores.mean((0, 1))
    sums, inner = centred.sum(1), torch.einsum("nkp,nkq->pq", centred, centred)
    between = (sums.T @ sums - inner) / (n * k * (k - 1))
    values, vectors = torch.linalg.eigh(between)
    # At least a hundredth of the information of complete data.
    least = torch.linalg.eigvalsh(inner / (n * k)).clamp(min=1e-12)[-1] / 100
    raised: Tensor = vectors @ torch.diag(values.clamp(min=float(least))) @ vectors.T
    return raised


def _shown(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} = {value:.4g}" for name, value in values.items())


def rebuilt(
    stored: Measurement, before: tuple[Operator, NoiseModel], after: tuple[Operator, NoiseModel]
) -> Measurement:
    """Returns stored observations with operator and noise at new values of their options.

    Tensors that the new values do not change are those of the store, such as a mask that was given
    with the observations.

    Args:
        stored: y, and the tensors of operator and noise.
        before: Operator and noise at the values of the store, drawn for as many observations.
        after: The same at the new values, drawn with the same random numbers.
    """
    old, new = (Measurement(stored.y, *drawn) for drawn in (before, after))
    kept, was = stored.tensors(), old.tensors()
    return new.with_tensors(
        {
            path: kept[path] if torch.equal(was[path], value) else value
            for path, value in new.tensors().items()
        }
    )
