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

from invem import cli, door, report
from invem.bench import METRICS
from invem.cli.output import print_metrics
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
    source = {"name": "measurements", "file": str(folder / "y.safetensors"), "shape": [1, 4, 4]}
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
    silent = door.plan({**recipe(), "noise": {"name": "gaussian", "sigma": 0.0}})
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
    path.write_text(yaml.safe_dump({**SMALL, "data": {"name": "folder", "root": "nowhere"}}))
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
    text = report.write(run.path).read_text("utf-8")
    assert "No evaluation yet" not in text and "evaluate.metrics" in text and "finished" in text


# 1-11. The verdict


def evaluated(folder, *rounds, observations=None, warnings=(), **log):
    """A run directory with metrics alone: one mapping of metrics for each round of phase "em"."""
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"name": "r", "warnings": list(warnings)}))
    lines = [{"phase": None, "name": "observations", "round": None, "metrics": observations or {}}]
    for i, found in enumerate(rounds):
        lines.append({"phase": 0, "name": "em", "round": i, "metrics": found})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def value(number, sem=None, unit="", better=None, target=None, **more):
    return {
        "value": number,
        "sem": sem,
        "unit": unit,
        "higher_is_better": better,
        "target": target,
        **more,
    }


def told(folder):
    return [(sentence.tone, sentence.text) for sentence in report.verdict(report.load(folder))]


def test_metrics_of_which_1_is_right_say_so(capsys, tmp_path):
    metrics = door.plan(recipe(metrics=["data-misfit", "observation-distance"])).metrics
    assert [metric.target for metric in metrics.values()] == [1.0, 1.0]
    assert not any(metric.higher_is_better for metric in metrics.values())
    mean = CATALOG.find("metrics", "data-misfit").load()(of="mean")
    assert mean.target is None and mean.higher_is_better is None
    run = evaluated(tmp_path / "r", {"misfit": value(1.2, 0.1, "sigma", target=1.0)})
    assert "misfit (sigma) → 1" in report.write(run).read_text("utf-8")
    print_metrics([json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()])
    assert "misfit (sigma) → 1" in capsys.readouterr().out
    assert all("(1)" not in meaning.title(name) for name, meaning in METRICS.items())


def test_the_report_says_how_far_the_result_is_from_the_observations(tmp_path):
    now, raw = value(24.0, 0.3, "dB", True), value(20.0, 0.4, "dB", True)
    run = evaluated(tmp_path / "a", {"psnr": now}, observations={"psnr": raw})
    text = "psnr 24.00 ± 0.30 dB is 4.00 ± 0.50 dB better than the observations, 20.00 ± 0.40 dB"
    assert ("good", text) in told(run)
    assert "4.00\u00a0±\u00a00.50 dB better" in report.write(run).read_text("utf-8")
    worse = evaluated(tmp_path / "b", {"psnr": raw}, observations={"psnr": now})
    assert any(tone == "bad" and "4.00 ± 0.50 dB worse" in text for tone, text in told(worse))
    close = evaluated(tmp_path / "c", {"psnr": {**raw, "value": 20.5}}, observations={"psnr": raw})
    assert any(tone == "bad" and "is not told from" in text for tone, text in told(close))


def test_the_report_says_whether_the_misfit_is_that_of_the_noise(tmp_path):
    words = {"above": "they contradict", "below": "they fit the noise"}
    for number, tone, word in [(1.02, "good", "consistent"), (1.4, "bad", "contradict")]:
        misfit = value(number, 0.02, "sigma", target=1.0, **words)
        run = evaluated(tmp_path / str(number), {"misfit": misfit})
        assert any(t == tone and word in text for t, text in told(run))
    low = evaluated(tmp_path / "low", {"misfit": value(0.2, 0.02, target=1.0, **words)})
    assert any("below 1" in text and "fit the noise" in text for _, text in told(low))


def test_the_report_says_whether_rounds_still_improve(tmp_path):
    rounds = [{"frechet": value(v, better=False)} for v in (0.8, 0.34, 0.6, 0.9)]
    (found,) = (text for tone, text in told(evaluated(tmp_path / "a", *rounds)) if tone == "bad")
    assert "Worse in em 4 than in em 2: frechet 0.34 → 0.9" in found
    assert 'run.prior_at("em", 1)' in found
    up = [{"psnr": value(v, 0.1, "dB", True)} for v in (20, 22, 23)]
    assert any("more rounds may help" in text for _, text in told(evaluated(tmp_path / "b", *up)))
    flat = [{"psnr": value(v, 0.1, "dB", True)} for v in (20, 22, 22.01)]
    assert len(told(evaluated(tmp_path / "c", *flat))) == 1


def test_the_report_repeats_the_warnings_of_a_run(tmp_path):
    run = evaluated(tmp_path / "a", {"psnr": value(20.0, 0.1)}, warnings=["3 files left out"])
    line = {"event": "calibrate", "name": "em", "round": 0, "values": {"s": 1}, "settled": False}
    (run / "log.jsonl").write_text(json.dumps(line) + "\n")
    bad = [text for tone, text in told(run) if tone == "bad"]
    assert bad[0] == "3 files left out" and "not settled" in bad[1]


@pytest.mark.parametrize(
    ("operator", "of"),
    [({"name": "downsample", "factor": 2}, "least squares"), ("radon", "least squares")],
)
def test_observations_of_another_shape_have_numbers_too(tmp_path, operator, of):
    made = {**recipe(metrics=["psnr"]), "operator": operator}
    first = {"name": "first", "fit": {"objective": "gaussian-moments"}}
    made["phases"] = [first, {**SMALL["phases"][1], "rounds": 1}]
    run = door.run(made, out=tmp_path / "run")
    assert of in run.metrics[0]["of"] and run.metrics[0]["metrics"]["psnr"]["n"] == 4
    assert f"observations ({run.metrics[0]['of']})" in report.write(run.path).read_text("utf-8")


def test_columns_are_in_the_order_of_the_recipe(tmp_path, capsys):
    found = {"data-misfit": value(1.0, target=1.0), "psnr": value(2.0)}
    run = evaluated(tmp_path / "a", found, observations={"psnr": value(1.0)})
    print_metrics([json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()])
    out = capsys.readouterr().out
    assert out.index("data-misfit") < out.index("psnr")
    assert list(report.load(run).metrics()) == ["data-misfit", "psnr"]
