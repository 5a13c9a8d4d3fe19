"""High dynamic range: the sensor saturates."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Gt
from torch import Generator, Tensor

from invem import Operator


@dataclass(frozen=True, eq=False)
class Clip(Operator):
    """A(x) = min(max(gain x, -1), 1).

    Attributes:
        gain: The amplification before clipping.
    """

    local: ClassVar[bool] = True

    gain: float

    def __call__(self, x: Tensor) -> Tensor:
        return (self.gain * x).clamp(-1, 1)

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return self.gain * v * ((self.gain * x).abs() <= 1)


def clip(
    n: int, shape: tuple[int, ...], rng: Generator, *, gain: Annotated[float, Gt(0)] = 2.0
) -> Clip:
    """Amplifies each signal and clips it to [-1, 1].

    Args:
        n: The number of observations; the operator is the same for all.
        shape: The shape of one signal.
        rng: Not used.
        gain: The amplification.
    """
    return Clip(shape, gain)
