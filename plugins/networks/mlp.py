"""A multilayer perceptron, for vectors and small images."""

import math
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn


class MLP(nn.Module):
    """A residual multilayer perceptron on the flattened signal.

    A block has two linear layers and is modulated by the noise level.

    Args:
        shape: The shape of one signal.
        width: The width of the hidden layers.
        depth: The number of residual blocks.
        condition: The number of tensors of the signal's shape that a conditional objective gives
            with x_t.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: Annotated[int, Ge(1), Le(65_536)] = 256,
        depth: Annotated[int, Ge(1), Le(1_000)] = 3,
        condition: Annotated[int, Ge(0)] = 0,
    ) -> None:
        super().__init__()
        d = math.prod(shape)
        self.condition = condition
        self.register_buffer(
            "frequencies", torch.exp(torch.linspace(-1.5, 3.5, 16)), persistent=False
        )
        self.level = nn.Sequential(nn.Linear(32, width), nn.SiLU())
        self.enter = nn.Linear((1 + condition) * d, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.leave = nn.Linear(width, d)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """Maps (B, *shape), c_noise (B,) and cond (B, condition, *shape) to (B, *shape).

        `cond` is zero if None.
        """
        angle = c_noise[:, None] * self.get_buffer("frequencies")
        level = self.level(torch.cat([angle.cos(), angle.sin()], 1))
        flat = x.flatten(1)
        if self.condition:
            given = (
                flat.new_zeros(len(x), self.condition * flat.shape[1])
                if cond is None
                else cond.flatten(1).to(x.dtype)
            )
            flat = torch.cat([flat, given], 1)
        h = self.enter(flat)
        for block in self.blocks:
            h = block(h, level)
        out: Tensor = self.leave(h)
        return out.reshape(x.shape)


class Block(nn.Module):
    """h + W2 silu(W1 norm(h) (1 + scale) + shift)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.film = nn.Linear(width, 2 * width)

    def forward(self, h: Tensor, level: Tensor) -> Tensor:
        scale, shift = self.film(level).chunk(2, 1)
        inner: Tensor = self.second(
            nn.functional.silu(self.first(self.norm(h)) * (1 + scale) + shift)
        )
        return h + inner
