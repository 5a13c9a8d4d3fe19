"""Block inpainting: each square patch is measured with some probability."""

from typing import Annotated

import torch
from annotated_types import Ge, Interval, Le
from torch import Generator

from invem import Mask, RecipeError
from invem.operator import image_shape


def block_mask(
    n: int,
    shape: tuple[int, ...],
    rng: Generator,
    *,
    keep: Annotated[float, Interval(gt=0, le=1)] = 0.5,
    size: Annotated[int, Ge(1), Le(16_384)] = 4,
) -> Mask:
    """Measures each square patch with probability `keep`.

    Args:
        n: The number of observations.
        shape: (C, H, W).
        rng: Draws a mask per observation.
        keep: The probability that a patch is measured.
        size: The edge of a patch in pixels. Patches at the right and lower borders may be smaller.

    Raises:
        RecipeError: If a patch is larger than the image.
    """
    _, height, width = image_shape("block-mask", shape)
    if size > min(height, width):
        raise RecipeError(
            f"block-mask: size must be at most {min(height, width)} for images of {height}×{width},"
            f" got {size}"
        )
    blocks = (torch.rand(n, 1, -(-height // size), -(-width // size), generator=rng) < keep).float()
    mask = blocks.repeat_interleave(size, 2).repeat_interleave(size, 3)[..., :height, :width]
    return Mask(shape, mask.contiguous())
