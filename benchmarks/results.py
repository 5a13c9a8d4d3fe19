"""How results are kept: JSON with one row per line, so that a file is short and a change is seen.

    python benchmarks/results.py docs/results/bench-digits.json ...

rewrites files that another command has made, such as `invem eval RUN --json`; their content stays.
"""

import json
import sys
from pathlib import Path
from typing import Any


def text(found: Any, levels: int = 2) -> str:
    """Returns a JSON document that is broken into lines at the outer levels only.

    Args:
        found: Plain data; numbers are finite.
        levels: How many levels of mappings and lists have one entry per line.
    """

    def block(value: Any, indent: str, levels: int) -> str:
        if not isinstance(value, dict | list) or not value or not levels:
            return json.dumps(value, allow_nan=False)
        inner = indent + " "
        if isinstance(value, dict):
            items = [(f"{json.dumps(str(key))}: ", item) for key, item in value.items()]
        else:
            items = [("", item) for item in value]
        rows = ",\n".join(f"{inner}{key}{block(item, inner, levels - 1)}" for key, item in items)
        left, right = "{}" if isinstance(value, dict) else "[]"
        return f"{left}\n{rows}\n{indent}{right}"

    return block(found, "", levels) + "\n"


def write(path: Path, found: Any, levels: int = 2) -> None:
    """Writes a JSON document with one row per line, see `text`."""
    path.write_text(text(found, levels), "utf-8")


def main() -> None:
    for path in map(Path, sys.argv[1:]):
        write(path, json.loads(path.read_text("utf-8")))


if __name__ == "__main__":
    main()
