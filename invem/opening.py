"""What the Python door reads before it plans: recipes, what a run keeps of its data, plugins."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from invem.config import Catalog, Changes, Loaded, RecipeLike, load_any
from invem.errors import DataError, RecipeError
from invem.planning.plan import Facts, Plan
from invem.storage.directory import RunDirectory

__all__ = ["check_versions", "facts_of", "installed", "read_recipe", "without_device"]


def read_recipe(
    recipe: RecipeLike, changes: Changes = (), smoke: bool = False, device: str | None = None
) -> Loaded:
    """Reads and checks a recipe, as `load_any` does; a run directory is told from a recipe."""
    if isinstance(recipe, str | Path) and RunDirectory(Path(recipe).expanduser()).begun:
        raise RecipeError(
            f"{recipe}: it is a run, not a recipe; go on with it: invem resume {recipe}"
            " (invem.open in Python)"
        )
    return load_any(recipe, changes, smoke, device)


def facts_of(directory: RunDirectory) -> Facts:
    """Returns what a run keeps of its data set."""
    about = directory.description()
    data = about.get("data")
    if data is None:
        path = directory.json_file("run")
        raise DataError(f"{path}: damaged: data is missing; begin a new run with its recipe")
    prior = None if data["prior"] is None else tuple(data["prior"])
    sizes = data["whole_train"], data["whole_test"]
    digests = data.get("digests", {})
    shape, limits = tuple(data["shape"]), tuple(data["range"])
    return Facts(shape, limits, *sizes, prior, digests, data.get("units"))


def installed() -> Catalog:
    """Returns the components of the installed plugins, and warns of those that are broken."""
    catalog = Catalog.load()
    for problem in catalog.problems:
        warnings.warn(problem, stacklevel=3)
    return catalog


def without_device(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a recipe without the device: a run may go on on another."""
    compute = {key: value for key, value in resolved["compute"].items() if key != "device"}
    return {**resolved, "compute": compute}


def check_versions(directory: RunDirectory, plan: Plan) -> None:
    """Refuses to go on with a run with components of other versions than it was begun with.

    Raises:
        RecipeError: If some are.
    """
    before = directory.description().get("components", [])
    used = {(row["kind"], row["name"]) for row in plan.components}
    changed = [
        row for row in before if row not in plan.components and (row["kind"], row["name"]) in used
    ]
    if changed:
        was = ", ".join(
            f"{row['name']} of {row['distribution']} {row['version']}" for row in changed
        )
        raise RecipeError(
            f"{directory.path}: it was begun with {was}; go back to that, or add --force"
            " (force=True in Python)"
        )
