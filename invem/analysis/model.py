"""The observation model of the identifiability analysis: operators, noise, known signals."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from invem.batched import Rng
from invem.measurement import Measurement
from invem.noise import NoiseModel
from invem.operator import Operator

__all__ = [
    "ObservationModel",
    "draw_model",
    "example_signals",
    "noise_variance",
    "some_observations",
]

_OBSERVED, _MOST_OBSERVED = 2**21, 4096  # numbers of observations, and observations
_MOST_NUMBERS = 2**25  # the most numbers of all operators in memory at once


@dataclass(frozen=True, kw_only=True)
class ObservationModel:
    """How observations are made, and other knowledge of the signals.

    Attributes:
        draw: Draws the first k operators and noise models of a block of the training observations:
            (k, block) -> (Operator, NoiseModel). Blocks count from 0, and k is at most `block`.
        block: The number of observations in a block; the last may have fewer.
        operator: The name of the operator, for messages.
        shape: The shape of one signal.
        range: The lowest and the highest value of a signal; infinite where there is no bound.
        observations: The number of training observations.
        stored: Tensors of operators and noise that are stored with the observations, for the first
            k of them, by the paths of `Measurement.tensors`; None if there are none.
        signals: The first k signals, shape (k, *shape); None if only observations exist.
        measured: The first k observations of a block, with the operators and the noise that are
            believed: (k, block) -> Measurement; None if there are none.
        clean: The number of clean signals that are given for training.
        prior: Whether there is a prior from elsewhere.
    """

    draw: Callable[[int, int], tuple[Operator, NoiseModel]]
    block: int
    operator: str
    shape: tuple[int, ...]
    range: tuple[float, float]
    observations: int
    stored: Callable[[int], Mapping[str, Tensor]] | None = None
    signals: Callable[[int], Tensor] | None = None
    measured: Callable[[int, int], Measurement] | None = None
    clean: int = 0
    prior: bool = False

    @property
    def signal_variance(self) -> float:
        """The variance of a white signal that fills half of the range; 1 if it is unbounded."""
        low, high = self.range
        bounded = math.isfinite(high - low) and high > low
        return ((high - low) / 4) ** 2 if bounded else 1.0


def draw_model(model: ObservationModel) -> Measurement:
    """Draws operators and noise of the first training observations, as many as memory allows.

    Returns:
        The operators and the noise models. y holds zeros, one number per observation.
    """
    n, d = model.observations, math.prod(model.shape)

    def draw(k: int, block: int) -> Measurement:
        return Measurement(torch.zeros(k), *model.draw(k, block))

    few = draw(min(n, 2), 0)
    common = few.shared_paths()
    each = sum(t.numel() for path, t in few.tensors().items() if path not in common) // len(few)
    most = max(min(n, _MOST_NUMBERS // max(each, 1), _MOST_NUMBERS // (4 * d)), min(n, 2))
    if most < min(n, model.block):
        m = draw(most, 0)
    else:
        parts = [
            draw(min(model.block, n - first), first // model.block)
            for first in range(0, most, model.block)
        ]
        m = _joined(parts)
    if model.stored is not None:
        m = m.with_tensors(m.tensors() | dict(model.stored(len(m))))
    return m


def _joined(parts: list[Measurement]) -> Measurement:
    """Returns measurements as one batch."""
    common, tensors = parts[0].shared_paths(), [part.tensors() for part in parts]
    return parts[0].with_tensors(
        {
            path: tensor if path in common else torch.cat([part[path] for part in tensors])
            for path, tensor in tensors[0].items()
        }
    )


def some_observations(model: ObservationModel) -> Measurement | None:
    """Returns the first training observations, up to 4,096 and 2^21 numbers; None without any."""
    if model.measured is None:
        return None
    n = min(model.observations, _MOST_OBSERVED, max(_OBSERVED // math.prod(model.shape), 1))
    return _joined(
        [
            model.measured(min(model.block, n - first), first // model.block)
            for first in range(0, n, model.block)
        ]
    )


def example_signals(model: ObservationModel, k: int) -> Tensor:
    """Returns the first k signals of the data, shape (k, *shape).

    If only observations exist, the signals are white and Gaussian.
    """
    if model.signals is not None:
        return model.signals(k)
    low, high = model.range
    middle = (low + high) / 2 if math.isfinite(low + high) else 0.0
    return middle + math.sqrt(model.signal_variance) * torch.randn(
        k, *model.shape, generator=Rng.generator("identify", "signals")
    )


def noise_variance(m: Measurement, x: Tensor | None) -> Tensor:
    """Returns the noise variance of an entry, float64, shape (n,), or (1,) if all are the same.

    If it differs between the entries of an observation, its inverse is the mean of the inverses.
    The variance of noise that is not Gaussian is estimated from samples of it.

    Args:
        m: Operators and noise of n observations.
        x: Signals at which noise that is not Gaussian is sampled, shape (k, *shape), k <= n; not
            used for Gaussian noise.
    """
    if "normal" in m.noise.provides:
        var = m.noise.var().double().flatten(1)
        var = torch.where((var > 0).all(1), 1 / (1 / var).mean(1), 0.0)
        return var[:1] if bool((var == var[0]).all()) else var
    assert x is not None
    first = m[torch.arange(len(x))]
    clean = first.A(x)
    drawn = first.noise.sample(clean, Rng.generator("identify", "noise"))
    error: Tensor = (drawn - clean).double().square().mean().reshape(1)
    return error
