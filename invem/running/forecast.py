"""What a run will take: network passes, time, memory and disk, phase by phase."""

import math
import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from invem.batched import Rng
from invem.config import yaml
from invem.errors import ResourceError
from invem.measurement import Measurement
from invem.objective import ClosedFormObjective, Objective
from invem.planning.counts import examples_of
from invem.planning.model import BLOCK
from invem.planning.plan import Plan, Stage
from invem.running.context import Context
from invem.running.evaluate import FIRST_FEW, SIMULATED, needed
from invem.running.loop import is_evaluated
from invem.running.rehearsal import Rehearsed, rehearse
from invem.running.threads import Threads, choose_threads
from invem.storage.directory import Round, RunDirectory

__all__ = ["Forecast", "PhaseForecast", "check_space", "forecast", "in_bytes", "memory_warning"]

_NEAR = 0.8  # the share of the free space from which on there is a warning
_TENSORS, _JSON, _LINE = 256, 600, 150  # bytes of an empty tensor file, a JSON file, a log line
_LOGGED = 25  # gradient steps of a line of the log
REPORT = 2**18  # bytes of the report
_CHECKPOINTS = 3  # that are there while one is written
_KEPT = 2  # what a pass keeps, and its gradients; freed memory stays with the process
_TRAINED = 5  # copies of the weights: themselves, gradient, two of the optimiser, average


@dataclass(frozen=True)
class PhaseForecast:
    """What a phase will take, all rounds together.

    Attributes:
        name: Its name.
        rounds: Its rounds, as if none were left out by a stopping rule.
        observations: The observations that a round draws from, or learns from.
        draws: The draws of all rounds.
        passes: Network passes of a draw, forward and vector-Jacobian products.
        sampler: The name of the sampler; "" without one.
        objective: The name of the objective; "" without one.
        steps: The gradient steps of a round; 0 for a fit in closed form.
        examples: The examples that all gradient steps see, each a pass forward and one back.
        evaluations: How many rounds are evaluated.
        seconds: The seconds of "e-step", "fit" and "evaluate".
        memory: Bytes in use at its peak, without what every process needs.
        disk: Bytes of its files.
    """

    name: str
    rounds: int
    observations: int
    draws: int
    passes: tuple[int, int]
    sampler: str
    objective: str
    steps: int
    examples: int
    evaluations: int
    seconds: dict[str, float]
    memory: int
    disk: int


class Disk(NamedTuple):
    """The bytes of a disk."""

    total: int
    free: int


@dataclass(frozen=True)
class Forecast:
    """What a run will take.

    Attributes:
        phases: Phase by phase.
        timed: Whether times were measured.
        base: Bytes of memory that the process needs in any case.
        held: Bytes of the measurements, which are kept in memory.
        begun: Bytes on disk beside those of the phases.
        passing: Bytes of checkpoints, which are removed again.
        free: Free bytes where the run is to be written.
        size: All bytes there.
        threads: The threads that the run will have.
        accelerated: Whether most of the memory is that of an accelerator.
        without: What the time leaves out.
    """

    phases: list[PhaseForecast]
    timed: bool
    base: int
    held: int
    begun: int
    passing: int
    free: int
    size: int
    threads: Threads
    accelerated: bool
    without: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """The seconds of the whole run."""
        return sum(sum(phase.seconds.values()) for phase in self.phases)

    @property
    def memory(self) -> int:
        """Bytes of memory at the peak, of processor and accelerator together."""
        return self.base + self.held + max(phase.memory for phase in self.phases)

    @property
    def disk(self) -> int:
        """Bytes of the finished run directory."""
        return self.begun + sum(phase.disk for phase in self.phases)

    def describe(self) -> dict[str, Any]:
        """Returns the totals as plain data: seconds (null if they were not measured) and bytes."""
        return {
            "seconds": round(self.seconds, 1) if self.timed else None,
            "seconds by phase": {
                phase.name: {step: round(value, 1) for step, value in phase.seconds.items()}
                for phase in self.phases
            },
            "time is without": self.without,
            "threads": self.threads.number,
            "memory": self.memory,
            "disk": self.disk,
            "disk for checkpoints": self.passing,
            "disk by phase": {phase.name: phase.disk for phase in self.phases},
            "disk free": self.free,
        }


def forecast(plan: Plan, path: Path, clock: bool = True) -> Forecast:
    """Estimates what a run will take, from a rehearsal of each of its steps.

    Args:
        plan: The plan.
        path: The run directory, which need not exist.
        clock: Whether times are measured. Sizes alone are found faster.
    """
    run, disk = Context(plan, RunDirectory(path)), _disk_of(path)
    row, common = _bytes_of_observations(plan)
    before = torch.get_num_threads()
    threads = choose_threads(run) if clock else Threads(before, {})
    torch.set_num_threads(threads.number)
    try:
        rehearsed = list(rehearse(plan, clock))
    finally:
        torch.set_num_threads(before)
    phases = [_phase(run, p, found) for p, found in enumerate(rehearsed)]
    return Forecast(
        phases=phases,
        timed=clock,
        base=_resident(),  # with the libraries that training loads
        held=(plan.train + plan.test) * row,
        begun=_begun(run, row, common),
        passing=max(map(_checkpoints, plan.stages, rehearsed), default=0),
        free=disk.free,
        size=disk.total,
        threads=threads,
        accelerated=run.device.type != "cpu",
        without=_without(plan),
    )


