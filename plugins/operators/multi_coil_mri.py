"""Accelerated multi-coil MRI."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Interval
from torch import Generator, Tensor

from invem import LinearOperator, RecipeError, examples, shared
from invem.operator import image_shape

from ._kspace import kspace_mask


@dataclass(frozen=True, eq=False)
class MultiCoilMRI(LinearOperator):
    """A x = (mask * F (s_c * x)) for each coil c, with complex images as two channels.

    Attributes:
        mask: 1 where a frequency is measured, shape (B, 1, H, W).
        coils: The sensitivities s, sum over c of |s_c|^2 = 1, shape (coils, 2, H, W).
    """

    mask: Tensor
    coils: Tensor = shared()

    @property
    def seen(self) -> Tensor:
        return (self.mask != 0).to(self.mask.dtype)

    @cached_property
    def _phased(self) -> tuple[Tensor, Tensor]:
        """Coils and mask times the phases that centre both sides of the transform.

        They replace two shifts of every image.
        """
        turns = []
        for n in self.shape[1:]:
            k = torch.arange(n, device=self.mask.device)
            # Whole turns are removed exactly: for an even n the phases are then +1 and -1.
            inner, outer = ((n // 2 * j % n).double() / n for j in (k, k - n // 2))
            turns.append((inner, outer))
        (row, row_out), (column, column_out) = turns
        inner, outer = (
            torch.polar(torch.ones_like(t), 2 * torch.pi * t)
            for t in (row[:, None] + column, row_out[:, None] + column_out)
        )
        s = self._complex(self.coils)
        return s * inner.to(s.dtype), self.mask * outer.to(s.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        s, mask = self._phased
        seen = mask * torch.fft.fft2(s * self._complex(x)[:, None], norm="ortho")
        return torch.view_as_real(seen).movedim(-1, 2).flatten(1, 2)

    def adjoint(self, y: Tensor) -> Tensor:
        s, mask = self._phased
        seen = torch.fft.ifft2(mask.conj() * self._complex(y.unflatten(1, (-1, 2))), norm="ortho")  # type: ignore[no-untyped-call]
        return torch.view_as_real((s.conj() * seen).sum(1)).movedim(-1, 1)

    @staticmethod
    def _complex(x: Tensor) -> Tensor:
        return torch.view_as_complex(x.movedim(-3, -1).contiguous())


def _birdcage(coils: int, height: int, width: int) -> Tensor:
    """Simulates the coils of a birdcage, on a circle of 1.5 times the half width.

    Their field falls with the distance and turns with the angle.
    """
    angle = 2 * math.pi * torch.arange(coils)[:, None, None] / coils
    row, column = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
    dy, dx = row - 1.5 * angle.sin(), column - 1.5 * angle.cos()
    s = torch.polar(1 / torch.hypot(dx, dy), torch.atan2(dx, -dy) + angle)
    s = s / s.abs().square().sum(0, keepdim=True).sqrt()
    return torch.view_as_real(s).movedim(-1, 1).contiguous()


@examples({"coils": 3, "acceleration": 2, "pattern": "equispaced"})
def multi_coil_mri(
    n: int,
    shape: tuple[int, ...],
    rng: Generator,
    *,
    coils: Annotated[int, Ge(1)] = 8,
    acceleration: Annotated[int, Ge(1)] = 4,
    centre: Annotated[float, Interval(ge=0, le=1)] = 0.08,
    pattern: Literal["random", "equispaced", "variable"] = "equispaced",
    lines: Literal["columns", "points"] = "columns",
) -> MultiCoilMRI:
    """Measures a part of the Fourier coefficients of each coil image of a simulated birdcage.

    Args:
        n: The number of observations.
        shape: (2, H, W): real and imaginary part.
        rng: Draws a mask per observation.
        coils: The number of coils.
        acceleration: One over the fraction of the frequencies that is measured.
        centre: The fraction of the frequencies that is always measured, at the centre.
        pattern: How the others are sampled: at "random", "equispaced" from a random offset, or with
            a "variable" density.
        lines: Whether whole "columns" or single "points" are sampled.

    Raises:
        RecipeError: If the images do not have two channels.
    """
    channels, height, width = image_shape("multi-coil-mri", shape)
    if channels != 2:
        raise RecipeError(
            "multi-coil-mri needs complex images: 2 channels, real and imaginary part; got"
            f" {channels}"
        )
    mask = kspace_mask(
        "multi-coil-mri", n, (height, width), rng, acceleration, centre, pattern, lines
    )
    return MultiCoilMRI(shape, mask, _birdcage(coils, height, width))
