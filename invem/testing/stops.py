"""What every stopping rule must do."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from invem.config import Catalog
from invem.errors import InvemError
from invem.stopping import FinishedRound, StoppingRule, Watched
from invem.testing.base import Factory, Kind, example_options

__all__ = ["STOPS"]

# The value of every metric and of every option of the sampler, round by round.
_HISTORIES = ((8.0, 4.0, 2.0, 1.0), (2.0, 2.0, 2.0, 2.0, 2.0), (1.0, 2.0, 4.0, 8.0))


class _AnyOption(Mapping[str, Any]):
    """Options of a sampler that has every option which a rule may follow, all of one value."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __getitem__(self, name: str) -> float:
        return self.value

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


@dataclass
class _Case:
    """A stopping rule with one set of options.

    Attributes:
        factory: Makes the rule.
        options: The options.
        metrics: The names of the metrics that there are.
    """

    factory: Factory
    options: dict[str, Any]
    metrics: list[str]

    def rule(self) -> StoppingRule:
        made: StoppingRule = self.factory(**self.options)
        return made

    def rounds(self, values: Sequence[float]) -> list[FinishedRound]:
        """Returns finished rounds in which each metric and each option has these values."""
        return [
            FinishedRound(
                _AnyOption(value),
                {name: {"value": value, "target": 1.0, "sem": 0.1} for name in self.metrics},
            )
            for value in values
        ]


def _cases(factory: Factory, folder: Path) -> Iterator[tuple[str, _Case]]:
    metrics = sorted(Catalog.load().offers["metrics"])
    for label, options in example_options(factory, (), folder):
        yield label, _Case(factory, options, metrics)


STOPS = Kind(
    "stops",
    "Tried on phases without evidence, and on histories in which every metric falls, stays or"
    " rises.",
    _cases,
)


@STOPS.contract("no evidence is no reason", tolerance=0.0)
def no_evidence(case: _Case) -> float:
    """Without rounds, without an evaluation, without metrics or without options of a sampler, it
    does not end the phase, or says what it lacks in an error of invem; the number of times that it
    does end it."""
    nothing = FinishedRound({}, None)
    ended = 0
    for rounds in ([], [nothing], [nothing] * 6, [FinishedRound({}, {})] * 6):
        try:
            ended += case.rule()(rounds) is not None
        except InvemError as error:
            ended += not str(error)
    return float(ended)


@STOPS.contract("same answer twice", tolerance=0.0)
def same_answer_twice(case: _Case) -> float:
    """The answer is None or a sentence, and depends on the rounds alone: not on what was asked
    before, so that a run that is gone on with ends where it would have ended."""
    wrong, used = 0, case.rule()
    for values in _HISTORIES:
        rounds = case.rounds(values)
        lengths = range(1, len(values) + 1)
        kept = copy.deepcopy(rounds)
        fresh = [case.rule()(rounds[:n]) for n in lengths]
        again = [used(rounds[:n]) for n in reversed(lengths)][::-1]
        wrong += fresh != again or rounds != kept
        wrong += any(answer is not None and not _is_sentence(answer) for answer in fresh)
    return float(wrong)


@STOPS.contract("refuses in words", tolerance=0.0)
def refuses_in_words(case: _Case) -> float:
    """`refuses` returns None or a sentence for a phase that has nothing to follow, and the same
    again."""
    nothing = Watched(None, {}, False)
    one, two = (case.rule().refuses(nothing) for _ in range(2))
    return float(one != two or (one is not None and not _is_sentence(one)))


def _is_sentence(answer: object) -> bool:
    return isinstance(answer, str) and bool(answer.strip()) and "\n" not in answer
