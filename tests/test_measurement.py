"""Whether all observations of a batch share their operator, and their noise."""

import torch
from invem_plugins.noises.gaussian import gaussian
from invem_plugins.operators.identity import identity
from invem_plugins.operators.random_mask import random_mask

from invem import Mask, Measurement, Rng

SHAPE = (1, 4, 4)


def measurement(A, sigma=0.1, n=5):
    return Measurement(torch.zeros(n, *SHAPE), A, gaussian(n, SHAPE, Rng.generator(0), sigma=sigma))


def test_one_operator_and_one_noise_are_shared():
    fixed = Mask(SHAPE, (torch.arange(16) < 7).float().reshape(1, *SHAPE).expand(5, *SHAPE))
    for A in (identity(5, SHAPE, Rng.generator(0)), fixed):
        m = measurement(A)
        assert m.shares_operator and m.shares_operator_and_noise


def test_masks_that_differ_are_not_shared():
    m = measurement(random_mask(5, SHAPE, Rng.generator(0), keep=0.5))
    assert not m.shares_operator and not m.shares_operator_and_noise
    assert m[:1].shares_operator and m[torch.tensor([2, 2])].shares_operator_and_noise


def test_noise_levels_that_differ_are_not_shared():
    m = measurement(identity(5, SHAPE, Rng.generator(0)), sigma=[0.1, 0.4])
    assert m.shares_operator and not m.shares_operator_and_noise
