"""Evaluation: restorations and samples of a round, and what the metrics say of them."""

from collections.abc import Iterator, Set
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from invem.diffusion import generate
from invem.errors import DataError
from invem.measurement import Measurement
from invem.metric import Metric, Outcome
from invem.planning.checked import measured, metric_value
from invem.prior import Prior
from invem.running.context import Context, all_finite
from invem.running.draws import read_draws
from invem.running.measure import believed, clean_signals, draw_like_training, open_data
from invem.running.records import Clock, Record
from invem.schedule import Karras
from invem.storage.directory import Round

__all__ = [
    "FIRST_FEW",
    "SIMULATED",
    "evaluate",
    "evaluate_observations",
    "needed",
    "prepare",
    "unconditional",
]

_PREPARED = 8192  # training signals that a metric prepares on
_REFERENCE = 10000  # held-out signals that distributions are compared with
SIMULATED = 512  # simulated observations that are restored
FIRST_FEW = 8  # held-out observations of which the report shows many draws
_MAY_LACK = frozenset(
    {"draws", "measurement", "trained", "resimulated"}
)  # in some phases and not in others


def prepare(run: Context) -> Iterator[Record]:
    """Has each metric compute what it needs once per run, and stores it."""
    parts = run.plan.resolved["evaluate"]["metrics"]
    for i, (label, metric) in enumerate(run.plan.metrics.items()):
        folder, meta = run.directory.prepared, {"metric": label, "part": parts[i]}
        if run.plan.observed or (folder.has(str(i)) and folder.read_meta(str(i))[1] == meta):
            continue
        data = open_data(run, "train")
        index = torch.randperm(len(data), generator=run.generator("prepare"))[:_PREPARED]
        tensors = metric.prepare(data[index])
        folder.write(str(i), tensors, meta)
        yield Record("prepare", {"metric": label})


def evaluate_observations(run: Context) -> Record:
    """Evaluates the observations as if they were restorations and samples: what every method
    starts from."""
    values: dict[str, Any] = {}
    of = ""
    if run.plan.test and run.plan.metrics:
        x, of = _as_signals(run.observations("test").at(), run.recipe.evaluate.batch)
        if x is not None:
            reference, train = _reference(run), None
            if reference is not None:
                rows = torch.arange(min(run.plan.train, run.recipe.evaluate.samples))
                m = run.observations("train").at()[rows]
                train, _ = _as_signals(m, run.recipe.evaluate.batch)
            truth = run.directory.true_signals()
            outcome = Outcome(_range(run), truth, x[:, None], None, train, reference)
            values = _values(run, outcome)
            for label, metric in run.plan.metrics.items():
                if metric.untouched is not None:
                    values[label] = _entry(metric, torch.full((len(x),), metric.untouched))
    record = {"phase": None, "name": "observations", "round": None, "metrics": values}
    record |= {"of": of} if of and values else {}
    run.directory.write_json("observations", record)
    run.directory.collect_metrics()
    return Record("evaluate", record)


def _as_signals(m: Measurement, batch: int) -> tuple[Tensor | None, str]:
    """Returns what is to be seen of observations without a prior, shape (N, *shape), and how it was
    made of them: "" where they have the shape of signals; None if there is nothing like that."""
    if m.y.shape[1:] == torch.Size(m.shape):
        return m.y, ""
    if "pinv" in m.A.provides:
        make, of = _least_squares, "least squares"
    elif "adjoint" in m.A.provides:
        make, of = _one_step, "one step of least squares"
    else:
        return None, ""
    x = torch.cat([make(m[i : min(i + batch, len(m))]) for i in range(0, len(m), batch)])
    right = x.shape[1:] == torch.Size(m.shape) and not x.is_complex()
    return (x.float(), of) if right and bool(x.isfinite().all()) else (None, "")


def _least_squares(m: Measurement) -> Tensor:
    return m.A.pinv(m.y)


def _one_step(m: Measurement) -> Tensor:
    """One step of steepest descent, which brings the adjoint to the scale of the signals."""
    back = m.A.adjoint(m.y)
    again = m.A(back).abs().square().flatten(1).sum(1)
    step = back.abs().square().flatten(1).sum(1) / again.clamp(min=torch.finfo(again.dtype).tiny)
    return back * step.reshape(-1, *[1] * (back.ndim - 1))


