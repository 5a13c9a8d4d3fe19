"""The fraction of samples that copy training signals."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Interval
from torch import Tensor

from invem import DataError, Metric, Outcome, Unsupported

ENTRIES = 2**23


@dataclass(frozen=True, kw_only=True)
class Memorisation(Metric):
    """The fraction of samples that are copies of a training signal.

    A copy is less than `ratio` times as far from the nearest training signal as from the second
    nearest, in Euclidean distance over all entries (T. Yoon et al., Diffusion Probabilistic Models
    Generalize when They Fail to Memorize, 2023). A sample equal to a training signal always counts.
    If signals have k intrinsic dimensions, a fresh draw from their distribution counts with a
    probability of about ratio^k: negligible for images, but 1 in 243 on a manifold of 5. Groups of
    near copies in training, such as several draws from one narrow posterior, hide memorisation:
    give one of each.

    Attributes:
        ratio: The ratio of distances below which a sample is a copy.
    """

    ratio: Annotated[float, Interval(gt=0, lt=1)] = 1 / 3
    needs: ClassVar[frozenset[str]] = frozenset({"samples", "trained"})

    @property
    def least(self) -> Mapping[str, int]:
        return {"trained": 2}

    def __call__(self, outcome: Outcome, state: Mapping[str, Tensor]) -> Tensor:
        """Returns 1 for each sample that is a copy and 0 for the others, shape (M,).

        Raises:
            DataError: If there are fewer than two training signals.
        """
        if outcome.samples is None or outcome.trained is None:
            raise Unsupported("memorisation needs samples of the prior and its training signals")
        if len(outcome.trained) < 2:
            raise DataError("memorisation needs at least two training signals")
        samples, trained = (x.flatten(1).cpu().double() for x in (outcome.samples, outcome.trained))
        size = trained.square().sum(1)
        return torch.cat(
            [
                self._copies(x, trained, size)
                for x in torch.split(samples, max(ENTRIES // len(trained), 1))
            ]
        )

    def _copies(self, x: Tensor, trained: Tensor, size: Tensor) -> Tensor:
        """Returns which of B samples are copies, shape (B,).

        Args:
            x: Samples, (B, d).
            trained: Training signals, (T, d).
            size: The squared norms of `trained`, (T,).
        """
        near: Tensor = (size - 2 * x @ trained.T).topk(2, largest=False).indices
        # The products above only select: they lose precision between near copies.
        one, two = (x[:, None] - trained[near]).square().sum(2).sqrt().sort(1).values.unbind(1)
        return ((one < self.ratio * two) | (one == 0)).float()
