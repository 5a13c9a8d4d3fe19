"""The flow of a stochastic interpolant, from the measurement to a signal."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from invem import Measurement, PosteriorSampler, Prior, Rng, Unsupported
from invem.diffusion import count_calls, integrate

from .interpolant import InterpolantConditioning


@dataclass(frozen=True, kw_only=True)
class InterpolantFlow(PosteriorSampler):
    """The flow of a stochastic interpolant, from the measurement I_1 to the signal I_0.

    It integrates dI/dt = (I - E[x | I_t])/t. I_1 is the measurement plus the jitter of the
    objective. After `sfbd-omni` (arXiv 2512.17051) the draws are of p(x | y). After `scsi` (arXiv
    2512.10857) they have the distribution of x over all observations. Only the start ties a draw to
    its y.

    The steps are t = cos(pi k/(2 steps)). They are finer near 1, where a small jitter grows to the
    standard deviation of x.

    Attributes:
        steps: Steps from t = 1 to 0 (SCSI: 64 equal Euler steps).
        stepping: The integration rule.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"interpolant", "signal"})

    steps: Annotated[int, Ge(2), Le(100_000)] = 24
    stepping: Literal["euler", "heun"] = "heun"

    @property
    def cost(self) -> tuple[int, int]:
        return count_calls(self.stepping, self.steps), 0

    @torch.no_grad()
    def __call__(self, prior: Prior, m: Measurement, rng: Rng) -> Tensor:
        flow = prior.conditioning
        if not isinstance(flow, InterpolantConditioning):
            raise Unsupported(
                "it needs a prior that knows an interpolant: train one by scsi or sfbd-omni"
            )
        cond = flow(m)

        def denoise(x_t: Tensor, t: float) -> Tensor:
            x_hat: Tensor = prior(x_t, t, cond)
            return x_hat

        times = torch.cos(
            torch.arange(self.steps, dtype=torch.float64) * (math.pi / 2 / self.steps)
        )
        return integrate(self.stepping, denoise, flow.first(m, rng), times, rng)
