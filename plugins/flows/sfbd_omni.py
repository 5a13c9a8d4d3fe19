"""SFBD-OMNI: the posterior is learned as a flow from the measurement."""

from dataclasses import dataclass
from typing import ClassVar

from .interpolant import Interpolating


@dataclass(frozen=True, kw_only=True)
class SFBDOmni(Interpolating):
    """The M-step of SFBD-OMNI (arXiv 2512.17051), for corruptions that can only be sampled from.

    It is flow matching, given y, from y plus a little noise to x, on signals of the round before
    and new measurements of them. The minimiser is E[x | I_t, y]. Its flow draws p(x | y) under the
    distribution of the signals, for any jitter (sampler `interpolant`). The network is given y, or
    A^T y if y has another shape, and which entries are measured. The draws are those given this
    condition.

    The publication's weight lambda/(1 + lambda) of clean images is `fit.clean`: 0.2 if the
    corruption hides something for good, as blur does, and 0 if not. Its share gamma of signals that
    are drawn anew is `refresh` of the phase (published: 0.002).

    Attributes:
        jitter: The standard deviation of the noise added to y, in units of the data.
        drop: The share of signals that the prior is learned from.
    """

    informed: ClassVar[bool] = True
