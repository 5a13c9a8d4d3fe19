"""Split Gibbs sampling: PnP-DM and DPnP."""

from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from annotated_types import Ge, Gt, Interval, Le
from torch import Tensor

from invem import Measurement, PosteriorSampler, Prior, Rng
from invem.likelihood import largest_curvature, proximal_draw
from invem.local_gaussian import draw_given_state
from invem.switching import Switch, level_of, with_switch


@dataclass(frozen=True, kw_only=True)
class SplitGibbs(PosteriorSampler):
    """Split Gibbs sampling, PnP-DM (arXiv 2405.18782), for any A and any noise with a density.

    Wu et al. 2024, algorithm 1; DPnP (Xu & Chi 2024, arXiv 2403.17042) is alike. It alternates z ~
    N(z; x, rho^2 I) p(y | z) and x ~ p(x | x + rho noise = z). rho falls from `first` to `last` by
    the factor `decay` per sweep. At a fixed rho, x follows the posterior for the noise covariance S
    + rho^2 A A^T. It is exact as rho goes to zero, where it mixes slowly.

    Attributes:
        sweeps: Sweeps of both steps.
        first: The first rho, in units of the data.
        last: The last rho.
        decay: The factor of rho from sweep to sweep.
        levels: Noise levels of the draw of x, from rho down, one denoiser call and three
            vector-Jacobian products each.
        kernel: The draw of z: "exact", for a linear A and Gaussian noise, or "langevin".
        inner: Steps of "langevin", each a gradient of log p(y | z).
        end: The last noise level of the draw of x, in units of the data.
        switch: The noise level above which Cov[x | x_t] comes from the moments of the prior, in
            units of the data; "auto" as in `mmps`.
    """

    sweeps: Annotated[int, Ge(1)] = 60
    first: Annotated[float, Gt(0)] = 5.0
    last: Annotated[float, Gt(0)] = 0.05
    decay: Annotated[float, Interval(gt=0, le=1)] = 0.9
    levels: Annotated[int, Ge(1), Le(64)] = 4
    kernel: Literal["exact", "langevin"] = "exact"
    inner: Annotated[int, Ge(1)] = 50
    end: Annotated[float, Gt(0)] = 0.005
    switch: Switch = "auto"

    @property
    def needs(self) -> frozenset[str]:
        exact = self.kernel == "exact"
        return frozenset({"adjoint", "var"} if exact else {"vjp", "density"})

    @property
    def cost(self) -> tuple[int, int]:
        return self.sweeps * self.levels, 3 * self.sweeps * self.levels

    def tune(self, prior: Prior, m: Measurement, rng: Rng) -> Self:
        """Replaces `switch: auto` by the level that fits the prior."""
        return with_switch(self, prior, m)

    @torch.no_grad()
    def __call__(self, prior: Prior, m: Measurement, rng: Rng) -> Tensor:
        if self.kernel == "exact":
            m = m.floored(self.end)
        mean = prior.moments.mean if prior.moments is not None else torch.zeros(m.shape)
        x = mean.to(m.y).expand(len(m), *m.shape) + self.first * rng.normal(*m.shape).to(m.y)
        switch = level_of(self.tune(prior, m, rng).switch)
        for k in range(self.sweeps):
            rho = max(self.first * self.decay**k, self.last)
            z = (
                proximal_draw(m, x, rho, rng)
                if self.kernel == "exact"
                else self._langevin(m, x, rho, rng)
            )
            x = draw_given_state(prior, z, rho, self.levels, min(self.end, 0.5 * rho), rng, switch)
        return x

    def _langevin(self, m: Measurement, x: Tensor, rho: float, rng: Rng) -> Tensor:
        length = 0.3 / (largest_curvature(m, x) + 1 / rho**2).reshape(-1, *[1] * (x.ndim - 1))
        z = x
        for _ in range(self.inner):
            z = (
                z
                + length * (m.score(z) - (z - x) / rho**2)
                + (2 * length).sqrt() * rng.normal_like(z)
            )
        return z
