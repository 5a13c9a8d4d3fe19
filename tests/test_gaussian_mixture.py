"""EM on a mixture of Gaussians, whose every step has an exact answer, and on the smooth manifold,
which a Gaussian cannot say."""

import pytest
import torch
from invem_plugins.datasets.curve import smooth_manifold
from invem_plugins.metrics.sinkhorn import Sinkhorn
from invem_plugins.noises.gaussian import gaussian
from invem_plugins.objectives import gaussian_mixture
from invem_plugins.objectives.gaussian_mixture import GaussianMixture
from invem_plugins.operators.random_projection import random_projection

from invem import Example, Gaussian, Measurement, Mixture, Outcome, Prior, RecipeError, Rng
from invem.config import Catalog, load
from invem.door import Run
from invem.planning.make import make
from invem.running.loop import carry_out

torch.set_num_threads(1)
D, N = 4, 600
TRUE = Mixture(
    torch.tensor([0.3, 0.7]),
    torch.tensor([[2.0, -1.0, 0.0, 1.0], [-1.0, 1.5, 0.5, -2.0]]),
    torch.stack([0.3 * torch.eye(D), 0.2 * torch.eye(D) + 0.1]),
)
START = Mixture(
    torch.tensor([0.5, 0.5]).double(),
    TRUE.means + 0.7,
    torch.stack([torch.eye(D), 2 * torch.eye(D)]).double(),
)


def observe(x, sigma=0.1, seed=0):
    rng = Rng.generator("observe", seed)
    A = random_projection(len(x), tuple(x.shape[1:]), rng, measurements=2)
    noise = gaussian(len(x), (2,), rng, sigma=sigma)
    return Measurement(noise.sample(A(x), rng), A, noise)


def given(x=None, m=None, size=200):
    n = len(x) if x is not None else len(m)

    def batches():
        for index in torch.arange(n).split(size):
            yield (
                Example(None if x is None else x[index], None if m is None else m[index]),
                Rng.keyed("fit", items=index.tolist()),
            )

    return batches


def likelihood(prior, m):
    """The mean log-likelihood of measurements, by dense matrices."""
    A, parts = m.matrices(), []
    noise = torch.diag_embed(m.noise.var().expand_as(m.y).double())
    for weight, mean, cov in zip(prior.weights, prior.means, prior.covs, strict=True):
        total = A @ cov.double() @ A.mT + noise
        law = torch.distributions.MultivariateNormal(A @ mean.double(), total)
        parts.append(weight.double().log() + law.log_prob(m.y.double()))
    return float(torch.stack(parts).logsumexp(0).mean())


@pytest.fixture(scope="module")
def seen():
    return observe(TRUE.sample(Rng.keyed("x", items=range(N))))


def test_a_step_has_the_moments_of_the_posterior(seen):
    """The mean and the second moment of the next prior are those of p(x | y), averaged over
    observations, exactly."""
    found = (
        GaussianMixture(components=2, iterations=1, floor=1e-15)
        .solve(Prior.of(START), given(m=seen))
        .moments()
    )
    posterior = START.posterior_moments(seen)
    mean = posterior.mean.mean(0)
    cov = posterior.cov.mean(0) + torch.cov(posterior.mean.T, correction=0)
    assert torch.allclose(found.mean.double(), mean, atol=1e-6)
    assert torch.allclose(found.cov.dense().double(), cov, atol=1e-5)


def test_each_component_is_the_weighted_mean_of_its_posteriors():
    """Noise that differs between observations; the responsibilities and moments of each component
    by dense formulas."""
    x = TRUE.sample(Rng.keyed("dense", items=range(60)))
    rng = Rng.generator("dense")
    A = random_projection(60, (D,), rng, measurements=2)
    noise = gaussian(60, (2,), rng, sigma=[0.1, 0.6])
    m = Measurement(noise.sample(A(x), rng), A, noise)
    found = GaussianMixture(components=2, iterations=1, floor=1e-15).solve(
        Prior.of(START), given(m=m, size=20)
    )
    shares, means, covs = [], [], []
    for i in range(60):
        a, y, s = (
            m.A.matrix[i].double(),
            m.y[i].double(),
            m.noise.var().expand_as(m.y)[i].double().diag(),
        )
        log, mu, p = [], [], []
        for w, mean, c in zip(
            START.weights.double(), START.means.double(), START.covs.double(), strict=True
        ):
            total, gap = a @ c @ a.T + s, y - a @ mean
            log.append(
                w.log() + torch.distributions.MultivariateNormal(a @ mean, total).log_prob(y)
            )
            gain = c @ a.T @ total.inverse()
            mu.append(mean + gain @ gap)
            p.append(c - gain @ a @ c)
        (
            shares.append(torch.stack(log).softmax(0)),
            means.append(torch.stack(mu)),
            covs.append(torch.stack(p)),
        )
    r, mu, p = torch.stack(shares), torch.stack(means), torch.stack(covs)
    expected = torch.einsum("bk,bki->ki", r, mu) / r.sum(0)[:, None]
    gap = mu - expected
    cov = (
        torch.einsum("bk,bkij->kij", r, p + gap[..., :, None] * gap[..., None, :])
        / r.sum(0)[:, None, None]
    )
    assert torch.allclose(found.weights, r.mean(0), atol=1e-6)
    assert torch.allclose(found.means.double(), expected, atol=1e-5) and torch.allclose(
        found.covs, cov, atol=1e-5
    )


