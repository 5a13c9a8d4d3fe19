"""TDS: the twisted diffusion sampler, a sequential Monte Carlo method."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Le
from torch import Tensor

from invem import Karras, Measurement, PosteriorSampler, Prior, Rng, Schedule
from invem.linalg import cg
from invem.local_gaussian import local_gaussian

from ._particles import choose, resample


@dataclass(frozen=True, kw_only=True)
class TwistedSMC(PosteriorSampler):
    """TDS, the twisted diffusion sampler (arXiv 2306.17775), for linear A and Gaussian noise.

    Wu et al. 2023, algorithm 1. Each draw has `particles` states. Guided ancestral steps move them,
    with the weights base/proposal times psi_s/psi_sigma. psi = N(y; A x_hat, S + A C_sigma A^T)
    approximates p(y | x_t), where C_sigma is Cov[x | x_t] of the Gaussian with the prior's moments.

    Systematic resampling takes place when the effective number of particles falls below half. At
    the end the likelihood replaces psi, and one particle is drawn. The method is exact in the limit
    of many particles and steps. Each draw has its own particle filter, so draws are independent.

    Attributes:
        steps: The number of noise levels, one denoiser call and one vector-Jacobian product per
            particle each.
        particles: States per draw.
        schedule: The noise levels.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"adjoint", "var", "moments"})

    steps: Annotated[int, Ge(2), Le(100_000)] = 64
    particles: Annotated[int, Ge(1), Le(100_000)] = 8
    schedule: Schedule = Karras()

    @property
    def cost(self) -> tuple[int, int]:
        return self.steps * self.particles, self.steps * self.particles

    @torch.no_grad()
    def __call__(self, prior: Prior, m: Measurement, rng: Rng) -> Tensor:
        sigmas: list[float] = self.schedule.grid(self.steps).tolist()
        k = self.particles
        each = m.floored(sigmas[-1])[torch.arange(len(m)).repeat_interleave(k)]
        gaussian = prior.known_moments()
        var = each.noise.var().expand_as(each.y).flatten(1)

        def normal() -> Tensor:
            return rng.normal(k, *m.shape).to(m.y).flatten(0, 1)

        def look(x_t: Tensor, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
            """Returns x_hat, E[x | x_t, y], and log psi up to a term common to all particles."""
            here, given = local_gaussian(prior, x_t, sigma, "jacobian"), gaussian.cov.given(sigma)
            r = (each.y - each.A(here.mean)).flatten(1)

            def matvec(u: Tensor) -> Tensor:
                back = given(each.A.adjoint(u.reshape(each.y.shape)).flatten(1))
                return var * u + each.A(back.reshape(x_t.shape)).flatten(1)

            solved = cg(matvec, r, 100, tol=1e-5)
            solved.warn_unless(1e-5, "twisted-smc")
            u = solved.x
            step = here.cov(each.A.adjoint(u.reshape(each.y.shape)).flatten(1)).reshape(x_t.shape)
            return here.mean, here.mean + step, -0.5 * (r.double() * u).sum(1)

        x_t = gaussian.mean + sigmas[0] * normal()
        x_hat, guided, psi = look(x_t, sigmas[0])
        weight = psi.reshape(-1, k)
        for sigma, s in pairwise(sigmas):
            rows, weight = resample(weight, rng)
            x_t, x_hat, guided, psi = x_t[rows], x_hat[rows], guided[rows], psi[rows]
            keep = s**2 / sigma**2
            z, spread = normal(), s * (1 - keep) ** 0.5
            shift = (1 - keep) * (guided - x_hat) / spread
            x_t = guided + keep * (x_t - guided) + spread * z
            ratio = (0.5 * (z.square() - (z + shift).square())).double().flatten(1).sum(1)
            before = psi
            x_hat, guided, psi = look(x_t, s)
            weight = weight + (ratio + psi - before).reshape(-1, k)
        likelihood = -0.5 * ((each.y - each.A(x_hat)).flatten(1).double().square() / var).sum(1)
        return x_hat[choose(weight + (likelihood - psi).reshape(-1, k), rng)]
