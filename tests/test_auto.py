"""The sampler `auto`, posterior means without draws, and the switch found from the prior."""

import math

import pytest
import torch
from invem_plugins.networks.unet import UNet
from invem_plugins.noises.gaussian import gaussian
from invem_plugins.operators.gaussian_blur import gaussian_blur
from invem_plugins.operators.identity import identity
from invem_plugins.operators.random_mask import random_mask
from invem_plugins.samplers.auto import Auto
from invem_plugins.samplers.exact import Exact
from invem_plugins.samplers.mmps import MMPS
from invem_plugins.samplers.sfbd import SFBD
from torch import nn

import invem
from invem import Denoiser, Gaussian, Measurement, Mixture, Preconditioned, Prior, Rng
from invem.switching import switch_level, variance_ratios

SHAPE = (1, 4, 4)


def correlated(d: int) -> Gaussian:
    i = torch.arange(d, dtype=torch.float64)
    return Gaussian.full(0.1 * torch.ones(SHAPE), 0.25 * 0.8 ** (i[:, None] - i).abs())


def measured(A, n, sigma=0.2):
    x = correlated(16).sample(Rng.keyed("x", items=range(n)))
    noise = gaussian(n, SHAPE, Rng.generator("noise"), sigma=sigma)
    return Measurement(noise.sample(A(x), Rng.generator("y")), A, noise)


def network() -> Prior:
    torch.manual_seed(0)
    net = UNet(SHAPE, channels=[4], blocks=1)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return Prior(Preconditioned(net, 0.5), correlated(16))


def test_auto_is_the_exact_chain_where_nothing_is_hidden():
    m, prior, rng = measured(identity(3, SHAPE, Rng.generator(0)), 3), network(), Rng([1, 2, 3])
    assert Auto(steps=5)(prior, m, rng).equal(SFBD(steps=5)(prior, m, rng[:]))


def test_auto_is_mmps_elsewhere():
    A, prior, rng = gaussian_blur(3, SHAPE, Rng.generator(0), std=0.8, size=3), network(), Rng([1])
    m = measured(A, 3)[torch.tensor([0])]
    assert Auto(steps=5)(prior, m, rng).equal(MMPS(steps=5)(prior, m, rng[:]))


def test_auto_judges_each_observation_by_itself():
    """A mask that hides nothing leaves an exact chain, whatever the other masks hide."""
    prior, masks = network(), random_mask(6, SHAPE, Rng.generator(5), keep=0.9)
    masks = type(masks)(masks.shape, masks.mask.clone())
    masks.mask[[1, 4]] = 1
    m, rng = measured(masks, 6), Rng(range(6))
    assert m.unchanged.tolist() == [False, True, False, False, True, False]
    together = Auto(steps=4)(prior, m, rng)
    for k in range(6):
        alone = Auto(steps=4)(prior, m[k : k + 1], rng[k])
        assert alone[0].allclose(together[k], atol=1e-5)
        which = SFBD(steps=4) if k in (1, 4) else MMPS(steps=4)
        assert which(prior, m[k : k + 1], rng[k])[0].allclose(together[k], atol=1e-5)
    mean = Auto().posterior_mean(prior, m)
    assert mean.isnan().flatten(1).all(1).tolist() == [True, False, True, True, False, True]
    for k in (1, 4):
        alone = Auto().posterior_mean(prior, m[k : k + 1])[0]
        assert mean[k].allclose(alone, atol=1e-6)
    assert MMPS().posterior_mean(prior, m).isnan().all()


def test_auto_draws_the_exact_posterior_of_a_prior_in_closed_form():
    m, rng = measured(random_mask(4, SHAPE, Rng.generator(0), keep=0.5), 4), Rng(range(4))
    covs = 0.1 * torch.eye(16).expand(2, 16, 16)
    prior = Prior.of(Mixture(torch.ones(2) / 2, torch.randn(2, *SHAPE), covs))
    assert Auto()(prior, m, rng).equal(Exact()(prior, m, rng[:]))
    assert Auto().posterior_mean(prior, m).equal(prior.exact.posterior_mean(m))


