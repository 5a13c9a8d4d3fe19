"""Structure in what the restorations leave of the observations."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invem import Metric, Outcome, Unsupported


@dataclass(frozen=True, kw_only=True)
class ResidualCorrelation(Metric):
    """The correlation of neighbouring pixels of (y - A(x)) / sigma.

    A draw x of the true posterior leaves the noise, whose pixels are independent: 0. Structure in
    the residual was taken from the signal, or is noise that is not independent.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"draws", "measurement", "var", "image"})
    default: ClassVar[bool] = True
    higher_is_better: ClassVar[bool | None] = None
    below: ClassVar[str] = (
        "what was removed is sharper than noise: the assumed blur is too wide, or too narrow"
    )
    above: ClassVar[str] = (
        "what was removed has structure: the restorations are too smooth, the noise of neighbouring"
        " pixels is not independent, or the assumed blur is not the true one"
    )

    @property
    def target(self) -> float:
        """0: the noise of one pixel says nothing of the next."""
        return 0.0

    def __call__(self, outcome: Outcome, state: Mapping[str, Tensor]) -> Tensor:
        """Returns correlations in [-1, 1], shape (N,)."""
        if outcome.draws is None or outcome.measurement is None:
            raise Unsupported("residual-correlation needs posterior draws and the measurements")
        m = outcome.measurement
        std = m.noise.var().sqrt()
        draws = outcome.draws.unbind(1)
        return torch.stack([_neighbours((m.y - m.A(x)) / std) for x in draws]).mean(0)


def _neighbours(r: Tensor) -> Tensor:
    """Returns the mean product of neighbours over the mean square, (B,). r: (B, C, H, W), or (B, m)
    where observations are no images."""
    pairs = [(r[..., 1:] * r[..., :-1].conj()).real.flatten(1)]
    if r.ndim == 4:
        pairs.append((r[..., 1:, :] * r[..., :-1, :].conj()).real.flatten(1))
    products = torch.cat(pairs, 1)
    if not products.shape[1]:
        return torch.zeros(len(r), device=r.device)
    power = r.abs().square().flatten(1).mean(1)
    return products.mean(1) / power.clamp(min=torch.finfo(power.dtype).tiny)
