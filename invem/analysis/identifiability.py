"""Identifiability of the signals from the observations of a run, before anything is learned.

The analysis is about first and second moments. A prior may know more (that pixels are never below
zero, say), and may need more. A_i are the operators, S is their noise and C = Cov[x].

- A direction v is hidden if no A_i shows it: v^T M v = 0 with M the mean of A_i^T A_i. No number of
  observations can determine the signal there.
- A single observation determines a direction if lambda c exceeds the noise. lambda is the
  eigenvalue of M and c the variance of the signal along the direction.
  Where there are observations, the variances of the signals along their own directions are
  estimated from them (`invem.analysis.sensed`). Otherwise c is the guess of a white signal.
- Many observations determine the variance along v even where one does not. The Fisher information
  of y ~ N(0, A C A^T + S) on it gives the standard error sqrt(2/(n E[w^2])) c with w = c v^T A^T (c
  A A^T + S)^-1 A v. If all operators are the same and v is one of their singular vectors, this is
  sqrt(2/n) (c + noise/lambda). It takes the other variances as known, and C as c I, since c is a
  guess.
- A covariance is hidden if no operator shows both directions, though each is seen by some: T C =
  E[A^T A C A^T A] has a null space.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from invem.analysis.dense import dense_spectrum
from invem.analysis.lanczos import lanczos_spectrum
from invem.analysis.model import (
    ObservationModel,
    draw_model,
    example_signals,
    noise_variance,
    some_observations,
)
from invem.analysis.noiselevel import NoiseLevel, noise_level
from invem.analysis.operators import HIDDEN, OperatorSample
from invem.analysis.sensed import SignalSpectrum, signal_spectrum
from invem.analysis.spectrum import Levels, Spectrum, spectrum_from_svd
from invem.errors import Unsupported
from invem.measurement import Measurement
from invem.operator import LinearOperator, Operator

__all__ = ["LEARNED", "Identifiability", "identify"]

LEARNED = 0.5  # the largest relative standard error of a variance that counts as learned
_LEAST_SIGNAL = 1e-3  # of the noise's variance, where observations show no signal at all
_MOST_EXAMPLES = 64  # signals at which an operator that is not linear is differentiated


@dataclass(frozen=True, kw_only=True, eq=False)
class Identifiability:
    """The information of the observations on the signals.

    Attributes:
        eigenvalues: Of the mean of A^T A, descending, shape (d,).
        errors: The standard error of the variance along each eigenvector, from all observations,
            relative to the variance of the signal, shape (d,). Infinite where a direction is
            hidden. An upper bound if too few of the operators were examined. For an operator that
            is not linear, computed as if its derivative were the same everywhere.
        floors: A lower bound of the same, shape (d,). Equal to `errors` where they are known.
        observations: The number n of training observations.
        operators: The number of operators that were examined; 1 if all are the same.
        shared: Whether all operators are the same.
        linear: Whether the operator is linear. If not, its derivatives at a few signals replace it.
        exact: Whether each eigenvalue was computed. If not, they are quantiles of a spectral
            density that was estimated with random probes.
        signal: c, the variance of an entry of a white signal, as estimated from observations. Where
            it could not be, a guess: half of the range of the data is filled.
        sensed: The variances of the signals along their own directions, estimated from
            observations; None where they could not be. Images have more variance in coarse
            directions and far less in fine ones.
        unsensed: Why not; "" where there are no observations yet.
        level: The level of the noise as observations show it; None where it is not known.
        noise: The variance of the noise of an entry. Its inverse is the mean of the inverses of all
            observations.
        fineness: The squared differences between neighbouring pixels in the hidden directions, over
            those in all others. If no direction is hidden, the same for the directions that are too
            faint to be learned. Above 1 they are fine, below 1 coarse. None if there are no such
            directions, or signals are not images.
        pairs: The noun for the pairs: "pixels", "entries", "directions", or "second moments" if all
            are examined together; "" if nothing was examined.
        apart: The fraction of pairs of seen directions that no operator shows together.
        together: The fraction of the operators that show a pair: the least and the mean over pairs;
            None for "second moments".
        complete: Whether `apart` = 0 means that no covariance is hidden. This holds if A^T A is
            diagonal for all operators in the paired directions, or all moments were examined.
        clean: The number of clean signals that are given.
        prior: Whether there is a prior from elsewhere.
        truth: Whether signals exist, so that some could be given.
    """

    eigenvalues: Tensor
    errors: Tensor
    floors: Tensor
    observations: int
    operators: int
    shared: bool
    linear: bool
    exact: bool
    signal: float
    noise: float
    fineness: float | None
    pairs: str
    apart: float
    together: tuple[float, float] | None
    complete: bool
    clean: int
    prior: bool
    truth: bool
    sensed: SignalSpectrum | None = None
    unsensed: str = ""
    level: NoiseLevel | None = None

    @property
    def directions(self) -> int:
        """The number d of directions: the entries of a signal."""
        return len(self.eigenvalues)

    @property
    def is_seen(self) -> Tensor:
        """Whether some operator shows each direction, shape (d,), boolean."""
        return self.eigenvalues > HIDDEN * self.eigenvalues[0]

    @property
    def _exceeds_noise(self) -> Tensor:
        return self.is_seen & (self.eigenvalues * self.signal >= self.noise)

    @property
    def hidden(self) -> int:
        """The number of directions that no operator shows."""
        return self.directions - int(self.is_seen.sum())

    @property
    def above_noise(self) -> int:
        """The number of directions with more signal than noise in an observation, on average.

        Of the signals' own directions where their spectrum was estimated.
        """
        if self.sensed is not None:
            return int((self.sensed.ratios >= 1).sum())
        return int(self._exceeds_noise.sum())

    @property
    def learned(self) -> int:
        """The number of directions whose variance is determined by all observations together.

        The relative standard error is at most one half.
        """
        return int((self.is_seen & (self.errors <= LEARNED)).sum())

    @property
    def pooled(self) -> int:
        """The number of directions whose variance only many observations together determine.

        No restoration recovers these.
        """
        if self.sensed is not None:
            ratios = self.sensed.ratios
            errors = math.sqrt(2 / self.observations) * (1 + 1 / ratios.clamp(min=1e-300))
            return int(((ratios < 1) & (errors <= LEARNED)).sum())
        return int((self.is_seen & ~self._exceeds_noise & (self.errors <= LEARNED)).sum())

    @property
    def faint(self) -> int:
        """The number of directions shown too faintly or too seldom to learn their variance."""
        return int((self.is_seen & (self.floors > LEARNED)).sum())

    @property
    def unknown(self) -> int:
        """The number of directions for which too few operators were examined to decide.

        It is open whether their variance is learned.
        """
        return self.directions - self.hidden - self.learned - self.faint


def identify(model: ObservationModel, most_entries: int = 1024) -> Identifiability:
    """Computes which properties of the signals the operators and the noise of a run let be learned.

    Operators are drawn as the run draws them. If all share their singular vectors (masks, blurs
    with a circular boundary, masks in Fourier space, one operator for all) the result is exact, and
    all training observations are examined as far as memory allows. Others are formed as matrices,
    as many as have 8,192 rows together, if a signal has at most `most_entries` entries. Otherwise
    the spectrum is estimated by stochastic Lanczos quadrature.

    An operator that is not linear is replaced by its derivatives at the first signals of the data,
    or at white Gaussian signals if only observations exist.

    Args:
        model: How observations are made.
        most_entries: The largest signal for which operators are formed as matrices.

    Raises:
        Unsupported: If the operator has no derivative, as JPEG compression.
    """
    m = draw_model(model)
    _require_derivative(m.A, model.operator)
    linear = isinstance(m.A, LinearOperator)
    examples = None
    if not linear or "normal" not in m.noise.provides:
        examples = example_signals(model, min(len(m), _MOST_EXAMPLES))
    y = some_observations(model)
    sensed, unsensed = _sensed(y, most_entries)
    levels = _levels(model, sensed, noise_variance(m, examples))
    shared = linear and m.shares_operator
    found = _spectrum(m[:1] if shared else m, levels, model, examples, most_entries)
    order = found.eigenvalues.argsort(descending=True)
    values = found.eigenvalues[order].clamp(min=0)
    seen = values > HIDDEN * values[0]
    both = found.information, found.information if found.ceiling is None else found.ceiling
    errors, floors = (_errors(each[order], seen, model.observations) for each in both)
    missing = ~seen if not bool(seen.all()) else errors > LEARNED
    images = found.vectors if len(model.shape) == 3 else None
    return Identifiability(
        eigenvalues=values,
        errors=errors,
        floors=floors,
        observations=model.observations,
        operators=found.operators,
        shared=shared,
        linear=linear,
        exact=found.vectors is not None,
        signal=levels.signal,
        noise=_harmonic_mean(levels.noise),
        fineness=None if images is None else _fineness(images, order[missing]),
        pairs=found.pairs.of if linear else "",
        apart=found.pairs.apart if linear else 0.0,
        together=found.pairs.together if linear else None,
        complete=linear and found.pairs.complete,
        clean=model.clean,
        prior=model.prior,
        truth=model.signals is not None,
        sensed=sensed,
        unsensed=unsensed,
        level=None if y is None else noise_level(y),
    )


def _errors(information: Tensor, seen: Tensor, n: int) -> Tensor:
    """Returns the relative standard errors of variances from n observations, shape (d,)."""
    variance = 2 / (n * information.clamp(min=1e-300))
    return torch.where(seen, variance.sqrt(), math.inf)


def _levels(model: ObservationModel, sensed: SignalSpectrum | None, noise: Tensor) -> Levels:
    """Returns the variances of signal and noise, that of the signal as estimated if it was."""
    if sensed is None or sensed.variance is None:
        return Levels(model.signal_variance, noise)
    return Levels(max(sensed.variance, _LEAST_SIGNAL * float(noise.mean())), noise)


def _sensed(m: Measurement | None, most_entries: int) -> tuple[SignalSpectrum | None, str]:
    """Returns the spectrum of the signals as the observations show it, or why it is not known."""
    if m is None:
        return None, ""
    try:
        return signal_spectrum(m, most_entries), ""
    except Unsupported as reason:
        return None, str(reason)


def _require_derivative(A: Operator, name: str) -> None:
    if A.straight_through:
        raise Unsupported(
            f"{name} has no derivative, only a substitute for one: what it hides cannot be computed"
        )


def _spectrum(
    m: Measurement,
    levels: Levels,
    model: ObservationModel,
    examples: Tensor | None,
    most_entries: int,
) -> Spectrum:
    """Computes the spectrum by the most exact method that the operators allow."""
    total = model.observations
    if examples is not None and not isinstance(m.A, LinearOperator):
        n = len(examples)
        sample = OperatorSample(m.A[torch.arange(n)], n, total)
        return dense_spectrum(sample, Levels(levels.signal, levels.noise[:n]), examples)
    sample = OperatorSample(m.A, len(m), total)
    found = spectrum_from_svd(sample, levels)
    if found is not None:
        return found
    if sample.entries <= most_entries:
        return dense_spectrum(sample, levels)
    return lanczos_spectrum(sample, levels)


def _harmonic_mean(variance: Tensor) -> float:
    return 0.0 if bool((variance == 0).any()) else float(1 / (1 / variance).mean())


def _fineness(vectors: Callable[[Tensor], Tensor], index: Tensor) -> float | None:
    """Returns the squared differences between neighbouring pixels in some directions, relative.

    They are relative to those in all other directions; None if there are none.

    Args:
        vectors: Maps indices, shape (k,), to orthonormal images, shape (k, C, H, W).
        index: The directions, shape (k,). A subset evenly spaced in rank replaces many.
    """
    if not len(index):
        return None
    c, h, w = vectors(index[:1]).shape[1:]
    d, k = c * h * w, len(index)
    x = vectors(index[torch.linspace(0, k - 1, min(k, max(2**20 // d, 1))).round().long()])
    here = float((x.diff(dim=-1).square().sum() + x.diff(dim=-2).square().sum()) / x.square().sum())
    # The sum over an orthonormal basis is two for each pair of neighbours.
    every = 2 * c * (h * (w - 1) + (h - 1) * w)
    rest = (every - k * here) / (d - k) if k < d else 0.0
    return here / rest if rest > 0 else None
