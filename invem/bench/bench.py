"""Samplers side by side: one prior, one set of measurements and one set of random numbers for all
of them.

`settings` says which samplers, with which options; `bench` yields a row for each; `document` makes
data of the rows. A problem comes from `invem.bench.problems`, and `invem.bench.benchpage` shows
the data to people.
"""

import contextlib
import dataclasses
import itertools
import json
import math
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin

import torch
from annotated_types import Ge, Gt, Interval, Le, Lt
from torch import Tensor

from invem.batched import Rng, wide
from invem.bench.problems import Posterior, Problem
from invem.compare import inside, ranks
from invem.config import Catalog, options_of, parse_options, yaml
from invem.denoiser import Denoiser
from invem.errors import InvemError, PluginError, RecipeError
from invem.measurement import Measurement
from invem.metric import Outcome
from invem.operator import SVD, Operator
from invem.running.run import environment
from invem.sampler import PosteriorSampler

__all__ = [
    "FLOOR",
    "LEVELS",
    "METRICS",
    "Meaning",
    "Row",
    "Setting",
    "Value",
    "bench",
    "document",
    "parse",
    "read",
    "settings",
    "sizes",
    "specs",
]

FLOOR = "exact draws"
LEVELS = tuple(round(0.05 * i, 2) for i in range(1, 20))

_LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]
_WORDS = {
    "closed form": "a prior in closed form",
    "moments": "a prior with known moments",
    "var": "noise with a variance (var)",
}
_SHOWN = 4  # observations whose pictures are kept
_MOST = 1 << 20  # steps beyond which a sampler's cost does not depend on them


class Meaning(NamedTuple):
    """What a metric is: its unit, what is best ("high", "low" or a number) and a sentence."""

    unit: str
    best: str
    text: str


METRICS = {
    "psnr": Meaning("dB", "high", "peak signal-to-noise ratio of the mean of the draws"),
    "psnr-draw": Meaning("dB", "high", "of a single draw, averaged over draws"),
    "ssim": Meaning("", "high", "structural similarity of the mean of the draws; images only"),
    "ssim-draw": Meaning("", "high", "of a single draw, averaged over draws; images only"),
    "misfit": Meaning(
        "",
        "1",
        "squared misfit of a draw per entry of y, in variances of the noise; Gaussian noise only",
    ),
    "coverage-50": Meaning(
        "", "0.5", "share of the truth's coordinates inside the central 50 % interval of the draws"
    ),
    "coverage-90": Meaning("", "0.9", "the same for 90 %"),
    "rank-ks": Meaning(
        "",
        "low",
        "largest gap between the distribution of the truth's ranks among the draws and the"
        " uniform one",
    ),
    "spread-error": Meaning(
        "", "1", "mean squared distance of two draws over that of a draw and the truth"
    ),
    "mean-error": Meaning(
        "std",
        "low",
        "error of the mean of the draws in posterior standard deviations, rms over whitened"
        " coordinates",
    ),
    "covariance-error": Meaning(
        "",
        "low",
        "largest |eigenvalue - 1| of P^-1 P_hat, P the posterior covariance; Gaussian priors",
    ),
    "eigenvalue-min": Meaning("", "1", "least eigenvalue of P^-1 P_hat; Gaussian priors"),
    "eigenvalue-max": Meaning("", "1", "greatest eigenvalue of P^-1 P_hat; Gaussian priors"),
    "sliced-wasserstein": Meaning(
        "", "low", "sliced 2-Wasserstein distance to exact draws of the same posterior"
    ),
    "mmd2": Meaning(
        "",
        "low",
        "squared maximum mean discrepancy to exact draws, unbiased (it may be negative), median"
        " bandwidth",
    ),
    "prior-min": Meaning(
        "",
        "1",
        "least eigenvalue of C^-1 C_hat, C the prior's covariance, C_hat that of all draws"
        " together",
    ),
    "prior-max": Meaning("", "1", "greatest eigenvalue of C^-1 C_hat"),
}


class Value(NamedTuple):
    """A mean, its standard error (None if n is 1) and the number of values that it is the mean
    of."""

    value: float
    sem: float | None
    n: int


