"""The single-pixel camera: subsampled Hadamard patterns."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Generator, Tensor

from invem import LinearOperator, RecipeError, examples
from invem.operator import SVD, image_shape


def _hadamard(x: Tensor) -> Tensor:
    """The orthonormal Walsh-Hadamard transform along the last axis, its own inverse.

    The length is a power of two.
    """
    n = x.shape[-1]
    z, step = x, 1
    while step < n:
        a, b = z.reshape(*z.shape[:-1], n // (2 * step), 2, step).unbind(-2)
        z = torch.stack([a + b, a - b], -2).reshape(x.shape)
        step *= 2
    return z / math.sqrt(n)


@dataclass(frozen=True, eq=False)
class SubsampledHadamard(LinearOperator):
    """A x = (H x)[index] for each channel, H the orthonormal Walsh-Hadamard transform.

    Attributes:
        order: A permutation of the d = H W patterns; the first m are measured, shape (B, d).
        measurements: m.
    """

    order: Tensor
    measurements: int

    def __call__(self, x: Tensor) -> Tensor:
        return self._turn(x)[..., : self.measurements]

    def adjoint(self, y: Tensor) -> Tensor:
        return self._back(
            torch.cat([y, y.new_zeros(*y.shape[:2], self.order.shape[1] - self.measurements)], 2)
        )

    def pinv(self, y: Tensor) -> Tensor:
        return self.adjoint(y)

    def svd(self) -> SVD:
        c, d, m = self.shape[0], self.order.shape[1], self.measurements

        def apart(x: Tensor) -> Tensor:
            z = self._turn(x)
            return torch.cat([z[..., :m].flatten(1), z[..., m:].flatten(1)], 1)

        def together(z: Tensor) -> Tensor:
            parts = z[:, : c * m].reshape(len(z), c, m), z[:, c * m :].reshape(len(z), c, d - m)
            return self._back(torch.cat(parts, 2))

        s = torch.ones(1, c * m, device=self.order.device)
        return SVD(s, lambda z: z.reshape(len(z), c, m), lambda y: y.flatten(1), together, apart)

    def _turn(self, x: Tensor) -> Tensor:
        order = self.order[:, None].expand(len(x), x.shape[1], -1)
        return _hadamard(x.flatten(2)).gather(2, order)

    def _back(self, z: Tensor) -> Tensor:
        whole = torch.zeros_like(z).scatter(2, self.order[:, None].expand_as(z), z)
        return _hadamard(whole).reshape(len(z), *self.shape)


@examples({"share": 0.5, "order": "first"})
def hadamard(
    n: int,
    shape: tuple[int, ...],
    rng: Generator,
    *,
    share: Annotated[float, Interval(gt=0, le=1)] = 0.25,
    order: Literal["random", "first"] = "random",
) -> SubsampledHadamard:
    """Measures a part of the Walsh-Hadamard coefficients of each channel.

    The constant pattern is always among them (Duarte et al. 2008).

    Args:
        n: The number of observations.
        shape: (C, H, W), H times W a power of two.
        rng: Draws the patterns.
        share: The number of measurements as a fraction of the number of pixels.
        order: "random" patterns per observation, or the "first" ones of the natural order for all.

    Raises:
        RecipeError: If the number of pixels is not a power of two.
    """
    _, height, width = image_shape("hadamard", shape)
    d = height * width
    if d & (d - 1):
        raise RecipeError(
            f"hadamard needs a power of two of pixels (8×8, 32×64, ...), got {height}×{width}; try"
            " structured-projection"
        )
    keys = (
        torch.rand(n, d, generator=rng)
        if order == "random"
        else torch.arange(d, dtype=torch.float32).expand(n, d).clone()
    )
    keys[:, 0] = -1
    return SubsampledHadamard(shape, keys.argsort(1), max(1, round(share * d)))
