"""`ddrm`, `diffpir`, `pigdm`, `mmps` and `dps` beside deepinv's, one sample at a time where deepinv
knows no other way."""

from dataclasses import replace

import pytest
import torch
from invem_plugins.operators.gaussian_blur import gaussian_blur
from invem_plugins.operators.random_mask import random_mask
from invem_plugins.samplers.ddrm import DDRM
from invem_plugins.samplers.diffpir import DiffPIR
from invem_plugins.samplers.dps import DPS
from invem_plugins.samplers.pigdm import PiGDM
from torch import nn

from invem import Karras, Prior
from invem.diffusion import reverse_diffusion
from invem.likelihood import proximal_point
from invem.local_gaussian import condition_on, local_gaussian
from invem.schedule import Geometric

from . import NOISE, SHAPE, Bounded, Levels, Numbers, exact, feed, gap, measured, network, normal

try:
    import deepinv
    from deepinv.physics import Blur, BlurFFT, GaussianNoise, Inpainting
    from deepinv.sampling import (
        DDIMSolver,
        DDPMSolver,
        PosteriorDiffusion,
        VarianceExplodingDiffusion,
    )
    from deepinv.sampling.noisy_datafidelity import (
        DPSDataFidelity,
        MomentMatchingDataFidelity,
        PiGDMDataFidelity,
    )
except (ImportError, RuntimeError) as error:
    pytest.skip(f"deepinv does not import: {error}", allow_module_level=True)


def mask(n):
    return random_mask(n, SHAPE, torch.Generator().manual_seed(2))


def blur(n, std=0.5):
    return gaussian_blur(n, SHAPE, torch.Generator(), std=std, size=3, boundary="circular")


def physics(A, kind, noise=NOISE):
    """The same operator as deepinv's."""
    if kind is Inpainting:
        return Inpainting(SHAPE, mask=A.mask, noise_model=GaussianNoise(noise))
    point = torch.zeros(1, *SHAPE, dtype=A.rows.dtype)
    point[..., 4, 4] = 1
    kernel = A(point)[..., 3:6, 3:6].contiguous()
    more = {"noise_model": GaussianNoise(noise)}
    return (
        Blur(kernel, padding="circular", **more) if kind is Blur else BlurFFT(SHAPE, kernel, **more)
    )


def pair(kind, n, dtype=torch.float64, std=0.5):
    m = measured(mask(n) if kind is Inpainting else blur(n, std), n, dtype)
    theirs = physics(m.A, kind)
    x = normal(n, dtype=dtype)
    assert gap(theirs.A(x), m.A(x)) < 1e-5
    return m, theirs


SIGMAS = Karras(sigma_max=5.0, sigma_min=0.05).grid(12)


def test_a_run_of_ddrm_is_deepinvs_with_the_noise_of_the_paper(monkeypatch):
    """deepinv divides every draw by sqrt(2). By DDRM, eq. 7 and 8, a coordinate that y is blind to,
    in an orthonormal basis, has variance sigma^2 at first and gets eta^2 sigma^2 at a step: deepinv
    is fed sqrt(2) times the numbers."""
    m, net, z = measured(mask(3), 3), network(), normal(3, 12)
    ours = DDRM(steps=12, schedule=Levels(tuple(SIGMAS.tolist())))(Prior(net), m, Numbers(*z))
    for i in range(3):
        each, theirs = m[i], physics(m[i].A, Inpainting)
        sampler = deepinv.sampling.DDRM(net, sigmas=SIGMAS.numpy(), eps=0.0)
        feed(monkeypatch, [2**0.5 * part[i : i + 1] for part in z])
        assert gap(ours[i : i + 1], sampler(each.y.clone(), theirs)) < 1e-6
        feed(monkeypatch, [part[i : i + 1] for part in z])
        assert gap(ours[i : i + 1], sampler(each.y.clone(), theirs)) > 1e-2


def test_a_run_of_ddrm_on_a_blur_is_deepinvs(monkeypatch):
    """A basis of sines and cosines and deepinv's Fourier basis: the law is that of the singular
    values, whatever the basis of each."""
    (m, theirs), net, z = pair(BlurFFT, 1), network(), normal(1, 12)
    ours = DDRM(steps=12, schedule=Levels(tuple(SIGMAS.tolist())))(Prior(net), m, Numbers(*z))
    feed(monkeypatch, [2**0.5 * theirs.V_adjoint(part) for part in z])
    assert (
        gap(ours, deepinv.sampling.DDRM(net, sigmas=SIGMAS.numpy(), eps=0.0)(m.y.clone(), theirs))
        < 1e-5
    )


def test_the_root_of_two_is_the_scale_of_fourier_coefficients():
    """Where it may come from: the real and the imaginary part of a coefficient of white noise have
    half of its variance. For a blur the division is right, but for the frequencies on the edge; for
    a mask, whose basis is real, half of the variance is missing."""
    e = torch.Generator().manual_seed(0)
    for kind, expected in ((Inpainting, 0.5), (BlurFFT, 1 - 1 / SHAPE[-1])):
        theirs = pair(kind, 1)[1]
        shape = theirs.V_adjoint(torch.zeros(1, *SHAPE, dtype=torch.float64)).shape
        drawn = theirs.V(torch.randn(4000, *shape[1:], generator=e, dtype=torch.float64) / 2**0.5)
        assert float(drawn.var()) == pytest.approx(expected, rel=0.02)


