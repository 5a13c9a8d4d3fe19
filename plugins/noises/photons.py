"""The variance of photon counts, estimated from the counts themselves."""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

__all__ = ["local_counts", "variance"]

_WINDOWS = (3, 5, 7)  # sides, in pixels
_SURE = 2.0  # standard errors above which counts scatter more than photons do
_ENOUGH = 20.0  # photons in a window, from which a mean is known to a fifth


def local_counts(counts: Tensor, seen: Tensor | None, read: Tensor | float = 0.0) -> Tensor:
    """Returns the expected number of photons of each entry, shape of counts, always positive.

    It is the mean of the other entries of a window. The count itself has no part in it: weights
    that follow a count pull towards its low values, and the pull of many entries adds up. Where the
    window scatters more than photons do, as at an edge, the count has a part, by the linear
    estimate of least squared error (Kuan et al. 1985, doi:10.1109/TPAMI.1985.4767641). The window
    has 3, 5 or 7 pixels a side, the least that has enough photons in an average place. One photon
    is added to it, which is the mean of the posterior of a rate that was flat before: no entry is
    known to be dark. What is not an image has its own counts alone, and that pull.

    On problems with a posterior that is known (benchmarks/poisson.py), the posterior mean under
    this variance is off, in posterior standard deviations, on average by 0.05, 0.07 and 0.22 for an
    image with a peak of 5, 20 and 100 photons, and by 0.28, 0.28 and 0.15 for a number by itself.
    Standard deviations are right to 4 %.

    Args:
        counts: Photons, shape (B, *measurement shape); negative where read-out noise made them so.
        seen: 1 where an entry depends on the signal and 0 elsewhere; None if all do. The others do
            not count in a window; what is returned for them has no meaning.
        read: The variance of the read-out noise, in squared photons, broadcastable to counts.
    """
    shown = torch.ones_like(counts) if seen is None else (seen != 0).to(counts).expand_as(counts)
    counts = torch.where(shown > 0, counts, 0)
    rows = (-1, *[1] * (counts.ndim - 1))
    total, number = counts.flatten(1).sum(1), shown.flatten(1).sum(1)
    overall = ((total.clamp(min=0) + 1) / number.clamp(min=1)).reshape(rows)
    own = counts.clamp(min=0) + 1
    if counts.ndim < 4:
        return torch.where(shown > 0, own, overall)
    found = torch.zeros_like(counts)
    for side in reversed(_WINDOWS):
        cells = _sums(shown, side) - shown
        some = cells.clamp(min=1)
        mean = (_sums(counts, side) - counts).clamp(min=0) / some + 1 / some
        squares = (_sums(counts.square(), side) - counts.square()) / some
        scatter = (squares - (mean - 1 / some).square()) * some / (some - 1).clamp(min=1)
        noise = mean + read
        # The scatter of k numbers that are alike differs by a share of sqrt(2/k).
        chance = 1 + _SURE * (2 / some).sqrt()
        signal = (scatter - noise * chance).clamp(min=0)
        near = mean + shown * signal / (signal + noise) * (own - mean)
        near = torch.where(cells > 0, near, overall)
        fits = (overall * side**2 >= _ENOUGH) | (side == _WINDOWS[-1])
        found = torch.where(fits, near, found)
    return found


def _sums(x: Tensor, side: int) -> Tensor:
    """Returns sums over windows of the last two axes, shape of x; outside of the image is zero."""
    flat = x.reshape(-1, 1, *x.shape[-2:])
    sums = avg_pool2d(flat, side, stride=1, padding=side // 2, divisor_override=1)
    return sums.reshape(x.shape)


def variance(y: Tensor, peak: Tensor, seen: Tensor | None, sigma: Tensor | float = 0.0) -> Tensor:
    """Returns the estimated variance of counts with read-out noise, shape of y.

    It is 4 k/peak^2 + sigma^2 = 2 (ybar + 1)/peak + sigma^2, for k = peak (ybar + 1)/2 expected
    photons, in squared units of the data.

    Args:
        y: Counts in units of the data, y = 2 k/peak - 1.
        peak: The photons of a value of 1, broadcastable to y.
        seen: As for `local_counts`.
        sigma: The standard deviation of the read-out noise, in units of the data.
    """
    read = (sigma * peak / 2) ** 2
    counts = local_counts(peak * (y + 1) / 2, seen, read)
    if seen is not None:
        counts = torch.where(seen != 0, counts, peak / 2)  # there A(x) = 0
    return 4 * (counts + read) / peak.square()
