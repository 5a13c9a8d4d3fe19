"""Reports: every section from the files alone, whatever is missing, and nothing that leaves the
page."""

import base64
import io
import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from invem import report
from invem.errors import DataError, RecipeError
from invem.storage import sealed
from invem.storage.directory import Round, RunDirectory

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
        "name": "blur <i>",
        "created": "2025-01-02T03:04:05+00:00",
        "environment": {"python": "3.11.2", "cpu": "<u>fast</u>", "threads": 2, "cuda": None},
        "components": [
            {"kind": "operator", "name": "blur", "distribution": "invem", "version": "0.1.0"}
        ],
    }
    (run / "measurements" / "test").mkdir(parents=True)
    directory = RunDirectory(run)
    directory.begin(RECIPE, about)
    save(directory.measurements("test"), "00000", y=x + 0.1, keep=x)
    if truth:
        save(directory.truth, "00000", x=x)
    lines, log = [metrics(None, "observations", None, 10.0)], []
    for phase, name, number in [(0, "warm-start", 0), (1, "em", 0), (1, "em", 1)][:rounds]:
        folder = directory.evaluation(Round(phase, number))
        noise = rng.normal(size=(5, draws, *shape)).astype(np.float32)
        save(folder, "restorations", draws=x[:, None] + 0.1 * noise)
        save(folder, "samples", x=np.tile(x, (4, 1, 1, 1)))
        lines.append(metrics(phase, name, number, 21.0 + 2 * phase + number))
        folder.write_json("metrics", lines[-1])
        at = {"phase": phase, "name": name, "round": number}
        log.append({"event": "e-step", "seconds": 1.5, "extra": [1], **at})
        log += [{"event": "loss", "step": s, "loss": 1 / (s + 1), **at} for s in range(0, 500, 10)]
        log += [{"event": "loss", "step": 999, "loss": None, **at}]
        log += [{"event": e, "seconds": 2.25, **at} for e in ("fit", "evaluate")]
    save_lines(run / "metrics.jsonl", lines)
    save_lines(run / "log.jsonl", log)
    with (run / "log.jsonl").open("a") as file:
        file.write('{"event": "lo')
    return run


def save(folder, name, **arrays):
    """Writes a tensor file of a run."""
    folder.write(name, {key: torch.from_numpy(value) for key, value in arrays.items()})


def save_lines(path, rows):
    """Writes a JSONL file of the run `path.parent`."""
    place = RunDirectory(path.parent).place_of(path)
    path.write_text("".join(sealed.line_of(row, place) for row in rows))


