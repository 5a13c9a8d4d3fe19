"""What every noise schedule must do."""

from collections.abc import Iterator
from pathlib import Path

import torch

from invem.schedule import Schedule
from invem.testing.base import Factory, Kind, example_options

__all__ = ["SCHEDULES"]


def _cases(factory: Factory, folder: Path) -> Iterator[tuple[str, Schedule]]:
    for label, options in example_options(factory, (), folder):
        yield label, factory(**options)


SCHEDULES = Kind("schedules", "Tried with 2, 3 and 100 levels.", _cases)


@SCHEDULES.contract("decreasing", tolerance=0.0)
def decreasing(schedule: Schedule) -> float:
    """`grid` has that many levels in float64, positive and strictly decreasing, from sigma(0) to
    sigma(1)."""
    wrong = 0
    ends = schedule.sigma(torch.tensor([0.0, 1.0], dtype=torch.float64))
    for steps in (2, 3, 100):
        grid = schedule.grid(steps)
        wrong += (
            grid.shape != (steps,)
            or grid.dtype != torch.float64
            or not bool((grid[1:] < grid[:-1]).all() and (grid > 0).all())
        )
        wrong += not torch.allclose(grid[[0, -1]], ends)
    return float(wrong)
