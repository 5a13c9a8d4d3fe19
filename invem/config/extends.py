"""Reading a recipe file, with those that it `extends`, into one recipe as plain data."""

import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from invem.config import yaml
from invem.config.messages import Place, Places, describe, hint, line
from invem.config.schema import (
    Fit,
    Model,
    Part,
    Phase,
    Recipe,
    WithOptions,
    keys_of,
    model_inside,
)
from invem.errors import RecipeError

__all__ = ["MAX_PARENTS", "Written", "read"]

MAX_PARENTS = 8


@dataclass(frozen=True)
class Written:
    """A recipe as it was written, without the smoke block and overrides applied.

    Attributes:
        document: The file, without those that it extends.
        text: The text of the file.
        value: The recipe as plain data, with what the file extends.
        places: Where each value was written.
    """

    document: yaml.Document
    text: str
    value: dict[str, Any]
    places: Places


def read(path: Path | str) -> Written:
    """Reads a recipe file and the chain of files that it extends.

    Raises:
        RecipeError: If a file cannot be read, is no small document of plain data, or extends itself
            or too many others; or if the differences name a phase that is not there.
    """
    return read_text(_bytes(Path(path)), Path(path), str(path))


def read_text(raw: bytes, path: Path, source: str) -> Written:
    """Reads the text of a recipe as that of a file.

    Args:
        raw: The text, in UTF-8.
        path: The file whose folder the paths in it are relative to.
        source: The name of the text in messages.

    Raises:
        RecipeError: As `read` does.
    """
    document = _mapping(raw, source)
    merge = _Merge()
    node = merge.chain(_extended(path, _node(document, document.value, ())))
    if merge.problems:
        raise RecipeError("\n".join(merge.problems))
    values: dict[yaml.Path, str] = {}
    keys: dict[yaml.Path, str] = {}
    value = _flatten(node, (), values, keys)
    return Written(document, raw.decode("utf-8-sig"), value, Places(values, keys))


@dataclass(frozen=True)
class _Node:
    """A value with the places where it and its key were written.

    Mappings and lists hold nodes, so that a value keeps its place wherever it is moved to.
    """

    content: Any
    place: str
    key: str = ""


def _mapping(raw: bytes, source: str) -> yaml.Document:
    document = yaml.load(raw, source)
    if not isinstance(document.value, dict):
        place = _place(document, document.marks[()])
        raise RecipeError(f"{place}: a recipe is a mapping, got {describe(document.value)}")
    return document


def _extended(path: Path, node: _Node) -> list[_Node]:
    """Returns the roots of a recipe and of those that it extends, the recipe first."""
    chain, files = [node], [os.path.realpath(path)]
    names = [str(path)]
    while (link := chain[-1].content.pop("extends", None)) is not None:
        at = f"{link.place}: extends"
        if not isinstance(link.content, str) or not link.content:
            got = describe(link.content)
            raise RecipeError(f"{at}: got {got}, the path of a recipe is needed")
        if len(chain) > MAX_PARENTS:
            raise RecipeError(f"{at}: more than {MAX_PARENTS} recipes extend one another")
        path = path.parent / link.content
        names.append(str(path))
        try:
            raw = _bytes(path)
        except RecipeError as problem:
            raise RecipeError(f"{at}: {problem}") from None
        if (real := os.path.realpath(path)) in files:
            circle = " -> ".join(yaml.printable(name, 80) for name in names)
            raise RecipeError(f"{at}: a recipe cannot extend itself: {circle}")
        files.append(real)
        document = _mapping(raw, str(path))
        chain.append(_node(document, document.value, ()))
    return chain


class _Merge:
    """Applies the differences that recipes write, and collects what is wrong with them."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def chain(self, nodes: list[_Node]) -> _Node:
        """Merges a recipe, the first node, into those that it extends."""
        merged = nodes[-1]
        for child in reversed(nodes[:-1]):
            merged = self.merge(merged, child, Recipe)
        return merged

    def merge(self, parent: _Node, child: _Node, model: Any) -> _Node:
        """Returns the parent's value with the child's differences.

        Args:
            parent: The value that is extended.
            child: What the child writes in its place.
            model: The model of the value; `Any` inside the options of a component; None for a
                mapping of other keys.
        """
        if not isinstance(child.content, dict) or _names_a_component(child, model):
            return child
        if isinstance(parent.content, str) and model in (Part, Any):
            parent = replace(parent, content={"name": replace(parent, key="")})
        if not isinstance(parent.content, dict):
            return child
        merged = dict(parent.content)
        if model is Fit and "objective" in child.content:
            # The options belong to the objective; the other keys of a fit do not.
            merged = {key: node for key, node in merged.items() if key in keys_of(Fit)}
        for key, difference in child.content.items():
            if key not in merged:
                merged[key] = difference
            elif difference.content is None and _may_be_absent(model, key):
                del merged[key]
            elif model is Recipe and key == "phases":
                merged[key] = self.phases(merged[key], difference)
            elif model is Recipe and key == "smoke":
                merged[key] = _smoke(merged[key], difference)
            else:
                merged[key] = self.merge(merged[key], difference, _model_at(model, key))
        return replace(child, content=merged)

    def phases(self, parent: _Node, child: _Node) -> _Node:
        """Returns the parent's list of phases, changed by a mapping from names to differences."""
        if not isinstance(child.content, dict) or not isinstance(parent.content, list):
            return child
        phases: dict[str, _Node] = {}
        for phase in parent.content:
            name = _name(phase)
            # Two phases of one name both stay, for the check of the recipe to find them.
            phases[name if name and name not in phases else f"{len(phases)}"] = phase
        for name, difference in child.content.items():
            if name not in phases:
                message = f"there is no phase '{yaml.printable(name, 60)}' to change"
                near = hint(name, [yaml.printable(known, 60) for known in phases])
                self.problems.append(line(difference.key, ("phases",), message + near))
            elif difference.content is None:
                del phases[name]
            else:
                phases[name] = self.merge(phases[name], difference, Phase)
        return replace(child, content=[replace(phase, key="") for phase in phases.values()])


