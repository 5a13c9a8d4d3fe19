"""Blind calibration against the exact marginal likelihood of Gaussian problems, computed here by
automatic differentiation."""

from functools import partial
from itertools import pairwise

import pytest
import torch
from invem_plugins.datasets.digits import digits
from invem_plugins.noises.gaussian import gaussian
from invem_plugins.operators.gain import gain
from invem_plugins.operators.gaussian_blur import gaussian_blur
from invem_plugins.samplers.exact import Exact
from invem_plugins.samplers.mmps import MMPS

from invem import Gaussian, Mask, Matrix, Measurement, Prior, RecipeError, Rng, Unsupported
from invem.analysis import (
    Parameters,
    by_draws,
    by_moments,
    by_score,
    calibrate,
    rebuilt,
    score,
)

D = 8
I = torch.arange(D, dtype=torch.float64)  # noqa: E741
COV = 0.8 ** (I[:, None] - I).abs()
MEAN = torch.linspace(-1, 2, D, dtype=torch.float64)
PRIOR = Gaussian.full(MEAN, COV)
TRUE = {"width": 1.2, "gain": 0.7, "sigma": 0.1}
START = {"width": 2.0, "gain": 1.2, "sigma": 0.3}
BOUNDS = {"width": (0.3, 4.0), "gain": (0.1, 5.0), "sigma": (0.01, 1.0)}


def matrix(values, mask=None):
    """gain times a blur whose rows sum to one, shape (8, 8); a factor of `values` may be a tensor
    with a graph."""
    kernel = torch.exp(-0.5 * ((I[:, None] - I) / values["width"]) ** 2)
    return values["gain"] * kernel / kernel.sum(1, keepdim=True)


def problem(names, n=400, shape=(D,), hide=0.0):
    """Observations and `at` for the options in `names`, the others being known."""
    x = PRIOR.sample(Rng.keyed("x", items=range(n))).double()
    mask = (torch.rand(n, D, generator=Rng.generator("mask")) >= hide).double()
    A = mask[:, :, None] * matrix(TRUE)
    y = torch.einsum("nmd,nd->nm", A, x) + TRUE["sigma"] * torch.randn(
        n, D, generator=Rng.generator("y"), dtype=torch.float64
    )

    def at(values):
        whole = TRUE | dict(values)
        noise = gaussian(n, (D,), Rng.generator(0), sigma=whole["sigma"]).to(dtype=torch.float64)
        return Measurement(y, Matrix((D,), mask[:, :, None] * matrix(whole)), noise)

    return (
        y,
        mask,
        at,
        Parameters({name: BOUNDS[name] for name in names}),
        {name: START[name] for name in names},
    )


def marginal(y, mask, names, logs):
    """The mean of log N(y; A mean, A C A^T + sigma^2 I), with a graph to the logarithms of the
    options."""
    values = TRUE | dict(zip(names, logs.exp(), strict=True))
    A = mask[:, :, None] * matrix(values)
    K = A @ COV @ A.mT + values["sigma"] ** 2 * torch.eye(D, dtype=torch.float64)
    return torch.distributions.MultivariateNormal(A @ MEAN, K).log_prob(y).mean()


def exact(y, mask, names):
    """The maximum of the marginal likelihood, by Newton's rule with exact derivatives from the
    truth."""
    logs = torch.tensor([TRUE[name] for name in names], dtype=torch.float64).log()
    for _ in range(20):
        f = partial(marginal, y, mask, names)
        g, H = torch.func.grad(f)(logs), torch.func.hessian(f)(logs)
        logs = logs - torch.linalg.solve(H, g)
    assert float(g.abs().max()) < 1e-9
    return dict(zip(names, logs.exp().tolist(), strict=True))


def cubature(draws):
    """Points at which the mean of any quadratic function is its mean under the posterior: mean ±
    sqrt(d) times a column of its root."""

    def draw(m):
        A, var = m.A.matrix, m.noise.var()[:, :, None]
        P = torch.linalg.inv(torch.linalg.inv(COV) + A.mT @ A / var)
        mean = (
            P @ (A.mT @ (m.y[:, :, None] / var) + torch.linalg.solve(COV, MEAN)[:, None])
        ).squeeze(-1)
        columns = torch.linalg.cholesky(P).mT * D**0.5
        points = torch.cat([columns, -columns], 1)
        k = torch.arange(len(m)) % draws
        return mean + points[torch.arange(len(m)), k]

    return draw


SETS = [("sigma",), ("gain",), ("width",), ("width", "sigma"), ("width", "gain", "sigma")]


