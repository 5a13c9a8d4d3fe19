"""What is wrong with pixels: noise that is shared between them, dead and hot ones, few values."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = ["Structure", "bad_pixels", "bits_used", "structure"]

Array = np.ndarray[Any, np.dtype[Any]]

_NORMAL = 0.6745  # the median of the absolute value of a standard normal number
_PAGES = 8  # pages from which on a pixel that never changes is dead
_FAR = 6.0  # how far outside of its neighbours' values a hot pixel is, in their spread
_SHARED = 1.7  # rows that share noise differ by so many times the chance
_FINE = 1.35  # coarse over fine noise, from which on it is not white


@dataclass(frozen=True, kw_only=True)
class Structure:
    """How noise is shared between pixels. All numbers are 1 for white noise.

    Attributes:
        rows: The spread of the noise of whole rows, over that of white noise.
        columns: The same of columns.
        coarse: The noise of 2 x 2 blocks over that of pixels; above 1 too where texture is fine.
    """

    rows: float
    columns: float
    coarse: float

    @property
    def words(self) -> list[str]:
        """What is not white, one line each; empty for white noise."""
        found = []
        if self.rows > _SHARED:
            found.append(f"rows share noise: {self.rows:.1f} times that of white noise")
        if self.columns > _SHARED:
            found.append(f"columns share noise: {self.columns:.1f} times that of white noise")
        if self.coarse > _FINE:
            found.append(
                "noise is coarser than a pixel (JPEG, scaling, demosaicing), or texture is as fine"
                f" as noise: {self.coarse:.1f} times that of white noise in blocks of 2 x 2"
            )
        return found

    def as_dict(self) -> dict[str, Any]:
        """Returns plain data."""
        return asdict(self)


def structure(frames: Sequence[Array], *, still: bool = False) -> Structure:
    """Returns how the noise of frames is shared between their pixels.

    Args:
        frames: Stored values, each of shape (..., H, W).
        still: Whether frames 2 k and 2 k + 1 show one scene, so that their difference is noise.
    """
    given = [np.asarray(f, np.float64).reshape(-1, *f.shape[-2:]) for f in frames if f.size]
    if still:
        pairs = zip(given[::2], given[1::2], strict=False)
        given = [a - b for a, b in pairs if a.shape == b.shape]
    planes = [p for f in given for p in f if min(p.shape) >= 16 and np.isfinite(p).all()]
    found = [_of_plane(p, still) for p in planes]
    kept = np.array([row for row in found if row is not None])
    rows, columns, coarse = np.median(kept, axis=0) if len(kept) else (1.0, 1.0, 1.0)
    return Structure(rows=float(rows), columns=float(columns), coarse=float(coarse))


def _of_plane(u: Array, still: bool) -> tuple[float, float, float] | None:
    u = u + np.random.default_rng(0).uniform(-0.5, 0.5, u.shape) * _rounding(u)
    fine = _noise(u)
    if not fine:
        return None
    blocks = (u[:-1:2, :-1:2] + u[:-1:2, 1::2] + u[1::2, :-1:2] + u[1::2, 1::2]) / 2
    if still:
        coarse = float(np.median(np.abs(blocks - np.median(blocks)))) / _NORMAL / fine
    else:
        coarse = _smoothest(blocks, u) or 1.0
    return _shared(u, fine), _shared(u.T, fine), coarse


def _rounding(u: Array) -> float:
    """Returns 1 for whole numbers: a median of few values is a step else."""
    return float(np.array_equal(u[:4], np.round(u[:4])))


def _diagonal(u: Array) -> Array:
    found: Array = (u[:-1:2, :-1:2] - u[:-1:2, 1::2] - u[1::2, :-1:2] + u[1::2, 1::2]) / 2
    return found


def _noise(u: Array) -> float:
    return float(np.median(np.abs(_diagonal(u)))) / _NORMAL


def _smoothest(blocks: Array, u: Array) -> float:
    """Returns the noise of blocks over that of pixels where there is the least texture."""
    h, w = (n // 2 for n in blocks.shape)
    coarse = np.abs(_diagonal(blocks))[:h, :w]
    fine = np.abs(_diagonal(u))[: 2 * h, : 2 * w]
    a = blocks[: 2 * h, : 2 * w]
    detail = (a[::2, ::2] + a[1::2, ::2] - a[::2, 1::2] - a[1::2, 1::2]) ** 2
    detail = detail + (a[::2, ::2] - a[1::2, ::2] + a[::2, 1::2] - a[1::2, 1::2]) ** 2
    smooth = detail <= np.quantile(detail, 0.3)
    nearby = np.repeat(np.repeat(smooth, 2, 0), 2, 1)
    level = float(np.median(fine[nearby]))
    return float(np.median(coarse[smooth])) / level if level else 1.0


def _shared(u: Array, noise: float) -> float:
    """Returns the noise of rows: second differences, which scenes that are smooth do not change."""
    second = u[:-2] - 2 * u[1:-1] + u[2:]
    rows = np.median(second, axis=1)
    # A median of n normal numbers has the standard error 1.2533 / sqrt(n).
    chance = 1.2533 * noise * np.sqrt(6 / u.shape[1])
    return float(np.median(np.abs(rows)) / _NORMAL / chance)


def bad_pixels(pages: Sequence[Array]) -> tuple[int, int]:
    """Returns how many pixels are dead, and how many are far outside of their neighbours.

    A dead pixel has one value in all pages, where most others change. A hot one is far above all
    of its neighbours in every page, or far below.

    Args:
        pages: Stored values, each of shape (..., H, W). There are none among fewer than 8 of one
            shape.
    """
    if len(pages) < _PAGES or len({p.shape for p in pages}) > 1:
        return 0, 0
    stack = np.stack([np.asarray(p, np.float64).reshape(-1, *p.shape[-2:]) for p in pages])
    same = (stack == stack[:1]).all(0)
    ends = (stack[0] == stack.min()) | (stack[0] == stack.max())
    # Black and white areas do not change either: a pixel of theirs has neighbours like itself.
    alone = same & ~(ends & (_neighbours(same.astype(np.float64))[0] > 0))
    dead = int(alone.sum()) if same.mean() < 0.5 else 0
    far = np.ones(stack.shape[1:], bool)
    sign = np.zeros(stack.shape[1:])
    for page in stack:
        low, high = _neighbours(page)
        spread = np.maximum(high - low, 1e-12)
        out = np.where(page > high + _FAR / 3 * spread, 1, 0)
        out = np.where(page < low - _FAR / 3 * spread, -1, out)
        far &= (out != 0) & ((sign == 0) | (out == sign))
        sign = out.astype(np.float64)
    return dead, int((far & ~same).sum())


def _neighbours(pages: Array) -> tuple[Array, Array]:
    """Returns the lowest and the highest value of the 8 neighbours."""
    padded = np.pad(pages, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    h, w = pages.shape[-2:]
    around = [
        padded[:, i : i + h, j : j + w] for i in range(3) for j in range(3) if (i, j) != (1, 1)
    ]
    return np.min(around, axis=0), np.max(around, axis=0)


def bits_used(values: Array, white: float | None = None) -> tuple[int, int] | None:
    """Returns the bits that whole numbers have and the lowest ones that are always zero.

    Args:
        values: Stored values.
        white: The largest value that can occur, if it is known.
    """
    if not np.issubdtype(values.dtype, np.integer) or not values.size:
        return None
    highest = int(max(int(values.max()), white or 0))
    together = int(np.bitwise_or.reduce(values.astype(np.int64), axis=None))
    unused = (together & -together).bit_length() - 1 if together else 0
    return highest.bit_length(), unused
