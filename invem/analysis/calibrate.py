"""Options of operator and noise that are only roughly known, found by maximum likelihood while the
prior is learned: blind EM.

The marginal likelihood p(y | theta) = E_x p(y | x, theta) of the observations is maximised over the
options theta. Three ways:

- `by_moments`: in closed form under the Gaussian with the mean and the covariance of a prior. For
  linear A and Gaussian noise.
- `by_score`: by Fisher's identity, grad log p(y | theta) = E[grad log p(y | x, theta) | y, theta],
  whose root is sought with draws that are made anew, with the same random numbers, at every theta
  that is tried. For any prior, operator and noise that a sampler can do.
- `by_draws`: the largest mean of log p(y | x, theta) at given draws, which is the M-step of EM. It
  needs no more draws, and its steps are short by the share of missing information: at low noise,
  draws that were made with a wrong blur ask for that blur again.

What none of them can know: a prior that was learned from y alone with a wrong blur or gain explains
y with it. Clean images, or a prior from elsewhere, tell the two apart.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from invem.errors import DataError, NumericalError, RecipeError, Unsupported
from invem.gaussian import Gaussian
from invem.linalg import DPLR
from invem.measurement import Measurement
from invem.noise import NoiseModel
from invem.operator import LinearOperator, Operator

__all__ = [
    "At",
    "Calibrated",
    "Parameters",
    "by_draws",
    "by_moments",
    "by_score",
    "calibrate",
    "changed",
    "number",
    "rebuilt",
    "score",
    "shrunken",
]

At = Callable[[Mapping[str, float]], Measurement]
"""The observations, with operator and noise at the given values; y and what was drawn for each
observation are always the same."""

_FAR = 0.5  # the longest step, in units of log theta
_FEW = 128  # observations for the score, of which draws are made
_LEAST, _MANY = 16, 512  # observations for the moments, where operator or noise differ between them
_WORK = 3e10  # multiplications that one evaluation of the moments may cost
_ENTRIES = 2**22  # of the matrices that are made at once


@dataclass(frozen=True)
class Parameters:
    """What is sought, and between which bounds.

    The search is in log theta where the lower bound is positive, and in theta over the width of the
    bounds where it is not.

    Attributes:
        bounds: The lowest and the highest value, by name.
    """

    bounds: Mapping[str, tuple[float, float]]

    def __post_init__(self) -> None:
        if not self.bounds:
            raise RecipeError("calibrate: there is nothing to calibrate")
        for name, (low, high) in self.bounds.items():
            if not low < high:
                raise RecipeError(
                    f"calibrate: {name} is between two numbers in order, got {low:g} and {high:g}"
                )

    def limits(self) -> tuple[Tensor, Tensor]:
        """Returns the lowest and the highest coordinates, each of shape (P,), float64."""
        ends = [
            (math.log(a), math.log(b)) if a > 0 else (0.0, 1.0) for a, b in self.bounds.values()
        ]
        low, high = torch.tensor(ends, dtype=torch.float64).unbind(1)
        return low, high

    def inwards(self, values: Mapping[str, float]) -> Tensor:
        """Returns the coordinates of values, shape (P,).

        Raises:
            RecipeError: If one is outside its bounds.
        """
        found = []
        for name, (low, high) in self.bounds.items():
            if not low <= values[name] <= high:
                raise RecipeError(
                    f"calibrate: {name} = {values[name]:g} is not between {low:g} and {high:g}"
                )
            found.append(math.log(values[name]) if low > 0 else (values[name] - low) / (high - low))
        return torch.tensor(found, dtype=torch.float64)

    def values(self, u: Tensor) -> dict[str, float]:
        """Returns the values at coordinates u, shape (P,)."""
        pairs = zip(self.bounds.items(), u.tolist(), strict=True)
        found = {
            name: math.exp(c) if low > 0 else low + c * (high - low)
            for (name, (low, high)), c in pairs
        }
        return {
            name: min(max(value, self.bounds[name][0]), self.bounds[name][1])
            for name, value in found.items()
        }

    def errors(self, u: Tensor, covariance: Tensor) -> dict[str, float]:
        """Returns the standard errors of the values, from the covariance of the coordinates, shape
        (P, P)."""
        slope = [
            v if low > 0 else high - low
            for (low, high), v in zip(self.bounds.values(), self.values(u).values(), strict=True)
        ]
        spread = covariance.diagonal().clamp(min=0).sqrt() * torch.tensor(
            slope, dtype=torch.float64
        )
        return dict(zip(self.bounds, spread.tolist(), strict=True))


@dataclass(frozen=True)
class Calibrated:
    """What was found.

    Attributes:
        values: By name.
        how: "moments", "draws" or "score".
        settled: Whether the search ended by itself; it goes on in the next round otherwise.
        path: The values that were tried, in order.
        error: Standard errors of the values by name, from the scatter of observations and draws,
            where the prior is right; empty where they were not estimated.
    """

    values: dict[str, float]
    how: str
    settled: bool
    path: list[dict[str, float]]
    error: dict[str, float]


def calibrate(
    at: Callable[[Mapping[str, float], Tensor], Measurement],
    rows: Tensor,
    parameters: Parameters,
    start: Mapping[str, float],
    draw: Callable[[Measurement], Tensor],
    clean: Tensor | None = None,
) -> Calibrated:
    """Finds the options for one round of a run.

    At first, with clean images, by their moments, if A is linear, the noise Gaussian and the
    matrices not too large: a network that was trained on few images is so narrow that it takes what
    it does not know for noise. Then by the score, under the prior of the round.

    Args:
        at: The observations of the given rows, shape (n,), with operator and noise at the given
            values.
        rows: The rows of the observations that may be used, in random order, shape (N,).
        parameters: What is sought.
        start: What is believed so far, within the bounds.
        draw: One posterior draw for each observation of a measurement, with the same random numbers
            whenever it is called.
        clean: The clean images that the recipe grants, for the first round; None later.
    """
    few = at(start, rows[:_MANY])
    closed = isinstance(few.A, LinearOperator) and "var" in few.noise.provides
    if clean is not None and len(clean) > 1 and closed:
        systems = int(_WORK // (math.prod(few.shape) * few.y[0].numel() ** 2))
        alike = _alike(few)
        if systems >= (1 if alike else _LEAST):
            used = rows if alike else rows[: min(systems, _MANY)]
            return by_moments(shrunken(clean), lambda values: at(values, used), parameters, start)
    return by_score(draw, lambda values: at(values, rows[:_FEW]), parameters, start)


def shrunken(x: Tensor) -> Gaussian:
    """Returns the Gaussian with the mean of signals and their covariance shrunken towards its
    diagonal.

    (1 - a) S + a diag(S) with a = sum var(s_ij) / sum s_ij^2 over i != j (Schäfer & Strimmer 2005,
    doi:10.2202/1544-6115.1175, target D). The covariance S of few signals is singular, so that what
    it leaves out of y would count as noise: with that of 50 digits a noise of 0.050 is taken for
    0.053.

    Args:
        x: Signals, shape (N, *shape), N >= 2.

    Raises:
        DataError: If there are fewer than two.
    """
    n = len(x)
    if n < 2:
        raise DataError(f"a covariance needs at least 2 signals, got {n}")
    flat = x.flatten(1).double()
    mean = flat.mean(0)
    centred = flat - mean
    gram, squares = centred @ centred.T, centred.square()
    variance = squares.mean(0)
    # Sums over i != j of s_ij^2 and of the mean over signals of (x_i x_j)^2, without the d x d
    # matrices.
    whole = gram.square().sum() / n**2 - variance.square().sum()
    fourth = (gram.diagonal().square().sum() - squares.square().sum()) / n
    share = float(((fourth - whole) / (n - 1) / whole.clamp(min=1e-30)).clamp(0, 1))
    scale = n / (n - 1)
    diag = (share * scale * variance).clamp(min=1e-6)
    factor = (
        (centred.T * ((1 - share) / (n - 1)) ** 0.5)
        if share < 1
        else centred.new_zeros(centred.shape[1], 0)
    )
    return Gaussian(
        mean.reshape(x.shape[1:]).to(x.dtype), DPLR(diag.to(x.dtype), factor.to(x.dtype))
    )


def by_moments(
    prior: Gaussian, at: At, parameters: Parameters, start: Mapping[str, float], tol: float = 1e-4
) -> Calibrated:
    """Maximises log N(y; A mean, A C A^T + S) over the options, exactly.

    The estimate needs the first two moments of the prior alone, whatever its shape: it is
    consistent where they are right. Where operator and noise are the same for all observations it
    costs the same for any number of them, m^3 + m d^2 + m^2 d an evaluation.

    Args:
        prior: The Gaussian with the moments of the prior, such as `shrunken` of clean images.
        at: The observations, for linear A and Gaussian noise.
        parameters: What is sought.
        start: Where the search begins.
        tol: The step, in units of log theta, at which it ends.

    Raises:
        Unsupported: If A is not linear or the noise is not Gaussian.
    """
    prior = prior.to("cpu", torch.float64)
    m = at(start).to("cpu", torch.float64)
    if not isinstance(m.A, LinearOperator) or "var" not in m.noise.provides:
        raise Unsupported("a calibration by moments is for linear operators and Gaussian noise")
    flat = m.y.flatten(1)
    alike = _alike(m)
    # Where all are alike, one observation stands for all: their mean, and their covariance in place
    # of what its residual has alone.
    y = flat.mean(0, keepdim=True) if alike else flat
    S = (flat - y).T @ (flat - y) / len(flat) if alike else None

    def likelihood(values: Mapping[str, float]) -> float:
        m = at(values).to("cpu", torch.float64)
        rows = torch.arange(len(y))
        size = max(1, _ENTRIES // (math.prod(prior.shape) * y.shape[1]))
        return math.fsum(
            part(m[rows[k : k + size]], y[k : k + size]) for k in range(0, len(y), size)
        ) / len(y)

    def part(m: Measurement, y: Tensor) -> float:
        root = _root(prior, m)
        e = torch.linalg.solve_triangular(
            root,
            (y - m.A(prior.mean.expand(len(m), *prior.shape)).flatten(1))[:, :, None],
            upper=False,
        )
        total = -0.5 * e.square().sum() - root.diagonal(dim1=1, dim2=2).log().sum()
        return float(total if S is None else total - 0.5 * torch.cholesky_solve(S, root[0]).trace())

    return _climb(likelihood, parameters, start, tol, "moments")


def by_draws(
    x: Tensor, at: At, parameters: Parameters, start: Mapping[str, float], tol: float = 1e-4
) -> Calibrated:
    """Maximises the mean of log p(y | x, theta) at given draws: the M-step of EM for theta.

    For Gaussian noise sigma^2 becomes the mean of (y - A x)^2, and a gain the regression of y on x.

    Args:
        x: A posterior draw for each observation, shape (N, *shape).
        at: The N observations.
        parameters: What is sought.
        start: Where the search begins.
        tol: The step, in units of log theta, at which it ends.
    """
    x = x.to("cpu", torch.float64)
    return _climb(
        lambda values: float(at(values).to("cpu", torch.float64).log_prob(x).mean()),
        parameters,
        start,
        tol,
        "draws",
    )


def score(x: Tensor, at: At, parameters: Parameters, u: Tensor, step: float = 1e-3) -> Tensor:
    """Returns the gradient of log p(y | x, theta) with respect to the coordinates, by central
    differences, shape (N, P).

    Args:
        x: A draw for each observation, shape (N, *shape).
        at: The N observations.
        parameters: What is sought.
        u: The coordinates, shape (P,).
        step: The half of a difference.
    """
    x = x.to("cpu", torch.float64)
    low, high = parameters.limits()
    columns = []
    for k in range(len(u)):
        e = torch.zeros_like(u)
        e[k] = step
        above, below = torch.minimum(u + e, high), torch.maximum(u - e, low)
        ends = [
            at(parameters.values(end)).to("cpu", torch.float64).log_prob(x)
            for end in (above, below)
        ]
        columns.append((ends[0] - ends[1]) / (above - below)[k])
    return torch.stack(columns, 1)


def by_score(
    draw: Callable[[Measurement], Tensor],
    at: At,
    parameters: Parameters,
    start: Mapping[str, float],
    draws: int = 2,
    evaluations: int = 8,
    tol: float = 5e-3,
) -> Calibrated:
    """Finds the root of E[grad log p(y | x, theta) | y, theta], the gradient of the marginal
    likelihood, under the present prior.

    The draws are made anew at each theta, so that no step is shortened by the share of missing
    information. The first slope is the covariance of the scores of two draws of one observation,
    which is the observed information where the prior is right; the first step is that of EM where
    it is longer, as it is where theta is far off and the scores scatter for that reason. Broyden's
    rule corrects the slope from then on.

    Args:
        draw: One posterior draw for each observation of a measurement, with the same random numbers
            whenever it is called.
        at: The N observations, of which each is repeated for its draws.
        parameters: What is sought.
        start: Where the search begins.
        draws: Draws of each observation, at least 2.
        evaluations: The largest number of thetas at which draws are made.
        tol: The step, in units of log theta, at which the search ends.

    Raises:
        NumericalError: If draws are not finite.
    """
    low, high = parameters.limits()
    u = parameters.inwards(start)
    n = len(at(start))
    rows = torch.arange(n).repeat_interleave(draws)

    def repeated(values: Mapping[str, float]) -> Measurement:
        return at(values)[rows]

    path: list[dict[str, float]] = []
    slope = first = scatter = torch.eye(len(u), dtype=torch.float64)
    last: tuple[Tensor, Tensor] | None = None
    settled = False
    for _ in range(evaluations):
        here = parameters.values(u)
        path.append(here)
        x = draw(repeated(here))
        if not bool(x.isfinite().all()):
            raise NumericalError(f"calibrate: draws at {_shown(here)} are not finite")
        each = score(x, repeated, parameters, u).reshape(n, draws, -1)
        g = each.mean((0, 1))
        free = ~(((u <= low) & (g < 0)) | ((u >= high) & (g > 0)))
        if last is None:
            slope = first = _information(each)
            em = parameters.inwards(by_draws(x, repeated, parameters, here, tol=1e-3).values) - u
            if float(em.norm()) > float(_step(slope, first, g, free).norm()):
                slope = slope + torch.outer(g - slope @ em, em) / (em @ em)
        else:
            du, dg = u - last[0], g - last[1]
            slope = slope - torch.outer(dg + slope @ du, du) / (du @ du)
        scatter = (each.mean(1) - g).T @ (each.mean(1) - g) / n**2
        last = (u, g)
        u = (u + _step(slope, first, g, free)).clamp(low, high)
        settled = bool(((u - last[0]).abs() < tol).all())
        if settled:
            break
    inverse = torch.linalg.pinv(slope)
    return Calibrated(
        parameters.values(u),
        "score",
        settled,
        path,
        parameters.errors(u, inverse @ scatter @ inverse.T),
    )


def _information(each: Tensor) -> Tensor:
    """The covariance between the scores of two draws of one observation, made positive definite.
    each: (N, K, P)."""
    n, k, _ = each.shape
    centred = each - each.mean((0, 1))
    sums, inner = centred.sum(1), torch.einsum("nkp,nkq->pq", centred, centred)
    between = (sums.T @ sums - inner) / (n * k * (k - 1))
    values, vectors = torch.linalg.eigh(between)
    # At least a hundredth of the information of complete data.
    least = torch.linalg.eigvalsh(inner / (n * k)).clamp(min=1e-12)[-1] / 100
    raised: Tensor = vectors @ torch.diag(values.clamp(min=float(least))) @ vectors.T
    return raised


def _step(slope: Tensor, first: Tensor, g: Tensor, free: Tensor) -> Tensor:
    """A step of Newton's rule on the free coordinates that leads uphill and not far."""
    step = torch.zeros_like(g)
    if not bool(free.any()):
        return step
    for matrix in (slope, first):
        inner = matrix[free][:, free]
        step[free] = torch.linalg.lstsq(inner, g[free, None]).solution[:, 0]
        if bool(step @ g > 0) and bool(step.isfinite().all()):
            break
    return step * min(1.0, _FAR / max(float(step.abs().max()), 1e-30))


