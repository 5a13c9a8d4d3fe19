"""From a recipe to a plan: names, options, needs and data are checked, nothing is computed."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from invem import config as recipes
from invem.batched import Rng
from invem.config import Catalog, Loaded, Part, Recipe
from invem.dataset import Dataset
from invem.denoiser import Denoiser, Preconditioned
from invem.errors import DataError, InvemError
from invem.metric import Metric
from invem.planning.build import Builder, Make
from invem.planning.checked import measured
from invem.planning.counts import check_counts, enough
from invem.planning.device import device_of
from invem.planning.doubts import doubts
from invem.planning.model import MeasurementModel
from invem.planning.needs import Provided, check_metrics, check_stages, fitting_metrics
from invem.planning.plan import Facts, Plan, Stage, read_foreign_prior
from invem.planning.policies import check_batches, check_stops
from invem.planning.requirements import check_requirements
from invem.planning.resolve import resolve, resolved
from invem.planning.sources import Source, check_observations
from invem.planning.stages import build_stages
from invem.planning.tried import try_operator
from invem.planning.unknowns import check_calibratable, check_unknowns
from invem.storage.weights import TrainedWeights, shape_of

__all__ = ["make", "written_out"]


def make(loaded: Loaded, catalog: Catalog, facts: Facts | None = None) -> Plan:
    """Checks a recipe against the catalogue and against itself.

    Args:
        loaded: The recipe.
        catalog: The components.
        facts: What is known of the data set, if a run was begun with it; it is opened otherwise.

    Raises:
        RecipeError: Every problem that was found, one per line; a data set that is missing or
            damaged is one.
        PluginError: If the only problem is a plugin that is missing or broken.
    """
    builder = Builder(loaded, catalog)
    with builder.origins.naming():
        return _made(loaded, builder, facts)


def written_out(loaded: Loaded, catalog: Catalog, facts: Facts | None = None) -> dict[str, Any]:
    """Returns a recipe as plain data with every default written out.

    Metrics that it does not name depend on the data set. They stay null where that cannot be read.

    Args:
        loaded: The recipe.
        catalog: The components.
        facts: What is known of the data set, if a run was begun with it.

    Raises:
        RecipeError: Every problem with a name or an option.
        PluginError: If the only problem is a plugin that is missing or broken.
    """
    plain = resolve(loaded, catalog)
    if loaded.recipe.evaluate.metrics is None:
        with contextlib.suppress(InvemError):
            return make(loaded, catalog, facts).resolved
    return plain


def _made(loaded: Loaded, builder: Builder, facts: Facts | None) -> Plan:
    """Carries out the checks of `make`."""
    recipe = loaded.recipe
    check_requirements(recipe, builder)
    _check_device(recipe, builder)
    where = "data" if recipe.data is not None else "observations"
    data, operator, noise, network = _parts(recipe, builder, where)
    stages = build_stages(recipe, builder)
    metrics = _metrics(recipe, builder)
    builder.done()
    assert data and operator and noise and network
    if recipe.evaluate.metrics is not None:
        check_stops(recipe, builder, stages, metrics)

    def split(name: str) -> Dataset:
        fail = partial(recipes.error, loaded, (where,))
        return Source(data(name), fail, builder.origins, signals=where == "data")

    check_unknowns(recipe, builder, stages)
    builder.done()
    begun = facts is not None
    train = None if begun else split("train")
    if train is not None:
        facts = _facts(recipe, metrics, train, split)
    assert facts is not None
    model = _measuring(facts, operator, noise, builder)
    _check_data(recipe, builder, model, train)
    built = network(model.shape)
    if not begun:
        facts = facts._replace(prior=_first_prior(recipe, builder, built, model.shape))
    labels = _labelled(metrics, train)
    provided = _provided(recipe, builder, stages, model, built, facts, labels)
    stages = check_stages(recipe, builder, stages, provided)
    if recipe.evaluate.metrics is None:
        loaded, metrics = _with_metrics(loaded, builder, stages, provided, facts)
        recipe = loaded.recipe
    check_metrics(recipe, builder, stages, metrics, provided)
    _check_training(recipe, builder, stages, model, facts)
    check_counts(recipe, builder, stages, metrics, facts)
    builder.done()
    plan = Plan(
        loaded=loaded,
        data=split,
        observed=where == "observations",
        model=model,
        network=network,
        stages=stages,
        metrics=metrics,
        resolved=resolved(recipe, builder),
        components=builder.components,
        origins=builder.origins,
        facts=facts,
        train=min(recipe.count or facts.whole_train, facts.whole_train),
        test=min(recipe.evaluate.observations, facts.whole_test),
        warnings=[] if train is None else _cautions(recipe, where, train, facts, split),
    )
    if train is not None:
        plan.warnings.extend(doubts(plan, builder.values[(where,)]))
    return plan


def _measuring(facts: Facts, operator: Make, noise: Make, builder: Builder) -> MeasurementModel:
    """Returns the measurement model, tried once."""
    options = {kind: builder.values[(kind,)] for kind in ("operator", "noise")}
    model = MeasurementModel(tuple(facts.shape), operator, noise, options, builder.origins)
    _check_measuring(model, builder)
    return model


def _parts(recipe: Recipe, builder: Builder, where: str) -> Iterator[Make | None]:
    """Yields what builds data, operator, noise and network; None after a problem."""
    yield builder.part("datasets", getattr(recipe, where), (where,))
    for kind in ("operator", "noise", "network"):
        yield builder.part(f"{kind}s", getattr(recipe, kind), (kind,))


def _check_device(recipe: Recipe, builder: Builder) -> None:
    """Refuses a device that this machine does not have."""
    try:
        device_of(recipe.compute.device)
    except ValueError as error:
        builder.fail(("compute", "device"), str(error))


def _check_measuring(model: MeasurementModel, builder: Builder) -> None:
    """Measures two signals of zeros and tries the operator on others, so that a broken operator or
    noise is named at once."""
    rng = Rng.generator("plan")
    operator, noise = model.draw(2, rng)
    measured(operator, noise, torch.zeros(2, *model.shape), rng, builder.origins)
    try_operator(operator, 2, builder.origins)


def _check_data(
    recipe: Recipe, builder: Builder, model: MeasurementModel, train: Dataset | None
) -> None:
    """Compares the observations that exist already with the model, and what is calibrated with
    both. train: None if the run was begun before."""
    given = None if train is None else train.measured(torch.tensor([0]))
    check_calibratable(recipe, builder, model, set(given or ()))
    if train is not None and recipe.data is None:
        check_observations(recipe, builder, model, train)


def _facts(
    recipe: Recipe, metrics: dict[str, Metric], train: Dataset, split: Callable[[str], Dataset]
) -> Facts:
    """Returns what a run keeps of its data set; the test split is opened only if it is used."""
    reference = any("reference" in metric.needs for metric in metrics.values())
    test = len(split("test")) if recipe.evaluate.observations or reference else 0
    units = None if train.units is None else train.units.as_dict()
    return Facts(train.shape, train.range, len(train), test, units=units)


def _metrics(recipe: Recipe, builder: Builder) -> dict[str, Metric]:
    """Builds the metrics; two of one name are told apart by their options."""
    metrics: dict[str, Metric] = {}
    parts = recipe.evaluate.metrics or []
    names = [part.name for part in parts]
    for i, part in enumerate(parts):
        metric = builder.build("metrics", part, ("evaluate", "metrics", i))
        inner = ",".join(f"{k}={v}" for k, v in part.options.items())
        label = f"{part.name}({inner})" if inner and names.count(part.name) > 1 else part.name
        if label in metrics:
            builder.fail(("evaluate", "metrics", i), f"{label} is there twice")
        elif metric is not None:
            metrics[label] = metric
    return metrics


def _labelled(metrics: dict[str, Metric], train: Dataset | None) -> bool:
    """Whether signals have labels, if a metric needs them. train: None if the run was begun
    before."""
    asked = any("labels" in metric.needs for metric in metrics.values())
    return train is None or not asked or train[torch.tensor([0])].label is not None


def _cautions(
    recipe: Recipe, where: str, train: Dataset, facts: Facts, split: Callable[[str], Dataset]
) -> list[str]:
    """Looks at the data of both splits; returns what a person should know of those to learn from.

    Raises:
        RecipeError: If some cannot be used.
    """
    observed = where == "observations"
    lines = [f"{where}: {line}" for line in train.check(observed)]
    if facts.whole_test:
        split("test").check(observed)
    if recipe.count is not None and recipe.count > len(train):
        lines.append(f"count: {recipe.count}, and there are {len(train)}, which are all used")
    return _skipped(where, train) + lines


def _skipped(where: str, data: Dataset) -> list[str]:
    """Returns a warning if files of a data set were left out."""
    skipped = data.skipped
    if not skipped:
        return []
    shown = ", ".join(skipped[:5]) + (", ..." if len(skipped) > 5 else "")
    plural = "s" if len(skipped) > 1 else ""
    return [f"{where}: {len(skipped)} broken file{plural} left out: {shown}"]


def _with_metrics(
    loaded: Loaded, builder: Builder, stages: list[Stage], provided: Provided, facts: Facts
) -> tuple[Loaded, dict[str, Metric]]:
    """Returns a recipe that names no metrics with the default ones that fit it, and these."""
    recipe = loaded.recipe
    fitting = fitting_metrics(recipe, builder, stages, provided)
    parts = [
        Part(name=name) for name, metric in fitting.items() if enough(recipe, stages, metric, facts)
    ]
    evaluate = recipe.evaluate.model_copy(update={"metrics": parts})
    recipe = recipe.model_copy(update={"evaluate": evaluate})
    metrics = _metrics(recipe, builder)
    check_stops(recipe, builder, stages, metrics)
    return replace(loaded, recipe=recipe), metrics


def _provided(
    recipe: Recipe,
    builder: Builder,
    stages: list[Stage],
    model: MeasurementModel,
    built: nn.Module,
    facts: Facts,
    labels: bool,
) -> Provided:
    """Returns what a recipe has to offer to its components."""
    if facts.prior == () and recipe.prior == "network" and not isinstance(built, Denoiser):
        builder.fail(
            ("prior",),
            f"{recipe.network.name} is built without weights: name a run, or a network that comes"
            " with its weights",
        )
    conditions = [
        int(getattr(_network_of(stage, built, model.shape), "condition", 0)) for stage in stages
    ]
    return Provided(
        measurement=model.provides(recipe.assume),
        where=f"{recipe.operator.name} with {recipe.noise.name} noise",
        prior=frozenset(facts.prior or ()),
        conditions=conditions,
        truth=recipe.data is not None,
        labels=recipe.data is not None and labels,
        image=len(model.shape) == 3,
    )


def _check_training(
    recipe: Recipe, builder: Builder, stages: list[Stage], model: MeasurementModel, facts: Facts
) -> None:
    """Refuses batches that cannot be filled, and objectives for other signals."""
    check_batches(
        recipe, builder, stages, min(recipe.count or facts.whole_train, facts.whole_train)
    )
    for i, stage in enumerate(stages):
        if stage.objective is not None and (reason := stage.objective.refuses(model.shape)):
            assert stage.phase.fit is not None
            name = stage.phase.fit.objective
            text = reason if reason.startswith(name) else f"{name}: {reason}"
            builder.fail(("phases", i, "fit"), text)


def _network_of(stage: Stage, built: nn.Module, shape: tuple[int, ...]) -> Any:
    own: Make | None = stage.network
    return built if own is None else own(shape)


def _first_prior(
    recipe: Recipe, builder: Builder, built: nn.Module, shape: tuple[int, ...]
) -> tuple[str, ...] | None:
    """Returns what the prior provides that the first phase begins with, after comparing that of
    another run with the network of this one."""
    if recipe.prior is None or recipe.prior == "network":
        return None if recipe.prior is None else ()
    fail: Callable[[str], None] = lambda text: builder.fail(("prior",), text)  # noqa: E731
    try:
        tensors, meta = read_foreign_prior(recipe.prior)
    except DataError as error:
        fail(str(error))
        return ()
    weights = TrainedWeights.from_file(tensors, meta)
    if (other := shape_of(tensors, meta)) != tuple(shape):
        fail(f"it is of signals of shape {other}, not {tuple(shape)}")
    elif weights is not None and (plain := weights.alone()) is not None:
        _compare_networks(plain, built, recipe.network.name, fail)
    elif weights is not None:
        fail("its objective put a module around the network; go on from it in the same recipe")
    # A network is begun with as it is, without what its objective could do with it.
    return tuple(meta.get("provides", ())) if weights is None else ("moments",)


def _compare_networks(
    weights: TrainedWeights, built: nn.Module, name: str, fail: Callable[[str], None]
) -> None:
    """Tells of the first tensor in which the weights and the network of this recipe differ."""
    network = built if isinstance(built, Denoiser) else Preconditioned(built)
    mine = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    theirs = {key: tuple(tensor.shape) for key, tensor in weights.raw.items()}
    keys = sorted(key for key in mine | theirs if mine.get(key) != theirs.get(key))
    if keys:
        there, here = (of.get(keys[0], "missing") for of in (theirs, mine))
        fail(
            f"it is of another network than this recipe's {name}: {keys[0]} is {there} there and"
            f" {here} here"
        )
