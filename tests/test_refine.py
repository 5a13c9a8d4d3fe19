"""Posterior refinement: exact answers on Gaussians, whatever the prior that it begins with, and a
whole run."""

import math
from dataclasses import replace

import pytest
import torch
from invem_plugins.networks.convnet import ConvNet
from invem_plugins.noises.gaussian import gaussian
from invem_plugins.objectives.factor_mixture import FactorMixtureMoments
from invem_plugins.objectives.refine import Refine, RefinedDenoiser
from invem_plugins.operators.gaussian_blur import gaussian_blur
from invem_plugins.operators.identity import identity
from invem_plugins.operators.random_mask import random_mask
from invem_plugins.operators.random_projection import random_projection
from invem_plugins.samplers.conditional import Conditional
from pooled import Pooled

from invem import (
    Denoiser,
    Example,
    FactorMixture,
    Gaussian,
    Karras,
    Measurement,
    Mixture,
    Preconditioned,
    Prior,
    RecipeError,
    Rng,
    Run,
    config,
)
from invem.denoiser import expand_level
from invem.planning.make import make
from invem.prior import closed_form
from invem.running.priors import newest_weights
from invem.storage.directory import Round

D, NOISE, N = 4, 0.5, 60_000
TRUE = Gaussian.full(
    torch.linspace(-1, 1, D), 0.6 ** (torch.arange(D)[:, None] - torch.arange(D)).abs().double()
)
WRONG = Gaussian.full(torch.linspace(0.5, 0, D), torch.eye(D).double() * 0.3)


def rng(n, *key):
    return (Pooled if n > 1000 else Rng).keyed("refine", *key, items=range(n))


def observe(A, x, sigma=NOISE):
    noise = gaussian(len(x), tuple(A(x).shape[1:]), Rng.generator("noise"), sigma=sigma)
    return Measurement(noise.sample(A(x), Rng.generator("y")), A, noise)


def mixture(k=3, q=2, d=D, shape=(D,)):
    draw = torch.Generator().manual_seed(0)
    weights = torch.full((k,), 1 / k)
    return FactorMixture(
        weights,
        torch.randn(k, *shape, generator=draw),
        0.6 * torch.randn(k, d, q, generator=draw),
        0.1 + torch.rand(d, generator=draw),
    )


class Exact(Denoiser):
    """F whose refinement is E[x | x_t, y] under the true prior, where A = I; theta phi is added,
    phi = (1, x_t, cond)."""

    condition = 2

    def __init__(self):
        super().__init__()
        self.spread, self.phi = 1.0, None

    def forward(self, x_t, sigma, cond=None):
        self.cond = cond
        q, mu, y = self.spread / self.sigma_data, cond[:, 0].double(), cond[:, 1].double()
        x_t, sigma = q * x_t.double() + mu, q * expand_level(sigma, x_t).double()
        inverse = torch.linalg.inv(TRUE.cov.dense().double())
        precision = inverse + torch.diag_embed((1 / sigma**2 + 1 / NOISE**2).expand(-1, D))
        pull = inverse @ TRUE.mean.double() + x_t / sigma**2 + y / NOISE**2
        x_hat = torch.linalg.solve(precision, pull[..., None])[..., 0]
        out = ((x_hat - mu) / q).float()
        if self.phi is not None:
            phi = torch.cat([torch.ones(len(x_t), 1), x_t.float(), cond.flatten(1)], 1)
            self.theta = torch.zeros(len(x_t), D, phi.shape[1], requires_grad=True)
            out = out + (self.theta @ phi[:, :, None])[..., 0]
        return out


def refined(before, n=N, A=None):
    x = TRUE.sample(rng(n, "x"))
    m = observe(identity(n, (D,), Rng.generator("A")) if A is None else A, x)
    network = Exact()
    model = Refine().build(lambda: network, before, m)
    network.spread = float(model.spread)
    return model, x, m


