"""The command line. Results go to stdout, progress to stderr; an error of the user's is one line
and exit code 2."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from invem.errors import DataError, InvemError, MissingExtra, RecipeError

if TYPE_CHECKING:
    from torch import Tensor

    from invem.bench import Problem
    from invem.config import Catalog, Component, Loaded
    from invem.planning.plan import Facts, Plan
    from invem.running.run import Run

__all__ = ["app", "main"]

app = typer.Typer(
    help="Learn a clean diffusion prior from corrupted observations, and restore with it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

plugin = typer.Typer(
    help="Plugins: what is installed, a new one, and whether one keeps the contracts.",
    no_args_is_help=True,
)
app.add_typer(plugin, name="plugin")

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe (YAML).")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes, such as phases.em.rounds=2."),
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
Smoke = Annotated[
    bool,
    typer.Option(
        "--smoke", help="Apply the recipe's smoke block: a run of seconds that learns nothing."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda or mps.")]


def _print(value: Any, as_json: bool) -> None:
    if as_json:
        print(json.dumps(value, indent=1, allow_nan=False))
    else:
        from invem.config import yaml

        print(yaml.dump(value), end="")


def _load(recipe: Path, overrides: list[str] | None, smoke: bool) -> "tuple[Loaded, Catalog]":
    from invem import config as recipes
    from invem.config import Catalog

    loaded = recipes.load(recipe, overrides or [], smoke)
    catalog = Catalog.load()
    for problem in catalog.problems:
        print(f"warning: {problem}", file=sys.stderr)
    return loaded, catalog


def _plan(
    recipe: Path,
    overrides: list[str] | None,
    smoke: bool = False,
    device: str | None = None,
    facts: "Facts | None" = None,
) -> "Plan":
    from invem.planning.plan import make

    extra = [f"compute.device={device}"] if device else []
    plan = make(*_load(recipe, [*(overrides or []), *extra], smoke), facts)
    for warning in plan.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return plan


def _open(run: Path, device: str | None = None) -> "Run":
    from invem import store
    from invem.planning.plan import Facts
    from invem.running.run import Run

    if not (run / "run.json").is_file():
        raise RecipeError(f"{run}: not a run directory (there is no run.json in it)")
    about = store.read_json(run / "run.json")
    try:
        data, text = about["data"], about["recipe"]
        facts = Facts(
            tuple(data["shape"]),
            tuple(data["range"]),
            data["whole_train"],
            data["whole_test"],
            data.get("prior", ""),
        )
    except (KeyError, TypeError) as error:
        raise DataError(f"{run / 'run.json'}: damaged: {error} is missing") from error
    if not (run / "recipe.yaml").is_file() or (run / "recipe.yaml").read_text("utf-8") != text:
        raise RecipeError(
            f"{run / 'recipe.yaml'}: changed since the run was begun; begin a new run with it"
        )
    return Run(_plan(run / "recipe.yaml", [], device=device, facts=facts), run)


class _Signals:
    """Remembers the first SIGINT or SIGTERM, so that the run stops with its state saved; a second
    SIGINT stops at once."""

    def __init__(self) -> None:
        self.code = 0
        signal.signal(signal.SIGINT, self._handle)
        signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, number: int, _: object) -> None:
        if self.code:
            os._exit(self.code)
        self.code = 128 + number
        print("stopping after saving; once more to stop at once", file=sys.stderr)

    def __call__(self) -> int:
        return self.code


def _carry_out(plan: "Plan", out: Path, as_json: bool) -> None:
    from invem import report
    from invem.cli.progress import follow
    from invem.running.run import results, run

    for _ in follow(run(plan, out, _Signals())):
        pass
    page = report.write(out)
    found = results(out)
    if as_json:
        _print({**found, "report": str(page)}, True)
    else:
        _table(found["evaluations"])
        print(f"\nrun     {out}\nreport  {page}")


def _table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    labels = list(dict.fromkeys(label for row in rows for label in row["metrics"]))
    table = Table("phase", "round")
    for label in labels:
        unit = next(row["metrics"][label]["unit"] for row in rows if label in row["metrics"])
        table.add_column(f"{label} ({unit})" if unit else label, justify="right")
    for row in rows:
        cells = []
        for label in labels:
            value = row["metrics"].get(label)
            error = f" ± {value['sem']:.2g}" if value and value["sem"] is not None else ""
            cells.append(
                ""
                if value is None
                else f"{value['value']:.4g}{error}"
                if value["value"] is not None
                else "not finite"
            )
        table.add_row(row["name"], "" if row["round"] is None else str(row["round"]), *cells)
    console = Console()
    Console(width=console.width if console.is_terminal else 160).print(table)


@app.command()
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The run directory; runs/NAME if left out.")
    ] = None,
    device: Device = None,
    smoke: Smoke = False,
    as_json: AsJson = False,
) -> None:
    """Carry out a recipe: measure, learn the prior by EM, restore, evaluate and report."""
    plan = _plan(recipe, overrides, smoke, device)
    if out is None:
        names = (Path("runs") / (recipe.stem + (f"-{i}" if i else "")) for i in range(10000))
        out = next(name for name in names if not name.exists())
    elif out.exists() and (
        not out.is_dir()
        or any(p.name != "recipe.yaml" and not p.name.startswith(".") for p in out.iterdir())
    ):
        raise RecipeError(
            f"{out}: exists already; choose another --out, or go on with it: invem resume {out}"
        )
    _carry_out(plan, out, as_json)


@app.command()
def resume(
    run: RunPath,
    device: Device = None,
    force: Annotated[
        bool, typer.Option("--force", help="Go on though a component is of another version now.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Go on with a run that was stopped or killed."""
    opened = _open(run, device)
    before = json.loads((run / "run.json").read_text("utf-8")).get("components", [])
    changed = [row for row in before if row not in opened.plan.components]
    if changed and not force:
        was = ", ".join(
            f"{row['name']} of {row['distribution']} {row['version']}" for row in changed
        )
        raise RecipeError(f"{run}: it was begun with {was}; go back to that, or add --force")
    _carry_out(opened.plan, run, as_json)