@dataclass(frozen=True, eq=False)
class Setting:
    """A sampler and its options.

    Attributes:
        name: The sampler.
        given: The options that were asked for, as plain data; they are not tuned.
        values: Every option.
        factory: Makes the sampler.
        budget: The most forwards and products a draw; `steps`, where it is an option that was not
            given, is the most that meets it.
    """

    name: str
    given: dict[str, Any]
    values: dict[str, Any]
    factory: Callable[..., PosteriorSampler]
    budget: int | None = None

    @property
    def label(self) -> str:
        """The sampler as `--samplers` names it: what a baseline is matched by."""
        return ":".join(
            [
                self.name,
                *(
                    f"{k}={v if isinstance(v, str) else json.dumps(v)}"
                    for k, v in self.given.items()
                ),
            ]
        )

    def with_changes(self, changes: Mapping[str, Any]) -> "Setting | None":
        """Returns the setting with other options, and the most steps that meet the budget then;
        None if none does."""
        whole = replace(self, values={**self.values, **changes})
        if self.budget is None:
            return whole
        if "steps" in self.values and "steps" not in self.given:
            steps = _most(
                lambda n: sum(self.factory(**{**whole.values, "steps": n}).cost),
                _least(self.factory),
                self.budget,
            )
            return (
                None if steps is None else replace(whole, values={**whole.values, "steps": steps})
            )
        return whole if sum(whole.sampler().cost) <= self.budget else None

    def sampler(self) -> PosteriorSampler:
        """Makes the sampler."""
        return self.factory(**self.values)


def _most(cost: Callable[[int], int], least: int, budget: int) -> int | None:
    """Returns the most steps whose cost is within the budget; None if there are none, or no end of
    them."""
    if cost(least) > budget:
        return None
    low = least
    while cost(2 * low) <= budget:
        low *= 2
        if low > _MOST:
            return None
    high = 2 * low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= budget else (low, middle)
    return low


def _least(factory: Callable[..., Any]) -> int:
    low, _ = _bounds(options_of(factory)["steps"].annotation, int)
    return max(1, int(low))


def _bounds(annotation: Any, kind: type) -> tuple[float, float]:
    """Returns the bounds of the numbers that an annotation such as ``Annotated[float, Gt(0)] |
    Literal["auto"]`` allows; NaN if none."""
    if annotation is kind:
        return -math.inf, math.inf
    if get_origin(annotation) is not Annotated:
        return next(
            (
                found
                for arm in get_args(annotation)
                if not math.isnan((found := _bounds(arm, kind))[0])
            ),
            (math.nan, math.nan),
        )
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


# Which samplers.


def settings(
    problem: Problem,
    catalog: Catalog,
    samplers: str | None = None,
    steps: Sequence[int] = (),
    budget: int | None = None,
) -> tuple[list[Setting], list[str]]:
    """Reads which samplers are to be compared, and checks them against the problem.

    Args:
        problem: What they are to solve.
        catalog: The samplers.
        samplers: ``name``, ``name:option=value:option=value``, separated by commas; None is every
            sampler that fits.
        steps: Each sampler with an option `steps` is run at each of these, unless it is given.
        budget: The most network forwards and vector-Jacobian products of a draw, together.

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
    left: list[str] = []
    for spec in specs(samplers) if samplers is not None else sorted(catalog.offers["samplers"]):
        try:
            base = parse(spec, catalog)
            lacks = base.sampler().needs - provides
        except (RecipeError, PluginError) as error:
            if samplers is not None:
                raise
            left.append(f"{spec} is left out: {error}")
            continue
        if lacks:
            if samplers is not None:
                fit = ", ".join(_fitting(catalog, provides))
                words = ", ".join(_WORDS.get(need, need) for need in sorted(lacks))
                raise RecipeError(
                    f"{base.name} needs {words}, which {problem.name} does not provide (these"
                    f" samplers fit: {fit})"
                )
            continue
        free = "steps" in base.values and "steps" not in base.given
        variants = [{"steps": n} for n in steps] if steps and free else [{}]
        for given in variants:
            parsed = parse(spec, catalog, given) if given else base
            setting = replace(parsed, budget=budget).with_changes({})
            if setting is None:
                left.append(
                    f"{parsed.label} is left out: it cannot do with {budget} forwards and products"
                    " a draw"
                )
            else:
                found[setting.label] = setting
    return list(found.values()), left


def _provides(problem: Problem) -> frozenset[str]:
    _, m = problem.measure(0, "test", 1)
    closed = type(problem.denoiser).posterior is not Denoiser.posterior
    silent = "var" in m.noise.provides and not bool((m.noise.var() > 0).all())
    extra = {"moments"} if problem.denoiser.moments is not None else set()
    return (m.provides | extra | ({"closed form"} if closed else set())) - (
        {"var"} if silent else set()
    )


def _fitting(catalog: Catalog, provides: frozenset[str]) -> Iterator[str]:
    for name in sorted(catalog.offers["samplers"]):
        with contextlib.suppress(RecipeError, PluginError):
            if not parse(name, catalog).sampler().needs - provides:
                yield name


def parse(spec: str, catalog: Catalog, more: Mapping[str, Any] | None = None) -> Setting:
    """Reads ``name:option=value:option=value``, and `more` options; whether the sampler fits a
    problem is for `settings` to say.

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
    factory, given, problems = component.load(), dict[str, Any](), list[str]()
    for word in words:
        option, equals, text = word.partition("=")
        if not (option and equals):
            raise RecipeError(f"{where}: '{word}' is not option=value")
        if option in given:
            raise RecipeError(f"{where}: {option} is given twice")
        given[option] = yaml.scalar(text, f"{where}: {option}")
    given |= more or {}

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


