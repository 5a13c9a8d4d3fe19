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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel
from torch import Tensor

from invem import atomic, store
from invem.errors import DataError, RecipeError
from invem.storage import sealed
from invem.storage.shapes import (
    FORMAT,
    Change,
    Evaluation,
    Event,
    check,
    check_file,
    format_of,
    is_known,
)

_PENDING = "pending"

__all__ = ["Folder", "Round", "RunDirectory"]


class Round(NamedTuple):
    """One round of one phase, both counted from 0."""

    phase: int
    number: int

    def before(self) -> "Round":
        """Returns the round before, of the same phase."""
        return Round(self.phase, self.number - 1)


class Folder:
    """The files of one step of one round.

    Args:
        path: The folder.
        owner: The run directory that it belongs to; None for the run directory itself.
    """

    def __init__(self, path: Path, owner: "RunDirectory | None" = None) -> None:
        self.path, self.owner = path, owner

    def file(self, name: str) -> Path:
        """Returns the path of a tensor file."""
        return self.path / f"{name}.safetensors"

    def has(self, name: str) -> bool:
        """Whether a tensor file is there."""
        return self.file(name).exists()

    def write(self, name: str, tensors: Mapping[str, Tensor], meta: Any = None) -> None:
        """Writes a tensor file, whole or not at all.

        Raises:
            ResourceError: If the disk is full.
            DataError: If it cannot be written, or the run was removed.
        """
        self._make()
        store.write(self.file(name), tensors, {**(meta or {}), "place": self._place(name)})

    def read(self, name: str) -> dict[str, Tensor]:
        """Reads a tensor file.

        Raises:
            DataError: If it is missing or damaged, or was written as another file or by another
                run.
        """
        return self.read_meta(name)[0]

    def read_meta(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Reads the tensors and the metadata of a file, as `read` does."""
        tensors, meta = store.read_meta(self.file(name))
        there, here = meta.pop("place", None), self._place(name)
        if there != here:
            what = there.get("file", "?") if isinstance(there, dict) else "no file of a run"
            words = what if what != here["file"] else f"{what} of another run"
            raise DataError(f"{self.file(name)}: it is not the file that belongs here, but {words}")
        return tensors, meta

    def _place(self, name: str) -> dict[str, str]:
        run = self._run
        file = self.file(name).relative_to(run.path).as_posix()
        return {"file": file, "run": run.identity}

    @property
    def _run(self) -> "RunDirectory":
        assert self.owner is not None  # a run directory is its own
        return self.owner

    def _make(self) -> None:
        """Makes the folder, but never the run directory itself anew."""
        run = self._run
        run.check_there()
        with run.naming_removal():
            atomic.make_folder(self.path, run.path)

    def read_all(self) -> list[dict[str, Tensor]]:
        """Reads the shards or blocks that are there, in order."""
        return [self.read(path.stem) for path in self.numbered()]

    def check(self) -> None:
        """Checks the tensor files that are there.

        Raises:
            DataError: If one is damaged, or the file of another place.
        """
        for path in sorted(self.path.glob("*.safetensors")):
            self.read(path.stem)

    def remove(self, name: str) -> None:
        """Removes a tensor file, if it is there."""
        self.file(name).unlink(missing_ok=True)

    def numbered(self) -> list[Path]:
        """Returns the shards or blocks that are there, in order."""
        return sorted(self.path.glob("[0-9]*.safetensors"))

    def checkpoints(self) -> list[str]:
        """Returns the names of the checkpoints that are there, oldest first."""
        return sorted(path.stem for path in self.path.glob("step-*.safetensors"))

    def json_file(self, name: str) -> Path:
        """Returns the path of a JSON file."""
        return self.path / f"{name}.json"

    def has_json(self, name: str) -> bool:
        """Whether a JSON file is there."""
        return self.json_file(name).exists()

    def read_json(self, name: str) -> dict[str, Any]:
        """Reads a JSON file.

        Raises:
            DataError: If it is missing, damaged or the file of another place, or does not hold what
                a file of this name holds.
        """
        path = self.json_file(name)
        return check_file(name, sealed.read(path, self.place_of(path)), path)

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Writes a JSON file, whole or not at all; raises as `write` does."""
        path = self.json_file(name)
        self._make()
        sealed.write(path, value, self.place_of(path))

    def place_of(self, path: Path) -> str:
        """Returns where a JSON file belongs, in words."""
        run = self._run
        if path == run.path / "run.json":
            return path.name
        return f"{path.relative_to(run.path).as_posix()} of {run.identity}"

    def finish(
        self,
        event: str,
        data: Mapping[str, Any],
        write: Callable[[], None] = lambda: None,
        appears: Path | None = None,
        goes: Path | None = None,
    ) -> None:
        """Ends a step and logs it: both or neither, wherever a kill comes. What one has left is
        completed by `RunDirectory.settle`.

        Args:
            event: The event in the log.
            data: What is logged of it.
            write: Writes the file that ends the step.
            appears: That file; None if nothing is left to write.
            goes: A file of the step that is removed with its end.
        """
        told = {"appears": self._relative(appears), "goes": self._relative(goes)}
        self.write_json(_PENDING, {"event": event, "data": data, **told})
        write()
        self._run.log(event, **data)
        if goes is not None:
            goes.unlink(missing_ok=True)
        self.remove_json(_PENDING)

    def _relative(self, file: Path | None) -> str | None:
        return None if file is None else file.relative_to(self._run.path).as_posix()

    def remove_json(self, name: str) -> None:
        """Removes a JSON file, if it is there."""
        self.json_file(name).unlink(missing_ok=True)


class RunDirectory(Folder):
    """A run directory.

    Args:
        path: The directory; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, self)
        self._identity = ""
        self._writing = threading.Lock()  # of the log

    @property
    def identity(self) -> str:
        """A hash of the recipe that the run was begun with; "" before it was begun."""
        if not self._identity and self.begun:
            recipe = self.about()["recipe"]
            self._identity = hashlib.sha256(recipe.encode()).hexdigest()[:16]
        return self._identity

    def check_there(self) -> None:
        """Checks that a run that was begun is still where it was.

        Raises:
            DataError: If it was removed or moved.
        """
        if self._identity and not self.begun:
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

    def forget_losses(self, at: Round, step: int) -> None:
        """Takes the losses of a round after a step out of the log: they are computed again."""
        path = self.path / "log.jsonl"
        with self._writing:
            rows = self.logged()
            kept = [row for row in rows if not _is_loss_after(row, at, step)]
            if len(kept) < len(rows):
                place = self.place_of(path)
                atomic.write_text(path, "".join(sealed.line_of(row, place) for row in kept))

    def settle(self) -> None:
        """Completes what a kill has left between the file that ends a step and its log."""
        for path in [self.json_file(_PENDING), *self.path.glob(f"*-*-*/{_PENDING}.json")]:
            folder = self.folder(path.parent)
            if not folder.has_json(_PENDING):
                continue
            told = folder.read_json(_PENDING)
            appears, goes = told["appears"], told["goes"]
            if appears is None or (self.path / appears).exists():
                if {"event": told["event"], **told["data"]} not in self.logged():
                    self.log(told["event"], **told["data"])
                if goes is not None:
                    (self.path / goes).unlink(missing_ok=True)
            folder.remove_json(_PENDING)

    def check_shown(self) -> None:
        """Checks every file that commands print and the report shows, and every JSON file.

        Raises:
            DataError: If one is damaged, or the file of another place.
        """
        for path in sorted(self.path.glob("[0-9]*-[0-9]*-evaluation")):
            self.folder(path).check()
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


def _is_loss_after(row: Mapping[str, Any], at: Round, step: int) -> bool:
    here = (row.get("phase"), row.get("round")) == at
    return here and row["event"] == "loss" and int(row.get("step", 0)) > step
