"""The samplers beside the codes people know: one network, one operator, the same numbers for noise,
the same steps, in one run.

Everything that can be is in float64, so that agreement means the same arithmetic and not a loose
tolerance. A test whose name says "on purpose" is of a difference that is meant, and quotes the line
of the paper that decides.
"""

from dataclasses import dataclass

import torch
from invem_plugins.networks.unet import UNet
from invem_plugins.noises.gaussian import Gaussian as Noise
from torch import Tensor, nn

from invem import (
    Denoiser,
    Gaussian,
    LinearOperator,
    Measurement,
    Preconditioned,
    Prior,
    Rng,
    Schedule,
)

SHAPE = (1, 8, 8)
NOISE = 0.1


class Numbers(Rng):
    """Streams that give the numbers they were made from, (B, *shape) each, in their order."""

    def __init__(self, *numbers: Tensor) -> None:
        super().__init__(range(len(numbers[0])))
        self.numbers = list(numbers)

    def _fill(self, shape, dtype, normal):
        return self.numbers.pop(0).reshape(len(self), *shape).to(dtype)


class Bounded(Denoiser):
    """A denoiser whose estimates lie strictly between -1 and 1, where a peer's clipping does
    nothing."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x_t, sigma, cond=None):
        return torch.tanh(self.inner(x_t, sigma))


@dataclass(frozen=True)
class Levels(Schedule):
    """The levels that a peer steps through."""

    levels: tuple[float, ...]

    def sigma(self, t):
        raise NotImplementedError

    def grid(self, steps):
        return torch.tensor(
            self.levels[:1] + self.levels[-1:] if steps == 2 else self.levels, dtype=torch.float64
        )


def network(dtype=torch.float64):
    """A U-Net of fixed weights, whose Jacobian is neither symmetric nor positive, as that of any
    network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Preconditioned(UNet(SHAPE, channels=[8, 16]), 0.5)
        for weight in net.parameters():
            nn.init.normal_(weight, std=0.08)
    return net.eval().requires_grad_(False).to(dtype)


def exact(dtype=torch.float64):
    """A Gaussian prior, the Jacobian of whose denoiser is symmetric and positive."""
    i = torch.arange(64, dtype=torch.float64)
    gaussian = Gaussian.full(
        torch.linspace(-0.3, 0.3, 64, dtype=torch.float64).reshape(SHAPE),
        0.8 ** (i[:, None] - i).abs(),
    )
    return Prior.of(gaussian.to(dtype=dtype))


def normal(n, count=None, seed=0, dtype=torch.float64):
    """Standard normals (n, *shape), or `count` of them."""
    numbers = torch.randn(
        count or 1, n, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)
    return numbers.unbind() if count else numbers[0]


def measured(A: LinearOperator, n: int, dtype=torch.float64) -> Measurement:
    """A measurement of smooth signals with noise of one level, none in hidden entries: the norms of
    the peers count it, ours do not."""
    A = A.to(dtype=dtype)
    ramp = torch.linspace(-0.6, 0.6, 8, dtype=dtype)
    x = (
        ramp[:, None] * ramp * torch.arange(1, n + 1, dtype=dtype)[:, None, None, None] / n
    ).expand(n, *SHAPE)
    noise = Noise(torch.full((n, 1, 1, 1), NOISE, dtype=dtype))
    y = noise.sample(A(x), torch.Generator().manual_seed(1))
    return Measurement(y if A.seen is None else y * A.seen, A, noise)


def feed(monkeypatch, numbers):
    """Has `torch.randn_like` give these numbers, in their order."""
    left = list(numbers)

    def given(x, **_):
        value = left.pop(0)
        assert value.shape == x.shape
        return value.to(x.dtype)

    monkeypatch.setattr(torch, "randn_like", given)


def gap(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the size of b."""
    return float((a - b).abs().max() / b.abs().max())
