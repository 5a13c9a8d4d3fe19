"""The observation itself as a restoration."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invem import Measurement, PosteriorSampler, Prior, Rng


@dataclass(frozen=True, kw_only=True)
class Observation(PosteriorSampler):
    """The observation as a restoration: y if it has the shape of the signal, otherwise A^T y.

    It is the initialisation of EM in SCSI (arXiv 2512.10857), and in EMDiffusion on masks (arXiv
    2407.01014, table 4, "preprocessed").

    Entries of y that do not depend on the signal are set to zero. A^T y means J^T y with J the
    derivative of A at zero, which is A for a linear A.

    Attributes:
        back: Whether to return A^T y even if y has the shape of the signal, as it can in Fourier
            space.
        scaled: Whether to multiply A^T y by the number that brings its measurement closest to y.
            The adjoint alone does not keep brightness.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"vjp"})
    uses_prior: ClassVar[bool] = False

    back: bool = False
    scaled: bool = False

    @torch.no_grad()
    def __call__(self, prior: Prior, m: Measurement, rng: Rng) -> Tensor:
        y = m.y if m.A.seen is None else m.y * m.A.seen
        if y.shape[1:] == torch.Size(m.shape) and not self.back:
            return y
        zero = y.new_zeros(len(m), *m.shape)
        x = m.A.vjp(zero, y)
        if not self.scaled:
            return x
        shown = (m.A(x) - m.A(zero)).flatten(1)
        scale = (shown * y.flatten(1)).sum(1) / shown.square().sum(1).clamp(
            min=torch.finfo(x.dtype).tiny
        )
        return scale.reshape(-1, *[1] * (x.ndim - 1)) * x
