"""EM on a mixture of factor analysers: its posterior against dense matrices, its steps against
exact answers."""

import pytest
import torch
from invem_plugins.noises.gaussian import gaussian
from invem_plugins.objectives.factor_mixture import FactorMixtureMoments
from invem_plugins.operators.gaussian_blur import gaussian_blur
from invem_plugins.operators.identity import identity
from invem_plugins.operators.random_mask import random_mask
from invem_plugins.operators.random_projection import random_projection

from invem import Example, FactorMixture, Gaussian, Measurement, Mixture, Prior, RecipeError, Rng
from invem.config import Catalog, load
from invem.door import Run
from invem.planning.make import make

torch.set_num_threads(1)
SHAPE, D, K, Q = (1, 3, 4), 12, 3, 2
LAWS = {
    "mask": lambda n, rng: random_mask(n, SHAPE, rng, keep=0.5),
    "identity": lambda n, rng: identity(n, SHAPE, rng),
    "blur": lambda n, rng: gaussian_blur(n, SHAPE, rng, std=0.7, size=3),
    "projection": lambda n, rng: random_projection(n, SHAPE, rng, measurements=5),
}


def mixture(seed=0, spread=0.5):
    g = torch.Generator().manual_seed(seed)
    means = spread * torch.randn(K, *SHAPE, generator=g)
    factors = 0.7 * torch.randn(K, D, Q, generator=g)
    return FactorMixture(
        torch.tensor([0.5, 0.3, 0.2]), means, factors, 0.1 + 0.3 * torch.rand(D, generator=g)
    )


def dense(prior):
    factors = prior.factors.double()
    return Mixture(
        prior.weights, prior.means, factors @ factors.mT + torch.diag(prior.diag.double())
    )


def observe(x, law, sigma=0.3, seed=0):
    rng = Rng.generator("observe", seed)
    A = LAWS[law](len(x), rng)
    clean = A(x)
    noise = gaussian(len(x), tuple(clean.shape[1:]), rng, sigma=sigma)
    return Measurement(noise.sample(clean, rng), A, noise)


def given(x=None, m=None, size=200, key=0):
    n = len(x) if x is not None else len(m)

    def batches():
        for index in torch.arange(n).split(size):
            rng = Rng.keyed("fit", key, items=index.tolist())
            yield Example(None if x is None else x[index], None if m is None else m[index]), rng

    return batches


def fit(prior, rounds, x=None, m=None, **options):
    for r in range(rounds):
        prior = Prior.of(FactorMixtureMoments(**options).solve(prior, given(x, m, key=r)))
    return prior


@pytest.mark.parametrize("sigma", [0.3, [0.1, 0.6]], ids=["one level", "two levels"])
@pytest.mark.parametrize("law", LAWS)
def test_components_are_as_probable_as_by_dense_matrices(law, sigma):
    prior = mixture()
    m = observe(prior.sample(Rng.keyed("x", items=range(40))), law, sigma)
    expected = dense(prior).posterior_moments(m).weights
    assert torch.allclose(prior.shares(m), expected, atol=2e-5)
    assert (expected.max(1).values < 0.99).any()


@pytest.mark.parametrize("size", [1, 40])
@pytest.mark.parametrize("law", ["mask", "identity"])
def test_little_noise_and_a_small_diagonal_keep_the_probabilities(law, size):
    """Components that are nearly the same, measured almost exactly: in single precision their
    probabilities would be noise."""
    one = mixture()
    factors = one.factors[:1] * (
        1 + 0.02 * torch.randn(K, D, Q, generator=torch.Generator().manual_seed(4))
    )
    prior = FactorMixture(
        one.weights, one.means[:1].expand(K, *SHAPE), factors, torch.full((D,), 1e-5)
    )
    m = observe(prior.sample(Rng.keyed("x", items=range(40))), law, 1e-3)
    found = torch.cat([prior.shares(m[rows]) for rows in torch.arange(40).split(size)])
    assert torch.allclose(found, dense(prior).posterior_moments(m).weights, atol=1e-3)


