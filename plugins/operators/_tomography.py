"""The system matrix of tomography: exact areas of square pixels in strips."""

import math
import warnings
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from invem import LinearOperator
from invem.batched import to_float64
from invem.linalg import least_norm

__all__ = ["Geometry", "backproject", "project", "pseudo_inverse", "strip_integrals"]

_DENSE = 4_000_000  # entries of a matrix whose singular values are found in seconds


class Geometry(NamedTuple):
    """The directions of the beams and the detectors.

    Attributes:
        size: The height and the width of the image, in pixels.
        angles: The directions of the beams, or the angles of the source, in radians.
        detectors: The number of detectors. Parallel beams: each one pixel wide. Fan: equiangular
            over the circle around the image.
        distance: The distance from the source to the centre in pixels; None for parallel beams.
    """

    size: int
    angles: tuple[float, ...]
    detectors: int
    distance: float | None = None


def project(geometry: Geometry, x: Tensor) -> Tensor:
    """Returns the line integrals of x, (B, C, H, H), as (B, C, angles, detectors).

    They are in units of the data times the width of the image.
    """
    b, c = x.shape[:2]
    y: Tensor = _Product.apply(x.reshape(b * c, -1), geometry, False)  # type: ignore[no-untyped-call]
    return y.reshape(b, c, len(geometry.angles), geometry.detectors)


def backproject(geometry: Geometry, y: Tensor) -> Tensor:
    """Returns the adjoint of `project`, shape (B, C, H, H). y: (B, C, angles, detectors)."""
    b, c = y.shape[:2]
    x: Tensor = _Product.apply(y.reshape(b * c, -1), geometry, True)  # type: ignore[no-untyped-call]
    return x.reshape(b, c, geometry.size, geometry.size)


def pseudo_inverse(A: LinearOperator, geometry: Geometry, y: Tensor) -> Tensor:
    """Returns A^+ y, shape (B, C, H, H), of a projection with a geometry. y: (B, C, angles,
    detectors).

    A small matrix is inverted once, by its singular values; the others need iterations.
    """
    if len(geometry.angles) * geometry.detectors * geometry.size**2 > _DENSE:
        return least_norm(A, y)
    b, c = y.shape[:2]
    flat = to_float64(y.reshape(b * c, -1))
    x = flat @ _inverse(geometry).to(flat).T
    return x.to(y.dtype).reshape(b, c, geometry.size, geometry.size)


@lru_cache(maxsize=4)
def _inverse(geometry: Geometry) -> Tensor:
    """Returns the pseudo-inverse of the matrix of a geometry, float64. Singular values below a
    millionth of the largest count as zero."""
    matrix = strip_integrals(geometry, torch.float64, torch.device("cpu"))[0].to_dense()
    inverse: Tensor = torch.linalg.pinv(matrix, rtol=1e-6)
    return inverse


class _Product(torch.autograd.Function):
    """x M^T or x M with the sparse matrix M of a geometry.

    Sparse products of PyTorch support neither vmap nor compilation.
    """

    @staticmethod
    def forward(x: Tensor, geometry: Geometry, back: bool) -> Tensor:
        matrix = strip_integrals(geometry, x.dtype, x.device)[back]
        product: Tensor = (matrix @ x.T).T
        return product

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.geometry, ctx.back = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Product.apply(grad, ctx.geometry, not ctx.back), None, None  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        pushed: Tensor = _Product.apply(tangent, ctx.geometry, ctx.back)  # type: ignore[no-untyped-call]
        return pushed

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, geometry: Geometry, back: bool
    ) -> tuple[Tensor, int]:
        x = x.movedim(in_dims[0] or 0, 0)
        flat = _Product.apply(x.flatten(0, 1), geometry, back)  # type: ignore[no-untyped-call]
        return flat.unflatten(0, x.shape[:2]), 0


def _area(t: Tensor, wide: Tensor, narrow: Tensor) -> Tensor:
    """Returns the area of a unit pixel left of t.

    The projection of the pixel is a trapezoid: base 2 wide, top 2 narrow.
    """
    height = 1 / (wide + narrow)
    slope = (wide - narrow).clamp(min=1e-9)
    t = t.clamp(-wide, wide)
    rise = 0.5 * height * (torch.minimum(t, -narrow) + wide) ** 2 / slope
    flat = height * (t.clamp(-narrow, narrow) + narrow)
    top = t.clamp(min=narrow)
    fall = height * ((top - narrow) - 0.5 * (top - narrow) ** 2 / slope)
    return rise + flat + fall


@torch.compiler.disable  # type: ignore[untyped-decorator]
@lru_cache(maxsize=8)
def strip_integrals(
    geometry: Geometry, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Returns the sparse matrix of a geometry and its transpose, in CSR layout.

    Its shape is (angles * detectors, size * size). An entry is the area of a pixel in a strip, over
    the width of the strip and the size of the image: the integral along the strip, in units of the
    width of the image. The last eight geometries are cached.
    """
    size, angles, detectors, distance = geometry
    at = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    x, y = at.repeat(size), at.flip(0).repeat_interleave(size)
    theta = torch.tensor(angles, dtype=torch.float64)[:, None]
    if distance is None:
        place, turn = x * theta.cos() + y * theta.sin(), theta.expand(-1, size * size)
        unit = torch.ones((), dtype=torch.float64)
    else:
        # The source is at distance * (-sin, cos)(theta); `across` and `depth` are measured from it,
        # `gamma` is the angle of the ray.
        across = x * theta.cos() + y * theta.sin()
        depth = distance + x * theta.sin() - y * theta.cos()
        gamma = torch.atan2(across, depth)
        pitch = 2 * math.asin(min(1.0, size * 0.5**0.5 / distance)) / detectors
        place, turn, unit = gamma / pitch, theta + gamma, torch.hypot(across, depth) * pitch
    a, b = turn.cos().abs() / 2, turn.sin().abs() / 2
    wide, narrow = (a + b) / unit, (a - b).abs() / unit
    first = (place - wide + detectors / 2).floor()
    bins = int((2 * wide.max()).ceil()) + 1
    rows, columns, values = [], [], []
    pixel = torch.arange(size * size).expand(len(angles), -1)
    for k in range(bins):
        index = first + k
        left = index - detectors / 2 - place
        weight = (_area(left + 1, wide, narrow) - _area(left, wide, narrow)) / unit
        keep = (weight > 1e-12) & (index >= 0) & (index < detectors)
        row = torch.arange(len(angles))[:, None] * detectors + index.long()
        rows.append(row[keep])
        columns.append(pixel[keep])
        values.append(weight[keep])
    place_of, value = torch.stack([torch.cat(rows), torch.cat(columns)]), torch.cat(values) / size
    shape = (len(angles) * detectors, size * size)
    sparse = torch.sparse_coo_tensor(
        place_of, value.to(dtype), shape, device=device, check_invariants=False
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support")
        return sparse.coalesce().to_sparse_csr(), sparse.t().coalesce().to_sparse_csr()
