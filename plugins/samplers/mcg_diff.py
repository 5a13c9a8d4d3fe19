"""MCG-diff: sequential Monte Carlo in the singular basis."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor

from invem import Karras, Measurement, PosteriorSampler, Prior, Rng, Schedule

from ._particles import choose, resample


@dataclass(frozen=True, kw_only=True)
class MCGDiff(PosteriorSampler):
    """MCG-diff, Monte Carlo guided diffusion (arXiv 2308.07983), for linear A with an SVD.

    Cardoso et al. 2024, algorithm 1, for Gaussian noise of one level. It needs no vector-Jacobian
    product of the network.

    In the singular basis, y is the state of the diffusion at the noise level kappa = noise/singular
    value of each coordinate. Above that level, a coordinate is drawn from the ancestral step times
    N(y; z, sigma^2 - kappa^2), and the particles are weighted by the probability of y under the
    step. At kappa the coordinate is y. Below it is free. The method is exact in the limit of many
    particles and steps. Each draw has its own particle filter.

    Attributes:
        steps: The number of noise levels, one denoiser call per particle each.
        particles: States per draw.
        schedule: The noise levels.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"svd", "var", "one level"})

    steps: Annotated[int, Ge(2), Le(100_000)] = 100
    particles: Annotated[int, Ge(1), Le(100_000)] = 16
    schedule: Schedule = Karras()

    @property
    def cost(self) -> tuple[int, int]:
        return self.steps * self.particles, 0

    @torch.no_grad()
    def __call__(self, prior: Prior, m: Measurement, rng: Rng) -> Tensor:
        sigmas: list[float] = self.schedule.grid(self.steps).tolist()
        k = self.particles
        each = m.floored(sigmas[-1])[torch.arange(len(m)).repeat_interleave(k)]
        svd = each.A.svd()
        kappa, known = each.spectral_noise(svd), each.spectral_data(svd)
        mean = svd.vt(
            (prior.moments.mean if prior.moments is not None else torch.zeros(m.shape))
            .to(m.y)
            .expand(len(each), *m.shape)
        )

        def normal() -> Tensor:
            return rng.normal(k, known.shape[1]).to(known).flatten(0, 1)

        def log_normal(gap: Tensor, var: Tensor) -> Tensor:
            return -0.5 * (gap.double().square() / var + var.log())

        # At the first level the state is N(mean, sigma^2 I), times N(y; z, sigma^2 - kappa^2) where
        # y is seen.
        first = torch.tensor(sigmas[0] ** 2, dtype=torch.float64)
        seen = kappa < sigmas[0]
        left = torch.where(seen, first - kappa.double() ** 2, 1.0)
        gain = torch.where(seen, first / (first + left), 0.0)
        z = (
            mean
            + (gain * (known - mean)).to(known)
            + ((1 - gain) * first).sqrt().to(known) * normal()
        )
        weight = (
            torch.where(seen, log_normal(known - mean, first + left), 0.0).sum(1).reshape(-1, k)
        )
        for sigma, s in pairwise(sigmas):
            rows, weight = resample(weight, rng)
            z = z[rows]
            g = svd.vt(prior(svd.v(z), sigma))
            keep = s**2 / sigma**2
            q = torch.full_like(kappa, s**2 * (1 - keep), dtype=torch.float64)
            mu = g + keep * (z - g)
            # Above kappa: the step times N(y; z_s, s^2 - kappa^2), over N(y; z_sigma, sigma^2 -
            # kappa^2).
            above, now = kappa < s, (kappa < sigma) & (kappa > 0)
            crossing = now & ~above
            later = torch.where(above, s**2 - kappa.double() ** 2, 1.0)
            gain = torch.where(above, q / (q + later), 0.0)
            centre = mu + (gain * (known - mu)).to(mu)
            spread = ((1 - gain) * q).sqrt().to(mu)
            step = torch.where(above, log_normal(known - mu, q + later), 0.0)
            # Across kappa: y is the state there, and the step continues with the same x_hat.
            level = torch.where(crossing, kappa, s).double()
            share = (level / sigma) ** 2
            there = g + (share * (z - g)).to(g)
            step = step + torch.where(
                crossing, log_normal(known - there, (level**2 * (1 - share)).clamp(min=1e-20)), 0.0
            )
            rest = (s / level) ** 2
            centre = torch.where(crossing, g + (rest * (known - g)).to(g), centre)
            spread = torch.where(crossing, (s**2 * (1 - rest)).clamp(min=0).sqrt().to(g), spread)
            before = torch.where(
                now,
                log_normal(known - z, torch.where(now, sigma**2 - kappa.double() ** 2, 1.0)),
                0.0,
            )
            weight = weight + (step - before).sum(1).reshape(-1, k)
            z = centre + spread * normal()
        rows = choose(weight, rng)
        return prior(svd.v(z), sigmas[-1])[rows]
