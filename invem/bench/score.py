"""Scores draws by every metric of a benchmark."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from invem.bench.count import Counter
from invem.bench.metrics import METRICS, tuning_metric
from invem.bench.observations import Observations
from invem.bench.problems import Problem
from invem.bench.statistics import (
    PER_OBSERVATION,
    PER_SEED,
    RATIOS,
    Batch,
    SeedDraws,
    coverage_curve,
)
from invem.config import Catalog
from invem.metric import Metric
from invem.sampler import PosteriorSampler

__all__ = ["Scorer", "Value"]


class Value(NamedTuple):
    """A mean, its standard error (None if n is 1) and the number n of values averaged."""

    value: float
    sem: float | None
    n: int

    @classmethod
    def mean(cls, x: Tensor) -> "Value":
        """Returns the mean of x, shape (n,)."""
        n = len(x)
        return cls(float(x.mean()), float(x.std() / n**0.5) if n > 1 else None, n)

    @classmethod
    def ratio(cls, a: Tensor, b: Tensor) -> "Value":
        """Returns the mean of a over that of b, (n,) each, with the error to first order."""
        n, ratio = len(a), float(a.mean() / b.mean())
        error = float((a - ratio * b).std() / (b.mean() * n**0.5)) if n > 1 else None
        return cls(ratio, error, n)


class Scorer:
    """Compares draws with the truth, and with the posterior where it is known.

    Args:
        problem: The problem.
        catalog: Where the metrics are found.
        seeds: The observations of each seed.
    """

    def __init__(self, problem: Problem, catalog: Catalog, seeds: Sequence[Observations]) -> None:
        self.problem, self.seeds = problem, seeds
        self._metrics = {
            name: _per_observation(meaning.source, catalog)
            for name, meaning in METRICS.items()
            if problem.has_pictures or not meaning.images_only
        }

    def _compute(self, name: str, batch: Batch) -> Tensor | None:
        value = self._metrics[name](batch)
        return None if value is None else value.double()

    def loss(self, sampler: PosteriorSampler, observations: Observations) -> float:
        """Returns what tuning makes small: the metric of `tuning_metric`, negated if high is best.

        Infinite if a draw is not finite.
        """
        prior = self.problem.prior
        tuned = observations.tuned(sampler, prior)
        x, _ = observations.draw(tuned, prior, Counter())
        if not bool(x.isfinite().all()):
            return math.inf
        name = tuning_metric(observations.posterior is not None)
        value = self._compute(name, Batch(self.problem, observations, torch.arange(len(x)), x))
        assert value is not None
        return (-1 if METRICS[name].best == "high" else 1) * float(value.mean())

    def __call__(self, draws: Sequence[Tensor]) -> tuple[dict[str, Value], list[float]]:
        """Returns the metrics, and the empirical coverage of the intervals of `LEVELS`.

        Args:
            draws: Those of each seed, (N, K, *shape). Draws that are not finite are left out.
        """
        pairs = zip(self.seeds, draws, strict=True)
        seeds = [SeedDraws(self.problem, observations, x) for observations, x in pairs]
        seeds = [seed for seed in seeds if seed.batches]
        batches = [batch for seed in seeds for batch in seed.batches]
        found = {name: self._value(name, batches, seeds) for name in self._metrics}
        curves = [coverage_curve(batch.ranks) for batch in batches]
        return (
            {name: value for name, value in found.items() if value is not None},
            torch.cat(curves).mean(0).tolist() if curves else [],
        )

    def _value(
        self, name: str, batches: Sequence[Batch], seeds: Sequence[SeedDraws]
    ) -> Value | None:
        """Averages over observations where the metric belongs to one, else over seeds."""
        statistic = METRICS[name].source.get("statistic")
        if statistic in PER_SEED:
            numbers = [PER_SEED[statistic](seed) for seed in seeds]
            known = [number for number in numbers if number is not None]
            return Value.mean(torch.tensor(known, dtype=torch.float64)) if known else None
        if statistic in RATIOS:
            ratios = [RATIOS[statistic](batch) for batch in batches]
            return Value.ratio(*map(torch.cat, zip(*ratios, strict=True))) if ratios else None
        values = [self._compute(name, batch) for batch in batches]
        found = [value for value in values if value is not None]
        return Value.mean(torch.cat(found)) if found else None


def _per_observation(
    source: Mapping[str, Any], catalog: Catalog
) -> Callable[[Batch], Tensor | None]:
    """Returns what computes a metric from a batch, (B,) or None; None for any other statistic."""
    options = dict(source)
    if "component" in options:
        metric: Metric = catalog.find("metrics", options.pop("component")).load()(**options)
        return lambda batch: metric(batch.outcome, {})
    function = PER_OBSERVATION.get(options.pop("statistic"))
    return (lambda _: None) if function is None else partial(function, **options)
