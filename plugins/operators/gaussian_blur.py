"""Gaussian blur."""

from typing import Annotated, Literal

import torch
from annotated_types import Gt, Interval
from torch import Generator, Tensor

from invem import RecipeError, examples
from invem.linear import Separable
from invem.operator import image_shape


def _matrix(size: int, std: float, reach: int, boundary: str) -> Tensor:
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (offsets.double() / std) ** 2)
    weights = weights / weights.sum()
    target = torch.arange(size)[:, None] + offsets
    matrix = torch.zeros(size, size, dtype=torch.float64)
    if boundary == "circular":
        source = target % size
    elif boundary == "reflect":
        source = target.abs()
        source = torch.where(source >= size, 2 * (size - 1) - source, source)
    else:
        weights = weights * ((target >= 0) & (target < size))
        source = target.clamp(0, size - 1)
    matrix.scatter_add_(1, source, weights.expand_as(source).contiguous())
    return (matrix[reach : size - reach] if boundary == "valid" else matrix).float()


@examples(
    *(
        {"std": 1.0, "size": 3, "boundary": boundary}
        for boundary in ("reflect", "circular", "zero", "valid")
    )
)
def gaussian_blur(
    n: int,
    shape: tuple[int, ...],
    rng: Generator,
    *,
    std: Annotated[float, Gt(0)] = 2.0,
    size: Annotated[int, Interval(ge=1, le=255)] = 9,
    boundary: Literal["reflect", "circular", "zero", "valid"] = "reflect",
) -> Separable:
    """Blurs each channel with a truncated Gaussian kernel that sums to one.

    The kernel is separable: A x = R x C^T.

    Args:
        n: The number of observations; the blur is the same for all.
        shape: (C, H, W).
        rng: Not used.
        std: The standard deviation of the kernel, in pixels.
        size: The width of the kernel in pixels, odd.
        boundary: The padding: mirrored ("reflect"), periodic ("circular"), "zero", or none
            ("valid"), which makes the measurement smaller by size - 1.

    Raises:
        RecipeError: If the size is even or too large for mirroring, or the signal is not an image.
    """
    _, height, width = image_shape("gaussian-blur", shape)
    if size % 2 == 0:
        raise RecipeError(f"gaussian-blur: size must be odd, got {size}")
    reach = size // 2
    if reach >= min(height, width) or (boundary == "valid" and size > min(height, width)):
        raise RecipeError(f"gaussian-blur: size {size} needs larger images than {height}×{width}")
    return Separable(
        shape, _matrix(height, std, reach, boundary), _matrix(width, std, reach, boundary)
    )
