"""Mixtures of Gaussians: a denoiser, a Jacobian and a posterior that are known exactly."""

import pytest
import torch
from invem_plugins.noises.gaussian import gaussian
from invem_plugins.operators.random_projection import random_projection

from invem import Gaussian, Measurement, Mixture, Prior, Rng

N = 20_000


def mixture(dtype=torch.float64):
    means = torch.tensor([[-2.0, 0.0, 1.0], [2.0, 1.0, 0.0], [0.0, -2.0, -1.0]], dtype=dtype)
    turn = torch.randn(3, 3, 3, generator=Rng.generator("turn"), dtype=torch.float64)
    return Mixture(
        torch.tensor([0.2, 0.3, 0.5], dtype=dtype),
        means,
        (0.2 * torch.eye(3) + 0.05 * turn @ turn.mT).to(dtype),
    )


def measurement(prior):
    A = random_projection(1, (3,), Rng.generator(1), measurements=1).to(dtype=torch.float64)
    noise = gaussian(1, (1,), Rng.generator(0), sigma=0.5).to(dtype=torch.float64)
    x = prior.sample(Rng.keyed("truth", items=[0]))
    return Measurement(noise.sample(A(x), Rng.generator("y")), A, noise)


def test_one_component_is_a_gaussian():
    cov = mixture().covs[0]
    one = Mixture(
        torch.ones(1, dtype=torch.float64), torch.zeros(1, 3, dtype=torch.float64), cov[None]
    )
    same = Gaussian.full(torch.zeros(3, dtype=torch.float64), cov)
    x_t = torch.randn(5, 3, dtype=torch.float64, generator=Rng.generator("x"))
    sigma = torch.tensor([0.1, 0.5, 1.0, 2.0, 5.0], dtype=torch.float64).reshape(-1, 1)
    assert torch.allclose(one.denoise(x_t, sigma), same.denoise(x_t, sigma), atol=1e-10)
    m = measurement(one)
    found = one.posterior_moments(m)
    assert torch.allclose(
        found.mean[0].float(), same.posterior_mean(m, tol=1e-12)[0].float(), atol=1e-6
    )


def test_the_denoiser_is_tweedies():
    prior = mixture()
    x_t = torch.randn(4, 3, dtype=torch.float64, generator=Rng.generator("x")).requires_grad_()
    sigma = 0.7
    law = [
        torch.distributions.MultivariateNormal(m, c + sigma**2 * torch.eye(3))
        for m, c in zip(prior.means, prior.covs, strict=True)
    ]
    density = torch.logsumexp(
        torch.stack([w.log() + p.log_prob(x_t) for w, p in zip(prior.weights, law, strict=True)]), 0
    )
    (score,) = torch.autograd.grad(density.sum(), x_t)
    found = Prior.of(prior)(x_t.detach(), sigma)
    assert torch.allclose(found, x_t.detach() + sigma**2 * score, atol=1e-10)


def test_the_moments_are_those_of_the_samples():
    prior = mixture()
    x = prior.sample(Rng.keyed("x", items=range(N)))
    moments = prior.moments()
    assert torch.allclose(x.mean(0), moments.mean, atol=0.05)
    assert torch.allclose(torch.cov(x.T), moments.cov.dense(), atol=0.1)


@pytest.mark.slow
def test_the_posterior_is_what_weighted_samples_of_the_prior_say():
    prior = mixture()
    m = measurement(prior)
    found = prior.posterior_moments(m)
    x = prior.sample(Rng.keyed("x", items=range(20 * N)))
    w = torch.softmax(m[torch.zeros(len(x), dtype=torch.long)].log_prob(x), 0)
    mean = w @ x
    cov = (x - mean).T @ (w[:, None] * (x - mean))
    assert torch.allclose(found.mean[0], mean, atol=0.03)
    assert torch.allclose(found.cov[0], cov, atol=0.06)
    draws = prior.posterior(m[torch.zeros(N, dtype=torch.long)], Rng.keyed("draw", items=range(N)))
    assert torch.allclose(draws.mean(0), found.mean[0], atol=0.05)
    assert torch.allclose(torch.cov(draws.T), found.cov[0], atol=0.1)
    near = torch.bincount(torch.cdist(draws, prior.means).argmin(1), minlength=3).double() / N
    assert float(near[found.weights[0].argmax()]) == pytest.approx(
        float(found.weights.max()), abs=0.1
    )
