"""Stopping rules: what ends a phase before its last round."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from invem.metric import Metric
from invem.sampler import PosteriorSampler

__all__ = ["FinishedRound", "StoppingRule", "Watched"]


@dataclass(frozen=True)
class Watched:
    """What a rule can follow in a phase.

    Attributes:
        sampler: The sampler of the phase, if it draws.
        metrics: The metrics by label.
        evaluated: Whether there is an evaluation, with unconditional samples, in every round.
    """

    sampler: PosteriorSampler | None
    metrics: Mapping[str, Metric]
    evaluated: bool


@dataclass(frozen=True)
class FinishedRound:
    """What there is of a finished round.

    Attributes:
        options: The plain options of the sampler as it was tuned for the round, by name; empty if
            the phase does not draw.
        metrics: What the evaluation said, by label: "value", "target", ...; None before the
            evaluation.
    """

    options: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Any]] | None


class StoppingRule(ABC):
    """Decides after each round whether the phase ends."""

    def refuses(self, phase: Watched) -> str | None:
        """Returns why it cannot follow a phase, None if it can; `invem plan` asks."""
        return None

    @abstractmethod
    def __call__(self, rounds: Sequence[FinishedRound]) -> str | None:
        """Returns why the phase ends after the rounds so far, the oldest first; None if it goes
        on. It is asked after each M-step, and again after each evaluation."""
