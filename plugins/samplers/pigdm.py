"""PiGDM: pseudo-inverse-guided diffusion."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Gt
from torch import Tensor

from invem import GuidedSampler, Measurement, Prior, Rng
from invem.diffusion import Denoise
from invem.likelihood import regularised_backprojection
from invem.local_gaussian import local_gaussian


@dataclass(frozen=True, kw_only=True)
class PiGDM(GuidedSampler):
    """PiGDM, pseudo-inverse-guided diffusion, for linear A and Gaussian noise.

    Song et al. 2023, ICLR. p(x | x_t) is taken as N(x_hat, r^2 I), r^2 = v sigma^2/(v + sigma^2),
    with v the variance of the data (paper: 1). Then

        E[x | x_t, y] = x_hat + sigma^2 J^T A^T (r^2 A A^T + S)^-1 (y - A x_hat).

    It is exact only if the covariance of the prior is v I. The publication scales the guidance by a
    constant that does not depend on the step size, and diverges with many steps. Here the rule of
    the reverse diffusion sets the scale.

    Attributes:
        steps: The number of noise levels.
        stepping: The rule of the reverse diffusion.
        schedule: The noise levels.
        variance: v, in squared units of the data. null takes the mean variance of the prior's
            moments, or 1 if they are not known.
    """

    variance: Annotated[float, Gt(0)] | None = None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"adjoint", "var"})

    @property
    def products(self) -> int:
        return 1

    def denoise(self, prior: Prior, m: Measurement, rng: Rng) -> Denoise:
        m = m.floored(float(self.schedule.grid(2)[-1]))
        v = self.variance
        if v is None:
            cov = prior.moments and prior.moments.cov
            v = float((cov.diag + cov.factor.square().sum(1)).mean()) if cov else 1.0

        def posterior(x_t: Tensor, sigma: float) -> Tensor:
            here = local_gaussian(prior, x_t, sigma, "jacobian")
            u = regularised_backprojection(m, m.y - m.A(here.mean), v * sigma**2 / (v + sigma**2))
            return here.mean + here.cov(u.flatten(1)).reshape(x_t.shape)

        return posterior
