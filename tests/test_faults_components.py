"""Components that break: each is named in one line before it spoils a run."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
import yaml

from invem import Gaussian, Measurement, Prior, Rng, door, files, linalg, report, store
from invem.config import KINDS, Catalog
from invem.errors import InvemError, MissingExtra, PluginError, RecipeError
from invem.likelihood import proximal_point
from invem.local_gaussian import condition_on, local_gaussian
from invem.testing import check

CATALOG = Catalog.load()
HEAD = """
import sys
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from invem import *
from invem import report

RNG = Rng.generator(0)
"""
# A component of each kind that keeps the contracts. A test replaces a piece by one that does not.
PLUGIN = """
@dataclass(frozen=True, eq=False)
class Double(LinearOperator):
    def __call__(self, x):
        return 2 * x

    def adjoint(self, y):
        return 2 * y

def operator(n, shape, rng):
    return Double(tuple(shape))

@dataclass(frozen=True, eq=False)
class Quiet(NoiseModel):
    def sample(self, clean, rng):
        return clean + 0.1 * torch.randn(clean.shape, generator=rng)

    def log_prob(self, y, clean):
        return -50 * (y - clean).square().flatten(1).sum(1)

def noise(n, shape, rng):
    return Quiet()

@dataclass(frozen=True, kw_only=True)
class Levels(Schedule):
    def sigma(self, t):
        return 10 * (0.001 ** t)

@dataclass(frozen=True, kw_only=True)
class Half(PosteriorSampler):
    needs: ClassVar[frozenset] = frozenset()
    schedule: Schedule = Karras()

    def __call__(self, prior, m, rng):
        self.schedule.grid(3)
        return m.y / 2

@dataclass(frozen=True, kw_only=True)
class Loss(Objective):
    needs: ClassVar[frozenset] = frozenset({"x"})

    def loss(self, model, batch, rng):
        error = model(batch.x + 0.5 * rng.normal_like(batch.x), 0.5) - batch.x
        return error.square().flatten(1).mean(1)

@dataclass(frozen=True, kw_only=True)
class Score(Metric):
    unit: ClassVar[str] = "1"
    needs: ClassVar[frozenset] = frozenset({"draws"})

    def prepare(self, training):
        return {"mean": training.x.mean(0)}

    def __call__(self, outcome, state):
        return outcome.draws.mean((1, 2, 3, 4))

class Net(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x, c_noise, cond=None):
        return self.scale * x

class Whole(Denoiser):
    def __init__(self, shape):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x_t, sigma, cond=None):
        return self.scale * x_t

class Waves(Dataset):
    range = (-1.0, 1.0)
    shape = (1, 4, 4)

    def __init__(self, split):
        self.x = torch.rand(16, 1, 4, 4, generator=Rng.generator(split)) * 2 - 1

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return Example(self.x[index])

@dataclass(frozen=True, kw_only=True)
class Rule(StoppingRule):
    def __call__(self, rounds):
        return None

class Text(FileFormat):
    suffix = ".frail"

    def read(self, path, expected):
        return {"y": torch.zeros(2, *expected.shape)}

    def write(self, path, tensors, about):
        path.write_text("written")

class Picture(report.Figure):
    title = "Frail picture"
    caption = "Nothing."

    def draw(self, run):
        return None