def _names_a_component(node: _Node, model: Any) -> bool:
    return model in (Part, Any) and "name" in node.content


def _may_be_absent(model: Any, key: str) -> bool:
    """Whether null takes the key out. Elsewhere it stays, and the check of the recipe names it."""
    if isinstance(model, type) and issubclass(model, Model) and key in keys_of(model):
        return not model.model_fields[key].is_required()
    return True


def _model_at(model: Any, key: str) -> Any:
    """Returns the model of what is at a key of a value with a model; see `_Merge.merge`."""
    if not (isinstance(model, type) and issubclass(model, Model)):
        return model
    if key in keys_of(model):
        return model_inside(model.model_fields[key].annotation)
    return Any if issubclass(model, WithOptions) else None


def _name(phase: _Node) -> str:
    name = phase.content.get("name") if isinstance(phase.content, dict) else None
    return name.content if name is not None and isinstance(name.content, str) else ""


def _smoke(parent: _Node, child: _Node) -> _Node:
    """Merges two smoke blocks. The keys come in the order of a recipe, so that a child's can stand
    between its parent's."""
    if not isinstance(child.content, dict) or not isinstance(parent.content, dict):
        return child
    merged = {**parent.content, **child.content}
    removed = {key for key in parent.content if merged[key].content is None}
    keys = _in_order(key for key in merged if key not in removed)
    return replace(child, content={key: merged[key] for key in keys})


def _in_order(dotted_keys: Iterable[str]) -> list[str]:
    order = {key: i for i, key in enumerate(keys_of(Recipe))}
    return sorted(dotted_keys, key=lambda key: order.get(key.partition(".")[0], len(order)))


def _node(document: yaml.Document, value: Any, path: yaml.Path) -> _Node:
    content = value
    if isinstance(value, dict):
        content = {key: _node(document, item, (*path, key)) for key, item in value.items()}
    elif isinstance(value, list):
        content = [_node(document, item, (*path, i)) for i, item in enumerate(value)]
    key = _place(document, document.keys[path]) if path in document.keys else ""
    return _Node(content, _place(document, document.marks[path]), key)


def _flatten(
    node: _Node, path: yaml.Path, values: dict[yaml.Path, str], keys: dict[yaml.Path, str]
) -> Any:
    """Returns the plain data of a node, and notes the place of each value and key."""
    values[path] = node.place
    if node.key:
        keys[path] = node.key
    if isinstance(node.content, dict):
        items = node.content.items()
        return {key: _flatten(item, (*path, key), values, keys) for key, item in items}
    if isinstance(node.content, list):
        return [_flatten(item, (*path, i), values, keys) for i, item in enumerate(node.content)]
    return node.content


def _place(document: yaml.Document, mark: yaml.Mark) -> str:
    text = f"{yaml.printable(document.source)}:{mark.line}:{mark.column}"
    return Place(text, os.path.dirname(document.source))


def _bytes(path: Path) -> bytes:
    shown = yaml.printable(str(path))
    try:
        with open(path, "rb") as file:
            return file.read(yaml.MAX_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError(f"{shown}: there is no such file{_nearby(path)}") from None
    except IsADirectoryError:
        raise RecipeError(f"{shown}: it is a folder, and a recipe is a YAML file") from None
    except (OSError, ValueError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) else None
        raise RecipeError(f"{shown}: cannot be read: {reason or problem}") from None


def _nearby(path: Path) -> str:
    folders = [path.parent, path.parent / "recipes"]
    files = {file.name: file for folder in folders for file in folder.glob("*.yaml")}
    close = difflib.get_close_matches(path.name, files, n=1)
    return f"; did you mean '{yaml.printable(str(files[close[0]]))}'?" if close else ""
