"""Self-consistent stochastic interpolants: a restoration is learned that measures as the
observations do."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Interval

from .interpolant import Interpolating


@dataclass(frozen=True, kw_only=True)
class SCSI(Interpolating):
    """The M-step of self-consistent stochastic interpolants (SCSI, arXiv 2512.10857) for simulators
    that can only be called: neither a derivative nor an adjoint is asked of A, nor a density of the
    noise, where y is of the shape of the signals.

    The flow of the interpolant between x, the restorations of the round before, and their new
    measurements takes the law of these back to that of x. It is then run on the true observations
    (sampler `interpolant`). Where the measurements of the restorations have the law of the
    observations, a round changes nothing; and for a law of y that only one law of x has, that is
    the prior.

    The network is told where A measures (the published "latents"), and not y: a restoration is of
    the law of x over all observations, and not of p(x | y) for one. Its spread given y comes from
    the jitter alone. Published: noise of standard deviation gamma t (1 - t) along the way, here at
    its end; one gradient step between restorations, here as many as `fit.steps`; restorations for a
    second network, here the same.

    Attributes:
        simulated: The share of signals that go with a new measurement; the others go with the
            observation that they were restored from.
        jitter: The standard deviation of the noise added to what was measured, in units of the
            data.
        drop: The share of signals that the prior is learned from.
    """

    simulated: Annotated[float, Interval(gt=0, le=1)] = 0.9

    informed: ClassVar[bool] = False

    @property
    def _real(self) -> float:
        return 1 - self.simulated
