"""EM policies: what of a round is drawn anew, where chains begin, what the weights begin with, and
what ends a phase."""

import inspect
import itertools
import json
import shutil
import threading
from pathlib import Path

import pytest
import torch
from invem_plugins.metrics.observation_distance import (
    ObservationDistance as ObservationDistanceMetric,
)
from invem_plugins.objectives.dsm import DSM
from invem_plugins.stops.never import Never
from invem_plugins.stops.observation_distance import ObservationDistance
from invem_plugins.stops.weight import LikelihoodWeight

from invem import ChainSampler, Prior, Rng, store
from invem.config import Catalog, Component, Fit, load, options_of
from invem.door import Run
from invem.errors import DataError, NumericalError, PluginError, RecipeError
from invem.planning.make import make
from invem.running.loop import carry_out, rounds_of
from invem.running.measure import clean_signals
from invem.running.mstep import augment
from invem.running.priors import first_prior, newest_weights
from invem.stopping import FinishedRound
from invem.storage.directory import Round
from invem.storage.weights import below
from invem.testing import example_measurement, example_prior

CATALOG = Catalog.load()
RECIPE = """
data: {name: synthetic, size: 6, train: 32, test: 8}
operator: {name: random-mask, keep: 0.6}
noise: {name: gaussian, sigma: 0.1}
network: {name: mlp, width: 16, depth: 1}
clean: 6
phases:
  - {name: warm, rounds: 2, fit: {objective: gaussian-moments, rank: 4}}
  - name: em
    rounds: 3
    batch: 8
    sampler: {name: mmps, steps: 4}
    fit: {objective: dsm, steps: 6, batch: 8, moments: 4}
evaluate: {metrics: [data-misfit], samples: 8, observations: 4, draws: 1, posterior: 0, steps: 3}
"""


def plan(tmp_path, *overrides):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return make(load(path, list(overrides)), CATALOG)


def carried_out(tmp_path, *overrides, out="run", stop=lambda: 0):
    done = Run(plan(tmp_path, *overrides), tmp_path / out)
    done.resume(stop=stop)
    return Run(done.plan, done.path)


def steps(done, p=1):
    return [done.draws(p, r) for r in range(rounds_of(done.context, p))]


def refusal(tmp_path, *overrides):
    with pytest.raises(RecipeError) as found:
        plan(tmp_path, *overrides)
    return str(found.value)


def test_refresh_renews_a_share_of_the_draws_and_all_have_their_turn(tmp_path):
    done = carried_out(tmp_path, "phases.em.refresh=0.25", "phases.em.rounds=5")
    draws = steps(done)
    changed = [(a != b).flatten(1).any(1) for a, b in itertools.pairwise(draws)]
    assert [int(rows.sum()) for rows in changed] == [8, 8, 8, 8]
    assert bool(torch.stack(changed).any(0).all())
    kept = [
        (tmp_path / "run" / f"1-{r:03d}-samples" / "pool.safetensors").exists() for r in range(5)
    ]
    assert (
        kept[-2:] == [True, True] and len(list((tmp_path / "run").glob("*/pool.safetensors"))) <= 5
    )


def test_chains_restarted_at_a_small_noise_stay_near_the_draw_of_the_round_before(tmp_path):
    near = steps(carried_out(tmp_path, "phases.em.restart=0.02", out="near"))
    far = steps(carried_out(tmp_path, out="far"))
    assert torch.equal(near[0], far[0])
    moved = [float((draws[1] - draws[0]).square().mean().sqrt()) for draws in (near, far)]
    assert moved[0] < 0.1 < moved[1]


@pytest.mark.parametrize("name", sorted(CATALOG.offers["samplers"]))
def test_every_sampler_with_chains_begins_where_it_is_told(name):
    sampler = CATALOG.find("samplers", name).load()()
    m, prior = example_measurement("mask", 4, (8,)), Prior.of(example_prior((8,)))
    if not isinstance(sampler, ChainSampler):
        assert "start" not in inspect.signature(sampler.__call__).parameters
        return
    if lacking := sampler.needs - m.provides - prior.provides:
        assert lacking == {"conditional"}
        return
    sampler = sampler.from_level(0.02)
    near, far = (
        sampler(prior, m, Rng.keyed("begin", items=range(4)), torch.full((4, 8), place))
        for place in (0.0, 3.0)
    )
    assert float((far - near).mean()) > 0.1


