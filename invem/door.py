"""The Python door: plan, carry out and open runs.

import invem

run = invem.run("recipes/blur.yaml", {"phases.em.rounds": 2})
run.metrics[-1]                      # the last evaluation
x = run.sample(16)                   # unconditional samples, shape (16, *shape)
restored = run.restore(y, draws=8)   # mean, std and draws given new observations

run = invem.open("runs/blur")        # later, or elsewhere
x_hat = run.prior(x_t, sigma=0.3)    # E[x | x_t] under the learned prior
"""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invem.config import (
    Catalog,
    Changes,
    Recipe,
    RecipeLike,
    load_any,
    replace,
    words_of,
)
from invem.errors import DataError, RecipeError
from invem.files import check_observations, read_observations
from invem.measurement import Measurement
from invem.opening import check_versions, facts_of, installed, read_recipe, without_device
from invem.planning.make import make, written_out
from invem.planning.plan import Plan
from invem.prior import Prior
from invem.priorfile import copy_prior
from invem.running.changes import change
from invem.running.context import Context, all_finite
from invem.running.draws import has_draws, read_draws
from invem.running.evaluate import unconditional
from invem.running.frames import FrameOptions, RestoredFiles
from invem.running.loop import carry_out, is_complete, rounds_of
from invem.running.measure import believed, new_observations
from invem.running.priors import last_prior, read_prior
from invem.running.records import Record, results
from invem.running.restore import Restored, restore
from invem.storage.directory import Round, RunDirectory
from invem.wholeframes import restore_files

__all__ = ["Restored", "RestoredFiles", "Run", "open", "plan", "run"]

Follow = Callable[[Iterable[Record]], Iterable[Record]]
"""Is given the records of some work and passes them on, to show progress."""


def _silently(records: Iterable[Record]) -> Iterable[Record]:
    return records


def _never() -> int:
    return 0


