"""Points on a random smooth curve: a low-dimensional prior far from Gaussian, of any size."""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from invem import Dataset, Example, RecipeError, Rng

_SMALLEST = 1e-3  # modes with an amplitude below this fraction of the first are left out
_GRID = 2**14


@dataclass(frozen=True, eq=False)
class Curve(Dataset):
    """Points on a curve; item i depends on (seed, split, i) alone.

    Attributes:
        split: "train" or "test".
        count: The number of points.
        waves: Amplitude, frequency and phase, in turns, of the K modes of each coordinate, shape
            (3, dimension, K).
        low: The minimum of each coordinate before scaling, shape (dimension,).
        high: The maximum of each.
        seed: The seed of the points.
    """

    split: str
    count: int
    waves: Tensor
    low: Tensor
    high: Tensor
    seed: int
    range = (-2.0, 2.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.low.shape))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: Tensor) -> Example:
        items = torch.arange(self.count)[index].tolist()
        t = Rng.keyed(self.seed, "smooth-manifold", self.split, items=items).uniform(
            1, dtype=torch.float64
        )[:, 0]
        x = (_along(self.waves, t) - self.low) / (self.high - self.low)
        return Example((4 * x - 2).clamp(-2, 2).float())


def _along(waves: Tensor, t: Tensor) -> Tensor:
    """Returns the unscaled curve at t in [0, 1], shape (B, dimension). t: (B,)."""
    x = torch.zeros(len(t), waves.shape[1], dtype=t.dtype)
    for amplitude, frequency, phase in waves.unbind(-1):
        x += amplitude * torch.sin(2 * math.pi * (frequency * t[:, None] + phase))
    return x


def smooth_manifold(
    split: str,
    *,
    dimension: Annotated[int, Ge(1)] = 5,
    alpha: Annotated[float, Ge(1)] = 3.0,
    train: Annotated[int, Ge(1), Le(1_000_000_000)] = 65536,
    test: Annotated[int, Ge(1), Le(1_000_000_000)] = 16384,
    seed: Annotated[int, Ge(0)] = 0,
) -> Curve:
    """Draws points on one random smooth curve, with coordinates between -2 and 2.

    This is the one-dimensional random manifold of F. Zenke and T. Vogels (Neural Computation 33,
    2021). Coordinate i at t, uniform on [0, 1], is

        sum_k a_ik k^-alpha sin(2 pi (k b_ik t + c_ik))

    with a, b, c uniform on [0, 1], over the modes k with k^-alpha >= 0.001. Each coordinate is
    scaled to range from -2 to 2 along the curve, as in DiEM (arXiv 2405.13712, section 5.1). DiEM
    uses alpha 3, dimension 5 and 65,536 points.

    Args:
        split: "train" or "test"; independent points on the same curve.
        dimension: The number of coordinates.
        alpha: The decay of the amplitudes; a larger one gives a smoother curve.
        train: The number of training points.
        test: The number of test points.
        seed: The seed of the curve and of its points.
    """
    if split not in ("train", "test"):
        raise RecipeError(f"split '{split}' is not one of: train, test")
    modes = math.ceil(_SMALLEST ** (-1 / alpha) - 1e-9)
    waves = torch.rand(
        3, dimension, modes, generator=Rng.generator("smooth-manifold", seed), dtype=torch.float64
    )
    k = torch.arange(1.0, modes + 1, dtype=torch.float64)
    waves = torch.stack([waves[0] * k**-alpha, waves[1] * k, waves[2]])
    grid = _along(waves, torch.linspace(0, 1, _GRID, dtype=torch.float64))
    return Curve(
        split,
        train if split == "train" else test,
        waves,
        grid.min(0).values,
        grid.max(0).values,
        seed,
    )
