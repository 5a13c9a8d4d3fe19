"""What a benchmark looks like: its table, what moved since an earlier one, and one self-contained
page.

Everything but the pictures is made from the data of `invem.bench.bench.document`, which may come
from a file.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table
from torch import Tensor

from invem.bench.bench import FLOOR, METRICS
from invem.errors import RecipeError
from invem.report import page as report

__all__ = ["compare", "markdown", "page", "summary", "table"]

_COLUMNS = (
    "psnr",
    "psnr-draw",
    "ssim",
    "misfit",
    "mean-error",
    "covariance-error",
    "sliced-wasserstein",
    "coverage-90",
    "spread-error",
)


def _columns(found: Mapping[str, Any]) -> list[str]:
    """Returns the metrics that the table of a benchmark shows: with an exact posterior those
    against it, else those against the truth."""
    shown = _COLUMNS[3:] if found["problem"]["exact"] else _COLUMNS
    return [name for name in shown if any(name in row["metrics"] for row in found["rows"])]


def _cells(found: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns the head and the rows of the table of a benchmark, as text; a row of exact draws
    comes last."""
    names = _columns(found)
    head = [
        "sampler",
        "forwards",
        "products",
        "A, Aᵀ, A⁺/SVD",
        "ms a draw",
        "MiB",
        *(_head(name) for name in names),
    ]
    failed = any(row["failures"] for row in found["rows"])
    lines = []
    for row in found["rows"]:
        if row["error"] is not None:
            lines.append(
                [
                    row["setting"],
                    *[""] * 5,
                    f"fails: {row['error']}",
                    *[""] * (len(names) - 1 + failed),
                ]
            )
            continue
        calls = ", ".join(
            f"{n:.4g}" for n in (row["operator"], row["adjoint"], row["pinv"] + row["rotations"])
        )
        counts = [
            f"{row['forwards']:.4g}",
            f"{row['products']:.4g}",
            calls,
            f"{1000 * row['seconds']:.3g}",
            f"{row['memory']:.0f}",
        ]
        lines.append([_titled(row), *counts, *(_cell(row["metrics"].get(name)) for name in names)])
        if failed:
            lines[-1].append(f"{row['failures']} of {row['draws']}")
    if found["floor"] is not None:
        lines.append(
            [FLOOR, *[""] * 5, *(_cell(found["floor"].get(name)) for name in names), *[""] * failed]
        )
    return head + ["not finite"] * failed, lines


def _head(name: str) -> str:
    unit, best, _ = METRICS[name]
    word = {"high": "↑", "low": "↓"}.get(best, f"({best})")
    return f"{name} {f'({unit}) ' if unit else ''}{word}"


def _titled(row: Mapping[str, Any]) -> str:
    """The setting, and what tuning chose."""
    chosen = (row["tuning"] or {}).get("chosen", {})
    words = ", ".join(f"{k} {v:.3g}" for k, v in chosen.items())
    return f"{row['setting']} (tuned: {words})" if words else str(row["setting"])


