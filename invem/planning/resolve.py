"""The resolved recipe: plain data with every default written out, those of components too."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import partial
from typing import Any

from invem import config as recipes
from invem.config import Catalog, Loaded, Part, Recipe
from invem.config.yaml import Path
from invem.errors import PluginError, RecipeError
from invem.planning.build import Builder
from invem.schedule import Schedule

__all__ = ["resolve", "resolved"]


def resolve(loaded: Loaded, catalog: Catalog) -> dict[str, Any]:
    """Returns a recipe as plain data with every default written out.

    Raises:
        RecipeError: Every problem with a name or an option.
        PluginError: If the only problem is a plugin that is missing or broken.
    """
    recipe, builder = loaded.recipe, Builder(loaded, catalog)
    for kind, part, path in _parts(recipe):
        builder.part(kind, part, path)
    for i, phase in enumerate(recipe.phases):
        if phase.fit is not None:
            place: Path = ("phases", i, "fit")
            options = phase.fit.options
            builder.factory("objectives", phase.fit.objective, options, place, named=False)
    builder.done()
    return resolved(recipe, builder)


def resolved(recipe: Recipe, builder: Builder) -> dict[str, Any]:
    """Returns the same from a builder that has built every component of the recipe."""
    names: dict[Any, str] = {}
    for name in builder.catalog.offers["schedules"]:
        with contextlib.suppress(PluginError, RecipeError):
            names[builder.catalog.find("schedules", name).load()] = name
    whole = recipes.dump(recipe)
    for path, values in builder.values.items():
        place: Any = whole
        for step in path:
            place = place[step]
        if isinstance(place, dict):
            _write_out(place, values, names)
    return whole


def _parts(recipe: Recipe) -> Iterator[tuple[str, Part, Path]]:
    """Yields kind, part and place of every component but the objectives."""
    sources = (
        ("data", "datasets"),
        ("observations", "datasets"),
        ("operator", "operators"),
        ("noise", "noises"),
    )
    for place, kind in sources:
        if (part := getattr(recipe, place)) is not None:
            yield kind, part, (place,)
    yield "networks", recipe.network, ("network",)
    for i, phase in enumerate(recipe.phases):
        if phase.sampler is not None:
            yield "samplers", phase.sampler, ("phases", i, "sampler")
        if phase.network is not None:
            yield "networks", phase.network, ("phases", i, "network")
        yield "stops", phase.stop, ("phases", i, "stop")
    if recipe.evaluate.sampler is not None:
        yield "samplers", recipe.evaluate.sampler, ("evaluate", "sampler")
    for i, part in enumerate(recipe.evaluate.metrics or ()):
        yield "metrics", part, ("evaluate", "metrics", i)


def _write_out(place: dict[str, Any], values: Mapping[str, Any], names: Mapping[Any, str]) -> None:
    """Writes the value of every option of a component into the plain data that name the
    component."""
    for option, value in values.items():
        if _is_plain(value):
            place[option] = value
        elif isinstance(value, Schedule) and type(value) in names:
            schedule: Any = value
            options = {f.name: getattr(value, f.name) for f in fields(schedule)}
            place[option] = {"name": names[type(value)], **options}
        elif isinstance(value, list) and all(isinstance(part, partial) for part in value):
            place[option] = [
                {"name": part} if isinstance(part, str) else dict(part) for part in place[option]
            ]
            for part, law in zip(place[option], value, strict=True):
                _write_out(part, law.keywords, names)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(_is_plain(item) for item in value.values())
    return value is None or isinstance(value, bool | int | float | str)
