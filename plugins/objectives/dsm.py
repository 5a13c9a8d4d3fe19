"""Denoising score matching on signals: posterior draws, or a clean subset."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Gt
from torch import Tensor

from invem import Denoiser, Example, Objective, RecipeError, Rng, examples
from invem.objective import edm_weight, score_matching

_U = 1e-3  # distance of a uniform time from the ends where sigma or its weight is infinite


@examples({"weighting": "epsilon"}, {"weighting": "flow"}, {"weighting": "diem"})
@dataclass(frozen=True, kw_only=True)
class DSM(Objective):
    """Denoising score matching (Vincent 2011), the M-step of DiEM and EMDiffusion.

    The loss is E w(sigma) |D(x + sigma z, sigma) - x|^2 / d. All weightings have the same
    minimiser, E[x | x_t]. Each is a distribution of sigma and a weight, here in units of the data
    and for x_t = x + sigma z:

    - edm: log sigma ~ N(p_mean, p_std^2), w = (sigma^2 + s^2)/(sigma s)^2, s the denoiser's
      sigma_data (Karras et al. 2022, arXiv 2206.00364, table 1).
    - epsilon: |z_hat - z|^2 at uniform times of the linear schedule of DDPM, sigma from 0.01 to 152
      (Ho et al. 2020, arXiv 2006.11239, eq. 14). z_hat - z = -(D - x)/sigma, so w = 1/sigma^2.
    - flow: |v_hat - v|^2 with v = z - x on (1 - u) x + u z, u uniform in [0.001, 0.999] (rectified
      flow, Liu et al. 2022, arXiv 2209.03003, eq. 1). sigma = u/(1 - u) and v_hat - v = -(1 +
      1/sigma)(D - x), so w = (1 + 1/sigma)^2 = 1/u^2.
    - diem: sigma = 0.001 (100/0.001)^t, t ~ Beta(3, 3), w = 1/sigma^2 + 1 (DiEM, arXiv 2405.13712,
      and its code).

    EMDiffusion is arXiv 2407.01014, eq. 13; its code uses epsilon.

    Attributes:
        weighting: The distribution of the noise level and its weight.
        p_mean: The mean of log sigma; edm only.
        p_std: The standard deviation of log sigma; edm only.
    """

    weighting: Literal["edm", "epsilon", "flow", "diem"] = "edm"
    p_mean: float = -1.2
    p_std: Annotated[float, Gt(0)] = 1.2

    needs: ClassVar[frozenset[str]] = frozenset({"x"})

    def __post_init__(self) -> None:
        if self.weighting != "edm" and (self.p_mean, self.p_std) != (DSM.p_mean, DSM.p_std):
            raise RecipeError(
                f"dsm: p_mean and p_std are for weighting: edm; {self.weighting} needs neither"
            )

    def loss(self, model: Denoiser, batch: Example, rng: Rng) -> Tensor:
        x = batch.x
        if x is None:
            raise RecipeError("dsm learns from signals, and was given measurements only")
        sigma = self._sigma(x, rng)
        return score_matching(model, x, sigma, self._weight(model, sigma), rng)

    def _sigma(self, x: Tensor, rng: Rng) -> Tensor:
        ones = [1] * (x.ndim - 1)
        if self.weighting == "edm":
            return (self.p_mean + self.p_std * rng.normal(*ones).to(x)).exp()
        if self.weighting == "diem":
            t = (
                rng.uniform(5, dtype=torch.float64).median(1).values
            )  # the middle of five is Beta(3, 3)
            sigma = 1e-3 * 1e5**t
        elif self.weighting == "flow":
            u = _U + (1 - 2 * _U) * rng.uniform(1, dtype=torch.float64)
            sigma = u / (1 - u)
        else:
            u = _U + (1 - _U) * rng.uniform(1, dtype=torch.float64)
            sigma = torch.expm1(0.1 * u + 19.9 * u.square() / 2).sqrt()
        return sigma.reshape(-1, *ones).to(x)

    def _weight(self, model: Denoiser, sigma: Tensor) -> Tensor:
        if self.weighting == "edm":
            return edm_weight(model, sigma)
        if self.weighting == "flow":
            return (1 + 1 / sigma) ** 2
        return 1 / sigma**2 + float(self.weighting == "diem")
