"""Reports: every section from the files alone, whatever is missing, and nothing that leaves the
page."""

import io
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from invem import report
from invem.errors import DataError

RECIPE = """\
# <script>alert("x")</script> & <img src=http://evil.example/x.png>
phases:
  - {name: warm-start, rounds: 1}
  - {name: em, rounds: 2}
evaluate: {metrics: [psnr]}
"""
TITLES = [
    "Held-out observations",
    "Unconditional samples",
    "Metrics over the run",
    "Training loss",
    "All metrics",
    "Times",
    "Recipe",
    "Environment",
    "Components",
]
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Collects tags, headings and what the page refers to; fails on tags that do not nest."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.titles, self.open = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [
            v for k, v in attrs if k in {"src", "href", "xlink:href", "srcset", "action"}
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["h2"]:
            self.titles.append(data)


def metrics(phase, name, number, psnr):
    values = {
        "psnr": {"value": psnr, "sem": 0.25, "n": 5, "unit": "dB", "higher_is_better": True},
        "<b>odd": {"value": math.nan, "sem": None, "n": 0, "unit": "", "higher_is_better": None},
        "frechet": {
            "value": 100 / psnr,
            "sem": math.inf,
            "n": 5,
            "unit": "",
            "higher_is_better": False,
        },
    }
    return {"phase": phase, "name": name, "round": number, "metrics": values}


def fabricate(run, *, truth=True, rounds=3, channels=1, draws=4):
    """A run of 8 x 8 images of which `rounds` of three rounds are done."""
    rng = np.random.default_rng(0)
    shape = (channels, 8, 8)
    x = rng.uniform(-1, 1, (5, *shape)).astype(np.float32)
    about = {
        "format": 1,
        "recipe": RECIPE,
        "name": "blur <i>",
        "created": "2025-01-02T03:04:05+00:00",
        "environment": {"python": "3.11.2", "cpu": "<u>fast</u>", "threads": 2, "cuda": None},
        "components": [
            {"kind": "operator", "name": "blur", "distribution": "invem", "version": "0.1.0"}
        ],
    }
    (run / "measurements" / "test").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps(about))
    save_file({"y": x + 0.1, "A.keep": x}, run / "measurements" / "test" / "00000.safetensors")
    if truth:
        (run / "truth").mkdir()
        save_file({"x": x}, run / "truth" / "00000.safetensors")
    lines, log = [metrics(None, "observations", None, 10.0)], []
    for phase, name, number in [(0, "warm-start", 0), (1, "em", 0), (1, "em", 1)][:rounds]:
        folder = run / f"{phase}-{number:03d}-evaluation"
        folder.mkdir()
        noise = rng.normal(size=(5, draws, *shape)).astype(np.float32)
        save_file({"draws": x[:, None] + 0.1 * noise}, folder / "restorations.safetensors")
        save_file({"x": np.tile(x, (4, 1, 1, 1))}, folder / "samples.safetensors")
        lines.append(metrics(phase, name, number, 21.0 + 2 * phase + number))
        (folder / "metrics.json").write_text(json.dumps(lines[-1]))
        at = {"phase": phase, "name": name, "round": number}
        log.append({"event": "e-step", "seconds": 1.5, "extra": [1], **at})
        log += [{"event": "loss", "step": s, "loss": 1 / (s + 1), **at} for s in range(0, 500, 10)]
        log += [{"event": "loss", "step": 999, "loss": None, **at}]
        log += [{"event": e, "seconds": 2.25, **at} for e in ("fit", "evaluate")]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "log.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in log) + '{"event": "lo'
    )
    return run


def read(run):
    path = report.write(run)
    assert path == run / "report.html"
    assert [p.name for p in run.iterdir() if p.name.startswith(".")] == []
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert all(r.startswith("data:image/png;base64,") for r in page.references)
    assert "script" not in page.tags and "link" not in page.tags and "url(" not in text
    return text, page


