"""Who may import whom: the layers of docs/design.md, and plugins that use public names only."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

import invem

ROOT = Path(__file__).parent.parent
VOCABULARY = [
    {"errors", "hookspecs", "capability"},
    {"batched", "frames"},
    {"operator", "noise", "schedule", "compare"},
    {"measurement"},
    {"linalg", "linear", "compose"},
    {"gaussian", "likelihood"},
    {"mixture"},
    {"factor_mixture"},
    {"denoiser"},
    {"prior", "tiled"},
    {"diffusion", "local_gaussian"},
    {"sampler", "objective", "dataset", "metric", "switching"},
    {"stopping", "fileformat"},
]
LAYERS = [
    *VOCABULARY,
    {"analysis", "atomic"},
    {"store", "config"},
    {"storage"},
    {"planning"},
    {"running", "files"},
    {"priorfile", "opening", "wholeframes", "survey"},
    {"door"},
    {"report", "bench"},
    {"testing"},
    {"scaffold"},
    {"cli"},
    {"pytest_plugin"},
    {"__main__"},
]
PUBLIC = {f"invem.{name}" for layer in VOCABULARY for name in layer} | {
    "invem.report",
    "invem.store",
    "invem.atomic",
}
# What else of invem_plugins a family may use.
FAMILIES = {"formats": {"datasets"}, "datasets": {"frames"}}
LEVEL = {name: i for i, names in enumerate(LAYERS) for name in names}
CORE = sorted((ROOT / "invem").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))


def imports(path):
    """Yields (module, names) of every import that runs, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield node.module or "", [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)


def test_every_module_has_a_layer():
    assert {
        p.relative_to(ROOT / "invem").parts[0].removesuffix(".py") for p in CORE
    } == LEVEL.keys() | {"__init__"}


@pytest.mark.parametrize(
    "path",
    [p for p in CORE if p != ROOT / "invem" / "__init__.py"],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_the_core_imports_downwards(path):
    mine = path.relative_to(ROOT / "invem").parts[0].removesuffix(".py")
    for module, names in imports(path):
        parts = module.split(".")
        assert parts[0] != "invem_plugins", f"{path.name} imports a plugin"
        if parts[0] != "invem":
            continue
        for name in [parts[1]] if len(parts) > 1 else [n for n in names if n in LEVEL]:
            assert LEVEL[name] < LEVEL[mine] or name == mine, f"{mine} imports {name}"


@pytest.mark.parametrize("path", PLUGINS, ids=lambda p: str(p.relative_to(ROOT)))
def test_plugins_use_public_names_only(path):
    family = path.relative_to(ROOT / "plugins").parts[0]
    for module, names in imports(path):
        root, _, rest = module.partition(".")
        if root == "invem_plugins":
            other = rest.partition(".")[0]
            assert other in {family, *FAMILIES.get(family, ())}, f"{path.name} imports {module}"
        elif root == "invem":
            assert module == "invem" or module in PUBLIC, f"{path.name} imports {module}"
            own = {name for name in names if f"{module}.{name}" not in PUBLIC}
            assert own <= set(import_module(module).__all__), f"{path.name}: {module}"


def test_every_public_name_exists_and_is_documented():
    assert sorted(invem.__all__) == sorted(set(invem.__all__))
    for name in invem.__all__:
        value = getattr(invem, name)
        if callable(value) and getattr(value, "__module__", "").startswith("invem"):
            assert value.__doc__, f"{name} has no docstring"
