"""Noise-matched split Gibbs sampling: exact at a fixed rho."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

import torch
from annotated_types import Ge, Gt, Interval, Le
from torch import Tensor

from invem import Karras, Measurement, PosteriorSampler, Prior, Rng
from invem.diffusion import posterior_state, reverse_diffusion
from invem.likelihood import largest_singular_value, proximal_draw
from invem.local_gaussian import (
    Covariance,
    condition_on,
    draw_given_state,
    local_gaussian,
)
from invem.switching import Switch, level_of, with_switch


@dataclass(frozen=True, kw_only=True)
class MatchedGibbs(PosteriorSampler):
    """Split Gibbs sampling that is exact at a fixed rho, for linear A and Gaussian noise.

    Like arXiv 2405.18782, but z is drawn from N(z; x, rho^2 I) N(y; A z, S - rho^2 A A^T). This is
    a distribution if rho |S^-1/2 A| <= 1. Given x, y then has the covariance S. So x follows the
    posterior itself at a fixed rho, and nothing is annealed.

    The chain mixes in about (standard deviation of the posterior/rho)^2 sweeps. It therefore begins
    with draws of DAPS-MM and refines them.

    Attributes:
        sweeps: Sweeps of both steps.
        share: rho |S^-1/2 A|, below 1.
        levels: Noise levels of the draw of x given z, one denoiser call and three vector-Jacobian
            products each.
        warm: Noise levels of the initial draws, one denoiser call and up to six vector-Jacobian
            products each.
        end: The last noise level, in units of the data.
        switch: The noise level above which Cov[x | x_t] comes from the moments of the prior, in
            units of the data; "auto" as in `mmps`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"adjoint", "var"})

    sweeps: Annotated[int, Ge(1)] = 20
    share: Annotated[float, Interval(gt=0, lt=1)] = 0.9
    levels: Annotated[int, Ge(1), Le(64)] = 2
    warm: Annotated[int, Ge(2)] = 24
    end: Annotated[float, Gt(0)] = 0.005
    switch: Switch = "auto"

    @property
    def cost(self) -> tuple[int, int]:
        return self.warm + self.sweeps * self.levels, 3 * self.sweeps * self.levels + 6 * self.warm

    def tune(self, prior: Prior, m: Measurement, rng: Rng) -> Self:
        """Replaces `switch: auto` by the level that fits the prior."""
        return with_switch(self, prior, m)

    @torch.no_grad()
    def __call__(self, prior: Prior, m: Measurement, rng: Rng) -> Tensor:
        m = m.floored(self.end)
        sigmas = Karras(sigma_min=self.end).grid(self.warm)
        switch = level_of(self.tune(prior, m, rng).switch)
        how: Covariance = "jacobian" if prior.moments is None else "switch"

        def draw(x_t: Tensor, sigma: float) -> Tensor:
            return condition_on(local_gaussian(prior, x_t, sigma, how, switch), m, rng)

        x = reverse_diffusion(
            draw, posterior_state(prior, float(sigmas[0]), rng, m), sigmas, rng, zeta=1.0
        )
        rho = self.share / largest_singular_value(m)
        # Where y resolves almost nothing, only the scale of the data bounds rho.
        rho = rho.clamp(max=float(sigmas[0]))
        for _ in range(self.sweeps):
            x = draw_given_state(
                prior,
                proximal_draw(m, x, rho, rng, matched=True),
                rho,
                self.levels,
                0.2 * self.end,
                rng,
            )
        return x
