"""Files of a finished run that are damaged, cut, lost or in another place."""

import json
import random
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from faults.base import Budget, Tally, case, digests, invem, offsets, recipe, same, whole_run
from invem import door, report, store
from invem.config import Catalog
from invem.errors import InvemError
from invem.running.records import results
from invem.storage.directory import Folder, RunDirectory

GROUP = "Damaged files of a run"
KEPT = ("fit", "step-00000004")  # a checkpoint, made for the cases


def kinds(run: Path) -> dict[str, Path]:
    """Returns one tensor file of each kind, by what it holds."""
    found: dict[str, Path] = {}
    for path in sorted(run.rglob("*.safetensors")):
        name = path.relative_to(run).as_posix()
        kind = f"phase {name[0]} {name[6:]}" if name[0].isdigit() else name
        found.setdefault(kind, path)
    return found


def folder_of(run: Path, path: Path) -> Folder:
    """Returns the folder that reads a file, as the steps of a run read it."""
    return Folder(path.parent, RunDirectory(run)) if path.parent != run else RunDirectory(run)


def copied(tmp: Path, name: str = "copy") -> Path:
    """Returns a copy of the finished run, with a checkpoint beside a denoiser."""
    out = tmp / name
    shutil.copytree(whole_run().path, out)
    fit = Folder(out / "1-001-denoiser", RunDirectory(out))
    tensors, meta = fit.read_meta("denoiser")
    fit.write("step-00000004", tensors, meta)
    return out


def is_found(run: Path, path: Path) -> str:
    """Reads a tensor file that is damaged; returns what was wrong with the answer, or ""."""
    try:
        folder_of(run, path).read(path.stem)
    except InvemError as error:
        fine = error.exit_code == 4 and str(path) in str(error) and "\n" not in str(error)
        return "" if fine else f"not a located line of exit code 4: {error}"
    except BaseException as error:
        return f"{path.name}: {type(error).__name__}: {error}"
    return f"{path.name}: read as if nothing were wrong"


def damage_each(
    tmp: Path, tally: Tally, harms: Callable[[bytes, random.Random], Iterator[bytes]]
) -> None:
    """Harms a tensor file of each kind in every way, and has it read."""
    run, rng = copied(tmp), random.Random(3)
    for kind, path in kinds(run).items():
        data = path.read_bytes()
        for harmed in harms(data, rng):
            path.write_bytes(harmed)
            wrong = is_found(run, path)
            tally.judge(not wrong, wrong, refused=True)
            tally.hit(kind)
        path.write_bytes(data)
        folder_of(run, path).read(path.stem)


@case(GROUP, "one flipped bit in a tensor file of each kind")
def flip_tensors(tmp: Path, budget: Budget, tally: Tally) -> None:
    def harms(data: bytes, rng: random.Random) -> Iterator[bytes]:
        for at in offsets(len(data), budget.flips, rng):
            yield data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]

    damage_each(tmp, tally, harms)


