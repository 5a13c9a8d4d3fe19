"""The noise of a camera, from its stored values alone, before anything is learned.

Photon noise and read-out noise have var = gain (mean - offset) + read^2 in stored units. The fit is
that of Foi, Trimeche, Katkovnik & Egiazarian 2008, "Practical Poissonian-Gaussian noise modeling
and fitting for single-image raw-data" (doi:10.1109/TIP.2008.2001399), with two departures:

- the values of one level are those 2 x 2 blocks whose neighbourhood has the least detail. The
  detail is that of the horizontal and the vertical differences; the noise is that of the diagonal
  ones. White noise has both independent of each other, so the choice does not change the estimate;
- where neighbouring pages show one scene, their difference is used: it has no texture.

Only the line is known, not where the light begins: gain * offset - read^2 is one number. Unless the
offset is given it is the value where the noise would vanish, with read = 0; or 0, if the noise at 0
is more than nothing. `Units` needs the line alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from invem.errors import DataError

__all__ = ["GAUSSIAN", "PHOTONS", "CameraNoise", "Kind", "photon_transfer"]

Array = np.ndarray[Any, np.dtype[Any]]
Kind = Literal["gaussian", "poisson-gaussian"]
GAUSSIAN: Kind
PHOTONS: Kind
GAUSSIAN, PHOTONS = get_args(Kind)

_NORMAL = 0.6745  # the median of the absolute value of a standard normal number
_MEDIAN = 1.36  # the relative standard error of a variance by its median, times the root of n
_LEVELS = 24  # levels of light
_STILL = 0.5  # the same where nothing moves
_LEAST = 64  # blocks of a level
_SMOOTH = 0.02, 0.3  # the share of blocks of a level that count as smooth
_ENOUGH = 600  # such blocks
_CLIPPED = 0.01  # the share of equal extreme values that counts as clipped
_SURE = 4.0  # standard errors by which a slope is one
_RISE = 1.15  # the ratio of variances, bright over dark, from which on it matters


@dataclass(frozen=True, kw_only=True)
class CameraNoise:
    """What stored values say of their noise.

    Attributes:
        kind: "gaussian" for noise of one level, or "poisson-gaussian".
        gain: Stored units per photon; 0 for noise of one level.
        gain_error: Its standard error.
        offset: The stored value without light; see above for where it comes from.
        read: The standard deviation of the read-out noise, in stored units.
        read_error: Its standard error; that of the offset is this part of the line alone.
        sigma: The standard deviation of all noise, in stored units: at the middle of the light, if
            it depends on it.
        sigma_error: Its standard error.
        dark: The standard deviation at the darkest level that was seen, in stored units.
        bright: The same at the brightest level.
        clipped: The share of values at the lowest or the highest value, where they are many.
        frames: How many frames were used.
        still: Whether neighbouring pages show one scene.
        how: The quantity that gave the estimate, in words.
    """

    kind: Kind
    gain: float
    gain_error: float
    offset: float
    read: float
    read_error: float
    sigma: float
    sigma_error: float
    dark: float
    bright: float
    clipped: float
    frames: int
    still: bool
    how: str

    def as_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        return asdict(self)


@dataclass(frozen=True)
class _Level:
    """Blocks of one brightness: their mean, the variance of the noise, and its standard error."""

    mean: float
    var: float
    error: float


@dataclass(frozen=True)
class _Line:
    """var = slope * mean + floor, with standard errors; `at` is where they are independent."""

    slope: float
    floor: float
    slope_error: float
    at: float
    var: float
    var_error: float


def photon_transfer(
    frames: Sequence[Array],
    *,
    pages: bool = False,
    offset: float | None = None,
    kind: Kind | None = None,
) -> CameraNoise:
    """Returns the noise of frames, in stored units.

    The estimate is too high where all of a frame is as fine as noise and nothing stands still. It
    is too low where noise was smoothed (JPEG, demosaicing): see `invem.analysis.pixels.structure`.

    Args:
        frames: Stored values, each of shape (..., H, W); shapes may differ.
        pages: Whether frames 2 k and 2 k + 1 follow each other in a stack.
        offset: The stored value without light, if it is known.
        kind: The kind of noise, if it is known; decided by the slope if left out.

    Raises:
        DataError: If there are too few pixels of different values.
    """
    given = [_planes(frame) for frame in frames]
    ends = _ends(given)
    step = _step(frames)
    spatial = _levels([_blocks(frame) for frame in given], ends, step)
    if not spatial:
        raise DataError(
            "the noise cannot be estimated: too few pixels that differ and are not clipped"
        )
    found, how, still = spatial, "differences of neighbouring pixels", False
    if pages:
        pairs = [(a, b) for a, b in zip(given[::2], given[1::2], strict=False) if _differ(a, b)]
        temporal = _levels(
            [_differences(a, b) for a, b in pairs], ends, step * math.sqrt(2), lambda _: _STILL
        )
        if temporal and _ratio(temporal, spatial) < 1.1 and _unstructured(pairs):
            found, how, still = temporal, "differences of neighbouring pages", True
    share = _clipped_share(given, ends)
    return _noise(found, offset, kind, share, len(frames), still, how)


def _planes(frame: Array) -> Array:
    """Returns stored values as float64, shape (planes, H, W) with even H and W; NaN if not
    finite."""
    values = np.asarray(frame)
    if np.iscomplexobj(values):
        values = np.stack([values.real, values.imag])
    values = values.astype(np.float64).reshape(-1, *values.shape[-2:])
    h, w = (n // 2 * 2 for n in values.shape[-2:])
    found = values[:, :h, :w]
    return np.where(np.isfinite(found), found, np.nan)


def _step(frames: Sequence[Array]) -> float:
    """Returns the distance of neighbouring values of a diagonal difference: 0 of real numbers.

    Values of 12 bits that are stored in 16 may all be multiples of 16.
    """
    if not all(np.issubdtype(np.asarray(frame).dtype, np.integer) for frame in frames):
        return 0.0
    found = 0
    for frame in frames:
        values = np.asarray(frame).astype(np.int64).ravel()[:65536]
        found = (
            math.gcd(found, int(np.gcd.reduce(np.abs(values - values[0])))) if len(values) else 0
        )
    return found / 2


def _ends(frames: Sequence[Array]) -> tuple[float, float]:
    """Returns the values at which the values are clipped; infinite ones where they are not."""
    low = min((float(np.nanmin(f)) for f in frames if np.isfinite(f).any()), default=0.0)
    high = max((float(np.nanmax(f)) for f in frames if np.isfinite(f).any()), default=0.0)
    size = max(sum(f.size for f in frames), 1)
    shares = [sum(int((f == end).sum()) for f in frames) / size for end in (low, high)]
    few = _CLIPPED / 100  # a bright spot may be small: fewer than count as many
    return (low if shares[0] > few else -math.inf, high if shares[1] > few else math.inf)


def _clipped_share(frames: Sequence[Array], ends: tuple[float, float]) -> float:
    size = max(sum(f.size for f in frames), 1)
    share = sum(int(((f <= ends[0]) | (f >= ends[1])).sum()) for f in frames) / size
    return share if share > _CLIPPED else 0.0


_Blocks = tuple[Array, Array, Array, Array]
"""Of 2 x 2 blocks: the mean nearby, the difference, the detail nearby, the lowest and the highest
value nearby, shape (2, N)."""


def _quarters(u: Array) -> tuple[Array, Array, Array, Array]:
    return u[:, ::2, ::2], u[:, ::2, 1::2], u[:, 1::2, ::2], u[:, 1::2, 1::2]


def _blocks(u: Array) -> _Blocks:
    """Returns blocks with the diagonal difference, whose variance is that of the noise."""
    a, b, c, d = _quarters(u)
    detail = ((a - b + c - d) ** 2 + (a + b - c - d) ** 2) / 8
    return _near(u, (a - b - c + d) / 2, detail)


def _differences(u: Array, v: Array) -> _Blocks:
    """Returns blocks with a difference of two pages, without a change of brightness."""
    d = (u - v) / math.sqrt(2)
    d = d - np.nanmedian(d)
    a, b, c, e = _quarters((u + v) / 2)
    detail = ((a - b + c - e) ** 2 + (a + b - c - e) ** 2) / 8
    return _near((u + v) / 2, _quarters(d)[0], detail)


def _near(u: Array, difference: Array, detail: Array) -> _Blocks:
    a, b, c, d = _quarters(u)
    mean = _mean3((a + b + c + d) / 4)
    extremes = np.stack(
        [
            np.minimum(np.minimum(a, b), np.minimum(c, d)),
            np.maximum(np.maximum(a, b), np.maximum(c, d)),
        ]
    )
    near = _mean3(detail) + _detail3((a + b + c + d) / 4)
    keep = np.isfinite(mean) & np.isfinite(difference) & np.isfinite(near)
    return mean[keep], difference[keep], near[keep], extremes[:, keep]


def _mean3(u: Array) -> Array:
    """Returns means over 3 x 3 neighbours; borders are repeated."""
    padded = np.pad(u, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
    found: Array = (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) / 9
    return found


def _detail3(u: Array) -> Array:
    """Returns the variance over 3 x 3 neighbours, times 4: that of noise is the noise's own."""
    found: Array = 4 * np.maximum(_mean3(u**2) - _mean3(u) ** 2, 0)
    return found


