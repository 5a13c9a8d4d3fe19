"""Photon noise on the default path, and a calibration that does not run away in silence."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from invem_plugins.noises.poisson import poisson
from invem_plugins.noises.poisson_gaussian import poisson_gaussian
from invem_plugins.operators.identity import identity
from invem_plugins.operators.random_mask import random_mask
from invem_plugins.samplers.mmps import MMPS
from test_faults_sense import blind, frames, told

import invem
from invem import Gaussian, Measurement, NoiseModel, Prior, Rng, Unsupported
from invem.door import Run
from invem.linalg import DPLR
from invem.measurement import remeasure
from invem.running.calibrating import shown_noise
from invem.running.measure import new_observations

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
PHOTONS = [
    (poisson, {"peak": 20.0}),
    (poisson_gaussian, {"peak": 20.0, "sigma": 0.1}),
]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def smooth(n, side=16):
    at = torch.linspace(-1, 1, side)
    spot = torch.exp(-(at[:, None] ** 2 + at[None] ** 2) / 0.3)
    height = torch.rand(n, 1, 1, 1, generator=Rng.generator("smooth"))
    return -0.8 + 1.6 * height * spot


def observed(law=poisson, n=40, operator=identity, **options):
    x = smooth(n)
    A = operator(n, tuple(x.shape[1:]), Rng.generator("A"))
    noise = law(n, tuple(x.shape[1:]), Rng.generator("noise"), **options)
    return x, Measurement(noise.sample(A(x), Rng.generator("y")), A, noise)


# What the noise knows


@pytest.mark.parametrize(("law", "options"), PHOTONS)
def test_photon_noise_knows_a_variance_after_it_was_given_y(law, options):
    x, m = observed(law, **options)
    assert not {"var", "normal"} & m.provides and "density" in m.provides
    with pytest.raises(Unsupported, match="is not Gaussian"):
        m.noise.var()
    done = m.completed()
    assert "var" in done.provides and not {"normal", "one level"} & done.provides
    assert not bool(done.one_level.any()) and shown_noise(done) is None
    true = 2 * (x + 1) / options["peak"] + options.get("sigma", 0.0) ** 2
    bright = x > -0.5
    ratio = (done.noise.var() / true)[bright]
    assert float(ratio.log().mean().abs()) < 0.05 and float(ratio.log().std()) < 0.35
    z = (done.y - x).square() / done.noise.var()
    assert float(z[bright].mean()) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize(("law", "options"), PHOTONS)
def test_the_law_is_what_it_was_and_rows_are_on_their_own(law, options):
    x, m = observed(law, **options)
    done, rows = m.completed(), torch.tensor([3, 1])
    assert torch.equal(done.log_prob(x), m.log_prob(x))
    again = done.noise.sample(done.A(x), Rng.generator("y"))
    assert torch.equal(again, m.y)
    assert torch.allclose(m[rows].completed().noise.var(), done[rows].noise.var())
    assert torch.equal(done.completed().noise.var(), done.noise.var())
    assert done.to(dtype=torch.float64).noise.var().dtype == torch.float64


def test_hidden_entries_have_no_part_in_the_variance_of_others():
    _, m = observed(peak=50.0, operator=random_mask)
    seen = m.A.seen.expand_as(m.y) != 0
    other = replace(m, y=torch.where(seen, m.y, 30.0))
    one, two = (each.completed().noise.var() for each in (m, other))
    assert torch.allclose(one, two)
    assert torch.allclose(one[~seen], torch.tensor(2 / 50.0))  # where A(x) = 0


def test_dark_and_small_observations_have_a_positive_variance():
    for shape in ((1, 8, 8), (5,), (1, 1, 1), (2, 3, 40)):
        for law, options in PHOTONS:
            noise = law(3, shape, Rng.generator(0), **options)
            for y in (-torch.ones(3, *shape), -2 * torch.ones(3, *shape)):
                var = noise.given(y).var()
                assert var.shape == y.shape and bool((var > 0).all() and var.isfinite().all())


def test_measuring_anew_draws_from_the_law_of_counts():
    x, m = observed(peak=5.0)
    done = m.completed()
    found = remeasure(done, x, Rng.keyed("anew", items=range(len(x))))
    counts = 5.0 * (found.y + 1) / 2
    assert torch.allclose(counts, counts.round(), atol=1e-4) and bool((counts >= -1e-4).all())
    assert not torch.equal(found.noise.var(), done.noise.var())
    assert torch.equal(found.noise.var(), found.completed().noise.var())


def test_a_noise_that_defines_a_variance_is_gaussian_unless_it_says_otherwise():
    class White(NoiseModel):
        def sample(self, clean, rng):
            return clean

        def log_prob(self, y, clean):
            return -(y - clean).square().flatten(1).sum(1)

        def var(self):
            return torch.full((1, 1), 0.5)

    assert White().provides == {"var", "normal"} and White().given(torch.zeros(1, 1)).provides
    assert observed(peak=5.0)[1].completed().floored(0.1).provides >= {"var"}


# The bias


@pytest.mark.parametrize(
    ("name", "peak", "most", "ratio"),
    [
        ("image", 5.0, 0.15, 0.1),
        ("image", 20.0, 0.2, 0.05),
        ("image", 100.0, 0.35, 0.05),
        ("entry", 5.0, 0.4, 0.1),
        ("entry", 100.0, 0.25, 0.05),
    ],
)
def test_the_posterior_is_off_by_less_than_it_is_wide(name, peak, most, ratio, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    from poisson import bias

    found = bias(name, peak, n=150)
    assert abs(found["bias"]) < most and found["std"] == pytest.approx(1, abs=ratio)


def test_the_kept_table_is_what_the_docstring_says():
    kept = json.loads((BENCHMARKS.parent / "docs" / "results" / "poisson.json").read_text("utf-8"))
    rows = {(row["signals"], row["peak"]): row for row in kept["rows"] if not row["sigma"]}
    image = [abs(rows["image", peak]["bias"]) for peak in (5.0, 20.0, 100.0)]
    entry = [abs(rows["entry", peak]["bias"]) for peak in (5.0, 20.0, 100.0)]
    assert image == pytest.approx([0.05, 0.07, 0.22], abs=0.01)
    assert entry == pytest.approx([0.28, 0.28, 0.15], abs=0.01)


def test_mmps_draws_from_the_posterior_of_counts():
    """One unknown number, the height of a spot: the posterior is known by quadrature."""
    n, k, peak = 24, 40, 50.0
    at = torch.linspace(-1, 1, 8)
    spot = torch.exp(-(at[:, None] ** 2 + at[None] ** 2) / 0.3)[None]
    height = 0.2 * torch.randn(n, generator=Rng.generator("height")) + 0.8
    x = -0.8 + height[:, None, None, None] * spot
    noise = poisson(n, (1, 8, 8), Rng.generator(0), peak=peak)
    A = identity(n, (1, 8, 8), Rng.generator(0))
    m = Measurement(noise.sample(x, Rng.generator("y")), A, noise).completed()
    tiny = torch.full((64,), 1e-6)
    gaussian = Gaussian(-0.8 + 0.8 * spot, DPLR(tiny, 0.2 * spot.reshape(64, 1)))
    rows = torch.arange(n).repeat_interleave(k)
    draws = MMPS(steps=16)(Prior.of(gaussian), m[rows], Rng.keyed("mmps", items=range(n * k)))
    found = (((draws + 0.8) * spot).sum((1, 2, 3)) / spot.square().sum()).reshape(n, k)
    grid = torch.linspace(0.0, 1.7, 801, dtype=torch.float64)
    signals = -0.8 + grid[:, None, None, None] * spot
    exact = []
    for i in range(n):
        each = m.to(dtype=torch.float64)[torch.full((len(grid),), i)]
        weights = torch.softmax(each.log_prob(signals) - 0.5 * ((grid - 0.8) / 0.2) ** 2, 0)
        mean = weights @ grid
        exact.append(torch.stack([mean, (weights @ grid.square() - mean**2).sqrt()]))
    mean, std = torch.stack(exact, 1)
    error = (found.double().mean(1) - mean) / std
    # A spot of few pixels has a slope in each window, so that more is left than in a large image.
    assert abs(float(error.mean())) < 0.6
    assert float((found.std(1).double() / std).mean()) == pytest.approx(1, abs=0.12)


# Runs

COUNTS = """
data: digits
count: 48
operator: {operator}
noise: {noise}
network: {{name: mlp, width: 16, depth: 1}}
phases:
  - {{name: warm-start, rounds: 2, fit: {{objective: gaussian-moments, rank: 4}}}}
  - name: em
    sampler: {{name: {sampler}, steps: 3}}{more}
    fit: {{objective: dsm, steps: 3, batch: 8}}
