"""The calibration of a round: options of operator and noise, held to what observations allow."""

import math
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from invem.analysis import (
    TRIALS,
    Calibrated,
    NoiseLevel,
    Parameters,
    calibrate,
    calibrate_by_moments,
    noise_level,
)
from invem.config.nested import option_number
from invem.errors import Stopped
from invem.measurement import Measurement
from invem.planning.doubts import level_option
from invem.prior import Prior
from invem.running.context import Context
from invem.running.measure import believed, clean_signals
from invem.running.records import Clock, Record
from invem.sampler import PosteriorSampler
from invem.storage.directory import Round

__all__ = ["calibrated", "shown_noise"]

_EDGE = 0.01  # how near to an end, relative, a value is held at it
_FAR = 4.0  # standard errors that an estimate may move from one round to the next
_MOVED = 0.2  # and the relative step that it may make whatever its errors say
_BELOW = 0.5  # of the level that observations show: less is doubted where no lower end is known
_LOOKED_AT = 1024  # observations whose noise is estimated


def shown_noise(m: Measurement) -> NoiseLevel | None:
    """Returns what the first observations say of their noise; None where nothing can be said."""
    return noise_level(m[torch.arange(min(len(m), _LOOKED_AT))])


@dataclass(frozen=True)
class _Held:
    """The bounds of a calibration, and the ends that the observations themselves set.

    Attributes:
        bounds: The lowest and the highest value of each option.
        key: The option that is the noise level; "" if it is not calibrated or nothing is known.
        ends: The ends that the observations set it, those of the recipe excepted.
        level: What they say of it.
        shown: The value of the option that they look like; 0 if nothing is known.
    """

    bounds: Mapping[str, tuple[float, float]]
    key: str = ""
    ends: tuple[float, ...] = ()
    level: NoiseLevel | None = None
    shown: float = 0.0

    def start(self, values: Mapping[str, float]) -> dict[str, float]:
        """Returns values within the bounds."""
        return {key: min(max(values[key], low), high) for key, (low, high) in self.bounds.items()}

    def warning(self, values: Mapping[str, float]) -> str | None:
        """Returns what a person should know of the level of the noise that was found, in one
        line."""
        if not self.key or self.level is None:
            return None
        value = values[self.key]
        if any(math.isclose(value, end, rel_tol=_EDGE) for end in self.ends):
            low, high = self.bounds[self.key]
            return (
                f"{self.key} went to the end of what the observations allow, {low:.3g} to"
                f" {high:.3g} (by {self.level.how}), and is held at {value:.3g}: the prior of this"
                f" round cannot tell noise from signal, as when it was learned with a wrong level;"
                f" {_WAY}"
            )
        if value < _BELOW * self.shown:
            return (
                f"{self.key} is estimated at {value:.3g}, and the observations look as if it were"
                f" {self.shown:.3g} (by {self.level.how}): either signals are as rough as noise, or"
                f" the prior of this round has learned noise as signal; {_WAY}"
            )
        return None


_WAY = "grant clean images (`clean`), or write the level that is known and calibrate no more"


def _held(run: Context, at: Round, m: Measurement, theta: Mapping[str, float]) -> _Held:
    """Returns the bounds of a round: those of the recipe, narrowed to what the observations
    allow."""
    bounds = {key: (low, high) for key, (low, high) in run.stage(at).phase.calibrate.items()}
    key = level_option(run.plan.model)
    if key is None or key not in bounds:
        return _Held(bounds)
    level = shown_noise(m)
    if level is None or not math.isfinite(level.ratio):
        return _Held(bounds)
    value, (low, high) = _value(run, key, theta), bounds[key]
    least, most = (value * end for end in level.bracket)
    ends = tuple(end for end in (least, most) if low < end < high)
    narrow = max(low, least), min(high, most)
    if narrow[0] >= narrow[1]:
        # The recipe's own bounds leave out all that the observations allow.
        return _Held(bounds, key, (), level, value * level.ratio)
    return _Held({**bounds, key: narrow}, key, ends, level, value * level.ratio)


