"""Numbers within the options of a component, addressed by a path such as ("of", "1", "gain")."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from invem.errors import RecipeError

__all__ = ["option_number", "with_option"]


def with_option(options: Mapping[str, Any], path: Sequence[str], value: float) -> dict[str, Any]:
    """Returns options with one number replaced; the given options stay as they are.

    Args:
        options: The options of a component by name. A component within a list, such as an operator
            of a chain, is a `functools.partial` whose keywords are its options.
        path: The path to the number: ("std",), or ("of", "1", "gain") for the gain of the second
            operator of a chain.
        value: The new number.

    Raises:
        RecipeError: If there is nothing at the path, or no number.
    """
    name, rest = path[0], path[1:]
    if name not in options:
        raise RecipeError(f"there is no option '{name}' (known: {', '.join(options)})")
    return {**options, name: _with_number(options[name], rest, value, name)}


def option_number(options: Mapping[str, Any], path: Sequence[str]) -> float:
    """Returns the number at a path. Arguments and errors are those of `with_option`."""
    with_option(options, path, 0.0)
    found: Any = options
    for step in path:
        found = found.keywords if isinstance(found, partial) else found
        found = found[int(step)] if isinstance(found, list) else found[step]
    return float(found)


def _with_number(old: Any, path: Sequence[str], value: float, name: str) -> Any:
    """Returns an option with the number at a path replaced. name: the option, for messages."""
    if not path:
        if isinstance(old, bool) or not isinstance(old, int | float):
            raise RecipeError(f"'{name}' is not a number")
        return value
    if isinstance(old, partial):
        return partial(old.func, *old.args, **with_option(old.keywords, path, value))
    if isinstance(old, list) and path[0].isdecimal() and int(path[0]) < len(old):
        k = int(path[0])
        return [*old[:k], _with_number(old[k], path[1:], value, f"{name}.{k}"), *old[k + 1 :]]
    raise RecipeError(f"'{name}' has no part '{path[0]}'")