def test_a_mask_of_one_hidden_entry_in_the_middle_is_not_the_identity():
    """The probe has no zero: a hidden pixel is seen wherever it is."""
    mask = random_mask(1, (1, 3, 3), Rng.generator(0), keep=1.0)
    mask = type(mask)(mask.shape, mask.mask.clone())
    mask.mask[0, ..., 1, 1] = 0
    noise = gaussian(1, (1, 3, 3), Rng.generator(0), sigma=0.1)
    assert "identity" not in Measurement(torch.zeros(1, 1, 3, 3), mask, noise).provides


def test_the_posterior_mean_is_one_call_where_nothing_is_hidden():
    """For a Gaussian E[x | y] is known: one call of the denoiser at the noise level of y."""
    m = measured(identity(5, SHAPE, Rng.generator(0)), 5)
    exact = Prior.of(correlated(16))
    calls: list[float] = []
    exact.denoiser.register_forward_hook(lambda _, args, __: calls.append(args[1]))
    mean = SFBD().posterior_mean(exact, m)
    assert len(calls) == 1
    assert mean.allclose(exact.exact.posterior_mean(m), atol=1e-5)
    many = m[torch.zeros(20_000, dtype=torch.long)]
    draws = SFBD(steps=4)(exact, many, Rng(range(20_000)))
    assert (draws.mean(0) - mean[0]).abs().max() < 5 * 0.2 / 20_000**0.5


class Noisy(Denoiser):
    """The denoiser of a Gaussian with an error that ripples, and so with a wrong Jacobian, above a
    noise level."""

    def __init__(self, gaussian_prior, level):
        super().__init__()
        self.prior, self.level = gaussian_prior, level

    def forward(self, x_t, sigma, cond=None):
        x = self.prior.denoise(x_t, torch.as_tensor(sigma))
        return x + 0.02 * (50 * x_t / self.level).sin() * (float(sigma) > self.level)


def test_the_switch_is_below_the_levels_where_the_jacobian_is_noise():
    means = torch.stack([-torch.ones(SHAPE), torch.ones(SHAPE)])
    g = Mixture(torch.ones(2) / 2, means, 0.01 * torch.eye(16).expand(2, 16, 16))
    for level in (1.0, 4.0):
        prior = Prior(Noisy(g, level), g.moments())
        found = switch_level(prior, SHAPE, torch.zeros(1))
        assert 0.3 < found <= 1.5 * level, found
    # Without the error the Jacobian is right at each level, and needed where the modes are apart.
    assert switch_level(Prior(Noisy(g, math.inf), g.moments()), SHAPE, torch.zeros(1)) > 0.5


def test_a_gaussian_needs_no_product_with_the_network():
    g = correlated(16)
    prior = Prior.of(g)
    assert switch_level(prior, SHAPE, torch.zeros(1)) < 0.01
    rng = Rng(range(512))
    for sigma in (0.05, 0.5, 5.0):
        both = variance_ratios(prior, g.sample(rng), sigma, rng)
        assert both == pytest.approx((1, 1), abs=0.1)


def test_a_run_keeps_the_mean_and_measures_it(tmp_path):
    recipe = {
        "data": "digits",
        "operator": "identity",
        "noise": {"name": "gaussian", "sigma": 0.2},
        "network": {"name": "unet", "channels": [8], "blocks": 1},
        "count": 32,
        "phases": [
            {"name": "first", "fit": {"objective": "gaussian-moments", "rank": 8}},
            {
                "name": "em",
                "sampler": {"name": "auto", "steps": 4},
                "fit": {"objective": "dsm", "steps": 5, "batch": 8},
            },
        ],
        "evaluate": {
            "metrics": ["psnr", {"name": "psnr", "of": "draw"}],
            "observations": 6,
            "samples": 4,
            "steps": 4,
        },
        "compute": {"threads": 1},
    }
    run = invem.run(recipe, out=tmp_path / "run")
    y = run.observations("test").y
    mean = run.prior(y, torch.full((len(y), 1, 1, 1), 0.2))
    psnr = 20 * math.log10(2) - 10 * (mean - run.truth).square().flatten(1).mean(1).log10()
    found = {name: value["value"] for name, value in run.metrics[-1]["metrics"].items()}
    assert found["psnr"] == pytest.approx(float(psnr.mean()), abs=1e-3)
    assert found["psnr"] > min(value for name, value in found.items() if name != "psnr")

    restored = run.restore(y, draws=2)
    assert restored.mean.allclose(mean, atol=1e-6)
    assert not restored.draws.mean(1).allclose(mean, atol=1e-3)
