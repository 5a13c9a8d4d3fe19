"""What a phase may ask for at once: fits, policies of EM, and stopping rules."""

from invem.config import Fit, Phase, Recipe
from invem.config.yaml import Path
from invem.errors import RecipeError
from invem.metric import Metric
from invem.objective import ClosedFormObjective, Objective
from invem.planning.build import Builder, listing
from invem.planning.counts import examples_of
from invem.planning.plan import Stage
from invem.sampler import ChainSampler, PosteriorSampler
from invem.stopping import Watched

__all__ = ["check_batches", "check_fit", "check_policy", "check_stops"]


def check_fit(
    recipe: Recipe,
    builder: Builder,
    i: int,
    on: str,
    objective: Objective | ClosedFormObjective | None,
) -> None:
    """Checks the keys of a fit against what it learns from and how."""
    phase, path = recipe.phases[i], ("phases", i, "fit")
    fit = phase.fit
    assert fit is not None
    if on == "draws" and phase.sampler is None:
        builder.fail(path, "it learns from draws, but the phase has no sampler")
    if on == "clean" or fit.clean:
        if recipe.clean == 0:
            text = "it learns from clean images, but the recipe grants none (`clean:` is 0)"
            builder.fail(path, text)
        if recipe.data is None:
            builder.fail(path, "it learns from clean images, but there are only observations")
    if objective is None:
        return
    keys = ("flip", "shift", "keep", "clean")
    named = {key for key in keys if getattr(fit, key) != Fit.model_fields[key].default}
    measured = on == "observations" or "measurement" in objective.needs
    if isinstance(objective, ClosedFormObjective):
        if named:
            text = f"{fit.objective} is solved in closed form, without {listing(named)}"
            builder.fail(path, text)
    elif named & {"flip", "shift"} and measured:
        builder.fail(
            path,
            f"{fit.objective} learns from measurements, which an image that is moved afterwards"
            " does not fit",
        )
    elif "clean" in named and not objective.takes_examples:
        text = f"{fit.objective} learns from the prior before it alone, without clean"
        builder.fail(path, text)


def check_batches(recipe: Recipe, builder: Builder, stages: list[Stage], train: int) -> None:
    """Refuses clean images in batches that have no place for them beside another example.

    Args:
        recipe: The recipe.
        builder: Where problems go.
        stages: The phases.
        train: The number of training observations.
    """
    for i, stage in enumerate(stages):
        fit = stage.phase.fit
        if fit is None or not fit.clean:
            continue
        examples = examples_of(recipe, stage, train)
        if min(fit.batch, examples) < 2:
            builder.fail(
                ("phases", i, "fit", "clean"),
                "a share of each batch needs batches of 2 or more: the batch is"
                f" {fit.batch}, and there are {examples} examples",
            )


def check_policy(
    recipe: Recipe, builder: Builder, i: int, sampler: PosteriorSampler | None
) -> None:
    """Checks the policies of EM that a phase asks for against each other and the sampler."""
    phase, place = recipe.phases[i], ("phases", i)
    keys = ("refresh", "restart", "overlap")
    named = {key for key in keys if getattr(phase, key) != Phase.model_fields[key].default}
    if named and phase.sampler is None:
        text = f"{listing(named)} is about posterior draws, and the phase has no sampler"
        builder.fail(place, text)
    elif named & {"refresh", "restart"} and phase.observations is not None:
        lacks = listing(named - {"overlap"})
        text = f"{lacks} needs a draw of every observation: leave `observations` out"
        builder.fail(place, text)
    elif "overlap" in named and (phase.fit is None or named & {"refresh", "restart"}):
        builder.fail(
            (*place, "overlap"),
            "it needs a fit to run beside, and draws that do not depend on those of the round"
            " before",
        )
    if phase.restart is not None and sampler is not None:
        _check_restart(builder, (*place, "restart"), sampler, phase.restart)


def _check_restart(builder: Builder, path: Path, sampler: PosteriorSampler, level: float) -> None:
    if not isinstance(sampler, ChainSampler):
        text = "the sampler has no chain that could begin at a signal and another noise level"
        builder.fail(path, text)
        return
    try:
        sampler.from_level(level)
    except RecipeError as error:
        builder.fail(path, str(error))


def check_stops(
    recipe: Recipe, builder: Builder, stages: list[Stage], metrics: dict[str, Metric]
) -> None:
    """Asks each stopping rule whether it can follow its phase."""
    options = recipe.evaluate
    for i, stage in enumerate(stages):
        shown = options.phases is None or stage.phase.name in options.phases
        every = options.every == 1 and bool(options.samples) and shown
        watched = Watched(stage.sampler, metrics, every)
        if stage.stop is not None and (reason := stage.stop.refuses(watched)):
            builder.fail(("phases", i, "stop"), reason)
