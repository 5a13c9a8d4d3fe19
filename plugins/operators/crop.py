"""Cropping: the centre of each image is measured."""

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Generator

from invem import RecipeError, examples
from invem.linear import Separable
from invem.operator import image_shape


@examples({"size": 5})
def crop(
    n: int, shape: tuple[int, ...], rng: Generator, *, size: Annotated[int, Ge(1), Le(16_384)]
) -> Separable:
    """Measures the central square of each image.

    Args:
        n: The number of observations; the operator is the same for all.
        shape: (C, H, W).
        rng: Not used.
        size: The edge of the square, in pixels.

    Raises:
        RecipeError: If the square is larger than the image.
    """
    _, height, width = image_shape("crop", shape)
    if size > min(height, width):
        raise RecipeError(
            f"crop: size must be at most {min(height, width)} for images of {height}×{width}, got"
            f" {size}"
        )
    top, left = (height - size) // 2, (width - size) // 2
    return Separable(
        shape, torch.eye(height)[top : top + size], torch.eye(width)[left : left + size]
    )
