"""Metrics of an evaluation, and their inputs."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from invem.errors import Unsupported
from invem.measurement import Example, Measurement
from invem.prior import Prior

__all__ = ["Metric", "Outcome"]


@dataclass(frozen=True)
class Outcome:
    """The inputs of the metrics. A missing one is None, and the plan refuses metrics that need it.

    Attributes:
        truth: The clean signals of N held-out observations, (N, *shape).
        draws: K posterior draws for each of them, (N, K, *shape).
        measurement: The N held-out measurements.
        samples: Unconditional samples of the prior, (M, *shape).
        reference: Clean signals for comparisons of distributions, never seen in training, (R,
            *shape).
        observed: Training observations, for comparisons that need no clean signal.
        simulated: Measurements of `samples` with operators and noise drawn anew, (M, ...): the
            observations under the prior.
        resimulated: One posterior draw for each of the first n observations of `simulated`, by the
            sampler of the restorations, (n, *shape).
        trained: Signals that the prior was fitted to (posterior draws), (T, *shape).
        prior: The prior.
        mean: The posterior mean of each held-out observation, if the sampler knows it without
            draws, (N, *shape).
        range: The lowest and highest value of a signal.
    """

    range: tuple[float, float]
    truth: Tensor | None = None
    draws: Tensor | None = None
    measurement: Measurement | None = None
    samples: Tensor | None = None
    reference: Tensor | None = None
    observed: Measurement | None = None
    simulated: Measurement | None = None
    resimulated: Tensor | None = None
    trained: Tensor | None = None
    prior: Prior | None = None
    mean: Tensor | None = None

    def estimate(self) -> Tensor:
        """Returns the posterior mean: the exact one if it is known, else the mean of the draws.

        The shape is (N, *shape).

        Raises:
            Unsupported: If there are no draws.
        """
        if self.mean is not None:
            return self.mean
        if self.draws is None:
            raise Unsupported("a posterior mean needs posterior draws")
        return self.draws.mean(1)


class Metric(ABC):
    """One number per held-out observation, or one for a whole set.

    Attributes:
        needs: The fields of `Outcome` that it reads; "labels" if `prepare` needs labelled images,
            "image" if the signals must be images, "var" if the noise must be Gaussian and not zero,
            "several draws" if one draw per observation is not enough.
        unit: The unit in tables, such as "dB".
        higher_is_better: Whether larger values are better, if there is no `target`; None if
            neither direction is.
        default: Whether it is computed where a recipe names no metrics and has what it needs.
        below, above: What a value well below or above `target` says, as part of a sentence in the
            report; empty if nothing more than the number.
        untouched: What the observations as they are score by definition, if that is known.
    """

    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool | None] = False
    default: ClassVar[bool] = False
    below: ClassVar[str] = ""
    above: ClassVar[str] = ""
    untouched: ClassVar[float | None] = None

    @property
    @abstractmethod
    def needs(self) -> frozenset[str]:
        """A class attribute, or a property if it depends on the options."""

    @property
    def least(self) -> Mapping[str, int]:
        """The least number of entries of the fields of `Outcome` that it reads, by their names.

        "training" is the number of signals that `prepare` is given. The plan refuses a recipe that
        has fewer. One is enough where nothing is said.
        """
        return {}

    @property
    def target(self) -> float | None:
        """The perfect value of a metric that can err on both sides, such as a coverage; or None."""
        return None

    @abstractmethod
    def __call__(self, outcome: Outcome, state: Mapping[str, Tensor]) -> Tensor:
        """Returns one value per observation (N,), per sample (M,), or for the set ()."""

    def prepare(self, training: Example) -> dict[str, Tensor]:
        """Returns tensors that are computed and stored once per run, such as a feature network.

        training: clean training images.
        """
        return {}