def _differ(a: Array, b: Array) -> bool:
    return a.shape == b.shape and not np.array_equal(a, b, equal_nan=True)


def _smooth(n: int) -> float:
    """Returns the share of n blocks that is looked at: the smoothest, but enough of them."""
    return min(max(_ENOUGH / n, _SMOOTH[0]), _SMOOTH[1])


def _levels(
    blocks: Sequence[_Blocks],
    ends: tuple[float, float],
    step: float,
    share: Callable[[int], float] = _smooth,
) -> list[_Level]:
    """Returns the levels of light with their noise, dark to bright."""
    if not blocks:
        return []
    mean, difference, detail, extremes = (
        np.concatenate([block[i] for block in blocks], axis=-1) for i in range(4)
    )
    if step:
        # Whole numbers as if they had not been rounded: a median of few values is a step else.
        jitter = np.random.default_rng(0).uniform(-0.5, 0.5, difference.shape)
        difference = difference + step * jitter
    clipped = (extremes[0] <= ends[0]) | (extremes[1] >= ends[1])
    found = []
    for rows in _by_light(mean):
        # Without all of a level: those of its blocks that are not clipped have less noise.
        if clipped[rows].mean() > _CLIPPED:
            continue
        smooth = rows[detail[rows] <= np.quantile(detail[rows], share(len(rows)))]
        if len(smooth) < _LEAST:
            continue
        # The square of the step that was added, and nothing below the error of rounding.
        var = (float(np.median(np.abs(difference[smooth]))) / _NORMAL) ** 2 - step**2 / 12
        if var > 0:
            error = var * 2 * 1.17 / math.sqrt(len(smooth))
            found.append(_Level(float(mean[smooth].mean()), var, error))
    return found


