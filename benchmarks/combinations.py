"""Writes docs/combinations.md: which objectives, samplers, operators, initialisations and noises go
together, as `invem plan` says.

With --check it only says whether the page is what the plan says. A plan depends on an operator
through what it provides, and on a sampler through what it needs and whether it uses a prior; those
that are alike are one group, and a small recipe is planned for every combination of groups.
tests/test_combinations.py carries out what is accepted here.
"""

import contextlib
import itertools
import json
import re
import sys
import tempfile
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from invem import InvemError, Objective, PosteriorSampler, Preconditioned, RecipeError, Rng, config
from invem import config as recipes
from invem.config import Catalog, Component, yaml
from invem.errors import MissingExtra
from invem.measurement import Measurement
from invem.planning import plan as plans
from invem.testing import example_options

PAGE = Path(__file__).parent.parent / "docs" / "combinations.md"
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
        return self.sampler.needs, self.sampler.prior

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
    build = CATALOG.find("networks", "mlp").load()
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        return Preconditioned(build(shape, width=width, depth=depth, condition=condition))


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
    name: CATALOG.find("objectives", name).load()().condition for name in own(CATALOG, "objectives")
}


def objectives() -> dict[str, Objective]:
    return {name: CATALOG.find("objectives", name).load()() for name in own(CATALOG, "objectives")}


def fit(objective: str, **more: Any) -> dict[str, Any]:
    return {"objective": objective, "steps": 2, "batch": 4, "moments": 2, **more}


def starts(cases: list[SamplerCase]) -> list[Start]:
    """Returns the ways in which a run can begin."""
    classical = [case for case in cases if not case.sampler.prior]
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


