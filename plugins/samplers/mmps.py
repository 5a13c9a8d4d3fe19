"""MMPS: moment-matching posterior sampling."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from invem import (
    Denoiser,
    Karras,
    Measurement,
    PosteriorSampler,
    Rng,
    Schedule,
    cg,
    gmres,
    heun,
    reverse,
    sqrt_matvec,
    start_given,
)


@dataclass(frozen=True, kw_only=True)
class MMPS(PosteriorSampler):
    """Moment-matching posterior sampling (Rozet et al. 2024, arXiv 2405.13712, algorithm 3), for linear A and Gaussian noise.

    Given x_t, the clean signal is taken as N(x_hat, V) with V = Cov[x | x_t]; then E[x | x_t, y] is the linear update

        x_hat + V A^T u,   (S + A V A^T) u = y - A x_hat,

    and any unconditional sampler runs on it. V = sigma^2 J with J the Jacobian of the denoiser (Tweedie), one vector-Jacobian
    product for each Krylov iteration: V A^T u is read off the Krylov basis, so the published last product is saved.

    Where sigma is large, J of a trained network is wrong by more than the Gaussian covariance (C^-1 + sigma^-2 I)^-1 of the prior's
    own mean and covariance is, and that one costs no product: ``covariance="switch"`` uses it above `switch`.

    Attributes:
        steps: Noise levels. Heun calls the denoiser 2 steps - 1 times, the others once a level.
        stepping: "heun" on the posterior mean; "corrected" ancestral, which steps with a draw of N(E[x | x_t, y], Cov[x | x_t, y]) and
            is exact for Gaussian priors at any number of steps; or plain "ancestral", as published, whose draws are too narrow by
            O(1/steps).
        covariance: V by Jacobian products ("jacobian"), by the moments of the prior ("moments"), or by the one below and the other above
            `switch` ("switch").
        switch: The noise level above which "switch" uses the moments, in units of the data.
        solver: "gmres", whose residual never grows, or "cg" as published, which stops a sample at negative curvature.
        iterations: Krylov iterations with the network.
        schedule: The noise levels. The noise of the data counts as at least the smallest of them.
    """

    steps: Annotated[int, Ge(2)] = 24
    stepping: Literal["heun", "corrected", "ancestral"] = "corrected"
    covariance: Literal["switch", "jacobian", "moments"] = "switch"
    switch: Annotated[float, Gt(0)] = 0.3
    solver: Literal["gmres", "cg"] = "gmres"
    iterations: Annotated[int, Ge(1)] = 3
    schedule: Schedule = Karras()

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"adjoint", "var"} | ({"moments"} if self.covariance != "jacobian" else set()))

    @property
    def cost(self) -> tuple[int, int]:
        forwards = 2 * self.steps - 1 if self.stepping == "heun" else self.steps
        levels = self.schedule.grid(self.steps)
        low = {"switch": float((levels <= self.switch).double().mean()), "jacobian": 1.0, "moments": 0.0}[self.covariance]
        products = self.iterations * (2 if self.stepping == "corrected" else 1) + (self.solver == "cg")
        return forwards, round(forwards * low * products)

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser, m: Measurement, rng: Rng) -> Tensor:
        sigmas = self.schedule.grid(self.steps)
        floor = float(sigmas[-1]) ** 2
        var = m.noise.var().clamp(min=floor).expand_as(m.y).flatten(1)
        exact = self.covariance == "moments"
        draw = self.stepping == "corrected"

        def posterior(x_t: Tensor, sigma: float) -> Tensor:
            """E[x | x_t, y], or a draw of N(E[x | x_t, y], Cov[x | x_t, y]) by Matheron's rule."""
            cheap = exact or (self.covariance == "switch" and sigma > self.switch)
            if cheap:
                x = denoiser(x_t, sigma)
                given = denoiser.known_moments().cov.given(sigma)
                v = given.__call__
                spread = given.draw(rng) if draw else None
            else:
                with torch.enable_grad():
                    x_t = x_t.detach().requires_grad_()
                    x_hat = denoiser(x_t, sigma)

                def v(p: Tensor) -> Tensor:
                    (g,) = torch.autograd.grad(x_hat, x_t, p.reshape(x_hat.shape), retain_graph=True)
                    return sigma**2 * g.flatten(1)

                x = x_hat.detach()
                spread = sqrt_matvec(v, rng.normal_like(x.flatten(1)), self.iterations) if draw else None
            r = (m.y - m.A(x)).flatten(1)
            if spread is not None:
                x = x + spread.reshape(x.shape)
                r = (m.y - m.A(x)).flatten(1) - var.sqrt() * rng.normal_like(r)
            pulled: list[Tensor] = []

            def pull(u: Tensor) -> Tensor:
                pulled.append(v(m.A.adjoint(u.reshape(m.y.shape)).flatten(1)))
                return pulled[-1]

            def matvec(u: Tensor) -> Tensor:
                return var * u + m.A(pull(u).reshape(x.shape)).flatten(1)

            if cheap:
                step = pull(cg(matvec, r, 100, tol=1e-4).x)
            elif self.solver == "cg":
                step = pull(cg(matvec, r, self.iterations).x)
            else:
                weights = gmres(matvec, r, self.iterations).weights
                step = torch.einsum("kbd,bk->bd", torch.stack(pulled), weights)
            return x + step.reshape(x.shape)

        x_t = start_given(denoiser, float(sigmas[0]), rng, m)
        if self.stepping == "heun":
            return heun(posterior, x_t, sigmas)
        return reverse(posterior, x_t, sigmas, rng)
