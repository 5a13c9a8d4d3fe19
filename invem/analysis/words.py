"""The identifiability report in words."""

import math
from typing import Any

import torch

from invem.analysis.identifiability import LEARNED, Identifiability
from invem.analysis.lanczos import PROBES

__all__ = ["describe", "lines", "warning"]

_MOST_RANKS = 64  # of the spectrum in the plain data


def describe(found: Identifiability) -> dict[str, Any]:
    """Returns the report as plain data, its sentences included.

    "spectrum" is a list of (rank, eigenvalue, error) at up to 64 ranks, first and last among them.
    The error is None where a direction is hidden.
    """
    count = min(found.directions, _MOST_RANKS)
    ranks = torch.linspace(0, found.directions - 1, count).round().long().tolist()
    values = [(r, float(found.eigenvalues[r]), float(found.errors[r])) for r in ranks]
    return {
        "directions": found.directions,
        "hidden": found.hidden,
        "told by one observation": found.above_noise,
        "learned": found.learned,
        "pooled": found.pooled,
        "faint": found.faint,
        "unknown": found.unknown,
        "fineness": found.fineness,
        "pairs": {
            "of": found.pairs,
            "never together": found.apart,
            "together": list(found.together) if found.together else None,
            "complete": found.complete,
        },
        "observations": found.observations,
        "operators": found.operators,
        "same operator": found.shared,
        "linear": found.linear,
        "exact": found.exact,
        "signal variance": found.signal,
        "signal over noise": _ratios(found),
        "noise level": _level(found),
        "noise variance": found.noise,
        "clean": found.clean,
        "spectrum": [
            [r, value, error if math.isfinite(error) else None] for r, value, error in values
        ],
        "warning": warning(found),
        "text": lines(found),
    }


def _ratios(found: Identifiability) -> dict[str, Any] | None:
    """Returns the estimated spectrum of the signals as plain data: (rank, ratio) at up to 64
    ranks."""
    if found.sensed is None:
        return None
    ratios = found.sensed.ratios
    ranks = torch.linspace(0, len(ratios) - 1, min(len(ratios), _MOST_RANKS)).round().long()
    return {
        "observations": found.sensed.observations,
        "few": found.sensed.few,
        "spectrum": [[r, float(ratios[r])] for r in ranks.tolist()],
    }


def _level(found: Identifiability) -> dict[str, Any] | None:
    """Returns the level of the noise that observations show as plain data."""
    level = found.level
    if level is None:
        return None
    least = level.least * level.assumed if level.assumed else level.level
    facts = {"assumed": level.assumed, "at most": level.level, "at least": least}
    return facts | {"by": level.how, "observations": level.observations}


def warning(found: Identifiability) -> str | None:
    """Returns what a person should know before the run, in one line.

    None if nothing is hidden, or if clean signals or a prior from elsewhere make up for it.
    """
    if found.clean or found.prior:
        return None
    if found.hidden:
        return (
            f"{_hidden_or_shown(found)}; no number of observations can say what lies there, only"
            f" the prior: {_remedy_for_hidden(found)}"
        )
    if found.faint and found.linear:
        part = f"{found.faint:,} of {found.directions:,} directions{_fine_or_coarse(found)}"
        return (
            f"{found.observations:,} observations show {part} too faintly or too seldom to learn"
            f" them: {_remedy_for_faint(found)}"
        )
    if found.apart:
        return f"{_never_together(found)}: {_remedy_for_pairs(found)}"
    return None


def lines(found: Identifiability) -> list[str]:
    """Returns the report as sentences, one per line."""
    text = [_hidden_or_shown(found) + _eigenvalue_range(found)]
    if not found.exact:
        text.append(f"the numbers of directions are estimates by {PROBES} random probes")
    text += _noise(found)
    text += _above_noise(found)
    if found.linear:
        text += _learning(found)
    text += _pairs(found)
    if found.hidden:
        text.append(
            "no number of observations can say what lies in the hidden directions, only the"
            f" prior: {_remedy_for_hidden(found)}"
        )
    if not found.linear:
        text.append(
            "the operator is not linear, and this is about signals near those: what leaves y as"
            " it is further off, such as a shift, a reflection or a sign, is not looked at"
        )
    elif not (found.hidden or found.faint or found.unknown or found.apart):
        text.append(_nothing_hidden(found))
    return text


