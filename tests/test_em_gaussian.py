"""Expectation-maximisation on a Gaussian prior, where every step has an exact answer."""

import pytest
import torch
from invem_plugins.noises.gaussian import gaussian
from invem_plugins.operators.random_mask import random_mask
from invem_plugins.samplers.mmps import MMPS

from invem import Gaussian, Measurement, Prior, Rng

D, ROUNDS = 8, 40


def truth():
    i = torch.arange(D, dtype=torch.float64)
    return Gaussian.full(torch.linspace(-1, 2, D), 0.8 ** (i[:, None] - i).abs())


def observe(n):
    x = truth().sample(Rng.keyed("x", items=range(n)))
    A = random_mask(n, (D,), Rng.generator("A"), keep=0.5)
    noise = gaussian(n, (D,), Rng.generator("noise"), sigma=0.1)
    return Measurement(noise.sample(A(x), Rng.generator("y")), A, noise)


def ratios(prior):
    """The eigenvalues of the learned covariance relative to the true one, ascending."""
    learned, true = prior.cov.dense().double(), truth().cov.dense().double()
    return torch.linalg.eigvals(torch.linalg.solve(true, learned)).real.sort().values


def learn(e_step, m):
    prior = Gaussian.standard((D,))
    for r in range(ROUNDS):
        prior = Gaussian.fit(e_step(prior, m, Rng.keyed("e-step", r, items=range(len(m)))), D)
    return prior


def by(sampler):
    return lambda prior, m, rng: sampler(Prior.of(prior), m, rng)


@pytest.mark.slow
def test_forty_rounds_of_mmps_learn_the_covariance():
    m = observe(32768)
    learned = learn(by(MMPS()), m)
    assert float((ratios(learned) - 1).abs().max()) < 0.1
    assert float((learned.mean - truth().mean).abs().max()) < 0.05
    exact = learn(lambda prior, m, rng: prior.posterior(m, rng), m)
    assert torch.allclose(ratios(learned), ratios(exact), atol=0.05)


def test_plain_ancestral_steps_collapse():
    """The loss of variance of one E-step compounds: why `corrected` is the default."""
    assert float(ratios(learn(by(MMPS(stepping="ancestral", steps=16)), observe(2048)))[0]) < 0.6


@pytest.mark.parametrize("rank", [2, 8])
def test_the_warm_start_objective_is_this_em(rank):
    from invem_plugins.objectives.gaussian_moments import GaussianMoments

    from invem import Example

    m = observe(1024)
    rng = Rng.keyed("fit", items=range(1024))
    denoiser = Prior.of(Gaussian.standard((D,)))
    fitted = GaussianMoments(rank=rank).solve(denoiser, lambda: [(Example(None, m), rng[:])])
    drawn = Gaussian.standard((D,)).posterior(m, rng[:])
    assert torch.allclose(
        fitted.moments().cov.dense(), Gaussian.fit(drawn, rank).cov.dense(), atol=1e-5
    )
