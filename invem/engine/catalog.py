"""The catalogue of components: what every installed plugin offers, by kind and name."""

import ast
import contextlib
import inspect
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pluggy

from invem import hookspecs
from invem.errors import PluginError, RecipeError, suggest

__all__ = ["KINDS", "Catalog", "Component", "options_of", "parse_options"]

KINDS = tuple(hookspecs.HOOKS)


@dataclass(frozen=True)
class Component:
    """One component as a plugin offers it, not imported yet.

    Attributes:
        kind: One of `KINDS`.
        name: The name in a recipe.
        target: The factory, or "module:attribute".
        distribution: The distribution that offers it.
        version: The version of that distribution.
    """

    kind: str
    name: str
    target: str | Callable[..., Any]
    distribution: str
    version: str

    def load(self) -> Callable[..., Any]:
        """Imports and returns the factory.

        Raises:
            PluginError: If it cannot be imported or called.
        """
        if not isinstance(self.target, str):
            return self.target
        module, _, attribute = self.target.partition(":")
        try:
            factory = getattr(import_module(module), attribute)
        except (Exception, SystemExit) as error:
            raise PluginError(
                f"{self.kind[:-1]} '{self.name}' of {self.distribution} cannot be imported: {_line(error)}"
            ) from error
        if not callable(factory):
            raise PluginError(f"{self.kind[:-1]} '{self.name}' of {self.distribution}: {self.target} is not callable")
        return factory  # type: ignore[no-any-return]

    @property
    def summary(self) -> str:
        """The first line of the docstring, read from the source without importing it."""
        if not isinstance(self.target, str):
            return (inspect.getdoc(self.target) or "").partition("\n")[0]
        module, _, attribute = self.target.partition(":")
        try:
            spec = find_spec(module)
            source = Path(spec.origin).read_text("utf-8") if spec and spec.origin else ""
        except (ImportError, OSError, ValueError):
            return ""
        tree = ast.parse(source)
        nodes = (n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == attribute)
        text = ast.get_docstring(next(nodes, tree)) or ""
        return " ".join(text.partition("\n\n")[0].split())


