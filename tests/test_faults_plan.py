"""What a plan must know before a run: the device, the paths, and what the run will take."""

import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from command import invem

from invem import door
from invem.analysis import operators
from invem.config import Catalog, load
from invem.errors import RecipeError, ResourceError
from invem.planning import device
from invem.planning.make import make
from invem.planning.resolve import resolve
from invem.running import forecast as forecasts
from invem.running import threads
from invem.running.forecast import check_space, forecast
from invem.running.rehearsal import gradient_step, rehearse, timed

ROOT = Path(__file__).parent.parent
CATALOG = Catalog.load()
GOLDEN = sorted((ROOT / "tests" / "golden").glob("*.yaml"))

RECIPE = """
data: digits
count: 40
operator: {name: mask-file, file: masks/mask.npy}
noise: {name: gaussian, sigma: 0.1}
network: {name: unet, channels: [8], blocks: 1}
phases:
  - {name: warm, rounds: 2, fit: {objective: gaussian-moments, rank: 4}}
  - name: em
    rounds: 2
    sampler: {name: mmps, steps: 3}
    fit: {objective: dsm, steps: 4, batch: 8}
evaluate: {metrics: [psnr], samples: 8, observations: 4, steps: 3, posterior: 2}
"""


@pytest.fixture
def recipe(tmp_path):
    """A recipe in a folder of its own, with a mask beside it."""
    folder = tmp_path / "project"
    (folder / "masks").mkdir(parents=True)
    np.save(folder / "masks" / "mask.npy", np.eye(8)[::-1] + np.eye(8))
    path = folder / "r.yaml"
    path.write_text(RECIPE, "utf-8")
    return path


def shown(path, *overrides):
    """Returns the resolved recipe."""
    return resolve(load(path, overrides), CATALOG)


# A device that is not there


