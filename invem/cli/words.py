"""Options of components as a person reads them: types with their bounds, and defaults."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

__all__ = ["default_words", "type_words"]

_PLAIN: dict[Any, str] = {
    Any: "anything",
    NoneType: "null",
    Path: "a path",
    bool: "true or false",
    dict: "a mapping",
    float: "number",
    int: "whole number",
    list: "a list",
    str: "text",
}
# In the order in which they are said.
_BOUNDS = {"gt": "above {}", "ge": "at least {}", "lt": "below {}", "le": "at most {}"}


def type_words(annotation: Any) -> str:
    """Returns a type in words, such as "number above 0, or null"."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _bounded(inner[0], inner[1:])
    if origin in (Union, UnionType):
        return ", or ".join(type_words(each) for each in inner)
    if origin is Literal:
        return " or ".join(default_words(each) for each in inner)
    if origin is list:
        return f"list, each: {type_words(inner[0])}"
    if origin is dict:
        return f"mapping, each value: {type_words(inner[1])}"
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    kind = _component_kind(annotation)
    return kind or str(getattr(annotation, "__name__", annotation))


def _component_kind(annotation: Any) -> str:
    """The kind of component that an option takes; empty if it takes none."""
    from invem.operator import OperatorLaw
    from invem.schedule import Schedule

    return {OperatorLaw: "an operator", Schedule: "a schedule"}.get(annotation, "")


def _bounded(annotation: Any, bounds: tuple[Any, ...]) -> str:
    limits = dict(_limits(bounds))
    low, high = limits.get("min_length"), limits.get("max_length")
    if get_origin(annotation) is list:
        each = type_words(get_args(annotation)[0])
        size = f"{low}" if low == high else f"{low or 0} or more" if high is None else f"{high}"
        size = size if low == high or high is None else f"{low or 0} to {high}"
        return f"list of {size}, each: {each}"
    said = type_words(annotation)
    if "ge" in limits and "le" in limits:
        words = [f"from {_figure(limits['ge'])} to {_figure(limits['le'])}"]
    else:
        words = [text.format(_figure(limits[k])) for k, text in _BOUNDS.items() if k in limits]
    return " ".join([said, " and ".join(words)]).strip()


def _limits(bounds: tuple[Any, ...]) -> Iterator[tuple[str, Any]]:
    """Yields the names of bounds and their values."""
    for bound in bounds:
        for name in (*_BOUNDS, "min_length", "max_length"):
            value = getattr(bound, name, None)
            if value is not None:
                yield name, value


def _figure(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def default_words(value: Any) -> str:
    """Returns a default as it is written in a recipe."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(default_words, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{k}: {default_words(v)}' for k, v in value.items())}}}"
    return str(value)
