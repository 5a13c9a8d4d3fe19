"""The M-step: fits the prior to draws, clean signals or observations."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from invem.batched import Rng
from invem.config import Fit
from invem.config.settings import settings_unchanged
from invem.denoiser import Denoiser
from invem.errors import NumericalError
from invem.gaussian import Gaussian
from invem.measurement import Example, Measurement
from invem.objective import ClosedFormObjective, Objective
from invem.planning.tried import try_network
from invem.prior import Prior
from invem.running.context import Context
from invem.running.draws import keep_pool, read_draws, subset
from invem.running.measure import believed, clean_signals
from invem.running.order import batch_of_step
from invem.running.priors import FILE, network_maker, newest_weights
from invem.running.records import Clock, Record
from invem.running.trainer import Trainer
from invem.storage.directory import Round
from invem.storage.weights import TrainedWeights, exact_tensors, prefixed

__all__ = ["augment", "mstep"]

_LOGGED = 25  # gradient steps whose mean loss is one record


class Training:
    """What a round learns from.

    Args:
        x: Signals, shape (N, *shape), or None.
        m: Measurements, N, or None.
    """

    def __init__(self, x: Tensor | None, m: Measurement | None) -> None:
        self.x, self.m = x, m

    def __len__(self) -> int:
        return len(self.x) if self.x is not None else len(self.m or ())

    def example(self, index: Tensor, device: torch.device) -> Example:
        """Returns some of it as an example, on a device."""
        x = None if self.x is None else self.x[index].to(device)
        return Example(x, None if self.m is None else self.m[index].to(device))


def mstep(run: Context, at: Round, prior: Prior | None) -> Iterator[Record]:
    """Fits the prior of a round and stores it.

    Args:
        run: The run.
        at: The round.
        prior: The prior that the round begins with, if there is one.

    Yields:
        Records "loss" while it trains, and "fit" at the end.
    """
    stage, clock = run.stage(at), Clock()
    training = training_of(run, at)
    if isinstance(stage.objective, ClosedFormObjective):
        yield _solve(run, at, stage.objective, training, prior, clock)
        return
    assert stage.objective is not None and stage.phase.fit is not None
    yield from _train(run, at, stage.objective, training, prior)


def training_of(run: Context, at: Round) -> Training:
    """Returns what a round learns from.

    Raises:
        NumericalError: If all draws are the same.
    """
    stage = run.stage(at)
    if stage.on == "clean":
        return Training(clean_signals(run), None)
    m = run.observations("train").at(believed(run, at))
    if stage.on == "observations":
        return Training(None, m)
    x = read_draws(run, at)
    keep_pool(run, at, x)
    if len(x) > 1 and bool((x == x[:1]).all()):
        raise NumericalError(
            f"{run.where(at)}: all draws are the same: refusing to learn from them; other options"
            f" of the sampler may help: {run.way_on(at, 'sampler.KEY=VALUE')}"
        )
    return Training(x, m[subset(run, at).repeat_interleave(stage.phase.draws)])


def _solve(
    run: Context,
    at: Round,
    objective: ClosedFormObjective,
    training: Training,
    prior: Prior | None,
    clock: Clock,
) -> Record:
    """Fits in closed form, stores the distribution, and returns the record of it."""
    size = run.stage(at).phase.batch

    def batches() -> Iterator[tuple[Example, Rng]]:
        for index in run.pieces(len(training), size):
            rng = run.rng("fit", at.phase, at.number, items=index.tolist())
            yield training.example(index, run.device), rng

    with settings_unchanged(lambda: run.plan.origins.of(objective)):
        solved = Prior.of(objective.solve(prior or run.standard(), batches))
    assert solved.exact is not None
    meta = {"provides": sorted(solved.provides), "made of": run.plan.made_of(at.phase)}
    tensors, cov = exact_tensors(solved.exact), solved.known_moments().cov
    std = float((cov.diag + cov.factor.square().sum(1)).mean().sqrt())
    data = {**run.named(at), **clock.read(), "std": std}
    folder = run.directory.fit(at)
    folder.finish("fit", data, lambda: folder.write(FILE, tensors, meta), folder.file(FILE))
    return Record("fit", data)


def _train(
    run: Context, at: Round, objective: Objective, training: Training, prior: Prior | None
) -> Iterator[Record]:
    """Trains the model of a round, from its newest checkpoint if there is one, and stores it."""
    fit = run.stage(at).phase.fit
    assert fit is not None
    moments = _moments(training, prior, fit)
    before = newest_weights(run, at)
    sigma_data = _scale(run, before, moments)
    trainer = _trainer(run, at, objective, training.m, prior, before, sigma_data, moments)
    folder = run.directory.fit(at)
    for told in trainer.load(folder):
        yield run.log("damaged", **run.named(at), warning=f"{told}; an older one is used")
    run.directory.forget(at, "loss", trainer.step)
    feeder = _Feeder(run, at, training, fit)
    losses: list[Tensor] = []
    while trainer.step < fit.steps:
        if run.stopping:
            trainer.save(folder)
            run.check()
        loss, finite = trainer.take_step(feeder.batches(trainer.step))
        if not bool(finite):
            where = f"{run.where(at)}, step {trainer.step - 1}"
            way = run.way_on(at, f"fit.lr={fit.lr / 3:.2g}")
            raise NumericalError(
                f"{where}: the loss or its gradient is not finite; a lower learning rate may help:"
                f" {way}"
            )
        losses.append(loss)
        done = trainer.step
        if done % _LOGGED == 0 or done == fit.steps:
            value = float(torch.stack(losses).mean())
            losses.clear()
            yield run.log("loss", **run.named(at), step=done, total=fit.steps, loss=value)
        if done % fit.checkpoint == 0 and done < fit.steps:
            trainer.save(folder)
    yield _store(run, at, objective, trainer, sigma_data, moments)


def _moments(training: Training, prior: Prior | None, fit: Fit) -> Gaussian | None:
    """Returns the mean and covariance of what is learned from.

    What is learned from measurements alone keeps the moments of the prior before, of a Gaussian
    initialisation.
    """
    if training.x is not None:
        return Gaussian.fit(training.x, fit.moments).to("cpu")
    return None if prior is None or prior.moments is None else prior.moments.to("cpu")


def _scale(run: Context, before: TrainedWeights | None, moments: Gaussian | None) -> float:
    """Returns sigma_data: that of the weights before, of the recipe, or of the training signals."""
    if before is not None and before.sigma_data:
        return before.sigma_data
    if run.recipe.sigma_data != "auto":
        return float(run.recipe.sigma_data)
    if moments is None:
        return 0.5
    spread = moments.cov.diag + moments.cov.factor.square().sum(1)
    return round(float(spread.mean().sqrt()), 4)


def _trainer(
    run: Context,
    at: Round,
    objective: Objective,
    m: Measurement | None,
    prior: Prior | None,
    before: TrainedWeights | None,
    sigma_data: float,
    moments: Gaussian | None,
) -> Trainer:
    """Builds the model of a round and what trains it. m: the measurements that are learned from, if
    there are any."""
    stage = run.stage(at)
    fit = stage.phase.fit
    assert fit is not None
    key = (at.phase, at.number) if fit.start == "fresh" else (at.phase,)
    mean = None if moments is None else moments.mean
    made: list[Denoiser] = []
    build = run.plan.builder_of(stage)
    make = network_maker(build, run.recipe.seed, sigma_data, mean, *key, made=made)
    if m is None:
        # A model may look at the training measurements where it learns from clean signals, too.
        m = run.observations("train").at(believed(run, at))
    model = objective.build(make, prior, m)
    if before is not None and fit.start != "fresh":
        states = before.of_networks(len(made), averaged=fit.start == "ema")
        for network, state in zip(made, states, strict=True):
            network.load_state_dict(state)
    model = model.to(run.device)
    for network in made:
        try_network(network, run.shape, run.device, run.plan.origins)
    trainer = Trainer(
        objective,
        fit,
        model,
        made,
        run.device,
        run.bfloat16,
        run.compile,
        run.plan.origins,
    )
    if stage.sampler is None and prior is not None and prior.trained:
        # A teacher counts too. In a phase with a sampler the next E-step may be calling it.
        trainer.counted.append(prior.denoiser)
    if fit.keep and before is not None and fit.start != "fresh":
        trainer.go_on_from(before, average=fit.start == "warm")
    return trainer


class _Feeder:
    """The examples of each gradient step, found from the step alone."""

    def __init__(self, run: Context, at: Round, training: Training, fit: Fit) -> None:
        self.run, self.at, self.training, self.fit = run, at, training, fit
        self.clean = clean_signals(run) if fit.clean else None
        size = min(fit.batch, len(training))
        self.granted = min(max(round(fit.clean * size), 1), size - 1) if fit.clean else 0
        self.size = size - self.granted

    def batches(self, step: int) -> list[tuple[Example, Rng]]:
        """Returns the examples of a step, with their streams."""
        run, at, seed = self.run, self.at, self.run.recipe.seed
        index = batch_of_step(len(self.training), self.size, step, seed, *at)
        x, m = self.training.x, self.training.m
        if x is not None:
            x = self._augmented(x[index], "augment", step)
        m = None if m is None else m[index].to(run.device)
        batches = [(Example(x, m), run.rng("m-step", *at, step, items=range(len(index))))]
        if self.clean is not None:
            n = self.granted
            chosen = batch_of_step(len(self.clean), n, step, seed, "clean", *at)
            clean = self._augmented(self.clean[chosen], "augment-clean", step)
            rng = run.rng("m-step-clean", *at, step, items=range(n))
            batches.append((Example(clean), rng))
        return batches

    def _augmented(self, x: Tensor, purpose: str, step: int) -> Tensor:
        rng = self.run.rng(purpose, *self.at, step, items=range(len(x)))
        return augment(x, self.fit, rng).to(self.run.device)


def _store(
    run: Context,
    at: Round,
    objective: Objective,
    trainer: Trainer,
    sigma_data: float,
    moments: Gaussian | None,
) -> Record:
    """Writes the file of the round, removes the checkpoints, and returns the record of the fit."""
    fit = run.stage(at).phase.fit
    assert fit is not None
    if moments is None:
        moments = Gaussian.standard(run.shape, sigma_data)
    weights = trainer.state(sigma_data)
    if not fit.keep:
        weights.optimizer = {}
    prior = objective.prior(trainer.model, moments)
    facts = {"provides": sorted(prior.provides), "made of": run.plan.made_of(at.phase)}
    meta: dict[str, Any] = {**weights.meta(), **facts}
    folder = run.directory.fit(at)
    tensors = weights.tensors() | prefixed("moments.", moments.tensors())
    spent = {"passes": trainer.passes, **trainer.clock.read()}
    data = {**run.named(at), "steps": fit.steps, **spent}
    folder.finish("fit", data, lambda: folder.write(FILE, tensors, meta), folder.file(FILE))
    for name in folder.checkpoints():
        folder.remove(name)
    return Record("fit", data)


def augment(x: Tensor, fit: Fit, rng: Rng) -> Tensor:
    """Mirrors and shifts images at random, each by its own stream; the border is repeated.

    Args:
        x: Signals, shape (B, *shape); (B, C, H, W) where anything is asked for.
        fit: Its `flip` and `shift` say what is done.
        rng: B streams.
    """
    ones = [1] * (x.ndim - 1)
    for axis in {"none": (), "horizontal": (-1,), "both": (-1, -2)}[fit.flip]:
        x = torch.where(rng.uniform(*ones) < 0.5, x, x.flip(axis))
    if fit.shift:
        for axis in (-1, -2):
            size = x.shape[axis]
            by = (rng.uniform(*ones) * (2 * fit.shift + 1)).long() - fit.shift
            shape = [size if a == axis else 1 for a in range(-x.ndim, 0)]
            place = torch.arange(size).reshape(shape)
            x = x.gather(axis, (place + by).clamp(0, size - 1).expand(x.shape))
    return x
