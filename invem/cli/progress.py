"""Progress on stderr: a moving line on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from invem.cli.output import escaped, tell
from invem.cli.timing import Work, duration

if TYPE_CHECKING:
    from invem.planning.plan import Plan
    from invem.running.records import Record

__all__ = ["follow"]

_WORDS = {
    "measure": "measuring",
    "e-step": "E-step",
    "loss": "M-step",
    "trial": "calibrating",
    "restore": "restoring",
}
_EVERY = 10  # seconds between two plain lines


class _Step:
    """The step of the newest record: how far it is, how fast it goes and when it ends.

    Attributes:
        title: The phase, the round and the step.
        done: How much is done.
        total: Of how much.
        rate: Images or gradient steps a second; None before anything can be said.
        whole: Seconds that the rest of the run takes; None where unknown.
        at: When the newest record came.
    """

    def __init__(self, work: Work | None) -> None:
        self._work = work
        self.at = self._begun = time.monotonic()
        self._from, self.title, self.done, self.total = 0, "", 0, 0
        self.loss, self.unit = "", ""
        self.rate: float | None = None
        self.whole: float | None = None

    def take(self, record: "Record") -> bool:
        """Takes a record; returns whether a new step begins with it."""
        now, data, title = time.monotonic(), record.data, _title(record)
        done, since = int(data.get("done", data.get("step", 0))), now - self.at
        new = title != self.title or done < self.done
        if new:
            # The first step of all may have been begun by an earlier process.
            self.rate = done / max(since, 1e-9) if self.title else None
            self.title, self._from, self._begun = title, done, now
        elif done > self._from:
            self.rate = (done - self._from) / max(now - self._begun, 1e-9)
        self.done, self.total, self.at = done, int(data["total"]), now
        self.loss = f", loss {data['loss']:.4g}" if "loss" in data else ""
        self.unit = "steps/s" if record.event == "loss" else "images/s"
        if self._work is not None:
            self.whole = self._work.left(record, done, self.total, since)
        return new

    def rest(self) -> None:
        """Notes that other work was done, whose time is not that of the next step."""
        self.at = time.monotonic()

    def awaited(self, record: "Record") -> str:
        """The step that is waited for after the last record of one."""
        found = None if self._work is None else self._work.following(record)
        return f"{_where(found)}: {_WORDS[found['event']]}" if found else "next step"

    @property
    def left(self) -> float | None:
        """The seconds that the rest of the step takes at its rate."""
        return (self.total - self.done) / self.rate if self.rate else None

    def words(self) -> str:
        """The rate as it is shown."""
        return f"{self.rate:.1f} {self.unit}{self.loss}" if self.rate else self.loss[2:]


class _Left(ProgressColumn):
    """The time left of the step and of the run, counted down; before a rate is known, the time
    that went by."""

    def __init__(self, step: _Step) -> None:
        super().__init__()
        self._step = step

    def render(self, task: Task) -> Text:
        """Returns the words."""
        step, gone = self._step, time.monotonic() - self._step.at
        whole = "" if step.whole is None else f", run {duration(step.whole - gone)}"
        if task.total is None:
            since = f"since {duration(task.elapsed or 0.0)}"
            return Text(f"{since}{whole.replace(', run', ', left of the run:')}")
        if step.left is None:
            return Text("")
        return Text(f"left: step {duration(step.left - gone)}{whole}")


def follow(records: "Iterable[Record]", plan: "Plan | None" = None) -> "Iterator[Record]":
    """Passes records on and shows where the run is, how fast it goes and how long it will take.

    Args:
        records: The records of some work.
        plan: The plan of the run, if the work is a run.
    """
    step = _Step(None if plan is None else Work(plan))
    if sys.stderr is None or not sys.stderr.isatty():
        yield from _plain(records, step)
        return
    console = Console(stderr=True)
    name, rate = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[rate]}")
    columns = (name, BarColumn(), MofNCompleteColumn(), rate, _Left(step))
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=None, rate="")
        for record in records:
            if _counts(record):
                if step.take(record):
                    bar.remove_task(task)
                    task = bar.add_task(escaped(step.title), total=step.total, rate="")
                bar.update(task, completed=step.done, rate=step.words())
                if step.done == step.total:
                    bar.remove_task(task)
                    task = bar.add_task(escaped(step.awaited(record)), total=None, rate="")
            else:
                if text := _said(record):
                    bar.console.print(escaped(text), markup=False, emoji=False)
                step.rest()
            yield record


def _plain(records: "Iterable[Record]", step: _Step) -> "Iterator[Record]":
    said = 0.0
    for record in records:
        if _counts(record):
            if step.take(record):
                said = step.at
            if step.at - said > _EVERY or step.done == step.total:
                said = step.at
                words = [f"{step.title}: {step.done}/{step.total}", step.words()]
                if step.done < step.total and step.left is not None:
                    words.append(f"{duration(step.left)} left")
                if step.whole:
                    words.append(f"about {duration(step.whole)} left of the run")
                tell(", ".join(word for word in words if word))
        else:
            if text := _said(record):
                tell(text)
            step.rest()
        yield record


def _counts(record: "Record") -> bool:
    return record.event in _WORDS and "total" in record.data


def _where(data: "Mapping[str, Any]") -> str:
    """The phase and the round, counted from 1, as the report counts them."""
    number = data.get("round")
    return f"{data.get('name')}" if number is None else f"{data.get('name')} {number + 1}"


def _title(record: "Record") -> str:
    data = record.data
    where = f"{_where(data)}: " if "round" in data else ""
    if record.event == "trial":
        count = f"trial {data['trial']} of {data['trials']} or fewer"
        return f"{where}calibrating {data['options']}, {count}"
    return f"{where}{_WORDS[record.event]}{' ' + data['split'] if 'split' in data else ''}"


def _said(record: "Record") -> str:
    """What is said of an event that is no step of a longer work."""
    data = record.data
    where = _where(data)
    if record.event == "evaluate":
        return _summary(record)
    if record.event in ("identify", "damaged", "threads", "doubt"):
        return f"warning: {data['warning']}" if data["warning"] else ""
    if record.event == "calibrate":
        return f"{where}: " + ", ".join(
            f"{key} {value:.4g}" for key, value in data["values"].items()
        )
    return f"{where}: the phase ends: {data['reason']}" if record.event == "stop" else ""


def _summary(record: "Record") -> str:
    data = record.data
    values = ", ".join(
        f"{label} {'not finite' if value['value'] is None else format(value['value'], '.4g')}"
        f" {value['unit']}".rstrip()
        for label, value in data["metrics"].items()
    )
    return f"{_where(data)}: {values or 'no metric applies'}"
