"""Quantisation of cosine coefficients, as JPEG does."""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Generator, Tensor

from invem import Operator, RecipeError, shared
from invem.operator import image_shape

LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)


@dataclass(frozen=True, eq=False)
class Quantised(Operator):
    """A(x) = D^T q round(D x / q) on blocks of 8 x 8 pixels, D the orthonormal cosine transform.

    The derivative of rounding is zero almost everywhere and useless. `vjp` takes it to be one
    ("straight through"), which makes `vjp` the identity. Automatic differentiation of the call
    agrees.

    Attributes:
        table: q, in units of the data, shape (8, 8).
    """

    table: Tensor = shared()

    straight_through = True

    def __call__(self, x: Tensor) -> Tensor:
        cosine = _cosine(x)
        blocks = x.unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8)).transpose(-2, -3)  # type: ignore[no-untyped-call]
        z = cosine @ blocks @ cosine.T
        y: Tensor = (
            (cosine.T @ (self.table * (z / self.table).round()) @ cosine)
            .transpose(-2, -3)
            .flatten(-4, -3)
            .flatten(-2)
        )
        return x + (y - x).detach()

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        return v


def _cosine(x: Tensor) -> Tensor:
    k = torch.arange(8, dtype=x.dtype, device=x.device)
    matrix = torch.cos(math.pi / 8 * (k + 0.5) * k[:, None]) / 2
    return torch.cat([matrix[:1] / 2**0.5, matrix[1:]])


def jpeg(
    n: int,
    shape: tuple[int, ...],
    rng: Generator,
    *,
    quality: Annotated[int, Interval(ge=1, le=100)] = 30,
) -> Quantised:
    """Quantises the cosine coefficients of each channel with the luminance table of JPEG.

    The table is that of ITU-T T.81, annex K.

    Args:
        n: The number of observations; the operator is the same for all.
        shape: (C, H, W), H and W multiples of 8.
        rng: Not used.
        quality: 1 to 100, scaled as in the library of the Independent JPEG Group.

    Raises:
        RecipeError: If the size is not a multiple of 8.
    """
    _, height, width = image_shape("jpeg", shape)
    if height % 8 or width % 8:
        raise RecipeError(
            f"jpeg needs images whose height and width are multiples of 8, got {height}×{width}"
        )
    scale = 50 / quality if quality < 50 else 2 - quality / 50
    table = (torch.tensor(LUMINANCE, dtype=torch.float32) * scale + 0.5).floor().clamp(1, 255)
    return Quantised(shape, table / 127.5)