@hookimpl
def invem_operators(): return {"frail": operator}
@hookimpl
def invem_noises(): return {"frail": noise}
@hookimpl
def invem_schedules(): return {"frail": Levels}
@hookimpl
def invem_samplers(): return {"frail": Half}
@hookimpl
def invem_objectives(): return {"frail": Loss}
@hookimpl
def invem_metrics(): return {"frail": Score}
@hookimpl
def invem_networks(): return {"frail": Net, "frail-denoiser": Whole}
@hookimpl
def invem_datasets(): return {"frail": Waves}
@hookimpl
def invem_stops(): return {"frail": Rule}
@hookimpl
def invem_formats(): return {"frail": Text}
@hookimpl
def invem_figures(): return {"frail": Picture}
"""
RECIPE = {
    "data": "frail",
    "operator": "frail",
    "noise": "frail",
    "network": "frail",
    "phases": [
        {
            "name": "first",
            "rounds": 1,
            "sampler": "observation",
            "fit": {"objective": "gaussian-moments"},
        },
        {
            "name": "second",
            "rounds": 2,
            "sampler": {"name": "frail", "schedule": "frail"},
            "fit": {"objective": "frail", "steps": 2, "batch": 4},
            "stop": "frail",
        },
    ],
    "evaluate": {"metrics": ["frail"], "samples": 4, "draws": 2, "steps": 2},
    "compute": {"threads": 1},
}


@pytest.fixture
def frail(tmp_path, monkeypatch):
    """Writes the plugin with a piece replaced, and returns the path of a recipe of its parts."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    monkeypatch.setenv("INVEM_PLUGINS_DIR", str(folder))

    def write(old="", new="", **changes):
        assert old in PLUGIN
        (folder / "frail.py").write_text(HEAD + PLUGIN.replace(old, new, 1))
        path = tmp_path / "frail.yaml"
        path.write_text(yaml.safe_dump(RECIPE | changes))
        return path

    return write


def refusal(recipe, out):
    """Returns the line in which a run is refused."""
    before = torch.get_default_dtype(), torch.get_num_threads()
    with pytest.raises(PluginError) as found:
        door.run(recipe, out=out)
    assert (torch.get_default_dtype(), torch.get_num_threads()) == before
    assert found.value.exit_code == 3
    line = str(found.value)
    assert "\n" not in line and "frail" in line and "frail.py" in line
    return line


def test_a_plugin_of_every_kind_runs(frail, tmp_path):
    assert door.run(frail(), out=tmp_path / "run").finished
    assert door.run(frail(network="frail-denoiser"), out=tmp_path / "other").finished


# What no shape shows

UNNOTICED = {
    "an operator that draws": (
        "return 2 * x",
        "return 2 * x + 0.1 * torch.randn(x.shape, generator=RNG)",
        "operator 'frail'.*not deterministic",
    ),
    "an operator that draws from the global random state": (
        "return 2 * x",
        "return 2 * x + 0.1 * torch.randn(x.shape)",
        "operator 'frail'.*it changed the global random state",
    ),
    "a linear operator that is not": ("return 2 * x", "return x.clamp(-0.1, 0.1)", "not linear"),
    "a linear operator with an offset": ("return 2 * x", "return 2 * x + 1", "not linear"),
    "an adjoint of another operator": ("return 2 * y", "return 3 * y", "its adjoint is not"),
    "an operator that writes": ("return 2 * x", "return x.mul_(2)", "changed the signals"),
    "a network that writes": ("return self.scale * x", "x += 1; return x * self.scale", "wrote"),
    "a network that writes into c_noise": (
        "return self.scale * x",
        "c_noise = c_noise.zero_() if not x.requires_grad else c_noise; return x * self.scale",
        "wrote into its input",
    ),
    "a network of one signal": (
        "return self.scale * x",
        "return (self.scale * x)[:1].expand(x.shape)",
        "network 'frail'.*other signals of the batch",
    ),
    "a network that draws": (
        "return self.scale * x",
        "return self.scale * x + 0.1 * torch.randn(x.shape, generator=RNG)",
        "not deterministic in evaluation mode",
    ),
    "a sampler that writes y": ("return m.y / 2", "return m.y.div_(2)", "sampler.*changed y"),
    "a loss of (B, 3)": (
        "return error.square().flatten(1).mean(1)",
        "return error.square().flatten(1)[:, :3]",
        r"objective.*float32 tensor of shape \(4, 3\)",
    ),
    "a metric that writes": (
        "return outcome.draws.mean((1, 2, 3, 4))",
        "return outcome.draws.mul_(0).mean((1, 2, 3, 4))",
        "metric.*changed draws",
    ),
}


@pytest.mark.parametrize("fault", UNNOTICED)
def test_a_component_that_breaks_unnoticed_is_named(frail, tmp_path, fault):
    old, new, words = UNNOTICED[fault]
    assert re.search(words, refusal(frail(old, new), tmp_path / "run"))


