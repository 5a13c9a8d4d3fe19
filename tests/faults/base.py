"""What a case is, how its tries are counted, and the processes that may be harmed.

A case is a function that tries one fault many times and counts each try:

- survived: the right result came out all the same, to the bit where a run was interrupted;
- detected: it was refused, by the documented exit code and a line that names what is wrong;
- lost: anything else. A wrong result, lost work, a traceback, a wrong exit code, too long.
"""

import functools
import hashlib
import importlib
import multiprocessing
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a process that has used CUDA cannot be forked
os.environ["PYTHONPATH"] = os.pathsep.join(  # the server of forks does not look in `sys.path`
    [str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
)

from faults import child

MODULES = ("kills", "files", "hostile", "recipes", "images", "disk", "numerics", "plugins", "shell")
PATIENCE = 60.0  # seconds until a process counts as hanging

RECIPE = """
data: {name: synthetic, train: 12, test: 4, size: 4}
operator: {name: random-mask, keep: 0.7}
noise: {name: gaussian, sigma: 0.2}
network: {name: mlp, width: 8, depth: 1}
phases:
  - {name: first, rounds: 2, sampler: observation, fit: {objective: gaussian-moments}}
  - name: em
    rounds: 2
    batch: 4
    refresh: 0.5
    sampler: {name: mmps, steps: 2}
    fit: {objective: dsm, steps: 6, batch: 4, checkpoint: 2}
evaluate: {metrics: [psnr], samples: 4, draws: 2, posterior: 2, observations: 2, steps: 2}
compute: {threads: 1}
"""


@dataclass
class Tally:
    """Counts the tries of one case."""

    survived: int = 0
    detected: int = 0
    lost: int = 0
    where: dict[str, int] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    @property
    def tried(self) -> int:
        return self.survived + self.detected + self.lost

    def hit(self, place: str) -> None:
        """Counts where a fault struck."""
        self.where[place] = self.where.get(place, 0) + 1

    def lose(self, why: str) -> None:
        self.lost += 1
        self.reasons.append(why)

    def judge(self, fine: bool, why: str, *, refused: bool = False) -> None:
        """Counts one try: what it came to if it is fine, a loss otherwise."""
        if not fine:
            self.lose(why)
        elif refused:
            self.detected += 1
        else:
            self.survived += 1


class Budget(NamedTuple):
    """How much a case may try."""

    kills: int = 12
    fuzz: float = 2.0  # seconds
    flips: int = 20


class Case(NamedTuple):
    """A fault, and the function that injects it."""

    key: str
    group: str
    fault: str
    carry_out: Callable[[Path, Budget, Tally], None]
    control: bool  # a negative control: the harness must see losses
    waits_for: str  # why losses are known today; "" if there may be none


CASES: dict[str, Case] = {}


def case(
    group: str, fault: str, *, control: bool = False, waits_for: str = ""
) -> Callable[[Callable[[Path, Budget, Tally], None]], Callable[[Path, Budget, Tally], None]]:
    """Registers a case under the name of its function."""

    def register(
        function: Callable[[Path, Budget, Tally], None],
    ) -> Callable[[Path, Budget, Tally], None]:
        assert function.__name__ not in CASES, function.__name__
        key = function.__name__
        CASES[key] = Case(key, group, fault, function, control, waits_for)
        return function

    return register


def load_cases() -> dict[str, Case]:
    """Returns every case."""
    for name in MODULES:
        importlib.import_module(f"faults.{name}")
    return CASES


def fault_of(one: Case, tally: Tally) -> str:
    """Returns what is wrong with the result of a case, or ""."""
    if not tally.tried:
        return "nothing was tried"
    if one.control:
        return "" if tally.lost else "the control lost nothing: the harness sees no losses"
    if one.waits_for:
        return "" if tally.lost else "nothing was lost: remove `waits_for` from the case"
    return f"{tally.lost} of {tally.tried} lost: {tally.reasons[0]}" if tally.lost else ""


# Processes

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["faults.child", "faults.warm"])


def start(function: Callable[..., None], *given: Any, **named: Any) -> BaseProcess:
    """Starts a function of `faults.child` in a process that was forked from one that has imported
    everything."""
    process = _SERVER.Process(target=function, args=given, kwargs=named)
    process.start()
    return process


LOST_STATUS = 255  # what multiprocessing says where its fork server lost the exit status


