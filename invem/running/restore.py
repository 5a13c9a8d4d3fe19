"""Restoring new observations with the newest prior of a run."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from invem.errors import RecipeError
from invem.measurement import Measurement
from invem.planning.plan import Stage
from invem.running.context import Context, all_finite
from invem.running.priors import last_prior
from invem.running.records import Record
from invem.sampler import PosteriorSampler

__all__ = ["Restored", "restore", "sampler_of"]


@dataclass(frozen=True, eq=False, repr=False)
class Restored:
    """Posterior draws of the signals of new observations, and their statistics.

    Attributes:
        mean: The posterior mean, shape (N, *shape): the exact one where the sampler knows it
            without draws, and the mean of the draws elsewhere.
        std: Their standard deviation in each entry, shape (N, *shape). It is zero for one draw.
        draws: The draws, shape (N, K, *shape).
    """

    mean: Tensor
    std: Tensor
    draws: Tensor

    @classmethod
    def of(cls, draws: Tensor, mean: Tensor | None = None) -> "Restored":
        """Returns the statistics of draws.

        Args:
            draws: Shape (N, K, *shape).
            mean: The posterior mean if it is known without them, shape (N, *shape).
        """
        std = draws.std(1, correction=1 if draws.shape[1] > 1 else 0)
        return cls(draws.mean(1) if mean is None else mean, std, draws)

    def __repr__(self) -> str:
        n, k, *shape = self.draws.shape
        return f"<Restored: {n} observations, {k} draws of each, shape {tuple(shape)}>"


def sampler_of(run: Context) -> tuple[Stage, PosteriorSampler]:
    """Returns the last phase of a run, and the sampler that it restores with.

    Raises:
        RecipeError: If the recipe has none.
    """
    stage = run.plan.stages[-1]
    if stage.evaluator is None:
        raise RecipeError(
            f"{run.directory.path}: the recipe has no sampler to restore with; begin a run with"
            " evaluate.sampler"
        )
    return stage, stage.evaluator


def restore(run: Context, m: Measurement, draws: int, seed: int) -> Iterator[Record]:
    """Draws from the posterior of new observations under the newest prior.

    Args:
        run: The run.
        m: The observations (`measure.new_observations`).
        draws: Draws per observation.
        seed: Which random numbers.

    Yields:
        Records "restore" on the way, and "restored" with the draws, shape (N, draws, *shape), and
        the posterior mean if the sampler knows it without draws, else None.

    Raises:
        RecipeError: If the recipe has no sampler to restore with.
        NumericalError: If draws are not finite.
    """
    stage, evaluator = sampler_of(run)
    prior = last_prior(run)
    with run.plan.origins.naming():
        sampler = run.tuned(evaluator, prior, m, "tune-restore", seed)
    rows = torch.arange(len(m)).repeat_interleave(draws)
    name = {"name": stage.phase.name, "round": stage.phase.rounds - 1}
    parts: list[Tensor] = []
    size = run.recipe.evaluate.batch
    for done, x in run.sample(sampler, prior, m, rows, size, "restore-new", seed):
        parts.append(x)
        yield Record("restore", {**name, "done": done, "total": len(rows)})
    way = "other random numbers may help (seed), or another sampler: evaluate.sampler"
    x = all_finite(torch.cat(parts), "restorations", way).reshape(len(m), draws, *run.shape)
    mean = run.posterior_mean(sampler, prior, m, x)
    if mean is not None:
        all_finite(mean, "posterior means", way)
    yield Record("restored", {"draws": x, "mean": mean})
