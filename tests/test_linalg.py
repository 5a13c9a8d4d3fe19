"""Krylov solvers and diagonal-plus-low-rank covariances, against dense linear algebra."""

import math
from itertools import pairwise

import pytest
import torch

from invem import Rng
from invem.linalg import DPLR, cg, gmres, sqrt_matvec

torch.set_num_threads(1)

DTYPES = {torch.float64: 1e-8, torch.float32: 2e-4}
B, D = 10, 6


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def nonsymmetric(dtype=torch.float64, seed=0):
    return randn(B, D, D, seed=seed, dtype=dtype) + 4 * torch.eye(D, dtype=dtype)


def spd(dtype=torch.float64, seed=0):
    g = randn(B, D, D, seed=seed, dtype=dtype)
    return g @ g.mT / D + 0.3 * torch.eye(D, dtype=dtype)


def apply(m):
    return lambda v: torch.einsum("bij,bj->bi", m, v)


def residual(m, x, b):
    return (b - apply(m)(x)).norm(dim=1)


def relative(a, b):
    return float(((a - b).norm(dim=1) / b.norm(dim=1)).max())


def solve_gmres(matvec, b, iterations):
    return gmres(matvec, b, iterations).x


def solve_cg(matvec, b, iterations):
    return cg(matvec, b, iterations).x


