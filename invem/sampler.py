"""Posterior samplers: p(x | y) under a diffusion prior."""

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

import torch
from annotated_types import Ge
from torch import Tensor

from invem.batched import Rng
from invem.diffusion import Denoise, Stepping, calls, initial_state, integrate, posterior_state
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
        needs: The capabilities that it calls on the measurement and on the prior
            (`invem.capability` names them all). The plan compares them with what operator, noise
            and prior provide, before anything runs.
        uses_prior: Whether it draws with the prior. A classical restoration does not, so that a
            first phase can begin with one.
    """

    uses_prior: ClassVar[bool] = True

    @property
    @abstractmethod
    def needs(self) -> frozenset[str]:
        """A class attribute, or a property where it depends on the options."""

    @abstractmethod
    def __call__(self, prior: Prior, m: Measurement, rng: Rng) -> Tensor:
        """Returns draws, shape (B, *shape). rng: B streams."""

    def tune(self, prior: Prior, m: Measurement, rng: Rng) -> Self:
        """Returns the sampler with its automatic options set, from a few observations, once before
        each E-step."""
        return self

    @property
    def cost(self) -> tuple[int, int]:
        """Network forwards and network vector-Jacobian products per draw, as the plan estimates
        them."""
        return (0, 0)


class ChainSampler(PosteriorSampler):
    """A sampler whose chains run down a schedule of noise levels, and can begin at given signals:
    a round of EM can go on from the draws of the round before.

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
            start: The signals that the chains begin at, plus noise of the first level, shape
                (B, *shape); None is the sampler's own start.
        """

    def from_level(self, sigma: float) -> Self:
        """Returns the sampler whose chains begin at a noise level, in units of the data.

        Raises:
            RecipeError: If the level is not one that its schedule can begin at.
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
    """A posterior sampler that is a denoiser of p(x | x_t, y), run by any rule of the reverse
    diffusion.

    Attributes:
        steps: Noise levels.
        stepping: How the reverse diffusion is run (`integrate`).
        schedule: The noise levels.
    """

    steps: Annotated[int, Ge(2)] = 64
    stepping: Stepping = "heun"
    schedule: Schedule = Karras()

    @abstractmethod
    def denoise(self, prior: Prior, m: Measurement, rng: Rng) -> Denoise:
        """Returns (x_t, sigma) -> E[x | x_t, y], approximately, without a graph."""

    @property
    def products(self) -> int:
        """Network vector-Jacobian products per call of `denoise`."""
        return 0

    @property
    def cost(self) -> tuple[int, int]:
        n = calls(self.stepping, self.steps)
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
