"""The run directory: the only place that knows what its files are called.

    run.json  recipe.yaml  log.jsonl  metrics.jsonl  identifiability.json  observations.json
    measurements/{train,test}/BBBBB.safetensors   truth/BBBBB.safetensors   clean.safetensors
    prior.safetensors                             what the run began with, if another run learned it
    metrics/I.safetensors                         what a metric prepares once
    P-RRR-samples/      the E-step: KKKKK.safetensors (shards), pool, sampler.json, calibrated.json
    P-RRR-denoiser/     the M-step: denoiser.safetensors, or step-SSSSSSSS.safetensors on the way
    P-RRR-evaluation/   restorations, posterior, samples, resimulated, metrics.json
    P-stop.json         where a phase ended before its last round, and why
    history.jsonl       what of the recipe was changed on the way
    */pending.json      the entry of the log of a file that is being written

P is a phase and R a round, both from 0. A file that is there is complete: it was written under
another name, flushed and renamed, and has its digest inside, for the place where it belongs: which
file of which run it is. So one that was put in another place is found, too.
"""

import contextlib
import hashlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel
from torch import Tensor

from invem import atomic
from invem.errors import DataError, RecipeError
from invem.storage import sealed
from invem.storage.folder import PENDING, Folder
from invem.storage.shapes import (
    FORMAT,
    Change,
    Evaluation,
    Event,
    check,
    format_of,
    is_known,
)

__all__ = ["Folder", "Round", "RunDirectory"]


class Round(NamedTuple):
    """One round of one phase, both counted from 0."""

    phase: int
    number: int

    def before(self) -> "Round":
        """Returns the round before, of the same phase."""
        return Round(self.phase, self.number - 1)


