"""A nonlinear response: gamma."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt
from torch import Generator, Tensor

from invem import Operator


@dataclass(frozen=True, eq=False)
class Gamma(Operator):
    """A(x) = 2 u^gamma - 1 with u = (x + 1)/2.

    u is clipped to [0.0001, 1], so that the derivative stays finite.

    Attributes:
        gamma: The exponent.
    """

    local: ClassVar[bool] = True

    gamma: float

    def __call__(self, x: Tensor) -> Tensor:
        return 2 * ((x + 1) / 2).clamp(1e-4, 1) ** self.gamma - 1

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        u = (x + 1) / 2
        return v * self.gamma * u.clamp(1e-4, 1) ** (self.gamma - 1) * ((u >= 1e-4) & (u <= 1))


def gamma(
    n: int, shape: tuple[int, ...], rng: Generator, *, gamma: Annotated[float, Gt(0)] = 2.2
) -> Gamma:
    """Measures each image through a power law, as a display or an old sensor does.

    Args:
        n: The number of observations; the operator is the same for all.
        shape: The shape of one signal, values in [-1, 1].
        rng: Not used.
        gamma: The exponent.
    """
    return Gamma(shape, gamma)
