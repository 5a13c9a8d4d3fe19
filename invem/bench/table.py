"""The table of a benchmark: for a terminal, as Markdown, and as text cells for the page."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from invem.bench.document import FLOOR
from invem.bench.metrics import METRICS, shown

__all__ = ["cell", "cells", "good_rows", "metric_cells", "render_markdown", "summary", "to_rich"]

_COSTS = ("forwards", "products", "A, Aᵀ, A⁺/SVD", "ms per draw", "MiB")


def summary(document: Mapping[str, Any]) -> str:
    """Returns a line that says what was done."""
    problem, seeds = document["problem"], len(document["seeds"])
    words = [
        f"{problem['name']}: {seeds} seed{'s' * (seeds > 1)} × {document['observations']}"
        f" observations × {document['draws']} draws",
        f"truth {'from the prior' if problem['truth'] == 'prior' else 'held out'}",
    ]
    if document["budget"] is not None:
        words.append(
            f"at most {document['budget']} forwards and products a draw (a product counts as one"
            " forward)"
        )
    if document["tune"]:
        words.append(f"options tuned by {document['tune']} random trials on other observations")
    return "; ".join(words)


def cell(value: Mapping[str, Any] | None) -> str:
    """Returns a metric as text: the value and its standard error."""
    if value is None:
        return ""
    if value["value"] is None:
        return "not finite"
    return f"{value['value']:.3g}" + (f" ± {value['sem']:.1g}" if value["sem"] is not None else "")


def good_rows(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Returns the rows that have numbers."""
    return [row for row in document["rows"] if row["error"] is None and row["metrics"]]


def cells(document: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns the head and the rows of the table, as text. A row of exact draws comes last."""
    names = [
        name
        for name in shown("columns", document["problem"]["exact"])
        if any(name in row["metrics"] for row in document["rows"])
    ]
    head = ["sampler", *_COSTS, *(METRICS[name].title(name) for name in names)]
    failed = any(row["failures"] for row in document["rows"])
    lines = [_line(row, names, failed) for row in document["rows"]]
    if document["floor"] is not None:
        metrics = [cell(document["floor"].get(name)) for name in names]
        lines.append([FLOOR, *[""] * len(_COSTS), *metrics, *[""] * failed])
    return head + ["not finite"] * failed, lines


def _line(row: Mapping[str, Any], names: Sequence[str], failed: bool) -> list[str]:
    if row["error"] is not None:
        rest = [""] * (len(names) - 1 + failed)
        return [row["setting"], *[""] * len(_COSTS), f"fails: {row['error']}", *rest]
    calls = (row["operator"], row["adjoint"], row["pinv"] + row["rotations"])
    return [
        _label(row),
        f"{row['forwards']:.4g}",
        f"{row['products']:.4g}",
        ", ".join(f"{n:.4g}" for n in calls),
        f"{1000 * row['seconds']:.3g}",
        f"{row['memory']:.0f}",
        *(cell(row["metrics"].get(name)) for name in names),
        *([f"{row['failures']} of {row['draws']}"] if failed else []),
    ]


def _label(row: Mapping[str, Any]) -> str:
    """The setting, and the options that tuning chose."""
    chosen = (row["tuning"] or {}).get("chosen", {})
    words = ", ".join(f"{k} {v:.3g}" for k, v in chosen.items())
    return f"{row['setting']} (tuned: {words})" if words else str(row["setting"])


def metric_cells(document: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Returns the names of all metrics that were measured, and the rows of a table of them."""
    names = [name for name in METRICS if any(name in row["metrics"] for row in document["rows"])]
    rows = [(row["setting"], row["metrics"]) for row in good_rows(document)]
    if document["floor"] is not None:
        rows.append((FLOOR, document["floor"]))
    return names, [[label, *(cell(found.get(name)) for name in names)] for label, found in rows]


def to_rich(document: Mapping[str, Any]) -> Table:
    """Returns a benchmark as a table for a terminal."""
    head, lines = cells(document)
    table = Table(title=summary(document), title_justify="left")
    for i, title in enumerate(head):
        table.add_column(title, justify="right" if i else "left", no_wrap=i == 0, overflow="fold")
    for line in lines:
        table.add_row(*line)
    return table


def render_markdown(document: Mapping[str, Any]) -> str:
    """Returns a benchmark as a Markdown table."""
    head, lines = cells(document)
    rows = [
        head,
        ["---"] + ["---:"] * (len(head) - 1),
        *([word.replace("|", "\\|") for word in line] for line in lines),
    ]
    text = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    return f"{summary(document)}\n\n{text}\n"
