"""The sections of the page: values in words, pictures as data, and the template that sets them."""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from invem.errors import escaped
from invem.report.data import ReportData
from invem.report.figures import Drawn, drawn_figures
from invem.report.images import Column, columns, png, sample_sheet
from invem.report.load import STEPS
from invem.report.words import event_text, headline, value_text, verdict

__all__ = ["render"]

_COMPONENT = ("kind", "name", "distribution", "version")


class _Picture(NamedTuple):
    """A picture inside the page.

    Attributes:
        source: The file as a data URI.
        alt: What it shows, for those who do not see it.
        heading: The words above it.
        size: Its width and height in pixels; None where the page decides.
        vector: Whether it is an SVG file.
    """

    source: str
    alt: str
    heading: str = ""
    size: tuple[int, int] | None = None
    vector: bool = False


class _Card(NamedTuple):
    """The newest value of one metric beside that of the observations, in words."""

    name: str
    direction: str
    value: str
    unit: str
    place: str
    observations: str
    verdict: str


class _Row(NamedTuple):
    label: str
    cells: Sequence[str]


def _visible(value: Any) -> Any:
    """Escapes what would disturb the page; markup of the template itself is left as it is."""
    return escaped(value) if type(value) is str else value


def render(run: ReportData) -> str:
    """Returns the report of a run as one HTML page that loads nothing."""
    environment = Environment(
        loader=PackageLoader("invem.report"),
        autoescape=True,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    figures, problems = drawn_figures(run)
    shown = columns(run.restorations)
    metrics = run.metrics()
    return environment.get_template("report.html").render(
        run=run,
        problems=problems,
        verdict=[*([headline(run)] if run.evaluations else []), *verdict(run)],
        cards=_cards(run),
        columns=[_column_head(column) for column in shown],
        picture_rows=_picture_rows(shown),
        samples=[
            _embedded(sample_sheet(s.images), f"samples of {s.label}", s.label) for s in run.samples
        ],
        figures=[_figure(figure) for figure in figures],
        events=[{"label": e.round.label, "words": event_text(e)} for e in run.events],
        metric_headings=[value.heading(name) for name, value in metrics.items()],
        metric_rows=_metric_rows(run) if metrics else [],
        steps=STEPS,
        times=[_Row(label, _seconds(row)) for label, row in run.times.items()],
        total_time=_seconds(_total(run.times)),
        environment=[(name, _text(value)) for name, value in run.environment.items()],
        component_keys=_COMPONENT,
        components=[[_text(c.get(key)) for key in _COMPONENT] for c in run.components],
    )


# Numbers.


def _cards(run: ReportData) -> list[_Card]:
    cards = []
    for name in run.metrics():
        last = next((e for e in reversed(run.evaluations) if name in e.metrics), None)
        raw = run.observations.get(name)
        shown = last.metrics[name] if last else raw
        if shown is None:
            continue
        better = shown.improves_on(raw) if last and raw else None
        cards.append(
            _Card(
                name,
                shown.direction,
                value_text(shown),
                shown.unit,
                last.round.label if last else run.baseline,
                value_text(raw) if last and raw else "",
                {True: "better", False: "worse", None: ""}[better],
            )
        )
    return cards


def _metric_rows(run: ReportData) -> list[_Row]:
    rows = [(run.baseline, run.observations)] if run.observations else []
    rows += [(e.round.label, e.metrics) for e in run.evaluations]
    names = run.metrics()
    return [_Row(label, [value_text(row.get(name)) for name in names]) for label, row in rows]


def _seconds(row: Mapping[str, float]) -> list[str]:
    each = [f"{row[step]:.1f}" if step in row else "–" for step in STEPS]
    return [*each, f"{sum(row.values()):.1f}"]


def _total(times: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for row in times.values():
        for step, seconds in row.items():
            total[step] = total.get(step, 0.0) + seconds
    return total


def _text(value: object) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# Pictures.


def _source(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _embedded(image: Image.Image, alt: str, heading: str = "") -> _Picture:
    return _Picture(_source("png", png(image)), alt, heading, image.size)


def _figure(figure: Drawn) -> dict[str, Any]:
    pictures = []
    for heading, picture in figure.pictures.items():
        alt = f"{figure.title}: {heading}" if heading else figure.title
        # As an image, an SVG file can neither run a script nor load a file.
        if isinstance(picture, str):
            source = _source("svg+xml", picture.encode("utf-8", errors="replace"))
        else:
            source = _source("png", picture)
        pictures.append(_Picture(source, alt, heading, vector=isinstance(picture, str)))
    return {"title": figure.title, "caption": figure.caption, "pictures": pictures}


def _column_head(column: Column) -> dict[str, Any]:
    scale = column.scale and [f"{value:.2g}" for value in column.scale]
    return {"title": column.title, "scale": scale}


def _picture_rows(shown: Sequence[Column]) -> list[list[_Picture | None]]:
    count = max((len(column.images) for column in shown), default=0)
    return [
        [
            _embedded(column.images[i], f"{column.title} {i + 1}")
            if i < len(column.images)
            else None
            for column in shown
        ]
        for i in range(count)
    ]
