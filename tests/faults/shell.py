"""The command line in odd surroundings, and the advice that its errors give."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from faults.base import Budget, Tally, case, invem, recipe, same, whole_run
from invem.storage.directory import RunDirectory

GROUP = "Command line"


def commands(tmp: Path) -> list[list[object]]:
    """Returns one command of each kind."""
    run, path = whole_run().path, recipe(tmp)
    return [
        ["ls"],
        ["ls", "samplers", "--json"],
        ["info", "mmps"],
        ["show", path],
        ["plan", path],
        ["plugin", "list"],
        ["eval", run],
        ["eval", run, "--json"],
        ["report", run],
        ["sample", run, "--n", 2, "--out", tmp / "x.safetensors"],
        ["resume", run],
    ]


@case(GROUP, "a stdout that is closed, or a pipe that nobody reads")
def closed_stdout(tmp: Path, budget: Budget, tally: Tally) -> None:
    for words in commands(tmp):
        for stdout in ("closed", "pipe"):
            done = invem(words, tmp / "said", stdout=stdout)
            fine = done.is_clean and done.code in (0, 1) and "error" not in done.err
            tally.judge(fine, f"{words[0]} {stdout}: {done.code} {done.err[-300:]}")


@case(GROUP, "a stderr that is closed")
def closed_stderr(tmp: Path, budget: Budget, tally: Tally) -> None:
    for words in commands(tmp):
        done = invem(words, tmp / "said", stderr="closed")
        tally.judge(done.code == 0, f"{words[0]}: {done.code}")
    out = tmp / "run"
    done = invem(["run", recipe(tmp), "--out", out], tmp / "said", stderr="closed")
    tally.judge(done.code == 0 and not same(out, whole_run()), f"run: {done.code}")


ODD = {
    "LANG=C, no UTF-8": {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "20 columns": {"COLUMNS": "20"},
    "1 column": {"COLUMNS": "1"},
    "TERM=dumb": {"TERM": "dumb", "NO_COLOR": "1"},
    "colours forced": {"FORCE_COLOR": "1"},
    "no HOME": {"HOME": None},
    "HOME that cannot be written": {"HOME": "/proc", "XDG_CACHE_HOME": None, "MPLCONFIGDIR": None},
    "TMPDIR that is not there": {"TMPDIR": "/nowhere"},
}


@case(GROUP, "`LANG=C`, 20 columns and 1, a dumb terminal, no HOME or one that cannot be written")
def odd_environments(tmp: Path, budget: Budget, tally: Tally) -> None:
    for name, change in ODD.items():
        for words in commands(tmp):
            done = invem(words, tmp / "said", env=change)
            fine = done.code == 0 and done.is_clean
            if "--json" in words and fine:
                json.loads(done.out)
            tally.judge(fine, f"{name}: {words[0]}: {done.code} {done.err[-300:]}")
    # Python settles the encoding of stdout at its start: these need processes of their own.
    env = {k: v for k, v in os.environ.items() if not k.startswith("LC_")}
    env |= {k: v for k, v in ODD["LANG=C, no UTF-8"].items() if v}
    run = tmp / "läuft é"
    shutil.copytree(whole_run().path, run)
    for words in (["eval", run], ["ls"], ["resume", run], ["eval", tmp / "fehlt ü"]):
        line = [sys.executable, "-m", "invem", *map(str, words)]
        done = subprocess.run(line, env=env, capture_output=True, check=False)
        fine = b"Traceback" not in done.stderr and done.returncode == (
            2 if "fehlt" in line[-1] else 0
        )
        tally.judge(fine, f"LANG=C: {words}: {done.returncode} {done.stderr[-300:]!r}")


NAMES = (
    "with spaces",
    "ümläut-é-日本",
    "-dash",
    "quote'\"",
    "[red]",
    "{brace}",
    "a=b",
    "new\nline",
    "percent%20",
    "dollar$HOME",
    "x" * 200,
)


@case(
    GROUP,
    "spaces, quotes, brackets, line ends and non-ASCII letters in the paths of recipe and run",
)
def odd_paths(tmp: Path, budget: Budget, tally: Tally) -> None:
    whole = whole_run()
    for name in NAMES:
        folder = tmp / name
        folder.mkdir()
        path = folder / f"{name}.yaml"
        path.write_text(recipe(tmp).read_text("utf-8"), "utf-8")
        out = folder / name
        done = invem(["run", path, "--out", out], tmp / "said")
        fine = done.code == 0 and not same(out, whole)
        tally.judge(fine, f"run {name!r}: {done.code} {done.err[-300:]}")
        for words in (["report", out], ["eval", out], ["resume", out]):
            done = invem(words, tmp / "said")
            fine = done.code == 0 and done.is_clean
            tally.judge(fine, f"{words[0]} {name!r}: {done.code} {done.err[-300:]}")
        shutil.rmtree(folder)


@case(GROUP, "a command that was mistyped")
def mistyped(tmp: Path, budget: Budget, tally: Tally) -> None:
    run, path = whole_run().path, recipe(tmp)
    for words in (
        ["runn", path],
        ["run"],
        ["run", tmp / "missing.yaml"],
        ["run", tmp],
        ["run", path, "--outt", "x"],
        ["resume", tmp],
        ["resume", path],
        ["resume", tmp / "missing"],
        ["eval", tmp],
        ["eval", tmp / "missing"],
        ["report", tmp / "missing"],
        ["sample", tmp / "missing"],
        ["sample", run, "--n", "0"],
        ["sample", run, "--n", "x"],
        ["sample", run, "--out", tmp / "x.unknown"],
        ["sample", run, "--out", tmp],
        ["restore", run, tmp / "missing"],
        ["restore", run, path],
        ["restore", run, run, "--draws", "0"],
        ["info", "nothing-like-it"],
        ["plan", path, "--device", "tpu"],
        ["plan", path, "phases"],
        ["plugin", "check", "nothing-like-it"],
        ["plugin", "new", "x", "--kind", "nothing"],
    ):
        done = invem(words, tmp / "said")
        short = done.err.count("\n") <= 12
        fine = done.is_clean and done.code in (2, 3) and bool(done.err.strip()) and short
        tally.judge(fine, f"{words}: {done.code} {done.err[-300:]}", refused=True)


# Advice


def near(word: str) -> str:
    """Returns a word with a slip."""
    return word[:-2] + word[-1] + word[-2] if len(word) > 3 else word + "x"


MISSPELT = (
    ("operator={name: random-maks, keep: 0.7}", "operator"),
    ("noise={name: gausian, sigma: 0.2}", "noise"),
    ("network={name: mpl, width: 8}", "network"),
    ("network={name: mlp, widht: 8}", "width"),
    ("operator={name: random-mask, kepe: 0.7}", "keep"),
    ("phases.em.sampler={name: mmsp, steps: 2}", "sampler"),
    ("phases.em.sampler={name: mmps, stesp: 2}", "steps"),
    ("phases.em.fit={objective: dms, steps: 6}", "objective"),
    ("phases.em.fit.weigthing=x", "weighting"),
    ("phases.em.roundss=1", "rounds"),
    ("phases.emm.rounds=1", "em"),
    ("evaluate.metrics=[pnsr]", "psnr"),
    ("evalute.steps=2", "evaluate"),
    ("data={name: synthetik, train: 12, test: 4, size: 4}", "synthetic"),
    ("compute.thread=1", "threads"),
    ("sede=3", "seed"),
)


@case(GROUP, "the word after “did you mean” in place of the misspelt one: the plan accepts it")
def did_you_mean(tmp: Path, budget: Budget, tally: Tally) -> None:
    for change, _ in MISSPELT:
        done = invem(["plan", recipe(tmp), change], tmp / "said")
        found = re.search(r"did you mean '([^']+)'", done.err)
        if not done.is_refusal(2) or found is None:
            tally.lose(f"{change}: no advice: {done.err[-300:]}")
            continue
        words = re.findall(r"[\w-]+", change)
        from difflib import get_close_matches

        wrong = get_close_matches(found[1].split(".")[-1], words, n=1, cutoff=0.5)
        mended = change.replace(wrong[0], found[1].split(".")[-1], 1) if wrong else change
        again = invem(["plan", recipe(tmp), mended], tmp / "said")
        known = again.code == 0 or "unknown key" not in again.err
        tally.judge(known, f"{mended}: {again.err[-300:]}", refused=True)


@case(GROUP, "the command that an error advises (`invem resume ...`, `--force`, another `--out`)")
def advised_commands(tmp: Path, budget: Budget, tally: Tally) -> None:
    whole = whole_run()
    out = tmp / "run"
    shutil.copytree(whole.path, out)
    shutil.rmtree(out / "1-001-evaluation")
    done = invem(["run", recipe(tmp), "--out", out], tmp / "said")
    advice = re.search(r"invem (resume [^\s)]+)", done.err)
    if advice is None:
        tally.lose(f"no advice: {done.err}")
    else:
        done = invem(advice[1].split(), tmp / "said")
        tally.judge(done.code == 0 and not same(out, whole), done.err[-300:], refused=True)
    about = RunDirectory(out).about()
    about["components"][0]["version"] = "0.0.0"
    RunDirectory(out).write_json("run", about)
    done = invem(["resume", out], tmp / "said")
    advised = "--force" in done.err
    done = invem(["resume", out, "--force"], tmp / "said")
    tally.judge(advised and done.code == 0, done.err[-300:], refused=True)
    # "damaged": delete the file, and resume
    run, name = tmp / "damaged", "1-001-denoiser/denoiser.safetensors"
    shutil.copytree(whole.path, run)
    shutil.rmtree(run / "1-001-evaluation")
    (run / name).write_bytes((run / name).read_bytes()[:-1])
    done = invem(["resume", run], tmp / "said")
    told = done.is_refusal(4, naming=name)
    (run / name).unlink()
    done = invem(["resume", run], tmp / "said")
    tally.judge(told and done.code == 0 and not same(run, whole), done.err[-300:], refused=True)