def check_space(found: Forecast, path: Path, source: str) -> str | None:
    """Compares a forecast with the free space.

    Args:
        found: The forecast.
        path: The run directory.
        source: The recipe, for messages.

    Returns:
        A warning if the space is nearly too small, None otherwise.

    Raises:
        ResourceError: If it is too small.
    """
    need = found.disk + found.passing
    largest = max(found.phases, key=lambda phase: phase.disk)
    told = (
        f"{source}: the run needs about {in_bytes(need)} on disk, and {in_bytes(found.free)} are"
        f" free for {path}; most of it is phase {largest.name}: fewer rounds, draws or observations"
        " need less, or choose another disk (--out)"
    )
    if not found.size:
        return None  # no disk, such as /proc: the run says why it cannot be written there
    if need > found.free:
        raise ResourceError(told)
    return told if need > _NEAR * found.free else None


def memory_warning(found: Forecast) -> str | None:
    """Returns a warning if a forecast needs more memory than there is, None otherwise."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if found.accelerated or found.memory <= there:
        return None
    return (
        f"the run needs about {in_bytes(found.memory)} of memory, and this machine has"
        f" {in_bytes(there)}: a smaller `batch` of phases and fits needs less"
    )


def in_bytes(n: float) -> str:
    """Returns a number of bytes in words, such as "1.2 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"


# Phases


def _phase(run: Context, p: int, found: Rehearsed) -> PhaseForecast:
    plan, stage = run.plan, run.plan.stages[p]
    phase, fit = stage.phase, stage.phase.fit
    n = min(phase.observations or plan.train, plan.train)
    one = n * phase.draws if stage.sampler is not None else 0
    renewed = [
        one if r == 0 or phase.refresh == 1 else max(round(phase.refresh * one), 1)
        for r in range(phase.rounds)
    ]
    examples = examples_of(plan.recipe, stage, plan.train)
    evaluated = _evaluated_rounds(run, p)
    trained = isinstance(stage.objective, Objective)
    seconds = {
        "e-step": found.first.of(renewed[0], phase.batch)
        + sum(found.draw.of(k, phase.batch) for k in renewed[1:]),
        "fit": 0.0,
        "evaluate": _evaluation_seconds(run, p, found, evaluated),
    }
    steps = 0
    if fit is not None and trained:
        steps = fit.steps
        seconds["fit"] = phase.rounds * steps * found.fit.of(min(fit.batch, examples), fit.batch)
    elif fit is not None:
        seconds["fit"] = phase.rounds * found.fit.of(examples, phase.batch)
    return PhaseForecast(
        name=phase.name,
        rounds=phase.rounds,
        observations=n if stage.sampler is not None else examples,
        draws=sum(renewed),
        passes=stage.sampler.cost if stage.sampler is not None else (0, 0),
        sampler="" if phase.sampler is None else phase.sampler.name,
        objective="" if fit is None else fit.objective,
        steps=steps,
        examples=phase.rounds * steps * min(fit.batch, examples) if fit is not None else 0,
        evaluations=len(evaluated),
        seconds=seconds,
        memory=_memory(plan, stage, found, one, examples),
        disk=_draws_on_disk(plan, stage, renewed, one)
        + _fits_on_disk(plan, stage, found, examples)
        + sum(_evaluation_on_disk(run, at) for at in evaluated),
    )


def _evaluated_rounds(run: Context, p: int) -> list[Round]:
    """Returns the rounds of a phase that are evaluated, where there is a prior."""
    stages = run.plan.stages[: p + 1]
    if run.recipe.prior is None and all(stage.objective is None for stage in stages):
        return []
    rounds = (Round(p, r) for r in range(run.plan.stages[p].phase.rounds))
    return [at for at in rounds if is_evaluated(run, at, False)]


def _restored(run: Context, at: Round) -> list[tuple[str, int]]:
    """Returns the files of restorations of an evaluation, and how many draws each has."""
    plan, options = run.plan, run.recipe.evaluate
    if run.stage(at).evaluator is None:
        return []
    found = [("restorations", plan.test * options.draws)] if plan.test else []
    last = Round(len(plan.stages) - 1, plan.stages[-1].phase.rounds - 1)
    if at == last and plan.test and options.posterior:
        found.append(("posterior", min(FIRST_FEW, plan.test) * options.posterior))
    if "resimulated" in needed(run) and options.samples:
        found.append(("resimulated", min(options.samples, SIMULATED)))
    return found


def _evaluation_seconds(run: Context, p: int, found: Rehearsed, rounds: Iterable[Round]) -> float:
    options, seconds = run.recipe.evaluate, 0.0
    for at in rounds:
        seconds += sum(found.restore.of(n, options.batch) for _, n in _restored(run, at))
        seconds += found.sample.of(options.samples, options.batch)
    return seconds


# Disk


