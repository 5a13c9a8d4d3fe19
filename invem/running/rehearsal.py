"""A rehearsal: each kind of step of a plan on a few observations, to know what the run will take.

Nothing of it is kept, and no random number of the run is touched.
"""

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from invem.batched import Rng
from invem.denoiser import Denoiser
from invem.diffusion import generate
from invem.errors import InvemError
from invem.gaussian import Gaussian
from invem.linalg import DPLR
from invem.measurement import Example, Measurement
from invem.objective import ClosedFormObjective, Objective
from invem.planning.checked import measured
from invem.planning.plan import Plan, Stage
from invem.prior import Prior
from invem.running.context import Context
from invem.running.priors import first_prior, network_maker
from invem.running.trainer import Trainer
from invem.sampler import PosteriorSampler
from invem.schedule import Karras
from invem.storage.directory import RunDirectory
from invem.storage.weights import exact_tensors

__all__ = ["Rehearsed", "Timed", "gradient_step", "rehearse", "timed"]

_FEW = 4  # rows of the first call that is timed
_ROWS = 64  # observations that are read
_MANY = 32  # rows that batches can be judged by
_STEPS = 4  # noise levels of the chain that is timed; longer ones take as much longer
_SECONDS, _ENOUGH = 0.1, 1.0  # what a timed call should take, and what it should not
_PER_TENSOR, _PER_FILE = 100, 150  # bytes of the header of a tensor file


class Timed(NamedTuple):
    """The seconds of a call: `start` and, for each row, `each`."""

    start: float = 0.0
    each: float = 0.0

    def of(self, rows: int, batch: int) -> float:
        """Returns the seconds of some rows in batches."""
        return math.ceil(rows / batch) * self.start + rows * self.each

    def times(self, factor: float) -> "Timed":
        """Returns the same with calls that are longer by a factor."""
        return Timed(self.start * factor, self.each * factor)


@dataclass(frozen=True)
class Rehearsed:
    """What the steps of a phase take. Times are none where only sizes were asked for.

    Attributes:
        first: The draws of the first round, with the prior before the phase.
        draw: The draws of later rounds.
        fit: A gradient step on a batch; a pass over the data for a fit in closed form.
        restore: The held-out restorations, with the prior after the phase.
        sample: The unconditional samples.
        file: Bytes of the file of a fit, without its moments.
        weights: Bytes of the trained weights; 0 for a fit in closed form.
        graph: Bytes that a gradient step keeps for each example.
        state: Bytes that a draw keeps for each observation.
    """

    first: Timed = Timed()
    draw: Timed = Timed()
    fit: Timed = Timed()
    restore: Timed = Timed()
    sample: Timed = Timed()
    file: int = 0
    weights: int = 0
    graph: int = 0
    state: int = 0


def timed(work: Callable[[int], object], most: int, device: torch.device) -> Timed:
    """Measures how long a call takes, on more and more rows until it takes long enough.

    Args:
        work: Is called with the number of rows.
        most: The most rows.
        device: The device, which is waited for.
    """
    n, last = min(_FEW, most), None
    work(n)
    while True:
        seconds = _seconds(work, n, device)
        if seconds < _ENOUGH / 4:  # other processes disturb a short call
            seconds = min(seconds, _seconds(work, n, device))
        if n >= most or seconds >= _ENOUGH or (seconds >= _SECONDS and n >= _MANY):
            break
        last = n, seconds
        n = min(most, 8 * n)
    if last is None:
        return Timed(0.0, seconds / n)
    slope = (seconds - last[1]) / (n - last[0])
    each = min(max(slope, 0.2 * seconds / n), seconds / n)
    return Timed(seconds - n * each, each)


def _seconds(work: Callable[[int], object], n: int, device: torch.device) -> float:
    _wait(device)
    begun = time.perf_counter()
    work(n)
    _wait(device)
    return time.perf_counter() - begun


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rehearse(plan: Plan, clock: bool = True) -> Iterator[Rehearsed]:
    """Carries out each kind of step of every phase on a few observations.

    Args:
        plan: The plan.
        clock: Whether times are measured; sizes alone need a fraction of the work.

    Yields:
        What the steps of each phase take.
    """
    with tempfile.TemporaryDirectory() as folder, plan.origins.naming():
        run = Context(plan, RunDirectory(Path(folder, "run")))
        work = _Rehearsal(run, clock)
        for p in range(len(plan.stages)):
            yield work.stage(p)


@contextlib.contextmanager
def gradient_step(plan: Plan) -> Iterator[tuple[Callable[[int], object], int] | None]:
    """Gives a gradient step of the first phase that trains a network, as a function of the number
    of examples, and its batch; None if no phase does."""
    first = next((p for p, s in enumerate(plan.stages) if isinstance(s.objective, Objective)), None)
    if first is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder, plan.origins.naming():
        work = _Rehearsal(Context(plan, RunDirectory(Path(folder, "run"))), clock=False)
        for p in range(first):
            work.stage(p)
        stage = plan.stages[first]
        assert isinstance(stage.objective, Objective) and stage.phase.fit is not None
        yield work.step(stage, work.trainer(first, stage, stage.objective)), stage.phase.fit.batch


