"""Faults of what people are shown: metrics by default, reports, progress, tables, errors."""

import base64
import io
import json
import re
import subprocess
import sys
from typing import Annotated, Literal

import pytest
import torch
import yaml
from annotated_types import Gt, Interval, Len
from command import invem
from safetensors.torch import save_file

from invem import bench as benches
from invem import door, report
from invem.bench import METRICS
from invem.cli.output import print_metrics
from invem.cli.progress import follow
from invem.cli.runs import StopSignals
from invem.cli.timing import Work, duration
from invem.cli.words import type_words
from invem.config import Catalog
from invem.errors import RecipeError
from invem.running.records import Record
from invem.storage import sealed
from invem.storage.directory import RunDirectory
from invem.storage.shapes import FORMAT

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
    about = {"name": "r", "format": FORMAT, "recipe": "phases: []\n", "warnings": list(warnings)}
    seal(folder / "run.json", about)
    lines = [{"phase": None, "name": "observations", "round": None, "metrics": observations or {}}]
    for i, found in enumerate(rounds):
        lines.append({"phase": 0, "name": "em", "round": i, "metrics": found})
    seal_lines(folder / "metrics.jsonl", lines)
    return folder


def seal(path, value):
    sealed.write(path, value, RunDirectory(path.parent).place_of(path))


def seal_lines(path, rows):
    place = RunDirectory(path.parent).place_of(path)
    path.write_text("".join(sealed.line_of(row, place) for row in rows))


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
    seal_lines(run / "log.jsonl", [line])
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


# 1-14. Progress, lists and help


def steps(event, count, *, phase=0, number=0, total=None):
    where = {"phase": phase, "name": "em", "round": number}
    key = "step" if event == "loss" else "done"
    total = total or count
    for i in range(1, count + 1):
        loss = {"loss": 0.5} if event == "loss" else {}
        yield Record(event, {**where, key: i, "total": total, **loss})


