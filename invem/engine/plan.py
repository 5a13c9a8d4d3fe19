"""From a recipe to what will be done: every name, option and need is checked before anything is computed."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, fields
from functools import partial
from importlib import metadata
from typing import Any, NamedTuple

import torch
from packaging.requirements import InvalidRequirement, Requirement
from torch import Tensor

from invem.batched import Rng
from invem.dataset import Dataset
from invem.engine import recipe as recipes
from invem.engine.catalog import Catalog, Component, options_of, parse_options
from invem.engine.recipe import Loaded, Part, Phase, Recipe
from invem.engine.yaml import Path
from invem.errors import DataError, InvemError, PluginError, RecipeError
from invem.measurement import Example, Measurement
from invem.metric import Metric
from invem.noise import NoiseModel
from invem.objective import Objective
from invem.operator import Operator, OperatorLaw
from invem.sampler import PosteriorSampler
from invem.schedule import Schedule

__all__ = ["Facts", "Plan", "Stage", "make", "resolve"]


@dataclass(frozen=True)
class Stage:
    """One phase with its components.

    Attributes:
        phase: The phase of the recipe.
        sampler: Draws the signals that are learned from, if the phase draws.
        objective: What the phase fits, if it fits.
        on: What is learned from: "draws", "observations" or "clean".
        judge: The sampler of the held-out restorations, if there is one.
    """

    phase: Phase
    sampler: PosteriorSampler | None
    objective: Objective | None
    on: str
    judge: PosteriorSampler | None


class Facts(NamedTuple):
    """What a run keeps of its data set, so that a finished run needs the data set no more.

    Attributes:
        shape: The shape of one signal.
        range: The lowest and the highest value of a signal.
        whole_train: The length of the training split.
        whole_test: The length of the test split; 0 if it is not used.
    """

    shape: tuple[int, ...]
    range: tuple[float, float]
    whole_train: int
    whole_test: int


@dataclass(frozen=True)
class Plan:
    """Everything that a run needs, checked.

    Attributes:
        loaded: The recipe as it was read.
        data: The data set of a split.
        observed: Whether the data set holds measurements, not signals.
        law: Draws n measurements' operators and noise laws: (n, rng) -> (Operator, NoiseModel).
        network: Builds a new network.
        stages: The phases.
        metrics: The metrics by label.
        resolved: The recipe as plain data, every default written out.
        components: Kind, name, distribution and version of every component.
        facts: Shape, range and sizes of the data set.
        train: The number of training observations.
        test: The number of held-out observations.
        warnings: What a person should know, one line each.
    """

    loaded: Loaded
    data: Callable[[str], Dataset]
    observed: bool
    law: Callable[[int, Any], tuple[Operator, NoiseModel]]
    network: Callable[[], Any]
    stages: list[Stage]
    metrics: dict[str, Metric]
    resolved: dict[str, Any]
    components: list[dict[str, str]]
    facts: Facts
    train: int
    test: int
    warnings: list[str]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one signal."""
        return self.facts.shape

    @property
    def recipe(self) -> Recipe:
        """The checked recipe."""
        return self.loaded.recipe

    def describe(self) -> dict[str, Any]:
        """Returns the plan as plain data: what `invem plan` prints."""
        steps = []
        for p, stage in enumerate(self.stages):
            phase = stage.phase
            row: dict[str, Any] = {"phase": f"{p}-{phase.name}", "rounds": phase.rounds}
            if stage.sampler is not None:
                n = min(phase.observations or self.train, self.train) * phase.draws
                forwards, products = stage.sampler.cost
                row |= {"draws a round": n, "forwards a draw": forwards, "vector-Jacobian products a draw": products}
            if phase.fit is not None:
                row |= {"objective": phase.fit.objective, "on": stage.on}
                if stage.objective is not None and not stage.objective.closed_form:
                    row |= {"gradient steps a round": phase.fit.steps, "batch": phase.fit.batch}
            steps.append(row)
        return {
            "recipe": self.loaded.source,
            "seed": self.recipe.seed,
            "signal": list(self.shape),
            "observations": self.train,
            "held out": self.test,
            "metrics": list(self.metrics),
            "warnings": self.warnings,
            "components": self.components,
            "steps": steps,
        }


