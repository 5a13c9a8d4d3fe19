"""Every combination of objective, sampler, operator, noise and initialisation runs, shrunk, or is
refused by the plan with its reason."""

import functools
import itertools
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import combinations as cases
import combinations_page as page
import pytest
import torch
from combinations import CATALOG, CLEAN, CONDITIONS, OBSERVATIONS
from invem_plugins.flows.interpolant import InterpolantConditioning

from invem import ClosedFormObjective, Example, Measurement, Preconditioned, Prior, RecipeError, Rng
from invem.prior import LinearConditioning
from invem.running.loop import carry_out
from invem.testing import example_options, example_prior

MASK = cases.OperatorCase("random-mask", "", (1, 4, 4), {}, frozenset())
IDENTITY = cases.OperatorCase("identity", "", (1, 4, 4), {}, frozenset())
OBJECTIVES = [
    (name, o)
    for name in CONDITIONS
    for _, o in example_options(CATALOG.find("objectives", name).load(), (1, 8, 8), Path("/tmp"))
]
SAMPLERS = cases.samplers()


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Nothing here is to survive a loss of power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="module")
def planner():
    with cases.Planner() as planner:
        yield planner


@pytest.fixture(scope="module")
def operators(tmp_path_factory):
    return cases.operators(tmp_path_factory.mktemp("operators"))


@pytest.fixture(scope="module")
def chosen(operators):
    return {name: cases.representative(alike) for name, alike in cases.groups(operators).items()}


@pytest.fixture(scope="module")
def matrix(planner, chosen):
    return cases.matrix(planner, chosen, SAMPLERS)


@pytest.mark.slow
def test_every_refusal_says_what_is_lacking_and_which_fit(matrix):
    refused = {text for text in matrix.values() if text}
    assert 0 < sum(not text for text in matrix.values()) < len(matrix)
    assert all(page.lacking(text) for text in refused)
    for text in refused:
        for line in text.splitlines():
            names = {*CATALOG.offers["samplers"], *CATALOG.offers["objectives"]}
            for fitting in re.findall(r"these (?:fit|need none): ([^;]*)", line):
                assert set(fitting.split(", ")) <= names, line


@pytest.mark.slow
def test_the_page_is_what_the_plan_says(planner, operators, matrix):
    assert page.PAGE.read_text("utf-8") == page.text(planner, operators, SAMPLERS, matrix), (
        "run: python tests/combinations_page.py"
    )


class Runner:
    """Carries out recipes, those with one beginning in one directory, so that what they share is
    done once."""

    def __init__(self, planner, folder):
        self.planner, self.folder, self.elsewhere, self.drawn = planner, folder, {}, {}

    def finish(self, whole, out):
        for _ in carry_out(self.planner.plan(whole), out):
            pass

    def prior(self, kind, condition):
        """Returns the directory of another run: a network that takes a condition, or a Gaussian."""
        if (kind, condition) not in self.elsewhere:
            out = self.folder / f"{kind}-{condition}"
            slot, objective = (
                (CLEAN, "dsm") if kind == "network" else (OBSERVATIONS, "gaussian-moments")
            )
            whole = cases.recipe(MASK, cases.Start("", "none"), slot, objective)
            whole["network"]["condition"] = condition
            self.finish(whole | {"evaluate": {"samples": 0, "observations": 0}}, out)
            self.elsewhere[kind, condition] = out
        return str(self.elsewhere[kind, condition])

    def __call__(self, operator, start, slot, objective):
        condition = max(start.condition, CONDITIONS[objective])
        prior = self.prior(start.prior[1], condition) if start.prior[0] == "elsewhere" else ""
        out = (
            self.folder
            / f"{operator.name}-{re.sub('[^a-z]+', '-', start.label.lower())}-{condition}"
        )
        draws = out / f"{len(start.phases)}-000-samples"
        if self.drawn.get(out) != str(slot):
            shutil.rmtree(draws, ignore_errors=True)
        self.drawn[out] = str(slot)
        try:
            self.finish(cases.recipe(operator, start, slot, objective, prior=prior), out)
        finally:
            for path in out.glob(f"{len(start.phases)}-*"):
                if path != draws:
                    shutil.rmtree(path)


def covering(matrix, starts):
    """Returns accepted combinations: every triple of objective, sampler and operator, and every
    pair with a start that there is."""
    able = {}
    for (*triple, start), text in matrix.items():
        if not text:
            able.setdefault(tuple(triple), []).append(start)
    seen, found = set(), []

    def news(triple, start):
        return {(start, part) for part in triple} | {
            (starts[start].leaves, *pair) for pair in itertools.combinations(triple, 2)
        }

    for triple, labels in sorted(able.items(), key=lambda item: len(item[1])):
        best = max(labels, key=lambda start: len(news(triple, start) - seen))
        seen |= news(triple, best)
        found.append((*triple, best))
    for triple, labels in able.items():
        for start in labels:
            if {(start, part) for part in triple} - seen:
                seen |= news(triple, start)
                found.append((*triple, start))
    return sorted(found, key=lambda key: (key[2], key[3], key[1], key[0]))


