"""From a recipe to what will be done: every name, option and need is checked before anything is
computed."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, fields, replace
from functools import partial
from importlib import metadata
from pathlib import Path as FilePath
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from packaging.requirements import InvalidRequirement, Requirement
from torch import Tensor, nn

from invem import config as recipes
from invem import store
from invem.analysis.calibrate import Parameters, changed, number
from invem.batched import Rng
from invem.config import (
    Catalog,
    Component,
    Fit,
    Loaded,
    Part,
    Phase,
    Recipe,
    options_of,
    parse_options,
)
from invem.config.yaml import Path
from invem.dataset import Dataset
from invem.denoiser import Denoiser, Preconditioned
from invem.errors import DataError, InvemError, PluginError, RecipeError, Unsupported
from invem.gaussian import Gaussian
from invem.interpolant import Interpolant
from invem.measurement import Example, Measurement
from invem.metric import Metric
from invem.noise import NoiseModel
from invem.objective import Objective
from invem.operator import Operator, OperatorLaw
from invem.sampler import PosteriorSampler
from invem.schedule import Schedule

__all__ = ["Facts", "Plan", "Stage", "make", "resolve"]

_ASKED = (
    16  # calls of the denoiser after which a component that has refused nothing counts as willing
)
_DRAWN = 64  # operators that must all be the identity for it to be one


@dataclass(frozen=True)
class Stage:
    """One phase with its components.

    Attributes:
        phase: The phase of the recipe.
        sampler: Draws the signals that are learned from, if the phase draws.
        objective: What the phase fits, if it fits.
        on: What is learned from: "draws", "observations" or "clean".
        judge: The sampler of the held-out restorations, if there is one.
        annealed: The samplers of the first rounds, where options change from round to round;
            `sampler` is that of all later ones.
        network: Builds the network that the phase trains, if it has one of its own: (shape) ->
            network.
        own: Says which network of its own that is; "" is the recipe's.
    """

    phase: Phase
    sampler: PosteriorSampler | None
    objective: Objective | None
    on: str
    judge: PosteriorSampler | None
    annealed: tuple[PosteriorSampler, ...] = ()
    network: Callable[..., Any] | None = None
    own: str = ""

    def at(self, r: int) -> PosteriorSampler | None:
        """Returns the sampler of a round."""
        return self.annealed[r] if r < len(self.annealed) else self.sampler


class Facts(NamedTuple):
    """What a run keeps of its data set, so that a finished run needs the data set no more.

    Attributes:
        shape: The shape of one signal.
        range: The lowest and the highest value of a signal.
        whole_train: The length of the training split.
        whole_test: The length of the test split; 0 if it is not used.
        prior: What the first phase begins with: "" (nothing), "built", "gaussian" or "network".
    """

    shape: tuple[int, ...]
    range: tuple[float, float]
    whole_train: int
    whole_test: int
    prior: str = ""


@dataclass(frozen=True)
class Plan:
    """Everything that a run needs, checked.

    Attributes:
        loaded: The recipe as it was read.
        data: The data set of a split.
        observed: Whether the data set holds measurements, not signals.
        law: Draws n measurements' operators and noise laws: (n, rng) -> (Operator, NoiseModel);
            with a third argument, at other values of their options, by keys such as "operator.std".
        options: The options of "operator" and "noise" with their values.
        network: Builds a new network of the recipe: () -> network; `build` one of a phase.
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
    law: Callable[..., tuple[Operator, NoiseModel]]
    options: Mapping[str, Mapping[str, Any]]
    network: Callable[..., Any]
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

    def build(self, p: int | None = None) -> Any:
        """Builds a new network: that of a phase, or the recipe's."""
        own = None if p is None else self.stages[p].network
        return self.network() if own is None else own(self.shape)

    def describe(self) -> dict[str, Any]:
        """Returns the plan as plain data: what `invem plan` prints."""
        steps = []
        for p, stage in enumerate(self.stages):
            phase = stage.phase
            row: dict[str, Any] = {"phase": f"{p}-{phase.name}", "rounds": phase.rounds}
            if stage.sampler is not None:
                n = min(phase.observations or self.train, self.train) * phase.draws
                forwards, products = stage.sampler.cost
                row |= {"draws a round": max(round(n * phase.refresh), 1)}
                row |= {"forwards a draw": forwards, "vector-Jacobian products a draw": products}
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
        self.measured: Callable[[Tensor], dict[str, Tensor]] | None = getattr(
            data, "measured", None
        )

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

    def factory(
        self, kind: str, name: str, options: dict[str, Any], path: Path, named: bool = True
    ) -> Callable[..., Any] | None:
        try:
            component = self.catalog.find(kind, name)
            build = component.load()
            allowed = set(options_of(build))
            if kind == "objectives" and (taken := allowed & recipes.Fit.model_fields.keys()):
                text = f"{_list(taken)} is a key of a fit, and cannot be an option"
                raise PluginError(f"objective '{name}' of {component.distribution}: {text}")
        except (PluginError, RecipeError) as error:
            self.missing |= isinstance(error, PluginError)
            self.fail((*path, "name") if named else path, str(error))
            return None
        before = len(self.problems)
        values = parse_options(
            self.catalog, component, options, lambda p, k, text: self.fail((*path, *p), text, k)
        )
        if len(self.problems) > before or set(values) != allowed:
            return None
        self.resolved[path] = values
        self._record(component, options)

        def make(*args: Any, **other: Any) -> Any:
            try:
                return build(*args, **{**values, **other})
            except (ValueError, TypeError, RuntimeError, RecipeError, DataError) as error:
                raise recipes.error(self.loaded, path, str(error)) from error

        return make

    def _record(self, component: Component, options: dict[str, Any]) -> None:
        row = {
            "kind": component.kind,
            "name": component.name,
            "distribution": component.distribution,
            "version": component.version,
        }
        if row not in self.components:
            self.components.append(row)
        for option, parameter in options_of(component.load()).items():
            for inner in (
                options.get(option, ()) if parameter.annotation == list[OperatorLaw] else ()
            ):
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
            raise (PluginError if self.missing and len(self.problems) == 1 else RecipeError)(
                "\n".join(self.problems)
            )


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
    recipe = loaded.recipe
    builder = _Builder(loaded, catalog)
    _requirements(recipe, builder)
    source, where = (
        (recipe.data, "data") if recipe.data is not None else (recipe.observations, "observations")
    )
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
    begun = facts is not None
    if facts is None:
        train = split("train")
        if where == "observations":
            y = train[torch.tensor([0])].x
            assert y is not None
            given, measurement_shape = (
                set(train.measured(torch.tensor([0]))) if train.measured else {"y"},
                tuple(y.shape[1:]),
            )
        tested = recipe.evaluate.observations or any(
            "reference" in metric.needs for metric in metrics.values()
        )
        facts = Facts(train.shape, train.range, len(train), len(split("test")) if tested else 0)
        skipped = train.skipped
    else:
        skipped = ()
    shape = facts.shape
    if skipped:
        shown = ", ".join(skipped[:5]) + (", ..." if len(skipped) > 5 else "")
        warnings.append(
            f"{where}: {len(skipped)} broken file{'s' * (len(skipped) > 1)} left out: {shown}"
        )

    options = {kind: builder.resolved[(kind,)] for kind in ("operator", "noise")}

    def law(
        n: int, rng: Any, theta: Mapping[str, float] = MappingProxyType({})
    ) -> tuple[Operator, NoiseModel]:
        of_operator, of_noise = (_at(options, kind, theta) for kind in ("operator", "noise"))
        drawn: Operator = operator(n, shape, rng, **of_operator)
        clean = drawn[0](torch.zeros(1, *shape)) if n else torch.zeros(1, *shape)
        return drawn, noise(n, tuple(clean.shape[1:]), rng, **of_noise)

    _believed(recipe, builder, options)
    builder.done()
    for i, phase in enumerate(recipe.phases):
        for key in phase.calibrate:
            kind, _, rest = key.partition(".")
            if why := _rough(
                law,
                key,
                recipe.assume.get(key, number(options[kind], rest.split("."))),
                given or set(),
            ):
                builder.fail(("phases", i, "calibrate", key), why)
    example = law(1, Rng.generator(0), recipe.assume)
    measured = Measurement(example[0](torch.zeros(1, *shape)), *example)
    if given is not None:
        two = [Measurement(torch.zeros(1), *law(2, Rng.generator(k))).tensors() for k in range(2)]
        if measurement_shape != (expected := tuple(measured.y.shape[1:])):
            text = (
                f"{recipe.operator.name} measures signals of shape {shape} as {expected}, and the"
                f" observations are {measurement_shape}"
            )
            builder.fail(("observations",), text)
        if unknown := given - two[0].keys():
            text = (
                f"{_list(unknown)} is no tensor of {recipe.operator.name} or {recipe.noise.name}"
                f" (known: {', '.join(two[0])})"
            )
            builder.fail(("observations",), text)
        drawn = [
            name
            for name, tensor in two[0].items()
            if name not in given and not torch.equal(tensor, two[1][name])
        ]
        if drawn:
            builder.fail(
                ("operator",),
                f"{', '.join(drawn)} would be drawn anew, and the observations were made with"
                " others: give them beside y (data set `measurements`), or choose an operator and"
                " a noise that are the same for all",
            )
    built = network(shape)
    if not begun:
        facts = facts._replace(prior=_prior(recipe, builder, built, shape))
    if facts.prior == "built" and not isinstance(built, Denoiser):
        builder.fail(
            ("prior",),
            f"{recipe.network.name} is built without weights: name a run, or a network that comes"
            " with its weights",
        )
    provides = measured.provides
    if "identity" in provides:
        # A mask can show all of one signal and not of the next.
        probe = torch.linspace(-1, 1, math.prod(shape)).reshape(1, *shape).expand(_DRAWN, *shape)
        many = law(_DRAWN, Rng.generator(0))[0](probe)
        provides = provides if torch.equal(many, probe) else provides - {"identity"}
    silent = "var" in measured.noise.provides and not bool((measured.noise.var() > 0).all())
    conditions = [
        int(getattr(built if stage.network is None else stage.network(shape), "condition", 0))
        for stage in stages
    ]
    own = (
        provides,
        conditions,
        facts.prior,
        where == "data",
        len(shape) == 3,
        silent,
        measured if _is_odd(measured) else None,
    )
    stages = _needs(recipe, builder, stages, metrics, *own)
    for i, stage in enumerate(stages):
        if stage.objective is not None and (reason := stage.objective.refuses(tuple(shape))):
            assert stage.phase.fit is not None
            builder.fail(("phases", i, "fit"), _own(stage.phase.fit.objective, reason))
    builder.done()
    return Plan(
        loaded=loaded,
        data=split,
        observed=where == "observations",
        law=law,
        options=options,
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
            builder.factory(
                "objectives",
                phase.fit.objective,
                phase.fit.options,
                ("phases", i, "fit"),
                named=False,
            )
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
    """Writes the value of every option of a component into the plain data that name the
    component."""
    for option, value in values.items():
        if _is_plain(value):
            place[option] = value
        elif isinstance(value, Schedule) and type(value) in names:
            place[option] = {
                "name": names[type(value)],
                **{f.name: getattr(value, f.name) for f in fields(value)},  # type: ignore[arg-type]
            }
        elif isinstance(value, list) and all(isinstance(part, partial) for part in value):
            place[option] = [
                {"name": part} if isinstance(part, str) else dict(part) for part in place[option]
            ]
            for part, law in zip(place[option], value, strict=True):
                _write_out(part, law.keywords, names)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(_is_plain(item) for item in value.values())
    return value is None or isinstance(value, bool | int | float | str)


def fits(catalog: Catalog, have: Set[str], asked: Measurement | None = None) -> list[str]:
    """Returns the samplers that at their defaults need no more than `have`, and do not refuse the
    measurement `asked`."""
    return [
        name
        for name, sampler in _defaults(catalog)
        if sampler.needs <= have and _refusal(sampler, asked) is None
    ]


def _classical(catalog: Catalog) -> list[str]:
    """Returns the samplers that need no prior."""
    return [name for name, sampler in _defaults(catalog) if not sampler.prior]


def _defaults(catalog: Catalog) -> Iterator[tuple[str, PosteriorSampler]]:
    """Yields every sampler at its defaults, by name."""
    for name, offers in sorted(catalog.offers["samplers"].items()):
        with contextlib.suppress(InvemError, TypeError):
            if len(offers) == 1:
                yield name, offers[0].load()()


class _Enough(Exception):
    """A component asked the denoiser so often that it refuses nothing."""


class _Blank(Denoiser):
    """Knows nothing and costs nothing: what a component is asked with before a run."""

    def __init__(self, part: PosteriorSampler | Objective, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.left = _ASKED
        self.moments = Gaussian.standard(shape) if "moments" in part.needs else None
        self.condition = 2 if "conditional" in part.needs else getattr(part, "condition", 0)

    def forward(self, x_t: Tensor, sigma: Tensor | float, cond: Tensor | None = None) -> Tensor:
        if not self.left:
            raise _Enough
        self.left -= 1
        return 0.5 * x_t

    def posterior(self, m: Measurement, rng: Rng) -> Tensor:
        raise _Enough


@dataclass(frozen=True, eq=False)
class _Silent(NoiseModel):
    """No noise: a variance of zero, and no density.

    Attributes:
        zero: The variance, shape (B, 1, ...).
    """

    zero: Tensor

    def sample(self, clean: Tensor, rng: torch.Generator) -> Tensor:
        return clean

    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        raise Unsupported("it asks for the density of the noise, which is 0 and has none")

    def var(self) -> Tensor:
        return self.zero


def _is_odd(m: Measurement) -> bool:
    """Whether a component whose needs are met may still refuse.

    The noise is 0 or has several levels, A has no true derivative, or nothing makes a signal of y.
    """
    if m.A.straight_through or not (
        m.y.shape[1:] == torch.Size(m.shape) or "adjoint" in m.A.provides
    ):
        return True
    if "var" not in m.noise.provides:
        return False
    var = m.noise.var().expand_as(m.y).flatten(1)
    return not bool((var > 0).all()) or bool((var != var[:, :1]).any())


def _refusal(part: PosteriorSampler | Objective, m: Measurement | None) -> str | None:
    """Returns why a sampler or an objective cannot do with a measurement, in its own words within
    its first calls of the denoiser."""
    if m is None:
        return None
    if "var" in m.noise.provides and not bool((m.noise.var() > 0).all()):
        m = replace(m, noise=_Silent(torch.zeros(len(m), *[1] * (m.y.ndim - 1))))
    blank, rng = _Blank(part, m.shape), Rng.keyed("asked", items=range(len(m)))
    prior = Interpolant(blank, 0.1, True) if "interpolant" in part.needs else blank
    try:
        if isinstance(part, PosteriorSampler):
            part(prior, m, rng)
        elif not part.closed_form:
            part.loss(part.wrap(blank, m), Example(torch.zeros(len(m), *m.shape), m), rng)
    except Unsupported as error:
        return str(error)
    except Exception:
        return None  # what a made-up denoiser leads to says nothing of the run
    return None


def _parts(recipe: Recipe) -> Iterator[tuple[str, Part, Path]]:
    """Yields kind, part and place of every component but the objectives."""
    for place, kind in (
        ("data", "datasets"),
        ("observations", "datasets"),
        ("operator", "operators"),
        ("noise", "noises"),
    ):
        if (part := getattr(recipe, place)) is not None:
            yield kind, part, (place,)
    yield "networks", recipe.network, ("network",)
    for i, phase in enumerate(recipe.phases):
        if phase.sampler is not None:
            yield "samplers", phase.sampler, ("phases", i, "sampler")
        if phase.network is not None:
            yield "networks", phase.network, ("phases", i, "network")
    if recipe.evaluate.sampler is not None:
        yield "samplers", recipe.evaluate.sampler, ("evaluate", "sampler")
    for i, part in enumerate(recipe.evaluate.metrics):
        yield "metrics", part, ("evaluate", "metrics", i)


def _prior(recipe: Recipe, builder: _Builder, built: nn.Module, shape: tuple[int, ...]) -> str:
    """Returns what kind of prior the first phase begins with, after comparing that of another run
    with the network of this one."""
    if recipe.prior in (None, "network"):
        return "built" if recipe.prior else ""
    try:
        tensors, meta = store.read_meta(
            store.last_denoiser(FilePath(str(recipe.prior)).expanduser())
        )
    except DataError as error:
        builder.fail(("prior",), str(error))
        return ""
    if (other := tuple(tensors["moments.mean"].shape)) != tuple(shape):
        builder.fail(("prior",), f"it is of signals of shape {other}, not {tuple(shape)}")
    elif any(name.startswith("wrap.") for name in tensors):
        builder.fail(
            ("prior",),
            "its objective put a module around the network; go on from it in the same recipe",
        )
    elif meta["kind"] == "network":
        network = built if isinstance(built, Denoiser) else Preconditioned(built)
        mine = {
            f"network.{name}": tuple(tensor.shape) for name, tensor in network.state_dict().items()
        }
        theirs = {
            name: tuple(tensor.shape)
            for name, tensor in tensors.items()
            if name.startswith("network.")
        }
        if differ := sorted(
            name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name)
        ):
            name = differ[0]
            shapes = f"{theirs.get(name, 'missing')} there and {mine.get(name, 'missing')} here"
            builder.fail(
                ("prior",),
                f"it is of another network than this recipe's {recipe.network.name}: {name} is"
                f" {shapes}",
            )
    return str(meta["kind"])


def _at(
    options: Mapping[str, Mapping[str, Any]], kind: str, theta: Mapping[str, float]
) -> dict[str, Any]:
    """Returns the options of "operator" or "noise" with the values of theta that are meant for
    it."""
    found = dict(options[kind])
    for key, value in theta.items():
        name, _, rest = key.partition(".")
        if name == kind:
            found = changed(found, rest.split("."), value)
    return found


def _believed(recipe: Recipe, builder: _Builder, options: Mapping[str, Mapping[str, Any]]) -> None:
    """Checks what is assumed of the device and what is to be calibrated."""
    if recipe.assume and recipe.data is None:
        builder.fail(
            ("assume",),
            "the observations exist already: write what is believed as the options of operator and"
            " noise themselves",
        )
    named: list[tuple[Path, str]] = [(("assume", key), key) for key in recipe.assume]
    named += [
        (("phases", i, "calibrate", key), key)
        for i, phase in enumerate(recipe.phases)
        for key in phase.calibrate
    ]
    start = dict(recipe.assume)
    for place, key in named:
        kind, _, rest = key.partition(".")
        try:
            if kind not in options or not rest:
                raise RecipeError("it names no option of operator or noise, as operator.std does")
            start.setdefault(key, number(options[kind], rest.split(".")))
            for value in (
                [recipe.assume[key]]
                if place[0] == "assume"
                else recipe.phases[int(place[1])].calibrate[key]
            ):
                resolve(recipes.replace(builder.loaded, [f"{key}={value!r}"]), builder.catalog)
        except InvemError as error:
            builder.fail(place, str(error))
    for i, phase in enumerate(recipe.phases):
        if phase.calibrate and all(key in start for key in phase.calibrate):
            whole: Path = ("phases", i, "calibrate")
            try:
                Parameters(
                    {key: (low, high) for key, (low, high) in phase.calibrate.items()}
                ).inwards(start)
            except RecipeError as error:
                builder.fail(whole, str(error).removeprefix("calibrate: "))
            if phase.sampler is None:
                builder.fail(whole, "it is by posterior draws, and the phase has no sampler")


def _rough(
    law: Callable[..., tuple[Operator, NoiseModel]], key: str, value: float, given: Set[str]
) -> str:
    """Returns why an option cannot be calibrated, "" if it can: a slightly different value must
    make a slightly different law."""
    near = value + 1e-3 * (abs(value) or 1.0)
    one, two = (
        Measurement(torch.zeros(1), *law(64, Rng.generator(0), {key: v})) for v in (value, near)
    )
    x = torch.linspace(-1, 1, math.prod(one.shape)).reshape(1, *one.shape).expand(64, *one.shape)
    clean = one.A(x), two.A(x)
    logs = [m.noise.log_prob(clean[0] + 0.1, clean[0]) for m in (one, two)]
    tensors = two.tensors()
    changes = {
        path for path, tensor in one.tensors().items() if not torch.equal(tensor, tensors[path])
    }
    if changes & given:
        return f"{_list(changes & given)} is given beside y, and would change with it"
    if torch.equal(*clean) and torch.equal(*logs):
        return "nothing that is measured changes smoothly with it"
    far = float((clean[0] - clean[1]).abs().max()) > 0.1 * float(clean[0].abs().max())
    return (
        "another value makes other draws, so that there is no likelihood to compare" if far else ""
    )


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
    names = [phase.name for phase in recipe.phases]
    for i, name in enumerate(recipe.evaluate.phases or []):
        if name not in names:
            builder.fail(
                ("evaluate", "phases", i), f"there is no phase '{name}' (known: {', '.join(names)})"
            )
    judge: PosteriorSampler | None = None
    if recipe.evaluate.sampler is not None:
        judge = builder.build("samplers", recipe.evaluate.sampler, ("evaluate", "sampler"))
    stages = []
    fitted = recipe.prior is not None
    for i, phase in enumerate(recipe.phases):
        path: Path = ("phases", i, "fit")
        sampler, annealed = _annealed(phase, builder, i)
        objective, on = None, ""
        if sampler is not None and sampler.prior and not fitted:
            text = (
                "there is no prior to sample with yet: an earlier phase must fit one, or `prior`"
                " name one"
            )
            builder.fail(
                ("phases", i, "sampler"),
                f"{text}; these need none: {', '.join(_classical(builder.catalog)) or 'none'}",
            )
        if phase.fit is not None:
            make = builder.factory(
                "objectives", phase.fit.objective, phase.fit.options, path, named=False
            )
            objective = make() if make else None
            on = phase.fit.on or ("draws" if phase.sampler is not None else "observations")
            _check_fit(recipe, builder, i, on, objective)
            fitted = True
        _check_policy(recipe, builder, i, sampler)
        network, own = _own_network(recipe, builder, i, objective)
        stages.append(Stage(phase, sampler, objective, on, None, annealed, network, own))
    able = [
        judge,
        *(stage.sampler for stage in stages if stage.sampler is not None and stage.sampler.prior),
    ]
    return [
        replace(
            stage, judge=judge or stage.sampler or next((s for s in able if s is not None), None)
        )
        for stage in stages
    ]


def _own_network(
    recipe: Recipe, builder: _Builder, i: int, objective: Objective | None
) -> tuple[Callable[..., Any] | None, str]:
    """Returns what builds the network of a phase and says which it is, if it is not the
    recipe's."""
    part, path = recipe.phases[i].network, ("phases", i, "network")
    if part is None:
        return None, ""
    make = builder.part("networks", part, path)
    if recipe.phases[i].fit is None or (objective is not None and objective.closed_form):
        builder.fail(path, "the phase trains no network")
    mine, whole = (
        (p.name, builder.resolved.get(place))
        for p, place in ((part, path), (recipe.network, ("network",)))
    )
    return (None, "") if mine == whole else (make, repr(mine))


def _annealed(
    phase: Phase, builder: _Builder, i: int
) -> tuple[PosteriorSampler | None, tuple[PosteriorSampler, ...]]:
    """Builds the sampler of a phase, and those of its first rounds where `anneal` changes
    options."""
    if phase.sampler is None:
        if phase.anneal:
            builder.fail(
                ("phases", i, "anneal"), "it changes options of the sampler, and the phase has none"
            )
        return None, ()
    place: Path = ("phases", i, "sampler")
    if phase.anneal:
        rounds = max(len(values) for values in phase.anneal.values())
        by_round = [
            {name: values[min(r, len(values) - 1)] for name, values in phase.anneal.items()}
            for r in range(rounds)
        ]
        name, own = phase.sampler.name, phase.sampler.options
        made = [
            builder.factory("samplers", name, {**own, **now}, ("phases", i, "anneal"), named=False)
            for now in by_round
        ]
        builder.resolved.pop(("phases", i, "anneal"), None)
        found = [make() for make in made if make is not None]
        if len(found) < rounds:
            return None, ()
        part = phase.sampler.model_copy(update={"options": {**own, **by_round[-1]}})
        return builder.build("samplers", part, place), tuple(found)
    return builder.build("samplers", phase.sampler, place), ()


def _check_fit(
    recipe: Recipe, builder: _Builder, i: int, on: str, objective: Objective | None
) -> None:
    phase, path = recipe.phases[i], ("phases", i, "fit")
    assert phase.fit is not None
    if on == "draws" and phase.sampler is None:
        builder.fail(path, "it learns from draws, but the phase has no sampler")
    if on == "clean" or phase.fit.clean:
        if recipe.clean == 0:
            builder.fail(
                path, "it learns from clean images, but the recipe grants none (`clean:` is 0)"
            )
        if recipe.data is None:
            builder.fail(path, "it learns from clean images, but there are only observations")
    if objective is None:
        return
    named = {
        name
        for name in ("flip", "shift", "keep", "clean")
        if getattr(phase.fit, name) != Fit.model_fields[name].default
    }
    if objective.closed_form and named:
        builder.fail(
            path, f"{phase.fit.objective} is solved in closed form, without {_list(named)}"
        )
    elif named & {"flip", "shift"} and (on == "observations" or "measurement" in objective.needs):
        builder.fail(
            path,
            f"{phase.fit.objective} learns from measurements, which an image that is moved"
            " afterwards does not fit",
        )
    elif objective.networks > 1 and "clean" in named:
        builder.fail(
            path, f"{phase.fit.objective} learns from the prior before it alone, without clean"
        )


def _check_policy(
    recipe: Recipe, builder: _Builder, i: int, sampler: PosteriorSampler | None
) -> None:
    phase = recipe.phases[i]
    named = {
        n
        for n in ("refresh", "restart", "overlap")
        if getattr(phase, n) != Phase.model_fields[n].default
    }
    if named and phase.sampler is None:
        builder.fail(
            ("phases", i), f"{_list(named)} is about posterior draws, and the phase has no sampler"
        )
    elif named & {"refresh", "restart"} and phase.observations is not None:
        builder.fail(
            ("phases", i),
            f"{_list(named - {'overlap'})} needs a draw of every observation: leave"
            " `observations` out",
        )
    elif "overlap" in named and (phase.fit is None or named & {"refresh", "restart"}):
        builder.fail(
            ("phases", i, "overlap"),
            "it needs a fit to run beside, and draws that do not depend on those of the round"
            " before",
        )
    if phase.restart is not None and sampler is not None:
        schedule: Any = getattr(sampler, "schedule", None)
        if not sampler.begins or not hasattr(schedule, "sigma_max"):
            builder.fail(
                ("phases", i, "restart"),
                "the sampler has no chain that could begin at a signal and another noise level",
            )
        elif not schedule.sigma_min < phase.restart <= schedule.sigma_max:
            builder.fail(
                ("phases", i, "restart"),
                f"the sampler's levels lie between {schedule.sigma_min:g} and"
                f" {schedule.sigma_max:g}",
            )
    if phase.stop == "weight" and getattr(sampler, "weight", None) != "auto":
        builder.fail(
            ("phases", i, "stop"),
            "it follows the weight that the sampler tunes: dps with weight: auto",
        )
    if phase.stop == "auto":
        if not any(part.name == "observation-distance" for part in recipe.evaluate.metrics):
            builder.fail(
                ("phases", i, "stop"),
                "it follows the metric observation-distance: add it to evaluate.metrics",
            )
        judged = recipe.evaluate.phases is None or phase.name in recipe.evaluate.phases
        if recipe.evaluate.every != 1 or not recipe.evaluate.samples or not judged:
            builder.fail(
                ("phases", i, "stop"),
                "it needs an evaluation in every round: every 1, samples, and it among"
                " evaluate.phases",
            )


def _abilities(stages: list[Stage], prior: str) -> list[tuple[frozenset[str], frozenset[str]]]:
    """What the denoiser can do in every E-step of a stage, and after the stage."""
    closed = {"moments", "closed form"}
    known = {
        "": set(),
        "network": {"moments"},
        "built": set(),
        "gaussian": closed,
        "mixture": closed,
    }
    before: frozenset[str] = frozenset(known[prior])
    found = []
    for stage in stages:
        after = before
        if stage.objective is not None:
            after = (
                frozenset(closed)
                if stage.objective.closed_form
                else frozenset({"moments"}) | stage.objective.provides
            )
        found.append((before & after if stage.phase.rounds > 1 else before, after))
        before = after
    return found


def _needs(
    recipe: Recipe,
    builder: _Builder,
    stages: list[Stage],
    metrics: dict[str, Metric],
    provides: frozenset[str],
    conditions: list[int],
    prior: str,
    truth: bool,
    image: bool,
    silent: bool,
    odd: Measurement | None,
) -> list[Stage]:
    """Compares what components need with what there is; returns the stages with the sampler that
    can judge each."""
    found = []
    for i, (stage, (during, after)) in enumerate(
        zip(stages, _abilities(stages, prior), strict=True)
    ):
        for sampler in {
            id(s): s for s in (*stage.annealed, stage.sampler) if s is not None
        }.values():
            assert stage.phase.sampler is not None
            can = provides | during
            name = stage.phase.sampler.name
            if lacks := sampler.needs - can:
                fitting = ", ".join(fits(builder.catalog, can)) or "none"
                place = f"{recipe.operator.name} with {recipe.noise.name} noise"
                reason = (
                    f"{name} needs {_list(lacks)}, which {place} does not provide (it provides"
                    f" {_list(provides)})"
                )
                if lacks == {"closed form"}:
                    reason = (
                        f"{name} needs a prior in closed form, a Gaussian or a mixture, and the"
                        " prior is a network then"
                    )
                elif lacks == {"conditional"}:
                    reason = (
                        f"{name} needs a prior that an earlier phase fitted by a conditional"
                        " objective (cond-dsm, refine)"
                    )
                elif lacks == {"interpolant"}:
                    reason = (
                        f"{name} needs a prior that an earlier phase fitted with an interpolant"
                        " (scsi, sfbd-omni)"
                    )
                elif lacks == {"moments"}:
                    reason = (
                        f"{name} needs the moments of the prior, and a network as it was built has"
                        " none"
                    )
                builder.fail(("phases", i, "sampler"), f"{reason}; these fit: {fitting}")
                break
            if own := _refusal(sampler, odd):
                fitting = ", ".join(fits(builder.catalog, can, odd)) or "none"
                builder.fail(("phases", i, "sampler"), f"{_own(name, own)}; these fit: {fitting}")
                break
        if stage.objective is not None:
            assert stage.phase.fit is not None
            name, path = stage.phase.fit.objective, ("phases", i, "fit")
            if (
                "x" in stage.objective.needs
                or stage.on == "observations"
                or "measurement" in stage.objective.needs
            ):
                known = {
                    "draws": {"x", "measurement"},
                    "clean": {"x"},
                    "observations": {"measurement"},
                }[stage.on]
                given = provides | known | (during & {"closed form", "moments"})
                if lacks := stage.objective.needs - given:
                    what = (
                        f"{_list(lacks)}, which {recipe.operator.name} with {recipe.noise.name}"
                        " noise does not provide"
                    )
                    if "x" in lacks:
                        what = "signals to learn from: add a sampler to the phase"
                        what += "" if "measurement" in stage.objective.needs else ", or `on: clean`"
                    elif "measurement" in lacks:
                        what = "measurements to learn from, and clean images have none: use dsm"
                    elif lacks == {"closed form"}:
                        what = (
                            "a prior in closed form to begin with, a Gaussian or a mixture: put"
                            " gaussian-moments before it"
                        )
                    elif lacks == {"moments"}:
                        what = (
                            "a prior to begin with, whose moments are known: a phase before it must"
                            " learn one"
                        )
                    builder.fail(path, f"{name} needs {what}")
                elif "measurement" in stage.objective.needs and (
                    own := _refusal(stage.objective, odd)
                ):
                    builder.fail(path, _own(name, own))
            if stage.objective.condition not in (0, conditions[i]):
                builder.fail(
                    path,
                    f"{name} needs network.condition={stage.objective.condition} (it is"
                    f" {conditions[i]})",
                )
        judges = [
            s
            for s in (stage.judge, stage.sampler, *(s.sampler for s in stages))
            if s is not None and s.prior
        ]
        able = [s for s in judges if not s.needs - provides - after and _refusal(s, odd) is None]
        found.append(replace(stage, judge=able[0] if able else None))
    if recipe.evaluate.sampler is not None and all(
        s.judge is not stage.judge for s, stage in zip(found, stages, strict=True)
    ):
        lacks = frozenset.intersection(
            *(stages[0].judge.needs - provides - after for _, after in _abilities(stages, prior))  # type: ignore[union-attr]
        )
        name = recipe.evaluate.sampler.name
        reason = f"{name} needs {_list(lacks)}, which this recipe does not provide"
        if not lacks and (own := _refusal(stages[0].judge, odd)):  # type: ignore[arg-type]
            reason = _own(name, own)
        builder.fail(("evaluate", "sampler"), reason)
    have = {"measurement"} | (provides - {"vjp"}) | ({"image"} if image else set())
    if silent:
        have.discard("var")
    if truth:
        have |= {"truth", "reference", "labels"}
    if any(stage.objective is not None for stage in stages):
        have.add("denoiser")
    if any(stage.on in ("draws", "clean") for stage in found):
        have.add("trained")
    if recipe.evaluate.samples > 1:
        have |= {"samples", "observed", "simulated"}
    if any(stage.judge is not None for stage in found):
        have |= {"draws"} if recipe.evaluate.observations else set()
        have |= (
            {"several draws"}
            if recipe.evaluate.observations and recipe.evaluate.draws > 1
            else set()
        )
        have |= {"resimulated"} if recipe.evaluate.samples > 1 else set()
    for i, (name, metric) in enumerate(metrics.items()):
        if lacks := metric.needs - have:
            why = " (the noise is 0)" if silent and "var" in lacks else ""
            builder.fail(
                ("evaluate", "metrics", i),
                f"{name} needs {_list(lacks)}, which this recipe does not have{why}",
            )
    return found


def _own(name: str, reason: str) -> str:
    """Returns a component's own reason, which names it."""
    return reason if reason.startswith(name) else f"{name}: {reason}"


def _list(names: frozenset[str] | set[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"
