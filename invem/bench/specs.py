"""Which samplers are compared, with which options: ``mmps,dps:weight=2``, steps and a budget."""

import contextlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, get_args, get_origin

from annotated_types import Ge, Gt, Interval, Le, Lt

from invem.bench.problems import Problem
from invem.capability import meaning
from invem.config import Catalog, options_of, parse_options, yaml
from invem.errors import PluginError, RecipeError
from invem.sampler import PosteriorSampler

__all__ = ["Setting", "bounds", "parse_sampler", "select_samplers", "split_samplers"]

_MOST_STEPS = 1 << 20  # a sampler that costs no more at so many steps has no cost per step


@dataclass(frozen=True, eq=False)
class Setting:
    """A sampler and its options.

    Attributes:
        name: The sampler.
        given: The options that were asked for, as plain data. Tuning leaves them alone.
        values: Every option.
        factory: Makes the sampler.
        budget: The largest number of forwards and vector-Jacobian products per draw. An option
            `steps` that was not given is the largest number that meets it.
    """

    name: str
    given: dict[str, Any]
    values: dict[str, Any]
    factory: Callable[..., PosteriorSampler]
    budget: int | None = None

    @property
    def label(self) -> str:
        """The sampler as `--samplers` names it. A baseline is matched by it."""
        options = (
            f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in self.given.items()
        )
        return ":".join([self.name, *options])

    def with_changes(self, changes: Mapping[str, Any]) -> "Setting | None":
        """Returns the setting with other options and the most steps that then meet the budget.

        None if no number of steps meets it.
        """
        changed = replace(self, values={**self.values, **changes})
        if self.budget is None:
            return changed
        if "steps" not in self.values or "steps" in self.given:
            return changed if sum(changed.sampler().cost) <= self.budget else None

        def with_steps(n: int) -> Setting:
            return replace(changed, values={**changed.values, "steps": n})

        least = _least_steps(self.factory)
        steps = _most_steps(lambda n: sum(with_steps(n).sampler().cost), least, self.budget)
        return None if steps is None else with_steps(steps)

    def sampler(self) -> PosteriorSampler:
        """Makes the sampler."""
        return self.factory(**self.values)


def _most_steps(cost: Callable[[int], int], least: int, budget: int) -> int | None:
    """Returns the largest number of steps whose cost is within the budget.

    None if there is none, or no largest.
    """
    if cost(least) > budget:
        return None
    low = least
    while cost(2 * low) <= budget:
        low *= 2
        if low > _MOST_STEPS:
            return None
    high = 2 * low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= budget else (low, middle)
    return low


def _least_steps(factory: Callable[..., Any]) -> int:
    low, _ = bounds(options_of(factory)["steps"].annotation, int)
    return max(1, int(low))


def bounds(annotation: Any, kind: type) -> tuple[float, float]:
    """Returns the bounds of the numbers of a type that an annotation allows, NaN if it allows none.

    Args:
        annotation: Such as ``Annotated[float, Gt(0)] | Literal["auto"]``. The first arm of a union
            that allows the type counts.
        kind: int or float. A strict bound of an int is moved to the next whole number.
    """
    if annotation is kind:
        return -math.inf, math.inf
    if get_origin(annotation) is not Annotated:
        found = (bounds(arm, kind) for arm in get_args(annotation))
        return next((pair for pair in found if not math.isnan(pair[0])), (math.nan, math.nan))
    base, *notes = get_args(annotation)
    if base is not kind:
        return math.nan, math.nan
    low, high = -math.inf, math.inf
    for note in itertools.chain.from_iterable(
        note if isinstance(note, Interval) else [note] for note in notes
    ):
        match note:
            case Ge(ge=bound):
                low = bound  # type: ignore[assignment]
            case Gt(gt=bound):
                low = bound + 1 if kind is int else bound  # type: ignore[operator, assignment]
            case Le(le=bound):
                high = bound  # type: ignore[assignment]
            case Lt(lt=bound):
                high = bound  # type: ignore[assignment]
    return low, high


