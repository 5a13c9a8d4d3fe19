"""The benchmark of samplers: what it says of samplers whose answer is known, what it counts, and
what it writes."""

import ast
import dataclasses
import json
import math
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Annotated, ClassVar

import pytest
import torch
from annotated_types import Ge, Gt, Interval
from test_cli import invem

from invem import (
    Gaussian,
    Measurement,
    Mixture,
    NumericalError,
    PosteriorSampler,
    Prior,
    RecipeError,
    Rng,
)
from invem.bench import (
    FLOOR,
    LEVELS,
    METRICS,
    PROBLEMS,
    Design,
    IsotropicMixture,
    Posterior,
    Row,
    Value,
    build_problem,
    compare_samplers,
    compare_with_baseline,
    coverage_curve,
    make_document,
    parse_sampler,
    problem_of_run,
    problems,
    read_document,
    render_markdown,
    render_page,
    select_samplers,
    to_rich,
    uniformity_gap,
    write_figure,
)
from invem.bench.metrics import shown, tuning_metric
from invem.bench.statistics import PER_OBSERVATION, PER_SEED, RATIOS
from invem.config import Catalog, Component
from invem.door import open as open_run
from invem.door import run as carry_out
from invem.linear import Mask

ROOT = Path(__file__).parent.parent
CATALOG = Catalog.load()
BUILT_IN = {kind: set(offers) for kind, offers in CATALOG.offers.items()}
CLOSED = [name for name, definition in PROBLEMS.items() if definition.prior is not None]
PAGE = (ROOT / "docs" / "bench.md").read_text("utf-8").replace("\\|", "|")


def offer(name, factory):
    CATALOG.offers["samplers"][name] = [Component("samplers", name, factory, "tests", "0")]


@dataclass(frozen=True, kw_only=True)
class Oracle(PosteriorSampler):
    """Exact draws whose distance from the posterior mean is multiplied by `width`, after which
    `shift` is added."""

    width: Annotated[float, Gt(0)] = 1.0
    shift: float = 0.0
    needs: ClassVar[frozenset[str]] = frozenset({"adjoint", "var", "closed form"})

    def __call__(self, prior, m, rng):
        x = prior.exact.posterior(m, rng)
        if self.width == 1 and not self.shift:
            return x
        mean = prior.known_moments().posterior_mean(m)
        return mean + self.width * (x - mean) + self.shift


@dataclass(frozen=True, kw_only=True)
class Busy(PosteriorSampler):
    """Calls everything a known number of times."""

    needs: ClassVar[frozenset[str]] = frozenset({"adjoint", "pinv", "svd", "vjp"})

    def __call__(self, prior, m, rng):
        for _ in range(3):
            x = prior(rng.normal(*m.shape), 1.0)
        assert isinstance(m.A, Mask) and {"adjoint", "pinv", "svd"} < m.A.provides
        x = x.requires_grad_()
        x_hat = prior(torch.cat([x, x]), 0.5)
        torch.autograd.grad(x_hat.sum(), x, retain_graph=True)
        torch.autograd.grad(m[torch.arange(len(m)).repeat(2)].A(x_hat).square().sum(), x)
        x = x.detach()
        y = m.A(m.A(x))
        m.A.adjoint(y)
        m.A.vjp(x, y)
        svd = m.A.svd()
        svd.v(svd.vt(m.A.pinv(y)))
        return x


@dataclass(frozen=True, kw_only=True)
class Broken(PosteriorSampler):
    """Every fourth draw of observation 0, and every draw of observation 1, is not finite."""

    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, prior, m, rng):
        x = prior.exact.posterior(m, rng)
        if len(x) == 1:
            return x
        k = len(x) // 4
        x[:k:4, 0] = math.nan
        x[k : 2 * k] = math.inf
        return x


@dataclass(frozen=True, kw_only=True)
class Fails(PosteriorSampler):
    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, prior, m, rng):
        raise NumericalError("too stiff")


@dataclass(frozen=True, kw_only=True)
class Steps(PosteriorSampler):
    """Three forwards and a product for each of its steps, twice as many where it is `careful`."""

    steps: Annotated[int, Ge(4)] = 10
    careful: bool = False
    scale: Annotated[float, Interval(gt=0, le=2)] = 1.0
    auto: Annotated[float, Gt(0)] | None = None
    needs: ClassVar[frozenset[str]] = frozenset({"moments"})

    @property
    def cost(self):
        n = self.steps * (1 + self.careful)
        return 3 * n, n

    def __call__(self, prior, m, rng):
        return self.scale * rng.normal(*m.shape)


for _name, _factory in {
    "oracle": Oracle,
    "busy": Busy,
    "broken": Broken,
    "fails": Fails,
    "steps": Steps,
}.items():
    offer(_name, _factory)