evaluate: {{samples: 16, observations: 8}}
compute: {{threads: 1}}
"""


@pytest.mark.parametrize("operator", ["identity", "random-mask", "gaussian-blur"])
@pytest.mark.parametrize(
    ("sampler", "noise"),
    [("auto", "{name: poisson-gaussian, peak: 20, sigma: 0.05}"), ("mmps", "poisson")],
)
def test_photon_noise_runs_on_the_default_path(tmp_path, operator, sampler, noise):
    text = COUNTS.format(operator=operator, noise=noise, sampler=sampler, more="")
    (tmp_path / "counts.yaml").write_text(text)
    done = Run(invem.plan(tmp_path / "counts.yaml"), tmp_path / "run")
    done.resume()
    m = done.observations("test")
    assert "var" in m.noise.provides
    stored = done.context.directory.measurements("test").read("00000")
    assert not any("variance" in path for path in stored)  # it follows from y
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["metrics"]["data-misfit"]["value"] == pytest.approx(1, abs=0.35)
    given = {path: tensor for path, tensor in m.tensors().items() if "variance" not in path}
    new = new_observations(done.context, {k: v for k, v in given.items() if k != "noise.peak"})
    assert torch.allclose(new.noise.var(), m.noise.var())


def test_the_peak_is_calibrated_with_its_variance(tmp_path):
    more = "\n    calibrate: {noise.peak: [5.0, 100.0]}"
    text = COUNTS.format(
        operator="identity", noise="{name: poisson, peak: 20}", sampler="mmps", more=more
    )
    (tmp_path / "counts.yaml").write_text(text)
    done = Run(invem.plan(tmp_path / "counts.yaml"), tmp_path / "run")
    done.resume()
    found = json.loads(next((tmp_path / "run").glob("1-*-samples/calibrated.json")).read_text())
    peak = found["values"]["noise.peak"]
    m = done.observations("train")
    assert float(m.noise.peak.max()) == pytest.approx(peak)
    assert torch.equal(m.completed().noise.var(), m.noise.var())


# Calibration

UNET = """
observations: {{name: folder, root: {root}, channels: 1}}
operator: identity
noise: {{name: gaussian, sigma: 0.083}}
network: {{name: unet, channels: [8, 8]}}
phases:
  - {{name: warm-start, rounds: 4, fit: {{objective: gaussian-moments, rank: 16}}}}
  - name: em
    rounds: 2
    sampler: {{name: auto, steps: 4}}
    calibrate: {{noise.sigma: {bounds}}}
    fit: {{objective: dsm, steps: 3, batch: 8}}
