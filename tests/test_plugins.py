"""Plugins of strangers, installed for real: a good one is used, a broken one harms nothing."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from invem import RecipeError, scaffold
from invem.hookspecs import HOOKS
from invem.storage import sealed

ROOT = Path(__file__).parent.parent


def run(*words, env=None, cwd=None, code=0):
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=cwd,
        env=env,
    )
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
    return done


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder of installed distributions: an operator, a sampler, a second operator of the same
    name, and a broken one."""
    base = tmp_path_factory.mktemp("plugins")
    scaffold.write("line-scan", "operator", base / "operator")
    scaffold.write("pull", "sampler", base / "sampler")
    scaffold.write("line-scan", "operator", base / "other")
    text = (base / "other" / "pyproject.toml").read_text()
    (base / "other" / "pyproject.toml").write_text(
        text.replace("invem-line-scan", "other-scan").replace("invem_line_scan", "other_scan")
    )
    (base / "other" / "invem_line_scan.py").rename(base / "other" / "other_scan.py")
    scaffold.write("broken", "metric", base / "broken")
    (base / "broken" / "invem_broken.py").write_text(
        "raise RuntimeError('the driver is missing')\n"
    )
    target = base / "site"
    for name in ("operator", "sampler", "broken", "other"):
        where = target / ("other" if name == "other" else "site")
        run(
            "-m",
            "pip",
            "install",
            "--no-deps",
            "--no-build-isolation",
            "--no-index",
            "-q",
            "--target",
            where,
            base / name,
        )
    return target, base


def environment(*folders):
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))}


def test_a_stranger_is_used_and_a_broken_one_harms_nothing(site, tmp_path):
    folder, _ = site
    env = environment(folder / "site")
    listed = run("-m", "invem", "ls", "--json", env=env)
    names = {(row["kind"], row["name"], row["distribution"]) for row in json.loads(listed.stdout)}
    assert ("operators", "line-scan", "invem-line-scan") in names and (
        "samplers",
        "pull",
        "invem-pull",
    ) in names
    assert listed.stderr.count("the driver is missing") == 1
    words = [
        "operator=line-scan",
        "phases.em.sampler={name: pull, steps: 3}",
        "--out",
        tmp_path / "run",
    ]
    run("-m", "invem", "run", ROOT / "recipes" / "blur.yaml", "--smoke", *words, env=env)
    used = {
        row["name"]: row
        for row in json.loads((tmp_path / "run" / "run.json").read_text())["components"]
    }
    assert (
        used["line-scan"]["distribution"] == "invem-line-scan"
        and used["pull"]["version"] == "0.1.0"
    )
    checked = json.loads(
        run("-m", "invem", "plugin", "check", "line-scan", "pull", "--json", env=env).stdout
    )
    assert checked and all(row["passed"] is not False for row in checked)
    tests = run(
        "-m",
        "pytest",
        "--invem",
        "line-scan",
        "-q",
        "-p",
        "no:cacheprovider",
        env=env,
        cwd=tmp_path,
    )
    assert re.search(r"1[0-9] passed", tests.stdout)
    rows = {
        row["name"]: row
        for row in json.loads(run("-m", "invem", "plugin", "list", "--json", env=env).stdout)
    }
    assert rows["broken"]["errors"] == ["RuntimeError: the driver is missing"]
    assert rows["line-scan"]["components"] == ["operators/line-scan"] and rows["line-scan"][
        "hooks"
    ] == ["invem_operators"]
    missing = ["evaluate.metrics=[broken]"]
    assert (
        "the driver is missing"
        in run(
            "-m", "invem", "plan", ROOT / "recipes" / "blur.yaml", *missing, env=env, code=3
        ).stderr
    )
    quiet = run("-m", "invem", "--no-plugins", "ls", "--json", env=env)
    assert "line-scan" not in quiet.stdout and "driver" not in quiet.stderr


def test_a_name_offered_twice(site):
    folder, _ = site
    env = environment(folder / "site", folder / "other")
    plan = ["-m", "invem", "plan", ROOT / "recipes" / "blur.yaml", "--smoke"]
    assert (
        "write 'invem-line-scan/line-scan' or 'other-scan/line-scan'"
        in run(*plan, "operator=line-scan", env=env, code=2).stderr
    )
    assert run(*plan, "operator=other-scan/line-scan", env=env).returncode == 0


def test_resume_refuses_another_version(site, tmp_path):
    folder, _ = site
    env = environment(folder / "site")
    words = [
        "operator=line-scan",
        "evaluate.metrics=[]",
        "evaluate.samples=0",
        "--out",
        tmp_path / "run",
    ]
    run("-m", "invem", "run", ROOT / "recipes" / "blur.yaml", "--smoke", *words, env=env)
    file = tmp_path / "run" / "run.json"
    about = json.loads(file.read_text().replace('"version": "0.1.0"', '"version": "0.0.9"'))
    del about["digest"]
    sealed.write(file, about, file.name)
    assert "--force" in run("-m", "invem", "resume", tmp_path / "run", env=env, code=2).stderr
    run("-m", "invem", "resume", tmp_path / "run", "--force", env=env)


@pytest.mark.parametrize("kind", scaffold.KINDS)
def test_a_new_plugin_passes_its_tests_untouched(kind, tmp_path):
    folder = tmp_path / "new"
    scaffold.write(f"my-{kind}", kind, folder)
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", folder, cwd=folder)
    assert " passed" in done.stdout or "[100%]" in done.stdout
    run("-m", "ruff", "check", "--isolated", "--select", "E,F,W", "--line-length", "100", folder)


def test_a_new_plugin_can_be_of_every_kind_of_hook():
    assert sorted(f"{kind}s" for kind in scaffold.KINDS) == sorted(HOOKS)


@pytest.mark.parametrize("kind", scaffold.KINDS)
@pytest.mark.parametrize("name", ["x", "a-name-of-thirty-characters-or"])
def test_a_new_plugin_is_formatted(kind, name, tmp_path):
    files = scaffold.write(name, kind, tmp_path / "new")
    modules = [path for path in files if path.suffix == ".py"]
    run("-m", "ruff", "format", "--isolated", "--check", "--line-length", "100", *modules)
    for path in files:
        text = path.read_text("utf-8")
        assert text.endswith("\n") and not text.endswith("\n\n")
        assert not re.search("{{|}}|{%|{#", text)


def test_what_a_new_plugin_cannot_be(tmp_path):
    with pytest.raises(RecipeError, match="no kind 'gadget'"):
        scaffold.write("mine", "gadget", tmp_path / "a")
    with pytest.raises(RecipeError, match="kebab-case"):
        scaffold.write("My_Operator", "operator", tmp_path / "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "file").touch()
    with pytest.raises(RecipeError, match="exists already"):
        scaffold.write("mine", "operator", tmp_path / "c")