class Planner:
    """Plans recipes, and remembers the options that it has checked: what takes the time of a plan
    is the same in thousands of them."""

    def __init__(self) -> None:
        self.count = 0
        self.parsed: dict[str, Any] = {}
        self.signatures: dict[Any, Any] = {}

    def __enter__(self) -> "Planner":
        self._patches = [
            mock.patch.object(plans, "parse_options", self._parse),
            mock.patch.object(plans, "options_of", self._options),
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

    def _parse(self, catalog: Catalog, component: Component, given: Any, fail: Any) -> Any:
        key = f"{component.kind}/{component.name} {json.dumps(given, sort_keys=True)}"
        if key not in self.parsed:
            self.parsed[key] = config.parse_options(catalog, component, given, fail)
        return dict(self.parsed[key])

    def load(self, whole: dict[str, Any]) -> recipes.Loaded:
        """Checks a recipe as one that was read from a file."""
        value = json.loads(json.dumps(whole))
        model = recipes.Recipe.model_validate(value, context=recipes._INLINE)
        return recipes.Loaded(
            model,
            yaml.Document({}, {(): yaml.Mark(1, 1)}, {}, "recipe.yaml"),
            "recipe.yaml",
            value,
            "",
            {},
        )

    def plan(self, whole: dict[str, Any], kind: str | None = None) -> plans.Plan:
        """Plans a recipe; `kind` is what another run is said to have learned, so that no file is
        opened."""
        self.count += 1
        facts = None if kind is None else plans.Facts((1, 4, 4), (-1.0, 1.0), 8, 2, kind)
        return plans.make(self.load(whole), CATALOG, facts)

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


REASONS = (
    (r"needs ([\w, ]+), which .* does not provide", r"\1"),
    (r"needs a prior in closed form", "a Gaussian prior"),
    (r"fitted by a conditional objective", "a conditional prior"),
    (r"fitted with an interpolant", "an interpolant"),
    (r"observations of the shape of the signals", "y like x"),
    (r"needs the moments of the prior", "moments"),
    (r"needs a prior to begin with", "a prior"),
    (r"there is no prior to sample with yet", "a prior"),
    (r"noise of one level above zero", "one noise level above 0"),
    (r"noise of one level|must have one level", "one noise level"),
    (r"asks for the density of the noise, which is 0", "noise above 0"),
    (r"no derivative to linearise", "a derivative"),
    (r"needs signals to learn from", "a sampler"),
    (r"needs measurements to learn from", "measurements"),
    (r"needs network\.condition=(\d)", r"network.condition=\1"),
)


def lacking(refusal: str) -> str:
    """Returns what is lacking, in a few words, from what the plan says.

    Raises:
        AssertionError: If a line names nothing that a person could change, or a sampler is refused
            without saying which would fit.
    """
    found = {}
    for line in refusal.splitlines():
        words = [
            match.expand(short) for pattern, short in REASONS if (match := re.search(pattern, line))
        ]
        assert words, f"no reason in: {line}"
        assert re.search(r"phases\.\d\.fit", line) or re.search(
            r"; these (fit|need none): [\w-]+", line
        ), f"which fit is not said: {line}"
        found[words[0]] = None
    return ", ".join(found)


def least(refusals: list[tuple[Start, str]], key: str) -> str:
    """Returns "runs", or the least that is lacking in the `sampler` or the `fit` of the phase
    `em`."""
    if any(not text for _, text in refusals):
        return "runs"
    lines = [
        [line for line in text.splitlines() if f"phases.{len(start.phases)}.{key}:" in line]
        for start, text in refusals
    ]
    return min(
        (lacking("\n".join(some)) for some in lines if some),
        key=lambda words: (words.count(","), len(words), words),
        default="",
    )


def merged(rows: list[list[str]], join: str = ", ") -> list[list[str]]:
    """Puts rows that differ in the first cell alone into one."""
    found: dict[tuple[str, ...], list[str]] = {}
    for first, *rest in rows:
        found.setdefault(tuple(rest), []).append(first)
    return [[join.join(firsts), *rest] for rest, firsts in found.items()]


class Tables:
    """The tables of the page, each a list of rows."""

    def __init__(
        self,
        planner: Planner,
        cases: list[OperatorCase],
        samplers: list[SamplerCase],
        found: Matrix,
    ) -> None:
        self.planner, self.samplers, self.found = planner, samplers, found
        self.groups = groups(cases)
        self.chosen = {name: representative(alike) for name, alike in self.groups.items()}
        self.slots = sampler_groups(samplers)
        self.starts = {start.label: start for start in starts(samplers)}
        self.heads = [f"`{name}`" for name in self.groups]

    def of(
        self, objective: str = "", slot: str = "", group: str = "", start: str = ""
    ) -> list[tuple[tuple[str, str, str, str], str]]:
        """Returns the combinations with these parts, and why each is refused."""
        axes = (
            (objective, CONDITIONS),
            (slot, (*self.slots, OBSERVATIONS, CLEAN)),
            (group, self.groups),
            (start, self.starts),
        )
        return [
            (key, self.found[key])
            for key in itertools.product(*((one,) if one else every for one, every in axes))
        ]

    def least(self, key: str, **parts: str) -> str:
        return least([(self.starts[found[3]], text) for found, text in self.of(**parts)], key)

    def operators(self) -> list[list[str]]:
        rows = []
        for name, alike in self.groups.items():
            labels: dict[str, list[str]] = {}
            for case in alike:
                labels.setdefault(case.name, []).append(case.label)
            words = [
                f"`{case}`" + ("" if "" in found else f" ({found[0]})")
                for case, found in labels.items()
            ]
            rows.append(
                [
                    f"`{name}`",
                    ", ".join(f"`{n}`" for n in STRENGTH if n in alike[0].provides),
                    ", ".join(words),
                ]
            )
        return [["group", "provides", "operators"], *rows]

    def samplers_by_operators(self) -> list[list[str]]:
        rows = []
        for label, alike in self.slots.items():
            start = max(
                self.starts,
                key=lambda start: sum(not text for _, text in self.of(slot=label, start=start)),
            )
            cells = [
                self.least("sampler", slot=label, group=group, start=start) for group in self.groups
            ]
            rows.append([", ".join(case.label for case in alike), prior_of(alike[0]), *cells])
        return [
            ["samplers", "prior", *self.heads],
            *sorted(rows, key=lambda row: (-row.count("runs"), row)),
        ]

    def starts_by_operators(self) -> list[list[str]]:
        rows = []
        for label, start in self.starts.items():
            cells = []
            for name in self.groups:
                texts = [text for _, text in self.of(group=name, start=label)]
                own = [
                    [line for line in text.splitlines() if "phases.0." in line] for text in texts
                ]
                cells.append(
                    "runs"
                    if "" in texts
                    else min((lacking("\n".join(lines)) for lines in own if lines), key=len)
                )
            rows.append([label, start.leaves, *cells])
        return [["a run begins with", "prior", *self.heads], *rows]

    def samplers_by_starts(self) -> list[list[str]]:
        columns: dict[str, list[str]] = {}
        for label, alike in sorted(
            self.slots.items(), key=lambda slot: PRIORS.index(prior_of(slot[1][0]))
        ):
            cells = []
            for start in self.starts:
                able = {key[0] for key, text in self.of(slot=label, start=start) if not text}
                usual = {key[0] for key, text in self.of(slot="`prior`", start=start) if not text}
                some = (
                    able
                    if {"closed form", "conditional", "interpolant"} & alike[0].group[0]
                    and able < usual
                    else set()
                )
                with_some = "with " + ", ".join(f"`{name}`" for name in sorted(some))
                cells.append(with_some if some else self.least("sampler", slot=label, start=start))
            assert columns.setdefault(prior_of(alike[0]), cells) == cells, f"{label}: {cells}"
        rows = [
            [start, *(cells[i] for cells in columns.values())]
            for i, start in enumerate(self.starts)
        ]
        return [["a run begins with", *columns], *merged(rows, "; ")]

    def _letters(self, objective: str, **parts: str) -> str:
        slots = {key[1] for key, text in self.of(objective=objective, **parts) if not text}
        letters = {
            "D": slots - {OBSERVATIONS, CLEAN},
            "O": slots & {OBSERVATIONS},
            "C": slots & {CLEAN},
        }
        found = " ".join(letter for letter, able in letters.items() if able)
        return found or next(
            filter(
                None,
                (
                    self.least("fit", objective=objective, slot=slot, **parts)
                    for slot in ("`prior`", CLEAN)
                ),
            ),
            "",
        )

    def objectives_by_operators(self) -> list[list[str]]:
        rows = [
            [f"`{name}`", *(self._letters(name, group=group) for group in self.groups)]
            for name in CONDITIONS
        ]
        return [["objective", *self.heads], *merged(rows)]

    def objectives_by_starts(self) -> list[list[str]]:
        rows = [
            [start, *(self._letters(name, start=start) for name in CONDITIONS)]
            for start in self.starts
        ]
        return [["a run begins with", *(f"`{name}`" for name in CONDITIONS)], *merged(rows, "; ")]

    def samplers_by_noises(self) -> list[list[str]]:
        rows = []
        for case in self.samplers:
            slot = next(label for label, alike in self.slots.items() if case in alike)
            key = min(
                (key for key in self._without_noise() if key[1] == slot),
                key=lambda key: key[0] != "dsm",
            )
            rows.append(
                [case.label, *(self._noisy(key, case.part, noise) for noise in noises().values())]
            )
        return self._by_noise("samplers", rows)

    def objectives_by_noises(self) -> list[list[str]]:
        rows = []
        for name in CONDITIONS:
            keys = {
                key[1]: key
                for key in reversed(self._without_noise())
                if key[0] == name and key[1] in ("`prior`", OBSERVATIONS)
            }
            cells = []
            for noise in noises().values():
                found = {
                    slot: self._noisy(key, self._part(slot), noise) for slot, key in keys.items()
                }
                runs = [
                    letter
                    for letter, slot in (("D", "`prior`"), ("O", OBSERVATIONS))
                    if found.get(slot) == "runs"
                ]
                cells.append(" ".join(runs) or min(found.values()))
            rows.append([f"`{name}`", *cells])
        return self._by_noise("objective", rows)

    def _part(self, slot: str) -> Any:
        return self.slots[slot][0].part if slot in self.slots else slot

    def _without_noise(self) -> list[tuple[str, str, str, str]]:
        """Returns the combinations that are accepted and whose beginnings ask nothing of the
        noise."""
        able = {
            label
            for label, start in self.starts.items()
            if start.leaves != "none" and "gaussian-moments" not in str(start.phases)
        }
        return [key for key, text in self.found.items() if not text and key[3] in able]

    def _noisy(self, key: tuple[str, str, str, str], slot: Any, noise: dict[str, Any]) -> str:
        objective, _, group, start = key
        whole = recipe(self.chosen[group], self.starts[start], slot, objective, noise)
        return lacking(self.planner.refusal(whole, self.starts[start].prior[1])) or "runs"

    def _by_noise(self, head: str, rows: list[list[str]]) -> list[list[str]]:
        names, *cells = zip(*rows, strict=True)
        heads, *rest = zip(
            *merged([[label, *column] for label, column in zip(noises(), cells, strict=True)]),
            strict=True,
        )
        return [
            [head, *heads],
            *merged([[name, *row] for name, row in zip(names, rest, strict=True)]),
        ]


PRIORS = ("none", "any", "with moments", "Gaussian", "conditional", "interpolant")


def prior_of(case: SamplerCase) -> str:
    """Returns what a sampler asks of the prior."""
    if not case.sampler.prior:
        return "none"
    words = {
        "closed form": "Gaussian",
        "conditional": "conditional",
        "interpolant": "interpolant",
        "moments": "with moments",
    }
    found = next((word for need, word in words.items() if need in case.group[0]), "any")
    assert found in PRIORS
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


def table(rows: list[list[str]]) -> str:
    head, *rest = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *rest])


