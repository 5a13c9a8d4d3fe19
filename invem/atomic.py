"""Files that are whole or absent: written under another name, flushed and renamed."""

import contextlib
import errno
import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from invem.errors import DataError, InvemError, RecipeError, ResourceError

__all__ = [
    "FULL",
    "append_line",
    "is_torn",
    "lock",
    "make_folder",
    "refuse_links",
    "replacing",
    "write_bytes",
    "write_json",
    "write_text",
]

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The numbers of the errors that say that no more can be written."""


_BLOCK = 65536  # bytes that are read at once
_WRITTEN_IN_PLACE = (".lock", "log.jsonl")  # and not replaced as a whole

# Some libraries give the words alone.
_WORDS = tuple(os.strerror(number) for number in FULL)


@contextlib.contextmanager
def replacing(path: Path, *failures: type[Exception]) -> Iterator[Path]:
    """Gives a temporary path beside a file, and puts what was written there in its place.

    Args:
        path: The file.
        failures: What writing may raise beside OSError.

    Raises:
        ResourceError: If the disk is full.
        DataError: If the file cannot be written.
    """
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    caught: tuple[type[Exception], ...] = (OSError, *failures)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise DataError(f"{path}: cannot be written: it is a device, not a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)  # what the umask gives
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except caught as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise _unwritten(path, error) from error


def _unwritten(path: Path, error: Exception) -> InvemError:
    """Returns what is raised where a file cannot be written."""
    full = getattr(error, "errno", None) in FULL or any(word in str(error) for word in _WORDS)
    return (ResourceError if full else DataError)(f"{path}: cannot be written: {error}")


def make_folder(path: Path, inside: Path) -> None:
    """Makes a folder, and those above it up to another one, which must be there.

    Args:
        path: The folder.
        inside: The one that is not made.

    Raises:
        ResourceError: If the disk is full.
        DataError: If it cannot be made.
    """
    folder = inside
    for part in path.relative_to(inside).parts:
        folder /= part
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise _unwritten(folder, error) from error


def _sync_folder(path: Path) -> None:
    """Flushes the entry of a file that was renamed, where the system can."""
    if os.name == "nt":
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def append_line(path: Path, line: str) -> None:
    """Appends one line of JSON. What a kill has left of the line before is taken out first.

    Args:
        path: The file.
        line: The line, with its end.

    Raises:
        ResourceError: If the disk is full.
        DataError: If the file cannot be written.
    """
    try:
        with path.open("ab+") as file:
            rest = _unfinished(file)
            if rest and is_torn(rest.decode("utf-8", errors="replace")):
                file.truncate(file.seek(0, os.SEEK_END) - len(rest))
                rest = b""
            file.write(b"\n" * bool(rest) + line.encode())
    except OSError as error:
        raise _unwritten(path, error) from error


def _unfinished(file: BinaryIO) -> bytes:
    """Returns what stands after the end of the last whole line of a file."""
    left, rest = file.seek(0, os.SEEK_END), b""
    while left and b"\n" not in rest:
        size = min(_BLOCK, left)
        left = file.seek(left - size)
        rest = file.read(size) + rest
    return rest.rpartition(b"\n")[2]


def is_torn(line: str) -> bool:
    """Whether a line is the beginning of a JSON object and not a whole one."""
    try:
        json.JSONDecoder().raw_decode(line)
    except (ValueError, RecursionError):
        return True
    return False


@contextlib.contextmanager
def lock(run: Path) -> Iterator[None]:
    """Holds a run directory for this process alone.

    Raises:
        InvemError: If another process holds it.
        RecipeError: If the directory cannot be made.
        ResourceError: If the disk is full.
        DataError: If something in it is a link that would be written through.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        refuse_links(run)
        held = FileLock(run / ".lock", timeout=0)
        held.acquire()
    except Timeout:
        raise InvemError(f"{run}: another process is working on this run") from None
    except OSError as error:
        kind = ResourceError if error.errno in FULL else RecipeError
        raise kind(f"{run}: no run can be put there: {error.strerror}") from error
    try:
        _sweep(run)
        yield
    finally:
        held.release()


def refuse_links(run: Path) -> None:
    """Checks that nothing in a run directory leads out of it when it is written.

    A link in the place of a file that is replaced as a whole does no harm.

    Raises:
        DataError: If a folder, the lock or the log is a symbolic link.
    """
    for folder, folders, files in os.walk(run):
        links = [name for name in files if name in _WRITTEN_IN_PLACE] + folders
        for path in (Path(folder, name) for name in links):
            if path.is_symlink():
                raise DataError(
                    f"{path}: it is a symbolic link, which a run does not write through"
                )


def _sweep(run: Path) -> None:
    """Removes what writes that were killed have left in a run directory that was just locked."""
    locked = time.time()
    for left in run.rglob(".tmp-*-*"):
        number = left.name.rpartition("-")[2]
        with contextlib.suppress(OSError):
            if number.isdigit() and left.lstat().st_mtime < locked and not _alive(int(number)):
                left.unlink()
    # safetensors writes beside its target too. Only who holds the lock writes into the folders.
    for left in run.glob("*/**/.tmp[!-]?????"):
        with contextlib.suppress(OSError):
            left.unlink()


def _alive(process: int) -> bool:
    """Whether another process of this number is there."""
    if process == os.getpid():
        return False
    if os.name == "nt":
        return True  # a signal 0 is not a question there
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True