@pytest.mark.parametrize("hide", [0.0, 0.5])
@pytest.mark.parametrize("names", SETS, ids="+".join)
def test_moments_give_the_maximum_of_the_marginal_likelihood(names, hide):
    y, mask, at, parameters, start = problem(names, n=100 if hide else 400, hide=hide)
    found = by_moments(PRIOR, at, parameters, start)
    assert found.settled
    assert found.values == pytest.approx(exact(y, mask, names), rel=1e-3)


@pytest.mark.parametrize("names", SETS, ids="+".join)
def test_the_root_of_the_score_is_the_maximum_of_the_marginal_likelihood(names):
    y, mask, at, parameters, start = problem(names)
    found = by_score(cubature(2 * D), at, parameters, start, draws=2 * D, evaluations=30, tol=1e-4)
    assert found.settled
    assert found.values == pytest.approx(exact(y, mask, names), rel=1e-3)


def test_fishers_identity():
    """The mean over the posterior of the score of complete data is the gradient of the marginal
    likelihood, anywhere."""
    names = ("width", "gain", "sigma")
    y, mask, at, parameters, _ = problem(names)
    for values in (TRUE, START):
        logs = torch.tensor([values[name] for name in names], dtype=torch.float64).log()
        rows = torch.arange(len(y)).repeat_interleave(2 * D)

        def repeated(values, rows=rows):
            return at(values)[rows]

        x = cubature(2 * D)(repeated(values))
        found = score(x, repeated, parameters, logs).mean(0)
        assert torch.allclose(
            found, torch.func.grad(partial(marginal, y, mask, names))(logs), rtol=1e-3, atol=5e-4
        )


@pytest.mark.parametrize("sampler", [Exact(), MMPS(steps=16)], ids=["exact", "mmps"])
def test_a_sampler_finds_it_within_the_error_that_it_states(sampler):
    names = ("width", "sigma")
    y, mask, at, parameters, start = problem(names)
    denoiser = Prior.of(PRIOR.to(dtype=torch.float32))

    def draw(m):
        return sampler(
            denoiser, m.to(dtype=torch.float32), Rng.keyed("calibrate", items=range(len(m)))
        )

    found = by_score(draw, at, parameters, start, evaluations=12)
    assert found.settled
    best = exact(y, mask, names)
    for name in names:
        assert abs(found.values[name] - best[name]) < 3 * found.error[name]
        assert abs(found.values[name] - TRUE[name]) < 4 * found.error[name]
        assert found.error[name] < 0.1 * TRUE[name]


def test_scalar_gain_and_noise():
    """y = g x + sigma z with x ~ N(1, 1): g is the mean of y, and sigma^2 what its variance has
    more than g^2."""
    prior = Gaussian.full(torch.ones(1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))
    y = 0.7 * prior.sample(Rng.keyed("x", items=range(500))).double()
    y = y + 0.8 * torch.randn(y.shape, generator=Rng.generator("y"), dtype=torch.float64)

    def at(values):
        A = gain(500, (1,), Rng.generator(0), gain=values["gain"])
        return Measurement(y, A, gaussian(500, (1,), Rng.generator(0), sigma=values["sigma"]))

    parameters, start = (
        Parameters({"gain": (0.1, 5.0), "sigma": (0.01, 5.0)}),
        {"gain": 2.0, "sigma": 0.1},
    )
    found = by_moments(prior, at, parameters, start).values

    def loss(g, s):
        var = g**2 + s**2
        return 0.5 * ((y - g).square().mean() / var + var.log())

    best = torch.tensor([0.7, 0.8], dtype=torch.float64)
    for _ in range(20):
        g, H = (
            torch.func.grad(lambda t: loss(*t))(best),
            torch.func.hessian(lambda t: loss(*t))(best),
        )
        best = best - torch.linalg.solve(H, g)
    assert [found["gain"], found["sigma"]] == pytest.approx(best.tolist(), rel=1e-3)


def test_the_maximum_at_given_draws_is_the_m_step():
    """sigma^2 is the mean of (y - A x)^2, and a gain the regression of y on A x."""
    y, _, at, parameters, start = problem(("gain", "sigma"))
    x = cubature(2 * D)(at(START))
    found = by_draws(x, at, parameters, start).values
    seen = x @ matrix(TRUE | {"gain": 1.0}).T
    g = float((y * seen).sum() / seen.square().sum())
    assert found["gain"] == pytest.approx(g, rel=1e-3)
    assert found["sigma"] == pytest.approx(float((y - g * seen).square().mean().sqrt()), rel=1e-3)


