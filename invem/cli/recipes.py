"""Commands on recipes: identify, show; and the plan that other commands begin with."""

from pathlib import Path
from typing import TYPE_CHECKING

from invem.cli.app import AsJson, Overrides, RecipePath, Smoke
from invem.cli.output import print_data, print_warnings, say

if TYPE_CHECKING:
    from invem.config import Catalog
    from invem.planning.plan import Plan

__all__ = ["identify", "installed", "make_plan", "show"]


def installed() -> "Catalog":
    """Returns the catalogue of components, and warns of plugins that could not be used."""
    from invem.config import Catalog

    catalog = Catalog.load()
    print_warnings(catalog.problems)
    return catalog


def make_plan(
    recipe: Path,
    overrides: list[str] | None = None,
    smoke: bool = False,
    device: str | None = None,
) -> "Plan":
    """Checks a recipe and returns its plan; prints the warnings. Raises as `invem.plan` does."""
    from invem import door

    made = door.plan(recipe, overrides or (), smoke=smoke, device=device, catalog=installed())
    print_warnings(made.warnings)
    return made


def identify(
    recipe: RecipePath, overrides: Overrides = None, smoke: Smoke = False, as_json: AsJson = False
) -> None:
    """Say what the observations of a recipe can tell of its signals, what is hidden, and how many
    clean images would help."""
    from invem import analysis

    found = make_plan(recipe, overrides, smoke).identifiability()
    if as_json:
        print_data(analysis.describe(found), True)
    else:
        say("\n".join(analysis.lines(found)))


def show(
    recipe: RecipePath, overrides: Overrides = None, smoke: Smoke = False, as_json: AsJson = False
) -> None:
    """Print a recipe with every default written out."""
    from invem.opening import read_recipe
    from invem.planning.make import written_out

    loaded = read_recipe(recipe, overrides or (), smoke)
    print_data(written_out(loaded, installed()), as_json)