SOLVERS = pytest.mark.parametrize("solver", [solve_gmres, solve_cg], ids=["gmres", "cg"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_gmres_solves_a_nonsymmetric_system(dtype):
    m, b = nonsymmetric(dtype), randn(B, D, seed=1, dtype=dtype)
    assert relative(gmres(apply(m), b, D).x, torch.linalg.solve(m, b)) < DTYPES[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_cg_solves_a_positive_definite_system(dtype):
    m, b = spd(dtype), randn(B, D, seed=1, dtype=dtype)
    assert relative(cg(apply(m), b, 3 * D, tol=1e-12).x, torch.linalg.solve(m, b)) < DTYPES[dtype]


@SOLVERS
@pytest.mark.parametrize("dtype", DTYPES)
def test_solver_keeps_the_dtype(solver, dtype):
    assert solver(apply(spd(dtype)), randn(B, D, dtype=dtype), 3).dtype == dtype


def test_cg_from_a_first_guess_reaches_the_solution():
    m, b = spd(), randn(B, D, seed=1)
    x = cg(apply(m), b, 3 * D, tol=1e-12, x0=randn(B, D, seed=2)).x
    assert relative(x, torch.linalg.solve(m, b)) < 1e-8


def test_cg_stops_at_the_tolerance():
    m, b = spd(), randn(B, D, seed=1)
    out = cg(apply(m), b, 100, tol=1e-3)
    assert bool((residual(m, out.x, b) <= 1.001e-3 * b.norm(dim=1)).all())
    assert int(out.iterations.max()) <= D


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(5))
def test_gmres_residual_never_grows(dtype, seed):
    m, b = randn(B, D, D, seed=seed, dtype=dtype), randn(B, D, seed=100 + seed, dtype=dtype)
    norms = [b.norm(dim=1)] + [residual(m, gmres(apply(m), b, k).x, b) for k in range(1, 2 * D)]
    slack = 1e-9 if dtype == torch.float64 else 1e-3
    for before, after in pairwise(norms):
        assert bool((after <= before + slack * norms[0]).all())


@pytest.mark.parametrize("iterations", [1, 3, 6, 9])
def test_gmres_weights_combine_the_vectors_that_were_multiplied(iterations):
    m, b, seen = nonsymmetric(), randn(B, D, seed=1), []

    def matvec(v):
        seen.append(v)
        return apply(m)(v)

    x, weights = gmres(matvec, b, iterations)
    assert len(seen) == iterations
    torch.testing.assert_close(torch.einsum("kbd,bk->bd", torch.stack(seen), weights), x)


def test_gmres_basis_is_orthonormal():
    m, b, seen = nonsymmetric(), randn(B, D, seed=1), []

    def matvec(v):
        seen.append(v)
        return apply(m)(v)

    gmres(matvec, b, 4)
    q = torch.stack(seen, 1)
    torch.testing.assert_close(q @ q.mT, torch.eye(4, dtype=q.dtype).expand(B, 4, 4))


def test_cg_flags_negative_curvature():
    m = spd()
    m[3] = -m[3]
    out = cg(apply(m), randn(B, D, seed=1), 20, tol=1e-10)
    assert out.negative.tolist() == [i == 3 for i in range(B)]


def test_cg_is_finite_after_negative_curvature():
    m = randn(B, D, D)
    out = cg(apply(m + m.mT), randn(B, D, seed=1), 50)
    assert bool(out.negative.any())
    assert bool(out.x.isfinite().all())


def test_cg_keeps_the_last_iterate_at_negative_curvature():
    m = -spd()
    torch.testing.assert_close(
        cg(apply(m), randn(B, D), 5).x, torch.zeros(B, D, dtype=torch.float64)
    )


@SOLVERS
@pytest.mark.parametrize("dtype", DTYPES)
def test_other_rows_do_not_move_a_row(solver, dtype):
    m, b = spd(dtype), randn(B, D, seed=1, dtype=dtype)
    changed = b.clone()
    changed[1] = 1000 * changed[1].flip(0)
    assert torch.equal(solver(apply(m), b, 4)[0], solver(apply(m), changed, 4)[0])


@SOLVERS
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_batch_of_one_agrees_with_a_batch_of_ten(solver, dtype):
    m, b = spd(dtype), randn(B, D, seed=1, dtype=dtype)
    alone = torch.cat([solver(apply(m[i : i + 1]), b[i : i + 1], 4) for i in range(B)])
    torch.testing.assert_close(solver(apply(m), b, 4), alone, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gmres_survives_a_happy_breakdown(dtype):
    b = randn(B, D, dtype=dtype)
    torch.testing.assert_close(gmres(lambda v: 2.5 * v, b, 5).x, b / 2.5)


def test_cg_stops_after_one_iteration_on_a_multiple_of_the_identity():
    out = cg(lambda v: 2.5 * v, randn(B, D), 5, tol=1e-10)
    assert out.iterations.tolist() == [1] * B


@SOLVERS
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_right_hand_side_gives_zero(solver, dtype):
    m, b = spd(dtype), randn(B, D, dtype=dtype)
    b[2] = 0
    x = solver(apply(m), b, 4)
    assert bool(x.isfinite().all())
    assert torch.equal(x[2], torch.zeros(D, dtype=dtype))


@SOLVERS
def test_zero_matrix_is_finite(solver):
    assert bool(solver(torch.zeros_like, randn(B, D), 3).isfinite().all())


def test_solvers_do_not_modify_the_right_hand_side():
    b = randn(B, D)
    before = b.clone()
    gmres(apply(spd()), b, 3)
    cg(apply(spd()), b, 3)
    assert torch.equal(b, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sqrt_matvec_is_the_matrix_square_root(dtype):
    m, v = spd(dtype), randn(B, D, seed=1, dtype=dtype)
    values, vectors = torch.linalg.eigh(m)
    root = vectors @ torch.diag_embed(values.sqrt()) @ vectors.mT
    assert relative(sqrt_matvec(apply(m), v, D), apply(root)(v)) < DTYPES[dtype]


def test_sqrt_matvec_needs_as_many_products_as_distinct_eigenvalues():
    scale = torch.tensor([1.0, 1.0, 1.0, 4.0, 4.0, 4.0], dtype=torch.float64)
    v = randn(B, D)
    torch.testing.assert_close(sqrt_matvec(lambda u: scale * u, v, 2), scale.sqrt() * v)


def test_sqrt_matvec_survives_a_breakdown():
    v = randn(B, D)
    torch.testing.assert_close(sqrt_matvec(lambda u: 9 * u, v, 5), 3 * v)


def test_sqrt_matvec_of_zero_is_zero():
    assert torch.equal(
        sqrt_matvec(apply(spd()), torch.zeros(B, D).double(), 3), torch.zeros(B, D).double()
    )


def test_sqrt_matvec_drops_negative_eigenvalues():
    scale = torch.tensor([-1.0, 1.0, 1.0, 4.0, 4.0, 4.0], dtype=torch.float64)
    v = randn(B, D)
    torch.testing.assert_close(
        sqrt_matvec(lambda u: scale * u, v, D), scale.clamp(min=0).sqrt() * v
    )


def covariance(rank=2, dtype=torch.float64):
    return DPLR(randn(D, seed=5, dtype=dtype).abs() + 0.2, randn(D, rank, seed=6, dtype=dtype))


RANKS = pytest.mark.parametrize("rank", [0, 2, 6])


@RANKS
def test_dplr_product(rank):
    c, v = covariance(rank), randn(B, D)
    torch.testing.assert_close(c(v), v @ c.dense())


def test_dplr_dense():
    c = covariance()
    torch.testing.assert_close(c.dense(), torch.diag(c.diag) + c.factor @ c.factor.T)


@RANKS
@pytest.mark.parametrize("var", [0.0, 0.7, 100.0])
def test_dplr_solve_with_one_variance(rank, var):
    c, v = covariance(rank), randn(B, D)
    dense = c.dense() + var * torch.eye(D, dtype=v.dtype)
    torch.testing.assert_close(c.solve(v, var), torch.linalg.solve(dense, v.T).T)


@RANKS
def test_dplr_solve_with_a_variance_for_each_sample(rank):
    c, v = covariance(rank), randn(B, D)
    var = torch.linspace(0.1, 3, B, dtype=torch.float64)[:, None]
    dense = c.dense() + var[:, :, None] * torch.eye(D, dtype=v.dtype)
    torch.testing.assert_close(c.solve(v, var), torch.linalg.solve(dense, v))


@RANKS
@pytest.mark.parametrize("sigma", [0.01, 0.5, 20.0])
def test_dplr_given_is_the_covariance_after_a_noisy_look(rank, sigma):
    c = covariance(rank)
    exact = torch.linalg.inv(
        torch.linalg.inv(c.dense()) + torch.eye(D, dtype=torch.float64) / sigma**2
    )
    torch.testing.assert_close(c.given(sigma).dense(), exact)


@pytest.mark.parametrize("sigma", [0.005, 0.5, 20.0])
def test_dplr_given_in_single_precision(sigma):
    c = covariance(dtype=torch.float32)
    exact = covariance().given(sigma).dense()
    assert float((c.given(sigma).dense() - exact).norm() / exact.norm()) < 1e-5


def test_dplr_draws_have_its_covariance():
    c, n = covariance(), 20000
    x = c.draw(Rng.keyed(0, items=range(n))).double()
    values = torch.linalg.eigvals(torch.linalg.solve(c.dense(), x.T @ x / n)).real
    edge = 1.5 * 2 * math.sqrt(D / n)
    assert 1 - edge < float(values.min()) <= float(values.max()) < 1 + edge


def test_one_sample_that_is_not_finite_harms_no_other():
    torch.manual_seed(0)
    matrix = torch.eye(4) + 0.1 * torch.randn(4, 4)
    b = torch.randn(3, 4)
    spoilt = b.clone()
    spoilt[1] = torch.nan
    for solve in (
        lambda v: gmres(lambda u: u @ matrix.T, v, 3).x,
        lambda v: sqrt_matvec(lambda u: u @ (matrix @ matrix.T), v, 3),
    ):
        good, found = solve(b), solve(spoilt)
        assert torch.allclose(found[[0, 2]], good[[0, 2]])
        assert bool(found[1].isnan().all())


def test_the_determinant_of_low_rank_plus_diagonal():
    cov = DPLR(
        torch.linspace(0.5, 2, 6, dtype=torch.float64),
        torch.randn(6, 2, generator=Rng.generator("det"), dtype=torch.float64),
    )
    assert torch.allclose(cov.logdet(), torch.logdet(cov.dense()))