class _Source:
    """A data set whose errors name the place in the recipe that asked for it."""

    def __init__(self, data: Dataset, error: Callable[[str], RecipeError]) -> None:
        self.data, self.error = data, error
        self.range, self.shape = data.range, tuple(data.shape)
        self.skipped: tuple[str, ...] = tuple(getattr(data, "skipped", ()))
        self.measured: Callable[[Tensor], dict[str, Tensor]] | None = getattr(data, "measured", None)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Tensor) -> Example:
        try:
            return self.data[index]
        except DataError as error:
            raise self.error(str(error)) from error


class _Builder:
    """Builds components and collects what is wrong with them."""

    def __init__(self, loaded: Loaded, catalog: Catalog) -> None:
        self.loaded, self.catalog = loaded, catalog
        self.problems: list[str] = []
        self.missing = False
        self.components: list[dict[str, str]] = []
        self.resolved: dict[Path, dict[str, Any]] = {}

    def fail(self, path: Path, message: str, key: bool = False) -> None:
        self.problems.append(str(recipes.error(self.loaded, path, message, key)))

    def factory(self, kind: str, name: str, options: dict[str, Any], path: Path, named: bool = True) -> Callable[..., Any] | None:
        try:
            component = self.catalog.find(kind, name)
            build = component.load()
            allowed = set(options_of(build))
        except (PluginError, RecipeError) as error:
            self.missing |= isinstance(error, PluginError)
            self.fail((*path, "name") if named else path, str(error))
            return None
        before = len(self.problems)
        values = parse_options(self.catalog, component, options, lambda p, k, text: self.fail((*path, *p), text, k))
        if len(self.problems) > before or set(values) != allowed:
            return None
        self.resolved[path] = values
        self._record(component, options)

        def make(*args: Any) -> Any:
            try:
                return build(*args, **values)
            except (ValueError, TypeError, RuntimeError, RecipeError, DataError) as error:
                raise recipes.error(self.loaded, path, str(error)) from error

        return make

    def _record(self, component: Component, options: dict[str, Any]) -> None:
        row = {"kind": component.kind, "name": component.name, "distribution": component.distribution, "version": component.version}
        if row not in self.components:
            self.components.append(row)
        for option, parameter in options_of(component.load()).items():
            for inner in options.get(option, ()) if parameter.annotation == list[OperatorLaw] else ():
                given = {"name": inner} if isinstance(inner, str) else inner
                self._record(self.catalog.find("operators", given["name"]), given)

    def part(self, kind: str, part: Part, path: Path) -> Callable[..., Any] | None:
        whole: Any = self.loaded.value
        for step in path:
            whole = whole[step] if not isinstance(whole, str) else whole
        return self.factory(kind, part.name, part.options, path, named=not isinstance(whole, str))

    def build(self, kind: str, part: Part, path: Path) -> Any:
        make = self.part(kind, part, path)
        if make is None:
            return None
        try:
            return make()
        except InvemError as error:
            self.problems.append(str(error))
            return None

    def done(self) -> None:
        if self.problems:
            raise (PluginError if self.missing and len(self.problems) == 1 else RecipeError)("\n".join(self.problems))


