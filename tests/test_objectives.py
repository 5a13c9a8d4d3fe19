"""Objectives: one loss a sample, a gradient for every parameter, and least at the exact denoiser."""

import pytest
import torch
from invem_plugins.networks.mlp import MLP
from invem_plugins.objectives.dsm import DSM
from invem_plugins.objectives.gaussian_moments import GaussianMoments

from invem import Denoiser, Example, Gaussian, GaussianDenoiser, Preconditioned, RecipeError, Rng, Unsupported

D = 4
PRIOR = Gaussian.full(torch.linspace(-1, 1, D), 0.6 ** (torch.arange(D)[:, None] - torch.arange(D)).abs().double())


class Perturbed(Denoiser):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x_t, sigma, cond=None):
        return self.scale * PRIOR.denoise(x_t, torch.as_tensor(sigma))


def rng(n):
    return Rng.keyed("objective", items=range(n))


def test_dsm_is_least_at_the_exact_denoiser():
    x = PRIOR.sample(rng(20_000))
    best = DSM().loss(GaussianDenoiser(PRIOR), Example(x), rng(20_000)).mean()
    for scale in (0.9, 1.1):
        assert DSM().loss(Perturbed(scale), Example(x), rng(20_000)).mean() > 1.01 * best


def test_dsm_at_the_exact_denoiser_is_the_posterior_variance():
    """E w |x_hat - x|^2 / d = E w tr Cov[x | x_t] / d, with w and sigma as EDM draws them."""
    n = 20_000
    x = PRIOR.sample(Rng.keyed("signal", items=range(n)))
    loss = DSM().loss(GaussianDenoiser(PRIOR), Example(x), rng(n))
    assert loss.shape == (n,)
    sigma = (-1.2 + 1.2 * rng(n).normal(1)).exp().double()
    values = torch.linalg.eigvalsh(PRIOR.cov.dense().double())
    weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    expected = (weight * (values * sigma**2 / (values + sigma**2))).mean(1)
    assert float(loss.mean()) == pytest.approx(float(expected.mean()), rel=0.03)


def test_the_gradient_reaches_every_parameter_and_a_loss_is_of_its_sample():
    torch.manual_seed(0)
    denoiser = Preconditioned(MLP((D,), width=8), 1.0)
    for weight in denoiser.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    x = PRIOR.sample(rng(6))
    loss = DSM().loss(denoiser, Example(x), rng(6))
    loss.mean().backward()
    assert all(bool(weight.grad.abs().sum() > 0) for weight in denoiser.parameters())
    moved = DSM().loss(denoiser, Example(torch.cat([x[:1] + 5, x[1:]])), rng(6))
    assert torch.allclose(moved[1:], loss[1:]) and moved[0] != loss[0]


def test_what_an_objective_was_not_given():
    with pytest.raises(RecipeError, match="signals"):
        DSM().loss(GaussianDenoiser(PRIOR), Example(None), rng(1))
    with pytest.raises(RecipeError, match="neither"):
        GaussianMoments().solve(GaussianDenoiser(PRIOR), lambda: [(Example(None), rng(1))])
    with pytest.raises(Unsupported):
        DSM().solve(GaussianDenoiser(PRIOR), lambda: [])
    assert GaussianMoments().closed_form and not DSM().closed_form