def evaluate(run: Context, at: Round, prior: Prior) -> Iterator[Record]:
    """Restores held-out observations with the prior of a round, draws unconditional samples, and
    computes the metrics.

    Args:
        run: The run.
        at: The round.
        prior: The prior after the round.

    Yields:
        Records "restore" on the way, and "evaluate" with the metrics.
    """
    folder = run.directory.evaluation(at)
    if folder.has_json("metrics"):
        return
    clock, options = Clock(), run.recipe.evaluate
    draws, mean, m = None, None, None
    if run.plan.test and run.stage(at).evaluator is not None:
        m = run.observations("test").at(believed(run, at))
        yield from _restorations(run, at, prior, m)
        restored = folder.read("restorations")
        draws, mean = restored["draws"], restored.get("mean")
    samples = None
    if options.samples:
        if not folder.has("samples"):
            # The same random numbers in every round and for every prior, so that Fréchet distances
            # can be compared.
            x = unconditional(run, prior, options.samples, "generate", 0, 0)
            what = f"{run.where(at)}: unconditional samples"
            way = "more steps may help: invem resume RUN evaluate.steps=N"
            folder.write("samples", {"x": all_finite(x, what, way)})
        samples = folder.read("samples")["x"]
    truth = run.directory.true_signals()
    outcome = Outcome(
        _range(run), truth, draws, m, samples, _reference(run), prior=prior, mean=mean
    )
    if samples is not None:
        outcome = _simulated(run, at, outcome, samples)
        if "resimulated" in needed(run) and run.stage(at).evaluator is not None:
            yield from _restore_simulations(run, at, prior, outcome)
            outcome = replace(outcome, resimulated=folder.read("resimulated")["x"])
        outcome = _with_training_signals(run, at, outcome)
    record = {**run.named(at), "metrics": _values(run, outcome, unless=_MAY_LACK)}
    data, appears = {**run.named(at), **clock.read()}, folder.json_file("metrics")
    folder.finish("evaluate", data, lambda: folder.write_json("metrics", record), appears)
    run.directory.collect_metrics()
    yield Record("evaluate", record)


def unconditional(run: Context, prior: Prior, n: int, *key: int | str) -> Tensor:
    """Draws n unconditional samples, shape (n, *shape). key: the purpose, for the streams."""
    sigmas = Karras(sigma_min=0.01).grid(run.recipe.evaluate.steps)
    like, parts = torch.empty(0, device=run.device), []
    for index in run.pieces(n, run.recipe.evaluate.batch):
        rng = run.rng(*key, items=index.tolist())
        with run.plan.origins.naming():
            parts.append(generate(prior, sigmas, rng, run.shape, like).cpu())
    return torch.cat(parts)


def _restorations(run: Context, at: Round, prior: Prior, m: Measurement) -> Iterator[Record]:
    """Draws for the held-out observations; at the end of the run many draws for a few of them."""
    folder, options = run.directory.evaluation(at), run.recipe.evaluate
    sampler = run.stage(at).evaluator
    assert sampler is not None
    sampler = run.tuned(sampler, prior, m, "tune-test", *at)
    wanted = [("restorations", len(m), options.draws)]
    last = Round(len(run.plan.stages) - 1, run.plan.stages[-1].phase.rounds - 1)
    if at == last and options.posterior:
        wanted.append(("posterior", min(FIRST_FEW, len(m)), options.posterior))
    for purpose, n, k in wanted:
        if folder.has(purpose):
            continue
        rows, parts = torch.arange(n).repeat_interleave(k), []
        for done, x in run.sample(sampler, prior, m, rows, options.batch, purpose, *at):
            parts.append(x)
            yield Record("restore", {**run.named(at), "done": done, "total": len(rows)})
        way = "another sampler may help: invem resume RUN evaluate.sampler=NAME"
        x = all_finite(torch.cat(parts), f"{run.where(at)}: restorations", way)
        x = x.reshape(n, k, *run.shape)
        tensors = {"draws": x}
        if (mean := run.posterior_mean(sampler, prior, m[torch.arange(n)], x)) is not None:
            tensors["mean"] = all_finite(mean, f"{run.where(at)}: posterior means", way)
        folder.write(purpose, tensors)