def rows(problem, samplers, **options):
    problem = build_problem(problem, CATALOG) if isinstance(problem, str) else problem
    chosen, left = select_samplers(problem, CATALOG, samplers)
    assert not left
    design = Design.of(problem, **options)
    return {row.setting: row for row in compare_samplers(problem, chosen, CATALOG, design)}


def values(row):
    return {name: value.value for name, value in row.metrics.items()}


# Problems.


def dense(m):
    """A of one observation, (m, d), in float64."""
    d = math.prod(m.shape)
    return (
        m[torch.zeros(d, dtype=torch.long)]
        .A(torch.eye(d).reshape(d, *m.shape))
        .flatten(1)
        .T.double()
    )


@pytest.mark.parametrize("name", CLOSED)
def test_the_exact_posterior_is_that_of_other_formulas(name):
    problem = build_problem(name, CATALOG)
    x, m = problem.measure(0, "test", 3)
    assert x.shape == (3, *problem.shape)
    found = problem.posterior(m)
    if len(problem.exact.weights) == 1:
        A, var = dense(m[1]), float(m.noise.var().flatten()[1])
        precision = torch.linalg.inv(problem.exact.covs[0].double()) + A.T @ A / var
        assert torch.allclose(found.cov[1], torch.linalg.inv(precision), atol=1e-6)
        assert torch.allclose(
            found.mean[1],
            torch.linalg.solve(precision, A.T @ m.y[1].flatten().double() / var),
            atol=1e-5,
        )
        assert torch.allclose(
            found.mean.float(), problem.prior.moments.posterior_mean(m).flatten(1), atol=1e-4
        )
    else:
        other = problem.exact.posterior_moments(m)
        for ours, theirs in (
            (found.weights, other.weights),
            (found.mean, other.mean),
            (found.cov, other.cov),
        ):
            assert torch.allclose(ours, theirs.double(), atol=1e-5)


@pytest.mark.parametrize("name", ["gaussian-blur", "mixture-2", "mixture-8-mask", "manifold"])
def test_draws_have_the_moments_of_the_posterior(name):
    problem = build_problem(name, CATALOG)
    _, m = problem.measure(1, "test", 2)
    posterior = problem.posterior(m)
    k = 20_000
    x = posterior.draw(k, Rng.keyed("draws", items=range(2 * k)))
    root = torch.linalg.cholesky(posterior.cov)
    white = torch.linalg.solve_triangular(root, (x - posterior.mean[:, None]).mT, upper=False).mT
    assert float(white.mean(1).abs().max()) < 0.05
    cov = white.mT @ white / k
    assert float((cov - torch.eye(x.shape[2], dtype=torch.float64)).abs().max()) < 0.15


def test_mixtures_have_several_modes_and_the_fast_denoiser_is_the_general_one():
    for name in ("mixture-8", "manifold"):
        problem = build_problem(name, CATALOG)
        assert isinstance(problem.prior.exact, IsotropicMixture)
        general = Prior.of(Mixture(**problem.exact.tensors()))
        x, m = problem.measure(0, "test", 16)
        for sigma in (0.05, 0.5, torch.linspace(0.1, 20, 16)[:, None]):
            x_t = x + sigma * torch.randn(x.shape, generator=Rng.generator("z"))
            assert torch.allclose(problem.prior(x_t, sigma), general(x_t, sigma), atol=1e-4)
        assert float((problem.posterior(m).weights > 0.05).sum(1).double().mean()) > 2


def test_a_seed_is_its_observations_and_the_splits_are_apart():
    problem = build_problem("mixture-8", CATALOG)
    (x, m), (x2, m2) = problem.measure(3, "test", 4), problem.measure(3, "test", 4)
    assert torch.equal(x, x2) and torch.equal(m.y, m2.y) and torch.equal(m.A.matrix, m2.A.matrix)
    for other, _ in (problem.measure(4, "test", 4), problem.measure(3, "validation", 4)):
        assert not torch.isclose(other, x).any()


# What is measured.