@pytest.mark.parametrize(
    "before", [Prior.of(WRONG), Prior.of(mixture())], ids=["Gaussian", "mixture"]
)
def test_the_minimiser_is_the_mean_given_the_measurement_whatever_the_prior_that_is_refined(before):
    denoiser, x, _ = refined(before)
    inner = denoiser.network
    inner.phi = True
    objective = Refine(p_mean=math.log(0.6), p_std=0.3)

    def slopes():
        loss = objective.loss(denoiser, Example(x), rng(N, "loss"))
        (each,) = torch.autograd.grad(loss.sum(), inner.theta)
        return (each.mean(0) / each.std(0).clamp(min=1e-12)) * N**0.5

    assert loss_is_finite(objective, denoiser, x)
    assert slopes().abs().max() < 4.5
    inner.spread *= 1.3  # another denoiser than the exact one
    assert slopes().abs().max() > 20


def loss_is_finite(objective, denoiser, x):
    loss = objective.loss(denoiser, Example(x), rng(N, "loss"))
    return loss.shape == (N,) and bool(loss.isfinite().all())


def test_draws_are_those_of_the_true_posterior_and_not_of_the_prior_that_was_refined():
    denoiser, _, m = refined(Prior.of(WRONG))
    n = 6000
    one = m[torch.zeros(n, dtype=torch.long)]
    x = Conditional(steps=64, schedule=Karras(sigma_max=10.0, sigma_min=0.01))(
        Refine().prior(denoiser, None), one, rng(n, "draw")
    ).double()
    precision = torch.linalg.inv(TRUE.cov.dense().double())
    cov = torch.linalg.inv(precision + torch.eye(D) / NOISE**2)
    mean = cov @ (precision @ TRUE.mean.double() + m.y[0].double() / NOISE**2)
    assert torch.allclose(x.mean(0), mean, atol=0.03)
    assert torch.allclose(torch.cov(x.T), cov, atol=0.02)
    wrong = WRONG.posterior_mean(m[:1])[0].double()
    assert (wrong - mean).abs().max() > 0.2


@pytest.mark.parametrize("law", ["Gaussian", "mixture", "factors"])
def test_without_a_condition_it_is_the_prior_and_both_survive_being_stored(law):
    factors = mixture()
    covs = (factors.factors @ factors.factors.mT + torch.diag(factors.diag)).double()
    before = {
        "Gaussian": Prior.of(WRONG),
        "mixture": Prior.of(Mixture(factors.weights, factors.means, covs)),
        "factors": Prior.of(factors),
    }[law]
    model, x, m = refined(before, n=64)
    prior = Refine().prior(model, None)
    x_t, few = x[:5], m[:5]
    assert torch.equal(prior(x_t, 0.5), before(x_t, 0.5))
    assert torch.equal(
        prior.known_exact().posterior(few, rng(5)), before.known_exact().posterior(few, rng(5))
    )
    assert torch.allclose(
        prior.known_moments().cov.dense(), before.known_moments().cov.dense(), atol=1e-5
    )
    cond = prior.conditioning(few)
    assert cond.shape == (5, 2, D) and torch.equal(cond[:, 1], few.y)
    assert torch.allclose(cond[:, 0], before.known_exact().posterior_mean(few), atol=1e-5)
    loaded = RefinedDenoiser(Exact())
    loaded.load_state_dict(model.state_dict())
    loaded.network.spread = model.network.spread
    Refine().loss(model, Example(x_t), rng(5))
    plain = model.network.cond
    with torch.autocast("cpu", torch.bfloat16):
        Refine().loss(model, Example(x_t), rng(5))
    assert torch.equal(model.network.cond, plain)
    assert torch.allclose(model.condition_of(few), cond, atol=1e-6)
    other = {
        k: v + 1 if k.endswith("mean") or k.endswith("means") else v
        for k, v in model.state_dict().items()
    }
    moved = RefinedDenoiser(Exact(), before.exact)
    moved(x_t, 0.5)
    moved.load_state_dict(other)
    assert not torch.equal(moved(x_t, 0.5), before(x_t, 0.5))
    assert moved.double().exact.moments().mean.dtype == torch.float64
    assert torch.equal(loaded(x_t, 0.5), before(x_t, 0.5))
    assert torch.allclose(loaded(x_t, 0.5, cond), model(x_t, 0.5, cond)) and not torch.equal(
        loaded(x_t, 0.5, cond), loaded(x_t, 0.5)
    )
    again = closed_form(before.known_exact().tensors())
    assert again.moments().mean.equal(before.known_moments().mean)


