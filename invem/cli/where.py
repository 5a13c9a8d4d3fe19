"""Where a run is written, and what runs of the same recipe are there already."""

from pathlib import Path

from invem.errors import InvemError, RecipeError

__all__ = ["free_run", "run_folder"]

_MOST = 10000  # runs of one recipe
_OPENED = 8  # earlier runs that are looked into


def free_run(recipe: Path) -> Path:
    """Returns the first of runs/NAME, runs/NAME-1, ... that is not there."""
    return next(path for path in _names(recipe) if not path.exists())


def run_folder(recipe: Path, out: Path | None) -> tuple[Path, str]:
    """Returns the folder that a new run is written to, and a line that says so.

    Args:
        recipe: The recipe.
        out: The folder that was asked for; None is the first that is free.

    Raises:
        RecipeError: If no run can be begun in it.
    """
    from invem.storage.directory import RunDirectory

    if out is not None:
        directory = RunDirectory(out)
        if directory.begun:
            raise RecipeError(
                f"{out}: holds a run already; go on with it (invem resume {out}), or choose another"
                " --out"
            )
        if not directory.is_free:
            what = "not empty, and no run" if out.is_dir() else "no folder"
            raise RecipeError(f"{out}: it is {what}; choose another --out")
        return out, f"writing to {out}"
    out = free_run(recipe)
    line = f"writing to {out}"
    unfinished = [path for path in _earlier(recipe, out)[-_OPENED:] if _is_unfinished(path)]
    if unfinished:
        first, last = ", ".join(map(str, unfinished)), unfinished[-1]
        are = "is" if len(unfinished) == 1 else "are"
        line += f"; {first} {are} unfinished: invem resume {last}"
    return out, line


def _names(recipe: Path) -> list[Path]:
    return [Path("runs", recipe.stem + (f"-{i}" if i else "")) for i in range(_MOST)]


def _earlier(recipe: Path, out: Path) -> list[Path]:
    names = _names(recipe)
    return names[: names.index(out)]


def _is_unfinished(path: Path) -> bool:
    """Whether there is a run in a folder that can be gone on with."""
    from invem import door
    from invem.running.loop import is_complete
    from invem.storage.directory import RunDirectory

    if not RunDirectory(path).begun:
        return False
    try:
        return not is_complete(door.open(path, device="cpu").context)
    except InvemError:  # it is of another version, or damaged: `resume` says so
        return False
