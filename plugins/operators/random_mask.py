"""Random inpainting: each pixel is measured with some probability."""

from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Generator

from invem import Mask, examples


@examples({"per": "channel"})
def random_mask(
    n: int,
    shape: tuple[int, ...],
    rng: Generator,
    *,
    keep: Annotated[float, Interval(gt=0, le=1)] = 0.4,
    per: Literal["pixel", "channel"] = "pixel",
) -> Mask:
    """Measures each pixel with probability `keep`.

    Args:
        n: The number of observations.
        shape: The shape of one signal.
        rng: Draws a mask per observation.
        keep: The probability that a pixel is measured.
        per: Whether the channels of a pixel are masked together ("pixel") or independently
            ("channel").
    """
    drawn = (1, *shape[1:]) if per == "pixel" and len(shape) > 1 else shape
    return Mask(shape, (torch.rand(n, *drawn, generator=rng) < keep).float())