def test_the_posterior_mean_is_that_of_the_draws_and_of_the_dense_mixture():
    prior = mixture(d=16, shape=(1, 4, 4))
    covs = prior.factors.double() @ prior.factors.double().mT + torch.diag(prior.diag.double())
    dense = Mixture(prior.weights, prior.means, covs)
    x = prior.sample(rng(6))
    for A in (
        identity(6, (1, 4, 4), Rng.generator(0)),
        random_mask(6, (1, 4, 4), Rng.generator(0), keep=0.5),
        gaussian_blur(6, (1, 4, 4), Rng.generator(0), std=1.0, size=3),
        random_projection(6, (1, 4, 4), Rng.generator(0)),
    ):
        m = observe(A, x, 0.3)
        expected = dense.posterior_moments(m).mean.reshape(x.shape)
        assert torch.allclose(prior.posterior_mean(m).double(), expected, atol=1e-4)
        assert torch.allclose(dense.posterior_mean(m).double(), expected, atol=1e-6)
        exact = Prior.of(prior).known_exact()
        assert torch.equal(exact.posterior_mean(m), prior.posterior_mean(m))
        if m.shares_operator:
            both = prior.conditioned(m[:1])
            assert torch.allclose(both.mean(m.y), prior.posterior_mean(m), atol=1e-5)
            assert torch.allclose(
                both.mean(m.y[:2] + 1),
                prior.posterior_mean(replace(m[:2], y=m.y[:2] + 1)),
                atol=1e-5,
            )


def test_operators_that_differ_are_measured_with_again():
    shape = (1, 4, 4)
    prior = mixture(d=16, shape=shape)
    x = prior.sample(rng(32))
    m = observe(random_mask(32, shape, Rng.generator(0), keep=0.5), x, 0.3)
    network = Preconditioned(ConvNet(shape, kernels=[3, 1], width=8, condition=2))
    model = Refine().build(lambda: network, Prior.of(prior), m)
    assert not m.shares_operator_and_noise
    loss = Refine().loss(model, Example(x[:7]), rng(7))
    loss.mean().backward()
    assert loss.shape == (7,) and bool(loss.isfinite().all())
    one = Refine().prior(model, None)
    again = Refine().build(lambda: network, one, m)
    assert isinstance(again.exact, FactorMixture)
    assert torch.equal(Refine().prior(again, None).conditioning(m[:3]), one.conditioning(m[:3]))
    with pytest.raises(RecipeError, match="there is none"):
        Refine().build(lambda: network, None, m)
    with pytest.raises(RecipeError, match="no operator and noise"):
        Refine().loss(RefinedDenoiser(network, prior), Example(x[:2]), rng(2))
    with pytest.raises(RecipeError, match="measurements only"):
        Refine().loss(model, Example(None, m[:2]), rng(2))


def test_a_mixture_is_gone_on_from_after_it_was_refined():
    prior = Prior.of(mixture(d=16, shape=(1, 4, 4)))
    m = observe(identity(32, (1, 4, 4), Rng.generator(0)), prior.exact.sample(rng(32)), 0.3)
    network = Preconditioned(ConvNet((1, 4, 4), condition=2))
    model = Refine().build(lambda: network, prior, m)
    one, two = (
        FactorMixtureMoments(components=3, rank=2).solve(d, lambda: [(Example(None, m), rng(32))])
        for d in (prior, Refine().prior(model, None))
    )
    assert torch.equal(one.means, two.means) and torch.equal(one.diag, two.diag)