class Time:
    """A clock that goes on by one second with each record."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr("invem.cli.progress.time.monotonic", lambda: self.now)

    def passing(self, records):
        for record in records:
            self.now += 1.0
            yield record


def test_rate_and_time_left_agree(monkeypatch, capsys):
    clock = Time(monkeypatch)
    first, second = steps("e-step", 3), steps("loss", 15, total=60)
    list(follow(clock.passing([*first, *second])))
    lines = [line for line in capsys.readouterr().err.splitlines() if "M-step" in line]
    (done, rate, left) = re.search(r"(\d+)/60, ([\d.]+) steps/s.*, (\d+) s left", lines[0]).groups()
    assert int(left) == round((60 - int(done)) / float(rate)) and float(rate) == 1.0
    assert lines[0].startswith("em 1: M-step")


def test_a_step_that_was_begun_before_is_not_taken_for_a_fast_one(monkeypatch, capsys):
    clock = Time(monkeypatch)
    begun = [r for r in steps("loss", 720, total=1000) if r.data["step"] > 700]
    list(follow(clock.passing(begun)))
    assert re.findall(r"([\d.]+) steps/s", capsys.readouterr().err) == ["1.0"]


def test_the_time_left_of_the_run_counts_the_rounds_to_come(monkeypatch):
    made = recipe(metrics=["psnr"])
    made["phases"] = [SMALL["phases"][0], {**SMALL["phases"][1], "rounds": 10}]
    work = Work(door.plan(made))
    where = {"phase": 1, "name": "second"}
    left = []
    for number in range(10):
        for event, total in [("e-step", 16), ("loss", 2), ("restore", 8)]:
            for done in (total // 2, total):
                data = {**where, "round": number, "done": done, "total": total}
                left.append(work.left(Record(event, data), done, total, 1.0))
    assert left[0] is None and all(seconds is not None for seconds in left[1:])
    # Six halves of a step in each of ten rounds, a second each, of which i are done.
    for i in range(12, len(left)):
        assert left[i] == pytest.approx(60 - i - 1, abs=6)
    assert left[-1] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (42, "42 s"), (200, "3 min 20 s"), (3900, "1 h 05 min"), (float("inf"), "?")],
)
def test_times_are_in_words(seconds, words):
    assert duration(seconds) == words


def test_a_stop_is_no_error_and_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    monkeypatch.setattr(StopSignals, "__call__", lambda self: 130)
    code, _, err = invem(monkeypatch, capsys, "run", path, "--out", tmp_path / "run")
    assert code == 130 and "error:" not in err
    assert err.splitlines()[-1] == f"stopped; go on with: invem resume {tmp_path / 'run'}"


@pytest.mark.parametrize("columns", [60, 120, None])
def test_lists_are_wrapped_between_words(monkeypatch, capsys, columns):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns:
        monkeypatch.setenv("COLUMNS", str(columns))
    code, out, _ = invem(monkeypatch, capsys, "ls")
    assert code == 0 and max(map(len, out.splitlines())) <= (columns or 100)
    words = out.split()
    for offers in CATALOG.offers.values():
        for component in (each for parts in offers.values() for each in parts):
            assert component.summary.split()[-1] in words


def test_every_component_has_a_summary_of_its_own():
    for kind, offers in CATALOG.offers.items():
        found = [component.summary for parts in offers.values() for component in parts]
        assert all(found) and len(set(found)) == len(found), kind


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Annotated[float, Gt(0)], "number above 0"),
        (Annotated[int, Interval(ge=1, le=255)], "whole number from 1 to 255"),
        (Annotated[float, Interval(ge=0, lt=1)] | None, "number at least 0 and below 1, or null"),
        (Annotated[list[Annotated[float, Gt(0)]], Len(2, 2)], "list of 2, each: number above 0"),
        (list[int], "list, each: whole number"),
        (Literal["crop", "resize"], "crop or resize"),
        (bool | str, "true or false, or text"),
    ],
)
def test_types_are_in_words(annotation, words):
    assert type_words(annotation) == words


def test_options_of_every_component_are_in_words(monkeypatch, capsys):
    for name in ("unet", "mmps", "gaussian", "folder", "chain"):
        code, out, _ = invem(monkeypatch, capsys, "info", name)
        assert code == 0 and "typing." not in out and "Annotated" not in out
    assert "of: list, each: an operator (required)" in out


@pytest.mark.parametrize(
    "words", [["-h"], ["run", "-h"], ["plugin", "-h"], ["plugin", "new", "-h"]]
)
def test_help_has_a_short_option(monkeypatch, capsys, words):
    code, out, _ = invem(monkeypatch, capsys, *words)
    assert code == 0 and "Usage" in out


def test_evaluations_keep_the_order_of_the_recipe(tmp_path):
    order = ["ssim", "psnr", "data-misfit", "calibration"]
    run = door.run(recipe(metrics=order), out=tmp_path / "run")
    assert list(run.metrics[-1]["metrics"]) == order


# Part 3, D3. Characters that disturb a terminal or a page

EVIL = "\x1b]0;owned\x07\x9b31m\u202e\u2066\x7f\u200f[/nope]<i>"
DISTURBING = set("\x1b\x07\x9b\u202e\u2066\x7f\u200f")


def hostile(folder):
    """A run directory whose every text is hostile."""
    metric = value(1.5, 0.1, EVIL, target=1.0, above=EVIL, below=EVIL)
    run = evaluated(folder, {EVIL: metric}, observations={EVIL: metric}, warnings=[EVIL])
    about = {
        "name": EVIL,
        "created": EVIL,
        "recipe": f"phases: []\n{EVIL}: 1\n",
        "environment": {EVIL: EVIL},
        "components": [dict.fromkeys(("kind", "name", "distribution", "version"), EVIL)],
        "warnings": [EVIL],
    }
    seal(run / "run.json", {**about, "format": FORMAT})
    lines = [{"phase": 0, "name": EVIL, "round": 0, "metrics": {EVIL: metric}}]
    seal_lines(run / "metrics.jsonl", lines)
    where = {"name": EVIL, "round": 0, "phase": 0}
    log = [
        {"event": "stop", "reason": EVIL, **where},
        {"event": "damaged", "warning": EVIL, **where},
        {"event": "calibrate", "values": {EVIL: 1.0}, **where},
        {"event": "loss", "loss": 1.0, "step": 1, **where},
        {"event": "fit", "seconds": 1.0, **where},
    ]
    seal_lines(run / "log.jsonl", log)
    seal(run / "identifiability.json", {"lines": [EVIL], "warning": EVIL})
    return run


def test_nothing_in_a_report_turns_or_hides_its_text(tmp_path):
    text = report.write(hostile(tmp_path / "run")).read_text("utf-8")
    assert not DISTURBING & set(text) and r"\u202e" in text and "<i>" not in text
    charts = re.findall(r"data:image/svg\+xml;base64,([^\"]*)", text)
    assert charts
    for chart in charts:
        assert not DISTURBING & set(base64.b64decode(chart).decode("utf-8"))


def test_nothing_in_a_page_of_a_benchmark_turns_or_hides_its_text():
    row = {
        "setting": EVIL,
        "error": EVIL,
        "failures": 0,
        "metrics": {},
        "options": {EVIL: EVIL},
        "tuning": None,
        "coverage": None,
    }
    document = {
        "problem": {
            "name": EVIL,
            "exact": False,
            "truth": EVIL,
            "range": [0, 1],
            "definition": EVIL,
        },
        "seeds": [0],
        "observations": 1,
        "draws": 1,
        "budget": None,
        "tune": 0,
        "floor": None,
        "left_out": [EVIL],
        "environment": {EVIL: EVIL},
        "rows": [row],
    }
    text = benches.render_page(document, {})
    assert not DISTURBING & set(text) and r"\u202e" in text


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_no_hostile_text_of_a_recipe_or_a_plugin_reaches_the_terminal(
    tmp_path, monkeypatch, capsys, as_json
):
    made = {**recipe(metrics=[]), "data": {"name": "folder", "root": f"/nowhere/{EVIL}"}}
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(made))
    plugin = f"""