def test_em_crawls_where_the_score_arrives():
    """At low noise a step of EM goes an eighth of the way; the root of the score is found in a few
    evaluations."""
    y, mask, at, parameters, start = problem(("width",))
    best = exact(y, mask, ("width",))["width"]
    rows = torch.arange(len(y)).repeat_interleave(2 * D)
    gaps, values = [], {"width": 1.5}
    for _ in range(4):
        gaps.append(values["width"] - best)
        x = cubature(2 * D)(at(values)[rows])
        values = by_draws(x, lambda v: at(v)[rows], parameters, values).values
    assert all(0.87 * a < b < a for a, b in pairwise(gaps))
    found = by_score(cubature(2 * D), at, parameters, start, draws=2 * D, evaluations=8)
    assert found.values["width"] == pytest.approx(best, rel=0.01)
    assert len(found.path) <= 8


@pytest.mark.parametrize("how", ["moments", "score"])
def test_a_bound_holds(how):
    _, _, at, _, _ = problem(("width", "sigma"))
    parameters, start = (
        Parameters({"width": (1.5, 3.0), "sigma": (0.01, 1.0)}),
        {"width": 2.0, "sigma": 0.3},
    )
    found = (
        by_moments(PRIOR, at, parameters, start)
        if how == "moments"
        else by_score(cubature(2 * D), at, parameters, start, draws=2 * D, evaluations=20)
    )
    assert found.settled
    assert found.values["width"] == pytest.approx(1.5)
    assert 0.1 < found.values["sigma"] < 0.3


def test_bounds_that_are_none():
    with pytest.raises(RecipeError, match="in order"):
        Parameters({"sigma": (1.0, 0.5)})
    with pytest.raises(RecipeError, match="nothing"):
        Parameters({})
    with pytest.raises(RecipeError, match="not between"):
        Parameters({"sigma": (0.1, 0.5)}).coordinates({"sigma": 1.0})


def test_coordinates():
    parameters = Parameters({"std": (0.5, 2.0), "offset": (-1.0, 3.0)})
    values = {"std": 0.7, "offset": 0.25}
    assert parameters.values(parameters.coordinates(values)) == pytest.approx(values)
    low, high = parameters.limits()
    assert parameters.values(low) == pytest.approx({"std": 0.5, "offset": -1.0})
    assert parameters.values(high) == pytest.approx({"std": 2.0, "offset": 3.0})
    covariance = torch.diag(torch.tensor([0.01, 0.04], dtype=torch.float64))
    assert parameters.errors(parameters.coordinates(values), covariance) == pytest.approx(
        {"std": 0.07, "offset": 0.8}
    )


def test_moments_refuse_what_is_not_linear():
    from invem_plugins.operators.gamma import gamma

    def at(values):
        return Measurement(
            torch.zeros(4, D),
            gamma(4, (D,), Rng.generator(0), gamma=values["gamma"]),
            gaussian(4, (D,), Rng.generator(0)),
        )

    with pytest.raises(Unsupported, match="linear"):
        by_moments(PRIOR, at, Parameters({"gamma": (1.0, 3.0)}), {"gamma": 2.0})


def quantiles(draws, std):
    """Draws of p(x | y) for scalar x ~ N(0, std^2) and any operator, in the middle of equal shares
    of the posterior."""
    grid = torch.linspace(-5 * std, 5 * std, 4001, dtype=torch.float64)

    def draw(m):
        once = m[torch.arange(0, len(m), draws)]
        n, k = len(once), len(grid)
        logs = (
            once[torch.arange(n).repeat_interleave(k)]
            .to(dtype=torch.float64)
            .log_prob(grid.repeat(n)[:, None])
            .reshape(n, k)
        )
        total = torch.softmax(logs - 0.5 * (grid / std).square(), 1).cumsum(1)
        share = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
        return grid[torch.searchsorted(total, share.expand(n, draws).contiguous())].reshape(-1, 1)

    return draw


def test_the_score_calibrates_a_nonlinear_operator():
    """The exponent of a gamma, against the maximum of the marginal likelihood by quadrature."""
    from invem_plugins.operators.gamma import gamma

    std, n = 0.3, 60
    x = std * torch.randn(n, 1, generator=Rng.generator("x"))
    noise = gaussian(n, (1,), Rng.generator(0), sigma=0.05)
    y = noise.sample(gamma(n, (1,), Rng.generator(0), gamma=2.2)(x), Rng.generator("y"))

    def at(values):
        return Measurement(y, gamma(n, (1,), Rng.generator(0), gamma=values["gamma"]), noise)

    grid = torch.linspace(-5 * std, 5 * std, 2001, dtype=torch.float64)
    weight = torch.log_softmax(-0.5 * (grid / std).square(), 0)

    def likelihood(g):
        clean = 2 * ((grid + 1) / 2).clamp(1e-4, 1) ** g - 1
        return torch.logsumexp(weight - 0.5 * ((y.double() - clean) / 0.05).square(), 1).mean()

    best = torch.tensor(2.2, dtype=torch.float64)
    for _ in range(20):
        best = best - torch.func.grad(likelihood)(best) / torch.func.hessian(likelihood)(best)
    found = by_score(
        quantiles(128, std),
        at,
        Parameters({"gamma": (1.0, 4.0)}),
        {"gamma": 1.5},
        draws=128,
        evaluations=20,
        tol=1e-3,
    )
    assert found.settled
    assert found.values["gamma"] == pytest.approx(float(best), rel=5e-3)


