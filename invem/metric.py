"""Metrics: what an evaluation measures."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from invem.measurement import Example, Measurement
from invem.prior import Prior

__all__ = ["Metric", "Outcome"]


@dataclass(frozen=True)
class Outcome:
    """What there is to judge. A part that is missing is None, and the plan refuses a metric that
    needs it.

    Attributes:
        truth: The clean signals of N held-out observations, (N, *shape).
        draws: K posterior draws for each of them, (N, K, *shape).
        measurement: The N held-out measurements.
        samples: Unconditional samples of the prior, (M, *shape).
        reference: Clean signals to compare a distribution with, never seen in training, (R,
            *shape).
        observed: Training observations, for comparisons that need no clean signal.
        simulated: The samples, measured by operators and noise drawn anew: what observations the
            prior stands for. As many as `samples`.
        resimulated: One posterior draw given each of the first n observations of `simulated`, by
            the sampler that restores, (n, *shape).
        trained: Signals that the prior was fitted to (posterior draws), (T, *shape).
        prior: The prior.
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


class Metric(ABC):
    """One number for each held-out observation, or one for a whole set.

    Attributes:
        needs: The parts of `Outcome` that it reads; "labels" if `prepare` needs labelled images,
            "image" if the signals must be images, "var" if the noise must be Gaussian and not zero,
            "several draws" if one of each observation is not enough.
        unit: The unit that a table prints, such as "dB".
        higher_is_better: Which way is up, where there is no `target`.
    """

    unit: ClassVar[str] = ""
    higher_is_better: ClassVar[bool] = False

    @property
    @abstractmethod
    def needs(self) -> frozenset[str]:
        """A class attribute, or a property where it depends on the options."""

    @property
    def target(self) -> float | None:
        """The value of a perfect outcome where a value may miss it on both sides, such as the level
        of a coverage; None elsewhere."""
        return None

    @abstractmethod
    def __call__(self, outcome: Outcome, state: Mapping[str, Tensor]) -> Tensor:
        """Returns one value per observation, shape (N,), or per sample, shape (M,), or one for the
        set, shape ()."""

    def prepare(self, training: Example) -> dict[str, Tensor]:
        """Returns tensors to compute once per run and keep with it, such as a feature network.
        training: clean training images."""
        return {}