def test_a_whole_denoiser_is_tried_too(frail, tmp_path):
    for old, new, words in (
        ("return self.scale * x_t", "return (self.scale * x_t)[:1]", "not one signal each"),
        ("return self.scale * x_t", "x_t.mul_(0.9); return self.scale * x_t", "wrote into"),
    ):
        recipe = frail(old, new, network="frail-denoiser")
        assert words in refusal(recipe, tmp_path / words)


def test_a_network_that_shows_its_mistake_once_it_has_learned_is_named(frail, tmp_path):
    recipe = frail(
        "return self.scale * x", "return x + (self.scale - 1) * x[:1].expand(x.shape) * 100"
    )
    assert "other signals of the batch" in refusal(recipe, tmp_path / "run")


# Settings of PyTorch for the whole process

SETTINGS = {
    "the default dtype": "torch.set_default_dtype(torch.float64)",
    # tests/conftest.py puts a function in the place of torch.set_num_threads.
    "the number of threads": "torch.set_num_threads.__globals__['_set_num_threads'](2)",
    "the global random state": "torch.manual_seed(0)",
}
PLACES = {
    "operator": "return 2 * x",
    "noise": "return clean + 0.1",
    "sampler": "self.schedule.grid(3)",
    "metric": "return outcome.draws.mean",
    "objective": "error = model(",
    "network": "return self.scale * x",
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("kind", PLACES)
def test_a_component_that_changes_a_setting_of_pytorch_is_named(frail, tmp_path, kind, setting):
    old = PLACES[kind]
    recipe = frail(old, f"{SETTINGS[setting]}; {old}")
    if (kind, setting) == ("objective", "the global random state"):
        assert door.run(recipe, out=tmp_path / "run").finished  # a step has a state of its own
        return
    line = refusal(recipe, tmp_path / "run")
    assert f"{kind} 'frail'" in line and f"it changed {setting}" in line


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_plugin_that_changes_a_setting_at_import_is_named(frail, tmp_path, setting):
    path = frail("\n@dataclass", f"\n{SETTINGS[setting]}\n\n@dataclass")
    warned = pytest.warns(UserWarning, match=f"while it was imported: it changed {setting}")
    words = f"there is no operator 'frail'.*it changed {setting}"
    with warned, pytest.raises(PluginError, match=words):
        door.run(path, out=tmp_path / "run")
    assert torch.get_default_dtype() == torch.float32


def test_a_module_that_is_imported_late_is_watched_too(tmp_path, monkeypatch):
    (tmp_path / "late.py").write_text("import torch; torch.set_default_dtype(torch.float64)\nF = 1")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "one.py").write_text(
        textwrap.dedent("""
        from invem import hookimpl
        @hookimpl
        def invem_operators(): return {"late": "late:F"}
        """)
    )
    monkeypatch.setenv("INVEM_PLUGINS_DIR", str(tmp_path / "plugins"))
    with pytest.raises(PluginError, match=r"operator 'late' of .*while imported"):
        Catalog.load().find("operators", "late").load()
    assert torch.get_default_dtype() == torch.float32


# A component that raises, of every kind

RAISES = {
    "operator: factory": ("return Double(tuple(shape))", "operator"),
    "operator: adjoint": ("return 2 * y", "operator"),
    "noise: factory": ("return Quiet()", "noise"),
    "noise: sample": ("return clean + 0.1", "noise"),
    "schedule: made": ("    def sigma(self, t):", "schedule"),
    "schedule: sigma": ("return 10 * (0.001 ** t)", "schedule"),
    "sampler": ("self.schedule.grid(3)", "sampler"),
    "objective": ("error = model(", "objective"),
    "metric: prepare": ('return {"mean": training.x.mean(0)}', "metric"),
    "metric": ("return outcome.draws.mean", "metric"),
    "network: made": ("self.scale = nn.Parameter", "network"),
    "network": ("return self.scale * x", "network"),
    "dataset: made": ("self.x = torch.rand(16", "dataset"),
    "dataset: length": ("return len(self.x)", "dataset"),
    "dataset: items": ("return Example(self.x[index])", "dataset"),
    "stop": ("    def __call__(self, rounds):\n        return None", "stop"),
}


