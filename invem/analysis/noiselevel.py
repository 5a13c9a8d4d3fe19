"""The level of white noise, from the observations alone, before anything is learned.

y = A(x) + n with n independent of x and white. Each of three numbers is at least the noise level,
whatever the signals are, so the smallest of them is the estimate:

- the median absolute deviation of the finest diagonal differences of an image (Donoho & Johnstone
  1994, doi:10.1093/biomet/81.3.425). By Anderson's lemma nothing that is added to the noise makes
  the median of an absolute value smaller;
- the smallest standard deviation of an entry of y over all observations;
- the root of the smallest eigenvalue of the covariance of y.

The estimate is too high where signals are fine everywhere and in all observations. It is never too
low, up to the error of estimation, unless values were clipped.

A lower end takes signals to be smoother than noise. Differences over two pixels then have at least
twice the variance of those over one, in the signals but not in the noise: power that falls as one
over the squared frequency doubles it. Or signals vanish in a part of all entries or directions,
which then have one and the same variance, that of the noise.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from invem.linear import Mask
from invem.measurement import Measurement

__all__ = ["NoiseLevel", "noise_level"]

_NORMAL = 0.6745  # the median of the absolute value of a standard normal number
_LEAST = 256  # values that a median is taken over
_MOST_ENTRIES = 256  # of y, for an eigenvalue of its covariance
_FLOOR = 16  # variances, some of which are of noise alone
_SEEN = 64  # observations that show an entry, for its variance
_CLIPPED = 0.01  # the share of equal extreme values that counts as clipped
_NUMBERS = 2**22  # of the observations that are looked at


@dataclass(frozen=True, kw_only=True)
class NoiseLevel:
    """What observations say of the level of their noise.

    Attributes:
        ratio: The estimated level over the assumed one. An upper bound of the true ratio.
        least: A lower bound of the same, for signals that are smoother than noise; 0 where nothing
            is known.
        level: The estimated standard deviation, in units of the data, if it is one for all.
        assumed: The assumed standard deviation, the root of the mean variance.
        spread: The standard deviation of the observations.
        error: The relative standard error of the estimate.
        observations: How many were used.
        how: The quantity that gave the estimate, in words.
        plain: Whether A is the identity or a mask, so that signals have their own fineness in y.
        clipped: The share of entries at the lowest or the highest value, where they are many; 0
            otherwise. Clipped noise looks smaller than it was.
    """

    ratio: float
    least: float
    level: float
    assumed: float
    spread: float
    error: float
    observations: int
    how: str
    plain: bool
    clipped: float

    @property
    def impossible(self) -> bool:
        """Whether the assumed level is above what any signal allows."""
        if self.clipped:
            return self.ratio < 1 / 3
        return self.ratio * (1 + 4 * self.error) < 0.9

    @property
    def too_small(self) -> bool:
        """Whether there is more than one and a half times the assumed noise, or signals are as
        fine as noise."""
        return self.plain and self.least * (1 - 4 * self.error) > 1.5

    @property
    def bracket(self) -> tuple[float, float]:
        """Between what multiples of the assumed level the true one is taken to be.

        There is a lower end only if A is the identity or a mask: of other operators it is not known
        how fine A x may be.
        """
        high = math.inf if self.clipped else self.ratio * (1.05 + 4 * self.error)
        return (self.least * (0.9 - 4 * self.error) if self.plain else 0.0), high


def noise_level(m: Measurement) -> NoiseLevel | None:
    """Returns the level of white Gaussian noise that observations show.

    None where it cannot be said: other noise, or too few observations.

    Args:
        m: The observations, with the noise that is assumed. Differences in level between them, or
            between entries, are taken to be those of the assumed noise.
    """
    if "normal" not in m.noise.provides or not len(m):
        return None
    rows = torch.arange(min(len(m), max(_NUMBERS // max(m.y[0].numel(), 1), 1)))
    m = m[rows].to("cpu", torch.float64)
    var = m.noise.var().expand_as(m.y)
    seen = torch.ones_like(m.y) if m.A.seen is None else m.A.seen.expand_as(m.y)
    seen = seen != 0
    if not bool(seen.any()):
        return None
    silent = not bool((var > 0).all())
    u = m.y if silent else m.y / var.sqrt()
    assumed = 0.0 if silent else math.sqrt(float(var.mean()))
    bounds = [bound for bound in (_by_differences(u, seen), *_by_variances(u, seen)) if bound]
    if not bounds:
        return None
    ratio, error, how, _ = min(bounds)
    least = min(max(bound[3] for bound in bounds), ratio)
    values = m.y[seen]
    return NoiseLevel(
        ratio=math.inf if silent and ratio else ratio,
        least=math.inf if silent and least else least,
        level=ratio if silent else ratio * assumed,
        assumed=assumed,
        spread=float(values.std()),
        error=error,
        observations=len(m),
        how=how,
        plain=isinstance(m.A, Mask) or m.changes_nothing,
        clipped=_clipped(values),
    )


_Bound = tuple[float, float, str, float]  # level, relative error, how, and a lower level


def _by_differences(u: Tensor, seen: Tensor) -> _Bound | None:
    """Returns the level by the differences of neighbouring pixels, with its relative error."""
    if u.ndim != 4 or min(u.shape[-2:]) < 2:
        return None
    near, n = _spread(u, seen, 1)
    if n < _LEAST:
        return None
    far, m = _spread(u, seen, 2) if min(u.shape[-2:]) > 2 else (0.0, 0)
    least = math.sqrt(max(2 * near**2 - far**2, 0.0)) if m >= _LEAST else 0.0
    # Differences that overlap are correlated: a fourth of them counts.
    return near, 1.17 / math.sqrt(n / 4), "differences of neighbouring pixels", least


def _spread(u: Tensor, seen: Tensor, h: int) -> tuple[float, int]:
    """Returns the standard deviation of diagonal differences over h pixels, by their median
    absolute deviation, and their number."""
    d = (u[..., :-h, :-h] - u[..., :-h, h:] - u[..., h:, :-h] + u[..., h:, h:]) / 2
    whole = seen[..., :-h, :-h] & seen[..., :-h, h:] & seen[..., h:, :-h] & seen[..., h:, h:]
    d = d[whole]
    return (float(d.abs().median()) / _NORMAL if len(d) else 0.0), len(d)


def _by_variances(u: Tensor, seen: Tensor) -> list[_Bound]:
    """Returns the level by the variances of entries over observations, and of their
    combinations."""
    u, seen = u.flatten(1), seen.flatten(1)
    count = seen.sum(0)
    enough = count >= _SEEN
    if not bool(enough.any()):
        return []
    mean = (u * seen).sum(0) / count.clamp(min=1)
    var = ((u - mean).square() * seen).sum(0) / (count - 1).clamp(min=1)
    n, k = int(count[enough].min()), int(enough.sum())
    # The smallest of k estimates is too small, by about so many standard errors.
    low = 1 - math.sqrt(2 / n) * math.sqrt(2 * math.log(max(k, 2)))
    found: list[_Bound] = []
    if low > 0.2:
        level = math.sqrt(float(var[enough].min()) / low)
        least = level if _is_floor(var[enough], 1 / low) else 0.0
        found.append((level, 1 / math.sqrt(2 * n), "the least variance of an entry", least))
    k = u.shape[1]
    if k <= _MOST_ENTRIES and len(u) >= 4 * k and bool(seen.all()):
        values = torch.linalg.eigvalsh(torch.cov(u.T).reshape(k, k)).clamp(min=0)
        # The edge of the law of Marchenko and Pastur (1967), as if all eigenvalues were noise.
        edge = (1 - math.sqrt(k / len(u))) ** 2
        level = math.sqrt(float(values[0]) / edge)
        least = math.sqrt(float(values[0])) if _is_floor(values, 1 / edge) else 0.0
        how = "the least variance of a direction"
        found.append((level, 1 / math.sqrt(2 * len(u)), how, least))
    return found


def _is_floor(variances: Tensor, spread: float) -> bool:
    """Whether a tenth of variances are the same and far below the others: noise alone.

    spread: The ratio by which equal variances differ by chance.
    """
    ordered = variances.sort().values
    if len(ordered) < _FLOOR:
        return False
    tenth = float(ordered[len(ordered) // 10])
    return tenth < spread * float(ordered[0]) and tenth < 0.5 * float(variances.mean())


def _clipped(values: Tensor) -> float:
    """Returns the share of values that are the lowest or the highest, 0 if they are few."""
    low, high = values.min(), values.max()
    share = max(float((values == end).double().mean()) for end in (low, high))
    return share if share > _CLIPPED and bool(low < high) else 0.0
