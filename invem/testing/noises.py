"""What every noise model must do."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invem.batched import Rng
from invem.errors import RecipeError
from invem.noise import NoiseModel
from invem.testing.base import Factory, Kind, example_options, relative_error

__all__ = ["NOISES"]

_COUNT = 4000  # draws, so that a mean is known to 0.016 standard deviations
_SHAPES = ((1, 4, 4), (5,))


@dataclass
class _Case:
    """A noise model with one set of options.

    Attributes:
        draw: Draws n noise models; the same at every call.
        clean: The clean measurement A(x), the same for all observations, shape (n, *shape).
        y: Draws given `clean`, shape (n, *shape).
    """

    draw: Callable[[int], NoiseModel]
    clean: Tensor
    y: Tensor

    @property
    def noise(self) -> NoiseModel:
        return self.draw(len(self.clean))


def _cases(factory: Factory, folder: Path) -> Iterator[tuple[str, _Case]]:
    for shape in _SHAPES:
        for label, options in example_options(factory, shape, folder):

            def draw(
                n: int, shape: tuple[int, ...] = shape, options: dict[str, Any] = options
            ) -> NoiseModel:
                model: NoiseModel = factory(n, shape, Rng.generator("contracts"), **options)
                return model

            try:
                noise = draw(_COUNT)
            except RecipeError:
                continue
            signal = torch.linspace(-0.8, 0.9, math.prod(shape)).reshape(1, *shape)
            clean = signal.expand(_COUNT, *shape).contiguous()
            y = noise.sample(clean, Rng.generator("contracts", "y"))
            yield f"{shape}, {label}", _Case(draw, clean, y)


NOISES = Kind(
    "noises",
    "Tried on an image and on a vector, with values from -0.8 to 0.9, on 4,000 draws.",
    _cases,
)


@NOISES.contract("shapes", tolerance=0.0)
def shapes(case: _Case) -> float:
    """y is float32 and has the shape of A(x), `log_prob` has one value per observation, and all are
    finite."""
    density = case.noise.log_prob(case.y, case.clean)
    right = (
        case.y.shape == case.clean.shape
        and density.shape == (len(case.y),)
        and case.y.dtype == torch.float32
        and bool(case.y.isfinite().all() and density.isfinite().all())
    )
    return float(not right)


@NOISES.contract("score", tolerance=5.0)
def score(case: _Case) -> float:
    """The gradient of `log_prob` with respect to A(x) has mean zero over draws of y; the largest
    mean, in standard errors."""
    clean = case.clean.double().requires_grad_()
    noise = case.noise.to(dtype=torch.float64)
    (gradient,) = torch.autograd.grad(noise.log_prob(case.y.double(), clean).sum(), clean)
    error = gradient.std(0).clamp(min=1e-12) / len(gradient) ** 0.5
    return float((gradient.mean(0).abs() / error).max())


@NOISES.contract("variance", tolerance=5.0)
def variance(case: _Case) -> float | None:
    """y - A(x) has mean zero and the variance `var`, in standard errors; only for noise that is
    Gaussian."""
    if "normal" not in case.noise.provides:
        return None
    var = case.noise.var().expand_as(case.y).double()
    z = (case.y - case.clean).double() / var.sqrt()
    error = (z.square().std(0) / len(z) ** 0.5).clamp(min=1e-9)
    error_of_variance = (z.square().mean(0) - 1).abs() / error
    error_of_mean = z.mean(0).abs() * len(z) ** 0.5
    return float(torch.maximum(error_of_variance, error_of_mean).max())


@NOISES.contract("given", tolerance=1e-6)
def given(case: _Case) -> float:
    """`given` leaves `sample` and `log_prob` as they are, a selection has its own, and the variance
    that it knows, if any, is positive and finite for each entry of y."""
    noise, rows = case.noise.given(case.y), torch.tensor([3, 1])
    again = noise.sample(case.clean, Rng.generator("contracts", "y"))
    density = case.noise.log_prob(case.y, case.clean)
    error = relative_error(again, case.y)
    error = max(error, relative_error(noise.log_prob(case.y, case.clean), density))
    if "var" not in noise.provides:
        return error
    var = noise.var()
    alone = case.noise[rows].given(case.y[rows]).var()
    right = bool((var > 0).all() and var.isfinite().all())
    error = max(error, relative_error(alone.expand_as(case.y[rows]), var.expand_as(case.y)[rows]))
    return error if right else math.inf


@NOISES.contract("same again", tolerance=1e-6)
def same_again(case: _Case) -> float:
    """The same generator draws the same y, and a selection of observations has their
    `log_prob`."""
    again = case.noise.sample(case.clean, Rng.generator("contracts", "y"))
    rows = torch.tensor([3, 1])
    density = case.noise.log_prob(case.y, case.clean)
    selected = case.noise[rows].log_prob(case.y[rows], case.clean[rows])
    return max(relative_error(again, case.y), relative_error(selected, density[rows]))
