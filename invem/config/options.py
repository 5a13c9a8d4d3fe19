"""The options of a component: its keyword-only parameters, checked against their annotations."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import ConfigDict, ValidationError, create_model

from invem.config.catalog import Catalog, Component, one_line
from invem.config.messages import explain
from invem.errors import PluginError, RecipeError

__all__ = ["component_place", "options_of", "parse_options"]

Fail = Callable[[tuple[str | int, ...], bool, str], None]


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
    catalog: Catalog, component: Component, given: Mapping[str, Any], fail: Fail
) -> dict[str, Any]:
    """Checks options strictly against the annotations of a factory.

    An option that is a component itself, such as a schedule, is given as a name or as a mapping
    with a name; its value is the component that is built, or its factory with its options bound.

    Args:
        catalog: Where the components among the options are found.
        component: What the options belong to.
        given: The options as plain data.
        fail: Called for each problem with the path below the component, whether the key (not the
            value) is wrong, and the message.

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
                inner |= _inner(catalog, place, name, given[name], fail)
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
    return {name: inner[name] if name in inner else getattr(values, name) for name in parameters}


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


def _inner(catalog: Catalog, place: Place, name: str, given: Any, fail: Fail) -> dict[str, Any]:
    """Returns the value of an option that takes components, by the name of the option."""
    if not place.is_list:
        return {name: _component(catalog, place.kind, given, (name,), fail)}
    if not isinstance(given, list):
        return {}
    parts = enumerate(given)
    return {name: [_component(catalog, place.kind, part, (name, i), fail) for i, part in parts]}


def _component(
    catalog: Catalog, kind: str, given: Any, path: tuple[str | int, ...], fail: Fail
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
        catalog, component, own, lambda inner, key, text: fail((*path, *inner), key, text)
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