def test_kept_optimiser_and_average_go_on(tmp_path):
    kept = carried_out(tmp_path, "phases.em.fit.keep=true", "phases.em.fit.start=warm", out="kept")
    tensors, meta = store.read_meta(tmp_path / "kept" / "1-002-denoiser" / "denoiser.safetensors")
    assert meta["steps"] == 18 and float(tensors["optimizer.0.step"]) == 18
    reset = carried_out(tmp_path, "phases.em.fit.start=warm", out="reset")
    assert not any(
        name.startswith("optimizer.")
        for name in store.read(tmp_path / "reset" / "1-002-denoiser" / "denoiser.safetensors")
    )
    assert torch.equal(steps(kept)[1], steps(reset)[1]) and not torch.equal(
        steps(kept)[2], steps(reset)[2]
    )


def test_a_share_of_each_batch_is_granted_clean_images(tmp_path, monkeypatch):
    seen, loss = [], DSM.loss

    def spy(self, denoiser, batch, rng):
        seen.append((len(batch.x), batch.measurement is None, batch.x))
        return loss(self, denoiser, batch, rng)

    monkeypatch.setattr(DSM, "loss", spy)
    done = carried_out(tmp_path, "phases.em.fit.clean=0.25", "phases.em.rounds=1")
    assert [rows[:2] for rows in seen] == [(6, False), (2, True)] * 6
    granted = clean_signals(done.context).flatten(1)
    for _, clean, x in seen:
        assert bool((torch.cdist(x.flatten(1), granted).min(1).values < 1e-4).all()) == clean


def test_images_are_mirrored_and_shifted_each_by_its_own_stream():
    x = torch.arange(2 * 5 * 5, dtype=torch.float32).reshape(1, 2, 5, 5).expand(64, -1, -1, -1)
    fit = Fit(objective="dsm", flip="horizontal")
    out = augment(x, fit, Rng.keyed("a", items=range(64)))
    flipped = (out == x.flip(-1)).flatten(1).all(1)
    assert bool(((out == x).flatten(1).all(1) | flipped).all()) and 15 < int(flipped.sum()) < 49
    out = augment(x, Fit(objective="dsm", shift=2), Rng.keyed("a", items=range(64)))
    padded = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="replicate")
    places = [(i, j) for i in range(5) for j in range(5)]
    hits = torch.stack(
        [(out == padded[..., i : i + 5, j : j + 5]).flatten(1).all(1) for i, j in places]
    )
    assert bool((hits.sum(0) >= 1).all()) and int(hits.any(1).sum()) > 20
    alone = augment(x[:1], Fit(objective="dsm", shift=2, flip="both"), Rng.keyed("a", items=[7]))
    among = augment(x, Fit(objective="dsm", shift=2, flip="both"), Rng.keyed("a", items=range(64)))[
        7:8
    ]
    assert torch.equal(alone, among)


def test_annealed_options_change_by_round_and_the_last_stay(tmp_path):
    done = carried_out(tmp_path, "phases.em.anneal={stepping: [ancestral, heun], steps: [3, 4, 5]}")
    said = [done.directory.draws(Round(1, r)).read_json("sampler")["sampler"] for r in range(3)]
    assert ["ancestral" in said[0], "heun" in said[1], "heun" in said[2]] == [True] * 3
    assert [f"steps={k}" in said[k - 3] for k in (3, 4, 5)] == [True] * 3
    assert done.plan.resolved["phases"][1]["anneal"] == {
        "stepping": ["ancestral", "heun"],
        "steps": [3, 4, 5],
    }
    assert "phases.1.anneal" in refusal(tmp_path, "phases.em.anneal={stepping: [quick]}")


def test_overlapping_rounds_use_the_prior_of_the_round_before(tmp_path):
    overlapped = carried_out(tmp_path, "phases.em.overlap=true", out="a")
    plain = carried_out(tmp_path, out="b")
    assert torch.equal(steps(overlapped)[0], steps(plain)[0])
    stage = overlapped.plan.stages[1]
    m = overlapped.observations()
    warm = overlapped.prior_at("warm", 1)
    rng = overlapped.context.rng("e-step", 1, 1, items=range(8))
    with torch.no_grad():
        expected = stage.sampler(warm, m[torch.arange(8)], rng)
    assert torch.equal(steps(overlapped)[1][:8], expected) and not torch.equal(
        steps(plain)[1], steps(overlapped)[1]
    )
    again = carried_out(tmp_path, "phases.em.overlap=true", out="c")
    assert all(torch.equal(a, c) for a, c in zip(steps(overlapped), steps(again), strict=True))


