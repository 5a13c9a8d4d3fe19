"""Defocus blur: a point becomes a disc."""

from typing import Annotated, Literal

import torch
from annotated_types import Gt, Interval
from torch import Generator

from invem import LinearOperator, examples
from invem.linear import blur


@examples(
    {"size": 5, "radius": 1.5, "boundary": "circular"},
    {"size": 3, "radius": 1.2, "boundary": "zero"},
)
def defocus_blur(
    n: int,
    shape: tuple[int, ...],
    rng: Generator,
    *,
    radius: Annotated[float, Gt(0)] = 3.0,
    size: Annotated[int, Interval(ge=1, le=255)] = 9,
    boundary: Literal["reflect", "circular", "zero", "valid"] = "reflect",
) -> LinearOperator:
    """Blurs each image with a uniform disc.

    Its edge is anti-aliased over one pixel.

    Args:
        n: The number of observations; the blur is the same for all.
        shape: (C, H, W).
        rng: Not used.
        radius: The radius of the disc, in pixels.
        size: The width of the kernel in pixels, odd.
        boundary: The padding: mirrored ("reflect"), periodic ("circular"), "zero" or none
            ("valid").

    Raises:
        RecipeError: If the size is even or too large.
    """
    at = torch.arange(size, dtype=torch.float32) - size // 2
    kernel = (radius + 0.5 - torch.hypot(at, at[:, None])).clamp(0, 1)
    return blur(
        "defocus-blur", shape, (kernel / kernel.sum()).expand(n, size, size).contiguous(), boundary
    )
