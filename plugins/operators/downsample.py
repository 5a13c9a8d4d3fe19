"""Downsampling, the forward operator of super-resolution."""

from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Generator, Tensor

from invem import RecipeError, examples
from invem.linear import Separable
from invem.operator import image_shape


def _cubic(t: Tensor) -> Tensor:
    """The cubic kernel of Keys (1981), a = -1/2."""
    t = t.abs()
    near = 1.5 * t**3 - 2.5 * t**2 + 1
    far = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return torch.where(t <= 1, near, torch.where(t < 2, far, 0.0))


def _matrix(size: int, factor: int, method: str) -> Tensor:
    """Returns the weights of the pixels in each measurement, shape (size / factor, size).

    Each row sums to one.
    """
    centre = (torch.arange(size // factor, dtype=torch.float64) + 0.5) * factor - 0.5
    if method == "average":
        weights = ((torch.arange(size) - centre[:, None]).abs() < factor / 2).double()
    else:
        reach = 2 * factor
        source = centre.floor().long()[:, None] + torch.arange(-reach, reach + 1)
        each = _cubic((source - centre[:, None]) / factor)
        mirrored = torch.where(source < 0, -source - 1, source)
        mirrored = torch.where(mirrored >= size, 2 * size - 1 - mirrored, mirrored).clamp(
            0, size - 1
        )
        weights = torch.zeros(len(centre), size, dtype=torch.float64).scatter_add_(
            1, mirrored, each
        )
    return (weights / weights.sum(1, keepdim=True)).float()


@examples({"factor": 2}, {"factor": 2, "method": "bicubic"})
def downsample(
    n: int,
    shape: tuple[int, ...],
    rng: Generator,
    *,
    factor: Annotated[int, Ge(1)] = 2,
    method: Literal["average", "bicubic"] = "average",
) -> Separable:
    """Downsamples each image by an integer factor.

    Args:
        n: The number of observations; the operator is the same for all.
        shape: (C, H, W); H and W are multiples of the factor.
        rng: Not used.
        factor: The factor.
        method: "average" over the pixels that become one, or an anti-aliased "bicubic" kernel,
            which is 4 factor wide and mirrors the image at its borders.

    Raises:
        RecipeError: If the factor does not divide the size.
    """
    _, height, width = image_shape("downsample", shape)
    if height % factor or width % factor:
        raise RecipeError(
            f"downsample: factor must divide the height and the width, {height}×{width}, got"
            f" {factor}"
        )
    return Separable(shape, _matrix(height, factor, method), _matrix(width, factor, method))
