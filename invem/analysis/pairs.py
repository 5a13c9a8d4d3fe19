"""Covariances: which pairs of directions some operator shows together."""

from dataclasses import dataclass

import torch
from torch import Tensor

from invem.analysis.operators import HIDDEN
from invem.batched import Rng

__all__ = ["Pairs", "random_choice", "seen_together", "unseen_second_moments"]

_MOST_DIRECTIONS = 1024  # the most directions whose pairs are counted
_EXPECTED = 15  # a pair counts as never seen together if so many sightings were expected
_MOST_ROWS = 8192  # the most second moments of the observations


@dataclass(frozen=True)
class Pairs:
    """Which pairs of directions are seen together by an operator.

    Attributes:
        of: The noun for the pairs: "pixels", "entries", "directions" or "second moments"; "" if no
            pairs were examined.
        apart: The fraction of pairs of seen directions that no operator shows together. Of second
            moments, the fraction that no observation depends on.
        together: The fraction of operators that show a pair: the least and the mean over pairs;
            None if not computed.
        complete: Whether `apart` = 0 means that no covariance is hidden.
    """

    of: str = ""
    apart: float = 0.0
    together: tuple[float, float] | None = None
    complete: bool = True


def random_choice(index: Tensor, most: int) -> Tensor:
    """Returns `most` of the indices at random, or all if there are fewer. index: shape (k,)."""
    return index[torch.randperm(len(index), generator=Rng.generator("identify", "pairs"))[:most]]


def seen_together(of: str, power: Tensor, total: int) -> Pairs:
    """Counts the pairs of directions that operators show together.

    At most 1,024 directions are examined, chosen at random. If the k operators are fewer than those
    of all observations, a pair that none of them shows is not proved to be never seen. It counts as
    never seen if operators that show its two directions independently would show it 15 times on
    average. Other such pairs make the result incomplete.

    Args:
        of: The noun for the directions.
        power: |A_i v_p|^2 for operator i and direction p, shape (k, d).
        total: The number of operators of all observations.
    """
    mean = power.mean(0)
    threshold = HIDDEN * mean.max()
    index = random_choice((mean > threshold).nonzero()[:, 0], _MOST_DIRECTIONS)
    if len(index) < 2:
        return Pairs(of)
    shown = (power[:, index] > threshold).float()
    a, b = torch.triu_indices(len(index), len(index), 1).unbind()
    share = (shown.T @ shown / len(shown))[a, b]
    none = share == 0
    never = none
    if len(power) < total:
        each = shown.mean(0)
        never = none & (len(power) * each[a] * each[b] > _EXPECTED)
    return Pairs(
        of,
        float(never.double().mean()),
        (float(share.min()), float(share.mean())),
        bool((never == none).all()),
    )


def unseen_second_moments(matrices: Tensor) -> float:
    """Returns the fraction of the second moments of d directions that no A C A^T depends on.

    matrices: shape (k, m, d).
    """
    d = matrices.shape[2]
    if matrices.shape[1] > d:
        matrices = torch.linalg.qr(matrices).R
    m = matrices.shape[1]
    p, q = torch.triu_indices(d, d)
    a, b = torch.triu_indices(m, m)
    total = torch.zeros(len(p), len(p), dtype=torch.float64)
    for one in matrices[: max(1, _MOST_ROWS // len(a))]:
        products = one[a][:, p] * one[b][:, q] + one[a][:, q] * one[b][:, p]
        products = (
            products
            * torch.where(p == q, 0.5, 0.5**0.5)
            * torch.where(a == b, 1.0, 2**0.5)[:, None]
        )
        total += products.T @ products
    values = torch.linalg.eigvalsh(total)
    return float((values < 1e-10 * values[-1]).double().mean())
