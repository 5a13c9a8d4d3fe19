"""What a run says of itself: records while it goes on, clocks, the machine, results at the end."""

import contextlib
import os
import platform
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any, NamedTuple

import torch
from torch import nn

from invem.storage.directory import RunDirectory

__all__ = ["Clock", "Record", "count_signals", "environment", "results"]


class Record(NamedTuple):
    """What happened: an event ("measure", "e-step", "fit", "evaluate", "done") and its numbers."""

    event: str
    data: dict[str, Any]


class Clock:
    """Seconds of the wall and of all processors together, since it was made and in the processes
    before that worked on the same step."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.monotonic(), time.process_time()

    def add(self, before: Mapping[str, Any]) -> None:
        """Adds the seconds of an earlier process, as `read` returned them."""
        self.wall -= float(before.get("seconds", 0.0))
        self.cpu -= float(before.get("cpu", 0.0))

    def read(self) -> dict[str, float]:
        """Returns "seconds" and "cpu"."""
        return {"seconds": time.monotonic() - self.wall, "cpu": time.process_time() - self.cpu}


@contextlib.contextmanager
def count_signals(*modules: nn.Module) -> Iterator[list[int]]:
    """Counts the signals that modules are called with, in the one item of a list."""
    rows = [0]

    def count(_: nn.Module, given: tuple[Any, ...], __: Any) -> None:
        rows[0] += len(given[0])

    handles = [module.register_forward_hook(count) for module in modules]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


def environment() -> dict[str, Any]:
    """Returns what a reader of the numbers needs to know about the machine."""
    return {
        "invem": metadata.version("invem"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def results(directory: RunDirectory) -> dict[str, Any]:
    """Returns what a run directory says of itself: recipe, machine, components, evaluations,
    calibrated options, and what of the recipe was changed on the way ("history").

    And by phase and step: seconds of the wall, those of all processors together ("cpu"), and the
    signals that went through the network, forwards and backwards ("passes").

    Raises:
        DataError: If the directory is not a run, or a file of it is damaged.
    """
    about = directory.about()
    log = directory.logged()
    spent: dict[str, dict[str, dict[str, float]]] = {"seconds": {}, "cpu": {}, "passes": {}}
    for row in log:
        for clock, phases in spent.items():
            if clock in row:
                phase = phases.setdefault(row.get("name", "?"), {})
                phase[row["event"]] = round(phase.get(row["event"], 0.0) + row[clock], 1)
    known = ("phase", "name", "round", "values", "error", "how", "settled")
    calibrated = [
        {key: row.get(key) for key in known} for row in log if row.get("event") == "calibrate"
    ]
    found = {"calibrated": calibrated, "evaluations": directory.metrics()}
    found["history"] = directory.history()
    return {"run": str(directory.path), **about, **spent, **found}
