"""What runs in the processes that are harmed. The parent forks them from one that has imported
everything, so that one costs a fraction of a second."""

import contextlib
import errno
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

COMMITS = ("fsync", "replace", "rename", "unlink", "mkdir")


def command(
    words: list[str],
    files: str,
    *,
    env: dict[str, str | None] | None = None,
    cwd: str | None = None,
    kill_at: int | None = None,
    kill_on: str = "",
    full_at: int | None = None,
    count: bool = False,
    largest: int | None = None,
    nobody: bool = False,
    stdout: str = "",
    stderr: str = "",
) -> None:
    """Carries out a command of invem.

    Args:
        words: The command line.
        files: The folder that "stdout" and "stderr" are written to.
        env: Variables of the environment; None removes one.
        cwd: The working directory.
        kill_at: Which call of `COMMITS` the process is killed at: before call k // 2 if k is even,
            after it otherwise.
        kill_on: The name of a file; the process is killed when it has been written.
        full_at: At which call the disk is full.
        count: Whether the number of these calls is written to the file "calls".
        largest: The most bytes of a file.
        nobody: Whether rights of root are given up.
        stdout: Where stdout goes in place of its file: a path, "closed", or "pipe" for one that
            nobody reads.
        stderr: The same of stderr.
    """
    import torch

    quiet(files)
    for number, where in ((1, stdout), (2, stderr)):
        _redirect(number, where)
    for key, value in (env or {}).items():
        os.environ.pop(key, None) if value is None else os.environ.__setitem__(key, value)
    if cwd is not None:
        os.chdir(cwd)
    torch.set_num_threads(1)
    calls = _Calls(Path(files), kill_at, full_at, kill_on)
    if kill_at is not None or full_at is not None or count or kill_on:
        calls.watch()
    if largest is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    if nobody and os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    sys.argv = ["invem", *words]
    from invem import cli

    code: object = 1
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code
        raise
    finally:
        with contextlib.suppress(OSError):  # a full disk is a fault that is tried
            Path(files, "code").write_text(str(code or 0))
        if count:
            Path(files, "calls").write_text(str(calls.number))
        with contextlib.suppress(Exception):
            sys.stdout.flush()


def _redirect(number: int, where: str) -> None:
    """Sends stdout or stderr elsewhere; see `command`."""
    name = {1: "stdout", 2: "stderr"}[number]
    if where == "closed":
        os.close(number)
        setattr(sys, name, None)
    elif where == "pipe":
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, number)
    elif where:
        os.dup2(os.open(where, os.O_WRONLY), number)


class _Calls:
    """Counts calls that change the disk for good, and kills or fails at one of them."""

    def __init__(self, files: Path, kill_at: int | None, full_at: int | None, kill_on: str) -> None:
        self.number, self.files, self.kill_at, self.full_at = 0, files, kill_at, full_at
        self.kill_on = kill_on

    def watch(self) -> None:
        for name in COMMITS:
            setattr(os, name, self._watched(name, getattr(os, name)))

    def _watched(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*given: Any, **named: Any) -> Any:
            number, self.number = self.number, self.number + 1
            if self.full_at is not None and number >= self.full_at and name != "unlink":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._kill(2 * number, f"before {name}", given)
            result = call(*given, **named)
            if self.kill_on and name == "replace" and str(given[-1]).endswith(self.kill_on):
                os.kill(os.getpid(), signal.SIGKILL)
            self._kill(2 * number + 1, f"after {name}", given)
            return result

        return watched

    def _kill(self, point: int, what: str, given: tuple[Any, ...]) -> None:
        if self.kill_at == point:
            with open(self.files / "killed", "w") as file:
                file.write(what)
            os.kill(os.getpid(), signal.SIGKILL)


def quiet(files: str) -> None:
    """Sends stdout and stderr to files."""
    Path(files, "code").unlink(missing_ok=True)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(files, name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)


def stopped_after(recipe: str, out: str, files: str, pieces: int) -> None:
    """Goes on with a run and stops after so many pieces of work that it had not stopped after."""
    from invem import door
    from invem.errors import Stopped

    quiet(files)
    asked = iter(range(10**9))
    before = sum(1 for _ in Path(out).rglob("*.safetensors"))

    def stop() -> int:
        grown = sum(1 for _ in Path(out).rglob("*.safetensors")) > before
        return 143 if next(asked) >= pieces and grown else 0

    try:
        door.run(recipe, out=out, stop=stop)
    except Stopped as stopped:
        sys.exit(stopped.exit_code)


def naive_writer(path: str) -> None:
    """Overwrites a file in place for ever, with some work in between."""
    import time

    import torch

    weights = {"w": torch.zeros(2**18)}
    while True:
        torch.save(weights, path)
        time.sleep(0.005)


def naive_reader(path: Path) -> bool:
    """Whether what `naive_writer` left can be read."""
    import torch

    try:
        return bool((torch.load(path, weights_only=True)["w"] == 0).all())
    except Exception:
        return False


