"""Random search over the options of a sampler, on observations that no other number uses."""

import contextlib
import math
from typing import Any

import torch

from invem.batched import Rng
from invem.bench.metrics import METRICS, tuning_metric
from invem.bench.observations import Observations
from invem.bench.score import Scorer
from invem.bench.specs import Setting, bounds
from invem.config import options_of
from invem.errors import InvemError

__all__ = ["LinAlgError", "tune"]

LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]


def tune(
    setting: Setting, scorer: Scorer, validation: Observations, trials: int
) -> tuple[Setting, dict[str, Any]]:
    """Tries the given options and random ones, and returns the best setting and the search as data.

    The options that are tried are the positive numbers of type float that were not given. They are
    drawn together, log-uniform from a tenth of their value to ten times it, within their bounds.

    Args:
        setting: The sampler.
        scorer: Says how good it is.
        validation: The observations of the search.
        trials: The number of random trials.
    """
    free = _free_options(setting)
    best, least, losses = setting, math.inf, list[float]()
    for change in [{}, *_random_changes(setting, free, trials)]:
        loss = math.inf
        with contextlib.suppress(InvemError, ValueError, LinAlgError):
            if (tried := setting.with_changes(change)) is not None:
                loss = scorer.loss(tried.sampler(), validation)
                if loss < least:
                    best, least = tried, loss
        losses.append(loss)
    metric = tuning_metric(validation.posterior is not None)
    sign = -1 if METRICS[metric].best == "high" else 1
    return best, {
        "trials": len(losses) - 1,
        "score": metric,
        "chosen": {name: best.values[name] for name in free},
        "default": sign * losses[0],
        "best": sign * least,
    }


def _free_options(setting: Setting) -> dict[str, tuple[float, float]]:
    """Returns the range of each option that is tried."""
    free: dict[str, tuple[float, float]] = {}
    for name, parameter in options_of(setting.factory).items():
        low, high = bounds(parameter.annotation, float)
        value = setting.values[name]
        if low >= 0 and name not in setting.given and isinstance(value, int | float) and value > 0:
            free[name] = (value / 10, min(10 * value, high))
    return free


def _random_changes(
    setting: Setting, free: dict[str, tuple[float, float]], trials: int
) -> list[dict[str, float]]:
    if not free:
        return []
    rng = Rng.generator("bench", "trials", setting.label)
    u = torch.rand(trials, len(free), generator=rng, dtype=torch.float64)
    return [
        {
            name: low * (high / low) ** v
            for v, (name, (low, high)) in zip(row, free.items(), strict=True)
        }
        for row in u.tolist()
    ]
