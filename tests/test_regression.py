"""Every sampler on a Gaussian prior, where most are affine in y and in their random numbers, so
that mean and covariance of their law follow exactly, without Monte Carlo: the right ones must be
right, and the biased ones must have their own bias.

The problem: d = 8, C_ij = 0.8^|i-j|, entries 0, 2, 3 and 6 seen with noise 0.1 (0.5).
"""

import pytest
import torch
from invem_plugins.noises.gaussian import gaussian

from invem import Gaussian, Karras, Mask, Measurement, Prior, Rng
from invem.config import Catalog

CATALOG = Catalog.load()
SEEN = [0, 2, 3, 6]
C = 0.8 ** (torch.arange(8, dtype=torch.float64)[:, None] - torch.arange(8)).abs()
PRIOR = Prior.of(Gaussian.full(torch.zeros(8, dtype=torch.float64), C))
FINE = Karras(sigma_max=80.0, sigma_min=0.002)
JACOBIAN = {"covariance": "jacobian", "iterations": 8, "schedule": FINE}


class Unit(Rng):
    """Random numbers that are zero but for one in each row: the i-th number that row i asks for is
    1. Row -1 has none."""

    def __init__(self, rows):
        super().__init__(range(len(rows)))
        self.rows, self.used = rows, 0

    def _fill(self, shape, dtype, normal):
        assert normal
        k = torch.Size(shape).numel()
        out = (self.rows[:, None] == torch.arange(self.used, self.used + k)).to(torch.float64)
        self.used += k
        return out.reshape(len(self.rows), *shape)


def measurement(y, noise):
    n = len(y)
    seen = torch.zeros(8, dtype=torch.float64)
    seen[SEEN] = 1
    law = gaussian(n, (8,), Rng.generator(0), sigma=noise).to(dtype=torch.float64)
    return Measurement(y.double(), Mask((8,), seen.expand(n, 8).contiguous()), law)


def law_of(sampler, noise):
    """The gain (8, 4) of the mean and the covariance (8, 8) of the draws, exact for a sampler that
    is affine."""
    count = Unit(torch.tensor([-1]))
    sampler(PRIOR, measurement(torch.zeros(1, 8), noise), count)
    y = torch.zeros(count.used + 5, 8)
    y[torch.arange(4), torch.tensor(SEEN)] = 1
    rows = torch.cat([torch.full((5,), -1), torch.arange(count.used)])
    x = sampler(PRIOR, measurement(y, noise), Unit(rows))
    assert torch.allclose(x[4], torch.zeros(8, dtype=torch.float64), atol=1e-6)
    return x[:4].T, x[5:].T @ x[5:]


def compared(sampler, noise):
    """The root mean square error of the mean over y, in posterior standard deviations, and the
    eigenvalues of P^-1 Cov."""
    gain, cov = law_of(sampler, noise)
    A = torch.eye(8, dtype=torch.float64)[SEEN]
    total = A @ C @ A.T + noise**2 * torch.eye(4)
    best = C @ A.T @ torch.linalg.inv(total)
    P = C - best @ A @ C
    gap = (gain - best) @ total @ (gain - best).T
    root = torch.linalg.cholesky(P)
    white = torch.linalg.solve_triangular(
        root, torch.linalg.solve_triangular(root, cov, upper=False).T, upper=False
    )
    error = float((gap.diagonal() / P.diagonal()).mean().sqrt())
    values = torch.linalg.eigvalsh(white)
    return error, float(values[0]), float(values[-1]), float(values.mean())


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


@pytest.mark.parametrize(
    ("weight", "low", "high"), [(0.1, 0.07, 1.0), (0.3, 0.46, 1.0), (1.0, 0.6, 24)]
)
def test_dps_by_the_norm_has_the_spread_of_its_weight(weight, low, high):
    """Not affine, so by 8,000 draws; one thousand levels of the variance-preserving schedule, as
    published."""
    n = 8000
    m = seen_once(n, 0.1)
    schedule = CATALOG.find("schedules", "vp").load()()
    x = build("dps", steps=1000, weight=weight, schedule=schedule)(
        PRIOR, m, Rng.keyed("d", items=range(n))
    )
    values = spread(x, 0.1)
    assert float(values[0]) == pytest.approx(low, rel=0.15, abs=0.02)
    assert float(values[-1]) == pytest.approx(high, rel=0.12)


def test_sitcom_is_under_dispersed():
    n = 2000
    x = build("sitcom", inner=60, rate=0.05, schedule=FINE)(
        PRIOR, seen_once(n, 0.5), Rng.keyed("d", items=range(n))
    )
    values = spread(x, 0.5)
    assert float(values[0]) == pytest.approx(0.3, abs=0.06)
    assert float(values[-1]) < 1.1
    assert float(values.mean()) < 0.6


def seen_once(n, noise):
    """One measurement of a draw of the prior, n times, noise in the hidden entries too, as invem
    draws it."""
    x = PRIOR.known_moments().sample(Rng.keyed("t", items=[0]))
    y = torch.zeros(1, 8, dtype=torch.float64)
    y[:, SEEN] = x.double()[:, SEEN]
    return measurement(
        (y + noise * Rng.keyed("y", items=[0]).normal(8, dtype=torch.float64))
        .expand(n, 8)
        .contiguous(),
        noise,
    )


def spread(x, noise):
    A = torch.eye(8, dtype=torch.float64)[SEEN]
    P = C - C @ A.T @ torch.linalg.inv(A @ C @ A.T + noise**2 * torch.eye(4)) @ A @ C
    root = torch.linalg.cholesky(P)
    white = torch.linalg.solve_triangular(root, (x - x.mean(0)).double().T, upper=False)
    return torch.linalg.eigvalsh(torch.cov(white))


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
    n = 2000
    gaps = []
    for options in (few, more):
        x = build(name, **options)(PRIOR, seen_once(n, 0.5), Rng.keyed("d", items=range(n)))
        gaps.append(float((spread(x, 0.5) - 1).abs().max()))
    assert gaps[1] < 0.22 < gaps[0]


@pytest.mark.parametrize("rho", [0.5, 4.0])
def test_dps_by_the_likelihood_has_its_closed_form_in_one_dimension(rho):
    """x ~ N(0, 1), y = x + n, rho = 1/noise^2: with many steps the mean is y (1 - e^-rho), the
    variance (1 - e^-2rho)/(2 rho)."""
    prior = Prior.of(
        Gaussian.full(torch.zeros(1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    )
    sampler = build("dps", guidance="likelihood", steps=2000, schedule=FINE)
    count = Unit(torch.tensor([-1]))

    def one(y, rng):
        noise = gaussian(len(y), (1,), Rng.generator(0), sigma=rho**-0.5).to(dtype=torch.float64)
        ones = torch.ones(len(y), 1, dtype=torch.float64)
        return sampler(prior, Measurement(y.double(), Mask((1,), ones), noise), rng)

    one(torch.zeros(1, 1), count)
    y = torch.zeros(count.used + 1, 1)
    y[0] = 1
    x = one(y, Unit(torch.cat([torch.tensor([-1]), torch.arange(count.used)])))
    limit = 1 - torch.exp(torch.tensor(-rho))
    assert float(x[0]) == pytest.approx(float(limit), rel=0.02)
    assert float(x[1:].square().sum()) == pytest.approx(
        float((1 - torch.exp(torch.tensor(-2 * rho))) / (2 * rho)), rel=0.02
    )
