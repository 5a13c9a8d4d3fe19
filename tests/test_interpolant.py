"""SCSI, SFBD-OMNI and the flow of their interpolants: exact answers on Gaussians."""

from dataclasses import replace

import pytest
import torch
from invem_plugins.flows.interpolant import InterpolantConditioning
from invem_plugins.flows.sampler import InterpolantFlow
from invem_plugins.flows.scsi import SCSI
from invem_plugins.flows.sfbd_omni import SFBDOmni
from invem_plugins.networks.mlp import MLP
from invem_plugins.noises.laplace import laplace
from invem_plugins.operators.downsample import downsample
from invem_plugins.operators.identity import identity
from invem_plugins.operators.jpeg import jpeg
from invem_plugins.operators.phase_retrieval import phase_retrieval
from invem_plugins.operators.random_mask import random_mask
from test_conditional import NOISE, PRIOR, D, N, observe, posterior, rng, white

from invem import Denoiser, Example, Gaussian, Preconditioned, Prior, RecipeError, Rng, Unsupported
from invem.denoiser import expand_level
from invem.prior import ExactDenoiser

FORMS = [SCSI(), SFBDOmni()]


def law(name, n):
    return (
        random_mask(n, (D,), Rng.generator("mask"), keep=0.6)
        if name == "mask"
        else identity(n, (D,), Rng.generator(0))
    )


def measured(name, n, prior=PRIOR):
    return observe(law(name, n), prior.sample(rng(n, "x")))


class Exact(ExactDenoiser):
    """E[x | I_t] or E[x | I_t, y] of a mask or of the whole, by the normal equations, and E[x |
    x_t] where the condition is zero."""

    condition = 2

    def __init__(self, prior, jitter, informed, scale=1.0):
        super().__init__(prior)
        self.jitter, self.informed, self.scale = jitter, informed, scale

    def forward(self, x_t, sigma, cond=None):
        base = super().forward(x_t, sigma)
        if cond is None:
            return self.scale * base
        t, state = expand_level(sigma, x_t).double(), x_t.double()
        mean, C = self.exact.mean.double(), self.exact.cov.dense().double()
        y, shown = cond.double().unbind(1)
        # One matrix for each mask, where all have one t. Rows of what is known: I_t, and y where it
        # is told.
        seen, of = (
            shown.unique(dim=0, return_inverse=True)
            if len(t) == 1
            else (shown, torch.arange(len(shown)))
        )
        B = torch.diag_embed((1 - t) + t * seen)
        R = torch.diag_embed(t**2 * (NOISE**2 * seen + self.jitter**2))
        known = state
        if self.informed:
            A = torch.diag_embed(seen)
            B = torch.cat([B, A], 1)
            cross = torch.diag_embed(t * NOISE**2 * seen)
            # A hidden entry of y says nothing: its own noise keeps the matrix regular.
            R = torch.cat(
                [
                    torch.cat([R, cross], 2),
                    torch.cat([cross, torch.diag_embed(NOISE**2 * seen + (1 - seen))], 2),
                ],
                1,
            )
            known = torch.cat([state, y], 1)
        S = B @ C @ B.mT + R
        gain = torch.linalg.solve(S, B @ C).mT
        x_hat = mean + (gain[of] @ (known - (B @ mean)[of])[:, :, None])[..., 0]
        flows = (cond.flatten(1) != 0).any(1)[:, None]
        return self.scale * torch.where(flows, x_hat.to(x_t), base)