def test_one_component_is_em_on_a_gaussian(seen):
    first = Mixture(torch.ones(1).double(), torch.zeros(1, D), torch.eye(D)[None].double())
    found = GaussianMixture(components=1, iterations=200, floor=1e-15).solve(
        Prior.of(first), given(m=seen)
    )
    again = GaussianMixture(components=1, iterations=1, floor=1e-15).solve(
        Prior.of(found), given(m=seen)
    )
    assert torch.allclose(again.covs, found.covs, atol=1e-3) and torch.allclose(
        again.means, found.means, atol=1e-3
    )
    expected = TRUE.moments()
    assert (found.means[0] - expected.mean).abs().max() < 0.35
    assert (found.covs[0] - expected.cov.dense()).abs().max() < 0.6


def test_no_step_lowers_the_likelihood(seen):
    prior, last = START, likelihood(START, seen)
    for _ in range(12):
        prior = GaussianMixture(components=2, iterations=1, floor=1e-12).solve(
            Prior.of(prior), given(m=seen)
        )
        now = likelihood(prior, seen)
        assert now > last - 1e-7
        last = now
    assert last > likelihood(
        TRUE, seen
    )  # of these observations, the most likely prior is more so than the true one


def test_it_does_not_depend_on_the_batches(seen, monkeypatch):
    whole = GaussianMixture(components=2).solve(Prior.of(START), given(m=seen, size=N))
    monkeypatch.setattr(gaussian_mixture, "ENTRIES", 100)
    parts = GaussianMixture(components=2).solve(Prior.of(START), given(m=seen, size=77))
    assert torch.allclose(whole.covs, parts.covs, rtol=1e-6, atol=1e-8) and torch.allclose(
        whole.means, parts.means, atol=1e-5
    )
    monkeypatch.undo()
    x, first = (
        TRUE.sample(Rng.keyed("clean", items=range(120))),
        Prior.of(Gaussian.standard((D,))),
    )
    one, other = (
        GaussianMixture(components=4, iterations=5).solve(first, given(x=x, size=size))
        for size in (1, 120)
    )
    assert torch.allclose(one.covs, other.covs, rtol=1e-4, atol=1e-6) and torch.allclose(
        one.means, other.means, atol=1e-4
    )


def test_it_finds_a_mixture_from_projections():
    m = observe(TRUE.sample(Rng.keyed("many", items=range(6000))))
    found = GaussianMixture(components=2, iterations=60).solve(Prior.of(TRUE.moments()), given(m=m))
    order = found.weights.argsort()
    assert torch.allclose(found.weights[order].float(), TRUE.weights, atol=0.03)
    assert torch.allclose(found.means[order], TRUE.means, atol=0.12)
    assert torch.allclose(found.covs[order].float(), TRUE.covs, atol=0.08)


def test_from_signals_it_is_em_on_them():
    x = TRUE.sample(Rng.keyed("clean", items=range(3000)))
    one = GaussianMixture(components=1, iterations=1, floor=1e-15).solve(
        Prior.of(Gaussian.standard((D,))), given(x=x)
    )
    assert torch.allclose(one.means[0], x.mean(0), atol=1e-5)
    assert torch.allclose(one.covs[0].float(), torch.cov(x.T, correction=0), atol=1e-4)
    found = GaussianMixture(components=2, iterations=40).solve(
        Prior.of(Gaussian.standard((D,))), given(x=x)
    )
    order = found.weights.argsort()
    assert torch.allclose(found.means[order], TRUE.means, atol=0.1)
    assert torch.allclose(found.weights[order].float(), TRUE.weights, atol=0.03)