@app.command()
def plan(
    recipe: RecipePath, overrides: Overrides = None, smoke: Smoke = False, as_json: AsJson = False
) -> None:
    """Check a recipe and print what it would do; compute nothing."""
    from invem import analysis
    from invem.errors import Unsupported
    from invem.planning.observation_model import observation_model

    made = _plan(recipe, overrides, smoke)
    try:
        lines = analysis.lines(analysis.identify(observation_model(made)))
    except Unsupported as reason:
        lines = [str(reason)]
    _print({**made.describe(), "identifiability": lines}, as_json)


@app.command()
def identify(
    recipe: RecipePath, overrides: Overrides = None, smoke: Smoke = False, as_json: AsJson = False
) -> None:
    """Say what the observations of a recipe can tell of its signals, what is hidden, and how many
    clean images would help."""
    from invem import analysis
    from invem.planning.observation_model import observation_model

    found = analysis.identify(observation_model(_plan(recipe, overrides, smoke)))
    if as_json:
        _print(analysis.describe(found), True)
    else:
        print("\n".join(analysis.lines(found)))


@app.command()
def show(
    recipe: RecipePath, overrides: Overrides = None, smoke: Smoke = False, as_json: AsJson = False
) -> None:
    """Print a recipe with every default written out."""
    from invem.planning.plan import resolve

    _print(resolve(*_load(recipe, overrides, smoke)), as_json)


@app.command()
def ls(
    kind: Annotated[str | None, typer.Argument(help="operators, samplers, ...")] = None,
    as_json: AsJson = False,
) -> None:
    """List the installed components."""
    from invem.config import KINDS, Catalog
    from invem.errors import suggest

    if kind is not None and kind not in KINDS:
        raise RecipeError(
            f"there is no kind '{kind}'{suggest(kind, KINDS)} (known: {', '.join(KINDS)})"
        )
    catalog = Catalog.load()
    for problem in catalog.problems:
        print(f"warning: {problem}", file=sys.stderr)
    rows = [
        {
            "kind": c.kind,
            "name": c.name,
            "distribution": c.distribution,
            "version": c.version,
            "summary": c.summary,
        }
        for k in KINDS
        if kind in (None, k)
        for name in sorted(catalog.offers[k])
        for c in catalog.offers[k][name]
    ]
    if as_json:
        _print(rows, True)
        return
    for row in rows:
        print(f"{row['kind']:<11} {row['name']:<20} {row['summary'][:100]}")


