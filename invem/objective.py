"""M-step objectives: what the denoiser is fitted to."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

from torch import Tensor

from invem.batched import Rng
from invem.denoiser import Denoiser
from invem.errors import Unsupported
from invem.measurement import Example

__all__ = ["Objective"]


class Objective(ABC):
    """A training loss, or a closed-form fit. A concrete objective overrides `loss`, `solve`, or both.

    Attributes:
        needs: "x" if it learns from signals (posterior draws or granted clean images), "measurement" if from measurements, and the
            capabilities that it calls on those.
    """

    @property
    @abstractmethod
    def needs(self) -> frozenset[str]:
        """A class attribute, or a property where it depends on the options."""

    def loss(self, denoiser: Denoiser, batch: Example, rng: Rng) -> Tensor:
        """Returns one loss a sample, shape (B,). rng: B streams."""
        raise Unsupported(f"{type(self).__name__} has no loss: it is solved in closed form")

    def solve(self, denoiser: Denoiser, batches: Callable[[], Iterable[tuple[Example, Rng]]]) -> Denoiser:
        """Returns the denoiser that is best in closed form. `batches()` passes once over the data."""
        raise Unsupported(f"{type(self).__name__} has no closed form: it is trained by its loss")

    @property
    def closed_form(self) -> bool:
        """Whether `solve` is to be used."""
        return type(self).solve is not Objective.solve
