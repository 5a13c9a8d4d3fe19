"""Dotted keys: the overrides of the command line and the smoke block of a recipe."""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, get_origin

from invem.config import yaml
from invem.config.messages import Places, dotted, hint, line, unknown_key
from invem.config.schema import Part, Recipe, WithOptions, keys_of, model_inside
from invem.errors import RecipeError

__all__ = ["MAX_PROBLEMS", "Draft"]

MAX_PROBLEMS = 100
_MAX_PARTS = 32
_MAX_SHOWN = 20


@dataclass
class Draft:
    """A recipe as plain data that is being changed.

    Attributes:
        value: The recipe in YAML shape.
        places: Where each value was written.
        problems: What is wrong with the changes, one line each.
    """

    value: dict[str, Any]
    places: Places
    problems: list[str] = field(default_factory=list)

    def apply_smoke(self) -> None:
        """Sets the values of the recipe's smoke block."""
        block = self.value.get("smoke")
        for key, value in block.items() if isinstance(block, dict) else ():
            path: yaml.Path = ("smoke", key)
            try:
                changed = _assign(self.value, key, deepcopy(value))
            except _Unknown as unknown:
                place = self.places.find(path, key=True)
                self.problems.append(line(place, ("smoke",), str(unknown)))
            else:
                self.places.record(changed, self.places.find(path))

    def apply_overrides(self, overrides: Sequence[str]) -> None:
        """Sets the values of overrides ``key.sub=value``, in their order."""
        for item in overrides:
            if len(self.problems) > MAX_PROBLEMS:
                return
            place = f"override '{yaml.printable(item, 80)}'"
            key, equals, text = item.partition("=")
            if not (key and equals):
                self.problems.append(f"{place}: key=value is needed")
                continue
            try:
                self.places.record(_assign(self.value, key, yaml.scalar(text, place)), place)
            except _Unknown as unknown:
                self.problems.append(f"{place}: {unknown}")
            except RecipeError as flaw:
                self.problems.append(str(flaw))

    def expand_chain(self) -> None:
        """Writes out the short form of a chain, a list of operators."""
        if isinstance(self.value.get("operator"), list):
            self.value["operator"] = {"name": "chain", "of": self.value["operator"]}
            places = self.places
            self.places = Places(*map(_in_chain, (places.values, places.keys, places.edits)))


def _in_chain(places: Mapping[yaml.Path, str]) -> dict[yaml.Path, str]:
    """Returns places with those of the items of the operator's list where the chain has them."""
    return {
        ("operator", "of", *path[1:]) if path[:1] == ("operator",) and path[1:] else path: place
        for path, place in places.items()
    }


class _Unknown(Exception):
    """A dotted key leads nowhere."""


def _assign(root: dict[str, Any], key: str, value: Any) -> yaml.Path:
    """Sets the value at a dotted key and returns the path of the outermost node that is new."""
    names = key.split(".")
    if "" in names:
        raise _Unknown("the key has an empty part")
    if len(names) > _MAX_PARTS:
        raise _Unknown(f"the key has more than {_MAX_PARTS} parts")
    node: Any = root
    model: Any = Recipe
    path: yaml.Path = ()
    made: yaml.Path | None = None
    for name in names[:-1]:
        step, inner_model, empty = _step(node, model, name, path)
        path = (*path, step)
        inner = node[step] if isinstance(node, list) else node.get(step)
        if inner is None and inner_model is not None:
            inner, made = empty, made or path
        elif isinstance(inner, str) and inner_model in (Part, Any):
            inner = {"name": inner}
        elif not isinstance(inner, dict | list):
            raise _Unknown(f"{dotted(path)} has no parts")
        node[step] = inner
        node, model = inner, inner_model
    step, _, _ = _step(node, model, names[-1], path)
    node[step] = value
    return made or (*path, step)


def _step(node: Any, model: Any, name: str, path: yaml.Path) -> tuple[Any, Any, Any]:
    """Follows one name of a dotted key.

    Returns:
        The key or the index that the name means in the node, the model of what is there, and the
        empty form of what is there. The model is `Any` inside options, and None for plain values.
    """
    if isinstance(node, list):
        return _index(node, name, path), model, {}
    if model is Any:
        return name, Any, {}
    if model is None:
        raise _Unknown(f"{dotted(path)} has no parts that can be set one by one")
    if name in keys_of(model):
        annotation = model.model_fields[name].annotation
        return name, model_inside(annotation), [] if get_origin(annotation) is list else {}
    if issubclass(model, WithOptions):
        return name, Any, {}
    raise _Unknown(f"{dotted((*path, name))}: {unknown_key(name, keys_of(model))}")


def _index(items: list[Any], name: str, path: yaml.Path) -> int:
    """Returns the index that a name means in a list; a phase is also known by its own name."""
    if re.fullmatch(r"[0-9]{1,9}", name) and int(name) < len(items):
        return int(name)
    names = [item.get("name") if isinstance(item, dict) else None for item in items]
    if path == ("phases",) and name in names:
        return names.index(name)
    allowed = [str(index) for index in range(min(len(items), _MAX_SHOWN))]
    if path == ("phases",):
        allowed += [
            yaml.printable(item, 60) for item in names[:_MAX_SHOWN] if isinstance(item, str)
        ]
    word = yaml.printable(name, 60)
    raise _Unknown(f"{dotted(path)}: there is no item '{word}'{hint(word, allowed)}")
