"""A convolutional U-Net."""

from typing import Annotated

import torch
from annotated_types import Ge, Interval, Le, MinLen
from torch import Tensor, nn
from torch.nn.functional import (
    interpolate,
    pad,
    pixel_shuffle,
    pixel_unshuffle,
    scaled_dot_product_attention,
    silu,
)

from invem import RecipeError


class UNet(nn.Module):
    """A U-Net of residual blocks with GroupNorm, each modulated by the noise level.

    It follows Ho et al. 2020 (arXiv 2006.11239), with scale and shift as in Nichol & Dhariwal 2021
    (arXiv 2102.09672). It takes any number of channels and any size.

    Args:
        shape: (C, H, W).
        channels: The width of each level, from the finest; each further level halves the
            resolution.
        blocks: Residual blocks per level.
        attention: The levels (0 = finest) whose blocks are followed by self-attention.
        heads: The number of attention heads.
        dropout: The fraction of activations dropped in training.
        patch: The width of the square patches into which the input is cut; 2 computes at half the
            resolution.
        condition: The number of tensors of the signal's shape that a conditional objective gives
            with x_t.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        channels: Annotated[list[Annotated[int, Ge(1)]], MinLen(1)] = [32, 64],  # noqa: B006
        blocks: Annotated[int, Ge(1), Le(1_000)] = 2,
        attention: list[int] = [],  # noqa: B006
        heads: Annotated[int, Ge(1)] = 1,
        dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0,
        patch: Annotated[int, Ge(1)] = 1,
        condition: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__()
        if len(shape) != 3:
            raise RecipeError(
                f"unet acts on images (channels, height, width), not on signals of shape {shape};"
                " try mlp"
            )
        if any(not 0 <= i < len(channels) for i in attention):
            raise RecipeError(
                f"unet: attention names levels 0 to {len(channels) - 1}, got {attention}"
            )
        if any(channels[i] % heads for i in attention):
            raise RecipeError(
                f"unet: heads must divide the channels of the levels with attention, got {heads}"
            )
        self.patch, self.condition = patch, condition
        pixels = shape[0] * patch**2
        width = 4 * channels[0]
        self.register_buffer(
            "frequencies", torch.exp(torch.linspace(-1.5, 3.5, 16)), persistent=False
        )
        self.level = nn.Sequential(
            nn.Linear(32, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.enter = nn.Conv2d((1 + condition) * pixels, channels[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        before = channels[0]
        for i, c in enumerate(channels):
            has = heads if i in attention else 0
            sizes = [before] + [c] * (blocks - 1)
            self.down.append(nn.ModuleList(Block(a, c, width, dropout, has) for a in sizes))
            before = c
        for i, c in reversed(list(enumerate(channels))):
            has = heads if i in attention else 0
            sizes = [before + c] + [c] * (blocks - 1)
            self.up.append(nn.ModuleList(Block(a, c, width, dropout, has) for a in sizes))
            before = c
        self.norm = _norm(before)
        self.leave = nn.Conv2d(before, pixels, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.constant_(self.leave.bias, 0.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """Maps (B, C, H, W), c_noise (B,) and cond (B, condition, C, H, W) to (B, C, H, W).

        `cond` is zero if None.
        """
        height, width = x.shape[-2:]
        if self.condition:
            given = (
                x.new_zeros(len(x), self.condition, *x.shape[1:])
                if cond is None
                else cond.to(x.dtype)
            )
            x = torch.cat([x, given.flatten(1, 2)], 1)
        x = pad(x, (0, -width % self.patch, 0, -height % self.patch))
        angle = c_noise[:, None] * self.get_buffer("frequencies")
        level = self.level(torch.cat([angle.cos(), angle.sin()], 1))
        h = self.enter(pixel_unshuffle(x, self.patch))
        skips = []
        for i, blocks in enumerate(self.down):
            h = _halve(h) if i else h
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, level)
            skips.append(h)
        for blocks in self.up:
            skip = skips.pop()
            h = torch.cat(
                [h if h.shape[-2:] == skip.shape[-2:] else interpolate(h, skip.shape[-2:]), skip], 1
            )
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, level)
        out: Tensor = pixel_shuffle(self.leave(silu(self.norm(h))), self.patch)
        return out[..., :height, :width]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(next(g for g in (8, 4, 2, 1) if channels % g == 0), channels)


def _halve(h: Tensor) -> Tensor:
    return nn.functional.avg_pool2d(h, 2, ceil_mode=True, count_include_pad=False)


class Block(nn.Module):
    """Two convolutions with a residual connection, then self-attention if `heads` is not 0."""

    def __init__(self, before: int, after: int, level: int, dropout: float, heads: int) -> None:
        super().__init__()
        self.first_norm, self.first = _norm(before), nn.Conv2d(before, after, 3, padding=1)
        self.second_norm, self.second = _norm(after), nn.Conv2d(after, after, 3, padding=1)
        self.film = nn.Linear(level, 2 * after)
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Conv2d(before, after, 1) if before != after else nn.Identity()
        nn.init.zeros_(self.second.weight)
        self.heads = heads
        if heads:
            self.attention_norm = _norm(after)
            self.qkv, self.project = nn.Conv2d(after, 3 * after, 1), nn.Conv2d(after, after, 1)
            nn.init.zeros_(self.project.weight)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        scale, shift = self.film(level)[..., None, None].chunk(2, 1)
        h: Tensor = self.first(silu(self.first_norm(x)))
        h = self.second(self.dropout(silu(self.second_norm(h) * (1 + scale) + shift)))
        h = self.skip(x) + h
        if self.heads:
            b, c, height, width = h.shape
            qkv = self.qkv(self.attention_norm(h)).reshape(
                b, 3, self.heads, c // self.heads, height * width
            )
            q, k, v = qkv.transpose(-1, -2).unbind(1)
            mixed = (
                scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(b, c, height, width)
            )
            h = h + self.project(mixed)
        return h