def _climb(
    f: Callable[[Mapping[str, float]], float],
    parameters: Parameters,
    start: Mapping[str, float],
    tol: float,
    how: str,
) -> Calibrated:
    """Maximises a smooth function within bounds: Newton steps by differences, along |curvature|,
    halved until they rise."""
    low, high = parameters.limits()
    u, p = parameters.inwards(start), len(parameters.bounds)
    path, h = [parameters.values(u)], 0.01

    def value(u: Tensor) -> float:
        found = f(parameters.values(u))
        if math.isnan(found):
            raise NumericalError(
                f"calibrate: the likelihood at {_shown(parameters.values(u))} is not a number"
            )
        return found

    for _ in range(60):
        # The stencil is moved inwards where it would leave the bounds.
        centre = u.clamp(low + h, high - h)
        here = value(centre)
        axes = torch.eye(p, dtype=torch.float64) * h
        up, down = [value(centre + e) for e in axes], [value(centre - e) for e in axes]
        g = torch.tensor(
            [(a - b) / (2 * h) for a, b in zip(up, down, strict=True)], dtype=torch.float64
        )
        H = torch.diag(
            torch.tensor(
                [(a - 2 * here + b) / h**2 for a, b in zip(up, down, strict=True)],
                dtype=torch.float64,
            )
        )
        for i in range(p):
            for j in range(i):
                corner = value(centre + axes[i] + axes[j])
                H[i, j] = H[j, i] = (corner - up[i] - up[j] + here) / h**2
        g = g + H @ (u - centre)
        free = ~(((u <= low) & (g < 0)) | ((u >= high) & (g > 0)))
        step = torch.zeros_like(u)
        if bool(free.any()):
            values, vectors = torch.linalg.eigh(H[free][:, free])
            step[free] = vectors @ ((vectors.T @ g[free]) / values.abs().clamp(min=1e-9))
        step = step * min(1.0, _FAR / max(float(step.abs().max()), 1e-30))
        before, new = value(u), (u + step).clamp(low, high)
        while value(new) < before and float((new - u).abs().max()) > tol:
            new = u + (new - u) / 2
        moved, u = float((new - u).abs().max()), new
        path.append(parameters.values(u))
        if moved < tol:
            return Calibrated(parameters.values(u), how, True, path, {})
    return Calibrated(parameters.values(u), how, False, path, {})


