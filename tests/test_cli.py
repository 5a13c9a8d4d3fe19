"""The command line, as a person uses it."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from invem import Operator, cli, hookimpl, store
from invem.config import Catalog, Plugin, load
from invem.errors import RecipeError, Stopped
from invem.planning.make import make
from invem.running.loop import carry_out

ROOT = Path(__file__).parent.parent
BLUR = str(ROOT / "recipes" / "blur.yaml")
ONE_THREAD = "compute.threads=1"  # as tests/conftest.py makes of any number in this process
WARM = "phases.warm-start.fit={objective: gaussian-moments}"
QUICK = {f"recipes/{name}.yaml" for name in ("blind-blur", "blur", "denoising", "inpainting")}
RECIPES = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
    for name in sorted(
        path.relative_to(ROOT).as_posix()
        for path in [*(ROOT / "recipes").rglob("*.yaml"), *(ROOT / "studies").glob("*/*.yaml")]
    )
]


class Done(NamedTuple):
    stdout: str
    stderr: str


def invem(*words, code=0):
    """Runs the command line in this process, which spares the import of torch, and puts back what a
    process would have taken with it."""
    out, err = io.StringIO(), io.StringIO()
    before, handlers = (
        dict(os.environ),
        [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)],
    )
    argv, sys.argv = sys.argv, ["invem", *map(str, words)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
        found = 0
    except SystemExit as stop:
        found = stop.code or 0
    finally:
        sys.argv = argv
        os.environ.clear()
        os.environ.update(before)
        for number, handler in handlers:
            signal.signal(number, handler)
        torch.set_num_threads(1)
    assert found == code, err.getvalue()[-2000:]
    return Done(out.getvalue(), err.getvalue())


def digests(run):
    files = sorted(
        p for p in run.rglob("*") if p.suffix == ".safetensors" or p.name == "metrics.jsonl"
    )
    return {str(p.relative_to(run)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    invem("run", BLUR, "--smoke", ONE_THREAD, "--out", out)
    return out


@pytest.mark.parametrize("words", [["--help"], ["ls"], ["ls", "samplers", "--json"], ["--version"]])
def test_light_commands_import_neither_torch_nor_numpy(words):
    script = (
        "import sys; from invem.cli import main; sys.argv = ['invem', *sys.argv[1:]]\ntry:"
        " main()\nexcept SystemExit: pass\nheavy = {'torch', 'numpy'} & set(sys.modules);"
        " print(heavy, file=sys.stderr); sys.exit(bool(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_run_leaves_its_results(whole):
    assert (whole / "report.html").stat().st_size > 10_000
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == ["observations", "warm-start", "em"]
    assert invem("eval", whole, "--json").stdout


@pytest.mark.parametrize(
    "after",
    ["0-000-denoiser/denoiser.safetensors", "1-000-samples/00000.safetensors", "metrics.jsonl"],
)
def test_a_killed_run_resumes_to_the_same_bytes(whole, tmp_path, after):
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "invem", "run", BLUR, "--smoke", ONE_THREAD, "--out", str(out)],
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not (out / after).exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    invem("resume", out)
    assert digests(out) == digests(whole)


def test_a_stop_inside_the_training_resumes_to_the_same_bytes(whole, tmp_path):
    plan = make(load(BLUR, [ONE_THREAD], smoke=True), Catalog.load())
    calls = iter(range(10**6))
    with pytest.raises(Stopped):
        for _ in carry_out(plan, tmp_path / "run", stop=lambda: 143 if next(calls) >= 4 else 0):
            pass
    assert list((tmp_path / "run").rglob("step-*.safetensors"))
    for _ in carry_out(plan, tmp_path / "run"):
        pass
    assert digests(tmp_path / "run") == digests(whole)


def test_what_a_run_cost_is_the_sum_over_its_processes(tmp_path, monkeypatch):
    plan = make(
        load(
            BLUR, ["phases.em.fit.steps=6", "phases.em.batch=16", "phases.em.rounds=1"], smoke=True
        ),
        Catalog.load(),
    )

    now = [0]  # a clock that goes on by one with each piece of work
    monkeypatch.setattr(time, "process_time", lambda: now[0])

    def process(out, pieces):
        until = now[0] + pieces

        def stop():
            now[0] += 1
            return 143 if now[0] > until else 0

        try:
            for _ in carry_out(plan, out, stop=stop):
                pass
        except Stopped:
            return 1 + process(out, pieces)
        return 1

    def costs(out):
        rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        return [row for row in rows if row["event"] in ("e-step", "fit")]

    assert process(tmp_path / "whole", 10**5) == 1
    assert process(tmp_path / "often", 3) > 5
    one, many = costs(tmp_path / "whole"), costs(tmp_path / "often")
    clocks = {"seconds", "cpu", "digest"}
    assert [{k: v for k, v in row.items() if k not in clocks} for row in many] == [
        {k: v for k, v in row.items() if k not in clocks} for row in one
    ]
    assert any(row.get("passes") for row in one)
    assert all(row["cpu"] >= before["cpu"] for row, before in zip(many, one, strict=True)) and any(
        row["cpu"] for row in one
    )
    assert not list((tmp_path / "often").rglob("spent.json"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_in_the_training_saves_a_checkpoint(tmp_path, number, code):
    words = [BLUR, "--smoke", ONE_THREAD, "phases.warm-start.fit.steps=100000"]
    words += ["--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-m", "invem", "run", *words], stderr=subprocess.PIPE, text=True
    )
    folder = tmp_path / "run" / "0-000-denoiser"
    log = tmp_path / "run" / "log.jsonl"
    while process.poll() is None and not (log.exists() and "loss" in log.read_text()):
        time.sleep(0.01)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == code, said[-2000:]
    assert "invem resume" in said and "Traceback" not in said
    assert list(folder.glob("step-*.safetensors"))


def test_a_run_killed_in_the_training_resumes_to_the_same_bytes(tmp_path):
    words = [BLUR, "--smoke", ONE_THREAD, "phases.em.fit.steps=60", "phases.em.fit.checkpoint=7"]
    invem("run", *words, "--out", tmp_path / "whole")
    command = [sys.executable, "-m", "invem", "run", *words, "--out", str(tmp_path / "killed")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    folder = tmp_path / "killed" / "1-000-denoiser"
    while process.poll() is None and not list(folder.glob("step-*.safetensors")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (
        list(folder.glob("step-*.safetensors")) and not (folder / "denoiser.safetensors").exists()
    )
    invem("resume", tmp_path / "killed")
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_measurements_are_drawn_once(whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    shutil.rmtree(out / "1-000-samples")
    shutil.rmtree(out / "1-000-denoiser")
    shutil.rmtree(out / "1-000-evaluation")
    before = {
        p: (p.stat().st_mtime_ns, p.read_bytes())
        for p in (out / "measurements").rglob("*.safetensors")
    }
    invem("resume", out)
    assert before == {
        p: (p.stat().st_mtime_ns, p.read_bytes())
        for p in (out / "measurements").rglob("*.safetensors")
    }
    assert digests(out) == digests(whole)


def test_neither_step_can_read_the_truth(tmp_path, monkeypatch):
    """With the truth and the data set gone after the measurements, the same bytes are learned."""
    words = ["evaluate.metrics=[]", "phases.em.rounds=2", "count=32"]
    plan = make(load(ROOT / "recipes" / "inpainting.yaml", words, smoke=True), Catalog.load())
    for _ in carry_out(plan, tmp_path / "whole"):
        pass

    def gone(split):
        raise AssertionError(f"something asked for the {split} signals")

    for record in carry_out(plan, tmp_path / "blind"):
        if record.event == "identify":  # after the measurements, before the first step
            shutil.rmtree(tmp_path / "blind" / "truth")
            object.__setattr__(plan, "data", gone)
    whole, blind = digests(tmp_path / "whole"), digests(tmp_path / "blind")
    assert any("1-001-samples" in name for name in blind) and any(
        "1-001-denoiser" in name for name in blind
    )
    assert blind == {name: digest for name, digest in whole.items() if not name.startswith("truth")}


def test_images_are_stored_as_float32(whole):
    names = ("measurements/*/*", "truth/*", "clean*", "*-samples/*", "*-evaluation/*")
    files = [p for name in names for p in whole.glob(f"{name}.safetensors")]
    assert len(files) > 6
    for path in files:
        assert {t.dtype for t in store.read(path).values()} == {torch.float32}, path
    assert not list(whole.rglob("*.png"))


def test_sample_and_report(whole):
    path = json.loads(invem("sample", whole, "--n", 3, "--json").stdout)["samples"]
    assert Path(path).exists()
    Path(path).unlink()
    assert json.loads(invem("report", whole, "--png", "--json").stdout)["pictures"]


def test_results_are_written_in_any_format_that_can_be_written(whole, tmp_path):
    import numpy as np

    invem("sample", whole, "--n", 2, "--out", tmp_path / "x.npz")
    assert np.load(tmp_path / "x.npz")["x"].shape == (2, 1, 8, 8)
    for command in (["sample", whole], ["restore", whole, tmp_path]):
        said = invem(*command, "--out", tmp_path / "x.tif", code=2).stderr
        assert "x.tif: no file format writes it (known: npz, safetensors)" in said


def test_commands_are_listed_in_the_order_of_a_run():
    shown = invem("--help").stdout
    names = [
        "run",
        "resume",
        "plan",
        "identify",
        "show",
        "ls",
        "info",
        "eval",
        "sample",
        "restore",
        "bench",
        "report",
        "plugin",
    ]
    found = [line.split()[1] for line in shown.splitlines() if line.startswith("│ ")]
    assert [name for name in found if name in names] == names


def test_restore_reads_images_and_tensors(whole, tmp_path):
    from safetensors.torch import save_file

    root = image_folder(tmp_path / "images")
    assert "bad.png" in invem("restore", whole, root, code=2).stderr
    (root / "bad.png").unlink()
    done = json.loads(
        invem(
            "restore", whole, root, "--draws", 2, "--out", tmp_path / "r.safetensors", "--json"
        ).stdout
    )
    assert done["observations"] == 24
    found = store.read(tmp_path / "r.safetensors")
    assert found["draws"].shape == (24, 2, 1, 8, 8)
    assert torch.allclose(found["mean"], found["draws"].mean(1))
    y = store.read(whole / "measurements" / "test" / "00000.safetensors")["y"]
    save_file({"y": y}, tmp_path / "y.safetensors")
    invem("restore", whole, tmp_path / "y.safetensors", "--draws", 1, "--out", tmp_path / "r.npz")
    save_file({"y": y[:, :, :4].contiguous()}, tmp_path / "bad.safetensors")
    assert (
        "not (8, 1, 8, 8)" in invem("restore", whole, tmp_path / "bad.safetensors", code=2).stderr
    )
    assert "no such file" in invem("restore", whole, tmp_path / "none.safetensors", code=2).stderr


def test_restore_asks_for_the_mask_of_each_observation(tmp_path):
    from safetensors.torch import save_file

    out = tmp_path / "run"
    invem(
        "run",
        ROOT / "recipes" / "inpainting.yaml",
        "--smoke",
        "phases.em.fit.steps=1",
        "evaluate.metrics=[]",
        "--out",
        out,
    )
    stored = store.read(out / "measurements" / "test" / "00000.safetensors")
    save_file({"y": stored["y"]}, tmp_path / "y.safetensors")
    assert (
        "'A.mask' is drawn anew" in invem("restore", out, tmp_path / "y.safetensors", code=2).stderr
    )
    save_file(stored, tmp_path / "whole.safetensors")
    assert "restored" in invem("restore", out, tmp_path / "whole.safetensors", "--draws", 1).stdout


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (["operator=random-masc"], "did you mean 'random-mask'", 2),
        (["operator.sdt=2"], "did you mean 'std'", 2),
        (["operator.std=wide"], "operator.std", 2),
        (["operator.std=-1"], "operator.std", 2),
        (["phases.em.rouns=2"], "did you mean 'rounds'", 2),
        (["operator.size=4"], "size must be odd", 2),
        (["clean=0"], "grants none", 2),
        (["phases.warm-start.fit.on=null"], "signals to learn from", 2),
        (["data={name: fashion-mnist, root: /nowhere}"], "apt-get install", 2),
    ],
)
def test_mistakes_get_a_line_and_a_code(words, said, code):
    assert said in invem("plan", BLUR, *words, code=code).stderr


def image_folder(root):
    from PIL import Image

    root.mkdir()
    for i in range(24):
        Image.new("L", (8, 8), 10 * i).save(root / f"{i:02d}.png")
    (root / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    return root


def test_a_broken_image_is_named_and_refused_or_skipped(tmp_path):
    root = image_folder(tmp_path / "images")
    data = f"data={{name: folder, root: {root}, channels: 1, test: 0.3}}"
    said = invem("plan", BLUR, data, code=2).stderr
    assert "bad.png" in said and "broken: skip" in said
    done = invem(
        "plan", BLUR, data.replace("}", ", broken: skip}"), "evaluate.metrics=[]", "--json"
    )
    assert "1 broken file left out: bad.png" in done.stderr
    assert json.loads(done.stdout)["observations"] + json.loads(done.stdout)["held out"] == 24


def test_a_sampler_that_needs_what_the_operator_lacks(tmp_path):
    """The operator of a stranger, without an adjoint."""
    from types import SimpleNamespace

    class Square(Operator):
        def __call__(self, x):
            return x.square()

    @hookimpl
    def invem_operators():
        return {"square": lambda n, shape, rng: Square(shape)}

    catalog = Catalog.load()
    catalog.ask(
        lambda: SimpleNamespace(invem_operators=invem_operators), Plugin("module", "stranger", "1")
    )
    with pytest.raises(
        RecipeError,
        match=r"phases\.1\.sampler: mmps needs .* \(adjoint\), which square .* does not",
    ) as caught:
        make(load(BLUR, ["operator=square"]), catalog)
    assert caught.value.exit_code == 2
    plan = make(
        load(BLUR, ["operator=square", "phases.em.sampler={name: dps, steps: 4}"], smoke=True),
        catalog,
    )
    assert plan.stages[1].sampler is not None


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_runs_in_small(name, tmp_path):
    done = invem("run", ROOT / name, "--smoke", "--json", "--out", tmp_path / "run")
    evaluations = json.loads(done.stdout)["evaluations"]
    assert len(evaluations) >= 2
    assert (tmp_path / "run" / "report.html").exists()
    points = load(ROOT / name).recipe.data.name == "smooth-manifold"
    assert evaluations[-1]["metrics"].keys() >= (
        {"sliced-wasserstein"} if points else {"psnr", "frechet"}
    )


def test_an_existing_run_directory_is_refused(whole):
    assert "invem resume" in invem("run", BLUR, "--smoke", "--out", whole, code=2).stderr


def test_a_damaged_file_is_named(whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    target = out / "0-000-denoiser" / "denoiser.safetensors"
    raw = bytearray(target.read_bytes())
    raw[-100] ^= 1
    target.write_bytes(raw)
    assert "digest" in invem("resume", out, code=4).stderr


def test_bfloat16_and_compilation_train_on_a_cpu(tmp_path, monkeypatch):
    """The path that CUDA takes by `auto`; here the compiler's front end alone, which needs no C++
    compiler."""
    compiled = []
    compiler = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda model: compiled.append(model) or compiler(model, backend="eager")
    )
    words = ["compute.precision=bfloat16", "compute.compile=true", "evaluate.metrics=[psnr]"]
    for _ in carry_out(make(load(BLUR, words, smoke=True), Catalog.load()), tmp_path / "run"):
        pass
    assert len(compiled) == 2
    tensors = store.read(tmp_path / "run" / "1-000-denoiser" / "denoiser.safetensors")
    assert all(t.dtype == torch.float32 and bool(t.isfinite().all()) for t in tensors.values())


def test_common_tensors_are_the_same_in_every_block(tmp_path):
    """A law with a random tensor that is common to all observations: one device, drawn once."""
    plugin = tmp_path / "plugins"
    plugin.mkdir()
    (plugin / "device.py").write_text(
        "from dataclasses import dataclass\n"
        "import torch\n"
        "from invem import LinearOperator, hookimpl, shared\n\n"
        "@dataclass(frozen=True, eq=False)\n"
        "class Device(LinearOperator):\n"
        "    gain: torch.Tensor = shared()\n"
        "    def __call__(self, x):\n"
        "        return self.gain * x\n\n"
        "def device(n, shape, rng):\n"
        '    """A device with an unknown gain."""\n'
        "    return Device(shape, 1 + torch.rand(shape, generator=rng))\n\n"
        "@hookimpl\n"
        "def invem_operators():\n"
        "    return {'device': device}\n"
    )
    words = [
        "operator=device",
        "count=1100",
        "phases.em.observations=16",
        "evaluate.metrics=[]",
        "evaluate.samples=0",
    ]
    invem("--plugins-dir", plugin, "run", BLUR, "--smoke", *words, "--out", tmp_path / "run")
    paths = sorted((tmp_path / "run" / "measurements").rglob("*.safetensors"))
    gains = [store.read(path)["A.gain"] for path in paths]
    assert len(gains) == 3 and all(torch.equal(gain, gains[0]) for gain in gains)


def test_a_lost_truth_or_table_is_made_again(whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    shutil.rmtree(out / "truth")
    (out / "metrics.jsonl").write_text("")
    invem("resume", out)
    assert digests(out) == digests(whole)


def test_data_that_changed_are_refused_and_a_finished_run_needs_none(tmp_path):
    root = image_folder(tmp_path / "images")
    (root / "bad.png").unlink()
    data = f"data={{name: folder, root: {root}, channels: 1, test: 0.3}}"
    words = [
        BLUR,
        "--smoke",
        data,
        "clean=4",
        "evaluate.metrics=[]",
        "phases.warm-start.fit.moments=2",
        "--out",
        tmp_path / "run",
    ]
    invem("run", *words)
    shutil.rmtree(tmp_path / "run" / "1-000-denoiser")
    shutil.rmtree(tmp_path / "run" / "measurements" / "test")
    kept = root.rename(tmp_path / "elsewhere")
    assert "is not a folder" in invem("resume", tmp_path / "run", code=2).stderr
    invem("sample", tmp_path / "run", "--n", 2)
    root.mkdir()
    for path in sorted(kept.iterdir())[:20]:
        shutil.copy(path, root)
    assert (
        "have changed since the run was begun" in invem("resume", tmp_path / "run", code=2).stderr
    )


def test_a_run_that_could_not_begin_leaves_nothing_in_the_way(tmp_path):
    out = tmp_path / "run"
    assert (
        "not available"
        in invem("run", BLUR, "--smoke", "--device", "mps", "--out", out, code=2).stderr
    )
    assert not out.exists()
    assert (
        "no run can be put there"
        in invem("run", BLUR, "--smoke", "--out", "/proc/foo/bar", code=2).stderr
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            [
                "data=null",
                "observations=digits",
                "operator=random-mask",
                "evaluate.metrics=[]",
                WARM,
            ],
            "A.mask would be drawn anew",
        ),
        (["noise.sigma=0.0"], "the noise is 0"),
        (["evaluate.samples=1"], "needs unconditional samples (samples)"),
        (
            ["phases.em.sampler.schedule={name: karras, sigma_min: 30.0}"],
            "sigma_min must be below sigma_max",
        ),
        (["network.channels=[0]"], "network.channels"),
    ],
)
def test_what_the_plan_finds_before_anything_runs(words, said):
    assert said in invem("plan", BLUR, *words, code=2).stderr


def test_a_damaged_description_is_named(whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    (out / "recipe.yaml").write_text((out / "recipe.yaml").read_text() + "\n")
    assert "changed since the run was begun" in invem("resume", out, code=2).stderr
    (out / "run.json").write_text("{")
    assert "run.json: damaged" in invem("resume", out, code=4).stderr


def test_a_run_without_metrics_evaluates_nothing_and_still_samples(tmp_path):
    invem("run", BLUR, "--smoke", "evaluate.metrics=[]", "--out", tmp_path / "run")
    assert not (tmp_path / "run" / "1-000-evaluation").exists()
    invem("sample", tmp_path / "run", "--n", "2")
    assert (tmp_path / "run" / "samples-0.safetensors").exists()


def test_a_large_seed_is_a_seed(tmp_path):
    words = [
        "seed=100000000000000",
        "evaluate.metrics=[]",
        "phases.em.fit.steps=1",
        "phases.warm-start.fit.steps=1",
    ]
    invem("run", BLUR, "--smoke", *words, "--out", tmp_path / "run")


def test_measurements_that_exist_already_come_with_their_masks(tmp_path):
    from safetensors.torch import save_file

    words = ["evaluate.metrics=[data-misfit]", "phases.em.fit.steps=2"]
    recipe = ROOT / "recipes" / "inpainting.yaml"
    invem("run", recipe, "--smoke", *words, "--out", tmp_path / "first")
    stored = store.read(tmp_path / "first" / "measurements" / "train" / "00000.safetensors")
    save_file({name: stored[name] for name in ("y", "A.mask")}, tmp_path / "mine.safetensors")
    source = [
        "data=null",
        f"observations={{name: measurements, file: {tmp_path / 'mine.safetensors'}, test: 0.25}}",
    ]
    invem("run", recipe, "--smoke", *source, *words, "--out", tmp_path / "second")
    again = store.read(tmp_path / "second" / "measurements" / "train" / "00000.safetensors")
    assert torch.equal(again["A.mask"], stored["A.mask"][:48]) and torch.equal(
        again["y"], stored["y"][:48]
    )
    assert not (tmp_path / "second" / "truth").exists()
    save_file({"y": stored["y"], "A.masc": stored["A.mask"]}, tmp_path / "mine.safetensors")
    assert (
        "A.masc is no tensor of random-mask"
        in invem("plan", recipe, *source, *words, code=2).stderr
    )
    save_file(
        {"y": stored["y"][:, :, :4].contiguous(), "A.mask": stored["A.mask"]},
        tmp_path / "mine.safetensors",
    )
    shaped = [source[0], source[1].replace("}", ", shape: [1, 8, 8]}")]
    assert "the observations are (1, 4, 8)" in invem("plan", recipe, *shaped, *words, code=2).stderr
