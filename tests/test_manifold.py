"""The smooth manifold of DiEM: its points, its measurements, the Sinkhorn divergence, and the two
recipes."""

import itertools
import math

import pytest
import torch
from invem_plugins.datasets.curve import smooth_manifold
from invem_plugins.metrics import sinkhorn
from invem_plugins.metrics.sinkhorn import Sinkhorn
from invem_plugins.noises.gaussian import gaussian
from invem_plugins.operators.random_projection import random_projection

from invem import Outcome, RecipeError, Rng, Unsupported

torch.set_num_threads(1)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def divergence(x, y, epsilon=1e-3, **options):
    return float(
        Sinkhorn(epsilon=epsilon, **options)(Outcome((-1.0, 1.0), samples=x, reference=y), {})
    )


# The curve


@pytest.mark.parametrize("options", [{}, {"dimension": 3, "alpha": 1.5, "seed": 4}])
def test_points_lie_on_the_published_curve(options):
    data = smooth_manifold("train", **options)
    dimension, alpha = options.get("dimension", 5), options.get("alpha", 3.0)
    modes = round(0.001 ** (-1 / alpha))
    a, b, c = torch.rand(
        3,
        dimension,
        modes,
        generator=Rng.generator("smooth-manifold", options.get("seed", 0)),
        dtype=torch.float64,
    )
    t = torch.linspace(0, 1, 2**15 + 1, dtype=torch.float64)
    curve = torch.zeros(len(t), dimension, dtype=torch.float64)
    for i in range(dimension):
        for k in range(modes):
            curve[:, i] += (
                a[i, k]
                / (k + 1) ** alpha
                * torch.sin(2 * math.pi * ((k + 1) * b[i, k] * t + c[i, k]))
            )
    curve = 4 * (curve - curve.min(0).values) / (curve.max(0).values - curve.min(0).values) - 2
    x = data[torch.arange(256)].x
    gap = torch.cdist(x.double(), curve).min(1).values
    assert data.shape == (dimension,) and data.range == (-2.0, 2.0)
    assert gap.max() < float((curve[1:] - curve[:-1]).norm(dim=1).max())


def test_the_parameter_is_uniform():
    data = smooth_manifold("train", dimension=1, alpha=10.0)  # one mode is left
    assert data.waves.shape == (3, 1, 2)
    half = smooth_manifold("train", seed=2)
    t = Rng.keyed(2, "smooth-manifold", "train", items=range(4000)).uniform(1, dtype=torch.float64)
    assert abs(float(t.mean()) - 0.5) < 4 / math.sqrt(12 * 4000)
    x = half[torch.arange(4000)].x
    order = t[:, 0].argsort()
    assert (x[order][1:] - x[order][:-1]).norm(
        dim=1
    ).max() < 0.2  # neighbours in t are neighbours on the curve


def test_points_are_those_of_their_seed_and_split():
    train, test = smooth_manifold("train"), smooth_manifold("test")
    assert (len(train), len(test)) == (65536, 16384)
    rows = torch.tensor([7, 0, 65535, 7])
    assert torch.equal(train[rows].x[1:2], train[torch.tensor([0])].x)
    assert torch.equal(train[rows].x[0], train[rows].x[3])
    assert torch.equal(
        train[torch.arange(64)].x, smooth_manifold("train", train=64)[torch.arange(64)].x
    )
    x, y, other = (d[torch.arange(2048)].x for d in (train, test, smooth_manifold("train", seed=1)))
    assert x.dtype == torch.float32 and x.abs().max() <= 2
    assert (
        torch.cdist(x.double(), y.double()).min() > 1e-7
    )  # the splits share no point; in float32 the distance itself is rounded
    assert (
        torch.cdist(x, y).min(1).values.median()
        < 0.02
        < 0.1
        < torch.cdist(x, other).min(1).values.median()
    )
    with pytest.raises(RecipeError, match="train, test"):
        smooth_manifold("validation")


def test_measurements_are_the_published_ones():
    n = 4000
    rng = Rng.generator("measure")
    A = random_projection(n, (5,), rng, measurements=2)
    assert A.matrix.shape == (n, 2, 5)
    assert torch.allclose(A.matrix.norm(dim=-1), torch.ones(n, 2), atol=1e-6)
    rows = A.matrix.flatten(0, 1).double()
    second = torch.einsum("ni,nj->ij", rows, rows) / len(rows)
    assert (second - torch.eye(5) / 5).abs().max() < 4 / math.sqrt(
        len(rows)
    ) * 0.25  # isotropic: the row has no preferred direction
    assert rows.mean(0).abs().max() < 4 / math.sqrt(5 * len(rows))
    x = smooth_manifold("train")[torch.arange(n)].x
    noise = gaussian(n, (2,), rng, sigma=0.01)
    r = noise.sample(A(x), rng) - A(x)
    assert float(r.std()) == pytest.approx(0.01, rel=4 / math.sqrt(2 * r.numel()))


# The divergence


@pytest.mark.parametrize("epsilon", [1e-3, 0.1, 10.0])
def test_equal_clouds_have_none(epsilon):
    x = normal(200, 3)
    y = x[torch.randperm(200, generator=torch.Generator().manual_seed(1))]
    assert divergence(x, y, epsilon=epsilon, tol=1e-8) == pytest.approx(0, abs=1e-8 * epsilon)


@pytest.mark.parametrize("epsilon", [1e-3, 0.1, 10.0])
def test_two_points_have_their_squared_distance(epsilon):
    x, y = torch.tensor([[1.0, 2.0]]), torch.tensor([[-2.0, 6.0]])
    assert divergence(x, y, epsilon=epsilon) == pytest.approx(25.0, abs=1e-9)


