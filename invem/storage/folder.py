"""The files of one step of one round, each with its digest for the place where it belongs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from invem import atomic, store
from invem.errors import DataError
from invem.storage import sealed
from invem.storage.shapes import check_file

if TYPE_CHECKING:
    from invem.storage.directory import RunDirectory

__all__ = ["PENDING", "Folder"]

PENDING = "pending"  # the entry of the log of a file that is being written


class Folder:
    """The files of one step of one round.

    Args:
        path: The folder.
        owner: The run directory that it belongs to; that one itself is its own.
    """

    def __init__(self, path: Path, owner: "RunDirectory") -> None:
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
        run = self.owner
        file = self.file(name).relative_to(run.path).as_posix()
        return {"file": file, "run": run.identity}

    def _make(self) -> None:
        """Makes the folder, but never the run directory itself anew."""
        run = self.owner
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
        for name in self.tensor_files():
            self.read(name)

    def remove(self, name: str) -> None:
        """Removes a tensor file, if it is there."""
        self.file(name).unlink(missing_ok=True)

    def tensor_files(self) -> list[str]:
        """Returns the names of the tensor files that are there, in order."""
        return sorted(path.stem for path in self.path.glob("*.safetensors"))

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
        run = self.owner
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
        self.write_json(PENDING, {"event": event, "data": data, **told})
        write()
        self.owner.log(event, **data)
        if goes is not None:
            goes.unlink(missing_ok=True)
        self.remove_json(PENDING)

    def _relative(self, file: Path | None) -> str | None:
        return None if file is None else file.relative_to(self.owner.path).as_posix()

    def remove_json(self, name: str) -> None:
        """Removes a JSON file, if it is there."""
        self.json_file(name).unlink(missing_ok=True)
