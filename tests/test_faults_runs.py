"""Faults in the files of a run, injected: each is found, named, and leaves a way on."""

import json
import random
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

from invem import cli, door, report
from invem.errors import DataError
from invem.running.records import results
from invem.storage import sealed
from invem.storage.directory import RunDirectory

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


def invem(monkeypatch, capsys, *words):
    """Runs the command line; returns the exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["invem", *map(str, words)])
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [(number, signal.getsignal(number)) for number in numbers]
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    for number, handler in handlers:
        signal.signal(number, handler)
    return stopped.value.code or 0, *capsys.readouterr()


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
    at = len(raw) // 2 if name.endswith("json") or name.endswith("s") else raw.index(b'"name"') + 2
    path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
    code, out, err = invem(monkeypatch, capsys, command, copy)
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
