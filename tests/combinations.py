"""Which objectives, samplers, operators, initialisations and noises there are to combine, and what
`invem plan` says of each combination. See `combinations_page.py`.

A plan depends on an operator through what it provides, and on a sampler through what it needs and
whether it uses a prior; those that are alike are one group, and a small recipe is planned for every
combination of groups.
"""

import contextlib
import itertools
import json
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from invem import Measurement, PosteriorSampler, Preconditioned, RecipeError, Rng, config
from invem.config import Catalog, Component
from invem.config.schema import INLINE
from invem.errors import InvemError, MissingExtra
from invem.objective import Fitting
from invem.planning import build
from invem.planning.make import make
from invem.planning.plan import Facts, Plan
from invem.testing import example_options

SHAPES = ((1, 8, 8), (2, 8, 8))
SMALL = {
    "steps": 2,
    "sweeps": 1,
    "inner": 1,
    "particles": 2,
    "iterations": 2,
    "warm": 2,
    "levels": 1,
    "flow": 1,
    "samples": 1,
}
STRENGTH = ("identity", "mask", "svd", "pinv", "adjoint", "vjp")
PREFERRED = ("identity", "random-mask", "downsample", "radon", "defocus-blur", "clip")
OBSERVATIONS, CLEAN = "observations", "clean"


@dataclass(frozen=True)
class OperatorCase:
    """An operator with options that it gives as examples, drawn for two signals."""

    name: str
    label: str
    shape: tuple[int, ...]
    options: dict[str, Any] = field(hash=False)
    provides: frozenset[str]

    def draw(self, catalog: Catalog, n: int, shape: tuple[int, ...] | None = None) -> Any:
        return catalog.find("operators", self.name).load()(
            n, shape or self.shape, Rng.generator("combinations"), **self.options
        )


@dataclass(frozen=True)
class SamplerCase:
    """A sampler, as short as its options allow, with an option that changes what it needs."""

    name: str
    variant: str
    options: dict[str, Any] = field(hash=False)
    sampler: PosteriorSampler = field(hash=False)

    @property
    def label(self) -> str:
        return f"`{self.name}`" + (f" ({self.variant})" if self.variant else "")

    @property
    def group(self) -> tuple[frozenset[str], bool]:
        return self.sampler.needs, self.sampler.uses_prior

    @property
    def part(self) -> dict[str, Any]:
        return {"name": self.name, **self.options}


@dataclass(frozen=True)
class Start:
    """What a run begins with: phases, or a prior from elsewhere.

    Attributes:
        label: Its name on the page.
        leaves: The prior that it leaves: "none", "Gaussian", "network", "conditional network",
            "interpolant network" or "built network".
        phases: The phases before the one that is looked at.
        prior: The `prior` of the recipe, and what kind it is.
        condition: What its objective needs of the network.
    """

    label: str
    leaves: str
    phases: tuple[dict[str, Any], ...] = field(default=(), hash=False)
    prior: tuple[str, str] = ("", "")
    condition: int = 0


def own(catalog: Catalog, kind: str) -> list[str]:
    """Returns the components that come with invem and need no other library."""
    found = []
    for name, (component, *_) in sorted(catalog.offers[kind].items()):
        if component.distribution == "invem" and not str(component.target).startswith(
            "invem_plugins.bridges"
        ):
            found.append(name)
    return found


def weights(
    shape: tuple[int, ...], *, width: int = 8, depth: int = 1, condition: int = 0
) -> Preconditioned:
    """Stands for a network that comes with its weights: a denoiser as it was built."""
    mlp = CATALOG.find("networks", "mlp").load()
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        return Preconditioned(mlp(shape, width=width, depth=depth, condition=condition))


CATALOG = Catalog.load()
CATALOG.offers["networks"]["weights"] = [Component("networks", "weights", weights, "invem", "0")]


def operators(folder: Path, names: list[str] | None = None) -> list[OperatorCase]:
    """Returns every operator with each of its examples, sorted by what they provide."""
    found = []
    noise = CATALOG.find("noises", "gaussian").load()
    for name in names or own(CATALOG, "operators"):
        law = CATALOG.find("operators", name).load()
        for shape in SHAPES:
            for _, options in example_options(law, shape, folder):
                with contextlib.suppress(RecipeError, MissingExtra):
                    A = law(2, shape, Rng.generator("combinations"), **options)
                    y = A(torch.zeros(2, *shape))
                    m = Measurement(y, A, noise(2, tuple(y.shape[1:]), Rng.generator(0)))
                    words = [
                        f"{key}: {value}"
                        for key, value in options.items()
                        if isinstance(value, str) and "/" not in value
                    ]
                    words += [f"{shape[0]} channels"] * (shape != SHAPES[0])
                    found.append(
                        OperatorCase(
                            name,
                            ", ".join(words),
                            shape,
                            options,
                            m.A.provides | (m.provides & {"identity"}),
                        )
                    )
    return sorted(found, key=lambda case: (strength(case.provides), case.name))