def _alike(m: Measurement) -> bool:
    """Whether operator and noise are the same for all observations."""
    common = m.shared_paths() | {"y"}
    return all(
        path in common or torch.equal(value, value[:1].expand_as(value))
        for path, value in m.tensors().items()
    )


def _root(prior: Gaussian, m: Measurement) -> Tensor:
    """The Cholesky factors of A C A^T + S, shape (B, m, m), float64."""
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


def _shown(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} = {value:.4g}" for name, value in values.items())


def rebuilt(
    stored: Measurement, before: tuple[Operator, NoiseModel], after: tuple[Operator, NoiseModel]
) -> Measurement:
    """Returns stored observations with operator and noise at new values.

    What the values do not change is taken from the store, such as a mask that came with the
    observations.

    Args:
        stored: y, and the tensors of operator and noise.
        before: Operator and noise at the values that the store was made with, drawn for as many
            observations.
        after: The same at the new values, drawn with the same random numbers.
    """
    old, new = (Measurement(stored.y, *law) for law in (before, after))
    kept, was = stored.tensors(), old.tensors()
    return new.with_tensors(
        {
            path: kept[path] if torch.equal(was[path], value) else value
            for path, value in new.tensors().items()
        }
    )


def changed(options: Mapping[str, Any], keys: Sequence[str], value: float) -> dict[str, Any]:
    """Returns the options of a law with one of them changed.

    Args:
        options: The options of a component by name; an operator within a list is a partial of its
            law.
        keys: The way to the number: ("std",), or ("of", "1", "gain") for the gain of the second of
            a chain.
        value: The new number.

    Raises:
        RecipeError: If the way leads to nothing, or not to a number.
    """
    name, rest = keys[0], list(keys[1:])
    if name not in options:
        raise RecipeError(f"there is no option '{name}' (known: {', '.join(options)})")
    return {**options, name: _within(options[name], rest, value, name)}


def number(options: Mapping[str, Any], keys: Sequence[str]) -> float:
    """Returns one of the options of a law; the arguments and the errors are those of `changed`."""
    changed(options, keys, 0.0)
    found: Any = options
    for key in keys:
        found = found.keywords if isinstance(found, partial) else found
        found = found[int(key)] if isinstance(found, list) else found[key]
    return float(found)


def _within(old: Any, keys: Sequence[str], value: float, name: str) -> Any:
    if not keys:
        if isinstance(old, bool) or not isinstance(old, int | float):
            raise RecipeError(f"'{name}' is not a number")
        return value
    if isinstance(old, partial):
        return partial(old.func, *old.args, **changed(old.keywords, keys, value))
    if isinstance(old, list) and keys[0].isdecimal() and int(keys[0]) < len(old):
        k = int(keys[0])
        return [*old[:k], _within(old[k], keys[1:], value, f"{name}.{k}"), *old[k + 1 :]]
    raise RecipeError(f"'{name}' has no part '{keys[0]}'")
