"""What components return, compared with what they must return, before it is used."""

import torch
from torch import Tensor

from invem.batched import Rng
from invem.errors import PluginError
from invem.measurement import Measurement
from invem.noise import NoiseModel
from invem.operator import Operator
from invem.planning.origin import Origins
from invem.prior import Prior
from invem.sampler import ChainSampler, PosteriorSampler

__all__ = ["checked_losses", "checked_metric", "drawn", "measured"]


def drawn(
    sampler: PosteriorSampler,
    prior: Prior,
    m: Measurement,
    rng: Rng,
    origins: Origins,
    start: Tensor | None = None,
) -> Tensor:
    """Draws one signal per measurement, shape (B, *shape).

    Args:
        sampler: The sampler.
        prior: The prior.
        m: B measurements.
        rng: B streams.
        origins: The components of the plan.
        start: The signals that a chain begins at, shape (B, *shape).

    Raises:
        PluginError: If the draws are not float32 signals, or the sampler changed y.
    """
    y = m.y.clone()
    with origins.naming():
        if start is None:
            x = sampler(prior, m, rng)
        else:
            assert isinstance(sampler, ChainSampler)
            x = sampler(prior, m, rng, start)
    _check(x, (len(m), *m.shape), "draws", sampler, origins)
    if not torch.equal(m.y, y) and bool(y.isfinite().all()):
        raise PluginError(f"{origins.of(sampler)}: it changed the observations that it was given")
    return x


def measured(
    operator: Operator, noise: NoiseModel, x: Tensor, rng: torch.Generator, origins: Origins
) -> Tensor:
    """Returns new noisy measurements of signals (B, *shape), shape (B, *measurement shape).

    Raises:
        PluginError: If operator or noise do not return float32 numbers for each signal.
    """
    clean = operator(x)
    rows = (len(x), *clean.shape[1:]) if isinstance(clean, Tensor) and clean.ndim else (len(x),)
    _check(clean, rows, "measurements", operator, origins)
    y = noise.sample(clean, rng)
    _check(y, tuple(clean.shape), "measurements", noise, origins)
    return y


def checked_losses(losses: Tensor, n: int, objective: object, origins: Origins) -> Tensor:
    """Returns the losses of n examples.

    Raises:
        PluginError: If there is not one number per example, or nothing can be learned from them.
    """
    _check(losses, (n,), "losses", objective, origins, any_float=True)
    if not losses.requires_grad:
        raise PluginError(
            f"{origins.of(objective)}: its losses do not depend on the weights: it, or the network,"
            " has cut the gradient off (detach, no_grad)"
        )
    return losses


def checked_metric(value: Tensor, metric: object, origins: Origins) -> Tensor:
    """Returns the value of a metric, shape () or (N,).

    Raises:
        PluginError: If it is neither one number nor one per observation.
    """
    if not isinstance(value, Tensor) or value.ndim > 1 or not value.numel() or value.is_complex():
        raise PluginError(
            f"{origins.of(metric)}: it returned {_described(value)}, not one number, or one per"
            " observation"
        )
    return value


def _check(
    value: object,
    shape: tuple[int, ...],
    what: str,
    component: object,
    origins: Origins,
    any_float: bool = False,
) -> None:
    right = isinstance(value, Tensor) and tuple(value.shape) == shape
    if right and isinstance(value, Tensor):
        right = value.is_floating_point() if any_float else value.dtype == torch.float32
    if not right:
        number = "floating point" if any_float else "float32"
        raise PluginError(
            f"{origins.of(component)}: it returned {_described(value)} as {what}, not a {number}"
            f" tensor of shape {shape}"
        )


def _described(value: object) -> str:
    """Returns a value in words, for messages."""
    if value is None:
        return "None"
    if not isinstance(value, Tensor):
        return f"a value of type {type(value).__name__}"
    return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