def test_the_first_round_is_by_moments_where_there_are_clean_images():
    y, _, at, parameters, start = problem(("sigma",))
    rows, clean = torch.arange(len(y)), PRIOR.sample(Rng.keyed("clean", items=range(50)))

    def some(values, rows):
        return at(values)[rows]

    first = calibrate(some, rows, parameters, start, cubature(2), clean)
    later = calibrate(some, rows, parameters, start, cubature(2))
    assert (first.how, later.how) == ("moments", "score")
    assert (
        first.values == by_moments(Gaussian.shrunk_to_diagonal(clean), at, parameters, start).values
    )
    assert first.values["sigma"] == pytest.approx(TRUE["sigma"], rel=0.15)
    masked = calibrate(
        lambda values, rows: problem(("sigma",), hide=0.5)[2](values)[rows],
        rows,
        parameters,
        start,
        cubature(2),
        clean,
    )
    assert masked.how == "moments"
    large = 4000

    def wide(values, rows):
        A = gain(len(rows), (large,), Rng.generator(0), gain=1.0)
        return Measurement(
            torch.zeros(len(rows), large),
            A,
            gaussian(len(rows), (large,), Rng.generator(0), sigma=values["sigma"]),
        )

    zero = calibrate(
        wide,
        torch.arange(4),
        parameters,
        start,
        lambda m: torch.ones(len(m), large) * 0.2,
        torch.zeros(3, large),
    )
    assert zero.how == "score"


@pytest.mark.parametrize(("n", "d"), [(6, 4), (5, 12), (40, 3)])
def test_the_shrunken_covariance_is_the_formula(n, d):
    z, mix = (torch.randn(k, d, generator=Rng.generator(k, d), dtype=torch.float64) for k in (n, d))
    x = z @ mix
    found = Gaussian.shrunk_to_diagonal(x)
    w = torch.einsum("ni,nj->nij", x - x.mean(0), x - x.mean(0))
    S, off = w.sum(0) / (n - 1), ~torch.eye(d, dtype=torch.bool)
    scatter = n / (n - 1) ** 3 * (w - w.mean(0)).square().sum(0)
    a = float((scatter[off].sum() / S.square()[off].sum()).clamp(0, 1))
    assert torch.allclose(found.mean, x.mean(0))
    assert torch.allclose(found.cov.dense(), torch.where(off, (1 - a) * S, S), atol=1e-8)


def test_digits_blur_and_noise_from_fifty_clean_images():
    """The blur recipe with nothing known: both within 3 %, from 50 % and 100 % off."""
    data = digits("train").images
    shape = (1, 8, 8)

    def law(values, n):
        return (
            gaussian_blur(n, shape, Rng.generator(0), std=values["operator.std"], size=7),
            gaussian(n, shape, Rng.generator(0), sigma=values["noise.sigma"]),
        )

    A, noise = law({"operator.std": 1.0, "noise.sigma": 0.05}, len(data))
    y = noise.sample(A(data), Rng.generator("y"))
    parameters = Parameters({"operator.std": (0.3, 3.0), "noise.sigma": (0.005, 0.5)})
    for seed in range(3):
        clean = data[torch.randperm(len(data), generator=Rng.generator("clean", seed))[:50]]
        start = {"operator.std": 1.5, "noise.sigma": 0.1}
        found = by_moments(
            Gaussian.shrunk_to_diagonal(clean),
            lambda values: Measurement(y, *law(values, len(y))),
            parameters,
            start,
        )
        assert found.settled
        assert found.values["operator.std"] == pytest.approx(1.0, rel=0.03)
        assert found.values["noise.sigma"] == pytest.approx(0.05, rel=0.03)


def test_what_the_values_do_not_change_stays():
    """A mask that came with y is kept, and the blur is new."""
    given = (torch.rand(5, D, generator=Rng.generator("given")) < 0.5).float()

    def law(sigma, keep=0.5):
        mask = (torch.rand(5, D, generator=Rng.generator("law")) < keep).float()
        return Mask((D,), mask), gaussian(5, (D,), Rng.generator(0), sigma=sigma)

    stored = Measurement(torch.ones(5, D), Mask((D,), given), law(0.1)[1])
    m = rebuilt(stored, law(0.1), law(0.2))
    assert torch.equal(m.A.mask, given)
    assert torch.equal(m.y, stored.y)
    assert torch.allclose(m.noise.var(), torch.tensor(0.04))
