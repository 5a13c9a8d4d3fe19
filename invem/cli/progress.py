"""Progress on stderr: a moving line on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from invem.cli.output import escaped, tell

if TYPE_CHECKING:
    from invem.running.records import Record

__all__ = ["follow"]

_WORDS = {
    "measure": "measuring",
    "e-step": "E-step",
    "loss": "M-step",
    "trial": "calibrating",
    "restore": "restoring",
}


def follow(records: "Iterable[Record]") -> "Iterator[Record]":
    """Passes records on and shows where the run is, how fast it goes and how long it will take."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield from _plain(records)
        return
    console = Console(stderr=True)
    name, rate = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[rate]}")
    columns = (name, BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        key, task, begun, last = (
            "",
            bar.add_task("starting", total=None, rate=""),
            0.0,
            time.monotonic(),
        )
        for record in records:
            data = record.data
            if record.event in _WORDS and "total" in data:
                title, done = escaped(_title(record)), _done(record)
                if title != key:
                    bar.remove_task(task)
                    key, task, begun = (
                        title,
                        bar.add_task(title, total=data["total"], rate=""),
                        last,
                    )
                bar.update(task, completed=done, rate=_rate(record, time.monotonic() - begun))
            elif text := _said(record):
                bar.console.print(escaped(text), markup=False, emoji=False)
            last = time.monotonic()
            yield record


def _plain(records: "Iterable[Record]") -> "Iterator[Record]":
    key, begun, said, last = "", 0.0, 0.0, time.monotonic()
    for record in records:
        data, now = record.data, time.monotonic()
        if text := _said(record):
            tell(text)
        elif record.event in _WORDS and "total" in data:
            done = _done(record)
            if _title(record) != key:
                key, begun, said = _title(record), last, now
            if now - said > 10 or done == data["total"]:
                said = now
                left = (now - begun) / max(done, 1) * (data["total"] - done)
                tell(
                    f"{key}: {done}/{data['total']}, {_rate(record, now - begun)}, {left:.0f} s"
                    " left"
                )
        last = time.monotonic()
        yield record


def _done(record: "Record") -> int:
    return int(record.data.get("done", record.data.get("step", 0)))


def _rate(record: "Record", seconds: float) -> str:
    unit = "steps/s" if record.event == "loss" else "images/s"
    loss = f", loss {record.data['loss']:.4g}" if "loss" in record.data else ""
    return f"{_done(record) / max(seconds, 1e-9):.1f} {unit}{loss}"


def _title(record: "Record") -> str:
    data = record.data
    where = f"{data['name']} round {data['round']}: " if "round" in data else ""
    if record.event == "trial":
        count = f"trial {data['trial']} of {data['trials']} or fewer"
        return f"{where}calibrating {data['options']}, {count}"
    return f"{where}{_WORDS[record.event]}{' ' + data['split'] if 'split' in data else ''}"


def _said(record: "Record") -> str:
    """What is said of an event that is no step of a longer work."""
    data = record.data
    where = f"{data.get('name')} round {data.get('round')}"
    if record.event == "evaluate":
        return _summary(record)
    if record.event in ("identify", "damaged", "doubt"):
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
    where = data["name"] if data["round"] is None else f"{data['name']} round {data['round']}"
    return f"{where}: {values or 'no metric applies'}"
