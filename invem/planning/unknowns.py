"""Options of operator and noise that are assumed or calibrated: what can be estimated at all."""

import math
from collections.abc import Set

import torch

from invem import config as recipes
from invem.analysis import Parameters
from invem.batched import Rng
from invem.config import Recipe
from invem.config.nested import option_number
from invem.config.yaml import Path
from invem.errors import InvemError, RecipeError
from invem.measurement import Measurement
from invem.objective import ClosedFormObjective
from invem.planning.build import Builder, listing
from invem.planning.model import MeasurementModel
from invem.planning.plan import Stage
from invem.planning.resolve import resolve

__all__ = ["check_calibratable", "check_unknowns"]

_TRIED = 64  # measurements that are drawn at two values of an option


def check_unknowns(recipe: Recipe, builder: Builder, stages: list[Stage]) -> None:
    """Checks that what is assumed and what is calibrated are numbers among the options of operator
    and noise, and that their values and bounds are allowed."""
    if recipe.assume and recipe.data is None:
        builder.fail(
            ("assume",),
            "the observations exist already: write what is believed as the options of operator and"
            " noise themselves",
        )
    start = dict(recipe.assume)
    for key, value in recipe.assume.items():
        _check_key(builder, ("assume", key), key, [value], start)
    for i, phase in enumerate(recipe.phases):
        for key, bounds in phase.calibrate.items():
            _check_key(builder, ("phases", i, "calibrate", key), key, bounds, start)
    for i, phase in enumerate(recipe.phases):
        if not phase.calibrate or any(key not in start for key in phase.calibrate):
            continue
        whole: Path = ("phases", i, "calibrate")
        try:
            bounds_of = {key: (low, high) for key, (low, high) in phase.calibrate.items()}
            Parameters(bounds_of).coordinates(start)
        except RecipeError as error:
            builder.fail(whole, str(error).removeprefix("calibrate: "))
        closed = isinstance(stages[i].objective, ClosedFormObjective)
        if phase.sampler is None and not (closed and stages[i].on == "observations"):
            builder.fail(
                whole,
                "it is by posterior draws, and the phase has no sampler: give it one, or calibrate"
                " in a phase that fits observations in closed form",
            )


def _check_key(
    builder: Builder, place: Path, key: str, values: list[float], start: dict[str, float]
) -> None:
    """Checks one key and the values that it may take; notes the value that it has."""
    kind, _, rest = key.partition(".")
    try:
        if kind not in ("operator", "noise") or not rest:
            raise RecipeError("it names no option of operator or noise, as operator.std does")
        number = option_number(builder.values[(kind,)], rest.split("."))
        start.setdefault(key, number)
        for value in values:
            changed = recipes.replace(builder.loaded, [f"{key}={value!r}"])
            resolve(changed, builder.catalog)
    except InvemError as error:
        builder.fail(place, str(error))


def check_calibratable(
    recipe: Recipe, builder: Builder, model: MeasurementModel, given: Set[str]
) -> None:
    """Refuses options that cannot be calibrated.

    Args:
        recipe: The recipe.
        builder: Where problems go.
        model: How signals are measured.
        given: The paths of the tensors that come with the observations.
    """
    for i, phase in enumerate(recipe.phases):
        for key in phase.calibrate:
            kind, _, rest = key.partition(".")
            number = option_number(model.options[kind], rest.split("."))
            value = recipe.assume.get(key, number)
            if why := _why_not_calibratable(model, key, value, given):
                builder.fail(("phases", i, "calibrate", key), why)


def _why_not_calibratable(model: MeasurementModel, key: str, value: float, given: Set[str]) -> str:
    """Returns why an option cannot be calibrated, "" if it can: a slightly different value must
    make a slightly different likelihood."""
    near = value + 1e-3 * (abs(value) or 1.0)
    one, two = (
        Measurement(torch.zeros(1), *model.draw(_TRIED, Rng.generator(0), {key: v}))
        for v in (value, near)
    )
    x = torch.linspace(-1, 1, math.prod(one.shape)).reshape(1, *one.shape)
    x = x.expand(_TRIED, *one.shape)
    clean = one.A(x), two.A(x)
    logs = [m.noise.log_prob(clean[0] + 0.1, clean[0]) for m in (one, two)]
    after = two.tensors()
    changes = {
        path for path, tensor in one.tensors().items() if not torch.equal(tensor, after[path])
    }
    if changes & given:
        return f"{listing(changes & given)} is given beside y, and would change with it"
    if torch.equal(*clean) and torch.equal(*logs):
        return "nothing that is measured changes smoothly with it"
    far = float((clean[0] - clean[1]).abs().max()) > 0.1 * float(clean[0].abs().max())
    if far:
        return "another value makes other draws, so that there is no likelihood to compare"
    return ""
