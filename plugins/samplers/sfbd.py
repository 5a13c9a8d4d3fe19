"""Tail denoising: the reverse diffusion from the noise level of the data."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from invem import Measurement, PosteriorSampler, Prior, Rng
from invem.local_gaussian import draw_given_state


@dataclass(frozen=True, kw_only=True)
class SFBD(PosteriorSampler):
    """SFBD, tail denoising (arXiv 2502.05446), for A = I and Gaussian noise of one level.

    Lu et al. 2025. y is the state of the diffusion at the noise level of the observation. So p(x |
    y) is p(x | x_t), and the reverse diffusion from there draws it without guidance. The only bias
    is that of the prior.

    Attributes:
        steps: The number of noise levels from that of y down, one denoiser call and `iterations`
            vector-Jacobian products each.
        end: The last noise level, in units of the data.
        iterations: Vector-Jacobian products per draw of N(0, Cov[x | x_t]).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"identity", "var", "one level"})

    steps: Annotated[int, Ge(1), Le(100_000)] = 16
    end: Annotated[float, Gt(0)] = 0.005
    iterations: Annotated[int, Ge(1), Le(1_000_000)] = 3

    @property
    def cost(self) -> tuple[int, int]:
        return self.steps, self.steps * self.iterations

    @torch.no_grad()
    def __call__(self, prior: Prior, m: Measurement, rng: Rng) -> Tensor:
        sigma = m.level("sfbd").reshape(-1, 1).clamp(min=2 * self.end)
        return draw_given_state(
            prior, m.y, sigma, self.steps, self.end, rng, iterations=self.iterations
        )

    @torch.no_grad()
    def posterior_mean(self, prior: Prior, m: Measurement) -> Tensor:
        """Returns E[x | y] by one call of the denoiser: y is a state of the diffusion."""
        return prior(m.y, m.level("sfbd").clamp(min=self.end))