@pytest.mark.parametrize("epsilon", [1e-2, 0.3, 10.0])
@pytest.mark.parametrize("shape", [(1,), (5,), (1, 2, 2)])
def test_a_translation_has_its_squared_length(epsilon, shape):
    x = normal(150, *shape)
    c = normal(*shape, seed=1)
    expected = float(c.square().sum())
    assert divergence(x, x + c, epsilon=epsilon, tol=1e-6) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_it_tends_to_the_best_assignment(seed):
    x, y = normal(6, 3, seed=seed), normal(6, 3, seed=seed + 100)
    cost = torch.cdist(x, y).square()
    best = min(
        float(cost[torch.arange(6), list(p)].mean()) for p in itertools.permutations(range(6))
    )
    assert divergence(x, y, epsilon=1e-3, tol=1e-6) == pytest.approx(best, rel=1e-4)


def test_on_a_line_it_tends_to_the_distance_of_sorted_points():
    x, y = normal(100, 1), 1.5 * normal(100, 1, seed=1) + 0.3
    best = float((x.sort(0).values - y.sort(0).values).square().mean())
    assert divergence(x, y, epsilon=1e-4, tol=1e-6) == pytest.approx(best, rel=1e-3)
    assert divergence(x, y, epsilon=1e-6, tol=1e-6) == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("epsilon", [0.5, 2.0, 20.0])
def test_it_is_what_plain_iterations_give(epsilon):
    x, y = normal(40, 2).clamp(-1.5, 1.5), 0.5 * normal(30, 2, seed=1) + 1

    def cost(a, b):
        c = torch.cdist(a, b).square()
        f, g = torch.zeros(len(a), dtype=c.dtype), torch.zeros(len(b), dtype=c.dtype)
        for _ in range(2000):
            f = -epsilon * ((g - c) / epsilon - math.log(len(b))).logsumexp(1)
            g = -epsilon * ((f[:, None] - c) / epsilon - math.log(len(a))).logsumexp(0)
        plan = ((f[:, None] + g - c) / epsilon).exp() / (len(a) * len(b))
        assert (plan.sum(1) - 1 / len(a)).abs().sum() < 1e-9
        return float((plan * c).sum() + epsilon * (plan * (plan * len(a) * len(b)).log()).sum())

    expected = cost(x, y) - cost(x, x) / 2 - cost(y, y) / 2
    assert divergence(x, y, epsilon=epsilon, tol=1e-6) == pytest.approx(expected, rel=1e-6)
    assert divergence(y, x, epsilon=epsilon, tol=1e-6) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_it_is_the_same_without_the_sparse_plan(epsilon, monkeypatch):
    x, y = normal(120, 2), normal(100, 2, seed=1)
    sparse = divergence(x, y, epsilon=epsilon, tol=1e-5)
    monkeypatch.setattr(sinkhorn, "PAIRS", 0)
    assert divergence(x, y, epsilon=epsilon, tol=1e-5) == pytest.approx(sparse, rel=1e-5)


def test_weights_count_not_numbers():
    x, y = normal(100, 2), normal(80, 2, seed=1)
    once = divergence(x, y, epsilon=0.05, tol=1e-6)
    assert divergence(torch.cat([x, x]), y, epsilon=0.05, tol=1e-6) == pytest.approx(once, rel=1e-6)
    assert divergence(
        torch.cat([x, 100 + x]), y, epsilon=0.05, samples=100, tol=1e-6
    ) == pytest.approx(once, rel=1e-6)


def test_points_far_along_a_curve():
    """Mass that must travel along a narrow curve is what plain iterations are slow for; here the
    answer is known."""
    t = torch.linspace(0, 1, 501, dtype=torch.float64)[:-1]
    x, y = t, t**1.5
    curve = [torch.stack([20 * s, torch.zeros_like(s)], 1) for s in (x, y)]
    expected = float((400 * (x - y).square()).mean())
    assert divergence(*curve) == pytest.approx(expected, rel=1e-3)


def test_the_default_knows_the_scale():
    x, y = normal(60, 3), 0.5 * normal(50, 3, seed=1) + 1
    once, more = (divergence(s * x, s * y, epsilon=None, tol=1e-6) for s in (1.0, 30.0))
    assert more == pytest.approx(900 * once, rel=1e-6)
    assert once == pytest.approx(
        divergence(x, y, epsilon=float((y - y.mean(0)).square().sum(1).mean()) / 100, tol=1e-6),
        rel=1e-9,
    )


def test_clipped_points_and_bad_ones():
    x, y = normal(50, 2).clamp(-2, 2), normal(50, 2, seed=1).clamp(-2, 2)
    far = torch.tensor([[3.0, 0.0], [0.0, -7.0]], dtype=torch.float64)
    plain = divergence(x, y, epsilon=0.05)
    assert divergence(torch.cat([far, x]), y, epsilon=0.05, clip=3.0) == pytest.approx(
        plain, rel=1e-12
    )
    assert divergence(torch.cat([far, x]), y, epsilon=0.05) > 1.5 * plain
    assert math.isnan(divergence(far, y, clip=3.0))
    for value in (math.nan, math.inf):
        bad = x.clone()
        bad[3, 1] = value
        assert math.isnan(divergence(bad, y, epsilon=0.05))
    bad = x.clone()
    bad[3, 1] = math.nan
    assert math.isnan(divergence(bad, y, epsilon=0.05, clip=3.0))
    with pytest.raises(Unsupported):
        Sinkhorn()(Outcome((-1.0, 1.0), samples=x), {})