def _value(run: Context, key: str, theta: Mapping[str, float]) -> float:
    """Returns the value of an option that is believed."""
    kind, _, rest = key.partition(".")
    return theta.get(key, option_number(run.plan.model.options[kind], rest.split(".")))


def calibrated(
    run: Context, at: Round, sampler: PosteriorSampler | None, prior: Prior | None
) -> Iterator[Record]:
    """Estimates options of operator and noise from the observations, and stores them.

    The search begins at the values that are believed. The level of the noise is kept where the
    observations themselves say that it is (`NoiseLevel.bracket`).

    Args:
        run: The run.
        at: The round.
        sampler: Draws under the prior of the round. None in a phase in closed form: the estimate is
            then the maximum likelihood under the Gaussian with the moments of the prior.
        prior: The prior of the round; None where there is none yet, and the values stay.

    Yields:
        Records "trial" while draws are made, "calibrate" at the end, and "doubt" if the noise level
        was held at the end of what observations allow.
    """
    clock, phase = Clock(), run.stage(at).phase
    if run.directory.draws(at).has_json("calibrated"):
        return
    observations, theta = run.observations("train"), believed(run, at)
    held = _held(run, at, observations.at(theta), theta)
    start = held.start({key: _value(run, key, theta) for key in phase.calibrate})
    order = torch.randperm(run.plan.train, generator=run.generator("calibrate", *at))

    def measured(values: Mapping[str, float], rows: Tensor) -> Measurement:
        return observations.at(theta | dict(values))[rows]

    bounds, names = Parameters(held.bounds), ", ".join(phase.calibrate)
    shown = {**run.named(at), "options": names}
    yield Record("trial", {**shown, "trial": 1, "trials": TRIALS, "done": 0, "total": 1})
    if sampler is None:
        moments = None if prior is None else prior.moments
        found = _unchanged(start)
        if moments is not None:
            found = calibrate_by_moments(moments, measured, order, bounds, start) or found
    else:
        first = not _calibrated_before(run)
        clean = clean_signals(run) if first and run.recipe.clean != 0 else None
        assert prior is not None
        tuned = run.tuned(sampler, prior, observations.at(theta), "tune", *at)
        found = yield from _with_progress(
            run,
            lambda tell: calibrate(
                measured, order, bounds, start, _drawing(run, at, tuned, prior, tell, shown), clean
            ),
        )
    yield from _kept(run, at, found, held, clock)


def _unchanged(start: dict[str, float]) -> Calibrated:
    return Calibrated(start, "observations", False, [start], {})


def _kept(
    run: Context, at: Round, found: Calibrated, held: _Held, clock: Clock
) -> Iterator[Record]:
    """Stores what was found, and tells of it."""
    warning = held.warning(found.values)
    warning = _moved(run, at, found) or _bounded(run, at, found) if warning is None else warning
    if warning is not None:
        found = replace(found, settled=False, error={})
    facts: dict[str, Any] = {
        "values": found.values,
        "error": found.error,
        "how": found.how,
        "settled": found.settled,
        "path": found.path,
    }
    folder, data = run.directory.draws(at), {**run.named(at), **facts, **clock.read()}
    if warning is not None:
        data["warning"] = f"{run.where(at)}: {warning}"
    appears = folder.json_file("calibrated")
    folder.finish("calibrate", data, lambda: folder.write_json("calibrated", facts), appears)
    yield Record("calibrate", data)
    if warning is not None:
        yield Record("doubt", {**run.named(at), "warning": data["warning"]})