@pytest.mark.parametrize("law", LAWS)
def test_without_factors_it_is_a_mixture_of_diagonal_gaussians(law):
    one = mixture()
    prior = FactorMixture(one.weights, one.means, torch.zeros(K, D, 0), one.diag)
    m = observe(prior.sample(Rng.keyed("x", items=range(40))), law)
    assert torch.allclose(prior.shares(m), dense(prior).posterior_moments(m).weights, atol=2e-5)
    assert prior.posterior(m, Rng.keyed("draw", items=range(40))).shape == (40, *SHAPE)
    found = fit(Prior.of(Gaussian.standard(SHAPE)), 3, m=m, components=2, rank=0).exact
    assert (
        found.factors.shape == (2, D, 0)
        and found.denoise(m.A.adjoint(m.y), torch.tensor(0.5)).isfinite().all()
    )


@pytest.mark.parametrize("sigma", [0.3, [0.1, 0.6]], ids=["one level", "two levels"])
@pytest.mark.parametrize("law", LAWS)
def test_draws_have_the_moments_of_the_posterior(law, sigma):
    prior, n = mixture(), 20_000
    m = observe(prior.sample(Rng.keyed("x", items=range(3))), law, sigma)
    expected = dense(prior).posterior_moments(m)
    x, k = prior.draw(
        m[torch.arange(3).repeat_interleave(n)], Rng.keyed("draw", items=range(3 * n))
    )
    x, k = x.reshape(3, n, D).double(), k.reshape(3, n)
    for i in range(3):
        std = expected.cov[i].diagonal().sqrt()
        assert ((x[i].mean(0) - expected.mean[i]).abs() < 5 * std / n**0.5).all()
        assert (torch.cov(x[i].T) - expected.cov[i]).abs().max() < 0.05 * expected.cov[
            i
        ].diagonal().max()
        assert torch.allclose(
            k[i].bincount(minlength=K) / n, expected.weights[i].float(), atol=0.02
        )
        for j in range(K):  # the component that is told is that of the signal
            if (k[i] == j).sum() > 500:
                alone = Mixture(
                    torch.ones(1), prior.means[j : j + 1], dense(prior).covs[j : j + 1]
                ).posterior_moments(m[i])
                rows = x[i][k[i] == j]
                assert (
                    (rows.mean(0) - alone.mean[0]).abs()
                    < 5 * alone.cov[0].diagonal().sqrt() / len(rows) ** 0.5
                ).all()


def test_it_is_the_mixture_of_its_dense_covariances():
    prior = mixture()
    x = prior.sample(Rng.keyed("x", items=range(30_000)))
    assert torch.allclose(x.mean(0), prior.moments().mean, atol=0.03)
    assert torch.allclose(torch.cov(x.flatten(1).T), prior.moments().cov.dense(), atol=0.08)
    assert torch.allclose(
        prior.moments().cov.dense(), dense(prior).moments().cov.dense(), atol=1e-5
    )
    x_t = x[:50] + 0.8 * torch.randn(50, *SHAPE, generator=torch.Generator().manual_seed(1))
    for sigma in (torch.tensor(0.8), torch.linspace(0.05, 5, 50).reshape(-1, 1, 1, 1)):
        assert torch.allclose(
            prior.denoise(x_t, sigma), dense(prior).denoise(x_t, sigma), atol=1e-4
        )
    many = FactorMixture(prior.weights, prior.means, torch.zeros(K, D, 9), prior.diag)
    assert torch.allclose(many.moments().cov.dense(), dense(many).moments().cov.dense(), atol=1e-5)


def test_no_noise_is_no_division_by_zero():
    prior = mixture()
    m = observe(prior.sample(Rng.keyed("x", items=range(20))), "mask", sigma=0.0)
    x, _ = prior.draw(m, Rng.keyed("draw", items=range(20)))
    assert x.isfinite().all() and torch.allclose(m.A(x), m.y, atol=1e-3)


def test_draws_belong_to_their_streams():
    prior = mixture()
    m = observe(prior.sample(Rng.keyed("x", items=range(10))), "projection")
    whole, _ = prior.draw(m, Rng.keyed("draw", items=range(10)))
    rows = torch.tensor([7, 2])
    part, _ = prior.draw(m[rows], Rng.keyed("draw", items=rows.tolist()))
    assert torch.allclose(whole[rows], part, atol=1e-5)


