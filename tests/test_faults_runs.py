"""Faults in the files of a run, injected: each is found, named, and leaves a way on."""

import contextlib
import errno
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from command import invem

from invem import atomic, door, report, store
from invem.errors import DataError, NumericalError, RecipeError, ResourceError
from invem.running.records import results
from invem.running.trainer import Trainer
from invem.storage import sealed
from invem.storage.directory import Round, RunDirectory

SMALL = {
    "data": {"name": "synthetic", "train": 16, "test": 4, "size": 4},
    "operator": "identity",
    "noise": {"name": "gaussian", "sigma": 0.2},
    "network": {"name": "mlp", "width": 8, "depth": 1},
    "phases": [
        {
            "name": "first",
            "rounds": 1,
            "sampler": "observation",
            "fit": {"objective": "gaussian-moments"},
        },
        {
            "name": "em",
            "rounds": 2,
            "sampler": {"name": "mmps", "steps": 2},
            "fit": {"objective": "dsm", "steps": 60, "batch": 4, "checkpoint": 20},
            "stop": {"name": "never"},
        },
    ],
    "evaluate": {"metrics": ["psnr"], "samples": 4, "draws": 2, "steps": 2, "posterior": 3},
    "compute": {"threads": 1},
}
TEXT = [
    "run.json",
    "metrics.jsonl",
    "log.jsonl",
    "identifiability.json",
    "observations.json",
    "1-001-evaluation/metrics.json",
    "1-001-samples/sampler.json",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run."""
    return door.run(SMALL, out=tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def copy(whole, tmp_path):
    """The directory of a finished run that a test may damage."""
    return Path(shutil.copytree(whole.path, tmp_path / "copy"))


def flipped(raw, chooser):
    """Returns bytes with one random bit flipped."""
    changed = bytearray(raw)
    changed[chooser.randrange(len(raw))] ^= 1 << chooser.randrange(8)
    return bytes(changed)


def tensor_files(run):
    """Returns the tensor files of a run."""
    return sorted(run.rglob("*.safetensors"))


def read(run, path):
    """Reads one tensor file of a run, and nothing that was read before."""
    return RunDirectory(run).folder(path.parent).read(path.stem)


# D4. Digests


def shown(run):
    """Returns what `eval` prints and what the report shows, or the errors in their place."""
    found = []
    for look in (lambda: results(RunDirectory(run)), lambda: page(run)):
        try:
            found.append(look())
        except DataError as error:
            found.append(error)
    return found


def page(run):
    data = report.load(run)
    if data.damaged:
        raise DataError("; ".join(data.damaged))
    values = (data.name, data.created, data.recipe, data.environment, data.components, data.log)
    rest = (data.observations, data.evaluations, data.losses, data.identifiability, data.history)
    return json.dumps([*values, repr(rest)], sort_keys=True)


@pytest.mark.parametrize("name", TEXT)
def test_no_flipped_bit_of_text_is_shown_as_data(copy, name):
    path, intact = copy / name, shown(copy)
    raw, chooser, found = path.read_bytes(), random.Random(name), 0
    assert not any(isinstance(value, DataError) for value in intact)
    for _ in range(200):
        path.write_bytes(flipped(raw, chooser))
        for value, before in zip(shown(copy), intact, strict=True):
            assert value == before or (isinstance(value, DataError) and name in str(value))
        try:
            RunDirectory(copy).check_shown()
        except DataError as error:
            found += name in str(error)
    assert found > 190  # what is left are E for e in a number and \\u00E9 for \\u00e9


def test_no_flipped_bit_of_tensors_is_read(copy):
    for path in tensor_files(copy):
        raw, chooser = path.read_bytes(), random.Random(path.name)
        before = read(copy, path)
        for _ in range(200):
            path.write_bytes(flipped(raw, chooser))
            try:
                after = read(copy, path)
            except DataError as error:
                assert str(path) in str(error)
            else:  # padding of the header, which holds nothing
                assert all(torch.equal(after[key], before[key]) for key in before)
        path.write_bytes(raw)


@pytest.mark.parametrize("name", [*TEXT, "1-001-evaluation/posterior.safetensors"])
@pytest.mark.parametrize("command", ["report", "resume", "eval"])
def test_every_command_names_the_damaged_file_that_it_shows(
    copy, monkeypatch, capsys, command, name
):
    path = copy / name
    raw = path.read_bytes()
    at = len(raw) // 2 if name.endswith(("json", "s")) else raw.index(b'"name"') + 2
    path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
    code, _, err = invem(monkeypatch, capsys, command, copy)
    unread = {
        "eval": ["identifiability.json", "observations.json", "/"],
        "report": ["sampler.json", "/metrics.json", "observations.json"],
        "resume": [],
    }
    if any(part in name for part in unread[command]):
        assert code == 0
    else:
        assert code == 4 and name in err and "Traceback" not in err and err.count("\n") <= 2


def test_a_torn_last_line_of_the_log_is_no_damage(copy, monkeypatch, capsys):
    path = copy / "log.jsonl"
    before = RunDirectory(copy).logged()
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    for length in (1, len(last) // 2, len(last) - 2):
        path.write_bytes(whole + last[:length])
        assert RunDirectory(copy).logged() == before
    RunDirectory(copy).log("after", name="em")
    lines = path.read_bytes().splitlines()
    assert len(lines) == len(before) + 1 and json.loads(lines[-1])["event"] == "after"


def test_sealed_json_is_plain_json(copy):
    found = json.loads((copy / "1-001-evaluation" / "metrics.json").read_text())
    assert found["metrics"]["psnr"]["unit"] == "dB" and len(found["digest"]) == 64


# D9. The keys of every JSON file


WRONG = {
    "1-001-samples/sampler.json": [{"options": []}, {"options": {"steps": {}}}, {"sampler": 1}],
    "1-001-samples/calibrated.json": [{"values": {"noise.sigma": "x"}}, {"error": None}],
    "1-001-samples/spent.json": [{"misfit": "x"}, {"draws": -1}, {"before": 3}],
    "1-stop.json": [{"rounds": 0}, {"rounds": "two"}, {"reason": 3}],
    "identifiability.json": [{"lines": "x"}, {"lines": [1]}, {"warning": 2}],
    "observations.json": [{"metrics": []}, {"round": "x"}],
}
RIGHT = {
    "calibrated": {"values": {}, "error": {}, "how": "draws", "settled": True, "path": []},
    "spent": {
        **{"misfit": 1.0, "draws": 1, "passes": 1, "seconds": 1.0, "cpu": 1.0},
        **{"shard": "00000", "before": None},
    },
    "stop": {"rounds": 2, "reason": "enough"},
}
NOT_OBJECTS = [b"[]", b"null", b"3", b"", b"\xff", b"[" * 100000 + b"]" * 100000]


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_in_a_json_file_is_named(copy, monkeypatch, capsys, name):
    path = copy / name
    kind = path.stem.rpartition("-")[2]
    if not path.exists():
        RunDirectory(copy).folder(path.parent).write_json(path.stem, RIGHT[kind])
    right = json.loads(path.read_text())
    del right["digest"]
    place = RunDirectory(copy).place_of(path)
    contents = list(NOT_OBJECTS)
    changes = [*({**right, **change} for change in WRONG[name]), {}]
    contents += [sealed.line_of(value, place).encode() for value in changes]
    for content in contents:
        path.write_bytes(content)
        code, _, err = invem(monkeypatch, capsys, "resume", copy)
        assert code == 4 and str(path) in err and err.count("\n") == 1, content[:50]
    if name == "identifiability.json":
        code, _, err = invem(monkeypatch, capsys, "report", copy)
        assert code == 4 and name in err and "Traceback" not in err


# D13. A way on after a divergence


@pytest.fixture
def diverged(tmp_path):
    """The directory of a run whose second phase has diverged at a step after a checkpoint."""
    path = tmp_path / "diverged"
    keep = Trainer.take_step

    def diverges(self, batches):
        loss, finite = keep(self, batches)
        return loss, finite & (self.step <= 45)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "take_step", diverges)
        with pytest.raises(NumericalError) as found:
            door.run(SMALL, out=path)
    command = f"invem resume {path} phases.em.fit.lr=0.00033"
    assert command in str(found.value) and "step 45" in str(found.value)
    assert RunDirectory(path).fit(Round(1, 0)).checkpoints() == ["step-00000020", "step-00000040"]
    return path


def tensors(run):
    """Returns the bytes of every tensor file of a run below its folders, by name."""
    return {path.relative_to(run): path.read_bytes() for path in tensor_files(run)}


def test_a_run_that_diverged_goes_on_with_another_learning_rate(
    diverged, tmp_path, monkeypatch, capsys
):
    code, out, err = invem(
        monkeypatch, capsys, "resume", diverged, "phases.em.fit.lr=3e-4", "--json"
    )
    assert code == 0, err
    (row,) = json.loads(out)["history"]
    assert (
        row["changes"] == ["phases.em.fit.lr=3e-4"] and row["after"] == "after phase first, round 0"
    )
    assert "phases.em.fit.lr=3e-4" in (diverged / "report.html").read_text()
    # The fit has begun anew: as of a run that had this rate from its start.
    first, em = SMALL["phases"]
    lower = SMALL | {"phases": [first, em | {"fit": em["fit"] | {"lr": 3e-4}}]}
    straight = door.run(lower, out=tmp_path / "straight")
    for at in straight.rounds:
        mine, theirs = (
            RunDirectory(path).fit(at).read("denoiser") for path in (diverged, straight.path)
        )
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    # It holds when the run is opened again, and the losses of the first try are gone.
    assert door.open(diverged).recipe.phases[1].fit.lr == 3e-4
    steps = [
        row["step"]
        for row in RunDirectory(diverged).logged()
        if row["event"] == "loss" and row["round"] == 0
    ]
    assert steps == [25, 50, 60]


def test_changes_through_the_python_door_survive_a_kill(diverged):
    class Killed(BaseException):
        pass

    def die(records):
        for record in records:
            if record.event == "loss":
                raise Killed
            yield record

    with pytest.raises(Killed):
        door.open(diverged).resume({"phases.em.fit.lr": 2e-4}, follow=die)
    again = door.open(diverged)
    assert again.recipe.phases[1].fit.lr == 2e-4
    again.resume()
    assert again.finished and len(again.results["history"]) == 1
    assert door.run(SMALL, out=diverged).finished  # of the recipe that it was begun with


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["noise.sigma=0.1"], "everything that was done so far was done with it"),
        (["seed=3"], "everything that was done"),
        (["phases.first.fit.on=clean", "clean=4"], "cannot be changed"),
        (["phases.em.draws=2"], "phase em was begun with it"),
        (["phases.em.name=other"], "the records of the run go by it"),
        (["phases.first.sampler=pseudo-inverse"], "phase first is finished"),
        (["phases.em.fit.objective=ambient"], "cannot be changed|phases"),
        (["evaluate.observations=2"], "measured already"),
        (["network.width=16"], "everything that was done"),
    ],
)
def test_changes_of_what_was_done_are_refused(diverged, monkeypatch, capsys, changes, words):
    before = tensors(diverged)
    code, _, err = invem(monkeypatch, capsys, "resume", diverged, *changes)
    assert code == 2 and re.search(words, err) and err.count("\n") == 1
    if "cannot be changed" in err:
        assert f"prior={diverged}" in err
    assert tensors(diverged) == before and not (diverged / "history.jsonl").exists()


@pytest.mark.parametrize(
    "change",
    [
        "phases.em.fit.steps=30",
        "phases.em.rounds=3",
        "phases.em.sampler.steps=3",
        "phases.em.batch=4",
        "phases.em.stop=auto evaluate.metrics=[observation-distance]",
        "evaluate.draws=3",
        "evaluate.metrics=[psnr,ssim]",
        "compute.threads=2",
    ],
)
def test_changes_of_what_is_left_to_do_are_carried_out(diverged, monkeypatch, capsys, change):
    first = RunDirectory(diverged).fit(Round(0, 0)).read("denoiser")
    code, out, err = invem(monkeypatch, capsys, "resume", diverged, *change.split(), "--json")
    assert code == 0, err
    again = door.open(diverged)
    assert again.finished and json.loads(out)["history"][0]["changes"] == change.split()
    after = again.directory.fit(Round(0, 0)).read("denoiser")
    assert all(torch.equal(first[key], after[key]) for key in first)
    keys = [
        (row["event"], row.get("phase"), row.get("round"), row.get("step"))
        for row in again.directory.logged()
    ]
    assert len(keys) == len(set(keys))
    if change.startswith("phases.em.sampler"):
        assert again.directory.draws(Round(1, 0)).read_json("sampler")["options"]["steps"] == 3


def test_a_finished_run_goes_on_with_more_rounds(copy):
    before = tensors(copy)
    run = door.open(copy)
    run.resume({"phases.em.rounds": 3})
    assert len(run.rounds) == 4 and run.finished
    after = tensors(copy)
    assert [name for name in before if after[name] != before[name]] == []


# D14. Kills between two files


class Killed(BaseException):
    """Stands for a kill: nothing catches it, and nothing is tidied up."""


@contextlib.contextmanager
def killed_before(n):
    """Kills this process, as it were, before the n-th change of a file; counts the changes."""
    done = [0]

    def killing(change):
        def changing(*args, **options):
            if done[0] == n:
                raise Killed
            done[0] += 1
            return change(*args, **options)

        return changing

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", killing(Path.replace))
        patch.setattr(Path, "unlink", killing(Path.unlink))
        patch.setattr(atomic, "append_line", killing(atomic.append_line))
        yield done


CALIBRATED = {
    **SMALL,
    "phases": [
        SMALL["phases"][0],
        {
            **SMALL["phases"][1],
            "rounds": 1,
            "batch": 8,
            "calibrate": {"noise.sigma": [0.05, 0.5]},
        },
    ],
}


def entries(path):
    """Returns what each entry of the log is of."""
    keys = ("event", "phase", "round", "step")
    return [tuple(row.get(key) for key in keys) for row in RunDirectory(path).logged()]


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_after_a_kill_at_any_file_each_record_is_there_once(tmp_path, stride):
    with killed_before(-1) as done:
        whole = door.run(CALIBRATED, out=tmp_path / "whole")
    expected = entries(whole.path)
    assert len(set(expected)) == len(expected) > 6
    assert not list(whole.path.rglob("pending.json")) + list(whole.path.rglob("spent.json"))
    for n in range(2, done[0], stride):
        path = tmp_path / str(n)
        with pytest.raises(Killed), killed_before(n):
            door.run(CALIBRATED, out=path)
        begun = RunDirectory(path).begun
        door.open(path).resume() if begun else door.run(CALIBRATED, out=path)
        assert sorted(entries(path), key=str) == sorted(expected, key=str), n
        assert tensors(path) == tensors(whole.path), n
        rows = RunDirectory(path).metrics()
        assert rows == whole.metrics, n
        assert not list(path.rglob("pending.json")) + list(path.rglob("spent.json"))
        shutil.rmtree(path)


# D16. Headers, and runs that are removed


@pytest.mark.parametrize("count", [70_000, 400_000])
def test_a_header_of_many_tensors_is_refused_at_once(copy, count):
    names = (f'"{i:x}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(count))
    header = ("{" + ",".join(names) + "}").encode()
    path = copy / "many.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    begun = time.process_time()
    with pytest.raises(DataError, match=r"header is|tensors, and 65536 are the most"):
        store.read(path)
    with pytest.raises(DataError, match=r"header is|tensors, and 65536 are the most"):
        door.open(copy).measurement(path)
    recipe = {key: value for key, value in SMALL.items() if key != "data"}
    recipe |= {"observations": {"name": "measurements", "file": str(path)}}
    with pytest.raises(RecipeError, match=r"header is|tensors, and 65536 are the most"):
        door.plan(recipe)
    assert time.process_time() - begun < 3


@pytest.mark.parametrize(
    ("event", "name"), [("measure", None), ("e-step", "em"), ("loss", "em"), ("restore", "em")]
)
def test_a_run_that_is_removed_stops_and_is_not_made_again(tmp_path, event, name):
    path = tmp_path / "run"
    seen = []

    def remove(records):
        for record in records:
            if record.event == event and record.data.get("name") == name and not seen:
                seen.append(record)
                shutil.rmtree(path)
            yield record

    with pytest.raises(DataError) as found:
        door.run(SMALL, out=path, follow=remove)
    assert seen and "was removed or moved" in str(found.value) and "\n" not in str(found.value)
    assert not path.exists()


@pytest.mark.parametrize("part", ["truth", "measurements"])
def test_a_part_of_a_run_that_is_removed_is_named(copy, part):
    shutil.rmtree(copy / "1-001-denoiser")
    shutil.rmtree(copy / "1-001-evaluation")

    def remove(records):
        for record in records:
            if record.event == "loss":
                shutil.rmtree(copy / part, ignore_errors=True)
            yield record

    with pytest.raises(DataError, match=rf"{copy}/{part}/.*(missing|there are no)"):
        door.open(copy).resume(follow=remove)


# D5. Files in the wrong place


@pytest.fixture(scope="module")
def rich(whole, tmp_path_factory):
    """The directory of a run that has every kind of tensor file."""
    first, em = SMALL["phases"]
    fit = em["fit"] | {"clean": 0.25}
    recipe = SMALL | {
        "clean": 4,
        "prior": str(whole.path),
        "phases": [first, em | {"refresh": 0.5, "batch": 8, "fit": fit, "rounds": 3}],
        "evaluate": SMALL["evaluate"] | {"metrics": ["psnr", "frechet"]},
    }
    path = door.run(recipe, out=tmp_path_factory.mktemp("rich") / "run").path
    folder = RunDirectory(path).fit(Round(1, 2))
    folder.write("step-00000020", *folder.read_meta("denoiser"))
    return path


def test_every_file_knows_its_place(rich, tmp_path):
    """Each tensor file of a run is put in the place of each other one, and is refused there."""
    copy = Path(shutil.copytree(rich, tmp_path / "copy"))
    names = [path.relative_to(copy) for path in tensor_files(copy)]
    kinds = {"clean", "prior", "pool", "0", "00000", "denoiser", "step-00000020", "restorations"}
    assert kinds | {"posterior", "samples"} <= {name.stem for name in names}
    raw = {name: (copy / name).read_bytes() for name in names}
    for name in names:
        for other in names:
            if other == name:
                continue
            (copy / name).write_bytes(raw[other])
            with pytest.raises(DataError) as found:
                read(copy, copy / name)
            assert str(copy / name) in str(found.value) and str(other) in str(found.value)
        (copy / name).write_bytes(raw[name])


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("1-001-samples/00000", "1-000-samples/00000"),
        ("1-000-denoiser/denoiser", "0-000-denoiser/denoiser"),
        ("1-000-denoiser/denoiser", "1-001-denoiser/denoiser"),
        ("measurements/train/00000", "measurements/test/00000"),
        ("measurements/test/00000", "truth/00000"),
        ("1-001-evaluation/posterior", "1-001-evaluation/restorations"),
        ("truth/00000", "measurements/test/00000"),
    ],
)
def test_resume_names_a_file_in_the_wrong_place(copy, monkeypatch, capsys, name, other):
    path, raw = copy / f"{name}.safetensors", (copy / f"{other}.safetensors").read_bytes()
    shutil.rmtree(copy / "1-001-denoiser")
    (copy / "1-001-evaluation" / "metrics.json").unlink()
    path.write_bytes(raw)
    code, _, err = invem(monkeypatch, capsys, "resume", copy)
    assert code == 4 and str(path) in err and err.count("\n") == 1


def test_every_json_file_knows_its_place(copy):
    names = [
        path.relative_to(copy)
        for path in sorted([*copy.glob("*.json"), *copy.glob("[0-9]*-[0-9]*/*.json")])
    ]
    raw = {name: (copy / name).read_bytes() for name in names}
    for name in names:
        for other in names:
            if other != name:
                (copy / name).write_bytes(raw[other])
                with pytest.raises(DataError, match=re.escape(str(copy / name))):
                    RunDirectory(copy).check_shown()
        (copy / name).write_bytes(raw[name])


def test_the_files_of_another_run_are_refused(copy, tmp_path):
    other = door.run(SMALL | {"seed": 1}, out=tmp_path / "other").path
    paths = [path for path in copy.rglob("*") if path.suffix in (".safetensors", ".json", ".jsonl")]
    for path in sorted(paths):
        name, before = path.relative_to(copy), path.read_bytes()
        path.write_bytes((other / name).read_bytes())
        with pytest.raises(DataError) as found:
            read(copy, path) if path.suffix == ".safetensors" else RunDirectory(copy).check_shown()
        assert str(name) in str(found.value) or name.name == "run.json"
        path.write_bytes(before)


# D15. Exit codes


def limited(tmp_path, bytes_, *words):
    """Runs the command line with a limit on the size of a file; returns exit code and stderr."""
    text = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes_}, {bytes_}))
from invem import cli
sys.argv = ["invem", *{[str(word) for word in words]!r}]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize("bytes_", [300, 2000, 5000])
def test_a_limit_of_file_size_is_exit_code_6_for_every_kind_of_file(tmp_path, bytes_):
    recipe = tmp_path / "small.yaml"
    recipe.write_text(yaml.safe_dump(SMALL))
    code, err = limited(tmp_path, bytes_, "run", recipe, "--out", tmp_path / "run")
    assert code == 6 and "cannot be written" in err and "Traceback" not in err


@pytest.mark.parametrize("name", ["sample", "report", "resume"])
def test_a_limit_of_file_size_is_exit_code_6_for_every_command(copy, tmp_path, name):
    shutil.rmtree(copy / "1-001-evaluation")
    words = ["--n", "200"] if name == "sample" else []
    code, err = limited(tmp_path, 600, name, copy, *words)
    assert code == 6 and "cannot be written" in err and "Traceback" not in err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_exit_code_6_for_tensors_json_logs_and_folders(tmp_path, number):
    run = RunDirectory(tmp_path / "run")
    run.begin("", {})
    folder = run.draws(Round(0, 0))

    def full(*_, **__):
        raise OSError(number, os.strerror(number))

    writes = [
        (Path, "mkdir", lambda: folder.write("00000", {"x": torch.zeros(1)})),
        (store, "save_file", lambda: run.write("00000", {"x": torch.zeros(1)})),
        (Path, "write_bytes", lambda: run.write_json("observations", {})),
        (Path, "open", lambda: run.log("loss")),
        (Path, "mkdir", lambda: atomic.lock(tmp_path / "other").__enter__()),
    ]
    for owner, name, write in writes:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, full)
            with pytest.raises(ResourceError) as found:
                write()
        assert found.value.exit_code == 6 and str(tmp_path) in str(found.value)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_a_lack_of_memory_has_an_exit_code_of_its_own(copy, monkeypatch, capsys, error):
    shutil.rmtree(copy / "1-001-denoiser")

    def fails(*_):
        raise error

    monkeypatch.setattr(Trainer, "take_step", fails)
    code, _, err = invem(monkeypatch, capsys, "resume", copy)
    assert code == 7 and "out of memory" in err and "fit.batch" in err and err.count("\n") == 1
