"""Random inpainting: each pixel is measured with some probability."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Generator, Tensor

from invem import SVD, LinearOperator


@dataclass(frozen=True, eq=False)
class Mask(LinearOperator):
    """A x = mask * x. A hidden pixel measures zero plus noise.

    Attributes:
        mask: 1 where a pixel is measured and 0 where it is hidden, shape (B, 1 or C, H, W), or (B, d) for vectors.
    """

    mask: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return self.mask * x

    def adjoint(self, y: Tensor) -> Tensor:
        return self.mask * y

    def pinv(self, y: Tensor) -> Tensor:
        return self.mask * y

    def svd(self) -> SVD:
        def flat(x: Tensor) -> Tensor:
            return x.flatten(1)

        def whole(z: Tensor) -> Tensor:
            return z.reshape(len(z), *self.shape)

        return SVD(self.mask.expand(-1, *self.shape).flatten(1), whole, flat, whole, flat)


def random_mask(
    n: int,
    shape: tuple[int, ...],
    rng: Generator,
    *,
    keep: Annotated[float, Interval(gt=0, le=1)] = 0.4,
    per: Literal["pixel", "channel"] = "pixel",
) -> Mask:
    """Measures each pixel with probability `keep`, a new mask for each observation.

    Args:
        n: The number of observations.
        shape: The shape of one signal.
        rng: The source of the masks.
        keep: The probability that a pixel is measured.
        per: Whether the channels of a pixel are hidden together ("pixel") or one by one ("channel").
    """
    drawn = (1, *shape[1:]) if per == "pixel" and len(shape) > 1 else shape
    return Mask(shape, (torch.rand(n, *drawn, generator=rng) < keep).float())