def page_of_damaged(run, words):
    """Writes the report of a run with a damaged file that the error must name; reads the page."""
    with pytest.raises(DataError, match=words):
        report.write(run)
    text = (run / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


def read(run):
    path = report.write(run)
    assert path == run / "report.html"
    assert [p.name for p in run.iterdir() if p.name.startswith(".")] == []
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert all(
        re.match(r"data:image/(png|svg\+xml);base64,", reference) for reference in page.references
    )
    assert "script" not in page.tags and "link" not in page.tags and "url(" not in text
    return text, page


def charts(page):
    """The charts of a page, as SVG files."""
    start = "data:image/svg+xml;base64,"
    found = [r.removeprefix(start) for r in page.references if r.startswith(start)]
    return [base64.b64decode(data).decode("utf-8") for data in found]


def test_finished_run(tmp_path):
    text, page = read(fabricate(tmp_path))
    assert page.titles == TITLES
    assert "· finished<" in text and "Not readable" not in text
    # Five columns of five observations, and a strip of samples for each of three rounds.
    # And psnr, frechet and the loss; a metric without a number has no curve.
    assert len(charts(page)) == 3
    assert page.tags.count("img") == 5 * 5 + 3 + 3
    assert "24.00 ± 0.25" in text and "10.00 ± 0.25" in text and "better" in text
    assert '<td class="n"><b>18.0</b></td>' in text  # 3 rounds of 1.5 + 2.25 + 2.25 seconds


def test_strings_are_escaped(tmp_path):
    text, page = read(fabricate(tmp_path))
    assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt; &amp; &lt;img" in text
    assert "blur &lt;i&gt;" in text and "&lt;u&gt;fast" in text and "&lt;b&gt;odd" in text
    assert not {"i", "u"} & set(page.tags)


def test_unfinished_run_without_truth(tmp_path):
    text, page = read(fabricate(tmp_path, truth=False, rounds=2, draws=1))
    assert page.titles == TITLES
    assert "unfinished; last evaluated: em 1" in text
    # One draw has no spread: observation and restoration only.
    assert page.tags.count("img") - len(charts(page)) == 2 * 5 + 2
    assert "<th>truth</th>" not in text and "posterior" not in text


def test_run_that_has_only_begun(tmp_path):
    RunDirectory(tmp_path).begin("", {})
    text, page = read(tmp_path)
    assert page.titles == [] and "No evaluation yet" in text
    assert report.pictures(tmp_path) == []
    assert not (tmp_path / "pictures").exists()


def test_signals_that_are_not_images(tmp_path):
    fabricate(tmp_path, truth=False)
    directory = RunDirectory(tmp_path)
    for folder in map(directory.evaluation, directory.evaluated()):
        save(folder, "restorations", draws=np.zeros((5, 2, 3)))
        save(folder, "samples", x=np.zeros((5, 3)))
    save(directory.measurements("test"), "00000", y=np.zeros((5, 2)))
    _, page = read(tmp_path)
    assert page.tags.count("img") == len(charts(page)) and page.titles == TITLES[2:]


def test_damaged_files_are_named(tmp_path):
    fabricate(tmp_path)
    (tmp_path / "1-001-evaluation" / "restorations.safetensors").write_bytes(b"torn")
    (tmp_path / "metrics.jsonl").write_text("{]\n")
    text, page = page_of_damaged(
        tmp_path, "restorations.*metrics.jsonl|metrics.jsonl.*restorations"
    )
    assert "Not readable" in text and "1-001-evaluation/restorations.safetensors" in text
    assert "Restorations of em 1." in text  # the newest that can be read
    assert "24.00 ± 0.25" in text  # from the metrics.json of the evaluations
    assert page.titles == TITLES


def test_repeated_evaluation_counts_once(tmp_path):
    fabricate(tmp_path)
    path = tmp_path / "metrics.jsonl"
    before = path.read_text()
    save_lines(path, [metrics(1, "em", 1, 31.0)])
    path.write_text(before + path.read_text())
    text, _ = read(tmp_path)
    assert "31.00 ± 0.25" in text and "24.00 ± 0.25" not in text
    assert (
        len(re.findall("<th>em 2</th>", text)) == 2
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
        with pytest.raises(RecipeError, match="not a run") as caught:
            make(tmp_path)
        assert "\n" not in str(caught.value)
    (tmp_path / "run.json").write_text("[")
    with pytest.raises(DataError, match=r"run\.json: damaged"):
        report.write(tmp_path)


def texts(chart):
    """The words of a chart; the comments of the SVG file hold them beside their outlines."""
    ElementTree.fromstring(chart)
    return [text.strip() for text in re.findall(r"<!--(.*?)-->", chart)]


def test_rounds_are_counted_from_1_and_every_one_of_few_has_a_tick(tmp_path):
    text, page = read(fabricate(tmp_path))
    assert "<th>warm-start 1</th>" in text and "<th>em 2</th>" in text and "em 0" not in text
    for chart in charts(page):
        words = texts(chart)
        assert [word for word in words if word in "123"][:3] == ["1", "1", "2"]
        assert "warm-start" in words and "em" in words


def test_the_same_run_gives_the_same_page(tmp_path):
    text, _ = read(fabricate(tmp_path))
    assert read(tmp_path)[0] == text


def test_a_metric_with_a_target_is_better_nearer_to_it_and_has_no_direction(tmp_path):
    fabricate(tmp_path)
    lines = []
    for name, number, value in [("observations", None, 0.5), ("em", 0, 1.2)]:
        entry = {"value": value, "sem": 0.01, "unit": "", "higher_is_better": None, "target": 0.9}
        phase = None if number is None else 1
        line = {"phase": phase, "name": name, "round": number, "metrics": {"coverage": entry}}
        lines.append(line)
    save_lines(tmp_path / "metrics.jsonl", lines)
    text, _ = read(tmp_path)
    assert "coverage → 0.9" in text and "coverage ↓" not in text and "better" in text
    lines[-1]["metrics"]["coverage"]["value"] = 1.4
    save_lines(tmp_path / "metrics.jsonl", lines)
    assert "worse" in read(tmp_path)[0]


def test_the_standard_deviation_has_a_scale(tmp_path):
    text, _ = read(fabricate(tmp_path))
    (top,) = re.findall(
        r'<span class="scale"><span>0</span><span class="ramp"></span><span>(.*?)</span>', text
    )
    assert 0.05 < float(top) < 0.5


@pytest.mark.parametrize("phases", [[("a", 1), ("b", 60)], [("p" * 50, 1)] * 6, [("$x^2$", 3)]])
def test_the_labels_of_a_chart_do_not_touch(phases):
    from matplotlib.figure import Figure as Canvas

    rounds = [report.Round(name, i) for name, count in phases for i in range(count)]
    drawn = []
    keep = Canvas.savefig

    def watch(self, *args, **options):
        renderer = self.canvas.get_renderer()
        keep(self, *args, **options)
        (axes,) = self.axes
        labels = [*axes.get_xticklabels(), *axes.texts]
        drawn.extend(label.get_window_extent(renderer) for label in labels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Canvas, "savefig", watch)
        assert "<svg" in report.chart(rounds, [1.0 + i for i in range(len(rounds))])
    assert len(drawn) >= 2
    for i, one in enumerate(drawn):
        assert not any(one.overlaps(other) for other in drawn[:i])


def test_a_chart_needs_a_finite_value_and_survives_the_others():
    rounds = [report.Round("em", i) for i in range(3)]
    assert report.chart([], []) is None
    assert report.chart(rounds, [math.nan, math.inf, -math.inf]) is None
    odd = [math.nan, math.inf, 1.0]
    assert "<svg" in report.chart(rounds, odd, errors=odd, dashed=math.nan, dotted=math.inf)
    assert "<svg" in report.chart(rounds, [-1.0, 0.0, 1.0], log=True)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "values", [[1e308, -1e308, 0.0], [1e-320, 1e99, 1.0], [5.0] * 3, [0.0] * 3, [1e-99, 9e99, 1]]
)
def test_a_chart_of_extreme_values_can_be_drawn(values, log):
    rounds = [report.Round("em", i) for i in range(3)]
    assert "<svg" in report.chart(rounds, values, errors=[1e308, 1e99, 0.1], log=log)


PLUGIN = """
from invem import hookimpl, report


class Count(report.Figure):
    title = "How many <rounds>"
    caption = "One bar & one number."

    def draw(self, run):
        size = 10 * len(run.evaluations)
        return f'<svg xmlns="http://www.w3.org/2000/svg" width="{size}" height="9"/>'


class Nothing(report.Figure):
    title = "Never seen"

    def draw(self, run):
        return None


class Broken(Nothing):
    def draw(self, run):
        raise ValueError("no <such> file")


class Wrong(Nothing):
    def draw(self, run):
        return "no picture"


@hookimpl
def invem_figures():
    return {"count": Count, "nothing": Nothing, "broken": Broken, "wrong": Wrong}
"""


def test_a_plugin_adds_a_figure_and_one_that_fails_is_named(tmp_path, monkeypatch):
    plugins, run = tmp_path / "plugins", tmp_path / "run"
    plugins.mkdir()
    run.mkdir()
    (plugins / "mine.py").write_text(PLUGIN)
    monkeypatch.setenv("INVEM_PLUGINS_DIR", str(plugins))
    text, page = read(fabricate(run))
    assert "How many <rounds>" in page.titles and "One bar &amp; one number." in text
    assert '<svg xmlns="http://www.w3.org/2000/svg" width="30" height="9"/>' in charts(page)
    assert "Never seen" not in text
    assert "Figure not drawn: broken of" in text and "no &lt;such&gt; file" in text
    assert "Figure not drawn: wrong of" in text
    assert set(TITLES) < set(page.titles)


def test_a_figure_of_several_pictures_has_a_heading_for_each(tmp_path, monkeypatch):
    plugins, run = tmp_path / "plugins", tmp_path / "run"
    plugins.mkdir()
    run.mkdir()
    body = "return {'left <b>': b'\\x89PNG', 'right': b'\\x89PNG'}"
    (plugins / "mine.py").write_text(PLUGIN.replace("return None", body))
    monkeypatch.setenv("INVEM_PLUGINS_DIR", str(plugins))
    text, page = read(fabricate(run))
    assert "Never seen" in page.titles
    assert "<figcaption>left &lt;b&gt;</figcaption>" in text


def test_importing_the_report_imports_neither_torch_nor_matplotlib():
    code = "import sys, invem.report; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_chart_leaves_no_state_of_pyplot():
    code = (
        "import sys, matplotlib as m; before = m.rcParams.copy()\n"
        "from invem import report\n"
        "report.chart([report.Round('em', 0)], [1.0])\n"
        "assert m.rcParams.copy() == before and 'matplotlib.pyplot' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
