"""Writes the tables of docs/benchmarks.md from docs/results/*.json; with --check only says whether
they are what the results say.

A result is what `invem eval RUN --json` prints, with one row per line (results.py). A place for a
table is two comments, `<!-- table: NAME ... -->` and `<!-- end -->`; NAME is a file of
docs/results, and each further name adds the last row of that file (a ceiling, another method).
"""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
sys.path.append(str(ROOT / "studies" / "fashion"))


def rows(name: str, last: bool) -> list[tuple[str, dict[str, Any]]]:
    result = json.loads((DOCS / "results" / f"{name}.json").read_text("utf-8"))
    found = result["evaluations"]
    return [(f"{result['name']}, " if last else "", row) for row in (found[-1:] if last else found)]


def cell(value: dict[str, Any] | None) -> str:
    if value is None:
        return ""
    if value["value"] is None:
        return "not finite"
    error = f" ± {value['sem']:.2g}" if value["sem"] is not None else ""
    return f"{value['value']:.4g}{error}"


def table(names: list[str]) -> str:
    found = [row for i, name in enumerate(names) for row in rows(name, last=i > 0)]
    labels = list(dict.fromkeys(label for _, row in found for label in row["metrics"]))
    units = {label: value["unit"] for _, row in found for label, value in row["metrics"].items()}
    lines = [
        "| | round | "
        + " | ".join(f"{label} ({units[label]})" if units[label] else label for label in labels)
        + " |",
        "|---|---:|" + "---:|" * len(labels),
    ]
    for prefix, row in found:
        number = "" if row["round"] is None else row["round"] + 1
        cells = " | ".join(cell(row["metrics"].get(label)) for label in labels)
        lines.append(f"| {prefix}{row['name']} | {number} | {cells} |")
    return "\n".join(lines)


def seconds(names: list[str]) -> str:
    lines = ["| | E-step | M-step | evaluation | sum, minutes |", "|---|---:|---:|---:|---:|"]
    for name in names:
        result = json.loads((DOCS / "results" / f"{name}.json").read_text("utf-8"))
        for phase, spent in result["seconds"].items():
            parts = [spent.get(event, 0.0) for event in ("e-step", "fit", "evaluate")]
            lines.append(
                f"| {result['name']}, {phase} | "
                + " | ".join(f"{p:.0f} s" for p in parts)
                + f" | {sum(parts) / 60:.1f} |"
            )
    return "\n".join(lines)


def whole(names: list[str]) -> str:
    lines = ["| recipe | wall time, minutes | peak memory, MiB |", "|---|---:|---:|"]
    for name in names:
        result = json.loads((DOCS / "results" / f"{name}.json").read_text("utf-8"))
        lines.append(f"| {result['name']} | {result['wall'] / 60:.1f} | {result['peak']} |")
    return "\n".join(lines)


def eigenvalues(names: list[str]) -> str:
    found = json.loads((DOCS / "results" / f"{names[0]}.json").read_text("utf-8"))["rows"]
    shown = list(found[0]["eigenvalues"])
    lines = [
        "| E-step | network calls | " + " | ".join(f"round {r}" for r in shown) + " |",
        "|---|---:|" + "---|" * len(shown),
    ]
    for row in found:
        cells = " | ".join("{:.2f} to {:.2f}".format(*row["eigenvalues"][r]) for r in shown)
        lines.append(f"| {row['e-step']} | {row['forwards'] or ''} | {cells} |")
    return "\n".join(lines)


def operators(names: list[str]) -> str:
    import operators as benchmark  # the script beside this one

    return benchmark.table(json.loads((DOCS / "results" / f"{names[0]}.json").read_text("utf-8")))


def bench(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DOCS / "results" / f"bench-{name}.json").read_text("utf-8"))
    return found


