"""The run: a generator of records that measures, samples, fits and evaluates, one step after the
other.

A step whose file exists is complete and is skipped, so that a run that was stopped or killed goes
on where it was. Every random number is derived from (seed, purpose, phase, round, item), so that it
goes on with the same numbers.
"""

import contextlib
import copy
import ctypes
import dataclasses
import json
import math
import os
import platform
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Set
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from invem import store
from invem.analysis.calibrate import Parameters, calibrate, number, rebuilt
from invem.analysis.identify import identify
from invem.batched import Batched, Rng
from invem.config import Fit, yaml
from invem.dataset import Dataset
from invem.denoiser import (
    Begun,
    Denoiser,
    GaussianDenoiser,
    MixtureDenoiser,
    Preconditioned,
    Several,
    prior_of,
)
from invem.diffusion import generate
from invem.errors import DataError, NumericalError, RecipeError, Stopped, Unsupported
from invem.gaussian import Gaussian
from invem.linalg import DPLR
from invem.measurement import Example, Measurement
from invem.metric import Outcome
from invem.noise import NoiseModel
from invem.objective import Objective
from invem.operator import Operator
from invem.planning.plan import Plan, Stage
from invem.sampler import PosteriorSampler
from invem.schedule import Karras

__all__ = ["Record", "Run", "environment", "results", "run"]

_BLOCK = 1024
_RESIMULATED = 512


class Record(NamedTuple):
    """What happened: an event ("measure", "e-step", "fit", "evaluate", "done") and its numbers."""

    event: str
    data: dict[str, Any]