def test_a_step_is_factor_analysis_of_the_signals():
    """One component and no floor: the fixed point is that of `Gaussian.fit`, by another route."""
    x = mixture().sample(Rng.keyed("x", items=range(4000)))
    found = fit(Prior.of(Gaussian.standard(SHAPE)), 60, x=x, components=1, rank=3, floor=1e-9).exact
    expected = Gaussian.fit(x, 3)
    assert torch.allclose(found.means[0], expected.mean, atol=1e-4)
    gap = found.factors[0] @ found.factors[0].T + torch.diag(found.diag) - expected.cov.dense()
    assert gap.abs().max() < 0.02 * expected.cov.dense().diagonal().max()


def test_a_step_from_known_components_is_the_weighted_mean_of_the_signals():
    """Means, weights and, at full rank, the covariances (n_k S_k + pool W) / (n_k + pool), S_k of a
    component and W pooled within all."""
    prior, pool = mixture(), 50.0
    x = prior.sample(Rng.keyed("x", items=range(400)))
    start = FactorMixture(
        prior.weights,
        prior.means,
        torch.cat([prior.factors, torch.zeros(K, D, D - Q)], 2),
        prior.diag,
    )
    found = FactorMixtureMoments(components=K, rank=D, pool=pool, floor=1e-9).solve(
        Prior.of(start), given(x)
    )
    flat, covs = x.flatten(1).double(), dense(prior).covs
    logs = [
        w.log() + torch.distributions.MultivariateNormal(mean.double(), cov).log_prob(flat)
        for w, mean, cov in zip(prior.weights, prior.means.flatten(1), covs, strict=True)
    ]
    share = torch.stack(logs, 1).softmax(1)
    assert ((share > 0.05) & (share < 0.95)).any()
    n = share.sum(0)
    means = share.T @ flat / n[:, None]
    gap = flat[:, None] - means
    scatter = torch.einsum("bk,bki,bkj->kij", share, gap, gap)
    expected = (scatter + pool * scatter.sum(0) / len(x)) / (n + pool)[:, None, None]
    assert torch.allclose(found.weights.double(), n / len(x), atol=1e-4)
    assert torch.allclose(found.means.flatten(1).double(), means, atol=1e-3)
    # The diagonal before is what the factors are sought beside; the rest of each variance is left
    # to the new one, averaged.
    assert (dense(found).covs - expected).abs().max() < 0.02 * expected.diagonal(
        dim1=1, dim2=2
    ).max()
    again = FactorMixtureMoments(components=K, rank=D, pool=pool).solve(
        Prior.of(prior.moments()), given(x)
    )
    assert not torch.allclose(
        again.means.sort(0).values, found.means.sort(0).values, atol=0.02
    )  # a new beginning is another


def test_pooling_draws_components_together():
    x = mixture().sample(Rng.keyed("x", items=range(600)))

    def unlike(pool):
        covs = dense(
            fit(Prior.of(Gaussian.standard(SHAPE)), 1, x=x, components=3, rank=6, pool=pool).exact
        ).covs
        return float((covs - covs.mean(0)).norm())

    assert unlike(1e6) < 0.02 * unlike(1e-3)


@pytest.mark.parametrize("law", ["mask", "projection"])
def test_it_finds_a_mixture_from_measurements(law):
    true = mixture(spread=2.0)
    m = observe(true.sample(Rng.keyed("many", items=range(6000))), law, sigma=0.1)
    warm = Prior.of(true.moments())
    found = fit(warm, 40, m=m, components=K, rank=Q, pool=1e-3).exact
    order = torch.cdist(true.means.flatten(1), found.means.flatten(1)).argmin(1)
    assert sorted(order.tolist()) == list(range(K))
    assert torch.allclose(found.weights[order].float(), true.weights, atol=0.03)
    assert (found.means[order] - true.means).abs().max() < 0.15
    gap = dense(found).covs[order] - dense(true).covs
    assert gap.abs().max() < 0.12 * dense(true).covs.diagonal(dim1=1, dim2=2).max()