class _Rehearsal:
    """The prior that the phases have come to, and made-up observations.

    Args:
        run: A run in a folder that will be removed.
        clock: Whether times are measured.
    """

    def __init__(self, run: Context, clock: bool) -> None:
        self.run, self.plan, self.clock, self.device = run, run.plan, clock, run.device
        self.x, self.m = _observations(run)
        self.prior = first_prior(run)
        self._passes: dict[int, tuple[Timed, Timed]] = {}

    def stage(self, p: int) -> Rehearsed:
        """Rehearses a phase and goes on to the prior after it."""
        stage, before = self.plan.stages[p], self.prior
        found = self._fitted(p, stage)
        after, sampler, batch = self.prior, stage.sampler, stage.phase.batch
        if sampler is not None:
            found = replace(found, state=self._state(sampler, after or before))
        if not self.clock:
            return found
        if sampler is not None:
            first = draw = self._drawn(sampler, before, batch)
            alike = before is after or (before and after and before.trained and after.trained)
            if stage.phase.rounds > 1 and not alike:
                draw = self._drawn(sampler, after, batch)
            found = replace(found, first=first, draw=draw)
        return found if after is None else self._evaluated(stage, after, found)

    def _evaluated(self, stage: Stage, prior: Prior, found: Rehearsed) -> Rehearsed:
        """Adds the times of an evaluation."""
        options = self.plan.recipe.evaluate
        if self.plan.test and stage.evaluator is not None:
            # The draws of later rounds are made with this prior.
            known = stage.evaluator is stage.sampler and stage.phase.rounds > 1
            restore = found.draw if known else self._drawn(stage.evaluator, prior, options.batch)
            found = replace(found, restore=restore)
        if options.samples:
            found = replace(found, sample=self._sampled(prior, options.steps, options.batch))
        return found

    # Draws

    def _drawn(self, sampler: PosteriorSampler, prior: Prior | None, batch: int) -> Timed:
        prior = prior or self.run.standard()
        short = _shortened(sampler)
        short = short.tune(prior, self._some(2), _streams(2))

        def draw(n: int) -> None:
            short(prior, self._some(n), _streams(n))

        found = timed(draw, batch, self.device)
        return found.times(self._work(sampler, prior) / self._work(short, prior))

    def _work(self, sampler: PosteriorSampler, prior: Prior) -> float:
        """Returns how much work a draw is, in seconds of the network or in noise levels."""
        forwards, products = sampler.cost
        if prior.trained and forwards + products:
            forward, product = self.passes(prior)
            return forwards * forward.each + products * product.each
        return float(getattr(sampler, "steps", 0) or 1)

    def passes(self, prior: Prior) -> tuple[Timed, Timed]:
        """Returns the times of a pass forward through the network and of a vector-Jacobian
        product."""
        if id(prior) not in self._passes:
            sigma = 0.5

            def forward(n: int) -> None:
                with torch.no_grad():
                    prior(self._noisy(n), sigma)

            def both(n: int) -> None:
                x_t = self._noisy(n).requires_grad_()
                x_hat = prior(x_t, sigma)
                torch.autograd.grad(x_hat, x_t, x_hat.detach())

            one = timed(forward, _ROWS, self.device)
            two = timed(both, _ROWS, self.device)
            product = Timed(0.0, max(two.each - one.each, 0.5 * one.each))
            self._passes[id(prior)] = one, product
        return self._passes[id(prior)]

    def _sampled(self, prior: Prior, steps: int, batch: int) -> Timed:
        few = steps if prior.generator is not None else min(steps, 3)
        sigmas = Karras(sigma_min=0.01).grid(few)
        like = torch.empty(0, device=self.device)

        def sample(n: int) -> None:
            generate(prior, sigmas, _streams(n), self.plan.shape, like)

        found = timed(sample, batch, self.device)
        return found.times((2 * steps - 1) / (2 * few - 1))

    def _state(self, sampler: PosteriorSampler, prior: Prior | None) -> int:
        """Returns the bytes that a pass keeps for each observation."""
        if prior is None or not prior.trained:
            return 16 * math.prod(self.plan.shape) * 4
        x_t = self._noisy(2).requires_grad_()
        with _Kept(prior.denoiser) as kept:
            prior(x_t, 0.5)
        whole = kept.bytes // 2
        return whole if sampler.cost[1] else whole // 4

    # Fits

    def _fitted(self, p: int, stage: Stage) -> Rehearsed:
        """Rehearses a fit, and takes its prior."""
        if isinstance(stage.objective, ClosedFormObjective):
            return self._solved(stage, stage.objective)
        if isinstance(stage.objective, Objective):
            return self._trained(p, stage, stage.objective)
        return Rehearsed()

    def _solved(self, stage: Stage, objective: ClosedFormObjective) -> Rehearsed:
        prior, on = self.prior or self.run.standard(), stage.on
        solved: list[Any] = []

        def solve(n: int) -> None:
            batch = self._example(on, n), _streams(n)
            solved.append(objective.solve(prior, lambda: [batch]))

        if self.clock:
            most = max(stage.phase.batch, least := len(self.x))
            found = timed(lambda n: solve(max(n, least)), most, self.device)
        else:
            found = Timed()
            solve(len(self.x))
        self.prior = Prior.of(solved[-1])
        return Rehearsed(fit=found, file=_file_size(exact_tensors(solved[-1])))

    def _trained(self, p: int, stage: Stage, objective: Objective) -> Rehearsed:
        fit, trainer = stage.phase.fit, self.trainer(p, stage, objective)
        assert fit is not None
        step = self.step(stage, trainer)
        with _Kept(trainer.model) as kept:
            step(2)
        graph = kept.bytes // 2
        found = timed(step, fit.batch, self.device) if self.clock else Timed()
        weights = trainer.state(0.5)
        if not fit.keep:
            weights.optimizer = {}
        size = sum(w.numel() * w.element_size() for w in trainer.weights.values())
        build, seed = self.plan.builder_of(stage), self.plan.recipe.seed
        bare = objective.build(network_maker(build, seed, 0.5, None), None, None)
        bare.load_state_dict(weights.averaged())
        bare = bare.to(self.device).eval().requires_grad_(False)
        self.prior = objective.prior(bare, _moments(self.plan.shape, fit.moments, self.device))
        return Rehearsed(fit=found, file=_file_size(weights.tensors()), weights=size, graph=graph)

    def trainer(self, p: int, stage: Stage, objective: Objective) -> Trainer:
        """Returns what trains the network of a phase, from new weights."""
        assert stage.phase.fit is not None
        made: list[Denoiser] = []
        build = self.plan.builder_of(stage)
        make = network_maker(build, self.plan.recipe.seed, 0.5, None, p, made=made)
        return Trainer(
            objective,
            stage.phase.fit,
            objective.build(make, self.prior, self.m).to(self.device),
            made,
            self.device,
            self.run.bfloat16,
            compiled=False,
            origins=self.plan.origins,
        )

    def step(self, stage: Stage, trainer: Trainer) -> Callable[[int], object]:
        """Returns a gradient step of a phase, as a function of the number of examples."""
        return lambda n: trainer.take_step([(self._example(stage.on, n), _streams(n))])

    # Examples

    def _some(self, n: int) -> Measurement:
        return self.m[torch.arange(n) % len(self.m)].to(self.device)

    def _noisy(self, n: int) -> Tensor:
        return self.x[torch.arange(n) % len(self.x)].to(self.device)

    def _example(self, on: str, n: int) -> Example:
        x = None if on == "observations" else self._noisy(n)
        return Example(x, None if on == "clean" else self._some(n))


