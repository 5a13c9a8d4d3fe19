"""The command line, in subprocesses as a person uses it."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLUR = str(ROOT / "recipes" / "blur.yaml")


def invem(*words, code=0, cwd=ROOT):
    done = subprocess.run([sys.executable, "-m", "invem", *map(str, words)], capture_output=True, text=True, cwd=cwd, timeout=300)
    assert done.returncode == code, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    return done


def digests(run):
    files = sorted(p for p in run.rglob("*") if p.suffix == ".safetensors" or p.name == "metrics.jsonl")
    return {str(p.relative_to(run)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "run"
    invem("run", BLUR, "--smoke", "--out", out)
    return out


@pytest.mark.parametrize("words", [["--help"], ["ls"], ["ls", "samplers", "--json"], ["--version"]])
def test_light_commands_import_neither_torch_nor_numpy(words):
    script = (
        "import sys; from invem.cli import main; sys.argv = ['invem', *sys.argv[1:]]\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'numpy'} & set(sys.modules); print(heavy, file=sys.stderr); sys.exit(bool(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", sorted(str(p.relative_to(ROOT / "recipes")) for p in (ROOT / "recipes").rglob("*.yaml")))
def test_every_recipe_plans(name):
    words = ["plan", ROOT / "recipes" / name, "--smoke", "--json"]
    done = subprocess.run([sys.executable, "-m", "invem", *map(str, words)], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"]


def test_a_run_leaves_its_results(whole):
    assert (whole / "report.html").stat().st_size > 10_000
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == ["observations", "warm-start", "em"]
    assert invem("eval", whole, "--json").stdout


@pytest.mark.parametrize("after", ["0-000-denoiser/denoiser.safetensors", "1-000-samples/00000.safetensors", "metrics.jsonl"])
def test_a_killed_run_resumes_to_the_same_bytes(whole, tmp_path, after):
    out = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-m", "invem", "run", BLUR, "--smoke", "--out", str(out)], stderr=subprocess.DEVNULL)
    while process.poll() is None and not (out / after).exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    invem("resume", out)
    assert digests(out) == digests(whole)


def test_a_stop_inside_the_training_resumes_to_the_same_bytes(whole, tmp_path):
    from invem.engine import recipe
    from invem.engine.catalog import Catalog
    from invem.engine.plan import make
    from invem.engine.run import run
    from invem.errors import Stopped

    plan = make(recipe.load(BLUR, smoke=True), Catalog.load())
    calls = iter(range(10**6))
    with pytest.raises(Stopped):
        for _ in run(plan, tmp_path / "run", stop=lambda: 143 if next(calls) >= 4 else 0):
            pass
    assert list((tmp_path / "run").rglob("step-*.safetensors"))
    for _ in run(plan, tmp_path / "run"):
        pass
    assert digests(tmp_path / "run") == digests(whole)


def test_sample_and_report(whole):
    path = json.loads(invem("sample", whole, "--n", 3, "--json").stdout)["samples"]
    assert Path(path).exists()
    Path(path).unlink()
    assert json.loads(invem("report", whole, "--png", "--json").stdout)["pictures"]


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


def test_an_existing_run_directory_is_refused(whole):
    assert "invem resume" in invem("run", BLUR, "--smoke", "--out", whole, code=2).stderr


def test_a_damaged_file_is_named(whole, tmp_path):
    import shutil

    out = tmp_path / "run"
    shutil.copytree(whole, out)
    target = out / "0-000-denoiser" / "denoiser.safetensors"
    raw = bytearray(target.read_bytes())
    raw[-100] ^= 1
    target.write_bytes(raw)
    assert "digest" in invem("resume", out, code=4).stderr
