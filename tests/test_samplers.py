"""The samplers: MMPS against the exact posterior, DPS against its own closed form, and no sample
ever touching another."""

import dataclasses
import math

import pytest
import torch
from invem_plugins.networks.mlp import MLP
from invem_plugins.networks.unet import UNet
from invem_plugins.noises.gaussian import gaussian
from invem_plugins.operators.gaussian_blur import gaussian_blur
from invem_plugins.operators.identity import identity
from invem_plugins.operators.random_mask import random_mask
from invem_plugins.operators.random_projection import random_projection
from invem_plugins.samplers.dps import DPS
from invem_plugins.samplers.mmps import MMPS

from invem import Gaussian, Measurement, Preconditioned, Prior, RecipeError, Rng, Unsupported
from invem.config import Catalog
from invem.operator import Chain

CATALOG = Catalog.load()
SAMPLERS = sorted(CATALOG.offers["samplers"])
DRAWS = 40_000


def correlated(shape):
    d = math.prod(shape)
    i = torch.arange(d, dtype=torch.float64)
    cov = (0.8 ** (i[:, None] - i).abs()) * torch.linspace(
        0.5, 1.5, d, dtype=torch.float64
    ).sqrt().outer(torch.linspace(0.5, 1.5, d, dtype=torch.float64).sqrt())
    return Gaussian.full(torch.linspace(-0.5, 1, d).reshape(shape), cov)


def measure(A, x, sigma=0.1):
    clean = A(x)
    noise = gaussian(len(x), tuple(clean.shape[1:]), Rng.generator("noise"), sigma=sigma)
    return Measurement(noise.sample(clean, Rng.generator("y")), A, noise)


def exact(gaussian_prior, m):
    """The posterior mean (d,) and covariance (d, d) of a batch of one, by dense algebra."""
    d = gaussian_prior.mean.numel()
    basis = torch.eye(d).reshape(d, *m.shape)
    rows = torch.zeros(d, dtype=torch.long)
    A = m.A[rows](basis).flatten(1).T.double()
    C, mean = gaussian_prior.cov.dense().double(), gaussian_prior.mean.flatten().double()
    S = torch.diag(m.noise.var().expand_as(m.y).flatten().double())
    gain = C @ A.T @ torch.linalg.inv(A @ C @ A.T + S)
    return mean + gain @ (m.y.flatten().double() - A @ mean), C - gain @ A @ C


def errors(x, mean, cov):
    """The largest error of the mean, in posterior standard deviations, and the extreme eigenvalues
    of cov^-1 sample cov."""
    x = x.flatten(1).double()
    root = torch.linalg.cholesky(cov)
    white = torch.linalg.solve_triangular(root, (x - mean).T, upper=False).T
    values = torch.linalg.eigvalsh(torch.cov(white.T))
    return float(white.mean(0).abs().max()), float(values[0]), float(values[-1])


LAWS = {
    "mask": lambda: (correlated((8,)), random_mask(1, (8,), Rng.generator(3), keep=0.5)),
    "projection": lambda: (
        correlated((8,)),
        random_projection(1, (8,), Rng.generator(1), measurements=3),
    ),
    "blur": lambda: (
        correlated((1, 3, 3)),
        gaussian_blur(1, (1, 3, 3), Rng.generator(0), std=0.8, size=3),
    ),
}


@pytest.mark.parametrize("law", LAWS)
def test_mmps_at_its_defaults_draws_the_exact_posterior(law):
    gaussian_prior, A = LAWS[law]()
    m = measure(A, gaussian_prior.sample(Rng.keyed("truth", items=[0])))
    calls = []
    prior = Prior.of(gaussian_prior)
    sampler = MMPS().tune(prior, m, rng())
    prior.denoiser.register_forward_hook(lambda *_: calls.append(1))
    rows = torch.zeros(DRAWS, dtype=torch.long)
    x = sampler(prior, m[rows], Rng.keyed("draw", items=range(DRAWS)))
    assert len(calls) == sampler.cost[0] <= 64
    shift, low, high = errors(x, *exact(gaussian_prior, m))
    assert shift < 0.03
    assert low > 0.95
    assert high < 1.05


