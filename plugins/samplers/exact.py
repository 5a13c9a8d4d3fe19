"""The exact posterior of a prior in closed form: the oracle."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from invem import Measurement, PosteriorSampler, Prior, Rng


@dataclass(frozen=True, kw_only=True)
class Exact(PosteriorSampler):
    """Draws p(x | y) exactly where the prior is a Gaussian or a mixture of Gaussians, A is linear
    and the noise Gaussian.

    What every other sampler is measured against, and the E-step of exact EM on a Gaussian prior.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"adjoint", "var", "closed form"})

    @torch.no_grad()
    def __call__(self, prior: Prior, m: Measurement, rng: Rng) -> Tensor:
        return prior.known_exact().posterior(m, rng)
