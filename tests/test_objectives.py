"""Objectives: one loss a sample, the known denoiser as minimiser, the supervised gradient in
expectation, and bias where there is one."""

import math
from dataclasses import dataclass

import pytest
import torch
from invem_plugins.networks.mlp import MLP
from invem_plugins.noises.gaussian import Gaussian as Noise
from invem_plugins.objectives.ambient_tweedie import AmbientTweedie
from invem_plugins.objectives.dsm import DSM
from invem_plugins.objectives.gaussian_moments import GaussianMoments
from invem_plugins.objectives.gsure import GSURE
from invem_plugins.objectives.sure_score import SUREScore
from invem_plugins.operators.identity import Identity
from invem_plugins.schedules.vp import VP

from invem import (
    ClosedFormObjective,
    Denoiser,
    Example,
    Gaussian,
    Mask,
    Matrix,
    Measurement,
    Mixture,
    Objective,
    Preconditioned,
    Prior,
    RecipeError,
    Rng,
    Unsupported,
)
from invem.config import Fit
from invem.denoiser import expand_level
from invem.objective import edm_weight, noise_levels, score_matching
from invem.prior import ExactDenoiser
from invem.running.trainer import Trainer
from invem.testing import check

D, N = 4, 20_000
PRIOR = Gaussian.full(
    torch.linspace(-1, 1, D), 0.6 ** (torch.arange(D)[:, None] - torch.arange(D)).abs().double()
)
CENTRED = Gaussian(torch.zeros(D), PRIOR.cov)
COV = PRIOR.cov.dense().double()
SIGMA_Y = 0.5
WRONG = 0.3 * torch.tensor(
    [[1.0, -0.5, 0, 0, 0.4], [0, 0.8, 0.3, 0, -0.2], [-0.6, 0, 0.5, 0, 0.3], [0.2, 0, 0, -1.0, 0.5]]
)


class Perturbed(Denoiser):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x_t, sigma, cond=None):
        return self.scale * PRIOR.denoise(x_t, torch.as_tensor(sigma))


class Shifted(Denoiser):
    """E[x | x_t] plus an affine function of x_t, of a size that is natural at each level. shift: (1
    or B, D, D + 1)."""

    sigma_data = 1.0

    def __init__(self, shift, prior=PRIOR, where=lambda sigma: torch.ones_like(sigma)):
        super().__init__()
        self.shift, self.prior, self.where = shift, prior, where

    def forward(self, x_t, sigma, cond=None):
        sigma = expand_level(sigma, x_t)
        scale = (1 + sigma**2).rsqrt()
        features = torch.cat([scale * (x_t - self.prior.mean), torch.ones_like(x_t[:, :1])], 1)
        shift = sigma * scale * torch.einsum("bij,bj->bi", self.shift, features)
        return self.prior.denoise(x_t, sigma) + self.where(sigma) * shift


class Linear(Denoiser):
    """x_hat = M x_t at every level. matrix: (1 or B, D, D)."""

    sigma_data = 1.0

    def __init__(self, matrix):
        super().__init__()
        self.matrix = matrix

    def forward(self, x_t, sigma, cond=None):
        return torch.einsum("bij,bj->bi", self.matrix, x_t)


class Quick(Rng):
    """One generator for all streams, for the tests that only take means."""

    def __init__(self, name):
        super().__init__(range(N))
        self.generator = Rng.generator(name)

    def _fill(self, shape, dtype, normal):
        draw = torch.randn if normal else torch.rand
        return draw(N, *shape, dtype=dtype, generator=self.generator)


def rng(n, name="objective"):
    return Quick(name) if n == N else Rng.keyed(name, items=range(n))


def signals(n=N, prior=PRIOR):
    return prior.sample(rng(n, "signal"))


def noisy(x, sigma=SIGMA_Y):
    """Returns the measurement of signals by A = I. sigma: one level, or (B, 1)."""
    sigma = torch.as_tensor(sigma).expand(len(x), 1)
    return Measurement(
        x + sigma * rng(len(x), "noise").normal_like(x), Identity((D,)), Noise(sigma)
    )


