"""YAML for recipes: the 1.2 core scalars, one document of plain data, and the place of every value.

PyYAML reads YAML 1.1, where `1e-4` is text, `no` is false and `010` is 8. Here only its pure-Python
parser is used (the one in C overflows its stack on deep input); what the events mean is decided
below, as they stream.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml as pyyaml

from invem.errors import RecipeError

__all__ = ["MAX_BYTES", "Document", "Mark", "Path", "dump", "load", "printable", "scalar"]

Path = tuple[str | int, ...]

MAX_BYTES = 2**20
_MAX_DEPTH = 32
_MAX_NODES = 20_000
_MAX_DIGITS = 100

_NULL = re.compile(r"|~|null|Null|NULL")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_FORBIDDEN = re.compile(r"[\0\ud800-\udfff]")
_BASES = {"0o": 8, "0x": 16}


class Mark(NamedTuple):
    """A place in a text; line and column count from 1."""

    line: int
    column: int


@dataclass(frozen=True)
class Document:
    """A YAML text as plain data.

    Attributes:
        value: Nested dicts with text keys, lists, str, int, float, bool and None.
        marks: Where the value at a path begins; the path of the whole is ().
        keys: Where the key of the mapping entry at a path begins.
        source: The name of the text in messages.
    """

    value: Any
    marks: Mapping[Path, Mark]
    keys: Mapping[Path, Mark]
    source: str


class _Flaw(Exception):
    def __init__(self, mark: Mark, message: str) -> None:
        super().__init__(message)
        self.mark = mark
        self.message = message


def load(text: str | bytes, source: str) -> Document:
    """Reads one YAML document.

    Raises:
        RecipeError: ``source:line:column: message`` for whatever is not a small document of plain
            data: bad syntax, duplicate or non-text keys, anchors, aliases, tags, several documents,
            text that is not UTF-8, or too much of it (1 MiB, 32 levels, 20 000 values, 100 digits).
    """
    try:
        return _read(text, source)
    except _Flaw as flaw:
        line, column = flaw.mark
        raise RecipeError(f"{printable(source)}:{line}:{column}: {flaw.message}") from None


def scalar(text: str, source: str = "value") -> Any:
    """Reads a value of the command line by the same rules: ``1e-4``, ``[1, 2]``, ``{name:
    karras}``.

    Raises:
        RecipeError: ``source: message``.
    """
    try:
        return _read(text, source).value
    except _Flaw as flaw:
        raise RecipeError(f"{printable(source)}: {flaw.message}") from None


def dump(value: Any, ascii_only: bool = False) -> str:
    """Writes plain data in block style, keys in their order, such that `load` returns an equal
    value. ascii_only: whether every other character is written as its number."""
    return pyyaml.dump(
        value,
        Dumper=_Dumper,
        default_flow_style=False,
        sort_keys=False,
        allow_unicode=not ascii_only,
        width=110,
    )


def printable(text: str, limit: int = 1000) -> str:
    """Returns the text cut to `limit` characters, and escaped where it would disturb a terminal or
    a line."""
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    return cut if cut.isprintable() else repr(cut)[1:-1]


def _read(text: str | bytes, source: str) -> Document:
    string = _decode(text)
    try:
        loader = pyyaml.SafeLoader(string)
    except pyyaml.reader.ReaderError as error:
        place = _place(string[: error.position])
        raise _Flaw(
            place, f"the character U+{ord(string[error.position]):04X} is not allowed"
        ) from None
    composer = _Composer(loader)
    try:
        value = composer.document()
    except pyyaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        words = f"{error.problem} ({error.context})" if error.context else f"{error.problem}"
        hint = (
            "; indent with spaces" if mark and string[mark.index : mark.index + 1] == "\t" else ""
        )
        raise _Flaw(_mark(mark) if mark else Mark(1, 1), printable(words) + hint) from None
    except (pyyaml.YAMLError, ValueError, ArithmeticError, LookupError, RecursionError):
        raise _Flaw(Mark(loader.line + 1, loader.column + 1), "this is not valid YAML") from None
    return Document(value, composer.marks, composer.keys, source)


def _decode(text: str | bytes) -> str:
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    if len(raw) > MAX_BYTES:
        raise _Flaw(Mark(1, 1), f"{len(raw)} bytes are too many; {MAX_BYTES} are allowed")
    if isinstance(text, str):
        return text.removeprefix("\ufeff")
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = _place(error.object[: error.start].decode("utf-8-sig", "replace"))
        raise _Flaw(place, "this is not UTF-8 text") from None


def _place(before: str) -> Mark:
    return Mark(before.count("\n") + 1, len(before) - before.rfind("\n"))


def _mark(mark: pyyaml.Mark) -> Mark:
    return Mark(mark.line + 1, mark.column + 1)


@dataclass
class _Composer:
    """Turns the events of one text into data, and stops at the first event that breaks a rule."""

    loader: pyyaml.SafeLoader
    marks: dict[Path, Mark] = field(default_factory=dict)
    keys: dict[Path, Mark] = field(default_factory=dict)
    nodes: int = 0

    def event(self) -> Any:
        return self.loader.get_event()  # type: ignore[no-untyped-call]

    def document(self) -> Any:
        self.event()
        if isinstance(self.event(), pyyaml.StreamEndEvent):
            self.marks[()] = Mark(1, 1)
            return None
        value = self.node(self.event(), ())
        self.event()
        after = self.event()
        if not isinstance(after, pyyaml.StreamEndEvent):
            raise _Flaw(_mark(after.start_mark), "a second document begins here; one is allowed")
        return value

    def node(self, event: Any, path: Path) -> Any:
        self.marks[path] = mark = self.check(event)
        if isinstance(event, pyyaml.ScalarEvent):
            return _scalar(event, mark)
        if len(path) >= _MAX_DEPTH:
            raise _Flaw(mark, f"more than {_MAX_DEPTH} levels of nesting")
        if isinstance(event, pyyaml.SequenceStartEvent):
            return self.sequence(path)
        return self.mapping(path)

    def sequence(self, path: Path) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := self.event(), pyyaml.SequenceEndEvent):
            items.append(self.node(event, (*path, len(items))))
        return items

    def mapping(self, path: Path) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        while not isinstance(event := self.event(), pyyaml.MappingEndEvent):
            mark = self.check(event)
            key = _scalar(event, mark) if isinstance(event, pyyaml.ScalarEvent) else None
            if not isinstance(key, str):
                raise _Flaw(mark, "a key must be text; quote it")
            if key in entries:
                raise _Flaw(mark, f"the key '{printable(key, 60)}' is given twice")
            self.keys[(*path, key)] = mark
            entries[key] = self.node(self.event(), (*path, key))
        return entries

    def check(self, event: Any) -> Mark:
        mark = _mark(event.start_mark)
        self.nodes += 1
        if self.nodes > _MAX_NODES:
            raise _Flaw(mark, f"more than {_MAX_NODES} values")
        if isinstance(event, pyyaml.AliasEvent) or event.anchor is not None:
            raise _Flaw(mark, "anchors and aliases (& and *) are not allowed")
        if event.tag is not None:
            raise _Flaw(mark, "tags (!) are not allowed")
        return mark


def _scalar(event: pyyaml.ScalarEvent, mark: Mark) -> Any:
    text: str = event.value
    if _FORBIDDEN.search(text):
        raise _Flaw(mark, "NUL and surrogate characters are not allowed")
    if not event.implicit[0]:
        return text
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text[0] in "tT"
    if _INT.fullmatch(text):
        if len(text.lstrip("+-")) > _MAX_DIGITS:
            raise _Flaw(mark, f"a whole number of more than {_MAX_DIGITS} digits")
        return int(text, _BASES.get(text[:2], 10))
    if _FLOAT.fullmatch(text):
        return float(text)
    if _SPECIAL.fullmatch(text):
        return float(text.replace(".", ""))
    return text


class _Dumper(pyyaml.SafeDumper):
    """Quotes text that either YAML 1.1 or `load` would take for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_str(self, data: str) -> pyyaml.ScalarNode:
        style = None if data.isprintable() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Dumper.add_representer(str, _Dumper.represent_str)

for _tag, _pattern in {"bool": _BOOL, "int": _INT, "float": _FLOAT}.items():
    _whole = re.compile(rf"(?:{_pattern.pattern})\Z")
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _whole, None)
