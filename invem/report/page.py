"""The report of a run: one self-contained page and its pictures, from the files of the run alone.

Nothing is recomputed but the mean and the standard deviation of stored draws. Every part of a run
but `run.json` may be missing, and then its section is; a damaged file is named at the top of the
page and otherwise treated as missing.
"""

import base64
import io
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from safetensors import SafetensorError, safe_open

from invem.config import yaml
from invem.errors import DataError, InvemError

__all__ = ["pictures", "write"]

Array = npt.NDArray[np.float64]

_ROWS, _SAMPLES, _CELL, _GAP = 8, 14, 80, 4
_POINTS = 800
_EVALUATION = re.compile(r"(\d+)-(\d+)-evaluation")
_STEPS = ("e-step", "fit", "evaluate")


def write(run: Path) -> Path:
    """Writes the report of a run.

    Args:
        run: The directory of the run, finished or not.

    Returns:
        The page, `run/report.html`; it is replaced as a whole or not at all.

    Raises:
        DataError: The directory is not a run.
    """
    page = _page(_load(run))
    return _replace(run / "report.html", page.encode("utf-8", errors="replace"))


def pictures(run: Path) -> list[Path]:
    """Writes the pictures of a report as PNG files.

    Args:
        run: The directory of the run, finished or not.

    Returns:
        The files in `run/pictures`: `restorations.png` and one `samples-<phase>-<round>.png` per
            evaluated round,
        each only where the run has images.

    Raises:
        DataError: The directory is not a run.
    """
    loaded = _load(run)
    made: list[tuple[str, Image.Image]] = []
    columns, _ = _columns(loaded)
    if columns:
        made.append(("restorations.png", _sheet(columns)))
    for place, _, images in _samples(loaded):
        made.append((f"samples-{place.removesuffix('-evaluation')}.png", _strip(images)))
    folder = run / "pictures"
    if made:
        folder.mkdir(exist_ok=True)
    return [_replace(folder / name, _png(image)) for name, image in made]


# Files.


class _Value(NamedTuple):
    value: float
    sem: float
    unit: str
    higher: bool | None


@dataclass(frozen=True)
class _Round:
    """One evaluation; `phase` is None for the raw observations."""

    phase: int | None
    name: str
    round: int | None
    metrics: dict[str, _Value]

    @property
    def label(self) -> str:
        return self.name if self.round is None else f"{self.name} {self.round}"


@dataclass(frozen=True)
class _Run:
    path: Path
    about: dict[str, Any]
    rounds: list[_Round]
    observed: dict[str, _Value]
    log: list[dict[str, Any]]
    evaluations: list[Path]
    damaged: list[str]

    def metrics(self) -> dict[str, _Value]:
        """Every metric once, in order of appearance, with its newest value."""
        return {**self.observed, **{k: v for r in self.rounds for k, v in r.metrics.items()}}


def _load(path: Path) -> _Run:
    try:
        about = json.loads((path / "run.json").read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        raise DataError(f"{str(path)!r} is not a run: no readable run.json in it") from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{str(path / 'run.json')!r} is not valid JSON: the run is damaged"
        ) from error
    if not isinstance(about, dict):
        raise DataError(f"{str(path / 'run.json')!r} is not a JSON object: the run is damaged")
    damaged: list[str] = []
    evaluations = sorted(
        (p for p in path.iterdir() if _EVALUATION.fullmatch(p.name)),
        key=lambda p: [int(part) for part in p.name.split("-")[:2]],
    )
    lines = _lines(path / "metrics.jsonl", damaged)
    if not lines:
        for folder in evaluations:
            lines += _lines(folder / "metrics.json", damaged, whole=True)
    # A resumed run may have evaluated a round twice: the newer line counts, at the place of the
    # older.
    found = {(r.phase, r.name, r.round): r for r in map(_round, lines)}
    observed: dict[str, _Value] = {}
    rounds = []
    for key, entry in found.items():
        if key[0] is None and key[2] is None:
            observed.update(entry.metrics)
        else:
            rounds.append(entry)
    return _Run(
        path, about, rounds, observed, _lines(path / "log.jsonl", damaged), evaluations, damaged
    )