def _by_light(mean: Array) -> list[Array]:
    """Returns the places of blocks by levels of light, of about one size and not too wide."""
    if len(mean) < _LEAST:
        return []
    low, high = np.quantile(mean, [0.002, 0.998])
    even = np.linspace(low, high, _LEVELS + 1)
    equal = np.quantile(mean, np.linspace(0.002, 0.998, _LEVELS + 1))
    edges = np.unique((even + equal) / 2)
    if len(edges) < 2:
        return [np.arange(len(mean))]
    at = np.digitize(mean, edges)
    return [rows for k in range(1, len(edges)) if len(rows := np.flatnonzero(at == k)) >= _LEAST]


def _ratio(temporal: Sequence[_Level], spatial: Sequence[_Level]) -> float:
    """Returns the variance of differences of pages over that of differences of pixels."""
    x = [level.mean for level in spatial]
    y = [level.var for level in spatial]
    return float(np.median([level.var / np.interp(level.mean, x, y) for level in temporal]))


def _unstructured(pairs: Sequence[tuple[Array, Array]]) -> bool:
    """Whether differences of pages are as fine as noise, so that nothing moved between them."""
    found = []
    for u, v in pairs:
        d = u - v
        d = d - np.nanmedian(d)
        a, b, c, e = _quarters(d)
        fine = float(np.nanmedian(np.abs(a - b - c + e))) / 2
        coarse = float(np.nanmedian(np.abs(a + b + c + e))) / 2
        found.append(coarse < 1.15 * fine)
    return bool(np.mean(found) > 0.5)


