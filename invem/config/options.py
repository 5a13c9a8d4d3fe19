"""The options of a component: its keyword-only parameters, checked against their annotations."""

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import ConfigDict, ValidationError, create_model

from invem.config.catalog import Catalog, Component, one_line
from invem.config.messages import explain
from invem.errors import PluginError, RecipeError
from invem.hookspecs import IsPath

__all__ = ["component_place", "joined", "options_of", "parse_options"]

Fail = Callable[[tuple[str | int, ...], bool, str], None]
Folder = Callable[[tuple[str | int, ...]], str]


def _working_directory(_: tuple[str | int, ...]) -> str:
    return ""


def joined(folder: str, path: str) -> str:
    """Returns a path that was written in a file as an absolute one.

    Args:
        folder: The folder of the file; "" is the working directory.
        path: The path; `~` is the home directory.
    """
    return os.path.abspath(os.path.join(folder, os.path.expanduser(path)))


def options_of(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Returns the options of a factory: its keyword-only parameters.

    Raises:
        PluginError: If the factory has no signature, if its annotations cannot be evaluated, or if
            an option is called `name`, which is the key of the component's own name in a recipe.
    """
    called = getattr(factory, "__qualname__", factory)
    try:
        parameters = inspect.signature(factory, eval_str=True).parameters.values()
    except (TypeError, ValueError, NameError) as error:
        raise PluginError(f"{called}: its annotations cannot be read: {one_line(error)}") from error
    options = {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
    if "name" in options:
        raise PluginError(f"{called}: no option can be called `name`, by which a recipe names it")
    return options


def parse_options(
    catalog: Catalog,
    component: Component,
    given: Mapping[str, Any],
    fail: Fail,
    folder: Folder = _working_directory,
) -> dict[str, Any]:
    """Checks options strictly against the annotations of a factory.

    An option that is a component itself, such as a schedule, is given as a name or as a mapping
    with a name; its value is the component that is built, or its factory with its options bound.
    An option that is a `FilePath` becomes absolute.

    Args:
        catalog: Where the components among the options are found.
        component: What the options belong to.
        given: The options as plain data.
        fail: Called for each problem with the path below the component, whether the key (not the
            value) is wrong, and the message.
        folder: Returns the folder that relative paths belong to which are given at a path below the
            component; "" is the working directory, to which defaults belong too.

    Returns:
        The value of every option, defaults included; nothing if an option was refused.
    """
    parameters = options_of(component.load())
    inner: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    for name, parameter in parameters.items():
        annotation = parameter.annotation
        if (place := component_place(annotation)) is not None:
            annotation = list[Any] if place.is_list else Any
            if name in given:
                inner |= _inner(catalog, place, name, given[name], fail, folder)
        elif annotation is parameter.empty:
            annotation = Any
        default = ... if parameter.default is parameter.empty else parameter.default
        fields[name] = (annotation, default)
    config = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True
    )
    model = create_model(component.name, __config__=config, **fields)
    try:
        values = model.model_validate(dict(given))
    except ValidationError as error:
        for path, key, message in explain(error, dict(given), lambda _: list(parameters)):
            fail(path, key, message)
        return {}
    found: dict[str, Any] = {}
    for name, parameter in parameters.items():
        value = inner[name] if name in inner else getattr(values, name)
        if _names_files(parameter.annotation):
            value = _absolute(value, folder((name,)) if name in given else "")
        found[name] = value
    return found


def _names_files(annotation: Any) -> bool:
    """Whether an annotation has `FilePath` in it."""
    marks = getattr(annotation, "__metadata__", ())
    return any(isinstance(mark, IsPath) for mark in marks) or any(
        _names_files(inner) for inner in get_args(annotation)
    )


def _absolute(value: Any, folder: str) -> Any:
    """Returns the path, or the list of paths, that an option is. An empty text names nothing."""
    if isinstance(value, list):
        return [_absolute(item, folder) for item in value]
    return joined(folder, value) if isinstance(value, str) and value else value


class Place(NamedTuple):
    """Where an option takes components: their kind, and whether it takes a list of them."""

    kind: str
    is_list: bool


def component_place(annotation: Any) -> Place | None:
    """Returns the components that an annotation asks for, None if it asks for none."""
    from invem.operator import OperatorLaw
    from invem.schedule import Schedule

    kinds: dict[type, str] = {OperatorLaw: "operators", Schedule: "schedules"}
    is_list = get_origin(annotation) is list
    asked = get_args(annotation)[0] if is_list else annotation
    if not isinstance(asked, type):
        return None
    kind = next((kinds[base] for base in asked.__mro__ if base in kinds), None)
    return None if kind is None else Place(kind, is_list)


def _inner(
    catalog: Catalog, place: Place, name: str, given: Any, fail: Fail, folder: Folder
) -> dict[str, Any]:
    """Returns the value of an option that takes components, by the name of the option."""
    if not place.is_list:
        return {name: _component(catalog, place.kind, given, (name,), fail, folder)}
    if not isinstance(given, list):
        return {}
    parts = enumerate(given)
    return {
        name: [_component(catalog, place.kind, part, (name, i), fail, folder) for i, part in parts]
    }


def _component(
    catalog: Catalog,
    kind: str,
    given: Any,
    path: tuple[str | int, ...],
    fail: Fail,
    folder: Folder,
) -> Any:
    """Returns a component that is the value of an option, None if it cannot be made.

    A factory that has nothing but options is called. Any other, such as that of an operator, gets
    its options bound and is returned.
    """
    part = {"name": given} if isinstance(given, str) else given
    if not isinstance(part, dict) or not isinstance(part.get("name"), str):
        article = "an" if kind[0] in "aeiou" else "a"
        fail(path, False, f"{article} {kind[:-1]} is a name, or a mapping with a name")
        return None
    try:
        component = catalog.find(kind, part["name"])
        factory = component.load()
        allowed = options_of(factory)
    except (PluginError, RecipeError) as error:
        fail(path, False, str(error))
        return None
    own = {key: value for key, value in part.items() if key != "name"}
    options = parse_options(
        catalog,
        component,
        own,
        lambda inner, key, text: fail((*path, *inner), key, text),
        lambda inner: folder((*path, *inner)),
    )
    if not options.keys() >= allowed.keys():
        return None
    if len(inspect.signature(factory).parameters) > len(allowed):
        return functools.partial(factory, **options)
    try:
        return factory(**options)
    except (RecipeError, ValueError) as error:
        fail(path, False, str(error))
        return None
    except Exception as error:
        raise PluginError(f"{component.label}: {one_line(error)}") from error
