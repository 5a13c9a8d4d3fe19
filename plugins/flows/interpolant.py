"""Stochastic interpolants between signals and measurements, in one network with the prior."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from invem import (
    Denoiser,
    Example,
    Gaussian,
    Measurement,
    Objective,
    Prior,
    RecipeError,
    Rng,
    Unsupported,
)
from invem.measurement import remeasure
from invem.objective import MakeNetwork, Observing, edm_weight, noise_levels
from invem.prior import Conditioning

_T = 1e-3  # the smallest t: the weight is infinite at 0


class InterpolantConditioning(Conditioning):
    """The condition for E[x | I_t], of a network that is both a prior and an interpolant.

    I_t = (1 - t) x + t x_1, where x_1 = source + jitter z is made from the measurement (`source`).
    The velocity of the interpolant is E[x_1 - x | I_t] = (I_t - E[x | I_t])/t (Albergo &
    Vanden-Eijnden 2023, arXiv 2209.15571). So a rule for the probability flow over sigma integrates
    it over t. The network is called with I_t in place of x_t and t in place of sigma.

    Args:
        jitter: The standard deviation of the noise that is added to the source.
        informed: Whether the condition holds the measurement, or only which entries are measured.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"interpolant"})

    def __init__(self, jitter: float, informed: bool) -> None:
        self.jitter, self.informed = jitter, informed

    def first(self, m: Measurement, rng: Rng) -> Tensor:
        """Draws I_1, shape (B, *shape)."""
        y = source(m)
        return y + self.jitter * rng.normal(*m.shape).to(y)

    def __call__(self, m: Measurement) -> Tensor:
        """Returns [source or 1, shown], shape (B, 2, *shape).

        shown is 1 where something is measured; A^T 1 if y has another shape than the signal.
        """
        y = source(m)
        shown = torch.ones_like(y)
        if m.y.shape != y.shape:
            shown = m.A.adjoint(torch.ones_like(m.y))
        elif m.A.seen is not None:
            shown = m.A.seen.to(y).expand_as(y)
        return torch.stack([y if self.informed else torch.ones_like(y), shown], 1)

    def evidence(
        self, x_t: Tensor, sigma: Tensor, cond: Tensor, noise: float
    ) -> tuple[Tensor, Tensor]:
        # Without a condition it is E[x | x_t] that is asked for.
        given = cond.flatten(2).any(2).any(1).reshape(-1, *[1] * (x_t.ndim - 1))
        state, t, level = x_t.double(), sigma.double(), sigma.double() ** -2
        y, shown = cond[:, 0].double(), cond[:, 1] > 0
        jitter = (t * self.jitter) ** 2
        known = ((1 - t) ** 2 / jitter).expand(state.shape)
        value = (1 - t) * (state - t * y if self.informed else state) / jitter
        if self.informed:
            known, value = known + shown / noise**2, value + shown * y / noise**2
        else:
            # In a measured entry I_t = x + t (noise + jitter z): the coefficient of x is one.
            measured = 1 / (t**2 * (noise**2 + self.jitter**2))
            known = torch.where(shown, measured, known)
            value = torch.where(shown, measured * state, value)
        return torch.where(given, known, level), torch.where(given, value, level * state)


def source(m: Measurement) -> Tensor:
    """Returns the measurement as a signal, shape (B, *shape): y if it has that shape, else A^T y.

    Raises:
        Unsupported: If y has another shape and A has no adjoint.
    """
    if m.y.shape[1:] == torch.Size(m.shape):
        return m.y if m.A.seen is None else m.y * m.A.seen
    if "adjoint" not in m.A.provides:
        raise Unsupported(
            "an interpolant needs observations of the shape of the signals, or an operator with an"
            " adjoint"
        )
    return m.A.adjoint(m.y)


@dataclass(frozen=True, kw_only=True)
class Interpolating(Objective):
    """A stochastic interpolant from measurement to signal, learned together with the prior.

    The loss is E |b(I_t, t) - (x_1 - x)|^2 / d with b = (I_t - D(I_t, t))/t. This is E |D(I_t, t) -
    x|^2 / (t^2 d), for t uniform in (0, 1].

    x_1 is a new measurement of the signal, with operator and noise of a random training observation
    (as in `cond-dsm`). With probability `real` it is the measurement that the signal was drawn
    from. With probability `drop` the network learns E[x | x_t] instead, by denoising score matching
    with the distribution and the weight of EDM (arXiv 2206.00364, table 1). So the network is also
    a prior; the publications fit a second one.

    Attributes:
        jitter: The standard deviation of the noise added to the source, in units of the data.
            Without it the flow is a function of y: it could not have the variance of the posterior,
            nor fill in what y does not show.
        drop: The share of signals that the prior is learned from.
    """

    jitter: Annotated[float, Ge(0)] = 0.2
    drop: Annotated[float, Interval(gt=0, lt=1)] = 0.2

    informed: ClassVar[bool]
    needs: ClassVar[frozenset[str]] = frozenset({"x", "measurement", "signal"})
    provides: ClassVar[frozenset[str]] = frozenset({"interpolant"})
    condition: ClassVar[int] = 2

    @property
    def _real(self) -> float:
        """The share of signals that go with the measurement they were drawn from."""
        return 0.0

    @property
    def _conditioning(self) -> InterpolantConditioning:
        return InterpolantConditioning(self.jitter, self.informed)

    def loss(self, model: Denoiser, batch: Example, rng: Rng) -> Tensor:
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
        law = model.chosen(pick.flatten().cpu(), m) if isinstance(model, Observing) else m
        state, t, cond = x, torch.ones_like(sigma), None
        if law is None:
            flows = torch.zeros_like(flows)
        else:
            y, cond = self._source(law.to(x.device), m, x, real, rng)
            t = _T + (1 - _T) * u
            state = (1 - t) * x + t * (y + self.jitter * z)
            cond = flows.unsqueeze(1) * cond
        state = torch.where(flows, state, x + sigma * z)
        weight = torch.where(flows, 1 / t**2, edm_weight(model, sigma))
        error = model(state, torch.where(flows, t, sigma), cond) - x
        return torch.mean((weight * error.square()).flatten(1), dim=1)

    def _source(
        self, law: Measurement, own: Measurement | None, x: Tensor, real: Tensor, rng: Rng
    ) -> tuple[Tensor, Tensor]:
        """Returns source and condition, of new measurements of x or of its own measurements.

        Args:
            law: Operator and noise of the new measurements.
            own: The measurements that x was drawn from, if any.
            x: Signals, shape (B, *shape).
            real: Uniform numbers that choose between the two, shape (B, 1, ...).
            rng: B streams.
        """
        conditioning = self._conditioning
        again = remeasure(law, x, rng)
        y, cond = source(again), conditioning(again)
        if own is not None and self._real:
            kept = real < self._real
            y = torch.where(kept, source(own), y)
            cond = torch.where(kept.unsqueeze(1), conditioning(own), cond)
        return y, cond

    def build(
        self, make_network: MakeNetwork, prior: Prior | None, m: Measurement | None
    ) -> Denoiser:
        return Observing(make_network(), m)

    def prior(self, model: Denoiser, moments: Gaussian | None) -> Prior:
        return Prior(model, moments, conditioning=self._conditioning)
