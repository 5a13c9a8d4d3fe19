"""What every network must do."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invem.denoiser import Denoiser, Preconditioned
from invem.errors import RecipeError
from invem.testing.base import (
    BATCH,
    SHAPES,
    Factory,
    Kind,
    example_options,
    normal_like,
    relative_error,
)

__all__ = ["NETWORKS"]


@dataclass
class _Case:
    """A network with one set of options.

    Attributes:
        build: Builds the denoiser around a new network.
        x: Signals, shape (B, *shape).
    """

    build: Callable[[], Denoiser]
    x: Tensor

    def random(self) -> Denoiser:
        """Returns the denoiser with random weights: many networks start with weights of zero, which
        hide mistakes."""
        denoiser = self.build().eval()
        for name, weight in denoiser.named_parameters():
            weight.data = 0.1 * normal_like(weight.data, name)
        return denoiser


def _cases(factory: Factory, folder: Path) -> Iterator[tuple[str, _Case]]:
    for shape in SHAPES:
        for label, options in example_options(factory, shape, folder):

            def build(
                shape: tuple[int, ...] = shape, options: dict[str, Any] = options
            ) -> Denoiser:
                network = factory(shape, **options)
                return network if isinstance(network, Denoiser) else Preconditioned(network, 0.5)

            try:
                build()
            except RecipeError:
                continue
            yield f"{shape}, {label}", _Case(build, normal_like(torch.empty(BATCH, *shape), "x"))


NETWORKS = Kind(
    "networks",
    "Tried as a denoiser, with random weights, on those of the shapes of operators that the network"
    " accepts.",
    _cases,
)


@NETWORKS.contract("sigma broadcasts", tolerance=1e-4)
def sigma_broadcasts(case: _Case) -> float:
    """The noise level can be a number, or a tensor of shape (), (B,) or (B, 1, ...)."""
    denoiser, x = case.random(), case.x
    one, levels = denoiser(x, 0.7), torch.full((len(x),), 0.7)
    shaped = levels.reshape(-1, *[1] * (x.ndim - 1))
    return max(
        relative_error(denoiser(x, sigma), one) for sigma in (levels, shaped, torch.tensor(0.7))
    )


@NETWORKS.contract("per sample", tolerance=1e-3)
def per_sample(case: _Case) -> float:
    """A sample is denoised in a batch as it is alone, each with its own noise level."""
    denoiser, x, levels = case.random(), case.x, torch.tensor([0.1, 1.0, 10.0])
    alone = torch.cat([denoiser(x[i : i + 1], float(levels[i])) for i in range(len(x))])
    return relative_error(alone, denoiser(x, levels))


@NETWORKS.contract("saved and loaded", tolerance=0.0)
def saved_and_loaded(case: _Case) -> float:
    """`state_dict` holds the whole state: another network that loads it returns the same."""
    one, two = case.random(), case.build().eval()
    two.load_state_dict(one.state_dict())
    return relative_error(two(case.x, 0.3), one(case.x, 0.3))


@NETWORKS.contract("gradient reaches all", tolerance=0.0)
def gradient_reaches_all(case: _Case) -> float:
    """The number of trainable parameters with no gradient, which must be zero."""
    denoiser = case.random()
    denoiser(case.x, 0.5).square().sum().backward()
    trained = [w for w in denoiser.parameters() if w.requires_grad]
    return float(sum(w.grad is None or not bool(w.grad.any()) for w in trained))