def metric(names: list[str]) -> str:
    """One metric of every sampler on several problems; the first word names it, or "cost"."""
    what, problems = names[0], [(name, bench(name)) for name in names[1:]]
    settings = list(dict.fromkeys(row["setting"] for _, found in problems for row in found["rows"]))
    lines = [
        "| sampler | " + " | ".join(name for name, _ in problems) + " |",
        "|---|" + "---:|" * len(problems),
    ]
    if all(found["floor"] and what in found["floor"] for _, found in problems):
        lines.append(
            "| *exact draws* | "
            + " | ".join(f"*{short(found['floor'][what])}*" for _, found in problems)
            + " |"
        )
    for setting in settings:
        cells = []
        for _, found in problems:
            row = next((row for row in found["rows"] if row["setting"] == setting), None)
            if row is None:
                cells.append("")
            elif what == "cost":
                cells.append(f"{row['forwards']:.0f} + {row['products']:.0f}")
            else:
                lost = " (some not finite)" if row["failures"] else ""
                cells.append("fails" if row["error"] else short(row["metrics"].get(what)) + lost)
        lines.append(f"| `{setting}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def short(value: dict[str, Any] | None) -> str:
    if value is None or value["value"] is None:
        return ""
    error = f" ± {value['sem']:.1g}" if value["sem"] is not None else ""
    return f"{value['value']:.3g}{error}"


def quality(names: list[str]) -> str:
    """Cost, quality and calibration of every setting on one problem."""
    shown = ("psnr", "psnr-draw", "misfit", "coverage-50", "coverage-90", "spread-error")
    lines = [
        "| sampler | forwards + products | " + " | ".join(shown) + " |",
        "|---|---:|" + "---:|" * len(shown),
    ]
    for row in bench(names[0])["rows"]:
        cells = " | ".join(short(row["metrics"].get(name)) for name in shown)
        lines.append(
            f"| `{row['setting']}` | {row['forwards']:.0f} + {row['products']:.0f} | {cells} |"
        )
    return "\n".join(lines)


def samplers(names: list[str]) -> str:
    import samplers as benchmark  # the script beside this one

    return benchmark.table(json.loads((DOCS / "results" / f"{names[0]}.json").read_text("utf-8")))


def rebuild(names: list[str]) -> str:
    import rebuild as benchmark  # the script beside this one

    return benchmark.table(json.loads((DOCS / "results" / f"{names[0]}.json").read_text("utf-8")))


def study(names: list[str]) -> str:
    import study as benchmark  # the script in studies/fashion

    table: str = benchmark.table(names[0])
    return table


def draws(names: list[str]) -> str:
    """What draws have and lack beside the true signals, a run a label."""
    import draws as benchmark  # the script in studies/fashion

    heads = [
        "Fréchet",
        "variance of features",
        "differ",
        *(f"{low:g} to {high:g}" for low, high in benchmark.BANDS),
    ]
    lines = ["| | | " + " | ".join(heads) + " |", "|---|---|" + "---:|" * len(heads)]
    for label, found in json.loads(
        (DOCS / "results" / f"{names[0]}.json").read_text("utf-8")
    ).items():
        for name, row in found.items():
            shown = [
                f"{row['frechet']:.3g}",
                *(f"{share:.2f}" for share in (row["variance"], row["differ"], *row["power"])),
            ]
            lines.append(f"| {label} | {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def blind(names: list[str]) -> str:
    """Calibrated options by round, and the restorations beside those of a run that knew them."""
    found, known = (
        json.loads((DOCS / "results" / f"{name}.json").read_text("utf-8")) for name in names
    )
    keys = list(found["calibrated"][0]["values"])
    named = " | ".join(f"`{key}`" for key in keys)
    lines = [
        f"| round | {named} | PSNR (dB) | known: PSNR (dB) |",
        "|---|" + "---:|" * (len(keys) + 2),
    ]
    psnr = [
        {e["round"]: cell(e["metrics"]["psnr"]) for e in run["evaluations"] if e["name"] == "em"}
        for run in (found, known)
    ]
    for row in found["calibrated"]:
        cells = [f"{row['values'][key]:.4f}" for key in keys] + [
            values[row["round"]] for values in psnr
        ]
        lines.append(f"| {row['round'] + 1} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def photographs(names: list[str]) -> str:
    """One row per method: PSNR of each photograph, their mean, and processor seconds."""
    found = json.loads((DOCS / "results" / f"{names[0]}.json").read_text("utf-8"))["rows"]
    keys = list(next(iter(found.values())))
    heads = {"mean": "mean, dB", "learning": "learning, s", "seconds": "a photograph, s"}
    lines = [
        "| | " + " | ".join(heads.get(key, key) for key in keys) + " |",
        "|---|" + "---:|" * len(keys),
    ]
    for method, row in found.items():
        lines.append(f"| {method} | " + " | ".join(f"{row[key]:g}" for key in keys) + " |")
    return "\n".join(lines)


KINDS: dict[str, Callable[[list[str]], str]] = {
    "photographs": photographs,
    "study": study,
    "blind": blind,
    "draws": draws,
    "metric": metric,
    "quality": quality,
    "rebuild": rebuild,
    "samplers": samplers,
    "operators": operators,
    "table": table,
    "seconds": seconds,
    "whole": whole,
    "eigenvalues": eigenvalues,
}


def renewed(text: str) -> str:
    def fill(match: re.Match[str]) -> str:
        kind, names = match[1], match[2].split()
        return f"<!-- {kind}: {match[2]} -->\n{KINDS[kind](names)}\n<!-- end -->"

    return re.sub(r"<!-- (\w+): (.*?) -->\n.*?<!-- end -->", fill, text, flags=re.S)


def main() -> None:
    page = DOCS / "benchmarks.md"
    text = page.read_text("utf-8")
    new = renewed(text)
    if "--check" in sys.argv:
        sys.exit(
            0
            if new == text
            else f"{page} is not what docs/results say; run: python benchmarks/tables.py"
        )
    page.write_text(new, "utf-8")


if __name__ == "__main__":
    main()
