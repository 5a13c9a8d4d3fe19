"""The report of a run: what it learned, what it restored and what that cost, from its files alone.

Nothing is recomputed but the mean and the standard deviation of stored draws. Every part of a run
but `run.json` may be missing, and then its section is missing. A damaged file is named at the top
of the page and otherwise treated as missing.

A plugin adds a figure through the hook `invem_figures`: a class derived from `Figure`, which may
draw with `chart` or with a library of its own.
"""

from pathlib import Path

from invem.atomic import refuse_links, write_bytes
from invem.errors import DataError
from invem.report.data import (
    Evaluation,
    Identifiability,
    Loss,
    MetricValue,
    ReportData,
    Restorations,
    Round,
    RoundEvent,
    Samples,
)
from invem.report.figures import Figure, chart
from invem.report.images import columns, png, restoration_sheet, sample_sheet
from invem.report.load import load
from invem.report.sections import render
from invem.report.words import headline, verdict

__all__ = [
    "Evaluation",
    "Figure",
    "Identifiability",
    "Loss",
    "MetricValue",
    "ReportData",
    "Restorations",
    "Round",
    "RoundEvent",
    "Samples",
    "chart",
    "headline",
    "load",
    "pictures",
    "verdict",
    "write",
]


def write(run: Path) -> Path:
    """Writes the report of a run.

    Args:
        run: The directory of the run, finished or not.

    Returns:
        The page, `run/report.html`; it is replaced as a whole or not at all.

    Raises:
        DataError: The directory is not a run; or a file of it is damaged, and then the page is
            written without what is in it.
    """
    loaded = load(run)
    page = run / "report.html"
    write_bytes(page, render(loaded).encode("utf-8", errors="replace"))
    _refuse_damage(loaded)
    return page


def _refuse_damage(loaded: ReportData) -> None:
    if loaded.damaged:
        text = "; ".join(loaded.damaged)
        raise DataError(f"{loaded.path}: the report is without what is damaged: {text}")


def pictures(run: Path) -> list[Path]:
    """Writes the pictures of a report as PNG files.

    Args:
        run: The directory of the run, finished or not.

    Returns:
        The files in `run/pictures`: `restorations.png`, and one `samples-<phase>-<round>.png` per
            evaluated round. Each is there only where the run has images. Phases and rounds count
            from 0 here, as in the names of the other files.

    Raises:
        DataError: As `write` does.
    """
    loaded = load(run)
    made = {}
    shown = columns(loaded.restorations)
    if shown:
        made["restorations.png"] = restoration_sheet(shown)
    for samples in loaded.samples:
        name = f"samples-{samples.folder.removesuffix('-evaluation')}.png"
        made[name] = sample_sheet(samples.images)
    folder = run / "pictures"
    refuse_links(run)
    for name, image in made.items():
        write_bytes(folder / name, png(image))
    _refuse_damage(loaded)
    return [folder / name for name in made]
