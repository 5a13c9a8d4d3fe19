"""The Python door: plan, carry out and open runs.

import invem

run = invem.run("recipes/blur.yaml", {"phases.em.rounds": 2})
run.metrics[-1]                      # the last evaluation
x = run.sample(16)                   # unconditional samples, shape (16, *shape)
restored = run.restore(y, draws=8)   # mean, std and draws given new observations

run = invem.open("runs/blur")        # later, or elsewhere
x_hat = run.prior(x_t, sigma=0.3)    # E[x | x_t] under the learned prior
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from invem import config as recipes
from invem.config import Catalog, Loaded, Recipe, yaml
from invem.errors import DataError, RecipeError
from invem.files import read_observations
from invem.measurement import Measurement
from invem.planning.make import make
from invem.planning.plan import Facts, Plan
from invem.prior import Prior
from invem.running.context import Context
from invem.running.draws import read_draws
from invem.running.evaluate import unconditional
from invem.running.loop import carry_out, rounds_of
from invem.running.measure import believed, new_observations
from invem.running.priors import last_prior, read_prior
from invem.running.records import Record, results
from invem.running.restore import restore
from invem.storage.directory import Round, RunDirectory

__all__ = ["Restored", "Run", "open", "plan", "run"]

RecipeLike = str | Path | Mapping[str, Any]
"""The path of a recipe, or a recipe as plain data."""

Changes = Mapping[str, Any] | Sequence[str]
"""Changes of a recipe: {"phases.em.rounds": 2}, or ["phases.em.rounds=2"]."""


@dataclass(frozen=True)
class Restored:
    """What new observations tell of their signals.

    Attributes:
        mean: The mean of the posterior draws, shape (N, *shape).
        std: Their standard deviation in each entry, shape (N, *shape); zero for one draw.
        draws: The draws, shape (N, K, *shape).
    """

    mean: Tensor
    std: Tensor
    draws: Tensor

    @classmethod
    def of(cls, draws: Tensor) -> "Restored":
        """Returns the statistics of draws, shape (N, K, *shape)."""
        several = draws.shape[1] > 1
        return cls(draws.mean(1), draws.std(1, correction=1 if several else 0), draws)


class Run:
    """A run directory with the plan that it is carried out by.

    Get one from `invem.run` or `invem.open`.

    Args:
        plan: The plan.
        path: The run directory.
        stop: Asked between small pieces of work; a number other than zero stops it.
    """

    def __init__(self, plan: Plan, path: Path | str, stop: Callable[[], int] = lambda: 0) -> None:
        self.plan, self.path = plan, Path(path)
        self.directory = RunDirectory(self.path)
        self.context = Context(plan, self.directory, stop)
        self._stop = stop

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    # What it is

    @property
    def recipe(self) -> Recipe:
        """The checked recipe."""
        return self.plan.recipe

    @property
    def resolved(self) -> dict[str, Any]:
        """The recipe as plain data, every default written out."""
        return self.plan.resolved

    @property
    def rounds(self) -> list[Round]:
        """The rounds whose M-step is finished, in order."""
        return self.directory.fitted()

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The record of every evaluation: "phase", "name", "round" and "metrics" by label, each
        with "value", its standard error "sem", "n" and "unit". The first is that of the
        observations themselves."""
        return self.directory.metrics()

    @property
    def results(self) -> dict[str, Any]:
        """Recipe, machine, components, evaluations, calibrated options, times and passes through
        the network, as plain data."""
        return results(self.directory)

    @property
    def finished(self) -> bool:
        """Whether the last prior of the recipe is there."""
        fits = [p for p, stage in enumerate(self.plan.stages) if stage.objective is not None]
        last = fits[-1] if fits else 0
        wanted = Round(last, rounds_of(self.context, last) - 1)
        return wanted in self.rounds

    # What it learned

    @property
    def prior(self) -> Prior:
        """The newest prior, on the device of the recipe.

        Raises:
            DataError: If no round is finished.
        """
        return last_prior(self.context)

    def prior_at(self, phase: int | str, number: int) -> Prior:
        """Returns the prior that a round fitted.

        Args:
            phase: The phase, by its place from 0 or its name.
            number: The round of the phase, from 0.

        Raises:
            DataError: If that round is not finished.
        """
        return read_prior(self.context, self.round(phase, number))

    def draws(self, phase: int | str, number: int) -> Tensor:
        """Returns the posterior draws that a round learned from, shape (N, *shape)."""
        return read_draws(self.context, self.round(phase, number))

    def observations(self, split: str = "train") -> Measurement:
        """Returns the stored measurements of a split, with operator and noise as they are believed
        at the end of the run."""
        return self.context.observations(split).at(believed(self.context))

    def round(self, phase: int | str, number: int) -> Round:
        """Returns one round of a phase, which is named by its place from 0 or its name.

        Raises:
            RecipeError: If there is no such phase.
        """
        names = [stage.phase.name for stage in self.plan.stages]
        if isinstance(phase, str) and phase not in names:
            raise RecipeError(f"there is no phase '{phase}' (known: {', '.join(names)})")
        return Round(names.index(phase) if isinstance(phase, str) else phase, number)

    # What it can do

    def carry_out(self) -> Iterator[Record]:
        """Carries out what is left to do, and yields what happens."""
        return carry_out(self.plan, self.path, self._stop)

    def sample(self, n: int = 64, seed: int = 0) -> Tensor:
        """Draws n unconditional samples of the newest prior, shape (n, *shape), on the CPU."""
        return unconditional(self.context, self.prior, n, "sample", seed)

    def restore(
        self,
        observations: "Tensor | Mapping[str, Tensor] | str | Path",
        draws: int = 8,
        seed: int = 0,
        follow: Callable[[Iterable[Record]], Iterable[Record]] = lambda records: records,
    ) -> Restored:
        """Draws from the posterior of new observations under the newest prior.

        Args:
            observations: y, shape (N, *measurement shape); y and the tensors of operator and noise
                by path ("A.mask"); a folder of images; or a safetensors file.
            draws: Draws per observation.
            seed: Which random numbers.
            follow: Is given the records of the work and passes them on, to show progress.

        Raises:
            DataError: If a tensor is missing, unknown, of the wrong shape, or a file is damaged.
            RecipeError: If the recipe has no sampler to restore with.
        """
        m = new_observations(self.context, self._tensors(observations))
        for record in follow(restore(self.context, m, draws, seed)):
            if record.event == "restored":
                return Restored.of(record.data["draws"])
        raise RuntimeError("the records ended without draws")

    def _tensors(
        self, observations: "Tensor | Mapping[str, Tensor] | str | Path"
    ) -> Mapping[str, Tensor]:
        if isinstance(observations, Tensor):
            return {"y": observations}
        if isinstance(observations, Mapping):
            return observations
        return read_observations(Path(observations), self.plan)


