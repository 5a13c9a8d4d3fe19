"""Capabilities that samplers, objectives and metrics may need, each with a sentence.

A component names its requirements in `needs`. Operators, noises, measurements and priors name
theirs in `provides`. `invem plan` compares the two. A plugin may provide and need capabilities
under any other name.
"""

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["CAPABILITIES", "Capability", "meaning"]


@dataclass(frozen=True)
class Capability:
    """A property that a component can require.

    Attributes:
        name: The word in `needs` and `provides`.
        meaning: Its description, as it reads in a sentence after "needs".
        advice: How to provide it.
    """

    name: str
    meaning: str
    advice: str = ""


_ALL = (
    # Of the operator.
    Capability("vjp", "an operator that can be differentiated"),
    Capability("adjoint", "a linear operator"),
    Capability("pinv", "an operator with a pseudo-inverse"),
    Capability("svd", "an operator with a singular value decomposition"),
    Capability("mask", "an operator that is a mask"),
    Capability("derivative", "an operator with a true derivative, not a substitute for one"),
    # Of the noise.
    Capability("var", "noise of a known variance"),
    Capability("normal", "Gaussian noise"),
    Capability("density", "noise with a density", "a noise level above 0"),
    Capability("one level", "noise of one level for all entries of an observation"),
    # Of both.
    Capability("identity", "an operator that changes nothing"),
    Capability("signal", "observations of the shape of the signals, or a linear operator"),
    # Of the prior.
    Capability(
        "moments",
        "a prior whose mean and covariance are known",
        "a phase before it must learn one; a network as it was built has none",
    ),
    Capability(
        "closed form",
        "a prior in closed form, a Gaussian or a mixture",
        "a phase before it must fit one in closed form",
    ),
    Capability(
        "conditional",
        "a prior that predicts E[x | x_t, y]",
        "a phase before it must fit one by a conditional objective",
    ),
    # Of the examples that an objective is given.
    Capability(
        "x",
        "signals to learn from",
        "add a sampler to the phase; what needs no measurement can learn `on: clean` images",
    ),
    Capability(
        "measurement", "measurements to learn from", "clean images come without measurements"
    ),
    # Of the evaluation.
    Capability("truth", "the clean signals of the held-out observations", "`data` that has them"),
    Capability("reference", "clean signals to compare with", "`data` that has them"),
    Capability("labels", "labelled clean signals", "`data` that has them"),
    Capability("image", "signals that are images, of shape (channels, height, width)"),
    Capability("draws", "held-out restorations", "evaluate.observations, and a sampler"),
    Capability("several draws", "several draws per observation", "evaluate.draws of 2 or more"),
    Capability("samples", "unconditional samples", "evaluate.samples of 2 or more"),
    Capability("observed", "training observations", "evaluate.samples of 2 or more"),
    Capability("simulated", "simulated observations", "evaluate.samples of 2 or more"),
    Capability(
        "resimulated", "restorations of simulated observations", "evaluate.samples, and a sampler"
    ),
    Capability("trained", "the signals that the prior was fitted to", "a phase that fits signals"),
    Capability("prior", "a prior", "a phase with a fit"),
)

CAPABILITIES = {capability.name: capability for capability in _ALL}
"""Every capability that invem itself knows, by name."""


def meaning(names: Iterable[str]) -> str:
    """Returns the requirements in words: "Gaussian noise (var), a linear operator (adjoint)".

    A name that is not in `CAPABILITIES` stands for itself.
    """
    known = (CAPABILITIES.get(name, Capability(name, name)) for name in sorted(names))
    words = (c.meaning if c.meaning == c.name else f"{c.meaning} ({c.name})" for c in known)
    return ", ".join(words) or "nothing"