def test_singular_values_below_the_noise_differ_on_purpose(monkeypatch):
    """DDRM, eq. 7 and 8, leaves a coordinate free where s = 0. deepinv does where s <= sigma_y, and
    so drops what y says of it."""
    (m, theirs), net, z = pair(BlurFFT, 1, std=1.5), network(), normal(1, 12)
    assert float(theirs.mask.min()) < NOISE
    ours = DDRM(steps=12, schedule=Levels(tuple(SIGMAS.tolist())))(Prior(net), m, Numbers(*z))
    feed(monkeypatch, [2**0.5 * theirs.V_adjoint(part) for part in z])
    assert (
        gap(ours, deepinv.sampling.DDRM(net, sigmas=SIGMAS.numpy(), eps=0.0)(m.y.clone(), theirs))
        > 1e-3
    )


class Unit(nn.Module):
    """Our denoiser, of signals in [-1, 1], as deepinv's, of signals in [0, 1]."""

    def __init__(self, ours):
        super().__init__()
        self.ours = ours

    def forward(self, x, sigma):
        return (self.ours(2 * x - 1, 2 * sigma) + 1) / 2


def test_a_run_of_diffpir_is_deepinvs_at_half_its_lambda(monkeypatch):
    """DiffPIR, algorithm 1: x_hat minimises |y - A x|^2 + rho |x - x_0|^2 with rho = lambda
    sigma_y^2/sigma_t^2. deepinv takes sigma_y of signals in [0, 1], sigma_t of signals in [-1, 1],
    and 1/(2 rho) for the step of a proximal operator that has 1/rho: lambda/2.

    What else differs on purpose: the paper begins at N(0, I), deepinv at A^T y with noise, and ours
    is begun there; the paper ends with abar_0 = 1, at x_hat of the last level, and deepinv with the
    noisy state of that level, after a call of the network that it drops; deepinv clips x_0 to [-1,
    1], which does nothing to this denoiser."""
    m, net, n = measured(mask(3), 3), Bounded(network()), 12
    z = normal(3, n)
    for i in range(3):
        each, theirs = m[i], physics(m[i].A, Inpainting, NOISE / 2)
        y = (each.y + each.A.mask) / 2
        sampler = deepinv.sampling.DiffPIR(
            Unit(net), deepinv.optim.data_fidelity.L2(), max_iter=n, zeta=0.3, lambda_=7.0
        )
        feed(monkeypatch, [part[i : i + 1] for part in z])
        state = 2 * sampler(y, theirs) - 1
        levels = [float(sampler.sigmas[k]) for k in sampler.seq]
        last = levels[-1]
        ended = proximal_point(each, net(state * (1 + last**2) ** 0.5, last), last / 3.5**0.5)
        begun = (
            2 * theirs.A_adjoint(y)
            - 1
            + (levels[0] ** 2 - 4 * sampler.sigma**2) ** 0.5 * z[0][i : i + 1]
        ) / levels[0]
        ours = DiffPIR(steps=n, zeta=0.3, lam=3.5, schedule=Levels(tuple(levels)))
        assert (
            gap(ours(Prior(net), each, Numbers(begun, *(part[i : i + 1] for part in z[1:]))), ended)
            < 1e-3
        )
        other = DiffPIR(steps=n, zeta=0.3, lam=7.0, schedule=Levels(tuple(levels)))
        assert (
            gap(
                other(Prior(net), each, Numbers(begun, *(part[i : i + 1] for part in z[1:]))), ended
            )
            > 1e-2
        )


@pytest.mark.parametrize("kind", [Inpainting, BlurFFT, Blur])
@pytest.mark.parametrize("sigma", [5.0, 1.0, 0.3, 0.05])
def test_pigdm_is_deepinvs(kind, sigma):
    """With a mask of its own for each of a batch; deepinv solves by the singular values, or by
    conjugate gradients (Blur)."""
    m, theirs = pair(kind, 3, torch.float32)
    net, x_t = network(torch.float32), sigma * normal(3, dtype=torch.float32)
    guidance, x_hat = PiGDMDataFidelity(net, cg_max_iter=50, cg_tol=1e-6).grad(
        x_t, m.y, theirs, sigma, get_model_outputs=True
    )
    ours = PiGDM(variance=1.0).denoise(Prior(net), m, Numbers(x_t))(x_t, sigma)
    assert gap(ours, x_hat - sigma**2 * guidance) < 1e-4
    assert gap(ours, x_hat) > 1e-3


