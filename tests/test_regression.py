"""Every sampler on a Gaussian prior, where most are affine in y and in their random numbers, so
that mean and covariance of their draws follow exactly, without Monte Carlo: the right ones must be
right, and the biased ones must have their own bias.

The problem: d = 8, C_ij = 0.8^|i-j|, entries 0, 2, 3 and 6 seen with noise 0.1 (0.5).
"""

from functools import partial

import pytest
import torch
from invem_plugins.noises.gaussian import gaussian

from invem import Karras, Rng, Unsupported
from invem.config import Catalog
from invem.testing.affine import AffineProblem

CATALOG = Catalog.load()
SEEN = [0, 2, 3, 6]
C = 0.8 ** (torch.arange(8, dtype=torch.float64)[:, None] - torch.arange(8)).abs()
FINE = Karras(sigma_max=80.0, sigma_min=0.002)
JACOBIAN = {"covariance": "jacobian", "iterations": 8, "schedule": FINE}


def noise_of(n, sigma, d=8):
    return gaussian(n, (d,), Rng.generator(0), sigma=sigma)


PROBLEMS = {sigma: AffineProblem(C, SEEN, sigma, noise_of) for sigma in (0.1, 0.5)}


def compared(sampler, noise):
    return PROBLEMS[noise].bias(sampler)


def drawn(sampler, noise, n):
    """The bias of any sampler, by n draws of one y."""
    problem = PROBLEMS[noise]
    m = problem.repeated(n)
    return problem.drawn_bias(m, sampler(problem.prior, m, Rng.keyed("d", items=range(n))))


def build(name, **options):
    return CATALOG.find("samplers", name).load()(**options)


@pytest.mark.parametrize("noise", [0.1, 0.5])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mmps", {"stepping": "corrected", "steps": 16, **JACOBIAN}),
        ("mmps", {"stepping": "corrected", "steps": 16, "covariance": "moments", "schedule": FINE}),
        ("daps-mm", {"steps": 30, **JACOBIAN}),
        ("matched-gibbs", {"sweeps": 10}),
        ("exact", {}),
    ],
)
def test_these_are_exact(name, options, noise):
    error, low, high, _ = compared(build(name, **options), noise)
    assert error < 0.01
    assert low > 0.98
    assert high < 1.02


# The error of the mean, and the smallest and largest eigenvalue, as derived for each method by
# itself.
BIASED = [
    ("mmps", {"stepping": "ancestral", "steps": 64, **JACOBIAN}, 0.1, 0.0, 0.79, 0.84),
    ("mmps", {"stepping": "ancestral", "steps": 256, **JACOBIAN}, 0.1, 0.0, 0.94, 0.96),
    (
        "pigdm",
        {"stepping": "ancestral", "steps": 1000, "variance": 1.0, "schedule": FINE},
        0.1,
        0.14,
        0.98,
        1.25,
    ),
    ("tmpd", {"stepping": "ancestral", "steps": 1000, "schedule": FINE}, 0.1, 0.12, 0.98, 1.14),
    ("dps", {"guidance": "likelihood", "steps": 1000, "schedule": FINE}, 0.1, 0.23, 0.48, 1.0),
    ("diffpir", {"lam": 7.0, "zeta": 0.3, "steps": 100, "schedule": FINE}, 0.1, 0.60, 0.86, 6.3),
    ("ddrm", {"steps": 20, "schedule": FINE}, 0.1, 0.44, 0.56, 1.6),
    ("ddnm", {"steps": 100, "plus": False, "schedule": FINE}, 0.1, 0.19, 0.0, 1.06),
    ("ddnm", {"steps": 100, "plus": False, "schedule": FINE}, 0.5, 0.58, 0.0, 1.06),
    ("split-gibbs", {"first": 10.0, "last": 0.3, "sweeps": 100, "levels": 1}, 0.1, 0.72, 1.0, 9.7),
    ("split-gibbs", {"first": 10.0, "last": 0.3, "sweeps": 100, "levels": 1}, 0.5, 0.10, 1.0, 1.32),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "noise", "error", "low", "high"), BIASED)