@pytest.mark.parametrize("name", ["gaussian", "gaussian-blur", "mixture-2", "manifold"])
def test_an_exact_sampler_is_at_the_floor(name):
    found = rows(name, "oracle", seeds=3, observations=24, draws=200)
    floor, row = found[FLOOR], found["oracle"]
    gaussian = name.startswith("gaussian")
    for got in (floor, row):
        value = values(got)
        assert value["mean-error"] == pytest.approx(1 / math.sqrt(200), rel=0.2)
        for metric, target in {
            "coverage-50": 0.5,
            "coverage-90": 0.9,
            "spread-error": 1.0,
            "misfit": 1.0,
        }.items():
            assert abs(value[metric] - target) < 4 * got.metrics[metric].sem
        assert abs(value["mmd2"]) < 0.004
        assert value["rank-ks"] < 0.2
        assert 0.85 < value["prior-min"] < value["prior-max"] < 1.15
        assert ("covariance-error" in value) == gaussian
        if gaussian:
            assert 0.85 < value["eigenvalue-min"] < 1 < value["eigenvalue-max"] < 1.15
            assert value["covariance-error"] < 0.15
    assert (
        abs(values(row)["sliced-wasserstein"] - values(floor)["sliced-wasserstein"])
        < 0.3 * values(floor)["sliced-wasserstein"]
    )
    assert [row.metrics[metric].n for metric in ("mean-error", "rank-ks")] == [72, 3]
    assert (
        row.failures == 0
        and row.draws == 3 * 24 * 200
        and row.error is None
        and row.seconds > 0
        and row.memory > 10
    )
    assert [abs(a - b) < 0.15 for a, b in zip(row.coverage, LEVELS, strict=True)] == [True] * len(
        LEVELS
    )


def test_errors_of_known_size_are_measured():
    found = rows(
        "gaussian",
        "oracle,oracle:width=0.5,oracle:width=2,oracle:shift=0.3",
        seeds=2,
        observations=16,
        draws=100,
    )
    exact, narrow, wide, shifted = (values(row) for label, row in found.items() if label != FLOOR)
    assert narrow["coverage-90"] < 0.7 < exact["coverage-90"] < wide["coverage-90"]
    assert narrow["coverage-50"] < 0.35 and wide["coverage-50"] > 0.65
    # The spread of draws is scaled by width^2; their error is (width^2 + 1)/2 of an exact one's.
    assert narrow["spread-error"] == pytest.approx(0.4 * exact["spread-error"], rel=0.1)
    assert wide["spread-error"] == pytest.approx(1.6 * exact["spread-error"], rel=0.1)
    for value, scale in ((narrow, 0.25), (wide, 4.0)):
        assert value["eigenvalue-min"] == pytest.approx(scale * exact["eigenvalue-min"], rel=1e-2)
        assert value["eigenvalue-max"] == pytest.approx(scale * exact["eigenvalue-max"], rel=1e-2)
    # The error of the mean is none of the covariance's; a shift by c has the sliced distance
    # |c|/sqrt(d) in root mean square.
    assert shifted["covariance-error"] == pytest.approx(exact["covariance-error"], abs=1e-3)
    assert shifted["sliced-wasserstein"] == pytest.approx(0.3, rel=0.05)
    assert shifted["mean-error"] > 1 and shifted["mmd2"] > 0.05 and shifted["rank-ks"] > 0.2
    assert found["oracle:width=0.5"].options == {"width": 0.5, "shift": 0.0}


def test_ranks_have_their_nominal_coverage_for_any_number_of_draws():
    for k in (1, 4, 7):
        r = torch.arange(k + 1, dtype=torch.float64)
        ranks = torch.stack([r / (k + 1), (r + 1) / (k + 1)], -1)
        assert coverage_curve(ranks[None])[0].tolist() == pytest.approx(LEVELS)
        assert uniformity_gap(ranks) < 1e-12
    point = torch.tensor([[0.0, 1 / 9]])
    assert uniformity_gap(point) == pytest.approx(0.89, abs=0.01)
    row = rows("gaussian", "oracle", seeds=1, observations=600, draws=3)["oracle"]
    for name, target in {"coverage-50": 0.5, "coverage-90": 0.9}.items():
        assert abs(row.metrics[name].value - target) < 4 * row.metrics[name].sem < 0.06


def test_calls_are_counted():
    row = rows("gaussian", "busy", seeds=2, observations=3, draws=4)["busy"]
    # Of 2n rows: one forward, two products, one call of A and a gradient through it. Of n: three
    # forwards, two calls of A.
    assert (row.forwards, row.products, row.operator, row.adjoint, row.pinv, row.rotations) == (
        5,
        4,
        4,
        4,
        1,
        2,
    )


@pytest.mark.parametrize("name", ["mmps:switch=0.3", "dps"])
def test_counts_are_those_that_samplers_name(name):
    problem = build_problem("gaussian", CATALOG)
    (setting,), _ = select_samplers(problem, CATALOG, f"{name}:steps=6")
    design = Design.of(problem, seeds=1, observations=2, draws=2)
    _, row = compare_samplers(problem, [setting], CATALOG, design)
    assert (row.forwards, row.products) == setting.sampler().cost
    assert row.operator >= 6 and row.adjoint >= 6


def test_draws_that_are_not_finite_are_counted_and_left_out():
    found = rows("gaussian", "broken,oracle", seeds=2, observations=4, draws=64)
    broken, oracle = found["broken"], found["oracle"]
    assert broken.failures == 2 * (64 + 16)
    assert broken.metrics["psnr"].n == 2 * 3
    assert all(math.isfinite(value.value) for value in broken.metrics.values())
    assert values(broken)["mean-error"] == pytest.approx(values(oracle)["mean-error"], rel=0.5)
    assert oracle.failures == 0


