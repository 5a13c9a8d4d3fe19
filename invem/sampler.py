"""Posterior samplers: p(x | y) under a diffusion prior."""

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import torch
from annotated_types import Ge
from torch import Tensor

from invem.batched import Rng
from invem.diffusion import (
    Denoise,
    Stepping,
    count_calls,
    initial_state,
    integrate,
    posterior_state,
)
from invem.errors import RecipeError
from invem.measurement import Measurement
from invem.prior import Prior
from invem.schedule import Karras, Schedule

__all__ = ["ChainSampler", "GuidedSampler", "PosteriorSampler"]


class PosteriorSampler(ABC):
    """Draws one x ~ p(x | y) for each measurement of a batch.

    A sampler is a frozen value: calling it changes nothing, and all its randomness comes from
    `rng`. Samples of a batch never interact. For K draws per observation, index the measurement:
    ``m[torch.arange(B).repeat_interleave(K)]``.

    Attributes:
        needs: The capabilities that it needs of the measurement and of the prior (listed in
            `invem.capability`). The plan compares them with those of operator, noise and prior
            before anything runs.
        uses_prior: Whether it uses the prior. A classical restoration does not, so that a first
            phase can begin with one.
        adapts: Whether what it calls depends on the prior and on the measurement, so that `cost` is
            a bound.
    """

    uses_prior: ClassVar[bool] = True
    adapts: ClassVar[bool] = False

    @property
    @abstractmethod
    def needs(self) -> frozenset[str]:
        """A class attribute, or a property if it depends on the options."""

    @abstractmethod
    def __call__(self, prior: Prior, m: Measurement, rng: Rng) -> Tensor:
        """Returns draws, shape (B, *shape). rng: B streams."""

    def tune(self, prior: Prior, m: Measurement, rng: Rng) -> Self:
        """Returns the sampler with its automatic options set from a few observations.

        It is called once before each E-step.
        """
        return self

    def posterior_mean(self, prior: Prior, m: Measurement) -> Tensor:
        """Returns E[x | y] where it is known without draws, shape (B, *shape), and NaN elsewhere.

        It is the limit of the mean of many draws, at the cost of one call of the denoiser. Each
        observation is judged by itself.
        """
        return torch.full((len(m), *m.shape), torch.nan, device=m.y.device)

    @property
    def cost(self) -> tuple[int, int]:
        """Network forward passes and vector-Jacobian products per draw, for the plan."""
        return (0, 0)


class ChainSampler(PosteriorSampler):
    """A sampler whose chains run down a schedule of noise levels and can begin at given signals.

    So a round of EM can continue from the draws of the round before.

    Attributes:
        schedule: The noise levels.
    """

    schedule: Schedule

    @abstractmethod
    def __call__(
        self, prior: Prior, m: Measurement, rng: Rng, start: Tensor | None = None
    ) -> Tensor:
        """Returns draws, shape (B, *shape).

        Args:
            prior: The prior.
            m: B measurements.
            rng: B streams.
            start: Signals at which the chains begin, plus noise of the first level, shape (B,
                *shape). None is the sampler's own initialisation.
        """

    def from_level(self, sigma: float) -> Self:
        """Returns the sampler whose chains begin at a noise level, in units of the data.

        Raises:
            RecipeError: If its schedule cannot begin at the level.
        """
        schedule: Any = self.schedule
        low, high = (getattr(schedule, name, None) for name in ("sigma_min", "sigma_max"))
        if low is None or high is None:
            raise RecipeError("its schedule has no first level that could be another")
        if not low < sigma <= high:
            raise RecipeError(f"the sampler's levels lie between {low:g} and {high:g}")
        this: Any = self
        begun: Self = dataclasses.replace(
            this, schedule=dataclasses.replace(schedule, sigma_max=sigma)
        )
        return begun


@dataclass(frozen=True, kw_only=True)
class GuidedSampler(ChainSampler):
    """A denoiser of p(x | x_t, y), run by any rule of the reverse diffusion.

    Attributes:
        steps: The number of noise levels.
        stepping: The rule of the reverse diffusion (`integrate`).
        schedule: The noise levels.
    """

    steps: Annotated[int, Ge(2)] = 64
    stepping: Stepping = "heun"
    schedule: Schedule = Karras()

    @abstractmethod
    def denoise(self, prior: Prior, m: Measurement, rng: Rng) -> Denoise:
        """Returns (x_t, sigma) -> an approximation of E[x | x_t, y], without a graph."""

    @property
    def products(self) -> int:
        """Network vector-Jacobian products per call of `denoise`."""
        return 0

    @property
    def cost(self) -> tuple[int, int]:
        n = count_calls(self.stepping, self.steps)
        return n, n * self.products

    @torch.no_grad()
    def __call__(
        self, prior: Prior, m: Measurement, rng: Rng, start: Tensor | None = None
    ) -> Tensor:
        sigmas = self.schedule.grid(self.steps)
        given = {"adjoint", "var"} <= self.needs and prior.moments is not None
        first = float(sigmas[0])
        if given:
            x_t = posterior_state(prior, first, rng, m, start)
        else:
            x_t = initial_state(prior, first, rng, m.shape, m.y, start)
        return integrate(self.stepping, self.denoise(prior, m, rng), x_t, sigmas, rng)
