"""The reverse diffusion: loops that turn any denoiser, prior or posterior, into a sampler.

Levels are Python floats (float64), so that ratios of small levels keep their digits.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from invem.batched import Rng
from invem.denoiser import Denoiser
from invem.measurement import Measurement

__all__ = ["Denoise", "generate", "heun", "reverse", "start", "start_given"]

Denoise = Callable[[Tensor, float], Tensor]


def reverse(denoise: Denoise, x_t: Tensor, sigmas: Tensor, rng: Rng, eta: float = 1.0) -> Tensor:
    """Steps from sigmas[0] down to sigmas[-1] and returns the denoised last state, shape (B, *shape).

    x_s = x_hat + (s/sigma) sqrt(1 - tau) (x_t - x_hat) + s sqrt(tau) z,  tau = eta (1 - s^2/sigma^2):
    eta = 1 is ancestral (DDPM), eta = 0 is deterministic (DDIM, Euler on the probability flow).

    If `denoise` returns a *draw* of p(x | x_t) in place of its mean, eta = 1 is exact for any number of steps; with the mean
    the variance falls short by a term of order 1/steps, and that compounds over EM rounds.

    Args:
        denoise: (x_t, sigma) -> x_hat; a closure over the measurement makes it a posterior sampler.
        x_t: The first state, at sigmas[0], shape (B, *shape).
        sigmas: Decreasing levels, shape (steps,).
        rng: B streams.
        eta: Between 0 and 1.
    """
    levels: list[float] = sigmas.tolist()
    for sigma, s in pairwise(levels):
        x_hat = denoise(x_t, sigma)
        tau = eta * (1 - s**2 / sigma**2)
        x_t = x_hat + s / sigma * (1 - tau) ** 0.5 * (x_t - x_hat)
        if tau > 0:
            x_t = x_t + s * tau**0.5 * rng.normal_like(x_t)
    return denoise(x_t, levels[-1])


def heun(denoise: Denoise, x_t: Tensor, sigmas: Tensor) -> Tensor:
    """Integrates the probability flow dx/dsigma = (x - x_hat)/sigma by Heun's second-order rule (EDM, algorithm 1).

    Args:
        denoise: (x_t, sigma) -> x_hat, called 2 steps - 1 times.
        x_t: The first state, at sigmas[0], shape (B, *shape).
        sigmas: Decreasing levels, shape (steps,); a last Euler step goes from sigmas[-1] to zero.
    """
    levels: list[float] = sigmas.tolist()
    for sigma, s in pairwise(levels):
        slope = (x_t - denoise(x_t, sigma)) / sigma
        guess = x_t + (s - sigma) * slope
        x_t = x_t + (s - sigma) / 2 * (slope + (guess - denoise(guess, s)) / s)
    return denoise(x_t, levels[-1])


def start(denoiser: Denoiser, sigma: float, rng: Rng, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Draws the first state of an unconditional chain, shape (B, *shape).

    N(mean, C + sigma^2 I) where the moments of the prior are known, N(0, sigma^2 I) where they are not.
    """
    z = sigma * rng.normal(*shape).to(like)
    return z if denoiser.moments is None else z + denoiser.moments.sample(rng)


def start_given(denoiser: Denoiser, sigma: float, rng: Rng, m: Measurement) -> Tensor:
    """Draws the first state of a posterior chain, shape (B, *shape).

    A draw of the posterior of the Gaussian with the prior's moments, plus sigma z: exact for a Gaussian prior at any sigma, where
    a start that ignores y leaves an error of order 1/sigma in the mean of a deterministic chain. Without known moments, N(0, sigma^2 I).
    """
    z = sigma * rng.normal(*m.shape).to(m.y)
    return z if denoiser.moments is None else z + denoiser.moments.posterior(m, rng)


@torch.no_grad()
def generate(denoiser: Denoiser, sigmas: Tensor, rng: Rng, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Draws unconditional samples by Heun's rule, one a stream, shape (B, *shape), on the device of `like`."""
    return heun(denoiser, start(denoiser, float(sigmas[0]), rng, shape, like), sigmas)