def specs(samplers: str) -> list[str]:
    """Splits what `--samplers` gives at the commas that are outside brackets."""
    return _split(samplers, ",")


def _split(text: str, mark: str) -> list[str]:
    """Splits at marks that are outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == mark and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


# Counting.


@dataclass
class _Count:
    """How many rows went through the network, its derivative and the operator."""

    forwards: int = 0
    products: int = 0
    operator: int = 0
    adjoint: int = 0
    pinv: int = 0
    rotations: int = 0
    depth: int = 0

    @contextlib.contextmanager
    def watch(self, denoiser: Denoiser) -> Iterator[None]:
        """Counts the rows that pass the denoiser, and those whose gradient passes back."""

        def product(grad: Tensor) -> None:
            self.products += len(grad)

        def forward(_: Any, __: Any, out: Tensor) -> None:
            self.forwards += len(out)
            if out.requires_grad:
                out.register_hook(product)  # type: ignore[no-untyped-call]

        handle = denoiser.register_forward_hook(forward)
        try:
            yield
        finally:
            handle.remove()

    def operators(self, A: Operator) -> Operator:
        """Returns the operator in a class of its own that counts, and is of the old class and
        provides the same.

        A call from within a call does not count; a gradient that passes back through a call of A
        counts as an adjoint.
        """
        kind = type(A)

        def counted(name: str, counter: str) -> Callable[..., Any]:
            inner = getattr(kind, name)

            def call(own: Operator, *values: Tensor) -> Any:
                self.depth += 1
                try:
                    out = inner(own, *values)
                finally:
                    self.depth -= 1
                if self.depth == 0:
                    setattr(self, counter, getattr(self, counter) + len(values[0]))
                    if name == "__call__" and out.requires_grad:
                        out.register_hook(back)
                return out

            return call

        def back(grad: Tensor) -> None:
            self.adjoint += len(grad)

        def svd(own: Operator) -> SVD:
            self.depth += 1
            try:
                found = kind.svd(own)
            finally:
                self.depth -= 1

            def turned(turn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
                def call(x: Tensor) -> Tensor:
                    self.rotations += len(x)
                    return turn(x)

                return call

            return SVD(found.s, *(turned(turn) for turn in found[1:]))

        methods: dict[str, Any] = {
            "__call__": counted("__call__", "operator"),
            "vjp": counted("vjp", "adjoint"),
        }
        methods |= {name: counted(name, name) for name in ("adjoint", "pinv") if name in A.provides}
        methods |= {"svd": svd} if "svd" in A.provides else {}
        own = type(kind.__name__, (kind,), methods)
        made: Operator = own(**{f.name: getattr(A, f.name) for f in dataclasses.fields(A)})
        return made


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins anew


def _peak(device: torch.device) -> float:
    """Returns the peak since `_reset_peak` in MiB, of the process on a CPU; where the system cannot
    begin anew, since the process began."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# Rows.


