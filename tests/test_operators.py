"""Every operator of the catalogue: adjoint, linearity, indexing, pseudo-inverse, SVD, storage."""

import pytest
import torch

from invem import LinearOperator, Measurement, Rng
from invem.engine.catalog import Catalog

CATALOG = Catalog.load()
OPTIONS = {
    "gaussian-blur": [{"std": 1.0, "size": 3, "boundary": b} for b in ("reflect", "circular", "zero")],
    "random-mask": [{}, {"per": "channel"}],
}
CASES = [(name, options) for name in sorted(CATALOG.offers["operators"]) for options in OPTIONS.get(name, [{}])]
SHAPES = [(1, 8, 8), (3, 7, 6), (2, 5, 5)]


def draw(name, options, shape, n=4):
    law = CATALOG.find("operators", name).load()
    return law(n, shape, Rng.generator("operators", name), **options).to(dtype=torch.float64)


@pytest.fixture(params=SHAPES, ids=str)
def shape(request):
    return request.param


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{'-'.join(map(str, case[1].values()))}")
def A(request, shape):
    return draw(*request.param, shape)


@pytest.fixture
def x(shape):
    return torch.randn(4, *shape, generator=Rng.generator("x"), dtype=torch.float64)


@pytest.fixture
def v(A, x):
    return torch.randn(A(x).shape, generator=Rng.generator("v"), dtype=torch.float64)


def inner(a, b):
    return (a * b).flatten(1).sum(1)


def test_the_adjoint_is_the_adjoint_of_each_sample(A, x, v):
    assert isinstance(A, LinearOperator)
    assert torch.allclose(inner(A(x), v), inner(x, A.adjoint(v)), rtol=1e-10, atol=1e-12)
    assert torch.allclose(A.vjp(x, v), A.adjoint(v))
    _, auto = torch.autograd.functional.vjp(A, x, v)
    assert torch.allclose(A.adjoint(v), auto)


def test_it_is_linear_and_does_not_change_its_input(A, x):
    kept = x.clone()
    assert torch.allclose(A(2 * x - 3 * x.flip(0)), 2 * A(x) - 3 * A(x.flip(0)), atol=1e-12)
    assert torch.equal(x, kept)
    assert torch.equal(A(x), A(x))


def test_a_sample_of_the_batch_is_a_batch_of_its_own(A, x, v):
    for i in range(4):
        assert torch.allclose(A[i](x[i : i + 1]), A(x)[i : i + 1])
        assert torch.allclose(A[i].adjoint(v[i : i + 1]), A.adjoint(v)[i : i + 1])
    rows = torch.tensor([2, 0, 2])
    assert torch.allclose(A[rows](x[rows]), A(x)[rows])


def test_the_pseudo_inverse_and_the_svd(A, x, v):
    if "pinv" in A.provides:
        # A blur treats singular values below 1e-4 of the largest as zero.
        assert torch.allclose(A(A.pinv(A(x))), A(x), atol=5e-4 if hasattr(A, "rcond") else 1e-8)
        assert torch.allclose(A.pinv(A(A.pinv(v))), A.pinv(v), atol=1e-6)
    if "svd" in A.provides:
        svd = A.svd()
        r = svd.s.shape[1]
        assert bool((svd.s >= -1e-12).all())
        assert torch.allclose(svd.u(svd.s * svd.vt(x)[:, :r]), A(x), atol=1e-9)
        assert torch.allclose(svd.v(svd.vt(x)), x, atol=1e-9)
        assert torch.allclose(inner(svd.ut(v), svd.ut(v)), inner(svd.u(svd.ut(v)), v), atol=1e-9)


def test_its_tensors_are_all_of_its_state(A, x):
    tensors = {name: tensor.clone() for name, tensor in A.tensors().items()}
    blank = A.with_tensors({name: torch.zeros_like(tensor) for name, tensor in tensors.items()})
    assert torch.equal(blank.with_tensors(tensors)(x), A(x))
    assert A.to(dtype=torch.float32)(x.float()).dtype == torch.float32


def test_a_law_is_its_generator(shape):
    for name, options in CASES:
        one, two = (draw(name, options, shape).tensors() for _ in range(2))
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_the_score_of_a_measurement_is_the_gradient_of_its_likelihood(A, x):
    noise = CATALOG.find("noises", "gaussian").load()(4, tuple(A(x).shape[1:]), Rng.generator("noise"), sigma=0.3)
    noise = noise.to(dtype=torch.float64)
    m = Measurement(noise.sample(A(x), Rng.generator("y")), A, noise)
    at = (x + 0.1).requires_grad_()
    (expected,) = torch.autograd.grad(m.log_prob(at).sum(), at)
    assert torch.allclose(m.score(x + 0.1), expected, atol=1e-9)
    moved = m.with_tensors({**m.tensors(), "y": m.y + torch.arange(4.0).reshape(-1, *[1] * (m.y.ndim - 1))})
    assert bool((m.log_prob(x)[1:] != moved.log_prob(x)[1:]).all()) and m.log_prob(x)[0] == moved.log_prob(x)[0]


def test_it_moves_to_another_device(A, x, v):
    away = A.to("meta")
    assert away(x.to("meta")).shape == v.shape
    assert away.adjoint(v.to("meta")).shape == x.shape
    assert away(x.to("meta")).device.type == away.adjoint(v.to("meta")).device.type == "meta"
