"""Posterior samplers: p(x | y) under a diffusion prior."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

import torch
from annotated_types import Ge
from torch import Tensor

from invem.batched import Rng
from invem.denoiser import Denoiser
from invem.diffusion import Denoise, Stepping, calls, integrate, start, start_given
from invem.measurement import Measurement
from invem.schedule import Karras, Schedule

__all__ = ["GuidedSampler", "PosteriorSampler"]


class PosteriorSampler(ABC):
    """Draws one x ~ p(x | y) for each measurement of a batch.

    A sampler is a frozen value: calling it changes nothing, and all its randomness comes from
    `rng`. Samples of a batch never interact. For K draws per observation, index the measurement:
    ``m[torch.arange(B).repeat_interleave(K)]``.

    Attributes:
        needs: What it calls on the measurement ("adjoint", "pinv", "svd", "vjp", "var"; "identity"
            is an A that changes nothing) and on the denoiser ("moments"; "closed form": a prior
            whose posterior is known exactly; "conditional": it was fitted to know E[x | x_t, y]).
            The plan compares it with what operator, noise and denoiser provide, before anything
            runs.
        prior: Whether it draws with the denoiser. A classical restoration does not, so that a first
            phase can begin with one.
        begins: Whether its chains begin where `denoiser.begin` says, at the first level of its
            `schedule`, so that a round can go on from the draws of the round before.
    """

    prior: ClassVar[bool] = True
    begins: ClassVar[bool] = False

    @property
    @abstractmethod
    def needs(self) -> frozenset[str]:
        """A class attribute, or a property where it depends on the options."""

    @abstractmethod
    def __call__(self, denoiser: Denoiser, m: Measurement, rng: Rng) -> Tensor:
        """Returns draws, shape (B, *shape). rng: B streams."""

    def tune(self, denoiser: Denoiser, m: Measurement, rng: Rng) -> Self:
        """Returns the sampler with its automatic options set, from a few observations, once before
        each E-step."""
        return self

    @property
    def cost(self) -> tuple[int, int]:
        """Network forwards and network vector-Jacobian products for one draw, as the plan estimates
        them."""
        return (0, 0)


@dataclass(frozen=True, kw_only=True)
class GuidedSampler(PosteriorSampler):
    """A posterior sampler that is a denoiser of p(x | x_t, y), run by any rule of the reverse
    diffusion.

    Attributes:
        steps: Noise levels.
        stepping: How the reverse diffusion is run (`integrate`).
        schedule: The noise levels.
    """

    begins: ClassVar[bool] = True

    steps: Annotated[int, Ge(2)] = 64
    stepping: Stepping = "heun"
    schedule: Schedule = Karras()

    @abstractmethod
    def denoise(self, denoiser: Denoiser, m: Measurement, rng: Rng) -> Denoise:
        """Returns (x_t, sigma) -> E[x | x_t, y], approximately, without a graph."""

    @property
    def products(self) -> int:
        """Network vector-Jacobian products of one call of `denoise`."""
        return 0

    @property
    def cost(self) -> tuple[int, int]:
        n = calls(self.stepping, self.steps)
        return n, n * self.products

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser, m: Measurement, rng: Rng) -> Tensor:
        sigmas = self.schedule.grid(self.steps)
        given = {"adjoint", "var"} <= self.needs and denoiser.moments is not None
        first = float(sigmas[0])
        x_t = (
            start_given(denoiser, first, rng, m)
            if given
            else start(denoiser, first, rng, m.shape, m.y)
        )
        return integrate(self.stepping, self.denoise(denoiser, m, rng), x_t, sigmas, rng)
