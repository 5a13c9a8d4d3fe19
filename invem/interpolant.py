"""Stochastic interpolants between signals and measurements: transport that is learned beside the
prior, in one network."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from invem.batched import Rng
from invem.denoiser import Denoiser
from invem.errors import RecipeError, Unsupported
from invem.measurement import Example, Measurement, remeasure
from invem.objective import Objective, edm_weight, noise_levels

__all__ = ["Interpolant", "Interpolating"]

_T = 1e-3  # how near a uniform t comes to 0, where the weight is infinite


class Interpolant(Denoiser):
    """A network that is a prior, and that knows E[x | I_t] where its condition says so, I_t = (1 -
    t) x + t x_1.

    x_1 = source + jitter z is what was measured (`source`). The velocity of the interpolant is
    E[x_1 - x | I_t] = (I_t - E[x | I_t])/t (Albergo & Vanden-Eijnden 2023, arXiv 2209.15571), so
    that a rule for the probability flow over sigma integrates it over t.

    Args:
        inner: The network, with `condition` 2.
        jitter: The standard deviation of the noise that is added to the source.
        informed: Whether the condition holds the measurement, or only says what kind it is.
    """

    condition = 2

    def __init__(self, inner: Denoiser, jitter: float, informed: bool) -> None:
        super().__init__()
        self.inner, self.jitter, self.informed = inner, jitter, informed
        self.moments = inner.moments

    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        """Returns E[x | x_t], or with a condition E[x | I_t], I_t in place of x_t and t in place of
        sigma."""
        out: Tensor = self.inner(x_t, sigma, cond)
        return out

    @property
    def sigma_data(self) -> float:
        return float(getattr(self.inner, "sigma_data", 0.5))

    def first(self, m: Measurement, rng: Rng) -> Tensor:
        """Draws I_1, shape (B, *shape)."""
        y = source(m)
        return y + self.jitter * rng.normal(*m.shape).to(y)

    def told(self, m: Measurement) -> Tensor:
        """Returns the condition, shape (B, 2, *shape)."""
        return told(m, self.informed)


def source(m: Measurement) -> Tensor:
    """Returns what was measured as a signal, shape (B, *shape): y where it is of that shape,
    otherwise A^T y.

    Raises:
        Unsupported: If it is not of that shape, and A has no adjoint.
    """
    if m.y.shape[1:] == torch.Size(m.shape):
        return m.y if m.A.seen is None else m.y * m.A.seen
    if "adjoint" not in m.A.provides:
        raise Unsupported(
            "an interpolant needs observations of the shape of the signals, or an operator with an"
            " adjoint"
        )
    return m.A.adjoint(m.y)


def told(m: Measurement, informed: bool) -> Tensor:
    """Returns [source or 1, shown], shape (B, 2, *shape): shown is 1 where something is measured,
    A^T 1 where y is of another shape."""
    y = source(m)
    shown = torch.ones_like(y)
    if m.y.shape != y.shape:
        shown = m.A.adjoint(torch.ones_like(m.y))
    elif m.A.seen is not None:
        shown = m.A.seen.to(y).expand_as(y)
    return torch.stack([y if informed else torch.ones_like(y), shown], 1)


@dataclass(frozen=True, kw_only=True)
class Interpolating(Objective):
    """E |b(I_t, t) - (x_1 - x)|^2 / d, b = (I_t - D(I_t, t))/t, that is E |D(I_t, t) - x|^2 / (t^2
    d), for t uniform in (0, 1].

    x_1 is a new measurement of the signal, with operator and noise of a training observation that
    is drawn at random (as `cond-dsm` has it), or, with probability `real`, the measurement that the
    signal was drawn from. With probability `drop` it is E[x | x_t] that is learned, by denoising
    score matching with the law and the weight of EDM (arXiv 2206.00364, table 1), so that the
    network is a prior as well; the publications fit a second one.

    Attributes:
        jitter: The standard deviation of the noise added to what was measured, in units of the
            data: the flow from y alone is a function of y, and cannot be of the posterior's spread,
            nor fill in what y does not show.
        drop: The share of signals that the prior is learned from.
    """

    jitter: Annotated[float, Ge(0)] = 0.2
    drop: Annotated[float, Interval(gt=0, lt=1)] = 0.2

    informed: ClassVar[bool]
    needs: ClassVar[frozenset[str]] = frozenset({"x", "measurement"})
    provides: ClassVar[frozenset[str]] = frozenset({"interpolant"})
    condition: ClassVar[int] = 2

    @property
    def _real(self) -> float:
        """The share of signals that go with the measurement they were drawn from."""
        return 0.0

    def loss(self, denoiser: Denoiser, batch: Example, rng: Rng) -> Tensor:
        x, m = batch.x, batch.measurement
        if x is None:
            raise RecipeError(
                "an interpolant is learned from signals, and was given measurements only"
            )
        ones = [1] * (x.ndim - 1)
        sigma = noise_levels(rng, x)
        pick, drop, real, u = rng.uniform(4).reshape(-1, 4, *ones).to(x).unbind(1)
        z = rng.normal_like(x)
        flows = drop >= self.drop
        others: Measurement | None = getattr(denoiser, "others", None)
        law = (
            m
            if others is None
            else others[(pick.flatten().cpu() * len(others)).long()].to(x.device)
        )
        if law is None:
            flows = torch.zeros_like(flows)
        state, t, cond = x, torch.ones_like(sigma), None
        if law is not None:
            again = remeasure(law, x, rng)
            y, cond = source(again), told(again, self.informed)
            if m is not None and self._real:
                own = real < self._real
                y, cond = (
                    torch.where(own, source(m), y),
                    torch.where(own.unsqueeze(1), told(m, self.informed), cond),
                )
            t = _T + (1 - _T) * u
            state = (1 - t) * x + t * (y + self.jitter * z)
            cond = flows.unsqueeze(1) * cond
        state = torch.where(flows, state, x + sigma * z)
        weight = torch.where(flows, 1 / t**2, edm_weight(denoiser, sigma))
        error = denoiser(state, torch.where(flows, t, sigma), cond) - x
        return torch.mean((weight * error.square()).flatten(1), dim=1)

    def wrap(
        self, denoiser: Denoiser, m: Measurement | None, before: Denoiser | None = None
    ) -> Denoiser:
        """Returns the network with the interpolant that it learns; it carries the training
        measurements while it is trained."""
        wrapped = Interpolant(denoiser, self.jitter, self.informed)
        wrapped.others = m  # type: ignore[assignment]
        return wrapped