def test_a_sampler_that_fails_is_a_row_that_says_so():
    found = rows("gaussian", "fails,oracle", seeds=1, observations=2, draws=4)
    assert found["fails"].error == "too stiff" and not found["fails"].metrics
    assert found["oracle"].metrics


def test_samplers_get_the_same_numbers():
    seen = []

    @dataclass(frozen=True, kw_only=True)
    class Spy(Oracle):
        which: int = 0

        def __call__(self, prior, m, rng):
            seen.append((self.which, m.y.clone(), rng.seeds))
            return super().__call__(prior, m, rng)

    offer("spy", Spy)
    rows("gaussian", "spy,spy:which=1", seeds=2, observations=3, draws=2)
    one, two = ([(y, seeds) for which, y, seeds in seen if which == w] for w in (0, 1))
    assert len(one) == len(two) == 3
    for (y, s), (y2, s2) in zip(one, two, strict=True):
        assert torch.equal(y, y2) and s == s2
    assert len({tuple(s) for _, s in one}) == 3
    assert torch.equal(one[1][0][0], one[1][0][1])  # draws of one observation are together
    del CATALOG.offers["samplers"]["spy"]


# Which samplers.


def test_steps_and_a_budget_choose_settings():
    problem = build_problem("gaussian", CATALOG)
    chosen, _ = select_samplers(problem, CATALOG, "steps,steps:steps=5,oracle", steps=[4, 8])
    assert [s.label for s in chosen] == [
        "steps:steps=4",
        "steps:steps=8",
        "steps:steps=5",
        "oracle",
    ]
    chosen, left = select_samplers(
        problem, CATALOG, "steps,steps:careful=true,oracle,steps:steps=7", budget=99
    )
    assert [s.label for s in chosen] == ["steps", "steps:careful=true", "oracle", "steps:steps=7"]
    assert [s.values.get("steps") for s in chosen] == [24, 12, None, 7]
    chosen, left = select_samplers(problem, CATALOG, "steps,oracle,steps:steps=7,mmps", budget=15)
    assert [s.label for s in chosen] == ["oracle", "mmps"]
    assert left == [
        f"{name} is left out: it cannot do with 15 forwards and products a draw"
        for name in ("steps", "steps:steps=7")
    ]
    mmps = chosen[-1]
    more = mmps.factory(**{**mmps.values, "steps": mmps.values["steps"] + 1})
    assert sum(mmps.sampler().cost) <= 15 < sum(more.cost)
    with pytest.raises(RecipeError, match="give one of them"):
        select_samplers(problem, CATALOG, "steps", steps=[4], budget=9)


def test_every_sampler_that_fits_is_compared_by_default():
    problem = build_problem("gaussian", CATALOG)
    names = {setting.name for setting in select_samplers(problem, CATALOG)[0]}
    assert {"mmps", "dps", "oracle", "steps"} <= names
    nonlinear = CATALOG.find("operators", "clip").load()

    def measure(seed, split, n):
        x, m = problem.measure(seed, split, n)
        return x, Measurement(m.y, nonlinear(n, (8,), Rng.generator(0)), m.noise)

    other = dataclasses.replace(problem, measure=measure)
    assert other.posterior(measure(0, "test", 2)[1]) is None
    left = {setting.name for setting in select_samplers(other, CATALOG)[0]}
    assert "dps" in left and not left & {"mmps", "oracle"}
    with pytest.raises(
        RecipeError,
        match=(
            r"^mmps needs a linear operator \(adjoint\), which gaussian does not provide"
            r" \(these samplers fit: .*dps.*\)$"
        ),
    ):
        select_samplers(other, CATALOG, "dps,mmps")
    assert FLOOR not in rows(other, "steps", seeds=1, observations=2, draws=4)


@pytest.mark.parametrize(
    ("samplers", "message"),
    [
        ("mmsp", r"^--samplers: there is no sampler 'mmsp'; did you mean 'mmps'\?"),
        ("dps:wieght=2", r"^--samplers: dps: wieght: unknown key; did you mean 'weight'\?"),
        ("dps:weight=-1", r"^--samplers: dps: weight: got -1, more than 0"),
        ("dps:steps=2.5", r"^--samplers: dps: steps: got 2.5, a whole number is needed"),
        ("dps:weight", r"^--samplers: dps: 'weight' is not option=value"),
        ("dps:weight=1:weight=2", r"^--samplers: dps: weight is given twice"),
        ("mmps:schedule={name: karras, sigma_min: 30}", r"sigma_min must be below sigma_max"),
    ],
)
def test_a_mistake_in_a_sampler_is_one_line(samplers, message):
    with pytest.raises(RecipeError, match=message) as caught:
        select_samplers(build_problem("gaussian", CATALOG), CATALOG, samplers)
    assert "\n" not in str(caught.value)