def environment() -> dict[str, Any]:
    """Returns what a reader of the numbers needs to know about the machine."""
    return {
        "invem": metadata.version("invem"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def results(out: Path) -> dict[str, Any]:
    """Returns what a run directory says of itself: recipe, machine, components, evaluations and
    calibrated options.

    And by phase and step: seconds of the wall, those of all processors together ("cpu"), and the
    signals that went through the network, forwards and backwards ("passes").

    Raises:
        DataError: If the directory is not a run, or a file of it is damaged.
    """
    about = store.read_json(out / "run.json")
    spent: dict[str, dict[str, dict[str, float]]] = {"seconds": {}, "cpu": {}, "passes": {}}
    for row in _lines(out / "log.jsonl"):
        for clock, phases in spent.items():
            if clock in row:
                phase = phases.setdefault(row["name"], {})
                phase[row["event"]] = round(phase.get(row["event"], 0.0) + row[clock], 1)
    known = ("phase", "name", "round", "values", "error", "how", "settled")
    calibrated = [
        {key: row[key] for key in known}
        for row in _lines(out / "log.jsonl")
        if row.get("event") == "calibrate"
    ]
    return {
        "run": str(out),
        **about,
        **spent,
        "calibrated": calibrated,
        "evaluations": _lines(out / "metrics.jsonl"),
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    """Reads lines of JSON; one that was torn by a kill is left out."""
    rows = []
    for line in path.read_text("utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return [row for row in rows if isinstance(row, dict)]


def run(plan: Plan, out: Path, stop: Callable[[], int] = lambda: 0) -> Iterator[Record]:
    """Carries out a plan in a directory, from wherever the directory is, and yields records.

    Args:
        plan: The checked plan.
        out: The run directory.
        stop: Asked between small pieces of work; a number other than zero is the exit code to stop
            with.

    Raises:
        Stopped: After the state was saved, if `stop` said so.
        NumericalError: If draws or a loss are not finite.
        DataError: If a file of the run is damaged.
        ResourceError: If the disk is full.
    """
    if plan.recipe.compute.threads:
        torch.set_num_threads(plan.recipe.compute.threads)
    keep_memory()
    work = Run(plan, out, stop)
    with store.lock(out):
        yield from work._all()


def keep_memory() -> bool:
    """Has the C library keep the memory that is freed; returns whether it is one that can.

    glibc gives the memory of a graph back to the system and faults it in again for the next
    product: a quarter of the time of an E-step.
    """
    try:
        library = ctypes.CDLL(None)
        # The numbers are M_TRIM_THRESHOLD, M_MMAP_THRESHOLD and M_TOP_PAD of malloc.h.
        return all(
            library.mallopt(what, size)
            for what, size in ((-1, 2**31 - 1), (-3, 2**25), (-2, 2**26))
        )
    except (AttributeError, OSError, TypeError):
        return False


class _Clock:
    """Seconds of the wall and of all processors together, since it was made and in the processes
    before that worked on the same step."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.monotonic(), time.process_time()

    def add(self, before: Mapping[str, Any]) -> None:
        self.wall -= float(before.get("seconds", 0.0))
        self.cpu -= float(before.get("cpu", 0.0))

    def read(self) -> dict[str, float]:
        return {"seconds": time.monotonic() - self.wall, "cpu": time.process_time() - self.cpu}


@contextlib.contextmanager
def _counted(*modules: nn.Module) -> Iterator[list[int]]:
    """Counts the signals that modules are called with, in the one item of a list."""
    rows = [0]

    def count(_: nn.Module, given: tuple[Any, ...], __: Any) -> None:
        rows[0] += len(given[0])

    handles = [module.register_forward_hook(count) for module in modules]
    try:
        yield rows
    finally:
        for handle in handles:
            handle.remove()


def _begin(network: Denoiser, tensors: Mapping[str, Tensor]) -> None:
    """Loads the weights of an earlier network, of one or of several."""
    if isinstance(network, Several):
        network.begin_with(tensors)
    else:
        network.load_state_dict(Several.alone(tensors))


class Run:
    """A run directory and the plan that it carries out."""

    def __init__(self, plan: Plan, out: Path, stop: Callable[[], int] = lambda: 0) -> None:
        self.plan, self.recipe, self.out, self.stop = plan, plan.recipe, out, stop
        compute = plan.recipe.compute
        self.device = torch.device(_device(compute.device))
        accelerated = self.device.type == "cuda"
        self.bfloat16 = compute.precision == "bfloat16" or (
            compute.precision == "auto" and accelerated
        )
        self._cancelled = False
        self.compile = accelerated if compute.compile == "auto" else compute.compile

    def _rng(self, *key: int | str, items: Iterable[int]) -> Rng:
        return Rng.keyed(self.recipe.seed, *key, items=list(items))

    def _check(self) -> None:
        code = self.stop()
        if code or self._cancelled:
            raise Stopped(f"stopped; go on with: invem resume {self.out}", code)

    def _log(self, event: str, **data: Any) -> Record:
        store.append_json(self.out / "log.jsonl", {"event": event, **data})
        return Record(event, data)

    def _all(self) -> Iterator[Record]:
        description = self.out / "run.json"
        if not description.exists():
            text = yaml.dump(self.plan.resolved)
            store.write_text(self.out / "recipe.yaml", text)
            name = Path(self.plan.loaded.source).stem
            facts = {
                "name": name,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "environment": environment(),
            }
            sizes = self.plan.facts._asdict()
            store.write_json(
                description,
                {
                    "format": 1,
                    "recipe": text,
                    "components": self.plan.components,
                    "data": sizes,
                    **facts,
                },
            )
        if not (self.out / "identifiability.json").exists():
            yield self._identify()
        for split, n in (("train", self.plan.train), ("test", self.plan.test)):
            if n:
                yield from self._measure(split, n)
        yield from self._prepare()
        if not (self.out / "observations.json").exists():
            yield self._judge_observations()
        denoiser = self._prior()
        for p, stage in enumerate(self.plan.stages):
            for r in range(stage.phase.rounds):
                folder = self.out / f"{p}-{r:03d}-denoiser" / "denoiser.safetensors"
                before = denoiser
                if stage.sampler is not None and not folder.exists():
                    yield from self._sample(p, r, stage, denoiser)
                if stage.objective is not None:
                    if not folder.exists():
                        ahead = stage.phase.overlap and r + 1 < stage.phase.rounds
                        fit = self._fit(p, r, stage, denoiser)
                        yield from (
                            self._beside(fit, self._sample(p, r + 1, stage, before))
                            if ahead
                            else fit
                        )
                    denoiser = self.denoiser(folder)
                stopped = self._stopped(p, r, stage)
                last = r + 1 == stage.phase.rounds or stopped
                quick = stage.objective is not None and stage.objective.closed_form
                due = last or (not quick and (r + 1) % self.recipe.evaluate.every == 0)
                named = self.recipe.evaluate.phases
                due = due and (named is None or stage.phase.name in named)
                if (
                    due
                    and denoiser is not None
                    and (self.plan.test or self.recipe.evaluate.samples)
                ):
                    yield from self._evaluate(p, r, stage, denoiser)
                if stopped or self._stopped(p, r, stage):
                    reason = store.read_json(self.out / f"{p}-stop.json")["reason"]
                    yield Record(
                        "stop", {"phase": p, "name": stage.phase.name, "round": r, "reason": reason}
                    )
                    break
        self._collect()
        yield Record("done", {"run": str(self.out)})

    def _identify(self) -> Record:
        """Says what the observations can tell of the signals, before anything is learned."""
        try:
            found = identify(self.plan)
            facts = {**found.describe(), "lines": found.lines(), "warning": found.warning}
        except Unsupported as reason:
            facts = {"lines": [str(reason)], "warning": None}
        store.write_json(self.out / "identifiability.json", facts)
        return Record("identify", facts)

    def rounds(self, p: int) -> int:
        """Returns how many rounds a phase has: those of the recipe, or fewer if it was ended
        before."""
        path = self.out / f"{p}-stop.json"
        return (
            int(store.read_json(path)["rounds"])
            if path.exists()
            else self.plan.stages[p].phase.rounds
        )

    def _stopped(self, p: int, r: int, stage: Stage) -> bool:
        """Decides, from the files of the rounds so far, whether a phase ends before its last
        round."""
        if stage.phase.stop == "never" or r + 1 == stage.phase.rounds:
            return False
        path = self.out / f"{p}-stop.json"
        if path.exists():
            return r + 1 >= int(store.read_json(path)["rounds"])
        rounds = range(r + 1)
        reason = None
        if stage.phase.stop == "weight":
            said = [
                store.read_json(self.out / f"{p}-{k:03d}-samples" / "sampler.json") for k in rounds
            ]
            reason = _weight_says(
                [row["weight"] for row in said], said[-1]["guidance"] == "likelihood"
            )
        elif all((self.out / f"{p}-{k:03d}-evaluation" / "metrics.json").exists() for k in rounds):
            found = [
                store.read_json(self.out / f"{p}-{k:03d}-evaluation" / "metrics.json")["metrics"]
                for k in rounds
            ]
            label = next(label for label in found[0] if label.startswith("observation-distance"))
            floor = (
                0.5 if getattr(self.plan.metrics[label], "distance", "") == "classifier" else 1.0
            )
            values = [metrics[label]["value"] for metrics in found]
            reason = _distance_says([None if value is None else value / floor for value in values])
        if reason is not None:
            store.write_json(path, {"rounds": r + 1, "reason": reason})
            self._log("stop", phase=p, name=stage.phase.name, round=r, reason=reason)
        return reason is not None

    def _beside(self, main: Iterator[Record], other: Iterator[Record]) -> Iterator[Record]:
        """Carries out two steps at once, each of which leaves the same files as alone."""
        done: queue.SimpleQueue[Record | BaseException | None] = queue.SimpleQueue()
        threads = torch.get_num_threads()

        def work() -> None:
            torch.set_num_threads(threads)
            try:
                for record in other:
                    done.put(record)
                done.put(None)
            except BaseException as error:
                done.put(error)

        thread = threading.Thread(target=work, name="e-step", daemon=True)
        thread.start()
        ended = False
        try:
            for record in main:
                yield record
                while not done.empty():
                    found = done.get()
                    ended = ended or not isinstance(found, Record)
                    if isinstance(found, BaseException):
                        raise found
                    if found is not None:
                        yield found
            while not ended:
                found = done.get()
                if isinstance(found, BaseException):
                    raise found
                if found is None:
                    break
                yield found
        finally:
            self._cancelled = True
            thread.join()
            self._cancelled = False

    def denoiser(self, path: Path) -> Denoiser:
        """Reads a fitted denoiser of this run, with the averaged weights, in evaluation mode."""
        p = int(path.parent.name.split("-")[0]) if path.parent.name.endswith("-denoiser") else None
        return self._read(path, p)

    def _read(self, path: Path, p: int | None) -> Denoiser:
        tensors, meta = store.read_meta(path)
        moments = Gaussian(
            tensors["moments.mean"], DPLR(tensors["moments.diag"], tensors["moments.factor"])
        ).to(self.device)
        if meta["kind"] == "gaussian":
            return GaussianDenoiser(moments)
        if meta["kind"] == "mixture":
            return prior_of(
                {
                    name: tensor.to(self.device)
                    for name, tensor in _part(tensors, "mixture.").items()
                }
            )
        objective = None if p is None else self.plan.stages[p].objective
        network = self._network(p, meta["sigma_data"])
        try:
            _begin(network, _part(tensors, "network."))
        except RuntimeError as error:
            raise RecipeError(
                f"{path}: it is of another network than the recipe's:"
                f" {' '.join(str(error).split())[:200]}"
            ) from error
        denoiser = network if objective is None else objective.wrap(network, None)
        denoiser.load_state_dict(_part(tensors, "wrap."), strict=False)
        network.moments = denoiser.moments = moments
        return denoiser.to(self.device).eval().requires_grad_(False)

    def _prior(self) -> Denoiser | None:
        """Returns the prior that the first phase begins with, and keeps a copy of what another run
        learned."""
        named = self.recipe.prior
        if named is None:
            return None
        if named == "network":
            return self._network(None, 0.5).to(self.device).eval().requires_grad_(False)
        path = self.out / "prior.safetensors"
        if not path.exists():
            tensors, meta = store.read_meta(store.last_denoiser(Path(named).expanduser()))
            if tuple(tensors["moments.mean"].shape) != tuple(self.plan.shape):
                raise RecipeError(
                    f"prior {named}: it is of signals of shape"
                    f" {tuple(tensors['moments.mean'].shape)}, not {self.plan.shape}"
                )
            if _part(tensors, "wrap."):
                raise RecipeError(
                    f"prior {named}: its objective put a module around the network; go on from it"
                    " in the same recipe"
                )
            store.write(path, tensors, meta)
        return self.denoiser(path)

    def last_denoiser(self) -> Denoiser:
        """Reads the newest finished denoiser of the run.

        Raises:
            DataError: If no round is finished.
        """
        try:
            return self.denoiser(store.last_denoiser(self.out))
        except DataError as error:
            if (self.out / "prior.safetensors").exists() or self.recipe.prior == "network":
                prior = self._prior()
                assert prior is not None
                return prior
            raise DataError(f"{error}; go on with: invem resume {self.out}") from None

    def _network(self, p: int | None, sigma_data: float, *key: int) -> Denoiser:
        """Builds the network of a phase, or the recipe's; or as many as its objective trains
        together."""
        objective = None if p is None else self.plan.stages[p].objective
        parts = []
        for k in range(1 if objective is None else objective.networks):
            with torch.random.fork_rng(devices=[]):
                torch.random.manual_seed(
                    Rng.keyed(self.recipe.seed, "network", *key, items=[k]).seeds[0]
                )
                built = self.plan.build(p)
            parts.append(
                built if isinstance(built, Denoiser) else Preconditioned(built, sigma_data)
            )
        return parts[0] if len(parts) == 1 else Several(parts)

    # Measurements

    def _measure(self, split: str, n: int) -> Iterator[Record]:
        data: Dataset | None = None
        for block in range(math.ceil(n / _BLOCK)):
            path = self.out / "measurements" / split / f"{block:05d}.safetensors"
            truth = (
                self.out / "truth" / f"{block:05d}.safetensors"
                if split == "test" and not self.plan.observed
                else None
            )
            if path.exists() and (truth is None or truth.exists()):
                continue
            self._check()
            data = self._data(split) if data is None else data
            x = data[torch.arange(block * _BLOCK, min((block + 1) * _BLOCK, n))].x
            assert x is not None
            if truth is not None:
                store.write(truth, {"x": x})
            if not path.exists():
                rng = Rng.generator(self.recipe.seed, "measure", split, block)
                operator, noise = self._common(*self.plan.law(len(x), rng))
                m = Measurement(
                    x if self.plan.observed else noise.sample(operator(x), rng), operator, noise
                )
                measured = getattr(data, "measured", None)
                if self.plan.observed and measured is not None:
                    rows = torch.arange(block * _BLOCK, block * _BLOCK + len(x))
                    m = m.with_tensors(m.tensors() | measured(rows))
                store.write(path, m.tensors())
            yield Record(
                "measure", {"split": split, "done": min((block + 1) * _BLOCK, n), "total": n}
            )

    def _common(
        self, operator: Operator, noise: NoiseModel, theta: Mapping[str, float] | None = None
    ) -> tuple[Operator, NoiseModel]:
        """Gives operator and noise the tensors that are common to all observations, as the first
        block of the run has them."""
        first = self.out / "measurements" / "train" / "00000.safetensors"
        drawn = Measurement(torch.zeros(1), operator, noise)
        paths = drawn.shared_paths()
        if not paths or not first.exists():
            return operator, noise
        kept = self.measurement("train", theta).tensors() if theta else store.read(first)
        m = drawn.with_tensors(drawn.tensors() | {path: kept[path] for path in paths})
        return m.A, m.noise

    def _data(self, split: str) -> Dataset:
        """Opens the data set, which must be the one that the run was begun with."""
        data, facts = self.plan.data(split), self.plan.facts
        wanted = facts.whole_train if split == "train" else facts.whole_test
        if len(data) != wanted or list(data.shape) != list(facts.shape):
            was, now = f"{wanted} of {tuple(facts.shape)}", f"{len(data)} of {tuple(data.shape)}"
            raise RecipeError(
                f"{self.out}: the {split} data have changed since the run was begun: {was} then,"
                f" {now} now"
            )
        return data

    def believed(self, p: int | None = None, r: int = 0) -> dict[str, float]:
        """Returns the options of operator and noise that are believed in a round, or at the end,
        where they are not the recipe's own."""
        theta = dict(self.recipe.assume)
        for q, stage in enumerate(self.plan.stages):
            for s in range(stage.phase.rounds if stage.phase.calibrate else 0):
                path = self.out / f"{q}-{s:03d}-samples" / "calibrated.json"
                if (p is None or (q, s) <= (p, r)) and path.exists():
                    theta |= store.read_json(path)["values"]
        return theta

    def measurement(self, split: str, theta: Mapping[str, float] | None = None) -> Measurement:
        """Reads the stored measurements of a split, with operator and noise at other values of
        their options where some are given."""
        files = sorted((self.out / "measurements" / split).glob("*.safetensors"))
        parts = [store.read(file) for file in files]
        if not parts:
            raise DataError(f"{self.out}: there are no {split} measurements")
        template = Measurement(torch.zeros(1), *self.plan.law(1, Rng.generator(0)))
        if theta:
            for block, part in enumerate(parts):
                n, key = len(part["y"]), (self.recipe.seed, "measure", split, block)
                laws = [self.plan.law(n, Rng.generator(*key), *values) for values in ((), (theta,))]
                stored = Measurement(part["y"], *laws[0]).with_tensors(part)
                parts[block] = rebuilt(stored, *laws).tensors()
            template = Measurement(torch.zeros(1), *self.plan.law(1, Rng.generator(0), theta))
        common = template.shared_paths()
        joined = {
            name: parts[0][name] if name in common else torch.cat([part[name] for part in parts])
            for name in parts[0]
        }
        return template.with_tensors(joined)

    def _truth(self) -> Tensor | None:
        files = sorted((self.out / "truth").glob("[0-9]*.safetensors"))
        return torch.cat([store.read(file)["x"] for file in files]) if files else None

    def _clean(self) -> Tensor:
        path = self.out / "clean.safetensors"
        if not path.exists():
            data = self._data("train")
            n = (
                self.plan.train
                if self.recipe.clean == "all"
                else min(self.recipe.clean, self.plan.train)
            )
            index = torch.randperm(
                self.plan.train, generator=Rng.generator(self.recipe.seed, "clean")
            )[:n]
            x = data[index.sort().values].x
            assert x is not None
            store.write(path, {"x": x})
        return store.read(path)["x"]

    # E-step

    def _subset(self, p: int, r: int, stage: Stage) -> Tensor:
        n = min(stage.phase.observations or self.plan.train, self.plan.train)
        if n == self.plan.train:
            return torch.arange(n)
        return (
            torch.randperm(
                self.plan.train, generator=Rng.generator(self.recipe.seed, "subset", p, r)
            )[:n]
            .sort()
            .values
        )

    def _learned(self, p: int, r: int, stage: Stage) -> Tensor:
        """Returns what a round was fitted to: clean images, or one draw of each observation."""
        return (
            self._clean() if stage.on == "clean" else self._draws(p, r, stage)[:: stage.phase.draws]
        )

    def _renewed(self, p: int, r: int, stage: Stage) -> Tensor:
        """Returns the rows of a phase's draws that a round draws anew, ascending."""
        n = len(self._subset(p, r, stage)) * stage.phase.draws
        if stage.phase.refresh == 1 or r == 0:
            return torch.arange(n)
        # The rounds go through a permutation, so that every draw has its turn.
        k = max(round(stage.phase.refresh * n), 1)
        return _batch_index(n, k, r - 1, self.recipe.seed, "refresh", p).sort().values

    def _draws(self, p: int, r: int, stage: Stage) -> Tensor:
        """Returns the draws that a round learns from, shape (N, *shape)."""
        folder = self.out / f"{p}-{r:03d}-samples"
        if (folder / "pool.safetensors").exists():
            return store.read(folder / "pool.safetensors")["x"]
        new = torch.cat(
            [store.read(file)["x"] for file in sorted(folder.glob("[0-9]*.safetensors"))]
        )
        if stage.phase.refresh == 1:
            return new
        pool = new
        if r > 0:
            pool = self._draws(p, r - 1, stage)
            pool[self._renewed(p, r, stage)] = new
        store.write(folder / "pool.safetensors", {"x": pool})
        if r > 1:
            (self.out / f"{p}-{r - 2:03d}-samples" / "pool.safetensors").unlink(missing_ok=True)
        return pool

    def _sample(self, p: int, r: int, stage: Stage, denoiser: Denoiser | None) -> Iterator[Record]:
        sampler = stage.at(r)
        assert sampler is not None
        folder = self.out / f"{p}-{r:03d}-samples"
        rows = self._renewed(p, r, stage)
        index = self._subset(p, r, stage).repeat_interleave(stage.phase.draws)[rows]
        shards = _pieces(torch.arange(len(index)), stage.phase.batch)
        spent = folder / "spent.json"  # of the shards that are there; until the step is logged
        if (
            all((folder / f"{k:05d}.safetensors").exists() for k in range(len(shards)))
            and not spent.exists()
        ):
            return
        if denoiser is None:
            denoiser = GaussianDenoiser(Gaussian.standard(self.plan.shape).to(self.device))
        if stage.phase.calibrate and not (folder / "calibrated.json").exists():
            yield from self._calibrate(p, r, stage, sampler, denoiser)
        m = self.measurement("train", self.believed(p, r))
        begin = None
        if stage.phase.restart is not None and r > 0:
            begin = self._draws(p, r - 1, stage)[rows]
            sampler = _from(sampler, stage.phase.restart)
        tuned = folder / "sampler.json"
        few = min(16, len(m))
        sampler = sampler.tune(
            denoiser,
            m[torch.arange(few)].to(self.device),
            self._rng("tune", p, r, items=range(few)),
        )
        if not tuned.exists():
            options = {name: getattr(sampler, name, None) for name in ("weight", "guidance")}
            store.write_json(tuned, {"sampler": repr(sampler), **options})
        clock, done = _Clock(), 0
        before = store.read_json(spent) if spent.exists() else {}
        clock.add(before)
        misfit, judged, passes = (
            float(before.get("misfit", 0.0)),
            int(before.get("judged", 0)),
            int(before.get("passes", 0)),
        )
        for k, shard in enumerate(shards):
            path = folder / f"{k:05d}.safetensors"
            done += len(shard)
            if path.exists():
                continue
            self._check()
            prior = denoiser if begin is None else Begun(denoiser, begin[shard].to(self.device))
            here = m[index[shard]].to(self.device)
            with _counted(denoiser) as called:
                x = sampler(prior, here, self._rng("e-step", p, r, items=shard.tolist()))
            passes += called[0] + len(shard) * sampler.cost[1] * (
                not isinstance(denoiser, (GaussianDenoiser, MixtureDenoiser))
            )
            bad = ~x.flatten(1).isfinite().all(1)
            if bad.any():
                again = sampler(prior, here, self._rng("e-step-again", p, r, items=shard.tolist()))
                x = torch.where(bad.reshape(-1, *[1] * (x.ndim - 1)), again, x)
                if not bool(x.isfinite().all()):
                    raise NumericalError(
                        f"phase {stage.phase.name}, round {r}: {int(bad.sum())} draws of shard {k}"
                        " are not finite, twice"
                    )
            store.write(path, {"x": x})
            misfit, judged = misfit + float(_misfit(here, x).double().sum()), judged + len(shard)
            store.write_json(
                spent, {"misfit": misfit, "judged": judged, "passes": passes, **clock.read()}
            )
            yield Record(
                "e-step",
                {
                    "phase": p,
                    "name": stage.phase.name,
                    "round": r,
                    "done": done,
                    "total": len(index),
                },
            )
        name = {"phase": p, "name": stage.phase.name, "round": r}
        residual = misfit / judged if judged and math.isfinite(misfit) else None
        record = self._log(
            "e-step", **name, draws=len(index), residual=residual, passes=passes, **clock.read()
        )
        spent.unlink(missing_ok=True)
        yield record

    def _calibrate(
        self, p: int, r: int, stage: Stage, sampler: PosteriorSampler, denoiser: Denoiser
    ) -> Iterator[Record]:
        """Estimates options of operator and noise from the observations, under the prior of the
        round."""
        clock = _Clock()
        theta = self.believed(p, r)
        start = {
            key: theta.get(key, number(self.plan.options[kind], rest))
            for key, kind, rest in map(_key, stage.phase.calibrate)
        }
        order = torch.randperm(
            self.plan.train, generator=Rng.generator(self.recipe.seed, "calibrate", p, r)
        )
        few = torch.arange(min(16, self.plan.train))
        tuned = sampler.tune(
            denoiser,
            self.measurement("train", theta)[few].to(self.device),
            self._rng("tune", p, r, items=range(len(few))),
        )

        def at(values: Mapping[str, float], rows: Tensor) -> Measurement:
            return self.measurement("train", theta | dict(values))[rows]

        def draw(m: Measurement) -> Tensor:
            self._check()
            parts = []
            for index in _pieces(torch.arange(len(m)), stage.phase.batch):
                rng = self._rng("calibrate", p, r, items=index.tolist())
                parts.append(tuned(denoiser, m[index].to(self.device), rng).cpu())
            return torch.cat(parts)

        first = not any(self.out.glob("*-samples/calibrated.json")) and self.recipe.clean != 0
        bounds = Parameters(
            {key: (low, high) for key, (low, high) in stage.phase.calibrate.items()}
        )
        found = calibrate(at, order, bounds, start, draw, self._clean() if first else None)
        facts = {
            "values": found.values,
            "error": found.error,
            "how": found.how,
            "settled": found.settled,
            "path": found.path,
        }
        store.write_json(self.out / f"{p}-{r:03d}-samples" / "calibrated.json", facts)
        yield self._log(
            "calibrate", phase=p, name=stage.phase.name, round=r, **facts, **clock.read()
        )

    # M-step

    def _fit(self, p: int, r: int, stage: Stage, before: Denoiser | None) -> Iterator[Record]:
        assert stage.objective is not None and stage.phase.fit is not None
        clock = _Clock()
        path = self.out / f"{p}-{r:03d}-denoiser" / "denoiser.safetensors"
        x, m = None, None
        if stage.on == "clean":
            x = self._clean()
        elif stage.on == "draws":
            x = self._draws(p, r, stage)
            m = self.measurement("train", self.believed(p, r))[
                self._subset(p, r, stage).repeat_interleave(stage.phase.draws)
            ]
            if len(x) > 1 and bool((x == x[:1]).all()):
                raise NumericalError(
                    f"phase {stage.phase.name}, round {r}: all draws are the same: refusing to"
                    " learn from them"
                )
        else:
            m = self.measurement("train", self.believed(p, r))
        name = {"phase": p, "name": stage.phase.name, "round": r}
        if stage.objective.closed_form:

            def batches() -> Iterator[tuple[Example, Rng]]:
                n = len(x) if x is not None else len(m or ())
                for index in _pieces(torch.arange(n), stage.phase.batch):
                    self._check()
                    rng = self._rng("fit", p, r, items=index.tolist())
                    yield Example(_at(x, index, self.device), _at(m, index, self.device)), rng

            blank = (
                before
                if before is not None
                else GaussianDenoiser(Gaussian.standard(self.plan.shape).to(self.device))
            )
            fitted = stage.objective.solve(blank, batches)
            moments = fitted.known_moments()
            tensors, kind = _moments(moments), "gaussian"
            if isinstance(fitted, MixtureDenoiser):
                tensors |= _named("mixture.", fitted.prior.tensors())
                kind = "mixture"
            store.write(path, tensors, {"kind": kind})
            spread = moments.cov.diag + moments.cov.factor.square().sum(1)
            yield self._log("fit", **name, **clock.read(), std=float(spread.mean().sqrt()))
            return
        passes = yield from self._train(p, r, stage, path, x, m, before, clock)
        yield self._log("fit", **name, steps=stage.phase.fit.steps, passes=passes, **clock.read())

    def _train(
        self,
        p: int,
        r: int,
        stage: Stage,
        path: Path,
        x: Tensor | None,
        m: Measurement | None,
        before: Denoiser | None,
        clock: _Clock,
    ) -> Generator[Record, None, int]:
        """Trains the network; returns how many signals went through it, forwards and backwards."""
        assert stage.objective is not None and stage.phase.fit is not None
        fit, seed = stage.phase.fit, self.recipe.seed
        n = len(x) if x is not None else len(m or ())
        previous = self._previous_network(p, r)
        # What is learned from measurements alone keeps the moments of the prior before, a Gaussian
        # warm start.
        moments = (
            Gaussian.fit(x, fit.moments)
            if x is not None
            else before.moments
            if before is not None
            else None
        )
        moments = moments.to("cpu") if moments is not None else None
        if previous is not None and previous[1]["sigma_data"]:
            sigma_data = float(previous[1]["sigma_data"])
        elif self.recipe.sigma_data != "auto":
            sigma_data = float(self.recipe.sigma_data)
        else:
            spread = (
                moments.cov.diag + moments.cov.factor.square().sum(1)
                if moments is not None
                else torch.tensor(0.25)
            )
            sigma_data = round(float(spread.mean().sqrt()), 4)
        network = self._network(p, sigma_data, *((p, r) if fit.start == "fresh" else (p,)))
        if previous is not None and fit.start != "fresh":
            _begin(network, _part(previous[0], "network." if fit.start == "ema" else "raw."))
        average = copy.deepcopy(network)
        if previous is not None and fit.start == "warm" and fit.keep:
            _begin(average, _part(previous[0], "network."))
        told = m
        if m is None and type(stage.objective).wrap is not Objective.wrap:
            told = self.measurement("train", self.believed(p, r))
        denoiser = stage.objective.wrap(network, told, before).to(self.device).train()
        network.moments = denoiser.moments = (
            moments.to(self.device) if moments is not None else None
        )
        average.to(self.device).requires_grad_(False)
        parameters = [w for w in denoiser.parameters() if w.requires_grad]
        groups = [
            {"params": some, "share": share}
            for share, some in stage.objective.rates(denoiser, parameters)
        ]
        optimizer = torch.optim.AdamW(groups, lr=fit.lr, weight_decay=fit.weight_decay)
        past = 0
        alike = previous is not None and isinstance(network, Several) == any(
            name.startswith("network.several.") for name in previous[0]
        )
        if fit.keep and previous is not None and fit.start != "fresh" and alike:
            past = int(previous[1].get("steps", 0))
            _load_optimizer(optimizer, _part(previous[0], "adam."))
        meta = self._load_checkpoint(path.parent, network, average, optimizer)
        first, passes = int(meta.get("step", 0)), int(meta.get("passes", 0))
        clock.add(meta)
        model: Any = torch.compile(denoiser) if self.compile else denoiser
        counted: list[nn.Module] = [network]
        if isinstance(network, Several):
            closed = before is None or isinstance(before, (GaussianDenoiser, MixtureDenoiser))
            counted = [*network.several, *([] if closed else [before])]  # type: ignore[list-item]
        clean = self._clean() if fit.clean else None
        granted = (
            min(max(round(fit.clean * min(fit.batch, n)), 1), fit.batch - 1) if fit.clean else 0
        )
        losses: list[Tensor] = []
        for step in range(first, fit.steps):
            if self.stop():
                facts = {"step": step, "passes": passes, **clock.read()}
                self._save_checkpoint(path.parent, facts, network, average, optimizer)
                self._check()
            index = _batch_index(n, min(fit.batch, n) - granted, step, seed, p, r)
            rng = self._rng("m-step", p, r, step, items=range(len(index)))
            moved = (
                None
                if x is None
                else _moved(
                    x[index], fit, self._rng("augment", p, r, step, items=range(len(index)))
                )
            )
            batches = [
                (
                    Example(
                        None if moved is None else moved.to(self.device), _at(m, index, self.device)
                    ),
                    rng,
                )
            ]
            if clean is not None:
                chosen = _batch_index(len(clean), granted, step, seed, "clean", p, r)
                moved = _moved(
                    clean[chosen], fit, self._rng("augment-clean", p, r, step, items=range(granted))
                )
                batches.append(
                    (
                        Example(moved.to(self.device)),
                        self._rng("m-step-clean", p, r, step, items=range(granted)),
                    )
                )
            for group in optimizer.param_groups:
                group["lr"] = (
                    fit.lr * group["share"] * _rate(step, fit.steps, fit.warmup, fit.decay)
                )
            with (
                torch.random.fork_rng(devices=[]),
                torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16),
            ):
                torch.random.manual_seed(rng.seeds[0])
                with (
                    _counted(*counted) if not self.compile else contextlib.nullcontext([0])
                ) as called:
                    loss = torch.cat(
                        [stage.objective.loss(model, batch, streams) for batch, streams in batches]
                    ).mean()
            passes += 2 * called[0]
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            norms = [
                nn.utils.clip_grad_norm_(group["params"], fit.clip)
                for group in optimizer.param_groups
            ]
            if not bool(torch.isfinite(torch.stack([loss.detach(), *norms])).all()):
                raise NumericalError(
                    f"phase {stage.phase.name}, round {r}, step {step}: the loss or its gradient is"
                    " not finite"
                )
            optimizer.step()
            age = past + step
            decay = min(
                fit.ema, (1 + age) / (10 + age)
            )  # a short average at first, so that none of the start is left in it
            with torch.no_grad():
                for mean, weight in zip(average.parameters(), network.parameters(), strict=True):
                    mean.lerp_(weight, 1 - decay)
                for kept, buffer in zip(average.buffers(), network.buffers(), strict=True):
                    kept.copy_(buffer)
            losses.append(loss.detach())
            done = step + 1
            if done % 25 == 0 or done == fit.steps:
                value = float(torch.stack(losses).mean())
                losses.clear()
                name = {
                    "phase": p,
                    "name": stage.phase.name,
                    "round": r,
                    "step": done,
                    "total": fit.steps,
                    "loss": value,
                }
                yield self._log("loss", **name)
            if done % fit.checkpoint == 0 and done < fit.steps:
                facts = {"step": done, "passes": passes, **clock.read()}
                self._save_checkpoint(path.parent, facts, network, average, optimizer)
        if moments is None:
            moments = Gaussian.standard(self.plan.shape, sigma_data)
        tensors = (
            _named("network.", average.state_dict())
            | _named("raw.", network.state_dict())
            | _moments(moments)
        )
        own = {tensor.data_ptr() for tensor in network.state_dict().values() if tensor.numel()}
        tensors |= _named(
            "wrap.",
            {name: t for name, t in denoiser.state_dict().items() if t.data_ptr() not in own},
        )
        if fit.keep:
            tensors |= _optimizer(optimizer)
        store.write(
            path, tensors, {"kind": "network", "sigma_data": sigma_data, "steps": past + fit.steps}
        )
        for file in path.parent.glob("step-*.safetensors"):
            file.unlink()
        return passes

    def _previous_network(self, p: int, r: int) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Returns the newest weights of the network of a phase, and what is known of them."""
        own, residual = self.plan.stages[p].own, _is_residual(self.plan.stages[p])
        for q in range(p, -1, -1):
            if self.plan.stages[q].own != own or _is_residual(self.plan.stages[q]) != residual:
                continue
            for s in range(r - 1 if q == p else self.plan.stages[q].phase.rounds - 1, -1, -1):
                path = self.out / f"{q}-{s:03d}-denoiser" / "denoiser.safetensors"
                if path.exists():
                    tensors, meta = store.read_meta(path)
                    if meta["kind"] == "network":
                        return tensors, meta
        if own or residual:
            return None
        if self.recipe.prior == "network":
            tensors = self._network(None, 0.5).state_dict()
            return _named("network.", tensors) | _named("raw.", tensors), {
                "kind": "network",
                "sigma_data": 0,
            }
        path = self.out / "prior.safetensors"
        if path.exists():
            tensors, meta = store.read_meta(path)
            if meta["kind"] == "network":
                return tensors, meta
        return None

    def _save_checkpoint(
        self,
        folder: Path,
        facts: dict[str, Any],
        model: nn.Module,
        average: nn.Module,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        tensors = (
            _named("model.", model.state_dict())
            | _named("average.", average.state_dict())
            | _optimizer(optimizer)
        )
        store.write(folder / f"step-{facts['step']:08d}.safetensors", tensors, facts)
        for file in sorted(folder.glob("step-*.safetensors"))[:-2]:
            file.unlink()

    def _load_checkpoint(
        self, folder: Path, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
    ) -> dict[str, Any]:
        for file in sorted(folder.glob("step-*.safetensors"), reverse=True):
            try:
                tensors, meta = store.read_meta(file)
            except DataError:
                continue
            model.load_state_dict(_part(tensors, "model."))
            average.load_state_dict(_part(tensors, "average."))
            _load_optimizer(optimizer, _part(tensors, "adam."))
            return meta
        return {}

    # Evaluation

    def _prepare(self) -> Iterator[Record]:
        for i, (label, metric) in enumerate(self.plan.metrics.items()):
            path = self.out / "metrics" / f"{i}.safetensors"
            if path.exists() or self.plan.observed:
                continue
            data = self._data("train")
            index = torch.randperm(len(data), generator=Rng.generator(self.recipe.seed, "prepare"))[
                :8192
            ]
            store.write(path, metric.prepare(data[index]), {"metric": label})
            yield Record("prepare", {"metric": label})

    def _states(self) -> list[dict[str, Tensor]]:
        paths = [self.out / "metrics" / f"{i}.safetensors" for i in range(len(self.plan.metrics))]
        return [store.read(path) if path.exists() else {} for path in paths]

    def _reference(self) -> Tensor | None:
        if self.plan.observed or not any(
            "reference" in metric.needs for metric in self.plan.metrics.values()
        ):
            return None
        data = self._data("test")
        return data[torch.arange(min(len(data), 10000))].x

    def _judge(self, outcome: Outcome, unless: Set[str] | None = None) -> dict[str, Any]:
        """Computes the metrics. One that needs what there is not is left out: all such, or those
        that need one of `unless`."""
        values: dict[str, Any] = {}
        for (label, metric), state in zip(self.plan.metrics.items(), self._states(), strict=True):
            if missing := [need for need in metric.needs if getattr(outcome, need, True) is None]:
                if unless is not None and not unless & set(missing):
                    raise DataError(
                        f"{self.out}: {label} needs {', '.join(missing)}, which the run does not"
                        " have"
                    )
                continue
            try:
                value = metric(outcome, state).double()
            except DataError:
                if unless is not None:
                    raise
                continue  # one observation is not two draws
            n = value.numel()
            values[label] = {
                "value": _finite(value.mean()),
                "sem": _finite(value.std() / n**0.5) if n > 1 else None,
                "n": n,
                "unit": metric.unit,
                "higher_is_better": metric.higher_is_better if metric.target is None else None,
                "target": metric.target,
            }
        return values

    def _judge_observations(self) -> Record:
        """Judges the observations as if they were restorations and samples: what every method
        starts from."""
        values: dict[str, Any] = {}
        if self.plan.test:
            m = self.measurement("test")
            if m.y.shape[1:] == torch.Size(self.plan.shape):
                truth, reference = self._truth(), self._reference()
                train = (
                    self.measurement("train").y[: self.recipe.evaluate.samples]
                    if reference is not None
                    else None
                )
                values = self._judge(
                    Outcome(self._range, truth, m.y[:, None], None, train, reference)
                )
        record = {"phase": None, "name": "observations", "round": None, "metrics": values}
        store.write_json(self.out / "observations.json", record)
        self._collect()
        return Record("evaluate", record)

    @property
    def _range(self) -> tuple[float, float]:
        low, high = self.plan.facts.range
        return low, high

    def _evaluate(self, p: int, r: int, stage: Stage, denoiser: Denoiser) -> Iterator[Record]:
        folder = self.out / f"{p}-{r:03d}-evaluation"
        if (folder / "metrics.json").exists():
            return
        clock, options = _Clock(), self.recipe.evaluate
        name = {"phase": p, "name": stage.phase.name, "round": r}
        phase = f"phase {stage.phase.name}, round {r}"
        draws, m = None, None
        if self.plan.test and stage.judge is not None:
            m = self.measurement("test", self.believed(p, r))
            few = torch.arange(min(16, len(m)))
            judge = stage.judge.tune(
                denoiser, m[few].to(self.device), self._rng("tune-test", p, r, items=few.tolist())
            )
            final = p + 1 == len(self.plan.stages) and r + 1 == stage.phase.rounds
            wanted = [("restorations", len(m), options.draws)]
            if final and options.posterior:
                wanted.append(("posterior", min(8, len(m)), options.posterior))
            for purpose, n, k in wanted:
                path = folder / f"{purpose}.safetensors"
                if path.exists():
                    continue
                rows = torch.arange(n).repeat_interleave(k)
                parts = []
                for index in _pieces(torch.arange(len(rows)), options.batch):
                    self._check()
                    rng = self._rng(purpose, p, r, items=index.tolist())
                    parts.append(judge(denoiser, m[rows[index]].to(self.device), rng).cpu())
                    yield Record(
                        "restore", {**name, "done": int(index[-1]) + 1, "total": len(rows)}
                    )
                store.write(
                    path,
                    {
                        "draws": (
                            _whole(torch.cat(parts), f"{phase}: restorations").reshape(
                                n, k, *self.plan.shape
                            )
                        )
                    },
                )
            draws = store.read(folder / "restorations.safetensors")["draws"]
        samples = None
        if options.samples:
            path = folder / "samples.safetensors"
            if not path.exists():
                # The same random numbers in every round and for every prior, so that Fréchet
                # distances can be compared.
                samples = self.generate(denoiser, options.samples, ("generate", 0, 0))
                store.write(path, {"x": _whole(samples, f"{phase}: unconditional samples")})
            samples = store.read(path)["x"]
        outcome = Outcome(
            self._range, self._truth(), draws, m, samples, self._reference(), denoiser=denoiser
        )
        if samples is not None:
            outcome = yield from self._simulate(p, r, stage, denoiser, samples, outcome, folder)
        values = self._judge(outcome, unless=frozenset({"draws", "trained", "resimulated"}))
        store.write_json(folder / "metrics.json", {**name, "metrics": values})
        self._collect()
        self._log("evaluate", **name, **clock.read())
        yield Record("evaluate", {**name, "metrics": values})

    def _simulate(
        self,
        p: int,
        r: int,
        stage: Stage,
        denoiser: Denoiser,
        samples: Tensor,
        outcome: Outcome,
        folder: Path,
    ) -> Generator[Record, None, Outcome]:
        """Adds what is judged without a clean signal: real and simulated observations, restorations
        of the latter, and what was learned."""
        wanted = frozenset[str]().union(*(metric.needs for metric in self.plan.metrics.values()))
        if wanted & {"observed", "simulated", "resimulated"}:
            theta = self.believed(p, r)
            real = self.measurement("train", theta)
            real = real[torch.arange(min(len(real), len(samples)))]
            n = len(samples)
            rng = Rng.generator(self.recipe.seed, "simulate", p, r)
            if self.plan.observed:
                rows = torch.randint(len(real), (n,), generator=rng)
                operator, noise = real.A[rows], real.noise[rows]
            else:
                operator, noise = self._common(*self.plan.law(n, rng, theta), theta)
            simulated = Measurement(noise.sample(operator(samples), rng), operator, noise)
            outcome = dataclasses.replace(outcome, observed=real, simulated=simulated)
            if "resimulated" in wanted and stage.judge is not None:
                path = folder / "resimulated.safetensors"
                if not path.exists():
                    few, parts = simulated[torch.arange(min(n, _RESIMULATED))], []
                    for index in _pieces(torch.arange(len(few)), self.recipe.evaluate.batch):
                        self._check()
                        rng_of = self._rng("resimulate", p, r, items=index.tolist())
                        parts.append(
                            stage.judge(denoiser, few[index].to(self.device), rng_of).cpu()
                        )
                        yield Record(
                            "restore",
                            {
                                "name": stage.phase.name,
                                "round": r,
                                "done": int(index[-1]) + 1,
                                "total": len(few),
                            },
                        )
                    store.write(
                        path,
                        {
                            "x": _whole(
                                torch.cat(parts),
                                f"phase {stage.phase.name}, round {r}: restorations of simulations",
                            )
                        },
                    )
                outcome = dataclasses.replace(outcome, resimulated=store.read(path)["x"])
        if "trained" in wanted and stage.on in ("draws", "clean"):
            outcome = dataclasses.replace(outcome, trained=self._learned(p, r, stage))
        return outcome

    def observed(self, tensors: Mapping[str, Tensor]) -> Measurement:
        """Completes new observations with the operator and the noise of the recipe.

        Args:
            tensors: `y`, shape (N, *measurement shape), and the other tensors that the measurements
                of the run have ("A.mask", "noise.sigma"), of which those may be left out that are
                the same whenever they are drawn.

        Raises:
            DataError: If a tensor is missing, unknown or of the wrong shape.
        """
        if "y" not in tensors or not tensors["y"].numel():
            raise DataError("there are no observations: a tensor named y is needed")
        y = tensors["y"].float()
        theta = self.believed()
        laws = (self.plan.law(len(y), Rng.generator("restore", k), theta) for k in range(2))
        one, two = (Measurement(y, *self._common(*law, theta)) for law in laws)
        known, again = one.tensors(), two.tensors()
        for name in tensors.keys() - known.keys():
            raise DataError(f"there is no tensor '{name}' (known: {', '.join(known)})")
        for name, tensor in known.items():
            if name not in tensors and not torch.equal(tensor, again[name]):
                shape = tuple(tensor.shape)
                raise DataError(
                    f"'{name}' is drawn anew for each observation by this recipe: give it, shape"
                    f" {shape}, beside y"
                )
        m = one.with_tensors({**known, **tensors, "y": y})
        expected = one.A(torch.zeros(len(y), *self.plan.shape)).shape
        for name, tensor in m.tensors().items():
            wanted = tuple(expected if name == "y" else known[name].shape)
            if tuple(tensor.shape) != wanted:
                raise DataError(f"'{name}' has the shape {tuple(tensor.shape)}, not {wanted}")
            if not bool(tensor.isfinite().all()):
                raise DataError(f"'{name}' has values that are not finite")
        return m

    def restore(self, m: Measurement, draws: int, seed: int) -> Iterator[Record]:
        """Draws from the posterior of new observations under the newest prior.

        The last record ("restored") holds the draws, shape (N, draws, *shape).
        """
        judge = self.plan.stages[-1].judge
        if judge is None:
            raise RecipeError(
                f"{self.out}: the recipe has no sampler to restore with; begin a run with"
                " evaluate.sampler=mmps"
            )
        denoiser, few = self.last_denoiser(), torch.arange(min(16, len(m)))
        judge = judge.tune(
            denoiser, m[few].to(self.device), self._rng("tune-restore", seed, items=few.tolist())
        )
        rows, parts = torch.arange(len(m)).repeat_interleave(draws), []
        name = {
            "name": self.plan.stages[-1].phase.name,
            "round": self.plan.stages[-1].phase.rounds - 1,
        }
        for index in _pieces(torch.arange(len(rows)), self.recipe.evaluate.batch):
            self._check()
            rng = self._rng("restore-new", seed, items=index.tolist())
            parts.append(judge(denoiser, m[rows[index]].to(self.device), rng).cpu())
            yield Record("restore", {**name, "done": int(index[-1]) + 1, "total": len(rows)})
        yield Record(
            "restored",
            {
                "draws": (
                    _whole(torch.cat(parts), "restorations").reshape(
                        len(m), draws, *self.plan.shape
                    )
                )
            },
        )

    def generate(self, denoiser: Denoiser, n: int, key: tuple[int | str, ...]) -> Tensor:
        """Draws n unconditional samples, shape (n, *shape)."""
        sigmas = Karras(sigma_min=0.01).grid(self.recipe.evaluate.steps)
        parts = []
        for index in _pieces(torch.arange(n), self.recipe.evaluate.batch):
            self._check()
            rng = self._rng(*key, items=index.tolist())
            parts.append(
                generate(
                    denoiser, sigmas, rng, self.plan.shape, torch.empty(0, device=self.device)
                ).cpu()
            )
        return torch.cat(parts)

    def _collect(self) -> None:
        """Writes metrics.jsonl anew from the metrics of every finished evaluation."""
        paths = sorted(
            self.out.glob("*-evaluation/metrics.json"),
            key=lambda f: [int(w) for w in f.parent.name.split("-")[:2]],
        )
        rows = [
            store.read_json(path)
            for path in [self.out / "observations.json", *paths]
            if path.exists()
        ]
        store.write_text(
            self.out / "metrics.jsonl",
            "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows),
        )


def _is_residual(stage: Stage) -> bool:
    """Whether the network of a stage is beside a prior in closed form, and none itself."""
    return (
        stage.objective is not None
        and not stage.objective.closed_form
        and "closed form" in stage.objective.provides
    )


def _whole(x: Tensor, what: str) -> Tensor:
    bad = int((~x.flatten(1).isfinite().all(1)).sum())
    if bad:
        raise NumericalError(f"{what}: {bad} of {len(x)} are not finite")
    return x


def _finite(value: Tensor) -> float | None:
    """Returns a number, or None for one that JSON has no word for."""
    return float(value) if bool(value.isfinite()) else None


def _pieces(index: Tensor, size: int) -> list[Tensor]:
    return [index[k : k + size] for k in range(0, len(index), size)]


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}.get(
        name, True
    )
    if not available:
        raise RecipeError(
            f"compute.device: '{name}' is not available on this machine; use cpu or auto"
        )
    return name


def _key(key: str) -> tuple[str, str, list[str]]:
    """Splits a key such as operator.of.1.gain into itself, the component and the way to the
    option."""
    kind, _, rest = key.partition(".")
    return key, kind, rest.split(".")


def _batch_index(n: int, batch: int, step: int, *key: int | str) -> Tensor:
    """Returns the examples of one step: a permutation for each pass, found from the step alone."""
    places = torch.arange(step * batch, (step + 1) * batch)
    out = torch.empty_like(places)
    for epoch in range(int(places[0]) // n, int(places[-1]) // n + 1):
        order = torch.randperm(n, generator=Rng.generator(key[0], "order", *key[1:], epoch))
        mine = places // n == epoch
        out[mine] = order[places[mine] % n]
    return out


def _rate(step: int, steps: int, warmup: int, decay: str) -> float:
    """Returns the share of the learning rate at a step."""
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    done = step / steps
    fall = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[
        decay
    ]
    return rise * fall


def _moved(x: Tensor, fit: Fit, rng: Rng) -> Tensor:
    """Mirrors and shifts images at random, each by its own stream; the border is repeated. x: (B,
    C, H, W) where anything is asked for."""
    for axis in {"none": (), "horizontal": (-1,), "both": (-1, -2)}[fit.flip]:
        x = torch.where(rng.uniform(*[1] * (x.ndim - 1)) < 0.5, x, x.flip(axis))
    if fit.shift:
        for axis in (-1, -2):
            size = x.shape[axis]
            by = (rng.uniform(*[1] * (x.ndim - 1)) * (2 * fit.shift + 1)).long() - fit.shift
            place = torch.arange(size).reshape(
                [size if a == axis else 1 for a in range(-x.ndim, 0)]
            )
            x = x.gather(axis, (place + by).clamp(0, size - 1).expand(x.shape))
    return x


def _misfit(m: Measurement, x: Tensor) -> Tensor:
    """Returns the mean squared residual in units of the noise, over the entries that x has a part
    in, shape (B,); empty if unknown."""
    if "var" not in m.noise.provides or not bool((m.noise.var() > 0).all()):
        return x.new_empty(0)
    r = (m.residual(x).square() / m.noise.var()).flatten(1)
    seen = torch.ones_like(m.y) if m.A.seen is None else m.A.seen.expand_as(m.y)
    return r.sum(1) / seen.flatten(1).sum(1).clamp(min=1)


def _from(sampler: PosteriorSampler, sigma: float) -> PosteriorSampler:
    """Returns a sampler whose chains begin at a noise level."""
    parts: Any = sampler
    restarted: PosteriorSampler = dataclasses.replace(
        parts, schedule=dataclasses.replace(parts.schedule, sigma_max=sigma)
    )
    return restarted


def _weight_says(found: list[float], absolute: bool = True) -> str | None:
    """Returns why a phase ends (arXiv 2407.01014, section 4.3), or None: the weight is below 1, or
    none was lower for 3 rounds.

    The first is said of the likelihood's own weight (`absolute`); a step along the gradient of a
    norm has no such scale.
    """
    if absolute and found[-1] < 1:
        return f"the weight of the likelihood is {found[-1]:g}, below 1"
    if len(found) > 3 and min(found[-3:]) >= min(found[:-3]):
        return "the weight of the likelihood has not decreased for 3 rounds"
    return None


def _distance_says(distances: list[float | None]) -> str | None:
    """Returns why a phase ends, or None: simulated observations as near as real ones are to each
    other, or no nearer for 2 rounds."""
    found = [value if value is not None else math.inf for value in distances]
    if found[-1] <= 1.05:
        return (
            "observations simulated from the prior are as near to the real ones as those are to"
            f" each other ({found[-1]:.3g})"
        )
    if len(found) > 2 and min(found[-2:]) > 0.98 * min(found[:-2]):
        return (
            "the distance of simulated observations to the real ones has not fallen by 2 % in 2"
            " rounds"
        )
    return None


def _optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"adam.{i}.{key}": torch.as_tensor(value)
        for i, values in state.items()
        for key, value in values.items()
    }


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        i, _, key = name.partition(".")
        state.setdefault(int(i), {})[key] = tensor
    if state:
        optimizer.load_state_dict(
            {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
        )


def _at(value: Any, index: Tensor, device: torch.device) -> Any:
    if value is None:
        return None
    chosen: Tensor | Batched = value[index]
    return chosen.to(device)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)
    }


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _moments(moments: Gaussian) -> dict[str, Tensor]:
    return {
        "moments.mean": moments.mean,
        "moments.diag": moments.cov.diag,
        "moments.factor": moments.cov.factor,
    }
