"""The orthonormal Fourier transform of complex images, and the masks of accelerated MRI.

A complex image has two channels, its real and its imaginary part.
"""

import math

import torch
from torch import Generator, Tensor

from invem.errors import RecipeError

__all__ = ["fourier", "fourier_adjoint", "kspace_mask"]


def fourier(x: Tensor) -> Tensor:
    """Returns the centred orthonormal 2-D Fourier transform of x, shape (..., 2, H, W)."""
    z = torch.view_as_complex(x.movedim(-3, -1).contiguous())
    z = torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(z, (-2, -1)), norm="ortho"), (-2, -1))
    return torch.view_as_real(z).movedim(-1, -3)


def fourier_adjoint(y: Tensor) -> Tensor:
    """Returns the adjoint of `fourier`, which is its inverse. y: (..., 2, H, W)."""
    z = torch.view_as_complex(y.movedim(-3, -1).contiguous())
    z = torch.fft.fftshift(
        torch.fft.ifft2(torch.fft.ifftshift(z, (-2, -1)), norm="ortho"), (-2, -1)
    )
    return torch.view_as_real(z).movedim(-1, -3)


def _equispaced(n: int, total: int, inner: Tensor, lines: int, rng: Generator) -> Tensor:
    """Draws n masks of equispaced lines from a random offset, shape (n, total).

    Args:
        n: The number of masks.
        total: The number of all lines.
        inner: The lines that are always measured.
        lines: How many of the others are measured. They are as far apart as this number asks for,
            up to rounding, so that the centre does not add to the share that is measured.
        rng: Draws the offsets.
    """
    mask = torch.zeros(n, total)
    mask[:, inner] = 1
    if not lines:
        return mask
    outer = (mask[:1] == 0).expand(n, total).nonzero()[:, 1].reshape(n, -1)
    spacing = outer.shape[1] / lines
    offset = -torch.randint(math.ceil(spacing), (n, 1), generator=rng) % math.ceil(spacing)
    steps = (torch.arange(lines, dtype=torch.float64) * spacing + offset).long()
    return mask.scatter_(1, outer.gather(1, steps), 1.0)


def kspace_mask(
    name: str,
    n: int,
    size: tuple[int, int],
    rng: Generator,
    acceleration: int,
    centre: float,
    pattern: str,
    lines: str,
) -> Tensor:
    """Draws n Cartesian masks, shape (n, 1, H, W), zero frequency at the centre.

    Args:
        name: The name of the operator, for messages.
        n: The number of masks.
        size: (H, W).
        rng: Draws the masks.
        acceleration: One over the fraction that is measured, the centre included.
        centre: The fraction that is always measured.
        pattern: "random", "equispaced" or "variable".
        lines: "columns" or "points".

    Raises:
        RecipeError: If the centre alone exceeds 1/acceleration, or points are to be equispaced.
    """
    height, width = size
    if pattern == "equispaced" and lines == "points":
        raise RecipeError(f"{name}: pattern equispaced is for lines: columns")
    if centre * acceleration > 1:
        raise RecipeError(
            f"{name}: centre must be at most 1/acceleration = {1 / acceleration:.3g}, got {centre}"
        )
    x = (torch.arange(width) - width // 2) / (width / 2)
    y = (torch.arange(height) - height // 2) / (height / 2)
    distance = x.abs() if lines == "columns" else torch.maximum(y.abs()[:, None], x.abs()).flatten()
    total = len(distance)
    wanted = max(1, round(total / acceleration))
    kept = min(wanted, max(1, round(centre * total))) if centre else 0
    inner = distance.argsort(stable=True)[:kept]
    if pattern == "equispaced":
        mask = _equispaced(n, total, inner, wanted - kept, rng)
    else:
        # The largest keys of Efraimidis and Spirakis are a weighted draw without replacement.
        weight = (
            torch.ones(total)
            if pattern == "random"
            else (1 - distance.clamp(max=1)).square() + 0.02
        )
        keys = torch.rand(n, total, generator=rng).log() / weight
        keys[:, inner] = 1
        mask = torch.zeros(n, total).scatter_(1, keys.topk(wanted).indices, 1.0)
    whole = (
        mask[:, None, None].expand(n, 1, height, width)
        if lines == "columns"
        else mask.reshape(n, 1, height, width)
    )
    return whole.contiguous()