def text(
    planner: Planner, cases: list[OperatorCase], samplers: list[SamplerCase], found: Matrix
) -> str:
    """Returns the page."""
    make = Tables(planner, cases, samplers, found)
    accepted = sum(not reason for reason in found.values())
    needs = {name: objective.needs for name, objective in objectives().items()}
    measured = ", ".join(
        f"`{name}`" for name in needs if "measurement" in needs[name] and "x" not in needs[name]
    )
    given = ", ".join(
        f"`{name}`: {condition}" for name, condition in CONDITIONS.items() if condition
    )
    return f"""# Combinations

Which objective, sampler, operator, initialisation and noise go together. A sampler or an
objective declares what it needs; an operator, a noise and a prior say what they provide; `invem
plan` compares them before anything is computed. For one recipe it says the same as this page, and
which samplers fit instead:

```bash
invem plan recipes/blur.yaml phases.em.sampler=sfbd
```

Operators that provide the same are one group here, and so are samplers that need the same. A
recipe of 8 images of 4×4 is planned for every combination of groups: a beginning, then two rounds
of a phase with a sampler, or without one, and an objective. Of {len(found):,} combinations
{accepted:,} are accepted. `tests/test_combinations.py` holds each refusal to naming what is
lacking, and carries out what is accepted: every triple of objective, sampler group and operator
group, every pair with a beginning, and by themselves every sampler and every objective on every
operator and every noise.

*runs* is what the plan accepts; any other word is what is lacking. `adjoint` is a linear
operator, `var` Gaussian noise. The page is written by `python benchmarks/combinations.py`.

## Operators

{table(make.operators())}

In brackets: the option, or the shape of the signals, with which an operator is in another group
than by default, or the only one that it takes. `chain`, `stack` and `sum` are linear where all of
their parts are. Operators of other libraries (`deepinv`) count by what they provide.

## Samplers and operators

With Gaussian noise. *prior* is what a sampler asks of the prior: none (a classical restoration),
any, one with moments (all that a phase has fitted), a Gaussian, a conditional network, or one
with an interpolant (`scsi`, `sfbd-omni`).

{table(make.samplers_by_operators())}

## Samplers and beginnings

The columns are what samplers ask of the prior. In a phase of several rounds the prior is that of
the beginning in the first alone, so that what the phase itself fits counts too: a sampler that
asks for a Gaussian, a conditional network or an interpolant runs *with* objectives that fit one.

{table(make.samplers_by_starts())}

## Beginnings and operators

With Gaussian noise. *prior* is what the beginning leaves.

{table(make.starts_by_operators())}

## Objectives and operators

D: in a phase with a sampler. O: in a phase without one, from observations. C: from granted clean
images alone (`on: clean`).

{table(make.objectives_by_operators())}

In a phase with a sampler {measured} learn from the observations all the same; the draws give the
moments of the prior.

## Objectives and beginnings

A run that begins with nothing has D with samplers that ask for no prior.

{table(make.objectives_by_starts())}

An objective that gives the network a condition ({given}) needs a network with as many tensors as
`condition`, so that one network cannot serve objectives that differ in it; a phase may have a
`network` of its own.

## Noise

On an operator with which the sampler or the objective runs otherwise. `sigma: 0` and `per: pixel`
are options of `gaussian`.

{table(make.samplers_by_noises())}

{table(make.objectives_by_noises())}
"""


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, Planner() as planner:
        cases, every = operators(Path(folder)), samplers()
        chosen = {name: representative(alike) for name, alike in groups(cases).items()}
        new = text(planner, cases, every, matrix(planner, chosen, every))
    if "--check" in sys.argv:
        sys.exit(
            0
            if PAGE.read_text("utf-8") == new
            else f"{PAGE} is not what the plan says; run: python benchmarks/combinations.py"
        )
    PAGE.write_text(new, "utf-8")


if __name__ == "__main__":
    main()