def _line(levels: Sequence[_Level]) -> _Line:
    """Fits a line by weighted least squares; levels far from it count less (Huber's weights)."""
    x, y, e = (np.array([getattr(v, k) for v in levels]) for k in ("mean", "var", "error"))
    weights = np.ones_like(y)
    for _ in range(30):
        w = weights / e**2
        at = float((w * x).sum() / w.sum())
        level = float((w * y).sum() / w.sum())
        wide = float((w * (x - at) ** 2).sum())
        slope = float((w * (x - at) * y).sum()) / wide if wide else 0.0
        residual = (y - level - slope * (x - at)) / e
        # The relative error of a level is that of its own, smoothed, variance.
        smooth = np.maximum(level + slope * (x - at), 0.05 * level)
        e = smooth * np.array([v.error / v.var for v in levels])
        scale = max(float(np.median(np.abs(residual))) / _NORMAL, 1.0)
        weights = np.minimum(1, 1.5 * scale / np.maximum(np.abs(residual), 1e-12))
    spread = max(math.sqrt(float((weights * residual**2).sum() / max(len(x) - 2, 1))), 1.0)
    slope_error = spread / math.sqrt(wide) if wide else math.inf
    return _Line(
        slope, level - slope * at, slope_error, at, level, spread / math.sqrt(float(w.sum()))
    )


def _noise(
    levels: Sequence[_Level],
    offset: float | None,
    kind: Kind | None,
    clipped: float,
    frames: int,
    still: bool,
    how: str,
) -> CameraNoise:
    line = _line(levels)
    dark, bright = (line.floor + line.slope * levels[k].mean for k in (0, -1))
    if kind is None:
        sure = len(levels) > 3 and line.slope > _SURE * line.slope_error
        rises = bright > _RISE * max(dark, 0.0)
        kind = "poisson-gaussian" if sure and rises else "gaussian"
    if kind == "poisson-gaussian" and line.slope <= 0:
        raise DataError(
            "the noise does not rise with the light: it is no photon noise; use kind gaussian"
        )
    gain = line.slope if kind == "poisson-gaussian" else 0.0
    if not gain:
        dark = bright = line.var
    # The middle of the light, where the line is known best.
    sigma = math.sqrt(line.var)
    start, read = _start(line, offset) if gain else (offset or 0.0, sigma)
    error = math.hypot(line.var_error, line.slope_error * (start - line.at) * bool(gain))
    return CameraNoise(
        kind=kind,
        gain=gain,
        gain_error=line.slope_error,
        offset=start,
        read=read,
        # Of a value near 0 the variance is known, not the root: it is not above this.
        read_error=error / (2 * read) if read**2 > error else math.sqrt(error),
        sigma=sigma,
        sigma_error=line.var_error / (2 * sigma),
        dark=math.sqrt(max(dark, 0.0)),
        bright=math.sqrt(max(bright, 0.0)),
        clipped=clipped,
        frames=frames,
        still=still,
        how=how,
    )


def _start(line: _Line, offset: float | None) -> tuple[float, float]:
    """Returns the offset and the read-out noise of a line that rises."""
    if offset is None and line.floor < 0:
        return -line.floor / line.slope, 0.0
    offset = offset or 0.0
    return offset, math.sqrt(max(line.floor + line.slope * offset, 0.0))