class Done(NamedTuple):
    """How a command ended; a code below 0 is that of a signal, None a hang."""

    code: int | None
    out: str
    err: str

    @property
    def is_clean(self) -> bool:
        """Whether there is no traceback."""
        return self.code is not None and "Traceback" not in self.out + self.err

    def is_refusal(self, *codes: int, naming: str = "") -> bool:
        """Whether it was refused by one of the exit codes, with a line that names a culprit."""
        told = [line for line in self.err.splitlines() if naming in line]
        return self.is_clean and self.code in codes and bool(told)


def finish(process: BaseProcess, files: Path) -> Done:
    """Waits for a process that was started by `begin` and returns how it ended."""
    process.join(PATIENCE)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    if code == LOST_STATUS and (files / "code").exists():
        code = int((files / "code").read_text())
    texts = [
        (files / name).read_text("utf-8", errors="replace") if (files / name).exists() else ""
        for name in ("stdout", "stderr")
    ]
    return Done(code, *texts)


def begin(words: Sequence[object], files: Path, **harm: Any) -> BaseProcess:
    """Starts a command of invem in a process of its own; see `child.command`."""
    files.mkdir(parents=True, exist_ok=True)
    return start(child.command, [str(word) for word in words], str(files), **harm)


def invem(words: Sequence[object], files: Path, **harm: Any) -> Done:
    """Carries out a command of invem in a process of its own."""
    return finish(begin(words, files, **harm), files)


# Runs


def recipe(tmp: Path, text: str = RECIPE) -> Path:
    """Writes a recipe and returns its path."""
    path = tmp / "tiny.yaml"
    path.write_text(text, "utf-8")
    return path


class Whole(NamedTuple):
    """An uninterrupted run: its directory, digests, files in the order in which they came, and
    seconds."""

    path: Path
    digests: dict[str, str]
    order: list[str]
    seconds: float


_ONCE = tempfile.TemporaryDirectory(prefix="faults-")


_AT_A_TIME = threading.Lock()


def whole_run() -> Whole:
    """Carries out the tiny recipe without a fault, once."""
    with _AT_A_TIME:  # cases are carried out in threads
        return _whole_run()


@functools.cache
def _whole_run() -> Whole:
    tmp = Path(_ONCE.name)
    out, said, path = tmp / "whole", tmp / "said", recipe(tmp)
    invem(["run", path, "--out", tmp / "warm", "--json"], said)
    began = time.monotonic()
    done = invem(["run", path, "--out", out, "--json"], said)
    seconds = time.monotonic() - began
    assert done.code == 0, done.err
    files = [path for path in out.rglob("*") if path.is_file() and path.name != ".lock"]
    files.sort(key=lambda path: path.stat().st_mtime_ns)
    order = [path.relative_to(out).as_posix() for path in files]
    return Whole(out, digests(out), order, seconds)


_VARY = {"run.json", "log.jsonl", "report.html", ".lock"}  # dates and clocks


def digests(run: Path) -> dict[str, str]:
    """Returns the digest of every file of a run but those that hold dates and clocks."""
    return {
        path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.name not in _VARY
    }


def same(run: Path, whole: Whole) -> str:
    """Returns in what a run differs from the uninterrupted one, or ""."""
    found = digests(run)
    names = sorted(
        name for name in found | whole.digests if found.get(name) != whole.digests.get(name)
    )
    missing = sorted(name for name in _VARY if not (run / name).exists())
    return ", ".join(names + missing)


STEPS = (
    (r"^(run\.json|recipe\.yaml|identifiability\.json)$", "beginning"),
    (r"^(measurements|truth|metrics)/|^observations\.json$|^clean", "measuring"),
    (r"-samples/", "E-step"),
    (r"-denoiser/", "M-step"),
    (r"-evaluation/|-stop\.json$", "evaluation"),
    (r"", "tables and report"),
)


def step_of(name: str) -> str:
    """Returns the step that writes a file of a run."""
    return next(step for pattern, step in STEPS if re.search(pattern, name))


def doing(run: Path, whole: Whole) -> str:
    """Returns the step that a run was at when it was stopped."""
    late = {"metrics.jsonl", "log.jsonl"}  # these are written from the beginning on
    missing = (name for name in whole.order if name not in late and not (run / name).exists())
    return step_of(next(missing, "report.html"))


def offsets(size: int, count: int, rng: Any) -> Iterator[int]:
    """Yields places in a file: both ends, and others at random."""
    yield from (0, size - 1)
    for _ in range(count - 2):
        yield rng.randrange(size)