def test_overlapping_draws_that_were_stopped_go_on_under_the_same_prior(tmp_path):
    whole = carried_out(tmp_path, "phases.em.overlap=true", out="whole")
    shutil.copytree(whole.path, tmp_path / "again")
    for name in ("1-001-denoiser", "1-002-denoiser", "1-002-samples", "1-002-evaluation"):
        shutil.rmtree(tmp_path / "again" / name)
    for k in (2, 3):
        (tmp_path / "again" / "1-001-samples" / f"{k:05d}.safetensors").unlink()
    again = carried_out(tmp_path, "phases.em.overlap=true", out="again")
    assert all(torch.equal(a, b) for a, b in zip(steps(whole), steps(again), strict=True))


def test_measurements_at_two_values_are_kept_apart_in_overlapping_rounds(tmp_path):
    """Each asks for its own while the other reads."""
    done = carried_out(tmp_path, "phases.em.rounds=1")
    kept, found = done.context.observations("train"), {}

    def ask(sigma):
        found[sigma] = [float(kept.at({"noise.sigma": sigma}).noise.sigma.max()) for _ in range(40)]

    threads = [threading.Thread(target=ask, args=(sigma,)) for sigma in (0.2, 0.3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(values == pytest.approx([sigma] * 40) for sigma, values in found.items())


def test_a_failure_beside_the_fit_is_the_run_s(tmp_path, monkeypatch):
    from invem_plugins.samplers.mmps import MMPS

    whole, calls = MMPS.__call__, []

    def broken(self, prior, m, rng):
        calls.append(1)
        x = whole(self, prior, m, rng)
        return x if len(calls) <= 4 else x * float("nan")

    monkeypatch.setattr(MMPS, "__call__", broken)
    with pytest.raises(NumericalError, match="not finite"):
        carried_out(tmp_path, "phases.em.overlap=true")


ALONE = (
    "phases=[{name: em, batch: 8, sampler: {name: mmps, steps: 4}, fit: {objective: dsm, steps: 6,"
    " batch: 8, moments: 4}}]"
)


def test_a_run_begins_with_the_prior_of_another(tmp_path):
    first = carried_out(tmp_path, out="first")
    second = carried_out(tmp_path, f"prior={tmp_path / 'first'}", ALONE, out="second")
    last, begun = first.prior, first_prior(second.context)
    x = torch.zeros(2, 1, 6, 6)
    assert torch.equal(last(x, 0.5), begun(x, 0.5))
    assert "no denoiser is finished" in refusal(tmp_path, f"prior={tmp_path / 'nowhere'}", ALONE)
    with pytest.raises(RecipeError, match="another network"):
        carried_out(tmp_path, f"prior={tmp_path / 'first'}", ALONE, "network.width=8", out="third")
    assert "without weights" in refusal(tmp_path, "prior=network", ALONE)
    carried_out(
        tmp_path,
        "phases=[{name: warm, fit: {objective: gaussian-moments, rank: 4}}]",
        "evaluate.metrics=[]",
        out="gaussian",
    )
    exact = ALONE.replace("name: mmps, steps: 4", "name: exact")
    plan(tmp_path, f"prior={tmp_path / 'gaussian'}", exact, "evaluate.metrics=[]")
    assert "closed form" in refusal(
        tmp_path, f"prior={tmp_path / 'first'}", exact, "evaluate.metrics=[]"
    )


def test_a_run_begins_with_a_network_that_another_run_trained_on_conditions(tmp_path):
    """It is the network alone: what is given to it is known to the objective that fitted it."""
    wide = "network.condition=2"
    fit = "phases.em.fit={objective: cond-dsm, steps: 6, batch: 8, moments: 4, keep: true}"
    first = carried_out(tmp_path, wide, fit, out="first")
    prior = f"prior={tmp_path / 'first'}"
    second = carried_out(tmp_path, wide, prior, ALONE, out="second")
    x_t = torch.linspace(-1, 1, 72).reshape(2, 1, 6, 6)
    begun, last = first_prior(second.context), first.prior
    assert torch.equal(begun(x_t, 0.5), last(x_t, 0.5))
    assert begun.provides == {"moments"} < last.provides
    (kept,) = newest_weights(second.context, Round(0, 0)).of_networks(1, averaged=True)
    state = begun.denoiser.state_dict()
    assert kept.keys() == state.keys()
    assert all(torch.equal(kept[name], tensor) for name, tensor in state.items())
    conditional = ALONE.replace("name: mmps, steps: 4", "name: conditional, steps: 4")
    assert "cond-dsm" in refusal(tmp_path, wide, prior, conditional)


def test_draws_are_read_without_a_change_of_the_run(tmp_path):
    done = carried_out(tmp_path, "phases.em.refresh=0.25", "phases.em.rounds=4")
    before = {path: path.stat().st_mtime_ns for path in done.path.rglob("*")}
    pools = [done.directory.draws(Round(1, r)).has("pool") for r in range(4)]
    assert pools == [False, False, True, True]
    draws = [done.draws("em", r) for r in range(4)]
    changed = [int((a != b).flatten(1).any(1).sum()) for a, b in itertools.pairwise(draws)]
    assert changed == [8, 8, 8]
    assert {path: path.stat().st_mtime_ns for path in done.path.rglob("*")} == before


def test_a_copy_of_the_prior_is_enough_to_go_on(tmp_path):
    carried_out(tmp_path, out="first")
    second = carried_out(tmp_path, f"prior={tmp_path / 'first'}", ALONE, out="second")
    shutil.rmtree(tmp_path / "first")
    (tmp_path / "second" / "0-000-denoiser" / "denoiser.safetensors").unlink()
    facts = second.plan.facts
    again = make(load(tmp_path / "second" / "recipe.yaml"), CATALOG, facts)
    for _ in carry_out(again, tmp_path / "second"):
        pass
    assert Run(again, tmp_path / "second").rounds == [Round(0, 0)]


def weight_says(weights, guidance="likelihood"):
    options = [{"weight": weight, "guidance": guidance} for weight in weights]
    return LikelihoodWeight()([FinishedRound(one, None) for one in options])


def distance_says(values, target=1.0):
    rows = [{"observation-distance": {"value": value, "target": target}} for value in values]
    return ObservationDistance()([FinishedRound({}, row) for row in rows])


def test_what_ends_a_phase():
    assert weight_says([10, 3]) is None and "below 1" in weight_says([10, 0.3])
    assert weight_says([10, 3, 3]) is None
    assert weight_says([10, 0.3], guidance="norm") is None
    assert "3 rounds" in weight_says([10, 3, 3, 10, 3]) and weight_says([10, 10, 3, 10]) is None
    assert distance_says([3.0, 2.0, 1.5]) is None and "near" in distance_says([3.0, 1.04])
    assert "2 rounds" in distance_says([3.0, 2.0, 1.99, 2.1])
    assert distance_says([3.0, 3.0]) is None
    assert Never()([FinishedRound({}, None)] * 9) is None


def test_the_weight_that_dps_tunes_ends_its_phase(tmp_path):
    dps = "phases.em.sampler={name: dps, steps: 3, weight: auto, guidance: likelihood}"
    done = carried_out(tmp_path, dps, "phases.em.stop=weight", "phases.em.rounds=6")
    rounds = rounds_of(done.context, 1)
    said = [done.directory.draws(Round(1, r)) for r in range(6)]
    weights = [folder.read_json("sampler")["options"]["weight"] for folder in said[:rounds]]
    assert not any(folder.has_json("sampler") for folder in said[rounds:])
    assert len(weights) == rounds and (rounds == 6 or weight_says(weights))
    assert "weight: auto" in refusal(tmp_path, "phases.em.stop=weight")


def test_a_metric_of_several_draws_is_refused_one(tmp_path):
    metric = "evaluate.metrics=[calibration]"
    assert "calibration needs several draws" in refusal(tmp_path, metric, "evaluate.draws=1")
    plan(tmp_path, metric, "evaluate.draws=2")


def test_observations_alone_end_a_phase(tmp_path):
    metric = "evaluate.metrics=[{name: observation-distance}]"
    done = carried_out(
        tmp_path, metric, "phases.em.stop=auto", "phases.em.rounds=5", "evaluate.samples=32"
    )
    found = [
        row
        for row in map(
            json.loads, Path(tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        )
        if row["name"] == "em"
    ]
    values = [row["metrics"]["observation-distance"]["value"] for row in found]
    target = ObservationDistanceMetric().target
    assert len(values) == rounds_of(done.context, 1)
    assert len(values) == 5 or distance_says(values, target)
    if len(values) < 5:
        assert done.directory.stop(1)["rounds"] == len(values)
    assert "observation-distance" in refusal(tmp_path, "phases.em.stop=auto")
    assert "every 1" in refusal(tmp_path, metric, "phases.em.stop=auto", "evaluate.every=2")


@pytest.mark.parametrize(
    "overrides, reason",
    [
        (["phases.em.refresh=0.5", "phases.em.observations=8"], "a draw of every observation"),
        (["phases.warm.refresh=0.5"], "has no sampler"),
        (["phases.em.restart=50.0"], "lie between"),
        (["phases.em.sampler=exact", "phases.em.restart=1.0"], "no chain"),
        (["phases.em.overlap=true", "phases.em.refresh=0.5"], "do not depend"),
        (["phases.warm.anneal={steps: [1]}"], "the phase has none"),
        (["phases.em.fit.clean=0.5", "clean=0"], "grants none"),
        (["phases.warm.fit.shift=1"], "closed form"),
        (["phases.warm=null"], "mapping"),
    ],
)
def test_policies_that_cannot_be_are_refused_with_their_reason(tmp_path, overrides, reason):
    assert reason in refusal(tmp_path, *overrides)


def test_a_killed_run_goes_on_with_its_pool(tmp_path):
    whole = carried_out(tmp_path, "phases.em.refresh=0.5", out="whole")
    asked = []

    def stop():
        asked.append(1)
        return 143 if len(asked) > 16 else 0

    from invem.errors import Stopped

    with pytest.raises(Stopped):
        carried_out(tmp_path, "phases.em.refresh=0.5", out="killed", stop=stop)
    again = make(load(tmp_path / "killed" / "recipe.yaml"), CATALOG, whole.plan.facts)
    for _ in carry_out(again, tmp_path / "killed"):
        pass
    assert torch.equal(steps(Run(again, tmp_path / "killed"))[-1], steps(whole)[-1])


def test_a_missing_draw_is_named(tmp_path):
    done = carried_out(tmp_path)
    (tmp_path / "run" / "1-000-samples" / "00001.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match=r"00001\.safetensors"):
        done.draws(1, 0)


# A network for each phase

TWO = """
data: {name: synthetic, size: 6, train: 32, test: 8}
operator: {name: random-mask, keep: 0.6}
noise: {name: gaussian, sigma: 0.1}
network: {name: mlp, width: 16, depth: 1}
phases:
  - {name: warm, rounds: 2, fit: {objective: gaussian-moments, rank: 4}}
  - {name: one, batch: 8, sampler: {name: mmps, steps: 4}, fit: {objective: dsm, steps: 4,
        batch: 8, moments: 4}}
  - name: told
    rounds: 2
    batch: 8
    network: {name: mlp, width: 8, depth: 1, condition: 2}
    sampler: {name: mmps, steps: 4}
    fit: {objective: cond-dsm, steps: 4, batch: 8, moments: 4}
  - {name: last, batch: 8, sampler: {name: conditional, steps: 4}, fit: {objective: dsm,
        steps: 4, batch: 8, moments: 4}}
evaluate: {metrics: [data-misfit], samples: 8, observations: 4, draws: 1, posterior: 0, steps: 3}
"""


def two(tmp_path, *overrides):
    path = tmp_path / "two.yaml"
    path.write_text(TWO)
    return make(load(path, list(overrides)), CATALOG)


def test_a_phase_trains_a_network_of_its_own_and_goes_on_from_the_newest_weights_of_the_same(
    tmp_path,
):
    made = two(tmp_path)
    done = Run(made, tmp_path / "run")
    done.resume()
    assert [stage.own == "" for stage in made.stages] == [True, True, False, True]
    assert [done.prior_at(p, r).denoiser.condition for p, r in ((1, 0), (2, 1))] == [0, 2]
    for at, before in {
        Round(1, 0): None,
        Round(2, 0): None,
        Round(2, 1): Round(2, 0),
        Round(3, 0): Round(1, 0),
    }.items():
        found = newest_weights(done.context, at)
        assert (found is None) == (before is None)
        if before is not None:
            kept = below(done.directory.fit(before).read("denoiser"), "raw.")
            assert found.raw.keys() == kept.keys()
            assert all(torch.equal(found.raw[key], value) for key, value in kept.items())
    assert done.prior.denoiser.condition == 0
    again = two(tmp_path)  # as `resume` and `restore` read it
    x_t = torch.zeros(2, *again.shape)
    assert torch.equal(Run(again, done.path).prior(x_t, 0.5), done.prior(x_t, 0.5))


def test_a_network_that_is_the_recipes_is_no_network_of_its_own(tmp_path):
    same = two(tmp_path, "phases.one.network={name: mlp, width: 16, depth: 1, condition: 0}")
    assert same.stages[1].own == "" and same.stages[1].network is None
    other = two(tmp_path, "phases.one.network={name: mlp, width: 16, depth: 2}")
    assert other.stages[1].own != other.stages[2].own != ""
    assert other.resolved["phases"][1]["network"] == {
        "name": "mlp",
        "width": 16,
        "depth": 2,
        "condition": 0,
    }
    assert same.resolved["phases"][0]["network"] is None


def test_what_a_network_of_a_phase_is_refused_for(tmp_path):
    def said(*overrides):
        with pytest.raises(RecipeError) as found:
            two(tmp_path, *overrides)
        return str(found.value)

    assert "phases.0.network: the phase trains no network" in said("phases.warm.network=mlp")
    assert "phases.2.network" in said("phases.told.network={name: mlp, widht: 3}")
    text = said("phases.told.network={name: mlp, width: 8}")
    assert "phases.2.fit" in text and "condition=2 (it is 0)" in text
    assert "unet" in said(
        "phases.told.network={name: unet, channels: [8], attention: [4], condition: 2}"
    )


@pytest.mark.parametrize(
    "component",
    [parts[0] for parts in CATALOG.offers["objectives"].values()],
    ids=lambda part: part.name,
)
def test_no_option_of_an_objective_hides_a_key_of_the_fit(component):
    """In the resolved recipe, from which a run is resumed."""
    assert not options_of(component.load()).keys() & Fit.model_fields.keys()


def test_an_option_of_an_objective_cannot_have_the_name_of_a_key_of_a_fit(tmp_path, monkeypatch):
    class Clash(DSM):
        def __init__(self, *, steps: int = 4) -> None:
            super().__init__()

    monkeypatch.setitem(
        CATALOG.offers["objectives"],
        "clash",
        [Component("objectives", "clash", Clash, "elsewhere", "0")],
    )
    with pytest.raises(
        PluginError, match="objective 'clash' of elsewhere: steps is a key of a fit"
    ):
        plan(tmp_path, "phases.em.fit={objective: clash, steps: 6}")


def test_no_option_can_be_called_name(tmp_path, monkeypatch):
    def named(*, name: str = "x"):
        return DSM()

    monkeypatch.setitem(
        CATALOG.offers["samplers"],
        "named",
        [Component("samplers", "named", named, "elsewhere", "0")],
    )
    with pytest.raises(PluginError, match="no option can be called `name`"):
        plan(tmp_path, "phases.em.sampler=named")


def test_a_fit_that_is_resumed_has_the_steps_of_the_recipe(tmp_path):
    fit = (
        "phases.em={name: em, fit: {objective: ambient-tweedie, consistency: 1.0, steps: 6,"
        " batch: 8}}"
    )
    made = plan(tmp_path, "operator=identity", "evaluate.metrics=[]", fit)
    again = tmp_path / "again.yaml"
    again.write_text(json.dumps(made.resolved))
    assert make(load(again, []), CATALOG).stages[1].phase.fit.steps == 6


def test_two_evaluations_of_one_prior_have_the_same_samples(tmp_path):
    again = "{name: %s, fit: {objective: gaussian-moments, on: clean, rank: 2}}"
    carried_out(
        tmp_path,
        f"phases=[{again % 'one'}, {again % 'two'}]",
        "evaluate.sampler={name: mmps, steps: 2}",
    )
    one, two = (
        store.read(tmp_path / "run" / f"{p}-000-evaluation" / "samples.safetensors")["x"]
        for p in (0, 1)
    )
    assert torch.equal(one, two)


def test_only_the_phases_that_are_named_are_evaluated(tmp_path):
    carried_out(tmp_path, "evaluate.phases=[em]", "evaluate.every=1")
    found = {path.parent.name for path in (tmp_path / "run").glob("*-evaluation/metrics.json")}
    assert found and all(name.startswith("1-") for name in found)
    assert "there is no phase 'emm' (known: " in refusal(tmp_path, "evaluate.phases=[emm]")
    metric = "evaluate.metrics=[{name: observation-distance}]"
    assert "among evaluate.phases" in refusal(
        tmp_path, metric, "phases.em.stop=auto", "evaluate.phases=[]"
    )