@dataclass(frozen=True, eq=False)
class Row:
    """A sampler on a problem.

    Attributes:
        setting: The sampler as it was asked for.
        sampler: Its name.
        options: Every option, tuned ones too.
        tuning: Trials, score and what was chosen, or None.
        forwards: Network forwards a draw.
        products: Network vector-Jacobian products a draw.
        operator: Calls of A a draw.
        adjoint: Calls of A^T a draw, gradients through A among them.
        pinv: Calls of the pseudo-inverse a draw.
        rotations: Applications of a factor of the singular value decomposition a draw.
        seconds: Wall time of a draw.
        memory: Peak memory, MiB.
        draws: The number of draws.
        failures: How many of them were not finite.
        metrics: By name.
        coverage: Empirical coverage of the central intervals of `LEVELS`.
        error: Why there are no numbers, or None.
        pictures: "truth", "observation", "mean", "draw" and "std" of a few observations, (n, C, H,
            W) each; only images.
    """

    setting: str
    sampler: str
    options: dict[str, Any]
    tuning: dict[str, Any] | None = None
    forwards: float = 0.0
    products: float = 0.0
    operator: float = 0.0
    adjoint: float = 0.0
    pinv: float = 0.0
    rotations: float = 0.0
    seconds: float = 0.0
    memory: float = 0.0
    draws: int = 0
    failures: int = 0
    metrics: dict[str, Value] = field(default_factory=dict)
    coverage: list[float] = field(default_factory=list)
    error: str | None = None
    pictures: dict[str, Tensor] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """Returns the row as data for JSON, without the pictures."""
        plain = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "pictures"
        }
        return plain | {"metrics": {name: value._asdict() for name, value in self.metrics.items()}}


@dataclass(frozen=True, eq=False)
class _Given:
    """The observations of one seed and what is known of them."""

    seed: int
    split: str
    draws: int
    truth: Tensor
    m: Measurement
    posterior: Posterior | None
    reference: Tensor | None  # exact draws, (n, draws, d)

    @classmethod
    def of(cls, problem: Problem, seed: int, split: str, n: int, k: int) -> "_Given":
        truth, m = problem.measure(seed, split, n)
        posterior = problem.posterior(m)
        given = cls(seed, split, k, truth, m, posterior, None)
        return (
            replace(given, reference=given.exact("reference")) if posterior is not None else given
        )

    def exact(self, purpose: str) -> Tensor:
        """Returns exact draws of each observation, (n, draws, d), float64."""
        assert self.posterior is not None
        return self.posterior.draw(self.draws, self._rng(purpose, len(self.m) * self.draws))

    def _rng(self, purpose: str, n: int) -> Rng:
        return Rng.keyed(self.seed, "bench", self.split, purpose, items=range(n))

    def draw(
        self, sampler: PosteriorSampler, denoiser: Denoiser, count: _Count
    ) -> tuple[Tensor, float]:
        """Returns draws of each observation, (n, draws, *shape), on the CPU, and the seconds that
        they took."""
        n, k = len(self.m), self.draws
        m = replace(self.m, A=count.operators(self.m.A))[torch.arange(n).repeat_interleave(k)]
        rng = self._rng("draws", n * k)
        with count.watch(denoiser):
            _wait(m.y.device)
            begun = time.perf_counter()
            x = sampler(denoiser, m, rng)
            _wait(m.y.device)
            seconds = time.perf_counter() - begun
        return x.detach().cpu().reshape(n, k, *m.shape), seconds

    def tuned(self, sampler: PosteriorSampler, denoiser: Denoiser) -> PosteriorSampler:
        """Lets a sampler set its automatic options, as before an E-step."""
        few = min(16, len(self.m))
        return sampler.tune(denoiser, self.m[torch.arange(few)], self._rng("tune", few))


def sizes(problem: Problem, observations: int | None, draws: int | None) -> tuple[int, int]:
    """Returns the observations of a seed and the draws of an observation, by default so many that a
    problem takes minutes.

    Raises:
        RecipeError: If there are not so many observations.
    """
    exact, d = problem.prior is not None, math.prod(problem.shape)
    if observations is not None and problem.limit is not None and observations > problem.limit:
        held = f"{problem.name} has {problem.limit} held-out observations besides those for tuning"
        raise RecipeError(f"--observations: {held}, and {observations} are wanted")
    n = observations or min(32 if exact else 16, problem.limit or 32)
    return n, draws or (256 if exact and d <= 8 else 16 if problem.image and not exact else 64)