def test_plain_ancestral_steps_lose_variance():
    """Why they are not the default: the same test fails with them."""
    gaussian_prior, A = LAWS["mask"]()
    m = measure(A, gaussian_prior.sample(Rng.keyed("truth", items=[0])))
    rows = torch.zeros(DRAWS // 4, dtype=torch.long)
    x = MMPS(stepping="ancestral")(
        Prior.of(gaussian_prior), m[rows], Rng.keyed("draw", items=range(len(rows)))
    )
    _, low, _ = errors(x, *exact(gaussian_prior, m))
    assert low < 0.9


@pytest.mark.parametrize("covariance", ["jacobian", "moments"])
@pytest.mark.parametrize("solver", ["gmres", "cg"])
def test_mmps_by_other_covariances_and_solvers(covariance, solver):
    gaussian_prior, A = LAWS["projection"]()
    m = measure(A, gaussian_prior.sample(Rng.keyed("truth", items=[0])))
    n = 10_000
    sampler = MMPS(covariance=covariance, solver=solver, iterations=8)
    x = sampler(
        Prior.of(gaussian_prior),
        m[torch.zeros(n, dtype=torch.long)],
        Rng.keyed("draw", items=range(n)),
    )
    shift, low, high = errors(x, *exact(gaussian_prior, m))
    band = 2 * math.sqrt(8 / n) + 0.02
    assert shift < 0.05
    assert 1 - band < low
    assert high < 1 + band


def test_heun_mmps_approaches_the_posterior():
    gaussian_prior, A = LAWS["mask"]()
    m = measure(A, gaussian_prior.sample(Rng.keyed("truth", items=[0])))
    n = 10_000
    rows, rng = torch.zeros(n, dtype=torch.long), Rng.keyed("draw", items=range(n))
    x = MMPS(stepping="heun", steps=48)(Prior.of(gaussian_prior), m[rows], rng)
    shift, low, high = errors(x, *exact(gaussian_prior, m))
    assert shift < 0.05
    assert low > 0.9
    assert high < 1.1


@pytest.mark.parametrize("weight", [1.0, 4.0])
def test_dps_follows_its_closed_form_and_not_the_posterior(weight):
    """For x ~ N(0, 1) and y = x + n every step is affine, so that mean and variance follow a
    recursion."""
    n, y, var = 20_000, 0.7, 0.25
    sampler = DPS(guidance="likelihood", weight=weight, steps=64)
    noise = gaussian(n, (1,), Rng.generator(0), sigma=math.sqrt(var))
    m = Measurement(torch.full((n, 1), y), identity(n, (1,), Rng.generator(0)), noise)
    x = sampler(Prior.of(Gaussian.standard((1,))), m, Rng.keyed("dps", items=range(n)))
    levels = sampler.schedule.grid(64).tolist()
    mean, variance = 0.0, levels[0] ** 2 + 1
    for sigma, s in zip(levels, [*levels[1:], 0.0], strict=True):
        shrink, keep = 1 / (1 + sigma**2), s**2 / sigma**2
        pull = weight * (sigma**2 - s**2) * shrink / var
        slope = shrink + keep * (1 - shrink) - pull * shrink
        mean, variance = slope * mean + pull * y, slope**2 * variance + s**2 * (1 - keep)
    assert float(x.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance / n))
    assert float(x.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / n))
    assert abs(variance / (var / (1 + var)) - 1) > 0.2


def test_dps_chooses_the_weight_of_least_misfit():
    gaussian_prior, _ = LAWS["mask"]()
    A = random_mask(12, (8,), Rng.generator(0), keep=0.5)
    m = measure(A, gaussian_prior.sample(Rng.keyed("truth", items=range(12))))
    prior, rng = Prior.of(gaussian_prior), Rng.keyed("tune", items=range(12))
    sampler = DPS(weight="auto", steps=32)
    with pytest.raises(RecipeError, match="tune"):
        sampler(prior, m, rng)
    tuned = sampler.tune(prior, m, rng)
    misfits = {
        w: float(
            (m.y - m.A(dataclasses.replace(sampler, weight=w)(prior, m, rng[:]))).square().mean()
        )
        for w in DPS.candidates
    }
    assert tuned.weight == min(misfits, key=misfits.get)


def build(name, **options):
    sampler = CATALOG.find("samplers", name).load()
    known = {field.name for field in dataclasses.fields(sampler)}
    return sampler(**{key: value for key, value in options.items() if key in known})


def networks():
    shape = (1, 6, 6)
    torch.manual_seed(0)
    unet = Preconditioned(UNet(shape, channels=[8, 16]), 0.5)
    for weight in unet.parameters():
        torch.nn.init.normal_(weight, std=0.08)
    unet.mean = correlated(shape).mean
    learned = Prior(unet.eval(), correlated(shape))
    yield "unet", learned, gaussian_blur(4, shape, Rng.generator(0), std=0.8, size=3)
    yield "unet-mask", learned, random_mask(4, shape, Rng.generator(0))
    mlp = Preconditioned(MLP((8,), width=16), 0.5)
    mlp.mean = correlated((8,)).mean
    yield "mlp", Prior(mlp.eval(), correlated((8,))), random_projection(4, (8,), Rng.generator(0))
    yield "exact", Prior.of(correlated((8,))), random_mask(4, (8,), Rng.generator(0))
    yield "exact-identity", Prior.of(correlated((8,))), identity(4, (8,), Rng.generator(0))