@app.command()
def info(
    name: Annotated[str, typer.Argument(help="A component, as `invem ls` lists it.")],
    as_json: AsJson = False,
) -> None:
    """Describe a component and its options."""
    import inspect

    from invem.config import KINDS, Catalog, options_of
    from invem.errors import PluginError, suggest

    catalog = Catalog.load()
    found = [c for kind in KINDS for c in catalog.offers[kind].get(name, [])]
    if not found:
        known = [n for kind in KINDS for n in catalog.offers[kind]]
        raise PluginError(f"there is no component '{name}'{suggest(name, known)}")
    rows = []
    for component in found:
        factory = component.load()
        options = [
            {
                "name": o.name,
                "type": inspect.formatannotation(o.annotation),
                "default": None if o.default is o.empty else repr(o.default),
            }
            for o in options_of(factory).values()
        ]
        origin = {
            "kind": component.kind,
            "name": name,
            "distribution": component.distribution,
            "version": component.version,
        }
        row: dict[str, Any] = {**origin, "options": options, "doc": inspect.getdoc(factory) or ""}
        rows.append(row)
    if as_json:
        _print(rows, True)
        return
    for row in rows:
        print(
            f"{row['kind']}: {row['name']} ({row['distribution']}"
            f" {row['version']})\n\n{row['doc']}\n"
        )
        for option in row["options"]:
            print(
                f"  {option['name']}: {option['type']}"
                + (f" = {option['default']}" if option["default"] else " (required)")
            )


@app.command(name="eval")
def evaluate(run: RunPath, as_json: AsJson = False) -> None:
    """Print the metrics of every round of a run; with --json also its recipe, machine and times."""
    from invem.running.run import results

    if not (run / "run.json").is_file():
        raise RecipeError(f"{run}: not a run directory (there is no run.json in it)")
    found = results(run)
    _print(found, True) if as_json else _table(found["evaluations"])


@app.command()
def sample(
    run: RunPath,
    n: Annotated[int, typer.Option("--n", min=1, help="How many.")] = 64,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="A safetensors file; RUN/samples-SEED.safetensors if left out."),
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Draw unconditional samples of the newest prior of a run."""
    from invem import store

    opened = _open(run, device)
    x = opened.generate(opened.last_denoiser(), n, ("sample", seed))
    path = out or run / f"samples-{seed}.safetensors"
    store.write(path, {"x": x}, {"run": str(run), "seed": seed})
    _print({"samples": str(path), "shape": list(x.shape)}, as_json)


@app.command()
def restore(
    run: RunPath,
    observations: Annotated[
        Path,
        typer.Argument(
            metavar="OBSERVATIONS", help="A folder of images, or a safetensors file with y."
        ),
    ],
    draws: Annotated[
        int, typer.Option("--draws", min=1, help="Posterior draws of each observation.")
    ] = 8,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="A .safetensors or .npz file; else RUN/restored-NAME.safetensors."
        ),
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Restore new observations with the newest prior of a run: mean, standard deviation and
    posterior draws."""
    from invem import store
    from invem.cli.progress import follow

    path = out or run / f"restored-{observations.stem}.safetensors"
    if path.suffix not in (".safetensors", ".npz"):
        raise RecipeError(f"{path}: the name must end in .safetensors or .npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be written: {error.strerror}") from error
    opened = _open(run, device)
    try:
        m = opened.observed(_observations(observations, opened))
    except DataError as error:
        raise RecipeError(f"{observations}: {error}") from error
    x = [record for record in follow(opened.restore(m, draws, seed)) if record.event == "restored"][
        -1
    ].data["draws"]
    tensors = {"mean": x.mean(1), "std": x.std(1, correction=1 if draws > 1 else 0), "draws": x}
    if path.suffix == ".npz":
        store.write_arrays(path, tensors)
    else:
        store.write(path, tensors, {"run": str(run), "seed": seed})
    _print(
        {
            "restored": str(path),
            "observations": len(m),
            "draws": draws,
            "shape": list(opened.plan.shape),
        },
        as_json,
    )