def masked(x, keep=0.5, sigma=SIGMA_Y):
    mask = (rng(len(x), "mask").uniform(D) < keep).float()
    return Measurement(
        mask * x + sigma * rng(len(x), "noise").normal_like(x),
        Mask((D,), mask),
        Noise(torch.full((len(x), 1), sigma)),
    )


def slopes(loss, shift, build=Shifted):
    """Returns the gradient of each sample's loss with respect to the parameters of its denoiser,
    (N, parameters), float64."""
    each = shift.expand(N, *shift.shape[-2:]).clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(build(each)).sum(), each)
    return slope.flatten(1).double()


def errors(a):
    """Returns the largest mean of a column, in standard errors."""
    return float((a.mean(0) / (a.std(0) / len(a) ** 0.5)).abs().max())


def share(a, b):
    """Returns |mean a| / |mean b|."""
    return float(a.mean(0).norm() / b.mean(0).norm())


# Denoising score matching


def test_dsm_is_least_at_the_exact_denoiser():
    x = PRIOR.sample(rng(N))
    best = DSM().loss(ExactDenoiser(PRIOR), Example(x), rng(N)).mean()
    for scale in (0.9, 1.1):
        assert DSM().loss(Perturbed(scale), Example(x), rng(N)).mean() > 1.01 * best


def test_dsm_at_the_exact_denoiser_is_the_posterior_variance():
    """E w |x_hat - x|^2 / d = E w tr Cov[x | x_t] / d, with w and sigma as EDM draws them."""
    x = signals()
    loss = DSM().loss(ExactDenoiser(PRIOR), Example(x), rng(N))
    assert loss.shape == (N,)
    sigma = (-1.2 + 1.2 * rng(N).normal(1)).exp().double()
    values = torch.linalg.eigvalsh(COV)
    weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    expected = (weight * (values * sigma**2 / (values + sigma**2))).mean(1)
    assert float(loss.mean()) == pytest.approx(float(expected.mean()), rel=0.03)


class Recorded(Denoiser):
    """0.7 x_t, which keeps what it was given."""

    def forward(self, x_t, sigma, cond=None):
        self.x_t, self.sigma = x_t, sigma
        return 0.7 * x_t


def recorded(weighting):
    x, denoiser = signals(2000), Recorded()
    loss = DSM(weighting=weighting).loss(denoiser, Example(x), rng(2000))
    sigma = denoiser.sigma.double()
    z = (denoiser.x_t.double() - x) / sigma
    return x.double(), z, sigma, 0.7 * denoiser.x_t.double(), loss.double()


def uniform(u):
    """Kolmogorov and Smirnov, at 1 %."""
    gap = u.sort().values - (torch.arange(len(u)) + 0.5) / len(u)
    return (
        float(u.min()) >= 0
        and float(u.max()) <= 1
        and float(gap.abs().max()) * len(u) ** 0.5 < 1.63
    )


def near(a, b):
    """The largest difference, relative to b."""
    return float(((a - b).abs() / b.abs()).max())


def test_the_default_weighting_is_as_it_was():
    x, r = signals(2000), rng(2000)
    sigma = (-1.2 + 1.2 * r.normal(1)).exp()
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    error = 0.7 * (x + sigma * r.normal_like(x)) - x
    assert torch.equal(
        DSM().loss(Recorded(), Example(x), rng(2000)), (weight * error.square()).mean(1)
    )


def test_epsilon_is_the_error_of_the_noise_at_uniform_times_of_ddpm():
    x, z, sigma, x_hat, loss = recorded("epsilon")
    z_hat = (x + sigma * z - x_hat) / sigma
    assert near(loss, (z_hat - z).square().mean(1)) < 1e-3
    u = ((0.01 + 39.8 * sigma[:, 0].square().log1p()).sqrt() - 0.1) / 19.9
    assert near(VP().sigma((1 - u) / (1 - VP().u_min)), sigma[:, 0]) < 1e-6
    assert uniform((u - 1e-3) / (1 - 1e-3))