def select_samplers(
    problem: Problem,
    catalog: Catalog,
    samplers: str | None = None,
    steps: Sequence[int] = (),
    budget: int | None = None,
) -> tuple[list[Setting], list[str]]:
    """Reads which samplers are to be compared, and checks that they fit the problem.

    Args:
        problem: What they are to solve.
        catalog: The samplers.
        samplers: ``name``, ``name:option=value:option=value``, separated by commas. None is every
            sampler that fits.
        steps: Each sampler with an option `steps` runs at each of these, unless it is given.
        budget: The largest number of network forwards and vector-Jacobian products per draw,
            together.

    Returns:
        The settings, and a line for each sampler that is left out.

    Raises:
        RecipeError: If a name or an option is not known, or a sampler that is named does not fit.
        PluginError: If a sampler that is named cannot be loaded.
    """
    if steps and budget is not None:
        raise RecipeError("--steps and --budget both choose the steps: give one of them")
    provides = _provides(problem)
    found: dict[str, Setting] = {}
    left_out: list[str] = []
    for spec in (
        split_samplers(samplers) if samplers is not None else sorted(catalog.offers["samplers"])
    ):
        try:
            base = parse_sampler(spec, catalog)
            lacks = base.sampler().needs - provides
        except (RecipeError, PluginError) as error:
            if samplers is not None:
                raise
            left_out.append(f"{spec} is left out: {error}")
            continue
        if lacks and samplers is None:
            continue
        if lacks:
            raise RecipeError(_misfit(base.name, lacks, problem, catalog, provides))
        for parsed in _at_steps(base, spec, catalog, steps):
            setting = replace(parsed, budget=budget).with_changes({})
            if setting is None:
                left_out.append(
                    f"{parsed.label} is left out: it cannot do with {budget} forwards and products"
                    " a draw"
                )
            else:
                found[setting.label] = setting
    return list(found.values()), left_out


def _at_steps(base: Setting, spec: str, catalog: Catalog, steps: Sequence[int]) -> list[Setting]:
    """Returns a setting at each number of steps, where it has steps and was given none."""
    if not steps or "steps" not in base.values or "steps" in base.given:
        return [base]
    return [parse_sampler(spec, catalog, {"steps": n}) for n in steps]


def _misfit(
    name: str,
    lacks: frozenset[str],
    problem: Problem,
    catalog: Catalog,
    provides: frozenset[str],
) -> str:
    fitting = ", ".join(_fitting(catalog, provides))
    return (
        f"{name} needs {meaning(lacks)}, which {problem.name} does not provide (these samplers fit:"
        f" {fitting})"
    )


def _provides(problem: Problem) -> frozenset[str]:
    _, m = problem.measure(0, "test", 1)
    return m.provides | problem.prior.provides


def _fitting(catalog: Catalog, provides: frozenset[str]) -> Iterator[str]:
    for name in sorted(catalog.offers["samplers"]):
        with contextlib.suppress(RecipeError, PluginError):
            if not parse_sampler(name, catalog).sampler().needs - provides:
                yield name


def parse_sampler(spec: str, catalog: Catalog, more: Mapping[str, Any] | None = None) -> Setting:
    """Reads ``name:option=value:option=value``. `select_samplers` checks that it fits a problem.

    Args:
        spec: The sampler and its options. The values are YAML.
        catalog: The samplers.
        more: More options, as plain data.

    Raises:
        RecipeError: If the name, an option or a value is not known.
        PluginError: If the sampler cannot be loaded.
    """
    name, *words = _split(spec, ":")
    where = f"--samplers: {name}"
    try:
        component = catalog.find("samplers", name)
    except RecipeError as error:
        raise RecipeError(f"--samplers: {error}") from None
    factory, problems = component.load(), list[str]()
    given = _options(words, where) | dict(more or {})

    def fail(path: tuple[str | int, ...], key: bool, message: str) -> None:
        problems.append(": ".join([where, *([".".join(map(str, path))] if path else []), message]))

    values = parse_options(catalog, component, given, fail)
    if problems:
        raise RecipeError("\n".join(problems))
    setting = Setting(name, given, values, factory)
    try:
        setting.sampler()
    except (RecipeError, ValueError) as error:
        raise RecipeError(f"{where}: {error}") from error
    return setting


def _options(words: Sequence[str], where: str) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for word in words:
        option, equals, text = word.partition("=")
        if not (option and equals):
            raise RecipeError(f"{where}: '{word}' is not option=value")
        if option in given:
            raise RecipeError(f"{where}: {option} is given twice")
        given[option] = yaml.scalar(text, f"{where}: {option}")
    return given


def split_samplers(samplers: str) -> list[str]:
    """Splits the value of `--samplers` at the commas that are outside brackets."""
    return _split(samplers, ",")


def _split(text: str, mark: str) -> list[str]:
    """Splits at marks that are outside brackets."""
    words, depth = [""], 0
    for letter in text:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == mark and depth == 0:
            words.append("")
        else:
            words[-1] += letter
    return [word.strip() for word in words]