def make(loaded: Loaded, catalog: Catalog, facts: Facts | None = None) -> Plan:
    """Checks a recipe against the catalogue and against itself.

    Args:
        loaded: The recipe.
        catalog: The components.
        facts: What is known of the data set, if a run was begun with it; it is opened otherwise.

    Raises:
        RecipeError: Every problem that was found, one per line; a data set that is missing or damaged is one.
        PluginError: If the only problem is a plugin that is missing or broken.
    """
    recipe = loaded.recipe
    builder = _Builder(loaded, catalog)
    _requirements(recipe, builder)
    source, where = (recipe.data, "data") if recipe.data is not None else (recipe.observations, "observations")
    assert source is not None
    data = builder.part("datasets", source, (where,))
    operator = builder.part("operators", recipe.operator, ("operator",))
    noise = builder.part("noises", recipe.noise, ("noise",))
    network = builder.part("networks", recipe.network, ("network",))
    stages = _stages(recipe, builder)
    metrics: dict[str, Metric] = {}
    names = [part.name for part in recipe.evaluate.metrics]
    for i, part in enumerate(recipe.evaluate.metrics):
        metric = builder.build("metrics", part, ("evaluate", "metrics", i))
        inner = ",".join(f"{k}={v}" for k, v in part.options.items())
        label = f"{part.name}({inner})" if inner and names.count(part.name) > 1 else part.name
        if label in metrics:
            builder.fail(("evaluate", "metrics", i), f"{label} is there twice")
        elif metric is not None:
            metrics[label] = metric
    builder.done()
    assert data and operator and noise and network

    def split(name: str) -> _Source:
        return _Source(data(name), lambda text: recipes.error(loaded, (where,), text))

    warnings, given, measurement_shape = [], None, None
    if facts is None:
        train = split("train")
        if where == "observations":
            y = train[torch.tensor([0])].x
            assert y is not None
            given, measurement_shape = set(train.measured(torch.tensor([0]))) if train.measured else {"y"}, tuple(y.shape[1:])
        tested = recipe.evaluate.observations or any("reference" in metric.needs for metric in metrics.values())
        facts = Facts(train.shape, train.range, len(train), len(split("test")) if tested else 0)
        skipped = train.skipped
    else:
        skipped = ()
    shape = facts.shape
    if skipped:
        shown = ", ".join(skipped[:5]) + (", ..." if len(skipped) > 5 else "")
        warnings.append(f"{where}: {len(skipped)} broken file{'s' * (len(skipped) > 1)} left out: {shown}")

    def law(n: int, rng: Any) -> tuple[Operator, NoiseModel]:
        drawn: Operator = operator(n, shape, rng)
        clean = drawn[0](torch.zeros(1, *shape)) if n else torch.zeros(1, *shape)
        return drawn, noise(n, tuple(clean.shape[1:]), rng)

    example = law(1, Rng.generator(0))
    measured = Measurement(example[0](torch.zeros(1, *shape)), *example)
    if given is not None:
        two = [Measurement(torch.zeros(1), *law(2, Rng.generator(k))).tensors() for k in range(2)]
        if measurement_shape != (expected := tuple(measured.y.shape[1:])):
            text = f"{recipe.operator.name} measures signals of shape {shape} as {expected}, and the observations are {measurement_shape}"
            builder.fail(("observations",), text)
        if unknown := given - two[0].keys():
            text = f"{_list(unknown)} is no tensor of {recipe.operator.name} or {recipe.noise.name} (known: {', '.join(two[0])})"
            builder.fail(("observations",), text)
        drawn = [name for name, tensor in two[0].items() if name not in given and not torch.equal(tensor, two[1][name])]
        if drawn:
            builder.fail(
                ("operator",),
                f"{', '.join(drawn)} would be drawn anew, and the observations were made with others: give them beside y "
                "(data set `measurements`), or choose an operator and a noise that are the same for all",
            )
    network(shape)
    silent = "var" in measured.noise.provides and not bool((measured.noise.var() > 0).all())
    _needs(recipe, builder, stages, metrics, measured.provides, where == "data", len(shape) == 3, silent)
    builder.done()
    return Plan(
        loaded=loaded,
        data=split,
        observed=where == "observations",
        law=law,
        network=lambda: network(shape),
        stages=stages,
        metrics=metrics,
        resolved=resolve(loaded, catalog),
        components=builder.components,
        facts=facts,
        train=min(recipe.count or facts.whole_train, facts.whole_train),
        test=min(recipe.evaluate.observations, facts.whole_test),
        warnings=warnings,
    )


