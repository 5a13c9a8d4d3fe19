"""Objectives that give the network a condition, and the sampler of a conditional network: exact
answers on Gaussians.

A gradient is taken for each sample by itself, of D + theta phi at theta = 0, so that its mean has a
standard error: it is zero where D is the minimiser, and not where it is another.
"""

import copy
import math
from dataclasses import replace

import pytest
import torch
from invem_plugins.networks.mlp import MLP
from invem_plugins.networks.unet import UNet
from invem_plugins.noises.gaussian import gaussian
from invem_plugins.noises.laplace import laplace
from invem_plugins.objectives.ambient import Ambient, AmbientDenoiser
from invem_plugins.objectives.cond_dsm import CondDSM
from invem_plugins.operators.gaussian_blur import gaussian_blur
from invem_plugins.operators.half_mask import half_mask
from invem_plugins.operators.identity import identity
from invem_plugins.operators.random_mask import random_mask
from invem_plugins.samplers.conditional import Conditional
from pooled import Pooled

from invem import (
    Denoiser,
    Example,
    Gaussian,
    Karras,
    Mask,
    Measurement,
    Preconditioned,
    Prior,
    RecipeError,
    Rng,
    Unsupported,
)
from invem.denoiser import expand_level
from invem.diffusion import count_calls
from invem.measurement import linear_condition
from invem.prior import ExactDenoiser, LinearConditioning

D = 4
PRIOR = Gaussian.full(
    torch.linspace(-1, 1, D), 0.6 ** (torch.arange(D)[:, None] - torch.arange(D)).abs().double()
)
NOISE = 0.3
N = 60_000
NARROW = {"p_mean": math.log(0.6), "p_std": 0.3}


def rng(n, *key):
    return (Pooled if n > 1000 else Rng).keyed("conditional", *key, items=range(n))


def observe(A, x, sigma=NOISE, law=gaussian):
    noise = law(
        len(x),
        tuple(A(x).shape[1:]),
        Rng.generator("noise"),
        **({"sigma": sigma} if law is gaussian else {}),
    )
    return Measurement(noise.sample(A(x), Rng.generator("y")), A, noise)


def masked(n, sigma=NOISE, keep=0.6):
    return observe(
        random_mask(n, (D,), Rng.generator("mask"), keep=keep), PRIOR.sample(rng(n, "x")), sigma
    )


def update(precision, pull):
    """The mean of the Gaussian prior times exp(-x^T diag(precision) x / 2 + pull^T x)."""
    inverse = torch.linalg.inv(PRIOR.cov.dense().double())
    return torch.linalg.solve(
        inverse + torch.diag_embed(precision), inverse @ PRIOR.mean.double() + pull
    )


class Masked(Denoiser):
    """E[x | M x_t, M], or with `also` E[y | M x_t, M] in the entries of M, for the noise of y."""

    condition = 1

    def __init__(self, also=0.0):
        super().__init__()
        self.also = also

    def forward(self, x_t, sigma, cond=None):
        seen, var = cond[:, 0].double(), expand_level(sigma, x_t).double() ** 2
        x_hat = update(seen / var, seen * x_t / var)
        return (x_hat + seen * self.also**2 / var * (x_t - x_hat)).to(x_t)


class Informed(ExactDenoiser):
    """E[x | x_t, y] where cond = (y, mask) is what was measured, with noise NOISE."""

    condition = 2

    def forward(self, x_t, sigma, cond=None):
        if cond is None:
            return super().forward(x_t, sigma)
        y, seen, var = (
            cond[:, 0].double(),
            cond[:, 1].double(),
            expand_level(sigma, x_t).double() ** 2,
        )
        return update(1 / var + seen / NOISE**2, x_t / var + y / NOISE**2).to(x_t)


class Blind(ExactDenoiser):
    """E[x | x_t] whatever it is given."""

    condition = 2


class Scaled(Denoiser):
    def __init__(self, inner, scale):
        super().__init__()
        self.inner, self.scale, self.condition = inner, scale, inner.condition

    def forward(self, x_t, sigma, cond=None):
        return self.scale * self.inner(x_t, sigma, cond)


