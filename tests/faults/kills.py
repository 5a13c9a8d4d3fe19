"""Runs that are killed or asked to stop, and resumed until they are finished."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

from faults.base import (
    Budget,
    Done,
    Tally,
    Whole,
    begin,
    case,
    doing,
    finish,
    invem,
    recipe,
    same,
    start,
    whole_run,
)
from faults.child import COMMITS, naive_reader, naive_writer, stopped_after

GROUP = "Killed and stopped"


def words(tmp: Path, out: Path) -> list[object]:
    """Returns the command that begins a run, or goes on with it."""
    if (out / "run.json").exists():
        return ["resume", out, "--json"]
    return ["run", recipe(tmp), "--out", out, "--json"]


def progress(run: Path) -> list[str]:
    """Returns what is finished: whole files, and the newest checkpoint of each fit."""
    files = [path.relative_to(run).as_posix() for path in run.rglob("*.safetensors")]
    done = [name for name in files if "/step-" not in name]
    fits = {name.rpartition("/")[0] for name in files if "/step-" in name}
    for fit in fits:
        steps = [name for name in files if name.startswith(f"{fit}/step-")]
        done.append(max(steps))
    return done


def went_back(before: list[str], now: list[str]) -> list[str]:
    """Returns what was finished and is not any more."""
    fits = {}
    for name in now:
        folder, _, file = name.rpartition("/")
        fits[folder] = max(fits.get(folder, ""), "~" if file == "denoiser.safetensors" else file)
    lost = []
    for name in before:
        folder, _, file = name.rpartition("/")
        if file.startswith("step-"):
            lost += [name] if fits.get(folder, "") < file else []
        elif name not in now:
            lost.append(name)
    return lost


def end_of(tmp: Path, out: Path, whole: Whole, before: list[str]) -> tuple[Done, str]:
    """Goes on with a run to its end; returns how that went, and what is wrong with it."""
    back = went_back(before, progress(out)) if out.exists() else []
    done = invem(words(tmp, out), tmp / "said")
    if done.code != 0:
        return done, f"exit code {done.code}: {done.err[-300:]}"
    differ = same(out, whole)
    left = [path.name for path in out.rglob(".tmp-*")]
    back += went_back(before, progress(out))
    told = [f"other bytes: {differ}"] if differ else []
    told += [f"left behind: {left}"] if left else []
    told += [f"went back: {back}"] if back else []
    return done, "; ".join(told)


def killed_runs(
    tmp: Path, budget: Budget, tally: Tally, whole: Whole, points: list[int] | None
) -> None:
    """Kills runs, one to three times each, at a random moment or at given calls.

    Every kill is a try. A kill is survived if the run that it struck ends with the bytes of the
    uninterrupted one, and nothing that was finished before it was done anew.
    """
    rng, hits, number, turn = random.Random(0), 0, 0, 0
    wanted = -(-budget.kills // 2)
    while hits < wanted:
        number += 1
        out = tmp / f"run-{number}"
        struck, done = 0, []
        for _ in range(min(rng.randint(1, 3), wanted - hits)):
            if points is None:
                process = begin(words(tmp, out), tmp / "said")
                time.sleep(rng.uniform(0, 0.95 * whole.seconds))
                process.kill()
                process.join()
                if process.exitcode != -signal.SIGKILL:
                    break
                tally.hit(f"during: {doing(out, whole)}" if out.exists() else "during: start")
            else:
                at, turn = points[turn % len(points)], turn + 1
                (tmp / "said" / "killed").unlink(missing_ok=True)
                if invem(words(tmp, out), tmp / "said", kill_at=at).code != -signal.SIGKILL:
                    break
                tally.hit((tmp / "said" / "killed").read_text())
            hits, struck = hits + 1, struck + 1
            now = progress(out) if out.exists() else []
            if went_back(done, now):
                break
            done = now
        if not struck:
            continue
        _, wrong = end_of(tmp, out, whole, done)
        for _ in range(struck):
            tally.judge(not wrong, wrong)
        shutil.rmtree(out)


@case(GROUP, "`kill -9` at a random moment, up to three times a run")
def kill_at_random(tmp: Path, budget: Budget, tally: Tally) -> None:
    killed_runs(tmp, budget, tally, whole_run(), None)


@case(
    GROUP,
    "`kill -9` just before or after a call that changes the disk (" + ", ".join(COMMITS) + ")",
)
def kill_at_commits(tmp: Path, budget: Budget, tally: Tally) -> None:
    whole = whole_run()
    invem(["run", recipe(tmp), "--out", tmp / "counted"], tmp / "said", count=True)
    calls = int((tmp / "said" / "calls").read_text())
    points = list(range(2 * calls))
    random.Random(1).shuffle(points)
    killed_runs(tmp, budget, tally, whole, points)


@case(
    GROUP,
    "**Control**: a writer that overwrites its file in place, killed the same way",
    control=True,
)
def kill_a_naive_writer(tmp: Path, budget: Budget, tally: Tally) -> None:
    rng, path = random.Random(2), tmp / "state.pt"
    wanted = max(10, budget.kills // 2)
    for k in range(20 * wanted):  # a few kills on a busy machine may all come between two writes
        if k >= wanted and tally.lost:
            break
        path.unlink(missing_ok=True)
        process = start(naive_writer, str(path))
        while not path.exists():
            time.sleep(0.001)
        time.sleep(rng.uniform(0.02, 0.1))
        process.kill()
        process.join()
        tally.judge(naive_reader(path), "the file cannot be read")


def stopped_runs(tmp: Path, budget: Budget, tally: Tally, number: int, twice: bool) -> None:
    """Sends a signal at a random moment after the beginning, and resumes."""
    whole, rng = whole_run(), random.Random(number)
    for i in range(budget.kills // 20 + 2):
        out = tmp / f"run-{i}"
        process = begin(words(tmp, out), tmp / "said")
        while process.is_alive() and not (out / ".lock").exists():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.6 * whole.seconds))
        assert process.pid is not None
        for _ in range(1 + twice):
            if process.is_alive():
                os.kill(process.pid, number)
        done = finish(process, tmp / "said")
        if done.code == 0:  # it was as good as finished
            tally.judge(not same(out, whole), same(out, whole))
        else:
            tally.hit(f"during: {doing(out, whole)}")
            fine = done.code == 128 + number and done.is_clean
            fine &= twice or "invem resume" in done.err
            wrong = f"exit code {done.code}: {done.err[-300:]}"
            if fine:
                _, wrong = end_of(tmp, out, whole, progress(out))
            tally.judge(fine and not wrong, wrong)
        shutil.rmtree(out)


@case(GROUP, "SIGTERM at a random moment: exit code 143, then resumed")
def stop_by_sigterm(tmp: Path, budget: Budget, tally: Tally) -> None:
    stopped_runs(tmp, budget, tally, signal.SIGTERM, False)


@case(GROUP, "SIGINT at a random moment: exit code 130, then resumed")
def stop_by_sigint(tmp: Path, budget: Budget, tally: Tally) -> None:
    stopped_runs(tmp, budget, tally, signal.SIGINT, False)


@case(GROUP, "SIGINT twice: exit code 130 at once, then resumed")
def stop_by_two_sigints(tmp: Path, budget: Budget, tally: Tally) -> None:
    stopped_runs(tmp, budget, tally, signal.SIGINT, True)


@case(GROUP, "SIGHUP at a random moment: exit code 129, then resumed")
def stop_by_sighup(tmp: Path, budget: Budget, tally: Tally) -> None:
    stopped_runs(tmp, budget, tally, signal.SIGHUP, False)


@case(GROUP, "the same run twice, and a run that is stopped between any two pieces of work")
def stop_at_every_step(tmp: Path, budget: Budget, tally: Tally) -> None:
    whole = whole_run()
    done = invem(["run", recipe(tmp), "--out", tmp / "again"], tmp / "said")
    tally.judge(done.code == 0 and not same(tmp / "again", whole), same(tmp / "again", whole))
    out, stops = tmp / "often", 0
    while True:
        process = start(stopped_after, str(recipe(tmp)), str(out), str(tmp / "said"), 1)
        done = finish(process, tmp / "said")
        if done.code != 143:
            break
        stops += 1
    wrong = f"exit code {done.code}: {done.err[-300:]}" if done.code else ""
    _, differ = end_of(tmp, out, whole, []) if not wrong else (done, wrong)
    for _ in range(stops):
        tally.judge(not differ, differ)