class _Kept:
    """Counts the bytes that automatic differentiation keeps for the backward pass, without the
    weights of a module."""

    def __init__(self, module: torch.nn.Module) -> None:
        own = [*module.parameters(), *module.buffers()]
        self._known = {tensor.untyped_storage().data_ptr() for tensor in own}
        self.bytes = 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._known.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor

    def __enter__(self) -> "_Kept":
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)


def _observations(run: Context) -> tuple[Tensor, Measurement]:
    """Returns some signals and observations of the plan; signals are made up where there are
    none."""
    plan, rows = run.plan, torch.arange(min(_ROWS, run.plan.train))
    rng = Rng.generator(plan.recipe.seed, "rehearsal")
    operator, noise = plan.model.draw(len(rows), rng, plan.recipe.assume)
    data = plan.data("train")
    x = data[rows].x
    assert x is not None
    if not plan.observed:
        y = measured(operator, noise, x, rng, plan.origins)
        return x, Measurement(y, operator, noise).completed()
    m, given = Measurement(x, operator, noise), data.measured(rows)
    made = 0.5 * torch.randn(len(rows), *plan.shape, generator=rng)
    m = m if given is None else m.with_tensors(m.tensors() | given)
    return made, m.completed()


def _streams(n: int) -> Rng:
    return Rng.keyed("rehearsal", items=list(range(n)))


def _shortened(sampler: PosteriorSampler) -> PosteriorSampler:
    """Returns a sampler with fewer noise levels, where it has many and can."""
    this: Any = sampler
    steps = getattr(sampler, "steps", None)
    if not is_dataclass(sampler) or type(steps) is not int or steps <= _STEPS:
        return sampler
    try:
        shorter: PosteriorSampler = replace(this, steps=_STEPS)
    except (InvemError, ValueError):
        return sampler
    return shorter


def _moments(shape: tuple[int, ...], rank: int, device: torch.device) -> Gaussian:
    """Returns made-up moments of a rank."""
    d = math.prod(shape)
    factor = torch.randn(d, min(rank, d), generator=Rng.generator("rehearsal", d)) / d**0.5
    return Gaussian(torch.zeros(shape), DPLR(torch.full((d,), 0.05), factor)).to(device)


def _file_size(tensors: dict[str, Tensor]) -> int:
    """Returns the bytes of a file of tensors."""
    data = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return data + _PER_TENSOR * len(tensors) + _PER_FILE
