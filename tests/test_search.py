"""Maximisation within bounds, on functions whose maxima are known."""

from itertools import pairwise

import pytest
import torch

from invem.analysis.search import broyden_update, free_coordinates, maximise, newton_step

LOW, HIGH = torch.full((2,), -3.0).double(), torch.full((2,), 3.0).double()
HESSIAN = torch.tensor([[-2.0, 0.6], [0.6, -1.0]], dtype=torch.float64)


def quadratic(peak):
    def f(u):
        gap = u - torch.tensor(peak, dtype=torch.float64)
        return float(gap @ HESSIAN @ gap) / 2

    return f


def test_the_peak_of_a_quadratic_is_found():
    start = torch.tensor([-2.0, 2.5], dtype=torch.float64)
    found = maximise(quadratic([1.0, -0.5]), start, LOW, HIGH, 1e-6)
    assert found.converged
    assert found.u.tolist() == pytest.approx([1.0, -0.5], abs=1e-6)
    assert torch.equal(found.path[0], start) and torch.equal(found.path[-1], found.u)
    assert all(float((b - a).abs().max()) <= 0.5 + 1e-12 for a, b in pairwise(found.path))


def test_a_peak_outside_the_bounds_is_sought_on_them():
    found = maximise(quadratic([5.0, 0.0]), torch.zeros(2).double(), LOW, HIGH, 1e-6)
    # On u_0 = 3 the maximum over u_1 is where 0.6 (3 - 5) - u_1 = 0.
    assert found.converged
    assert found.u.tolist() == pytest.approx([3.0, -1.2], abs=1e-5)


def test_a_convex_start_still_leads_uphill():
    found = maximise(
        lambda u: float(u.cos().sum()), torch.full((2,), 2.8).double(), LOW, HIGH, 1e-6
    )
    assert found.u.tolist() == pytest.approx([0.0, 0.0], abs=1e-5)


def test_coordinates_at_a_bound_move_inwards_only():
    u = torch.tensor([-3.0, 3.0], dtype=torch.float64)
    free = free_coordinates(u, torch.tensor([1.0, 1.0], dtype=torch.float64), LOW, HIGH)
    assert free.tolist() == [True, False]


def test_a_newton_step_that_leads_downhill_is_replaced():
    gradient = torch.tensor([0.1, -0.2], dtype=torch.float64)
    eye, free = torch.eye(2, dtype=torch.float64), torch.ones(2, dtype=torch.bool)
    assert torch.allclose(newton_step(-eye, eye, gradient, free), gradient)
    assert torch.allclose(newton_step(2 * eye, eye, gradient, free), gradient / 2)
    assert not newton_step(eye, eye, gradient, ~free).any()
    assert float(newton_step(eye, eye, 100 * gradient, free).abs().max()) == pytest.approx(0.5)


def test_broydens_slope_explains_the_last_change_and_changes_nothing_across_it():
    slope = torch.tensor([[2.0, 0.3], [0.1, 1.0]], dtype=torch.float64)
    du, change = torch.tensor([[0.5, 0.2], [-1.0, 0.4]], dtype=torch.float64)
    new = broyden_update(slope, du, change)
    assert torch.allclose(-new @ du, change)
    across = torch.tensor([-0.2, 0.5], dtype=torch.float64)
    assert torch.allclose(new @ across, slope @ across)