class RunDirectory(Folder):
    """A run directory.

    Args:
        path: The directory; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, self)
        self._identity, self._watched = "", False
        self._writing = threading.Lock()  # of the log

    @property
    def identity(self) -> str:
        """A hash of the recipe that the run was begun with; "" before it was begun."""
        if not self._identity and self.begun:
            recipe = self.about()["recipe"]
            self._identity = hashlib.sha256(recipe.encode()).hexdigest()[:16]
        return self._identity

    def watch(self) -> None:
        """From here on it is noticed if the run is removed."""
        self._watched = True

    def check_there(self) -> None:
        """Checks that a run that is watched is still where it was.

        Raises:
            DataError: If it was removed or moved.
        """
        if self._watched and not self.begun:
            raise DataError(
                f"{self.path}: the run was removed or moved while it was going on; where it is"
                " moved to, go on with: invem resume"
            )

    @contextlib.contextmanager
    def naming_removal(self) -> Iterator[None]:
        """Names the removal of the run in place of what fails because of it.

        Raises:
            DataError: If something fails and the run is no longer there.
        """
        try:
            yield
        except Exception as error:
            try:
                self.check_there()
            except DataError as removed:
                raise removed from error
            raise

    # What was begun with

    @property
    def begun(self) -> bool:
        """Whether a run was begun in it."""
        return self.has_json("run")

    @property
    def is_free(self) -> bool:
        """Whether a run can be begun in it: it is not there, or holds nothing but a recipe."""
        if not self.path.is_dir():
            return not self.path.exists()
        names = (inside.name for inside in self.path.iterdir())
        return all(name == self.recipe.name or name.startswith(".") for name in names)

    def check_begun(self) -> None:
        """Raises an error if no run was begun in it.

        Raises:
            RecipeError: If there is no run.
        """
        if self.path.is_file():
            raise RecipeError(
                f"{self.path}: it is a file, not a run; begin a recipe with: invem run {self.path}"
            )
        if not self.begun:
            raise RecipeError(f"{self.path}: not a run directory (there is no run.json in it)")

    def begin(self, recipe: str, description: Mapping[str, Any]) -> None:
        """Writes the resolved recipe and the description of a run."""
        atomic.write_text(self.path / "recipe.yaml", recipe)
        self.write_json("run", {"format": FORMAT, "recipe": recipe, **description})

    def description(self) -> dict[str, Any]:
        """Returns what `begin` wrote.

        Raises:
            RecipeError: If it is no run, or its recipe was changed.
            DataError: If it is damaged.
        """
        about = self.about()
        if not self.recipe.is_file() or self._recipe_text() != about["recipe"]:
            raise RecipeError(
                f"{self.recipe}: changed since the run was begun; begin a new run with it"
            )
        return about

    def about(self) -> dict[str, Any]:
        """Returns what `begin` wrote, though its recipe may have been changed.

        Raises:
            RecipeError: If it is no run.
            DataError: If it is damaged, or of another version of invem.
        """
        self.check_begun()
        path = self.path / "run.json"
        try:
            about = self.read_json("run")
        except DataError:
            other = format_of(path)
            if other in (None, FORMAT):
                raise
        else:
            other = about["format"]
        if other != FORMAT:
            raise DataError(
                f"{path}: it was made by another version of invem (format {other}, not {FORMAT});"
                " begin a new run with its recipe"
            )
        return about

    def _recipe_text(self) -> str:
        try:
            return self.recipe.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self.recipe}: damaged: {error}") from error

    @property
    def recipe(self) -> Path:
        """The path of the resolved recipe."""
        return self.path / "recipe.yaml"

    # Measurements

    def measurements(self, split: str) -> Folder:
        """Returns the folder of the measurements of a split."""
        return Folder(self.path / "measurements" / split, self)

    @property
    def truth(self) -> Folder:
        """The folder of the true signals, which only metrics and the report open."""
        return Folder(self.path / "truth", self)

    def true_signals(self) -> Tensor | None:
        """Returns the true signals of the held-out observations, shape (N, *shape), if kept."""
        parts = [tensors["x"] for tensors in self.truth.read_all()]
        return torch.cat(parts) if parts else None

    @property
    def prepared(self) -> Folder:
        """The folder of what metrics compute once."""
        return Folder(self.path / "metrics", self)

    # Steps

    def folder(self, path: Path) -> Folder:
        """Returns a folder of the run."""
        return Folder(path, self)

    def draws(self, at: Round) -> Folder:
        """Returns the folder of an E-step."""
        return self._step(at, "samples")

    def fit(self, at: Round) -> Folder:
        """Returns the folder of an M-step."""
        return self._step(at, "denoiser")

    def evaluation(self, at: Round) -> Folder:
        """Returns the folder of an evaluation."""
        return self._step(at, "evaluation")

    def _step(self, at: Round, kind: str) -> Folder:
        return Folder(self.path / f"{at.phase}-{at.number:03d}-{kind}", self)

    def begun_rounds(self) -> list[Round]:
        """Returns the rounds that have files, in order."""
        paths = self.path.glob("[0-9]*-[0-9]*-*")
        return sorted({_round(path.name) for path in paths if path.is_dir()})

    def fitted(self) -> list[Round]:
        """Returns the rounds whose M-step is finished, in order."""
        paths = self.path.glob("[0-9]*-[0-9]*-denoiser/denoiser.safetensors")
        return sorted(_round(path.parent.name) for path in paths)

    def read_newest_prior(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Reads the file of the newest finished M-step: tensors and metadata.

        Raises:
            DataError: If there is none, or it is damaged.
        """
        fitted = self.fitted()
        if not fitted:
            raise DataError(f"{self.path}: no denoiser is finished in it")
        return self.fit(fitted[-1]).read_meta("denoiser")

    def evaluated(self) -> list[Round]:
        """Returns the rounds whose evaluation is finished, in order."""
        paths = self.path.glob("[0-9]*-[0-9]*-evaluation/metrics.json")
        return sorted(_round(path.parent.name) for path in paths)

    def stop(self, phase: int) -> dict[str, Any] | None:
        """Returns where a phase ended before its last round ("rounds", "reason"), or None."""
        name = f"{phase}-stop"
        return self.read_json(name) if self.has_json(name) else None

    def write_stop(self, phase: int, data: Mapping[str, Any]) -> None:
        """Writes and logs where a phase ended before its last round. data: phase, name and round,
        from 0, and the reason."""
        name = f"{phase}-stop"
        facts = {"rounds": int(data["round"]) + 1, "reason": data["reason"]}
        self.finish("stop", data, lambda: self.write_json(name, facts), self.json_file(name))

    # Records

    def log(self, event: str, **data: Any) -> None:
        """Appends one event to the log."""
        self.check_there()
        path = self.path / "log.jsonl"
        line = sealed.line_of({"event": event, **data}, self.place_of(path))
        with self._writing:
            atomic.append_line(path, line)

    def logged(self) -> list[dict[str, Any]]:
        """Returns the events of the log; a last line that was torn by a kill is left out.

        Raises:
            DataError: If a line is damaged.
        """
        return self._lines("log.jsonl", Event)

    def forget(self, at: Round, event: str, step: int = -1) -> None:
        """Takes out of the log what is computed again: the events of a round after a step."""
        path = self.path / "log.jsonl"
        with self._writing:
            if not path.exists() or f'"event": "{event}"' not in path.read_text("utf-8"):
                return
            rows = self.logged()
            kept = [row for row in rows if not _is_of(row, at, event, step)]
            if len(kept) < len(rows):
                self._write_lines(path.name, kept)

    def settle(self) -> None:
        """Completes what a kill has left between the file that ends a step and its log, and after
        it."""
        for path in [self.json_file(PENDING), *self.path.glob(f"*-*-*/{PENDING}.json")]:
            folder = self.folder(path.parent)
            if not folder.has_json(PENDING):
                continue
            told = folder.read_json(PENDING)
            appears, goes = told["appears"], told["goes"]
            if appears is None or (self.path / appears).exists():
                if {"event": told["event"], **told["data"]} not in self.logged():
                    self.log(told["event"], **told["data"])
                if goes is not None:
                    (self.path / goes).unlink(missing_ok=True)
            folder.remove_json(PENDING)
        for folder in map(self.fit, self.fitted()):
            for name in folder.checkpoints():
                folder.remove(name)

    def check_shown(self) -> None:
        """Checks every file that commands print and the report shows, and every JSON file.

        Raises:
            DataError: If one is damaged, or the file of another place.
        """
        evaluations = map(self.folder, sorted(self.path.glob("[0-9]*-[0-9]*-evaluation")))
        for folder in (self.truth, self.measurements("test"), *evaluations):
            folder.check()
        for path in sorted([*self.path.glob("*.json"), *self.path.glob("[0-9]*-[0-9]*/*.json")]):
            if is_known(path.stem):
                self.folder(path.parent).read_json(path.stem)
        self.logged()
        self.metrics()
        self.history()

    def metrics(self) -> list[dict[str, Any]]:
        """Returns the record of every evaluation, that of the observations first.

        Raises:
            DataError: If a line is damaged.
        """
        return self._lines("metrics.jsonl", Evaluation, whole=True)

    def collect_metrics(self) -> None:
        """Writes metrics.jsonl anew from the metrics of every finished evaluation."""
        rows = [self.read_json("observations")] if self.has_json("observations") else []
        rows += [self.evaluation(at).read_json("metrics") for at in self.evaluated()]
        self._write_lines("metrics.jsonl", rows)

    def history(self) -> list[dict[str, Any]]:
        """Returns what was changed of the recipe since the run was begun, in order: "when", after
        what ("after"), and the changes ("changes").

        Raises:
            DataError: If a line is damaged.
        """
        return self._lines("history.jsonl", Change, whole=True)

    @property
    def changes(self) -> list[str]:
        """All changes of the recipe since the run was begun, each KEY=VALUE, in order."""
        return [change for row in self.history() for change in row["changes"]]

    def change(self, row: Mapping[str, Any]) -> None:
        """Adds an entry to the history."""
        self._write_lines("history.jsonl", [*self.history(), row])

    def _lines(self, name: str, kind: type[BaseModel], whole: bool = False) -> list[dict[str, Any]]:
        path = self.path / name
        rows = sealed.read_lines(path, self.place_of(path), whole)
        return [check(kind, row, path) for row in rows]

    def _write_lines(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        self.check_there()
        path = self.path / name
        place = self.place_of(path)
        atomic.write_text(path, "".join(sealed.line_of(row, place) for row in rows))


def _round(name: str) -> Round:
    phase, index = name.split("-")[:2]
    return Round(int(phase), int(index))


def _is_of(row: Mapping[str, Any], at: Round, event: str, step: int) -> bool:
    """Whether an entry of the log is of an event of a round, after a step."""
    here = (row.get("phase"), row.get("round")) == at
    return here and row["event"] == event and int(row.get("step", 0)) > step
