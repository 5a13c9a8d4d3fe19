"""What components return, compared with what they must return, before it is used."""

from collections.abc import Mapping

import torch
from torch import Tensor

from invem.batched import Rng
from invem.config.settings import settings_unchanged
from invem.errors import PluginError
from invem.measurement import Measurement
from invem.metric import Metric, Outcome
from invem.noise import NoiseModel
from invem.operator import Operator
from invem.planning.origin import Origins
from invem.prior import Prior
from invem.sampler import ChainSampler, PosteriorSampler

__all__ = ["checked_losses", "drawn", "measured", "metric_value"]


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
        PluginError: If the draws are not float32 signals, or the sampler changed the measurements
            or a setting of PyTorch.
    """
    before = {name: tensor.clone() for name, tensor in m.tensors().items()}
    with origins.naming(), settings_unchanged(lambda: origins.of(sampler)):
        if start is None:
            x = sampler(prior, m, rng)
        else:
            assert isinstance(sampler, ChainSampler)
            x = sampler(prior, m, rng, start)
    _check(x, (len(m), *m.shape), "draws", sampler, origins)
    _check_unchanged(before, m.tensors(), sampler, origins)
    return x


def measured(
    operator: Operator, noise: NoiseModel, x: Tensor, rng: torch.Generator, origins: Origins
) -> Tensor:
    """Returns new noisy measurements of signals (B, *shape), shape (B, *measurement shape).

    Raises:
        PluginError: If operator or noise do not return float32 numbers for each signal.
    """
    with settings_unchanged(lambda: origins.of(operator)):
        clean = operator(x)
    rows = (len(x), *clean.shape[1:]) if isinstance(clean, Tensor) and clean.ndim else (len(x),)
    _check(clean, rows, "measurements", operator, origins)
    with settings_unchanged(lambda: origins.of(noise)):
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


def metric_value(
    metric: Metric, outcome: Outcome, state: Mapping[str, Tensor], origins: Origins
) -> Tensor:
    """Returns the value of a metric, shape () or (N,).

    Raises:
        PluginError: If it is neither one number nor one per observation, or the metric changed the
            outcome, which the other metrics are given too.
    """
    shown = {"truth": outcome.truth, "draws": outcome.draws, "samples": outcome.samples}
    given = {name: tensor for name, tensor in shown.items() if tensor is not None}
    before = {name: tensor.clone() for name, tensor in given.items()}
    with settings_unchanged(lambda: origins.of(metric)):
        value: object = metric(outcome, state)
    _check_unchanged(before, given, metric, origins)
    if not isinstance(value, Tensor) or value.ndim > 1 or not value.numel() or value.is_complex():
        raise PluginError(
            f"{origins.of(metric)}: it returned {_described(value)}, not one number, or one per"
            " observation"
        )
    return value


def _check_unchanged(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], component: object, origins: Origins
) -> None:
    """Refuses a component that changed a tensor that it was given."""
    for name, old in before.items():
        new = after[name]
        if not (torch.equal(old, new) or torch.equal(old.nan_to_num(), new.nan_to_num())):
            raise PluginError(
                f"{origins.of(component)}: it changed {name}, which it was given; it must leave"
                " that as it is"
            )


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
