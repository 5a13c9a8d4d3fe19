"""The pseudo-inverse: the least-squares restoration of least norm."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invem import Measurement, PosteriorSampler, Prior, Rng


@dataclass(frozen=True, kw_only=True)
class PseudoInverse(PosteriorSampler):
    """A^+ y: of all signals that fit y best, the one of least norm (Penrose 1955).

    It is a classical restoration, for the first phase. Noise in directions of small singular values
    is amplified, down to the cutoff of the operator. After a blur, `wiener` is the better
    initialisation.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"pinv"})
    uses_prior: ClassVar[bool] = False

    @torch.no_grad()
    def __call__(self, prior: Prior, m: Measurement, rng: Rng) -> Tensor:
        return m.A.pinv(m.y)
