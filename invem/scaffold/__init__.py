"""`invem plugin new`: writes a small, complete plugin distribution whose tests pass as they are."""

import re
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from invem.errors import RecipeError
from invem.hookspecs import HOOKS

__all__ = ["KINDS", "write"]

KINDS = tuple(hook.removesuffix("s") for hook in HOOKS)
"""The kinds of components that can be written, in the singular: one per hook."""

# Kinds whose factory is a class; that of the others is a function.
_CLASSES = (
    "network",
    "sampler",
    "objective",
    "metric",
    "schedule",
    "stop",
    "format",
    "figure",
)

# Kinds whose name does not say enough by itself.
_TITLES = {
    "stop": "A stopping rule",
    "format": "A file format",
    "figure": "A figure of the report",
}


def write(name: str, kind: str, folder: Path) -> list[Path]:
    """Writes a distribution with one component: pyproject.toml, README.md, a module and its test.

    Args:
        name: The name of the component in a recipe, in kebab-case.
        kind: One of `KINDS`.
        folder: Where it is written; it must be empty or not exist.

    Returns:
        The paths of the files.

    Raises:
        RecipeError: If the name is not kebab-case, the kind is unknown or the folder is not empty.
    """
    if kind not in KINDS:
        raise RecipeError(f"there is no kind '{kind}' (known: {', '.join(KINDS)})")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise RecipeError(
            f"'{name}' is not kebab-case: lower-case words of letters and digits, joined by -"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecipeError(f"{folder}: exists already")
    words = _words(name, kind)
    templates = {
        "pyproject.toml": "pyproject.toml.jinja",
        "README.md": "README.md.jinja",
        f"{words['module']}.py": f"{kind}.py.jinja",
        f"test_{words['module']}.py": "test.py.jinja",
    }
    environment = Environment(
        loader=PackageLoader(__name__), undefined=StrictUndefined, keep_trailing_newline=True
    )
    folder.mkdir(parents=True, exist_ok=True)
    for file, template in templates.items():
        text = environment.get_template(template).render(words)
        (folder / file).write_text(text, "utf-8")
    return [folder / file for file in templates]


def _words(name: str, kind: str) -> dict[str, str]:
    """Returns the variables of the templates."""
    function = name.replace("-", "_")
    camel = "".join(word.capitalize() for word in name.split("-"))
    return {
        "name": name,
        "dist": f"invem-{name}",
        "module": f"invem_{function}",
        "title": _TITLES.get(kind, f"{'An' if kind[0] in 'aeiou' else 'A'} {kind}"),
        "function": function,
        "camel": camel,
        "factory": camel if kind in _CLASSES else function,
        "kind": f"{kind}s",
    }
