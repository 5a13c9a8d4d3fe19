"""A component of one's own is one short file in a plugins directory: it is found by its name, has
its effect in a run, and holds its contracts."""

import textwrap

import pytest
import torch

from invem import door, report
from invem.config import Catalog
from invem.files import writer
from invem.testing import check

RECIPE = {
    "data": {"name": "synthetic", "size": 6, "train": 24, "test": 4},
    "operator": "identity",
    "noise": {"name": "gaussian", "sigma": 0.2},
    "network": {"name": "mlp", "width": 8, "depth": 1},
    "phases": [
        {"name": "warm-start", "fit": {"objective": "gaussian-moments"}},
        {
            "name": "em",
            "rounds": 2,
            "sampler": {"name": "mmps", "steps": 3},
            "fit": {"objective": "dsm", "steps": 3, "batch": 8},
        },
    ],
    "evaluate": {"observations": 2, "draws": 2, "metrics": ["psnr"], "samples": 0},
}

PLUGINS = {
    ("operators", "every-other-row"): """
        from dataclasses import dataclass

        from torch import Generator, Tensor
        from invem import LinearOperator, hookimpl

        @dataclass(frozen=True, eq=False)
        class Rows(LinearOperator):
            step: int

            def __call__(self, x: Tensor) -> Tensor:
                return x[..., :: self.step]

        def every_other_row(
            n: int, shape: tuple[int, ...], rng: Generator, *, step: int = 2
        ) -> Rows:
            return Rows(shape, step)

        @hookimpl
        def invem_operators():
            return {"every-other-row": every_other_row}
        """,
    ("noises", "ramp"): """
        from dataclasses import dataclass

        import torch
        from torch import Generator, Tensor
        from invem import NoiseModel, hookimpl

        @dataclass(frozen=True, eq=False)
        class Ramp(NoiseModel):
            sigma: Tensor

            def sample(self, clean: Tensor, rng: Generator) -> Tensor:
                return clean + self.sigma * torch.randn(clean.shape, generator=rng)

            def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
                law = torch.distributions.Normal(clean, self.sigma.expand_as(clean))
                return law.log_prob(y).flatten(1).sum(1)

            def var(self) -> Tensor:
                return self.sigma.square()

        def ramp(n: int, shape: tuple[int, ...], rng: Generator, *, most: float = 0.5) -> Ramp:
            levels = torch.linspace(0.1, most, shape[-1])
            return Ramp(levels.expand(n, *[1] * (len(shape) - 1), -1))

        @hookimpl
        def invem_noises():
            return {"ramp": ramp}
        """,
    ("samplers", "one-call"): """
        from dataclasses import dataclass

        import torch
        from torch import Tensor
        from invem import Measurement, PosteriorSampler, Prior, Rng, hookimpl

        @dataclass(frozen=True, kw_only=True)
        class OneCall(PosteriorSampler):
            spread: float = 0.1
            needs = frozenset({"identity"})
            cost = (1, 0)

            @torch.no_grad()
            def __call__(self, prior: Prior, m: Measurement, rng: Rng) -> Tensor:
                x_hat = prior(m.y, 0.2)
                return x_hat + self.spread * rng.normal_like(x_hat)

        @hookimpl
        def invem_samplers():
            return {"one-call": OneCall}
        """,
    ("objectives", "twins"): """
        from invem import Denoiser, Objective, hookimpl
        from invem.objective import ParameterGroup, edm_weight, noise_levels, score_matching

        class Average(Denoiser):
            def __init__(self, one, two):
                super().__init__()
                self.one, self.two, self.mean = one, two, one.mean

            def forward(self, x_t, sigma, cond=None):
                return (self.one(x_t, sigma) + self.two(x_t, sigma)) / 2

        class Twins(Objective):
            needs = frozenset({"x"})

            def build(self, make_network, prior, m):
                return Average(make_network(), make_network())

            def parameter_groups(self, model):
                pairs = ((1.0, model.one), (0.0001, model.two))
                return [ParameterGroup(rate, list(net.parameters())) for rate, net in pairs]

            def loss(self, model, batch, rng):
                sigma = noise_levels(rng, batch.x)
                weight = edm_weight(model.one, sigma)
                parts = model.children()
                return sum(score_matching(net, batch.x, sigma, weight, rng) for net in parts)

        @hookimpl
        def invem_objectives():
            return {"twins": Twins}
        """,
    ("metrics", "brightness"): """
        from dataclasses import dataclass

        from invem import Metric, hookimpl

        @dataclass(frozen=True, kw_only=True)
        class Brightness(Metric):
            needs = frozenset({"draws", "truth"})
            unit = "grey"

            def __call__(self, outcome, state):
                gap = outcome.draws.mean(1) - outcome.truth
                return gap.flatten(1).mean(1).abs()

        @hookimpl
        def invem_metrics():
            return {"brightness": Brightness}
        """,
    ("stops", "good-enough"): """
        from dataclasses import dataclass

        from invem import StoppingRule, hookimpl

        @dataclass(frozen=True, kw_only=True)
        class GoodEnough(StoppingRule):
            metric: str = "psnr"
            value: float = 0.0

            def refuses(self, phase):
                return None if self.metric in phase.metrics else f"{self.metric} is not evaluated"

            def __call__(self, rounds):
                last = rounds[-1].metrics if rounds else None
                if not last or self.metric not in last or last[self.metric]["value"] < self.value:
                    return None
                return f"{self.metric} has reached {self.value:g}"

        @hookimpl
        def invem_stops():
            return {"good-enough": GoodEnough}
        """,
    ("formats", "numbers"): """
        import torch
        from invem import DataError, FileFormat, hookimpl
        from invem.atomic import write_text

        class Numbers(FileFormat):
            suffix = ".numbers"

            def read(self, path, expected):
                try:
                    lines = path.read_text("ascii").splitlines()
                    y = torch.tensor([[float(word) for word in line.split()] for line in lines])
                    y = y.reshape(len(lines), *expected.shape)
                except (OSError, ValueError, RuntimeError) as error:
                    raise DataError(f"{path}: cannot be read: {error}") from error
                if not len(y):
                    raise DataError(f"{path}: it holds no observations")
                return {"y": y}

            def write(self, path, tensors, about):
                rows = next(iter(tensors.values())).flatten(1).tolist()
                write_text(path, "\\n".join(" ".join(f"{v:.9g}" for v in row) for row in rows))

        @hookimpl
        def invem_formats():
            return {"numbers": Numbers}
        """,
    ("figures", "seconds"): """
        from invem import hookimpl, report

        class Seconds(report.Figure):
            title = "Where the time went"
            caption = "The seconds of each evaluated round."

            def draw(self, run):
                rounds = [evaluation.round for evaluation in run.evaluations]
                seconds = [sum(run.times.get(at.label, {}).values()) for at in rounds]
                return report.chart(rounds, seconds) if rounds else None

        @hookimpl
        def invem_figures():
            return {"seconds": Seconds}
        """,
}


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """Writes the file of one plugin, as its author would, and returns what the catalogue finds."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    monkeypatch.setenv("INVEM_PLUGINS_DIR", str(folder))

    def write(kind, name):
        text = textwrap.dedent(PLUGINS[kind, name]).lstrip()
        assert len(text.splitlines()) <= 32
        (folder / f"{name.replace('-', '_')}.py").write_text(text)
        found = Catalog.load().find(kind, name)
        assert found.distribution == str(folder / f"{name.replace('-', '_')}.py")
        return found.load()

    return write


@pytest.fixture
def run(tmp_path):
    """Carries out the recipe with some changes."""
    return lambda changes=(): door.run(RECIPE, changes, out=tmp_path / "run")


@pytest.mark.parametrize(("kind", "name"), PLUGINS, ids=[name for _, name in PLUGINS])
def test_it_holds_its_contracts(plugins, kind, name):
    results = check(kind, plugins(kind, name))
    assert [result for result in results if result.passed is False] == []


def test_an_operator_makes_the_observations(plugins, run):
    plugins("operators", "every-other-row")
    done = run({"operator": {"name": "every-other-row", "step": 3}})
    m = done.observations()
    assert type(m.A).__name__ == "Rows" and m.y.shape == (24, 1, 6, 2)
    restored = done.restore(torch.zeros(3, 1, 6, 2), draws=2)
    assert restored.mean.shape == (3, 1, 6, 6) and bool(restored.mean.isfinite().all())


def test_a_noise_is_the_one_that_samplers_reckon_with(plugins, run):
    plugins("noises", "ramp")
    done = run({"noise": {"name": "ramp", "most": 0.4}, "phases.em.rounds": 1})
    std = done.observations().noise.var().sqrt()
    assert torch.allclose(std[0].flatten(), torch.linspace(0.1, 0.4, 6))
    assert type(done.observations().noise).__name__ == "Ramp"


def test_a_sampler_makes_the_draws(plugins, run):
    plugins("samplers", "one-call")
    done = run({"phases.em.sampler": {"name": "one-call", "spread": 0.03}})
    gap = done.draws("em", 0) - done.prior_at("warm-start", 0)(done.observations().y, 0.2)
    assert float(gap.std()) == pytest.approx(0.03, rel=0.2)


def test_an_objective_trains_two_networks(plugins, run):
    """Each at its own rate, and a run that is opened again has both."""
    twins = plugins("objectives", "twins")
    done = run({"phases.em.fit.objective": "twins", "phases.em.fit.ema": 0})
    before, after = (done.prior_at("em", number).denoiser for number in (0, 1))
    assert type(after).__module__ == twins.__module__

    def moved(name):
        pairs = zip(
            getattr(before, name).parameters(), getattr(after, name).parameters(), strict=True
        )
        return max(float((b - a).abs().max()) for a, b in pairs)

    assert moved("one") > 100 * moved("two") > 0
    x = torch.linspace(-1, 1, 72).reshape(2, 1, 6, 6)
    x_hat = done.prior(x, 0.5)
    assert torch.equal(x_hat, (after.one(x, 0.5) + after.two(x, 0.5)) / 2)
    assert not torch.equal(after.one(x, 0.5), after.two(x, 0.5))
    assert torch.equal(door.open(done.path).prior(x, 0.5), x_hat)


def test_a_metric_is_evaluated(plugins, run):
    plugins("metrics", "brightness")
    done = run({"evaluate.metrics": ["brightness"], "phases.em.rounds": 1})
    found = done.metrics[-1]["metrics"]["brightness"]
    assert found["unit"] == "grey" and found["n"] == 2
    context = done.context
    draws = context.directory.evaluation(done.rounds[-1]).read("restorations")["draws"]
    gap = draws.mean(1) - context.directory.true_signals()
    assert found["value"] == pytest.approx(float(gap.flatten(1).mean(1).abs().mean()))


@pytest.mark.parametrize(("value", "rounds"), [(-1000.0, 1), (1000.0, 3)])
def test_a_stopping_rule_ends_a_phase(plugins, run, value, rounds):
    plugins("stops", "good-enough")
    rule = {"name": "good-enough", "value": value}
    done = run({"phases.em.rounds": 3, "phases.em.stop": rule})
    assert done.finished
    assert [at.number for at in done.rounds if at.phase == 1] == list(range(rounds))
    told = done.directory.stop(1)
    assert (told is None) == (rounds == 3)
    assert told is None or "psnr has reached -1000" in told["reason"]


def test_a_format_is_read_and_written(plugins, run, tmp_path):
    plugins("formats", "numbers")
    done = run({"phases.em.rounds": 1})
    y = done.observations("test").y
    path = tmp_path / "new.numbers"
    writer(path).write(path, {"y": y}, {})
    restored = done.restore(path, draws=2)
    assert torch.allclose(restored.draws, done.restore(y, draws=2).draws, atol=1e-4)


def test_a_figure_is_in_the_report(plugins, run):
    plugins("figures", "seconds")
    done = run({"phases.em.rounds": 1})
    page = report.write(done.path).read_text("utf-8")
    begin = page.index("Where the time went")
    assert "The seconds of each evaluated round." in page[begin:]
    assert "data:image/svg+xml" in page[begin:].partition("</section>")[0]
