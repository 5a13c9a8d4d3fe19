"""What components need, compared with what there is: every lack is told with what would fit."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from invem.batched import Rng
from invem.capability import CAPABILITIES, meaning
from invem.config import Recipe
from invem.errors import InvemError
from invem.metric import Metric
from invem.objective import ClosedFormObjective, Objective
from invem.planning.build import Builder, defaults, listing
from invem.planning.plan import Stage
from invem.sampler import PosteriorSampler

__all__ = [
    "Provided",
    "check_metrics",
    "check_stages",
    "fitting_metrics",
    "fitting_samplers",
    "prior_abilities",
]

_CLOSED = frozenset({"moments", "closed form"})
_TRAINED = frozenset({"moments"})
_FIT_FIRST = ("a phase before it must fit one",)
_GIVEN = {
    "draws": frozenset({"x", "measurement"}),
    "clean": frozenset({"x"}),
    "observations": frozenset({"measurement"}),
}


@dataclass(frozen=True)
class Provided:
    """What a recipe has to offer to its components.

    Attributes:
        measurement: What its measurements provide.
        where: Operator and noise in words, for messages.
        prior: What the prior provides that the first phase begins with.
        conditions: For each phase the number of conditions that its network takes.
        truth: Whether the clean signals are there.
        labels: Whether they have labels.
        image: Whether signals are images.
    """

    measurement: frozenset[str]
    where: str
    prior: frozenset[str]
    conditions: list[int]
    truth: bool
    labels: bool
    image: bool


def fitting_samplers(builder: Builder, have: frozenset[str]) -> list[str]:
    """Returns the samplers that at their defaults need no more than `have`."""
    offered = defaults(builder.catalog, "samplers")
    return [name for name, sampler in offered if sampler.needs <= have]


def prior_abilities(
    stages: list[Stage], first: frozenset[str]
) -> Iterator[tuple[frozenset[str], frozenset[str]]]:
    """Yields for each phase what the prior provides in every one of its E-steps, and after it.

    Args:
        stages: The phases.
        first: What the prior provides that the first phase begins with.
    """
    before = first
    for stage in stages:
        after = before
        if isinstance(stage.objective, ClosedFormObjective):
            after = _CLOSED
        elif stage.objective is not None:
            after = _TRAINED | stage.objective.provides
        yield (before & after if stage.phase.rounds > 1 else before), after
        before = after


def check_stages(
    recipe: Recipe, builder: Builder, stages: list[Stage], provided: Provided
) -> list[Stage]:
    """Checks samplers and objectives; returns the phases with the sampler that can evaluate
    each."""
    found, able_at = [], list(prior_abilities(stages, provided.prior))
    for i, (stage, (during, after)) in enumerate(zip(stages, able_at, strict=True)):
        _check_samplers(recipe, builder, i, stage, provided, during)
        if stage.objective is not None:
            _check_objective(builder, i, stage, provided, during)
        have = provided.measurement | after
        wanted = [stage.evaluator, stage.sampler, *(other.sampler for other in stages)]
        able = [s for s in wanted if s is not None and s.uses_prior and s.needs <= have]
        found.append(replace(stage, evaluator=able[0] if able else None))
    if recipe.evaluate.sampler is not None:
        pairs = zip(found, stages, strict=True)
        if all(now.evaluator is not before.evaluator for now, before in pairs):
            _refuse_evaluator(recipe, builder, stages[0].evaluator, provided, able_at)
    return found


def _check_samplers(
    recipe: Recipe,
    builder: Builder,
    i: int,
    stage: Stage,
    provided: Provided,
    during: frozenset[str],
) -> None:
    """Refuses the first sampler of a phase that needs more than there is."""
    part = recipe.phases[i].sampler
    have = provided.measurement | during
    for sampler in (*stage.annealed, stage.sampler):
        if sampler is None or part is None or sampler.needs <= have:
            continue
        lacks = sampler.needs - have
        fitting = ", ".join(fitting_samplers(builder, have)) or "none"
        reason = _sampler_reason(builder, part.name, lacks, provided, stage)
        builder.fail(("phases", i, "sampler"), f"{reason}; these fit: {fitting}")
        return


def _sampler_reason(
    builder: Builder, name: str, lacks: frozenset[str], provided: Provided, stage: Stage
) -> str:
    """Returns what a sampler lacks, in a sentence."""
    of_prior = lacks & _prior_names(builder)
    if lacks == of_prior:
        fit_it = _objectives_that_provide(builder, lacks)
        by = f" ({', '.join(fit_it)})" if fit_it else ""
        advice = "; ".join(_advice(lacks))
        return f"{name} needs {meaning(lacks)}: {advice}{by}"
    have = listing(provided.measurement)
    return f"{name} needs {meaning(lacks)}, which {provided.where} does not provide (it has {have})"


def _prior_names(builder: Builder) -> frozenset[str]:
    """Returns the capabilities that are those of a prior."""
    fitted = (objective.provides for _, objective in _trained(builder))
    return _CLOSED.union(*fitted)


def _trained(builder: Builder) -> Iterator[tuple[str, Objective]]:
    for name, objective in defaults(builder.catalog, "objectives"):
        if isinstance(objective, Objective):
            yield name, objective


def _objectives_that_provide(builder: Builder, lacks: frozenset[str]) -> list[str]:
    """Returns the objectives that fit a prior with a capability beyond the common ones."""
    special = lacks - _TRAINED
    found = [name for name, objective in _trained(builder) if special <= objective.provides]
    if special <= _CLOSED:
        offered = defaults(builder.catalog, "objectives")
        found += [name for name, objective in offered if isinstance(objective, ClosedFormObjective)]
    return sorted(found) if special else []


def _advice(lacks: frozenset[str], otherwise: Iterable[str] = _FIT_FIRST) -> list[str]:
    known = [CAPABILITIES[name].advice for name in sorted(lacks) if name in CAPABILITIES]
    return [text for text in known if text] or list(otherwise)


def _check_objective(
    builder: Builder, i: int, stage: Stage, provided: Provided, during: frozenset[str]
) -> None:
    """Refuses an objective that needs more than it would be given."""
    objective, fit = stage.objective, stage.phase.fit
    assert objective is not None and fit is not None
    name, path = fit.objective, ("phases", i, "fit")
    measured = stage.on == "observations" or "measurement" in objective.needs
    if measured or "x" in objective.needs:
        have = provided.measurement | _GIVEN[stage.on] | during
        if lacks := objective.needs - have:
            what = meaning(lacks)
            if lacks <= {"x", "measurement"} | _CLOSED:
                what = f"{what}: {'; '.join(_advice(lacks))}"
            else:
                what = f"{what}, which {provided.where} does not provide"
                what += _what_else(builder, stage, lacks, provided, during)
            builder.fail(path, f"{name} needs {what}")
    condition = objective.condition if isinstance(objective, Objective) else 0
    if condition not in (0, provided.conditions[i]):
        takes = provided.conditions[i]
        builder.fail(path, f"{name} needs network.condition={condition} (it is {takes})")


def _what_else(
    builder: Builder,
    stage: Stage,
    lacks: frozenset[str],
    provided: Provided,
    during: frozenset[str],
) -> str:
    """Returns what fits where an objective does not: other objectives, a sampler to learn from, or
    another noise."""
    others = fitting_objectives(builder, stage.on, provided.measurement | during)
    fitting = f"these fit: {', '.join(others)}" if others else "no objective fits"
    text = f"; on {stage.on} {fitting}"
    if stage.sampler is None:
        have = provided.measurement
        without_prior = [
            name
            for name, sampler in defaults(builder.catalog, "samplers")
            if not sampler.uses_prior and sampler.needs <= have
        ]
        learners = fitting_objectives(builder, "draws", have | during)
        if without_prior and learners:
            text += (
                f"; on draws, with a `sampler` in this phase that needs no prior"
                f" ({', '.join(without_prior)}), these: {', '.join(learners)}"
            )
    noises = _noises_that_provide(builder, lacks)
    if noises:
        text += (
            f"; or approximate the noise by {' or '.join(noises)}, with its level at each pixel"
            " given beside y"
        )
    return text


def fitting_objectives(builder: Builder, on: str, have: frozenset[str]) -> list[str]:
    """Returns the objectives that at their defaults need no more than there is.

    Args:
        builder: Where the catalogue is.
        on: What is learned from: "draws", "observations" or "clean".
        have: What measurements and prior provide.
    """
    have = have | _GIVEN[on]
    found = []
    for name, objective in defaults(builder.catalog, "objectives"):
        measured = on == "observations" or bool({"measurement", "x"} & objective.needs)
        conditioned = isinstance(objective, Objective) and objective.condition
        if not conditioned and (not measured or objective.needs <= have):
            found.append(name)
    return found


def _noises_that_provide(builder: Builder, lacks: frozenset[str]) -> list[str]:
    """Returns the noises that at their defaults provide what lacks; none if no noise could."""
    found = []
    for name, offers in sorted(builder.catalog.offers["noises"].items()):
        with contextlib.suppress(InvemError, TypeError):
            noise = offers[0].load()(1, (1, 2, 2), Rng.generator(0))
            if lacks <= noise.provides:
                found.append(name)
    return found


def _refuse_evaluator(
    recipe: Recipe,
    builder: Builder,
    sampler: PosteriorSampler | None,
    provided: Provided,
    able_at: list[tuple[frozenset[str], frozenset[str]]],
) -> None:
    """Refuses the sampler of the evaluation, which no phase can be evaluated with."""
    assert recipe.evaluate.sampler is not None
    if sampler is None:
        return
    lacks = frozenset.intersection(
        *(sampler.needs - provided.measurement - after for _, after in able_at)
    )
    name = recipe.evaluate.sampler.name
    text = f"{name} needs {meaning(lacks)}, which this recipe does not provide"
    builder.fail(("evaluate", "sampler"), text)


def check_metrics(
    recipe: Recipe,
    builder: Builder,
    stages: list[Stage],
    metrics: dict[str, Metric],
    provided: Provided,
) -> None:
    """Refuses metrics that need what no evaluation of the recipe has."""
    have = _evaluated(recipe, stages, provided)
    for i, (name, metric) in enumerate(metrics.items()):
        if lacks := metric.needs - have:
            silent = "density" not in provided.measurement and "var" in lacks
            why = " (the noise is 0)" if silent else ""
            advice = "; ".join(dict.fromkeys(_advice(lacks, otherwise=[])))
            text = f"{name} needs {meaning(lacks)}, which this recipe does not have{why}"
            text = f"{text}: {advice}" if advice else text
            builder.fail(("evaluate", "metrics", i), text)


def fitting_metrics(
    recipe: Recipe, builder: Builder, stages: list[Stage], provided: Provided
) -> dict[str, Metric]:
    """Returns the metrics that declare themselves a default and need no more than there is."""
    have = _evaluated(recipe, stages, provided)
    offered = defaults(builder.catalog, "metrics")
    return {name: metric for name, metric in offered if metric.default and metric.needs <= have}


def _evaluated(recipe: Recipe, stages: list[Stage], provided: Provided) -> set[str]:
    """Returns what the metrics of a recipe can be given."""
    options, have = recipe.evaluate, {"measurement"} | (provided.measurement - {"vjp"})
    if "density" not in provided.measurement:
        have.discard("var")
    if provided.image:
        have.add("image")
    if provided.truth:
        have |= {"truth", "reference"}
    if provided.labels:
        have.add("labels")
    if any(stage.objective is not None for stage in stages):
        have.add("prior")
    if any(stage.on in ("draws", "clean") for stage in stages):
        have.add("trained")
    if options.samples > 1:
        have |= {"samples", "observed", "simulated"}
    if any(stage.evaluator is not None for stage in stages):
        have |= {"draws"} if options.observations else set()
        have |= {"several draws"} if options.observations and options.draws > 1 else set()
        have |= {"resimulated"} if options.samples > 1 else set()
    return have
