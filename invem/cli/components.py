"""Commands on components and plugins: ls, info, plugin list, plugin new, plugin check."""

import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from invem.cli.app import AsJson
from invem.cli.output import escaped, print_data, print_table, print_warnings, say, tell
from invem.errors import MissingExtra, PluginError, RecipeError, suggest
from invem.hookspecs import HOOKS

if TYPE_CHECKING:
    from invem.config import Catalog, Component

__all__ = ["check_plugins", "find_components", "info", "list_plugins", "ls", "new_plugin"]

_SINGULAR = [kind.removesuffix("s") for kind in HOOKS]
_WIDTH = 100  # columns where there is no terminal
_NARROW = 30  # columns that a text has at least


def find_components(names: list[str]) -> "list[Component]":
    """Finds components.

    Args:
        names: For each a name, kind/name, distribution/name, a kind, or a module that offers
            components and need not be installed.

    Raises:
        PluginError: If there is no component and no module of a name.
    """
    from invem.config import KINDS, Catalog

    catalog = Catalog.load()
    installed = list(_offered(catalog))
    found: list[Component] = []
    for name in names:
        first, _, bare = name.rpartition("/")
        if name in KINDS:
            matches = [c for c in installed if c.kind == name]
        else:
            named = [c for c in installed if c.name == bare]
            matches = [c for c in named if first in ("", c.kind, c.distribution)]
        found += matches or _in_module(name, [c.name for c in installed])
    return found


def _offered(catalog: "Catalog") -> "Iterator[Component]":
    """Yields every component of a catalogue, kind by kind."""
    for by_name in catalog.offers.values():
        for offers in by_name.values():
            yield from offers


def _in_module(name: str, known: list[str]) -> "list[Component]":
    """Returns the components that a module offers.

    Raises:
        PluginError: If there is no such module, or it offers none.
    """
    from importlib import import_module

    from invem.config import Catalog, Plugin

    catalog = Catalog()
    catalog.ask(lambda: import_module(name), Plugin(name, name, "?"))
    found = list(_offered(catalog))
    if not found:
        # Why an import failed helps only where the name can be one of a module.
        is_module = name.replace("_", "").isalnum() and name not in known
        why = "; ".join(catalog.problems) if is_module else ""
        message = f"there is no component and no module '{name}'{suggest(name, known)} {why}"
        raise PluginError(message.rstrip())
    return found


def ls(
    kind: Annotated[str | None, typer.Argument(help="operators, samplers, ...")] = None,
    as_json: AsJson = False,
) -> None:
    """List the installed components."""
    from invem.config import KINDS, Catalog

    if kind is not None and kind not in KINDS:
        raise RecipeError(
            f"there is no kind '{kind}'{suggest(kind, KINDS)} (known: {', '.join(KINDS)})"
        )
    catalog = Catalog.load()
    print_warnings(catalog.problems)
    rows = [
        {**_origin(component), "summary": component.summary}
        for k in KINDS
        if kind in (None, k)
        for name in sorted(catalog.offers[k])
        for component in catalog.offers[k][name]
    ]
    if as_json:
        print_data(rows, True)
        return
    names = max(len(row["name"]) for row in rows) if rows else 0
    for row in rows:
        _say_wrapped(f"{row['kind']:<11} {row['name']:<{names}}  ", row["summary"])


def _say_wrapped(head: str, text: str) -> None:
    """Prints a text beside its head; further lines are indented as far as leaves room for words."""
    width = max(shutil.get_terminal_size((_WIDTH, 24)).columns, _NARROW)
    indent = len(head) if len(head) + _NARROW <= width else 4
    say(
        textwrap.fill(
            escaped(text),
            width,
            initial_indent=head,
            subsequent_indent=" " * indent,
            break_on_hyphens=False,
        )
    )


def _origin(component: "Component") -> dict[str, str]:
    return {
        "kind": component.kind,
        "name": component.name,
        "distribution": component.distribution,
        "version": component.version,
    }


def info(
    name: Annotated[str, typer.Argument(help="A component, as `invem ls` lists it.")],
    as_json: AsJson = False,
) -> None:
    """Describe a component and its options."""
    from invem.config import Catalog

    installed = list(_offered(Catalog.load()))
    rows = [_described(component) for component in installed if component.name == name]
    if not rows:
        hint = suggest(name, [component.name for component in installed])
        raise PluginError(f"there is no component '{name}'{hint}")
    if as_json:
        print_data(rows, True)
        return
    for row in rows:
        origin = f"{row['distribution']} {row['version']}"
        say(f"{row['kind']}: {row['name']} ({origin})\n\n{row['doc']}\n")
        for option in row["options"]:
            default = f"(default {option['written']})" if option["default"] else "(required)"
            _say_wrapped(f"  {option['name']}: ", f"{option['takes']} {default}")


