"""The rule of EMDiffusion: the tuned weight of the likelihood ends the phase."""

from collections.abc import Sequence
from dataclasses import dataclass

from invem.stopping import FinishedRound, StoppingRule, Watched


@dataclass(frozen=True, kw_only=True)
class LikelihoodWeight(StoppingRule):
    """Ends a phase once the tuned weight of the likelihood is below 1 or stops decreasing.

    The sampler tunes it before each E-step. It stops if it has not decreased for 3 rounds (Bai et
    al. 2024, arXiv 2407.01014, section 4.3). "Below 1" applies to a weight of the likelihood itself
    (`guidance: likelihood`): a step along the gradient of a norm has no such scale.
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
