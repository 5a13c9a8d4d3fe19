"""The number of threads of a run: that of the recipe, or the one with which it is fastest."""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from invem import config as recipes
from invem.errors import InvemError
from invem.planning.plan import Plan
from invem.running.context import Context
from invem.running.rehearsal import gradient_step

__all__ = ["Threads", "choose_threads", "set_threads"]

_MOST = 4  # threads per core; more of them only wait for each other
_TRIES = 3  # gradient steps that are timed
_SHORT = 0.05  # seconds of a step that can be timed
_GAIN = 0.95  # the share of the time that more threads must come down to
_SLOW = 1.5  # how much slower than one thread is worth a warning


class Threads(NamedTuple):
    """The threads of a run.

    Attributes:
        number: How many.
        tried: The seconds of a gradient step by the numbers that were tried; empty if none were.
        warning: What a person should know, or "".
    """

    number: int
    tried: dict[int, float]
    warning: str = ""

    def describe(self) -> dict[str, Any]:
        """Returns the same as plain data."""
        tried = {str(n): round(seconds, 4) for n, seconds in self.tried.items()}
        return {"threads": self.number, "tried": tried, "warning": self.warning}


def set_threads(run: Context) -> Threads:
    """Sets the number of threads of this process, and returns it.

    The bytes of a run depend on the number. So a run that goes on has the one that it was begun
    with.
    """
    found = choose_threads(run)
    torch.set_num_threads(found.number)
    return found


def choose_threads(run: Context) -> Threads:
    """Returns the number of threads that a run has, and sets nothing."""
    asked, there = run.recipe.compute.threads, torch.get_num_threads()
    if isinstance(asked, int):
        return _asked_for(run, min(asked, _MOST * (os.cpu_count() or 1)))
    if asked == "auto" and run.directory.begun:
        kept = run.directory.about().get("environment", {}).get("threads")
        return Threads(kept if isinstance(kept, int) and kept > 0 else there, {})
    if asked == "auto" and there > 1 and run.device.type == "cpu":
        return _fastest(run.plan, there)
    return Threads(there, {})


def _fastest(plan: Plan, most: int) -> Threads:
    """Returns the number of threads, up to a most, with which a gradient step is fastest."""
    numbers = [1]
    while 2 * numbers[-1] < most:
        numbers.append(2 * numbers[-1])
    tried: dict[int, float] = {}
    best = most
    for n, seconds in _timed(plan, [*numbers, most]):
        if tried and seconds > _GAIN * tried[best]:
            tried[n] = seconds
            break
        best, tried[n] = n, seconds
    return Threads(best, tried)


def _asked_for(run: Context, number: int) -> Threads:
    """Returns the number of the recipe, with a warning if one thread is much faster."""
    if number == 1 or run.directory.begun or run.device.type != "cpu":
        return Threads(number, {})
    tried = dict(_timed(run.plan, [1, number]))
    if not tried or tried[number] < _SLOW * tried[1]:
        return Threads(number, tried)
    told = (
        f"with {number} threads a gradient step takes {tried[number]:.2g} s, with one"
        f" {tried[1]:.2g} s: `auto` takes what is faster"
    )
    place = ("compute", "threads")
    return Threads(number, tried, str(recipes.error(run.plan.loaded, place, told)))


def _timed(plan: Plan, numbers: list[int]) -> list[tuple[int, float]]:
    """Returns the seconds of a gradient step with each number of threads; nothing if no phase
    trains a network, or if a step on made-up observations fails."""
    before = torch.get_num_threads()
    try:
        with gradient_step(plan) as found:
            return [] if found is None else [(n, _seconds(*found, n)) for n in numbers]
    except (InvemError, RuntimeError, ValueError):
        return []
    finally:
        torch.set_num_threads(before)


def _seconds(step: Callable[[int], object], batch: int, threads: int) -> float:
    """Returns the median time of a few gradient steps, after one that is not timed; of fewer
    examples where that takes long enough."""
    torch.set_num_threads(threads)
    rows = min(batch, 8)
    step(rows)
    while (seconds := _once(step, rows)) < _SHORT and rows < batch:
        rows = min(2 * rows, batch)
    return (
        statistics.median([seconds, *(_once(step, rows) for _ in range(_TRIES - 1))]) * batch / rows
    )


def _once(step: Callable[[int], object], rows: int) -> float:
    begun = time.perf_counter()
    step(rows)
    return time.perf_counter() - begun