def _cell(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return ""
    if value["value"] is None:
        return "not finite"
    return f"{value['value']:.3g}" + (f" ± {value['sem']:.1g}" if value["sem"] is not None else "")


def summary(found: Mapping[str, Any]) -> str:
    """Returns a line that says what was done."""
    about, words = found["problem"], []
    seeds = len(found["seeds"])
    words.append(
        f"{about['name']}: {seeds} seed{'s' * (seeds > 1)} × {found['observations']} observations ×"
        f" {found['draws']} draws"
    )
    words.append(f"truth {'from the prior' if about['truth'] == 'prior' else 'held out'}")
    if found["budget"] is not None:
        words.append(
            f"at most {found['budget']} forwards and products a draw (a product counts as one"
            " forward)"
        )
    if found["tune"]:
        words.append(f"options tuned by {found['tune']} random trials on other observations")
    return "; ".join(words)


def table(found: Mapping[str, Any]) -> Table:
    """Returns a benchmark as a table for a terminal."""
    head, lines = _cells(found)
    made = Table(title=summary(found), title_justify="left")
    for i, word in enumerate(head):
        made.add_column(word, justify="right" if i else "left", no_wrap=i == 0, overflow="fold")
    for line in lines:
        made.add_row(*line)
    return made


def markdown(found: Mapping[str, Any]) -> str:
    """Returns a benchmark as a Markdown table."""
    head, lines = _cells(found)
    rows = [
        head,
        ["---"] + ["---:"] * (len(head) - 1),
        *([word.replace("|", "\\|") for word in line] for line in lines),
    ]
    return f"{summary(found)}\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


_COUNTS = ("forwards", "products", "operator", "adjoint", "pinv", "rotations", "failures")


def compare(found: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """Returns a line for whatever moved by more than twice its standard error since an earlier
    benchmark, is new, or is gone.

    Counts have no error, and any change of them is told. Times and memory are the machine's, and
    are not compared.

    Raises:
        RecipeError: If the earlier benchmark is of another problem.
    """
    for key in ("name", "digest", "truth"):
        if (was := before["problem"].get(key)) != (now := found["problem"][key]):
            raise RecipeError(
                f"--baseline: it is of another problem: its {key} is {was}, now {now}"
            )
    lines = []
    for key in ("seeds", "observations", "draws", "budget", "tune"):
        if before.get(key) != found[key]:
            lines.append(f"the baseline has other {key}: {before.get(key)}, now {found[key]}")
    old, new = ({row["setting"]: row for row in each["rows"]} for each in (before, found))
    for label, row in new.items():
        if label not in old:
            lines.append(f"{label}: new")
            continue
        was = old[label]
        if row["error"] != was["error"]:
            lines.append(
                f"{label}: fails: {row['error']}" if row["error"] else f"{label}: fails no more"
            )
        lines += [
            f"{label}: {name} {was[name]:.4g} -> {row[name]:.4g}"
            for name in _COUNTS
            if not math.isclose(was[name], row[name])
        ]
        for name, value in row["metrics"].items():
            earlier = was["metrics"].get(name)
            if earlier is None:
                lines.append(f"{label}: {name} is new")
            elif _moved(earlier, value):
                lines.append(f"{label}: {name} {_cell(earlier)} -> {_cell(value)}")
        lines += [
            f"{label}: {name} is gone" for name in was["metrics"].keys() - row["metrics"].keys()
        ]
    lines += [f"{label}: gone" for label in old if label not in new]
    return lines


def _moved(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    if a["value"] is None or b["value"] is None:
        return bool(a["value"] != b["value"])
    if a["sem"] is None or b["sem"] is None:
        return False
    return bool(abs(a["value"] - b["value"]) > 2 * math.hypot(a["sem"], b["sem"]))


# The page.

_WIDE, _SMALL = (1180, 440), (260, 230)
_MARGINS = (48, 14, 12, 44)  # left, right, top, bottom
_PLACES = [
    (side, 12 * shift) for shift in (0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5) for side in (1, -1)
]


def page(found: Mapping[str, Any], pictures: Mapping[str, Mapping[str, Tensor]]) -> str:
    """Returns a benchmark as one HTML page that loads nothing.

    Args:
        found: The data.
        pictures: By setting, what `Row.pictures` holds; empty where signals are no images.
    """
    sections = [
        ("Samplers", _samplers(found)),
        ("Quality and cost", _scatter(found)),
        ("Calibration", _calibration(found)),
        ("Restorations", _restorations(found, pictures)),
        ("All metrics", _all_metrics(found)),
        ("Options", _options(found)),
        ("Problem", f"<pre>{escape(found['problem']['definition'])}</pre>"),
        (
            "Environment",
            report._table(
                ["", ""],
                [[escape(k), escape(report._text(v))] for k, v in found["environment"].items()],
            ),
        ),
    ]
    name = escape(f"bench {found['problem']['name']}")
    body = [f"<h1>{name}</h1>", f'<p class="soft">{escape(summary(found))}</p>']
    body += [
        f"<section><h2>{title}</h2>{content}</section>" for title, content in sections if content
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name} · invem</title><style>{report._STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _samplers(found: Mapping[str, Any]) -> str:
    head, lines = _cells(found)
    left = "".join(f"<p>{escape(line)}</p>" for line in found["left_out"])
    note = (
        "Value ± one standard error over observations and seeds. ↑ higher is better, ↓ lower is"
        " better, (1) best at 1."
    )
    return f'<p class="soft">{note}</p>{report._table(map(escape, head), [list(map(escape, line)) for line in lines], numbers=True)}{left}'


def _good(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [row for row in found["rows"] if row["error"] is None and row["metrics"]]


def _scatter(found: Mapping[str, Any]) -> str:
    figures = []
    for name in (
        ("sliced-wasserstein", "mean-error")
        if found["problem"]["exact"]
        else ("psnr", "ssim", "spread-error")
    ):
        points = []
        for row in _good(found):
            value = row["metrics"].get(name, {"value": None})
            if value["value"] is not None:
                points.append(
                    (
                        max(row["forwards"] + row["products"], 1.0),
                        value["value"],
                        value["sem"] or 0.0,
                        row["setting"],
                    )
                )
        if not points:
            continue
        log = all(y > 0 for _, y, _, _ in points) and METRICS[name].best == "low"
        floor = (found["floor"] or {}).get(name, {"value": None})["value"]
        low = {label: max(y - sem, y / 2) if log else y - sem for _, y, sem, label in points}
        marks = [*low.values(), *(y + sem for _, y, sem, _ in points), *([floor] if floor else [])]
        plot = _Plot(_WIDE, [x for x, *_ in points], marks, log_x=True, log_y=log)
        parts = plot.axes("forwards and products a draw")
        if floor:
            parts.append(f'<path class="dash" d="M{plot.left} {plot.up(floor):.1f}H{plot.right}"/>')
        taken: list[tuple[float, float, float, float]] = []
        for x, y, sem, label in sorted(points, key=lambda point: -point[1]):
            parts.append(
                f'<path class="bar" d="M{plot.across(x):.1f}'
                f' {plot.up(low[label]):.1f}V{plot.up(y + sem):.1f}"/>'
            )
            parts.append(
                f'<circle class="dot" cx="{plot.across(x):.1f}" cy="{plot.up(y):.1f}" r="3"/>'
            )
            parts.append(plot.label(x, y, label, taken))
        figures.append(
            f"<figure><figcaption>{_head(name)}</figcaption>{plot.drawn(parts)}</figure>"
        )
    note = "Bars: one standard error." + (
        " Dashed: exact draws, the best that so many draws can be." if found["floor"] else ""
    )
    return f'<p class="soft">{note}</p>{"".join(figures)}' if figures else ""


def _calibration(found: Mapping[str, Any]) -> str:
    figures = []
    for row in _good(found):
        if not row["coverage"]:
            continue
        plot = _Plot(_SMALL, [0.0, 1.0], [0.0, 1.0])
        parts = plot.axes("nominal coverage")
        parts.append(
            f'<path class="dash" d="M{plot.across(0):.1f} {plot.up(0):.1f}L{plot.across(1):.1f}'
            f' {plot.up(1):.1f}"/>'
        )
        path = "L".join(
            f"{plot.across(x):.1f} {plot.up(y):.1f}"
            for x, y in zip(found["levels"], row["coverage"], strict=True)
        )
        parts.append(f'<path class="curve" d="M{path}"/>')
        figures.append(
            f"<figure><figcaption>{escape(row['setting'])}</figcaption>{plot.drawn(parts)}</figure>"
        )
    note = (
        "How often the truth lies in the central interval of the draws. Below the dashed line:"
        " draws too narrow, or beside the truth."
    )
    grid = "grid-template-columns: repeat(auto-fill, minmax(210px, 1fr))"
    return (
        f'<p class="soft">{note}</p><div class="plots" style="{grid}">{"".join(figures)}</div>'
        if figures
        else ""
    )


class _Plot:
    """The frame of a plot: where numbers lie on it."""

    def __init__(
        self,
        size: tuple[int, int],
        x: Sequence[float],
        y: Sequence[float],
        log_x: bool = False,
        log_y: bool = False,
    ) -> None:
        (self.width, self.height), (self.left, right, self.top, bottom) = size, _MARGINS
        self.right, self.bottom = self.width - right, self.height - bottom
        self.log_x, self.log_y = log_x, log_y
        self.x, self.y = self._span(x, log_x), self._span(y, log_y)

    @staticmethod
    def _span(values: Sequence[float], log: bool) -> tuple[float, float]:
        low, high = min(values), max(values)
        low, high = (math.log10(low), math.log10(high)) if log else (low, high)
        pad = 0.08 * (high - low) or 0.1 * abs(high) or 0.3
        return low - pad, high + pad

    def across(self, x: float) -> float:
        x = math.log10(x) if self.log_x else x
        return self.left + (self.right - self.left) * (x - self.x[0]) / (self.x[1] - self.x[0])

    def up(self, y: float) -> float:
        y = math.log10(y) if self.log_y else y
        return self.top + (self.bottom - self.top) * (self.y[1] - y) / (self.y[1] - self.y[0])

    def label(
        self, x: float, y: float, text: str, taken: list[tuple[float, float, float, float]]
    ) -> str:
        """A word beside a point, where it hides no earlier one; `taken` are their corners."""
        text = text if len(text) < 40 else text[:39] + "…"
        for side, shift in _PLACES:
            begin, base = self.across(x) + 7 * side, self.up(y) + 4 + shift
            left, right = sorted((begin, begin + side * 6.5 * len(text)))
            free = all(right < a or c < left or base < b or d < base - 12 for a, b, c, d in taken)
            if free and left > self.left and right < self.width:
                break
        taken.append((left, base - 12, right, base))
        anchor = "start" if side > 0 else "end"
        return f'<text x="{begin:.1f}" y="{base:.1f}" text-anchor="{anchor}">{escape(text)}</text>'

    def axes(self, title: str) -> list[str]:
        parts = []
        for tick in report._ticks(*self.y, self.log_y):
            parts.append(f'<path class="axis" d="M{self.left} {self.up(tick):.1f}H{self.right}"/>')
            parts.append(
                f'<text x="{self.left - 8}" y="{self.up(tick) + 4:.1f}"'
                f' text-anchor="end">{_tick(tick)}</text>'
            )
        for tick in report._ticks(*self.x, self.log_x):
            parts.append(
                f'<path class="axis" d="M{self.across(tick):.1f} {self.top}V{self.bottom}"/>'
            )
            parts.append(
                f'<text x="{self.across(tick):.1f}" y="{self.bottom + 16}"'
                f' text-anchor="middle">{_tick(tick)}</text>'
            )
        middle = (self.left + self.right) / 2
        return [
            *parts,
            f'<text x="{middle:.1f}" y="{self.height - 6}" text-anchor="middle">{title}</text>',
        ]

    def drawn(self, parts: Sequence[str]) -> str:
        return f'<svg viewBox="0 0 {self.width} {self.height}" role="img">{"".join(parts)}</svg>'


def _tick(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def _restorations(found: Mapping[str, Any], pictures: Mapping[str, Mapping[str, Tensor]]) -> str:
    shown = {label: kept for label, kept in pictures.items() if kept}
    if not shown:
        return ""
    low, high = found["problem"]["range"]
    first = next(iter(shown.values()))
    rows = [["truth", _strip(first["truth"], low, high), "", ""]]
    if "observation" in first:
        rows.append(["observation", _strip(first["observation"], low, high), "", ""])
    for label, kept in shown.items():
        top = max(float(np.nan_to_num(kept["std"].numpy()).max()), 1e-12)
        strips = [
            _strip(kept["mean"], low, high),
            _strip(kept["draw"], low, high),
            _strip(kept["std"], 0.0, top),
        ]
        rows.append(
            [escape(label), *strips[:2], f"{strips[2]}<span class='soft'>white {top:.2g}</span>"]
        )
    head = ["", f"mean of {found['draws']} draws", "one draw", "standard deviation of the draws"]
    return report._table(head, rows)


def _strip(x: Tensor, low: float, high: float) -> str:
    """Pictures side by side. x: (n, C, H, W)."""
    images: list[Image.Image] = [report._image(image, low, high) for image in x.double().numpy()]
    return report._img(report._strip(images), "")


def _all_metrics(found: Mapping[str, Any]) -> str:
    names = [name for name in METRICS if any(name in row["metrics"] for row in found["rows"])]
    if not names:
        return ""
    lines = [
        [escape(row["setting"]), *(_cell(row["metrics"].get(name)) for name in names)]
        for row in _good(found)
    ]
    if found["floor"] is not None:
        lines.append([FLOOR, *(_cell(found["floor"].get(name)) for name in names)])
    meanings = report._table(["", ""], [[name, escape(METRICS[name].text)] for name in names])
    return report._table(["sampler", *map(_head, names)], lines, numbers=True) + meanings


def _options(found: Mapping[str, Any]) -> str:
    rows = []
    for row in found["rows"]:
        tuning = row["tuning"]
        words = ""
        if tuning is not None:
            scores = " -> ".join(
                "not finite" if v is None else f"{v:.4g}"
                for v in (tuning["default"], tuning["best"])
            )
            words = f"{tuning['trials']} trials, {tuning['score']} {scores}"
        rows.append(
            [
                escape(row["setting"]),
                escape(", ".join(f"{k}: {v}" for k, v in row["options"].items())),
                escape(words),
            ]
        )
    return report._table(["sampler", "options", "tuning"], rows)
