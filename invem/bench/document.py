"""A benchmark as data: its rows, and the JSON document of schema 1 that ``docs/bench.md`` lists."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from invem.atomic import write_text
from invem.bench.design import Design
from invem.bench.metrics import LEVELS
from invem.bench.problems import Problem
from invem.bench.score import Value
from invem.errors import RecipeError
from invem.running.records import environment

__all__ = ["FLOOR", "Row", "make_document", "read_document", "write_document"]

FLOOR = "exact draws"
_SCHEMA = 1


@dataclass(frozen=True, eq=False)
class Row:
    """A sampler on a problem.

    Attributes:
        setting: The sampler as it was asked for.
        sampler: Its name.
        options: Every option, tuned ones too.
        tuning: The search over the options as data, or None.
        forwards: Network forwards per draw.
        products: Network vector-Jacobian products per draw.
        operator: Calls of A per draw.
        adjoint: Calls of A^T per draw, gradients through A among them.
        pinv: Calls of the pseudo-inverse per draw.
        rotations: Applications of a factor of the singular value decomposition per draw.
        seconds: Wall time per draw.
        memory: Peak memory, MiB.
        draws: The number of draws.
        failures: How many of them were not finite.
        metrics: By name.
        coverage: Empirical coverage of the central intervals of `LEVELS`.
        error: Why there are no numbers, or None.
        pictures: "truth", "observation", "mean", "draw" and "std" of a few observations, (n, C, H,
            W) each. Empty where signals are no images.
    """

    setting: str
    sampler: str
    options: dict[str, Any]
    tuning: dict[str, Any] | None = None
    forwards: float = 0.0
    products: float = 0.0
    operator: float = 0.0
    adjoint: float = 0.0
    pinv: float = 0.0
    rotations: float = 0.0
    seconds: float = 0.0
    memory: float = 0.0
    draws: int = 0
    failures: int = 0
    metrics: dict[str, Value] = field(default_factory=dict)
    coverage: list[float] = field(default_factory=list)
    error: str | None = None
    pictures: dict[str, Tensor] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Returns the row as data, without the pictures."""
        names = [f.name for f in dataclasses.fields(self) if f.name != "pictures"]
        metrics = {name: value._asdict() for name, value in self.metrics.items()}
        return {name: getattr(self, name) for name in names} | {"metrics": metrics}


def make_document(
    problem: Problem, rows: Sequence[Row], design: Design, left_out: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns a benchmark as data for JSON. Numbers that are not finite are None.

    Args:
        problem: What was solved.
        rows: What `compare_samplers` yielded.
        design: How much was done.
        left_out: A line for each sampler that was left out.
    """
    floor = next((row for row in rows if row.sampler == FLOOR), None)
    found = {
        "schema": _SCHEMA,
        "environment": environment() | {"device": problem.device},
        "problem": {
            "name": problem.name,
            "digest": problem.digest,
            "definition": problem.definition,
            "run": problem.source,
            "truth": problem.truth,
            "shape": list(problem.shape),
            "range": list(problem.range),
            "exact": floor is not None,
        },
        "seeds": list(range(design.seeds)),
        "observations": design.observations,
        "draws": design.draws,
        "budget": design.budget,
        "tune": design.trials,
        "levels": list(LEVELS),
        "left_out": list(left_out),
        "floor": floor.plain()["metrics"] if floor is not None else None,
        "rows": [row.plain() for row in rows if row.sampler != FLOOR],
    }
    document: dict[str, Any] = _finite_or_none(found)
    return document


def _finite_or_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite_or_none(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite_or_none(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_document(document: dict[str, Any], path: Path) -> None:
    """Writes a benchmark as a JSON file."""
    write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def read_document(path: Path) -> dict[str, Any]:
    """Reads a benchmark that `write_document` wrote.

    Raises:
        RecipeError: If the file is missing, or is something else.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(f"{path}: cannot be read: {reason}") from None
    is_benchmark = isinstance(found, dict) and {"rows", "problem"} <= found.keys()
    if not is_benchmark or found.get("schema") != _SCHEMA:
        raise RecipeError(
            f"{path}: not a benchmark that invem bench --json wrote (schema {_SCHEMA})"
        )
    document: dict[str, Any] = found
    return document