class Run:
    """A run: a plan, and the directory that it is carried out in.

    `invem.run` and `invem.open` return one.

    Args:
        plan: The plan.
        path: The run directory; it need not exist.
        catalog: The components that changes of the recipe are checked with; those of the installed
            plugins if left out.

    Raises:
        ValueError: If the device of the plan is not on this machine, which planning refuses.
    """

    def __init__(self, plan: Plan, path: Path | str, catalog: Catalog | None = None) -> None:
        self.plan, self.path, self._catalog = plan, Path(path), catalog
        self.directory = RunDirectory(self.path)
        self.context = Context(plan, self.directory)
        self._prior: tuple[Round | None, Prior] | None = None

    def __repr__(self) -> str:
        done = self.rounds
        newest = self.context.where(done[-1]) if done else "no prior yet"
        return f"<Run {self.path}: {newest}{', finished' if self.finished else ''}>"

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
        """The rounds whose prior is fitted, in order; `prior_at(*round)` reads one."""
        return self.directory.fitted()

    @property
    def finished(self) -> bool:
        """Whether the last prior of the recipe is fitted."""
        fits = [p for p, stage in enumerate(self.plan.stages) if stage.objective is not None]
        last = fits[-1] if fits else 0
        return Round(last, rounds_of(self.context, last) - 1) in self.rounds

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The evaluations, that of the observations themselves first.

        Each has "phase", "name", "round" and "metrics"; the metrics by label, each with "value",
        its standard error "sem", "n" and "unit".
        """
        return self.directory.metrics()

    @property
    def results(self) -> dict[str, Any]:
        """Recipe, machine, components, evaluations, calibrated options, times and passes through
        the network, as plain data.

        Raises:
            DataError: If nothing was carried out yet.
        """
        return results(self.directory)

    # What it learned, and from what

    @property
    def prior(self) -> Prior:
        """The newest prior, on the device of the recipe.

        Raises:
            DataError: If none is fitted yet.
        """
        newest = self.rounds[-1] if self.rounds else None
        if self._prior is None or self._prior[0] != newest:
            with self.plan.origins.naming():
                self._prior = newest, last_prior(self.context)
        return self._prior[1]

    def prior_at(self, phase: int | str, number: int) -> Prior:
        """Returns the prior that a round fitted.

        Args:
            phase: The phase, by its name or its place from 0.
            number: The round of the phase, from 0.

        Raises:
            RecipeError: If the recipe has no such round.
            DataError: If the round is not finished, or fits nothing.
        """
        with self.plan.origins.naming():
            return read_prior(self.context, self._round(phase, number))

    def draws(self, phase: int | str, number: int) -> Tensor:
        """Returns the posterior draws that a round learned from, shape (N, *shape).

        Args:
            phase: The phase, by its name or its place from 0.
            number: The round of the phase, from 0.

        Raises:
            RecipeError: If the recipe has no such round.
            DataError: If the E-step of the round is not finished, or the phase draws nothing.
        """
        at = self._round(phase, number)
        if not has_draws(self.context, at):
            raise DataError(f"{self.path}: {self.context.where(at)} has no finished draws")
        return read_draws(self.context, at)

    def observations(self, split: str = "train") -> Measurement:
        """Returns the stored measurements, on the CPU, with operator and noise at the options that
        are believed at the end of the run.

        Args:
            split: "train" or "test".

        Raises:
            DataError: If there are none.
        """
        return self.context.observations(split).at(believed(self.context))

    @property
    def truth(self) -> Tensor | None:
        """The true signals of the test observations, shape (N, *shape). None if the data set is one
        of observations. Nothing is learned from them."""
        return self.directory.true_signals()

    def _round(self, phase: int | str, number: int) -> Round:
        """Returns one round of a phase, after checking that the recipe has it."""
        names = [stage.phase.name for stage in self.plan.stages]
        index = names.index(phase) if phase in names else phase
        if isinstance(index, str) or not 0 <= index < len(names):
            raise RecipeError(f"there is no phase '{phase}' (known: {', '.join(names)})")
        rounds = self.plan.stages[index].phase.rounds
        if not 0 <= number < rounds:
            raise RecipeError(
                f"phase {names[index]} has no round {number} (known: 0 to {rounds - 1})"
            )
        return Round(index, number)

    # What it can do

    def resume(
        self,
        changes: Changes = (),
        *,
        force: bool = False,
        follow: Follow = _silently,
        stop: Callable[[], int] = _never,
    ) -> None:
        """Carries out what is left to do.

        An interrupted run loses no finished step, and goes on with the same random numbers.

        Args:
            changes: Changes of the recipe by dotted key, for what is left to do. They are kept in
                the history of the run, and hold whenever it is opened.
            force: Whether the run goes on with components of other versions than it was begun with.
            follow: Is given the records of the work and passes them on, to show progress.
            stop: Asked between small pieces of work. A number other than zero stops the run.

        Raises:
            RecipeError: If a component is of another version than the run was begun with, or a
                change would make what was done the result of another recipe.
            Stopped: After the state was saved, if `stop` said so.
            NumericalError: If draws or a loss are not finite.
            DataError: If a file of the run is damaged.
            ResourceError: If the disk is full.
        """
        if self.directory.begun and not force:
            check_versions(self.directory, self.plan)
        if words := words_of(changes):
            self._change(words)
        # Closed at once when interrupted: a traceback would keep the directory locked.
        with contextlib.closing(carry_out(self.plan, self.path, stop)) as records:
            for _ in follow(records):
                pass

    def _change(self, words: list[str]) -> None:
        """Changes the recipe of a run that was begun, and the plan with it."""
        if not self.directory.begun:
            raise RecipeError(f"{self.path}: no run was begun in it; change its recipe")
        catalog = installed() if self._catalog is None else self._catalog
        after = make(replace(self.plan.loaded, words), catalog, facts_of(self.directory))
        change(self.context, after, words)
        self.plan, self.context = after, Context(after, self.directory)

    def save_prior(self, path: str | Path) -> None:
        """Writes the newest prior to a file of its own, NAME.safetensors. `invem.load_prior` loads
        it without the run or the recipe.

        Raises:
            DataError: If no prior is fitted yet.
        """
        copy_prior(self.directory, path)

    def sample(self, n: int = 64, seed: int = 0) -> Tensor:
        """Draws n unconditional samples of the newest prior, shape (n, *shape), on the CPU.

        Raises:
            DataError: If no prior is fitted yet.
            NumericalError: If samples are not finite.
        """
        x = unconditional(self.context, self.prior, n, "sample", seed)
        way = f"delete its newest denoiser.safetensors to fit it anew: invem resume {self.path}"
        return all_finite(x, f"{self.path}: samples", way)

    def measurement(self, observations: Any) -> Measurement:
        """Returns new observations as a measurement: with the operator and the noise of the recipe.

        Args:
            observations: y, a tensor or an array, shape (N, *measurement shape); a mapping with y
                and the tensors of operator and noise that differ between observations, by path
                ("A.mask"); or the path of a file or a folder, in any format that is installed.

        Raises:
            DataError: If a tensor is missing, unknown, not finite or of the wrong shape, or a file
                cannot be read.
        """
        if not isinstance(observations, str | Path):
            given = observations if isinstance(observations, Mapping) else {"y": observations}
            tensors = {name: torch.as_tensor(value).cpu() for name, value in given.items()}
            with self.plan.origins.naming():
                return new_observations(self.context, tensors)
        try:
            path = Path(observations).expanduser()
            read = read_observations(path, self.plan)
            with self.plan.origins.naming():
                m = new_observations(self.context, read)
            for line in check_observations(path, self.plan):
                warnings.warn(f"{observations}: {line}", stacklevel=2)
            return m
        except DataError as error:
            raise DataError(f"{observations}: {error}") from error

    def restore(
        self, observations: Any, draws: int = 8, seed: int = 0, *, follow: Follow = _silently
    ) -> Restored:
        """Draws from the posterior of new observations under the newest prior.

        Args:
            observations: A measurement, or whatever `measurement` takes.
            draws: Draws per observation.
            seed: Which random numbers.
            follow: Is given the records of the work and passes them on, to show progress.

        Raises:
            DataError: As `measurement` does, or if no prior is fitted yet.
            RecipeError: If the recipe has no sampler to restore with.
            NumericalError: If draws are not finite.
        """
        whole = isinstance(observations, Measurement)
        m = observations if whole else self.measurement(observations)
        *_, last = follow(restore(self.context, m, draws, seed))
        return Restored.of(last.data["draws"], last.data["mean"])

    def restore_files(
        self, path: str | Path, out: str | Path, *, follow: Follow = _silently, **options: Any
    ) -> RestoredFiles:
        """Restores every frame of the files at a path, at its own size, into files of the same
        names, formats, types and metadata.

        Args:
            path: A file of frames, or a folder of them.
            out: The folder that is written to. Files that are there are left.
            follow: Is given the records of the work and passes them on, to show progress.
            options: Those of `running.frames.FrameOptions`: draws, std, keep_draws, tile, seed,
                force.

        Raises:
            RecipeError: If the run knows no units, or its operator, its prior or its sampler cannot
                be used at another size.
            DataError: If files cannot be read or written, or their frames do not fit the run.
            NumericalError: If restored values are not finite.
        """
        *_, last = follow(restore_files(self.context, path, out, FrameOptions(**options)))
        found: RestoredFiles = last.data["files"]
        return found


def plan(
    recipe: RecipeLike,
    changes: Changes = (),
    *,
    smoke: bool = False,
    device: str | None = None,
    catalog: Catalog | None = None,
) -> Plan:
    """Checks a recipe and returns what it would do; computes nothing.

    Args:
        recipe: The path of a recipe, or a recipe as plain data.
        changes: Changes by dotted key.
        smoke: Whether the recipe's `smoke` block is applied, before the changes.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps", in place of the recipe's.
        catalog: The components; those of the installed plugins if left out.

    Raises:
        RecipeError: Every problem that was found, one per line.
        PluginError: If the only problem is a plugin that is missing or broken.
    """
    loaded = read_recipe(recipe, changes, smoke, device)
    return make(loaded, installed() if catalog is None else catalog)


def run(
    recipe: RecipeLike,
    changes: Changes = (),
    *,
    out: str | Path | None = None,
    smoke: bool = False,
    device: str | None = None,
    catalog: Catalog | None = None,
    follow: Follow = _silently,
    stop: Callable[[], int] = _never,
) -> Run:
    """Carries out a recipe and returns the run.

    A directory that holds a run of the same recipe is gone on with. If that run is finished it is
    returned as it is, so that a notebook can be executed again.

    Args:
        recipe: The path of a recipe, or a recipe as plain data.
        changes: Changes by dotted key.
        out: The run directory; runs/NAME if left out, where NAME is that of the recipe's file, and
            "recipe" for plain data.
        smoke: Whether the recipe's `smoke` block is applied, before the changes.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps", in place of the recipe's.
        catalog: The components; those of the installed plugins if left out.
        follow: Is given the records of the run and passes them on, to show progress.
        stop: Asked between small pieces of work. A number other than zero stops the run.

    Raises:
        RecipeError: If the recipe cannot be carried out, or `out` holds something else.
        PluginError: If the only problem is a plugin that is missing or broken.
        Stopped: After the state was saved, if `stop` said so.
        NumericalError: If draws or a loss are not finite.
        DataError: If a file of the run is damaged.
        ResourceError: If the disk is full.
    """
    catalog = installed() if catalog is None else catalog
    loaded = read_recipe(recipe, changes, smoke, device)
    path = Path("runs", Path(loaded.source).stem) if out is None else Path(out).expanduser()
    directory = RunDirectory(path)
    if directory.begun:
        found = open(path, device=loaded.recipe.compute.device, catalog=catalog)
        asked = without_device(written_out(loaded, catalog, found.plan.facts))
        begun_with = written_out(load_any(directory.recipe), catalog, found.plan.facts)
        if asked not in [without_device(recipe) for recipe in (found.resolved, begun_with)]:
            raise RecipeError(f"{path}: it holds a run of another recipe; choose another `out`")
    elif directory.is_free:
        found = Run(make(loaded, catalog), path, catalog)
    else:
        raise RecipeError(f"{path}: exists already and is not a run; choose another `out`")
    for warning in found.plan.warnings:
        warnings.warn(warning, stacklevel=2)
    if not is_complete(found.context):
        found.resume(follow=follow, stop=stop)
    return found


def open(path: str | Path, *, device: str | None = None, catalog: Catalog | None = None) -> Run:
    """Opens a run directory, finished or not.

    Args:
        path: The directory.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps", in place of the recipe's.
        catalog: The components; those of the installed plugins if left out.

    Raises:
        RecipeError: If it is no run, or its recipe was changed.
        PluginError: If the only problem is a plugin that is missing or broken.
        DataError: If it is damaged.
    """
    directory = RunDirectory(Path(path).expanduser())
    facts = facts_of(directory)
    loaded = load_any(directory.recipe, directory.changes, device=device)
    catalog = installed() if catalog is None else catalog
    return Run(make(loaded, catalog, facts), directory.path, catalog)
