"""Box inpainting: a square of each image is hidden, or only the square is measured."""

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from torch import Generator

from invem import Mask, RecipeError, examples
from invem.operator import image_shape


@examples({"size": 3, "place": "centre"}, {"size": 2, "hide": "outside"})
def box_mask(
    n: int,
    shape: tuple[int, ...],
    rng: Generator,
    *,
    size: Annotated[int, Ge(1), Le(16_384)] = 4,
    place: Literal["random", "centre"] = "random",
    hide: Literal["inside", "outside"] = "inside",
) -> Mask:
    """Hides a square box of each image, at a random place or at the centre.

    Args:
        n: The number of observations.
        shape: (C, H, W).
        rng: Draws the places.
        size: The edge of the box, in pixels.
        place: "random" per observation, or the "centre" of the image.
        hide: Whether the pixels "inside" or "outside" the box are hidden.

    Raises:
        RecipeError: If the box is larger than the image.
    """
    _, height, width = image_shape("box-mask", shape)
    if size > min(height, width):
        raise RecipeError(
            f"box-mask: size must be at most {min(height, width)} for images of {height}×{width},"
            f" got {size}"
        )
    if place == "random":
        top = torch.randint(height - size + 1, (n, 1, 1, 1), generator=rng)
        left = torch.randint(width - size + 1, (n, 1, 1, 1), generator=rng)
    else:
        top, left = (
            torch.full((n, 1, 1, 1), (height - size) // 2),
            torch.full((n, 1, 1, 1), (width - size) // 2),
        )
    row, column = torch.arange(height)[:, None], torch.arange(width)
    inside = (row >= top) & (row < top + size) & (column >= left) & (column < left + size)
    return Mask(shape, (inside if hide == "outside" else ~inside).float())
