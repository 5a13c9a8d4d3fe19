"""Recipes and changes as a Python program has them: a path or plain data."""

import json
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from invem.config.load import Loaded, load, load_data
from invem.errors import RecipeError

__all__ = ["Changes", "RecipeLike", "load_any", "words_of"]

RecipeLike = str | Path | Mapping[str, Any]
"""The path of a recipe, or a recipe as plain data."""

Changes = Mapping[str, Any] | Sequence[str]
"""Changes of a recipe: {"phases.em.rounds": 2}, or ["phases.em.rounds=2"]."""


def load_any(
    recipe: RecipeLike, changes: Changes = (), smoke: bool = False, device: str | None = None
) -> Loaded:
    """Reads and checks a recipe.

    Args:
        recipe: The path of a recipe, or a recipe as plain data. Paths, arrays and numbers of NumPy
            and PyTorch may stand in the data.
        changes: Changes by dotted key.
        smoke: Whether the recipe's `smoke` block is applied, before the changes.
        device: The value of ``compute.device``, if it is not the recipe's.

    Raises:
        RecipeError: Every problem, one per line.
    """
    words = words_of(changes)
    words += [f"compute.device={device}"] if device else []
    if isinstance(recipe, Mapping):
        return load_data(json.loads(_inline(recipe)), "recipe", words, smoke)
    return load(Path(recipe).expanduser(), words, smoke)


def words_of(changes: Changes) -> list[str]:
    """Returns changes as they are written on the command line, each KEY=VALUE.

    Raises:
        RecipeError: If a value is no plain data.
    """
    if isinstance(changes, Mapping):
        return [f"{key}={_inline(value)}" for key, value in changes.items()]
    return [changes] if isinstance(changes, str) else list(changes)


def _inline(value: Any) -> str:
    """Returns plain data as they stand in an override. JSON is YAML."""
    try:
        return json.dumps(value, ensure_ascii=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"a recipe is made of plain data: {error}") from error


def _plain(value: Any) -> Any:
    """Returns what stands for a path, an array or a number of a library in JSON."""
    if isinstance(value, PathLike):
        return fspath(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not")
