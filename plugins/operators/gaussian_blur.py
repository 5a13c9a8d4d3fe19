"""Gaussian blur."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Gt, Interval
from torch import Generator, Tensor

from invem import SVD, LinearOperator, RecipeError, shared


@dataclass(frozen=True, eq=False)
class GaussianBlur(LinearOperator):
    """A x = R x C^T for each channel: a Gaussian is separable, so one small matrix for each axis holds kernel and boundary.

    The adjoint, the pseudo-inverse and the singular value decomposition follow from those of R and C.

    Attributes:
        rows: R, shape (H, H).
        columns: C, shape (W, W).
        rcond: Singular values below this share of the largest count as zero in `pinv`.
    """

    rows: Tensor = shared()
    columns: Tensor = shared()
    rcond: float = 1e-4

    def __call__(self, x: Tensor) -> Tensor:
        return self.rows @ x @ self.columns.T

    def adjoint(self, y: Tensor) -> Tensor:
        return self.rows.T @ y @ self.columns

    def pinv(self, y: Tensor) -> Tensor:
        s, _, ut, v, _ = self.svd()
        inverse = torch.where(s > self.rcond * s.max(), 1 / s, 0.0)
        return v(inverse * ut(y))

    def svd(self) -> SVD:
        ur, sr, vr = torch.linalg.svd(self.rows)
        uc, sc, vc = torch.linalg.svd(self.columns)
        s = (sr[:, None] * sc).expand(self.shape).reshape(1, -1)

        def whole(z: Tensor) -> Tensor:
            return z.reshape(len(z), *self.shape)

        return SVD(
            s,
            lambda z: ur @ whole(z) @ uc.T,
            lambda y: (ur.T @ y @ uc).flatten(1),
            lambda z: vr.T @ whole(z) @ vc,
            lambda x: (vr @ x @ vc.T).flatten(1),
        )


def _matrix(size: int, std: float, reach: int, boundary: str) -> Tensor:
    offsets = torch.arange(-reach, reach + 1)
    weights = torch.exp(-0.5 * (offsets.double() / std) ** 2)
    weights = weights / weights.sum()
    target = torch.arange(size)[:, None] + offsets
    matrix = torch.zeros(size, size, dtype=torch.float64)
    if boundary == "circular":
        source = target % size
    elif boundary == "reflect":
        source = target.abs()
        source = torch.where(source >= size, 2 * (size - 1) - source, source)
    else:
        weights = weights * ((target >= 0) & (target < size))
        source = target.clamp(0, size - 1)
    matrix.scatter_add_(1, source, weights.expand_as(source).contiguous())
    return matrix.float()


def gaussian_blur(
    n: int,
    shape: tuple[int, ...],
    rng: Generator,
    *,
    std: Annotated[float, Gt(0)] = 2.0,
    size: Annotated[int, Interval(ge=1, le=255)] = 9,
    boundary: Literal["reflect", "circular", "zero"] = "reflect",
) -> GaussianBlur:
    """Blurs each channel with a truncated Gaussian kernel that sums to one.

    Args:
        n: The number of observations; the blur is the same for all.
        shape: (C, H, W).
        rng: Not used.
        std: The standard deviation of the kernel, in pixels.
        size: The width of the kernel, in pixels, odd.
        boundary: What lies beyond the border: the mirrored image, the opposite side, or zeros.

    Raises:
        RecipeError: If the size is even, reaches beyond the mirrored image, or the signal is not an image.
    """
    if len(shape) != 3:
        raise RecipeError(f"gaussian-blur acts on images (channels, height, width), not on signals of shape {shape}")
    if size % 2 == 0:
        raise RecipeError(f"gaussian-blur: size must be odd, got {size}")
    reach = size // 2
    if reach >= min(shape[1:]):
        raise RecipeError(f"gaussian-blur: size {size} needs images wider than {reach} pixels, got {shape[1]}×{shape[2]}")
    return GaussianBlur(shape, _matrix(shape[1], std, reach, boundary), _matrix(shape[2], std, reach, boundary))