class Nudged(Denoiser):
    """D(x_t) + theta phi, one theta for each sample, phi = (1, x_t, cond)."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.condition = inner, inner.condition

    def forward(self, x_t, sigma, cond=None):
        phi = torch.cat([torch.ones(len(x_t), 1), x_t, cond.flatten(1)], 1)
        self.theta = torch.zeros(len(x_t), D, phi.shape[1], requires_grad=True)
        self.cond = cond
        return self.inner(x_t, sigma, cond) + (self.theta @ phi[:, :, None])[..., 0]


def slopes(objective, denoiser, batch):
    """The mean gradient with respect to theta in standard errors, shape (D, features); zero where
    it is always zero. And the condition."""
    nudged = Nudged(denoiser)
    loss = objective.loss(nudged, batch, rng(N, "loss"))
    assert loss.shape == (N,)
    (grad,) = torch.autograd.grad(loss.sum(), nudged.theta)
    grad = grad.double()
    return grad.mean(0) / (grad.std(0) / N**0.5).clamp(min=1e-12), nudged.cond


# Ambient


@pytest.mark.parametrize("target", ["seen", "given"])
@pytest.mark.parametrize("sigma", [0.0, NOISE])
def test_ambient_is_least_at_the_mean_given_what_it_sees_in_all_pixels(sigma, target):
    """Also in those that M hides, and with noise in y: the gradient is zero in every output for
    every feature, and not for another D."""
    objective, batch = Ambient(delta=0.3, target=target, **NARROW), Example(None, masked(N, sigma))
    exact, cond = slopes(objective, Masked(), batch)
    assert float(exact.abs().max()) < 4.5
    assert cond.shape == (N, 1, D)
    assert float(cond.mean()) == pytest.approx(0.6 * 0.7, abs=0.01)
    assert float(slopes(objective, Scaled(Masked(), 1.2), batch)[0].abs().amax(1).min()) > 8
    if sigma:
        assert float(slopes(objective, Masked(also=sigma), batch)[0].abs().amax(1).min()) > 8


def test_ambient_learns_the_pixels_that_it_is_not_given():
    """A D that is wrong where M hides a pixel is found out by the loss on all that is measured, and
    not by that on what is given."""

    class Wrong(Masked):
        def forward(self, x_t, sigma, cond=None):
            return super().forward(x_t, sigma, cond) + 0.2 * (1 - cond[:, 0])

    batch = Example(None, masked(N))
    assert float(slopes(Ambient(delta=0.3, **NARROW), Wrong(), batch)[0].abs().amax(1).min()) > 8
    assert (
        float(slopes(Ambient(delta=0.3, target="given", **NARROW), Wrong(), batch)[0].abs().max())
        < 4.5
    )


def test_ambient_with_one_mask_for_all_leaves_what_no_one_saw_undetermined():
    x = PRIOR.sample(rng(N, "x"))
    A = Mask((D,), torch.tensor([1.0, 1, 0, 1]).expand(N, D))
    found, _ = slopes(Ambient(**NARROW), Scaled(Masked(), 1.2), Example(None, observe(A, x)))
    assert not bool(found[2].any())
    assert float(found[[0, 1, 3]].abs().amax(1).min()) > 8


def test_ambient_from_clean_images():
    m = masked(500)
    objective = Ambient(delta=0.3, **NARROW)
    batch = Example(PRIOR.sample(rng(N, "clean")))
    exact, cond = slopes(objective, Masked(), batch)
    assert float(exact.abs().max()) < 4.5
    assert float(cond.mean()) == pytest.approx(
        0.7, abs=0.01
    )  # nothing is known of the masks: all is measured, and delta of it hidden
    seen = []

    class Spy(Masked):
        def forward(self, x_t, sigma, cond=None):
            seen.append(cond)
            return super().forward(x_t, sigma, cond)

    wrapped = objective.build(Spy, None, m)
    objective.loss(wrapped, batch, rng(N, "loss"))
    counts = torch.bincount(seen[0].sum((1, 2)).long(), minlength=D + 1) / N
    density = wrapped.masks.mean(1)
    k = torch.arange(D + 1)
    law = torch.stack(
        [math.comb(D, int(i)) * density**i * (1 - density) ** (D - i) for i in k]
    ).mean(1)
    assert float((counts - law).abs().max()) < 0.01


def test_ambient_of_images_by_pixel_and_by_channel():
    shape, n = (2, 6, 5), 5
    x = torch.randn(n, *shape, generator=Rng.generator("x"))
    for per in ("pixel", "channel"):
        m = observe(random_mask(n, shape, Rng.generator(1), keep=0.5, per=per), x, 0.1)
        objective = Ambient()
        torch.manual_seed(0)
        network = Preconditioned(UNet(shape, channels=[8], condition=1), 0.5)
        denoiser = objective.build(lambda network=network: network, None, m)
        for weight in denoiser.parameters():
            torch.nn.init.normal_(weight, std=0.1)
        loss = objective.loss(denoiser, Example(None, m), rng(n))
        alone = torch.cat(
            [objective.loss(denoiser, Example(None, m[i]), rng(n)[i]) for i in range(n)]
        )
        assert loss.shape == (n,)
        assert torch.allclose(alone, loss, rtol=1e-4)
        assert denoiser(x, 0.5).shape == x.shape
        loss.mean().backward()
        assert all(bool(weight.grad.any()) for weight in denoiser.parameters())


def test_ambient_never_asks_below_the_noise_of_the_data():
    levels = []

    class Spy(Masked):
        def forward(self, x_t, sigma, cond=None):
            levels.append(sigma)
            return super().forward(x_t, sigma, cond)

    n = 2000
    m = masked(n)
    m = replace(m, noise=gaussian(n, (D,), Rng.generator("levels"), sigma=[0.05, 0.5], per="pixel"))
    Ambient().loss(Spy(), Example(None, m), rng(n))
    least = (m.noise.sigma * m.A.seen).amax(1, keepdim=True)
    assert bool((levels[0] >= least * 0.9999).all())
    assert bool((levels[0] < 0.5).any())


def test_what_ambient_is_not_for():
    x = PRIOR.sample(rng(3))
    m = observe(identity(3, (D,), Rng.generator(0)), x)
    with pytest.raises(Unsupported, match="mask, not Identity"):
        Ambient().loss(Masked(), Example(None, m), rng(3))
    with pytest.raises(RecipeError, match="neither"):
        Ambient().loss(Masked(), Example(None), rng(3))
    assert not Ambient.needs - masked(2).provides - {"measurement"}
    assert "mask" not in m.provides


# What stands for the prior


def net(sigma_data=0.5, seed=0):
    torch.manual_seed(seed)
    network = MLP((D,), width=16, condition=1)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return Preconditioned(network, sigma_data).eval()


def test_a_pixel_is_averaged_over_the_masks_that_show_it():
    masks = torch.tensor([[1.0, 1, 0, 0], [1.0, 0, 1, 0]])
    wrapped = AmbientDenoiser(Masked(), masks)
    x_t, sigma = PRIOR.sample(rng(5)), torch.linspace(0.2, 2, 5)
    one, two = (wrapped(x_t, sigma, mask.expand(5, 1, D)) for mask in masks)
    assert torch.equal(one, Masked()(x_t * masks[0], sigma, masks[0].expand(5, 1, D)))
    expected = torch.stack([(one + two)[:, 0] / 2, one[:, 1], two[:, 2], (one + two)[:, 3] / 2], 1)
    assert torch.allclose(wrapped(x_t, sigma), expected, atol=1e-6)


def test_with_nothing_hidden_it_is_the_denoiser_and_otherwise_it_falls_short():
    """What the masks hide is missing from E[x | x_t]. The average over those that show a pixel is
    nearer to it than that over all, and than any one of them."""
    n = 2000
    x = PRIOR.sample(rng(n))
    x_t = x + 0.3 * rng(n, "z").normal(D)
    exact = PRIOR.denoise(x_t, torch.tensor(0.3))
    assert torch.allclose(AmbientDenoiser(Masked(), torch.ones(1, D))(x_t, 0.3), exact, atol=1e-5)
    wrapped = AmbientDenoiser(Masked(), torch.tensor([[1.0, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]))
    parts = torch.stack([wrapped(x_t, 0.3, mask.expand(n, 1, D)) for mask in wrapped.masks])

    def error(x_hat):
        return float((x_hat - exact).square().mean())

    assert 0 < error(wrapped(x_t, 0.3)) < 0.5 * error(parts.mean(0))
    assert error(wrapped(x_t, 0.3)) < 0.5 * min(error(part) for part in parts)


def test_hidden_pixels_have_no_part_and_the_network_sees_zeros_there():
    seen = []
    network = net(0.8)
    network.mean = PRIOR.mean
    wrapped = AmbientDenoiser(network, torch.tensor([[1.0, 1, 0, 0]]))
    network.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    assert torch.equal(wrapped.mean, PRIOR.mean)
    x_t = PRIOR.sample(rng(3))
    x_hat = wrapped(x_t, 0.4)
    assert not bool(seen[0][:, 2:].any())
    assert bool(seen[0][:, :2].all())
    assert torch.equal(wrapped(torch.cat([x_t[:, :2], x_t[:, 2:] + 7], 1), 0.4), x_hat)
    assert network.sigma_data == wrapped.sigma_data == 0.8
    assert Ambient().loss(wrapped, Example(None, masked(3)), rng(3)).isfinite().all()


def test_a_new_network_says_the_mean_of_what_is_hidden_and_one_scale_holds_at_all_levels():
    prior = Gaussian.standard((D,), 0.5)
    prior = replace(prior, mean=torch.linspace(-1, 1, D))
    network = Preconditioned(MLP((D,), width=16, condition=1), 0.5)
    network.mean = prior.mean
    wrapped = AmbientDenoiser(network, torch.tensor([[1.0, 1, 0, 0]]))
    x_t = prior.sample(rng(3))
    for sigma in (0.01, 0.5, 20.0):
        expected = torch.cat(
            [prior.denoise(x_t, torch.tensor(sigma))[:, :2], prior.mean[2:].expand(3, 2)], 1
        )
        assert torch.allclose(wrapped(x_t, sigma), expected, atol=1e-5)
    torch.nn.init.constant_(network.backbone.leave.bias, 1.0)
    for sigma in (0.01, 0.5, 20.0):
        assert torch.allclose(wrapped(x_t, sigma)[:, 2:], prior.mean[2:] + 0.5, atol=1e-5)


def centred(seed=0):
    network = net(seed=seed)
    network.mean = PRIOR.mean
    return network


def test_the_stored_denoiser_is_read_back_with_its_masks():
    m = masked(300)
    for objective in (Ambient(masks=2), Ambient(masks=5), Ambient(masks=1, target="given")):
        one = objective.build(centred, None, m)
        assert torch.equal(one.masks, objective.build(centred, None, m).masks)
        two = objective.build(lambda: centred(seed=1), None, None)
        two.load_state_dict(one.state_dict())
        x_t = PRIOR.sample(rng(3))
        assert torch.equal(two(x_t, 0.5), one(x_t, 0.5))
        assert torch.equal(copy.deepcopy(one)(x_t, 0.5), one(x_t, 0.5))
        half = objective.build(lambda: centred(seed=1), None, None)
        half.load_state_dict(
            {"masks": one.masks}, strict=False
        )  # the weights and the rest are stored apart
        assert torch.equal(half.masks, one.masks)
        assert one.condition == 1 and one.sigma_data == 0.5


def test_the_masks_are_of_the_law_and_show_as_much_as_they_can():
    shape = (1, 10, 10)
    x = torch.zeros(400, *shape)
    m = observe(random_mask(400, shape, Rng.generator(1), keep=0.3), x)
    four = Ambient(masks=4, delta=0.1).build(net, None, m).masks
    assert four.shape == (4, *shape)
    assert set(four.unique().tolist()) == {0.0, 1.0}
    assert float((four.amax(0) > 0).float().mean()) > 0.85  # four at random show 1 - 0.73^4 = 0.72
    assert 0.2 < float(four.mean()) < 0.4
    for mask in four:
        assert bool((m.A.mask >= mask).flatten(1).all(1).any())
    whole = Ambient(masks=1, target="given").build(net, None, m).masks
    assert bool((whole.amax(0) > 0).all())
    assert len(whole) < 20
    m = observe(half_mask(50, (1, 6, 6), Rng.generator(2), side="random"), torch.zeros(50, 1, 6, 6))
    halves = Ambient(masks=1, target="given", delta=0.0).build(net, None, m).masks
    assert bool((halves.sum(0) == 1).all())
    assert len(halves) == 2


# Conditional denoising score matching


def test_what_a_network_is_given_of_a_measurement():
    m = masked(6)
    assert torch.equal(linear_condition(m), torch.stack([m.A.mask * m.y, m.A.mask], 1))
    x = torch.randn(2, 1, 6, 6, generator=Rng.generator("x"))
    plain = observe(identity(2, (1, 6, 6), Rng.generator(0)), x)
    assert torch.equal(linear_condition(plain), torch.stack([plain.y, torch.ones_like(x)], 1))
    blurred = observe(
        gaussian_blur(2, (1, 6, 6), Rng.generator(0), std=1.0, size=5, boundary="valid"), x
    )
    cond = linear_condition(blurred)
    assert blurred.y.shape == (2, 1, 2, 2)
    assert cond.shape == (2, 2, 1, 6, 6)
    assert torch.allclose(cond[:, 1].sum((1, 2, 3)), torch.full((2,), 4.0))


@pytest.mark.parametrize("law", ["mask", "identity"])
def test_cond_dsm_is_least_at_the_posterior_mean(law):
    x = PRIOR.sample(rng(N, "draws"))
    A = (
        random_mask(N, (D,), Rng.generator("mask"), keep=0.5)
        if law == "mask"
        else identity(N, (D,), Rng.generator(0))
    )
    batch = Example(x, observe(A, PRIOR.sample(rng(N, "observed"))))
    objective = CondDSM(**NARROW)
    exact, cond = slopes(objective, Informed(PRIOR), batch)
    assert float(exact.abs().max()) < 4.5
    dropped = ~cond.flatten(1).any(1)
    share = 0.2 + 0.8 * (0.5**D if law == "mask" else 0)
    assert float(dropped.float().mean()) == pytest.approx(share, abs=0.005)
    assert float(slopes(objective, Blind(PRIOR), batch)[0].abs().amax(1).min()) > 8
    assert float(slopes(objective, Scaled(Informed(PRIOR), 1.2), batch)[0].abs().amax(1).min()) > 8


def test_cond_dsm_measures_the_draw_anew():
    """What was measured has no part: with y of the observed signal in place of y' the exact
    denoiser is not the least."""
    x = PRIOR.sample(rng(N, "draws"))
    m = observe(
        random_mask(N, (D,), Rng.generator("mask"), keep=0.5), PRIOR.sample(rng(N, "observed"))
    )
    few = Example(x[:5], m[torch.arange(5)])
    loss = CondDSM().loss(Informed(PRIOR), few, rng(5))
    assert torch.equal(
        CondDSM().loss(
            Informed(PRIOR), few._replace(measurement=replace(few.measurement, y=m.y[5:10])), rng(5)
        ),
        loss,
    )
    _, cond = slopes(CondDSM(drop=0.0), Informed(PRIOR), Example(x, m))
    shown = cond[:, 1] > 0
    noise = (cond[:, 0] - x)[shown]
    assert torch.equal(cond[:, 1], m.A.mask)
    assert float(noise.mean()) == pytest.approx(0, abs=0.005)
    assert float(noise.std()) == pytest.approx(NOISE, abs=0.005)
    assert abs(float(torch.corrcoef(torch.stack([noise, (m.y - x)[shown]]))[0, 1])) < 0.01


def test_cond_dsm_measures_by_the_operator_of_another_observation():
    """In a draw the entries that its own mask hides are what the prior of the round before says,
    here zero in the mean. A network that is given that mask learns this again; by the masks of
    others it learns from entries that were measured."""
    wrong = Gaussian.standard((D,), 1.0)
    m = masked(N)
    x = wrong.posterior(m, rng(N, "draws"))
    objective, denoiser = CondDSM(drop=0.0), Blind(PRIOR)

    def hidden(denoiser):
        _, cond = slopes(objective, denoiser, Example(x, m))
        away = 1 - cond[:, 1]
        return (away * x).sum(0) / away.sum(0), float(
            torch.corrcoef(torch.stack([cond[:, 1].flatten(), m.A.mask.flatten()]))[0, 1]
        )

    mean, same = hidden(denoiser)
    assert float(mean.abs().max()) < 0.03 and same == pytest.approx(1)
    network = Nudged(denoiser)
    wrapped = objective.build(lambda: network, None, m)
    assert {name.removeprefix("network.") for name in wrapped.state_dict()} == set(
        network.state_dict()
    )
    objective.loss(wrapped, Example(x, m), rng(N, "loss"))
    away = 1 - network.cond[:, 1]
    mean = (away * x).sum(0) / away.sum(0)
    assert float((mean - x.mean(0)).abs().max()) < 0.03 < float(mean.abs().max())
    assert (
        abs(
            float(
                torch.corrcoef(torch.stack([network.cond[:, 1].flatten(), m.A.mask.flatten()]))[
                    0, 1
                ]
            )
        )
        < 0.02
    )
    network.cond = None
    objective.loss(wrapped, Example(x), rng(N, "loss"))
    assert bool((network.cond[:, 1] < 1).any())  # a granted image is measured too
    alone = torch.cat([objective.loss(wrapped, Example(x[i : i + 1]), rng(3)[i]) for i in range(3)])
    assert torch.allclose(alone, objective.loss(wrapped, Example(x[:3]), rng(3)), rtol=1e-4)
    alone = objective.build(lambda: network, None, None)
    assert alone.network is network and alone.observations is None


def test_with_all_dropped_or_nothing_measured_it_is_the_prior_that_is_learned():
    x = PRIOR.sample(rng(1000))
    m = observe(identity(1000, (D,), Rng.generator(0)), x)
    given = []

    class Spy(Blind):
        def forward(self, x_t, sigma, cond=None):
            given.append(cond)
            return super().forward(x_t, sigma)

    CondDSM(drop=0.999).loss(Spy(PRIOR), Example(x, m), rng(1000))
    assert float(given[0].flatten(1).any(1).float().mean()) < 0.01
    CondDSM().loss(Spy(PRIOR), Example(x), rng(1000))
    assert given[1] is None
    with pytest.raises(RecipeError, match="measurements only"):
        CondDSM().loss(Spy(PRIOR), Example(None, m), rng(1000))


@pytest.mark.parametrize("law", [gaussian, laplace])
def test_a_loss_is_of_its_sample_whatever_the_noise(law):
    n = 6
    x = PRIOR.sample(rng(n))
    m = observe(random_mask(n, (D,), Rng.generator("mask"), keep=0.7), x, law=law)
    torch.manual_seed(0)
    denoiser = Preconditioned(MLP((D,), width=16, condition=2), 0.5)
    for weight in denoiser.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    objective = CondDSM(drop=0.0)
    loss = objective.loss(denoiser, Example(x, m), rng(n))
    alone = torch.cat(
        [objective.loss(denoiser, Example(x[i : i + 1], m[i]), rng(n)[i]) for i in range(n)]
    )
    assert torch.allclose(alone, loss, rtol=1e-4)
    moved = objective.loss(denoiser, Example(torch.cat([x[:1], x[1:] + 1]), m), rng(n))
    assert torch.allclose(moved[0], loss[0], rtol=1e-4)
    assert not torch.isclose(moved[1:], loss[1:]).any()
    other = objective.loss(denoiser, Example(x, m), rng(n, "other"))
    assert not torch.isclose(other, loss).any()
    loss.mean().backward()
    assert all(bool(weight.grad.any()) for weight in denoiser.parameters())


def test_noise_without_a_variance_is_drawn_by_its_law():
    n = 5000
    x = PRIOR.sample(rng(n))
    given = []

    class Spy(Blind):
        def forward(self, x_t, sigma, cond=None):
            given.append(cond)
            return super().forward(x_t, sigma)

    m = observe(identity(n, (D,), Rng.generator(0)), torch.zeros(n, D), law=laplace)
    CondDSM(drop=0.0).loss(Spy(PRIOR), Example(x, m), rng(n))
    size = (given[0][:, 0] - x).abs()
    assert float(size.mean()) == pytest.approx(float(m.y.abs().mean()), rel=0.02)
    assert float(size.square().mean() / size.mean() ** 2) == pytest.approx(
        2, rel=0.06
    )  # of a Laplace law; a Gaussian has pi/2


# The sampler


def one(law):
    x = PRIOR.sample(rng(1, "truth"))
    A = (
        Mask((D,), torch.tensor([[1.0, 0, 1, 0]]))
        if law == "mask"
        else identity(1, (D,), Rng.generator(0))
    )
    return observe(A, x)


def posterior(m):
    seen = linear_condition(m)[0, 1].double()
    inverse = torch.linalg.inv(PRIOR.cov.dense().double())
    cov = torch.linalg.inv(inverse + torch.diag(seen / NOISE**2))
    return cov @ (inverse @ PRIOR.mean.double() + seen * m.y[0].double() / NOISE**2), cov


def white(x, mean, cov):
    return torch.linalg.solve_triangular(
        torch.linalg.cholesky(cov), (x.double() - mean).T, upper=False
    ).T


def known(denoiser=None):
    denoiser = Informed(PRIOR) if denoiser is None else denoiser
    return Prior(denoiser, PRIOR, conditioning=LinearConditioning())


def draw(sampler, m, n, denoiser=None):
    return sampler(known(denoiser), m[torch.zeros(n, dtype=torch.long)], rng(n, "draw"))


@pytest.mark.parametrize("law", ["mask", "identity"])
def test_with_the_exact_conditional_denoiser_the_draws_are_of_the_posterior(law):
    m, n = one(law), 20_000
    for sampler in (
        Conditional(),
        Conditional(steps=48),
        Conditional(stepping="multistep", steps=40),
    ):
        found = white(draw(sampler, m, n), *posterior(m))
        assert float(found.mean(0).abs().max()) < 0.03
        values = torch.linalg.eigvalsh(torch.cov(found.T)) - 1
        assert float(values.abs().max()) < (
            0.1 if sampler.steps == 24 else 0.05
        )  # of Heun's rule on 24 levels 0.03, of the draws 0.02


def test_the_start_has_the_mean_and_the_covariance_of_the_posterior_at_that_level():
    """What is left out is of order 1/sigma^2 of the prior: a start that ignores y is wrong by
    1/sigma in the mean."""
    m, n, sigma = one("mask"), 40_000, 4.0
    states = []

    class Spy(Informed):
        def forward(self, x_t, sigma, cond=None):
            states.append(x_t)
            return super().forward(x_t, sigma, cond)

    sampler = Conditional(steps=48, schedule=Karras(sigma_max=sigma))
    found = white(draw(sampler, m, n, Spy(PRIOR)), *posterior(m))
    mean, cov = posterior(m)
    begun = white(states[1], mean, cov + sigma**2 * torch.eye(D))
    assert float(begun.mean(0).abs().max()) < 0.03
    assert float((torch.linalg.eigvalsh(torch.cov(begun.T)) - 1).abs().max()) < 0.03
    assert float(found.mean(0).abs().max()) < 0.03
    assert float((torch.linalg.eigvalsh(torch.cov(found.T)) - 1).abs().max()) < 0.05
    blind = white(sigma * rng(n, "blind").normal(D), mean, cov + sigma**2 * torch.eye(D))
    assert float(blind.mean(0).abs().max()) > 0.1
    assert float(torch.linalg.eigvalsh(torch.cov(blind.T))[0]) < 0.97


@pytest.mark.parametrize("g", [0.5, 1.0, 2.0])
def test_guidance_has_the_covariance_of_its_flow(g):
    """Where C and P commute, a deviation d of the probability flow has d ln d/d sigma = (1 - g)
    sigma/(C + sigma^2) + g sigma/(P + sigma^2) along each common eigenvector, so that the draws end
    with the covariance C^(1 - g) P^g."""
    m, n = one("identity"), 20_000
    x = draw(Conditional(guidance=g, steps=64), m, n).double()
    values, vectors = torch.linalg.eigh(PRIOR.cov.dense().double())
    expected = values ** (1 - g) * (1 / values + NOISE**-2) ** -g
    found = (vectors.T @ torch.cov(x.T) @ vectors).diagonal()
    assert float((found / expected - 1).abs().max()) < 0.06


def test_its_cost_is_what_it_says():
    m = one("mask")
    for options in (
        {},
        {"guidance": 1.5},
        {"stepping": "ancestral", "steps": 5},
        {"guidance": 0.0, "steps": 3},
    ):
        sampler, count = Conditional(**options), []
        denoiser = Informed(PRIOR)
        denoiser.register_forward_hook(lambda *_, count=count: count.append(1))
        draw(sampler, m, 2, denoiser)
        assert (len(count), 0) == sampler.cost
    assert Conditional().cost == (count_calls("heun", 24) + 1, 0)


def test_guidance_of_zero_is_the_prior_and_above_one_is_biased():
    m, n = one("mask"), 20_000
    found = white(
        draw(Conditional(guidance=0.0), m, n), PRIOR.mean.double(), PRIOR.cov.dense().double()
    )
    assert float(found.mean(0).abs().max()) < 0.03
    assert float((torch.linalg.eigvalsh(torch.cov(found.T)) - 1).abs().max()) < 0.06
    found = white(draw(Conditional(guidance=2.0), m, n), *posterior(m))
    assert float(torch.linalg.eigvalsh(torch.cov(found.T))[0]) < 0.8


def test_it_needs_no_gaussian_noise_and_a_denoiser_that_was_told():
    m = observe(identity(3, (D,), Rng.generator(0)), PRIOR.sample(rng(3)), law=laplace)
    assert "var" not in m.provides
    assert not Conditional.needs - m.provides - CondDSM.provides
    assert draw(Conditional(steps=4), m, 3).isfinite().all()
    with pytest.raises(Unsupported, match=r"E\[x \| x_t, y\].*conditional objective"):
        Conditional()(Prior.of(PRIOR), m, rng(3))


def test_it_begins_where_it_is_told():
    m, states = one("mask"), []

    class Spy(Informed):
        def forward(self, x_t, sigma, cond=None):
            states.append((x_t, sigma))
            return super().forward(x_t, sigma, cond)

    n = 10_000
    start = torch.arange(n)[:, None] % 7 + torch.zeros(n, D)
    sampler = Conditional(steps=2, schedule=Karras(sigma_max=0.5))
    many = m[torch.zeros(n, dtype=torch.long)]
    sampler(known(Spy(PRIOR)), many, rng(n, "draw"), start=start)
    z = (states[0][0] - start) / 0.5
    assert states[0][1] == pytest.approx(0.5)
    assert float(z.mean().abs()) < 0.02
    assert float(z.std()) == pytest.approx(1, abs=0.02)