def reading(path: str, way: str, run: str, answer: str) -> None:
    """Has a file read by one way into invem and writes what came of it: kind, seconds of the
    processor, MB of memory and words, with tabs between them."""
    import resource
    import time

    from invem import door, load_prior, store
    from invem.errors import InvemError

    file, began = Path(path), time.process_time()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kind, text = "read", ""
    try:
        if way == "store":
            store.read(file)
        elif way == "restore":
            door.open(run).measurement(file)
        elif way == "measurements":
            changes = {"observations": {"name": "measurements", "file": path}, "data": None}
            door.plan(str(Path(run, "recipe.yaml")), changes)
        else:
            load_prior(file)
    except InvemError as error:
        kind, text = "refused", str(error)
    except BaseException as error:
        kind, text = type(error).__name__, str(error)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) // 1000
    seconds = time.process_time() - began
    Path(answer).write_text(f"{kind}\t{seconds:.2f}\t{grown}\t{text}", "utf-8")


PIECES = (
    *"[]{}:,-#&*!|>'\"%@`? \t\n\r.~=",
    *("\0", "\ufeff", "\u2028", "é", "null", "true", "1e999", "9" * 200, ".nan", "-1", "<<: "),
    *('"\\ud800"', "!!python/object:os.system", "&a", "*a", "[" * 40, "phases", "options: "),
    *("name: ", "0", "- ", "--- ", "extends: ", "mmps", "gaussian", "dsm", "[1, 2]", "{a: b}"),
    *("1e-300", "99999999999", "9223372036854775808", "-0.0", "auto", "sigma: ", "steps: "),
)


def fuzzing(what: str, worker: int, seconds: float, seeds: list[str], folder: str) -> None:
    """Plans mutated recipes for a time; writes a line per answer to the file "answers"."""
    import io
    import random
    import re
    import time
    import warnings

    from invem import door
    from invem.config import Catalog
    from invem.errors import InvemError

    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
    catalog, rng = Catalog.load(), random.Random(f"{what} {worker}")
    texts, path = [Path(name).read_bytes() for name in seeds], Path(folder, "r.yaml")
    os.chdir(folder)
    end = time.monotonic() + seconds
    with open(Path(folder, "answers"), "w", encoding="utf-8") as answers:
        while (began := time.monotonic()) < end:
            raw, changes = rng.choice(texts), []
            if what == "recipe":
                raw = _mutated(raw, rng)
            else:
                changes = [_change(raw, rng) for _ in range(rng.randrange(1, 5))]
            path.write_bytes(raw)
            Path(folder, "last").write_bytes(repr(changes).encode() + b"\n" + raw)
            cpu, said = time.process_time(), io.StringIO()
            try:
                with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                    door.plan(path, changes, catalog=catalog)
                kind, text = "planned", ""
            except InvemError as error:
                places = r"(\S*r\.yaml:\d+:\d+|override '.*'|\S*r\.yaml|[\w. -]+): ."
                lines = str(error).split("\n")
                fine = error.exit_code in (2, 3) and all(re.match(places, line) for line in lines)
                kind, text = ("refused", "") if fine else ("wrong", f"{error!r}"[:600])
            except BaseException as error:
                kind, text = "raised", _where(error)
            if time.process_time() - cpu > 10:
                kind, text = "slow", f"{time.process_time() - cpu:.0f} s"
            if kind not in ("planned", "refused"):
                keep = Path(folder, f"found-{began:.3f}")
                keep.write_bytes(repr(changes).encode() + b"\n" + raw)
                text = f"{kind}: {text} {changes} {raw[-3000:] if what == 'recipe' else raw[:80]!r}"
            print(kind, " ".join(text.split()), sep="\t", file=answers, flush=True)
            if worker < 0:
                break


def _where(error: BaseException) -> str:
    import traceback

    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"


def _mutated(text: bytes, rng: Any) -> bytes:
    raw = bytearray(text)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(raw) + 1)
        match rng.randrange(6):
            case 0:
                raw[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                raw[at:at] = rng.choice(PIECES).encode()
            case 2:
                del raw[at : at + rng.randrange(1, 12)]
            case 3:
                lines = raw.split(b"\n")
                lines.insert(rng.randrange(len(lines)), rng.choice(lines))
                raw = bytearray(b"\n".join(lines))
            case 4:
                first = rng.randrange(len(raw)) if raw else 0
                raw[at:at] = raw[first : first + rng.randrange(40)]
            case 5:  # a value becomes another
                words = bytes(raw).split(b" ")
                words[rng.randrange(len(words))] = rng.choice(PIECES).encode()
                raw = bytearray(b" ".join(words))
    return bytes(raw)


def _change(text: bytes, rng: Any) -> str:
    """Returns a change of a key that a recipe has, or of one that it has not."""
    import yaml

    keys = list(_keys(yaml.safe_load(text)))
    key, value = rng.choice(keys)
    other = rng.choice(keys)[1]
    match rng.randrange(8):
        case 0:
            words = [word for name, _ in keys for word in name.split(".")]
            key = ".".join(rng.choice(words) for _ in range(rng.randrange(1, 5)))
        case 1:
            return str(rng.choice((key, f"={key}", f"{key}={key}={key}", f"{key}.={value}")))
        case 2 | 3:
            return f"{key}={rng.choice(PIECES)}"
        case 4:
            return f"{key}={other}"
        case 5:
            return f"{key}.{rng.choice(('0', '-1', '99', 'name', ''))}={value}"
    return f"{key}={value}"


def _keys(value: Any, above: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the dotted keys of a document and their values."""
    rows = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inside in rows:
        if isinstance(value, list) and isinstance(inside, dict) and "rounds" in inside:
            key = inside.get("name", key)
        name = f"{above}{key}"
        yield name, inside
        if isinstance(inside, dict | list):
            yield from _keys(inside, f"{name}.")
