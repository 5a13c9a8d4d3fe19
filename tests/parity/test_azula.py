"""`mmps`, `dps`, `tmpd`, `diffpir` and `pigdm` beside azula's, and `dps` beside the update that DPS
and EMDiffusion released."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from invem_plugins.operators.gaussian_blur import gaussian_blur
from invem_plugins.operators.random_mask import random_mask
from invem_plugins.samplers.dps import DPS
from invem_plugins.samplers.mmps import MMPS
from invem_plugins.samplers.pigdm import PiGDM
from invem_plugins.samplers.tmpd import TMPD
from invem_plugins.schedules.vp import VP
from torch import nn

from invem import Karras, Prior
from invem.likelihood import proximal_point
from invem.local_gaussian import condition_on, local_gaussian

from . import NOISE, SHAPE, Levels, Numbers, exact, feed, gap, measured, network, normal

try:
    from azula.denoise import Denoiser, DiracPosterior
    from azula.guidance.diffpir import DiffPIRDenoiser
    from azula.guidance.dps import DPSSampler
    from azula.guidance.mmps import MMPSDenoiser
    from azula.guidance.pgdm import PGDMSampler
    from azula.guidance.tmpd import TMPDenoiser
    from azula.linalg.covariance import IsotropicCovariance
    from azula.sample import DDPMSampler
except (ImportError, RuntimeError) as error:
    pytest.skip(f"azula does not import: {error}", allow_module_level=True)

VAR = IsotropicCovariance(NOISE**2)


def exploding(t):
    return torch.ones_like(t), t


def preserving(t):
    return (1 + t**2).rsqrt(), t * (1 + t**2).rsqrt()


class Theirs(Denoiser):
    """Our denoiser as azula's; the time is the noise level of x_t/alpha."""

    def __init__(self, ours, schedule=exploding):
        super().__init__()
        self.ours, self.schedule = ours, schedule

    def forward(self, x_t, t, **_):
        alpha, sigma = self.schedule(t)
        return DiracPosterior(self.ours(x_t / alpha, sigma / alpha))


OPERATORS = {
    "mask": lambda n: random_mask(n, SHAPE, torch.Generator().manual_seed(2)),
    "blur": lambda n: gaussian_blur(n, SHAPE, torch.Generator(), std=0.8, size=5),
}


@pytest.fixture(params=OPERATORS)
def m(request):
    return measured(OPERATORS[request.param](3), 3)


def flat(m):
    """A as azula's solvers take it: onto vectors (B, D)."""
    return lambda x: m.A(x).flatten(1)


def mmps(denoiser, m, solver, iterations):
    return MMPSDenoiser(denoiser, m.y.flatten(1), flat(m), VAR, solver, iterations)


def walk(sampler, x_t, levels):
    """Steps azula's sampler down these levels."""
    for t, s in pairwise(torch.tensor(levels, dtype=torch.float64)):
        x_t = sampler.step(x_t, t, s)
    return x_t


@pytest.mark.parametrize("sigma", [5.0, 1.0, 0.3, 0.05])
@pytest.mark.parametrize("iterations", [1, 3])
def test_mmps_is_azulas_with_a_product_less(m, sigma, iterations):
    net, x_t = network(), sigma * normal(3)
    products = []
    ours = condition_on(
        _counted(local_gaussian(Prior(net), x_t, sigma, "jacobian"), products),
        m,
        iterations=iterations,
    )
    theirs = mmps(Theirs(net), m, "gmres", iterations)(
        x_t, torch.tensor(sigma, dtype=torch.float64)
    ).mean
    assert len(products) == iterations
    assert gap(ours, theirs) < 1e-8
    assert gap(ours, net(x_t, sigma)) > 1e-3


def _counted(here, products):
    return replace(here, cov=lambda v: products.append(1) or here.cov(v))


@pytest.mark.parametrize("iterations", [1, 3, 6])
def test_mmps_by_conjugate_gradients_is_azulas(m, iterations):
    prior, x_t = exact(), normal(3)
    ours = condition_on(
        local_gaussian(prior, x_t, 1.0, "jacobian"), m, solver="cg", iterations=iterations
    )
    theirs = mmps(Theirs(prior.denoiser), m, "cg", iterations)(
        x_t, torch.tensor(1.0, dtype=torch.float64)
    ).mean
    assert gap(ours, theirs) < 1e-8


def test_at_negative_curvature_conjugate_gradients_differ_on_purpose():
    """The MMPS paper solves (S + A V A^T) u = r by conjugate gradients because that matrix is
    symmetric and positive definite. With the Jacobian of a network it may not be: azula then
    divides by the smallest number there is, ours keeps the last iterate, here x_hat."""

    class Wrong(nn.Module):
        def forward(self, x_t, sigma, cond=None):
            return -x_t

    m, x_t = measured(OPERATORS["mask"](2), 2), normal(2)
    ours = condition_on(
        local_gaussian(Prior(Wrong()), x_t, 1.0, "jacobian"), m, solver="cg", iterations=1
    )
    theirs = mmps(Theirs(Wrong()), m, "cg", 1)(x_t, torch.tensor(1.0, dtype=torch.float64)).mean
    assert torch.equal(ours, -x_t)
    assert float(theirs.abs().max()) > 1e12


