"""The exact posterior of a prior in closed form: the reference for all other samplers."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invem import Measurement, PosteriorSampler, Prior, Rng


@dataclass(frozen=True, kw_only=True)
class Exact(PosteriorSampler):
    """The exact posterior of a prior in closed form, for linear A and Gaussian noise.

    The prior is a Gaussian or a mixture of Gaussians. Every other sampler is compared with this
    one. With a Gaussian prior it is the E-step of exact EM.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"adjoint", "var", "closed form"})

    @torch.no_grad()
    def __call__(self, prior: Prior, m: Measurement, rng: Rng) -> Tensor:
        return prior.known_exact().posterior(m, rng)

    @torch.no_grad()
    def posterior_mean(self, prior: Prior, m: Measurement) -> Tensor:
        """Returns E[x | y] in closed form."""
        return prior.known_exact().posterior_mean(m)
