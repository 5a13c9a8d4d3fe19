"""What a report says at its top: what was learned, whether it is better than the observations,
whether it agrees with them, and whether more rounds would help."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from invem.report.data import Evaluation, MetricValue, ReportData, Round, RoundEvent

__all__ = ["Sentence", "event_text", "headline", "number_text", "value_text", "verdict"]

_NEAR = 0.05  # of its target: as near as a value has to be
_FAR = 0.2  # from 1, in standard deviations of the noise: the assumed level is wrong
_LEAST = 0.1  # of a value without a standard error, or of all that rounds gained: a change


class Sentence(NamedTuple):
    """One sentence of the verdict.

    Attributes:
        text: The sentence, without its full stop.
        tone: "good", "bad", or "" for neither.
    """

    text: str
    tone: str = ""


def number_text(value: float, sem: float) -> str:
    """Value ± standard error, to two digits of the error."""
    if math.isnan(value):
        return "–"
    if not math.isfinite(value):
        return "∞" if value > 0 else "−∞"
    if not math.isfinite(sem) or sem <= 0:
        return f"{value:.4g}".replace("-", "−")
    digits = max(0, 1 - math.floor(math.log10(sem)))
    if digits > 8 or abs(value) >= 1e7:
        return f"{value:.4g} ± {sem:.2g}".replace("-", "−")
    return f"{value:.{digits}f} ± {sem:.{digits}f}".replace("-", "−")


def value_text(value: MetricValue | None) -> str:
    """A metric as `number_text`; a dash where there is none."""
    return "–" if value is None else number_text(value.value, value.sem)


def verdict(run: ReportData) -> list[Sentence]:
    """Returns what a person should know of a run before its numbers, the most important first."""
    return [
        *_learned(run),
        *_gains(run),
        *_targets(run),
        *_rounds(run),
        *(Sentence(text, "bad") for text in _warnings(run)),
    ]


def headline(run: ReportData) -> Sentence:
    """Returns one sentence that says whether the run worked, from what is known of it."""
    gains = list(_gains(run))
    good = [told.text for told in gains if told.tone == "good"]
    doubts = [told.text for told in _targets(run) if told.tone == "bad"]
    far, worse = list(_far_off(run)), [told.text for told in gains if told.tone == "bad"]
    if far or worse:  # of a restoration that is worse, what misses its target says why
        told = far[:1] or [*worse[:1], *doubts[:1]]
        return Sentence(f"It did not work: {'; '.join(told)}", "bad")
    if not good:
        text = "nothing compares the restorations with the observations"
        return Sentence(f"It cannot be said: {text}")
    if doubts:
        return Sentence(f"It worked, with a doubt: {good[0]}; but {doubts[0]}")
    return Sentence(f"It worked: {good[0]}", "good")


def _far_off(run: ReportData) -> Iterator[str]:
    """Residuals that no noise of the assumed level leaves. A prior that is only not perfect misses
    its target by less."""
    last = run.evaluations[-1].metrics if run.evaluations else {}
    for told, value in zip(_targets(run), _with_target(last), strict=True):
        missed = abs(value.value - (value.target or 0.0))
        if value.unit == "sigma" and told.tone == "bad" and missed > _FAR:
            yield told.text


def _with_target(metrics: Mapping[str, MetricValue]) -> list[MetricValue]:
    return [v for v in metrics.values() if v.target is not None and math.isfinite(v.value)]


def _learned(run: ReportData) -> Iterator[Sentence]:
    if run.evaluations:
        last, count = run.evaluations[-1], ""
        if run.identifiability is not None and run.identifiability.observations:
            count = f" from {run.identifiability.observations} observations"
        yield Sentence(
            f"The newest prior that was evaluated, {last.round.label}, is learned{count}"
        )
    elif run.state == "finished":
        yield Sentence(
            "Nothing was evaluated: the recipe names no metrics (evaluate.metrics), or none fits it"
        )


def _gains(run: ReportData) -> Iterator[Sentence]:
    """How far the restorations are from the observations that they come from."""
    if not run.evaluations:
        return
    last = run.evaluations[-1]
    for name, raw in run.observations.items():
        now = last.metrics.get(name)
        if now is None or (better := now.improves_on(raw)) is None:
            continue
        gain, error = abs(now.value - raw.value), _both(now, raw)
        unit = f" {now.unit}" if now.unit else ""
        size = f"{number_text(gain, error)}{unit}"
        what = f"the {run.baseline}, {value_text(raw)}{unit}"
        if math.isfinite(error) and gain < 2 * error:
            text = f"{name} {value_text(now)}{unit} is not told from {what}"
            yield Sentence(f"{text}: the difference is {size}", "bad")
            continue
        word = "better" if better else "worse"
        text = f"{name} {value_text(now)}{unit} is {size} {word} than {what}"
        yield Sentence(text, "good" if better else "bad")


def _targets(run: ReportData) -> Iterator[Sentence]:
    """Whether values that have a target are at it."""
    for name, value in run.evaluations[-1].metrics.items() if run.evaluations else ():
        if value.target is None or not math.isfinite(value.value):
            continue
        unit = f" {value.unit}" if value.unit else ""
        told = f"{name} {value_text(value)}{unit}"
        if _is_met(value):
            yield Sentence(f"{told} is consistent with {value.target:.4g}, which is right", "good")
            continue
        above = value.value > value.target
        why = value.above if above else value.below
        text = f"{told} is {'above' if above else 'below'} {value.target:.4g}, which is right"
        yield Sentence(f"{text}: {why}" if why else text, "bad" if why else "")


def _is_met(value: MetricValue) -> bool:
    assert value.target is not None
    error = value.sem if math.isfinite(value.sem) else 0.0
    return abs(value.value - value.target) <= max(2 * error, _NEAR * (abs(value.target) or 1))


def _rounds(run: ReportData) -> Iterator[Sentence]:
    """Whether the last round is the best one, and whether it still gained something."""
    if len(run.evaluations) < 2:
        return
    last, worse, better = run.evaluations[-1], dict[Round, list[str]](), list[str]()
    for name, now in last.metrics.items():
        if now.target is not None and _is_met(now):
            continue
        rounds = [e for e in run.evaluations if name in e.metrics]
        best, unit = _best(name, rounds), f" {now.unit}" if now.unit else ""
        peak = best.metrics[name]
        if peak.improves_on(now) and abs(peak.value - now.value) > _noticed(now, peak):
            told = f"{name} {value_text(peak)} → {value_text(now)}{unit}"
            worse.setdefault(best.round, []).append(told)
        elif best is last and _still_improves(name, rounds):
            before = rounds[-2].metrics[name]
            better.append(f"{name} {value_text(before)} → {value_text(now)}{unit}")
    for round_, lines in worse.items():
        where = f'run.prior_at("{round_.phase}", {round_.number or 0})'
        yield Sentence(
            f"Worse in {last.round.label} than in {round_.label}: {', '.join(lines)}: fewer rounds,"
            f" or take the prior of that round ({where} in Python)",
            "bad",
        )
    if better:
        yield Sentence(f"Still better in the last round: {', '.join(better)}: more rounds may help")


def _best(name: str, rounds: Sequence[Evaluation]) -> Evaluation:
    """The first of the rounds than which none is better."""
    best = rounds[-1]
    for each in reversed(rounds):
        if not best.metrics[name].improves_on(each.metrics[name]):
            best = each
    return best


def _noticed(one: MetricValue, other: MetricValue) -> float:
    """The least change that is one: of the standard error, or a tenth where there is none."""
    error = _both(one, other)
    return error if math.isfinite(error) else _LEAST * abs(other.value)


def _still_improves(name: str, rounds: Sequence[Evaluation]) -> bool:
    phase = [e for e in rounds if e.phase == rounds[-1].phase]
    if len(phase) < 2:
        return False
    first, before, now = (phase[i].metrics[name].value for i in (0, -2, -1))
    return abs(now - before) > _LEAST * abs(now - first) and now != before


def _both(one: MetricValue, other: MetricValue) -> float:
    """The standard error of a difference, at most, of values of the same observations."""
    return math.hypot(one.sem, other.sem)


def _warnings(run: ReportData) -> Iterator[str]:
    yield from run.warnings
    if run.identifiability is not None and run.identifiability.warning:
        yield run.identifiability.warning
    for event in run.events:
        if event.event in ("calibrate", "damaged", "doubt") and event.reason:
            yield f"{event.round.label}: {event.reason}"


def event_text(event: RoundEvent) -> str:
    """What a step says about its round."""
    if event.event == "stop":
        return f"the phase ends: {event.reason}"
    if event.event in ("damaged", "doubt"):
        return f"warning: {event.reason}" if event.event == "doubt" else event.reason
    if event.event == "calibrate":
        values = ", ".join(f"{name} = {value:.4g}" for name, value in event.values.items())
        return f"calibrated: {values}" + (f" ({event.reason})" if event.reason else "")
    return (
        "squared residual of the draws, in units of the noise:"
        f" {event.values['residual']:.4g} (1 for posterior draws)"
    )
