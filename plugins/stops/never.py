"""The rule that lets a phase have all of its rounds."""

from collections.abc import Sequence
from dataclasses import dataclass

from invem.stopping import FinishedRound, StoppingRule


@dataclass(frozen=True, kw_only=True)
class Never(StoppingRule):
    """The phase has all of its rounds."""

    def __call__(self, rounds: Sequence[FinishedRound]) -> str | None:
        return None
