"""The command bench: posterior samplers compared on one problem."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from invem.cli.app import Device
from invem.cli.output import make_parent, print_table, say, tell
from invem.cli.recipes import installed, make_plan
from invem.cli.runs import open_run
from invem.errors import RecipeError

if TYPE_CHECKING:
    from invem.bench import Problem, Row
    from invem.config import Catalog

__all__ = ["bench"]

_WIDTH = 200  # columns of the table that does not go to a terminal

ProblemName = Annotated[
    str,
    typer.Argument(
        metavar="PROBLEM|RECIPE|RUN", help="A built-in problem, a run, or a recipe that was run."
    ),
]
Samplers = Annotated[
    str | None, typer.Option("--samplers", help="mmps,dps:weight=2,... or all that fit.")
]
Steps = Annotated[
    str | None,
    typer.Option("--steps", help="16,64,256: run samplers with steps at each of these."),
]
Seeds = Annotated[
    int, typer.Option("--seeds", min=1, help="Sets of observations and random numbers.")
]
Observations = Annotated[
    int | None, typer.Option("--observations", min=1, help="Observations of each seed.")
]
Draws = Annotated[int | None, typer.Option("--draws", min=2, help="Draws of each observation.")]
Budget = Annotated[
    int | None,
    typer.Option("--budget", min=1, help="The most network forwards and products a draw."),
]
Tune = Annotated[
    int, typer.Option("--tune", min=0, help="Random trials of the options, on other observations.")
]
TruthName = Annotated[
    str, typer.Option("--truth", help="held-out, or prior: draw the truth from the prior itself.")
]
Baseline = Annotated[
    Path | None, typer.Option("--baseline", help="An earlier --json file: print what moved.")
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write everything as JSON.")
]
HtmlFile = Annotated[
    Path | None, typer.Option("--html", metavar="FILE", help="Write one self-contained page.")
]
FigureFile = Annotated[
    Path | None,
    typer.Option("--figure", metavar="FILE", help="Plot quality against cost (.svg or .png)."),
]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")]


class Files(NamedTuple):
    """Where the results are written, if anywhere."""

    json: Path | None
    html: Path | None
    figure: Path | None


def bench(
    problem: ProblemName,
    samplers: Samplers = None,
    steps: Steps = None,
    seeds: Seeds = 3,
    observations: Observations = None,
    draws: Draws = None,
    budget: Budget = None,
    tune: Tune = 0,
    truth: TruthName = "held-out",
    baseline: Baseline = None,
    json_file: JsonFile = None,
    html_file: HtmlFile = None,
    figure_file: FigureFile = None,
    markdown: Markdown = False,
    device: Device = None,
) -> None:
    """Compare posterior samplers on one problem: cost, error, calibration."""
    from invem import bench as benches

    if truth not in ("held-out", "prior"):
        raise RecipeError(f"--truth: '{truth}' is not one of: held-out, prior")
    levels = [_count(word, "--steps") for word in steps.split(",")] if steps is not None else []
    before = benches.read_document(baseline) if baseline is not None else None
    files = Files(json_file, html_file, figure_file)
    _check_files(files)
    catalog = installed()
    for spec in benches.split_samplers(samplers) if samplers is not None else []:
        benches.parse_sampler(spec, catalog)  # a mistake is told before a prior is trained
    opened = _open_problem(problem, truth, device, catalog)
    design = benches.Design.of(opened, seeds, observations, draws, tune, budget)
    chosen, left = benches.select_samplers(opened, catalog, samplers, levels, budget)
    for line in left:
        tell(line)
    rows = []
    for row in benches.compare_samplers(opened, chosen, catalog, design):
        done = f"{row.seconds * row.draws:.1f} s" if row.error is None else f"fails: {row.error}"
        tell(f"{row.setting}: {done}")
        rows.append(row)
    document = benches.make_document(opened, rows, design, left)
    _write(document, rows, files)
    if markdown:
        say(benches.render_markdown(document).rstrip("\n"))
    else:
        print_table(benches.to_rich(document), _WIDTH)
    if before is not None:
        moved = benches.compare_with_baseline(document, before)
        say("\n".join(moved) or "nothing moved by more than twice its standard error")


def _check_files(files: Files) -> None:
    """Finds out before the work whether the results can be written."""
    from invem import bench as benches

    if files.figure is not None:
        benches.check_figure_path(files.figure)
    for path in files:
        if path is not None:
            make_parent(path)


def _write(document: dict[str, Any], rows: "list[Row]", files: Files) -> None:
    from invem import atomic
    from invem import bench as benches

    if files.json is not None:
        benches.write_document(document, files.json)
    if files.html is not None:
        pictures = {row.setting: row.pictures for row in rows}
        atomic.write_text(files.html, benches.render_page(document, pictures))
    if files.figure is not None:
        benches.write_figure(document, files.figure)


def _count(word: str, option: str) -> int:
    if not word.strip().isdecimal() or int(word) < 1:
        raise RecipeError(f"{option}: '{word}' is not a whole number above 0")
    return int(word)


def _open_problem(name: str, truth: Any, device: str | None, catalog: "Catalog") -> "Problem":
    """Finds what samplers are compared on: a run, the finished run of a recipe, or a built-in
    problem."""
    from invem import bench as benches
    from invem.cli.progress import follow
    from invem.config import yaml
    from invem.storage.directory import RunDirectory

    if Path(name).is_dir():
        return benches.problem_of_run(open_run(Path(name), device), truth)
    if not name.endswith((".yaml", ".yml")):
        return benches.build_problem(name, catalog, truth, device or "auto", follow)
    run = Path("runs") / Path(name).stem
    resolved = yaml.dump(make_plan(Path(name)).resolved)
    if not RunDirectory(run).begun:
        raise RecipeError(
            f"{name}: there is no finished run of it in {run}; carry it out first: invem run {name}"
            f" --out {run}"
        )
    opened = open_run(run, device)
    if opened.directory.recipe.read_text("utf-8") != resolved:
        raise RecipeError(
            f"{name}: {run} was begun with other settings; to bench that run as it is: invem bench"
            f" {run}"
        )
    if not opened.finished:
        raise RecipeError(f"{name}: {run} is not finished; go on with it first: invem resume {run}")
    return benches.problem_of_run(opened, truth)