def resolve(loaded: Loaded, catalog: Catalog) -> dict[str, Any]:
    """Returns a recipe as plain data with every default written out, those of the components too.

    Raises:
        RecipeError: Every problem with a name or an option.
        PluginError: If the only problem is a plugin that is missing or broken.
    """
    recipe, builder = loaded.recipe, _Builder(loaded, catalog)
    for kind, part, path in _parts(recipe):
        builder.part(kind, part, path)
    for i, phase in enumerate(recipe.phases):
        if phase.fit is not None:
            builder.factory("objectives", phase.fit.objective, phase.fit.options, ("phases", i, "fit"), named=False)
    builder.done()
    names: dict[Any, str] = {}
    for name in catalog.offers["schedules"]:
        with contextlib.suppress(PluginError, RecipeError):
            names[catalog.find("schedules", name).load()] = name

    whole = recipes.dump(recipe)
    for path, values in builder.resolved.items():
        place: Any = whole
        for step in path:
            place = place[step]
        _write_out(place, values, names)
    return whole


def _write_out(place: dict[str, Any], values: Mapping[str, Any], names: Mapping[Any, str]) -> None:
    """Writes the value of every option of a component into the plain data that name the component."""
    for option, value in values.items():
        if _is_plain(value):
            place[option] = value
        elif isinstance(value, Schedule) and type(value) in names:
            place[option] = {"name": names[type(value)], **{f.name: getattr(value, f.name) for f in fields(value)}}  # type: ignore[arg-type]
        elif isinstance(value, list) and all(isinstance(part, partial) for part in value):
            place[option] = [{"name": part} if isinstance(part, str) else dict(part) for part in place[option]]
            for part, law in zip(place[option], value, strict=True):
                _write_out(part, law.keywords, names)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(_is_plain(item) for item in value.values())
    return value is None or isinstance(value, bool | int | float | str)


def fits(catalog: Catalog, have: Set[str]) -> list[str]:
    """Returns the samplers that at their defaults need no more than `have`."""
    found = []
    for name, offers in catalog.offers["samplers"].items():
        with contextlib.suppress(InvemError, TypeError):
            if len(offers) == 1 and offers[0].load()().needs <= have:
                found.append(name)
    return sorted(found)


def _parts(recipe: Recipe) -> Iterator[tuple[str, Part, Path]]:
    """Yields kind, part and place of every component but the objectives."""
    for place, kind in (("data", "datasets"), ("observations", "datasets"), ("operator", "operators"), ("noise", "noises")):
        if (part := getattr(recipe, place)) is not None:
            yield kind, part, (place,)
    yield "networks", recipe.network, ("network",)
    for i, phase in enumerate(recipe.phases):
        if phase.sampler is not None:
            yield "samplers", phase.sampler, ("phases", i, "sampler")
    if recipe.evaluate.sampler is not None:
        yield "samplers", recipe.evaluate.sampler, ("evaluate", "sampler")
    for i, part in enumerate(recipe.evaluate.metrics):
        yield "metrics", part, ("evaluate", "metrics", i)


def _requirements(recipe: Recipe, builder: _Builder) -> None:
    for i, text in enumerate(recipe.requires):
        try:
            requirement = Requirement(text)
            installed = metadata.version(requirement.name)
        except InvalidRequirement:
            builder.fail(("requires", i), f"'{text}' is not a requirement such as invem-ct>=0.3")
        except metadata.PackageNotFoundError:
            builder.missing = True
            builder.fail(("requires", i), f"{text} is not installed; try: pip install '{text}'")
        else:
            if not requirement.specifier.contains(installed, prereleases=True):
                builder.missing = True
                builder.fail(("requires", i), f"{text} is needed, version {installed} is installed")


