"""A small linear-Gaussian problem with known posteriors: prior, measurements, denoisers."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from invem.batched import Rng
from invem.config import Catalog
from invem.denoiser import Denoiser, expand_level
from invem.errors import InvemError
from invem.gaussian import Gaussian
from invem.linear import Mask, Matrix
from invem.measurement import Measurement
from invem.noise import NoiseModel
from invem.objective import Objective
from invem.operator import SVD, LinearOperator
from invem.prior import Conditioning, LinearConditioning, Prior

__all__ = [
    "ExactConditional",
    "Observed",
    "exact_priors",
    "example_measurement",
    "example_prior",
]

Observed = Literal["mask", "projection", "whole"]
"""What is observed of a signal: half of its entries, three projections, or all of it."""

_NOISE = 0.2  # standard deviation of the measurement noise, in units of the data
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
    return Measurement(y, operator, noise).completed()


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


class ExactConditional(Denoiser):
    """The exact E[x | x_t, cond] of a Gaussian prior on vectors, observed through masks or whole.

    Args:
        prior: The distribution of x.
        conditioning: What the condition is made by. None is a denoiser that is given the mask of
            the entries that x_t shows, or nothing.
    """

    def __init__(self, prior: Gaussian, conditioning: Conditioning | None = None) -> None:
        super().__init__()
        self.prior, self.conditioning = prior, conditioning
        self.condition = 0 if conditioning is None else 2

    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        sigma = expand_level(sigma, x_t)
        if cond is None:
            return self.prior.denoise(x_t, sigma)
        if self.conditioning is None:
            precision = cond[:, 0].double() * sigma.double() ** -2
            evidence: tuple[Tensor, Tensor] | None = precision, precision * x_t.double()
        else:
            evidence = self.conditioning.evidence(x_t, sigma, cond, _NOISE)
        assert evidence is not None
        return _combine(self.prior, *evidence).to(x_t)


def _combine(prior: Gaussian, known: Tensor, pull: Tensor) -> Tensor:
    """Solves (C^-1 + diag(known)) x = C^-1 mean + pull, in float64. known, pull: (B, d)."""
    precision = torch.linalg.inv(prior.cov.dense().double())
    pull = pull + precision @ prior.mean.double()
    x_hat: Tensor = torch.linalg.solve(precision + torch.diag_embed(known), pull)
    return x_hat


def exact_priors(needs: frozenset[str], exact: Gaussian, m: Measurement) -> Iterator[Prior]:
    """Yields exact priors that have what a sampler needs.

    A sampler that needs a network with a condition is given the exact denoiser with that condition:
    the condition that invem knows, or that of each objective in the catalogue which provides it.

    Args:
        needs: The capabilities of the prior that the sampler needs.
        exact: The distribution of x, on vectors.
        m: Measurements, through masks or whole where a condition is needed.
    """
    prior = Prior.of(exact)
    more = needs - prior.provides
    if not more:
        yield prior
    elif more <= LinearConditioning.provides:
        yield _conditioned(exact, LinearConditioning())
    else:
        for conditioning in _conditionings(more, prior, m):
            yield _conditioned(exact, conditioning)


def _conditioned(exact: Gaussian, conditioning: Conditioning) -> Prior:
    return Prior(ExactConditional(exact, conditioning), exact, exact, conditioning=conditioning)


def _conditionings(needs: frozenset[str], prior: Prior, m: Measurement) -> Iterator[Conditioning]:
    """Yields the condition of each objective of the catalogue that provides what is needed."""
    for offers in Catalog.load().offers["objectives"].values():
        with contextlib.suppress(InvemError, TypeError):
            objective = offers[0].load()()
            if isinstance(objective, Objective) and needs <= objective.provides:
                model = objective.build(lambda: prior.denoiser, prior, m)
                conditioning = objective.prior(model, prior.moments).conditioning
                if conditioning is not None:
                    yield conditioning
