"""What the JSON files of a run hold, checked where they are read."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, StrictStr, ValidationError

from invem.errors import DataError

__all__ = ["About", "Evaluation", "Event", "check"]


class _Component(BaseModel):
    kind: StrictStr
    name: StrictStr
    distribution: StrictStr
    version: StrictStr


class _Data(BaseModel):
    shape: list[int]
    range: tuple[float, float]
    whole_train: int
    whole_test: int
    prior: list[StrictStr] | None


class About(BaseModel):
    """run.json: what a run was begun with."""

    recipe: StrictStr
    format: int
    components: list[_Component] = []
    data: _Data | None = None


class _Value(BaseModel):
    value: float | None
    sem: float | None
    unit: StrictStr


class Evaluation(BaseModel):
    """A line of metrics.jsonl: one evaluation."""

    name: StrictStr
    round: int | None
    metrics: dict[str, _Value]


class Event(BaseModel):
    """A line of log.jsonl."""

    event: StrictStr
    name: StrictStr = ""
    seconds: float = 0.0
    cpu: float = 0.0
    passes: float = 0.0


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
