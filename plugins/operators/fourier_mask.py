"""Accelerated single-coil MRI: sampling in Fourier space."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Interval
from torch import Generator, Tensor

from invem import LinearOperator, RecipeError, examples
from invem.linear import inverse_weights
from invem.operator import SVD, image_shape

from ._kspace import fourier, fourier_adjoint, kspace_mask


@dataclass(frozen=True, eq=False)
class FourierMask(LinearOperator):
    """A x = mask * F x for complex images, with real and imaginary part as two channels.

    F is orthonormal, with the zero frequency at the centre.

    Attributes:
        mask: The weight of each frequency, 0 where it is not measured, shape (B, 1, H, W).
    """

    mask: Tensor

    @property
    def seen(self) -> Tensor:
        return (self.mask != 0).to(self.mask.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return self.mask * fourier(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return fourier_adjoint(self.mask * y)

    def pinv(self, y: Tensor) -> Tensor:
        return fourier_adjoint(inverse_weights(self.mask) * y)

    def svd(self) -> SVD:
        def whole(z: Tensor) -> Tensor:
            return z.reshape(len(z), *self.shape)

        sign = torch.where(self.mask < 0, -1, 1).to(self.mask.dtype)
        return SVD(
            self.mask.abs().expand(-1, *self.shape).flatten(1),
            lambda z: sign * whole(z),
            lambda y: (sign * y).flatten(1),
            lambda z: fourier_adjoint(whole(z)),
            lambda x: fourier(x).flatten(1),
        )


@dataclass(frozen=True, eq=False)
class RealFourierMask(LinearOperator):
    """A x = mask * F x for real images of one channel; y is complex, as two channels.

    Attributes:
        mask: 1 where a frequency is measured, shape (B, 1, H, W).
    """

    mask: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return self.mask * fourier(torch.cat([x, torch.zeros_like(x)], 1))

    def adjoint(self, y: Tensor) -> Tensor:
        return fourier_adjoint(self.mask * y)[:, :1]


@examples({"pattern": "equispaced", "acceleration": 2}, {"lines": "points", "pattern": "variable"})
def fourier_mask(
    n: int,
    shape: tuple[int, ...],
    rng: Generator,
    *,
    acceleration: Annotated[int, Ge(1)] = 4,
    centre: Annotated[float, Interval(ge=0, le=1)] = 0.08,
    pattern: Literal["random", "equispaced", "variable"] = "random",
    lines: Literal["columns", "points"] = "columns",
) -> LinearOperator:
    """Measures a part of the Fourier coefficients of each image (Cartesian single-coil MRI).

    Args:
        n: The number of observations.
        shape: (2, H, W) for complex images, real and imaginary part; (1, H, W) for real ones.
        rng: Draws a mask per observation.
        acceleration: One over the fraction of the frequencies that is measured.
        centre: The fraction of the frequencies that is always measured, at the centre.
        pattern: How the others are sampled: at "random", "equispaced" from a random offset, or with
            a "variable" density that falls with the square of the distance from the centre.
        lines: Whether whole "columns" or single "points" are sampled.

    Raises:
        RecipeError: If the images have more than two channels, or points are to be equispaced.
    """
    channels, height, width = image_shape("fourier-mask", shape)
    if channels > 2:
        raise RecipeError(
            "fourier-mask needs images of 1 channel (real) or 2 (real and imaginary part), got"
            f" {channels}"
        )
    mask = kspace_mask(
        "fourier-mask", n, (height, width), rng, acceleration, centre, pattern, lines
    )
    return FourierMask(shape, mask) if channels == 2 else RealFourierMask(shape, mask)
