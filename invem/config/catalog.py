"""The catalogue: the components that the installed plugins offer, by kind and name."""

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
from packaging.utils import canonicalize_name

from invem import hookspecs
from invem.config.loading import named_if_slow
from invem.config.settings import settings_unchanged
from invem.errors import PluginError, RecipeError, suggest

__all__ = ["KINDS", "Catalog", "Component", "Plugin", "one_line"]

KINDS = tuple(hookspecs.HOOKS)


@dataclass(frozen=True)
class Component:
    """A component as a plugin offers it, not imported yet.

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
            if module in sys.modules:  # a plan loads its components many times
                factory = getattr(sys.modules[module], attribute)
            else:
                with named_if_slow(self.label), settings_unchanged(f"{self.label}, while imported"):
                    factory = getattr(import_module(module), attribute)
        except PluginError:
            raise
        except (Exception, SystemExit) as error:
            raise PluginError(f"{self.label} cannot be imported: {one_line(error)}") from error
        if not callable(factory):
            raise PluginError(f"{self.label}: {self.target} is not callable")
        return factory  # type: ignore[no-any-return]

    @property
    def label(self) -> str:
        """The component in words: kind, name and distribution."""
        return f"{self.kind[:-1]} '{self.name}' of {self.distribution}"

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
    """An entry point, or a file of a plugins directory, and the outcome of asking it.

    Attributes:
        name: The name of the entry point, or of the file.
        distribution: The distribution, or the path of the file.
        version: The version of the distribution, or the digest of the file.
        hooks: The hooks that it implements.
        components: Its components, as kind/name.
        seconds: Seconds that its import took.
        errors: What is wrong with it, one line each.
    """

    name: str
    distribution: str
    version: str
    hooks: list[str] = field(default_factory=list)
    components: list[str] = field(default_factory=list)
    seconds: float = 0.0
    errors: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        """The plugin in words, with its distribution."""
        return f"plugin {self.name} (distribution {self.distribution})"


@dataclass
class Catalog:
    """The components that plugins offer, and what went wrong when they were asked.

    Attributes:
        offers: Components by kind and name; more than one where two distributions use one name.
        plugins: Every plugin that was asked.
        absent: Which distributions of INVEM_PLUGINS are not installed, or offer nothing.
    """

    offers: dict[str, dict[str, list[Component]]] = field(
        default_factory=lambda: {kind: {} for kind in KINDS}
    )
    plugins: list[Plugin] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """What is wrong with the plugins, one line each."""
        wrong = [
            f"plugin {plugin.distribution} ({plugin.name}): {error}"
            for plugin in self.plugins
            for error in plugin.errors
        ]
        return [f"plugin {problem}" for problem in self.absent] + wrong

    @classmethod
    def load(cls, entry_points: Iterable[metadata.EntryPoint] | None = None) -> "Catalog":
        """Asks the plugins of the entry-point group "invem".

        Each is asked by itself: one that fails is reported and does not disturb the others. Two
        environment variables choose the plugins. INVEM_PLUGINS names the distributions that are
        asked besides invem itself, separated by commas (empty: none; unset: all).
        INVEM_PLUGINS_DIR is a folder whose Python files are plugins too.

        Raises:
            RecipeError: If the folder does not exist.
        """
        catalog = cls()
        if entry_points is None:
            entry_points = metadata.entry_points(group="invem")
        points = list(entry_points)
        chosen = _chosen()
        offering = {canonicalize_name(p.dist.name) for p in points if p.dist is not None}
        catalog.absent += [
            f"'{word}' of INVEM_PLUGINS is {_why_absent(word)}"
            for name, word in (chosen or {}).items()
            if name not in {*offering, "invem"}
        ]
        for point in sorted(points, key=lambda p: (p.dist.name if p.dist else "", p.name)):
            name, version = (point.dist.name, point.dist.version) if point.dist else ("?", "?")
            if chosen is None or canonicalize_name(name) in {*chosen, "invem"}:
                catalog.ask(point.load, Plugin(point.name, name, version))
        for path in _files():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
            catalog.ask(functools.partial(_import, path), Plugin(path.stem, str(path), digest))
        return catalog

    def ask(self, load: Callable[[], object], plugin: Plugin) -> None:
        """Imports one plugin and adds its components.

        Args:
            load: Imports the plugin and returns its module.
            plugin: Describes the plugin; what it offers and what is wrong with it are added.
        """
        self.plugins.append(plugin)
        begun = time.perf_counter()
        try:
            with (
                contextlib.redirect_stdout(io.StringIO()),
                named_if_slow(plugin.label),
                settings_unchanged("while it was imported"),
            ):
                module = load()
        except (Exception, SystemExit) as error:
            ours = isinstance(error, PluginError)
            plugin.errors.append(str(error) if ours else one_line(error))
            return
        finally:
            plugin.seconds = time.perf_counter() - begun
        manager = pluggy.PluginManager("invem")
        manager.add_hookspecs(hookspecs)
        try:
            manager.register(module)
        except (pluggy.PluginValidationError, ValueError) as error:
            plugin.errors.append(one_line(error))
            return
        for name, caller in vars(manager.hook).items():
            if not name.startswith("_") and not caller.has_spec():
                near = suggest(name, [f"invem_{kind}" for kind in KINDS])
                plugin.errors.append(f"there is no hook {name}{near}")
        for kind in KINDS:
            for implementation in getattr(manager.hook, f"invem_{kind}").get_hookimpls():
                self._add(kind, implementation.function, plugin)

    def _add(self, kind: str, hook: Callable[[], object], plugin: Plugin) -> None:
        """Calls one hook of a plugin and adds the components that it returns."""
        plugin.hooks.append(f"invem_{kind}")
        try:
            with named_if_slow(plugin.label), settings_unchanged("in its hook"):
                offered = hook()
        except (Exception, SystemExit) as error:
            plugin.errors.append(f"invem_{kind}: {one_line(error)}")
            return
        if not isinstance(offered, Mapping) or not all(
            isinstance(name, str) and _is_target(target) for name, target in offered.items()
        ):
            plugin.errors.append(f"invem_{kind} must return {{name: factory}}")
            return
        for name, target in offered.items():
            plugin.components.append(f"{kind}/{name}")
            component = Component(kind, name, target, plugin.distribution, plugin.version)
            self.offers[kind].setdefault(name, []).append(component)

    def find(self, kind: str, name: str) -> Component:
        """Returns the component with a name.

        Where two distributions offer the name, ``distribution/name`` chooses one.

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


def _chosen() -> dict[str, str] | None:
    """Returns the distributions that INVEM_PLUGINS names, as written, by normalised name; None for
    all."""
    chosen = os.environ.get("INVEM_PLUGINS")
    if chosen is None:
        return None
    words = [word.strip() for word in chosen.split(",")]
    return {canonicalize_name(word): word for word in words if word}


def _why_absent(distribution: str) -> str:
    try:
        metadata.distribution(distribution)
    except (metadata.PackageNotFoundError, ValueError):
        return "not installed"
    return "installed, but offers no component"


def _files() -> list[Path]:
    folder = os.environ.get("INVEM_PLUGINS_DIR")
    if not folder:
        return []
    if not Path(folder).is_dir():
        raise RecipeError(f"{folder}: the plugins directory is not a folder")
    return sorted(Path(folder).glob("*.py"))


def _is_target(target: object) -> bool:
    return callable(target) or (isinstance(target, str) and ":" in target)


def _import(path: Path) -> object:
    name = f"invem_plugin_{path.stem}"
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def one_line(error: BaseException) -> str:
    """Returns an exception's class and message on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
