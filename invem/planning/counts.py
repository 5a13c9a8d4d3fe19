"""How many signals, draws and observations there are, compared with what metrics need."""

from invem.capability import CAPABILITIES
from invem.config import Recipe
from invem.metric import Metric
from invem.planning.build import Builder
from invem.planning.plan import Facts, Stage

__all__ = ["check_counts", "enough", "examples_of"]


def examples_of(recipe: Recipe, stage: Stage, train: int) -> int:
    """Returns the number of examples that a phase learns from in each round.

    Args:
        recipe: The recipe.
        stage: The phase.
        train: The number of training observations.
    """
    if stage.on == "clean":
        return train if recipe.clean == "all" else min(recipe.clean, train)
    if stage.on == "draws":
        return min(stage.phase.observations or train, train) * stage.phase.draws
    return train


def check_counts(
    recipe: Recipe, builder: Builder, stages: list[Stage], metrics: dict[str, Metric], facts: Facts
) -> None:
    """Refuses metrics that need more signals or observations than there will be."""
    counts = _counts(recipe, stages, facts)
    for i, (name, metric) in enumerate(metrics.items()):
        for what, least in metric.least.items():
            if counts.get(what, least) < least:
                known = CAPABILITIES.get(what)
                words = "training signals" if known is None else f"{known.meaning} ({what})"
                builder.fail(
                    ("evaluate", "metrics", i),
                    f"{name} needs {least} or more {words}, and there are {counts[what]}",
                )


def enough(recipe: Recipe, stages: list[Stage], metric: Metric, facts: Facts) -> bool:
    """Whether there will be as many signals and observations as a metric needs."""
    counts = _counts(recipe, stages, facts)
    needed = {what: max(metric.least.get(what, 1), 1) for what in {*metric.needs, *metric.least}}
    return all(counts.get(what, least) >= least for what, least in needed.items())


def _counts(recipe: Recipe, stages: list[Stage], facts: Facts) -> dict[str, int]:
    """Returns how many there will be of what metrics are given."""
    train = min(recipe.count or facts.whole_train, facts.whole_train)
    held_out = min(recipe.evaluate.observations, facts.whole_test)
    samples = recipe.evaluate.samples
    fitted = [
        examples_of(recipe, stage, train) // (stage.phase.draws if stage.on == "draws" else 1)
        for stage in stages
        if stage.on in ("draws", "clean")
    ]
    counts = dict.fromkeys(("truth", "draws", "measurement"), held_out)
    counts |= dict.fromkeys(("samples", "simulated", "resimulated"), samples)
    counts |= {"observed": min(train, samples), "trained": min(fitted, default=0)}
    if recipe.data is not None:
        counts |= {"reference": facts.whole_test, "training": facts.whole_train}
    return counts
