"""The whole of what a sampler may know: y, A and the noise law."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from invem.batched import Batched
from invem.noise import NoiseModel
from invem.operator import Operator

__all__ = ["Example", "Measurement"]


@dataclass(frozen=True, eq=False)
class Measurement(Batched):
    """A batch of B likelihoods p(y | x). The truth is not in it, so nothing that is given one can look.

    Attributes:
        y: The observations, shape (B, *measurement shape).
        A: The forward operators.
        noise: The noise laws.
    """

    y: Tensor
    A: Operator
    noise: NoiseModel

    def __len__(self) -> int:
        return len(self.y)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one signal."""
        return self.A.shape

    @property
    def provides(self) -> frozenset[str]:
        """The capabilities of the operator and of the noise together."""
        return self.A.provides | self.noise.provides

    def log_prob(self, x: Tensor) -> Tensor:
        """Returns log p(y | x), shape (B,). x: (B, *shape)."""
        return self.noise.log_prob(self.y, self.A(x))

    def score(self, x: Tensor) -> Tensor:
        """Returns the gradient of log p(y | x) with respect to x, shape (B, *shape)."""
        with torch.enable_grad():
            clean = self.A(x).detach().requires_grad_()
            (grad,) = torch.autograd.grad(self.noise.log_prob(self.y, clean).sum(), clean)
        return self.A.vjp(x, grad)


class Example(NamedTuple):
    """What an objective learns from: a batch of signals, of measurements, or of both.

    Attributes:
        x: Signals (posterior draws, or clean images where the recipe grants some), shape (B, *shape); or None.
        measurement: What was measured of each; or None.
        label: Class labels of the signals, shape (B,); only data sets that have them, only for evaluation.
    """

    x: Tensor | None
    measurement: Measurement | None = None
    label: Tensor | None = None
