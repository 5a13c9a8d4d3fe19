"""Changes of the recipe of a run that was begun: which ones leave what was done valid.

What is finished stays. What is not is begun anew where a change concerns it: the fit of a round
that is not fitted yet, its draws, an evaluation without its metrics.
"""

import shlex
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from invem import atomic
from invem.config import Fit
from invem.errors import RecipeError
from invem.planning.plan import Plan
from invem.running.context import Context
from invem.running.draws import has_draws
from invem.running.priors import FILE
from invem.storage.directory import Folder, Round

__all__ = ["change"]

_Path = tuple[str | int, ...]

# Of a phase that was begun; the others say what its rounds learn from and what they are.
_DRAWING = ("sampler", "anneal", "restart", "batch")
_FITTING = Fit.model_fields.keys() - {"objective", "on", "options"}


def change(run: Context, after: Plan, words: Sequence[str]) -> None:
    """Records changes of the recipe in the history of a run, after checking them.

    Args:
        run: The run, with the plan before.
        after: The plan with the changes.
        words: The changes, each KEY=VALUE.

    Raises:
        RecipeError: If one of them would make what was done the result of another recipe.
        DataError: If a file of the run is damaged.
    """
    changed = list(_differences(run.plan.resolved, after.resolved))
    if not changed:
        return
    then = Context(after, run.directory)
    for path in changed:
        if reason := _why_not(run, then, path):
            raise RecipeError(_refusal(run, path, reason))
    with atomic.lock(run.directory.path):
        # Before the entry of the history: a kill between the two leaves the run as it was.
        for folder in _begun_anew(run, changed):
            for name in folder.tensor_files():
                folder.remove(name)
            for name in ("spent", "sampler"):
                folder.remove_json(name)
        fitted = run.directory.fitted()
        newest = run.where(fitted[-1]) if fitted else "the start"
        when = datetime.now(UTC).isoformat(timespec="seconds")
        row = {"when": when, "after": f"after {newest}", "changes": list(words)}
        run.directory.change(row)


def _refusal(run: Context, path: _Path, reason: str) -> str:
    """Returns why a key cannot be changed, and what can be done instead."""
    names = [
        run.plan.stages[step].phase.name if i == 1 and isinstance(step, int) else str(step)
        for i, step in enumerate(path)
    ]
    key = ".".join(names if path[0] == "phases" else map(str, path))
    instead = "begin a new run with it"
    if run.directory.fitted():
        where = shlex.quote(str(run.directory.path))
        instead += f", and with prior={where} to start from what this one has learned"
    return f"{run.directory.path}: {key} cannot be changed in this run: {reason}; {instead}"


def _differences(one: Any, other: Any, path: _Path = ()) -> Iterator[_Path]:
    """Yields the paths at which two recipes as plain data differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted(one.keys() | other.keys()):
            yield from _differences(one.get(key), other.get(key), (*path, key))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for i, pair in enumerate(zip(one, other, strict=True)):
            yield from _differences(*pair, (*path, i))
    elif one != other:
        yield path


def _why_not(run: Context, then: Context, path: _Path) -> str | None:
    """Returns why a value cannot be changed; None if it can.

    Args:
        run: The run with the plan before.
        then: The run with the changes.
        path: The value.
    """
    whole, key = path[0], path[1] if len(path) > 1 else None
    if whole == "compute":
        return None
    if whole == "evaluate":
        measured = run.directory.measurements("test").numbered()
        if key == "observations" and measured:
            return "the held-out observations are measured already"
        return None
    if whole != "phases":
        return "everything that was done so far was done with it"
    if not isinstance(key, int):
        return "phases can be neither added nor removed"
    return _why_not_phase(run, then, key, path[2:])


def _why_not_phase(run: Context, then: Context, p: int, path: _Path) -> str | None:
    """Returns why a value of a phase cannot be changed."""
    key, name = path[0], run.plan.stages[p].phase.name
    if key == "name":
        return "the records of the run go by it"
    begun = _begun_rounds(run, p)
    if not begun:
        return None
    if key == "rounds":
        return _why_not_rounds(run, then, p, begun)
    if _is_finished(then, p):
        return f"phase {name} is finished"
    replaced = len(path) == 1  # by null, or null by something
    # Where nothing is fitted the shards are the result, and one has as many draws as a batch.
    shards = key == "batch" and run.plan.stages[p].objective is None
    if key == "stop" or (key in _DRAWING and not shards and not (key == "sampler" and replaced)):
        return None
    if key == "fit" and not replaced and path[1] in _FITTING:
        return None
    return f"phase {name} was begun with it"


def _why_not_rounds(run: Context, then: Context, p: int, begun: int) -> str | None:
    name, wanted = run.plan.stages[p].phase.name, then.plan.stages[p].phase.rounds
    if _begun_rounds(run, p + 1):
        return f"the phase after {name} has begun with its result"
    if run.directory.stop(p) is not None:
        return f"the stopping rule has ended phase {name}"
    return f"{begun} rounds of phase {name} were begun" if wanted < begun else None


def _begun_rounds(run: Context, p: int) -> int:
    """Returns how many rounds of a phase have files."""
    return 1 + max((at.number for at in run.directory.begun_rounds() if at.phase == p), default=-1)


def _is_finished(run: Context, p: int) -> bool:
    """Whether nothing of a phase is left to draw or to fit."""
    if run.directory.stop(p) is not None:
        return True
    return _is_done(run, Round(p, run.plan.stages[p].phase.rounds - 1))


def _is_done(run: Context, at: Round) -> bool:
    fits = run.stage(at).objective is not None
    return run.directory.fit(at).has(FILE) if fits else has_draws(run, at)


def _begun_anew(run: Context, changed: Sequence[_Path]) -> Iterator[Folder]:
    """Yields the folders of steps that changes concern and that are not finished.

    A fit finds by itself which of its checkpoints are of other options.
    """
    drawing = {path[1] for path in changed if path[0] == "phases" and path[2] in _DRAWING}
    evaluating = any(path[0] == "evaluate" for path in changed)
    for at in run.directory.begun_rounds():
        if at.phase in drawing and not _is_done(run, at):
            yield run.directory.draws(at)
        evaluation = run.directory.evaluation(at)
        concerned = evaluating or at.phase in drawing
        if concerned and not evaluation.has_json("metrics"):
            yield evaluation