def test_flow_is_the_error_of_the_velocity_at_uniform_times():
    x, z, sigma, x_hat, loss = recorded("flow")
    u = sigma / (1 + sigma)
    state = (1 - u) * x + u * z
    z_hat = (state / (1 - u) - x_hat) / sigma
    assert near(loss, ((z_hat - x_hat) - (z - x)).square().mean(1)) < 1e-3
    assert near(loss, ((x_hat - x).square() / u**2).mean(1)) < 1e-3
    assert uniform((u[:, 0] - 1e-3) / (1 - 2e-3))


def test_diem_draws_a_beta_of_levels():
    x, _, sigma, x_hat, loss = recorded("diem")
    assert near(loss, ((1 / sigma**2 + 1) * (x_hat - x).square()).mean(1)) < 1e-3
    t = (sigma[:, 0] / 1e-3).log() / torch.tensor(1e5).log()
    assert uniform(t**3 * (10 - 15 * t + 6 * t**2))


@pytest.mark.parametrize("weighting", ["edm", "epsilon", "flow", "diem"])
def test_every_weighting_has_the_same_minimiser(weighting):
    x, objective = signals(), DSM(weighting=weighting)
    at = lambda shift: slopes(lambda denoiser: objective.loss(denoiser, Example(x), rng(N)), shift)  # noqa: E731
    assert errors(at(torch.zeros(1, D, D + 1))) < 4 and errors(at(WRONG[None])) > 20


def test_the_law_of_edm_is_refused_elsewhere():
    for options in ({"p_mean": 0.0}, {"p_std": 1.0}):
        with pytest.raises(RecipeError, match="weighting: edm"):
            DSM(weighting="flow", **options)


def test_no_noise_level_is_below_the_least():
    x = torch.zeros(200, 3)
    for least in (0.3, 0.5, torch.full((200, 1), 0.7)):
        assert bool(
            (
                noise_levels(rng(200, "least"), x, math.log(0.3), 0.01, least)
                >= torch.as_tensor(least)
            ).all()
        )


def test_a_mask_that_shows_all_of_the_first_signal_is_not_the_identity():
    seen = torch.ones(300, D)
    seen[7, 1] = 0
    A = Mask((D,), seen)
    assert (
        "identity"
        in A[:5].provides | Measurement(torch.zeros(5, D), A[:5], Noise(torch.ones(5, 1))).provides
    )
    assert (
        "identity" not in Measurement(torch.zeros(20, D), A[:20], Noise(torch.ones(20, 1))).provides
    )


# Noisy observations: the minimiser and the supervised gradient


def supervised(denoiser, x, least=SIGMA_Y, factor=lambda sigma: torch.ones_like(sigma)):
    """Denoising score matching on the clean signals at levels above that of the data."""
    r = rng(N, "supervised")
    sigma = noise_levels(r, x, least=least)
    return score_matching(denoiser, x, sigma, factor(sigma) * edm_weight(denoiser, sigma), r)


def cases():
    x = signals()
    m = noisy(x)
    levels = torch.where(torch.arange(N) % 2 == 0, 0.2, 0.9)[:, None]
    mixed = noisy(x, levels)

    def damped(least):
        return lambda denoiser: supervised(
            denoiser, x, least, lambda sigma: (1 - least**2 / sigma**2) ** 2
        )

    def one_level(denoiser):
        return (
            edm_weight(denoiser, torch.tensor(SIGMA_Y)) * (denoiser(m.y, SIGMA_Y) - x).square()
        ).mean(1)

    return {
        "ambient-tweedie, a^2 times": (AmbientTweedie(), m, damped(SIGMA_Y)),
        "ambient-tweedie, two levels, a^2 times": (AmbientTweedie(), mixed, damped(levels)),
        "sure": (SUREScore(score=0.0), m, one_level),
        "gsure, all seen": (GSURE(), m, lambda denoiser: supervised(denoiser, x)),
        "gsure, two levels": (GSURE(), mixed, lambda denoiser: supervised(denoiser, x, levels)),
    }


