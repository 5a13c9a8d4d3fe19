"""Priors: the distribution of the signals, as one value."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor

from invem.batched import Rng
from invem.denoiser import Denoiser, expand_level
from invem.errors import Unsupported
from invem.factor_mixture import FactorMixture
from invem.gaussian import Gaussian
from invem.linalg import DPLR
from invem.measurement import Measurement, linear_condition
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
    """A Gaussian or a mixture of Gaussians on signals.

    Its posterior is exact for linear A and Gaussian noise.
    """

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
        """Returns the parameters by name, for storage."""

    def to(self, device: torch.device | str | None = None) -> Self:
        """Returns the distribution on a device."""


def closed_form(tensors: Mapping[str, Tensor]) -> Gaussian | Mixture | FactorMixture:
    """Rebuilds a distribution from its `tensors()`.

    It is a Gaussian, a mixture of Gaussians, or a mixture of factor analysers.
    """
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
        return self.exact.denoise(x_t, expand_level(sigma, x_t))


class Conditioning(ABC):
    """Maps a measurement to the condition of a conditional network.

    Attributes:
        provides: The capabilities that a sampler must need in order to use it.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"conditional"})

    @abstractmethod
    def __call__(self, m: Measurement) -> Tensor:
        """Returns the condition of each measurement, shape (B, condition, *shape)."""

    def evidence(
        self, x_t: Tensor, sigma: Tensor, cond: Tensor, noise: float
    ) -> tuple[Tensor, Tensor] | None:
        """Returns what x_t and the condition say of each entry of x, where A is a mask.

        The exact E[x | x_t, cond] of a Gaussian prior follows from it, and the contracts try
        samplers and objectives with that.

        Args:
            x_t: The state, shape (B, d).
            sigma: The noise level of the state, shape (1 or B, 1).
            cond: The condition, shape (B, condition, d).
            noise: The standard deviation of white measurement noise, in units of the data.

        Returns:
            The precision of the evidence, and the precision times its mean, shape (B, d) each, in
            float64. None if they are not known.
        """
        return None


class LinearConditioning(Conditioning):
    """[A^T y, A^T 1], shape (B, 2, *shape), for linear A (`measurement.conditioning`)."""

    def __call__(self, m: Measurement) -> Tensor:
        return linear_condition(m)

    def evidence(
        self, x_t: Tensor, sigma: Tensor, cond: Tensor, noise: float
    ) -> tuple[Tensor, Tensor]:
        y, mask, expand_level = cond[:, 0].double(), cond[:, 1].double(), sigma.double() ** -2
        return expand_level + mask / noise**2, expand_level * x_t.double() + y / noise**2


@dataclass(frozen=True, eq=False)
class Prior:
    """The distribution of the signals, as samplers, objectives and metrics are given it.

    It is called like its denoiser: ``prior(x_t, sigma)`` is x_hat = E[x | x_t].

    Attributes:
        denoiser: The model of E[x | x_t].
        moments: The Gaussian with the mean and covariance of the signals, if they are known. At
            large noise, samplers use it in place of vector-Jacobian products.
        exact: The distribution itself, if it is known in closed form.
        generator: Draws the prior in one call, if a generator was trained.
        conditioning: Makes the condition with which the denoiser predicts E[x | x_t, y], if it was
            trained to.
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
        """The capabilities of the prior: "moments", "closed form", those of the conditioning."""
        known = {"moments": self.moments, "closed form": self.exact}
        found = frozenset(name for name, value in known.items() if value is not None)
        return found if self.conditioning is None else found | self.conditioning.provides

    @property
    def trained(self) -> bool:
        """Whether the denoiser has weights, so that a call is a pass through a network."""
        return next(self.denoiser.parameters(), None) is not None

    def known_moments(self) -> Gaussian:
        """Returns `moments`.

        Raises:
            Unsupported: If they are not known.
        """
        if self.moments is None:
            raise Unsupported(f"{type(self.denoiser).__name__} has no known moments")
        return self.moments

    def known_exact(self) -> ClosedForm:
        """Returns `exact`.

        Raises:
            Unsupported: If the prior is not in closed form.
        """
        if self.exact is None:
            raise Unsupported(f"{type(self.denoiser).__name__} has no posterior in closed form")
        return self.exact
