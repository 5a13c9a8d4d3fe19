"""DDRM: denoising diffusion restoration models."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from invem import Denoiser, Karras, Measurement, PosteriorSampler, Rng, Schedule


@dataclass(frozen=True, kw_only=True)
class DDRM(PosteriorSampler):
    """Denoising diffusion restoration models (Kawar et al. 2022, arXiv 2201.11793, eq. 7 and 8),
    for linear A with a singular value decomposition and Gaussian noise of one level. No product
    with the network.

    In the singular basis, with kappa = noise/singular value, a coordinate that y is blind to is
    stepped freely, one that y knows worse than the diffusion does is pulled towards y, and one that
    y knows better is replaced. Its law depends on the number of steps.

    Attributes:
        steps: Noise levels, one call of the denoiser each (paper: 20).
        eta: The share of new noise in a step.
        eta_b: How much of y replaces a coordinate that it knows better.
        schedule: The noise levels.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"svd", "var"})

    steps: Annotated[int, Ge(2)] = 20
    eta: Annotated[float, Interval(ge=0, le=1)] = 0.85
    eta_b: Annotated[float, Interval(ge=0, le=1)] = 1.0
    schedule: Schedule = Karras()

    @property
    def cost(self) -> tuple[int, int]:
        return self.steps, 0

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser, m: Measurement, rng: Rng) -> Tensor:
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
            g, e = svd.vt(denoiser(svd.v(z), sigma)), svd.vt(rng.normal(*m.shape).to(m.y))
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
        x_hat: Tensor = denoiser(svd.v(z), sigmas[-1])
        return x_hat
