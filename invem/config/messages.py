"""What is wrong with a recipe, in words, with the place where it was written."""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from invem.config.yaml import Path, printable
from invem.errors import suggest

__all__ = ["Place", "Places", "describe", "dotted", "explain", "hint", "line", "unknown_key"]


class Place(str):
    """A place in a file, ``file:line:column``, with the folder of the file.

    Attributes:
        folder: The folder; relative paths that are written at the place belong to it.
    """

    folder: str

    def __new__(cls, text: str, folder: str) -> "Place":
        place = super().__new__(cls, text)
        place.folder = folder
        return place


@dataclass(frozen=True)
class Places:
    """Where each part of a recipe was written, as ``file:line:column`` or ``override 'key=value'``.

    Attributes:
        values: The place of each value, by its path. The root has the path ().
        keys: The place of the key of each entry of a mapping, by the path of the entry.
        edits: The place of each value that the smoke block or an override set; the latest is last.
    """

    values: Mapping[Path, str]
    keys: Mapping[Path, str]
    edits: dict[Path, str] = field(default_factory=dict)

    def find(self, path: Path, key: bool = False) -> str:
        """Returns the place of the value at a path, or of what contains it if it was not written.

        Args:
            path: Keys and indices as in the YAML.
            key: Whether the place of the key is meant, not that of the value.
        """
        edits = [place for edited, place in self.edits.items() if path[: len(edited)] == edited]
        if edits:
            return edits[-1]
        places = self.keys if key and path in self.keys else self.values
        return next(
            places[path[:size]] for size in range(len(path), -1, -1) if path[:size] in places
        )

    def folder(self, path: Path) -> str:
        """Returns the folder that a relative path belongs to which is the value at a path: that of
        the file it was written in; "", the working directory, for an override."""
        found = self.find(path)
        return found.folder if isinstance(found, Place) else ""

    def record(self, path: Path, place: str) -> None:
        """Notes that the value at a path now comes from another place."""
        self.edits.pop(path, None)
        self.edits[path] = place


def explain(
    problems: ValidationError, value: Any, allowed: Callable[[Path], Sequence[str]]
) -> Iterator[tuple[Path, bool, str]]:
    """Words the problems that pydantic found.

    Args:
        problems: The failed validation.
        value: The data that was validated.
        allowed: Returns the keys that the mapping at a path may have.

    Yields:
        The path of a problem in the data, whether the key (not the value) is wrong, and a message.
    """
    details = problems.errors(include_url=False)
    for path, group in itertools.groupby(details, lambda detail: _path_in_data(detail, value)):
        yield _in_words(path, list(group), allowed)


def _path_in_data(detail: ErrorDetails, value: Any) -> Path:
    """Returns the path of an error in the data.

    The location that pydantic gives also names the members of a union, which are not in the data.
    """
    path: Path = ()
    for key in detail["loc"]:
        entries: Any = dict(enumerate(value)) if isinstance(value, list) else value
        if not isinstance(entries, dict) or key not in entries:
            return (*path, key) if detail["type"] == "missing" else path
        path, value = (*path, key), entries[key]
    return path


_NEEDED = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "finite_number": "a finite number",
    "float_type": "a number",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "list_type": "a list",
    "model_type": "a mapping",
    "string_pattern_mismatch": "a word of lower-case letters, digits and hyphens",
    "string_too_short": "some text",
    "string_type": "text",
    "too_short": "at least one item",
}


def _in_words(
    path: Path, details: list[ErrorDetails], allowed: Callable[[Path], Sequence[str]]
) -> tuple[Path, bool, str]:
    detail = details[0]
    if detail["type"] == "missing":
        return path, False, "missing key"
    if detail["type"] == "extra_forbidden":
        return path, True, unknown_key(str(path[-1]), allowed(path[:-1]))
    got = describe(detail["input"])
    words: list[str] = []
    choices: list[str] = []
    for each in details:
        context = each.get("ctx", {})
        if each["type"] == "literal_error":
            choices += re.findall(r"'([^']*)'", context["expected"])
        elif each["type"] == "model_type" and context["class_name"] == "Part":
            words.append("a name or a mapping with a name")
        elif each["type"] in _NEEDED:
            words.append(_NEEDED[each["type"]].format(**context))
        else:
            return path, False, printable(each["msg"])
    word = detail["input"] if isinstance(detail["input"], str) else ""
    if not words:
        return path, False, f"got {got}{hint(word, choices)}"
    needed = " or ".join([*words, *(f"'{choice}'" for choice in choices)])
    return path, False, f"got {got}, {needed} is needed{suggest(word[:60], choices)}"


def describe(value: Any) -> str:
    """Returns a few words for a value that is not what was needed."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case str():
            return f"'{printable(value, 60)}'"
        case dict():
            return "a mapping"
        case list():
            return "a list" if value else "an empty list"
        case _:
            return printable(str(value), 60)


def unknown_key(key: str, allowed: Sequence[str]) -> str:
    """Returns the message for a key that is none of those allowed."""
    return f"unknown key{hint(key, allowed)}"


def hint(word: str, allowed: Sequence[str]) -> str:
    """Returns what was probably meant by a word, if anything is close, and what is allowed."""
    return f"{suggest(word[:60], allowed) or '.'} Allowed: {', '.join(allowed)}"


def dotted(path: Path) -> str:
    """Returns a path as a dotted key that fits on one line."""
    return ".".join(printable(str(key), 60) for key in path)


def line(place: str, path: Path, message: str) -> str:
    """Returns the line ``place: dotted.path: message``; the path of the root is left out."""
    return ": ".join([place, *([dotted(path)] if path else []), message])
