"""Priors: what is known of the signals before one of them is measured, as one value."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor

from invem.batched import Rng
from invem.denoiser import Denoiser, level
from invem.errors import Unsupported
from invem.factor_mixture import FactorMixture
from invem.gaussian import Gaussian
from invem.linalg import DPLR
from invem.measurement import Measurement, conditioning
from invem.mixture import Mixture

__all__ = [
    "ClosedForm",
    "Conditioning",
    "ExactDenoiser",
    "LinearConditioning",
    "Prior",
    "closed_form",
]

Generate = Callable[[Rng, tuple[int, ...], Tensor], Tensor]
"""(rng, shape, like) -> signals: one draw of the prior per stream, shape (B, *shape), on the device
of `like`."""


class ClosedForm(Protocol):
    """A distribution of signals whose posterior is known exactly, for linear A and Gaussian noise:
    a Gaussian, or a mixture of Gaussians."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one signal."""

    def moments(self) -> Gaussian:
        """Returns the Gaussian with the same mean and covariance."""

    def sample(self, rng: Rng) -> Tensor:
        """Draws one signal per stream, shape (B, *shape)."""

    def denoise(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """Returns E[x | x_t], shape (B, *shape). sigma: one level, or (B, 1, ...)."""

    def posterior(self, m: Measurement, rng: Rng) -> Tensor:
        """Draws p(x | y), shape (B, *shape)."""

    def posterior_mean(self, m: Measurement) -> Tensor:
        """Returns E[x | y], shape (B, *shape)."""

    def tensors(self) -> dict[str, Tensor]:
        """Returns the parameters by name: what a file stores."""

    def to(self, device: torch.device | str | None = None) -> Self:
        """Returns the same on a device."""


def closed_form(tensors: Mapping[str, Tensor]) -> Gaussian | Mixture | FactorMixture:
    """Returns the distribution of which these are the `tensors()`: a Gaussian, a mixture of
    Gaussians, or a mixture of factor analysers."""
    if "covs" in tensors:
        return Mixture(**tensors)
    if "factors" in tensors:
        return FactorMixture(**tensors)
    return Gaussian(tensors["mean"], DPLR(tensors["cov.diag"], tensors["cov.factor"]))


class ExactDenoiser(Denoiser):
    """E[x | x_t] of a distribution in closed form.

    Args:
        exact: The distribution.
    """

    def __init__(self, exact: ClosedForm) -> None:
        super().__init__()
        self.exact = exact

    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        return self.exact.denoise(x_t, level(sigma, x_t))


class Conditioning(ABC):
    """What a network that was trained on conditions is given of a measurement.

    Attributes:
        provides: What a sampler must ask for to use it.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"conditional"})

    @abstractmethod
    def __call__(self, m: Measurement) -> Tensor:
        """Returns the condition of each measurement, shape (B, condition, *shape)."""


class LinearConditioning(Conditioning):
    """[A^T y, A^T 1], shape (B, 2, *shape), for linear A (`measurement.conditioning`)."""

    def __call__(self, m: Measurement) -> Tensor:
        return conditioning(m)


@dataclass(frozen=True, eq=False)
class Prior:
    """What is known of the signals: the value that samplers, objectives and metrics are given.

    It is called like its denoiser: ``prior(x_t, sigma)`` is x_hat = E[x | x_t].

    Attributes:
        denoiser: The model of E[x | x_t].
        moments: The Gaussian with the mean and covariance of the signals, where they are known.
            Samplers use it in place of products with the Jacobian where the noise is large.
        exact: The distribution itself, where it is known in closed form.
        generator: Draws the prior in one call, where a generator was trained.
        conditioning: What the denoiser is given of a measurement to know E[x | x_t, y], where it
            was trained on that.
    """

    denoiser: Denoiser
    moments: Gaussian | None = None
    exact: ClosedForm | None = None
    generator: Generate | None = None
    conditioning: Conditioning | None = None

    @classmethod
    def of(cls, exact: ClosedForm) -> Self:
        """Returns the prior of a distribution in closed form."""
        return cls(ExactDenoiser(exact), exact.moments(), exact)

    def __call__(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        """Returns x_hat, shape (B, *shape); the arguments are those of `Denoiser.forward`."""
        out: Tensor = self.denoiser(x_t, sigma, cond)
        return out

    @property
    def provides(self) -> frozenset[str]:
        """What a sampler or an objective may ask for: "moments", "closed form", and what the
        conditioning provides."""
        known = {"moments": self.moments, "closed form": self.exact}
        found = frozenset(name for name, value in known.items() if value is not None)
        return found if self.conditioning is None else found | self.conditioning.provides

    @property
    def trained(self) -> bool:
        """Whether the denoiser has weights, so that calling it costs a pass through a network."""
        return next(self.denoiser.parameters(), None) is not None

    def known_moments(self) -> Gaussian:
        """Returns `moments`.

        Raises:
            Unsupported: If they are not known.
        """
        if self.moments is None:
            raise Unsupported(f"{type(self.denoiser).__name__} comes without moments of the prior")
        return self.moments

    def known_exact(self) -> ClosedForm:
        """Returns `exact`.

        Raises:
            Unsupported: If the prior is not in closed form.
        """
        if self.exact is None:
            raise Unsupported(f"{type(self.denoiser).__name__} has no posterior in closed form")
        return self.exact
