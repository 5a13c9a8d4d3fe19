"""The draws of an E-step: which observations they are of, which are renewed, where they are."""

import math

import torch
from torch import Tensor

from invem.running.context import Context
from invem.running.order import batch_of_step
from invem.storage.directory import Round

__all__ = ["has_draws", "keep_pool", "read_draws", "renewed", "subset"]

POOL = "pool"  # the draws of all rounds so far, where a round renews a share of them


def subset(run: Context, at: Round) -> Tensor:
    """Returns the training observations that a round draws from, ascending, shape (n,)."""
    whole = run.plan.train
    n = min(run.stage(at).phase.observations or whole, whole)
    if n == whole:
        return torch.arange(n)
    order = torch.randperm(whole, generator=run.generator("subset", *at))
    return order[:n].sort().values


def renewed(run: Context, at: Round) -> Tensor:
    """Returns the rows of a phase's draws that a round draws anew, ascending."""
    phase = run.stage(at).phase
    n = len(subset(run, at)) * phase.draws
    if phase.refresh == 1 or at.number == 0:
        return torch.arange(n)
    # The rounds go through a permutation, so that every draw has its turn.
    k = max(round(phase.refresh * n), 1)
    key = (run.recipe.seed, "refresh", at.phase)
    return batch_of_step(n, k, at.number - 1, *key).sort().values


def has_draws(run: Context, at: Round) -> bool:
    """Whether the E-step of a round is finished."""
    stage, folder = run.stage(at), run.directory.draws(at)
    if stage.sampler is None:
        return False
    if run.directory.fit(at).has("denoiser"):  # its batches may have had another size
        return folder.has(POOL) or bool(folder.numbered())
    shards = math.ceil(len(renewed(run, at)) / stage.phase.batch)
    return folder.has(POOL) or all(folder.has(f"{k:05d}") for k in range(shards))


def read_draws(run: Context, at: Round) -> Tensor:
    """Returns the draws that a round learns from, shape (N, *shape)."""
    folder = run.directory.draws(at)
    if folder.has(POOL):
        return folder.read(POOL)["x"]
    new = torch.cat([tensors["x"] for tensors in folder.read_all()])
    if run.stage(at).phase.refresh == 1 or at.number == 0:
        return new
    pool = read_draws(run, at.before())
    pool[renewed(run, at)] = new
    return pool


def keep_pool(run: Context, at: Round, x: Tensor) -> None:
    """Stores the draws of a round where a round renews a share of them, so that the next rounds
    need not put them together again, and removes the pool of the round before the last.

    Args:
        run: The run.
        at: The round.
        x: Its draws (`read_draws`).
    """
    folder = run.directory.draws(at)
    if run.stage(at).phase.refresh == 1:
        return
    if not folder.has(POOL):
        folder.write(POOL, {"x": x})
    if at.number > 1:
        run.directory.draws(at.before().before()).remove(POOL)