def _moved(run: Context, at: Round, found: Calibrated) -> str | None:
    """Returns why an estimate contradicts the one before it, in one line; None if it does not.

    Both state errors that hold if the prior is right. An estimate that leaves them says that a
    prior was not.
    """
    before = _estimates(run, at)
    if not before:
        return None
    last = before[-1]
    for key, value in found.values.items():
        old = last["values"].get(key)
        errors = last["error"].get(key), found.error.get(key)
        if old is None or errors[0] is None or errors[1] is None:
            continue
        step = abs(value - old)
        if step > _FAR * math.hypot(errors[0], errors[1]) and step > _MOVED * abs(old):
            return (
                f"{key} moved from {old:.3g}, known to {errors[0]:.2g}, to {value:.3g} in one"
                " round: the errors hold for a right prior alone, and what this prior learned with"
                f" the one value speaks for the other; {_WAY}"
            )
    return None


def _bounded(run: Context, at: Round, found: Calibrated) -> str | None:
    """Returns that an estimate stands at a bound of the recipe, in one line; None if none does."""
    if found.how == "observations":
        return None
    for key, bounds in run.stage(at).phase.calibrate.items():
        value = found.values[key]
        if any(math.isclose(value, end, rel_tol=_EDGE) for end in bounds):
            return (
                f"{key} stands at the end of its bounds in the recipe, {value:.3g}: they hold it,"
                " not the observations; widen `calibrate`, or write the value that is known"
            )
    return None


def _estimates(run: Context, at: Round) -> list[dict[str, Any]]:
    """Returns the estimates by draws of the rounds before one, in order."""
    rounds = [
        Round(p, r)
        for p, stage in enumerate(run.plan.stages)
        for r in range(stage.phase.rounds if stage.phase.calibrate else 0)
        if Round(p, r) < at
    ]
    folders = [run.directory.draws(each) for each in rounds]
    found = [each.read_json("calibrated") for each in folders if each.has_json("calibrated")]
    return [each for each in found if each["how"] == "score"]


def _calibrated_before(run: Context) -> bool:
    """Whether a round with draws was calibrated before."""
    return any(
        run.directory.draws(Round(p, r)).has_json("calibrated")
        for p, stage in enumerate(run.plan.stages)
        for r in range(stage.phase.rounds)
        if stage.sampler is not None
    )


def _drawing(
    run: Context,
    at: Round,
    sampler: PosteriorSampler,
    prior: Prior,
    tell: Callable[[Record], None],
    shown: Mapping[str, Any],
) -> Callable[[Measurement], Tensor]:
    """Returns what draws for one trial after another, and tells how far it is."""
    trial = 0

    def draw(m: Measurement) -> Tensor:
        nonlocal trial
        trial += 1
        rows, key, parts = torch.arange(len(m)), ("calibrate", *at), list[Tensor]()
        for done, x in run.sample(sampler, prior, m, rows, run.stage(at).phase.batch, *key):
            parts.append(x)
            facts = {"trial": trial, "trials": TRIALS, "done": done, "total": len(m)}
            tell(Record("trial", {**shown, **facts}))
        return torch.cat(parts)

    return draw


def _with_progress(
    run: Context, work: Callable[[Callable[[Record], None]], Calibrated]
) -> Generator[Record, None, Calibrated]:
    """Does a work in a thread, and yields the records that it tells."""
    told: queue.SimpleQueue[Record | BaseException | Calibrated] = queue.SimpleQueue()
    threads, closed = torch.get_num_threads(), threading.Event()

    def tell(record: Record) -> None:
        if closed.is_set():
            raise Stopped(f"stopped; go on with: invem resume {run.directory.path}", 0)
        told.put(record)

    def carry_out() -> None:
        torch.set_num_threads(threads)
        try:
            told.put(work(tell))
        except BaseException as error:
            told.put(error)

    thread = threading.Thread(target=carry_out, name="calibrate", daemon=True)
    thread.start()
    try:
        while True:
            found = told.get()
            if isinstance(found, BaseException):
                raise found
            if isinstance(found, Calibrated):
                return found
            yield found
    finally:
        closed.set()  # a run that is closed waits for the piece of work at hand alone
        thread.join()
