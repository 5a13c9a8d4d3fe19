"""Faults that were found by injecting them, one test of each kind."""

import pytest

from invem import door
from invem.config import Catalog
from invem.errors import RecipeError

CATALOG = Catalog.load()
SMALL = {
    "data": {"name": "synthetic", "train": 16, "test": 4, "size": 4},
    "operator": "identity",
    "noise": {"name": "gaussian", "sigma": 0.2},
    "network": {"name": "mlp", "width": 8, "depth": 1},
    "phases": [
        {"name": "only", "rounds": 1, "sampler": "observation", "fit": {"objective": "dsm"}}
    ],
    "evaluate": {"samples": 4, "draws": 1, "steps": 2, "sampler": "observation"},
}


# D1. Code that runs from data


def test_no_recipe_names_torchscript(tmp_path, monkeypatch):
    monkeypatch.delenv("INVEM_INCEPTION", raising=False)
    for more, words in (({"weights": "x.pt"}, "unknown key"), ({}, "INVEM_INCEPTION")):
        metric = {"name": "frechet", "features": "inception", **more}
        with pytest.raises(RecipeError, match=words):
            door.plan(SMALL | {"evaluate": {"metrics": [metric]}}, catalog=CATALOG)
