"""TMPD: Tweedie moment projected diffusions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from invem import GuidedSampler, Measurement, Prior, Rng
from invem.diffusion import Denoise
from invem.local_gaussian import local_gaussian


@dataclass(frozen=True, kw_only=True)
class TMPD(GuidedSampler):
    """TMPD, Tweedie moment projected diffusions (arXiv 2310.06721), for linear A, Gaussian noise.

    Boys et al. 2023. E[x | x_t, y] = x_hat + sigma^2 J^T A^T (y - A x_hat)/(S + c). c holds the row
    sums of A V A^T, in place of its diagonal.

    It is exact if A V A^T is diagonal, and wrong if rows are correlated, as for a blur. Negative
    sums count as zero.

    The level of the noise must be above 0: nothing else bounds 1/(S + c) where the sum is zero.

    Attributes:
        steps: The number of noise levels.
        stepping: The rule of the reverse diffusion.
        schedule: The noise levels.
    """

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"adjoint", "var", "density"})

    @property
    def products(self) -> int:
        return 2

    def denoise(self, prior: Prior, m: Measurement, rng: Rng) -> Denoise:
        m = m.floored(float(self.schedule.grid(2)[-1]))

        def posterior(x_t: Tensor, sigma: float) -> Tensor:
            here = local_gaussian(prior, x_t, sigma, "jacobian")
            ones = m.A.adjoint(torch.ones_like(m.y)).flatten(1)
            rows = m.A(here.cov(ones).reshape(x_t.shape)).clamp(min=0)
            u = m.A.adjoint((m.y - m.A(here.mean)) / (m.noise.var() + rows))
            return here.mean + here.cov(u.flatten(1)).reshape(x_t.shape)

        return posterior
