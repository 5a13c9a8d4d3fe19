"""The limits that keep the source readable: sizes, private names, and a core that knows no plugin.

`KNOWN` lists what is over a limit today, with its size. An entry may shrink, and must be removed
with its cause; nothing may be added. `python tests/test_house.py` prints what there is now.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from invem.config.catalog import Catalog

ROOT = Path(__file__).parent.parent
CORE = sorted((ROOT / "invem").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))
CODE = [*CORE, *PLUGINS, *sorted((ROOT / "benchmarks").glob("*.py"))]
FILE, FUNCTION, COLUMNS = 450, 60, 100
PRAGMA = re.compile(r"\s*#\s*(type: ignore|noqa).*$")  # not for a reader

# Names of components that are words of the vocabulary too: where a string of the core equals one,
# it need not be the component.
WORDS = {
    "auto": "a value of many keys of a recipe",
    "chain": "the function `invem.operator.chain`, composition",
    "conditional": "a capability of a prior",
    "exact": "the column of the exact posterior in a table",
    "folder": "an argument of the command line",
    "frames": "a capability of a file format",
    "gaussian": "a kind of noise that files have, `CameraNoise.kind`",
    "identity": "a capability of a measurement",
    "measurements": "the folder of a run directory",
    "never": "the value of `stop` where a recipe names none",
    "observation": "the row of what was observed, in a report",
    "poisson-gaussian": "a kind of noise that files have, `CameraNoise.kind`",
    "prior": "a key of a recipe, and what is learned",
    "stack": "the function `invem.compose.stack`",
}
PUBLIC = {"os._exit"}  # documented under a name with an underscore

KNOWN: dict[str, dict[str, int]] = {
    "long_files": {},
    "long_functions": {},
    "wide_lines": {},
    "foreign_private_names": {"plugins/bridges/deepinv.py: nn.modules.batchnorm._BatchNorm": 1},
    "component_names": {},
}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def long_files() -> dict[str, int]:
    """Files of invem/ over the limit, with their lines."""
    sizes = {label(path): len(path.read_text("utf-8").splitlines()) for path in CORE}
    return {name: lines for name, lines in sizes.items() if lines > FILE}


def long_functions() -> dict[str, int]:
    """Functions of invem/ over the limit, with their lines, decorators apart."""
    found = {}
    for path in CORE:
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > FUNCTION:
                    found[f"{label(path)}: {node.name}"] = lines
    return found


def wide_lines() -> dict[str, int]:
    """Files with lines over the limit, and how many."""
    found = Counter(
        label(path)
        for path in [*CODE, *sorted((ROOT / "tests").rglob("*.py"))]
        for line in path.read_text("utf-8").splitlines()
        if len(PRAGMA.sub("", line)) > COLUMNS
    )
    return dict(found)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def private_uses(path: Path) -> Iterator[str]:
    """The private names of other modules that a file imports, or reads off a module."""
    modules = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            modules |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if is_private(alias.name):
                    yield f"{node.module}.{alias.name}"
                elif is_module(node, alias.name):
                    modules.add(alias.asname or alias.name)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            name = ast.unparse(node.value)
            if name.split(".")[0] in modules and f"{name}.{node.attr}" not in PUBLIC:
                yield f"{name}.{node.attr}"


def is_module(node: ast.ImportFrom, name: str) -> bool:
    """Whether `from package import name` imports a module: one of ours, or a name in lower case of
    another distribution, which may be one."""
    parts = (node.module or "").split(".")
    if parts[0] in ("invem", "invem_plugins"):
        folder = ROOT.joinpath("invem" if parts[0] == "invem" else "plugins", *parts[1:])
        return (folder / f"{name}.py").exists() or (folder / name / "__init__.py").exists()
    return name.islower()


def foreign_private_names() -> dict[str, int]:
    """Private names of other modules in invem/ and plugins/, and how often each is used."""
    return dict(
        Counter(f"{label(path)}: {use}" for path in [*CORE, *PLUGINS] for use in private_uses(path))
    )


def docstrings(module: ast.Module) -> set[int]:
    """The identities of the nodes that are docstrings, or strings that are statements."""
    return {id(node.value) for node in ast.walk(module) if isinstance(node, ast.Expr)}


def component_names() -> dict[str, int]:
    """Names of components in the code of invem/: a string that is the name, or YAML text that
    chooses it by `name:` or as the value of a kind."""
    offers = Catalog.load().offers
    names = {name for found in offers.values() for name in found} - WORDS.keys()
    keys = "|".join(["name", *(kind.removesuffix("s") for kind in offers), "objective", "sampler"])
    chosen = re.compile(rf"\b(?:{keys}):\s*[\"']?([a-z][a-z0-9-]*)")
    found: Counter[str] = Counter()
    for path in CORE:
        apart = docstrings(tree(path))
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if id(node) in apart:
                    continue
                used = {node.value} | set(chosen.findall(node.value))
                found.update(f"{label(path)}: {name}" for name in sorted(used & names))
    return dict(found)


CHECKS = {
    check.__name__: check
    for check in (
        long_files,
        long_functions,
        wide_lines,
        foreign_private_names,
        component_names,
    )
}


@pytest.mark.parametrize("name", CHECKS)
def test_nothing_is_over_a_limit_but_what_is_known_and_shrinking(name):
    found, known = CHECKS[name](), KNOWN.get(name, {})
    worse = {key: size for key, size in found.items() if size > known.get(key, 0)}
    assert not worse, f"{name}: over the limit"
    gone = sorted(known.keys() - found.keys())
    assert not gone, f"{name}: no longer over the limit: remove these from KNOWN"


def test_every_word_that_is_allowed_is_a_component():
    names = {name for found in Catalog.load().offers.values() for name in found}
    assert WORDS.keys() <= names


def test_a_private_name_is_found_however_it_is_reached(tmp_path, monkeypatch):
    file = tmp_path / "user.py"
    file.write_text(
        "import json\nfrom invem import store\nfrom invem.store import _digest\n"
        "a = store._digest\nb = json.decoder._x\nclass A:\n    def f(self): return self._mine\n"
        "c = store.__name__\n"
    )
    assert sorted(private_uses(file)) == [
        "invem.store._digest",
        "json.decoder._x",
        "store._digest",
    ]


def test_the_version_of_the_citation_is_that_of_the_package():
    import yaml

    import invem

    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert cited["cff-version"] == "1.2.0" and cited["version"] == invem.__version__
    assert cited["license"] == "Apache-2.0" and len(cited["references"]) == 2


if __name__ == "__main__":
    import pprint

    found_now = {name: check() for name, check in CHECKS.items()}
    pprint.pp({name: sizes for name, sizes in found_now.items() if sizes}, width=COLUMNS)