def distinct(cases: list[OperatorCase]) -> list[OperatorCase]:
    """Returns one example for each operator and each set of capabilities that it can have."""
    return list({(case.name, case.provides): case for case in reversed(cases)}.values())[::-1]


def strength(provides: frozenset[str]) -> int:
    return next(i for i, name in enumerate(STRENGTH) if name in provides)


def groups(cases: list[OperatorCase]) -> dict[str, list[OperatorCase]]:
    """Returns the operators by the strongest of their capabilities, which says what the others
    are."""
    found: dict[str, list[OperatorCase]] = {}
    for case in cases:
        found.setdefault(STRENGTH[strength(case.provides)], []).append(case)
    for name, alike in found.items():
        assert len({case.provides for case in alike}) == 1, (
            f"{name}: {[(case.name, sorted(case.provides)) for case in alike]}"
        )
    return found


def representative(alike: list[OperatorCase]) -> OperatorCase:
    """Returns the operator of a group that is planned with, on signals of shape (1, 4, 4)."""
    for case in sorted(alike, key=lambda case: (case.name not in PREFERRED, case.name)):
        if all(isinstance(value, int | float | str) for value in case.options.values()):
            with contextlib.suppress(RecipeError):
                case.draw(CATALOG, 2, (1, 4, 4))
                return case
    raise AssertionError("none of these takes images of 4×4")


def variants(factory: Any) -> Iterator[dict[str, Any]]:
    """Yields no option, and every choice and switch other than the default."""
    yield {}
    for name, parameter in config.options_of(factory).items():
        kind = parameter.annotation
        choices = (
            typing.get_args(kind)
            if typing.get_origin(kind) is typing.Literal
            else (True, False)
            if kind is bool
            else ()
        )
        yield from ({name: value} for value in choices if value != parameter.default)


def samplers() -> list[SamplerCase]:
    """Returns every sampler at its shortest, and again for each choice that changes what it
    needs."""
    found = []
    for name in own(CATALOG, "samplers"):
        factory = CATALOG.find("samplers", name).load()
        whole = config.options_of(factory)
        short = {
            key: value
            for key, value in SMALL.items()
            if key in whole and not isinstance(whole[key].default, bool)
        }
        seen = []
        for more in variants(factory):
            with contextlib.suppress(RecipeError):
                words = ", ".join(
                    f"{key}: {value if isinstance(value, str) else json.dumps(value)}"
                    for key, value in more.items()
                )
                case = SamplerCase(name, words, short | more, factory(**short, **more))
                if case.group not in seen:
                    seen.append(case.group)
                    found.append(case)
    return found


CONDITIONS = {
    name: int(getattr(CATALOG.find("objectives", name).load()(), "condition", 0))
    for name in own(CATALOG, "objectives")
}


def objectives() -> dict[str, Fitting]:
    return {name: CATALOG.find("objectives", name).load()() for name in own(CATALOG, "objectives")}


def fit(objective: str, **more: Any) -> dict[str, Any]:
    return {"objective": objective, "steps": 2, "batch": 4, "moments": 2, **more}


def starts(cases: list[SamplerCase]) -> list[Start]:
    """Returns the ways in which a run can begin."""
    classical = [case for case in cases if not case.sampler.uses_prior]
    kept = {"name": "begin", "batch": 8}
    found = [
        Start("nothing", "none"),
        Start(
            "Gaussian EM",
            "Gaussian",
            ({**kept, "fit": {"objective": "gaussian-moments", "rank": 2}},),
        ),
        Start("granted clean images", "network", ({**kept, "fit": fit("dsm", on="clean")},)),
    ]
    for case in classical:
        found.append(
            Start(
                f"restored by {case.label}",
                "network",
                ({**kept, "sampler": case.part, "fit": fit("dsm")},),
            )
        )
    for objective, leaves in (
        ("cond-dsm", "conditional network"),
        ("sfbd-omni", "interpolant network"),
    ):
        phase = {**kept, "sampler": classical[0].part, "fit": fit(objective)}
        found.append(
            Start(
                f"restored by {classical[0].label}, fitted by `{objective}`",
                leaves,
                (phase,),
                condition=2,
            )
        )
    return [
        *found,
        Start("another run, a network", "network", prior=("elsewhere", "network")),
        Start("another run, a Gaussian", "Gaussian", prior=("elsewhere", "gaussian")),
        Start("pretrained weights", "built network", prior=("network", "built")),
    ]


