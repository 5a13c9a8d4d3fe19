"""Spatially varying blur: sharp at the centre, blurred at the border."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt, Interval, Len
from torch import Generator, Tensor

from invem import LinearOperator, RecipeError, examples, shared
from invem.linear import Convolution
from invem.operator import image_shape


@dataclass(frozen=True, eq=False)
class VaryingBlur(LinearOperator):
    """A x = sum over k of w_k * (K_k conv x): kernels mixed by weights at each pixel.

    The weights sum to one at each pixel (Nagy & O'Leary 1998).

    Attributes:
        kernels: K, shape (B, K, h, w).
        weights: w, shape (K, H, W).
    """

    kernels: Tensor
    weights: Tensor = shared()

    def _blurs(self) -> list[Convolution]:
        return [
            Convolution(self.shape, kernel[:, None], "reflect") for kernel in self.kernels.unbind(1)
        ]

    def __call__(self, x: Tensor) -> Tensor:
        return torch.stack(
            [w * blur(x) for w, blur in zip(self.weights, self._blurs(), strict=True)]
        ).sum(0)

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.stack(
            [blur.adjoint(w * y) for w, blur in zip(self.weights, self._blurs(), strict=True)]
        ).sum(0)


@examples({"size": 3, "std": [0.4, 1.0], "kernels": 2})
def varying_blur(
    n: int,
    shape: tuple[int, ...],
    rng: Generator,
    *,
    std: Annotated[list[Annotated[float, Gt(0)]], Len(2, 2)] = [0.5, 2.0],  # noqa: B006
    kernels: Annotated[int, Interval(ge=2, le=16)] = 3,
    size: Annotated[int, Interval(ge=1, le=63)] = 9,
) -> VaryingBlur:
    """Blurs each image with a Gaussian kernel that widens from the centre to the corners.

    A simple lens blurs this way.

    Args:
        n: The number of observations; the blur is the same for all.
        shape: (C, H, W).
        rng: Not used.
        std: The standard deviation of the kernel at the centre and in the corners, in pixels.
        kernels: The number of kernels. Each pixel interpolates linearly between two of them.
        size: The width of the kernels in pixels, odd.

    Raises:
        RecipeError: If the size is even or too large.
    """
    _, height, width = image_shape("varying-blur", shape)
    if size % 2 == 0 or size // 2 >= min(height, width):
        raise RecipeError(
            f"varying-blur: size must be odd and at most {2 * min(height, width) - 1}, got {size}"
        )
    row, column = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
    place = torch.hypot(row, column) / 2**0.5 * (kernels - 1)
    weights = (1 - (place - torch.arange(kernels)[:, None, None]).abs()).clamp(min=0)
    widths = torch.linspace(std[0], std[1], kernels)[:, None, None]
    at = torch.arange(size, dtype=torch.float32) - size // 2
    kernel = torch.exp(-0.5 * (at**2 + at[:, None] ** 2) / widths**2)
    kernel = kernel / kernel.sum((1, 2), keepdim=True)
    return VaryingBlur(shape, kernel.expand(n, -1, -1, -1).contiguous(), weights)
