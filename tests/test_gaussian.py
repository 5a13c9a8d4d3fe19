"""The Gaussian prior, against dense formulas."""

import math

import pytest
import torch
from invem_plugins.noises.gaussian import gaussian
from invem_plugins.operators.random_mask import random_mask
from invem_plugins.operators.random_projection import random_projection

from invem import DataError, Gaussian, Measurement, Prior, Rng, Unsupported
from invem.linalg import DPLR

torch.set_num_threads(1)

D = 8


def decaying(d=D):
    i = torch.arange(d, dtype=torch.float64)
    return 0.8 ** (i[:, None] - i).abs()


def prior(dtype=torch.float32):
    return Gaussian.full(torch.linspace(-1, 2, D, dtype=dtype), decaying())


def ratios(exact, sample):
    return torch.linalg.eigvals(torch.linalg.solve(exact.double(), sample.double())).real


def covariance(x):
    x = x.double() - x.double().mean(0)
    return x.T @ x / (len(x) - 1)


def band(n, d=D):
    """Half the width of the sampling law of the eigenvalue ratios (Marchenko & Pastur), and a half
    more."""
    return 1.5 * (2 * math.sqrt(d / n) + d / n)


def test_full_keeps_the_covariance():
    torch.testing.assert_close(prior().cov.dense().double(), decaying(), atol=1e-6, rtol=1e-6)


def test_standard_is_white():
    assert torch.equal(Gaussian.standard((2, 3), std=2.0).cov.dense(), 4 * torch.eye(6))


def test_samples_have_the_mean():
    x = prior().sample(Rng.keyed(0, items=range(20000)))
    torch.testing.assert_close(x.mean(0), prior().mean, atol=0.03, rtol=0)


def test_samples_have_the_covariance():
    x = prior().sample(Rng.keyed(0, items=range(20000)))
    assert float((ratios(decaying(), covariance(x)) - 1).abs().max()) < band(20000)


