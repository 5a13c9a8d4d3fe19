"""The order of examples: permutations that are found from a step alone."""

import torch
from torch import Tensor

from invem.batched import Rng

__all__ = ["batch_of_step"]


def batch_of_step(n: int, batch: int, step: int, *key: int | str) -> Tensor:
    """Returns the examples of one step: a permutation for each pass, found from the step alone.

    Args:
        n: The number of examples.
        batch: The number of examples of a step.
        step: The step, from 0.
        key: The seed, and what the permutations are for.
    """
    places = torch.arange(step * batch, (step + 1) * batch)
    out = torch.empty_like(places)
    for epoch in range(int(places[0]) // n, int(places[-1]) // n + 1):
        order = torch.randperm(n, generator=Rng.generator(key[0], "order", *key[1:], epoch))
        mine = places // n == epoch
        out[mine] = order[places[mine] % n]
    return out
