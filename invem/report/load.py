"""Reads what a report shows from the files of a run.

Every file but `run.json` may be missing, and then its part of the report is missing. A damaged
file is named in `ReportData.damaged` and otherwise treated as missing.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invem.config import load_any, yaml
from invem.errors import DataError, InvemError, RecipeError
from invem.report.data import (
    Array,
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

if TYPE_CHECKING:
    from invem.storage.directory import Folder, RunDirectory

__all__ = ["STEPS", "load"]

STEPS = ("e-step", "fit", "evaluate")
_OBSERVATIONS, _SAMPLES = 8, 14
_EVALUATION = re.compile(r"(\d+)-(\d+)-evaluation")


def load(run: Path) -> ReportData:
    """Reads the files of a run.

    Args:
        run: The directory of the run, finished or not.

    Raises:
        RecipeError: The directory is not a run.
        DataError: Its `run.json` is damaged, or another version of
            invem made it.
    """
    from invem.storage.directory import RunDirectory  # it imports torch

    directory = RunDirectory(run)
    if not directory.begun:
        raise RecipeError(f"{str(run)!r} is not a run: no readable run.json in it")
    about = directory.about()
    damaged: list[str] = []
    folders = sorted(
        (path for path in run.iterdir() if _EVALUATION.fullmatch(path.name)),
        key=lambda path: _numbers(path.name),
    )
    observations, baseline, evaluations = _evaluations(directory, folders, damaged)
    log = _whole(directory, directory.logged, damaged) or []
    history = _whole(directory, directory.history, damaged) or []
    return ReportData(
        path=run,
        name=about.get("name") or run.resolve().name,
        created=about.get("created", ""),
        state=_state(about["recipe"], history, evaluations, log),
        recipe=about["recipe"],
        environment=about.get("environment", {}),
        components=about.get("components", []),
        observations=observations,
        baseline=baseline,
        warnings=about.get("warnings", []),
        evaluations=evaluations,
        restorations=_restorations(directory, folders, evaluations, damaged),
        samples=_samples(directory, folders, evaluations, damaged),
        losses=_losses(log),
        times=_times(log),
        events=_events(log),
        identifiability=_identifiability(directory, damaged),
        log=log,
        history=[_change_words(row) for row in history],
        damaged=list(dict.fromkeys(damaged)),
    )


# JSON.


def _whole(directory: "RunDirectory", read: Callable[[], Any], damaged: list[str]) -> Any:
    """Returns what is read; None, after a note, if it is damaged."""
    try:
        return read()
    except DataError as error:
        damaged.append(str(error).replace(f"{directory.path}/", ""))
        return None


def _change_words(row: Mapping[str, Any]) -> str:
    changes = ", ".join(row["changes"])
    return f"{row['when']}, {row['after']}: {changes}"


def _float(value: object) -> float:
    """A number that JSON held; NaN for everything else, such as null."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan


def _finite(value: object) -> float | None:
    number = _float(value)
    return number if math.isfinite(number) else None


def _int(value: object) -> int | None:
    number = _finite(value)
    return None if number is None else int(number)


def _round(entry: Mapping[str, Any]) -> Round:
    return Round(str(entry.get("name") or ""), _int(entry.get("round")))


# Evaluations.


def _evaluations(
    directory: "RunDirectory", folders: Sequence[Path], damaged: list[str]
) -> tuple[dict[str, MetricValue], str, list[Evaluation]]:
    """The metrics of the observations themselves, what they were computed from, and the evaluated
    rounds in order."""
    lines = _whole(directory, directory.metrics, damaged)
    if not lines:
        places: list[tuple[Folder, str]] = [(directory, "observations")]
        places += [(directory.folder(folder), "metrics") for folder in folders]
        found_there = [
            _whole(directory, partial(at.read_json, name), damaged)
            for at, name in places
            if at.has_json(name)
        ]
        lines = [line for line in found_there if line is not None]
    # A resumed run may have evaluated a round twice. The newer line replaces the older one.
    found: dict[tuple[int | None, Round], dict[str, MetricValue]] = {}
    baseline = "observations"
    for line in lines:
        found[_int(line.get("phase")), _round(line)] = _metrics(line.get("metrics"))
        if line.get("of"):
            baseline = f"observations ({line['of']})"
    observations: dict[str, MetricValue] = {}
    evaluations = []
    for (phase, round_), metrics in found.items():
        if phase is None and round_.number is None:
            observations.update(metrics)
        else:
            evaluations.append(Evaluation(phase, round_, metrics))
    return observations, baseline, evaluations


def _metrics(stored: object) -> dict[str, MetricValue]:
    metrics = {}
    for name, entry in stored.items() if isinstance(stored, dict) else ():
        entry = entry if isinstance(entry, dict) else {"value": entry}
        higher = entry.get("higher_is_better")
        metrics[name] = MetricValue(
            _float(entry.get("value")),
            _float(entry.get("sem")),
            str(entry.get("unit") or ""),
            higher if isinstance(higher, bool) else None,
            _finite(entry.get("target")),
            str(entry.get("below") or ""),
            str(entry.get("above") or ""),
        )
    return metrics


def _state(
    recipe: str,
    history: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Evaluation],
    log: Sequence[Mapping[str, Any]],
) -> str:
    """Whether the last round of the recipe's last phase is there.

    Where that round is not evaluated, the steps in the log decide.
    """
    last_evaluated = [f"last evaluated: {e.round.label}" for e in evaluations[-1:]]
    try:
        plain = yaml.load(recipe, "recipe").value
        if changes := [change for row in history for change in row["changes"]]:
            plain = load_any(plain, changes).value
        phase = plain["phases"][-1]
        rounds = int(phase.get("rounds", 1))
        last = Round(str(phase["name"]), rounds - 1)
        evaluate = plain.get("evaluate") or {}
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
        return "".join(last_evaluated) or "unknown whether finished"
    seen = [e.round for e in evaluations]
    if not due:
        seen += [_round(entry) for entry in log if entry.get("event") in STEPS]
    return "finished" if last in seen else "; ".join(["unfinished", *last_evaluated])


