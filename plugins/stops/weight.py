"""The rule of EMDiffusion: the weight of the likelihood says when the prior is good enough."""

from collections.abc import Sequence
from dataclasses import dataclass

from invem.stopping import FinishedRound, StoppingRule, Watched


@dataclass(frozen=True, kw_only=True)
class LikelihoodWeight(StoppingRule):
    """Ends a phase once the weight of the likelihood, which the sampler tunes before each E-step,
    is below 1 or has not decreased for 3 rounds (Bai et al. 2024, arXiv 2407.01014, section 4.3).

    Below 1 is said of the likelihood's own weight (`guidance: likelihood`). A step along the
    gradient of a norm has no such scale.
    """

    def refuses(self, phase: Watched) -> str | None:
        if getattr(phase.sampler, "weight", None) == "auto":
            return None
        return "it follows the weight that the sampler tunes: dps with weight: auto"

    def __call__(self, rounds: Sequence[FinishedRound]) -> str | None:
        if not rounds or any("weight" not in done.options for done in rounds):
            return None
        found = [float(done.options["weight"]) for done in rounds]
        if rounds[-1].options.get("guidance") == "likelihood" and found[-1] < 1:
            return f"the weight of the likelihood is {found[-1]:g}, below 1"
        if len(found) > 3 and min(found[-3:]) >= min(found[:-3]):
            return "the weight of the likelihood has not decreased for 3 rounds"
        return None
