"""Disks that are full, folders that cannot be written or vanish, and two runs in one folder."""

import os
import random
import shutil
import time
from pathlib import Path

from faults.base import (
    Budget,
    Tally,
    begin,
    case,
    digests,
    doing,
    finish,
    invem,
    recipe,
    same,
    whole_run,
)

GROUP = "Disk and folders"


def _full(tmp: Path, tally: Tally, harm: dict[str, int]) -> None:
    """Runs with a fault of the disk: exit code 6, nothing half written, and it can go on."""
    whole, out = whole_run(), tmp / "run"
    done = invem(["run", recipe(tmp), "--out", out], tmp / "said", **harm)
    if done.code == 0:
        tally.judge(not same(out, whole), same(out, whole))
        shutil.rmtree(out)
        return
    place = doing(out, whole) if out.exists() else "start"
    tally.hit(f"during: {place}")
    fine = done.is_refusal(6, naming="cannot be written") or done.is_refusal(2, naming=str(out))
    wrong = f"{harm} ({place}): {done.code} {done.err[-300:]}"
    found = digests(out) if out.exists() else {}
    torn = [
        name
        for name, value in found.items()
        if value != whole.digests.get(name)
        and name != "metrics.jsonl"
        and "step-" not in name
        and not name.endswith(("spent.json", "pending.json"))
    ]
    begun = (out / "run.json").exists()
    words = ["resume", out] if begun else ["run", recipe(tmp), "--out", out]
    again = invem(words, tmp / "said")
    wrong += f" torn {torn}; again: {again.code} {again.err[-200:]}; {same(out, whole)}"
    tally.judge(fine and not torn and again.code == 0 and not same(out, whole), wrong, refused=True)
    shutil.rmtree(out)


@case(GROUP, "a disk that is full from the n-th write on, and room again at the resume")
def full_disk(tmp: Path, budget: Budget, tally: Tally) -> None:
    invem(["run", recipe(tmp), "--out", tmp / "counted"], tmp / "said", count=True)
    calls = int((tmp / "said" / "calls").read_text())
    tries = min(calls, max(6, budget.kills // 4))
    for i in range(tries):
        _full(tmp, tally, {"full_at": i * calls // tries})


@case(GROUP, "a limit on the size of a file, from 1,000 to 80,000 bytes")
def limited_files(tmp: Path, budget: Budget, tally: Tally) -> None:
    sizes = (1000, 1500, 2500, 5000, 10000, 20000, 40000, 80000)
    for size in sizes[:: 1 if budget.kills >= 50 else 3]:
        _full(tmp, tally, {"largest": size})


@case(GROUP, "a folder without the right to write, as another user than root")
def read_only_folders(tmp: Path, budget: Budget, tally: Tally) -> None:
    tmp.chmod(0o755)
    recipe(tmp).chmod(0o644)
    parent = tmp / "parent"
    parent.mkdir()
    run = tmp / "copy"
    shutil.copytree(whole_run().path, run)
    shutil.rmtree(run / "1-001-evaluation")
    for path in (run, *run.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    parent.chmod(0o555)
    said = tmp / "said"
    said.mkdir()
    said.chmod(0o777)
    for words in (
        ["run", recipe(tmp), "--out", parent / "run"],
        ["resume", run],
        ["report", run],
        ["sample", run, "--n", 2],
        ["sample", run, "--n", 2, "--out", parent / "x.safetensors"],
    ):
        before = digests(run)
        done = invem(words, said, nobody=True, env={"HOME": str(tmp)})
        fine = done.is_refusal(2, 4) and digests(run) == before
        tally.judge(fine, f"{words[0]}: {done.code} {done.err[-300:]}", refused=True)
        for name in ("stdout", "stderr"):
            (said / name).unlink(missing_ok=True)


@case(GROUP, "the run directory removed while the run goes on")
def removed_folder(tmp: Path, budget: Budget, tally: Tally) -> None:
    whole, rng = whole_run(), random.Random(9)
    for _ in range(max(4, budget.kills // 20)):
        out = tmp / "run"
        process = begin(["run", recipe(tmp), "--out", out], tmp / "said")
        while process.is_alive() and not (out / ".lock").exists():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.7 * whole.seconds))
        gone = tmp / "gone"
        out.rename(gone)  # at once, as `mv` would
        finished = (gone / "report.html").exists()
        shutil.rmtree(gone)
        done = finish(process, tmp / "said")
        if finished or done.code == 0:
            fine = done.is_clean and done.code in (0, 4)
            tally.judge(fine, f"at the end: {done.code} {done.err[-300:]}")
        else:
            fine = done.is_refusal(2, 4, naming=str(out))
            tally.judge(fine, f"{done.code} {done.err[-300:]}", refused=True)
        shutil.rmtree(out, ignore_errors=True)


@case(GROUP, "three processes that begin or resume one run at once: one does, the others say so")
def two_runs(tmp: Path, budget: Budget, tally: Tally) -> None:
    whole = whole_run()
    for i in range(max(2, budget.kills // 25)):
        out = tmp / f"run-{i}"
        path = recipe(tmp)
        going = [
            (begin(["run", path, "--out", out], tmp / f"said-{j}"), tmp / f"said-{j}")
            for j in range(3)
        ]
        ends = [finish(*one) for one in going]
        first = [done for done in ends if done.code == 0]
        others = [done for done in ends if done.code != 0]
        fine = bool(first) and not same(out, whole)
        tally.judge(fine, f"{[(d.code, d.err[-200:]) for d in ends]} {same(out, whole)}")
        for done in others:
            fine = done.is_refusal(1, 2, naming=str(out))
            tally.judge(fine, f"{done.code} {done.err[-300:]}", refused=True)


@case(GROUP, "a stdout on a full disk")
def full_stdout(tmp: Path, budget: Budget, tally: Tally) -> None:
    if not os.path.exists("/dev/full"):
        return
    run = whole_run().path
    for words in (
        ["eval", run],
        ["eval", run, "--json"],
        ["ls"],
        ["ls", "--json"],
        ["plan", recipe(tmp)],
        ["info", "mmps"],
        ["show", recipe(tmp)],
        ["sample", run, "--n", 2, "--out", tmp / "x.safetensors"],
        ["report", run],
        ["plugin", "list"],
    ):
        done = invem(words, tmp / "said", stdout="/dev/full")
        tally.judge(done.is_refusal(6), f"{words[0]}: {done.code} {done.err[-300:]}", refused=True)
