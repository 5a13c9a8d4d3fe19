"""DAPS-MM: decoupled annealing with moment matching."""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from annotated_types import Ge, Le
from torch import Tensor

from invem import ChainSampler, Karras, Measurement, Prior, Rng, Schedule
from invem.diffusion import posterior_state, reverse_diffusion
from invem.local_gaussian import (
    Covariance,
    condition_on,
    local_gaussian,
)
from invem.switching import Switch, jacobian_share, level_of, with_switch


@dataclass(frozen=True, kw_only=True)
class DAPSMM(ChainSampler):
    """DAPS with the moment-matched Gaussian N(x_hat, V), for linear A and Gaussian noise.

    V = Cov[x | x_t] replaces the sigma^2 I of DAPS (arXiv 2407.01521). Each level draws x from
    N(x_hat, V) given y by Matheron's rule. The next state is x + s noise, so states are linked
    through x alone. It is exact for a Gaussian prior at any number of steps.

    Attributes:
        steps: The number of noise levels, one denoiser call each.
        covariance: V as in `mmps`.
        switch: The noise level above which "switch" uses the moments of the prior, in units of the
            data; "auto" as in `mmps`.
        solver: "gmres" or "cg".
        iterations: Krylov iterations with the network. A draw of N(0, V) takes as many more.
        schedule: The noise levels.
    """

    steps: Annotated[int, Ge(2), Le(100_000)] = 32
    covariance: Covariance = "switch"
    switch: Switch = "auto"
    solver: Literal["gmres", "cg"] = "gmres"
    iterations: Annotated[int, Ge(1), Le(1_000_000)] = 3
    schedule: Schedule = Karras()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(
            {"adjoint", "var"} | ({"moments"} if self.covariance != "jacobian" else set())
        )

    @property
    def cost(self) -> tuple[int, int]:
        levels = self.schedule.grid(self.steps)
        low = jacobian_share(levels, self.covariance, self.switch)
        return self.steps, round(self.steps * low * (2 * self.iterations + (self.solver == "cg")))

    def tune(self, prior: Prior, m: Measurement, rng: Rng) -> Self:
        """Replaces `switch: auto` by the level that fits the prior."""
        return with_switch(self, prior, m, used=self.covariance == "switch")

    @torch.no_grad()
    def __call__(
        self, prior: Prior, m: Measurement, rng: Rng, start: Tensor | None = None
    ) -> Tensor:
        switch = level_of(self.tune(prior, m, rng).switch)
        sigmas = self.schedule.grid(self.steps)
        m = m.floored(float(sigmas[-1]))

        def draw(x_t: Tensor, sigma: float) -> Tensor:
            here = local_gaussian(prior, x_t, sigma, self.covariance, switch, self.iterations)
            return condition_on(here, m, rng, self.solver, self.iterations)

        return reverse_diffusion(
            draw, posterior_state(prior, float(sigmas[0]), rng, m, start), sigmas, rng, zeta=1.0
        )