@dataclass
class Catalog:
    """Every component that is offered, and what went wrong while asking.

    Attributes:
        offers: Components by kind and name; more than one where two distributions use one name.
        problems: One line for each plugin that could not be used.
    """

    offers: dict[str, dict[str, list[Component]]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    problems: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, entry_points: Iterable[metadata.EntryPoint] | None = None) -> "Catalog":
        """Asks the plugins of the entry-point group "invem", each by itself: one that fails is reported and harms no other."""
        catalog = cls()
        points = metadata.entry_points(group="invem") if entry_points is None else entry_points
        for point in sorted(points, key=lambda p: (p.dist.name if p.dist else "", p.name)):
            name = point.dist.name if point.dist else "?"
            version = point.dist.version if point.dist else "?"
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    plugin = point.load()
            except (Exception, SystemExit) as error:
                catalog.problems.append(f"plugin {name} ({point.value}): {_line(error)}")
                continue
            catalog.ask(plugin, name, version)
        return catalog

    def ask(self, plugin: object, distribution: str, version: str) -> None:
        """Adds what one plugin offers."""
        manager = pluggy.PluginManager("invem")
        manager.add_hookspecs(hookspecs)
        try:
            manager.register(plugin)
        except (pluggy.PluginValidationError, ValueError) as error:
            self.problems.append(f"plugin {distribution}: {_line(error)}")
            return
        for hook in [n for n, c in vars(manager.hook).items() if not n.startswith("_") and not c.has_spec()]:
            hint = suggest(hook, [f"invem_{kind}" for kind in KINDS])
            self.problems.append(f"plugin {distribution}: there is no hook {hook}{hint}")
        for kind in KINDS:
            for implementation in getattr(manager.hook, f"invem_{kind}").get_hookimpls():
                try:
                    offered = implementation.function()
                except (Exception, SystemExit) as error:
                    self.problems.append(f"plugin {distribution}: invem_{kind}: {_line(error)}")
                    continue
                if not isinstance(offered, Mapping) or not all(
                    isinstance(n, str) and (callable(t) or (isinstance(t, str) and ":" in t)) for n, t in offered.items()
                ):
                    self.problems.append(f"plugin {distribution}: invem_{kind} must return {{name: factory}}")
                    continue
                for name, target in offered.items():
                    self.offers[kind].setdefault(name, []).append(Component(kind, name, target, distribution, version))

    def find(self, kind: str, name: str) -> Component:
        """Returns the component of a name, or of ``distribution/name`` where two distributions offer it.

        Raises:
            RecipeError: If there is none, or more than one.
            PluginError: If there is none, and a plugin that could not be used may have offered it.
        """
        distribution, slash, bare = name.rpartition("/")
        offers = self.offers[kind].get(bare if slash else name, [])
        offers = [o for o in offers if not slash or o.distribution == distribution]
        if not offers:
            allowed = sorted(self.offers[kind])
            message = f"there is no {kind[:-1]} '{name}'{suggest(name, allowed)} (known: {', '.join(allowed)})"
            if self.problems:
                raise PluginError(f"{message} ({'; '.join(self.problems)})")
            raise RecipeError(message)
        if len(offers) > 1:
            whole = " and ".join(f"'{o.distribution}/{o.name}'" for o in offers)
            raise RecipeError(f"the {kind[:-1]} '{name}' is offered twice: write {whole.replace(' and ', ' or ')}")
        return offers[0]


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def options_of(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Returns the options of a factory: its keyword-only parameters."""
    parameters = inspect.signature(factory, eval_str=True).parameters.values()
    return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}


def parse_options(
    catalog: Catalog, component: Component, given: Mapping[str, Any], fail: Callable[[tuple[str | int, ...], bool, str], None]
) -> dict[str, Any]:
    """Checks options strictly against the annotations of a factory and returns every option with its value.

    Args:
        catalog: Where the options that are components themselves (a schedule) are found.
        component: What the options belong to.
        given: The options as plain data.
        fail: Called for each problem with the path below the component, whether the key is at fault, and the message.
    """
    from pydantic import ConfigDict, ValidationError, create_model

    from invem.engine import recipe
    from invem.schedule import Schedule

    parameters = options_of(component.load())
    nested: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    for name, parameter in parameters.items():
        if isinstance(parameter.annotation, type) and issubclass(parameter.annotation, Schedule):
            fields[name] = (Any, parameter.default)
            if name in given:
                nested[name] = _schedule(catalog, given[name], name, fail)
        else:
            annotation = Any if parameter.annotation is parameter.empty else parameter.annotation
            fields[name] = (annotation, ... if parameter.default is parameter.empty else parameter.default)
    model = create_model(
        component.name,
        __config__=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True),
        **fields,
    )
    try:
        values = model.model_validate(dict(given))
    except ValidationError as error:
        for path, key, message in recipe.explain(error, dict(given), lambda _: list(parameters)):
            fail(path, key, message)
        return {}
    return {name: nested[name] if name in nested else getattr(values, name) for name in parameters}


def _schedule(catalog: Catalog, value: Any, name: str, fail: Callable[[tuple[str | int, ...], bool, str], None]) -> Any:
    part = {"name": value} if isinstance(value, str) else value
    if not isinstance(part, dict) or not isinstance(part.get("name"), str):
        fail((name,), False, "a schedule is a name, or a mapping with a name")
        return None
    try:
        component = catalog.find("schedules", part["name"])
    except (PluginError, RecipeError) as error:
        fail((name,), False, str(error))
        return None
    given = {k: v for k, v in part.items() if k != "name"}
    options = parse_options(catalog, component, given, lambda path, key, text: fail((name, *path), key, text))
    if set(options) >= set(options_of(component.load())):
        try:
            return component.load()(**options)
        except (RecipeError, ValueError) as error:
            fail((name,), False, str(error))
    return None