def test_on_a_gaussian_its_denoiser_is_the_known_one():
    true = Gaussian.fit(mixture().sample(Rng.keyed("x", items=range(4000))), 2)
    m = observe(true.sample(Rng.keyed("g", items=range(6000))), "mask", sigma=0.1)
    found = fit(Prior.of(Gaussian.standard(SHAPE)), 60, m=m, components=1, rank=2, pool=1e-3)
    x_t = true.sample(Rng.keyed("t", items=range(500))) + 0.5 * torch.randn(
        500, *SHAPE, generator=torch.Generator().manual_seed(2)
    )
    with torch.no_grad():
        gap = found(x_t, 0.5) - true.denoise(x_t, torch.tensor(0.5))
    assert gap.square().mean().sqrt() < 0.05 * x_t.std()


def test_with_few_components_it_is_wrong_about_many_modes_():
    """Its bias: one component for three modes is the Gaussian of their moments."""
    true = mixture(spread=2.0)
    x = true.sample(Rng.keyed("x", items=range(3000)))
    one = fit(Prior.of(true.moments()), 10, x=x, components=1, rank=Q + K, pool=1e-3)
    three = fit(Prior.of(true.moments()), 10, x=x, components=K, rank=Q, pool=1e-3)
    x_t = x + 1.0 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        best, worse = ((d(x_t, 1.0) - x).square().mean() for d in (three, one))
        least = (true.denoise(x_t, torch.tensor(1.0)) - x).square().mean()
    assert abs(best / least - 1) < 0.02 and worse > 1.05 * least


def test_it_goes_on_from_its_own_components_alone():
    x = mixture().sample(Rng.keyed("x", items=range(300)))
    first = fit(Prior.of(Gaussian.standard(SHAPE)), 3, x=x, components=3, rank=2)
    more = fit(first, 1, x=x, components=5, rank=2)
    assert more.exact.factors.shape == (5, D, 2)
    assert fit(more, 1, x=x, components=5, rank=4).exact.factors.shape == (5, D, 4)
    assert fit(first, 1, x=x[:4], components=8, rank=20).exact.factors.shape == (4, D, D)
    sizes = [
        FactorMixtureMoments(components=3, rank=2).solve(first, given(x, size=size)).factors
        for size in (7, 300)
    ]
    assert torch.allclose(sizes[0] @ sizes[0].mT, sizes[1] @ sizes[1].mT, atol=1e-4)


def test_what_it_cannot_fit_is_refused():
    with pytest.raises(RecipeError, match="neither signals nor measurements"):
        FactorMixtureMoments().solve(
            Prior.of(Gaussian.standard(SHAPE)),
            lambda: [(Example(None), Rng.keyed("fit", items=[0]))],
        )
    assert (
        "at most 1024 entries" in FactorMixtureMoments().refuses((3, 32, 32))
        and FactorMixtureMoments().refuses((1, 32, 32)) is None
    )


def test_a_run_keeps_it_and_goes_on_from_it(tmp_path):
    recipe = """
    data: {name: digits}
    count: 200
    operator: {name: random-mask, keep: 0.5}
    noise: {name: gaussian, sigma: 0.1}
    network: {name: mlp, width: 16}
    phases:
      - {name: warm-start, rounds: 4, fit: {objective: gaussian-moments, rank: 8}}
      - {name: mixture, rounds: 6, fit: {objective: factor-mixture, components: 4, rank: 6}}
      - {name: network, sampler: exact, draws: 2, fit: {objective: dsm, steps: 3}}
    evaluate: {sampler: exact, metrics: [psnr], observations: 32, samples: 8}
    """
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe)
    done = Run(make(load(path, []), Catalog.load()), tmp_path / "run")
    done.resume()
    kept, before = (done.prior_at("mixture", r) for r in (5, 4))
    assert isinstance(kept.exact, FactorMixture) and len(kept.exact.weights) == 4
    assert kept.exact.weights.dtype == kept.exact.means.dtype
    m = done.observations()
    rows = torch.arange(200)
    rng = done.context.rng("fit", 1, 5, items=rows.tolist())
    step = done.plan.stages[1].objective.solve(before, lambda: [(Example(None, m[rows]), rng)])
    assert torch.allclose(step.means, kept.exact.means, atol=1e-4)  # it went on from the one before
    few = m[torch.arange(5)]
    assert kept.exact.posterior(few, Rng.keyed("p", items=range(5))).shape == (5, 1, 8, 8)
