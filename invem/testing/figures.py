"""What every figure of the report must do."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from invem import report
from invem.report.data import (
    Evaluation,
    Identifiability,
    Loss,
    MetricValue,
    Restorations,
    Round,
    RoundEvent,
    Samples,
)
from invem.testing.base import Factory, Kind, example_options

__all__ = ["FIGURES", "empty_run", "example_run"]

_METRICS = {"quality": (True, None), "distance": (False, 1.0)}


def empty_run() -> report.ReportData:
    """Returns what a report shows of a run that has only just begun."""
    return report.ReportData(
        path=Path("runs/example"),
        name="example",
        created="",
        state="unfinished",
        recipe="",
        environment={},
        components=[],
        observations={},
        evaluations=[],
        restorations=None,
        samples=[],
        losses=[],
        times={},
        events=[],
        identifiability=None,
        log=[],
        damaged=[],
    )


def example_run(scale: float = 1.0) -> report.ReportData:
    """Returns what a report shows of a finished run of two phases.

    Args:
        scale: What every number is multiplied with; NaN is a run that diverged.
    """
    rounds = [Round("warm-start", 0), Round("em", 0), Round("em", 1)]
    images = scale * np.linspace(-1, 1, 3 * 4 * 64).reshape(3, 4, 1, 8, 8)
    evaluations = [
        Evaluation(int(i > 0), at, _values(scale * (i + 1))) for i, at in enumerate(rounds)
    ]
    return dataclasses.replace(
        empty_run(),
        state="finished",
        components=[{"kind": "samplers", "name": "x", "distribution": "y", "version": "1"}],
        observations=_values(scale),
        evaluations=evaluations,
        restorations=Restorations("em 2", images[:, 0], images, images, images[:, 1]),
        samples=[Samples("1-001-evaluation", "em 2", images[:, 2])],
        losses=[Loss(at, scale / (step + 1)) for at in rounds for step in range(5)],
        times={at.label: {"e-step": 1.0, "fit": 2.0, "evaluate": 0.5} for at in rounds},
        events=[
            event
            for at in rounds
            for event in (
                RoundEvent(at, "e-step", {"residual": scale}, ""),
                RoundEvent(at, "calibrate", {"noise.sigma": scale}, ""),
            )
        ],
        identifiability=Identifiability(["8 of 64 directions are hidden."], ""),
        log=[{"event": "e-step", "name": at.phase, "round": at.number} for at in rounds],
    )


def _values(value: float) -> dict[str, MetricValue]:
    return {
        name: MetricValue(value, 0.1 * value, "", better, target)
        for name, (better, target) in _METRICS.items()
    }


def _cases(factory: Factory, folder: Path) -> Iterator[tuple[str, Factory]]:
    for label, options in example_options(factory, (), folder):
        yield label, lambda options=options: factory(**options)


FIGURES = Kind(
    "figures",
    "Tried on a run that has only just begun, on a finished one, on one that diverged, and on"
    " finished ones that lack a part.",
    _cases,
)


@FIGURES.contract("title and caption", tolerance=0.0)
def title_and_caption(make: Factory) -> float:
    """It has a title and a caption, each one line of text."""
    figure = make()
    texts = (figure.title, figure.caption)
    return float(sum(not (isinstance(t, str) and t.strip()) or "\n" in t for t in texts))


@FIGURES.contract("an empty run", tolerance=0.0)
def an_empty_run(make: Factory) -> float:
    """Of a run that has only just begun it draws None."""
    return float(make().draw(empty_run()) is not None)


@FIGURES.contract("pictures", tolerance=0.0)
def pictures(make: Factory) -> float:
    """What it draws of a finished run is a PNG file as bytes, an SVG file as text, several of them
    by heading, or None; the number of those that are not."""
    return float(sum(not _is_picture(p) for p in _pictures(make().draw(example_run()))))


@FIGURES.contract("same bytes twice", tolerance=0.0)
def same_bytes_twice(make: Factory) -> float:
    """The same run is drawn to the same bytes, by the same figure and by a new one."""
    figure = make()
    drawn = [one.draw(example_run()) for one in (figure, figure, make())]
    return float(drawn[1] != drawn[0]) + float(drawn[2] != drawn[0])


@FIGURES.contract("a part is missing", tolerance=0.0)
def a_part_is_missing(make: Factory) -> float:
    """A run whose numbers are not finite, or which lacks any one part, is drawn without an error;
    the number of drawings that are no pictures."""
    whole, empty = example_run(), empty_run()
    runs = [example_run(math.nan)]
    for field in dataclasses.fields(whole):
        runs.append(dataclasses.replace(whole, **{field.name: getattr(empty, field.name)}))
    return float(sum(not _is_picture(p) for run in runs for p in _pictures(make().draw(run))))


def _pictures(drawn: Any) -> list[Any]:
    if drawn is None:
        return []
    return list(drawn.values()) if isinstance(drawn, Mapping) else [drawn]


def _is_picture(drawn: object) -> bool:
    if isinstance(drawn, bytes):
        return drawn.startswith(b"\x89PNG")
    return isinstance(drawn, str) and "<svg" in drawn
