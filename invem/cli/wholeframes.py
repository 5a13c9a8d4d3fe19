"""What `invem restore` does with files of frames."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from invem.cli.output import print_data, say, tell
from invem.errors import DataError, RecipeError

if TYPE_CHECKING:
    from invem.door import Run

__all__ = ["is_folder", "restore_folder"]


def is_folder(out: Path | None, observations: Path) -> bool:
    """Whether files of frames are restored into a folder: `out` has no ending of a file of tensors,
    and there are files of frames."""
    from invem.files import frame_files, writer

    if out is None or (out.suffix and not out.is_dir()):
        return False
    try:
        writer(out)
        return False
    except RecipeError:
        pass
    try:
        return bool(frame_files(observations.expanduser()))
    except DataError as error:
        # A folder was meant, and what is missing is frames.
        raise RecipeError(f"{observations}: {error}") from error


def restore_folder(
    run: "Run", observations: Path, out: Path, as_json: bool, options: dict[str, Any]
) -> None:
    """Restores files of frames and prints what was written."""
    from invem.cli.progress import follow

    try:
        found = run.restore_files(observations, out, follow=follow, **options)
    except DataError as error:  # what a person gave is mended by another command
        raise RecipeError(str(error)) from error
    if found.left:
        plural = "s" if len(found.left) > 1 else ""
        tell(f"{len(found.left)} file{plural} left as before; --force restores them anew")
    if found.clipped:
        share = 100 * found.clipped / found.values
        tell(
            f"{found.clipped} of {found.values} restored values ({share:.2g} %) were beyond the"
            " range of their files, and were clipped"
        )
    if as_json:
        counts = {"frames": found.frames, "clipped": found.clipped, "values": found.values}
        files = {"files": list(found.files), "left": list(found.left)}
        print_data({"restored": str(found.folder), **files, **counts}, True)
    else:
        say(f"restored  {found.folder}: {len(found.files)} files, {found.frames} frames")