def _lines(path: Path, damaged: list[str], whole: bool = False) -> list[dict[str, Any]]:
    """Reads JSON objects, one a line or one in all; a torn last line is what a running run looks
    like."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines = [text] if whole else text.split("\n")
    found = []
    for i, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if isinstance(entry, dict):
            found.append(entry)
        elif whole or i < len(lines) - 1:
            damaged.append(f"{path.name}, line {i + 1}")
    return found


def _round(line: dict[str, Any]) -> _Round:
    metrics = {}
    stored = line.get("metrics")
    for name, entry in (stored if isinstance(stored, dict) else {}).items():
        entry = entry if isinstance(entry, dict) else {"value": entry}
        higher = entry.get("higher_is_better")
        metrics[name] = _Value(
            _number(entry.get("value")),
            _number(entry.get("sem")),
            str(entry.get("unit") or ""),
            higher if isinstance(higher, bool) else None,
        )
    phase, number = _integer(line.get("phase")), _integer(line.get("round"))
    return _Round(phase, str(line.get("name") or ""), number, metrics)


def _number(value: object) -> float:
    """A float from what JSON held: null is NaN, and so is all that is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def _integer(value: object) -> int | None:
    number = _number(value)
    return int(number) if math.isfinite(number) else None


def _tensor(run: _Run, name: str, key: str, limit: int) -> Array | None:
    """The first `limit` rows of a stored tensor (n, ...), or None; of complex numbers, the
    modulus."""
    path = run.path / name
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            if key not in file.keys():  # noqa: SIM118
                return None
            rows = file.get_slice(key)
            shape = rows.get_shape()
            if len(shape) < 2 or not min(shape):
                return None
            value = np.asarray(rows[: min(limit, shape[0])])
    except (OSError, SafetensorError, TypeError, ValueError, AttributeError):
        run.damaged.append(name)
        return None
    if np.iscomplexobj(value):
        value = np.abs(value)
    return value.astype(np.float64)


# Pictures.


class _Column(NamedTuple):
    title: str
    images: list[Image.Image]


