"""Classical restorations: known solutions, dense algebra and optimality conditions."""

import dataclasses
import math

import pytest
import torch
from invem_plugins.noises.gaussian import gaussian
from invem_plugins.operators.clip import clip
from invem_plugins.operators.downsample import downsample
from invem_plugins.operators.fourier_mask import fourier_mask
from invem_plugins.operators.gaussian_blur import gaussian_blur
from invem_plugins.operators.identity import identity
from invem_plugins.operators.random_mask import random_mask
from invem_plugins.operators.random_projection import random_projection
from invem_plugins.samplers.observation import Observation
from invem_plugins.samplers.pseudo_inverse import PseudoInverse
from invem_plugins.samplers.total_variation import TotalVariation
from invem_plugins.samplers.wiener import Wiener

from invem import Denoiser, Measurement, Prior, Rng


class Untouched(Denoiser):
    def forward(self, x_t, sigma, cond=None):
        raise AssertionError("a classical restoration has no use for a denoiser")


def signals(n, shape):
    return (
        0.5
        * torch.randn(n, *shape, generator=Rng.generator("x"), dtype=torch.float64).cumsum(-1)
        / shape[-1] ** 0.5
    )


def measure(A, x, sigma=0.1):
    A = A.to(dtype=torch.float64)
    clean = A(x)
    noise = gaussian(len(x), tuple(clean.shape[1:]), Rng.generator("noise"), sigma=sigma).to(
        dtype=torch.float64
    )
    return Measurement(noise.sample(clean, Rng.generator("y")), A, noise)


def restore(sampler, m):
    return sampler(Prior(Untouched()), m, Rng.keyed("classical", items=range(len(m))))


def dense(A, i):
    d = math.prod(A.shape)
    return (
        A[torch.full((d,), i)](torch.eye(d, dtype=torch.float64).reshape(d, *A.shape)).flatten(1).T
    )


LAWS = {
    "mask": lambda n: random_mask(n, (1, 6, 5), Rng.generator(0), keep=0.6),
    "projection": lambda n: random_projection(n, (9,), Rng.generator(0), measurements=4),
    "blur": lambda n: gaussian_blur(n, (2, 7, 6), Rng.generator(0), std=0.9, size=5),
    "downsample": lambda n: downsample(n, (1, 8, 6), Rng.generator(0), factor=2),
    "fourier": lambda n: fourier_mask(n, (1, 8, 6), Rng.generator(0), acceleration=2, centre=0.2),
}


@pytest.mark.parametrize(
    "sampler",
    [PseudoInverse(), Wiener(), TotalVariation(), Observation()],
    ids=lambda s: type(s).__name__,
)
def test_they_are_what_a_run_can_begin_with(sampler):
    assert not sampler.uses_prior
    assert sampler.cost == (0, 0)
    shape = (1, 6, 5)
    m = measure(identity(3, shape, Rng.generator(0)), signals(3, shape)).to(dtype=torch.float32)
    x = restore(sampler, m)
    assert x.shape == (3, *shape) and x.dtype == torch.float32
    assert torch.equal(x, restore(sampler, m))


@pytest.mark.parametrize("law", ["projection", "downsample"])
def test_the_pseudo_inverse_is_the_fit_of_least_norm(law):
    A = LAWS[law](3)
    m = measure(A, signals(3, A.shape))
    x = restore(PseudoInverse(), m)
    for i in range(3):
        expected = torch.linalg.pinv(dense(m.A, i)) @ m.y[i].flatten()
        assert torch.allclose(x[i].flatten(), expected, atol=1e-8)