def recipe(
    operator: OperatorCase,
    start: Start,
    slot: Any,
    objective: str,
    noise: Any = None,
    prior: str = "",
) -> dict[str, Any]:
    """Returns a recipe as plain data: the start, and a phase `em` of two rounds.

    Args:
        operator: The operator.
        start: What the run begins with.
        slot: The sampler of the phase as in a recipe, or what it learns from without one:
            "observations" or "clean".
        objective: The objective of the phase.
        noise: The noise as in a recipe; Gaussian with sigma 0.1 if it is left out.
        prior: A directory in place of the one that the start names.
    """
    phase: dict[str, Any] = {"name": "em", "rounds": 2, "batch": 8, "fit": fit(objective)}
    if isinstance(slot, dict):
        phase["sampler"] = slot
    else:
        phase["fit"]["on"] = slot
    condition = max(start.condition, CONDITIONS[objective])
    whole = {
        "data": {"name": "synthetic", "size": 4, "train": 8, "test": 2},
        "operator": {"name": operator.name, **operator.options},
        "noise": noise or {"name": "gaussian", "sigma": 0.1},
        "network": {
            "name": "weights" if start.prior[1] == "built" else "mlp",
            "width": 8,
            "depth": 1,
            "condition": condition,
        },
        "clean": 4,
        "phases": [*start.phases, phase],
        "evaluate": {
            "samples": 2,
            "observations": 2,
            "draws": 1,
            "posterior": 0,
            "steps": 2,
            "every": 2,
        },
    }
    return whole | ({"prior": prior or start.prior[0]} if start.prior[0] else {})


# What the prior of another run provides, by its kind on the page.
PROVIDED: dict[str, tuple[str, ...] | None] = {
    "": None,
    "network": ("moments",),
    "gaussian": ("closed form", "moments"),
    "built": (),
}


class Planner:
    """Plans recipes, and remembers the options that it has checked: what takes the time of a plan
    is the same in thousands of them."""

    def __init__(self) -> None:
        self.parsed: dict[str, Any] = {}
        self.signatures: dict[Any, Any] = {}
        start = Start("nothing", "none")
        case = OperatorCase("identity", "", (1, 4, 4), {}, frozenset())
        self.template = config.load_data(recipe(case, start, OBSERVATIONS, "dsm"), "recipe.yaml")

    def __enter__(self) -> "Planner":
        self._patches = [
            mock.patch.object(build, "parse_options", self._parse),
            mock.patch.object(build, "options_of", self._options),
        ]
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        for patch in self._patches:
            patch.stop()

    def _options(self, factory: Any) -> Any:
        if factory not in self.signatures:
            self.signatures[factory] = config.options_of(factory)
        return self.signatures[factory]

    def _parse(
        self, catalog: Catalog, component: Component, given: Any, fail: Any, *folder: Any
    ) -> Any:
        key = f"{component.kind}/{component.name} {json.dumps(given, sort_keys=True)}"
        if key not in self.parsed:
            self.parsed[key] = config.parse_options(catalog, component, given, fail, *folder)
        return dict(self.parsed[key])

    def load(self, whole: dict[str, Any]) -> config.Loaded:
        """Checks a recipe as one that was read from a file."""
        value = json.loads(json.dumps(whole))
        checked = config.Recipe.model_validate(value, context=INLINE)
        return replace(self.template, recipe=checked, value=value)

    def plan(self, whole: dict[str, Any], kind: str | None = None) -> Plan:
        """Plans a recipe; `kind` is what another run is said to have learned, so that no file is
        opened."""
        known = None
        if kind is not None:
            known = Facts((1, 4, 4), (-1.0, 1.0), 8, 2, PROVIDED[kind])
        return make(self.load(whole), CATALOG, known)

    def refusal(self, whole: dict[str, Any], kind: str) -> str:
        """Returns why a recipe is refused, or nothing."""
        try:
            self.plan(whole, kind)
        except InvemError as error:
            return str(error)
        return ""


Matrix = dict[tuple[str, str, str, str], str]


def sampler_groups(cases: list[SamplerCase]) -> dict[str, list[SamplerCase]]:
    """Returns the samplers that need the same, by the label of the first."""
    found: dict[Any, list[SamplerCase]] = {}
    for case in cases:
        found.setdefault(case.group, []).append(case)
    return {alike[0].label: alike for alike in found.values()}


def matrix(planner: Planner, chosen: dict[str, OperatorCase], cases: list[SamplerCase]) -> Matrix:
    """Returns why a combination is refused, or nothing, by (objective, sampler or source, operator
    group, start).

    Args:
        planner: Plans each.
        chosen: The operator that stands for each group.
        cases: The samplers, of which the first of each group stands for it.
    """
    slots: dict[str, Any] = {label: group[0].part for label, group in sampler_groups(cases).items()}
    slots |= {OBSERVATIONS: OBSERVATIONS, CLEAN: CLEAN}
    found = {}
    for group, start, (label, slot), objective in itertools.product(
        chosen, starts(cases), slots.items(), CONDITIONS
    ):
        whole = recipe(chosen[group], start, slot, objective)
        found[objective, label, group, start.label] = planner.refusal(whole, start.prior[1])
    return found


def noises() -> dict[str, dict[str, Any]]:
    """Returns the noises by label: the Gaussian one in three ways, and the others."""
    found: dict[str, dict[str, Any]] = {
        "`gaussian`": {"name": "gaussian", "sigma": 0.1},
        "`sigma: 0`": {"name": "gaussian", "sigma": 0.0},
        "`per: pixel`": {"name": "gaussian", "sigma": [0.05, 0.3], "per": "pixel"},
    }
    return found | {
        f"`{name}`": {"name": name} for name in own(CATALOG, "noises") if name != "gaussian"
    }