def test_finished_run(tmp_path):
    text, page = read(fabricate(tmp_path))
    assert page.titles == TITLES
    assert "· finished<" in text and "Not readable" not in text
    # Five columns of five observations, and a strip of samples for each of three rounds.
    assert page.tags.count("img") == 5 * 5 + 3
    assert (
        page.tags.count("svg") == 3
    )  # psnr, frechet and the loss; a metric without a number has no curve
    assert "24.00 ± 0.25" in text and "10.00 ± 0.25" in text and "better" in text
    assert '<td class="n"><b>18.0</b></td>' in text  # 3 rounds of 1.5 + 2.25 + 2.25 seconds


def test_strings_are_escaped(tmp_path):
    text, page = read(fabricate(tmp_path))
    assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt; &amp; &lt;img" in text
    assert "blur &lt;i&gt;" in text and "&lt;u&gt;fast" in text and "&lt;b&gt;odd" in text
    assert not {"i", "u"} & set(page.tags)


def test_unfinished_run_without_truth(tmp_path):
    text, page = read(fabricate(tmp_path, truth=False, rounds=2, draws=1))
    assert page.titles == TITLES
    assert "unfinished; last evaluated: em 0" in text
    # One draw has no spread: observation and restoration only.
    assert page.tags.count("img") == 2 * 5 + 2
    assert "<th>truth</th>" not in text and "posterior" not in text


def test_run_that_has_only_begun(tmp_path):
    (tmp_path / "run.json").write_text('{"format": 1}')
    text, page = read(tmp_path)
    assert page.titles == [] and "No evaluation yet" in text
    assert report.pictures(tmp_path) == []
    assert not (tmp_path / "pictures").exists()


def test_signals_that_are_not_images(tmp_path):
    fabricate(tmp_path, truth=False)
    for folder in tmp_path.glob("*-evaluation"):
        save_file({"draws": np.zeros((5, 2, 3))}, folder / "restorations.safetensors")
        save_file({"x": np.zeros((5, 3))}, folder / "samples.safetensors")
    save_file({"y": np.zeros((5, 2))}, tmp_path / "measurements" / "test" / "00000.safetensors")
    _, page = read(tmp_path)
    assert "img" not in page.tags and page.titles == TITLES[2:]


def test_damaged_files_are_named(tmp_path):
    fabricate(tmp_path)
    (tmp_path / "1-001-evaluation" / "restorations.safetensors").write_bytes(b"torn")
    (tmp_path / "metrics.jsonl").write_text("{]\n")
    text, page = read(tmp_path)
    assert "Not readable" in text and "1-001-evaluation/restorations.safetensors" in text
    assert "Restorations of em 0." in text  # the newest that can be read
    assert "24.00 ± 0.25" in text  # from the metrics.json of the evaluations
    assert page.titles == TITLES


def test_repeated_evaluation_counts_once(tmp_path):
    fabricate(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(metrics(1, "em", 1, 31.0)) + "\n")
    text, _ = read(tmp_path)
    assert "31.00 ± 0.25" in text and "24.00 ± 0.25" not in text
    assert (
        len(re.findall("<th>em 1</th>", text)) == 2
    )  # once among the metrics, once among the times


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_pictures(tmp_path, channels):
    paths = report.pictures(fabricate(tmp_path, channels=channels))
    names = ["restorations.png", "samples-0-000.png", "samples-1-000.png", "samples-1-001.png"]
    assert [p.name for p in paths] == names and all(
        p.parent == tmp_path / "pictures" for p in paths
    )
    for path in paths:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            assert image.format == "PNG"
            image.load()
    x = np.clip(
        np.random.default_rng(0).uniform(-1, 1, (5, channels, 8, 8)).astype(np.float32), -1, 1
    )
    with Image.open(paths[1]) as image:
        # A pixel of the image is a block of ten by ten; an image with two channels shows the first.
        pixel = np.array(image)[5:80:10, 5:80:10, :3].transpose(2, 0, 1)
    want = np.round(255 * (x[0].astype(np.float64) + 1) / 2)
    assert (pixel == (want if channels == 3 else want[:1])).all()


def test_not_a_run(tmp_path):
    for make in (report.write, report.pictures):
        with pytest.raises(DataError, match="not a run") as caught:
            make(tmp_path)
        assert "\n" not in str(caught.value)
    (tmp_path / "run.json").write_text("[")
    with pytest.raises(DataError, match="not valid JSON"):
        report.write(tmp_path)
