"""The run: a generator of records that measures, samples, fits and evaluates, step after step.

A step whose file exists is complete and is skipped, so that a run that was stopped or killed goes
on where it was. Every random number is derived from (seed, purpose, phase, round, item), so that it
goes on with the same numbers.
"""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from invem import analysis, atomic
from invem.config import yaml
from invem.errors import Unsupported
from invem.objective import ClosedFormObjective
from invem.planning.plan import Plan
from invem.prior import Prior
from invem.running.calibrating import calibrated
from invem.running.context import Context, keep_memory
from invem.running.draws import has_draws
from invem.running.estep import estep
from invem.running.evaluate import evaluate, evaluate_observations, prepare
from invem.running.measure import measure
from invem.running.mstep import mstep
from invem.running.priors import FILE, first_prior, read_prior
from invem.running.records import Record, environment
from invem.running.threads import set_threads
from invem.stopping import FinishedRound
from invem.storage.directory import Round, RunDirectory

__all__ = ["carry_out", "is_complete", "is_evaluated", "rounds_of"]


def carry_out(
    plan: Plan, path: Path, stop: Callable[[], int] = lambda: 0
) -> Generator[Record, None, None]:
    """Carries out a plan in a directory, from wherever the directory is, and yields records.

    Args:
        plan: The checked plan.
        path: The run directory.
        stop: Asked between small pieces of work; a number other than zero is the exit code to stop
            with.

    Raises:
        Stopped: After the state was saved, if `stop` said so.
        NumericalError: If draws or a loss are not finite.
        DataError: If a file of the run is damaged.
        PluginError: If a component breaks.
        ResourceError: If the disk is full.
    """
    keep_memory()
    run = Context(plan, RunDirectory(path), stop)
    with atomic.lock(path), run.directory.naming_removal(), plan.origins.naming():
        _go_on(run.directory)
        threads = set_threads(run)
        _begin(run)
        run.directory.watch()
        if threads.tried:
            yield run.log("threads", **threads.describe())
        for split, n in (("train", plan.train), ("test", plan.test)):
            if n:
                yield from measure(run, split)  # first of all: it reads the files of the data
        yield from _identify(run)
        yield from prepare(run)
        if not run.directory.has_json("observations"):
            yield evaluate_observations(run)
        prior = first_prior(run)
        for p in range(len(plan.stages)):
            prior = yield from _phase(run, p, prior)
        run.directory.collect_metrics()
        yield Record("done", {"run": str(path)})


def _go_on(directory: RunDirectory) -> None:
    """Checks what a run shows that was begun before, and completes what a kill has left.

    Draws, measurements and priors are checked where they are read.
    """
    if not directory.begun:
        return
    directory.check_shown()
    directory.settle()
    directory.collect_metrics()


def rounds_of(run: Context, phase: int) -> int:
    """Returns how many rounds a phase has: those of the recipe, or fewer if it was ended before."""
    stopped = run.directory.stop(phase)
    return int(stopped["rounds"]) if stopped else run.plan.stages[phase].phase.rounds


def is_complete(run: Context) -> bool:
    """Whether every round of a run is fitted and evaluated, so that nothing is left to do."""
    if not run.directory.begun:
        return False
    has_prior = run.recipe.prior is not None
    for p, stage in enumerate(run.plan.stages):
        has_prior |= stage.objective is not None
        rounds = rounds_of(run, p)
        for at in (Round(p, r) for r in range(rounds)):
            if stage.objective is not None and not run.directory.fit(at).has(FILE):
                return False
            if stage.objective is None and not has_draws(run, at):
                return False
            evaluated = has_prior and is_evaluated(run, at, at.number + 1 == rounds)
            if evaluated and not run.directory.evaluation(at).has_json("metrics"):
                return False
    return True


def _begin(run: Context) -> None:
    """Writes what the run is begun with."""
    plan = run.plan
    if not run.directory.begun:
        name = Path(plan.loaded.source).stem
        created = datetime.now(UTC).isoformat(timespec="seconds")
        facts = {"name": name, "created": created, "environment": environment()}
        about = {"components": plan.components, "data": _data_facts(plan), **facts}
        about |= {"warnings": plan.warnings} if plan.warnings else {}
        run.directory.begin(yaml.dump(plan.resolved), about)


def _identify(run: Context) -> Iterator[Record]:
    """Writes what the observations can tell of the signals."""
    if not run.directory.has_json("identifiability"):
        try:
            found = run.plan.identifiability()
            told = analysis.describe(found)
            told |= {"lines": analysis.lines(found), "warning": analysis.warning(found)}
        except Unsupported as reason:
            told = {"lines": [str(reason)], "warning": None}
        run.directory.write_json("identifiability", told)
        yield Record("identify", told)