@pytest.mark.parametrize("kind", RAISES)
def test_a_component_that_raises_is_named(frail, tmp_path, kind):
    old, name = RAISES[kind]
    failing = f"raise KeyError('no such coil'); {old.strip()}"
    if old.startswith("    def") and name == "stop":
        failing = "    def __call__(self, rounds):\n        raise KeyError('no such coil')"
    elif old.startswith("    def"):
        failing = f"    def __post_init__(self):\n        raise KeyError('no such coil')\n\n{old}"
    line = refusal(frail(old, failing), tmp_path / "run")
    assert f"{name} 'frail' of " in line and "no such coil" in line


DATA = {
    "one image": "return Example(self.x[index][0])",
    "another shape": "return Example(self.x[index][..., :3])",
    "nothing": "return Example(None)",
}


@pytest.mark.parametrize("fault", DATA)
def test_a_dataset_that_gives_something_else_is_named(frail, tmp_path, fault):
    line = refusal(frail("return Example(self.x[index])", DATA[fault]), tmp_path / "run")
    assert "dataset 'frail' of" in line and "it gave x of" in line


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of components that come with invem."""
    recipe = {
        "data": {"name": "synthetic", "train": 16, "test": 4, "size": 4},
        "operator": "identity",
        "noise": {"name": "gaussian", "sigma": 0.2},
        "network": {"name": "mlp", "width": 8, "depth": 1},
        "phases": [
            {
                "name": "only",
                "rounds": 1,
                "sampler": "observation",
                "fit": {"objective": "gaussian-moments"},
            },
        ],
        "evaluate": {"metrics": ["psnr"], "sampler": "exact"},
    }
    return door.run(recipe, out=tmp_path_factory.mktemp("finished") / "run")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('return {"y": torch.zeros(2, *expected.shape)}', "raise KeyError('no such coil')"),
        ('suffix = ".frail"', 'suffix = ".frail"\n    def accepts(self, path): return path.coil'),
        ('suffix = ".frail"', 'suffix = ".frail"\n    def __init__(self): sys.exit(0)'),
    ],
)
def test_a_format_that_raises_is_named_and_disturbs_no_other(frail, finished, tmp_path, old, new):
    frail(old, new)
    (tmp_path / "y.frail").write_text("")
    with pytest.raises(InvemError, match=r"format 'frail' of .*frail\.py") as found:
        finished.restore(tmp_path / "y.frail", draws=1)
    assert found.value.exit_code in (3, 4) and "\n" not in str(found.value)
    torch.manual_seed(0)
    store.write(tmp_path / "y.safetensors", {"y": torch.zeros(2, 1, 4, 4)})
    assert len(finished.restore(tmp_path / "y.safetensors", draws=1).mean) == 2


def test_a_format_that_cannot_write_is_named(frail, tmp_path):
    frail('path.write_text("written")', "raise KeyError('no such coil')")
    fmt = files.writer(tmp_path / "out.frail")
    with pytest.raises(PluginError, match=r"format 'frail' of .*no such coil.*frail.py, line"):
        fmt.write(tmp_path / "out.frail", {}, {})


def test_a_figure_that_raises_is_named_on_the_page(frail, finished):
    frail(
        '    caption = "Nothing."\n\n    def draw(self, run):\n        return None',
        """
    caption = "Nothing."

    def draw(self, run):
        raise SystemExit(0)
""",
    )
    page = report.write(finished.path).read_text()
    assert re.search(r"frail of .*frail.py: SystemExit: 0", page)


def test_a_broken_component_that_no_recipe_names_disturbs_none(frail, tmp_path):
    frail(
        "    schedule: Schedule = Karras()",
        "    schedule: Schedule = Karras()\n\n"
        "    def __post_init__(self):\n        raise KeyError('no such coil')",
    )
    changes = {"sampler": "nothing-like-it"}
    recipe = RECIPE | {"phases": [RECIPE["phases"][0] | changes], "operator": "identity"}
    with pytest.raises(RecipeError, match="there is no sampler"):
        door.plan(recipe)


# A plugin that loops at import, and an interrupt at any time


def interruptible():
    """Ctrl-C reaches the child also where the tests run in the background of a shell."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


LOOPS = {
    "a loop": "import time\nwhile True:\n    time.sleep(0.05)",
    "a loop that catches all": (
        "import time\nwhile True:\n    try:\n        time.sleep(0.05)\n"
        "    except BaseException:\n        pass"
    ),
}


