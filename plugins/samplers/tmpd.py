"""TMPD: Tweedie moment projected diffusions."""

from dataclasses import dataclass

import torch
from torch import Tensor

from invem import GuidedSampler, Measurement, Prior, Rng
from invem.diffusion import Denoise
from invem.tweedie import local


@dataclass(frozen=True, kw_only=True)
class TMPD(GuidedSampler):
    """Tweedie moment projected diffusions (Boys et al. 2023, arXiv 2310.06721), for linear A and
    Gaussian noise.

    E[x | x_t, y] = x_hat + sigma^2 J^T A^T (y - A x_hat)/(S + c), where c, the sums of the rows of
    A V A^T, stands for its diagonal.

    Exact if A V A^T is diagonal; wrong where rows are correlated, as in a blur. Negative sums count
    as zero.

    Attributes:
        steps: Noise levels.
        stepping: How the reverse diffusion is run.
        schedule: The noise levels.
    """

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"adjoint", "var"})

    @property
    def products(self) -> int:
        return 2

    def denoise(self, prior: Prior, m: Measurement, rng: Rng) -> Denoise:
        m = m.floored(float(self.schedule.grid(2)[-1]))

        def posterior(x_t: Tensor, sigma: float) -> Tensor:
            here = local(prior, x_t, sigma, "jacobian")
            ones = m.A.adjoint(torch.ones_like(m.y)).flatten(1)
            rows = m.A(here.cov(ones).reshape(x_t.shape)).clamp(min=0)
            u = m.A.adjoint((m.y - m.A(here.mean)) / (m.noise.var() + rows))
            return here.mean + here.cov(u.flatten(1)).reshape(x_t.shape)

        return posterior