def plan(
    recipe: RecipeLike, changes: Changes = (), *, smoke: bool = False, device: str | None = None
) -> Plan:
    """Checks a recipe and returns what it would do; computes nothing.

    Args:
        recipe: The path of a recipe, or a recipe as plain data.
        changes: Changes by dotted key.
        smoke: Whether the recipe's `smoke` block is applied, before the changes.
        device: "auto", "cpu", "cuda" or "mps", in place of the recipe's.

    Raises:
        RecipeError: Every problem that was found, one per line.
        PluginError: If the only problem is a plugin that is missing or broken.
    """
    return make(load_recipe(recipe, changes, smoke, device), Catalog.load())


def load_recipe(
    recipe: RecipeLike, changes: Changes = (), smoke: bool = False, device: str | None = None
) -> Loaded:
    """Reads and checks a recipe by itself; the arguments are those of `plan`."""
    pairs = changes.items() if isinstance(changes, Mapping) else None
    words = [f"{key}={_inline(value)}" for key, value in pairs] if pairs else list(changes)
    words += [f"compute.device={device}"] if device else []
    if isinstance(recipe, Mapping):
        return recipes.load_data(recipe, "recipe", words, smoke)
    return recipes.load(recipe, words, smoke)


def _inline(value: Any) -> str:
    """Returns plain data as they stand in an override."""
    return json.dumps(value)


def run(
    recipe: RecipeLike,
    changes: Changes = (),
    *,
    out: str | Path | None = None,
    smoke: bool = False,
    device: str | None = None,
    follow: Callable[[Iterable[Record]], Iterable[Record]] = lambda records: records,
    stop: Callable[[], int] = lambda: 0,
) -> Run:
    """Carries out a recipe and returns the run.

    A directory that holds the same recipe is gone on with, from wherever it is.

    Args:
        recipe: The path of a recipe, or a recipe as plain data.
        changes: Changes by dotted key.
        out: The run directory; runs/NAME if left out, NAME that of the recipe.
        smoke: Whether the recipe's `smoke` block is applied, before the changes.
        device: "auto", "cpu", "cuda" or "mps", in place of the recipe's.
        follow: Is given the records of the run and passes them on, to show progress.
        stop: Asked between small pieces of work; a number other than zero stops the run.

    Raises:
        RecipeError: If the recipe cannot be carried out, or `out` holds another run.
        Stopped: After the state was saved, if `stop` said so.
    """
    made = plan(recipe, changes, smoke=smoke, device=device)
    path = Path("runs") / Path(made.loaded.source).stem if out is None else Path(out)
    directory = RunDirectory(path)
    if directory.begun and directory.description()["recipe"] != yaml.dump(made.resolved):
        raise RecipeError(f"{path}: it holds a run of another recipe; choose another `out`")
    begun = Run(made, path, stop)
    for _ in follow(begun.carry_out()):
        pass
    return begun


def open(path: str | Path, *, device: str | None = None) -> Run:
    """Opens a run directory, finished or not.

    Args:
        path: The directory.
        device: "auto", "cpu", "cuda" or "mps", in place of the recipe's.

    Raises:
        RecipeError: If it is no run, or its recipe was changed.
        DataError: If it is damaged.
    """
    directory = RunDirectory(Path(path))
    about = directory.description()
    facts = _facts(about, directory)
    loaded = load_recipe(directory.recipe, (), device=device)
    return Run(make(loaded, Catalog.load(), facts), directory.path)


def _facts(about: Mapping[str, Any], directory: RunDirectory) -> Facts:
    """Returns what a run keeps of its data set."""
    try:
        data = about["data"]
        first = data["prior"]
        return Facts(
            tuple(data["shape"]),
            tuple(data["range"]),
            data["whole_train"],
            data["whole_test"],
            None if first is None else tuple(first),
        )
    except (KeyError, TypeError) as error:
        path = directory.path / "run.json"
        raise DataError(f"{path}: damaged: {error} is missing") from error