@pytest.mark.parametrize("name", cases())
def test_on_noisy_observations_the_gradient_is_the_supervised_one(name):
    objective, m, target = cases()[name]
    loss = lambda denoiser: objective.loss(denoiser, Example(None, m), rng(N))  # noqa: E731
    exact, wrong, right = (
        slopes(loss, torch.zeros(1, D, D + 1)),
        slopes(loss, WRONG[None]),
        slopes(target, WRONG[None]),
    )
    assert errors(exact) < 4
    assert errors(right) > 25 and errors(wrong - right) < 4 and share(wrong - right, right) < 0.12


@pytest.mark.parametrize("name", ["sure", "gsure, all seen", "gsure, two levels"])
def test_stein_estimates_the_supervised_loss_itself(name):
    objective, m, target = cases()[name]
    for shift in (torch.zeros(1, D, D + 1), WRONG[None]):
        gap = objective.loss(Shifted(shift), Example(None, m), rng(N)) - target(Shifted(shift))
        assert errors(gap[:, None].detach().double()) < 4


@pytest.mark.parametrize(
    "objective", [AmbientTweedie(), SUREScore(score=0.0), GSURE()], ids=lambda o: type(o).__name__
)
def test_on_noisy_observations_the_loss_is_least_at_the_exact_denoiser(objective):
    m = noisy(signals())
    losses = [
        objective.loss(Shifted(s * WRONG[None]), Example(None, m), rng(N)).detach().double()
        for s in (0.0, -0.5, 0.5)
    ]
    for other in losses[1:]:
        gap = other - losses[0]
        assert float(gap.mean() / gap.std()) * N**0.5 > 8


@pytest.mark.parametrize(
    "objective", [AmbientTweedie(), SUREScore(), GSURE()], ids=lambda o: type(o).__name__
)
def test_granted_images_are_fitted_as_by_dsm(objective):
    x, denoiser = signals(), Shifted(WRONG[None])
    r = rng(N)
    sigma = noise_levels(r, x)
    loss = objective.loss(denoiser, Example(x), rng(N))
    assert torch.equal(loss, score_matching(denoiser, x, sigma, edm_weight(denoiser, sigma), r))
    gap = loss.double() - DSM().loss(denoiser, Example(x), rng(N, "other"))
    assert errors(gap[:, None]) < 4
    if isinstance(objective, AmbientTweedie):
        assert torch.equal(objective.loss(denoiser, Example(None, noisy(x, 0.0)), rng(N)), loss)


# Ambient Tweedie below the noise of the data


def below(sigma):
    return (sigma < SIGMA_Y).to(sigma)


def test_ambient_tweedie_is_blind_below_the_noise_of_the_data():
    m = noisy(signals())
    one, two = (
        AmbientTweedie().loss(Shifted(s * WRONG[None], where=below), Example(None, m), rng(N))
        for s in (0, 1)
    )
    assert torch.equal(one, two)


def consistency(denoiser, m, **options):
    """The consistency term alone."""
    whole = AmbientTweedie(consistency=1.0, **options).loss(denoiser, Example(None, m), rng(N))
    return (whole - AmbientTweedie().loss(denoiser, Example(None, m), rng(N))).double()


@pytest.mark.parametrize("steps", [1, 3])
def test_the_consistency_term_mends_it(steps):
    """It is zero at the exact denoiser, positive where that is wrong below, and its gradient points
    back."""
    m = noisy(signals())
    options = {"branch_steps": steps} if steps != AmbientTweedie.branch_steps else {}
    at_best = consistency(Shifted(torch.zeros(1, D, D + 1)), m, **options)
    assert errors(at_best[:, None]) < 4
    for sign in (-1, 1):
        shift = sign * WRONG[None]
        value = consistency(Shifted(shift, where=below), m, **options)
        assert float(value.mean() / value.std()) * N**0.5 > 8
        slope = slopes(
            lambda d: consistency(d, m, **options), shift, lambda s: Shifted(s, where=below)
        )
        along = (slope * shift.flatten()).sum(1)
        assert float(along.mean() / along.std()) * N**0.5 > 8


