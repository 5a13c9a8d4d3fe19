"""The noise levels of variance-preserving diffusion."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt, Interval
from torch import Tensor

from invem import RecipeError, Schedule


@dataclass(frozen=True, kw_only=True)
class VP(Schedule):
    """The noise levels of DDPM (variance-preserving diffusion), in x_t = x + sigma z.

        sigma^2 = (1 - abar)/abar,   abar(u) = exp(-beta_min u - (beta_max - beta_min) u^2 / 2)

    in steps of equal u from 1 down to u_min (Ho et al. 2020, arXiv 2006.11239; Song et al. 2021,
    arXiv 2011.13456, eq. 33). The defaults are the linear schedule of 1,000 steps with beta from
    1e-4 to 0.02: sigma from 152 down to 0.01.

    Attributes:
        beta_min: The rate at u = 0, 1,000 times the first beta of DDPM.
        beta_max: The rate at u = 1.
        u_min: The last time.
    """

    beta_min: Annotated[float, Gt(0)] = 0.1
    beta_max: Annotated[float, Gt(0)] = 20.0
    u_min: Annotated[float, Interval(gt=0, lt=1)] = 1e-3

    def __post_init__(self) -> None:
        if self.beta_max < self.beta_min:
            raise RecipeError(
                f"beta_min must be at most beta_max, got {self.beta_min} and {self.beta_max}"
            )

    def sigma(self, t: Tensor) -> Tensor:
        u = 1 - t * (1 - self.u_min)
        return torch.expm1(
            self.beta_min * u + (self.beta_max - self.beta_min) * u.square() / 2
        ).sqrt()
