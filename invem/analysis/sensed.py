"""The spectrum of the signals, estimated from their noisy observations.

Eigenvalues of a sample covariance spread around those of the covariance, the more so the fewer the
observations (Marchenko & Pastur 1967): white signals seem to have strong and weak directions. So
directions are found in one half of the observations, and the variance along each is measured in
the other, without that bias (C. Lam 2016, doi:10.1214/15-AOS1393). The variance of the noise is
subtracted.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from invem.analysis.operators import OperatorSample
from invem.analysis.spectrum import common_svd
from invem.errors import Unsupported
from invem.gaussian import Gaussian, cosines
from invem.linear import Mask
from invem.measurement import Measurement
from invem.operator import LinearOperator

__all__ = ["SignalSpectrum", "signal_spectrum"]

_LEAST = 32  # observations
_FAST = 512  # coordinates up to which both halves of the observations take both parts
_SHARES = (0.0, 0.5, 1.0)  # between the diagonal's share by formula and all of it


@dataclass(frozen=True, eq=False)
class SignalSpectrum:
    """The variances of the signals along directions that were found from observations.

    Attributes:
        ratios: The variance of A x over that of the noise along each direction, in the mean over
            observations, descending, shape (k,). Directions that were found to have none are 0.
        observations: How many were used.
        variance: The mean variance of an entry of the signal; None where A changes it.
        few: Whether they are too few to find all directions.
        frequencies: Whether the directions are frequencies (of the discrete cosine transform), as
            for large images, and not found.
    """

    ratios: Tensor
    observations: int
    variance: float | None
    few: bool
    frequencies: bool


@dataclass(frozen=True, eq=False)
class _Coordinates:
    """Observations in coordinates: z = w c + noise, with c coordinates of the signal.

    Attributes:
        z: Shape (n, k).
        w: Shape (n, k), or None where all are 1.
        noise: The variance of the noise of z, shape (n, 1).
        image: The shape of an image whose pixels the coordinates are; None if they are others.
    """

    z: Tensor
    w: Tensor | None
    noise: Tensor
    image: tuple[int, ...] | None

    def half(self, k: int) -> "_Coordinates":
        """Returns every second observation, from the k-th on."""
        w = None if self.w is None else self.w[k::2]
        return _Coordinates(self.z[k::2], w, self.noise[k::2], self.image)


def signal_spectrum(m: Measurement, most_entries: int) -> SignalSpectrum:
    """Estimates the variances of signals along the directions that observations show.

    If all observations share A, the directions are those of A x. Otherwise the operators have
    singular vectors in common, as masks have, and each second moment is the mean over the
    observations that show it.

    Args:
        m: The observations, with white Gaussian noise.
        most_entries: The most coordinates for which a covariance is formed. Above, images that
            share A are examined along frequencies.

    Raises:
        Unsupported: If it cannot be estimated, with the reason.
    """
    if not isinstance(m.A, LinearOperator):
        raise Unsupported("the operator is not linear")
    if "normal" not in m.noise.provides:
        raise Unsupported("the noise is not Gaussian")
    if len(m) < _LEAST:
        raise Unsupported(f"{len(m):,} observations are too few")
    if not bool((m.noise.var() > 0).all()):
        raise Unsupported("the noise is 0")
    m = m.to("cpu", torch.float64)
    at = _coordinates(m)
    k = at.z.shape[1]
    level = float(1 / (1 / at.noise).mean())
    if k <= most_entries:
        halves = [_measured(at.half(i), at.half(1 - i)) for i in range(2 if k <= _FAST else 1)]
        shown, own = (torch.stack(each).mean(0) for each in zip(*halves, strict=True))
    elif at.w is None and at.image is not None:
        shown = own = _along_frequencies(at)
    else:
        raise Unsupported(f"they have more than {most_entries:,} entries")
    known = at.w is not None or m.changes_nothing
    return SignalSpectrum(
        (shown / level).clamp(min=0).sort(descending=True).values,
        len(m),
        max(float(own[own != 0].mean()), 0.0) if known and bool((own != 0).any()) else None,
        len(m) < 2 * k and k <= most_entries,
        k > most_entries,
    )


def _coordinates(m: Measurement) -> _Coordinates:
    """Returns observations in coordinates that all operators have in common."""
    noise = m.noise.var().expand_as(m.y).flatten(1).mean(1, keepdim=True)
    if m.shares_operator and not isinstance(m.A, Mask):
        image = tuple(m.y.shape[1:]) if m.y.ndim == 4 else None
        return _Coordinates(m.y.flatten(1), None, noise, image)
    svd = common_svd(OperatorSample(m.A, len(m), len(m)))
    if svd is None:
        raise Unsupported("the operators have no directions in common")
    image = m.shape if isinstance(m.A, Mask) and len(m.shape) == 3 else None
    return _Coordinates(svd.ut(m.y), svd.s.expand(len(m), -1), noise, image)


def _centred(at: _Coordinates) -> Tensor:
    """Returns w (z - w mean), shape (n, k)."""
    if at.w is None:
        return at.z - at.z.mean(0)
    power = at.w.square()
    mean = (at.w * at.z).sum(0) / power.sum(0).clamp(min=1e-300)
    return at.w * at.z - power * mean


def _covariance(at: _Coordinates) -> Tensor:
    """Returns the estimate of the covariance of the coordinates, shape (k, k), without bias."""
    n, u = len(at.z), _centred(at)
    if at.w is None:
        return u.T @ u / (n - 1) - float(at.noise.mean()) * torch.eye(u.shape[1]).to(u)
    power = at.w.square()
    weight = power.T @ power
    moment = u.T @ u - torch.diag((power * at.noise).sum(0))
    seen = weight > 1e-9 * weight.max()
    found: Tensor = torch.where(seen, moment / weight.clamp(min=1e-300), 0.0) * (n / (n - 1))
    return found


def _measured(finding: _Coordinates, measuring: _Coordinates) -> tuple[Tensor, Tensor]:
    """Returns the variances of what is shown along directions, and of the signal, (k,) each.

    The directions are eigenvectors of a covariance that is shrunk to a diagonal: of pixels in the
    basis of cosines, which is about that of smooth images. Of several degrees of shrinkage that is
    taken under which the measuring observations are the most likely.

    Args:
        finding: The observations whose covariance gives the directions.
        measuring: Those whose variances along them are returned, in descending order.
    """
    scale = torch.ones(1).double() if finding.w is None else finding.w.square().mean(0).sqrt()
    u = _centred(finding) / scale.clamp(min=1e-12)
    cov = _covariance(measuring)
    shown, own = scale[:, None] * cov * scale, cov.diagonal()
    basis = _cosines_of(finding.image)
    if basis is not None:
        u, shown = u @ basis.T, basis @ shown @ basis.T
    smooth = Gaussian.shrunk_to_diagonal(u).cov
    sample = smooth.factor @ smooth.factor.T
    noise = float(measuring.noise.mean())
    found = []
    for share in _SHARES:
        if share < 1:
            mixed = sample * (1 - share)
            mixed.diagonal().copy_(sample.diagonal() + smooth.diag)
            vectors = torch.linalg.eigh(mixed)[1]
            along = (vectors * (shown @ vectors)).sum(0)
        else:
            along = shown.diagonal()
        loss = float((along + noise).clamp(min=0.1 * noise).log().sum())
        found.append((loss, along.sort(descending=True).values))
    return min(found, key=lambda each: each[0])[1], own


def _cosines_of(image: tuple[int, ...] | None) -> Tensor | None:
    """Returns the discrete cosine transform of each channel as a matrix; None for no image."""
    if image is None:
        return None
    c, h, w = image
    eye = torch.eye(c, dtype=torch.float64)
    return torch.kron(eye, torch.kron(cosines(h), cosines(w)))


def _along_frequencies(at: _Coordinates) -> Tensor:
    """Returns the variances along frequencies of uncorrelated combinations of the channels, (k,),
    in descending order."""
    assert at.image is not None
    c, h, w = at.image
    z = _centred(at).reshape(-1, c, h, w)
    channels = z.transpose(0, 1).reshape(c, -1)
    turn = torch.linalg.eigh(channels @ channels.T)[1]
    z = cosines(h) @ torch.einsum("cb,nchw->nbhw", turn, z) @ cosines(w).T
    var = z.square().sum(0).flatten() / (len(z) - 1) - at.noise.mean()
    found: Tensor = var.sort(descending=True).values
    return found