def test_the_consistency_term_leaves_the_levels_above_alone():
    m = noisy(signals())
    slope = slopes(
        lambda d: consistency(d, m),
        WRONG[None],
        lambda s: Shifted(s, where=lambda sigma: 1 - below(sigma)),
    )
    assert float(slope.abs().max()) < 1e-4


def test_few_steps_of_the_consistency_term_are_biased():
    """At the exact denoiser of two modes, which is not linear, it is not zero; with more steps it
    tends to zero."""
    prior = Mixture(
        torch.full((2,), 0.5), torch.tensor([[-1.0], [1.0]]), torch.full((2, 1, 1), 0.04)
    )
    sign = torch.where(rng(N, "mode").uniform(1) < 0.5, -1.0, 1.0)
    x = sign + 0.2 * rng(N, "signal").normal(1)
    noise = Noise(torch.full((N, 1), SIGMA_Y))
    m = Measurement(x + SIGMA_Y * rng(N, "noise").normal(1), Identity((1,)), noise)
    few, many = (
        consistency(ExactDenoiser(prior), m, **options) for options in ({}, {"branch_steps": 32})
    )
    assert errors(few[:, None]) > 4 and float(many.mean()) < 0.5 * float(few.mean())


def test_the_consistency_term_has_the_mean_that_is_claimed():
    """A constant below moves E[D(x_s, s) | x_t] by itself: w |b|^2 / d, sigma log-uniform between
    s_n and 2 s_n."""

    class Moved(Shifted):
        def forward(self, x_t, sigma, cond=None):
            return self.prior.denoise(x_t, expand_level(sigma, x_t)) + 0.3 * below(
                expand_level(sigma, x_t)
            )

    value = consistency(Moved(WRONG[None]), noisy(signals()), branch_steps=1)
    sigma = SIGMA_Y * 2 ** torch.linspace(0, 1, 2001, dtype=torch.float64)
    expected = float(edm_weight(Moved(WRONG), sigma).mean()) * 0.3**2
    assert abs(float(value.mean()) - expected) < 4 * float(value.std()) / N**0.5
    assert expected > 20 * float(value.std()) / N**0.5


def test_observations_without_noise_are_left_out_of_the_consistency_term():
    x = signals(40)
    m = noisy(x, torch.where(torch.arange(40) < 20, 0.005, 0.5)[:, None])
    denoiser = Shifted(WRONG[None])
    with_it = AmbientTweedie(consistency=1.0).loss(denoiser, Example(None, m), rng(40))
    without = AmbientTweedie().loss(denoiser, Example(None, m), rng(40))
    assert torch.equal(with_it[:20], without[:20]) and not (with_it[20:] == without[20:]).any()
    with pytest.raises(RecipeError, match="consistency"):
        AmbientTweedie(branch_steps=8)


# SURE-Score: what it learns is the law of h, which is narrower


class AtTheData(Denoiser):
    """The exact denoiser at the level of the data plus b, and at all others that of another
    Gaussian plus an affine function."""

    sigma_data = 1.0

    def __init__(self, prior, shift):
        super().__init__()
        self.rest, self.b = Shifted(shift[:, :, : D + 1], prior), shift[:, :, D + 1]

    def forward(self, x_t, sigma, cond=None):
        sigma = expand_level(sigma, x_t)
        mine = PRIOR.denoise(x_t, sigma) + self.b
        return torch.where(sigma == SIGMA_Y, mine, self.rest(x_t, sigma))


def test_sure_score_learns_the_law_of_what_it_denoised():
    m, zero = noisy(signals()), torch.zeros(1, D, D + 2)
    narrow = Gaussian.full(
        PRIOR.mean, COV @ torch.linalg.inv(COV + SIGMA_Y**2 * torch.eye(D)) @ COV
    )

    def at(prior, through):
        objective = SUREScore(through=through)
        loss = lambda denoiser: objective.loss(denoiser, Example(None, m), rng(N))  # noqa: E731
        return slopes(loss, zero, lambda shift: AtTheData(prior, shift)).unflatten(1, (D, D + 2))

    stopped, through = at(narrow, False), at(narrow, True)
    assert errors(stopped.flatten(1)) < 4
    assert errors(through[:, :, : D + 1].flatten(1)) < 4
    assert errors(at(PRIOR, False)[:, :, : D + 1].flatten(1)) > 8