@pytest.mark.parametrize("name", ["cuda:3", "cuda", "mps"])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(recipe, name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    recipe.write_text(f"{RECIPE}compute: {{device: '{name}'}}\n", "utf-8")
    with pytest.raises(RecipeError) as refused:
        door.plan(recipe, catalog=CATALOG)
    line = RECIPE.count("\n") + 1
    assert str(refused.value) == (
        f"{recipe}:{line}:19: compute.device: '{name}' is not available on this machine; there are:"
        " cpu (auto takes the fastest)"
    )


def test_the_gpus_of_a_machine_are_counted(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert device.available() == ["cpu", "cuda", "cuda:0", "cuda:1"]
    assert device.device_of("auto").type == "cuda" and device.device_of("cuda:1").index == 1
    with pytest.raises(ValueError, match="there are: cpu, cuda, cuda:0, cuda:1 "):
        device.device_of("cuda:3")


# What the run will take


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_every_kind_of_phase_can_be_rehearsed(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "y.safetensors" in path.read_text("utf-8"):
        pytest.skip("its observations are made by the golden runs")
    plan = door.plan(path, catalog=CATALOG)
    before = torch.random.get_rng_state()
    found = forecast(plan, tmp_path / "run")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert list(tmp_path.iterdir()) == []
    assert [phase.name for phase in found.phases] == [s.phase.name for s in plan.stages]
    for phase, stage in zip(found.phases, plan.stages, strict=True):
        assert (phase.seconds["e-step"] > 0) == (stage.sampler is not None)
        assert (phase.seconds["fit"] > 0) == (stage.objective is not None)


def bytes_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", ["mmps", "conditional", "closed-forms", "distil"])
def test_the_disk_is_foreseen(name, tmp_path):
    plan = door.plan(ROOT / "tests" / "golden" / f"{name}.yaml", catalog=CATALOG)
    found = forecast(plan, tmp_path / "run", clock=False)
    run = door.Run(plan, tmp_path / "run")
    run.resume()
    report = forecasts.REPORT  # which the command line alone writes
    assert found.disk - report == pytest.approx(bytes_of(run.path), rel=0.1)
    for p, phase in enumerate(found.phases):
        real = sum(bytes_of(folder) for folder in run.path.glob(f"{p}-*-*"))
        # Lines of the log and of the metrics are counted with their phase.
        assert phase.disk == pytest.approx(real, rel=0.1, abs=2500 * phase.rounds)


def test_times_and_sizes_grow_with_what_is_done(recipe):
    def sizes(**changes):
        return forecast(door.plan(recipe, changes, catalog=CATALOG), recipe.parent, clock=False)

    few = sizes()
    many = sizes(**{"phases.em.rounds": 4})
    assert many.phases[1].disk > 1.9 * few.phases[1].disk
    wide = sizes(**{"network.channels": [32]})
    assert wide.memory > few.memory and wide.disk > 2 * few.disk
    large = sizes(**{"phases.em.fit.batch": 40})
    assert large.phases[1].memory > few.phases[1].memory + 20 * 4 * 64 * 16
    kept = sizes(**{"phases.em.fit.keep": True})
    assert kept.phases[1].disk > 1.5 * few.phases[1].disk


def test_a_time_is_the_start_of_a_call_and_each_row():
    calls = []
    clock = iter(0.5 * k for k in range(1000))
    found = timed(calls.append, 64, torch.device("cpu"))
    assert calls[0] == 4 and calls[-1] == 64 and next(clock) == 0
    assert 0 <= found.each < 1 and found.of(128, 64) == pytest.approx(
        2 * found.start + 128 * found.each
    )


def test_memory_counts_what_the_backward_pass_keeps(recipe):
    plan = door.plan(recipe, {"network.channels": [8]}, catalog=CATALOG)
    narrow = list(rehearse(plan, clock=False))[1]
    plan = door.plan(recipe, {"network.channels": [64]}, catalog=CATALOG)
    wide = list(rehearse(plan, clock=False))[1]
    signal_bytes = 4 * 64
    assert 8 * signal_bytes < narrow.graph < wide.graph < 20 * narrow.graph
    assert wide.weights > 20 * narrow.weights


def test_plan_prints_a_table_that_a_person_reads(recipe, monkeypatch, capsys):
    monkeypatch.chdir(recipe.parent)
    code, out, _ = invem(monkeypatch, capsys, "plan", "r.yaml")
    assert code == 0
    for words in (
        "40 observations of signals 1 x 8 x 8, 4 held out",
        "gaussian-moments",
        "40 draws a round",
        "4 steps a round",
        "64 network passes",
        "time     about",
        "memory   about",
        "disk     ",
        "in runs/r",
        "free",
    ):
        assert words in out
    code, out, _ = invem(monkeypatch, capsys, "plan", "r.yaml", "--json")
    told = json.loads(out)["forecast"]
    assert code == 0 and told["seconds"] > 0 and told["memory"] > 0 and told["disk free"] > 0
    code, out, _ = invem(monkeypatch, capsys, "plan", "r.yaml", "--yaml")
    assert code == 0 and "forecast:\n" in out and "disk by phase:" in out


def test_a_run_that_the_disk_has_no_place_for_is_refused(recipe, monkeypatch, capsys):
    monkeypatch.chdir(recipe.parent)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 1000))
    for command in ("plan", "run"):
        code, _, err = invem(monkeypatch, capsys, command, "r.yaml")
        assert code == ResourceError.exit_code == 6
        assert "error: r.yaml: the run needs about" in err and "1 kB are free for runs/r" in err
        assert "fewer rounds" in err and "Traceback" not in err
    assert not (recipe.parent / "runs").exists()
    found = forecast(door.plan(recipe, catalog=CATALOG), recipe.parent, clock=False)
    need = int(1.1 * (found.disk + found.passing))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, need))
    found = forecast(door.plan(recipe, catalog=CATALOG), recipe.parent, clock=False)
    assert "the run needs about" in str(check_space(found, recipe.parent, "r.yaml"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is counted as Linux does")
def test_planning_forms_no_matrix_of_full_size():
    words = "import resource; from invem import door; p = door.plan('recipes/phase-retrieval.yaml')"
    peak = "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss"
    code = f"{words}; a = {peak}; p.identifiability(); print({peak} - a)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 300_000  # kB; 730,000 before


def test_operators_are_formed_in_pieces_as_they_are_whole(monkeypatch):
    plan = door.plan(ROOT / "recipes" / "phase-retrieval.yaml", ["data.size=8"], catalog=CATALOG)
    A, _ = plan.model.draw(2, torch.Generator().manual_seed(0))
    sample = operators.OperatorSample(A, 2, 2)
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    whole = operators.as_matrices(sample, 2, x)
    monkeypatch.setattr(operators, "_AT_ONCE", 1000)
    assert torch.equal(operators.as_matrices(sample, 2, x), whole)
    for i in range(2):
        jacobian = torch.autograd.functional.jacobian(lambda s, i=i: A[i : i + 1](s), x[i : i + 1])
        exact = jacobian.reshape(-1, 64).double()
        torch.testing.assert_close(whole[i], exact, rtol=1e-4, atol=1e-4)


# Paths


def test_a_path_in_a_recipe_belongs_to_the_folder_of_its_file(recipe, tmp_path, monkeypatch):
    child = tmp_path / "other" / "child.yaml"
    child.parent.mkdir()
    child.write_text("extends: ../project/r.yaml\ncount: 20\n", "utf-8")
    expected = str(recipe.parent / "masks" / "mask.npy")
    for folder in (tmp_path, recipe.parent, child.parent):
        monkeypatch.chdir(folder)
        for path in (recipe, child, os.path.relpath(recipe), os.path.relpath(child)):
            assert shown(path)["operator"]["file"] == expected
    recipe.write_text(RECIPE.replace("evaluate:", "smoke: {operator.file: other.npy}\nevaluate:"))
    loaded = load(recipe, (), smoke=True)
    assert resolve(loaded, CATALOG)["operator"]["file"] == str(recipe.parent / "other.npy")


def test_a_path_of_an_override_belongs_to_the_working_directory(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = shown(recipe, "operator.file=m.npy")
    assert found["operator"]["file"] == str(tmp_path / "m.npy")
    found = shown(recipe, "operator={name: mask-file, file: ~/m.npy}")
    assert found["operator"]["file"] == str(Path("~/m.npy").expanduser())


def test_paths_of_operators_in_a_list_have_the_places_of_their_own(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe.write_text(
        RECIPE.replace(
            "operator: {name: mask-file, file: masks/mask.npy}",
            "operator: [identity, {name: mask-file, file: masks/mask.npy}]",
        ),
        "utf-8",
    )
    inside = shown(recipe)["operator"]["of"][1]
    assert inside["file"] == str(recipe.parent / "masks" / "mask.npy")
    inside = shown(recipe, "operator.1.file=m.npy")["operator"]["of"][1]
    assert inside["file"] == str(tmp_path / "m.npy")


def test_the_run_that_a_recipe_begins_with_is_a_path_too(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe.write_text(f"{RECIPE}prior: runs/first\n", "utf-8")
    assert load(recipe).recipe.prior == str(recipe.parent / "runs" / "first")
    assert load(recipe, ["prior=runs/b"]).recipe.prior == str(tmp_path / "runs" / "b")
    assert load(recipe, ["prior=network"]).recipe.prior == "network"


def test_every_option_that_names_a_file_is_one(recipe):
    """The options of the components that come with invem, by their names."""
    named = {"file", "root", "path"}
    for kind, offers in CATALOG.offers.items():
        for name, (component, *_) in offers.items():
            try:
                from invem.config import options_of

                options = options_of(component.load())
            except Exception:  # a library that is not installed
                continue
            for option in named & options.keys():
                assert "a file or a folder" in str(options[option].annotation), (kind, name)


def test_a_run_is_gone_on_with_from_another_folder(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(recipe.parent)
    asked = iter([0] * 8 + [130] * 1000)
    with pytest.raises(Exception, match="stopped"):
        door.run("r.yaml", out=tmp_path / "run", catalog=CATALOG, stop=lambda: next(asked))
    monkeypatch.chdir("/")
    run = door.open(tmp_path / "run", catalog=CATALOG)
    run.resume()
    assert run.finished and len(run.restore(run.observations("test").y, draws=1).mean) == 4


# Where a run is written


def test_a_new_run_says_where_it_writes_and_what_is_unfinished(recipe, monkeypatch, capsys):
    monkeypatch.chdir(recipe.parent)
    code, _, err = invem(monkeypatch, capsys, "run", "r.yaml", "compute.threads=1")
    assert code == 0 and "writing to runs/r\n" in err and "unfinished" not in err
    shutil.rmtree("runs/r/1-001-denoiser")
    shutil.rmtree("runs/r/1-001-evaluation")
    code, _, err = invem(monkeypatch, capsys, "run", "r.yaml", "compute.threads=1")
    said = "writing to runs/r-1; runs/r is unfinished: invem resume runs/r\n"
    assert code == 0 and said in err
    code, _, err = invem(monkeypatch, capsys, "resume", "runs/r")
    assert code == 0
    code, _, err = invem(monkeypatch, capsys, "run", "r.yaml", "--out", "masks")
    assert code == 2 and err == "error: masks: it is not empty, and no run; choose another --out\n"
    code, _, err = invem(monkeypatch, capsys, "run", "r.yaml", "--out", "runs/r")
    assert code == 2 and "holds a run already" in err and "invem resume runs/r" in err
    for command in ("run", "plan", "show", "identify"):
        code, _, err = invem(monkeypatch, capsys, command, "runs/r")
        assert code == 2 and "it is a run, not a recipe" in err and "invem resume runs/r" in err
    code, _, err = invem(monkeypatch, capsys, "resume", "r.yaml")
    assert code == 2 and "it is a file, not a run" in err and "invem run r.yaml" in err
    code, _, err = invem(monkeypatch, capsys, "plan", "masks")
    assert code == 2 and "it is a folder, and a recipe is a YAML file" in err


# Threads


def test_threads_are_those_with_which_a_step_is_fastest(recipe, tmp_path, monkeypatch):
    seconds = {1: 0.4, 2: 0.3, 4: 0.35, 8: 0.2}
    asked: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: asked[-1] if asked else 8)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(threads, "_seconds", lambda step, batch, n: seconds[n])
    run = door.run(recipe, out=tmp_path / "run", catalog=CATALOG)
    told = [row for row in run.directory.logged() if row["event"] == "threads"]
    tried = {"1": 0.4, "2": 0.3, "4": 0.35}
    assert told == [{"event": "threads", "threads": 2, "tried": tried, "warning": ""}]
    assert run.results["environment"]["threads"] == 2
    # A run that goes on has the threads that it was begun with, whatever is faster now.
    seconds[1] = 0.1
    shutil.rmtree(run.path / "1-001-denoiser")
    asked.append(8)
    door.open(run.path, catalog=CATALOG).resume()
    assert asked[-1] == 2


def test_threads_that_are_asked_for_stay_with_a_warning(recipe, tmp_path, monkeypatch):
    seconds = {1: 0.1, 4: 0.5}
    asked: list[int] = []
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(threads, "_seconds", lambda step, batch, n: seconds[n])
    changes = {"compute.threads": 4}
    said: list[str] = []

    def follow(records):
        for record in records:
            if record.event == "threads":
                said.append(record.data["warning"])
            yield record

    door.run(recipe, changes, out=tmp_path / "run", catalog=CATALOG, follow=follow)
    assert asked[-1] == 4
    (warning,) = said
    assert "compute.threads: with 4 threads a gradient step takes 0.5 s, with one 0.1 s" in warning
    assert warning.startswith("override 'compute.threads=4'") and "auto" in warning


def test_a_gradient_step_is_one_of_the_first_phase_that_trains(recipe):
    plan = make(load(recipe), CATALOG)
    with gradient_step(plan) as found:
        assert found is not None
        step, batch = found
        loss, finite = step(batch)
        assert batch == 8 and bool(finite) and float(loss) > 0
    closed = make(load(recipe, ["phases.em.fit=null"]), CATALOG)
    with gradient_step(closed) as found:
        assert found is None


def test_threads_that_wait_do_not_spin_unless_the_user_says_so():
    shown = "os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules"
    code = f"import os, sys, invem; print({shown})"
    own = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "KMP_BLOCKTIME")}

    def said(**more):
        return subprocess.run(
            [sys.executable, "-c", code], env=own | more, capture_output=True, text=True
        ).stdout.split()

    assert said() == ["PASSIVE", "False"]
    assert said(OMP_WAIT_POLICY="ACTIVE") == ["ACTIVE", "False"]
    assert said(KMP_BLOCKTIME="200") == ["None", "False"]


def test_recipes_leave_the_number_of_threads_to_the_machine():
    for path in (ROOT / "recipes").rglob("*.yaml"):
        assert "threads: 2" not in path.read_text("utf-8"), path
