"""Self-consistent stochastic interpolants: restorations that measure like the observations."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Interval

from .interpolant import Interpolating


@dataclass(frozen=True, kw_only=True)
class SCSI(Interpolating):
    """The M-step of SCSI, self-consistent stochastic interpolants (arXiv 2512.10857).

    It is for simulators that can only be called. If y has the shape of the signals, it needs no
    derivative or adjoint of A and no noise density.

    x are the restorations of the round before. The flow of the interpolant maps the distribution of
    their new measurements back to that of x. It is then run on the true observations (sampler
    `interpolant`). If the measurements of the restorations are distributed as the observations, a
    round changes nothing. If only one distribution of x gives that of y, it is the prior.

    The network is given which entries A measures (the published "latents"), and not y. So a
    restoration follows the distribution of x over all observations, not p(x | y). Its variance
    given y comes from the jitter alone. Differences from the publication: noise of standard
    deviation gamma t (1 - t) along the way, here at its end; one gradient step between
    restorations, here `fit.steps`; a second network fitted to the restorations, here the same.

    Attributes:
        simulated: The share of signals paired with a new measurement. The others are paired with
            the observation that they were restored from.
        jitter: The standard deviation of the noise added to the source, in units of the data.
        drop: The share of signals that the prior is learned from.
    """

    simulated: Annotated[float, Interval(gt=0, le=1)] = 0.9

    informed: ClassVar[bool] = False

    @property
    def _real(self) -> float:
        return 1 - self.simulated
