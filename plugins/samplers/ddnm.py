"""DDNM: denoising diffusion null-space models."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Interval, Le
from torch import Tensor

from invem import ChainSampler, Karras, Measurement, Prior, Rng, Schedule
from invem.diffusion import initial_state

_Step = Callable[[Tensor, float, float], Tensor]  # (x_t, sigma, s) -> x_s


@dataclass(frozen=True, kw_only=True)
class DDNM(ChainSampler):
    """DDNM, denoising diffusion null-space models (arXiv 2212.00490), for linear A.

    Wang et al. 2023. It needs no vector-Jacobian product of the network. The component of x_hat in
    the range of A^T is replaced by that of y: x_hat <- A^+ y + (I - A^+ A) x_hat (algorithm 1).

    With `plus` (DDNM+, algorithm 2) this is done in the singular basis, for Gaussian noise of one
    level. A coordinate is replaced fully while the diffusion is noisier than y there, and partly
    after that. The noise of y is subtracted from the noise of the step. With `travel`, steps are
    undone and repeated.

    Attributes:
        steps: The number of noise levels, 1 + `travel` denoiser calls each.
        plus: Whether to use DDNM+. Without it the noise of y stays in the result.
        eta: The share of new noise in a step.
        travel: How often each step is undone by new noise and repeated.
        schedule: The noise levels.
    """

    steps: Annotated[int, Ge(2), Le(100_000)] = 100
    plus: bool = True
    eta: Annotated[float, Interval(ge=0, le=1)] = 0.85
    travel: Annotated[int, Ge(0)] = 0
    schedule: Schedule = Karras()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"svd", "var", "one level"} if self.plus else {"pinv"})

    @property
    def cost(self) -> tuple[int, int]:
        return (self.steps - 1) * (1 + self.travel) + 1, 0

    @torch.no_grad()
    def __call__(
        self, prior: Prior, m: Measurement, rng: Rng, start: Tensor | None = None
    ) -> Tensor:
        sigmas: list[float] = self.schedule.grid(self.steps).tolist()
        step = self._plus(prior, m, rng) if self.plus else self._plain(prior, m, rng)
        x_t = initial_state(prior, sigmas[0], rng, m.shape, m.y, start)
        for sigma, s in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
            for again in reversed(range(1 + (self.travel if s else 0))):
                x_s = step(x_t, sigma, s)
                x_t = x_s + (sigma**2 - s**2) ** 0.5 * rng.normal_like(x_t) if again else x_s
        return x_t

    def _plain(self, prior: Prior, m: Measurement, rng: Rng) -> _Step:
        known = m.A.pinv(m.y)

        def step(x_t: Tensor, sigma: float, s: float) -> Tensor:
            x_hat = prior(x_t, sigma)
            x = known + x_hat - m.A.pinv(m.A(x_hat))
            return (
                x
                + s
                * ((1 - self.eta**2) ** 0.5 * (x_t - x) / sigma + self.eta * rng.normal_like(x_t))
                if s
                else x
            )

        return step

    def _plus(self, prior: Prior, m: Measurement, rng: Rng) -> _Step:
        svd = m.A.svd()
        kappa, known = m.spectral_noise(svd), m.spectral_data(svd)
        kept = (1 - self.eta**2) ** 0.5

        def step(x_t: Tensor, sigma: float, s: float) -> Tensor:
            z, g = svd.vt(x_t), svd.vt(prior(x_t, sigma))
            level = s or sigma  # the last estimate is corrected at the last noise level
            free = kappa.isinf()
            fine = level >= kappa
            share = torch.where(
                free, 0.0, torch.where(fine, 1.0, level * kept / kappa.clamp(min=1e-12))
            )
            x = g + share * (known - g)
            if not s:
                return svd.v(x)
            old = torch.where(free, s * kept / sigma * (z - g), 0.0)
            new = torch.where(
                fine & ~free, (s**2 - kappa**2).clamp(min=0), (self.eta * s) ** 2
            ).sqrt()
            return svd.v(x + old + new * rng.normal_like(x))

        return step
