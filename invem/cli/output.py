"""What commands print: plain data, tables, warnings; and the checks of paths that they write to."""

import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from invem.errors import RecipeError, escaped

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "Forgiving",
    "escaped",
    "make_parent",
    "print_data",
    "print_metrics",
    "print_table",
    "print_warnings",
    "say",
    "tell",
]

_TURNING = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_WIDTH = 160  # columns of a table that does not go to a terminal


class Forgiving(io.TextIOBase):
    """A stderr that may be full, or whose terminal may be gone: what cannot be written is dropped.

    Progress is no reason to end a run. Marks that turn the direction of text are written out; the
    colours of progress are kept.

    Args:
        stream: The stream that is written to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str, /) -> int:
        """Writes what can be written; returns the length of the text."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(_TURNING.sub(lambda found: escaped(found[0]), text))
        return len(text)

    def flush(self) -> None:
        """Flushes what can be flushed."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The number of the file."""
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The encoding of the stream."""
        return self._stream.encoding


@contextlib.contextmanager
def _while_read() -> Iterator[None]:
    """Ends the process, without an error, once nobody reads stdout any more, as after `| head`."""
    try:
        yield
    except BrokenPipeError:
        os._exit(0)


def say(text: object) -> None:
    """Prints a result to stdout, escaped."""
    with _while_read():
        print(escaped(text))


def tell(text: object) -> None:
    """Prints progress, a warning or an error to stderr, escaped.

    A stderr that is closed or full is no reason to end a run.
    """
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(escaped(text), file=sys.stderr, flush=True)


def print_data(value: Any, as_json: bool) -> None:
    """Prints plain data as JSON, or as YAML."""
    if as_json:
        # JSON writes out every character but this one.
        text = json.dumps(value, indent=1, allow_nan=False).replace("\x7f", "\\u007f") + "\n"
    else:
        from invem.config import yaml

        text = yaml.dump(value)
        text = text if escaped(text) == text else yaml.dump(value, ascii_only=True)
    with _while_read():
        print(text, end="")


def print_warnings(lines: Iterable[str]) -> None:
    """Prints a warning per line to stderr."""
    for line in lines:
        tell(f"warning: {line}")


def print_table(table: "Table", width: int = _WIDTH) -> None:
    """Prints a table as wide as the terminal; `width` columns where there is no terminal."""
    from rich.console import Console
    from rich.text import Text

    class Plain(Console):
        """Takes every text as it is: no markup, no control characters."""

        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(escaped(text), **options)

    console = Console()
    width = console.width if console.is_terminal else width
    with _while_read():
        Plain(width=width, markup=False, emoji=False).print(table)


def print_metrics(rows: list[dict[str, Any]]) -> None:
    """Prints the metrics of a run: a row per evaluation, a column per metric."""
    from rich.table import Table

    # The evaluation with the most metrics has them in the order of the recipe.
    longest: dict[str, Any] = max((row["metrics"] for row in rows), key=len, default={})
    labels = list(dict.fromkeys([*longest, *(label for row in rows for label in row["metrics"])]))
    table = Table("phase", "round")
    for label in labels:
        value = next(row["metrics"][label] for row in rows if label in row["metrics"])
        table.add_column(_heading(label, value), justify="right")
    for row in rows:
        cells = [_cell(row["metrics"].get(label)) for label in labels]
        name = f"{row['name']} ({row['of']})" if row.get("of") else row["name"]
        table.add_row(name, "" if row["round"] is None else str(row["round"] + 1), *cells)
    print_table(table)


def _heading(label: str, value: dict[str, Any]) -> str:
    """Returns a metric's name with its unit and which way is better, as in "psnr (dB) ↑"."""
    unit = f" ({value['unit']})" if value.get("unit") else ""
    target, higher = value.get("target"), value.get("higher_is_better")
    best = "" if higher is None else " ↑" if higher else " ↓"
    return f"{label}{unit}{best if target is None else f' → {target:.4g}'}"


def _cell(value: dict[str, Any] | None) -> str:
    """Returns value ± standard error."""
    if value is None:
        return ""
    if value["value"] is None:
        return "not finite"
    error = "" if value["sem"] is None else f" ± {value['sem']:.2g}"
    return f"{value['value']:.4g}{error}"


def make_parent(path: Path) -> None:
    """Makes the folder that a file will be written to, before the work that it will hold.

    Raises:
        RecipeError: If it cannot be made.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise RecipeError(f"{path}: cannot be written: it is a device, not a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be written: {error.strerror}") from error
