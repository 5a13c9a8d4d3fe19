"""The priors in closed form of the built-in problems."""

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from invem.batched import Rng, to_float64
from invem.mixture import Mixture

__all__ = ["PRIORS", "IsotropicMixture", "autoregressive", "curve", "grid"]


class IsotropicMixture(Mixture):
    """A mixture of Gaussians N(m_k, s^2 I) that share one s, with a faster denoiser.

    With r_k the posterior probabilities of the components and m = sum_k r_k m_k, the posterior
    mean is x_hat = m + s^2/(s^2 + sigma^2) (x_t - m). This takes two products of matrices, and is
    thirty times as fast as that of `Mixture`, which accepts any covariances.

    The covariances must all be the same multiple of the identity.
    """

    @cached_property
    def _var(self) -> float:
        return float(self.covs[0, 0, 0])

    def denoise(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        means, x = to_float64(self.means.flatten(1)), to_float64(x_t.flatten(1))
        total = self._var + to_float64(sigma).reshape(-1, 1) ** 2
        log_r = to_float64(self.weights).log() + (x @ means.T - 0.5 * means.square().sum(1)) / total
        near = log_r.softmax(-1) @ means
        return (near + self._var / total * (x - near)).to(x_t.dtype).reshape(x_t.shape)


def autoregressive(shape: Sequence[int], correlation: float) -> Mixture:
    """Returns the Gaussian of mean 0 and covariance C_ij = correlation^|i - j|, one component.

    Args:
        shape: The shape of one signal; i and j count its d entries.
        correlation: The correlation of two neighbours, between 0 and 1.
    """
    i = torch.arange(math.prod(shape), dtype=torch.float64)
    cov = correlation ** (i[:, None] - i).abs()
    return Mixture(torch.ones(1), torch.zeros(1, *shape), cov[None])


def grid(dimensions: int) -> IsotropicMixture:
    """Returns 25 Gaussians of random weights at (i, j, i, j, ...), with i and j in -2..2.

    The prior of MCG-diff (Cardoso et al. 2024, arXiv 2308.07983), with all lengths divided by 8.
    Each component has the standard deviation 0.125.

    Args:
        dimensions: The even number of entries d of one signal.
    """
    pairs = torch.cartesian_prod(torch.arange(-2.0, 3.0), torch.arange(-2.0, 3.0))
    weights = -torch.rand(25, generator=Rng.generator("bench", "weights")).log()
    return _isotropic(pairs.repeat(1, dimensions // 2), 0.125, weights)


def curve(dimensions: int, width: float) -> IsotropicMixture:
    """Returns 200 narrow Gaussians along a random closed curve (as DiEM, arXiv 2405.13712).

    The curve is a Fourier series of three frequencies, of mean square 1.

    Args:
        dimensions: The number of entries d of one signal.
        width: The standard deviation of each component.
    """
    t, k = 2 * math.pi * torch.arange(200)[:, None] / 200, torch.arange(1.0, 4.0)
    modes = torch.randn(6, dimensions, generator=Rng.generator("bench", "curve"))
    x = torch.cat([(k * t).cos(), (k * t).sin()], 1) @ (modes / torch.cat([k, k])[:, None])
    return _isotropic(x / x.square().mean().sqrt(), width, torch.ones(200))


def _isotropic(means: Tensor, std: float, weights: Tensor) -> IsotropicMixture:
    k, d = means.shape
    covs = (std**2 * torch.eye(d)).expand(k, d, d).contiguous()
    return IsotropicMixture(weights / weights.sum(), means, covs)


PRIORS: dict[str, Callable[..., Mixture]] = {
    "autoregressive": autoregressive,
    "grid": grid,
    "curve": curve,
}
