"""The documents: snippets run, tables say what the code says, commands exist, links lead
somewhere."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import typer
from pydantic import BaseModel

from invem import Rng, config
from invem.config import KINDS, Catalog, yaml
from invem.planning.make import make

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
CATALOG = Catalog.load()


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)


def keys_table(model):
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        if name == "options":
            continue
        default = "required" if field.is_required() else f"`{_plain(field.default)}`"
        rows.append(f"| `{name}` | {default} | {field.description} |")
    return "\n".join(rows)


def _plain(value):
    if isinstance(value, list | dict) and not value:
        return "[]" if isinstance(value, list) else "{}"
    if isinstance(value, BaseModel):
        return "see below"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else value


@pytest.mark.parametrize("model", ["Recipe", "Phase", "Fit", "Evaluate", "Compute"])
def test_the_page_of_recipes_has_every_key(model):
    table = keys_table(getattr(config, model))
    assert table in (ROOT / "docs" / "recipes.md").read_text("utf-8"), (
        f"docs/recipes.md: {model} is now\n\n{table}"
    )


@pytest.mark.parametrize(
    # tests/test_door.py executes python.md, in a folder of its own.
    "page",
    [page for page in PAGES if page.name != "python.md"],
    ids=lambda p: p.name,
)
def test_python_snippets_run(page, tmp_path, monkeypatch):
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    space = {"__name__": "snippet"}
    for block in blocks(page, "python"):
        exec(compile(block, f"{page.name} snippet", "exec"), space)
    if page.name == "README.md":
        law = space["invem_operators"]()["random-rows"]
        A = law(3, (2, 6, 5), Rng.generator(0), keep=0.4).to(dtype=torch.float64)
        x, v = (
            torch.randn(3, 2, 6, 5, generator=Rng.generator(k), dtype=torch.float64)
            for k in ("x", "v")
        )
        assert torch.allclose((A(x) * v).sum((1, 2, 3)), (x * A.adjoint(v)).sum((1, 2, 3)))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_yaml_snippets_are_recipes(page, tmp_path):
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")  # for those that extend one
    for block in blocks(page, "yaml"):
        file = tmp_path / "recipe.yaml"
        file.write_text(block)
        if "phases:" not in block:
            assert yaml.load(block.encode(), "snippet").value
            continue
        loaded = config.load(file)
        if loaded.recipe.data is not None and loaded.recipe.data.name == "folder":
            loaded = config.load(file, ["data={name: synthetic, size: 32}"])
        make(loaded, CATALOG)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_exist(page):
    from invem.cli import app

    for line in "".join(blocks(page, "bash")).splitlines():
        words = shlex.split(line, comments=True)
        words = words[words.index("invem") + 1 :] if "invem" in words else []
        command = typer.main.get_command(app)
        options = {o for parameter in command.params for o in parameter.opts}
        for word in words:
            if word in getattr(command, "commands", {}):
                command = command.commands[word]
                options |= {o for parameter in command.params for o in parameter.opts}
            elif word.endswith(".yaml"):
                assert (ROOT / word).exists(), line
        assert not words or not hasattr(command, "commands"), line
        assert {w for w in words if w.startswith("--")} <= options, line


def test_the_quick_start_is_two_commands():
    text = (ROOT / "README.md").read_text("utf-8")
    lines = re.findall(r"^python3 -m venv .*$", text, re.M)
    assert len(lines) == 2
    assert lines[0].endswith("invem run recipes/blur.yaml") and lines[1].endswith("-m pytest")


def test_the_readme_lists_every_component():
    rows = dict(
        re.findall(r"^\| (\w+) \| (`.*`) \|$", (ROOT / "README.md").read_text("utf-8"), re.M)
    )
    for kind in KINDS:
        assert set(re.findall(r"`(.*?)`", rows[kind])) == set(CATALOG.offers[kind]), kind


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"`[^`]*`", "", page.read_text("utf-8"))
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_tables_of_results_are_those_of_the_files():
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "tables.py", "--check"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_every_hook_is_documented_with_its_signature():
    import inspect

    from invem import hookspecs

    text = (ROOT / "docs" / "plugins.md").read_text("utf-8")
    for kind in KINDS:
        specification = getattr(hookspecs, f"invem_{kind}")
        factory = re.search(r"``(\(.*?\)) ->", inspect.getdoc(specification))[1]
        hook = inspect.signature(specification).replace(return_annotation=inspect.Signature.empty)
        assert f"| `invem_{kind}{hook}` | `{factory}` |" in text


def test_the_table_of_deepinv_is_that_of_its_results():
    import subprocess
    import sys

    kept = ROOT / "docs" / "results" / "deepinv-contracts.json"
    command = [sys.executable, ROOT / "benchmarks" / "deepinv_contracts.py", "--from", kept]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout in (ROOT / "docs" / "contracts.md").read_text("utf-8")


def test_the_biases_of_samplers_are_those_of_the_file():
    rows = json.loads((ROOT / "docs" / "results" / "biases.json").read_text("utf-8"))["rows"]
    text = (ROOT / "docs" / "samplers.md").read_text("utf-8")
    keys = {"daps": "daps, exact kernel", "split-gibbs": "split-gibbs, last 0.3", "dps": None}
    found = re.findall(
        r"^\| `([\w-]+)`(?:, `guidance: (\w+)`)? \| [^|]* \| ([\d.]+) \| ([\d.]+) to ([\d.]+) \|",
        text,
        re.M,
    )
    names = {name for name, *_ in found} - {"sfbd", "exact"}
    assert len(found) >= 18 and names >= {"mmps", "dps", "langevin", "red-diff"}
    for name, guidance, *cells in found:
        if name in names:
            key = (
                {"likelihood": "dps, likelihood", "norm": "dps, norm 0.3"}[guidance]
                if guidance
                else keys.get(name, name)
            )
            assert cells == [f"{abs(value):.2f}" for value in rows[key]], name


def test_the_page_of_contracts_is_that_of_the_registry():
    from invem.testing import explain

    page = (ROOT / "docs" / "contracts.md").read_text("utf-8")
    assert explain() in page, "python -m invem.testing prints the sections on the kinds"


def test_every_contract_is_explained_and_in_the_table_of_the_command():
    from invem.testing import KINDS as CONTRACTS

    assert sorted(CONTRACTS) == sorted(KINDS)
    for kind in CONTRACTS.values():
        for contract in kind.contracts.values():
            assert re.fullmatch(r".*[^.]\.", contract.sentence), (kind.name, contract.name)
            assert "|" not in contract.sentence + contract.name


def test_the_full_table_of_contracts_has_a_row_per_component_and_contract():
    import subprocess
    import sys

    from invem.testing import KINDS as CONTRACTS

    command = [sys.executable, "-m", "invem", "plugin", "check", "schedules", "noises"]
    done = subprocess.run([*command, "--markdown"], capture_output=True, text=True, check=True)
    rows = re.findall(r"^\| (\w+)/([\w-]+) \| (.*?) \| (\w*) \|", done.stdout, re.M)
    expected = [
        (kind, name, contract)
        for kind in ("schedules", "noises")
        for name in CATALOG.offers[kind]
        for contract in CONTRACTS[kind].contracts
    ]
    assert sorted((kind, name, c) for kind, name, c, _ in rows) == sorted(expected)
    assert {word for *_, word in rows} <= {"holds", "reported", ""}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs" / "results").glob("*.json")), ids=lambda p: p.stem
)
def test_results_are_kept_with_one_row_per_line(path):
    lines = path.read_text("utf-8").splitlines()
    assert len(lines) <= 150, f"run: python benchmarks/results.py {path}"
    assert json.loads("\n".join(lines))
