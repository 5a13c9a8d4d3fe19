"""What moved since an earlier benchmark."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from invem.bench.table import cell
from invem.errors import RecipeError

__all__ = ["compare_with_baseline"]

_COUNTS = ("forwards", "products", "operator", "adjoint", "pinv", "rotations", "failures")


def compare_with_baseline(document: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[str]:
    """Returns a line for each metric that moved by more than twice the standard error of the
    difference, each count that changed, and each row or metric that is new or gone.

    Times and memory depend on the machine, and are not compared.

    Args:
        document: The new benchmark.
        baseline: The earlier one.

    Raises:
        RecipeError: If the earlier benchmark is of another problem.
    """
    for key in ("name", "digest", "truth"):
        was, now = baseline["problem"].get(key), document["problem"][key]
        if was != now:
            raise RecipeError(
                f"--baseline: it is of another problem: its {key} is {was}, now {now}"
            )
    lines = [
        f"the baseline has other {key}: {baseline.get(key)}, now {document[key]}"
        for key in ("seeds", "observations", "draws", "budget", "tune")
        if baseline.get(key) != document[key]
    ]
    old, new = ({row["setting"]: row for row in each["rows"]} for each in (baseline, document))
    for label, row in new.items():
        changes = _changes(old[label], row) if label in old else ["new"]
        lines += [f"{label}: {change}" for change in changes]
    return lines + [f"{label}: gone" for label in old if label not in new]


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    if new["error"] != old["error"]:
        yield f"fails: {new['error']}" if new["error"] else "fails no more"
    for name in _COUNTS:
        if not math.isclose(old[name], new[name]):
            yield f"{name} {old[name]:.4g} -> {new[name]:.4g}"
    for name, value in new["metrics"].items():
        earlier = old["metrics"].get(name)
        if earlier is None:
            yield f"{name} is new"
        elif _moved(earlier, value):
            yield f"{name} {cell(earlier)} -> {cell(value)}"
    for name in old["metrics"]:
        if name not in new["metrics"]:
            yield f"{name} is gone"


def _moved(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    if a["value"] is None or b["value"] is None:
        return bool(a["value"] != b["value"])
    if a["sem"] is None or b["sem"] is None:
        return False
    return bool(abs(a["value"] - b["value"]) > 2 * math.hypot(a["sem"], b["sem"]))
