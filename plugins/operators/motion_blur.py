"""Motion blur: the camera moves along a random path."""

import math
from typing import Annotated, Literal

import torch
from annotated_types import Gt, Interval
from torch import Generator

from invem import LinearOperator, examples
from invem.linear import blur

POINTS = 96


@examples({"size": 5, "length": 4.0, "boundary": "circular"}, {"size": 5, "length": 3.0})
def motion_blur(
    n: int,
    shape: tuple[int, ...],
    rng: Generator,
    *,
    length: Annotated[float, Gt(0)] = 8.0,
    turn: Annotated[float, Interval(ge=0, le=10)] = 1.0,
    size: Annotated[int, Interval(ge=1, le=255)] = 15,
    boundary: Literal["reflect", "circular", "zero", "valid"] = "reflect",
) -> LinearOperator:
    """Blurs each image along its own random path.

    A point moves at constant speed in a direction that follows a random walk.

    Args:
        n: The number of observations.
        shape: (C, H, W).
        rng: Draws the paths.
        length: The length of the path, in pixels. Points that leave the kernel count at its border.
        turn: The standard deviation of the change of direction over the whole path, in radians; 0
            gives a straight line.
        size: The width of the kernel in pixels, odd.
        boundary: The padding: mirrored ("reflect"), periodic ("circular"), "zero" or none
            ("valid").

    Raises:
        RecipeError: If the size is even or too large.
    """
    first = 2 * math.pi * torch.rand(n, 1, generator=rng)
    direction = first + (turn / POINTS**0.5 * torch.randn(n, POINTS, generator=rng)).cumsum(1)
    path = length / POINTS * torch.stack([direction.sin(), direction.cos()], 2).cumsum(1)
    path = (path - path.mean(1, keepdim=True) + size // 2).clamp(0, size - 1)
    # Bilinear weights distribute each point over its four pixels.
    corner = path.floor().clamp(max=max(size - 2, 0))
    part = path - corner
    kernel = torch.zeros(n, size * size)
    for dy in (0, 1):
        for dx in (0, 1):
            weight = (part[..., 0] if dy else 1 - part[..., 0]) * (
                part[..., 1] if dx else 1 - part[..., 1]
            )
            place = (corner[..., 0] + dy).clamp(max=size - 1) * size + (corner[..., 1] + dx).clamp(
                max=size - 1
            )
            kernel.scatter_add_(1, place.long(), weight)
    return blur(
        "motion-blur",
        shape,
        (kernel / kernel.sum(1, keepdim=True)).reshape(n, size, size),
        boundary,
    )
