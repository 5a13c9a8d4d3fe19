"""The run directory: the only place that knows what its files are called.

    run.json  recipe.yaml  log.jsonl  metrics.jsonl  identifiability.json  observations.json
    measurements/{train,test}/BBBBB.safetensors   truth/BBBBB.safetensors   clean.safetensors
    prior.safetensors                             what the run began with, if another run learned it
    metrics/I.safetensors                         what a metric prepares once
    P-RRR-samples/      the E-step: KKKKK.safetensors (shards), pool, sampler.json, calibrated.json
    P-RRR-denoiser/     the M-step: denoiser.safetensors, or step-SSSSSSSS.safetensors on the way
    P-RRR-evaluation/   restorations, posterior, samples, resimulated, metrics.json
    P-stop.json         where a phase ended before its last round, and why

P is a phase and R a round, both from 0. A file that is there is complete: it was written under
another name, flushed and renamed, and has its digest inside. A tensor file also says which file of
which run it is, so that one that was put in another place is found.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from invem import atomic, store
from invem.errors import DataError, RecipeError
from invem.storage.shapes import About, Evaluation, Event, check

FORMAT = 2  # of a run directory

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
        """Writes a tensor file, whole or not at all."""
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
        owner = self.owner or self
        file = self.file(name).relative_to(owner.path).as_posix()
        return {"file": file, "run": owner.identity if isinstance(owner, RunDirectory) else ""}

    def read_all(self) -> list[dict[str, Tensor]]:
        """Reads the shards or blocks that are there, in order."""
        return [self.read(path.stem) for path in self.numbered()]

    def remove(self, name: str) -> None:
        """Removes a tensor file, if it is there."""
        self.file(name).unlink(missing_ok=True)

    def numbered(self) -> list[Path]:
        """Returns the shards or blocks that are there, in order."""
        return sorted(self.path.glob("[0-9]*.safetensors"))

    def checkpoints(self) -> list[str]:
        """Returns the names of the checkpoints that are there, oldest first."""
        return sorted(path.stem for path in self.path.glob("step-*.safetensors"))

    def has_json(self, name: str) -> bool:
        """Whether a JSON file is there."""
        return (self.path / f"{name}.json").exists()

    def read_json(self, name: str) -> Any:
        """Reads a JSON file."""
        return atomic.read_json(self.path / f"{name}.json")

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file, whole or not at all."""
        atomic.write_json(self.path / f"{name}.json", value)

    def remove_json(self, name: str) -> None:
        """Removes a JSON file, if it is there."""
        (self.path / f"{name}.json").unlink(missing_ok=True)


class RunDirectory(Folder):
    """A run directory.

    Args:
        path: The directory; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._identity = ""

    @property
    def identity(self) -> str:
        """A hash of the recipe that the run was begun with; "" before it was begun."""
        if not self._identity and self.begun:
            about: Any = self.read_json("run")
            recipe = about.get("recipe", "") if isinstance(about, dict) else ""
            self._identity = hashlib.sha256(str(recipe).encode()).hexdigest()[:16]
        return self._identity

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
        about = check(About, self.read_json("run"), path)
        if about["format"] != FORMAT:
            raise DataError(
                f"{path}: it was made by another version of invem (format"
                f" {about['format']!r}, not {FORMAT}); begin a new run with its recipe"
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
        return dict(self.read_json(name)) if self.has_json(name) else None

    def write_stop(self, phase: int, rounds: int, reason: str) -> None:
        """Writes where a phase ended before its last round, and why."""
        self.write_json(f"{phase}-stop", {"rounds": rounds, "reason": reason})

    # Records

    def log(self, event: str, **data: Any) -> None:
        """Appends one event to the log."""
        atomic.append_json(self.path / "log.jsonl", {"event": event, **data})

    def logged(self) -> list[dict[str, Any]]:
        """Returns the events of the log; a line that was torn by a kill is left out."""
        path = self.path / "log.jsonl"
        return [check(Event, row, path) for row in _lines(path)]

    def metrics(self) -> list[dict[str, Any]]:
        """Returns the record of every evaluation, that of the observations first."""
        path = self.path / "metrics.jsonl"
        return [check(Evaluation, row, path) for row in _lines(path)]

    def collect_metrics(self) -> None:
        """Writes metrics.jsonl anew from the metrics of every finished evaluation."""
        read = [(self.path, "observations")] if self.has_json("observations") else []
        read += [(self.evaluation(at).path, "metrics") for at in self.evaluated()]
        paths = [folder / f"{name}.json" for folder, name in read]
        rows = [check(Evaluation, atomic.read_json(path), path) for path in paths]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        atomic.write_text(self.path / "metrics.jsonl", text)


def _round(name: str) -> Round:
    phase, index = name.split("-")[:2]
    return Round(int(phase), int(index))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the lines of JSON; one that was torn by a kill is left out."""
    for line in path.read_text("utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row
