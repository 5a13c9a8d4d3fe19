"""Faults of what people are shown: metrics by default, reports, progress, tables, errors."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from invem import cli, door
from invem.cli.progress import follow
from invem.config import Catalog
from invem.errors import RecipeError
from invem.running.records import Record

CATALOG = Catalog.load()
SMALL = {
    "data": {"name": "synthetic", "train": 16, "test": 4, "size": 4},
    "operator": "identity",
    "noise": {"name": "gaussian", "sigma": 0.2},
    "network": {"name": "mlp", "width": 8, "depth": 1},
    "phases": [
        {
            "name": "first",
            "sampler": "observation",
            "fit": {"objective": "gaussian-moments"},
        },
        {
            "name": "second",
            "rounds": 2,
            "sampler": {"name": "mmps", "steps": 2},
            "fit": {"objective": "dsm", "steps": 2, "batch": 4},
        },
    ],
    "evaluate": {"samples": 8, "draws": 2, "steps": 2, "posterior": 2},
}


def recipe(**evaluate):
    return {**SMALL, "evaluate": {**SMALL["evaluate"], **evaluate}}


def observed(folder):
    """A recipe for measurements that exist already."""
    save_file({"y": torch.randn(24, 1, 4, 4)}, folder / "y.safetensors")
    source = {"name": "measurements", "path": str(folder / "y.safetensors")}
    return {**SMALL, "data": None, "observations": source}


def invem(monkeypatch, capsys, *words):
    """Runs the command line; returns the exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["invem", *map(str, words)])
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [(number, signal.getsignal(number)) for number in numbers]
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    for number, handler in handlers:
        signal.signal(number, handler)
    return stopped.value.code or 0, *capsys.readouterr()


# 1-6. Metrics that a recipe does not name


def test_a_recipe_without_metrics_has_those_that_fit_it(tmp_path):
    known = door.plan(recipe())
    assert {"psnr", "ssim", "data-misfit"} <= set(known.metrics)
    names = [part["name"] for part in known.resolved["evaluate"]["metrics"]]
    assert names == list(known.metrics)
    unknown = door.plan(observed(tmp_path))
    assert {"data-misfit", "observation-distance"} <= set(unknown.metrics)
    assert not any("truth" in metric.needs for metric in unknown.metrics.values())
    silent = door.plan({**recipe(), "noise": "none"})
    assert "data-misfit" not in silent.metrics and "psnr" in silent.metrics
    few = door.plan(recipe(samples=1))
    assert "observation-distance" not in few.metrics
    none = door.plan({**recipe(observations=0)})
    assert "psnr" not in none.metrics


def test_show_names_the_metrics_that_a_run_will_have(tmp_path, monkeypatch, capsys):
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    code, out, _ = invem(monkeypatch, capsys, "show", path)
    assert code == 0 and yaml.safe_load(out) == door.plan(path).resolved
    path.write_text(yaml.safe_dump({**SMALL, "data": {"name": "folder", "path": "nowhere"}}))
    code, out, _ = invem(monkeypatch, capsys, "show", path)
    assert code == 0 and yaml.safe_load(out)["evaluate"]["metrics"] is None


def test_a_run_without_metrics_has_numbers_and_is_gone_on_with(tmp_path):
    run = door.run(recipe(), out=tmp_path / "run")
    assert {"psnr", "data-misfit"} <= set(run.metrics[-1]["metrics"])
    again = door.run(recipe(), out=tmp_path / "run")
    assert again.finished and again.metrics == run.metrics
    with pytest.raises(RecipeError, match="another recipe"):
        door.run(recipe(metrics=[]), out=tmp_path / "run")


def test_no_metrics_on_purpose_cost_no_evaluation(tmp_path):
    run = door.run(recipe(metrics=[]), out=tmp_path / "run")
    assert run.finished and not list(run.path.glob("*-evaluation"))
    assert "evaluate" not in run.results["seconds"]["second"]
    from invem import report

    text = report.write(run.path).read_text("utf-8")
    assert "No evaluation yet" not in text and "evaluate.metrics" in text and "finished" in text