class Nudged(Denoiser):
    """D + theta phi, one theta for each sample, phi = (1, x_t, cond)."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x_t, sigma, cond=None):
        phi = torch.cat([torch.ones(len(x_t), 1), x_t, cond.flatten(1)], 1)
        self.theta = torch.zeros(len(x_t), D, phi.shape[1], requires_grad=True)
        self.seen = x_t, sigma, cond
        return self.inner(x_t, sigma, cond) + (self.theta @ phi[:, :, None])[..., 0]


def slopes(objective, prior, batch, scale=1.0):
    """The mean gradient with respect to theta in standard errors. And what the denoiser was asked.

    Times the square of t, or of the noise level: the minimiser is that at each level by itself, and
    the weight is infinite at zero.
    """
    nudged = Nudged(Exact(prior, objective.jitter, objective.informed, scale))
    loss = objective.loss(nudged, batch, rng(N, "loss"))
    (grad,) = torch.autograd.grad(loss.sum(), nudged.theta)
    grad = grad.double() * nudged.seen[1].double().clamp(max=1).square()[:, :, None]
    return grad.mean(0) / (grad.std(0) / N**0.5).clamp(min=1e-12), nudged.seen


def draw(prior, m, sampler=None, key="draw"):
    return (sampler or InterpolantFlow())(prior, m, rng(len(m), key))


def exact(objective, prior=PRIOR):
    return objective.prior(Exact(prior, objective.jitter, objective.informed), prior)


@pytest.mark.parametrize("name", ["mask", "identity"])
@pytest.mark.parametrize("objective", FORMS, ids=lambda o: type(o).__name__)
def test_it_is_least_at_the_exact_mean(objective, name):
    """Draws of the posterior and their observations have the law of signals and new measurements,
    so that real pairs change nothing."""
    m = measured(name, N)
    batch = Example(PRIOR.posterior(m, rng(N, "draws")), m)
    found, (_, _, cond) = slopes(objective, PRIOR, batch)
    assert float(found.abs().max()) < 4.5
    assert float((cond.flatten(1) == 0).all(1).float().mean()) == pytest.approx(0.2, abs=0.03)
    assert float(slopes(objective, PRIOR, batch, 1.2)[0].abs().amax(1).min()) > 8
    other = replace(PRIOR, mean=PRIOR.mean + 1)
    assert float(slopes(objective, other, batch)[0].abs().amax(1).min()) > 8


@pytest.mark.parametrize("objective", FORMS, ids=lambda o: type(o).__name__)
def test_the_loss_is_the_error_of_the_velocity(objective):
    n = 400
    m = measured("mask", n)
    x = PRIOR.posterior(m, rng(n, "draws"))
    objective = replace(objective, drop=1e-9)
    nudged = Nudged(Exact(PRIOR, objective.jitter, objective.informed))
    loss = objective.loss(nudged, Example(x, m), rng(n, "loss")).detach()
    state, t, cond = nudged.seen
    end = (state - (1 - t) * x) / t
    velocity = (state - nudged.inner(state, t, cond)) / t
    assert torch.allclose(loss, (velocity - (end - x)).square().mean(1), rtol=2e-2, atol=1e-4)
    assert float(t.min()) > 0 and float(t.max()) <= 1
    assert float(t.mean()) == pytest.approx(0.5, abs=0.05)
    # What is hidden begins with the jitter alone, what is measured with a new measurement.
    hidden = cond[:, 1] == 0
    assert float(end[hidden].std()) == pytest.approx(objective.jitter, rel=0.15)
    assert float((end - x)[~hidden].std()) == pytest.approx(
        (objective.jitter**2 + NOISE**2) ** 0.5, rel=0.15
    )


def test_what_the_network_is_told():
    n = 50
    m = measured("mask", n)
    for objective in FORMS:
        told = exact(objective).conditioning(m)
        assert torch.equal(told[:, 1], m.A.mask)
        assert torch.equal(told[:, 0], m.A.mask * m.y if objective.informed else torch.ones(n, D))
    x = torch.rand(n, 1, 8, 8, generator=Rng.generator("x"))
    small = observe(downsample(n, (1, 8, 8), Rng.generator(0), factor=2), x, 0.1)
    first = InterpolantConditioning(0.0, True).first(small, rng(n))
    assert torch.equal(first, small.A.adjoint(small.y))


def test_real_pairs_are_a_share_of_what_scsi_learns_from():
    n = 4000
    m = measured("identity", n)
    x = torch.zeros(n, D)
    for share in (0.9, 0.3, 1.0):
        nudged = Nudged(Exact(PRIOR, 0.0, False))
        SCSI(jitter=0.0, simulated=share, drop=1e-9).loss(nudged, Example(x, m), rng(n))
        state, t, _ = nudged.seen
        own = torch.isclose(state / t, m.y, atol=1e-4).all(1)
        assert float(own.float().mean()) == pytest.approx(1 - share, abs=0.03)


@pytest.mark.parametrize("name", ["mask", "identity"])
@pytest.mark.parametrize("jitter", [0.05, 0.5])
def test_the_flow_of_omni_draws_the_posterior_whatever_the_jitter(name, jitter):
    m, n = measured(name, 1), 20_000
    many = m[torch.zeros(n, dtype=torch.long)]
    found = white(
        draw(exact(SFBDOmni(jitter=jitter)), many, InterpolantFlow(steps=64)), *posterior(m)
    )
    assert float(found.mean(0).abs().max()) < 0.03
    assert float((torch.linalg.eigvalsh(torch.cov(found.T)) - 1).abs().max()) < 0.06


@pytest.mark.parametrize("name", ["mask", "identity"])
def test_the_flow_of_scsi_has_the_law_of_the_signals_and_not_that_of_the_posterior(name):
    n = 20_000
    prior = exact(SCSI(jitter=0.1))
    pooled = draw(prior, measured(name, n), InterpolantFlow(steps=64))
    found = white(pooled, PRIOR.mean.double(), PRIOR.cov.dense().double())
    if name == "identity":  # told nothing that differs: one flow, from the law of y to that of x
        assert float(found.mean(0).abs().max()) < 0.03
        assert float((torch.linalg.eigvalsh(torch.cov(found.T)) - 1).abs().max()) < 0.06
    one = measured(name, 1)
    alone = white(
        draw(prior, one[torch.zeros(n, dtype=torch.long)], InterpolantFlow(steps=64)),
        *posterior(one),
    )
    assert float(torch.linalg.eigvalsh(torch.cov(alone.T))[0]) < 0.8


def rounds(objective, name, count, n=10_000):
    """EM with the exact minimiser of every round, from a prior that is too wide."""
    m = measured(name, n)
    prior = Gaussian.standard((D,), 1.5)
    for k in range(count):
        x = draw(exact(objective, prior), m, InterpolantFlow(), f"round {k}")
        prior = Gaussian.full(x.double().mean(0), torch.cov(x.double().T))
    return prior


@pytest.mark.parametrize(
    ("objective", "name", "count"), [(SCSI(jitter=0.0), "identity", 12), (SFBDOmni(), "mask", 16)]
)
def test_its_rounds_end_at_the_law_of_the_signals(objective, name, count):
    found = rounds(objective, name, count)
    truth = torch.linalg.cholesky(PRIOR.cov.dense().double())
    inner = torch.linalg.solve_triangular(truth, found.cov.dense().double(), upper=False)
    values = torch.linalg.eigvalsh(torch.linalg.solve_triangular(truth, inner.T, upper=False))
    assert float((found.mean - PRIOR.mean).abs().max()) < 0.05
    assert float((values - 1).abs().max()) < 0.15


def test_a_round_from_the_truth_changes_nothing():
    n = 20_000
    m = measured("identity", n)
    for objective in FORMS:
        x = draw(exact(objective), m, InterpolantFlow(steps=48))
        found = white(x, PRIOR.mean.double(), PRIOR.cov.dense().double())
        assert float((torch.linalg.eigvalsh(torch.cov(found.T)) - 1).abs().max()) < 0.06


def network(shape=(D,)):
    torch.manual_seed(0)
    denoiser = Preconditioned(MLP(shape, width=16, condition=2), 0.5)
    for weight in denoiser.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return denoiser


@pytest.mark.parametrize("objective", FORMS, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("black", [False, True])
def test_a_loss_is_of_its_sample_and_asks_no_more_of_a_simulator_than_to_be_called(
    objective, black
):
    n, shape = 6, (1, 8, 8) if black else (D,)
    x = torch.rand(n, *shape, generator=Rng.generator("x"))
    A = jpeg(n, shape, Rng.generator(0), quality=30) if black else law("mask", n)
    m = observe(A, x, law=laplace)
    denoiser = objective.build(lambda: network(shape), None, m)
    loss = objective.loss(denoiser, Example(x, m), rng(n))
    alone = torch.cat(
        [objective.loss(denoiser, Example(x[i : i + 1], m[i]), rng(n)[i]) for i in range(n)]
    )
    assert torch.allclose(alone, loss, rtol=1e-4)
    moved = objective.loss(denoiser, Example(torch.cat([x[:1], x[1:] + 1]), m), rng(n))
    assert torch.allclose(moved[0], loss[0], rtol=1e-4)
    loss.mean().backward()
    assert all(bool(weight.grad.any()) for weight in denoiser.parameters())
    found = draw(objective.prior(denoiser, None), m, InterpolantFlow(steps=3))
    assert found.shape == x.shape and bool(found.isfinite().all())


def test_granted_images_are_measured_too_and_without_measurements_the_prior_alone_is_learned():
    n = 500
    m = measured("mask", n)
    x = PRIOR.sample(rng(n, "clean"))
    for objective in FORMS:
        nudged = Nudged(Exact(PRIOR, objective.jitter, objective.informed))
        model, alone = (
            objective.build(lambda made=nudged: made, None, given) for given in (m, None)
        )
        assert model.observations is m and alone.observations is None
        objective.loss(model, Example(x), rng(n))
        assert float(nudged.seen[2].flatten(1).any(1).float().mean()) == pytest.approx(
            0.8, abs=0.07
        )
        alone = objective.loss(Exact(PRIOR, 0.2, True), Example(x), rng(n))
        assert bool(alone.isfinite().all())
        with pytest.raises(RecipeError, match="signals"):
            objective.loss(model, Example(None, m), rng(n))


def test_it_is_a_prior_as_well():
    x_t = PRIOR.sample(rng(5))
    for objective in FORMS:
        assert torch.allclose(
            exact(objective)(x_t, 0.4), PRIOR.denoise(x_t, torch.tensor(0.4)), atol=1e-5
        )
        wrapped = objective.build(network, None, None)
        assert wrapped.sigma_data == 0.5 and wrapped.condition == 2
        assert {
            name.removeprefix("network.") for name in wrapped.state_dict()
        } == network().state_dict().keys()


def test_what_an_interpolant_is_not_for():
    x = torch.rand(2, 1, 8, 8, generator=Rng.generator("x"))
    m = observe(phase_retrieval(2, (1, 8, 8), Rng.generator(0)), x, 0.1)
    for objective in FORMS:
        with pytest.raises(Unsupported, match="observations of the shape of the signals"):
            objective.loss(network((1, 8, 8)), Example(x, m), rng(2))
    with pytest.raises(Unsupported, match="scsi or sfbd-omni"):
        InterpolantFlow()(Prior.of(PRIOR), measured("mask", 2), rng(2))
    assert InterpolantFlow(steps=8).cost == (15, 0) and InterpolantFlow(
        steps=8, stepping="euler"
    ).cost == (8, 0)
