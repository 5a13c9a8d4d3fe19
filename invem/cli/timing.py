"""How long a run will take: its work in passes through the network, and the seconds these took."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from invem.planning.plan import Plan, Stage
    from invem.running.records import Record

__all__ = ["Work", "duration"]

_TRAINING = 3  # passes of one example of a gradient step: forwards, and twice that backwards


def duration(seconds: float) -> str:
    """Returns a time in words, such as "42 s", "3 min 20 s" or "1 h 05 min"."""
    if not math.isfinite(seconds):
        return "?"
    whole = max(math.ceil(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class _Step(NamedTuple):
    """One step of a run: the phase, the round, the event of its records, and its passes."""

    phase: int
    round: int
    event: str
    passes: float


class Work:
    """The steps of a run that are still to be done.

    Args:
        plan: The plan of the run.
    """

    def __init__(self, plan: "Plan") -> None:
        self._steps = [
            step
            for p, stage in enumerate(plan.stages)
            for r in range(stage.phase.rounds)
            for step in _round(plan, stage, p, r)
            if step.passes
        ]
        self._names = [stage.phase.name for stage in plan.stages]
        self._begun: dict[int, float] = {}
        self._spent: dict[str, float] = {}
        self._passes: dict[str, float] = {}

    def left(self, record: "Record", done: float, total: float, seconds: float) -> float | None:
        """Returns the seconds that the rest of the run will take; None where that is not known.

        Args:
            record: What happened.
            done: How much of its step is done.
            total: Of how much.
            seconds: The time since the record before.
        """
        index = self._index(record)
        if index is None or not total:
            return None
        part, passes = done / total, self._steps[index].passes
        # Of the first step of all, an earlier process may have done a part.
        first = not self._begun
        new = max(part - self._begun.get(index, 0.0), 0.0)
        self._begun[index] = part
        if not first:
            self._spent[record.event] = self._spent.get(record.event, 0.0) + seconds
            self._passes[record.event] = self._passes.get(record.event, 0.0) + new * passes
        if not any(self._passes.values()):
            return None
        rest = {record.event: (1 - part) * passes}
        for step in self._steps[index + 1 :]:
            rest[step.event] = rest.get(step.event, 0.0) + step.passes
        overall = sum(self._spent.values()) / max(sum(self._passes.values()), 1e-9)
        return sum(n * self._seconds_of_one(event, overall) for event, n in rest.items())

    def following(self, record: "Record") -> Mapping[str, Any] | None:
        """Returns name, round and event of the step after that of a record; None if unknown."""
        index = self._index(record)
        if index is None or index + 1 >= len(self._steps):
            return None
        step = self._steps[index + 1]
        return {"name": self._names[step.phase], "round": step.round, "event": step.event}

    def _index(self, record: "Record") -> int | None:
        data = record.data
        key = (data.get("phase"), data.get("round"), record.event)
        return next((i for i, s in enumerate(self._steps) if s[:3] == key), None)

    def _seconds_of_one(self, event: str, overall: float) -> float:
        """The seconds of one pass of a kind of step, of any kind before the first of that kind."""
        passes = self._passes.get(event, 0.0)
        return self._spent[event] / passes if passes else overall


def _round(plan: "Plan", stage: "Stage", p: int, r: int) -> list[_Step]:
    phase, found = stage.phase, list[_Step]()
    sampler = stage.at(r)
    if sampler is not None:
        share = phase.refresh if r else 1.0
        n = min(phase.observations or plan.train, plan.train) * phase.draws * share
        found.append(_Step(p, r, "e-step", n * _cost(sampler.cost)))
    if phase.fit is not None and not getattr(stage.objective, "solve", None):
        found.append(_Step(p, r, "loss", phase.fit.steps * phase.fit.batch * _TRAINING))
    options, last = plan.recipe.evaluate, r + 1 == phase.rounds
    shown = options.phases is None or phase.name in options.phases
    due = last or (r + 1) % options.every == 0
    if plan.metrics and stage.evaluator is not None and shown and due:
        final = last and p + 1 == len(plan.stages)
        n = plan.test * options.draws + (min(plan.test, 8) * options.posterior if final else 0)
        passes = n * _cost(stage.evaluator.cost) + options.samples * options.steps
        found.append(_Step(p, r, "restore", passes))
    return found


def _cost(cost: tuple[int, int]) -> float:
    """Passes of one draw: a vector-Jacobian product is one forwards and one backwards."""
    return max(cost[0] + 2 * cost[1], 1)
