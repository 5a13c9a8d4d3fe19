"""Samples of the prior that ignore the measurement: the lower baseline."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge, Le
from torch import Tensor

from invem import ChainSampler, Karras, Measurement, Prior, Rng, Schedule
from invem.diffusion import Stepping, count_calls, initial_state, integrate


@dataclass(frozen=True, kw_only=True)
class PriorSampler(ChainSampler):
    """Samples the prior and ignores the measurement: the baseline that a sampler must beat.

    It also tests a rule of the reverse diffusion by itself.

    Attributes:
        steps: The number of noise levels.
        stepping: The rule of the reverse diffusion.
        schedule: The noise levels.
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    steps: Annotated[int, Ge(2), Le(100_000)] = 32
    stepping: Stepping = "heun"
    schedule: Schedule = Karras()

    @property
    def cost(self) -> tuple[int, int]:
        return count_calls(self.stepping, self.steps), 0

    def __call__(
        self, prior: Prior, m: Measurement, rng: Rng, start: Tensor | None = None
    ) -> Tensor:
        sigmas = self.schedule.grid(self.steps)
        return integrate(
            self.stepping,
            prior,
            initial_state(prior, float(sigmas[0]), rng, m.shape, m.y, start),
            sigmas,
            rng,
        ).detach()