@pytest.mark.slow
def test_what_is_accepted_runs(matrix, planner, chosen, tmp_path):
    runner, groups = Runner(planner, tmp_path), cases.sampler_groups(SAMPLERS)
    starts = {start.label: start for start in cases.starts(SAMPLERS)}
    failures = []
    for k, (objective, slot, group, start) in enumerate(covering(matrix, starts)):
        # Each member of a group of samplers has its turn.
        case = groups[slot][k % len(groups[slot])] if slot in groups else None
        try:
            runner(chosen[group], starts[start], slot if case is None else case.part, objective)
        except Exception as error:
            failures.append(
                f"{objective}, {slot if case is None else case.label}, {group}, {start}:"
                f" {type(error).__name__}: {error}"
            )
    assert not failures, "\n".join(failures)


def measurement(operator, noise, n=2, **options):
    A = operator.draw(CATALOG, n)
    clean = A(example_prior(operator.shape).sample(Rng.keyed("combinations", items=range(n))))
    law = CATALOG.find("noises", noise).load()(
        n, tuple(clean.shape[1:]), Rng.generator("combinations"), **options
    )
    return Measurement(law.sample(clean, Rng.generator("combinations", "y")), A, law)


def refused(part, m):
    """Whether the plan refuses a sampler or an objective on a measurement with all that it may ask
    of prior and data."""
    given = {"moments", "closed form", "conditional", "interpolant", "x", "measurement"}
    return bool(part.needs - m.provides - given)


def prior_for(needs, shape):
    """A prior in closed form, which is conditioned on measurements as a sampler asks for."""
    conditioning = None
    if "conditional" in needs:
        conditioning = LinearConditioning()
    elif "interpolant" in needs:
        conditioning = InterpolantConditioning(0.1, True)
    return replace(Prior.of(example_prior(shape)), conditioning=conditioning)


def draws_are_finite(case, m):
    prior = prior_for(case.sampler.needs, m.shape)
    sampler = case.sampler.tune(prior, m, Rng.keyed("tune", items=range(len(m))))
    x = sampler(prior, m, Rng.keyed("draw", items=range(len(m))))
    return x.shape == (len(m), *m.shape) and bool(x.isfinite().all())


@pytest.mark.parametrize("case", SAMPLERS, ids=lambda case: case.label.replace("`", ""))
def test_a_sampler_draws_on_every_operator_that_it_is_accepted_on(case, operators):
    wrong = []
    for operator in cases.distinct(operators):
        m = measurement(operator, "gaussian", sigma=0.1)
        if not refused(case.sampler, m) and not draws_are_finite(case, m):
            wrong.append(operator.name)
    assert not wrong


@pytest.mark.parametrize("case", SAMPLERS, ids=lambda case: case.label.replace("`", ""))
def test_a_sampler_draws_under_every_noise_that_it_is_accepted_with(case):
    wrong, ran = [], 0
    for operator, (label, noise) in itertools.product((IDENTITY, MASK), cases.noises().items()):
        m = measurement(
            operator, **{"noise" if key == "name" else key: value for key, value in noise.items()}
        )
        if not refused(case.sampler, m):
            ran += 1
            if not draws_are_finite(case, m):
                wrong.append((operator.name, label))
    assert ran and not wrong


def networks(objective, moments, k):
    """Returns what builds small networks for an objective, every one with the same weights."""

    def make():
        mlp = CATALOG.find("networks", "mlp").load()
        network = Preconditioned(
            mlp(moments.shape, width=8, depth=1, condition=objective.condition)
        )
        torch.nn.init.normal_(network.backbone.leave.weight, std=0.1, generator=Rng.generator(k))
        network.mean = moments.mean
        return network

    return make


def solves(objective, prior, batch, rng):
    """Whether the mean and the variances of a fit in closed form are finite."""
    moments = objective.solve(prior, functools.partial(list, [(batch, rng)])).moments()
    return bool(moments.mean.isfinite().all() & moments.cov.diag.isfinite().all())


def learns(name, options, m):
    """Whether loss and gradient of an objective are finite on draws, and on measurements or granted
    images where it takes them."""
    objective, moments = CATALOG.find("objectives", name).load()(**options), example_prior(m.shape)
    prior, x = Prior.of(moments), moments.sample(Rng.keyed("combinations", items=range(len(m))))
    closed = isinstance(objective, ClosedFormObjective)
    granted = closed or objective.takes_examples  # the plan refuses clean images to the others
    batches = (
        [Example(x, m)] + [Example(None, m)] * ("x" not in objective.needs) + [Example(x)] * granted
    )
    for k, batch in enumerate(batches):
        if closed:
            if not solves(objective, prior, batch, Rng.keyed("solve", items=range(len(m)))):
                return False
            continue
        model = objective.build(networks(objective, moments, k), prior, m)
        loss = objective.loss(model, batch, Rng.keyed("loss", items=range(len(m))))
        loss.mean().backward()
        parts = [loss, *(w.grad for w in model.parameters())]
        if loss.shape != (len(m),) or any(
            part is None or not bool(part.isfinite().all()) for part in parts
        ):
            return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), OBJECTIVES, ids=str)
