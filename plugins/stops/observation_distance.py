"""The rule that compares simulated with real observations, without clean signals."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from invem.stopping import FinishedRound, StoppingRule, Watched

METRIC = "observation-distance"
NEAR = 1.05  # times the distance between sets of real observations
LEAST = 0.98  # a distance above this fraction of the previous minimum has not fallen


@dataclass(frozen=True, kw_only=True)
class ObservationDistance(StoppingRule):
    """Ends a phase once simulated observations match the real ones, or stop coming nearer.

    They match if their distance to the real ones is at most 1.05 times that between sets of real
    ones. They stop if it has not fallen by 2 % in 2 rounds.
    """

    def refuses(self, phase: Watched) -> str | None:
        if not any(label.startswith(METRIC) for label in phase.metrics):
            return f"it follows the metric {METRIC}: add it to evaluate.metrics"
        if not phase.evaluated:
            return (
                "it needs an evaluation in every round: every 1, samples, and the phase among"
                " evaluate.phases"
            )
        return None

    def __call__(self, rounds: Sequence[FinishedRound]) -> str | None:
        distances = [_distance(done.metrics or {}) for done in rounds]
        found = [distance for distance in distances if distance is not None]
        if not found or len(found) < len(rounds):
            return None
        if found[-1] <= NEAR:
            return (
                "observations simulated from the prior are as near to the real ones as those are to"
                f" each other ({found[-1]:.3g})"
            )
        if len(found) > 2 and min(found[-2:]) > LEAST * min(found[:-2]):
            return (
                "the distance of simulated observations to the real ones has not fallen by 2 % in 2"
                " rounds"
            )
        return None


def _distance(metrics: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Returns the distance as a multiple of its value for two sets of real observations; None if it
    was not evaluated."""
    for label, row in metrics.items():
        if label.startswith(METRIC):
            return math.inf if row["value"] is None else float(row["value"]) / float(row["target"])
    return None