def _observations(path: Path, run: "Run") -> "dict[str, Tensor]":
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from invem.config import Catalog

    if path.is_dir():
        given = run.recipe.data or run.recipe.observations
        options = (
            given.options
            if given is not None and given.name == "folder"
            else {"channels": run.plan.shape[0]}
        )
        images = (
            Catalog.load()
            .find("datasets", "folder")
            .load()("train", **{**options, "root": str(path), "test": 0.0})
        )
        return {"y": images[torch.arange(len(images))].x}
    try:
        return load_file(path)
    except FileNotFoundError:
        raise DataError("there is no such file or folder") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(f"cannot be read: {error}") from error


@app.command()
def bench(
    problem: Annotated[
        str,
        typer.Argument(
            metavar="PROBLEM|RECIPE|RUN",
            help="A built-in problem, a run, or a recipe that was run.",
        ),
    ],
    samplers: Annotated[
        str | None, typer.Option("--samplers", help="mmps,dps:weight=2,... or all that fit.")
    ] = None,
    steps: Annotated[
        str | None,
        typer.Option("--steps", help="16,64,256: run samplers with steps at each of these."),
    ] = None,
    seeds: Annotated[
        int, typer.Option("--seeds", min=1, help="Sets of observations and random numbers.")
    ] = 3,
    observations: Annotated[
        int | None, typer.Option("--observations", min=1, help="Observations of each seed.")
    ] = None,
    draws: Annotated[
        int | None, typer.Option("--draws", min=2, help="Draws of each observation.")
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option("--budget", min=1, help="The most network forwards and products a draw."),
    ] = None,
    tune: Annotated[
        int,
        typer.Option("--tune", min=0, help="Random trials of the options, on other observations."),
    ] = 0,
    truth: Annotated[
        str,
        typer.Option("--truth", help="held-out, or prior: draw the truth from the prior itself."),
    ] = "held-out",
    baseline: Annotated[
        Path | None, typer.Option("--baseline", help="An earlier --json file: print what moved.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write everything as JSON.")
    ] = None,
    html_file: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write one self-contained page.")
    ] = None,
    figure_file: Annotated[
        Path | None,
        typer.Option("--figure", metavar="FILE", help="Plot quality against cost (.svg or .png)."),
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    device: Device = None,
) -> None:
    """Compare posterior samplers on one problem: cost, error, calibration."""
    from invem import bench as benches
    from invem import store
    from invem.config import Catalog

    if truth not in ("held-out", "prior"):
        raise RecipeError(f"--truth: '{truth}' is not one of: held-out, prior")
    levels = [_count(word, "--steps") for word in steps.split(",")] if steps is not None else []
    before = benches.read_document(baseline) if baseline is not None else None
    if figure_file is not None:
        benches.check_figure_path(figure_file)
    for path in (json_file, html_file, figure_file):
        if path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise RecipeError(f"{path}: cannot be written: {error.strerror}") from error
    catalog = Catalog.load()
    for flaw in catalog.problems:
        print(f"warning: {flaw}", file=sys.stderr)
    for spec in benches.split_samplers(samplers) if samplers is not None else []:
        benches.parse_sampler(spec, catalog)  # a mistake is told before a prior is trained
    opened = _problem(problem, truth, device, catalog)
    design = benches.Design.of(opened, seeds, observations, draws, tune, budget)
    chosen, left = benches.select_samplers(opened, catalog, samplers, levels, budget)
    for line in left:
        print(line, file=sys.stderr)
    rows = []
    for row in benches.compare_samplers(opened, chosen, catalog, design):
        done = f"{row.seconds * row.draws:.1f} s" if row.error is None else f"fails: {row.error}"
        print(f"{row.setting}: {done}", file=sys.stderr, flush=True)
        rows.append(row)
    found = benches.make_document(opened, rows, design, left)
    if json_file is not None:
        benches.write_document(found, json_file)
    if html_file is not None:
        pictures = {row.setting: row.pictures for row in rows}
        store.write_text(html_file, benches.render_page(found, pictures))
    if figure_file is not None:
        benches.write_figure(found, figure_file)
    if markdown:
        print(benches.render_markdown(found), end="")
    else:
        from rich.console import Console

        console = Console()
        Console(width=console.width if console.is_terminal else 200).print(benches.to_rich(found))
    if before is not None:
        print(
            "\n".join(benches.compare_with_baseline(found, before))
            or "nothing moved by more than twice its standard error"
        )