@pytest.mark.parametrize("loop", LOOPS)
def test_a_plugin_that_loops_at_import_is_told_and_can_be_left(tmp_path, loop):
    (tmp_path / "endless\x1b.py").write_text(LOOPS[loop])
    words = [sys.executable, "-m", "invem", "--plugins-dir", str(tmp_path), "ls"]
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible
    )
    assert process.stderr is not None
    told = process.stderr.readline()
    assert told.startswith("still loading plugin endless")
    assert "(distribution " in told and "--no-plugins" in told and "\x1b" not in told
    process.send_signal(signal.SIGINT)
    assert "interrupted while loading plugin endless" in process.stderr.readline()
    if loop == "a loop that catches all":
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "")


def test_commands_that_need_no_plugin_wait_for_none(tmp_path):
    (tmp_path / "endless.py").write_text(LOOPS["a loop"])
    for words in (["--help"], ["--version"], ["--no-plugins", "ls", "--help"]):
        env = {**os.environ, "INVEM_PLUGINS_DIR": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-m", "invem", *words], env=env, capture_output=True, timeout=60
        )
        assert done.returncode == 0 and done.stderr == b""


def test_an_interrupt_during_the_imports_ends_quietly():
    # The signal is sent from within, so that the place is known: between two imports.
    text = """
import os, signal, sys
wanted = sys.argv[1]
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == wanted:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
from invem.cli import main
sys.argv = ["invem", "plan", "recipes/blur.yaml"]
main()
"""
    root = Path(__file__).parent.parent
    for module in ("typer", "invem.cli.runs", "invem.config.yaml", "torch", "invem.door"):
        words = [sys.executable, "-c", text, module]
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            cwd=root,
            timeout=100,
            preexec_fn=interruptible,
        )
        assert (done.returncode, done.stdout, done.stderr) == (130, "", ""), module


# Contracts of operators at sizes that people use

MEASURED = ("adjoint", "linear", "A pinv A = A", "svd", "claims", "dtype and device")


@pytest.mark.parametrize("name", ["radon", "fan-beam"])
def test_the_pseudo_inverse_of_tomography_holds_at_real_sizes(name):
    law = CATALOG.find("operators", name).load()
    for shape, options in (((1, 28, 28), {"angles": 30}), ((1, 32, 32), {"angles": 6})):
        A = law(2, shape, Rng.generator(0), **options)
        x = 0.4 * torch.randn(2, *shape, generator=Rng.generator("x"))
        y = A(x)
        # Single precision, as in a run.
        assert (A(A.pinv(y)) - y).abs().max() < 1e-3 * y.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CATALOG.offers["operators"]))
def test_contracts_of_operators_hold_at_real_sizes(name):
    try:
        law = CATALOG.find("operators", name).load()
        for contract in MEASURED:
            (result,) = check("operators", law, contract, large=True)
            assert result.passed is not False, (name, result)
    except MissingExtra as error:
        pytest.skip(str(error))


