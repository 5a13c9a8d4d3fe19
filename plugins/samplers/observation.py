"""The noisy data themselves."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invem import Measurement, PosteriorSampler, Prior, Rng


@dataclass(frozen=True, kw_only=True)
class Observation(PosteriorSampler):
    """y where it has the shape of the signal, A^T y otherwise: what EM begins with in SCSI (arXiv
    2512.10857), and in EMDiffusion on masks (arXiv 2407.01014, table 4, "preprocessed").

    Entries of y that no signal has a part in are set to zero. A^T y is J^T y with J the derivative
    of A at zero, which is A where A is linear.

    Attributes:
        back: Whether A^T y is taken of every y, those of the shape of the signal too, as those in
            Fourier space can be.
        scaled: Whether A^T y is multiplied by the number that makes A of it nearest to y: the
            adjoint alone does not keep brightness.
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