def bench(
    problem: Problem,
    chosen: Sequence[Setting],
    catalog: Catalog,
    seeds: int = 3,
    observations: int | None = None,
    draws: int | None = None,
    trials: int = 0,
) -> Iterator[Row]:
    """Runs samplers on a problem, each with the same prior, measurements and random numbers, and
    yields a row for each.

    Where the posterior is known, the first row, `FLOOR`, is of exact draws: what the metrics are
    for a perfect sampler and so many draws.

    Args:
        problem: What they solve.
        chosen: What `settings` found.
        catalog: Where the metrics are found.
        seeds: How many sets of observations and random numbers.
        observations: Of each seed; `sizes` says what None is.
        draws: Of each observation, at least 2.
        trials: Random trials of the options of each sampler, on other observations, of which the
            best is kept.

    Raises:
        RecipeError: If there are not so many observations.
    """
    n, k = sizes(problem, observations, draws)
    if k < 2:
        raise RecipeError("--draws: at least 2 are needed")
    judge = _Judge(
        problem, catalog, [_Given.of(problem, seed, "test", n, k) for seed in range(seeds)]
    )
    if all(given.posterior is not None for given in judge.given):
        metrics, coverage = judge(
            [
                given.exact("floor").to(given.truth).reshape(n, k, *problem.shape)
                for given in judge.given
            ]
        )
        yield Row(FLOOR, FLOOR, {}, draws=n * k * seeds, metrics=metrics, coverage=coverage)
    validation = _Given.of(problem, 0, "validation", n, min(k, 64)) if trials else None
    for setting in chosen:
        try:
            row = _row(problem, setting, judge, validation, trials)
        except (InvemError, _LinAlgError) as error:
            words = " ".join(str(error).split())
            row = Row(
                setting.label,
                setting.name,
                _plain(setting.values),
                error=words or type(error).__name__,
            )
        yield row


def _row(
    problem: Problem, setting: Setting, judge: "_Judge", validation: _Given | None, trials: int
) -> Row:
    tuning = None
    if validation is not None:
        setting, tuning = _tune(setting, judge, validation, trials)
    denoiser, given = problem.denoiser, judge.given
    samplers = [g.tuned(setting.sampler(), denoiser) for g in given]
    device = given[0].m.y.device
    samplers[0](denoiser, given[0].m[:1], Rng.keyed("bench", "warm-up", items=[0]))
    _reset_peak(device)
    count, total, xs = _Count(), 0.0, []
    for sampler, g in zip(samplers, given, strict=True):
        x, seconds = g.draw(sampler, denoiser, count)
        total += seconds
        xs.append(x)
    memory = _peak(device)
    whole = sum(len(g.m) * g.draws for g in given)
    costs = {
        f: getattr(count, f) / whole
        for f in ("forwards", "products", "operator", "adjoint", "pinv", "rotations")
    }
    metrics, coverage = judge(xs)
    return Row(
        setting.label,
        setting.name,
        _plain(setting.values),
        tuning,
        **costs,
        seconds=total / whole,
        memory=memory,
        draws=whole,
        failures=sum(int((~_finite(x)).sum()) for x in xs),
        metrics=metrics,
        coverage=coverage,
        pictures=_pictures(given[0], xs[0]) if problem.image else {},
    )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        k: v if v is None or isinstance(v, bool | int | float | str | list | dict) else repr(v)
        for k, v in values.items()
    }


def _finite(x: Tensor) -> Tensor:
    return x.flatten(2).isfinite().all(2)


def _pictures(given: _Given, x: Tensor) -> dict[str, Tensor]:
    x, y = x[:_SHOWN], given.m.y[:_SHOWN].cpu()
    found = {"truth": given.truth[:_SHOWN], "mean": x.mean(1), "draw": x[:, 0], "std": x.std(1)}
    return found | ({"observation": y} if y.ndim == 4 else {})


# Tuning.