def test_fit_recovers_the_mean():
    x = prior().sample(Rng.keyed(1, items=range(4000)))
    torch.testing.assert_close(Gaussian.fit(x, rank=D).mean, x.mean(0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("rank", [D, 2 * D])
def test_fit_of_full_rank_is_the_sample_covariance(rank):
    x = prior().sample(Rng.keyed(1, items=range(4000)))
    sample = covariance(x) * (len(x) - 1) / len(x)
    torch.testing.assert_close(
        Gaussian.fit(x, rank=rank).cov.dense().double(), sample, atol=1e-5, rtol=0
    )


def test_fit_recovers_a_factor_model():
    g = torch.Generator().manual_seed(0)
    true = Gaussian(
        torch.zeros(D), DPLR(torch.linspace(0.2, 0.6, D), torch.randn(D, 2, generator=g))
    )
    fitted = Gaussian.fit(true.sample(Rng.keyed(2, items=range(40000))), rank=2)
    assert float((ratios(true.cov.dense(), fitted.cov.dense()) - 1).abs().max()) < 0.06


def test_fit_of_rank_zero_is_diagonal():
    x = prior().sample(Rng.keyed(1, items=range(4000)))
    torch.testing.assert_close(
        Gaussian.fit(x, rank=0).cov.dense(), torch.diag(x.var(0, correction=0))
    )


@pytest.mark.parametrize("rank", [0, 3, 8])
def test_fit_has_the_variance_of_each_pixel(rank):
    x = prior().sample(Rng.keyed(1, items=range(4000)))
    torch.testing.assert_close(
        Gaussian.fit(x, rank=rank).cov.dense().diag(), x.var(0, correction=0)
    )


def test_fit_of_constant_signals_has_the_floor():
    fitted = Gaussian.fit(torch.ones(10, D), rank=2, floor=1e-4)
    torch.testing.assert_close(fitted.cov.dense(), 1e-4 * torch.eye(D))


def test_fit_keeps_the_shape():
    assert Gaussian.fit(
        torch.randn(20, 2, 3, 4, generator=torch.Generator().manual_seed(0)), 4
    ).shape == (2, 3, 4)


def test_fit_of_many_dimensions_finds_the_leading_factor():
    g = torch.Generator().manual_seed(0)
    direction = torch.randn(3000, 1, generator=g)
    true = Gaussian(torch.zeros(3000), DPLR(torch.full((3000,), 0.1), direction))
    fitted = Gaussian.fit(true.sample(Rng.keyed(2, items=range(200))), rank=1)
    assert (
        float(torch.cosine_similarity(fitted.cov.factor[:, 0], direction[:, 0], dim=0).abs()) > 0.99
    )


def test_fit_leaves_the_global_random_state():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    Gaussian.fit(torch.linspace(0, 1, 4 * 2100).reshape(4, 2100), rank=2)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("sigma", [0.01, 0.4, 20.0])
def test_denoise_at_one_level(sigma):
    p, x = (
        prior(torch.float64),
        torch.randn(5, D, generator=torch.Generator().manual_seed(0)).double(),
    )
    gain = decaying() @ torch.linalg.inv(decaying() + sigma**2 * torch.eye(D, dtype=torch.float64))
    exact = p.mean + (x - p.mean) @ gain.T
    torch.testing.assert_close(p.denoise(x, torch.tensor(sigma, dtype=torch.float64)), exact)


def test_denoise_with_a_level_for_each_sample():
    p, x = prior(), torch.randn(5, D, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.01, 0.1, 1.0, 5.0, 20.0])
    alone = torch.cat([p.denoise(x[i : i + 1], sigma[i]) for i in range(5)])
    torch.testing.assert_close(p.denoise(x, sigma[:, None]), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
def test_tweedie(sigma):
    p = prior(torch.float64)
    denoiser = Prior.of(p)
    x = torch.randn(D, generator=torch.Generator().manual_seed(0)).double()
    jacobian = torch.autograd.functional.jacobian(lambda v: denoiser(v[None], sigma)[0], x)
    torch.testing.assert_close(sigma**2 * jacobian, p.cov.given(sigma).dense())


def operator(name, n):
    g = torch.Generator().manual_seed(3)
    law = (
        random_mask(1, (D,), g, keep=0.5)
        if name == "mask"
        else random_projection(1, (D,), g, measurements=4)
    )
    return law[torch.zeros(n, dtype=torch.long)]


def problem(name, n, std=0.3):
    a = operator(name, n)
    x = prior().sample(Rng.keyed(9, items=[0]))
    clean = a[0](x)
    noise = gaussian(n, tuple(clean.shape[1:]), torch.Generator(), sigma=std)
    y = clean + std * torch.randn(clean.shape, generator=torch.Generator().manual_seed(4))
    return Measurement(y.expand(n, -1), a, noise)


def dense_posterior(m, std=0.3):
    a = torch.cat([m.A[0](e[None]) for e in torch.eye(D)]).T.double()
    c, mean = decaying(), prior().mean.double()
    gain = c @ a.T @ torch.linalg.inv(a @ c @ a.T + std**2 * torch.eye(len(a), dtype=torch.float64))
    return mean + gain @ (m.y[0].double() - a @ mean), c - gain @ a @ c


OPERATORS = pytest.mark.parametrize("name", ["mask", "projection"])


@OPERATORS
def test_posterior_mean_is_exact(name):
    m = problem(name, 2)
    torch.testing.assert_close(
        prior().posterior_mean(m)[1].double(), dense_posterior(m)[0], atol=1e-4, rtol=0
    )


@OPERATORS
def test_posterior_draws_have_the_mean(name):
    m = problem(name, 20000)
    mean, cov = dense_posterior(m)
    x = prior().posterior(m, Rng.keyed(5, items=range(20000))).double()
    assert float(((x.mean(0) - mean) / cov.diag().sqrt()).abs().max()) < 0.03


@OPERATORS
def test_posterior_draws_have_the_covariance(name):
    m = problem(name, 20000)
    x = prior().posterior(m, Rng.keyed(5, items=range(20000)))
    assert float((ratios(dense_posterior(m)[1], covariance(x)) - 1).abs().max()) < band(20000)


@OPERATORS
def test_posterior_draw_belongs_to_its_stream(name):
    m, rng = problem(name, 6), Rng.keyed(5, items=range(6))
    alone = torch.cat([prior().posterior(m[i], rng[i]) for i in range(6)])
    torch.testing.assert_close(prior().posterior(m, rng), alone, atol=1e-4, rtol=0)


def test_fit_in_many_dimensions_is_factor_analysis_too():
    """Above 2,048 dimensions the matrix is never formed; the factors and the noise are those of the
    same fixed point."""
    d, n = 2100, 1500
    generator = Rng.generator("many")
    factor = 0.3 * torch.randn(d, 3, generator=generator)
    state = torch.random.get_rng_state()
    x = torch.randn(n, 3, generator=generator) @ factor.T + 0.5 * torch.randn(
        n, d, generator=generator
    )
    fitted = Gaussian.fit(x, rank=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert float(fitted.cov.diag.mean()) == pytest.approx(0.25, rel=0.02)
    learned = torch.linalg.eigvalsh(fitted.cov.factor.T @ fitted.cov.factor)
    true = torch.linalg.eigvalsh(factor.T @ factor)
    assert torch.allclose(learned, true, rtol=0.12)


def products(x):
    """The sample covariance of flattened signals and the estimated variance of each of its
    entries."""
    gap = (x - x.mean(0)).flatten(1).double()
    n = len(gap)
    w = torch.einsum("ni,nj->nij", gap, gap)
    return w.sum(0) / (n - 1), (w - w.mean(0)).square().sum(0) * n / (n - 1) ** 3


@pytest.mark.parametrize("shape", [(6,), (1, 4, 4), (2, 3, 4)])
def test_a_shrunken_covariance_is_the_formula(shape):
    rng = torch.Generator().manual_seed(0)
    place, loud, white = (
        torch.randn(n, *size, generator=rng, dtype=torch.float64)
        for n, size in ((1, shape), (60, ()), (60, shape))
    )
    x = (
        1 + loud.reshape(-1, *[1] * len(shape)) * place + 0.3 * white
    )  # whose correlations no smooth field has
    sample, spread = products(x)
    d = len(sample)
    own, smooth, found = (
        Gaussian.shrunk_to_smooth_field(x, share).cov.dense() for share in (0.0, 1.0, None)
    )
    assert torch.allclose(own, sample, atol=1e-10)
    assert torch.allclose(smooth.diagonal(), sample.diagonal(), rtol=1e-6)
    share = spread.sum() / (sample - smooth).square().sum()
    assert 0 < share < 1 and torch.allclose(found, (1 - share) * sample + share * smooth, atol=1e-8)
    channel = d // math.prod(shape[-2:])
    blocks = smooth.reshape(channel, d // channel, channel, d // channel)
    assert all(
        blocks[i, :, j].abs().max() < 1e-9 for i in range(channel) for j in range(channel) if i != j
    )


def test_few_signals_of_a_smooth_field_are_better_shrunken():
    i = torch.arange(48, dtype=torch.float64)
    true = 0.9 ** (i[:, None] - i).abs() * (1 + i / 24)[:, None] ** 0.5 * (1 + i / 24) ** 0.5
    field = Gaussian.full(torch.zeros(48, dtype=torch.float64), true)

    def off(found):
        """The Kullback-Leibler divergence of the true law from the fitted one, of mean zero
        both."""
        ratio = torch.linalg.solve(found.cov.dense().double(), true)
        return float(ratio.trace() - 48 - torch.linalg.slogdet(ratio).logabsdet) / 2

    x = field.sample(Rng.keyed("few", items=range(30)))
    shrunken = Gaussian.shrunk_to_smooth_field(x)
    assert off(shrunken) < 0.5 * min(off(Gaussian.fit(x, rank)) for rank in (1, 4, 8, 16, 29))
    many = field.sample(Rng.keyed("many", items=range(20000)))
    assert off(Gaussian.shrunk_to_smooth_field(many)) < 0.1


def test_what_cannot_be_shrunken_is_refused():
    with pytest.raises(DataError, match="2 signals"):
        Gaussian.shrunk_to_smooth_field(torch.ones(1, 4))
    with pytest.raises(Unsupported, match="4096"):
        Gaussian.shrunk_to_smooth_field(torch.ones(3, 4097))
