"""MMPS: moment-matching posterior sampling."""

from dataclasses import dataclass
from typing import Annotated, Literal, Self, TypeGuard, get_args

import torch
from annotated_types import Ge, Le
from torch import Tensor

from invem import ChainSampler, Karras, Measurement, Prior, RecipeError, Rng, Schedule
from invem.diffusion import (
    Stepping,
    count_calls,
    initial_state,
    integrate,
    posterior_state,
    reverse_diffusion,
)
from invem.local_gaussian import (
    Covariance,
    LocalGaussian,
    apply_gain,
    condition_on,
    linearised,
    local_gaussian,
)
from invem.switching import Switch, jacobian_share, level_of, with_switch


def _integrates(stepping: str) -> TypeGuard[Stepping]:
    """Whether a stepping is a rule of the reverse diffusion that needs the mean alone."""
    return stepping in get_args(Stepping)


@dataclass(frozen=True, kw_only=True)
class MMPS(ChainSampler):
    """MMPS, moment-matching posterior sampling (arXiv 2405.13712), for linear A and Gaussian noise.

    Rozet et al. 2024, algorithm 3. Given x_t, the clean signal is taken as N(x_hat, V) with V =
    Cov[x | x_t]. Then E[x | x_t, y] is the linear update

        x_hat + V A^T u,   (S + A V A^T) u = y - A x_hat,

    and any unconditional sampler can run on it. By Tweedie's formula V = sigma^2 J with J the
    Jacobian of the denoiser. Each Krylov iteration costs one vector-Jacobian product (VJP). V A^T u
    is a combination of the Krylov basis, which saves the last product of the publication.

    At large sigma, the J of a trained network is less accurate than the covariance (C^-1 + sigma^-2
    I)^-1 of a Gaussian with the prior's mean and covariance. The latter costs no VJP.
    ``covariance="switch"`` uses it above `switch`.

    Attributes:
        steps: The number of noise levels.
        stepping: "corrected" is ancestral steps with a draw of N(E[x | x_t, y], Cov[x | x_t, y]),
            exact for Gaussian priors at any number of steps. "isotropic" and "diagonal" know only
            the trace or the diagonal of that covariance, from Hutchinson probes. The others are
            rules of the reverse diffusion on the mean, such as "heun", or "ancestral" as published,
            whose draws have too little variance by O(1/steps).
        covariance: V by vector-Jacobian products ("jacobian"), by the moments of the prior
            ("moments"), or by the first below `switch` and the second above ("switch").
        switch: The noise level above which "switch" uses the moments, in units of the data. "auto"
            compares the two on samples of the prior (`invem.switching.switch_level`).
        solver: "gmres", whose residual never grows, or "cg" as published, which stops a sample at
            negative curvature.
        iterations: Krylov iterations with the network.
        warm: Whether "cg" begins each solution with that of the step before, at the cost of one
            more VJP. Not for "corrected" steps, whose right-hand sides are drawn anew.
        probes: Probes of "isotropic" and "diagonal". Each costs a VJP and a solution of the system.
        linearise: For an A that is not linear: each step replaces A by its derivative at x_hat.
        schedule: The noise levels. The noise of the data counts as at least the smallest of them.
    """

    steps: Annotated[int, Ge(2), Le(100_000)] = 24
    stepping: Literal[
        "corrected",
        "isotropic",
        "diagonal",
        "ancestral",
        "euler",
        "heun",
        "churn",
        "predictor-corrector",
        "multistep",
        "multistep-sde",
    ] = "corrected"
    covariance: Covariance = "switch"
    switch: Switch = "auto"
    solver: Literal["gmres", "cg"] = "gmres"
    iterations: Annotated[int, Ge(1), Le(1_000_000)] = 3
    warm: bool = False
    probes: Annotated[int, Ge(1)] = 1
    linearise: bool = False
    schedule: Schedule = Karras()

    def __post_init__(self) -> None:
        if self.warm and (self.solver != "cg" or self.stepping == "corrected"):
            raise RecipeError(
                "mmps: warm is for solver: cg, and for another stepping than corrected"
            )

    @property
    def needs(self) -> frozenset[str]:
        operator = {"vjp", "derivative"} if self.linearise else {"adjoint"}
        prior = {"moments"} if self.covariance != "jacobian" else set()
        return frozenset({"var"} | operator | prior)

    @property
    def cost(self) -> tuple[int, int]:
        forwards = (
            count_calls(self.stepping, self.steps) if _integrates(self.stepping) else self.steps
        )
        levels = self.schedule.grid(self.steps)
        low = jacobian_share(levels, self.covariance, self.switch)
        solve = self.iterations + (self.solver == "cg")
        first = solve + self.warm
        more = {
            "corrected": self.iterations,
            "isotropic": self.probes * (1 + solve),
            "diagonal": self.probes * (1 + solve),
        }
        return forwards, round(forwards * low * (first + more.get(self.stepping, 0)))

    def tune(self, prior: Prior, m: Measurement, rng: Rng) -> Self:
        """Replaces `switch: auto` by the level that fits the prior."""
        return with_switch(self, prior, m, used=self.covariance == "switch")

    @torch.no_grad()
    def __call__(
        self, prior: Prior, m: Measurement, rng: Rng, start: Tensor | None = None
    ) -> Tensor:
        switch = level_of(self.tune(prior, m, rng).switch)
        sigmas = self.schedule.grid(self.steps)
        given = m.floored(float(sigmas[-1]))
        last: list[Tensor] = []

        def posterior(x_t: Tensor, sigma: float) -> Tensor:
            here = local_gaussian(prior, x_t, sigma, self.covariance, switch, self.iterations)
            m = linearised(given, here.mean) if self.linearise else given
            exact = self.stepping == "corrected" or (
                here.cheap and self.stepping in ("isotropic", "diagonal")
            )
            x = condition_on(
                here,
                m,
                rng if exact else None,
                self.solver,
                self.iterations,
                last if self.warm else None,
            )
            if exact or self.stepping not in ("isotropic", "diagonal"):
                return x
            return x + self._variance(here, m, rng, sigma).sqrt() * rng.normal_like(x)

        first = float(sigmas[0])
        x_t = (
            initial_state(prior, first, rng, m.shape, m.y, start)
            if self.linearise
            else posterior_state(prior, first, rng, given, start)
        )
        if _integrates(self.stepping):
            return integrate(self.stepping, posterior, x_t, sigmas, rng)
        return reverse_diffusion(posterior, x_t, sigmas, rng)

    def _variance(self, here: LocalGaussian, m: Measurement, rng: Rng, sigma: float) -> Tensor:
        """Returns the diagonal of Cov[x | x_t, y], or its mean for "isotropic", shape (B, *shape).

        Cov[x | x_t, y] = V - V A^T (A V A^T + S)^-1 A V. The result is clipped to [0, sigma^2].
        """
        total = torch.zeros_like(here.mean)
        for _ in range(self.probes):
            z = rng.normal_like(here.mean).sign()
            v = here.cov(z.flatten(1)).reshape(z.shape)
            total = total + z * (v - apply_gain(here, m, m.A(v), self.solver, self.iterations))
        total = total / self.probes
        if self.stepping == "isotropic":
            total = total.flatten(1).mean(1).reshape(-1, *[1] * (total.ndim - 1)).expand_as(total)
        return total.clamp(0, sigma**2)
