"""The command `plan`: what a recipe would do and what it would take, as a table."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from invem.cli.app import AsJson, Overrides, RecipePath, Smoke
from invem.cli.output import print_data, print_table, print_warnings, say
from invem.cli.recipes import make_plan
from invem.cli.where import free_run

if TYPE_CHECKING:
    from invem.planning.plan import Plan
    from invem.running.forecast import Forecast, PhaseForecast

__all__ = ["plan"]

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def plan(
    recipe: RecipePath,
    overrides: Overrides = None,
    smoke: Smoke = False,
    as_yaml: Annotated[
        bool, typer.Option("--yaml", help="Print every number as YAML in place of the table.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check a recipe, and say what it would do and what time, memory and disk it would take."""
    from invem import analysis
    from invem.errors import InvemError, Unsupported
    from invem.running.forecast import check_space, forecast, memory_warning

    made, out = make_plan(recipe, overrides, smoke), free_run(recipe)
    try:
        lines = analysis.lines(made.identifiability())
    except Unsupported as reason:
        lines = [str(reason)]
    told = {**made.describe(), "run": str(out), "identifiability": lines}
    try:
        found = forecast(made, out)
    except (InvemError, RuntimeError, ValueError) as error:
        # What fails on a few made-up observations need not fail on those of the run.
        print_data({**told, "forecast": None}, as_json)
        print_warnings([f"time, memory and disk could not be estimated: {error}"])
        return
    if as_json or as_yaml:
        print_data({**told, "forecast": found.describe()}, as_json)
    else:
        _print(made, found, out, lines)
    print_warnings(warning for warning in [found.threads.warning] if warning)
    warnings = (check_space(found, out, str(recipe)), memory_warning(found))
    print_warnings(warning for warning in warnings if warning)


def _print(made: "Plan", found: "Forecast", out: Path, lines: list[str]) -> None:
    from rich.table import Table

    from invem.running.forecast import in_bytes

    shape = " x ".join(map(str, made.shape))
    say(f"{made.loaded.source}: {made.train} observations of signals {shape}, {made.test} held out")
    table = Table("phase", "rounds", "sampler", "fit", "evaluations", "time")
    for column in table.columns[1:]:
        column.justify = "right"
    for phase in found.phases:
        seconds = sum(phase.seconds.values())
        cells = (_sampler(phase), _fit(phase), str(phase.evaluations))
        table.add_row(phase.name, str(phase.rounds), *cells, f"about {in_time(seconds)}")
    print_table(table)
    steps: dict[str, float] = {}
    for phase in found.phases:
        for step, value in phase.seconds.items():
            steps[step] = steps.get(step, 0.0) + value
    words = ", ".join(f"{step} {in_time(value)}" for step, value in steps.items() if value)
    without = f"; without {' and '.join(found.without)}" if found.without else ""
    meanwhile = f", {in_bytes(found.passing)} more for checkpoints" if found.passing else ""
    threads = f"{found.threads.number} thread{'s' * (found.threads.number > 1)}"
    rows = {
        "time": f"about {in_time(found.seconds)} with {threads} ({words}{without})",
        "memory": f"about {in_bytes(found.memory)} at the peak",
        "disk": f"{in_bytes(found.disk)} in {out}{meanwhile}; {in_bytes(found.free)} free",
        "metrics": ", ".join(made.metrics) or "none",
    }
    for name, text in rows.items():
        say(f"{name:8} {text}")
    say("\n".join(["", *lines]))


def _sampler(phase: "PhaseForecast") -> str:
    """Returns the sampler of a phase with its draws and what each costs."""
    if not phase.sampler:
        return ""
    passes = sum(phase.passes)
    cost = f"{passes} network passes" if passes else "no network"
    draws = f"{phase.draws / phase.rounds:,.0f} draws a round"
    return f"{phase.sampler}\n{draws}\n{cost} a draw"


def _fit(phase: "PhaseForecast") -> str:
    """Returns the fit of a phase with its gradient steps and the passes of a round."""
    if not phase.objective:
        return ""
    if not phase.steps:
        return f"{phase.objective}\nclosed form\nfrom {phase.observations:,} observations"
    passes = 2 * phase.examples // phase.rounds
    return f"{phase.objective}\n{phase.steps:,} steps a round\n{passes:,} network passes"


def in_time(seconds: Any) -> str:
    """Returns a time in words, such as "12 min"."""
    if seconds < 1.5 * _MINUTE:
        return f"{max(seconds, 1):.0f} s"
    if seconds < 1.5 * _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    if seconds < 2 * _DAY:
        return f"{seconds / _HOUR:.1f} h"
    return f"{seconds / _DAY:.1f} days"
