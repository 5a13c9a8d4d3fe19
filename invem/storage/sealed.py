"""JSON of a run with its digest inside: the one place that seals what is written and checks it.

A JSON object of a run has a key "digest": the SHA-256 of where it belongs and of its other keys, as
JSON without spaces whose keys are sorted. Each line of a JSONL file has one. Where it belongs is
not written out; an object that was put in another place does not match.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from invem import atomic
from invem.errors import DataError

__all__ = ["line_of", "read", "read_lines", "seal", "write"]

_KEY = "digest"

# What helps where a file is damaged: most are made again.
_AGAIN = "remove it, and `invem resume` makes it again"
_COPY = "put back a copy of it"
_REMEDIES = {
    "log.jsonl": "take that line out, and nothing but its entry is lost",
    "history.jsonl": _COPY,
    "calibrated.json": _COPY,
    "run.json": f"{_COPY}, or begin a new run with recipe.yaml",
}


def seal(value: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Returns a JSON object with its digest.

    Args:
        value: The object, without a digest.
        place: Where it belongs: the file, and the run.
    """
    plain = json.loads(json.dumps(value))
    return {**plain, _KEY: _digest(plain, place)}


def _digest(plain: Mapping[str, Any], place: str) -> str:
    words = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{place}\n{words}".encode()).hexdigest()


def _opened(value: Any, place: str, where: str, remedy: str) -> dict[str, Any]:
    """Returns an object without its digest, after checking it."""
    if not isinstance(value, dict):
        raise DataError(f"{where}: damaged: it is no JSON object; {remedy}")
    plain = {key: item for key, item in value.items() if key != _KEY}
    if value.get(_KEY) != _digest(plain, place):
        raise DataError(
            f"{where}: damaged, or the file of another place: its digest does not match its"
            f" content; {remedy}"
        )
    return plain


def _remedy(path: Path) -> str:
    return _REMEDIES.get(path.name, _AGAIN)


def write(path: Path, value: Mapping[str, Any], place: str) -> None:
    """Writes a JSON object with its digest, whole or not at all."""
    atomic.write_json(path, seal(value, place))


def read(path: Path, place: str) -> dict[str, Any]:
    """Returns a JSON object without its digest, after checking it.

    Raises:
        DataError: If it is missing, damaged or of another place.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged: {error}; {_remedy(path)}") from error
    return _opened(value, place, str(path), _remedy(path))


def line_of(value: Mapping[str, Any], place: str) -> str:
    """Returns a JSON object with its digest as a line of a file, with the end of the line."""
    return json.dumps(seal(value, place)) + "\n"


def read_lines(path: Path, place: str, whole: bool = False) -> Iterator[dict[str, Any]]:
    """Yields the objects of a JSONL file without their digests, after checking each.

    Args:
        path: The file; one that is not there has no lines.
        place: Where its lines belong.
        whole: Whether the file is written as a whole, so that no kill can tear its last line. A
            last line that a kill tore is left out.

    Raises:
        DataError: If a line is damaged or of another place.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: damaged: {error}; {_remedy(path)}") from error
    lines = text.split("\n")
    if not lines[-1] or (not whole and atomic.is_torn(lines[-1])):
        lines.pop()
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: damaged: {error}; {_remedy(path)}") from error
        yield _opened(value, place, where, _remedy(path))
