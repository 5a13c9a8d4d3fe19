"""The sampler that fits the measurement: an exact chain where there is one, and MMPS elsewhere."""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Self

import torch
from annotated_types import Ge, Le
from torch import Tensor

from invem import Measurement, PosteriorSampler, Prior, Rng
from invem.switching import Switch

from .exact import Exact
from .mmps import MMPS
from .sfbd import SFBD


@dataclass(frozen=True, kw_only=True)
class Auto(PosteriorSampler):
    """The exact chain where there is one, and MMPS elsewhere, for linear A and Gaussian noise.

    A prior in closed form has an exact posterior (`exact`). Where A = I and the noise has one
    level, y is a state of the diffusion, so that the reverse diffusion from y draws p(x | y)
    without guidance (`sfbd`), and E[x | y] is one call of the denoiser, by Tweedie's formula. Each
    observation is judged by itself. All others are drawn by `mmps`.

    Attributes:
        steps: The number of noise levels of `sfbd` and of `mmps`.
        iterations: Vector-Jacobian products per draw of either, at each level.
        switch: That of `mmps`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"adjoint", "var", "moments"})
    adapts: ClassVar[bool] = True

    steps: Annotated[int, Ge(2), Le(100_000)] = 16
    iterations: Annotated[int, Ge(1), Le(1_000_000)] = 3
    switch: Switch = "auto"

    @property
    def cost(self) -> tuple[int, int]:
        chain, guided = self._chain.cost, self._guided.cost
        return max(chain[0], guided[0]), max(chain[1], guided[1])

    @property
    def _chain(self) -> SFBD:
        return SFBD(steps=self.steps, iterations=self.iterations)

    @property
    def _guided(self) -> MMPS:
        return MMPS(steps=self.steps, iterations=self.iterations, switch=self.switch)

    def tune(self, prior: Prior, m: Measurement, rng: Rng) -> Self:
        """Replaces `switch: auto` by the level that fits the prior, if `mmps` is needed."""
        if prior.exact is not None or bool(_chained(m).all()):
            return self
        return replace(self, switch=self._guided.tune(prior, m, rng).switch)

    @torch.no_grad()
    def __call__(self, prior: Prior, m: Measurement, rng: Rng) -> Tensor:
        if prior.exact is not None:
            return Exact()(prior, m, rng)
        chained = _chained(m).cpu()
        parts: list[tuple[PosteriorSampler, Tensor]] = [
            (self._chain, chained.nonzero().flatten()),
            (self._guided, (~chained).nonzero().flatten()),
        ]
        order = torch.cat([rows for _, rows in parts]).argsort()
        drawn = [sampler(prior, m[rows], rng[rows]) for sampler, rows in parts if len(rows)]
        return torch.cat(drawn)[order.to(m.y.device)]

    def posterior_mean(self, prior: Prior, m: Measurement) -> Tensor:
        """Returns E[x | y] of the observations with an exact one, and NaN for the others."""
        if prior.exact is not None:
            return Exact().posterior_mean(prior, m)
        mean, rows = super().posterior_mean(prior, m), _chained(m).nonzero().flatten()
        if len(rows):
            mean[rows] = self._chain.posterior_mean(prior, m[rows.cpu()])
        return mean


def _chained(m: Measurement) -> Tensor:
    """Whether each observation is a state of the diffusion, shape (B,)."""
    return m.unchanged & m.one_level
