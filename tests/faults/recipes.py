"""Recipes and overrides that were mutated at random, and ones that were made to harm."""

import os
import shutil
from pathlib import Path

from faults import child
from faults.base import Budget, Tally, case, invem, recipe, start

GROUP = "Hostile recipes"
ROOT = Path(__file__).parent.parent.parent
WORKERS = 2


def seeds() -> list[str]:
    """Returns the recipes that mutations begin with."""
    paths = [
        *sorted((ROOT / "recipes").glob("*.yaml")),
        *sorted((ROOT / "tests/golden").glob("*.yaml")),
    ]
    return [str(path) for path in paths]


def fuzz(tmp: Path, budget: Budget, tally: Tally, what: str) -> None:
    """Has workers plan mutated recipes for a time, and counts their answers.

    A worker that dies has written down what it was given.
    """
    end, running = budget.fuzz / 2, []
    for worker in range(WORKERS):
        folder = tmp / f"{what}-{worker}"
        folder.mkdir()
        given = (what, worker, end, seeds(), str(folder))
        running.append((folder, start(child.fuzzing, *given)))
    for folder, process in running:
        process.join(end + 120)
        if process.exitcode is None:
            process.kill()
            process.join()
        lines = (folder / "answers").read_text("utf-8").splitlines()
        for line in lines:
            kind, _, text = line.partition("\t")
            if kind in ("planned", "refused"):
                tally.judge(True, "", refused=kind == "refused")
            else:
                tally.lose(text)
        if process.exitcode != 0:
            last = (folder / "last").read_bytes()[:2000]
            tally.lose(f"a worker ended with {process.exitcode}; it had: {last!r}")


@case(GROUP, "a recipe of the repository with one to five random changes, as `invem plan` reads it")
def fuzz_recipes(tmp: Path, budget: Budget, tally: Tally) -> None:
    fuzz(tmp, budget, tally, "recipe")


@case(GROUP, "random changes on the command line, one to four of them")
def fuzz_overrides(tmp: Path, budget: Budget, tally: Tally) -> None:
    fuzz(tmp, budget, tally, "overrides")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


def hostile() -> dict[str, bytes]:
    """Returns recipes that a parser may choke on."""
    whole = recipe_text().encode()
    return {
        "empty": b"",
        "NUL": whole[:40] + b"\0" + whole[40:],
        "not UTF-8": b"data: \xff\xfe\n" + whole,
        "UTF-16": whole.decode().encode("utf-16"),
        "tabs": whole.replace(b"  ", b"\t"),
        "a line of 1 MB": whole + b"# " + b"x" * 2**20 + b"\nz: " + b"9" * 2**20,
        "depth 100,000": b"data: " + b"[" * 10**5,
        "depth 100,000 in blocks": b"".join(b" " * i + b"a:\n" for i in range(2000)),
        "an alias bomb": BOMB.encode() + whole,
        "an alias of itself": b"data: &a [*a]\n" + whole,
        "a key twice": whole + b"data: digits\n",
        "a tag that calls": b"data: !!python/object/apply:os.system ['touch pwned']\n" + whole,
        "a tag of its own": b"data: !load secret\n",
        "two documents": whole + b"---\n" + whole,
        "5,000 digits": whole + b"seed: " + b"7" * 5000 + b"\n",
        "a number beyond float": whole + b"seed: 1e999\n",
        "a list": b"- 1\n- 2\n",
        "a number": b"5",
        "a key that is a list": whole + b"? [a, b]\n: 1\n",
        "control characters": whole + b'"\\e]0;owned\\a": 1\n',
        "a merge key": whole + b"<<: {seed: 1}\n",
        "5,000 phases": b"phases:\n" + b"  - {name: a, rounds: 1}\n" * 5000,
        "extends itself": b"extends: hostile.yaml\n" + whole,
        "extends a device": b"extends: /dev/zero\n" + whole,
        "a folder as a data set": whole.replace(b"synthetic", b"../../../../etc/passwd"),
    }


def recipe_text() -> str:
    from faults.base import RECIPE

    return RECIPE


@case(GROUP, "a recipe that was made to harm: bombs, depth, tags, bytes that are no text")
def hostile_recipes(tmp: Path, budget: Budget, tally: Tally) -> None:
    path = tmp / "hostile.yaml"
    for name, data in hostile().items():
        path.write_bytes(data)
        done = invem(["plan", path], tmp / "said", cwd=str(tmp))
        wrong = f"{name}: {done.code} {done.err[-300:]}"
        named = "/dev/zero" if name == "extends a device" else "hostile.yaml"
        fine = done.is_refusal(2, naming=named) and "\x1b" not in done.err
        tally.judge(fine, wrong, refused=True)
    if (tmp / "pwned").exists():
        tally.lose("a tag ran code")


@case(GROUP, "a run that is begun with a hostile value leaves no run directory behind")
def refused_runs_leave_nothing(tmp: Path, budget: Budget, tally: Tally) -> None:
    for change in (
        "data.train=-1",
        "seed=x",
        "phases.em.rounds=0",
        "operator=nothing",
        "a=b=c",
        "=1",
        "phases.em.sampler.steps=1e30",
        "data.size=99999999999",
        "x" * 5000,
        "evaluate.metrics.0.nope=1",
        "phases.nope.rounds=1",
        "compute.device=tpu",
        "noise.sigma=.nan",
        "network.width=-4",
        "phases={}",
        "phases=[]",
    ):
        out = tmp / "out"
        done = invem(["run", recipe(tmp), change, "--out", out], tmp / "said")
        fine = done.is_refusal(2) and not out.exists()
        tally.judge(fine, f"{change[:60]}: {done.code} {done.err[-300:]}", refused=True)
        if out.exists():
            shutil.rmtree(out)


@case(GROUP, "10,000 changes on the command line")
def many_overrides(tmp: Path, budget: Budget, tally: Tally) -> None:
    many = [f"seed={i}" for i in range(10000)]
    done = invem(["show", recipe(tmp), *many], tmp / "said")
    tally.judge(done.code == 0 and "seed: 9999" in done.out, done.err[-300:])
    done = invem(["plan", recipe(tmp), *(f"nope{i}=1" for i in range(10000))], tmp / "said")
    short = len(done.err) < 20000
    tally.judge(done.is_refusal(2) and short, done.err[-300:], refused=True)


assert os.sep == "/", "the fault-injection cases are for systems with fork"
