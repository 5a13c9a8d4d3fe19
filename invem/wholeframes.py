"""Files of frames restored whole: which files there are, and what they are called when restored."""

from collections.abc import Iterator
from pathlib import Path

from invem.errors import DataError, RecipeError
from invem.files import frame_files
from invem.frames import FrameFormat, Units
from invem.running.context import Context
from invem.running.frames import FrameOptions, restore_frames
from invem.running.records import Record

__all__ = ["restore_files"]


def restore_files(
    run: Context, path: str | Path, out: str | Path, options: FrameOptions
) -> Iterator[Record]:
    """Restores every frame of the files at a path into files of the same names.

    Args:
        run: The run.
        path: A file of frames, or a folder of them, whose folders are kept.
        out: The folder that is written to. If it is below `path`, what is in it is not restored.
        options: How.

    Yields:
        The records of `restore_frames`.

    Raises:
        RecipeError: If `out` is where the files are, or the run knows no units; and as
            `restore_frames` does.
        DataError: If there are no files of frames; and as `restore_frames` does.
        NumericalError: As `restore_frames` does.
    """
    where, folder = Path(path).expanduser(), Path(out).expanduser()
    try:
        files = _named(where, folder)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if any(file.resolve() == (folder / name).resolve() for file, name, _ in files):
        raise RecipeError(f"{out}: the files would be written over; choose another folder")
    if run.plan.facts.units is None:
        raise RecipeError(
            f"{run.directory.path}: it does not know what stored values mean as signals: whole"
            " frames need a run that learned from files of frames"
        )
    given = run.recipe.data or run.recipe.observations
    read = {} if given is None else given.options
    reading = {key: read.get(key) for key in ("axes", "inside")}
    yield from restore_frames(run, files, folder, Units(**run.plan.facts.units), options, reading)


def _named(where: Path, folder: Path) -> list[tuple[Path, str, FrameFormat]]:
    """Returns the files at a path, each with its name below the folder, and its format."""
    inside = folder.resolve()
    found = [
        (file, file.name if file == where else file.relative_to(where).as_posix(), fmt)
        for file, fmt in frame_files(where)
        if not file.resolve().is_relative_to(inside) or inside == where.resolve()
    ]
    if not found:
        raise DataError("there is nothing but what was restored before")
    return found