def _tune(
    setting: Setting, judge: "_Judge", validation: _Given, trials: int
) -> tuple[Setting, dict[str, Any]]:
    """Tries random options on other observations, and returns the setting with the best of them."""
    free: dict[str, tuple[float, float]] = {}
    for name, parameter in options_of(setting.factory).items():
        low, high = _bounds(parameter.annotation, float)
        value = setting.values[name]
        if low >= 0 and name not in setting.given and isinstance(value, int | float) and value > 0:
            free[name] = (value / 10, min(10 * value, high))
    score = "psnr" if validation.posterior is None else "sliced-wasserstein"
    changes: list[dict[str, float]] = [{}]
    if free:
        u = torch.rand(
            trials,
            len(free),
            generator=Rng.generator("bench", "trials", setting.label),
            dtype=torch.float64,
        )
        for row in u.tolist():
            changes.append(
                {
                    name: low * (high / low) ** v
                    for v, (name, (low, high)) in zip(row, free.items(), strict=True)
                }
            )
    best, least, scores = setting, math.inf, []
    for change in changes:
        value = math.inf
        with contextlib.suppress(InvemError, ValueError, _LinAlgError):
            if (tried := setting.with_changes(change)) is not None:
                value = judge.loss(tried.sampler(), validation)
                if value < least:
                    best, least = tried, value
        scores.append(value)
    chosen = {name: best.values[name] for name in free}
    sign = -1 if score == "psnr" else 1
    found = {"trials": len(changes) - 1, "score": score, "chosen": chosen}
    return best, found | {"default": _number(sign * scores[0]), "best": _number(sign * least)}


# Judging.