def test_options_may_hold_commas_and_colons():
    spec = "mmps:steps=4:schedule={name: karras, sigma_max: 5.0},dps:steps=3"
    chosen, _ = select_samplers(build_problem("gaussian", CATALOG), CATALOG, spec)
    assert chosen[0].values["schedule"].sigma_max == 5 and chosen[1].values["steps"] == 3
    assert parse_sampler(chosen[0].label, CATALOG).values == chosen[0].values


def test_tuning_takes_other_observations_and_keeps_what_was_given():
    problem, asked = build_problem("gaussian", CATALOG), []

    def measure(seed, split, n):
        asked.append((seed, split, n))
        return problem.measure(seed, split, n)

    offer(
        "shy",
        dataclasses.make_dataclass(
            "Shy",
            [("width", Annotated[float, Gt(0)], 4.0)],
            bases=(Oracle,),
            frozen=True,
            kw_only=True,
        ),
    )
    watched = dataclasses.replace(problem, measure=measure)
    chosen, _ = select_samplers(watched, CATALOG, "shy,shy:width=4.0,steps,oracle:shift=0.1")
    asked.clear()
    design = Design.of(watched, seeds=2, observations=8, draws=32, trials=12)
    found = {row.setting: row for row in compare_samplers(watched, chosen, CATALOG, design)}
    assert asked == [(0, "test", 8), (1, "test", 8), (0, "validation", 8)]
    tuned = found["shy"]
    assert tuned.tuning["trials"] == 12 and tuned.tuning["score"] == "sliced-wasserstein"
    assert (
        tuned.tuning["chosen"] == {"width": tuned.options["width"]}
        and 0.5 < tuned.options["width"] < 2
    )
    assert tuned.tuning["best"] < tuned.tuning["default"]
    assert (
        found["shy:width=4.0"].options["width"] == 4
        and found["shy:width=4.0"].tuning["trials"] == 0
    )
    assert (
        set(found["steps"].tuning["chosen"]) == {"scale"}
        and 0.1 <= found["steps"].options["scale"] <= 2
    )
    assert set(found["oracle:shift=0.1"].tuning["chosen"]) == {"width"}
    assert (
        values(tuned)["sliced-wasserstein"] < values(found["shy:width=4.0"])["sliced-wasserstein"]
    )
    del CATALOG.offers["samplers"]["shy"]


def test_a_trial_that_costs_more_than_the_budget_takes_fewer_steps():
    problem = build_problem("gaussian", CATALOG)
    (setting,), _ = select_samplers(problem, CATALOG, "mmps", budget=60)
    for switch in (0.05, 1.0, 3.0):
        changed = setting.with_changes({"switch": switch})
        assert sum(changed.sampler().cost) <= 60
    assert (
        setting.with_changes({"switch": 0.05}).values["steps"]
        > setting.with_changes({"switch": 3.0}).values["steps"]
    )


# What is written.


@pytest.fixture(scope="module")
def found():
    problem = build_problem("gaussian", CATALOG)
    chosen, _ = select_samplers(problem, CATALOG, "oracle,oracle:width=0.5,fails")
    design = Design.of(problem, seeds=2, observations=6, draws=16)
    done = list(compare_samplers(problem, chosen, CATALOG, design))
    return make_document(problem, done, design, ["x is left out: why"])


def test_the_document_is_json_with_the_keys_that_the_page_lists(found, tmp_path):
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(found, allow_nan=False))
    assert read_document(path) == found
    listed = set(re.findall(r"^\| `([\w.\[\]]+)` \|", PAGE.partition("## The JSON file")[2], re.M))
    keys = {key for key in found if key not in ("problem", "rows")}
    keys |= {f"problem.{key}" for key in found["problem"]} | {
        f"rows[].{key}" for key in found["rows"][0]
    }
    assert keys == listed
    assert found["schema"] == 1 and found["environment"].keys() >= {
        "invem",
        "python",
        "torch",
        "processor",
        "cores",
        "threads",
        "device",
    }
    assert [row["setting"] for row in found["rows"]] == ["oracle", "oracle:width=0.5", "fails"]
    for value in found["rows"][0]["metrics"].values():
        assert set(value) == {"value", "sem", "n"} and value["n"] in (2, 12)
    assert found["floor"].keys() == found["rows"][0]["metrics"].keys()


def test_what_cannot_be_a_baseline_is_told(tmp_path):
    path = tmp_path / "bench.json"
    for text in ("", "{", "[]", '{"schema": 2, "rows": [], "problem": {}}'):
        path.write_text(text)
        with pytest.raises(RecipeError, match=re.escape(str(path))):
            read_document(path)
    with pytest.raises(RecipeError, match="No such file"):
        read_document(tmp_path / "none.json")


