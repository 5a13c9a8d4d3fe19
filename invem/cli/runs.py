"""Commands on runs: run, resume, eval, sample, restore, report."""

import os
import signal
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from invem.cli.app import AsJson, Device, Overrides, RecipePath, RunPath, Smoke
from invem.cli.output import make_parent, print_data, print_metrics, print_warnings, say, tell
from invem.cli.recipes import installed, make_plan
from invem.cli.where import run_folder
from invem.errors import DataError, InvemError, RecipeError

if TYPE_CHECKING:
    from invem.door import Run
    from invem.planning.plan import Plan

__all__ = ["evaluate", "open_run", "restore", "resume", "run", "sample", "write_report"]

Seed = Annotated[int, typer.Option("--seed", min=0)]


class StopSignals:
    """Remembers the first SIGINT, SIGTERM or SIGHUP, so that a run stops with its state saved.

    A second signal ends the process at once. A hangup that `nohup` ignores stays ignored."""

    def __init__(self) -> None:
        self.code = 0
        signal.signal(signal.SIGINT, self._handle)
        signal.signal(signal.SIGTERM, self._handle)
        hangup = getattr(signal, "SIGHUP", None)  # not on Windows
        if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
            signal.signal(hangup, self._handle)

    def _handle(self, number: int, _: object) -> None:
        if self.code:
            os._exit(self.code)
        self.code = 128 + number
        tell("stopping after saving; once more to stop at once")

    def __call__(self) -> int:
        return self.code


def open_run(path: Path, device: str | None = None) -> "Run":
    """Opens a run directory and prints the warnings. Raises as `invem.open` does."""
    from invem import door

    opened = door.open(path, device=device, catalog=installed())
    print_warnings(opened.plan.warnings)
    return opened


def _carry_out(run: "Run", as_json: bool, force: bool = False, changes: Sequence[str] = ()) -> None:
    """Carries out a run to its end, writes its report and prints its metrics."""
    from invem import report
    from invem.cli.progress import follow

    run.resume(
        changes,
        force=force,
        follow=lambda records: follow(records, run.plan),
        stop=StopSignals(),
    )
    page, found = report.write(run.path), run.results
    told = _told(run.path)
    if as_json:
        print_data({**found, "verdict": told, "report": str(page)}, True)
    else:
        say("\n".join(f"{text}." for text in told) + "\n")
        print_metrics(found["evaluations"])
        say(f"\nrun     {run.path}\nreport  {page}")


def _told(path: Path) -> list[str]:
    """Whether a run worked, one sentence each, the headline first."""
    from invem import report

    data = report.load(path)
    return [told.text for told in (report.headline(data), *report.verdict(data))]


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
    from invem import door

    plan = make_plan(recipe, overrides, smoke, device)
    out, told = run_folder(recipe, out)
    _check_disk(plan, out, str(recipe))
    tell(told)
    _carry_out(door.Run(plan, out), as_json)


def _check_disk(plan: "Plan", out: Path, source: str) -> None:
    """Refuses a run that the disk has no place for."""
    from invem.running.forecast import check_space, forecast

    try:
        found = forecast(plan, out, clock=False)
    except (InvemError, RuntimeError, ValueError):
        return  # the run itself says it, where it is not for the few observations that were tried
    if warning := check_space(found, out, source):
        print_warnings([warning])


def resume(
    run: RunPath,
    overrides: Overrides = None,
    device: Device = None,
    force: Annotated[
        bool, typer.Option("--force", help="Go on though a component is of another version now.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Go on with a run that was stopped or killed, or with changes after it failed."""
    _carry_out(open_run(run, device), as_json, force, overrides or ())


def evaluate(run: RunPath, as_json: AsJson = False) -> None:
    """Print the metrics of every round of a run; with --json also its recipe, machine and times."""
    from invem.running.records import results
    from invem.storage.directory import RunDirectory

    directory = RunDirectory(run)
    directory.check_begun()
    found = results(directory)
    told = _told(run)
    if as_json:
        print_data({**found, "verdict": told}, True)
    else:
        say("\n".join(f"{text}." for text in told) + "\n")
        print_metrics(found["evaluations"])


def sample(
    run: RunPath,
    n: Annotated[int, typer.Option("--n", min=1, help="How many.")] = 64,
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="A file; RUN/samples-SEED.safetensors if left out."),
    ] = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Draw unconditional samples of the newest prior of a run."""
    from invem.files import writer
    from invem.storage.directory import RunDirectory

    path = out or RunDirectory(run).file(f"samples-{seed}")
    fmt = writer(path)
    opened = open_run(run, device)
    make_parent(path)
    x = opened.sample(n, seed)
    fmt.write(path, {"x": x}, {"run": str(run), "seed": seed})
    print_data({"samples": str(path), "shape": list(x.shape)}, as_json)


def restore(
    run: RunPath,
    observations: Annotated[
        Path,
        typer.Argument(
            metavar="OBSERVATIONS",
            help="Files of frames or a folder of them; or a safetensors file with y.",
        ),
    ],
    draws: Annotated[
        int, typer.Option("--draws", min=1, help="Posterior draws of each observation.")
    ] = 8,
    seed: Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="A folder, for whole frames in files of their own; or a file of tensors"
            " (RUN/restored-NAME.safetensors if left out).",
        ),
    ] = None,
    std: Annotated[
        bool, typer.Option("--std", help="Write standard deviations too (frames).")
    ] = False,
    keep_draws: Annotated[
        bool, typer.Option("--keep-draws", help="Write the draws too (frames).")
    ] = False,
    tile: Annotated[
        int, typer.Option("--tile", min=0, help="Width of the tiles of a frame; 0 for none.")
    ] = 256,
    force: Annotated[
        bool, typer.Option("--force", help="Restore frames anew whose files are there.")
    ] = False,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Restore new observations with the newest prior of a run: mean, standard deviation and
    posterior draws."""
    from invem.cli.wholeframes import is_folder, restore_folder

    if out is not None and is_folder(out, observations):
        how = {"draws": draws, "std": std, "keep_draws": keep_draws, "tile": tile}
        opened = open_run(run, device)
        restore_folder(opened, observations, out, as_json, {**how, "seed": seed, "force": force})
        return
    _restore_tensors(run, observations, out, device, draws, seed, as_json)


def _restore_tensors(
    run: Path,
    observations: Path,
    out: Path | None,
    device: str | None,
    draws: int,
    seed: int,
    as_json: bool,
) -> None:
    """Restores observations of the run's own shape into a file of tensors."""
    from invem.cli.progress import follow
    from invem.files import observation_names, writer
    from invem.storage.directory import RunDirectory

    path = out or RunDirectory(run).file(f"restored-{observations.stem}")
    fmt = writer(path)
    opened = open_run(run, device)
    make_parent(path)
    try:
        with warnings.catch_warnings(record=True) as said:
            m = opened.measurement(observations)
        print_warnings(str(warning.message) for warning in said)
        names = observation_names(observations.expanduser(), opened.plan)
    except DataError as error:  # what a person gave is mended by another command
        raise RecipeError(str(error)) from error
    found = opened.restore(m, draws, seed, follow=follow)
    tensors = {"mean": found.mean, "std": found.std, "draws": found.draws}
    fmt.write(path, tensors, {"run": str(run), "seed": seed} | ({"names": names} if names else {}))
    shape = list(opened.plan.shape)
    print_data(
        {"restored": str(path), "observations": len(m), "draws": draws, "shape": shape}, as_json
    )


def write_report(
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
    print_data({"report": str(page), "pictures": pictures}, as_json)