def _stages(recipe: Recipe, builder: _Builder) -> list[Stage]:
    judge = recipe.evaluate.sampler and builder.build("samplers", recipe.evaluate.sampler, ("evaluate", "sampler"))
    samplers = [
        builder.build("samplers", phase.sampler, ("phases", i, "sampler")) if phase.sampler else None
        for i, phase in enumerate(recipe.phases)
    ]
    default = judge or next((s for s in samplers if s is not None), None)
    stages = []
    fitted = False
    for i, (phase, sampler) in enumerate(zip(recipe.phases, samplers, strict=True)):
        objective, on = None, ""
        if sampler is not None and not fitted:
            builder.fail(("phases", i, "sampler"), "there is no prior to sample with yet: an earlier phase must fit one")
        if phase.fit is not None:
            make = builder.factory("objectives", phase.fit.objective, phase.fit.options, ("phases", i, "fit"), named=False)
            objective = make() if make else None
            on = phase.fit.on or ("draws" if sampler is not None else "observations")
            path: Path = ("phases", i, "fit")
            if on == "draws" and sampler is None:
                builder.fail(path, "it learns from draws, but the phase has no sampler")
            if on == "clean" and recipe.clean == 0:
                builder.fail(path, "it learns from clean images, but the recipe grants none (`clean:` is 0)")
            if on == "clean" and recipe.data is None:
                builder.fail(path, "it learns from clean images, but there are only observations")
            fitted = True
        stages.append(Stage(phase, sampler, objective, on, judge or sampler or default))
    return stages


def _needs(
    recipe: Recipe,
    builder: _Builder,
    stages: list[Stage],
    metrics: dict[str, Metric],
    provides: frozenset[str],
    truth: bool,
    image: bool,
    silent: bool,
) -> None:
    for i, stage in enumerate(stages):
        if stage.sampler is not None:
            assert stage.phase.sampler is not None
            before = [s.objective for s in stages[:i] if s.objective is not None]
            closed = bool(before) and before[-1].closed_form and (i == 0 or stage.phase.rounds == 1 or stage.objective is None)
            closed |= bool(before) and before[-1].closed_form and stage.objective is not None and stage.objective.closed_form
            can = provides | {"moments"} | ({"closed form"} if closed else set())
            name = stage.phase.sampler.name
            if lacks := stage.sampler.needs - can:
                fitting = ", ".join(fits(builder.catalog, can)) or "none"
                place = f"{recipe.operator.name} with {recipe.noise.name} noise"
                reason = f"{name} needs {_list(lacks)}, which {place} does not provide (it provides {_list(provides)})"
                if lacks == {"closed form"}:
                    reason = f"{name} needs a prior in closed form, a Gaussian, and the prior is a network then"
                builder.fail(("phases", i, "sampler"), f"{reason}; these fit: {fitting}")
        if stage.objective is not None and ("x" in stage.objective.needs or stage.on == "observations"):
            given = provides | {"measurement"} | ({"x"} if stage.on in ("draws", "clean") else set())
            if lacks := stage.objective.needs - given:
                assert stage.phase.fit is not None
                what = "signals to learn from: add a sampler to the phase, or `on: clean`" if "x" in lacks else _list(lacks)
                builder.fail(("phases", i, "fit"), f"{stage.phase.fit.objective} needs {what}")
    have = {"measurement"} | (provides & {"var"}) | ({"image"} if image else set())
    if silent:
        have.discard("var")
    if truth:
        have |= {"truth", "reference", "labels"}
    if recipe.evaluate.samples > 1:
        have.add("samples")
    if any(stage.judge is not None for stage in stages) and recipe.evaluate.observations:
        have.add("draws")
    for i, (name, metric) in enumerate(metrics.items()):
        if lacks := metric.needs - have:
            why = " (the noise is 0)" if silent and "var" in lacks else ""
            builder.fail(("evaluate", "metrics", i), f"{name} needs {_list(lacks)}, which this recipe does not have{why}")


def _list(names: frozenset[str] | set[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
