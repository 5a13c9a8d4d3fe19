"""Random ellipse phantoms of any number and size, without a download."""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from invem import Dataset, Example, RecipeError, Rng

CHUNK = 64


@dataclass(frozen=True, eq=False)
class Phantoms(Dataset):
    """Random ellipse phantoms; item i depends on (seed, split, i) alone.

    A pixel is the sum of the intensities of the ellipses that cover it, clipped to [0, 1] and
    mapped to [-1, 1]. As in the phantom of L. Shepp and B. Logan (IEEE Trans. Nucl. Sci. 21, 1974),
    the first ellipse is a large bright head. The others are smaller, darker or brighter, rotated by
    any angle and clipped to the head. The coverage of a pixel is min(max(1/2 - d, 0), 1), with d
    the signed distance to the edge in pixels. To first order d is k0 (k0 - 1) / k1, where k0^2 =
    (u/a)^2 + (v/b)^2 and k1^2 = (u/a^2)^2 + (v/b^2)^2 in the frame of the ellipse.
    """

    split: str
    count: int
    shape: tuple[int, ...]
    ellipses: int
    seed: int
    range = (-1.0, 1.0)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: Tensor) -> Example:
        x = [self._draw(index[i : i + CHUNK]) for i in range(0, len(index), CHUNK)]
        return Example(torch.cat(x) if x else torch.empty(0, *self.shape))

    def _draw(self, index: Tensor) -> Tensor:
        """Returns the phantoms of these indices, shape (B, *shape)."""
        c, size, _ = self.shape
        items = torch.arange(self.count)[index].tolist()
        draws = Rng.keyed(self.seed, "phantom", self.split, items=items).uniform(
            self.ellipses, 5 + c
        )
        head = torch.arange(self.ellipses)[:, None] == 0
        axes = torch.where(head, 0.6 + 0.35 * draws[..., :2], 0.06 + 0.3 * draws[..., :2].square())
        centre = torch.where(head, 0.0, 0.6) * (2 * draws[..., 2:4] - 1)
        turn = torch.where(head, 0.3, math.pi) * (2 * draws[..., 4:5] - 1)
        level = torch.where(head, 0.25 + 0.35 * draws[..., 5:], 0.8 * draws[..., 5:] - 0.4)

        grid = (torch.arange(size) + 0.5) * (2 / size) - 1
        dx, dy = grid - centre[..., :1, None], grid[:, None] - centre[..., 1:, None]
        cos, sin = turn.cos()[..., None], turn.sin()[..., None]
        a, b = axes[..., :1, None], axes[..., 1:, None]
        u, v = (cos * dx + sin * dy) / a, (cos * dy - sin * dx) / b
        k0 = (u.square() + v.square() + 1e-12).sqrt()
        k1 = ((u / a).square() + (v / b).square() + 1e-12).sqrt()
        cover = (0.5 - (size / 2) * k0 * (k0 - 1) / k1).clamp(0, 1)
        cover[:, 1:] *= cover[:, :1]
        x = torch.zeros(len(items), *self.shape)
        for k in range(self.ellipses):
            x += level[:, k, :, None, None] * cover[:, k, None]
        return 2 * x.clamp(0, 1) - 1


def synthetic(
    split: str,
    *,
    size: Annotated[int, Ge(1), Le(16_384)] = 32,
    channels: Annotated[int, Ge(1), Le(100_000)] = 1,
    train: Annotated[int, Ge(1), Le(1_000_000_000)] = 4096,
    test: Annotated[int, Ge(1), Le(1_000_000_000)] = 512,
    ellipses: Annotated[int, Ge(1), Le(10_000)] = 6,
    seed: Annotated[int, Ge(0)] = 0,
) -> Phantoms:
    """Draws random ellipse phantoms in the style of Shepp and Logan.

    Args:
        split: "train" or "test"; the two share no phantom.
        size: The height and width, in pixels.
        channels: The number of channels. Each ellipse has a separate intensity per channel.
        train: The number of training images.
        test: The number of test images.
        ellipses: The number of ellipses per image, the head included.
        seed: The seed of the phantoms.
    """
    if split not in ("train", "test"):
        raise RecipeError(f"split '{split}' is not one of: train, test")
    return Phantoms(
        split, train if split == "train" else test, (channels, size, size), ellipses, seed
    )
