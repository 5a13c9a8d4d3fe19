"""Faults that were found by injecting them, one test of each kind."""

import textwrap

import pytest
import yaml

from invem import door
from invem.config import Catalog
from invem.errors import PluginError, RecipeError

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


# D10. Components that break

PLUGIN = """
import sys
import torch
from torch import nn
from invem import Metric, NoiseModel, Objective, Operator, PosteriorSampler, Rng, hookimpl
from dataclasses import dataclass
from typing import ClassVar

def broken(value):
    {breaks}

@dataclass(frozen=True, eq=False)
class Same(Operator):
    def __call__(self, x):
        return {operator}

def operator(n, shape, rng):
    return Same(tuple(shape))

@dataclass(frozen=True, eq=False)
class Quiet(NoiseModel):
    def sample(self, clean, rng):
        return {noise}

    def log_prob(self, y, clean):
        return torch.zeros(len(y))

def noise(n, shape, rng):
    return Quiet()

@dataclass(frozen=True, kw_only=True)
class Sampler(PosteriorSampler):
    needs: ClassVar[frozenset] = frozenset()
    def __call__(self, prior, m, rng):
        return {sampler}

@dataclass(frozen=True, kw_only=True)
class Loss(Objective):
    needs: ClassVar[frozenset] = frozenset({{"x"}})
    def loss(self, model, batch, rng):
        return {objective}

@dataclass(frozen=True, kw_only=True)
class Score(Metric):
    unit: ClassVar[str] = "1"
    higher_is_better: ClassVar[bool] = True
    needs: ClassVar[frozenset] = frozenset({{"draws"}})
    def __call__(self, outcome, state):
        return {metric}

class Net(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
    def forward(self, x, c_noise, cond=None):
        return {network}

@hookimpl
def invem_operators():
    return {{"frail": operator}}
@hookimpl
def invem_noises():
    return {{"frail": noise}}
@hookimpl
def invem_samplers():
    return {{"frail": Sampler}}
@hookimpl
def invem_objectives():
    return {{"frail": Loss}}
@hookimpl
def invem_metrics():
    return {{"frail": Score}}
@hookimpl
def invem_networks():
    return {{"frail": Net}}
"""
WHOLE = {
    "operator": "x",
    "noise": "clean",
    "sampler": "m.y",
    "objective": "(model(batch.x, 0.5) - batch.x).square().flatten(1).mean(1)",
    "metric": "outcome.draws.mean((1, 2, 3, 4))",
    "network": "self.scale * x",
}
WRONG = {
    "None": "None",
    "an exception": "broken({})",
    "SystemExit(0)": "sys.exit(0) or {}",
    "a wrong shape": "({})[..., None].expand(*[-1] * ({}).ndim, 3)",
    "a wrong type": "({}).to(torch.complex64)",
}


@pytest.fixture
def frail(tmp_path, monkeypatch):
    """Writes a plugin of components, one of which breaks, and returns their recipe's path."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    monkeypatch.setenv("INVEM_PLUGINS_DIR", str(folder))

    def write(**wrong):
        text = PLUGIN.format(**{**WHOLE, **wrong}, breaks="raise KeyError('no such coil')")
        (folder / "frail.py").write_text(textwrap.dedent(text))
        recipe = {
            **SMALL,
            "operator": "frail",
            "noise": "frail",
            "network": "frail",
            "phases": [
                {**SMALL["phases"][0], "name": "first", "fit": {"objective": "gaussian-moments"}},
                {
                    "name": "second",
                    "rounds": 1,
                    "sampler": "frail",
                    "fit": {"objective": "frail", "steps": 2, "batch": 4},
                },
            ],
            "evaluate": {"metrics": ["frail"], "samples": 4, "steps": 2},
            "compute": {"threads": 1},
        }
        path = tmp_path / "frail.yaml"
        path.write_text(yaml.safe_dump(recipe))
        return path

    return write


def test_components_that_are_whole_run(frail, tmp_path):
    assert door.run(frail(), out=tmp_path / "run").finished


@pytest.mark.parametrize("fault", WRONG)
@pytest.mark.parametrize("kind", WHOLE)
def test_a_component_that_breaks_is_named(frail, tmp_path, kind, fault):
    whole = WHOLE[kind]
    wrong = "({})[:1]" if (kind, fault) == ("operator", "a wrong shape") else WRONG[fault]
    path = frail(**{kind: wrong.replace("{}", whole)})
    with pytest.raises(PluginError) as found:
        door.run(path, out=tmp_path / "run")
    text = str(found.value)
    assert "\n" not in text and "frail" in text
    assert kind in text and found.value.exit_code == 3
    if fault == "an exception":
        assert "no such coil" in text and "frail.py, line" in text