def test_least_norm_solves_in_single_precision_what_the_normal_equations_did_not():
    A = CATALOG.find("operators", "radon").load()(2, (1, 16, 16), Rng.generator(0), angles=6)
    x = 0.4 * torch.randn(2, 1, 16, 16, generator=Rng.generator("x"))
    y = A(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = linalg.least_norm(A, y, tol=1e-6)
    assert (A(found) - y).abs().max() < 1e-3 * y.abs().max()
    matrix = torch.stack([A(e.reshape(1, 1, 16, 16)).flatten() for e in torch.eye(256)], 1)
    exact = torch.linalg.pinv(matrix.double(), rtol=1e-6) @ y.double().flatten(1).T
    assert (found.flatten(1).T - exact).norm() < 0.02 * exact.norm()


def test_least_norm_says_where_it_stopped_early(monkeypatch):
    monkeypatch.setattr(linalg, "_WARNED", set())
    A = CATALOG.find("operators", "radon").load()(2, (1, 16, 16), Rng.generator(0))
    y = A(torch.randn(2, 1, 16, 16, generator=Rng.generator("x")))
    with pytest.warns(RuntimeWarning, match="least-norm solution: .* 10 iterations in 2 of 2"):
        linalg.least_norm(A, y, iterations=10)


# Solvers that stop before their tolerance


def blurred(n=16, sigma=0.002):
    """A measurement whose system takes many iterations: a wide blur with hardly any noise."""
    A = CATALOG.find("operators", "gaussian-blur").load()(2, (1, n, n), Rng.generator(0))
    x = 0.4 * torch.randn(2, 1, n, n, generator=Rng.generator("x")).cumsum(-1)
    noise = CATALOG.find("noises", "gaussian").load()(2, (1, n, n), Rng.generator(1), sigma=sigma)
    return Measurement(A(x), A, noise)


def draw(name, sigma=0.002, **options):
    sampler = CATALOG.find("samplers", name).load()(**options)
    m = blurred(sigma=sigma)
    prior = Prior.of(Gaussian.standard((1, 16, 16)))
    return sampler(prior, m, Rng.keyed("draw", items=range(2)))


def gain():
    here = local_gaussian(Prior.of(Gaussian.standard((1, 16, 16))), blurred().y, 1.0, "moments")
    return condition_on(here, blurred())


EARLY = {
    "wiener": lambda: draw("wiener", iterations=3),
    "total-variation": lambda: draw("total-variation", iterations=20),
    "twisted-smc": lambda: draw("twisted-smc", steps=2, particles=2),
    "proximal step": lambda: proximal_point(blurred(), blurred().y, 1.0),
    "posterior by the moments of the prior": gain,
    "posterior of a Gaussian prior": lambda: draw("exact"),
}


@pytest.mark.parametrize("what", EARLY)
def test_a_solver_that_stops_before_its_tolerance_says_so(monkeypatch, what):
    monkeypatch.setattr(linalg, "_WARNED", set())
    with pytest.warns(RuntimeWarning, match=rf"{what}: .*stopped after .* in (2 of 2|\d of 4)"):
        EARLY[what]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EARLY[what]()  # once per process


def test_solvers_that_come_to_their_tolerance_are_silent(monkeypatch):
    monkeypatch.setattr(linalg, "_WARNED", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw("wiener")
        draw("total-variation", sigma=0.3)
        proximal_point(blurred(sigma=0.3), blurred().y, 1.0)


# Passes through a compiled network


@pytest.mark.parametrize("objective", ["dsm", "ambient-tweedie"])
def test_passes_are_counted_where_the_network_is_compiled(tmp_path, monkeypatch, objective):
    compiled = []

    def compile_eagerly(function, **_):
        compiled.append(function)
        return compile_with(function, backend="eager")

    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", compile_eagerly)
    recipe = {
        "data": {"name": "synthetic", "train": 16, "test": 4, "size": 4},
        "operator": "identity",
        "noise": {"name": "gaussian", "sigma": 0.2},
        "network": {"name": "mlp", "width": 8, "depth": 1},
        "phases": [
            {
                "name": "first",
                "rounds": 1,
                "sampler": "observation",
                "fit": {"objective": "gaussian-moments"},
            },
            {
                "name": "second",
                "rounds": 2,
                "sampler": {"name": "mmps", "steps": 2},
                "fit": {"objective": objective, "steps": 3, "batch": 4},
            },
        ],
        "evaluate": {"metrics": ["psnr"], "steps": 2},
    }
    found = {}
    for on in (False, True):
        run = door.run(recipe, {"compute.compile": on}, out=tmp_path / str(on))
        found[on] = run.results["passes"]["second"]
        assert bool(compiled) is on
    assert found[True] == found[False]
    assert found[True]["fit"] >= 2 * 3 * 4 * 2 and found[True]["e-step"] > 0


# The page of plugins


def test_the_page_has_an_example_of_each_kind_that_keeps_its_contracts():
    page = (Path(__file__).parent.parent / "docs" / "plugins.md").read_text("utf-8")
    space = {"__name__": "snippet"}
    for block in re.findall(r"^```python\n(.*?)^```", page, re.M | re.S):
        exec(compile(block, "docs/plugins.md", "exec"), space)
    for kind in KINDS:
        (factory,) = space[f"invem_{kind}"]().values()
        failed = [r for r in check(kind, factory) if r.passed is False]
        assert failed == [], kind
