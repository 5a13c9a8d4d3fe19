"""Posterior samplers: p(x | y) under a diffusion prior."""

from abc import ABC, abstractmethod
from typing import Self

from torch import Tensor

from invem.batched import Rng
from invem.denoiser import Denoiser
from invem.measurement import Measurement

__all__ = ["PosteriorSampler"]


class PosteriorSampler(ABC):
    """Draws one x ~ p(x | y) for each measurement of a batch.

    A sampler is a frozen value: calling it changes nothing, and all its randomness comes from `rng`. Samples of a batch never
    interact. For K draws per observation, index the measurement: ``m[torch.arange(B).repeat_interleave(K)]``.

    Attributes:
        needs: What it calls on the measurement ("adjoint", "pinv", "svd", "vjp", "var") and on the denoiser ("moments"). The plan
            compares it with what the operator, the noise and the denoiser provide, before anything runs.
    """

    @property
    @abstractmethod
    def needs(self) -> frozenset[str]:
        """A class attribute, or a property where it depends on the options."""

    @abstractmethod
    def __call__(self, denoiser: Denoiser, m: Measurement, rng: Rng) -> Tensor:
        """Returns draws, shape (B, *shape). rng: B streams."""

    def tune(self, denoiser: Denoiser, m: Measurement, rng: Rng) -> Self:
        """Returns the sampler with its automatic options set, from a few observations, once before each E-step."""
        return self

    @property
    def cost(self) -> tuple[int, int]:
        """Network forwards and network vector-Jacobian products for one draw, as the plan estimates them."""
        return (0, 0)
