"""What of a recipe the observations contradict: the level of the noise, and the range of the
data."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invem import config as recipes
from invem.analysis import NoiseLevel, noise_level
from invem.batched import Rng
from invem.frames import Units
from invem.linear import Mask
from invem.planning.model import MeasurementModel
from invem.planning.observation_model import observation_model
from invem.planning.plan import Plan

__all__ = ["check_range", "doubts", "level_option"]

_LOOKED_AT, _NUMBERS = 512, 2**20  # observations of the first block, and their numbers
_FILLED = 0.1  # the least share of the range that values should fill
_DEPTHS = {12: 4095, 10: 1023, 14: 16383}  # bits of cameras, and the largest value of each


def doubts(plan: Plan, data_options: dict[str, Any]) -> list[str]:
    """Returns what the observations say against the recipe, one line each.

    A few hundred of them are looked at. Where signals are measured by the recipe itself, their
    range is, and the noise where the recipe assumes another than it adds.

    Args:
        plan: The plan.
        data_options: The options of the data set with their values.
    """
    model, found = observation_model(plan), list[str]()
    most = min(_LOOKED_AT, max(_NUMBERS // math.prod(plan.shape), 1))
    k = min(plan.train, model.block, most)
    assert model.measured is not None and k > 0
    where = "observations" if plan.observed else "data"
    if not plan.observed:
        x = plan.data("train")[torch.arange(min(k, 64))].x
        values = x
    else:
        m = model.measured(k, 0)
        values = m.y if isinstance(m.A, Mask) or m.changes_nothing else None
        if values is not None and m.A.seen is not None:
            values = m.y[m.A.seen.expand_as(m.y) != 0]
    units = None if plan.facts.units is None else Units(**plan.facts.units)
    if values is not None and (
        text := check_range(values, plan.facts.range, data_options, units=units)
    ):
        found.append(str(recipes.error(plan.loaded, (where,), text)))
    if plan.observed or plan.recipe.assume:
        level = noise_level(model.measured(k, 0))
        if level is not None and (text := _of_noise(plan, level)):
            found.append(str(recipes.error(plan.loaded, ("noise",), text)))
    return found


def check_range(
    values: Tensor,
    limits: tuple[float, float],
    options: dict[str, Any],
    *,
    units: Units | None = None,
) -> str:
    """Returns why values do not belong to the range of their data set; "" if they may.

    Args:
        values: Some of them.
        limits: The lowest and the highest value of a signal.
        options: The options of the data set, of which `low` and `high` set the range.
        units: The map from stored values to signals, if the data set has one: its ends are
            numbers where the options say "auto".
    """
    low, high = limits
    if not math.isfinite(high - low) or not high > low or not values.numel():
        return ""
    # A hot pixel does not fill the range.
    flat = values.flatten().double()
    flat = flat[:: max(len(flat) // 2**20, 1)]
    ends = torch.quantile(flat, torch.tensor([0.001, 0.999], dtype=torch.float64)).tolist()
    share = (ends[1] - ends[0]) / (high - low)
    if share >= _FILLED:
        return ""
    return (
        f"the values fill {100 * share:.2g} % of the range {low:g} to {high:g} ({ends[0]:.3g} to"
        f" {ends[1]:.3g}), which every level of noise and the priors are in units of:"
        f" {_range_options((ends[1] - low) / (high - low), options, units)}"
    )


def _range_options(share: float, options: dict[str, Any], units: Units | None) -> str:
    """Returns which options would stretch values that end at a share of the range."""
    if units is not None:
        fits = float(units.stored(np.array(2 * share - 1)))
        return (
            f"{units.low:g} becomes -1 and {units.high:g} becomes 1 ({units.how}); set low and"
            f" high to the stored values that are to be -1 and 1 (high: {fits:.4g})"
        )
    if "high" not in options:
        return "stretch the values of the data set to its range"
    if options["high"] is not None:
        first = options.get("low") or 0.0
        fits = first + share * (options["high"] - first)
        return f"set low and high to the stored values that are to be -1 and 1 (high: {fits:.4g})"
    fits = share * 65535
    bits, end = min(_DEPTHS.items(), key=lambda each: (each[1] < 0.95 * fits, each[1]))
    return (
        "set low and high to the stored values that are to be -1 and 1 (of files of 16 bits, these"
        f" end at {fits:.0f}; `low: 0, high: {end}` for {bits} bits kept in 16)"
    )


def level_option(model: MeasurementModel) -> str | None:
    """Returns the option of the noise that its standard deviation is proportional to, such as
    "noise.sigma"; None if there is none."""
    for name, value in model.options["noise"].items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        key, start = f"noise.{name}", float(value) or 1.0
        laws = [model.draw(1, Rng.generator(0), {key: start * by})[1] for by in (1.0, 2.0)]
        if any("normal" not in law.provides for law in laws):
            return None
        one, two = (law.var().double() for law in laws)
        if bool((one > 0).all()) and torch.allclose(two, 4 * one, rtol=1e-4):
            return key
    return None


def _suggested(plan: Plan, level: NoiseLevel, key: str | None) -> tuple[str, str]:
    """Returns the level of the noise as the recipe writes it, and what fits in its place."""
    given = dict(plan.model.options["noise"])
    given |= {
        key.removeprefix("noise."): value
        for key, value in plan.recipe.assume.items()
        if key.startswith("noise.")
    }
    best = f"{math.sqrt(max(level.least, 0.0) * level.ratio) * level.assumed:.2g}"
    best = best if level.least and level.assumed else f"{level.level:.2g}"
    if key is not None:
        name = key.removeprefix("noise.")
        place = "assume" if key in plan.recipe.assume else "noise"
        return f"{name}: {given[name]:g}", f"`{place}` {name} to about {best}"
    return f"a level of {level.assumed:.2g}", f"the noise to about {best}"


def _of_noise(plan: Plan, level: NoiseLevel) -> str:
    """Returns what the observations say against the level of the noise; "" for nothing."""
    if not (level.impossible or level.too_small):
        return ""
    key = level_option(plan.model)
    if key is not None and any(key in stage.phase.calibrate for stage in plan.stages):
        return ""  # it is about to be estimated
    given, fits = _suggested(plan, level, key)
    by = f"by {level.how} in {level.observations:,} observations"
    if level.impossible:
        clipped = (
            f"; {100 * level.clipped:.2g} % of the values are clipped, which makes noise look"
            " smaller"
            if level.clipped
            else ""
        )
        return (
            f"{given} cannot be: the observations vary by {level.spread:.2g}, and their noise is"
            f" {level.level:.2g} or less ({by}{clipped}); set {fits}"
        )
    low = level.least * level.assumed if level.assumed else level.level
    return (
        f"{given} is less than the observations show: about {low:.2g} to {level.level:.2g} ({by};"
        f" less only if signals are as rough as noise); set {fits}"
    )