class _Judge:
    """Compares draws with the truth and with the posterior."""

    def __init__(self, problem: Problem, catalog: Catalog, given: list[_Given]) -> None:
        self.problem, self.given = problem, given
        self.metrics = {
            f"{name}{suffix}": catalog.find("metrics", name).load()(of=of)
            for name in ("psnr", *(["ssim"] if problem.image else []))
            for of, suffix in (("mean", ""), ("draw", "-draw"))
        }
        self.directions = _directions(math.prod(problem.shape))

    def loss(self, sampler: PosteriorSampler, given: _Given) -> float:
        """Returns what tuning makes small: the sliced Wasserstein distance, or minus the PSNR of
        the mean; infinite if a draw is."""
        denoiser = self.problem.denoiser
        x, _ = given.draw(given.tuned(sampler, denoiser), denoiser, _Count())
        if not bool(x.isfinite().all()):
            return math.inf
        if given.reference is not None:
            return float(self._wasserstein(x.flatten(2).double(), given.reference).mean())
        outcome = Outcome(self.problem.range, given.truth, x, given.m.to("cpu"))
        return -float(self.metrics["psnr"](outcome, {}).double().mean())

    def __call__(self, xs: list[Tensor]) -> tuple[dict[str, Value], list[float]]:
        """Returns the metrics and the coverage of the intervals of `LEVELS`. xs: (n, k, *shape) for
        each seed."""
        pairs: dict[str, list[Tensor]] = {}
        batches: dict[str, list[float]] = {}
        curve: list[Tensor] = []
        for given, x in zip(self.given, xs, strict=True):
            found = [self._observations(given, rows, part) for rows, part in _whole(x)]
            if not found:
                continue
            for each, where in found:
                curve.append(_coverage(where))
                each |= {
                    f"coverage-{100 * level:.0f}": curve[-1][:, LEVELS.index(level)]
                    for level in (0.5, 0.9)
                }
                for name, value in each.items():
                    pairs.setdefault(name, []).append(value.double())
            where = torch.cat([r.flatten(0, 1) for _, r in found])
            for name, number in {"rank-ks": _ks(where), **self._batch(given, x)}.items():
                batches.setdefault(name, []).append(number)
        values = {
            name: _value(torch.cat(parts))
            for name, parts in pairs.items()
            if name not in ("spread", "error")
        }
        if "spread" in pairs:
            values["spread-error"] = _ratio(torch.cat(pairs["spread"]), torch.cat(pairs["error"]))
        values |= {
            name: _value(torch.tensor(numbers, dtype=torch.float64))
            for name, numbers in batches.items()
        }
        return {name: values[name] for name in METRICS if name in values}, (
            torch.cat(curve).mean(0).tolist() if curve else []
        )

    def _observations(
        self, given: _Given, rows: Tensor, x: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Returns numbers for each of B observations, (B,) each, and where the truth lies among the
        draws, (B, d, 2). x: (B, k, *shape)."""
        b, k = x.shape[:2]
        truth, m = given.truth[rows], given.m[rows.to(given.m.y.device)].to("cpu")
        outcome = Outcome(self.problem.range, truth, x, m)
        found = {name: metric(outcome, {}) for name, metric in self.metrics.items()}
        if "var" in m.noise.provides and bool((m.noise.var() > 0).all()):
            many = m[torch.arange(b).repeat_interleave(k)]
            r = (many.y - many.A(x.flatten(0, 1))).abs().square() / many.noise.var()
            found["misfit"] = r.flatten(1).mean(1).reshape(b, k).mean(1)
        flat, centre = x.flatten(2).double(), truth.flatten(1).double()
        found["spread"] = 2 * flat.var(1).sum(1)
        found["error"] = (flat - centre[:, None]).square().sum(2).mean(1)
        if given.posterior is not None and given.reference is not None:
            reference = given.reference[rows]
            root = torch.linalg.cholesky(given.posterior.cov[rows])
            gap = (flat.mean(1) - given.posterior.mean[rows])[..., None]
            found["mean-error"] = (
                torch.linalg.solve_triangular(root, gap, upper=False)[..., 0]
                .square()
                .mean(1)
                .sqrt()
            )
            found["sliced-wasserstein"] = self._wasserstein(flat, reference)
            found["mmd2"] = torch.stack([_mmd(a, r) for a, r in zip(flat, reference, strict=True)])
        return found, ranks(flat, centre)

    def _wasserstein(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns the sliced 2-Wasserstein distance of each observation, (B,). x: (B, k, d), y: (B,
        l, d)."""
        a, b = ((z @ self.directions).sort(1).values for z in (x, y))
        if a.shape[1] != b.shape[1]:
            u = (torch.arange(a.shape[1], dtype=torch.float64) + 0.5) / a.shape[1]
            b = b.quantile(u, dim=1).movedim(0, 1)
        return (a - b).square().mean((1, 2)).sqrt()

    def _batch(self, given: _Given, x: Tensor) -> dict[str, float]:
        """Returns what takes all draws of a seed together: the covariances of posterior and prior.
        x: (n, k, *shape)."""
        if given.posterior is None or self.problem.prior is None:
            return {}
        flat, good = x.flatten(2).double(), _finite(x)
        used = (good.sum(1) > 1).nonzero()[:, 0].tolist()
        found: dict[str, float] = {}
        if len(self.problem.prior.weights) == 1:
            total, n = torch.zeros_like(given.posterior.cov[0]), 0
            for i in used:
                own = flat[i][good[i]]
                white = torch.linalg.solve_triangular(
                    torch.linalg.cholesky(given.posterior.cov[i]),
                    (own - own.mean(0)).T,
                    upper=False,
                )
                total, n = total + white @ white.T, n + len(own) - 1
            if n > len(total):
                values = torch.linalg.eigvalsh(total / n)
                found = {
                    "covariance-error": float((values - 1).abs().max()),
                    "eigenvalue-min": float(values[0]),
                    "eigenvalue-max": float(values[-1]),
                }
        if used:
            # The covariance of the draws less what exact draws of the same observations would have,
            # so that few observations are enough.
            prior = self.problem.prior.moments()
            mean, cov = wide(prior.mean).flatten(), wide(prior.cov.dense())
            excess = torch.zeros_like(cov)
            for i in used:
                gap, off = flat[i][good[i]] - mean, given.posterior.mean[i] - mean
                excess += (gap.T @ gap / len(gap) - given.posterior.cov[i] - off.outer(off)) / len(
                    used
                )
            root = torch.linalg.cholesky(cov)
            half = torch.linalg.solve_triangular(root, excess, upper=False)
            values = 1 + torch.linalg.eigvalsh(
                torch.linalg.solve_triangular(root, half.mT, upper=False)
            )
            found |= {"prior-min": float(values[0]), "prior-max": float(values[-1])}
        return found


def _whole(x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields observations that have as many finite draws as each other, two at least, and those
    draws, (B, k, *shape)."""
    good = _finite(x)
    counts = good.sum(1)
    for k in sorted(set(counts.tolist())):
        rows = (counts == k).nonzero()[:, 0]
        if k > 1:
            yield rows, x[rows][good[rows]].reshape(len(rows), k, *x.shape[2:])


def _directions(d: int, count: int = 128) -> Tensor:
    """Returns unit vectors as columns, orthogonal within groups of d, shape (d, at least count),
    float64."""
    rng = Rng.generator("bench", "directions")
    return torch.cat(
        [
            torch.linalg.qr(torch.randn(d, min(d, count), generator=rng, dtype=torch.float64)).Q
            for _ in range(0, count, d)
        ],
        1,
    )


def _coverage(ranks: Tensor) -> Tensor:
    """Returns the share of coordinates inside the central interval of each of `LEVELS`, (B,
    levels). ranks: (B, d, 2)."""
    return torch.stack([inside(ranks, 0.5 - p / 2, 0.5 + p / 2).mean(1) for p in LEVELS], 1)


def _ks(ranks: Tensor) -> float:
    """Returns the Kolmogorov-Smirnov distance of ranks from the uniform distribution. ranks: (n,
    2)."""
    return max(abs(float(inside(ranks, 0.0, i / 100).mean()) - i / 100) for i in range(1, 100))


def _mmd(x: Tensor, y: Tensor) -> Tensor:
    """Returns the unbiased squared maximum mean discrepancy, shape (); the kernel is as wide as the
    median distance in y. x, y: (k, d)."""
    k, n = len(x), len(y)
    own = torch.cdist(y, y)
    width = own[~torch.eye(n, dtype=torch.bool)].median().clamp(min=1e-12)

    def mean(gap: Tensor) -> Tensor:
        return torch.exp(-0.5 * (gap / width).square())

    within = (mean(torch.cdist(x, x)).sum() - k) / (k * (k - 1)) + (mean(own).sum() - n) / (
        n * (n - 1)
    )
    return within - 2 * mean(torch.cdist(x, y)).mean()


def _value(x: Tensor) -> Value:
    n = len(x)
    return Value(float(x.mean()), float(x.std() / n**0.5) if n > 1 else None, n)


def _ratio(a: Tensor, b: Tensor) -> Value:
    """Returns the ratio of the means, with the standard error to first order."""
    n, ratio = len(a), float(a.mean() / b.mean())
    return Value(ratio, float((a - ratio * b).std() / (b.mean() * n**0.5)) if n > 1 else None, n)


# Words.


def document(
    problem: Problem, rows: Sequence[Row], asked: Mapping[str, Any], left: Sequence[str]
) -> dict[str, Any]:
    """Returns a benchmark as data for JSON: `docs/bench.md` has the schema.

    Args:
        problem: What was solved.
        rows: What `bench` yielded.
        asked: "seeds", "observations", "draws", "budget" and "tune".
        left: A line for each sampler that was left out.
    """
    floor = next((row for row in rows if row.sampler == FLOOR), None)
    about = {
        "name": problem.name,
        "digest": problem.digest,
        "definition": problem.definition,
        "run": problem.source,
        "truth": problem.truth,
        "shape": list(problem.shape),
        "range": list(problem.range),
        "exact": floor is not None,
    }
    found = {
        "schema": 1,
        "environment": environment() | {"device": problem.device},
        "problem": about,
        **asked,
        "levels": list(LEVELS),
        "left_out": list(left),
        "floor": floor.plain()["metrics"] if floor is not None else None,
        "rows": [row.plain() for row in rows if row.sampler != FLOOR],
    }
    plain: dict[str, Any] = _json(found)
    return plain


def _json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    return _number(value) if isinstance(value, float) else value


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def read(path: Path) -> dict[str, Any]:
    """Reads a benchmark that `--json` wrote.

    Raises:
        RecipeError: If the file is missing, or is something else.
    """
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    if (
        not isinstance(found, dict)
        or found.get("schema") != 1
        or "rows" not in found
        or "problem" not in found
    ):
        raise RecipeError(f"{path}: not a benchmark that invem bench --json wrote (schema 1)")
    return found