def test_a_baseline_tells_what_moved(found):
    assert compare_with_baseline(found, found) == []
    before = json.loads(json.dumps(found))
    oracle, narrow, _ = before["rows"]
    oracle["metrics"]["psnr"]["value"] += 2.9 * oracle["metrics"]["psnr"]["sem"]
    oracle["metrics"]["misfit"]["value"] += 1.9 * oracle["metrics"]["misfit"]["sem"]
    oracle["seconds"] *= 10
    del oracle["metrics"]["mmd2"]
    narrow["setting"], narrow["forwards"] = "oracle:width=0.4", 3
    before["rows"][2]["error"] = None
    before["draws"] = 8
    lines = compare_with_baseline(found, before)
    assert len(lines) == 6
    assert lines[0] == "the baseline has other draws: 8, now 16"
    assert lines[1].startswith("oracle: psnr ") and " -> " in lines[1]
    assert lines[2:] == [
        "oracle: mmd2 is new",
        "oracle:width=0.5: new",
        "fails: fails: too stiff",
        "oracle:width=0.4: gone",
    ]
    narrow["setting"] = "oracle:width=0.5"
    assert "oracle:width=0.5: forwards 3 -> 0" in compare_with_baseline(found, before)
    before["problem"]["digest"] = "0"
    with pytest.raises(RecipeError, match="another problem"):
        compare_with_baseline(found, before)


