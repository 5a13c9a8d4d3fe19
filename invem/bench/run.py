"""The loop over settings and seeds: every sampler gets the same prior, measurements and random
numbers."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from invem.batched import Rng
from invem.bench.count import Counter, peak_memory, reset_peak_memory
from invem.bench.design import Design
from invem.bench.document import FLOOR, Row
from invem.bench.observations import Observations
from invem.bench.problems import Problem
from invem.bench.score import Scorer
from invem.bench.specs import Setting
from invem.bench.statistics import is_finite
from invem.bench.tune import LinAlgError, tune
from invem.config import Catalog
from invem.errors import InvemError

__all__ = ["compare_samplers"]

_PICTURES = 4  # observations whose pictures are kept
_MOST_TUNING_DRAWS = 64


def compare_samplers(
    problem: Problem, settings: Sequence[Setting], catalog: Catalog, design: Design
) -> Iterator[Row]:
    """Runs samplers on a problem and yields a row for each.

    Where the posterior is known, the first row, `FLOOR`, is of exact draws: the metrics of a
    perfect sampler with so many draws. A sampler that raises an error has a row that says so.

    Args:
        problem: What they solve.
        settings: What `select_samplers` returned.
        catalog: Where the metrics are found.
        design: How much is done.
    """
    n, k = design.observations, design.draws
    seeds = [Observations.of(problem, seed, "test", n, k) for seed in range(design.seeds)]
    scorer = Scorer(problem, catalog, seeds)
    if all(seed.posterior is not None for seed in seeds):
        exact = [seed.exact("floor").to(seed.truth).reshape(n, k, *problem.shape) for seed in seeds]
        metrics, coverage = scorer(exact)
        draws = n * k * design.seeds
        yield Row(FLOOR, FLOOR, {}, draws=draws, metrics=metrics, coverage=coverage)
    validation = (
        Observations.of(problem, 0, "validation", n, min(k, _MOST_TUNING_DRAWS))
        if design.trials
        else None
    )
    for setting in settings:
        try:
            yield _row(problem, setting, scorer, validation, design.trials)
        except (InvemError, LinAlgError) as error:
            words = " ".join(str(error).split()) or type(error).__name__
            yield Row(setting.label, setting.name, _plain(setting.values), error=words)


def _row(
    problem: Problem,
    setting: Setting,
    scorer: Scorer,
    validation: Observations | None,
    trials: int,
) -> Row:
    tuning = None
    if validation is not None:
        setting, tuning = tune(setting, scorer, validation, trials)
    prior, seeds = problem.prior, scorer.seeds
    samplers = [seed.tuned(setting.sampler(), prior) for seed in seeds]
    device = seeds[0].m.y.device
    # A small call first, so that the clock does not see what is done once.
    samplers[0](prior, seeds[0].m[:1], Rng.keyed("bench", "warm-up", items=[0]))
    reset_peak_memory(device)
    counter, seconds, draws = Counter(), 0.0, list[Tensor]()
    for sampler, seed in zip(samplers, seeds, strict=True):
        x, taken = seed.draw(sampler, prior, counter)
        seconds += taken
        draws.append(x)
    memory = peak_memory(device)
    total = sum(len(seed.m) * seed.draws for seed in seeds)
    metrics, coverage = scorer(draws)
    return Row(
        setting.label,
        setting.name,
        _plain(setting.values),
        tuning,
        **counter.per_draw(total),
        seconds=seconds / total,
        memory=memory,
        draws=total,
        failures=sum(int((~is_finite(x)).sum()) for x in draws),
        metrics=metrics,
        coverage=coverage,
        pictures=_pictures(seeds[0], draws[0]) if problem.has_pictures else {},
    )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options as data for JSON; a component is its repr."""
    return {
        k: v if v is None or isinstance(v, bool | int | float | str | list | dict) else repr(v)
        for k, v in values.items()
    }


def _pictures(observations: Observations, draws: Tensor) -> dict[str, Tensor]:
    x, y = draws[:_PICTURES], observations.m.y[:_PICTURES].cpu()
    pictures = {
        "truth": observations.truth[:_PICTURES],
        "mean": x.mean(1),
        "draw": x[:, 0],
        "std": x.std(1),
    }
    return pictures | ({"observation": y} if y.ndim == 4 else {})
