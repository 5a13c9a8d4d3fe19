"""What every metric must do."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invem.batched import Rng
from invem.errors import DataError, RecipeError
from invem.gaussian import Gaussian
from invem.measurement import Example
from invem.metric import Metric, Outcome
from invem.prior import Prior
from invem.testing.base import Factory, Kind, example_options, normal_like, relative_error
from invem.testing.problems import Observed, example_measurement, example_prior

__all__ = ["METRICS"]

_SHAPE = (1, 8, 8)
_COUNT = 200  # observations
_DRAWS = 4  # draws per observation

# The fields of an outcome whose rows belong together.
_GROUPS = (
    ("truth", "draws", "measurement"),
    ("samples", "simulated", "resimulated"),
    ("reference",),
    ("observed",),
    ("trained",),
)


@dataclasses.dataclass
class _Case:
    """A metric with one set of options.

    Attributes:
        metric: The metric.
        state: What it prepared from training images.
        good: The outcome of an exact prior and an exact sampler.
        bad: The same with errors in the draws, the samples and the prior.
    """

    metric: Metric
    state: Mapping[str, Tensor]
    good: Outcome
    bad: Outcome

    def value(self, outcome: Outcome) -> Tensor:
        return self.metric(outcome, self.state)


def _cases(factory: Factory, folder: Path) -> Iterator[tuple[str, _Case]]:
    truth = _signals("truth")
    totals = truth.flatten(1).sum(1)
    training = Example(truth, label=(totals > totals.median()).long())
    for label, options in example_options(factory, _SHAPE, folder):
        try:
            metric: Metric = factory(**options)
        except (RecipeError, DataError):
            continue
        good, bad = _outcomes("whole" if "identity" in metric.needs else "mask")
        yield label, _Case(metric, metric.prepare(training), good, bad)


def _streams(name: str, count: int = _COUNT) -> Rng:
    return Rng.keyed("contracts", name, items=range(count))


def _signals(name: str) -> Tensor:
    return example_prior(_SHAPE).sample(_streams(name))


def _outcomes(observed: Observed) -> tuple[Outcome, Outcome]:
    """Returns the outcome of an exact prior and sampler, and one that is worse in every field."""
    prior, truth, samples = example_prior(_SHAPE), _signals("truth"), _signals("other")
    z = normal_like(truth, "z")
    noisy = samples + z
    m = example_measurement(observed, _COUNT, _SHAPE)
    simulated, noisy_simulated = (
        example_measurement(observed, _COUNT, _SHAPE, x, "simulated") for x in (samples, noisy)
    )
    repeated = m[torch.arange(_COUNT).repeat_interleave(_DRAWS)]
    draws = prior.posterior(repeated, _streams("draws", _DRAWS * _COUNT))
    good = Outcome(
        range=(-1.0, 1.0),
        truth=truth,
        draws=draws.reshape(_COUNT, _DRAWS, *_SHAPE),
        measurement=m,
        samples=samples,
        reference=_signals("more"),
        observed=m,
        simulated=simulated,
        resimulated=prior.posterior(simulated, _streams("again")),
        trained=_signals("trained"),
        prior=Prior.of(prior),
    )
    assert good.draws is not None
    bad = dataclasses.replace(
        good,
        draws=good.draws + 0.5 * z.flip(0)[:, None],
        samples=noisy,
        simulated=noisy_simulated,
        # Nearly the samples themselves: a prior that has memorised them.
        trained=noisy + 0.01 * z.flip(0),
        prior=Prior.of(Gaussian(prior.mean + 0.5, prior.cov)),
    )
    return good, bad


METRICS = Kind(
    "metrics",
    "Tried on the outcome of an exact prior and sampler for 200 observations of 8 x 8 pixels, and"
    " on one with errors.",
    _cases,
)


@METRICS.contract("best is best", tolerance=0.0)
def best_is_best(case: _Case) -> float:
    """An outcome with errors is not better than the exact one; how much better it is, in units of
    the metric."""
    good, bad = (float(case.value(outcome).double().mean()) for outcome in (case.good, case.bad))
    target = case.metric.target
    if target is not None:
        return abs(good - target) - abs(bad - target)
    if case.metric.higher_is_better is None:
        return 0.0
    return (bad - good) * (1.0 if case.metric.higher_is_better else -1.0)


@METRICS.contract("needs are enough", tolerance=1e-6)
def needs_are_enough(case: _Case) -> float:
    """With nothing but the fields of the outcome that `needs` declares, the value is the same."""
    declared = {
        name: getattr(case.good, name) for name in case.metric.needs if hasattr(case.good, name)
    }
    return relative_error(case.value(Outcome(case.good.range, **declared)), case.value(case.good))


@METRICS.contract("same again", tolerance=0.0)
def same_again(case: _Case) -> float:
    """A second call returns the same, and the global generator of torch is not used."""
    state = torch.random.get_rng_state()
    one, two = case.value(case.good), case.value(case.good)
    touched = not torch.equal(state, torch.random.get_rng_state())
    return max(relative_error(one, two), float(touched))


@METRICS.contract("any order", tolerance=1e-4)
def any_order(case: _Case) -> float:
    """The mean value does not change with the order of the observations and of the samples."""
    changes: dict[str, Any] = {}
    for group in _GROUPS:
        fields = {name: getattr(case.good, name) for name in group}
        generator = Rng.generator("contracts", *group)
        order = torch.randperm(len(fields[group[0]]), generator=generator)
        changes |= {name: value[order] for name, value in fields.items()}
    reordered = case.value(dataclasses.replace(case.good, **changes))
    return relative_error(reordered.double().mean(), case.value(case.good).double().mean())
