"""The catalogue of components: what every installed plugin offers, by kind and name."""

import ast
import contextlib
import functools
import hashlib
import inspect
import io
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module, metadata
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pluggy

from invem import hookspecs
from invem.errors import PluginError, RecipeError, suggest

__all__ = ["KINDS", "Catalog", "Component", "Plugin", "options_of", "parse_options"]

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
                f"{self.kind[:-1]} '{self.name}' of {self.distribution} cannot be imported:"
                f" {_line(error)}"
            ) from error
        if not callable(factory):
            raise PluginError(
                f"{self.kind[:-1]} '{self.name}' of {self.distribution}: {self.target} is not"
                " callable"
            )
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
            tree = ast.parse(source)
        except (ImportError, OSError, ValueError, SyntaxError):
            return ""
        nodes = (
            n
            for n in tree.body
            if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == attribute
        )
        text = ast.get_docstring(next(nodes, tree)) or ""
        return " ".join(text.partition("\n\n")[0].split())


@dataclass
class Plugin:
    """One entry point, or one file of a plugins directory, and what became of it.

    Attributes:
        name: The name of the entry point, or of the file.
        distribution: The distribution, or the path of the file.
        version: The version of the distribution, or the digest of the file.
        hooks: The hooks that it implements.
        components: What it offers, as kind/name.
        seconds: How long its import took.
        errors: What was wrong with it, one line each.
    """

    name: str
    distribution: str
    version: str
    hooks: list[str] = field(default_factory=list)
    components: list[str] = field(default_factory=list)
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)


@dataclass
class Catalog:
    """Every component that is offered, and what went wrong while asking.

    Attributes:
        offers: Components by kind and name; more than one where two distributions use one name.
        plugins: Every plugin that was asked.
    """

    offers: dict[str, dict[str, list[Component]]] = field(
        default_factory=lambda: {kind: {} for kind in KINDS}
    )
    plugins: list[Plugin] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """One line for each thing that was wrong with a plugin."""
        return [
            f"plugin {plugin.distribution} ({plugin.name}): {error}"
            for plugin in self.plugins
            for error in plugin.errors
        ]

    @classmethod
    def load(cls, entry_points: Iterable[metadata.EntryPoint] | None = None) -> "Catalog":
        """Asks the plugins of the entry-point group "invem", each by itself: one that fails is
        reported and harms no other.

        The environment chooses: INVEM_PLUGINS names the distributions that are asked besides invem
        itself, separated by commas (empty is none; unset is all); INVEM_PLUGINS_DIR is a folder
        whose Python files are plugins too.
        """
        catalog = cls()
        points = metadata.entry_points(group="invem") if entry_points is None else entry_points
        chosen = os.environ.get("INVEM_PLUGINS")
        wanted = (
            None if chosen is None else {word.strip() for word in chosen.split(",")} | {"invem"}
        )
        for point in sorted(points, key=lambda p: (p.dist.name if p.dist else "", p.name)):
            name, version = (point.dist.name, point.dist.version) if point.dist else ("?", "?")
            if wanted is None or name in wanted:
                catalog.ask(point.load, Plugin(point.name, name, version))
        folder = os.environ.get("INVEM_PLUGINS_DIR")
        if folder:
            if not Path(folder).is_dir():
                raise RecipeError(f"{folder}: the plugins directory is not a folder")
            for path in sorted(Path(folder).glob("*.py")):
                digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
                catalog.ask(lambda path=path: _import(path), Plugin(path.stem, str(path), digest))  # type: ignore[misc]
        return catalog

    def ask(self, load: Callable[[], object], plugin: Plugin) -> None:
        """Imports one plugin and adds what it offers."""
        self.plugins.append(plugin)
        begun = time.perf_counter()
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                module = load()
        except (Exception, SystemExit) as error:
            plugin.errors.append(_line(error))
            return
        finally:
            plugin.seconds = time.perf_counter() - begun
        manager = pluggy.PluginManager("invem")
        manager.add_hookspecs(hookspecs)
        try:
            manager.register(module)
        except (pluggy.PluginValidationError, ValueError) as error:
            plugin.errors.append(_line(error))
            return
        for hook in [
            n for n, c in vars(manager.hook).items() if not n.startswith("_") and not c.has_spec()
        ]:
            plugin.errors.append(
                f"there is no hook {hook}{suggest(hook, [f'invem_{kind}' for kind in KINDS])}"
            )
        for kind in KINDS:
            for implementation in getattr(manager.hook, f"invem_{kind}").get_hookimpls():
                plugin.hooks.append(f"invem_{kind}")
                try:
                    offered = implementation.function()
                except (Exception, SystemExit) as error:
                    plugin.errors.append(f"invem_{kind}: {_line(error)}")
                    continue
                if not isinstance(offered, Mapping) or not all(
                    isinstance(n, str) and (callable(t) or (isinstance(t, str) and ":" in t))
                    for n, t in offered.items()
                ):
                    plugin.errors.append(f"invem_{kind} must return {{name: factory}}")
                    continue
                for name, target in offered.items():
                    plugin.components.append(f"{kind}/{name}")
                    component = Component(kind, name, target, plugin.distribution, plugin.version)
                    self.offers[kind].setdefault(name, []).append(component)

    def find(self, kind: str, name: str) -> Component:
        """Returns the component of a name, or of ``distribution/name`` where two distributions
        offer it.

        Raises:
            RecipeError: If there is none, or more than one.
            PluginError: If there is none, and a plugin that could not be used may have offered it.
        """
        distribution, slash, bare = name.rpartition("/")
        offers = self.offers[kind].get(bare if slash else name, [])
        offers = [o for o in offers if not slash or o.distribution == distribution]
        if not offers:
            allowed = sorted(self.offers[kind])
            message = (
                f"there is no {kind[:-1]} '{name}'{suggest(name, allowed)} (known:"
                f" {', '.join(allowed)})"
            )
            if self.problems:
                raise PluginError(f"{message} ({'; '.join(self.problems)})")
            raise RecipeError(message)
        if len(offers) > 1:
            whole = " and ".join(f"'{o.distribution}/{o.name}'" for o in offers)
            raise RecipeError(
                f"the {kind[:-1]} '{name}' is offered twice: write {whole.replace(' and ', ' or ')}"
            )
        return offers[0]


