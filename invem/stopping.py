"""Stopping rules, which end a phase before its last round."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from invem.metric import Metric
from invem.sampler import PosteriorSampler

__all__ = ["FinishedRound", "StoppingRule", "Watched"]


@dataclass(frozen=True)
class Watched:
    """The parts of a phase that a rule can follow.

    Attributes:
        sampler: The sampler of the phase, if it draws.
        metrics: The metrics by label.
        evaluated: Whether every round has an evaluation with unconditional samples.
    """

    sampler: PosteriorSampler | None
    metrics: Mapping[str, Metric]
    evaluated: bool


@dataclass(frozen=True)
class FinishedRound:
    """The results of a finished round.

    Attributes:
        options: The plain options of the sampler, as tuned for the round, by name. Empty if the
            phase does not draw.
        metrics: The results of the evaluation by label: "value", "target", ...; None before the
            evaluation.
    """

    options: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Any]] | None


class StoppingRule(ABC):
    """Decides after each round whether the phase ends."""

    def refuses(self, phase: Watched) -> str | None:
        """Returns why it cannot follow a phase, or None if it can. `invem plan` calls it."""
        return None

    @abstractmethod
    def __call__(self, rounds: Sequence[FinishedRound]) -> str | None:
        """Returns why the phase ends after these rounds, the oldest first, or None if it continues.

        It is called after each M-step, and again after each evaluation.
        """
