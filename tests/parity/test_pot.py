"""The metric `sinkhorn` against POT (Flamary et al., JMLR 22, 2021): the same divergence from the
plans of an independent solver."""

import numpy as np
import pytest
import torch
from invem_plugins.metrics.sinkhorn import Sinkhorn

from invem import Outcome

ot = pytest.importorskip("ot")


def cost(x, y, epsilon):
    """<P, C> + epsilon KL(P | a b^T) of the plan that POT finds."""
    a, b = np.full(len(x), 1 / len(x)), np.full(len(y), 1 / len(y))
    C = ot.dist(x, y, metric="sqeuclidean")
    P = ot.bregman.sinkhorn_log(a, b, C, epsilon, numItermax=20_000, stopThr=1e-11)
    kept = P > 0
    kl = (P[kept] * np.log(P[kept] / np.outer(a, b)[kept])).sum()
    return (P * C).sum() + epsilon * kl


@pytest.mark.parametrize("epsilon", [0.05, 0.5])
@pytest.mark.parametrize("n, m, d", [(40, 40, 2), (60, 45, 8)])
def test_the_divergence_is_that_of_pot(n, m, d, epsilon):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, d)), 0.7 * rng.normal(size=(m, d)) + 0.5
    x, y = x.astype(np.float32).astype(float), y.astype(np.float32).astype(float)
    wanted = cost(x, y, epsilon) - (cost(x, x, epsilon) + cost(y, y, epsilon)) / 2
    outcome = Outcome(
        (-1.0, 1.0), samples=torch.tensor(x).float(), reference=torch.tensor(y).float()
    )
    found = float(Sinkhorn(epsilon=epsilon, tol=1e-7)(outcome, {}))
    assert found == pytest.approx(wanted, rel=1e-4)