def _count(word: str, option: str) -> int:
    if not word.strip().isdecimal() or int(word) < 1:
        raise RecipeError(f"{option}: '{word}' is not a whole number above 0")
    return int(word)


def _problem(name: str, truth: Any, device: str | None, catalog: "Catalog") -> "Problem":
    """Finds what samplers are compared on: a run, the finished run of a recipe, or a built-in
    problem."""
    from invem import bench as benches
    from invem.cli.progress import follow
    from invem.config import yaml

    if Path(name).is_dir():
        return benches.problem_of_run(_open(Path(name), device), truth)
    if not name.endswith((".yaml", ".yml")):
        return benches.build_problem(name, catalog, truth, device or "auto", follow)
    run = Path("runs") / Path(name).stem
    resolved = yaml.dump(_plan(Path(name), []).resolved)
    if not (run / "run.json").is_file():
        raise RecipeError(
            f"{name}: there is no finished run of it in {run}; carry it out first: invem run {name}"
            f" --out {run}"
        )
    opened = _open(run, device)
    if (run / "recipe.yaml").read_text("utf-8") != resolved:
        raise RecipeError(
            f"{name}: {run} was begun with other settings; to bench that run as it is: invem bench"
            f" {run}"
        )
    if not benches.has_final_prior(opened):
        raise RecipeError(f"{name}: {run} is not finished; go on with it first: invem resume {run}")
    return benches.problem_of_run(opened, truth)


