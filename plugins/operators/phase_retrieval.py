"""Phase retrieval: the magnitude of an oversampled Fourier transform."""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Generator, Tensor

from invem import Operator
from invem.operator import image_shape


@dataclass(frozen=True, eq=False)
class PhaseRetrieval(Operator):
    """A(x) = |F pad((x + 1)/2)| for each channel, F orthonormal on the padded image.

    Attributes:
        padding: The number of zeros on each side, for rows and columns.
    """

    padding: tuple[int, int]

    def _field(self, x: Tensor) -> Tensor:
        down, right = self.padding
        padded = torch.nn.functional.pad((x + 1) / 2, (right, right, down, down))
        z: Tensor = torch.fft.fft2(padded, norm="ortho")
        return z

    def __call__(self, x: Tensor) -> Tensor:
        return self._field(x).abs()

    def vjp(self, x: Tensor, v: Tensor) -> Tensor:
        z = self._field(x)
        back: Tensor = torch.fft.ifft2(v * z.sgn(), norm="ortho").real
        (down, right), (height, width) = self.padding, x.shape[-2:]
        return back[..., down : down + height, right : right + width] / 2


def phase_retrieval(
    n: int,
    shape: tuple[int, ...],
    rng: Generator,
    *,
    oversampling: Annotated[float, Interval(ge=1, le=4)] = 2.0,
) -> PhaseRetrieval:
    """Measures the magnitude of the Fourier transform of each image; the phase is lost.

    The image is first mapped to [0, 1] and padded with zeros.

    Args:
        n: The number of observations; the operator is the same for all.
        shape: (C, H, W).
        rng: Not used.
        oversampling: The size of the padded image over that of the image. At least 2 is needed to
            determine the image, up to shift and reflection.
    """
    _, height, width = image_shape("phase-retrieval", shape)
    down, right = (round((oversampling - 1) * size / 2) for size in (height, width))
    return PhaseRetrieval(shape, (down, right))
