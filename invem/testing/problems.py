"""A small linear-Gaussian problem with known posteriors: prior, measurements, denoisers."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from invem.batched import Rng
from invem.denoiser import Denoiser, GaussianDenoiser, level
from invem.gaussian import Gaussian
from invem.interpolant import Interpolant
from invem.linear import Mask, Matrix
from invem.measurement import Measurement
from invem.noise import NoiseModel
from invem.operator import SVD, LinearOperator

__all__ = [
    "Observed",
    "conditional_mean",
    "example_denoiser",
    "example_measurement",
    "example_prior",
    "interpolant_mean",
]

Observed = Literal["mask", "projection", "whole"]
"""What is observed of a signal: half of its entries, three projections, or all of it."""

_NOISE = 0.2  # standard deviation of the measurement noise, in units of the data
_JITTER = 0.1  # standard deviation of the noise that an interpolant adds to its source
_KEPT = 0.5  # probability that a mask shows an entry
_PROJECTIONS = 3


def example_prior(shape: tuple[int, ...]) -> Gaussian:
    """Returns a Gaussian prior with standard deviation 0.5 and correlated neighbours.

    The mean rises linearly from -0.5 to 1; the correlation of entries i and j is 0.8^|i - j|.

    Args:
        shape: The shape of one signal.
    """
    d = math.prod(shape)
    i = torch.arange(d, dtype=torch.float64)
    return Gaussian.full(
        torch.linspace(-0.5, 1, d).reshape(shape), 0.25 * 0.8 ** (i[:, None] - i).abs()
    )


def example_measurement(
    observed: Observed, n: int, shape: tuple[int, ...], x: Tensor | None = None, *key: str
) -> Measurement:
    """Measures n signals with Gaussian noise of standard deviation 0.2.

    Args:
        observed: "mask" (each entry with probability 0.5), "projection" (on three random
            directions), or "whole" (A = I). Masks and directions differ between observations.
        n: The number of observations.
        shape: The shape of one signal.
        x: The signals, shape (n, *shape); draws of `example_prior` if left out.
        key: Words that set the random numbers of the operators and of the noise apart.
    """
    operator = _operator(observed, n, shape, Rng.generator("contracts", 3, *key))
    if x is None:
        x = example_prior(shape).sample(Rng.keyed("contracts", "truth", items=range(n)))
    clean = operator(x)
    noise = _WhiteNoise(torch.full((n, *[1] * (clean.ndim - 1)), _NOISE))
    y = noise.sample(clean, Rng.generator("contracts", "y", *key))
    return Measurement(y, operator, noise)


def _operator(observed: Observed, n: int, shape: tuple[int, ...], rng: Generator) -> LinearOperator:
    if observed == "whole":
        return _Whole(shape)
    if observed == "mask":
        # The channels of a pixel are hidden together.
        drawn = (1, *shape[1:]) if len(shape) > 1 else shape
        return Mask(shape, (torch.rand(n, *drawn, generator=rng) < _KEPT).float())
    directions = torch.randn(n, _PROJECTIONS, math.prod(shape), generator=rng)
    return Matrix(shape, directions / directions.norm(dim=-1, keepdim=True))


@dataclass(frozen=True, eq=False)
class _Whole(LinearOperator):
    """A = I. Unlike a mask of ones it does not claim to be a mask."""

    def __call__(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return y

    def pinv(self, y: Tensor) -> Tensor:
        return y

    def svd(self) -> SVD:
        def flatten(x: Tensor) -> Tensor:
            return x.flatten(1)

        def unflatten(z: Tensor) -> Tensor:
            return z.reshape(len(z), *self.shape)

        return SVD(torch.ones(1, math.prod(self.shape)), unflatten, flatten, unflatten, flatten)


@dataclass(frozen=True, eq=False)
class _WhiteNoise(NoiseModel):
    """y = A(x) + sigma z, z ~ N(0, I). sigma: (B, 1, ...)."""

    sigma: Tensor

    def sample(self, clean: Tensor, rng: Generator) -> Tensor:
        z = torch.randn(clean.shape, generator=rng, dtype=clean.dtype)
        return clean + self.sigma * z.to(clean.device)

    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        z = (y - clean) / self.sigma
        scale = self.sigma.log().expand_as(z)
        return -(0.5 * z.square() + scale + 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)

    def var(self) -> Tensor:
        return self.sigma.square()


def conditional_mean(prior: Gaussian, x_t: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
    """Returns E[x | x_t, cond], shape of x_t, for a measurement by a mask or of the whole.

    Args:
        prior: The distribution of x, on vectors of d entries.
        x_t: Noisy signals x + sigma z, shape (B, d).
        sigma: The noise level, shape (1 or B, 1).
        cond: Either the mask of the entries that x_t shows, shape (B, 1, d); or y and the mask of
            the measured entries, shape (B, 2, d).
    """
    mask, precision_of_x_t = cond[:, -1].double(), sigma.double() ** -2
    if cond.shape[1] == 1:
        known = precision_of_x_t * mask
        pull = known * x_t
    else:
        known = precision_of_x_t + mask / _NOISE**2
        pull = precision_of_x_t * x_t + cond[:, 0] / _NOISE**2
    return _combine(prior, known.expand(x_t.shape), pull).to(x_t)


def interpolant_mean(
    prior: Gaussian, state: Tensor, t: Tensor, cond: Tensor, jitter: float, informed: bool
) -> Tensor:
    """Returns E[x | I_t, cond], shape of the state, for a measurement by a mask or of the whole.

    Args:
        prior: The distribution of x, on vectors of d entries.
        state: I_t = (1 - t) x + t (y + jitter z), shape (B, d).
        t: The time, shape (1 or B, 1).
        cond: y and the mask of the measured entries, shape (B, 2, d).
        jitter: The standard deviation of the noise that is added to y.
        informed: Whether the mean is conditioned on y too, or on I_t and the mask alone.
    """
    mask, t, state = (cond[:, 1] > 0).double(), t.double(), state.double()
    known = (1 - t) ** 2 / (t * jitter) ** 2
    pull = (1 - t) * (state - t * cond[:, 0].double() if informed else state) / (t * jitter) ** 2
    if informed:
        known, pull = known + mask / _NOISE**2, pull + mask * cond[:, 0].double() / _NOISE**2
    else:
        # In a measured entry I_t = x + t (noise + jitter z): the coefficient of x is one.
        measured = 1 / (t**2 * (_NOISE**2 + jitter**2))
        known, pull = known + mask * (measured - known), pull + mask * (measured * state - pull)
    return _combine(prior, known.expand(state.shape), pull).to(prior.mean)


def _combine(prior: Gaussian, known: Tensor, pull: Tensor) -> Tensor:
    """Solves (C^-1 + diag(known)) x = C^-1 mean + pull, in float64. known, pull: (B, d)."""
    precision = torch.linalg.inv(prior.cov.dense().double())
    pull = pull + precision @ prior.mean.double()
    x_hat: Tensor = torch.linalg.solve(precision + torch.diag_embed(known), pull)
    return x_hat


class _ConditionalDenoiser(GaussianDenoiser):
    """The exact E[x | x_t, cond] of a network that is conditioned on the measurement."""

    condition = 2

    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        if cond is None:
            return super().forward(x_t, sigma)
        return conditional_mean(self.moments, x_t, level(sigma, x_t), cond)


class _InterpolantDenoiser(GaussianDenoiser):
    """The exact E[x | I_t, cond] of an interpolant that is conditioned on the measurement."""

    condition = 2

    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        if cond is None:
            return super().forward(x_t, sigma)
        return interpolant_mean(self.moments, x_t, level(sigma, x_t), cond, _JITTER, True)


def example_denoiser(needs: frozenset[str], prior: Gaussian) -> Denoiser:
    """Returns the exact denoiser of a prior, with the capabilities that a sampler needs.

    Args:
        needs: The `needs` of the sampler; "interpolant" and "conditional" are looked for.
        prior: The distribution of x, on vectors.
    """
    if "interpolant" in needs:
        return Interpolant(_InterpolantDenoiser(prior), _JITTER, True)
    return (_ConditionalDenoiser if "conditional" in needs else GaussianDenoiser)(prior)
