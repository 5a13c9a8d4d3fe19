"""The variance of photon counts, estimated from the counts themselves."""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

__all__ = ["local_counts", "variance"]

_WINDOWS = (3, 5, 7)  # sides, in pixels
_ENOUGH = 20.0  # photons in a window, from which a mean is known to a fifth


def local_counts(counts: Tensor, seen: Tensor | None) -> Tensor:
    """Returns the expected number of photons of each entry, shape of counts, always positive.

    It is the mean over the least window around the entry that an observation has enough photons
    for, of 3, 5 or 7 pixels a side. One photon is added to a window: the mean of the posterior of a
    rate that was flat before. Anything that is not an image is its own window. An entry that the
    signal does not affect does not count, and has the mean of the window around it, or of all.

    Args:
        counts: Photons, shape (B, *measurement shape); negative where read-out noise made them so.
        seen: 1 where an entry depends on the signal and 0 elsewhere; None if all do.
    """
    shown = torch.ones_like(counts) if seen is None else (seen != 0).to(counts).expand_as(counts)
    counts = torch.where(shown > 0, counts, 0)
    rows = (-1, *[1] * (counts.ndim - 1))
    total, number = counts.flatten(1).sum(1), shown.flatten(1).sum(1)
    overall = ((total.clamp(min=0) + 1) / number.clamp(min=1)).reshape(rows)
    if counts.ndim < 4:
        return torch.where(shown > 0, counts.clamp(min=0) + 1, overall)
    found = torch.zeros_like(counts)
    for side in reversed(_WINDOWS):
        sums, cells = _sums(counts, side), _sums(shown, side)
        mean = (sums.clamp(min=0) + 1) / cells.clamp(min=1)
        mean = torch.where(cells > 0, mean, overall)
        fits = (overall * side**2 >= _ENOUGH) | (side == _WINDOWS[-1])
        found = torch.where(fits, mean, found)
    return found


def _sums(x: Tensor, side: int) -> Tensor:
    """Returns sums over windows of the last two axes, shape of x; outside of the image is zero."""
    flat = x.reshape(-1, 1, *x.shape[-2:])
    sums = avg_pool2d(flat, side, stride=1, padding=side // 2, divisor_override=1)
    return sums.reshape(x.shape)


def variance(y: Tensor, peak: Tensor, seen: Tensor | None) -> Tensor:
    """Returns the estimated variance of counts in units of the data, shape of y.

    It is 4 k/peak^2 = 2 (ybar + 1)/peak for k = peak (ybar + 1)/2 expected photons.

    Args:
        y: Counts in units of the data, y = 2 k/peak - 1.
        peak: The photons of a value of 1, broadcastable to y.
        seen: As for `local_counts`.
    """
    return 4 * local_counts(peak * (y + 1) / 2, seen) / peak.square()