def test_the_gradient_of_the_second_term_through_h_narrows_h_further():
    """One denoiser of all levels, right at s_n: without `through` its scale at s_n is left alone,
    with it it shrinks."""
    m = noisy(signals())
    toward = torch.cat([PRIOR_GAIN, torch.zeros(D, 1), torch.zeros(D, 1)], 1)

    class Scaled(AtTheData):
        def forward(self, x_t, sigma, cond=None):
            sigma = expand_level(sigma, x_t)
            x_hat = PRIOR.denoise(x_t, sigma)
            mine = x_hat + torch.einsum("bij,bj->bi", self.rest.shift[:, :, :D], x_hat - PRIOR.mean)
            return torch.where(sigma == SIGMA_Y, mine, x_hat)

    def along(through):
        objective = SUREScore(through=through)
        loss = lambda denoiser: objective.loss(denoiser, Example(None, m), rng(N))  # noqa: E731
        slope = slopes(
            loss, torch.zeros(1, D, D + 2), lambda shift: Scaled(PRIOR, shift)
        ).unflatten(1, (D, D + 2))
        value = (slope * toward).flatten(1).sum(1)
        return float(value.mean() / value.std()) * N**0.5

    assert abs(along(False)) < 4 and along(True) > 8


PRIOR_GAIN = torch.eye(D)


# GSURE: masks, the coefficient, other operators

AT = 1.0
ONE_LEVEL = {"p_mean": 0.0, "p_std": 1e-4}  # sigma = AT


def gain(objective, m, matrix):
    loss = lambda denoiser: objective.loss(denoiser, Example(None, m), rng(N))  # noqa: E731
    return slopes(loss, matrix.float()[None], Linear)


def test_gsure_on_masks_learns_the_mean_over_masks():
    """The network is not told the mask: row i is the regression of x_i on x_t over the observations
    that see i, hidden entries noise."""
    keep = 0.5
    m = masked(signals(prior=CENTRED), keep)
    rows = []
    for i in range(D):
        p = torch.full((D,), keep, dtype=torch.float64)
        p[i] = 1
        second = torch.outer(p, p) * COV + torch.diag(p * (1 - p) * COV.diag() + AT**2)
        rows.append(torch.linalg.solve(second, p * COV[i]))
    learned, exact = torch.stack(rows), COV @ torch.linalg.inv(COV + AT**2 * torch.eye(D))
    objective = GSURE(seen=keep, **ONE_LEVEL)
    assert errors(gain(objective, m, learned)) < 4
    assert errors(gain(objective, m, exact)) > 8
    assert float((learned - exact).norm() / exact.norm()) > 0.1


def stein(denoiser, m, coefficient):
    """sum (f - y)^2 + coefficient div f at sigma = AT in the coordinate x_t = x + sigma z, by a
    Jacobian in full."""
    x_t = m.y + (AT**2 - SIGMA_Y**2) ** 0.5 * rng(N, "stein").normal_like(m.y)
    divergence = denoiser.matrix.diagonal(dim1=1, dim2=2).sum(1)
    return ((denoiser(x_t, AT) - m.y).square().sum(1) + coefficient * divergence) / D