evaluate: {{metrics: [], samples: 0, observations: 0}}
compute: {{threads: 1}}
"""


def calibrated(tmp_path, bounds="[0.005, 0.9]", level=0.09):
    frames(tmp_path / "frames", 65535, level)
    (tmp_path / "unet.yaml").write_text(UNET.format(root=tmp_path / "frames", bounds=bounds))
    records = []

    def follow(steps):
        for record in steps:
            records.append(record)
            yield record

    Run(invem.plan(tmp_path / "unet.yaml"), tmp_path / "run").resume(follow=follow)
    return records


def test_a_network_that_is_not_trained_enough_does_not_take_the_level_away(tmp_path):
    records = calibrated(tmp_path)
    last = told(records, "calibrate")[-1]
    assert 0.06 < last["values"]["noise.sigma"] < 0.15 and last["settled"] is False
    warned = [
        each["warning"] for each in told(records, "doubt") if "noise.sigma" in each["warning"]
    ]
    assert warned and not any("\n" in each for each in warned)


def test_an_estimate_at_a_bound_of_the_recipe_is_told(tmp_path):
    records = calibrated(tmp_path, bounds="[0.08, 0.9]")
    last = told(records, "calibrate")[-1]
    assert last["values"]["noise.sigma"] == pytest.approx(0.08, rel=0.02)
    assert "end of its bounds in the recipe" in last["warning"] and last["settled"] is False


def test_without_a_bracket_an_estimate_below_what_is_shown_is_told(tmp_path, monkeypatch):
    """Of signals that may be as rough as noise no lower end is known."""
    from invem.running import calibrating

    shown = calibrating.shown_noise
    monkeypatch.setattr(calibrating, "shown_noise", lambda m: replace(shown(m), least=0.0))
    records = calibrated(tmp_path)
    last = told(records, "calibrate")[-1]
    assert last["settled"] is False and "\n" not in last["warning"]
    told_of = "as rough as noise" in last["warning"] or "moved from" in last["warning"]
    assert told_of or last["values"]["noise.sigma"] > 0.06


def test_a_level_in_closed_form_is_the_maximum_of_the_likelihood_with_progress(tmp_path):
    bounds = ", calibrate: {noise.sigma: [0.005, 0.9]}"
    records, found = blind(tmp_path, 0.2, rounds=4, closed=bounds)
    assert found["values"]["noise.sigma"] == pytest.approx(0.2, rel=0.15)
    assert told(records, "trial")
