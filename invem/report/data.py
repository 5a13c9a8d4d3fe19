"""What a report shows of a run, as plain values.

Rounds are counted from 0 here, as the files of a run count them. Only labels count from 1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "Array",
    "Evaluation",
    "Identifiability",
    "Loss",
    "MetricValue",
    "ReportData",
    "Restorations",
    "Round",
    "RoundEvent",
    "Samples",
]

Array = npt.NDArray[np.float64]


class Round(NamedTuple):
    """One round of a phase.

    Attributes:
        phase: The name of the phase.
        number: The round, counted from 0; None for what belongs to no round.
    """

    phase: str
    number: int | None

    @property
    def label(self) -> str:
        """The name that people read; it counts from 1."""
        return self.phase if self.number is None else f"{self.phase} {self.number + 1}".strip()


class MetricValue(NamedTuple):
    """One metric in one evaluation.

    Attributes:
        value: The mean over the held-out observations; NaN where there is none.
        sem: Its standard error; NaN where there is none.
        unit: The unit, such as "dB"; empty for a pure number.
        higher_is_better: Which direction is better; None where the files do not say.
        target: The value of a perfect outcome, where a value may miss it on both sides.
        below, above: What a value below or above the target says; empty where the files do not.
    """

    value: float
    sem: float
    unit: str
    higher_is_better: bool | None
    target: float | None
    below: str = ""
    above: str = ""

    @property
    def direction(self) -> str:
        """The better direction as an arrow, with the target if there is one; empty where neither
        is known."""
        if self.target is not None:
            return f"→ {self.target:.4g}"
        return {True: "↑", False: "↓", None: ""}[self.higher_is_better]

    def heading(self, name: str) -> str:
        """The name with unit and direction, as in "psnr (dB) ↑" or "coverage → 0.9"."""
        unit = f" ({self.unit})" if self.unit else ""
        return f"{name}{unit} {self.direction}".strip()

    def improves_on(self, other: "MetricValue") -> bool | None:
        """Whether this value is better than another one; None where that cannot be said."""
        if self.target is not None:
            change = abs(other.value - self.target) - abs(self.value - self.target)
        elif self.higher_is_better is not None:
            change = (self.value - other.value) * (1 if self.higher_is_better else -1)
        else:
            return None
        return change > 0 if math.isfinite(change) and change else None


class Evaluation(NamedTuple):
    """The metrics of one evaluated round.

    Attributes:
        phase: The number of the phase, counted from 0; None where the files do not say.
        round: The round.
        metrics: The values by the name of the metric.
    """

    phase: int | None
    round: Round
    metrics: Mapping[str, MetricValue]


class Restorations(NamedTuple):
    """The first held-out observations and what was restored from them.

    Attributes:
        label: The evaluation that the draws come from; empty without draws.
        observations: The measurements as images, (N, C, H, W), where they are images.
        draws: K posterior draws per observation, (N, K, C, H, W).
        posterior: More posterior draws for the mean and the standard deviation, (N, L, C, H, W).
        truth: The clean images, (N, C, H, W).
        mean: The posterior mean, where the sampler knows it without draws, (N, C, H, W).
    """

    label: str
    observations: Array | None
    draws: Array | None
    posterior: Array | None
    truth: Array | None
    mean: Array | None = None


class Samples(NamedTuple):
    """Unconditional samples of one evaluated round.

    Attributes:
        folder: The folder of the evaluation, such as "1-002-evaluation".
        label: The evaluation.
        images: The samples, (N, C, H, W).
    """

    folder: str
    label: str
    images: Array


class Loss(NamedTuple):
    """One logged value of the training loss; it may be NaN."""

    round: Round
    value: float


class RoundEvent(NamedTuple):
    """What a step logged about its round.

    Attributes:
        round: The round.
        event: "e-step", "calibrate", "doubt", "stop" or "damaged".
        values: "residual" of an E-step; the calibrated options by name; empty elsewhere.
        reason: Why a phase stopped, what was damaged, the warning, or what is wrong with a
            calibration; empty elsewhere.
    """

    round: Round
    event: str
    values: Mapping[str, float]
    reason: str


class Identifiability(NamedTuple):
    """What the analysis before the run said about the observations.

    Attributes:
        lines: One sentence each.
        warning: What the observations cannot determine; empty if nothing.
        observations: How many there are to learn from; 0 where the file does not say.
    """

    lines: Sequence[str]
    warning: str
    observations: int = 0


@dataclass(frozen=True)
class ReportData:
    """Everything that the report of a run shows. A part that is missing is empty or None.

    Attributes:
        path: The directory of the run.
        name: The name of the run.
        created: When the run began, as ISO 8601; empty if unknown.
        state: Whether the run is finished, in words.
        recipe: The recipe as YAML.
        environment: The machine and its software.
        components: The kind, name, distribution and version of every component.
        observations: The metrics of the observations themselves, by name.
        evaluations: Every evaluated round, in order.
        restorations: Held-out observations and their restorations, if they are images.
        samples: Unconditional samples of every evaluated round, if they are images.
        losses: The logged training losses, in order.
        times: Seconds by the label of a round and then by step.
        events: What the steps logged about their rounds, in order.
        identifiability: What the observations determine about the distribution.
        log: Every entry of the log, in order.
        damaged: Files, or lines of files, that are damaged, each with what helps.
        baseline: What `observations` was computed from, in words: themselves, or signals made of
            them.
        warnings: What the plan of the run warned of.
        history: What was changed of the recipe since the run was begun, a line per change.
    """

    path: Path
    name: str
    created: str
    state: str
    recipe: str
    environment: Mapping[str, Any]
    components: Sequence[Mapping[str, Any]]
    observations: Mapping[str, MetricValue]
    evaluations: Sequence[Evaluation]
    restorations: Restorations | None
    samples: Sequence[Samples]
    losses: Sequence[Loss]
    times: Mapping[str, Mapping[str, float]]
    events: Sequence[RoundEvent]
    identifiability: Identifiability | None
    log: Sequence[Mapping[str, Any]]
    damaged: Sequence[str]
    baseline: str = "observations"
    warnings: Sequence[str] = ()
    history: Sequence[str] = ()

    def metrics(self) -> dict[str, MetricValue]:
        """Every metric once, in the order of the recipe, with its newest value."""
        newest = dict(self.observations)
        for evaluation in self.evaluations:
            newest.update(evaluation.metrics)
        # The evaluation with the most metrics has the order; others lack some.
        longest = max([self.observations, *(e.metrics for e in self.evaluations)], key=len)
        return {name: newest[name] for name in [*longest, *(n for n in newest if n not in longest)]}