def test_the_coefficient_of_the_divergence():
    """Of |f - y|^2 + c div f the minimiser is (C + (s_y^2 - c/2) I)(C + sigma^2 I)^-1: c = 2 s_y^2,
    and neither what the released code has, 2 (1 - abar) 1e-4 in its coordinate, nor the same with
    s_y^2 for 1e-4, is right."""
    m = noisy(signals(prior=CENTRED))
    inverse, eye = torch.linalg.inv(COV + AT**2 * torch.eye(D)), torch.eye(D)
    exact = COV @ inverse
    abar = 1 / (1 + AT**2)
    unbiased, ours = 2 * SIGMA_Y**2, GSURE(**ONE_LEVEL)
    weight = float(edm_weight(Linear(exact), torch.tensor(AT)))
    published = [2 * (1 - abar) * scale / abar**0.5 for scale in (1e-4, SIGMA_Y**2)]
    for c in (unbiased, *published):
        least = (COV + (SIGMA_Y**2 - c / 2) * eye) @ inverse
        slope = slopes(lambda d, c=c: stein(d, m, c), least.float()[None], Linear)
        assert errors(slope) < 4
        at_exact = slopes(lambda d, c=c: stein(d, m, c), exact.float()[None], Linear)
        if c == unbiased:
            assert errors(at_exact) < 4 and errors(gain(ours, m, exact) / weight - at_exact) < 4
        else:
            assert errors(at_exact) > 8 and errors(gain(ours, m, least)) > 8


def test_gsure_in_another_basis_is_the_supervised_loss_of_what_is_seen():
    """A square matrix with singular values 1.5, 1, 0.6, 0.2 and noise 0.5: at sigma = 1 the noise
    of the last one, 2.5, hides it."""
    x = signals(prior=CENTRED)
    u, v = (torch.linalg.qr(torch.randn(D, D, generator=Rng.generator(name)))[0] for name in "uv")
    s = torch.tensor([1.5, 1.0, 0.6, 0.2])
    A = Matrix((D,), (u * s @ v.T).expand(N, D, D))
    m = Measurement(
        A(x) + SIGMA_Y * rng(N, "noise").normal_like(x), A, Noise(torch.full((N, 1), SIGMA_Y))
    )
    wrong = 0.4 * torch.eye(D) + 0.2 * WRONG[:, :D]

    def target(denoiser):
        r = rng(N, "supervised")
        seen = v[:, :3] @ v[:, :3].T
        x_t = x @ seen + AT * r.normal_like(x)
        error = (denoiser(x_t, AT) - x) @ v[:, :3]
        return edm_weight(denoiser, torch.tensor(AT)) * error.square().sum(1) / D

    ours, right = gain(GSURE(**ONE_LEVEL), m, wrong), slopes(target, wrong[None], Linear)
    assert errors(right) > 50 and errors(ours - right) < 4 and share(ours - right, right) < 0.05
    gap = GSURE(**ONE_LEVEL).loss(Linear(wrong[None]), Example(None, m), rng(N)) - target(
        Linear(wrong[None])
    )
    assert errors(gap[:, None].detach().double()) < 4


def test_an_observation_that_sees_nothing_teaches_nothing():
    x = signals(8)
    mask = torch.ones(8, D)
    mask[:4] = 0
    m = Measurement(mask * x, Mask((D,), mask), Noise(torch.full((8, 1), SIGMA_Y)))
    loss = GSURE().loss(Shifted(WRONG[None]), Example(None, m), rng(8))
    assert bool((loss[:4] == 0).all()) and bool((loss[4:] != 0).all())


# What is common


@pytest.mark.parametrize("weighting", ["edm", "epsilon", "flow", "diem"])
def test_the_gradient_reaches_every_parameter_and_a_loss_is_of_its_sample(weighting):
    torch.manual_seed(0)
    denoiser = Preconditioned(MLP((D,), width=8), 1.0)
    for weight in denoiser.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    x, objective = PRIOR.sample(rng(6)), DSM(weighting=weighting)
    loss = objective.loss(denoiser, Example(x), rng(6))
    loss.mean().backward()
    assert all(bool(weight.grad.abs().sum() > 0) for weight in denoiser.parameters())
    moved = objective.loss(denoiser, Example(torch.cat([x[:1] + 5, x[1:]])), rng(6))
    assert torch.allclose(moved[1:], loss[1:]) and moved[0] != loss[0]