def _data_facts(plan: Plan) -> dict[str, Any]:
    """Returns what a run keeps of its data, as plain data."""
    used = {"train": plan.facts.whole_train, "test": plan.facts.whole_test}
    digests = {split: plan.data(split).digest() for split, n in used.items() if n}
    return plan.facts._replace(digests=digests)._asdict()


def _phase(run: Context, p: int, prior: Prior | None) -> Generator[Record, None, Prior | None]:
    """Carries out the rounds of a phase; returns the prior after it."""
    stage, last = run.plan.stages[p], prior
    for r in range(stage.phase.rounds):
        at, before = Round(p, r), prior
        fitted = run.directory.fit(at).has(FILE)
        if stage.sampler is not None and not fitted:
            # In overlapping rounds the draws were begun beside the fit of the round before.
            yield from estep(run, at, last if stage.phase.overlap else prior)
        if stage.sampler is None and stage.phase.calibrate and not fitted:
            yield from calibrated(run, at, None, prior)
        if stage.objective is not None:
            if not fitted:
                fit = mstep(run, at, prior)
                if stage.phase.overlap and r + 1 < stage.phase.rounds:
                    fit = run_concurrently(run, fit, estep(run, Round(p, r + 1), before))
                yield from fit
            last, prior = before, read_prior(run, at)
        stopped = _stopped(run, at)
        if is_evaluated(run, at, stopped) and prior is not None:
            yield from evaluate(run, at, prior)
        if stopped or _stopped(run, at):
            told = run.directory.stop(p)
            assert told is not None
            yield Record("stop", {**run.named(at), "reason": told["reason"]})
            break
    return prior


def is_evaluated(run: Context, at: Round, stopped: bool) -> bool:
    """Whether a round is evaluated: the last of a phase, and those that the recipe asks for."""
    stage, options = run.stage(at), run.recipe.evaluate
    if not run.plan.metrics or (not run.plan.test and not options.samples):
        return False
    if options.phases is not None and stage.phase.name not in options.phases:
        return False
    if stopped or at.number + 1 == stage.phase.rounds:
        return True
    closed_form = isinstance(stage.objective, ClosedFormObjective)
    return not closed_form and (at.number + 1) % options.every == 0


def _stopped(run: Context, at: Round) -> bool:
    """Decides, from the files of the rounds so far, whether a phase ends before its last round."""
    stage = run.stage(at)
    if at.number + 1 == stage.phase.rounds:
        return False
    told = run.directory.stop(at.phase)
    if told is not None:
        return at.number + 1 >= int(told["rounds"])
    rounds = [_finished(run, Round(at.phase, r)) for r in range(at.number + 1)]
    reason = stage.stop(rounds)
    if reason is not None:
        run.directory.write_stop(at.phase, {**run.named(at), "reason": reason})
    return reason is not None


def _finished(run: Context, at: Round) -> FinishedRound:
    draws, evaluation = run.directory.draws(at), run.directory.evaluation(at)
    options = draws.read_json("sampler")["options"] if draws.has_json("sampler") else {}
    found = evaluation.read_json("metrics")["metrics"] if evaluation.has_json("metrics") else None
    return FinishedRound(options, found)


def run_concurrently(
    run: Context, main: Iterator[Record], other: Iterator[Record]
) -> Iterator[Record]:
    """Carries out two steps at once, each of which leaves the same files as alone.

    If one of them fails the other is stopped.
    """
    done: queue.SimpleQueue[Record | BaseException | None] = queue.SimpleQueue()
    threads, ended = torch.get_num_threads(), False

    def work() -> None:
        torch.set_num_threads(threads)
        try:
            for record in other:
                done.put(record)
            done.put(None)
        except BaseException as error:
            done.put(error)

    def finished(wait: bool) -> Iterator[Record]:
        """Yields what the other step has to say, to its end if `wait`."""
        nonlocal ended
        while not ended and (wait or not done.empty()):
            found = done.get()
            if isinstance(found, Record):
                yield found
                continue
            ended = True
            if found is not None:
                raise found

    thread = threading.Thread(target=work, name="e-step", daemon=True)
    thread.start()
    try:
        for record in main:
            yield record
            yield from finished(wait=False)
        yield from finished(wait=True)
    finally:
        run.cancelled = True
        thread.join()
        run.cancelled = False