def _noise(found: Identifiability) -> list[str]:
    """What the observations themselves say of the level of their noise."""
    level = found.level
    if level is None:
        return []
    if not level.assumed:
        return [f"the observations show noise of {level.level:.2g} or less, and none is assumed"]
    low, high = level.least * level.assumed, level.level
    known = level.plain and level.least > 0
    shown = f"{high:.2g} or less"
    if known:
        shown = f"{low:.2g} to {high:.2g}, for signals that are smoother than noise"
        shown = f"about {high:.2g}" if f"{low:.2g}" == f"{high:.2g}" else shown
    return [
        f"the observations show noise of {shown} ({level.how}); the recipe says {level.assumed:.2g}"
    ]


def _above_noise(found: Identifiability) -> list[str]:
    """What one observation tells of a signal."""
    noise, white = math.sqrt(found.noise), _white(found)
    if found.sensed is None:
        why = f": a guess, since {found.unsensed}" if found.unsensed else ""
        return [
            "an observation has, at the mean, more signal than noise in"
            f" {_count(found, found.above_noise)} ({white}, noise of {noise:.2g}{why})"
        ]
    ratios, n = found.sensed.ratios, found.sensed.observations
    along = " (frequencies)" if found.sensed.frequencies else ""
    share = float(ratios[ratios >= 1].sum() / ratios.sum().clamp(min=1e-300))
    text = [
        "an observation has, at the mean, more signal than noise in"
        f" {_count(found, found.above_noise)}{along}, which hold {_percent(share)} of the signal's"
        f" variance (its spectrum was estimated from {n:,} observations; noise of {noise:.2g})"
    ]
    if found.pooled:
        text.append(
            f"in {found.pooled:,} more, the noise is stronger than the signal, and the variance of"
            f" the signal is learned from {found.observations:,} observations together alone: no"
            " single restoration can recover them"
        )
    if weak := found.directions - found.above_noise - found.pooled:
        text.append(
            f"in the other {weak:,} the signal is too weak to tell its variance from that many"
        )
    if found.sensed.few:
        text.append(
            f"{n:,} observations are too few to find {found.directions:,} directions: the numbers"
            " are rough"
        )
    return text


def _white(found: Identifiability) -> str:
    return f"a white signal of standard deviation {math.sqrt(found.signal):.2g}"


def _learning(found: Identifiability) -> list[str]:
    """What all observations together tell of variances."""
    seen = found.is_seen
    if not bool(seen.any()):
        return []
    median = _percent(float(found.errors[seen].median()))
    at_least = "at least " if found.unknown else ""
    text = [
        f"{found.observations:,} observations tell the variance to {_percent(LEARNED)} or better in"
        f" {at_least}{_count(found, found.learned)} (the median of those that are seen: {median}"
        f"{f'; {_white(found)}' if found.sensed else ''})"
    ]
    if found.pooled and found.sensed is None:
        text.append(
            f"{found.pooled:,} of these are learned from many observations alone: no single"
            " restoration can recover them"
        )
    if found.unknown:
        text.append(
            f"of {found.unknown:,} directions this is not known: too few of the operators were"
            " looked at"
        )
    if found.faint:
        which = _fine_or_coarse(found) if not found.hidden else ""
        wanted = found.observations * (float(found.floors[seen].max()) / LEARNED) ** 2
        text.append(
            f"{found.faint:,} directions{which} are shown too faintly or too seldom to learn"
            f" their variance, the worst of which takes {wanted:.1g} observations:"
            f" {_remedy_for_faint(found)}"
        )
    return text


def _pairs(found: Identifiability) -> list[str]:
    if found.pairs and found.apart:
        return [f"{_never_together(found)}: {_remedy_for_pairs(found)}"]
    if found.together is not None and found.complete:
        least, mean = (_percent(share) for share in found.together)
        return [
            f"any two {found.pairs} are seen together by {least} of the operators or more"
            f" ({mean} at the mean)"
        ]
    return []


