"""Anisotropic Gaussian blur."""

import math
from typing import Annotated, Literal

import torch
from annotated_types import Gt, Interval, Len
from torch import Generator

from invem import LinearOperator, examples
from invem.linear import blur


@examples(
    {"size": 5, "std": [0.6, 1.2], "boundary": "circular"},
    {"size": 5, "angle": 0.5, "boundary": "zero"},
)
def anisotropic_blur(
    n: int,
    shape: tuple[int, ...],
    rng: Generator,
    *,
    std: Annotated[list[Annotated[float, Gt(0)]], Len(2, 2)] = [1.0, 3.0],  # noqa: B006
    angle: float | None = None,
    size: Annotated[int, Interval(ge=1, le=255)] = 9,
    boundary: Literal["reflect", "circular", "zero", "valid"] = "reflect",
) -> LinearOperator:
    """Blurs each image with an elliptic Gaussian kernel at its own angle.

    Args:
        n: The number of observations.
        shape: (C, H, W).
        rng: Draws the angles.
        std: The standard deviations along the two axes of the ellipse, in pixels.
        angle: The angle of the first axis, in radians; None draws one per observation.
        size: The width of the kernel in pixels, odd.
        boundary: The padding: mirrored ("reflect"), periodic ("circular"), "zero" or none
            ("valid").

    Raises:
        RecipeError: If the size is even or too large.
    """
    turn = torch.full((n,), angle) if angle is not None else math.pi * torch.rand(n, generator=rng)
    cos, sin = turn.cos()[:, None, None], turn.sin()[:, None, None]
    at = torch.arange(size, dtype=torch.float32) - size // 2
    along, across = cos * at + sin * at[:, None], cos * at[:, None] - sin * at
    kernel = torch.exp(-0.5 * ((along / std[0]) ** 2 + (across / std[1]) ** 2))
    return blur("anisotropic-blur", shape, kernel / kernel.sum((1, 2), keepdim=True), boundary)