from invem import hookimpl
def evil(*, {"a"}: str = {EVIL!r}):
    {("Evil " + EVIL)!r}
evil.__doc__ = {("Evil " + EVIL)!r}
@hookimpl
def invem_schedules():
    return {{"evil": evil, {EVIL!r}: evil}}
"""
    (tmp_path / "evil.py").write_text(plugin)
    monkeypatch.setenv("INVEM_PLUGINS_DIR", str(tmp_path))
    told = ""
    for words in (
        ["show", path],
        ["plan", path],
        ["ls"],
        ["info", "evil"],
        ["info", EVIL],
        ["plugin", "list"],
        ["eval", tmp_path / EVIL.replace("/", "")],
        ["report", tmp_path / EVIL.replace("/", "")],
        ["bench", EVIL],
    ):
        if as_json and words[0] == "bench":
            continue
        code, out, err = invem(monkeypatch, capsys, *words, *as_json)
        assert "Traceback" not in err, words
        if as_json and not code:
            json.loads(out)
        elif words[0] == "show":
            assert yaml.safe_load(out)["data"]["root"].endswith(EVIL)
        assert not DISTURBING & set(out + err), words
        told += out + err
    assert r"\u202e" in told


def test_hostile_metrics_do_not_reach_the_terminal(capsys):
    metric = value(1.5, 0.1, EVIL, target=1.0)
    print_metrics([{"name": EVIL, "round": 0, "of": EVIL, "metrics": {EVIL: metric}}])
    found = Record("evaluate", {"name": EVIL, "round": 0, "metrics": {EVIL: metric}})
    assert len(list(follow([found]))) == 1
    out, err = capsys.readouterr()
    assert not DISTURBING & set(out + err) and "[/nope]" in err


# Part 3, D12. Output that cannot be written


def call(*words, **streams):
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | streams
    command = [sys.executable, "-m", "invem", *map(str, words)]
    return subprocess.run(command, check=False, timeout=120, **streams).returncode


class Gone(io.StringIO):
    """A terminal that was closed."""

    def isatty(self):
        return True

    def write(self, text=""):
        raise OSError(5, "Input/output error")

    flush = fileno = write


def test_a_terminal_that_is_gone_ends_no_run(tmp_path, monkeypatch, capsys):
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(recipe(metrics=["psnr"])))
    monkeypatch.setattr(sys, "stderr", Gone())
    code, out, _ = invem(monkeypatch, capsys, "run", path, "--out", tmp_path / "run")
    assert code == 0 and str(tmp_path / "run" / "report.html") in " ".join(out.split())


def test_a_mistake_keeps_its_code_where_stderr_is_full():
    with open("/dev/full", "w") as full:
        assert call("eval", "--bogus", stderr=full) == 2


def test_marks_that_turn_text_do_not_reach_stderr_from_the_command_line(monkeypatch, capsys):
    code, _, err = invem(monkeypatch, capsys, "run", "--no\u202e\u2066\x1b[2J")
    assert code == 2 and not {"\u202e", "\u2066"} & set(err) and r"\u202e" in err


def test_a_reader_who_has_enough_is_no_error():
    command = [sys.executable, "-m", "invem", "ls", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b"" and process.wait(60) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", ["run", "plan", "ls", "info", "show", "eval", "report", "bench"]
)
def test_a_full_stdout_is_code_6_for_every_command(tmp_path, command):
    path, run = tmp_path / "r.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(recipe(metrics=["psnr"])))
    words = {"run": [path, "--out", run], "ls": [], "info": ["mmps"]}
    words |= {"plan": [path], "show": [path], "eval": [run], "report": [run]}
    words["bench"] = [run, "--samplers", "mmps", "--seeds", 1, "--draws", 2]
    if command in ("eval", "report", "bench"):
        door.run(path, out=run)
    with open("/dev/full", "w") as full:
        assert call(command, *words[command], stdout=full) == 6
