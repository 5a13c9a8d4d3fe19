"""Denoisers: (x_t, sigma) -> x_hat = E[x | x_t], with x_t = x + sigma z."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from invem.batched import Rng
from invem.errors import Unsupported
from invem.gaussian import Gaussian
from invem.linalg import DPLR
from invem.measurement import Measurement, conditioning
from invem.mixture import FactorMixture, Mixture

__all__ = [
    "Begun",
    "Denoiser",
    "GaussianDenoiser",
    "MixtureDenoiser",
    "Preconditioned",
    "Several",
    "level",
    "prior_of",
]


class Denoiser(nn.Module):
    """A model of E[x | x + sigma z] for every noise level sigma.

    `moments`, where it is known, is the Gaussian with the mean and covariance of the prior that the
    denoiser stands for: samplers use it in place of products with the Jacobian where the noise is
    large. `condition` is the number of tensors of the signal's shape that `cond` holds, 0 if there
    is no such input. `begin` is where posterior chains begin, if not at a draw of their own.
    """

    moments: Gaussian | None = None
    condition: int = 0
    begin: Tensor | None = None

    @abstractmethod
    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        """Returns x_hat, shape (B, *shape).

        Args:
            x_t: The state, shape (B, *shape).
            sigma: One level, (B,), or (B, 1, ...), in units of the data.
            cond: What the network was given beside x_t by a conditional objective, shape (B,
                condition, *shape); None is zeros.
        """

    def known_moments(self) -> Gaussian:
        """Returns `moments`.

        Raises:
            Unsupported: If none were fitted.
        """
        if self.moments is None:
            raise Unsupported(f"{type(self).__name__} carries no fitted moments")
        return self.moments

    def posterior(self, m: Measurement, rng: Rng) -> Tensor:
        """Draws p(x | y) exactly, shape (B, *shape), for linear A and Gaussian noise. Only priors
        in closed form know how.

        Raises:
            Unsupported: If the prior is a network.
        """
        raise Unsupported(f"{type(self).__name__} has no posterior in closed form")

    def posterior_mean(self, m: Measurement) -> Tensor:
        """Returns E[x | y], shape (B, *shape), for linear A and Gaussian noise. Only priors in
        closed form know it.

        Raises:
            Unsupported: If the prior is a network.
        """
        raise Unsupported(f"{type(self).__name__} has no posterior in closed form")

    def told(self, m: Measurement) -> Tensor:
        """Returns what a conditional network is given of a measurement, shape (B, condition,
        *shape)."""
        return conditioning(m)

    def one_step(self, rng: Rng, shape: tuple[int, ...], like: Tensor) -> Tensor | None:
        """Draws the prior by its generator, one signal a stream, shape (B, *shape), on the device
        of `like`.

        None where it has no generator, and samples are those of the reverse diffusion.
        """
        return None


def level(sigma: Tensor | float, x: Tensor) -> Tensor:
    """Returns sigma as (1 or B, 1, ...), of the dtype and on the device of x."""
    return torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1, *[1] * (x.ndim - 1))


class GaussianDenoiser(Denoiser):
    """The exact denoiser of a Gaussian prior."""

    def __init__(self, moments: Gaussian) -> None:
        super().__init__()
        self.moments: Gaussian = moments

    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        return self.moments.denoise(x_t, level(sigma, x_t))

    def posterior(self, m: Measurement, rng: Rng) -> Tensor:
        return self.moments.posterior(m, rng)

    def posterior_mean(self, m: Measurement) -> Tensor:
        return self.moments.posterior_mean(m)


class Begun(Denoiser):
    """A prior whose posterior chains begin at given signals plus noise: the E-step of stochastic EM
    that goes on from the round before.

    Args:
        inner: The prior.
        begin: One signal for each observation of the batch, shape (B, *shape).
    """

    def __init__(self, inner: Denoiser, begin: Tensor) -> None:
        super().__init__()
        self.inner, self.begin = inner, begin
        self.moments, self.condition = inner.moments, inner.condition

    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        out: Tensor = self.inner(x_t, sigma, cond)
        return out

    def posterior(self, m: Measurement, rng: Rng) -> Tensor:
        return self.inner.posterior(m, rng)

    def posterior_mean(self, m: Measurement) -> Tensor:
        return self.inner.posterior_mean(m)

    def told(self, m: Measurement) -> Tensor:
        return self.inner.told(m)


class MixtureDenoiser(Denoiser):
    """The exact denoiser of a mixture of Gaussians."""

    def __init__(self, prior: Mixture | FactorMixture) -> None:
        super().__init__()
        self.prior = prior
        self.moments = prior.moments()

    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        return self.prior.denoise(x_t, level(sigma, x_t))

    def posterior(self, m: Measurement, rng: Rng) -> Tensor:
        return self.prior.posterior(m, rng)

    def posterior_mean(self, m: Measurement) -> Tensor:
        return self.prior.posterior_mean(m)


def prior_of(tensors: Mapping[str, Tensor]) -> Denoiser:
    """Returns the prior of which these are the `tensors()`: a Gaussian, a mixture of Gaussians or
    one of factor analysers."""
    if "covs" in tensors:
        return MixtureDenoiser(Mixture(**tensors))
    if "factors" in tensors:
        return MixtureDenoiser(FactorMixture(**tensors))
    return GaussianDenoiser(
        Gaussian(tensors["mean"], DPLR(tensors["cov.diag"], tensors["cov.factor"]))
    )


class Preconditioned(Denoiser):
    """EDM preconditioning around any network F(x, c_noise, cond) (Karras et al. 2022, arXiv
    2206.00364, eq. 7).

    x_hat = mean + c_skip (x_t - mean) + c_out F(c_in (x_t - mean), log(sigma) / 4, cond)

    with c_skip = s^2/(s^2 + sigma^2), c_out = s sigma/sqrt(s^2 + sigma^2), c_in = 1/sqrt(s^2 +
    sigma^2), s = sigma_data. The mean is that of the moments (EDM: zero), so that the network sees
    centred signals.

    Args:
        backbone: F, which maps (B, *shape) and c_noise (B,) to (B, *shape).
        sigma_data: The standard deviation of the signals around the mean, in units of the data.
    """

    def __init__(self, backbone: nn.Module, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.backbone = backbone
        self.sigma_data = sigma_data
        self.condition = int(getattr(backbone, "condition", 0))

    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        sigma = level(sigma, x_t)
        total = self.sigma_data**2 + sigma**2
        mean = 0.0 if self.moments is None else self.moments.mean
        x = x_t - mean
        c_noise = (sigma.flatten().log() / 4).expand(len(x))
        out: Tensor = self.backbone(x * total.rsqrt(), c_noise, cond)
        return (
            mean
            + self.sigma_data**2 / total * x
            + self.sigma_data * sigma * total.rsqrt() * out.to(x.dtype)
        )


class Several(Denoiser):
    """Networks of one kind that an objective trains together (`Objective.networks`). As a denoiser
    it is the first of them.

    Args:
        parts: The networks.
    """

    def __init__(self, parts: Iterable[Denoiser]) -> None:
        super().__init__()
        self.several = nn.ModuleList(parts)
        self.condition = self._first.condition

    @property
    def _first(self) -> Denoiser:
        first: Denoiser = self.several[0]  # type: ignore[assignment]
        return first

    @property
    def moments(self) -> Gaussian | None:
        """Those of the first, set for all."""
        return self._first.moments

    @moments.setter
    def moments(self, value: Gaussian | None) -> None:
        for part in self.several:
            part.moments = value  # type: ignore[assignment]

    @property
    def sigma_data(self) -> float:
        """The scale of the first."""
        return float(getattr(self._first, "sigma_data", 0.5))

    def begin_with(self, tensors: Mapping[str, Tensor]) -> None:
        """Loads weights: those of as many networks, or those of one into each."""
        if any(name.startswith("several.") for name in tensors):
            self.load_state_dict(dict(tensors))
        else:
            for part in self.several:
                part.load_state_dict(dict(tensors))

    @staticmethod
    def alone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the weights of the first of several networks; those of one as they are."""
        first = "several.0."
        found = {
            name.removeprefix(first): tensor
            for name, tensor in tensors.items()
            if name.startswith(first)
        }
        return found or dict(tensors)

    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        out: Tensor = self._first(x_t, sigma, cond)
        return out