def test_images_differ_on_purpose_where_azulas_solvers_are_given_them_unflattened():
    """(S + A V A^T) u = r is one system for the whole observation. azula reduces the last axis
    alone: an image is a system for each row."""
    m, net, x_t = measured(OPERATORS["blur"](2), 2), network(), normal(2)
    ours = condition_on(local_gaussian(Prior(net), x_t, 1.0, "jacobian"), m)
    theirs = MMPSDenoiser(Theirs(net), m.y, m.A, VAR, "gmres", 3)(
        x_t, torch.tensor(1.0, dtype=torch.float64)
    ).mean
    assert gap(theirs, ours) > 1e-3


@pytest.mark.parametrize("iterations", [1, 3])
def test_a_run_of_mmps_is_azulas(monkeypatch, m, iterations):
    net, sampler = (
        network(),
        MMPS(stepping="ancestral", covariance="jacobian", iterations=iterations, steps=12),
    )
    levels = sampler.schedule.grid(12).tolist()
    z = normal(3, 13)
    ours = sampler(Prior(net), m, Numbers(*z))
    feed(monkeypatch, z[1:])
    theirs = walk(
        DDPMSampler(mmps(Theirs(net), m, "gmres", iterations)), levels[0] * z[0], [*levels, 0.0]
    )
    assert gap(ours, theirs) < 1e-8


@pytest.mark.parametrize("schedule", [Karras(), VP()], ids=["karras", "vp"])
def test_a_run_of_dps_is_azulas_at_batch_1(monkeypatch, schedule):
    """azula steps the variance-preserving state of the publication, ours x + sigma z: line 7 of
    algorithm 1 takes the gradient in the former."""
    m, net, z = measured(OPERATORS["mask"](1), 1), network(), normal(1, 25)
    levels = schedule.grid(24).tolist()
    ours = DPS(steps=24, weight=0.4, schedule=schedule)(Prior(net), m, Numbers(*z))
    feed(monkeypatch, z[1:])
    sampler = DPSSampler(Theirs(net, preserving), m.y, m.A, zeta=0.4)
    theirs = walk(sampler, levels[0] * (1 + levels[0] ** 2) ** -0.5 * z[0], [*levels, 0.0])
    assert gap(ours, theirs) < 1e-6
    unguided = DPS(steps=24, weight=1e-9, schedule=schedule)(Prior(net), m, Numbers(*z))
    assert gap(ours, unguided) > 1e-2


def test_a_batch_of_dps_differs_on_purpose(monkeypatch):
    """DPS, algorithm 1, line 7: x_{i-1} = x'_{i-1} - zeta_i grad |y - A(x_hat)|^2 with zeta_i =
    zeta'/|y - A(x_hat)|, of the one image that it restores. azula's norm is of the batch: each
    image is pulled |r|/|r of the batch| times as much, so less the larger the batch."""
    m, net, z = measured(OPERATORS["mask"](2), 2), network(), normal(2, 13)
    levels = Karras().grid(12).tolist()
    ours = DPS(steps=12, weight=0.4)(Prior(net), m, Numbers(*z))
    first = levels[0] * (1 + levels[0] ** 2) ** -0.5 * z[0]

    def theirs(i, zeta=0.4, until=13):
        feed(monkeypatch, [part[i] for part in z[1:]])
        sampler = DPSSampler(Theirs(net, preserving), m.y[i], m[torch.arange(2)[i]].A, zeta=zeta)
        return walk(sampler, first[i], [*levels, 0.0][:until])

    each, both = torch.cat([theirs(slice(i, i + 1)) for i in range(2)]), theirs(slice(0, 2))
    assert gap(ours, each) < 1e-6
    assert gap(both, each) > 1e-2
    plain = theirs(slice(0, 2), zeta=0.0, until=2)
    alone = torch.cat([theirs(slice(i, i + 1), until=2) for i in range(2)])
    together = theirs(slice(0, 2), until=2)
    size = (m.y - m.A(net(levels[0] * z[0], levels[0]))).flatten(1).norm(dim=1)
    share = (size / size.norm()).reshape(-1, 1, 1, 1)
    assert gap(together - plain, share * (alone - plain)) < 1e-6