@app.command(name="report")
def report_(
    run: RunPath,
    png: Annotated[
        bool, typer.Option("--png", help="Write the pictures as PNG files too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write report.html anew from the files of a run."""
    from invem import report

    page = report.write(run)
    pictures = [str(path) for path in report.pictures(run)] if png else []
    _print({"report": str(page), "pictures": pictures}, as_json)


def _version(value: bool) -> None:
    if value:
        from invem import __version__

        print(f"invem {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    plugins_dir: Annotated[
        Path | None,
        typer.Option("--plugins-dir", help="A folder whose Python files are plugins too."),
    ] = None,
    no_plugins: Annotated[
        bool, typer.Option("--no-plugins", help="Use nothing but what comes with invem.")
    ] = False,
) -> None:
    """Learn a clean diffusion prior from corrupted observations, and restore with it."""
    if plugins_dir is not None:
        os.environ["INVEM_PLUGINS_DIR"] = str(plugins_dir)
    if no_plugins:
        os.environ["INVEM_PLUGINS"] = ""


@plugin.command(name="list")
def plugin_list(as_json: AsJson = False) -> None:
    """List the plugins that were asked: what each offers, how long its import took, and what is
    wrong with it."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from invem.config import Catalog

    rows = [asdict(found) for found in Catalog.load().plugins]
    if as_json:
        _print(rows, True)
        return
    table = Table("distribution", "version", "plugin", "components", "import", "status")
    for row in rows:
        names = ", ".join(row["components"])
        table.add_row(
            row["distribution"],
            row["version"],
            row["name"],
            names,
            f"{1000 * row['seconds']:.0f} ms",
            "; ".join(row["errors"]) or "ok",
        )
    console = Console()
    Console(width=console.width if console.is_terminal else 160).print(table)


@plugin.command(name="new")
def plugin_new(
    name: Annotated[str, typer.Argument(help="The component's name in a recipe, in kebab-case.")],
    kind: Annotated[
        str,
        typer.Option(
            "--kind",
            help="operator, noise, network, sampler, objective, dataset, metric or schedule.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="The folder; invem-NAME if left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a small distribution with one component, complete with its test."""
    from invem import scaffold

    folder = out or Path(f"invem-{name}")
    files = [str(path) for path in scaffold.write(name, kind, folder)]
    _print({"files": files, "next": f"pip install -e '{folder}[test]' && pytest {folder}"}, as_json)


@plugin.command(name="check")
def plugin_check(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME|KIND|MODULE",
            help="A component, a kind, or a module that is not installed.",
        ),
    ],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run the contracts on components and print what was measured; exit code 1 if one fails."""
    from invem import testing

    rows = []
    found = components(names)
    for component in found:
        try:
            results = testing.check(component.kind, component.load())
        except MissingExtra as error:
            if len(found) == 1:
                raise
            typer.echo(f"{component.kind}/{component.name}: left out: {error}", err=True)
            continue
        rows += [
            {"kind": component.kind, "name": component.name, **result._asdict()}
            for result in results
        ]
    if as_json:
        _print(rows, True)
    elif markdown:
        print("| component | contract | result | measured | at most |\n|---|---|---|---:|---:|")
        for row in rows:
            print("| " + " | ".join(_cells(row)) + " |")
    else:
        from rich.console import Console
        from rich.table import Table

        table = Table("component", "contract", "result", "measured", "at most", "where")
        for row in rows:
            table.add_row(*_cells(row), row["detail"] if row["passed"] is False else "")
        console = Console()
        Console(width=console.width if console.is_terminal else 160).print(table)
    if any(row["passed"] is False for row in rows):
        raise typer.Exit(1)


def _cells(row: dict[str, Any]) -> list[str]:
    def number(value: float | None) -> str:
        return (
            ""
            if value is None
            else f"{value:.1e}"
            if value and abs(value) < 0.01
            else f"{value:.3g}"
        )

    word = (
        "FAILS"
        if row["passed"] is False
        else ""
        if row["passed"] is None
        else "reported"
        if row["tolerance"] is None
        else "holds"
    )
    return [
        f"{row['kind']}/{row['name']}",
        row["contract"],
        word,
        number(row["value"]),
        number(row["tolerance"]),
    ]


def components(names: list[str]) -> "list[Component]":
    """Finds components by name, kind/name, kind, or in a module that offers them."""
    from importlib import import_module

    from invem.config import KINDS, Catalog, Plugin
    from invem.errors import PluginError, suggest

    catalog, found = Catalog.load(), []
    for name in names:
        every = {
            kind: [c for offers in catalog.offers[kind].values() for c in offers] for kind in KINDS
        }
        kind, _, bare = name.rpartition("/")
        named = [
            c for k in KINDS for c in every[k] if c.name == bare and kind in ("", k, c.distribution)
        ]
        matches = every[name] if name in KINDS else named
        if not matches:
            own = Catalog()
            own.ask(lambda name=name: import_module(name), Plugin(name, name, "?"))  # type: ignore[misc]
            matches = [c for k in KINDS for offers in own.offers[k].values() for c in offers]
            if not matches:
                known = [c.name for k in KINDS for c in every[k]]
                why = (
                    "; ".join(own.problems)
                    if name.replace("_", "").isalnum() and name not in known
                    else ""
                )
                raise PluginError(
                    f"there is no component and no module '{name}'"
                    f"{suggest(name, known)} {why}".rstrip()
                )
        found += matches
    return found


def main() -> None:
    """Runs the command line; turns an expected error into its line and its exit code."""
    try:
        app()
    except InvemError as error:
        kind = "" if isinstance(error, RecipeError) and "\n" in str(error) else "error: "
        print(f"{kind}{error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(
            word in str(error) for word in ("out of memory", "can't allocate memory")
        ):
            raise
        print("error: out of memory: smaller batches need less", file=sys.stderr)
        sys.exit(6)
    except BrokenPipeError:
        os._exit(0)
