"""Writes docs/reliability.md: what docs/results/reliability.json says, as tables.

`python tests/faults/page.py` writes the page anew from the file; with --check it only says whether
the page is what the file says. `python tests/faults/run.py --write` carries the cases out and
writes both.
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "docs" / "results" / "reliability.json"
PAGE = ROOT / "docs" / "reliability.md"
COUNTS = ("tried", "survived", "detected", "lost")

HEAD = """# Reliability

What invem does when it is killed, damaged, lied to or full. Each fault was injected on purpose,
many times. The cases are in `tests/faults/`; `python tests/faults/run.py --write` carries them out
and writes this page, and `--kills`, `--fuzz` and `--flips` say how often each is tried.

- **survived**: the right result came out all the same. For a run that was interrupted: all tensors
  and numbers of the finished run have the same bytes as those of a run that nobody disturbed.
- **detected**: it was refused, with the [exit code](recipes.md#exit-codes) of its kind and a line
  that says what is wrong. Nothing was damaged by it.
- **lost**: anything else. A wrong result, lost work, a traceback, a wrong exit code, a hang. This
  must be 0.

A **control** does without the protection that is tested. It must lose: that shows that the harness
sees losses.

{tried:,} tries of {cases} faults: {survived:,} survived, {detected:,} detected,
**{lost} lost**.{known}
"""

KNOWN = """ Losses of {count} more are known and not mended yet; they are marked."""

TAIL = """
## What was not tried

- Loss of power. A process that is killed leaves what it gave to the system; a machine without power
  may not. Files are flushed before they are renamed, so that the order of writing is right.
- Network file systems, Windows, and clocks that jump.
- Several processes or machines in one run: a run is one process.
- Accelerators: all of this ran on a processor.
- Archives: invem unpacks none.
"""


def table(rows: list[dict[str, Any]]) -> str:
    """Returns the rows of one group as a table."""
    lines = ["| fault | tried | survived | detected | lost |", "|---|--:|--:|--:|--:|"]
    for row in rows:
        lost = f"{row['lost']:,}"
        if row["kind"] == "control":
            lost += " (must lose)"
        if row["kind"] == "known":
            lost += " (known)"
        numbers = " | ".join(f"{row[key]:,}" for key in ("tried", "survived", "detected"))
        lines.append(f"| {row['fault']} | {numbers} | {lost} |")
    return "\n".join(lines)


def struck(rows: list[dict[str, Any]]) -> str:
    """Returns where the kills struck, as a table; "" if there were none."""
    lines = []
    for row in rows:
        if row["key"].startswith("kill_at") and row["where"]:
            places = ", ".join(f"{place} {count}" for place, count in row["where"].items())
            lines.append(f"- {row['fault']}: {places}.")
    return "\nWhere the kills struck:\n\n" + "\n".join(lines) + "\n" if lines else ""


def text(found: dict[str, Any]) -> str:
    """Returns the page."""
    rows = found["rows"]
    cases = [row for row in rows if row["kind"] == "case"]
    known = [row for row in rows if row["kind"] == "known"]
    head = HEAD.format(
        **{key: sum(row[key] for row in cases) for key in COUNTS},
        cases=len(cases),
        known=KNOWN.format(count=len(known)) if known else "",
    )
    parts = [head]
    for group in dict.fromkeys(row["group"] for row in rows):
        of_group = [row for row in rows if row["group"] == group]
        parts.append(f"\n## {group}\n\n{table(of_group)}\n{struck(of_group)}")
    return "".join(parts) + TAIL


def write(rows: list[dict[str, Any]], order: list[str]) -> None:
    """Writes results and page; a case that was not carried out keeps the row that it has."""
    kept = json.loads(RESULTS.read_text("utf-8"))["rows"] if RESULTS.exists() else []
    found = {row["key"]: row for row in [*kept, *rows]}
    lines = ",\n".join(
        "  " + json.dumps(found[key], ensure_ascii=False) for key in order if key in found
    )
    RESULTS.write_text(f'{{\n "rows": [\n{lines}\n ]\n}}\n', "utf-8")
    PAGE.write_text(text(json.loads(RESULTS.read_text("utf-8"))), "utf-8")


def main() -> None:
    found = text(json.loads(RESULTS.read_text("utf-8")))
    if "--check" in sys.argv:
        sys.exit(PAGE.read_text("utf-8") != found)
    PAGE.write_text(found, "utf-8")


if __name__ == "__main__":
    main()
