"""Zero padding."""

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Generator

from invem.linear import Separable
from invem.operator import image_shape


def pad(
    n: int, shape: tuple[int, ...], rng: Generator, *, width: Annotated[int, Ge(0), Le(65_536)] = 2
) -> Separable:
    """Pads each image with zeros.

    Args:
        n: The number of observations; the operator is the same for all.
        shape: (C, H, W).
        rng: Not used.
        width: The number of zeros on each side, in pixels.
    """
    _, height, across = image_shape("pad", shape)
    one = torch.nn.functional.pad(torch.eye(height), (0, 0, width, width))
    return Separable(shape, one, torch.nn.functional.pad(torch.eye(across), (0, 0, width, width)))
