"""Loading a recipe: its file, the files it extends, the smoke block and overrides, then checks."""

import itertools
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from invem.config import yaml
from invem.config.extends import Written, read, read_text
from invem.config.messages import Places, explain, line
from invem.config.options import joined
from invem.config.overrides import MAX_PROBLEMS, Draft
from invem.config.schema import INLINE, Recipe, allowed_keys
from invem.errors import RecipeError

__all__ = ["Loaded", "error", "load", "load_data", "locate", "replace"]


@dataclass(frozen=True)
class Loaded:
    """A recipe and where each of its values was written.

    Attributes:
        recipe: The checked recipe.
        document: The file as it was read, without those that it extends.
        source: The path of the file, as it was given.
        value: The recipe as plain data in YAML shape, with all that was extended and changed.
        text: The text of the file.
        places: Where each value was written.
    """

    recipe: Recipe
    document: yaml.Document
    source: str
    value: dict[str, Any]
    text: str
    places: Places


def load(path: Path | str, overrides: Sequence[str] = (), smoke: bool = False) -> Loaded:
    """Reads and checks a recipe.

    Args:
        path: The YAML file. The recipes that it extends are read too.
        overrides: ``key.sub=value``; a list item is named by its index, a phase also by its name.
        smoke: Whether the recipe's `smoke` block is applied, before the overrides.

    Raises:
        RecipeError: Every problem, one per line, each with its place, its dotted path and what is
            allowed.
    """
    return _changed(read(path), overrides, smoke)


def load_data(
    value: Mapping[str, Any], source: str, overrides: Sequence[str] = (), smoke: bool = False
) -> Loaded:
    """Checks a recipe that is plain data already.

    Args:
        value: The recipe in YAML shape.
        source: Its name in messages.
        overrides: As for `load`.
        smoke: As for `load`.

    Raises:
        RecipeError: As `load` does; a place is that of the data written as YAML.
    """
    raw = yaml.dump(dict(value)).encode()
    return _changed(read_text(raw, Path(source), source), overrides, smoke)


def _changed(written: Written, overrides: Sequence[str], smoke: bool) -> Loaded:
    draft = Draft(written.value, written.places)
    if smoke:
        draft.apply_smoke()
    draft.apply_overrides(overrides)
    return _loaded(draft, written.document, written.text)


def replace(loaded: Loaded, overrides: Sequence[str]) -> Loaded:
    """Applies more overrides and checks the recipe again; raises as `load` does."""
    places = Places(loaded.places.values, loaded.places.keys, dict(loaded.places.edits))
    draft = Draft(deepcopy(loaded.value), places)
    draft.apply_overrides(overrides)
    return _loaded(draft, loaded.document, loaded.text)


def locate(loaded: Loaded, path: yaml.Path, key: bool = False) -> str:
    """Returns where a value was written: ``file:line:column`` or ``override 'key=value'``.

    Args:
        loaded: The recipe.
        path: Keys and indices as in the YAML: options stand directly under the component.
        key: Whether the place of the key is meant, not that of the value.
    """
    return loaded.places.find(path, key)


def error(loaded: Loaded, path: yaml.Path, message: str, key: bool = False) -> RecipeError:
    """Returns the error ``place: dotted.path: message`` about the value, or the key, at a path."""
    return RecipeError(line(locate(loaded, path, key), path, message))


def _loaded(draft: Draft, document: yaml.Document, text: str) -> Loaded:
    draft.expand_chain()
    _join_prior(draft)
    recipe = _validated(draft)
    if recipe is None or draft.problems:
        more = ["... and more"] if len(draft.problems) > MAX_PROBLEMS else []
        raise RecipeError("\n".join([*draft.problems[:MAX_PROBLEMS], *more]))
    return Loaded(recipe, document, document.source, draft.value, text, draft.places)


def _join_prior(draft: Draft) -> None:
    """Writes out the path of the run that a recipe begins with."""
    named = draft.value.get("prior")
    if isinstance(named, str) and named and named != "network":
        draft.value["prior"] = joined(draft.places.folder(("prior",)), named)


def _validated(draft: Draft) -> Recipe | None:
    try:
        return Recipe.model_validate(draft.value, context=INLINE)
    except ValidationError as flaws:
        problems = explain(flaws, draft.value, allowed_keys)
        for path, key, message in itertools.islice(problems, MAX_PROBLEMS + 1):
            draft.problems.append(line(draft.places.find(path, key), path, message))
        return None
