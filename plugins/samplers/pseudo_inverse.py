"""The pseudo-inverse: the restoration of least norm."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invem import Measurement, PosteriorSampler, Prior, Rng


@dataclass(frozen=True, kw_only=True)
class PseudoInverse(PosteriorSampler):
    """A^+ y: of all signals that fit y best, the one of least norm (Penrose 1955). A classical
    restoration for a first phase to begin with.

    Noise in directions that A shows faintly is divided by what is shown of them, down to the
    operator's own cut: after a blur `wiener` is the better beginning.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"pinv"})
    uses_prior: ClassVar[bool] = False

    @torch.no_grad()
    def __call__(self, prior: Prior, m: Measurement, rng: Rng) -> Tensor:
        return m.A.pinv(m.y)