def _simulated(run: Context, at: Round, outcome: Outcome, samples: Tensor) -> Outcome:
    """Adds training observations, and observations simulated from the samples."""
    if not needed(run) & {"observed", "simulated", "resimulated"}:
        return outcome
    theta = believed(run, at)
    real = run.observations("train").at(theta)
    real = real[torch.arange(min(len(real), len(samples)))]
    n, rng = len(samples), run.generator("simulate", *at)
    if run.plan.observed:
        rows = torch.randint(len(real), (n,), generator=rng)
        operator, noise = real.A[rows], real.noise[rows]
    else:
        operator, noise = draw_like_training(run, n, rng, theta)
    y = measured(operator, noise, samples, rng, run.plan.origins)
    simulated = Measurement(y, operator, noise).completed()
    return replace(outcome, observed=real, simulated=simulated)


def _restore_simulations(
    run: Context, at: Round, prior: Prior, outcome: Outcome
) -> Iterator[Record]:
    """Restores the first simulated observations by the sampler of the evaluation."""
    folder, sampler = run.directory.evaluation(at), run.stage(at).evaluator
    assert sampler is not None and outcome.simulated is not None
    if folder.has("resimulated"):
        return
    rows, parts = torch.arange(min(len(outcome.simulated), SIMULATED)), []
    size, key = run.recipe.evaluate.batch, ("resimulate", *at)
    for done, x in run.sample(sampler, prior, outcome.simulated, rows, size, *key):
        parts.append(x)
        yield Record("restore", {**run.named(at), "done": done, "total": len(rows)})
    way = "another sampler may help: invem resume RUN evaluate.sampler=NAME"
    x = all_finite(torch.cat(parts), f"{run.where(at)}: restorations of simulations", way)
    folder.write("resimulated", {"x": x})


def _with_training_signals(run: Context, at: Round, outcome: Outcome) -> Outcome:
    """Adds what the round was fitted to, if that were signals: one draw per observation."""
    stage = run.stage(at)
    if "trained" not in needed(run) or stage.on not in ("draws", "clean"):
        return outcome
    clean = stage.on == "clean"
    x = clean_signals(run) if clean else read_draws(run, at)[:: stage.phase.draws]
    return replace(outcome, trained=x)


def needed(run: Context) -> frozenset[str]:
    """Returns what the metrics of the recipe need."""
    return frozenset[str]().union(*(metric.needs for metric in run.plan.metrics.values()))


def _reference(run: Context) -> Tensor | None:
    if run.plan.observed or "reference" not in needed(run):
        return None
    data = open_data(run, "test")
    return data[torch.arange(min(len(data), _REFERENCE))].x


def _range(run: Context) -> tuple[float, float]:
    low, high = run.plan.facts.range
    return low, high


def _values(run: Context, outcome: Outcome, unless: Set[str] | None = None) -> dict[str, Any]:
    """Computes the metrics.

    Args:
        run: The run.
        outcome: What there is.
        unless: Parts that may be lacking: a metric that needs one of them is left out, and any
            other lack is an error. None: every metric that lacks something is left out.
    """
    values: dict[str, Any] = {}
    for i, (label, metric) in enumerate(run.plan.metrics.items()):
        if missing := [need for need in metric.needs if getattr(outcome, need, True) is None]:
            if unless is not None and not unless & set(missing):
                if "truth" in missing and run.plan.test and not run.plan.observed:
                    run.directory.truth.read("00000")  # which says that it is missing
                raise DataError(
                    f"{run.directory.path}: {label} needs {', '.join(missing)}, which the run does"
                    " not have"
                )
            continue
        prepared = run.directory.prepared
        state = prepared.read(str(i)) if prepared.has(str(i)) else {}
        try:
            value = metric_value(metric, outcome, state, run.plan.origins).double()
        except DataError:
            if unless is not None:
                raise
            continue  # one observation is not two draws
        values[label] = _entry(metric, value)
    return values


def _entry(metric: Metric, value: Tensor) -> dict[str, Any]:
    """What is stored of a metric with these values, one per observation or one for the set."""
    n = value.numel()
    return {
        "value": _finite(value.mean()),
        "sem": _finite(value.std() / n**0.5) if n > 1 else None,
        "n": n,
        "unit": metric.unit,
        "higher_is_better": metric.higher_is_better if metric.target is None else None,
        "target": metric.target,
        "below": metric.below,
        "above": metric.above,
    }


def _finite(value: Tensor) -> float | None:
    """Returns a number, or None for one that JSON has no word for."""
    return float(value) if bool(value.isfinite()) else None
