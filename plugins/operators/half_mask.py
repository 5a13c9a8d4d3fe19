"""Half inpainting: one half of each image is hidden."""

from typing import Literal

import torch
from torch import Generator

from invem import Mask, examples
from invem.operator import image_shape


@examples({"side": "top"}, {"side": "random"})
def half_mask(
    n: int,
    shape: tuple[int, ...],
    rng: Generator,
    *,
    side: Literal["left", "right", "top", "bottom", "random"] = "right",
) -> Mask:
    """Hides one half of each image.

    Args:
        n: The number of observations.
        shape: (C, H, W).
        rng: Draws the sides, where they are random.
        side: The hidden half; "random" draws it per observation.
    """
    _, height, width = image_shape("half-mask", shape)
    row, column = (
        torch.arange(height)[:, None].expand(height, width),
        torch.arange(width).expand(height, width),
    )
    hidden = torch.stack(
        [
            column < width // 2,
            column >= width - width // 2,
            row < height // 2,
            row >= height - height // 2,
        ]
    )
    sides = ("left", "right", "top", "bottom")
    chosen = (
        torch.randint(4, (n,), generator=rng)
        if side == "random"
        else torch.full((n,), sides.index(side))
    )
    return Mask(shape, (~hidden[chosen, None]).float())