def deterministic(m, theirs, net, fidelity, x_t, sigmas, **options):
    """deepinv's DDIM on our levels, in our units, to its last state."""
    times = torch.linspace(1, 0, len(sigmas), dtype=torch.float64)
    sde = VarianceExplodingDiffusion(sigma_min=float(sigmas[-1]), sigma_max=float(sigmas[0]))
    model = PosteriorDiffusion(
        fidelity, net, sde, DDIMSolver(timesteps=times), **{"minus_one_one": False} | options
    )
    return model(m.y, theirs, x_init=x_t, denoise_output=False)


def last_state(denoise, x_t, sigmas):
    last = float(sigmas[-1])
    return reverse_diffusion(
        lambda x, sigma: x if sigma == last else denoise(x, sigma),
        x_t,
        sigmas,
        Numbers(x_t),
        eta=0.0,
    )


def test_a_run_of_pigdm_is_deepinvs():
    m, theirs = pair(Inpainting, 3, torch.float32)
    net, sigmas = network(torch.float32), Geometric(sigma_max=10.0, sigma_min=0.02).grid(12)
    x_t = 10 * normal(3, dtype=torch.float32)
    sampler = PiGDM(variance=1.0, schedule=Geometric(sigma_max=10.0, sigma_min=0.02))
    ours = last_state(sampler.denoise(Prior(net), m, Numbers(x_t)), x_t, sigmas)
    assert (
        gap(ours, deterministic(m, theirs, net, PiGDMDataFidelity(), x_t.double(), sigmas).float())
        < 1e-3
    )


def test_the_variance_of_pigdm_differs_on_purpose():
    """PiGDM's r_t^2 = sigma_t^2/(1 + sigma_t^2) is that of data of variance 1 in the units of
    sigma_t, which are those of [-1, 1]. deepinv takes it of signals that it has mapped to [0, 1]:
    that is variance 4. Ours is an option."""
    m, _ = pair(Inpainting, 3, torch.float32)
    theirs, net = physics(m.A, Inpainting, NOISE / 2), network(torch.float32)
    sigmas = Geometric(sigma_max=10.0, sigma_min=0.02).grid(12)
    x_t, low = 10 * normal(3, dtype=torch.float32), replace(m, y=(m.y + m.A.mask) / 2)
    state = (
        2
        * deterministic(
            low, theirs, Unit(net), PiGDMDataFidelity(), x_t.double(), sigmas, minus_one_one=True
        ).float()
        - 1
    )
    four, unit = (
        last_state(
            PiGDM(variance=v, schedule=Karras(sigma_min=0.02)).denoise(Prior(net), m, Numbers(x_t)),
            x_t,
            sigmas,
        )
        for v in (4.0, 1.0)
    )
    assert gap(four, state) < 1e-3
    assert gap(unit, state) > 2e-3


@pytest.mark.parametrize("kind", [Inpainting, Blur])
@pytest.mark.parametrize("iterations", [1, 3])
def test_mmps_by_conjugate_gradients_is_deepinvs(kind, iterations):
    """With the exact denoiser of a Gaussian: at the negative curvature of a network ours stops, and
    deepinv's goes on."""
    m, theirs = pair(kind, 3, torch.float32)
    prior, x_t = exact(torch.float32), normal(3, dtype=torch.float32)
    fidelity = MomentMatchingDataFidelity(prior.denoiser, cg_max_iter=iterations)
    guidance, x_hat = fidelity.grad(x_t, m.y, theirs, 1.0, get_model_outputs=True)
    ours = condition_on(
        local_gaussian(prior, x_t, 1.0, "jacobian"), m, solver="cg", iterations=iterations
    )
    assert gap(ours, x_hat - guidance) < 1e-4


def test_the_gradient_of_dps_is_deepinvs_and_its_step_differs_on_purpose():
    """DPS, algorithm 1, line 7, takes zeta grad |y - A(x_hat)| off the state after each step.
    deepinv puts that gradient, with respect to x + sigma z, into the score: a step from sigma to s
    takes sigma^2 - s^2 of it, so that its weight means something else."""
    (m, theirs), net, sigma, weight = (
        pair(Inpainting, 3, torch.float32),
        network(torch.float32),
        2.0,
        0.3,
    )
    z = normal(3, 2, dtype=torch.float32)
    x_t, x_hat = sigma * z[0], network(torch.float32)(sigma * z[0], sigma)
    end = DPS(steps=1, weight=weight, schedule=Karras(sigma_max=sigma))(Prior(net), m, Numbers(*z))
    gradient = (x_hat - end) / (weight * (1 + sigma**2) ** 0.5)
    assert gap(gradient, DPSDataFidelity(net).grad(x_t.clone(), m.y, theirs, sigma)) < 1e-4
    sde = VarianceExplodingDiffusion(sigma_min=1e-6, sigma_max=sigma)
    solver = DDPMSolver(timesteps=torch.tensor([1.0, 0.0], dtype=torch.float64))
    model = PosteriorDiffusion(
        DPSDataFidelity(net, weight=weight), net, sde, solver, minus_one_one=False
    )
    state = model(m.y, theirs, x_init=x_t.double(), denoise_output=False).float()
    assert gap(state, x_hat - weight * sigma**2 * gradient) < 1e-4
