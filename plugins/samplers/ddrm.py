"""DDRM: denoising diffusion restoration models."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Interval, Le
from torch import Tensor

from invem import Karras, Measurement, PosteriorSampler, Prior, Rng, Schedule


@dataclass(frozen=True, kw_only=True)
class DDRM(PosteriorSampler):
    """DDRM, denoising diffusion restoration models (arXiv 2201.11793), for linear A with an SVD.

    Kawar et al. 2022, eq. 7 and 8, for Gaussian noise of one level. It needs no vector-Jacobian
    product of the network.

    In the singular basis let kappa = noise/singular value. A coordinate that y does not show takes
    a free step. One that y knows less precisely than the diffusion is pulled towards y. One that y
    knows more precisely is replaced. The distribution of the result depends on the number of steps.

    Attributes:
        steps: The number of noise levels, one denoiser call each (paper: 20).
        eta: The share of new noise in a step.
        eta_b: The share of y in a coordinate that y knows more precisely.
        schedule: The noise levels.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"svd", "var", "one level"})

    steps: Annotated[int, Ge(2), Le(100_000)] = 20
    eta: Annotated[float, Interval(ge=0, le=1)] = 0.85
    eta_b: Annotated[float, Interval(ge=0, le=1)] = 1.0
    schedule: Schedule = Karras()

    @property
    def cost(self) -> tuple[int, int]:
        return self.steps, 0

    @torch.no_grad()
    def __call__(self, prior: Prior, m: Measurement, rng: Rng) -> Tensor:
        sigmas: list[float] = self.schedule.grid(self.steps).tolist()
        svd = m.A.svd()
        kappa, known = m.spectral_noise(svd), m.spectral_data(svd)
        free = kappa.isinf()
        e = svd.vt(rng.normal(*m.shape).to(m.y))
        fine = sigmas[0] >= kappa
        z = torch.where(
            fine, known + (sigmas[0] ** 2 - kappa**2).clamp(min=0).sqrt() * e, sigmas[0] * e
        )
        z = torch.where(free, sigmas[0] * e, z)
        kept = (1 - self.eta**2) ** 0.5
        for sigma, s in pairwise(sigmas):
            g, e = svd.vt(prior(svd.v(z), sigma)), svd.vt(rng.normal(*m.shape).to(m.y))
            coarse = g + kept * s * (known - g) / kappa.clamp(min=1e-12) + self.eta * s * e
            replaced = (
                (1 - self.eta_b) * g
                + self.eta_b * known
                + (s**2 - (self.eta_b * kappa) ** 2).clamp(min=0).sqrt() * e
            )
            z = torch.where(
                free,
                g + kept * s / sigma * (z - g) + self.eta * s * e,
                torch.where(s >= kappa, replaced, coarse),
            )
        return prior(svd.v(z), sigmas[-1])