CASES = {label: (prior, A) for label, prior, A in networks()}


@pytest.fixture(params=CASES)
def case(request):
    prior, A = CASES[request.param]
    return prior, measure(A, correlated(A.shape).sample(Rng.keyed("truth", items=range(4))))


def rng(n=4):
    return Rng.keyed("sample", items=range(n))


QUICK = {
    "split-gibbs": {"sweeps": 3, "levels": 2},
    "matched-gibbs": {"sweeps": 3, "warm": 4},
    "sfbd": {"steps": 4},
    "sitcom": {"steps": 3, "inner": 4},
    "daps": {"steps": 4, "inner": 5, "flow": 2},
    "twisted-smc": {"steps": 6, "particles": 3},
    "mcg-diff": {"steps": 6, "particles": 3},
    "langevin": {"steps": 6, "inner": 2},
    "exact": {},
}


def fitting(name, prior, m):
    """A quick setting of a sampler, or a skip where the measurement or the prior does not have what
    it needs."""
    if "identity" in m.provides and name != "sfbd":
        pytest.skip("the identity is there for sfbd")
    sampler = build(name, **QUICK.get(name, {"steps": 6}))
    have = m.provides | {"moments"} | ({"closed form"} if prior.exact is not None else set())
    if lacks := sampler.needs - have:
        pytest.skip(f"it needs {', '.join(lacks)}")
    return sampler.tune(prior, m, rng())


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_never_interact(name, case):
    prior, m = case
    sampler = fitting(name, prior, m)
    x = sampler(prior, m, rng())
    assert x.shape == (4, *m.shape)
    assert bool(x.isfinite().all())
    y = m.y.clone()
    y[1] = 50 * y[1] + 3
    moved = sampler(prior, dataclasses.replace(m, y=y), rng())
    rest = torch.tensor([0, 2, 3])
    assert torch.allclose(moved[rest], x[rest], atol=1e-5)
    assert name == "prior" or not torch.allclose(moved[1], x[1], atol=1e-2)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_batch_size_changes_nothing(name, case):
    prior, m = case
    sampler = fitting(name, prior, m)
    x = sampler(prior, m, rng())
    alone = torch.cat([sampler(prior, m[i], rng()[i]) for i in range(4)])
    assert torch.allclose(alone, x, atol=2e-4, rtol=1e-3)
    order = torch.tensor([3, 1, 0, 2])
    assert torch.allclose(sampler(prior, m[order], rng()[order]), x[order], atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_draw_is_its_random_numbers(name, case):
    prior, m = case
    sampler = fitting(name, prior, m)
    state = torch.random.get_rng_state()
    one, two = sampler(prior, m, rng()), sampler(prior, m, rng())
    assert torch.equal(one, two)
    assert torch.equal(torch.random.get_rng_state(), state)
    other = sampler(prior, m, Rng.keyed("other", items=range(4)))
    assert torch.equal(one, other) if not sampler.uses_prior else not torch.allclose(one, other)
    assert not one.requires_grad
    assert all(weight.grad is None for weight in prior.denoiser.parameters())


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_a_sampler_declares_is_enough(name, case):
    """A measurement that provides nothing else is enough, and the cost that the plan prints is the
    cost."""
    prior, m = case
    sampler = fitting(name, prior, m)
    hidden = {"adjoint", "pinv", "svd"} - sampler.needs
    blind = dataclasses.replace(m, A=_hide(m.A, hidden))
    rows = []
    handle = prior.denoiser.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    try:
        assert bool(sampler(prior, blind, rng()).isfinite().all())
    finally:
        handle.remove()
    if sampler.adapts:  # a bound: `auto` with a prior in closed form calls nothing
        assert sum(rows) <= 4 * sampler.cost[0]
    else:
        assert sum(rows) == 4 * sampler.cost[0]


def _hide(A, names):
    from invem import Operator

    methods = {name: getattr(Operator, name) for name in names} | (
        {"vjp": Operator.vjp} if "adjoint" in names else {}
    )
    kind = type(f"Blind{type(A).__name__}", (type(A),), methods)
    return kind(**{field.name: getattr(A, field.name) for field in dataclasses.fields(A)})


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_hidden_entries_measure_has_no_effect(name):
    """y is noise alone there, and a norm or a Krylov space that counts it depends on how much is
    hidden."""
    prior = Prior.of(correlated((8,)))
    m = measure(
        random_mask(4, (8,), Rng.generator(0), keep=0.5),
        correlated((8,)).sample(Rng.keyed("truth", items=range(4))),
    )
    sampler = fitting(name, prior, m)
    moved = dataclasses.replace(m, y=m.y + 5 * (1 - m.A.seen))
    assert torch.allclose(sampler(prior, moved, rng()), sampler(prior, m, rng()), atol=1e-4)


ANY = [name for name in SAMPLERS if name not in ("prior",) and build(name).needs <= {"vjp", "var"}]


@pytest.mark.parametrize("name", [*ANY, "split-gibbs", "mmps"])
def test_nonlinear_operators_are_taken_where_the_method_allows_it(name):
    """A clipped measurement with noise 0.1: the misfit of the draws is far below that of the
    prior's."""
    n = 64
    A = CATALOG.find("operators", "clip").load()(n, (8,), Rng.generator(0))
    prior = Prior.of(correlated((8,)))
    m = measure(A, correlated((8,)).sample(Rng.keyed("truth", items=range(n))))
    assert "adjoint" not in m.provides
    special = {
        "split-gibbs": {"kernel": "langevin", "sweeps": 20},
        "langevin": {"steps": 100},
        "dps": {"weight": 0.3},
    }
    special["mmps"] = {"linearise": True}
    options = special.get(name, {})
    sampler = build(name, **options)
    x, floor = sampler(prior, m, rng(n)), build("prior")(prior, m, rng(n))
    assert bool(x.isfinite().all())
    misfit, worst = ((m.y - m.A(t)).square().mean() for t in (x, floor))
    assert float(misfit) < 0.5 * float(worst)


def test_counting_noise_is_taken_by_those_that_need_a_density_alone():
    n = 64
    noise = CATALOG.find("noises", "laplace").load()(n, (8,), Rng.generator(0))
    A = random_mask(n, (8,), Rng.generator(0), keep=0.7)
    x = correlated((8,)).sample(Rng.keyed("truth", items=range(n)))
    m = Measurement(noise.sample(A(x), Rng.generator("y")), A, noise)
    prior = Prior.of(correlated((8,)))
    for name in ("daps", "lgd"):
        draws, floor = build(name)(prior, m, rng(n)), build("prior")(prior, m, rng(n))
        assert m.log_prob(draws).mean() > m.log_prob(floor).mean() + 1


def test_a_warm_start_solves_better_for_the_same_iterations():
    gaussian_prior, A = LAWS["projection"]()
    m = measure(A, gaussian_prior.sample(Rng.keyed("truth", items=[0])))
    mean, _ = exact(gaussian_prior, m)
    gaps = []
    for warm in (False, True):
        sampler = MMPS(
            stepping="euler", covariance="jacobian", solver="cg", iterations=1, warm=warm, steps=200
        )
        rows = torch.zeros(500, dtype=torch.long)
        x = sampler(Prior.of(gaussian_prior), m[rows], Rng.keyed("draw", items=range(500)))
        gaps.append(float((x.double().mean(0) - mean).norm()))
    assert gaps[1] < 0.7 * gaps[0]
    with pytest.raises(RecipeError, match="warm is for"):
        MMPS(warm=True)


def test_a_linear_operator_is_its_own_linearisation():
    gaussian_prior, A = LAWS["projection"]()
    m = measure(A, gaussian_prior.sample(Rng.keyed("truth", items=[0])))
    rows, prior = torch.zeros(2000, dtype=torch.long), Prior.of(gaussian_prior)
    x = MMPS(linearise=True)(prior, m[rows], Rng.keyed("draw", items=range(2000)))
    shift, low, high = errors(x, *exact(gaussian_prior, m))
    assert shift < 0.1 and low > 0.85 and high < 1.2
    blur, jpeg = (
        CATALOG.find("operators", name).load()(2, (1, 8, 8), Rng.generator(0))
        for name in ("gaussian-blur", "jpeg")
    )
    for A in (
        jpeg,
        Chain((1, 8, 8), (blur, jpeg)),
        Chain((1, 8, 8), (blur, jpeg))[torch.arange(2)],
    ):
        with pytest.raises(Unsupported, match="no derivative"):
            MMPS(linearise=True)(
                Prior.of(correlated((1, 8, 8))),
                measure(A, torch.zeros(2, 1, 8, 8)),
                Rng.keyed("draw", items=range(2)),
            )
