"""The rule that never ends a phase early."""

from collections.abc import Sequence
from dataclasses import dataclass

from invem.stopping import FinishedRound, StoppingRule


@dataclass(frozen=True, kw_only=True)
class Never(StoppingRule):
    """Never ends a phase before its last round."""

    def __call__(self, rounds: Sequence[FinishedRound]) -> str | None:
        return None