def _image(x: Array, low: float = -1.0, high: float = 1.0) -> Image.Image:
    """A picture of x (C, H, W), in nearest-neighbour pixels; channels are RGB if C is 3, else the
    first is shown."""
    x = np.nan_to_num(x, nan=low, posinf=high, neginf=low)
    unit = np.clip((x - low) / ((high - low) or 1.0), 0.0, 1.0)
    pixels = np.round(255 * unit).astype(np.uint8)
    image = Image.fromarray(pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0])
    factor = max(1, round(_CELL / max(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _range(x: Array) -> tuple[float, float]:
    finite = x[np.isfinite(x)]
    return (float(finite.min()), float(finite.max())) if finite.size else (-1.0, 1.0)


def _columns(run: _Run) -> tuple[list[_Column], str]:
    """The grid of held-out observations, column by column, and the name of the evaluation it
    shows."""
    draws, more, shown = None, None, ""
    for folder in reversed(run.evaluations):
        draws = _tensor(run, f"{folder.name}/restorations.safetensors", "draws", _ROWS)
        if draws is not None and draws.ndim == 5 and draws.shape[1]:
            more = _tensor(run, f"{folder.name}/posterior.safetensors", "draws", _ROWS)
            shown = _title(run, folder.name)
            break
        draws = None
    y = _tensor(run, "measurements/test/00000.safetensors", "y", _ROWS)
    truth = _tensor(run, "truth/00000.safetensors", "x", _ROWS)
    columns = []
    if (
        y is not None
        and y.ndim == 3
        and (draws is not None or (truth is not None and truth.ndim == 4))
    ):
        y = y[:, None]
    if y is not None and y.ndim == 4 and y.size:
        # Most measurements live on the scale of the images; those that do not are shown on their
        # own.
        if np.nanmax(np.abs(np.nan_to_num(y))) <= 3:
            columns.append(_Column("observation", [_image(v) for v in y]))
        else:
            title = "observation (each on its own scale)"
            columns.append(_Column(title, [_image(v, *_range(v)) for v in y]))
    if draws is not None and draws.size:
        columns.append(_Column("restoration (one draw)", [_image(v) for v in draws[:, 0]]))
        many = draws if more is None or more.ndim != 5 else more
        if many.shape[1] > 1:
            columns.append(
                _Column(f"mean of {many.shape[1]} draws", [_image(v) for v in many.mean(axis=1)])
            )
            variance = many.var(axis=1, ddof=1)
            spread = np.sqrt(
                variance.mean(axis=1, keepdims=True) if many.shape[2] == 3 else variance
            )
            top = _range(spread[:, :1])[1]
            title = f"their standard deviation (black 0, white {top:.2g})"
            columns.append(_Column(title, [_image(v[:1], 0.0, top) for v in spread]))
    if truth is not None and truth.ndim == 4 and truth.size:
        columns.append(_Column("truth", [_image(v) for v in truth]))
    return columns, shown


def _samples(run: _Run) -> list[tuple[str, str, list[Image.Image]]]:
    """Folder, title and unconditional samples of every evaluated round."""
    found = []
    for folder in run.evaluations:
        x = _tensor(run, f"{folder.name}/samples.safetensors", "x", _SAMPLES)
        if x is not None and x.ndim == 4 and x.size:
            found.append((folder.name, _title(run, folder.name), [_image(v) for v in x]))
    return found


def _title(run: _Run, folder: str) -> str:
    phase, number = (int(part) for part in folder.split("-")[:2])
    for entry in run.rounds:
        if (entry.phase, entry.round) == (phase, number):
            return entry.label
    return f"phase {phase}, round {number}"


def _strip(images: Sequence[Image.Image]) -> Image.Image:
    """Images of one size, side by side on a transparent ground."""
    width, height = images[0].size
    sheet = Image.new("RGBA", ((width + _GAP) * len(images) - _GAP, height), (0, 0, 0, 0))
    for i, image in enumerate(images):
        sheet.paste(image.convert("RGBA"), (i * (width + _GAP), 0))
    return sheet


def _sheet(columns: Sequence[_Column]) -> Image.Image:
    """The grid with the titles of its columns, on white."""
    words = [re.sub(r" (standard|\(|white)", r"\n\1", c.title) for c in columns]
    widths = [max(_CELL + 44, *(image.width for image in c.images)) for c in columns]
    height = max(image.height for c in columns for image in c.images)
    rows = max(len(c.images) for c in columns)
    head = 16 * (1 + max(word.count("\n") for word in words)) + _GAP
    size = (sum(widths) + _GAP * (len(widths) + 1), head + rows * (height + _GAP) + _GAP)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    left = _GAP
    for column, word, width in zip(columns, words, widths, strict=True):
        pen.multiline_text((left, _GAP), word, fill="black")
        for i, image in enumerate(column.images):
            sheet.paste(image.convert("RGB"), (left, head + i * (height + _GAP)))
        left += width + _GAP
    return sheet


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def _img(image: Image.Image, alt: str) -> str:
    data = base64.b64encode(_png(image)).decode("ascii")
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img src="data:image/png;base64,{data}" {size} alt="{escape(alt)}">'


# The page.

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5d6671; --line: #d9dee4; --ground: #ffffff;
  --panel: #f5f7f9; --accent: #1f66b8; --good: #1a7f45; --bad: #b3392f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --soft: #9aa4af; --line: #343b43; --ground: #15181c;
  --panel: #1d2126; --accent: #74aef0; --good: #63c78c; --bad: #ee8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 32px 24px 64px; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 44px 0 12px; padding-bottom: 6px; border-bottom: 1px solid var(--line); }
p { margin: 0 0 12px; max-width: 75ch; } .soft { color: var(--soft); } .good { color: var(--good); }
.bad { color: var(--bad); } .scroll { overflow-x: auto; }
.strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); gap: 12px; margin-top: 24px; }
.card { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 12px 16px; }
.card b { display: block; font-size: 26px; line-height: 1.3; font-variant-numeric: tabular-nums; }
.card b small { font-size: 14px; font-weight: 400; color: var(--soft); }
.card span { display: block; font-size: 14px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 15px; }
th, td { text-align: left; padding: 5px 20px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } thead th { color: var(--soft); font-size: 14px; vertical-align: bottom; }
td.n, th.n { text-align: right; white-space: nowrap; } tbody th { font-weight: 400; white-space: nowrap; }
table.grid th, table.grid td { border: 0; padding: 3px 10px 3px 0; } table.grid thead th { max-width: 150px; }
img { display: block; image-rendering: pixelated; }
.samples { display: grid; grid-template-columns: max-content 1fr; gap: 6px 16px; align-items: center; }
.samples img { max-width: 100%; height: auto; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(400px, 1fr)); gap: 24px; }
figure { margin: 0; min-width: 0; } figcaption { font-weight: 600; font-size: 15px; } svg { width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 12px; } svg .axis { stroke: var(--line); }
svg .curve { stroke: var(--accent); fill: none; stroke-width: 1.8; } svg .dot { fill: var(--accent); }
svg .bar { stroke: var(--accent); stroke-width: 1.2; } svg .dash { stroke: var(--soft); stroke-dasharray: 5 4; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 14px 16px; overflow-x: auto;
  font: 14px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media (max-width: 480px) { .plots { grid-template-columns: 1fr; } .samples { grid-template-columns: 1fr; } }
"""


def _page(run: _Run) -> str:
    name = str(run.about.get("name") or run.path.resolve().name)
    sections = [
        ("Held-out observations", _grid(run)),
        ("Unconditional samples", _gallery(run)),
        ("Metrics over the run", _curves(run)),
        ("What the observations can tell", _identifiability(run)),
        ("Rounds", _rounds(run)),
        ("Training loss", _loss(run)),
        ("All metrics", _all_metrics(run)),
        ("Times", _times(run)),
        ("Recipe", _recipe(run)),
        ("Environment", _environment(run)),
        ("Components", _components(run)),
    ]
    created = run.about.get("created")
    line = " · ".join([*([f"created {escape(str(created))}"] if created else []), _state(run)])
    body = [f"<h1>{escape(name)}</h1>", f'<p class="soft">{line}</p>']
    if run.damaged:
        names = ", ".join(escape(d) for d in dict.fromkeys(run.damaged))
        body.append(f'<p class="bad">Not readable, and left out: {names}.</p>')
    body.append(_headline(run))
    body += [
        f"<section><h2>{title}</h2>{content}</section>" for title, content in sections if content
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)} · invem</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _identifiability(run: _Run) -> str:
    """What was said, before the run, of the directions that the observations show."""
    path = run.path / "identifiability.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8", errors="replace"))
        lines = [str(line) for line in found["lines"]]
    except OSError:
        return ""
    except (ValueError, RecursionError, KeyError, TypeError):
        run.damaged.append(path.name)
        return ""
    warning = f'<p class="bad">{escape(str(found["warning"]))}</p>' if found.get("warning") else ""
    return warning + "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _rounds(run: _Run) -> str:
    """What each E-step says of itself: the misfit of its draws, calibrated options, and what ended
    a phase."""
    body = []
    for entry in run.log:
        name, number = escape(str(entry.get("name"))), _integer(entry.get("round"))
        if entry.get("event") == "e-step" and math.isfinite(
            residual := _number(entry.get("residual"))
        ):
            words = (
                f"squared residual of the draws, in units of the noise: {residual:.4g} (1 for"
                " posterior draws)"
            )
        elif entry.get("event") == "calibrate" and isinstance(values := entry.get("values"), dict):
            words = "calibrated: " + ", ".join(
                f"{key} = {_number(value):.4g}" for key, value in values.items()
            )
        elif entry.get("event") == "stop":
            words = f"the phase ends: {entry.get('reason')}"
        else:
            continue
        body.append(f"<tr><th>{name} {number}</th><td>{escape(words)}</td></tr>")
    return f"<table><tbody>{''.join(body)}</tbody></table>" if body else ""


def _state(run: _Run) -> str:
    """Whether the last round of the recipe's last phase is there; a phase without a due evaluation
    counts by its steps."""
    text = "; ".join(
        ["unfinished", *(f"last evaluated: {escape(r.label)}" for r in run.rounds[-1:])]
    )
    try:
        recipe = yaml.load(str(run.about.get("recipe", "")), "recipe").value
        last = recipe["phases"][-1]
        name, rounds = str(last["name"]), int(last.get("rounds", 1))
        evaluate = recipe.get("evaluate") or {}
        due = bool(evaluate.get("metrics")) and rounds % int(evaluate.get("every", 1)) == 0
    except (
        InvemError,
        KeyError,
        IndexError,
        TypeError,
        ValueError,
        AttributeError,
        ZeroDivisionError,
    ):
        return (
            "unknown whether finished"
            if not run.rounds
            else f"last evaluated: {escape(run.rounds[-1].label)}"
        )
    seen = [(r.name, r.round) for r in run.rounds]
    if not due:
        seen += [
            (str(e.get("name")), _integer(e.get("round")))
            for e in run.log
            if e.get("event") in _STEPS
        ]
    numbers = [number for _, number in seen if number is not None]
    return "finished" if numbers and (name, rounds - 1) in seen else text


def _headline(run: _Run) -> str:
    cards = []
    for name in run.metrics():
        last = next((r for r in reversed(run.rounds) if name in r.metrics), None)
        raw = run.observed.get(name)
        shown = last.metrics[name] if last else raw
        if shown is None:
            continue
        where = escape(last.label) if last else "observations"
        lines = (
            f"<span>{escape(name)} {_arrow(shown)}</span><b>{_pm(shown)}"
            f" <small>{escape(shown.unit)}</small></b>"
        )
        lines += f'<span class="soft">{where}</span>'
        if last and raw:
            change = shown.value - raw.value
            kind = ""
            if shown.higher is not None and math.isfinite(change) and change:
                kind = "good" if (change > 0) == shown.higher else "bad"
            word = {"good": " · better", "bad": " · worse", "": ""}[kind]
            lines += f'<span class="{kind}">observations {_pm(raw)}{word}</span>'
        cards.append(f'<div class="card">{lines}</div>')
    return f'<div class="strip">{"".join(cards)}</div>' if cards else "<p>No evaluation yet.</p>"


def _grid(run: _Run) -> str:
    columns, shown = _columns(run)
    if not columns:
        return ""
    head = "".join(f"<th>{escape(c.title)}</th>" for c in columns)
    rows = ""
    for i in range(max(len(c.images) for c in columns)):
        cells = (
            f"<td>{_img(c.images[i], f'{c.title} {i + 1}') if i < len(c.images) else ''}</td>"
            for c in columns
        )
        rows += f"<tr>{''.join(cells)}</tr>"
    note = f'<p class="soft">Restorations of {escape(shown)}.</p>' if shown else ""
    table = f'<table class="grid"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f'{note}<div class="scroll">{table}</div>'


def _gallery(run: _Run) -> str:
    rows = [
        f"<div>{escape(title)}</div><div>{_img(_strip(images), f'samples of {title}')}</div>"
        for _, title, images in _samples(run)
    ]
    return f'<div class="samples">{"".join(rows)}</div>' if rows else ""


def _curves(run: _Run) -> str:
    if not run.rounds:
        return ""
    figures = []
    labels = [r.label for r in run.rounds]
    for name, newest in run.metrics().items():
        values = [r.metrics[name].value if name in r.metrics else math.nan for r in run.rounds]
        sems = [r.metrics[name].sem if name in r.metrics else math.nan for r in run.rounds]
        raw = run.observed[name].value if name in run.observed else math.nan
        plot = _plot(list(range(len(values))), values, sems=sems, dashed=raw, labels=labels)
        if plot:
            unit = f" ({escape(newest.unit)})" if newest.unit else ""
            caption = f"<figcaption>{escape(name)}{unit} {_arrow(newest)}</figcaption>"
            figures.append(f"<figure>{caption}{plot}</figure>")
    note = '<p class="soft">Bars: one standard error. Dashed: the observations themselves.</p>'
    return f'{note}<div class="plots">{"".join(figures)}</div>' if figures else ""


def _loss(run: _Run) -> str:
    # As with evaluations, what a resumed run repeated counts once.
    found: dict[tuple[str, ...], tuple[str, float]] = {}
    for i, entry in enumerate(run.log):
        if entry.get("event") == "loss":
            place = [str(entry.get(key)) for key in ("phase", "round", "step")]
            key = tuple(place) if "step" in entry else (*place, str(i))
            found[key] = (
                f"{entry.get('name', '')} {entry.get('round', '')}",
                _number(entry.get("loss")),
            )
    points = list(found.values())
    if not points:
        return ""
    width = math.ceil(len(points) / _POINTS)
    labels, values = [], []
    for i in range(0, len(points), width):
        part = [v for _, v in points[i : i + width] if math.isfinite(v)]
        labels.append(points[i][0])
        values.append(sum(part) / len(part) if part else math.nan)
    finite = [v for v in values if math.isfinite(v)]
    log = bool(finite) and min(finite) > 0
    plot = _plot(list(range(len(values))), values, labels=labels, log=log, wide=True)
    scale = "logarithmic" if log else "linear"
    mean = f"; each point is the mean of {width} logged values" if width > 1 else ""
    return f'<p class="soft">All rounds in order, {scale} axis{mean}.</p>{plot}' if plot else ""


def _all_metrics(run: _Run) -> str:
    metrics = run.metrics()
    if not metrics:
        return ""
    heads = []
    for name, newest in metrics.items():
        unit = f", {escape(newest.unit)}" if newest.unit else ""
        heads.append(f"{escape(name)}{unit} {_arrow(newest)}")
    rows = (
        [["observations", *(_pm(run.observed.get(name)) for name in metrics)]]
        if run.observed
        else []
    )
    rows += [[escape(r.label), *(_pm(r.metrics.get(name)) for name in metrics)] for r in run.rounds]
    note = '<p class="soft">Value ± one standard error. ↑ higher is better, ↓ lower is better.</p>'
    return note + _table(["round", *heads], rows, numbers=True)


def _times(run: _Run) -> str:
    found: dict[str, dict[str, float]] = {}
    for entry in run.log:
        event, seconds = entry.get("event"), _number(entry.get("seconds"))
        if event in _STEPS and math.isfinite(seconds):
            label = f"{entry.get('name') or ''} {'' if entry.get('round') is None else entry['round']}".strip()
            row = found.setdefault(label, {})
            row[event] = row.get(event, 0.0) + seconds
    if not found:
        return ""

    def cells(row: dict[str, float]) -> list[str]:
        return [f"{row[e]:.1f}" if e in row else "–" for e in _STEPS] + [f"{sum(row.values()):.1f}"]

    total = {
        e: sum(r[e] for r in found.values() if e in r)
        for e in _STEPS
        if any(e in r for r in found.values())
    }
    rows = [[escape(label), *cells(row)] for label, row in found.items()]
    rows.append(["<b>all</b>", *(f"<b>{cell}</b>" for cell in cells(total))])
    return _table(["round", *(f"{e}, s" for e in _STEPS), "sum, s"], rows, numbers=True)


def _recipe(run: _Run) -> str:
    recipe = run.about.get("recipe")
    return f"<pre>{escape(str(recipe))}</pre>" if recipe else ""


def _environment(run: _Run) -> str:
    environment = run.about.get("environment")
    if not isinstance(environment, dict) or not environment:
        return ""
    return _table(["", ""], [[escape(str(k)), escape(_text(v))] for k, v in environment.items()])


def _components(run: _Run) -> str:
    components = run.about.get("components")
    keys = ("kind", "name", "distribution", "version")
    parts = [c for c in components if isinstance(c, dict)] if isinstance(components, list) else []
    return _table(keys, [[escape(_text(c.get(k))) for k in keys] for c in parts]) if parts else ""


def _text(value: object) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _table(head: Iterable[str], rows: Iterable[Sequence[str]], numbers: bool = False) -> str:
    """A table of cells that are HTML already; with `numbers`, all but the first column are set to
    the right."""
    kind = ' class="n"' if numbers else ""
    titles = "".join(f"<th{kind if i else ''}>{cell}</th>" for i, cell in enumerate(head))
    top = (
        f"<thead><tr>{titles}</tr></thead>"
        if titles.replace("<th>", "").replace("</th>", "")
        else ""
    )
    body = ""
    for row in rows:
        body += f"<tr><th>{row[0]}</th>{''.join(f'<td{kind}>{cell}</td>' for cell in row[1:])}</tr>"
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'


def _arrow(value: _Value) -> str:
    return {True: "↑", False: "↓", None: ""}[value.higher]


def _pm(value: _Value | None) -> str:
    """Value ± standard error, to two digits of the error."""
    if value is None or math.isnan(value.value):
        return "–"
    if not math.isfinite(value.value):
        return "∞" if value.value > 0 else "−∞"
    if not math.isfinite(value.sem) or value.sem <= 0:
        return f"{value.value:.4g}".replace("-", "−")
    digits = max(0, 1 - math.floor(math.log10(value.sem)))
    if digits > 8 or abs(value.value) >= 1e7:
        return f"{value.value:.4g} ± {value.sem:.2g}".replace("-", "−")
    return f"{value.value:.{digits}f} ± {value.sem:.{digits}f}".replace("-", "−")


# Curves, drawn by hand: the page needs no script and no font of its own.


def _plot(
    x: Sequence[int],
    y: Sequence[float],
    *,
    labels: Sequence[str],
    sems: Sequence[float] = (),
    dashed: float = math.nan,
    log: bool = False,
    wide: bool = False,
) -> str:
    """A curve as inline SVG; what is not finite interrupts it. Empty if nothing is finite."""
    width, height, left, right, top, bottom = (1180 if wide else 480), 260, 62, 14, 12, 34
    bars = [s if math.isfinite(s) and s > 0 else 0.0 for s in sems] or [0.0] * len(y)
    spans = [v + d * s for v, s in zip(y, bars, strict=True) for d in (-1, 1) if math.isfinite(v)]
    if not spans:
        return ""
    spans += [dashed] if math.isfinite(dashed) else []
    low, high = min(spans), max(spans)
    if log:
        low, high = math.log10(low), math.log10(high)
    pad = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    low, high = low - pad, high + pad
    if not math.isfinite(high - low):
        return ""

    def across(i: float) -> float:
        return left + (width - left - right) * (i + 0.5) / len(x)

    def up(v: float) -> float:
        v = math.log10(v) if log else v
        return top + (height - top - bottom) * (high - v) / (high - low)

    parts = []
    for tick in _ticks(low, high, log):
        parts.append(f'<path class="axis" d="M{left} {up(tick):.1f}H{width - right}"/>')
        text = f"{tick:.4g}".replace("-", "−")
        parts.append(f'<text x="{left - 8}" y="{up(tick) + 4:.1f}" text-anchor="end">{text}</text>')
    starts = [i for i in x if i == 0 or labels[i] != labels[i - 1]]
    stride = math.ceil(
        len(starts) * (8 * max(len(labels[i]) for i in starts) + 12) / (width - left - right)
    )
    for i in starts[:: max(1, stride)]:
        anchor = "start" if wide else "middle"
        label = escape(labels[i] if len(labels[i]) < 40 else labels[i][:39] + "…")
        parts.append(
            f'<text x="{across(i):.1f}" y="{height - 12}" text-anchor="{anchor}">{label}</text>'
        )
        if wide:
            parts.append(f'<path class="axis" d="M{across(i):.1f} {top}V{height - bottom}"/>')
    if math.isfinite(dashed):
        parts.append(f'<path class="dash" d="M{left} {up(dashed):.1f}H{width - right}"/>')
    path, pen = "", "M"
    for i, v in zip(x, y, strict=True):
        if not math.isfinite(v):
            pen = "M"
            continue
        path += f"{pen}{across(i):.1f} {up(v):.1f}"
        pen = "L"
        if bars[i]:
            parts.append(
                f'<path class="bar" d="M{across(i):.1f}'
                f' {up(v - bars[i]):.1f}V{up(v + bars[i]):.1f}"/>'
            )
        if not wide or len(x) < 40:
            parts.append(f'<circle class="dot" cx="{across(i):.1f}" cy="{up(v):.1f}" r="3"/>')
    parts.append(f'<path class="curve" d="{path}"/>')
    return f'<svg viewBox="0 0 {width} {height}" role="img">{"".join(parts)}</svg>'


def _ticks(low: float, high: float, log: bool) -> list[float]:
    """About five round numbers between the ends; with `log` the ends are powers of ten."""
    if log:
        for mantissas in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
            powers = range(math.floor(low), math.ceil(high) + 1)
            powers = powers[:: max(1, len(powers) // 6)]
            found = [
                m * 10.0**p for p in powers for m in mantissas if low <= p + math.log10(m) <= high
            ]
            if len(found) >= 3:
                return found
        return found or [10**low, 10**high]
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _replace(path: Path, data: bytes) -> Path:
    """Writes a file as a whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
