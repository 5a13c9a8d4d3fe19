"""Computed tomography with parallel beams."""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Interval
from torch import Generator, Tensor

from invem import LinearOperator, RecipeError, examples
from invem.operator import image_shape

from ._tomography import Geometry, backproject, project, pseudo_inverse


@dataclass(frozen=True, eq=False)
class Radon(LinearOperator):
    """A x = the means of x over strips one detector wide, for each angle.

    The integrals of square pixels are exact, as one sparse matrix; the adjoint is its transpose.
    Values are in units of the data times the width of the image.

    Attributes:
        geometry: The directions and the detectors, each one pixel wide.
    """

    geometry: Geometry

    def __call__(self, x: Tensor) -> Tensor:
        return project(self.geometry, x)

    def adjoint(self, y: Tensor) -> Tensor:
        return backproject(self.geometry, y)

    def filtered(self, y: Tensor) -> Tensor:
        """Returns the filtered back-projection, the classical reconstruction, shape (B, *shape).

        It uses the ramp filter of Ram and Lak (1971).
        """
        n, angles = self.geometry.detectors, self.geometry.angles
        at = torch.arange(-n, n + 1, device=y.device, dtype=y.dtype)
        ramp = torch.where(at % 2 == 0, 0.0, -1 / (math.pi * at.masked_fill(at == 0, 1)) ** 2)
        ramp[n] = 0.25
        size = 4 * n
        spectrum = torch.fft.rfft(y, size) * torch.fft.rfft(ramp, size)
        filtered = torch.fft.irfft(spectrum, size)[..., n : 2 * n]
        step = angles[1] - angles[0] if len(angles) > 1 else math.pi
        return self.adjoint(filtered) * (step * self.shape[-1] ** 2)

    def pinv(self, y: Tensor) -> Tensor:
        """Returns A^+ y, exactly for small images, and by conjugate gradients for large ones.

        Filtered back-projection alone does not satisfy A A^+ A = A.
        """
        return pseudo_inverse(self, self.geometry, y)


@examples({"angles": 6}, {"angles": 5, "limit": 90.0})
def radon(
    n: int,
    shape: tuple[int, ...],
    rng: Generator,
    *,
    angles: Annotated[int, Ge(1)] = 60,
    limit: Annotated[float, Interval(gt=0, le=180)] = 180.0,
) -> Radon:
    """Projects each image along equispaced directions (parallel-beam tomography).

    The angles may be few (sparse-view) or limited in range (limited-angle).

    Args:
        n: The number of observations; the operator is the same for all.
        shape: (C, H, H): square images.
        rng: Not used.
        angles: The number of directions.
        limit: The range of directions, in degrees; 180 is complete.

    Raises:
        RecipeError: If the images are not square.
    """
    _, height, width = image_shape("radon", shape)
    if height != width:
        raise RecipeError(f"radon needs square images, got {height}×{width}")
    step = math.radians(limit) / angles
    detectors = math.ceil(height * 2**0.5)
    return Radon(
        shape,
        Geometry(
            height, tuple(step * k for k in range(angles)), detectors + (detectors + height) % 2
        ),
    )