def test_it_goes_on_from_its_own_components_alone(seen):
    objective = GaussianMixture(components=2, iterations=3)
    once = objective.solve(Prior.of(START), given(m=seen))
    twice = objective.solve(Prior.of(once), given(m=seen))
    six = GaussianMixture(components=2, iterations=6).solve(Prior.of(START), given(m=seen))
    assert torch.allclose(twice.covs, six.covs, atol=1e-5)
    more = GaussianMixture(components=5, iterations=1).solve(Prior.of(once), given(m=seen))
    assert len(more.weights) == 5 and torch.linalg.eigvalsh(more.covs).min() > 0


def test_what_it_cannot_fit_is_refused(seen):
    prior = Prior.of(Gaussian.standard((D,)))
    with pytest.raises(RecipeError, match="neither"):
        GaussianMixture().solve(prior, lambda: [(Example(None), Rng.keyed("fit", items=[0]))])
    assert (
        "at most 256 entries" in GaussianMixture().refuses((1, 28, 28))
        and GaussianMixture().refuses((1, 16, 16)) is None
    )
    few = GaussianMixture(components=50, iterations=1).solve(prior, given(m=seen[torch.arange(20)]))
    assert len(few.weights) == 20 and GaussianMixture(components=50, iterations=1).solve(
        Prior.of(few), given(m=seen[torch.arange(20)])
    )


def test_the_plan_refuses_large_signals(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    for fit in ("{objective: gaussian-mixture}", "{objective: gaussian-moments, shrink: auto}"):
        with pytest.raises(RecipeError, match=r"fit: .* entries, and these have"):
            changed = [
                "data={name: synthetic, size: 80, train: 4, test: 2}",
                "phases=[{name: n, fit: " + fit + "}]",
            ]
            make(load(path, changed), Catalog.load())


def test_it_learns_the_manifold_where_a_gaussian_does_not():
    train, test = (smooth_manifold(split) for split in ("train", "test"))
    m = observe(train[torch.arange(3000)].x, sigma=0.01)
    prior = Prior.of(Gaussian.standard((5,), 1.0))
    for _ in range(3):
        prior = Prior.of(
            Gaussian.fit(prior.moments.posterior(m, Rng.keyed("e", items=range(3000))), 5)
        )
    found = GaussianMixture(components=16, iterations=60).solve(prior, given(m=m))
    reference = test[torch.arange(1000)].x

    def off(x):
        return float(
            Sinkhorn(epsilon=0.01, tol=1e-3)(
                Outcome((-2.0, 2.0), samples=x, reference=reference), {}
            )
        )

    rng = Rng.keyed("sample", items=range(1000))
    assert off(found.sample(rng)) < 0.1 * off(prior.moments.sample(rng))


MIXTURE = "fit: {objective: gaussian-mixture, components: 4, iterations: 2}"
RECIPE = f"""
data: {{name: smooth-manifold, train: 400, test: 100}}
operator: {{name: random-projection, measurements: 2}}
noise: {{name: gaussian, sigma: 0.05}}
network: {{name: mlp, width: 16, depth: 1}}
phases:
  - {{name: mixture, rounds: 3, batch: 100, {MIXTURE}}}
  - {{name: network, batch: 100, sampler: exact, fit: {{objective: dsm, steps: 3, batch: 8,
        moments: 5}}}}
evaluate: {{sampler: {{name: mmps, steps: 3}}, metrics: [data-misfit], samples: 8,
      observations: 4, draws: 1, posterior: 0, steps: 3}}
"""


def test_a_run_keeps_it_and_goes_on_from_it(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    made = make(load(path, []), Catalog.load())
    stopped = iter(range(10**6))
    for record in carry_out(made, tmp_path / "run"):
        if record.event == "fit" and next(stopped) == 1:
            break
    one, other = (Run(made, tmp_path / name) for name in ("run", "whole"))
    for done in (one, other):
        done.resume()
    read = [done.prior_at("mixture", 2) for done in (one, other)]
    assert all(isinstance(prior.exact, Mixture) for prior in read)
    assert (
        torch.equal(read[0].exact.covs, read[1].exact.covs)
        and read[0].exact.covs.dtype == torch.float64
    )
    assert torch.equal(one.draws("network", 0), other.draws("network", 0))
    first, then = (
        "phases=[{name: n, batch: 100, " + fit + "}]"
        for fit in (MIXTURE, "sampler: exact, fit: {objective: dsm, steps: 1}")
    )
    for name, words in (("first", [first]), ("then", [f"prior={tmp_path / 'first'}", then])):
        for _ in carry_out(make(load(path, words), Catalog.load()), tmp_path / name):
            pass