def test_an_objective_learns_from_every_operator_and_noise_that_it_is_accepted_with(
    name, options, operators
):
    objective = CATALOG.find("objectives", name).load()(**options)
    tried = [(case, {"name": "gaussian", "sigma": 0.1}) for case in cases.distinct(operators)]
    tried += [(case, noise) for case in (IDENTITY, MASK) for noise in cases.noises().values()]
    wrong, ran = [], 0
    for case, noise in tried:
        m = measurement(
            case, n=3, **{"noise" if key == "name" else key: value for key, value in noise.items()}
        )
        if not refused(objective, m):
            ran += 1
            if not learns(name, options, m):
                wrong.append((case.name, noise))
    assert ran and not wrong


AFTER_CLEAN = cases.Start("", "network", ({"name": "begin", "fit": cases.fit("dsm", on=CLEAN)},))
ELSEWHERE = cases.Start("", "network", (), ("elsewhere", ""))


def refusal(
    planner, slot="prior", objective="dsm", operator=IDENTITY, noise=None, prior="", **changes
):
    """Returns why the plan refuses a recipe, its sampler given by name, that begins with clean
    images or with another run."""
    part = {"name": slot, "steps": 2} if isinstance(slot, str) and slot != OBSERVATIONS else slot
    whole = cases.recipe(
        operator, ELSEWHERE if prior else AFTER_CLEAN, part, objective, noise, prior
    )
    with pytest.raises(RecipeError) as found:
        planner.plan(whole | changes)
    return str(found.value)


def test_what_a_component_refuses_itself_is_refused_before_the_run(planner):
    silent, several = (
        {"name": "gaussian", "sigma": sigma, "per": "pixel"} for sigma in (0.0, [0.1, 0.2])
    )
    text = refusal(planner, "daps", noise=silent)
    assert "daps needs noise with a density (density)" in text
    assert "dps" in text.partition("these fit: ")[2].split(", ")
    assert not {"daps", "lgd"} & set(text.partition("these fit: ")[2].split(", "))
    assert "noise with a density" in refusal(planner, OBSERVATIONS, "sure-score", noise=silent)
    for name in ("ddrm", "ddnm", "mcg-diff", "sfbd"):
        text = refusal(planner, name, noise=several)
        assert "one level" in text and "mmps" in text.partition("these fit: ")[2].split(", ")
    for name in ("gsure", "ambient-tweedie", "sure-score"):
        assert "one level" in refusal(planner, OBSERVATIONS, name, noise=several)
    jpeg = cases.OperatorCase("jpeg", "", (1, 8, 8), {}, frozenset())
    eight = {"data": {"name": "synthetic", "size": 8, "train": 8, "test": 2}}
    assert "a true derivative" in refusal(
        planner, {"name": "mmps", "steps": 2, "linearise": True}, operator=jpeg, **eight
    )
    judge = {"evaluate": {"sampler": {"name": "ddrm", "steps": 2}, "samples": 0}}
    assert "evaluate.sampler" in refusal(planner, "prior", noise=several, **judge)
    judge = {"evaluate": {"sampler": {"name": "daps", "steps": 2}, "samples": 0}}
    assert "evaluate.sampler: daps needs noise with a density" in refusal(
        planner, "prior", noise=silent, **judge
    )


def test_a_mask_that_shows_all_of_one_signal_is_no_identity(planner):
    mask = cases.OperatorCase("block-mask", "", (1, 4, 4), {"keep": 0.9}, frozenset())
    assert bool((mask.draw(CATALOG, 64).mask == 1).flatten(1).all(1).any())
    assert "sfbd needs an operator that changes nothing (identity)" in refusal(
        planner, "sfbd", operator=mask
    )


def test_a_prior_from_elsewhere_is_compared_with_the_recipe(planner, tmp_path):
    runner = Runner(planner, tmp_path)
    other = runner.prior("network", 0)
    planner.plan(cases.recipe(MASK, ELSEWHERE, {"name": "prior", "steps": 2}, "dsm", prior=other))
    wider = {"network": {"name": "mlp", "width": 9, "depth": 1}}
    assert "prior: it is of another network than this recipe's mlp: backbone" in refusal(
        planner, prior=other, **wider
    )
    assert "another network" in refusal(planner, objective="cond-dsm", prior=other)
    larger = {"data": {"name": "synthetic", "size": 5, "train": 8, "test": 2}}
    assert "signals of shape (1, 4, 4), not (1, 5, 5)" in refusal(planner, prior=other, **larger)
    whole = cases.recipe(MASK, cases.Start("", "none"), OBSERVATIONS, "ambient")
    runner.finish(whole | {"evaluate": {"samples": 0, "observations": 0}}, tmp_path / "wrapped")
    text = refusal(planner, objective="ambient", operator=MASK, prior=str(tmp_path / "wrapped"))
    assert "module around the network" in text