@case(GROUP, "a tensor file cut short, empty, of 7 bytes, or with more bytes at its end")
def cut_tensors(tmp: Path, budget: Budget, tally: Tally) -> None:
    def harms(data: bytes, rng: random.Random) -> Iterator[bytes]:
        yield from (b"", data[:7], data + b"\0", data + data)
        for at in offsets(len(data), max(4, budget.flips // 4), rng):
            yield data[:at]

    damage_each(tmp, tally, harms)


@case(GROUP, "a tensor file in the place of another: of another round, step or run")
def swap_tensors(tmp: Path, budget: Budget, tally: Tally) -> None:
    run = copied(tmp)
    other = tmp / "other"
    done = invem(["run", recipe(tmp), "seed=7", "--out", other], tmp / "said")
    assert done.code == 0, done.err
    paths = sorted(run.rglob("*.safetensors"))
    for path in paths:
        data = path.read_bytes()
        foreign = other / path.relative_to(run)
        for source in (*paths, *([foreign] if foreign.exists() else [])):
            if source == path:
                continue
            path.write_bytes(source.read_bytes())
            wrong = is_found(run, path)
            tally.judge(not wrong, wrong, refused=True)
            path.write_bytes(data)


@case(GROUP, "a tensor file of each kind that is missing or damaged, and then `invem resume`")
def resume_with_damage(tmp: Path, budget: Budget, tally: Tally) -> None:
    """Either the file is named with exit code 4, or the run ends with the same bytes."""
    whole = whole_run()
    for kind, path in kinds(whole.path).items():
        for harm in ("missing", "flipped"):
            run = tmp / "copy"
            shutil.copytree(whole.path, run)
            shutil.rmtree(run / "1-001-evaluation")  # something is left to do
            (run / "1-001-denoiser/denoiser.safetensors").unlink()
            name = path.relative_to(whole.path)
            target = run / name
            if not target.exists():
                shutil.rmtree(run)
                continue
            if harm == "missing":
                target.unlink()
            else:
                data = bytearray(target.read_bytes())
                data[-3] ^= 8
                target.write_bytes(data)
            done = invem(["resume", run], tmp / "said")
            wrong = f"{kind} {harm}: exit code {done.code}: {done.err[-300:]}"
            if done.code == 0:
                # A file that no later step reads is left for the commands that do.
                differ = {n for n, d in digests(run).items() if whole.digests.get(n) != d}
                differ -= {name.as_posix()}
                if harm == "flipped" and target.exists() and is_found(run, target):
                    differ.add(f"{name} (damaged)")
                tally.judge(not differ, f"{kind} {harm}: {same(run, whole)}")
            else:
                fine = done.is_refusal(4, naming=str(name))
                tally.judge(fine, wrong, refused=True)
                if fine:  # the advice of the pages: delete it, and resume
                    target.unlink(missing_ok=True)
                    done = invem(["resume", run], tmp / "said")
                    named = done.is_refusal(4, naming=str(name))
                    # What no later step needs is not made again.
                    whole_again = same(run, whole) in ("", name.as_posix())
                    fine = (done.code == 0 and whole_again) or named
                    tally.judge(fine, f"{kind} deleted: {done.err[-300:]}", refused=named)
            shutil.rmtree(run)


@case(GROUP, "a newest checkpoint that is damaged: the one before it is used, and a line says so")
def damaged_checkpoint(tmp: Path, budget: Budget, tally: Tally) -> None:
    whole = whole_run()
    text = recipe(tmp).read_text("utf-8")
    for harm in ("empty", "cut", "flipped", "pickle", "swapped", "both"):
        out = tmp / harm
        path = recipe(tmp, text)
        folder, name = out / "1-001-denoiser", "1-001-denoiser/step-00000004.safetensors"
        invem(["run", path, "--out", out], tmp / "said", kill_on=name)
        newest, older = sorted(folder.glob("step-*.safetensors"))[::-1][:2]
        data = newest.read_bytes()
        flipped = bytearray(data)
        flipped[len(data) // 2] ^= 4
        newest.write_bytes(
            {
                "empty": b"",
                "cut": data[: len(data) // 2],
                "flipped": bytes(flipped),
                "pickle": b"\x80\x04N.",
                "swapped": older.read_bytes(),
                "both": b"",
            }[harm]
        )
        if harm == "both":
            older.write_bytes(b"")
        done = invem(["resume", out], tmp / "said")
        wrong = f"{harm}: {same(out, whole) if done.code == 0 else done.err[-300:]}"
        fine = done.code == 0 and not same(out, whole) and newest.name in done.err
        tally.judge(fine, wrong)


@case(GROUP, "weights that are not finite, in a file that is whole")
def weights_that_are_not_finite(tmp: Path, budget: Budget, tally: Tally) -> None:
    for value in (float("nan"), float("inf")):
        for part in ("raw.", "average."):
            run = copied(tmp, f"{part}{value}")
            fit = Folder(run / "1-001-denoiser", RunDirectory(run))
            tensors, meta = fit.read_meta("denoiser")
            meta.pop("place", None)
            bad = {
                name: torch.full_like(t, value) if name.startswith(part) else t
                for name, t in tensors.items()
            }
            fit.write("denoiser", bad, meta)
            for words in (["sample", run, "--n", 2], ["resume", run]):
                if words[0] == "resume":
                    shutil.rmtree(run / "1-001-evaluation")
                done = invem(words, tmp / "said")
                if done.code == 0 and part == "raw.":  # the average alone is used
                    tally.survived += 1
                    continue
                fine = done.is_refusal(4, 5, naming="finite")
                tally.judge(fine, f"{words[0]} {part}: {done.code} {done.err[-200:]}", refused=True)


@case(GROUP, "a run directory of another version of invem")
def other_formats(tmp: Path, budget: Budget, tally: Tally) -> None:
    run = copied(tmp)
    about = json.loads((run / "run.json").read_text())
    for version in (0, 1, 99, "2", None, [2]):
        (run / "run.json").write_text(json.dumps(about | {"format": version}))
        for words in (["resume", run], ["eval", run], ["report", run], ["sample", run]):
            done = invem(words, tmp / "said")
            tally.judge(done.is_refusal(4, naming="run.json"), done.err[-200:], refused=True)


# Text

JSON = (
    "run.json",
    "recipe.yaml",
    "metrics.jsonl",
    "log.jsonl",
    "identifiability.json",
    "observations.json",
    "1-001-samples/sampler.json",
    "1-001-evaluation/metrics.json",
)


def shown(run: Path, catalog: Catalog) -> Any:
    """Returns everything that the commands show of a finished run."""
    opened = door.open(run, catalog=catalog)
    opened.resume()
    return results(opened.directory), report.write(run).read_bytes()


def _harm_text(
    tmp: Path,
    tally: Tally,
    harms: Callable[[bytes, random.Random], Iterator[bytes]],
    names: Sequence[str] = JSON,
) -> None:
    run, catalog, rng = tmp / "copy", Catalog.load(), random.Random(5)
    shutil.copytree(whole_run().path, run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = shown(run, catalog)
        kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        for name in names:
            path = run / name
            for harmed in harms(kept[path], rng):
                path.write_bytes(harmed)
                try:
                    after = shown(run, catalog)
                except InvemError as error:
                    fine = error.exit_code in (2, 4) and path.name in str(error)
                    tally.judge(fine, f"{name}: {error}", refused=True)
                except BaseException as error:
                    tally.lose(f"{name}: {type(error).__name__}: {error}")
                else:
                    tally.judge(after == before, f"{name}: shown as data")
                if tally.lost and tally.reasons[-1].startswith(name):
                    tally.hit(name)
                for other, data in kept.items():
                    if not other.exists() or other.stat().st_size != len(data) or other == path:
                        other.write_bytes(data)


@case(GROUP, "one flipped bit in a JSON or JSONL file of each kind")
def flip_text(tmp: Path, budget: Budget, tally: Tally) -> None:
    def harms(data: bytes, rng: random.Random) -> Iterator[bytes]:
        for at in offsets(len(data), max(3, budget.flips // 5), rng):
            yield data[:at] + bytes([data[at] ^ 1 << rng.randrange(7)]) + data[at + 1 :]

    _harm_text(tmp, tally, harms)


def _cuts(budget: Budget) -> Callable[[bytes, random.Random], Iterator[bytes]]:
    def harms(data: bytes, rng: random.Random) -> Iterator[bytes]:
        yield from (b"", data[:7], data[: len(data) // 2], data + data, b"[" * 100000, b"\xff\xfe")
        for at in offsets(len(data), max(3, budget.flips // 20), rng):
            yield data[:at]

    return harms


@case(GROUP, "a JSON or JSONL file of each kind, but the log, cut short or emptied")
def cut_text(tmp: Path, budget: Budget, tally: Tally) -> None:
    _harm_text(tmp, tally, _cuts(budget), [name for name in JSON if name != "log.jsonl"])


@case(
    GROUP,
    "the log cut short or emptied: the times of what was cut are missing",
    waits_for="a log that is cut at the end of a line looks like that of a run that was killed",
)
def cut_log(tmp: Path, budget: Budget, tally: Tally) -> None:
    _harm_text(tmp, tally, _cuts(budget), ["log.jsonl"])


# What the harness must see


@case(GROUP, "**Control**: a flipped bit in a plain safetensors file, without digest", control=True)
def flip_without_digest(tmp: Path, budget: Budget, tally: Tally) -> None:
    path, rng = tmp / "plain.safetensors", random.Random(6)
    save_file({"x": torch.arange(64.0)}, path)
    data = path.read_bytes()
    for at in offsets(len(data), budget.flips, rng):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :])
        try:
            load_file(path)
        except Exception:
            tally.detected += 1
        else:
            tally.lose("read as if nothing were wrong")


@case(GROUP, "**Control**: a file that is read without asking which file it is", control=True)
def swap_without_place(tmp: Path, budget: Budget, tally: Tally) -> None:
    run = copied(tmp)
    paths = sorted(run.rglob("*.safetensors"))
    for path, other in zip(paths, paths[1:] + paths[:1], strict=True):
        data = path.read_bytes()
        path.write_bytes(other.read_bytes())
        try:
            store.read(path)  # the digest alone; the folders of a run ask for the place too
        except InvemError:
            tally.detected += 1
        else:
            tally.lose("another file was taken for it")
        path.write_bytes(data)
