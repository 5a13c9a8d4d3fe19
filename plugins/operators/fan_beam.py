"""Computed tomography with a fan beam."""

import math
from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Interval
from torch import Generator, Tensor

from invem import LinearOperator, RecipeError, examples
from invem.operator import image_shape

from ._tomography import Geometry, backproject, project, pseudo_inverse


@dataclass(frozen=True, eq=False)
class FanBeam(LinearOperator):
    """A x = the means of x over narrow wedges between the source and equiangular detectors.

    Attributes:
        geometry: The positions of the source, its distance, and the detectors.
    """

    geometry: Geometry

    def __call__(self, x: Tensor) -> Tensor:
        return project(self.geometry, x)

    def adjoint(self, y: Tensor) -> Tensor:
        return backproject(self.geometry, y)

    def pinv(self, y: Tensor) -> Tensor:
        """Returns A^+ y, exactly for small images, and by conjugate gradients for large ones."""
        return pseudo_inverse(self, self.geometry, y)


@examples({"angles": 6, "detectors": 1.0})
def fan_beam(
    n: int,
    shape: tuple[int, ...],
    rng: Generator,
    *,
    angles: Annotated[int, Ge(1)] = 60,
    limit: Annotated[float, Interval(gt=0, le=360)] = 360.0,
    distance: Annotated[float, Gt(0.75)] = 2.0,
    detectors: Annotated[float, Interval(gt=0, le=4)] = 1.5,
) -> FanBeam:
    """Projects each image from a source that moves around it (fan-beam tomography).

    The equiangular detectors lie on an arc.

    Args:
        n: The number of observations; the operator is the same for all.
        shape: (C, H, H): square images.
        rng: Not used.
        angles: The number of positions of the source.
        limit: The range of positions, in degrees; 360 is a full turn.
        distance: The distance from the source to the centre, in units of the height of the image.
        detectors: Detectors per pixel of the height of the image. They cover the circle around it.

    Raises:
        RecipeError: If the images are not square.
    """
    _, height, width = image_shape("fan-beam", shape)
    if height != width:
        raise RecipeError(f"fan-beam needs square images, got {height}×{width}")
    step = math.radians(limit) / angles
    positions = tuple(step * k for k in range(angles))
    return FanBeam(
        shape, Geometry(height, positions, max(2, round(detectors * height)), distance * height)
    )