def _begun(run: Context, row: int, common: int) -> int:
    """Returns the bytes of what is there beside the phases."""
    plan, signal = run.plan, _signal(run.plan)
    blocks = math.ceil(plan.train / BLOCK) + math.ceil(plan.test / BLOCK)
    found = (plan.train + plan.test) * row + blocks * (common + 2 * _TENSORS)
    if not plan.observed:
        found += plan.test * signal + math.ceil(plan.test / BLOCK) * _TENSORS
    if any(
        stage.on == "clean" or stage.phase.calibrate or (stage.phase.fit and stage.phase.fit.clean)
        for stage in plan.stages
    ):
        granted = plan.train if run.recipe.clean == "all" else min(run.recipe.clean, plan.train)
        found += granted * signal
    if run.recipe.prior not in (None, "network"):
        other = RunDirectory(Path(str(run.recipe.prior)).expanduser())
        found += other.fit(other.fitted()[-1]).file("denoiser").stat().st_size
    recipe = len(yaml.dump(plan.resolved))
    return found + 2 * recipe + 10 * _JSON + len(plan.metrics) * _TENSORS + REPORT


def _draws_on_disk(plan: Plan, stage: Stage, renewed: list[int], one: int) -> int:
    if stage.sampler is None:
        return 0
    files = sum(math.ceil(k / stage.phase.batch) for k in renewed)
    pools = min(stage.phase.rounds, 2) * one if stage.phase.refresh < 1 else 0
    lines = stage.phase.rounds * (_JSON + _LINE)
    return (sum(renewed) + pools) * _signal(plan) + files * _TENSORS + lines


def _fits_on_disk(plan: Plan, stage: Stage, found: Rehearsed, examples: int) -> int:
    fit = stage.phase.fit
    if fit is None:
        return 0
    if isinstance(stage.objective, ClosedFormObjective):
        return stage.phase.rounds * (found.file + _JSON + 2 * _LINE)
    lines = math.ceil(fit.steps / _LOGGED) * _LINE
    moments = 0 if stage.on == "observations" else _moments(plan, fit.moments, examples)
    return stage.phase.rounds * (found.file + moments + lines + _JSON + 2 * _LINE)


def _moments(plan: Plan, rank: int, examples: int) -> int:
    """Returns the bytes of a mean, a diagonal and a factor."""
    d = math.prod(plan.shape)
    return 4 * d * (2 + min(rank, d, max(examples - 1, 0)))


def _evaluation_on_disk(run: Context, at: Round) -> int:
    counts = [n for _, n in _restored(run, at)] + [run.recipe.evaluate.samples]
    rows = 3 * _LINE * len(run.plan.metrics) + _JSON
    return sum(n * _signal(run.plan) + _TENSORS for n in counts if n) + rows


def _checkpoints(stage: Stage, found: Rehearsed) -> int:
    fit = stage.phase.fit
    if fit is None or not found.weights or fit.steps <= fit.checkpoint:
        return 0
    return _CHECKPOINTS * (found.file + 2 * found.weights)


def _bytes_of_observations(plan: Plan) -> tuple[int, int]:
    """Returns the bytes of one stored observation, and of what is common to a block of them."""
    operator, noise = plan.model.draw(2, Rng.generator("forecast"))
    m = Measurement(operator(torch.zeros(2, *plan.shape)), operator, noise)
    common, row, shared = m.shared_paths(), 0, 0
    for path, tensor in m.tensors().items():
        size = tensor.numel() * tensor.element_size()
        row, shared = (row, shared + size) if path in common else (row + size // 2, shared)
    return row, shared


def _signal(plan: Plan) -> int:
    return 4 * math.prod(plan.shape)


def _disk_of(path: Path) -> Disk:
    """Returns the bytes of the disk that a folder is, or will be, on."""
    there = next(
        folder for folder in [path.absolute(), *path.absolute().parents] if folder.is_dir()
    )
    total, _, free = shutil.disk_usage(there)
    return Disk(total, free)


# Memory


def _memory(plan: Plan, stage: Stage, found: Rehearsed, draws: int, examples: int) -> int:
    """Returns the bytes that a phase has in use at its peak, beside the measurements."""
    phase, fit = stage.phase, stage.phase.fit
    signal, weights = _signal(plan), found.weights
    options = plan.recipe.evaluate
    drawing = _KEPT * min(phase.batch, draws) * found.state
    learning = _TRAINED * weights
    if fit is not None and weights:
        learning += _KEPT * min(fit.batch, examples) * found.graph
    elif fit is not None:
        learning += 4 * examples * signal
    shown = max(options.samples, plan.test * options.draws)
    evaluating = _KEPT * min(options.batch, shown) * max(found.state, signal) + shown * signal
    return 2 * draws * signal + 2 * weights + max(drawing, learning, evaluating)


def _resident() -> int:
    """Returns the bytes of memory that this process has used at most."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(most if sys.platform == "darwin" else most * 1024)


def _without(plan: Plan) -> list[str]:
    """Returns what the time leaves out."""
    found = ["the metrics' own work"] if plan.metrics else []
    if any(stage.phase.calibrate for stage in plan.stages):
        found.append("options that are calibrated")
    return found
