"""Draws and minimisers near a point, resampling, and the plan's word on which samplers fit."""

import pytest
import torch
from invem_plugins.noises.gaussian import gaussian
from invem_plugins.operators.random_projection import random_projection
from invem_plugins.samplers._particles import choose, resample

from invem import Measurement, Rng
from invem.likelihood import (
    largest_curvature,
    largest_singular_value,
    proximal_draw,
    proximal_point,
)

N, D = 30_000, 4


def problem(n=1):
    A = random_projection(1, (D,), Rng.generator(1), measurements=2)[
        torch.zeros(n, dtype=torch.long)
    ]
    noise = gaussian(n, (2,), Rng.generator(0), sigma=0.3)
    return Measurement(torch.tensor([[0.5, -1.0]]).expand(n, 2).contiguous(), A, noise)


def dense(m):
    return m.A[torch.zeros(D, dtype=torch.long)](torch.eye(D)).T.double()


def test_nearest_is_the_minimiser():
    m, rho = problem(), 0.7
    x = torch.randn(1, D, generator=Rng.generator("x"))
    A = dense(m)
    precision = A.T @ A / 0.09 + torch.eye(D) / rho**2
    expected = torch.linalg.solve(precision, A.T @ m.y[0].double() / 0.09 + x[0].double() / rho**2)
    assert torch.allclose(proximal_point(m, x, rho)[0].double(), expected, atol=1e-4)


@pytest.mark.parametrize("matched", [False, True])
def test_a_near_draw_has_its_law(matched):
    one, m = problem(), problem(N)
    rho = float(0.8 / largest_singular_value(one))
    x = torch.randn(1, D, generator=Rng.generator("x")).expand(N, D)
    A = dense(one)
    S = 0.09 * torch.eye(2, dtype=torch.float64) - (rho**2 * A @ A.T if matched else 0)
    precision = A.T @ torch.linalg.solve(S, A) + torch.eye(D) / rho**2
    mean = torch.linalg.solve(
        precision, A.T @ torch.linalg.solve(S, one.y[0].double()) + x[0].double() / rho**2
    )
    z = proximal_draw(m, x, rho, Rng.keyed("z", items=range(N)), matched=matched).double()
    root = torch.linalg.cholesky(precision)
    white = (z - mean) @ root
    assert float(white.mean(0).abs().max()) < 0.03
    assert torch.allclose(torch.cov(white.T), torch.eye(D, dtype=torch.float64), atol=0.05)


def test_strength_and_sharpness_are_the_largest_singular_value():
    m = problem()
    top = float(torch.linalg.matrix_norm(dense(m), 2)) / 0.3
    assert float(largest_singular_value(m)) == pytest.approx(top, rel=0.01)
    assert float(largest_curvature(m, torch.zeros(1, D), 30)) == pytest.approx(top**2, rel=0.02)


def test_resampling_keeps_what_is_even_and_is_unbiased():
    even, rng = torch.zeros(3, 4, dtype=torch.float64), Rng.keyed("r", items=range(3))
    rows, weights = resample(even, rng)
    assert rows.tolist() == list(range(12)) and weights.shape == (3, 4)
    n = 20_000
    w = torch.tensor([0.85, 0.1, 0.05, 0.0], dtype=torch.float64)
    rows, weights = resample(w.log().expand(n, 4), Rng.keyed("r", items=range(n)))
    counts = torch.bincount(rows % 4, minlength=4) / n
    assert not weights.any()
    assert torch.allclose(counts.double(), 4 * w, atol=0.02)
    assert bool((rows // 4 == torch.arange(n).repeat_interleave(4)).all())
    picked = choose(w.log().expand(n, 4), Rng.keyed("c", items=range(n))) % 4
    assert torch.allclose(torch.bincount(picked, minlength=4).double() / n, w, atol=0.02)
