"""Progress on stderr: a moving line on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from invem.engine.run import Record

__all__ = ["follow"]

_WORDS = {"measure": "measuring", "e-step": "E-step", "loss": "M-step", "restore": "restoring"}


def follow(records: Iterable[Record]) -> Iterator[Record]:
    """Passes records on and shows where the run is, how fast it goes and how long it will take."""
    console = Console(stderr=True)
    if not sys.stderr.isatty():
        yield from _plain(records)
        return
    name, rate = TextColumn("{task.description}"), TextColumn("{task.fields[rate]}")
    columns = (name, BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        key, task, begun = "", bar.add_task("starting", total=None, rate=""), time.monotonic()
        for record in records:
            data = record.data
            if record.event in _WORDS and "total" in data:
                title, done = _title(record), data.get("done", data.get("step", 0))
                if title != key:
                    bar.remove_task(task)
                    key, task, begun = title, bar.add_task(title, total=data["total"], rate=""), time.monotonic()
                unit = "steps/s" if record.event == "loss" else "images/s"
                loss = f"  loss {data['loss']:.4g}" if "loss" in data else ""
                speed = done / max(time.monotonic() - begun, 1e-9)
                bar.update(task, completed=done, rate=f"{speed:.1f} {unit}{loss}")
            elif record.event == "evaluate":
                bar.console.print(_summary(record))
            yield record


def _plain(records: Iterable[Record]) -> Iterator[Record]:
    begun, key, said = time.monotonic(), "", 0.0
    for record in records:
        data, now = record.data, time.monotonic()
        if record.event == "evaluate":
            print(_summary(record), file=sys.stderr, flush=True)
        elif record.event in _WORDS and "total" in data:
            done = data.get("done", data.get("step", 0))
            if _title(record) != key:
                key, said, begun = _title(record), now, now
            if now - said > 10 or done == data["total"]:
                said = now
                left = (now - begun) / max(done, 1) * (data["total"] - done)
                loss = f", loss {data['loss']:.4g}" if "loss" in data else ""
                print(f"{key}: {done}/{data['total']}{loss}, {left:.0f} s left", file=sys.stderr, flush=True)
        yield record


def _title(record: Record) -> str:
    data = record.data
    where = f"{data['name']} round {data['round']}: " if "round" in data else ""
    return f"{where}{_WORDS[record.event]}{' ' + data['split'] if 'split' in data else ''}"


def _summary(record: Record) -> str:
    data = record.data
    values = ", ".join(f"{label} {value['value']:.4g} {value['unit']}".rstrip() for label, value in data["metrics"].items())
    where = data["name"] if data["round"] is None else f"{data['name']} round {data['round']}"
    return f"{where}: {values or 'no metric applies'}"
