"""Building components: each from its name and options, with every problem told at its place."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from invem import config as recipes
from invem.config import Catalog, Component, Loaded, Part, options_of, parse_options
from invem.config.settings import settings_unchanged
from invem.config.yaml import Path
from invem.errors import DataError, InvemError, PluginError, RecipeError
from invem.noise import NoiseModel
from invem.operator import Operator
from invem.planning.origin import Origins
from invem.sampler import PosteriorSampler

__all__ = ["Builder", "Make", "defaults", "factory_of", "listing"]

Make = Callable[..., Any]

_MADE: dict[str, type] = {
    "networks": nn.Module,
    "noises": NoiseModel,
    "operators": Operator,
    "samplers": PosteriorSampler,
}


class Builder:
    """Builds components, and collects what is wrong with them.

    Args:
        loaded: The recipe.
        catalog: The components.

    Attributes:
        problems: One line per problem, with its place in the recipe.
        components: Kind, name, distribution and version of every component that was asked for.
        origins: The modules of these components, to say which one an error comes from.
        values: Every option of each component with its value, by the place of the component.
    """

    def __init__(self, loaded: Loaded, catalog: Catalog) -> None:
        self.loaded, self.catalog = loaded, catalog
        self.problems: list[str] = []
        self.components: list[dict[str, str]] = []
        self.origins = Origins()
        self.values: dict[Path, dict[str, Any]] = {}
        self.missing = 0  # problems that are a plugin that is missing or broken

    def fail(self, path: Path, message: str, key: bool = False) -> None:
        """Adds a problem with the value, or the key, at a place."""
        self.problems.append(str(recipes.error(self.loaded, path, message, key)))

    def factory(
        self, kind: str, name: str, options: dict[str, Any], path: Path, named: bool = True
    ) -> Make | None:
        """Returns what builds a component with its options; None after a problem.

        Args:
            kind: The kind.
            name: The name in the recipe.
            options: The options as plain data.
            path: The place of the component.
            named: Whether the name stands under a key `name` of its own there.
        """
        try:
            component = self.catalog.find(kind, name)
            build = component.load()
            allowed = set(options_of(build))
            if kind == "objectives" and (taken := allowed & recipes.Fit.model_fields.keys()):
                raise PluginError(
                    f"objective '{name}' of {component.distribution}: {listing(taken)} is a key of"
                    " a fit, and cannot be an option"
                )
        except (PluginError, RecipeError) as error:
            self.missing += isinstance(error, PluginError)
            self.fail((*path, "name") if named else path, str(error))
            return None
        before = len(self.problems)
        values = parse_options(
            self.catalog,
            component,
            options,
            lambda p, k, text: self.fail((*path, *p), text, k),
            lambda p: self.loaded.places.folder((*path, *p)),
        )
        if len(self.problems) > before or set(values) != allowed:
            return None
        self.values[path] = values
        self._record(component, options)

        def make(*args: Any, **other: Any) -> Any:
            try:
                # The weights of a network are drawn from the global random state, which is kept by
                # those who ask for them.
                with settings_unchanged(component.label, random=kind != "networks"):
                    made = build(*args, **{**values, **other})
            except PluginError:
                raise
            except (ValueError, TypeError, RuntimeError, RecipeError, DataError) as error:
                raise recipes.error(self.loaded, path, str(error)) from error
            if not isinstance(made, _MADE.get(kind, object)):
                raise PluginError(
                    f"{component.label}: it returned a value of type {type(made).__name__}, not a"
                    f" {_MADE[kind].__name__}"
                )
            self.origins.add_built(component, made)
            return made

        return make

    def _record(self, component: Component, options: dict[str, Any]) -> None:
        """Adds a component, and the components among its options."""
        row = {
            "kind": component.kind,
            "name": component.name,
            "distribution": component.distribution,
            "version": component.version,
        }
        if row not in self.components:
            self.components.append(row)
            self.origins.add(component, component.load())
        for option, parameter in options_of(component.load()).items():
            place = recipes.component_place(parameter.annotation)
            if place is None or option not in options:
                continue
            for inner in options[option] if place.is_list else [options[option]]:
                given = {"name": inner} if isinstance(inner, str) else inner
                self._record(self.catalog.find(place.kind, given["name"]), given)

    def part(self, kind: str, part: Part, path: Path) -> Make | None:
        """Returns what builds the component at a place; None after a problem."""
        whole: Any = self.loaded.value
        for step in path:
            # A part that the recipe leaves out, or names by text alone, has no places of its own.
            there = isinstance(whole, list) or (isinstance(whole, dict) and step in whole)
            whole = whole[step] if there else ""
        named = not isinstance(whole, str)
        return self.factory(kind, part.name, part.options, path, named=named)

    def build(self, kind: str, part: Part, path: Path) -> Any:
        """Returns the component at a place; None after a problem."""
        make = self.part(kind, part, path)
        if make is None:
            return None
        try:
            return make()
        except InvemError as error:
            self.problems.append(str(error))
            return None

    def done(self) -> None:
        """Raises what was collected.

        Raises:
            RecipeError: Every problem that was found, one per line.
            PluginError: If every problem is a plugin that is missing or broken.
        """
        if self.problems:
            only = self.missing == len(self.problems)
            raise (PluginError if only else RecipeError)("\n".join(self.problems))


def listing(names: frozenset[str] | set[str]) -> str:
    """Returns names in order, separated by commas; "nothing" if there are none."""
    return ", ".join(sorted(names)) or "nothing"


def defaults(catalog: Catalog, kind: str) -> Iterator[tuple[str, Any]]:
    """Yields every component of a kind that can be built without options, by name.

    One that cannot be built is left out: it is named where it is asked for.
    """
    for name, offers in sorted(catalog.offers[kind].items()):
        if len(offers) == 1:
            try:
                made = offers[0].load()()
            except (Exception, SystemExit):
                continue
            yield name, made


def factory_of(catalog: Catalog, kind: str, part: Mapping[str, Any] | None) -> Make | None:
    """Returns the factory of a component that is plain data, with its options; None without one.

    Args:
        catalog: The components.
        kind: The kind.
        part: The name and the options, as a resolved recipe has them.

    Raises:
        RecipeError: If there is no such component, or an option is not one of its.
        PluginError: If it cannot be loaded.
    """
    if part is None:
        return None
    component, problems = catalog.find(kind, part["name"]), list[str]()
    options = parse_options(
        catalog,
        component,
        {key: value for key, value in part.items() if key != "name"},
        lambda at, key, text: problems.append(f"{'.'.join(map(str, at))}: {text}"),
    )
    if problems:
        raise RecipeError("; ".join(problems))
    build = component.load()
    return lambda *given: build(*given, **options)