def stationary(shape, exponent):
    """The circular covariance of variance one, from its definition: cosines of all frequencies,
    weighted by their power."""
    sizes = shape[-2:]
    f = torch.stack(
        torch.meshgrid(*(torch.arange(n, dtype=torch.float64) / n for n in sizes), indexing="ij"),
        -1,
    ).reshape(-1, len(sizes))
    f = torch.where(f >= 0.5, f - 1, f)
    power = f.square().sum(1).clamp(min=1 / max(sizes) ** 2) ** (-exponent / 2)
    place = torch.stack(
        torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in sizes), indexing="ij"), -1
    ).reshape(-1, len(sizes))
    lag = place[:, None] - place
    one = (torch.cos(2 * math.pi * lag @ f.T) * (power / power.sum())).sum(-1)
    return torch.block_diag(*[one] * (math.prod(shape) // len(place)))


@pytest.mark.parametrize("exponent", [0.0, 2.0])
@pytest.mark.parametrize("law", LAWS)
def test_wiener_is_the_dense_solution(law, exponent):
    A = LAWS[law](3)
    m = measure(A, signals(3, A.shape), sigma=[0.05, 0.3])
    x = restore(Wiener(mean=0.2, std=0.7, exponent=exponent), m)
    C = 0.49 * (
        stationary(A.shape, exponent)
        if exponent
        else torch.eye(math.prod(A.shape), dtype=torch.float64)
    )
    for i in range(3):
        rows = dense(m.A, i)
        S = torch.diag(m.noise.var()[i].expand_as(m.y[i]).flatten())
        gap = m.y[i].flatten() - rows.sum(1) * 0.2
        expected = 0.2 + C @ rows.T @ torch.linalg.solve(rows @ C @ rows.T + S, gap)
        assert torch.allclose(x[i].flatten(), expected, atol=1e-6)


def test_wiener_without_noise_fits_what_is_measured():
    A = random_mask(2, (1, 6, 6), Rng.generator(0))
    m = measure(A, signals(2, A.shape), sigma=0.0)
    x = restore(Wiener(exponent=2.0), m)
    assert float((m.A(x) - m.y).abs().max()) < 1e-4
    assert float((1 - m.A.mask).mul(x).abs().max()) > 0.1


def test_a_step_is_denoised_by_the_known_amount():
    """Of n1 entries at 0 and n2 at h, each level moves towards the other by weight var/n (Strong &
    Chan 2003)."""
    n1, n2, h, sigma, weight = 5, 8, 1.0, 0.3, 4.0
    y = torch.cat([torch.zeros(n1), h * torch.ones(n2)]).double()[None]
    noise = gaussian(1, (13,), Rng.generator(0), sigma=sigma).to(dtype=torch.float64)
    x = restore(
        TotalVariation(weight=weight, tol=1e-9, iterations=20000),
        Measurement(y, identity(1, (13,), Rng.generator(0)), noise),
    )
    expected = torch.cat(
        [torch.full((n1,), weight * sigma**2 / n1), torch.full((n2,), h - weight * sigma**2 / n2)]
    ).double()
    assert torch.allclose(x[0], expected, atol=1e-5)
    # A weight above h/(var (1/n1 + 1/n2)) leaves the mean alone.
    x = restore(
        TotalVariation(weight=40.0, tol=1e-9, iterations=20000),
        Measurement(y, identity(1, (13,), Rng.generator(0)), noise),
    )
    assert torch.allclose(x[0], y.mean().expand(13), atol=1e-5)


def variation(x):
    """Isotropic total variation, from its definition."""
    if x.ndim == 2:
        return x.diff(dim=1).abs().sum(1)
    down = torch.cat([x.diff(dim=-2), torch.zeros_like(x[..., :1, :])], -2)
    right = torch.cat([x.diff(dim=-1), torch.zeros_like(x[..., :1])], -1)
    return torch.hypot(down, right).flatten(1).sum(1)


@pytest.mark.parametrize("law", LAWS)
def test_the_optimality_conditions_of_total_variation(law):
    """g = A^T S^-1 (y - A x) is a subgradient of weight TV at x: <g, x> = weight TV(x), and <g, z>
    <= weight TV(z) for every z.

    Within a duality gap e the left side may be larger by sqrt(2 e) |S^-1/2 A z|: if it were by
    more, a step along z would lower the objective by more than e.
    """
    A, weight, tol = LAWS[law](3), 2.0, 1e-5
    m = measure(A, signals(3, A.shape), sigma=[0.1, 0.3])
    x = restore(TotalVariation(weight=weight, tol=tol, iterations=5000), m)
    objective = (m.residual(x) ** 2 / m.noise.var()).flatten(1).sum(1) / 2 + weight * variation(x)
    g = m.A.adjoint((m.y - m.A(x)) / m.noise.var())
    for i in range(3):
        z = torch.randn(200, *A.shape, generator=Rng.generator("z"), dtype=torch.float64)
        z = torch.cat(
            [
                z,
                z.sign(),
                z.cumsum(-1),
                (z.cumsum(-1) > 0).double(),
                x[i : i + 1],
                -x[i : i + 1],
                torch.ones_like(z[:1]),
            ]
        )
        shown = m.A[torch.full((len(z),), i)](z) / m.noise.var()[i : i + 1].sqrt()
        slack = (2 * tol * objective[i]).sqrt() * shown.flatten(1).norm(dim=1)
        excess = (g[i] * z).flatten(1).sum(1) - weight * variation(z)
        assert bool((excess <= slack).all())
        assert float(slack[-3]) < 0.1 * weight * float(variation(x)[i])  # the test has teeth


def test_each_sample_has_its_own_steps():
    """Noise levels a factor of 100 apart in one batch: each sample is what it is alone."""
    A = gaussian_blur(2, (1, 8, 8), Rng.generator(0), std=1.0, size=5)
    m = measure(A, signals(2, A.shape))
    noise = dataclasses.replace(
        m.noise, sigma=torch.tensor([0.02, 2.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    )
    m = dataclasses.replace(m, noise=noise)
    x = restore(TotalVariation(), m)
    alone = torch.cat([restore(TotalVariation(), m[i]) for i in range(2)])
    assert torch.allclose(x, alone, atol=1e-10)
    assert float(x[1].std()) < 0.1 * float(x[0].std())


def test_total_variation_where_nothing_is_measured_or_nothing_is_noisy():
    A = random_mask(2, (1, 6, 6), Rng.generator(0))
    blind = dataclasses.replace(A, mask=torch.cat([torch.zeros_like(A.mask[:1]), A.mask[1:]]))
    m = measure(blind, signals(2, A.shape), sigma=0.0)
    x = restore(TotalVariation(), m)
    assert bool((x[0] == 0).all())
    assert float((m.A(x) - m.y).abs().max()) < 0.05


def test_the_observation_is_y_or_is_brought_back():
    shape = (1, 6, 5)
    m = measure(identity(3, shape, Rng.generator(0)), signals(3, shape))
    assert torch.equal(restore(Observation(), m), m.y)
    m = measure(LAWS["mask"](3), signals(3, shape))
    assert torch.equal(restore(Observation(), m), m.A.mask * m.y)
    m = measure(clip(3, shape, Rng.generator(0)), signals(3, shape))
    assert torch.equal(restore(Observation(), m), m.y)
    m = measure(LAWS["projection"](3), signals(3, (9,)))
    back = restore(Observation(), m)
    assert torch.allclose(back, m.A.adjoint(m.y))
    scaled = restore(Observation(scaled=True), m)
    left = (m.y - m.A(scaled)).square().sum(1)
    for factor in (0.99, 1.01):
        assert bool((left < (m.y - m.A(factor * scaled)).square().sum(1)).all())
    assert torch.allclose(scaled / back, (scaled / back)[:, :1].expand_as(back))


def test_an_observation_of_the_signals_shape_in_another_space_is_brought_back_on_request():
    A = fourier_mask(2, (2, 8, 8), Rng.generator(0))
    m = measure(A, signals(2, (2, 8, 8)))
    assert torch.equal(restore(Observation(), m), m.y * m.A.mask)
    assert torch.allclose(restore(Observation(back=True), m), m.A.adjoint(m.y))
