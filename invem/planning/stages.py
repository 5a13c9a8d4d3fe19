"""The phases of a recipe with their components."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from invem.config import Part, Phase, Recipe
from invem.config.yaml import Path
from invem.objective import ClosedFormObjective, Objective
from invem.planning.build import Builder, defaults
from invem.planning.plan import Stage
from invem.planning.policies import check_fit, check_policy
from invem.sampler import PosteriorSampler

__all__ = ["build_stages"]


def build_stages(recipe: Recipe, builder: Builder) -> list[Stage]:
    """Builds the components of every phase; problems are left with the builder."""
    names = [phase.name for phase in recipe.phases]
    for i, name in enumerate(recipe.evaluate.phases or []):
        if name not in names:
            known = ", ".join(names)
            builder.fail(("evaluate", "phases", i), f"there is no phase '{name}' (known: {known})")
    evaluator: PosteriorSampler | None = None
    if recipe.evaluate.sampler is not None:
        place: Path = ("evaluate", "sampler")
        evaluator = builder.build("samplers", recipe.evaluate.sampler, place)
    stages, fitted = [], recipe.prior is not None
    for i, phase in enumerate(recipe.phases):
        stage = _stage(recipe, builder, i)
        if stage.sampler is not None and stage.sampler.uses_prior and not fitted:
            classical = ", ".join(_classical(builder)) or "none"
            builder.fail(
                ("phases", i, "sampler"),
                "there is no prior to sample with yet: an earlier phase must fit one, or `prior`"
                f" name one; these need none: {classical}",
            )
        fitted = fitted or phase.fit is not None
        stages.append(stage)
    able = [evaluator, *(s.sampler for s in stages if s.sampler and s.sampler.uses_prior)]
    any_sampler = next((s for s in able if s is not None), None)
    return [replace(s, evaluator=evaluator or s.sampler or any_sampler) for s in stages]


def _stage(recipe: Recipe, builder: Builder, i: int) -> Stage:
    """Builds the components of one phase."""
    phase, path = recipe.phases[i], ("phases", i, "fit")
    sampler, annealed = _samplers(phase, builder, i)
    objective: Objective | ClosedFormObjective | None = None
    on = ""
    if phase.fit is not None:
        fit = phase.fit
        make = builder.factory("objectives", fit.objective, fit.options, path, named=False)
        objective = make() if make else None
        on = fit.on or ("draws" if phase.sampler is not None else "observations")
        check_fit(recipe, builder, i, on, objective)
    stop = builder.build("stops", phase.stop, ("phases", i, "stop"))
    check_policy(recipe, builder, i, sampler)
    network, own = _own_network(recipe, builder, i, objective)
    return Stage(phase, sampler, objective, on, stop, None, annealed, network, own)


def _classical(builder: Builder) -> list[str]:
    """Returns the samplers that need no prior."""
    offered = defaults(builder.catalog, "samplers")
    return [name for name, sampler in offered if not sampler.uses_prior]


def _own_network(
    recipe: Recipe,
    builder: Builder,
    i: int,
    objective: Objective | ClosedFormObjective | None,
) -> tuple[Callable[..., Any] | None, str]:
    """Returns what builds the network of a phase and says which it is, if it is not the
    recipe's."""
    part, path = recipe.phases[i].network, ("phases", i, "network")
    if part is None:
        return None, ""
    make = builder.part("networks", part, path)
    if recipe.phases[i].fit is None or isinstance(objective, ClosedFormObjective):
        builder.fail(path, "the phase trains no network")
    mine = (part.name, builder.values.get(path))
    whole = (recipe.network.name, builder.values.get(("network",)))
    return (None, "") if mine == whole else (make, repr(mine))


def _samplers(
    phase: Phase, builder: Builder, i: int
) -> tuple[PosteriorSampler | None, tuple[PosteriorSampler, ...]]:
    """Builds the sampler of a phase, and those of its first rounds where `anneal` changes
    options."""
    if phase.sampler is None:
        if phase.anneal:
            text = "it changes options of the sampler, and the phase has none"
            builder.fail(("phases", i, "anneal"), text)
        return None, ()
    place: Path = ("phases", i, "sampler")
    if not phase.anneal:
        return builder.build("samplers", phase.sampler, place), ()
    name, own = phase.sampler.name, phase.sampler.options
    rounds = max(len(values) for values in phase.anneal.values())
    by_round = [
        {option: values[min(r, len(values) - 1)] for option, values in phase.anneal.items()}
        for r in range(rounds)
    ]
    aside: Path = ("phases", i, "anneal")
    made = [
        builder.factory("samplers", name, {**own, **now}, aside, named=False) for now in by_round
    ]
    builder.values.pop(aside, None)
    found = [make() for make in made if make is not None]
    if len(found) < rounds:
        return None, ()
    last = builder.build("samplers", Part(name=name, options={**own, **by_round[-1]}), place)
    # The resolved recipe has the options as they were written.
    builder.part("samplers", phase.sampler, place)
    return last, tuple(found)
