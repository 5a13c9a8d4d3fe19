"""Recipes and components: what a person wrote, checked, with the place of each value."""

from invem.config.catalog import KINDS, Catalog, Component, Plugin
from invem.config.given import Changes, RecipeLike, load_any, words_of
from invem.config.load import Loaded, error, load, load_data, locate, replace
from invem.config.messages import explain
from invem.config.options import component_place, options_of, parse_options
from invem.config.schema import (
    Compute,
    Evaluate,
    Fit,
    Part,
    Phase,
    Recipe,
    dump,
    json_schema,
)

__all__ = [
    "KINDS",
    "Catalog",
    "Changes",
    "Component",
    "Compute",
    "Evaluate",
    "Fit",
    "Loaded",
    "Part",
    "Phase",
    "Plugin",
    "Recipe",
    "RecipeLike",
    "component_place",
    "dump",
    "error",
    "explain",
    "json_schema",
    "load",
    "load_any",
    "load_data",
    "locate",
    "options_of",
    "parse_options",
    "replace",
    "words_of",
]
