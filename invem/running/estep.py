"""The E-step: one posterior draw per observation under the prior of the round before."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from invem.errors import NumericalError
from invem.measurement import Measurement
from invem.planning.checked import drawn
from invem.prior import Prior
from invem.running.calibrating import calibrated, shown_noise
from invem.running.context import Context
from invem.running.draws import read_draws, renewed, subset
from invem.running.measure import believed
from invem.running.records import Clock, Record, count_signals
from invem.sampler import ChainSampler, PosteriorSampler
from invem.storage.directory import Folder, Round

__all__ = ["data_misfit", "estep"]

_FOLLOWED = 0.5  # residuals of posterior draws are about the noise
_SPENT = "spent"  # of the shards that are there; until the step is logged
_COSTS = ("misfit", "draws", "passes", "seconds", "cpu")


def estep(run: Context, at: Round, prior: Prior | None) -> Iterator[Record]:
    """Draws from the posterior of each observation of a round, and stores the draws in shards.

    Shards that are there are left as they are.

    Args:
        run: The run.
        at: The round.
        prior: The prior that is drawn with; a standard normal if there is none.

    Yields:
        A record "e-step" per shard and at the end; "calibrate" if options are calibrated.
    """
    stage, folder = run.stage(at), run.directory.draws(at)
    rows = renewed(run, at)
    index = subset(run, at).repeat_interleave(stage.phase.draws)[rows]
    shards = math.ceil(len(index) / stage.phase.batch)
    done = all(folder.has(f"{k:05d}") for k in range(shards))
    if done:
        yield from _log_finished(run, at, folder, len(index))
        return
    sampler, prior = stage.at(at.number), prior or run.standard()
    assert sampler is not None
    if stage.phase.calibrate and not folder.has_json("calibrated"):
        yield from calibrated(run, at, sampler, prior)
    m = run.observations("train").at(believed(run, at))
    start = None
    if stage.phase.restart is not None and at.number > 0:
        assert isinstance(sampler, ChainSampler)
        start = read_draws(run, at.before())[rows]
        sampler = sampler.from_level(stage.phase.restart)
    sampler = run.tuned(sampler, prior, m, "tune", *at)
    if not folder.has_json("sampler"):
        run.directory.forget(at, "e-step")  # of draws that were removed
        folder.write_json("sampler", describe(sampler))
    tally = _Tally(folder)
    for k in range(shards):
        if folder.has(f"{k:05d}"):
            continue
        run.check()
        shard = torch.arange(len(index))[k * stage.phase.batch : (k + 1) * stage.phase.batch]
        begun = None if start is None else start[shard].to(run.device)
        x = _shard(run, at, k, sampler, prior, m[index[shard]].to(run.device), shard, begun, tally)
        tally.save(f"{k:05d}")
        folder.write(f"{k:05d}", {"x": x})
        end = int(shard[-1]) + 1
        yield Record("e-step", {**run.named(at), "done": end, "total": len(index)})
    yield from _log_finished(run, at, folder, len(index))


def _log_finished(run: Context, at: Round, folder: Folder, draws: int) -> Iterator[Record]:
    """Logs an E-step whose shards are all there, once, wherever a kill comes."""
    if not folder.has_json(_SPENT):
        return
    spent, sampler = _Tally(folder).summary(), run.stage(at).sampler
    data = {**run.named(at), "draws": draws, **spent}
    if sampler is not None and sampler.uses_prior:
        m = run.observations("train").at(believed(run, at))
        if doubt := _doubt(m, spent["residual"]):
            data["warning"] = f"{run.where(at)}: {doubt}"
    folder.finish("e-step", data, goes=folder.json_file(_SPENT))
    yield Record("e-step", data)
    if "warning" in data:
        yield Record("doubt", {**run.named(at), "warning": data["warning"]})


def _doubt(m: Measurement, residual: float | None) -> str | None:
    """Returns why draws cannot be posterior draws, in one line; None if they may be.

    Args:
        m: The training observations.
        residual: The mean squared residual of the draws, in units of the believed noise.
    """
    level = None if residual is None else shown_noise(m)
    if level is None or residual is None or not level.assumed:
        return None
    left = math.sqrt(residual)
    least = level.least if level.plain else 0.0
    if left >= _FOLLOWED * max(1.0, least):
        return None
    noise = max(1.0, least) * level.assumed
    return (
        f"the draws follow the observations to {left * level.assumed:.2g}, far closer than their"
        f" noise of {noise:.2g}: nothing is restored; the level of the noise that is believed"
        f" ({level.assumed:.2g}) is too small, or the prior has learned the noise"
    )


class _Tally:
    """What the shards of an E-step cost and how well they explain the observations, kept beside
    them until the step is logged.

    Args:
        folder: The folder of the step.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder, self.clock = folder, Clock()
        spent = folder.read_json(_SPENT) if folder.has_json(_SPENT) else {}
        if spent and not folder.has(spent["shard"]):
            spent = spent["before"] or {}  # killed between the two files
        self.clock.add(spent)
        self.misfit = float(spent.get("misfit", 0.0))
        self.draws = int(spent.get("draws", 0))
        self.passes = int(spent.get("passes", 0))
        self.saved: dict[str, Any] | None = (spent and {key: spent[key] for key in _COSTS}) or None

    def add(self, m: Measurement, x: Tensor, passes: int) -> None:
        """Adds the draws of a shard."""
        self.misfit += float(data_misfit(m, x).double().sum())
        self.draws += len(x)
        self.passes += passes

    def save(self, shard: str) -> None:
        """Writes what was added so far, with a shard that is written next, and without it."""
        facts = {"misfit": self.misfit, "draws": self.draws, "passes": self.passes}
        whole = {**facts, **self.clock.read()}
        self.folder.write_json(_SPENT, {**whole, "shard": shard, "before": self.saved})
        self.saved = whole

    def summary(self) -> dict[str, Any]:
        """Returns the mean misfit, the passes through the network and the times."""
        known = bool(self.draws) and math.isfinite(self.misfit)
        residual = self.misfit / self.draws if known else None
        return {"residual": residual, "passes": self.passes, **self.clock.read()}


