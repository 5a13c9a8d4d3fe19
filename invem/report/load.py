"""Reads what a report shows from the files of a run.

Every file but `run.json` may be missing, and then its part of the report is missing. A damaged
file is named in `ReportData.damaged` and otherwise treated as missing.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from invem.config import yaml
from invem.errors import DataError, InvemError
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

__all__ = ["STEPS", "load"]

STEPS = ("e-step", "fit", "evaluate")
_OBSERVATIONS, _SAMPLES = 8, 14
_EVALUATION = re.compile(r"(\d+)-(\d+)-evaluation")


def load(run: Path) -> ReportData:
    """Reads the files of a run.

    Args:
        run: The directory of the run, finished or not.

    Raises:
        DataError: The directory is not a run, or its `run.json` is damaged.
    """
    about = _about(run)
    damaged: list[str] = []
    folders = sorted(
        (path for path in run.iterdir() if _EVALUATION.fullmatch(path.name)),
        key=lambda path: _numbers(path.name),
    )
    observations, baseline, evaluations = _evaluations(run, folders, damaged)
    log = _json_lines(run / "log.jsonl", damaged)
    recipe, created = about.get("recipe"), about.get("created")
    warnings = about.get("warnings")
    environment, components = about.get("environment"), about.get("components")
    return ReportData(
        path=run,
        name=str(about.get("name") or run.resolve().name),
        created=str(created) if created else "",
        state=_state(recipe, evaluations, log),
        recipe=str(recipe) if recipe else "",
        environment=environment if isinstance(environment, dict) else {},
        components=[c for c in components if isinstance(c, dict)]
        if isinstance(components, list)
        else [],
        observations=observations,
        baseline=baseline,
        warnings=[str(text) for text in warnings] if isinstance(warnings, list) else [],
        evaluations=evaluations,
        restorations=_restorations(run, folders, evaluations, damaged),
        samples=_samples(run, folders, evaluations, damaged),
        losses=_losses(log),
        times=_times(log),
        events=_events(log),
        identifiability=_identifiability(run, damaged),
        log=log,
        damaged=list(dict.fromkeys(damaged)),
    )


# JSON.


def _about(run: Path) -> dict[str, Any]:
    path = run / "run.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except OSError as error:
        raise DataError(f"{str(run)!r} is not a run: no readable run.json in it") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{str(path)!r} is not valid JSON: the run is damaged") from error
    if not isinstance(about, dict):
        raise DataError(f"{str(path)!r} is not a JSON object: the run is damaged")
    return about


def _json_lines(path: Path, damaged: list[str], whole: bool = False) -> list[dict[str, Any]]:
    """Reads JSON objects, one per line, or one per file with `whole`.

    An unfinished last line is no damage: a run that is going on may be writing it.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines = [text] if whole else text.split("\n")
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            entry = None
        if isinstance(entry, dict):
            found.append(entry)
        elif whole or number < len(lines):
            damaged.append(f"{path.name}, line {number}")
    return found


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
    run: Path, folders: Sequence[Path], damaged: list[str]
) -> tuple[dict[str, MetricValue], str, list[Evaluation]]:
    """The metrics of the observations themselves, what they were computed from, and the evaluated
    rounds in order."""
    lines = _json_lines(run / "metrics.jsonl", damaged)
    if not lines:
        for folder in folders:
            lines += _json_lines(folder / "metrics.json", damaged, whole=True)
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
    recipe: object, evaluations: Sequence[Evaluation], log: Sequence[Mapping[str, Any]]
) -> str:
    """Whether the last round of the recipe's last phase is there.

    Where that round is not evaluated, the steps in the log decide.
    """
    last_evaluated = [f"last evaluated: {e.round.label}" for e in evaluations[-1:]]
    try:
        plain = yaml.load(str(recipe or ""), "recipe").value
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


def _tensor(run: Path, name: str, key: str, limit: int, damaged: list[str]) -> Array | None:
    """The first `limit` rows of a stored tensor, (n, ...); of complex numbers, the modulus."""
    path = run / name
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            if key not in file.keys():  # noqa: SIM118
                return None
            rows = file.get_slice(key)
            shape = rows.get_shape()
            if len(shape) < 2 or not min(shape):
                return None
            value = np.asarray(rows[: min(limit, shape[0])])
    except (OSError, SafetensorError, TypeError, ValueError, AttributeError):
        damaged.append(name)
        return None
    if np.iscomplexobj(value):
        value = np.abs(value)
    return value.astype(np.float64)


def _restorations(
    run: Path, folders: Sequence[Path], evaluations: Sequence[Evaluation], damaged: list[str]
) -> Restorations | None:
    """The newest restorations that can be read, with their observations."""

    def read(name: str, key: str, dimensions: int) -> Array | None:
        value = _tensor(run, name, key, _OBSERVATIONS, damaged)
        return value if value is not None and value.ndim == dimensions else None

    draws, posterior, mean, label = None, None, None, ""
    for folder in reversed(folders):
        draws = read(f"{folder.name}/restorations.safetensors", "draws", 5)
        if draws is not None:
            posterior = read(f"{folder.name}/posterior.safetensors", "draws", 5)
            mean = read(f"{folder.name}/restorations.safetensors", "mean", 4)
            label = _label(folder, evaluations)
            break
    truth = read("truth/00000.safetensors", "x", 4)
    y = _tensor(run, "measurements/test/00000.safetensors", "y", _OBSERVATIONS, damaged)
    # A measurement (n, H, W) without channels is a picture only where the signals are images.
    if y is not None and y.ndim == 3 and (draws is not None or truth is not None):
        y = y[:, None]
    observations = y if y is not None and y.ndim == 4 else None
    if observations is None and draws is None and truth is None:
        return None
    return Restorations(label, observations, draws, posterior, truth, mean)


def _samples(
    run: Path, folders: Sequence[Path], evaluations: Sequence[Evaluation], damaged: list[str]
) -> list[Samples]:
    found = []
    for folder in folders:
        name = f"{folder.name}/samples.safetensors"
        x = _tensor(run, name, "x", _SAMPLES, damaged)
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
        elif event in ("damaged", "doubt"):
            found.append(RoundEvent(round_, event, {}, str(entry.get("warning"))))
        elif event == "stop":
            found.append(RoundEvent(round_, event, {}, str(entry.get("reason"))))
    return found


def _identifiability(run: Path, damaged: list[str]) -> Identifiability | None:
    path = run / "identifiability.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8", errors="replace"))
        lines = [str(line) for line in found["lines"]]
        count = _int(found.get("observations")) or 0
        return Identifiability(lines, str(found.get("warning") or ""), count)
    except OSError:
        return None
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        damaged.append(path.name)
        return None
