"""The built-in problems of `invem bench`. They are data, in ``data/problems.yaml``."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from invem import config as recipes
from invem.atomic import write_text
from invem.batched import Rng
from invem.bench.priors import PRIORS
from invem.bench.problems import Problem, Truth, problem_of_run
from invem.config import Catalog, yaml
from invem.door import Run
from invem.errors import RecipeError, suggest
from invem.linear import CircularConvolution, Mask
from invem.measurement import Measurement
from invem.operator import Operator
from invem.planning.make import make
from invem.prior import Prior
from invem.running.loop import carry_out
from invem.running.records import Record

__all__ = ["PROBLEMS", "Definition", "build_problem"]

Watch = Callable[[Iterable[Record]], Iterable[Record]]


@dataclass(frozen=True)
class Definition:
    """A built-in problem as data.

    Attributes:
        summary: One line for people.
        prior: A function of `invem.bench.priors` by its "name", with its arguments.
        operator: The "entries" that are measured, the "kernel" of a circular blur, or the "name" of
            an operator with its options.
        noise: The "name" of a noise with its options.
        recipe: The recipe of a run that learns the prior, in place of the three above.
    """

    summary: str
    prior: Mapping[str, Any] | None = None
    operator: Mapping[str, Any] | None = None
    noise: Mapping[str, Any] | None = None
    recipe: str | None = None


def _read_definitions() -> dict[str, Definition]:
    text = (resources.files("invem.bench") / "data" / "problems.yaml").read_text("utf-8")
    entries = yaml.load(text, "problems.yaml").value
    return {name: Definition(**entry) for name, entry in entries.items()}


PROBLEMS = _read_definitions()


def build_problem(
    name: str,
    catalog: Catalog,
    truth: Truth = "held-out",
    device: str = "auto",
    watch: Watch = iter,
) -> Problem:
    """Returns a built-in problem.

    A learned prior is trained once, into the user's cache.

    Args:
        name: One of `PROBLEMS`.
        catalog: Where operators and noises are found.
        truth: For a learned prior, as in `problem_of_run`. A prior in closed form always draws the
            signals from itself.
        device: "auto", "cpu", "cuda" or "mps".
        watch: Passes on the records of a training, and may show them.

    Raises:
        RecipeError: If there is no such problem, or no such device.
    """
    if name not in PROBLEMS:
        known = ", ".join(PROBLEMS)
        raise RecipeError(
            f"there is no problem, recipe or run '{name}'{suggest(name, PROBLEMS)} (known problems:"
            f" {known})"
        )
    device, definition = _available(device), PROBLEMS[name]
    if definition.recipe is not None:
        return _learned(name, definition.recipe, catalog, device, truth, watch)
    return _closed_form(name, definition, catalog, device)


def _closed_form(name: str, definition: Definition, catalog: Catalog, device: str) -> Problem:
    about = dict(definition.prior or {})
    exact = PRIORS[about.pop("name")](**about)
    moments, shape, here = exact.moments(), exact.shape, exact.to(device)
    prior = Prior.of(here.moments() if len(exact.weights) == 1 else here)
    draw_operator = _operators(definition.operator or {}, catalog)
    draw_noise = _component("noises", definition.noise or {}, catalog)

    def measure(seed: int, split: str, n: int) -> tuple[Tensor, Measurement]:
        x = exact.sample(Rng.keyed(seed, "bench", split, "truth", items=range(n)))
        rng = Rng.generator(seed, "bench", split, "measure")
        A = draw_operator(n, shape, rng)
        noise = draw_noise(n, tuple(A(x).shape[1:]), rng)
        return x, Measurement(noise.sample(A(x), rng), A, noise).completed().to(device)

    middle = float(moments.mean.mean())
    width = 2 * float(moments.cov.dense().diagonal().mean().sqrt())
    return Problem(
        name,
        f"{name}: {definition.summary}",
        prior,
        measure,
        shape,
        (middle - width, middle + width),
        "prior",
        device,
        exact,
    )


def _component(kind: str, about: Mapping[str, Any], catalog: Catalog) -> Callable[..., Any]:
    """Returns (n, shape, rng) -> the component of a name with its options."""
    options = dict(about)
    factory = catalog.find(kind, options.pop("name")).load()
    return lambda n, shape, rng: factory(n, shape, rng, **options)


def _operators(
    about: Mapping[str, Any], catalog: Catalog
) -> Callable[[int, tuple[int, ...], Generator], Operator]:
    """Returns (n, shape, rng) -> the operators of n observations."""

    def measure_entries(n: int, shape: tuple[int, ...], _: Generator) -> Operator:
        mask = torch.zeros(n, *shape)
        mask[:, list(about["entries"])] = 1
        return Mask(shape, mask)

    def convolve(n: int, shape: tuple[int, ...], _: Generator) -> Operator:
        kernel = torch.tensor(about["kernel"])
        return CircularConvolution(shape, kernel.expand(n, 1, 1, len(kernel)))

    if "entries" in about:
        return measure_entries
    return convolve if "kernel" in about else _component("operators", about, catalog)


def _learned(
    name: str, recipe: str, catalog: Catalog, device: str, truth: Truth, watch: Watch
) -> Problem:
    """Trains the prior once, into the user's cache, and takes that run from then on."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    folder = home / "invem" / "bench" / f"{name}-{digest}"
    source = folder.with_suffix(".yaml")
    if not source.exists():
        write_text(source, recipe)
    opened = Run(make(recipes.load(source, [f"compute.device={device}"]), catalog), folder)
    if not opened.finished:
        for _ in watch(carry_out(opened.plan, folder)):
            pass
    return replace(problem_of_run(opened, truth), name=name, definition=recipe)


def _available(device: str) -> str:
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if device == "auto":
        return "cuda" if available["cuda"] else "cpu"
    if not available.get(device, False):
        raise RecipeError(f"--device: '{device}' is not available on this machine; use cpu or auto")
    return device
