"""What the JSON files of a run hold, checked where they are read."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
)

from invem.errors import DataError

__all__ = [
    "FORMAT",
    "About",
    "Change",
    "Evaluation",
    "Event",
    "check",
    "check_file",
    "format_of",
    "is_known",
]

FORMAT = 3  # of a run directory

Number = StrictFloat | StrictInt
Count = Annotated[StrictInt, Field(ge=0)]


class _Component(BaseModel):
    kind: StrictStr
    name: StrictStr
    distribution: StrictStr
    version: StrictStr


class _Data(BaseModel):
    shape: list[Count]
    range: tuple[Number, Number]
    whole_train: Count
    whole_test: Count
    prior: list[StrictStr] | None
    digests: dict[StrictStr, StrictStr] = {}
    units: dict[StrictStr, StrictFloat | StrictInt | StrictStr] | None = None


class About(BaseModel):
    """run.json: what a run was begun with."""

    recipe: StrictStr
    format: StrictInt
    name: StrictStr = ""
    created: StrictStr = ""
    environment: dict[str, Any] = {}
    components: list[_Component] = []
    data: _Data | None = None
    warnings: list[StrictStr] = []


class _Value(BaseModel):
    value: Number | None
    sem: Number | None
    unit: StrictStr
    higher_is_better: StrictBool | None = None
    target: Number | None = None
    below: StrictStr = ""
    above: StrictStr = ""


class Evaluation(BaseModel):
    """metrics.json, observations.json and a line of metrics.jsonl: one evaluation."""

    phase: Count | None = None
    name: StrictStr
    round: Count | None
    metrics: dict[str, _Value]
    of: StrictStr = ""


class Event(BaseModel):
    """A line of log.jsonl."""

    event: StrictStr
    name: StrictStr = ""
    phase: Count | None = None
    round: Count | None = None
    step: Count = 0
    seconds: Number = 0.0
    cpu: Number = 0.0
    passes: Number = 0.0


class Change(BaseModel):
    """A line of history.jsonl: what was changed of the recipe on the way."""

    when: StrictStr
    after: StrictStr
    changes: list[StrictStr]


class _Identifiability(BaseModel):
    lines: list[StrictStr]
    warning: StrictStr | None


class _Sampler(BaseModel):
    sampler: StrictStr
    options: dict[str, StrictBool | Number | StrictStr | None]


class _Calibrated(BaseModel):
    values: dict[str, Number]
    error: dict[str, Number]
    how: StrictStr
    settled: StrictBool


class _Stop(BaseModel):
    rounds: Annotated[StrictInt, Field(ge=1)]
    reason: StrictStr


class _Pending(BaseModel):
    event: StrictStr
    data: dict[str, Any]
    appears: StrictStr | None
    goes: StrictStr | None


class _Cost(BaseModel):
    misfit: Number
    draws: Count
    passes: Count
    seconds: Number
    cpu: Number


class _Spent(_Cost):
    shard: StrictStr
    before: _Cost | None


def format_of(path: Path) -> int | None:
    """Returns the format that a run.json without a digest tells; None if it is damaged.

    Files of formats before 3 have none.
    """
    try:
        about = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(about, dict) or "digest" in about:
        return None
    found = about.get("format")
    return found if isinstance(found, int) else None


# By the name of the file; that of a stop has the phase before it.
_FILES: dict[str, type[BaseModel]] = {
    "run": About,
    "identifiability": _Identifiability,
    "observations": Evaluation,
    "metrics": Evaluation,
    "sampler": _Sampler,
    "calibrated": _Calibrated,
    "spent": _Spent,
    "pending": _Pending,
    "stop": _Stop,
}


def is_known(name: str) -> bool:
    """Whether a run has JSON files of this name; it is without its ending."""
    return name.rpartition("-")[2] in _FILES


def check_file(name: str, value: Any, path: Path) -> dict[str, Any]:
    """Returns what was read from a JSON file, after checking it against the name of the file.

    Args:
        name: The name, without its ending.
        value: What was read.
        path: The file, for the message.

    Raises:
        DataError: If a key is missing or of another type.
    """
    return check(_FILES[name.rpartition("-")[2]], value, path)


def check(kind: type[BaseModel], value: Any, path: Path) -> dict[str, Any]:
    """Returns a value that was read, as it is.

    Args:
        kind: What it must be.
        value: The value.
        path: The file that it was read from, for the message.

    Raises:
        DataError: If a key is missing or of another type.
    """
    try:
        kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise DataError(f"{path}: damaged: {where}: {first['msg']}") from None
    found: dict[str, Any] = value
    return found