def trained(objective, batch, compiled):
    """Takes one step of a network; returns what trained it."""
    torch.manual_seed(0)
    network = Preconditioned(MLP((D,), width=8), 1.0)
    fit = Fit(objective="any", steps=1)
    device = torch.device("cpu")
    trainer = Trainer(objective, fit, network, [network], device, compiled=compiled)
    torch.compiler.reset()
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.1
    trainer.take_step([(batch, rng(6))])
    return trainer


@pytest.mark.parametrize("objective", [SUREScore(), GSURE()], ids=lambda o: type(o).__name__)
def test_a_network_is_not_compiled_where_the_loss_is_differentiated_twice(objective):
    """torch.compile has no second derivative."""
    batch = Example(None, noisy(signals(6)))
    trainers = [trained(objective, batch, compiled) for compiled in (False, True)]
    assert not objective.compiles
    assert not any("forward" in vars(part) for part in trainers[1].model.modules())
    one, two = (
        torch.cat([weight.grad.flatten() for weight in trainer.model.parameters()])
        for trainer in trainers
    )
    assert bool(one.any()) and torch.equal(one, two)


def test_options_of_a_term_that_is_left_out_are_refused():
    for options in ({"through": False}, {"p_mean": 0.0}):
        with pytest.raises(RecipeError, match="second term"):
            SUREScore(score=0.0, **options)


def test_what_an_objective_was_not_given():
    with pytest.raises(RecipeError, match="signals"):
        DSM().loss(ExactDenoiser(PRIOR), Example(None), rng(1))
    with pytest.raises(RecipeError, match="neither"):
        GaussianMoments().solve(Prior.of(PRIOR), lambda: [(Example(None), rng(1))])
    assert isinstance(GaussianMoments(), ClosedFormObjective)
    assert isinstance(DSM(), Objective) and not isinstance(DSM(), ClosedFormObjective)


@pytest.mark.parametrize(
    "objective", [AmbientTweedie(), SUREScore(), GSURE()], ids=lambda o: type(o).__name__
)
def test_what_an_objective_on_observations_refuses(objective):
    with pytest.raises(RecipeError, match="neither"):
        objective.loss(ExactDenoiser(PRIOR), Example(None), rng(1))
    m = noisy(signals(2))
    varying = Measurement(m.y, m.A, Noise(torch.linspace(0.1, 0.4, D).expand(2, D)))
    with pytest.raises(Unsupported, match="one level"):
        objective.loss(ExactDenoiser(PRIOR), Example(None, varying), rng(2))
    if not isinstance(objective, GSURE):
        with pytest.raises(Unsupported, match="identity"):
            objective.loss(ExactDenoiser(PRIOR), Example(None, masked(signals(2), 0.4)), rng(2))


# The contracts catch what they are for


@dataclass(frozen=True, kw_only=True)
class NoDivergence(SUREScore):
    def loss(self, denoiser, batch, rng):
        m = batch.measurement
        if m is None:
            return super().loss(denoiser, batch, rng)
        return (denoiser(m.y, 0.2) - m.y).square().mean(1)


@dataclass(frozen=True, kw_only=True)
class NoCorrection(AmbientTweedie):
    def loss(self, denoiser, batch, rng):
        m = batch.measurement
        if m is None:
            return super().loss(denoiser, batch, rng)
        sigma = noise_levels(rng, m.y, -1.6, 0.3, least=0.2)
        x_t = m.y + (sigma**2 - 0.04).sqrt() * rng.normal_like(m.y)
        return (edm_weight(denoiser, sigma) * (denoiser(x_t, sigma) - m.y).square()).mean(1)


@dataclass(frozen=True, kw_only=True)
class BatchWeights(GSURE):
    def loss(self, denoiser, batch, rng):
        loss = super().loss(denoiser, batch, rng)
        return loss / loss.detach().abs().mean()


@pytest.mark.parametrize(
    ("mutant", "contract"),
    [
        (NoDivergence, "least when exact"),
        (NoCorrection, "least when exact"),
        (BatchWeights, "a loss for each"),
    ],
)
def test_an_objective_with_a_mistake_is_caught(mutant, contract):
    assert contract in {r.contract for r in check("objectives", mutant) if r.passed is False}