def _numbers(folder: str) -> tuple[int, int]:
    """The phase and the round of a folder, both counted from 0."""
    phase, number = folder.split("-")[:2]
    return int(phase), int(number)


def _label(folder: Path, evaluations: Sequence[Evaluation]) -> str:
    phase, number = _numbers(folder.name)
    for evaluation in evaluations:
        if (evaluation.phase, evaluation.round.number) == (phase, number):
            return evaluation.round.label
    return f"phase {phase + 1}, round {number + 1}"


# Images.


def _tensor(
    directory: "RunDirectory", name: str, key: str, limit: int, damaged: list[str]
) -> Array | None:
    """The first `limit` rows of a stored tensor, (n, ...); of complex numbers, the modulus."""
    path = directory.path / f"{name}.safetensors"
    if not path.is_file():
        return None
    folder = directory.folder(path.parent)
    tensors = _whole(directory, lambda: folder.read(path.stem), damaged) or {}
    rows = tensors.get(key)
    if rows is None or rows.ndim < 2 or not min(rows.shape):
        return None
    rows = rows[:limit]
    value: Array = (rows.abs() if rows.is_complex() else rows).double().numpy()
    return value


def _restorations(
    directory: "RunDirectory",
    folders: Sequence[Path],
    evaluations: Sequence[Evaluation],
    damaged: list[str],
) -> Restorations | None:
    """The newest restorations that can be read, with their observations."""

    def read(name: str, key: str, dimensions: int) -> Array | None:
        value = _tensor(directory, name, key, _OBSERVATIONS, damaged)
        return value if value is not None and value.ndim == dimensions else None

    draws, posterior, mean, label = None, None, None, ""
    for folder in reversed(folders):
        draws = read(f"{folder.name}/restorations", "draws", 5)
        if draws is not None:
            posterior = read(f"{folder.name}/posterior", "draws", 5)
            mean = read(f"{folder.name}/restorations", "mean", 4)
            label = _label(folder, evaluations)
            break
    truth = read("truth/00000", "x", 4)
    y = _tensor(directory, "measurements/test/00000", "y", _OBSERVATIONS, damaged)
    # A measurement (n, H, W) without channels is a picture only where the signals are images.
    if y is not None and y.ndim == 3 and (draws is not None or truth is not None):
        y = y[:, None]
    observations = y if y is not None and y.ndim == 4 else None
    if observations is None and draws is None and truth is None:
        return None
    return Restorations(label, observations, draws, posterior, truth, mean)


def _samples(
    directory: "RunDirectory",
    folders: Sequence[Path],
    evaluations: Sequence[Evaluation],
    damaged: list[str],
) -> list[Samples]:
    found = []
    for folder in folders:
        name = f"{folder.name}/samples"
        x = _tensor(directory, name, "x", _SAMPLES, damaged)
        if x is not None and x.ndim == 4:
            found.append(Samples(folder.name, _label(folder, evaluations), x))
    return found


# The log and the analysis.


def _losses(log: Sequence[Mapping[str, Any]]) -> list[Loss]:
    # As with evaluations, what a resumed run repeated counts once.
    found: dict[tuple[str, ...], Loss] = {}
    for position, entry in enumerate(log):
        if entry.get("event") == "loss":
            place = [str(entry.get(key)) for key in ("phase", "round", "step")]
            key = tuple(place) if "step" in entry else (*place, str(position))
            found[key] = Loss(_round(entry), _float(entry.get("loss")))
    return list(found.values())


def _times(log: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for entry in log:
        event, seconds = entry.get("event"), _finite(entry.get("seconds"))
        if event in STEPS and seconds is not None:
            row = found.setdefault(_round(entry).label, {})
            row[event] = row.get(event, 0.0) + seconds
    return found


def _events(log: Sequence[Mapping[str, Any]]) -> list[RoundEvent]:
    found = []
    for entry in log:
        event, round_, values = entry.get("event"), _round(entry), entry.get("values")
        if event == "e-step":
            residual = _finite(entry.get("residual"))
            if residual is not None:
                found.append(RoundEvent(round_, event, {"residual": residual}, ""))
        elif event == "calibrate" and isinstance(values, dict):
            numbers = {str(name): _float(value) for name, value in values.items()}
            unsettled = "its options have not settled, see log.jsonl"
            reason = unsettled if entry.get("settled") is False else ""
            found.append(RoundEvent(round_, event, numbers, reason))
        elif event == "damaged":
            found.append(RoundEvent(round_, event, {}, str(entry.get("warning"))))
        elif event == "stop":
            found.append(RoundEvent(round_, event, {}, str(entry.get("reason"))))
        if event in ("e-step", "calibrate") and entry.get("warning"):
            found.append(RoundEvent(round_, "doubt", {}, str(entry["warning"])))
    return found


def _identifiability(directory: "RunDirectory", damaged: list[str]) -> Identifiability | None:
    name = "identifiability"
    if not directory.has_json(name):
        return None
    found = _whole(directory, lambda: directory.read_json(name), damaged)
    if found is None:
        return None
    count = _int(found.get("observations")) or 0
    return Identifiability(found["lines"], found["warning"] or "", count)
