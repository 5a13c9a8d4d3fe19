"""Faults that were found by injecting them, one test of each kind."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
import yaml
from command import invem

from invem import atomic, door, store
from invem.cli.progress import follow
from invem.cli.runs import StopSignals
from invem.config import Catalog
from invem.errors import DataError, PluginError, RecipeError
from invem.running.records import Record
from invem.storage import sealed
from invem.storage.directory import RunDirectory

CATALOG = Catalog.load()
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
            "name": "second",
            "rounds": 1,
            "sampler": {"name": "mmps", "steps": 2},
            "fit": {"objective": "dsm", "steps": 2, "batch": 4},
        },
    ],
    "evaluate": {"metrics": ["psnr"], "samples": 4, "draws": 2, "steps": 2},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run."""
    return door.run(SMALL, out=tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def copy(whole, tmp_path):
    """The directory of a finished run that a test may damage."""
    return Path(shutil.copytree(whole.path, tmp_path / "copy"))


def resealed(path, value):
    """Returns a JSON object as a line of a file in the run `path.parent`, its digest renewed."""
    place = RunDirectory(path.parent).place_of(path)
    return sealed.line_of({key: item for key, item in value.items() if key != "digest"}, place)


# D1. Code that runs from data


def test_no_recipe_names_torchscript(tmp_path, monkeypatch):
    monkeypatch.delenv("INVEM_INCEPTION", raising=False)
    for more, words in (({"weights": "x.pt"}, "unknown key"), ({}, "INVEM_INCEPTION")):
        metric = {"name": "frechet", "features": "inception", **more}
        with pytest.raises(RecipeError, match=words):
            door.plan(SMALL | {"evaluate": {"metrics": [metric]}}, catalog=CATALOG)


# D10. Components that break

PLUGIN = """
import sys
import torch
from torch import nn
from invem import Metric, NoiseModel, Objective, Operator, PosteriorSampler, Rng, hookimpl
from dataclasses import dataclass
from typing import ClassVar

def broken(value):
    {breaks}

@dataclass(frozen=True, eq=False)
class Same(Operator):
    def __call__(self, x):
        return {operator}

def operator(n, shape, rng):
    return Same(tuple(shape))

@dataclass(frozen=True, eq=False)
class Quiet(NoiseModel):
    def sample(self, clean, rng):
        return {noise}

    def log_prob(self, y, clean):
        return torch.zeros(len(y))

def noise(n, shape, rng):
    return Quiet()

@dataclass(frozen=True, kw_only=True)
class Sampler(PosteriorSampler):
    needs: ClassVar[frozenset] = frozenset()
    def __call__(self, prior, m, rng):
        return {sampler}

@dataclass(frozen=True, kw_only=True)
class Loss(Objective):
    needs: ClassVar[frozenset] = frozenset({{"x"}})
    def loss(self, model, batch, rng):
        return {objective}

@dataclass(frozen=True, kw_only=True)
class Score(Metric):
    unit: ClassVar[str] = "1"
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[frozenset] = frozenset({{"draws"}})
    def __call__(self, outcome, state):
        return {metric}

class Net(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
    def forward(self, x, c_noise, cond=None):
        return {network}

@hookimpl
def invem_operators():
    return {{"frail": operator}}
@hookimpl
def invem_noises():
    return {{"frail": noise}}
@hookimpl
def invem_samplers():
    return {{"frail": Sampler}}
@hookimpl
def invem_objectives():
    return {{"frail": Loss}}
@hookimpl
def invem_metrics():
    return {{"frail": Score}}
@hookimpl
def invem_networks():
    return {{"frail": Net}}
"""
WHOLE = {
    "operator": "x",
    "noise": "clean",
    "sampler": "m.y",
    "objective": "(model(batch.x, 0.5) - batch.x).square().flatten(1).mean(1)",
    "metric": "outcome.draws.mean((1, 2, 3, 4))",
    "network": "self.scale * x",
}
WRONG = {
    "None": "None",
    "an exception": "broken({})",
    "SystemExit(0)": "sys.exit(0) or {}",
    "a wrong shape": "({})[..., None].expand(*[-1] * ({}).ndim, 3)",
    "a wrong type": "({}).to(torch.complex64)",
}


@pytest.fixture
def frail(tmp_path, monkeypatch):
    """Writes a plugin of components, one of which breaks, and returns their recipe's path."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    monkeypatch.setenv("INVEM_PLUGINS_DIR", str(folder))

    def write(**wrong):
        text = PLUGIN.format(**{**WHOLE, **wrong}, breaks="raise KeyError('no such coil')")
        (folder / "frail.py").write_text(textwrap.dedent(text))
        recipe = {
            **SMALL,
            "operator": "frail",
            "noise": "frail",
            "network": "frail",
            "phases": [
                SMALL["phases"][0],
                {
                    "name": "second",
                    "rounds": 1,
                    "sampler": "frail",
                    "fit": {"objective": "frail", "steps": 2, "batch": 4},
                },
            ],
            "evaluate": {"metrics": ["frail"], "samples": 4, "steps": 2},
            "compute": {"threads": 1},
        }
        path = tmp_path / "frail.yaml"
        path.write_text(yaml.safe_dump(recipe))
        return path

    return write


def test_components_that_are_whole_run(frail, tmp_path):
    assert door.run(frail(), out=tmp_path / "run").finished


@pytest.mark.parametrize("fault", WRONG)
@pytest.mark.parametrize("kind", WHOLE)
def test_a_component_that_breaks_is_named(frail, tmp_path, kind, fault):
    whole = WHOLE[kind]
    wrong = "({})[:1]" if (kind, fault) == ("operator", "a wrong shape") else WRONG[fault]
    path = frail(**{kind: wrong.replace("{}", whole)})
    with pytest.raises(PluginError) as found:
        door.run(path, out=tmp_path / "run")
    text = str(found.value)
    assert "\n" not in text and "frail" in text
    assert kind in text and found.value.exit_code == 3
    if fault == "an exception":
        assert "no such coil" in text and "frail.py, line" in text


# D3. Control characters and markup

ESCAPE = "\x1b]0;owned\x07\x9b31m\u202e"


def test_no_control_character_reaches_the_terminal(copy, monkeypatch, capsys):
    rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    value = {"value": 1.0, "sem": None, "unit": "[/nope]" + ESCAPE, "n": 1}
    rows[-1] |= {"name": "[/nope]" + ESCAPE, "metrics": {"[red]psnr" + ESCAPE: value}}
    (copy / "metrics.jsonl").write_text(
        "".join(resealed(copy / "metrics.jsonl", row) for row in rows)
    )
    code, out, err = invem(monkeypatch, capsys, "eval", copy)
    assert code == 0 and "[/nope]" in out and "[red]psnr" in out and r"\x1b" in out
    missing = copy.parent / f"no{ESCAPE}[/nope]run"
    code, more, err = invem(monkeypatch, capsys, "eval", missing)
    assert code == 2 and r"\x1b]0;owned\x07\x9b31m\u202e[/nope]" in err
    assert not set(out + more + err) & set(ESCAPE.replace("]0;owned", "").replace("31m", ""))


def test_messages_of_plugins_are_escaped(tmp_path, monkeypatch, capsys):
    (tmp_path / "evil.py").write_text("raise RuntimeError('\\x1b[2J[/nope]')")
    monkeypatch.setenv("INVEM_PLUGINS_DIR", str(tmp_path))
    for words in (["ls"], ["plugin", "list"]):
        code, out, err = invem(monkeypatch, capsys, *words)
        assert code == 0 and "\x1b" not in out + err and r"\x1b[2J[/nope]" in out + err


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_is_escaped(monkeypatch, capsys, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setenv("TERM", "dumb")
    where = {"name": "[/nope]\x07", "round": 0}
    steps = [Record("e-step", {**where, "done": 1, "total": 1})]
    assert len(list(follow([*steps, Record("stop", {**where, "reason": "[/no]"})]))) == 2
    err = capsys.readouterr().err
    assert "\x07" not in err and "[/no]" in err


# D12. Output that cannot be written


def test_a_stderr_that_is_closed_or_full_ends_nothing(monkeypatch):
    records = [Record("stop", {"name": "only", "round": 0, "reason": "enough"})]
    monkeypatch.setattr(sys, "stderr", None)
    assert list(follow(records)) == records
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert list(follow(records)) == records
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()


def test_a_stdout_that_is_full_is_a_lack_of_space(copy):
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "invem", "eval", str(copy)]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 6
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_pictures_in_a_folder_that_cannot_be_written_are_a_sentence(copy, monkeypatch, capsys):
    (copy / "pictures").write_text("not a folder")
    code, _, err = invem(monkeypatch, capsys, "report", copy, "--png")
    assert code == 4 and "cannot be written" in err and "Traceback" not in err


# D9. Damaged text

DAMAGED = [
    ("run.json", b"[]"),
    ("run.json", b"null"),
    ("run.json", b"[" * 100000 + b"]" * 100000),
    ("run.json", b"\xff"),
    ("run.json", {"format": 99}),
    ("run.json", {"recipe": 5}),
    ("run.json", {"components": [{"name": "x"}]}),
    ("run.json", {"components": None}),
    ("run.json", {"data": {"shape": "x"}}),
    ("recipe.yaml", b"\xff\xfe"),
    ("metrics.jsonl", {"metrics": None}),
    ("metrics.jsonl", {"metrics": {"psnr": {"a": 1}}}),
    ("metrics.jsonl", {"name": [1]}),
    ("log.jsonl", {"event": [1]}),
    ("log.jsonl", {"cpu": "x"}),
    ("1-000-evaluation/metrics.json", b"{}"),
    ("observations.json", b"null"),
]


@pytest.mark.parametrize(("name", "content"), DAMAGED)
def test_damaged_text_is_named(copy, monkeypatch, capsys, name, content):
    path = copy / name
    if isinstance(content, dict):
        one = path.read_text().splitlines()[-1] if name.endswith("l") else path.read_text()
        content = resealed(path, json.loads(one) | content).encode()
    path.write_bytes(content)
    read_by_eval = name in ("run.json", "metrics.jsonl", "log.jsonl")
    code, _, err = invem(monkeypatch, capsys, "eval" if read_by_eval else "resume", copy)
    assert code == 4 and str(path) in err and err.count("\n") == 1
    if name == "run.json":
        assert invem(monkeypatch, capsys, "resume", copy)[0] == 4


# D6. Tensors that are given to `restore`


def test_observations_of_any_real_type_are_taken_as_numbers(whole):
    y = torch.randn(3, 1, 4, 4)
    sigma = whole.measurement(y).noise.var().sqrt()
    for kind in (torch.float64, torch.float16, torch.float8_e4m3fn, torch.int16, torch.uint8):
        given = {"y": y.abs().to(kind), "noise.sigma": torch.ones_like(sigma).to(kind)}
        m = whole.measurement(given)
        assert m.y.dtype == torch.float32 and m.noise.var().dtype == torch.float32
        assert torch.equal(m.y, y.abs().to(kind).float())


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("y", torch.zeros(3, 1, 4, 4, dtype=torch.complex64), "'y' is complex"),
        ("y", torch.tensor(1.0), "'y' has no dimensions"),
        ("noise.sigma", torch.full((3, 1, 1, 1), -0.2), "'noise.sigma' has negative values"),
        ("noise.sigma", torch.ones(3, 1, 1, 1, dtype=torch.complex128), "'noise.sigma' is complex"),
    ],
)
def test_observations_that_would_lose_something_are_refused(whole, name, value, words):
    with pytest.raises(DataError, match=words):
        whole.measurement({"y": torch.zeros(3, 1, 4, 4), name: value})


# D7. Options without upper bounds


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("compute.threads", 100000),
        ("network", {"name": "mlp", "depth": 65537}),
        ("network", {"name": "mlp", "width": 2**40}),
        ("phases.second.fit.steps", 2**63),
        ("phases.second.fit.lr", 1e38),
        ("phases.second.fit.shift", 10**22),
        ("phases.second.sampler", {"name": "mmps", "steps": 2**63}),
        ("phases.second.sampler", {"name": "mmps", "schedule": {"name": "karras", "rho": 1e-12}}),
        ("data", {"name": "synthetic", "test": 10**26}),
        ("data", {"name": "synthetic", "size": 2**40}),
        ("count", 10**26),
        ("evaluate.steps", 2**63),
    ],
)
def test_options_have_upper_bounds(key, value):
    with pytest.raises(RecipeError, match=r"at most|at least"):
        door.plan(SMALL, {key: value}, catalog=CATALOG)


def test_threads_are_bounded_by_the_cores(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    door.run(SMALL, {"compute.threads": 1024}, out=tmp_path / "run")
    assert asked and all(1 <= number <= 4 * os.cpu_count() for number in asked)


# D14. What a kill leaves behind


def test_temporary_files_of_dead_processes_are_swept(copy):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = {f".tmp-a.json-{dead.pid}": False, f".tmp-b.json-{os.getppid()}": True, ".tmp-c": True}
    for folder in (copy, copy / "1-000-denoiser"):
        for name in names:
            (folder / name).write_text("half")
    time.sleep(0.05)
    with atomic.lock(copy):
        for folder in (copy, copy / "1-000-denoiser"):
            assert {name: (folder / name).exists() for name in names} == names


def test_temporary_files_of_safetensors_are_swept_from_the_folders_of_a_run(copy):
    """They name no process. Beside the folders another command may be writing one."""
    for folder in (copy, copy / "1-000-denoiser", copy / "measurements" / "test"):
        (folder / ".tmpULNE6h").write_text("half")
    with atomic.lock(copy):
        left = [path.parent for path in copy.rglob(".tmp*")]
    assert left == [copy]


def test_a_damaged_checkpoint_is_told(copy, capsys):
    opened = door.open(copy)
    folder = opened.directory.fit(opened.rounds[-1])
    folder.remove("denoiser")
    shutil.rmtree(copy / "1-000-evaluation")
    folder.file("step-00000001").write_bytes(b"torn")
    opened.resume(follow=follow)
    told = [row for row in opened.directory.logged() if row["event"] == "damaged"]
    assert len(told) == 1 and "step-00000001.safetensors: damaged" in told[0]["warning"]
    assert "warning: " + told[0]["warning"] in capsys.readouterr().err


# D15. Exit codes and modes


def test_a_limit_of_file_size_is_a_lack_of_space(tmp_path):
    text = """
import resource, signal, sys, torch
from pathlib import Path
from invem import atomic, store
from invem.errors import ResourceError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
for write, value in ((store.write, {"x": torch.zeros(10000)}), (atomic.write_json, "x" * 40000),
                     (store.write_arrays, {"x": torch.zeros(10000)})):
    try:
        write(Path(sys.argv[1]) / "file", value)
    except ResourceError:
        continue
    sys.exit(1)
"""
    words = [sys.executable, "-c", text, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_files_have_the_mode_of_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        store.write(tmp_path / "x.safetensors", {"x": torch.zeros(3)})
        atomic.write_json(tmp_path / "x.json", {})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~mask}


# D2. Links inside a run


@pytest.mark.parametrize("name", [".lock", "log.jsonl", "1-000-denoiser", "measurements/train"])
def test_links_inside_a_run_are_refused(copy, tmp_path, monkeypatch, capsys, name):
    inside, outside = copy / name, tmp_path / "outside"
    shutil.move(inside, outside)
    inside.symlink_to(outside)
    before = outside.stat().st_mtime_ns
    code, _, err = invem(monkeypatch, capsys, "resume", copy)
    assert code == 4 and f"{inside}: it is a symbolic link" in err
    assert outside.stat().st_mtime_ns == before


def test_pictures_are_not_written_through_a_link(copy, tmp_path, monkeypatch, capsys):
    (tmp_path / "outside").mkdir()
    (copy / "pictures").symlink_to(tmp_path / "outside")
    code, _, err = invem(monkeypatch, capsys, "report", copy, "--png")
    assert code == 4 and "symbolic link" in err and list((tmp_path / "outside").iterdir()) == []


# D16. Devices and hangups


def test_a_device_is_not_replaced(copy, tmp_path, monkeypatch, capsys):
    node = tmp_path / "pipe.safetensors"
    os.mkfifo(node)
    code, _, err = invem(monkeypatch, capsys, "sample", copy, "--n", "2", "--out", node)
    assert code == 2 and "it is a device, not a file" in err and node.is_fifo()
    with pytest.raises(DataError, match="a device"):
        store.write(node, {"x": torch.zeros(1)})
    assert node.is_fifo()


def test_a_hangup_stops_a_run_as_a_termination_does(monkeypatch):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored if the tests run under nohup
        asked = StopSignals()
        os.kill(os.getpid(), signal.SIGHUP)
        assert asked() == 128 + signal.SIGHUP
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        StopSignals()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
