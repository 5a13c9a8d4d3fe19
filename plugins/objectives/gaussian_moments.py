"""A Gaussian prior in closed form: the warm start that needs no clean image."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge

from invem import Denoiser, Example, Gaussian, GaussianDenoiser, Objective, RecipeError, Rng


@dataclass(frozen=True, kw_only=True)
class GaussianMoments(Objective):
    """One EM iteration on a Gaussian prior with covariance diag(D) + F F^T (the initialisation of DiEM, arXiv 2405.13712, appendix).

    From measurements, the E-step is an exact draw of the Gaussian posterior for each (Matheron's rule); from signals there is none. The
    M-step is the maximum-likelihood factor analysis of what was drawn.

    Attributes:
        rank: The number of factors F.
    """

    rank: Annotated[int, Ge(0)] = 64

    needs = frozenset({"adjoint", "var"})

    def solve(self, denoiser: Denoiser, batches: Callable[[], Iterable[tuple[Example, Rng]]]) -> Denoiser:
        drawn = []
        for example, rng in batches():
            m = example.measurement
            if example.x is not None:
                drawn.append(example.x)
            elif m is not None:
                prior = denoiser.moments or Gaussian.standard(m.shape).to(m.y.device)
                drawn.append(prior.posterior(m, rng))
            else:
                raise RecipeError("gaussian-moments was given neither signals nor measurements")
        return GaussianDenoiser(Gaussian.fit(torch.cat(drawn), self.rank))