def _described(component: "Component") -> dict[str, Any]:
    """Returns a component with its options and its documentation as plain data."""
    import inspect

    from invem.cli.words import default_words, type_words
    from invem.config import options_of

    factory = component.load()
    options = [
        {
            "name": option.name,
            "type": inspect.formatannotation(option.annotation),
            "takes": type_words(option.annotation),
            "default": None if option.default is option.empty else repr(option.default),
            "written": None if option.default is option.empty else default_words(option.default),
        }
        for option in options_of(factory).values()
    ]
    return {**_origin(component), "options": options, "doc": inspect.getdoc(factory) or ""}


def list_plugins(as_json: AsJson = False) -> None:
    """List the plugins that were asked: what each offers, how long its import took, and what is
    wrong with it."""
    from dataclasses import asdict

    from rich.table import Table

    from invem.config import Catalog

    rows = [asdict(found) for found in Catalog.load().plugins]
    if as_json:
        print_data(rows, True)
        return
    table = Table("distribution", "version", "plugin", "components", "import", "status")
    for row in rows:
        table.add_row(
            row["distribution"],
            row["version"],
            row["name"],
            ", ".join(row["components"]),
            f"{1000 * row['seconds']:.0f} ms",
            "; ".join(row["errors"]) or "ok",
        )
    print_table(table)


def new_plugin(
    name: Annotated[str, typer.Argument(help="The component's name in a recipe, in kebab-case.")],
    kind: Annotated[str, typer.Option("--kind", help=f"One of: {', '.join(_SINGULAR)}.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="The folder; invem-NAME if left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a small distribution with one component, complete with its test."""
    from invem import scaffold

    folder = out or Path(f"invem-{name}")
    files = [str(path) for path in scaffold.write(name, kind, folder)]
    hint = f"pip install -e '{folder}[test]' && pytest {folder}"
    print_data({"files": files, "next": hint}, as_json)


def check_plugins(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME|KIND|MODULE",
            help="A component, a kind, or a module that is not installed.",
        ),
    ],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
    large: Annotated[
        bool, typer.Option("--large", help="Operators on images of 28 and 32 pixels (slow).")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run the contracts on components and print what was measured; exit code 1 if one fails."""
    found = find_components(names)
    rows = [row for component in found for row in _checked(component, len(found) == 1, large)]
    if as_json:
        print_data(rows, True)
    elif markdown:
        say("| component | contract | result | measured | at most |\n|---|---|---|---:|---:|")
        for row in rows:
            say("| " + " | ".join(_cells(row)) + " |")
    else:
        from rich.table import Table

        table = Table("component", "contract", "result", "measured", "at most", "where")
        for row in rows:
            table.add_row(*_cells(row), row["detail"] if row["passed"] is False else "")
        print_table(table)
    if any(row["passed"] is False for row in rows):
        raise typer.Exit(1)


def _checked(component: "Component", alone: bool, large: bool) -> list[dict[str, Any]]:
    """Runs the contracts on one component.

    One that cannot be checked is left out with a line to stderr, unless it was asked for alone.
    """
    from invem import testing

    label = f"{component.kind}/{component.name}"
    if component.kind not in testing.KINDS and not alone:
        tell(f"{label}: left out: {component.kind} have no contracts")
        return []
    try:
        results = testing.check(component.kind, component.load(), large=large)
    except MissingExtra as error:
        if alone:
            raise
        tell(f"{label}: left out: {error}")
        return []
    origin = {"kind": component.kind, "name": component.name}
    return [{**origin, **result._asdict()} for result in results]


def _cells(row: dict[str, Any]) -> list[str]:
    label = f"{row['kind']}/{row['name']}"
    return [label, row["contract"], _verdict(row), _number(row["value"]), _number(row["tolerance"])]


def _verdict(row: dict[str, Any]) -> str:
    if row["passed"] is None:
        return ""
    if not row["passed"]:
        return "FAILS"
    return "reported" if row["tolerance"] is None else "holds"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1e}" if value and abs(value) < 0.01 else f"{value:.3g}"