@pytest.mark.parametrize(("kernels", "reach"), [([5, 3, 1], 7), ([3], 3), ([1, 1], 1)])
def test_a_convnet_sees_no_further_than_its_kernels(kernels, reach):
    torch.manual_seed(0)
    net = ConvNet((1, 15, 15), kernels=kernels, width=8, condition=1)
    assert not net(torch.randn(2, 1, 15, 15), torch.zeros(2)).any()
    torch.nn.init.normal_(net.leave.weight)
    x, cond = (
        torch.randn(1, 1, 15, 15, requires_grad=True),
        torch.randn(1, 1, 1, 15, 15, requires_grad=True),
    )
    net(x, torch.zeros(1), cond)[0, 0, 7, 7].backward()
    for grad in (x.grad[0, 0], cond.grad[0, 0, 0]):
        rows, columns = grad.nonzero(as_tuple=True)
        assert int(rows.max() - rows.min()) + 1 == reach == int(columns.max() - columns.min()) + 1
    with pytest.raises(RecipeError, match="odd"):
        ConvNet((1, 8, 8), kernels=[4])
    with pytest.raises(RecipeError, match="images"):
        ConvNet((8,))


RECIPE = """
data: {name: synthetic, size: 8, train: 24, test: 4}
operator: {name: gaussian-blur, std: 1.0, size: 3}
noise: {name: gaussian, sigma: 0.1}
network: {name: mlp, width: 8, depth: 1}
clean: 6
phases:
  - name: begin
    batch: 8
    fit: {objective: OBJECTIVE}
  - name: detail
    rounds: ROUNDS
    network: {name: convnet, kernels: [3, 1], width: 4, condition: 2}
    fit: {objective: refine, on: clean, steps: 4, batch: 4, flip: horizontal, moments: 2}
  - name: refit
    batch: 8
    sampler: {name: conditional, steps: 3}
    fit: {objective: factor-mixture, components: 2, rank: 2}
  - name: last
    batch: 8
    sampler: exact
    fit: {objective: dsm, steps: 2, batch: 4, moments: 2}
evaluate: {samples: 4, observations: 2, draws: 1, steps: 3, posterior: 0, metrics: [psnr],
      sampler: {name: mmps, steps: 2}}
compute: {threads: 1}
"""


def planned(tmp_path, objective="factor-mixture, components: 2, rank: 2", rounds="2", *overrides):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.replace("OBJECTIVE", objective).replace("ROUNDS", rounds))
    return make(config.load(path, list(overrides)), config.Catalog.load())


def test_a_run_refines_a_mixture_by_clean_images_and_learns_from_the_draws(tmp_path):
    out = tmp_path / "run"
    work = Run(planned(tmp_path), out)
    work.resume()
    names = {path.parent.name for path in out.glob("*-denoiser/denoiser.safetensors")}
    assert names == {
        "0-000-denoiser",
        "1-000-denoiser",
        "1-001-denoiser",
        "2-000-denoiser",
        "3-000-denoiser",
    }
    assert len(list(out.glob("2-000-samples/*.safetensors"))) == 3
    first, refined = work.prior_at("begin", 0), work.prior_at("detail", 1)
    m = work.observations("test")
    x_t, cond = m.y + 0.5, refined.conditioning(m)
    assert isinstance(refined.denoiser, RefinedDenoiser)
    assert torch.equal(refined(x_t, 0.5), first(x_t, 0.5))
    mean = first.exact.posterior_mean(m)
    assert torch.equal(cond, torch.stack([mean, m.A.adjoint(m.y)], 1))
    assert refined(x_t, 0.5, cond).isfinite().all() and not torch.equal(
        refined(x_t, 0.5, cond), refined(x_t, 0.5)
    )
    assert torch.equal(refined.known_exact().posterior_mean(m), mean)


def test_a_network_of_residuals_is_no_start_for_a_prior(tmp_path):
    """Although it is the recipe's own network."""
    own = "network={name: mlp, width: 8, depth: 1, condition: 2}"
    work = Run(
        planned(tmp_path, "gaussian-moments", "1", own, "phases.detail.network=null"),
        tmp_path / "run",
    )
    work.resume()
    assert newest_weights(work.context, Round(3, 0)) is None
    assert newest_weights(work.context, Round(1, 1)) is not None


def test_a_network_is_not_refined(tmp_path):
    with pytest.raises(RecipeError, match="refine needs a prior in closed form, a Gaussian"):
        planned(tmp_path, "dsm, on: clean, steps: 2")
