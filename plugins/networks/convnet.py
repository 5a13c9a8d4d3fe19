"""A convolutional network with a small receptive field."""

from typing import Annotated

import torch
from annotated_types import Ge, Le, MinLen
from torch import Tensor, nn
from torch.nn.functional import silu

from invem import RecipeError


class ConvNet(nn.Module):
    """Full-resolution residual convolutions with a small receptive field.

    Each block is modulated by the noise level. There is no pooling, attention or normalisation, so
    an output sees only 1 + sum (k - 1) pixels in each direction. Each pixel of an image is then a
    training example, and few images suffice to learn the distribution of patches.

    Args:
        shape: (C, H, W).
        kernels: The width of each convolution, odd. The first maps the input; the others are
            residual.
        width: The number of hidden channels.
        condition: The number of tensors of the signal's shape that a conditional objective gives
            with x_t.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        kernels: Annotated[list[Annotated[int, Ge(1)]], MinLen(1)] = [5, 3, 1, 1, 1],  # noqa: B006
        width: Annotated[int, Ge(1), Le(65_536)] = 32,
        condition: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__()
        if len(shape) != 3:
            raise RecipeError(
                "convnet acts on images (channels, height, width), not on signals of shape"
                f" {shape}; try mlp"
            )
        if even := [k for k in kernels if k % 2 == 0]:
            raise RecipeError(f"convnet: kernels are odd, got {even[0]}")
        self.condition = condition
        self.register_buffer(
            "frequencies", torch.exp(torch.linspace(-1.5, 3.5, 16)), persistent=False
        )
        self.level = nn.Sequential(
            nn.Linear(32, 2 * width), nn.SiLU(), nn.Linear(2 * width, 2 * width), nn.SiLU()
        )
        self.enter = nn.Conv2d(
            (1 + condition) * shape[0], width, kernels[0], padding=kernels[0] // 2
        )
        self.blocks = nn.ModuleList(Block(width, k) for k in kernels[1:])
        self.leave = nn.Conv2d(width, shape[0], 1)
        nn.init.zeros_(self.leave.weight)
        nn.init.constant_(self.leave.bias, 0.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """Maps (B, C, H, W), c_noise (B,) and cond (B, condition, C, H, W) to (B, C, H, W).

        `cond` is zero if None.
        """
        if self.condition:
            given = (
                x.new_zeros(len(x), self.condition, *x.shape[1:])
                if cond is None
                else cond.to(x.dtype)
            )
            x = torch.cat([x, given.flatten(1, 2)], 1)
        angle = c_noise[:, None] * self.get_buffer("frequencies")
        level = self.level(torch.cat([angle.cos(), angle.sin()], 1))
        h = self.enter(x)
        for block in self.blocks:
            h = block(h, level)
        out: Tensor = self.leave(silu(h))
        return out


class Block(nn.Module):
    """h + W silu(h (1 + scale) + shift)."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.film = nn.Linear(2 * width, 2 * width)
        self.conv = nn.Conv2d(width, width, kernel, padding=kernel // 2)

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        scale, shift = self.film(level)[..., None, None].chunk(2, 1)
        inner: Tensor = self.conv(silu(h * (1 + scale) + shift))
        return h + inner