def _shard(
    run: Context,
    at: Round,
    k: int,
    sampler: PosteriorSampler,
    prior: Prior,
    m: Measurement,
    shard: Tensor,
    start: Tensor | None,
    tally: _Tally,
) -> Tensor:
    """Draws one shard; draws that are not finite are made once more with other random numbers."""
    items, origins = shard.tolist(), run.plan.origins
    with count_signals(prior.denoiser) as called:
        x = drawn(sampler, prior, m, run.rng("e-step", *at, items=items), origins, start)
    products = len(shard) * sampler.cost[1] if prior.trained else 0
    bad = ~x.flatten(1).isfinite().all(1)
    if bool(bad.any()):
        rng = run.rng("e-step-again", *at, items=items)
        again = drawn(sampler, prior, m, rng, origins, start)
        x = torch.where(bad.reshape(-1, *[1] * (x.ndim - 1)), again, x)
        if not bool(x.isfinite().all()):
            count = int(bad.sum())
            raise NumericalError(
                f"{run.where(at)}: {count} draws of shard {k} are not finite, twice; other options"
                f" of the sampler may help: {run.way_on(at, 'sampler.KEY=VALUE')}"
            )
    tally.add(m, x, called[0] + products)
    return x


def describe(sampler: PosteriorSampler) -> dict[str, Any]:
    """Returns a sampler as plain data: its name in words, and each option that is plain."""
    options: dict[str, Any] = {}
    if dataclasses.is_dataclass(sampler):
        for f in dataclasses.fields(sampler):
            value = getattr(sampler, f.name)
            if value is None or isinstance(value, bool | int | float | str):
                options[f.name] = value
    return {"sampler": repr(sampler), "options": options}


def data_misfit(m: Measurement, x: Tensor) -> Tensor:
    """Returns the mean squared residual in units of the noise, over the entries that x has a part
    in, shape (B,); empty if unknown."""
    if "var" not in m.noise.provides or not bool((m.noise.var() > 0).all()):
        return x.new_empty(0)
    r = (m.residual(x).square() / m.noise.var()).flatten(1)
    seen = torch.ones_like(m.y) if m.A.seen is None else m.A.seen.expand_as(m.y)
    return r.sum(1) / seen.flatten(1).sum(1).clamp(min=1)
