"""Grey-scale images of colour signals."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from invem import LinearOperator, RecipeError, shared
from invem.operator import SVD, image_shape


@dataclass(frozen=True, eq=False)
class Mixing(LinearOperator):
    """A x = w^T x at each pixel: a weighted sum of the channels.

    Attributes:
        weights: w, shape (C,).
    """

    local: ClassVar[bool] = True

    weights: Tensor = shared()

    def __call__(self, x: Tensor) -> Tensor:
        return torch.einsum("c,bchw->bhw", self.weights, x)[:, None]

    def adjoint(self, y: Tensor) -> Tensor:
        return self.weights[:, None, None] * y

    def pinv(self, y: Tensor) -> Tensor:
        return self.adjoint(y) / self.weights.square().sum()

    def svd(self) -> SVD:
        c, h, w = self.shape
        _, s, vt = torch.linalg.svd(self.weights[None])
        sign = torch.sign(vt[0] @ self.weights)
        return SVD(
            s.expand(1, h * w),
            lambda z: sign * z.reshape(len(z), 1, h, w),
            lambda y: sign * y.flatten(1),
            lambda z: torch.einsum("kc,bkhw->bchw", vt, z.reshape(len(z), c, h, w)),
            lambda x: torch.einsum("kc,bchw->bkhw", vt, x).flatten(1),
        )


def grayscale(n: int, shape: tuple[int, ...], rng: Generator) -> Mixing:
    """Measures the luma of colour images (ITU-R 601).

    It is 0.299 red + 0.587 green + 0.114 blue for three channels, and the mean of any other number.

    Args:
        n: The number of observations.
        shape: (C, H, W), C >= 2.
        rng: Not used.

    Raises:
        RecipeError: If the images have one channel.
    """
    channels, _, _ = image_shape("grayscale", shape)
    if channels < 2:
        raise RecipeError("grayscale needs images of at least 2 channels, got 1")
    return Mixing(
        shape,
        torch.tensor([0.299, 0.587, 0.114])
        if channels == 3
        else torch.full((channels,), 1 / channels),
    )
