"""The reverse loops on a Gaussian prior, whose every marginal is known."""

import math

import pytest
import torch

from invem import Gaussian, Karras, Prior, Rng, generate
from invem.diffusion import count_calls, heun, initial_state, integrate, reverse_diffusion

D, N = 4, 20_000
COV = 0.7 ** (torch.arange(D)[:, None] - torch.arange(D)).abs().double()
GAUSSIAN = Gaussian.full(torch.linspace(-1, 1, D), COV)
PRIOR = Prior.of(GAUSSIAN)


def rng(*key, n=N):
    return Rng.keyed("diffusion", *key, items=range(n))


def extremes(x):
    values = torch.linalg.eigvals(torch.linalg.solve(COV, torch.cov(x.T.double()))).real
    return float(values.min()), float(values.max())


BAND = 1.5 * (2 * math.sqrt(D / N))


def test_generated_samples_have_mean_and_covariance():
    x = generate(PRIOR, Karras().grid(32), rng("generate"), (D,), torch.empty(0))
    assert torch.allclose(x.mean(0), GAUSSIAN.mean, atol=0.03)
    low, high = extremes(x)
    assert low > 1 - BAND - 0.02
    assert high < 1 + BAND + 0.02


@pytest.mark.parametrize("steps", [2, 5])
def test_ancestral_steps_with_draws_are_exact_at_any_number(steps):
    streams, sigmas = rng("draws"), Karras(sigma_max=5.0, sigma_min=0.05).grid(steps)

    def draw(x_t, sigma):
        return PRIOR(x_t, sigma) + GAUSSIAN.cov.given(sigma).draw(streams)

    x_t = GAUSSIAN.sample(rng("signal")) + float(sigmas[0]) * rng("noise").normal(D)
    low, high = extremes(reverse_diffusion(draw, x_t, sigmas, streams))
    assert low > 1 - BAND
    assert high < 1 + BAND


def test_ancestral_steps_with_the_mean_are_too_narrow():
    x_t = initial_state(PRIOR, 20.0, rng("start"), (D,), torch.empty(0))
    few, many = (
        extremes(reverse_diffusion(PRIOR, x_t, Karras().grid(steps), rng("chain")))[0]
        for steps in (8, 128)
    )
    assert few < many - 0.05
    assert many < 1


def test_eta_zero_is_eulers_rule_and_draws_nothing():
    x_t, sigmas = (
        torch.randn(3, D, generator=Rng.generator("x")),
        torch.tensor([2.0, 0.5, 0.1], dtype=torch.float64),
    )
    streams = rng("unused", n=3)
    found = reverse_diffusion(PRIOR, x_t, sigmas, streams, eta=0.0)
    x = x_t
    for sigma, s in ((2.0, 0.5), (0.5, 0.1)):
        x = x + (s - sigma) * (x - PRIOR(x, sigma)) / sigma
    assert torch.allclose(found, PRIOR(x, 0.1), atol=1e-5)
    assert torch.equal(streams.normal(2), rng("unused", n=3).normal(2))


def test_heun_is_of_second_order():
    x_t = 3 * torch.randn(50, D, generator=Rng.generator("heun"), dtype=torch.float64)
    prior = GAUSSIAN.to(dtype=torch.float64)

    def exact(x, sigma, s):
        """The probability flow of a Gaussian: each eigen-direction scales by sqrt((v + s^2)/(v +
        sigma^2))."""
        values, vectors = torch.linalg.eigh(COV)
        scale = ((values + s**2) / (values + sigma**2)).sqrt()
        return prior.mean + ((x - prior.mean) @ vectors * scale) @ vectors.T

    errors = []
    for steps in (17, 33):
        sigmas = Karras(sigma_max=3.0, sigma_min=0.3).grid(steps)
        found = heun(Prior.of(prior), x_t, sigmas)
        target = Prior.of(prior)(exact(x_t, 3.0, 0.3), 0.3)
        errors.append(float((found - target).abs().max()))
    assert 3 < errors[0] / errors[1] < 5.5


@pytest.mark.parametrize(
    ("stepping", "variances"),
    [
        ("euler", (0.739, 0.922, 0.980)),
        ("heun", (1.092, 1.006, 1.000)),
        ("ancestral", (0.569, 0.845, 0.958)),
        ("predictor-corrector", (0.754, 0.932, 0.976)),
        ("multistep", (1.105, 1.006, 1.000)),
    ],
)
def test_the_variance_of_a_rule_on_a_standard_normal_is_the_known_one(stepping, variances):
    """The final variance over the true one for 18, 64 and 256 levels from 80 to 0.002: each rule
    has its own deficit."""
    n = 20_000
    prior = Prior.of(Gaussian.standard((1,)))
    for steps, expected in zip((18, 64, 256), variances, strict=True):
        rng = Rng.keyed("rule", stepping, steps, items=range(n))
        x_t = initial_state(prior, 80.0, rng, (1,), torch.zeros(1))
        x = integrate(
            stepping, prior, x_t, Karras(sigma_max=80.0, sigma_min=0.002).grid(steps), rng
        )
        assert float(x.var()) == pytest.approx(expected, abs=4 * math.sqrt(2 / n) + 0.005)


@pytest.mark.parametrize("stepping", ["churn", "multistep-sde"])
def test_a_stochastic_rule_converges_to_the_prior(stepping):
    n = 10_000
    prior = Prior.of(Gaussian.standard((1,)))
    gaps = []
    for steps in (16, 128):
        rng = Rng.keyed("rule", items=range(n))
        x = integrate(
            stepping,
            prior,
            initial_state(prior, 80.0, rng, (1,), torch.zeros(1)),
            Karras(sigma_max=80.0).grid(steps),
            rng,
        )
        gaps.append(abs(float(x.var()) - 1))
    assert gaps[1] < 0.06 < gaps[0]


@pytest.mark.parametrize(
    "stepping",
    ["euler", "heun", "ancestral", "churn", "predictor-corrector", "multistep", "multistep-sde"],
)
def test_the_calls_of_a_rule_are_counted(stepping):
    count = []

    def denoise(x_t, sigma):
        count.append(sigma)
        return 0.5 * x_t

    integrate(stepping, denoise, torch.ones(2, 3), Karras().grid(9), Rng.keyed("c", items=range(2)))
    assert len(count) == count_calls(stepping, 9)