def _import(path: Path) -> object:
    name = f"invem_plugin_{path.stem}"
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def options_of(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Returns the options of a factory: its keyword-only parameters.

    Raises:
        PluginError: If it has no signature, annotations that name nothing, or an option `name`,
            which is what a recipe calls it by.
    """
    try:
        parameters = inspect.signature(factory, eval_str=True).parameters.values()
    except (TypeError, ValueError, NameError) as error:
        raise PluginError(
            f"{getattr(factory, '__qualname__', factory)}: its annotations cannot be read:"
            f" {_line(error)}"
        ) from error
    options = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    if "name" in options:
        raise PluginError(
            f"{getattr(factory, '__qualname__', factory)}: no option can be called `name`, by which"
            " a recipe names it"
        )
    return options


def parse_options(
    catalog: Catalog,
    component: Component,
    given: Mapping[str, Any],
    fail: Callable[[tuple[str | int, ...], bool, str], None],
) -> dict[str, Any]:
    """Checks options strictly against the annotations of a factory and returns every option with
    its value.

    Args:
        catalog: Where the options that are components themselves (a schedule) are found.
        component: What the options belong to.
        given: The options as plain data.
        fail: Called for each problem with the path below the component, whether the key is at
            fault, and the message.
    """
    from pydantic import ConfigDict, ValidationError, create_model

    from invem.config import recipe
    from invem.operator import OperatorLaw
    from invem.schedule import Schedule

    parameters = options_of(component.load())
    nested: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    for name, parameter in parameters.items():
        if parameter.annotation == list[OperatorLaw]:
            fields[name] = (
                list[Any],
                ... if parameter.default is parameter.empty else parameter.default,
            )
            if isinstance(given.get(name), list):
                nested[name] = [
                    _law(catalog, part, (name, i), fail) for i, part in enumerate(given[name])
                ]
        elif isinstance(parameter.annotation, type) and issubclass(parameter.annotation, Schedule):
            fields[name] = (Any, parameter.default)
            if name in given:
                nested[name] = _schedule(catalog, given[name], name, fail)
        else:
            annotation = Any if parameter.annotation is parameter.empty else parameter.annotation
            fields[name] = (
                annotation,
                ... if parameter.default is parameter.empty else parameter.default,
            )
    model = create_model(
        component.name,
        __config__=ConfigDict(
            strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True
        ),
        **fields,
    )
    try:
        values = model.model_validate(dict(given))
    except ValidationError as error:
        for path, key, message in recipe.explain(error, dict(given), lambda _: list(parameters)):
            fail(path, key, message)
        return {}
    return {name: nested[name] if name in nested else getattr(values, name) for name in parameters}


def _law(
    catalog: Catalog,
    value: Any,
    at: tuple[str | int, ...],
    fail: Callable[[tuple[str | int, ...], bool, str], None],
) -> Any:
    """Returns the law of an operator that is part of another, its options bound; None after a
    failure."""
    part = {"name": value} if isinstance(value, str) else value
    if not isinstance(part, dict) or not isinstance(part.get("name"), str):
        fail(at, False, "an operator is a name, or a mapping with a name")
        return None
    try:
        component = catalog.find("operators", part["name"])
        build = component.load()
    except (PluginError, RecipeError) as error:
        fail(at, False, str(error))
        return None
    given = {k: v for k, v in part.items() if k != "name"}
    options = parse_options(
        catalog, component, given, lambda path, key, text: fail((*at, *path), key, text)
    )
    return functools.partial(build, **options)


def _schedule(
    catalog: Catalog,
    value: Any,
    name: str,
    fail: Callable[[tuple[str | int, ...], bool, str], None],
) -> Any:
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
    options = parse_options(
        catalog, component, given, lambda path, key, text: fail((name, *path), key, text)
    )
    if set(options) >= set(options_of(component.load())):
        try:
            return component.load()(**options)
        except (RecipeError, ValueError) as error:
            fail((name,), False, str(error))
    return None
