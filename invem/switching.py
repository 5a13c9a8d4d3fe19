"""Where Cov[x | x_t] comes from: the noise level above which the moments of a prior explain the
errors of its denoiser better than the Jacobian of the denoiser does."""

import math
from dataclasses import replace
from itertools import accumulate
from typing import Annotated, Any, Literal, Protocol, TypeVar

from annotated_types import Gt
from torch import Tensor

from invem.batched import Rng
from invem.diffusion import generate
from invem.local_gaussian import Covariance, local_gaussian
from invem.measurement import Measurement
from invem.prior import Prior
from invem.schedule import Karras

__all__ = [
    "Switch",
    "Switching",
    "jacobian_share",
    "level_of",
    "switch_level",
    "variance_ratios",
    "with_switch",
]

Switch = Annotated[float, Gt(0)] | Literal["auto"]
"""A noise level, in units of the data, or "auto": the level that `switch_level` finds."""

_PROBED = 32  # samples of the prior on which covariances are compared
_LEVELS = 24  # noise levels at which they are
_NEVER = 1e9  # a noise level above those of any schedule
_LEAST = 0.01  # the ratio of variances that a smaller or a negative one counts as
_PRODUCTS = 0.15  # what |log ratio| must gain for the products of the Jacobian to be worth it


def variance_ratios(prior: Prior, x: Tensor, sigma: float, rng: Rng) -> tuple[float, float]:
    """Returns how well two estimates of Cov[x | x_t] explain the error of the denoiser.

    The trace of Cov[x | x_t] is the mean squared error of E[x | x_t]. So the trace of the estimate
    over the squared error, on average over x and x_t, is 1 where the estimate is right.

    Args:
        prior: A prior with moments.
        x: Signals of the prior, shape (B, *shape).
        sigma: The noise level of the states, in units of the data.
        rng: B streams, for the states and for one probe of the trace each.

    Returns:
        The ratio for the Jacobian of the denoiser, and that for the moments of the prior.
    """
    x_t = x + sigma * rng.normal_like(x)
    here = local_gaussian(prior, x_t, sigma, "jacobian")
    z = rng.normal_like(x.flatten(1)).sign()
    error = (x - here.mean).flatten(1).double().square().sum()
    moments = prior.known_moments().cov.given(sigma)
    by_jacobian, by_moments = ((z * v).double().sum() for v in (here.cov(z), moments(z)))
    return float(by_jacobian / error), float(by_moments / error)


def switch_level(prior: Prior, shape: tuple[int, ...], like: Tensor) -> float:
    """Returns the noise level above which the moments of a prior give Cov[x | x_t].

    Below it, signals are not Gaussian, and the Jacobian of the denoiser is right. Above it, the
    Jacobian of a trained network is noise, and the moments are right: Cov[x | x_t] tends to the
    covariance of the prior. The level is where the one begins to explain the error of the denoiser
    better than the other does (`variance_ratios`): the sum of |log ratio| over a grid of levels is
    least. They are compared on a few samples of the prior, with the same random numbers at each
    call: it costs as much as a few draws, whatever the number of observations is.

    Args:
        prior: A prior with moments.
        shape: The shape of a signal.
        like: A tensor on the device of the prior.
    """
    rng = Rng.keyed("switch", items=range(_PROBED))
    levels = Karras(sigma_min=0.01).grid(_LEVELS)
    x = generate(prior, levels, rng, shape, like)
    rising = levels.flip(0).tolist()
    costs = [
        [abs(math.log(max(ratio, _LEAST))) for ratio in variance_ratios(prior, x, sigma, rng)]
        for sigma in rising
    ]
    jacobian = [0.0, *accumulate(first + _PRODUCTS for first, _ in costs)]
    moments = [*accumulate((last for _, last in reversed(costs)), initial=0.0)][::-1]
    total = [a + b for a, b in zip(jacobian, moments, strict=True)]
    count = total.index(min(total))  # of the levels below the switch
    if count in (0, len(rising)):
        return float(0.5 * rising[0] if count == 0 else 2 * rising[-1])
    return math.sqrt(rising[count - 1] * rising[count])


class Switching(Protocol):
    """A sampler with the option `switch`."""

    @property
    def switch(self) -> Switch:
        """The noise level above which V comes from the moments of the prior."""


S = TypeVar("S", bound=Switching)


def with_switch(sampler: S, prior: Prior, m: Measurement, used: bool = True) -> S:
    """Returns a sampler with a number in place of ``switch="auto"``.

    Args:
        sampler: A frozen dataclass with the option `switch`.
        prior: The prior. Without moments the level is above all: V comes from the Jacobian.
        m: Measurements, for the shape and the device.
        used: Whether the other options leave the level any part.
    """
    if sampler.switch != "auto" or not used:
        return sampler
    level = _NEVER if prior.moments is None else switch_level(prior, m.shape, m.y)
    changed: Any = sampler
    found: S = replace(changed, switch=level)
    return found


def level_of(switch: Switch) -> float:
    """Returns the level as a number: infinite where none was looked for."""
    return math.inf if switch == "auto" else switch


def jacobian_share(levels: Tensor, covariance: Covariance, switch: Switch) -> float:
    """Returns the share of the noise levels at which V is the Jacobian's.

    All of them where the switch is not found yet: it is a bound.
    """
    if covariance == "moments":
        return 0.0
    if covariance == "jacobian" or switch == "auto":
        return 1.0
    return float((levels <= switch).double().mean())