def _nothing_hidden(found: Identifiability) -> str:
    if found.complete:
        if found.sensed is not None and found.above_noise + found.pooled < found.directions:
            return "nothing is hidden by the operator; what is not learned is weaker than the noise"
        return "nothing is hidden: mean and covariance can be learned from these observations alone"
    what = (
        f"of the covariances only some of those between {found.pairs} were"
        if found.pairs
        else "covariances were not"
    )
    return f"no direction is hidden; {what} looked at"


def _count(found: Identifiability, k: int) -> str:
    part = f"all {k:,}" if k == found.directions else f"{k:,} of {found.directions:,}"
    return f"{part} directions"


def _hidden_or_shown(found: Identifiability) -> str:
    if not found.linear:
        who = f"the derivatives of the operator at {found.operators} signals together"
        hide, show = "hide", "show"
    elif found.shared:
        who = "every operator is the same and"
        hide, show = "hides", "shows"
    else:
        who = f"the operators differ; the {found.operators:,} that were looked at together"
        hide, show = "hide", "show"
    if not found.hidden:
        return f"{who} {show} all {found.directions:,} directions"
    about = "" if found.exact else "about "
    return (
        f"{who} {hide} {about}{found.hidden:,} of {found.directions:,} directions"
        f"{_fine_or_coarse(found)}"
    )


def _eigenvalue_range(found: Identifiability) -> str:
    seen = found.eigenvalues[found.is_seen]
    if not len(seen):
        return ""
    low, high = f"{float(seen[-1]):.2g}", f"{float(seen[0]):.2g}"
    of = "A^T A" if found.shared else "the mean of A^T A"
    others = " in the others" if found.hidden else ""
    return f" ({of}{others}: {high if low == high else f'{low} to {high}'})"


def _fine_or_coarse(found: Identifiability) -> str:
    if found.fineness is None or 0.8 < found.fineness < 1.25:
        return ""
    return f", mostly the {'fine' if found.fineness > 1 else 'coarse'} ones"


def _remedy_for_hidden(found: Identifiability) -> str:
    missing = found.hidden + found.faint
    if found.clean:
        few = (
            f", and how they vary together in no more than {found.clean - 1:,} combinations of"
            f" the {missing:,}"
        )
        return f"{_clean_images_tell(found)}{few if found.clean <= missing else ''}"
    if found.prior:
        return "what the recipe begins with"
    if not found.truth:
        return "name one that was learned elsewhere (`prior:`)"
    return (
        "grant clean images: `clean: 50` tell the variance of each hidden direction to 20 %,"
        f" 200 to 10 %; how they vary together takes more than {missing:,}"
    )


def _clean_images_tell(found: Identifiability) -> str:
    return (
        f"the {found.clean:,} clean images of the recipe tell the variance of each to"
        f" {_percent(round(math.sqrt(2 / found.clean), 2))}"
    )


def _remedy_for_faint(found: Identifiability) -> str:
    if found.clean:
        return _clean_images_tell(found)
    if found.prior:
        return "what the recipe begins with says the rest"
    return (
        f"more observations{', clean images' if found.truth else ''} or a prior from elsewhere"
        " must tell it"
    )


def _never_together(found: Identifiability) -> str:
    share = _percent(found.apart)
    if found.pairs == "second moments":
        return (
            f"{share} of the {found.pairs} are in none of the observations, though every direction"
            " is"
        )
    return f"{share} of the pairs of {found.pairs} are never seen together"


def _remedy_for_pairs(found: Identifiability) -> str:
    if found.clean:
        remedy = (
            f"the {found.clean:,} clean images of the recipe tell a correlation to"
            f" {1 / math.sqrt(found.clean):.2f}"
        )
    elif found.prior:
        remedy = "what the recipe begins with says it"
    elif found.truth:
        remedy = "clean images tell a correlation to 1/sqrt(k): `clean: 50` to 0.14"
    else:
        remedy = "a prior must (`prior:`)"
    return f"how they vary together is not in the observations; {remedy}"


def _percent(share: float) -> str:
    return "fewer than 0.1 %" if 0 < share < 5e-4 else f"{100 * share:.3g} %"