class Parser(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.tags, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href")]
        if tag not in ("meta", "img", "path", "circle", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("path", "circle"):
            assert self.open.pop() == tag


def parsed(page):
    parser = Parser()
    parser.feed(page)
    assert not parser.open
    assert (
        all(link.startswith("data:") for link in parser.links)
        and "@import" not in page
        and "url(" not in page
    )
    assert not {"script", "link", "iframe"} & set(parser.tags)
    return parser


def test_the_page_and_the_table_show_every_sampler(found):
    text = render_page(found, {})
    # Two plots of quality, two calibration curves.
    assert parsed(text).tags.count("img") == text.count("data:image/svg+xml") == 2 + 2
    table = render_markdown(found)
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 3 + 1 and len({line.count("|") for line in lines}) == 1
    for label in ("oracle", "oracle:width=0.5", "fails: too stiff", FLOOR):
        assert label in table and label in text
    assert "x is left out: why" in text
    assert to_rich(found).row_count == 4


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_figure_is_an_image_with_every_sampler_that_has_numbers(found, tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_figure(found, path)
    data = path.read_bytes()
    write_figure(found, path)
    assert path.read_bytes() == data
    if suffix == ".png":
        assert data.startswith(b"\x89PNG")
        return
    text = data.decode()
    assert ">oracle<" in text and ">oracle:width=0.5<" in text and ">fails<" not in text
    assert "sliced-wasserstein" in text
    write_figure(found, path, "psnr")
    assert "psnr (dB)" in path.read_text("utf-8")


def test_a_figure_that_cannot_be_drawn_is_told(found, tmp_path):
    with pytest.raises(RecipeError, match=r"a\.gif: the name of a figure ends in \.svg or \.png"):
        write_figure(found, tmp_path / "a.gif")
    with pytest.raises(RecipeError, match="no sampler has a value of ssim"):
        write_figure(found, tmp_path / "a.svg", "ssim")


def test_names_on_the_page_are_escaped(found):
    other = json.loads(json.dumps(found))
    other["rows"][0]["setting"] = "<script>&"
    other["left_out"] = ["<b>"]
    text = render_page(other, {})
    parsed(text)
    assert "<script>" not in text and "&lt;script&gt;&amp;" in text and "&lt;b&gt;" in text


def test_built_in_problems_and_metrics_are_read_from_data_files():
    for definition in PROBLEMS.values():
        closed = (definition.prior, definition.operator, definition.noise)
        assert all(closed) != bool(definition.recipe)
    statistics = PER_OBSERVATION.keys() | RATIOS.keys() | PER_SEED.keys()
    used = {m.source["statistic"] for m in METRICS.values() if "statistic" in m.source}
    assert used == statistics
    shown_names = {n for w in ("columns", "plots") for e in (True, False) for n in shown(w, e)}
    assert (
        shown_names <= METRICS.keys()
        and {tuning_metric(True), tuning_metric(False)} <= METRICS.keys()
    )


def test_the_package_names_no_sampler_and_no_metric():
    names = {name for kind in ("samplers", "metrics", "operators") for name in BUILT_IN[kind]}
    # Words of the language of a benchmark that are names of samplers too.
    names -= {"auto", "prior", "exact", "observation", "identity", "sum", "pad", "crop", "stack"}
    for path in (ROOT / "invem" / "bench").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in names, f"{path.name}: {node.value}"


def test_numbers_that_are_not_finite_are_null():
    problem = build_problem("gaussian", CATALOG)
    row = Row("a", "a", {}, metrics={"psnr": Value(math.inf, math.nan, 2)}, failures=1, draws=2)
    design = Design(seeds=1, observations=1, draws=2, trials=3, budget=5)
    found = make_document(problem, [row], design, [])
    assert found["rows"][0]["metrics"]["psnr"] == {"value": None, "sem": None, "n": 2}
    found["problem"]["exact"] = False
    assert "not finite" in render_markdown(found) and "1 of 2" in render_markdown(found)
    parsed(render_page(found, {}))


def test_the_page_of_documentation_has_every_problem_and_metric():
    for name, definition in PROBLEMS.items():
        assert f"| `{name}` | {definition.summary} |" in PAGE
    for name, meaning in METRICS.items():
        assert f"| `{name}` | {meaning.unit} | {meaning.best} | {meaning.text} |" in PAGE


# Runs, and the command line.


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench") / "run"
    changes = {"compute.threads": 1}
    carry_out(ROOT / "recipes" / "inpainting.yaml", changes, smoke=True, out=folder)
    return folder


FEW = ["--observations", "2", "--draws", "4", "--seeds", "2"]


def test_a_run_is_benched_on_its_held_out_observations(smoke, tmp_path):
    files = [tmp_path / "new" / "a.json", tmp_path / "a.html"]
    words = ["bench", smoke, "--samplers", "mmps:steps=3,dps:steps=3", *FEW]
    done = invem(*words, "--json", files[0], "--html", files[1], "--markdown", "--tune", "1")
    found = read_document(files[0])
    assert (
        found["problem"]["truth"] == "held-out"
        and not found["problem"]["exact"]
        and found["floor"] is None
    )
    assert (
        found["problem"]["run"] == str(smoke)
        and found["problem"]["definition"] == (smoke / "recipe.yaml").read_text()
    )
    for row in found["rows"]:
        assert {"psnr", "psnr-draw", "ssim", "misfit", "coverage-90", "spread-error"} <= row[
            "metrics"
        ].keys()
        assert row["tuning"]["score"] == "psnr" and row["forwards"] == 3
    assert done.stdout.count("\n| ") == 4 and "mmps:steps=3: " in done.stderr
    page = files[1].read_text()
    assert parsed(page).tags.count("img") == page.count("data:image/svg+xml") + 2 + 2 * 3
    assert page.count("data:image/png") == 2 + 2 * 3
    again = invem(
        "bench",
        smoke,
        "--samplers",
        "mmps:steps=3,dps:steps=3",
        *FEW,
        "--baseline",
        files[0],
        "--tune",
        "1",
    )
    assert again.stdout.endswith("nothing moved by more than twice its standard error\n")
    limit = "has 6 held-out observations besides those for tuning, and 7 are wanted"
    assert limit in invem("bench", smoke, "--observations", "7", code=2).stderr


def test_the_truth_may_be_drawn_from_the_prior_of_a_run(smoke, tmp_path, monkeypatch):
    monkeypatch.setattr(
        problems,
        "generate",
        lambda prior, sigmas, *rest: _generate(prior, sigmas[::32], *rest),
    )
    path = tmp_path / "a.json"
    invem("bench", smoke, "--samplers", "mmps:steps=3", *FEW, "--truth", "prior", "--json", path)
    assert read_document(path)["problem"]["truth"] == "prior"
    problem = problem_of_run(open_run(smoke), "prior")
    (x, m), (held, measured) = (
        problem.measure(0, "test", 2),
        problem_of_run(open_run(smoke)).measure(0, "test", 2),
    )
    assert (
        not torch.allclose(x, held)
        and torch.equal(m.A.mask, measured.A.mask)
        and not torch.equal(m.y, measured.y)
    )
    residual = ((m.y - m.A(x)) / m.noise.var().sqrt()).flatten()
    assert float(residual.std()) == pytest.approx(1, abs=0.3)


def _generate(*arguments):
    from invem import generate

    return generate(*arguments)


def test_the_held_out_observations_are_those_of_the_run(smoke):
    from invem import store

    problem = problem_of_run(open_run(smoke))
    truth = store.read(smoke / "truth" / "00000.safetensors")["x"]
    drawn = [problem.measure(seed, "test", 3)[0] for seed in range(2)] + [
        problem.measure(0, "validation", 2)[0]
    ]
    rows = [[int((truth == one).flatten(1).all(1).nonzero()[0]) for one in x] for x in drawn]
    assert sorted(row for part in rows for row in part) == list(range(8))


def test_a_gaussian_prior_of_a_run_has_an_exact_posterior(tmp_path):
    words = [
        "phases=[{name: warm-start, rounds: 2, fit: {objective: gaussian-moments, rank: 4}}]",
        "evaluate.metrics=[]",
        "smoke={}",
    ]
    small = ["compute.threads=1", "count=64", "evaluate.observations=8", "evaluate.samples=0"]
    invem("run", ROOT / "recipes" / "inpainting.yaml", *words, *small, "--out", tmp_path / "run")
    path = tmp_path / "a.json"
    invem(
        "bench", tmp_path / "run", "--samplers", "exact", *FEW, "--truth", "prior", "--json", path
    )
    found = read_document(path)
    assert found["problem"]["exact"] and found["floor"]["mean-error"]["value"] == pytest.approx(
        0.5, rel=0.3
    )
    assert found["rows"][0]["metrics"]["mean-error"]["value"] == pytest.approx(0.5, rel=0.3)


def test_a_recipe_is_benched_where_it_was_run(smoke, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / "mine.yaml"
    mine.write_text((smoke / "recipe.yaml").read_text())
    assert "invem run mine.yaml --out runs/mine" in invem("bench", "mine.yaml", code=2).stderr
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(smoke)
    done = invem("bench", "mine.yaml", "--samplers", "mmps:steps=2", *FEW, "--markdown")
    assert "| mmps:steps=2 | 2 |" in done.stdout
    mine.write_text(mine.read_text().replace("seed: 0", "seed: 1"))
    assert "other settings" in invem("bench", "mine.yaml", code=2).stderr


def test_the_digits_are_trained_once_into_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    digits = PROBLEMS["digits"]
    small = digits.recipe.replace("steps: 800, batch: 128", "steps: 2, batch: 4").replace(
        "channels: [32, 64]", "channels: [4]"
    )
    assert small != digits.recipe
    monkeypatch.setitem(PROBLEMS, "digits", dataclasses.replace(digits, recipe=small))
    done = invem("bench", "digits", "--samplers", "mmps:steps=2,prior:steps=2", *FEW, "--markdown")
    assert "M-step" in done.stderr and "| prior:steps=2 |" in done.stdout
    (folder,) = (p for p in (tmp_path / "invem" / "bench").iterdir() if p.is_dir())
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}
    again = invem("bench", "digits", "--samplers", "mmps:steps=2", *FEW, "--markdown")
    assert "M-step" not in again.stderr
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*.safetensors")}
    line = "a Gaussian or a mixture (closed form), which digits does not provide"
    assert line in invem("bench", "digits", "--samplers", "exact", code=2).stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["gausian"],
            "error: there is no problem, recipe or run 'gausian'; did you mean 'gaussian'?",
        ),
        (
            ["gaussian", "--samplers", "mmsp"],
            "error: --samplers: there is no sampler 'mmsp'; did you mean 'mmps'?",
        ),
        (["gaussian", "--steps", "4,x"], "error: --steps: 'x' is not a whole number above 0"),
        (["gaussian", "--truth", "both"], "error: --truth: 'both' is not one of: held-out, prior"),
        (
            ["gaussian", "--device", "abacus"],
            "error: --device: 'abacus' is not available on this machine",
        ),
        (["gaussian", "--baseline", "none.json"], "error: none.json: cannot be read: No such file"),
        (["gaussian", "--json", "/dev/null/a.json"], "error: /dev/null/a.json: cannot be written"),
        (["recipes"], "error: recipes: not a run directory"),
        (["none.yaml"], "error: none.yaml: there is no such file"),
    ],
)
def test_mistakes_are_one_line(words, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    done = invem("bench", *words, code=2)
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1 and not done.stdout


def test_the_command_prints_a_table(tmp_path):
    done = invem(
        "bench",
        "gaussian",
        "--samplers",
        "mmps,dps",
        "--steps",
        "2,4",
        *FEW,
        "--budget",
        "9",
        code=2,
    )
    assert "give one of them" in done.stderr
    done = invem("bench", "mixture-2", "--samplers", "mmps,dps,sitcom", "--budget", "12", *FEW)
    assert (
        "sliced-wasserstein" in done.stdout
        and "exact draws" in done.stdout
        and "at most 12 forwards" in done.stdout
    )
    assert "sitcom is left out" in done.stderr and "sitcom" not in done.stdout


def test_a_prior_in_closed_form_agrees_with_its_own_law():
    """What the prior-calibration number rests on: truths of a problem have the moments of its
    prior."""
    problem = build_problem("gaussian-blur", CATALOG)
    x = problem.measure(0, "test", 4000)[0].flatten(1)
    law = problem.exact.moments()
    assert isinstance(law, Gaussian)
    assert torch.allclose(torch.cov(x.T), law.cov.dense(), atol=0.12)
    assert isinstance(Posterior.of(problem.exact, problem.measure(0, "test", 1)[1]), Posterior)