def released(net, m, zeta, sigmas, z, each):
    """The update that DPS (condition_methods.py, "ps") and EMDiffusion released, in the state of
    DDPM: an ancestral step by the posterior mean and variance of Ho et al. (eq. 7), less zeta times
    the gradient of the norm. EMDiffusion also clips x_hat to [-1, 1]."""
    kept = [*(1 / (1 + s**2) for s in sigmas), 1.0]
    x = (1 - kept[0]) ** 0.5 * z[0]
    for (abar, after), noise in zip(pairwise(kept), z[1:], strict=True):
        beta = 1 - abar / after
        x = x.detach().requires_grad_()
        x_hat = net(x / abar**0.5, ((1 - abar) / abar) ** 0.5)
        r = m.y - m.A(x_hat)
        norm = r.flatten(1).norm(dim=1).sum() if each else torch.linalg.norm(r)
        (grad,) = torch.autograd.grad(norm, x)
        mean = (
            after**0.5 * beta * x_hat.detach() + (abar / after) ** 0.5 * (1 - after) * x.detach()
        ) / (1 - abar)
        x = mean + (beta * (1 - after) / (1 - abar)) ** 0.5 * noise - zeta * grad
    return x


def test_a_run_of_dps_is_the_released_update():
    m, net, z = measured(OPERATORS["mask"](3), 3), network(), normal(3, 31)
    sigmas = VP().grid(30).tolist()
    ours = DPS(steps=30, weight=0.5, schedule=VP())(Prior(net), m, Numbers(*z))
    assert gap(ours, released(net, m, 0.5, sigmas, z, each=True)) < 1e-6
    alone = [
        released(net, m[i], 0.5, sigmas, [part[i : i + 1] for part in z], each=False)
        for i in range(3)
    ]
    assert gap(ours, torch.cat(alone)) < 1e-6


def test_a_batch_of_the_released_update_differs_on_purpose():
    """`linalg.norm(difference)` is of the batch (DPS's own issue 12); algorithm 1 has one image."""
    m, net, z = measured(OPERATORS["mask"](3), 3), network(), normal(3, 31)
    sigmas = VP().grid(30).tolist()
    ours = DPS(steps=30, weight=0.5, schedule=VP())(Prior(net), m, Numbers(*z))
    assert gap(released(net, m, 0.5, sigmas, z, each=False), ours) > 1e-2


@pytest.mark.parametrize("sigma", [1.0, 0.3, 0.05])
def test_tmpd_is_azulas(m, sigma):
    """With a positive Jacobian: a negative sum of a row, which cannot be a variance, ours counts as
    zero and azula's divides by."""
    prior, x_t = exact(), sigma * normal(3)
    ours = TMPD().denoise(prior, m, Numbers(normal(3)))(x_t, sigma)
    theirs = TMPDenoiser(Theirs(prior.denoiser), m.y, m.A, NOISE**2)(
        x_t, torch.tensor(sigma, dtype=torch.float64)
    ).mean
    assert gap(ours, theirs) < 1e-8


@pytest.mark.parametrize("sigma", [5.0, 0.3])
def test_the_estimate_of_diffpir_is_azulas(m, sigma):
    net, x_t = network(), sigma * normal(3)
    ours = proximal_point(m, net(x_t, sigma), sigma / 7**0.5)

    class Vectors(nn.Module):
        def forward(self, x, level):
            return net(x.reshape(-1, *SHAPE), level).flatten(1)

    A = lambda x: m.A(x.reshape(-1, *SHAPE)).flatten(1)  # noqa: E731
    denoiser = DiffPIRDenoiser(Theirs(Vectors()), m.y.flatten(1), A, NOISE**2, 7.0, "cg", 100)
    theirs = denoiser(x_t.flatten(1), torch.tensor(sigma, dtype=torch.float64)).mean.reshape(
        x_t.shape
    )
    assert gap(ours, theirs) < 1e-4


@pytest.mark.parametrize("s", [0.8, 0.2])
def test_the_step_of_pigdm_differs_on_purpose(monkeypatch, s):
    """PiGDM's score is grad log p(y | x_t) = J^T A^+ r/r_t^2: E[x | x_t, y] moves by sigma^2 of it,
    and a step of the diffusion from sigma to s takes 1 - s/sigma of that. azula's adds J^T A^+ r
    however long the step is, as the published algorithm; in the same direction."""
    m, net, sigma = measured(OPERATORS["mask"](3), 3), network(), 1.0
    x_t = normal(3)
    feed(monkeypatch, [torch.zeros_like(x_t)] * 2)
    alpha, alpha_s = (1 + sigma**2) ** -0.5, (1 + s**2) ** -0.5
    times = torch.tensor([sigma, s], dtype=torch.float64)
    sampler = PGDMSampler(Theirs(net, preserving), m.y, m.A, m.A.adjoint)
    theirs = sampler.step(alpha * x_t, *times) / alpha_s
    quiet = type(m)(m.y, m.A, type(m.noise)(1e-6 * torch.ones_like(m.noise.sigma)))
    pigdm = PiGDM(variance=1.0, stepping="euler", steps=3, schedule=Levels((sigma, s, 1e-9)))
    guided, plain = pigdm.denoise(Prior(net), quiet, Numbers(x_t))(x_t, sigma), net(x_t, sigma)
    ours = guided + s / sigma * (x_t - guided)
    free = plain + s / sigma * (x_t - plain)
    size = sigma**2 / (sigma**2 / (1 + sigma**2)) * (1 - s / sigma)
    assert gap((ours - free) / size, theirs - free) < 1e-5
