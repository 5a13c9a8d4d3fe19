"""Writes docs/combinations.md: which objectives, samplers, operators, initialisations and noises go
together, as `invem plan` says.

With --check it only says whether the page is what the plan says. tests/test_combinations.py carries
out what is accepted here.
"""

import itertools
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from combinations import (
    CLEAN,
    CONDITIONS,
    OBSERVATIONS,
    STRENGTH,
    Matrix,
    OperatorCase,
    Planner,
    SamplerCase,
    Start,
    groups,
    matrix,
    noises,
    objectives,
    operators,
    recipe,
    representative,
    sampler_groups,
    samplers,
    starts,
)

from invem.capability import CAPABILITIES, meaning

PAGE = Path(__file__).parent.parent / "docs" / "combinations.md"

# What a capability is called on the page, where that is not its name.
SHORT = {
    "closed form": "a Gaussian prior",
    "conditional": "a conditional prior",
    "density": "noise above 0",
    "derivative": "a derivative",
    "interpolant": "an interpolant",
    "measurement": "measurements",
    "one level": "one noise level",
    "signal": "y like x",
    "x": "a sampler",
}


def lacking(refusal: str) -> str:
    """Returns what is lacking, in a few words, from what the plan says.

    Raises:
        AssertionError: If a line names nothing that a person could change, or a sampler is refused
            without saying which would fit.
    """
    found: dict[str, None] = {}
    for line in refusal.splitlines():
        words = _lacking(line)
        assert words, f"no reason in: {line}"
        assert re.search(r"phases\.\d\.fit", line) or re.search(
            r"; these (fit|need none): [\w-]+", line
        ), f"which fit is not said: {line}"
        found |= dict.fromkeys(words)
    return ", ".join(found)


def _lacking(line: str) -> list[str]:
    """Returns what one line of a refusal says is lacking."""
    if "there is no prior to sample with yet" in line:
        return ["a prior"]
    if condition := re.search(r"needs (network\.condition=\d)", line):
        return [condition[1]]
    named = re.search(r"\bneeds (.*?)(?:, which .* does not provide|: )", line)
    if named is None:
        return []
    text, names = named[1], []
    for name in sorted(CAPABILITIES):
        if (words := meaning({name})) in text:
            text = text.replace(words, "")
            names.append(name)
    names += [name for name in text.split(", ") if name]  # those of plugins
    return [SHORT.get(name, name) for name in sorted(names)]


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
        key=shortest,
        default="",
    )


def shortest(words: str) -> tuple[int, int, str]:
    """Orders lists of what is lacking: the shortest first."""
    return words.count(","), len(words), words


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
        rows = [[", ".join(sorted(row[0].split(", "))), *row[1:]] for row in merged(rows)]
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
        lacks = [
            self.least("fit", objective=objective, slot=slot, **parts)
            for slot in ("`prior`", OBSERVATIONS, CLEAN)
        ]
        return found or min(filter(None, lacks), key=shortest, default="")

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
    if not case.sampler.uses_prior:
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
operator, `var` Gaussian noise. The page is written by `python tests/combinations_page.py`.

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
            else f"{PAGE} is not what the plan says; run: python tests/combinations_page.py"
        )
    PAGE.write_text(new, "utf-8")


if __name__ == "__main__":
    main()
