"""The reverse diffusion: rules that turn a denoiser of the prior or the posterior into a sampler.

Levels are Python floats (float64), so that ratios of small levels are precise.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from invem.batched import Rng
from invem.measurement import Measurement
from invem.prior import Prior

__all__ = [
    "Denoise",
    "Stepping",
    "count_calls",
    "generate",
    "heun",
    "initial_state",
    "integrate",
    "multistep",
    "posterior_state",
    "predictor_corrector",
    "reverse_diffusion",
]

Denoise = Callable[[Tensor, float], Tensor]
Stepping = Literal[
    "ancestral", "euler", "heun", "churn", "predictor-corrector", "multistep", "multistep-sde"
]


def reverse_diffusion(
    denoise: Denoise,
    x_t: Tensor,
    sigmas: Tensor,
    rng: Rng,
    eta: float = 1.0,
    zeta: float | None = None,
) -> Tensor:
    """Steps from sigmas[0] to sigmas[-1] and returns the denoised last state, shape (B, *shape).

        x_s = x_hat + (s/sigma) sqrt(1 - tau) (x_t - x_hat) + s sqrt(tau) z

    with tau = eta (1 - s^2/sigma^2). eta = 1 is ancestral (DDPM). eta = 0 is deterministic
    (DDIM, Euler on the probability flow).

    If `denoise` returns a *draw* of p(x | x_t) in place of its mean, eta = 1 is exact for any
    number of steps. With the mean, the variance is too small by a term of order 1/steps, which
    compounds over EM rounds.

    Args:
        denoise: (x_t, sigma) -> x_hat. A closure over the measurement makes it a posterior sampler.
        x_t: The first state, at sigmas[0], shape (B, *shape).
        sigmas: Decreasing levels, shape (steps,).
        rng: B streams.
        eta: Between 0 and 1.
        zeta: A constant tau instead, as in several posterior samplers. It does not preserve the
            prior as the steps grow: on a standard normal the variance tends to (1 + sqrt(1 -
            zeta))/2.
    """
    levels: list[float] = sigmas.tolist()
    for sigma, s in pairwise(levels):
        x_hat = denoise(x_t, sigma)
        tau = eta * (1 - s**2 / sigma**2) if zeta is None else zeta
        x_t = x_hat + s / sigma * (1 - tau) ** 0.5 * (x_t - x_hat)
        if tau > 0:
            x_t = x_t + s * tau**0.5 * rng.normal_like(x_t)
    return denoise(x_t, levels[-1])


def heun(
    denoise: Denoise, x_t: Tensor, sigmas: Tensor, rng: Rng | None = None, churn: float = 0.0
) -> Tensor:
    """Integrates the probability flow by Heun's second-order rule (EDM, algorithm 2).

    The flow is dx/dsigma = (x - x_hat)/sigma. With `churn` it is stochastic: before a step from
    sigma in [0.05, 50], noise lifts the state to sigma (1 + min(churn/steps, sqrt 2 - 1)). This
    forgets errors of earlier steps (EDM, ImageNet-64: 40, the noise times 1.003).

    Args:
        denoise: (x_t, sigma) -> x_hat, called 2 steps - 1 times.
        x_t: The first state, at sigmas[0], shape (B, *shape).
        sigmas: Decreasing levels, shape (steps,). A last Euler step goes from sigmas[-1] to zero.
        rng: B streams, for the churn.
        churn: S_churn of EDM; 0 is deterministic.
    """
    levels: list[float] = sigmas.tolist()
    lift = 1 + min(churn / len(levels), math.sqrt(2) - 1)
    for sigma, s in pairwise(levels):
        if rng is not None and lift > 1 and 0.05 <= sigma <= 50:
            x_t = x_t + 1.003 * sigma * (lift**2 - 1) ** 0.5 * rng.normal_like(x_t)
            sigma = sigma * lift
        slope = (x_t - denoise(x_t, sigma)) / sigma
        guess = x_t + (s - sigma) * slope
        x_t = x_t + (s - sigma) / 2 * (slope + (guess - denoise(guess, s)) / s)
    return denoise(x_t, levels[-1])


def multistep(denoise: Denoise, x_t: Tensor, sigmas: Tensor, rng: Rng | None = None) -> Tensor:
    """DPM-Solver++(2M): second order in log sigma at one denoiser call per level.

    Lu et al. 2022, arXiv 2211.01095, algorithm 2. With `rng` it is the stochastic form of the same
    paper, SDE-DPM-Solver++(2M), by the midpoint rule.

    Args:
        denoise: (x_t, sigma) -> x_hat, called once per level.
        x_t: The first state, at sigmas[0], shape (B, *shape).
        sigmas: Decreasing levels, shape (steps,).
        rng: B streams for the stochastic form.
    """
    levels: list[float] = sigmas.tolist()
    last, h_last = None, 0.0
    for sigma, s in pairwise(levels):
        x_hat, h = denoise(x_t, sigma), math.log(sigma / s)
        slope = 0.0 if last is None else (x_hat - last) * (h / (2 * h_last))
        if rng is None:
            x_t = s / sigma * x_t + (1 - s / sigma) * (x_hat + slope)
        else:
            keep = (s / sigma) ** 2
            x_t = (
                keep * x_t
                + (1 - keep) * (x_hat + slope)
                + s * (1 - keep) ** 0.5 * rng.normal_like(x_t)
            )
        last, h_last = x_hat, h
    return denoise(x_t, levels[-1])


def predictor_corrector(
    denoise: Denoise, x_t: Tensor, sigmas: Tensor, rng: Rng, delta: float = 0.1
) -> Tensor:
    """Alternates an Euler step and a step of a Langevin chain at the new level.

    Song et al. 2021, arXiv 2011.13456, algorithm 1. The corrector x <- x_hat + sqrt(1 - delta) (x -
    x_hat) + sqrt(delta) s z preserves N(x_hat, s^2 I).

    Args:
        denoise: (x_t, sigma) -> x_hat, called 2 steps - 1 times.
        x_t: The first state, at sigmas[0], shape (B, *shape).
        sigmas: Decreasing levels, shape (steps,).
        rng: B streams.
        delta: The share of the noise that a correction renews.
    """
    levels: list[float] = sigmas.tolist()
    for sigma, s in pairwise(levels):
        x_hat = denoise(x_t, sigma)
        x_t = x_hat + s / sigma * (x_t - x_hat)
        x_hat = denoise(x_t, s)
        x_t = x_hat + (1 - delta) ** 0.5 * (x_t - x_hat) + delta**0.5 * s * rng.normal_like(x_t)
    return denoise(x_t, levels[-1])


def integrate(
    stepping: Stepping, denoise: Denoise, x_t: Tensor, sigmas: Tensor, rng: Rng
) -> Tensor:
    """Runs the reverse diffusion by a named rule; returns the denoised last state, (B, *shape).

    The rules are `reverse` (ancestral; euler is eta = 0), `heun` (churn: S_churn = 40),
    `predictor_corrector`, and `multistep` (multistep-sde: with noise).
    """
    if stepping in ("ancestral", "euler"):
        return reverse_diffusion(denoise, x_t, sigmas, rng, eta=float(stepping == "ancestral"))
    if stepping in ("heun", "churn"):
        return heun(denoise, x_t, sigmas, rng, churn=40.0 if stepping == "churn" else 0.0)
    if stepping == "predictor-corrector":
        return predictor_corrector(denoise, x_t, sigmas, rng)
    return multistep(denoise, x_t, sigmas, rng if stepping == "multistep-sde" else None)


def count_calls(stepping: Stepping, steps: int) -> int:
    """Returns the number of denoiser calls of `integrate` on that many levels."""
    return 2 * steps - 1 if stepping in ("heun", "churn", "predictor-corrector") else steps


def initial_state(
    prior: Prior,
    sigma: float,
    rng: Rng,
    shape: tuple[int, ...],
    like: Tensor,
    start: Tensor | None = None,
) -> Tensor:
    """Draws the first state of an unconditional chain, shape (B, *shape).

    It is N(mean, C + sigma^2 I) if the moments of the prior are known, otherwise N(0, sigma^2 I).

    Args:
        prior: The prior.
        sigma: The first noise level.
        rng: B streams.
        shape: The shape of one signal.
        like: A tensor for dtype and device.
        start: Signals to begin at instead, plus sigma z, shape (B, *shape).
    """
    z = sigma * rng.normal(*shape).to(like)
    if start is not None:
        return z + start
    return z if prior.moments is None else z + prior.moments.sample(rng)


def posterior_state(
    prior: Prior, sigma: float, rng: Rng, m: Measurement, start: Tensor | None = None
) -> Tensor:
    """Draws the first state of a posterior chain, shape (B, *shape).

    It is a posterior draw under the Gaussian with the prior's moments, plus sigma z. This is exact
    for a Gaussian prior at any sigma. A start that ignores y leaves an error of order 1/sigma in
    the mean of a deterministic chain. Without known moments it is N(0, sigma^2 I).

    Args:
        prior: The prior.
        sigma: The first noise level.
        rng: B streams.
        m: The measurements, for linear A and Gaussian noise.
        start: Signals to begin at instead, plus sigma z, shape (B, *shape).
    """
    z = sigma * rng.normal(*m.shape).to(m.y)
    if start is not None:
        return z + start
    return z if prior.moments is None else z + prior.moments.posterior(m, rng)


@torch.no_grad()
def generate(
    prior: Prior, sigmas: Tensor, rng: Rng, shape: tuple[int, ...], like: Tensor
) -> Tensor:
    """Draws one unconditional sample per stream, shape (B, *shape), on the device of `like`.

    It uses the generator of the prior if there is one, and Heun's rule otherwise.
    """
    if prior.generator is not None:
        return prior.generator(rng, shape, like)
    return heun(prior, initial_state(prior, float(sigmas[0]), rng, shape, like), sigmas)