def test_these_have_their_known_bias(name, options, noise, error, low, high):
    found = compared(build(name, **options), noise)
    assert found[0] == pytest.approx(error, rel=0.2, abs=0.01)
    assert found[1] == pytest.approx(low, rel=0.04, abs=0.01)
    assert found[2] == pytest.approx(high, rel=0.04, abs=0.01)


def test_published_daps_doubles_what_the_data_do_not_see():
    """N(h, sigma^2 I) is wider than p(x | x_t): with many steps of its flow the null space has
    twice the variance."""
    few, many = (
        compared(build("daps", kernel="exact", steps=100, flow=k, schedule=FINE), 0.1)
        for k in (5, 20)
    )
    assert few[1] == pytest.approx(1.0, abs=0.02) and many[1] == pytest.approx(1.0, abs=0.02)
    assert 1.8 < few[2] < many[2] < 2.7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weight", "low", "high"), [(0.1, 0.07, 1.0), (0.3, 0.46, 1.0), (1.0, 0.6, 24)]
)
def test_dps_by_the_norm_has_the_spread_of_its_weight(weight, low, high):
    """Not affine, so by 8,000 draws; one thousand levels of the variance-preserving schedule, as
    published."""
    schedule = CATALOG.find("schedules", "vp").load()()
    found = drawn(build("dps", steps=1000, weight=weight, schedule=schedule), 0.1, 8000)
    assert found.smallest == pytest.approx(low, rel=0.15, abs=0.02)
    assert found.largest == pytest.approx(high, rel=0.12)


def test_sitcom_is_under_dispersed():
    found = drawn(build("sitcom", inner=60, rate=0.05, schedule=FINE), 0.5, 2000)
    assert found.smallest == pytest.approx(0.3, abs=0.06)
    assert found.largest < 1.1
    assert found.average < 0.6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["langevin", "twisted-smc", "mcg-diff"])
def test_these_converge_to_the_posterior(name):
    """Their error shrinks as steps (and particles) grow."""
    few = {
        "langevin": {"steps": 50},
        "twisted-smc": {"steps": 16, "particles": 2},
        "mcg-diff": {"steps": 16, "particles": 4},
    }[name]
    more = {
        "langevin": {"steps": 600},
        "twisted-smc": {"steps": 96, "particles": 8},
        "mcg-diff": {"steps": 96, "particles": 16},
    }[name]
    gaps = []
    for options in (few, more):
        found = drawn(build(name, **options), 0.5, 2000)
        gaps.append(max(abs(found.smallest - 1), abs(found.largest - 1)))
    assert gaps[1] < 0.22 < gaps[0]


@pytest.mark.parametrize("rho", [0.5, 4.0])
def test_dps_by_the_likelihood_has_its_closed_form_in_one_dimension(rho):
    """x ~ N(0, 1), y = x + n, rho = 1/noise^2: with many steps the mean is y (1 - e^-rho), the
    variance (1 - e^-2rho)/(2 rho)."""
    one = torch.ones(1, 1, dtype=torch.float64)
    problem = AffineProblem(one, [0], rho**-0.5, partial(noise_of, d=1))
    sampler = build("dps", guidance="likelihood", steps=2000, schedule=FINE)
    gain, covariance = problem.distribution(sampler)
    limit = 1 - torch.exp(torch.tensor(-rho))
    assert float(gain) == pytest.approx(float(limit), rel=0.02)
    assert float(covariance) == pytest.approx(
        float((1 - torch.exp(torch.tensor(-2 * rho))) / (2 * rho)), rel=0.02
    )


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda prior, m, rng: rng.uniform(8), "uniform"),
        (lambda prior, m, rng: rng.normal(8) + 1, "not linear"),
    ],
)
def test_a_sampler_that_is_not_affine_has_no_exact_bias(draw, message):
    with pytest.raises(Unsupported, match=message):
        compared(draw, 0.1)
