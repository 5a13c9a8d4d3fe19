"""Linear operators of general use: masks, matrices, one matrix per axis, and convolutions."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, reduce
from math import prod
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d, pad

from invem.batched import shared
from invem.errors import RecipeError
from invem.operator import SVD, LinearOperator, image_shape

__all__ = [
    "Boundary",
    "CircularConvolution",
    "Convolution",
    "Mask",
    "Matrix",
    "Separable",
    "blur",
    "inverse_weights",
]

Boundary = Literal["reflect", "circular", "zero", "valid"]

_DIRECT = 13 * 13  # a kernel of at most so many entries is faster without a Fourier transform


def inverse_weights(mask: Tensor) -> Tensor:
    """Returns 1/w for each weight w of a mask, and 0 where it is 0; the shape of `mask`."""
    return torch.where(mask != 0, 1 / mask, 0)


@dataclass(frozen=True, eq=False)
class Mask(LinearOperator):
    """A x = mask * x. A hidden entry measures zero plus noise.

    Attributes:
        mask: The weight of each entry, shape (B, ...), broadcastable to (B, *shape): 1 where it is
            measured, 0 where it is hidden, and any other number where it is measured with that
            weight.
    """

    local: ClassVar[bool] = True

    mask: Tensor

    @property
    def seen(self) -> Tensor:
        return (self.mask != 0).to(self.mask.dtype)

    @property
    def provides(self) -> frozenset[str]:
        return super().provides | {"mask"}

    def __call__(self, x: Tensor) -> Tensor:
        return self.mask * x

    def adjoint(self, y: Tensor) -> Tensor:
        return self.mask * y

    def pinv(self, y: Tensor) -> Tensor:
        return inverse_weights(self.mask) * y

    def svd(self) -> SVD:
        sign = torch.where(self.mask < 0, -1, 1).to(self.mask.dtype)

        def flat(x: Tensor) -> Tensor:
            return x.flatten(1)

        def whole(z: Tensor) -> Tensor:
            return z.reshape(len(z), *self.shape)

        return SVD(
            self.mask.abs().expand(-1, *self.shape).flatten(1),
            lambda z: sign * whole(z),
            lambda y: flat(sign * y),
            whole,
            flat,
        )


@dataclass(frozen=True, eq=False)
class Matrix(LinearOperator):
    """A x = P x with one dense matrix per sample.

    Attributes:
        matrix: P, shape (B, m, d), d = prod(shape).
    """

    matrix: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return torch.einsum("bmd,bd->bm", self.matrix, x.flatten(1))

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.einsum("bmd,bm->bd", self.matrix, y).reshape(len(y), *self.shape)

    @cached_property
    def _inverse(self) -> Tensor:
        inverse: Tensor = torch.linalg.pinv(self.matrix)
        return inverse

    def pinv(self, y: Tensor) -> Tensor:
        return torch.einsum("bdm,bm->bd", self._inverse, y).reshape(len(y), *self.shape)

    def svd(self) -> SVD:
        u, s, vt = torch.linalg.svd(self.matrix, full_matrices=True)
        r = s.shape[1]
        return SVD(
            s,
            lambda z: torch.einsum("bmr,br->bm", u[:, :, :r], z),
            lambda y: torch.einsum("bmr,bm->br", u[:, :, :r], y),
            lambda z: torch.einsum("bkd,bk->bd", vt, z).reshape(len(z), *self.shape),
            lambda x: torch.einsum("bkd,bd->bk", vt, x.flatten(1)),
        )


_BLOCK = 64
_Bands = list[list[tuple[slice, Tensor]]]


def _bands(matrix: Tensor) -> _Bands:
    """Splits a matrix into blocks of rows, each with the runs of columns that are not zero.

    Most entries of a large blur or sampling matrix are zero.
    """
    if max(matrix.shape) < 2 * _BLOCK or matrix.device.type == "meta":
        return [[(slice(None), matrix)]]
    blocks: _Bands = []
    rows = max(1, _BLOCK * min(matrix.shape) // matrix.shape[1])
    for block in torch.split(matrix, rows):
        used = block.any(0).nonzero()[:, 0] if block.any() else torch.zeros(1, dtype=torch.long)
        ends = (used.diff() > _BLOCK).nonzero()[:, 0].tolist()
        runs = [
            slice(int(used[a]), int(used[b]) + 1)
            for a, b in zip([0, *(e + 1 for e in ends)], [*ends, -1], strict=True)
        ]
        blocks.append([(run, block[:, run].contiguous()) for run in runs])
    return blocks


def _left(blocks: _Bands, x: Tensor) -> Tensor:
    """Returns matrix @ x. x: (..., columns, k)."""
    sums = [reduce(torch.add, [block @ x[..., run, :] for run, block in runs]) for runs in blocks]
    return sums[0] if len(sums) == 1 else torch.cat(sums, -2)


def _right(x: Tensor, blocks: _Bands) -> Tensor:
    """Returns x @ matrix^T. x: (..., k, columns)."""
    sums = [reduce(torch.add, [x[..., run] @ block.mT for run, block in runs]) for runs in blocks]
    return sums[0] if len(sums) == 1 else torch.cat(sums, -1)


@dataclass(frozen=True, eq=False)
class Separable(LinearOperator):
    """A x = R x C^T for each channel: one matrix per axis holds kernel, boundary and sampling.

    Attributes:
        rows: R, shape (m1, H).
        columns: C, shape (m2, W).
        rcond: Singular values below this share of the largest count as zero in `pinv`.
    """

    rows: Tensor = shared()
    columns: Tensor = shared()
    rcond: float = 1e-4

    def __call__(self, x: Tensor) -> Tensor:
        return _left(self._bands[0], _right(x, self._bands[1]))

    def adjoint(self, y: Tensor) -> Tensor:
        return _left(self._bands[2], _right(y, self._bands[3]))

    @cached_property
    def _bands(self) -> list["_Bands"]:
        return [_bands(matrix) for matrix in (self.rows, self.columns, self.rows.T, self.columns.T)]

    @cached_property
    def _factors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        ur, sr, vr = torch.linalg.svd(self.rows)
        uc, sc, vc = torch.linalg.svd(self.columns)
        return ur, sr, vr, uc, sc, vc

    def pinv(self, y: Tensor) -> Tensor:
        ur, sr, vr, uc, sc, vc = self._factors
        s = sr[:, None] * sc
        inverse = torch.where(s > self.rcond * s.max(), 1 / s, 0.0)
        k, j = s.shape
        x: Tensor = vr[:k].T @ (inverse * (ur[:, :k].T @ y @ uc[:, :j])) @ vc[:j]
        return x

    def svd(self) -> SVD:
        ur, sr, vr, uc, sc, vc = self._factors
        c, h, w = self.shape
        k, j = len(sr), len(sc)
        s = (sr[:, None] * sc).expand(c, k, j).reshape(1, -1)
        # The entries of vt that have a singular value come first, the null space after them.
        inside = torch.zeros(c, h, w, dtype=torch.bool, device=s.device)
        inside[:, :k, :j] = True
        order = torch.cat([inside.flatten().nonzero()[:, 0], (~inside).flatten().nonzero()[:, 0]])
        back = order.argsort()
        return SVD(
            s,
            lambda z: ur[:, :k] @ z.reshape(len(z), c, k, j) @ uc[:, :j].T,
            lambda y: (ur[:, :k].T @ y @ uc[:, :j]).flatten(1),
            lambda z: vr.T @ z[:, back].reshape(len(z), *self.shape) @ vc,
            lambda x: (vr @ x @ vc.T).flatten(1)[:, order],
        )


@dataclass(frozen=True, eq=False)
class Convolution(LinearOperator):
    """Convolves each channel with the kernel of its sample.

    Small kernels are applied directly, large ones by Fourier transform.

    Attributes:
        kernel: Shape (B, 1 or C, h, w), h and w odd.
        boundary: The image beyond the border: mirrored ("reflect"), zero ("zero"), or none, so that
            the measurement is smaller by h - 1 and w - 1 ("valid").
    """

    kernel: Tensor
    boundary: Literal["reflect", "zero", "valid"] = "reflect"

    def __call__(self, x: Tensor) -> Tensor:
        h, w = self.kernel.shape[-2:]
        b, c = x.shape[:2]
        if self.boundary != "valid":
            x = pad(
                x,
                (w // 2, w // 2, h // 2, h // 2),
                "reflect" if self.boundary == "reflect" else "constant",
            )
        y: Tensor
        if h * w <= _DIRECT:
            weight = self.kernel.flip(-2, -1).expand(b, c, h, w).reshape(b * c, 1, h, w)
            y = conv2d(x.reshape(1, b * c, *x.shape[-2:]), weight, groups=b * c)
            return y.reshape(b, c, x.shape[-2] - h + 1, x.shape[-1] - w + 1)
        size = x.shape[-2:]
        y = torch.fft.irfft2(torch.fft.rfft2(x) * torch.fft.rfft2(self.kernel, s=size), s=size)
        return y[..., h - 1 :, w - 1 :]

    def adjoint(self, y: Tensor) -> Tensor:
        h, w = self.kernel.shape[-2:]
        b, c = y.shape[:2]
        size = (y.shape[-2] + h - 1, y.shape[-1] + w - 1)
        if h * w <= _DIRECT:
            weight = self.kernel.flip(-2, -1).expand(b, c, h, w).reshape(b * c, 1, h, w)
            x = conv_transpose2d(y.reshape(1, b * c, *y.shape[-2:]), weight, groups=b * c).reshape(
                b, c, *size
            )
        else:
            spectrum = (
                torch.fft.rfft2(pad(y, (w - 1, 0, h - 1, 0)))
                * torch.fft.rfft2(self.kernel, s=size).conj()
            )
            x = torch.fft.irfft2(spectrum, s=size)
        if self.boundary == "valid":
            return x
        for axis, reach in ((-2, h // 2), (-1, w // 2)):
            x = _fold(x, axis, reach, self.boundary == "reflect")
        return x


def _fold(x: Tensor, axis: int, reach: int, reflect: bool) -> Tensor:
    """Applies the adjoint of padding an axis by `reach` on both sides."""
    if reach == 0:
        return x
    n = x.shape[axis] - 2 * reach
    core = x.narrow(axis, reach, n).clone()
    if reflect:
        core.narrow(axis, 1, reach).add_(x.narrow(axis, 0, reach).flip(axis))
        core.narrow(axis, n - 1 - reach, reach).add_(x.narrow(axis, n + reach, reach).flip(axis))
    return core


@dataclass(frozen=True, eq=False)
class CircularConvolution(LinearOperator):
    """Convolves each channel with the kernel of its sample, with periodic boundaries.

    It is diagonal in the Fourier basis. A = P H diag(|k|) H, where k is the Fourier transform of
    the kernel. P is the convolution by its phase and orthogonal. H is the Hartley transform, which
    is real, symmetric and orthogonal.

    Attributes:
        kernel: Shape (B, 1 or C, h, w), centred; h and w odd, at most H and W.
        rcond: Frequencies below this share of the largest count as lost in `pinv`.
    """

    kernel: Tensor
    rcond: float = 1e-4

    @cached_property
    def _spectrum(self) -> Tensor:
        return self._transfer(torch.fft.rfft2)

    def _transfer(self, transform: Callable[[Tensor], Tensor]) -> Tensor:
        h, w = self.kernel.shape[-2:]
        _, height, width = self.shape
        whole = pad(self.kernel, (0, width - w, 0, height - h)).roll(
            (-(h // 2), -(w // 2)), (-2, -1)
        )
        return transform(whole)

    def _filter(self, x: Tensor, spectrum: Tensor) -> Tensor:
        y: Tensor = torch.fft.irfft2(torch.fft.rfft2(x) * spectrum, s=self.shape[1:])
        return y

    def __call__(self, x: Tensor) -> Tensor:
        return self._filter(x, self._spectrum)

    def adjoint(self, y: Tensor) -> Tensor:
        return self._filter(y, self._spectrum.conj())

    def pinv(self, y: Tensor) -> Tensor:
        k = self._spectrum
        size = k.abs()
        kept = size > self.rcond * size.amax((-2, -1), keepdim=True)
        return self._filter(y, torch.where(kept, 1 / torch.where(kept, k, 1), 0))

    def svd(self) -> SVD:
        k = self._transfer(torch.fft.fft2)
        half = self._spectrum
        phase = torch.where(
            half.abs() > 0, half / half.abs().clamp(min=torch.finfo(half.abs().dtype).tiny), 1
        )
        scale = prod(self.shape[1:]) ** 0.5

        def hartley(x: Tensor) -> Tensor:
            spectrum: Tensor = torch.fft.fft2(x) / scale
            return spectrum.real - spectrum.imag

        def whole(z: Tensor) -> Tensor:
            return z.reshape(len(z), *self.shape)

        return SVD(
            k.abs().expand(-1, *self.shape).flatten(1),
            lambda z: self._filter(hartley(whole(z)), phase),
            lambda y: hartley(self._filter(y, phase.conj())).flatten(1),
            lambda z: hartley(whole(z)),
            lambda x: hartley(x).flatten(1),
        )


def blur(name: str, shape: tuple[int, ...], kernel: Tensor, boundary: Boundary) -> LinearOperator:
    """Returns the convolution with one kernel per sample.

    Args:
        name: The operator, for messages.
        shape: (C, H, W).
        kernel: Shape (B, h, w).
        boundary: The image beyond the border, as in `Convolution`, or "circular", which is diagonal
            in the Fourier basis and so provides `pinv` and `svd`.

    Raises:
        RecipeError: If the size of the kernel is even or too large for the image.
    """
    _, height, width = image_shape(name, shape)
    h, w = kernel.shape[-2:]
    if h % 2 == 0 or w % 2 == 0:
        raise RecipeError(f"{name}: the size of a kernel must be odd, got {h}×{w}")
    reach = (
        max(h // 2 - height, w // 2 - width) + 1
        if boundary == "reflect"
        else max(h - height, w - width)
    )
    if reach > 0:
        raise RecipeError(
            f"{name}: a kernel of {h}×{w} is too large for images of {height}×{width} with"
            f" boundary: {boundary}"
        )
    if boundary == "circular":
        return CircularConvolution(shape, kernel[:, None])
    return Convolution(shape, kernel[:, None], boundary)
