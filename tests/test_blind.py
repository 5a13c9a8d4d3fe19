"""Blind EM in a run: what is assumed, what is calibrated, and who goes by it."""

import json
import shutil

import pytest
import torch

from invem import store
from invem.config import Catalog, load
from invem.door import Run
from invem.errors import RecipeError
from invem.planning.make import make
from invem.running.measure import believed, new_observations
from invem.storage.directory import Round

CATALOG = Catalog.load()
RECIPE = """
data: {name: synthetic, size: 6, train: 1100, test: 8}
operator: [{name: random-mask, keep: 0.6}, {name: gain, gain: 2.0}]
noise: {name: gaussian, sigma: 0.1}
assume: {operator.of.1.gain: 1.0, noise.sigma: 0.3}
network: {name: mlp, width: 16, depth: 1}
clean: 50
phases:
  - {name: warm, fit: {objective: gaussian-moments, on: clean, rank: 4}}
  - name: em
    rounds: 2
    calibrate: {operator.of.1.gain: [0.2, 5.0], noise.sigma: [0.01, 1.0]}
    sampler: {name: mmps, steps: 6}
    batch: 256
    fit: {objective: dsm, steps: 6, batch: 8, moments: 4, clean: 0.25}
evaluate: {metrics: [data-misfit], samples: 8, observations: 4, draws: 1, posterior: 0, steps: 3}
"""


def plan(tmp_path, *overrides):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return make(load(path, list(overrides)), CATALOG)


def carried_out(tmp_path, *overrides, out="run"):
    done = Run(plan(tmp_path, *overrides), tmp_path / out)
    done.resume()
    return done


def test_a_device_is_calibrated_and_all_go_by_it(tmp_path):
    done = carried_out(tmp_path)
    files = sorted((tmp_path / "run" / "measurements" / "train").glob("*"))
    assert len(files) == 2 and float(store.read(files[0])["A.parts.1.gain"]) == 2.0
    first, last = (
        json.loads((tmp_path / "run" / f"1-00{r}-samples" / "calibrated.json").read_text())
        for r in range(2)
    )
    assert (first["how"], last["how"]) == ("moments", "score")
    assert first["values"]["operator.of.1.gain"] == pytest.approx(2.0, rel=0.1)
    assert first["values"]["noise.sigma"] == pytest.approx(0.1, rel=0.2)
    assert believed(done.context, Round(0, 0)) == {"operator.of.1.gain": 1.0, "noise.sigma": 0.3}
    assert believed(done.context, Round(1, 0)) == first["values"]
    assert believed(done.context) == last["values"]
    for split in ("train", "test"):
        m, kept = done.observations(split), done.context.observations(split).at()
        assert float(m.A.parts[1].gain) == pytest.approx(last["values"]["operator.of.1.gain"])
        assert torch.equal(m.A.parts[0].mask, kept.A.parts[0].mask) and torch.equal(m.y, kept.y)
        assert float(m.noise.sigma.max()) == pytest.approx(last["values"]["noise.sigma"])
    new = new_observations(done.context, {"y": m.y, "A.parts.0.mask": m.A.parts[0].mask})
    assert torch.equal(new.A.parts[1].gain, m.A.parts[1].gain)


def test_a_run_that_lost_its_last_round_ends_the_same(tmp_path):
    carried_out(tmp_path)
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    for path in (tmp_path / "again").glob("1-001-*"):
        shutil.rmtree(path)
    carried_out(tmp_path, out="again")
    for name in ("1-001-samples/calibrated.json", "1-001-denoiser/denoiser.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("phases.em.calibrate={operator.of.0.keep: [0.1, 0.9]}", "smoothly|other draws"),
        ("phases.em.calibrate={operator.of.1.loss: [0.1, 0.9]}", "no option 'loss'"),
        ("phases.em.calibrate={network.width: [1.0, 9.0]}", "no option of operator or noise"),
        ("phases.em.calibrate={noise.sigma: [0.5, 0.9]}", "0.3 is not between"),
        ("phases.em.calibrate={noise.sigma: [0.9, 0.1]}", "in order"),
        ("phases.em.calibrate={noise.sigma: [-1.0, 1.0]}", "at least 0"),
        ("assume={noise.level: 0.3}", "no option 'level'"),
        ("assume={noise.sigma: -0.3}", "at least 0"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(tmp_path, override, reason):
    with pytest.raises(RecipeError, match=reason):
        plan(tmp_path, override)


def test_the_kept_run_found_its_device_and_restores_as_if_it_were_known():
    from pathlib import Path

    kept = Path(__file__).parent.parent / "docs" / "results"
    blind, known = (
        json.loads((kept / f"blind-blur{more}.json").read_text("utf-8")) for more in ("", "-known")
    )
    assert blind["calibrated"][-1]["values"] == pytest.approx(
        {"operator.std": 1.0, "noise.sigma": 0.05}, rel=0.05
    )
    psnr = [found["evaluations"][-1]["metrics"]["psnr"]["value"] for found in (blind, known)]
    assert psnr[0] > psnr[1] - 0.3
