"""Files that are complete or absent: written under another name, flushed and renamed, with their
digest inside."""

import contextlib
import errno
import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from invem.errors import DataError, InvemError, RecipeError, ResourceError

__all__ = [
    "append_json",
    "last_denoiser",
    "lock",
    "read",
    "read_json",
    "read_meta",
    "write",
    "write_arrays",
    "write_json",
    "write_text",
]

_HEADER_LIMIT = 8 * 2**20


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        full = getattr(error, "errno", None) in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EFBIG,
        ) or "No space" in str(error)
        raise (ResourceError if full else DataError)(
            f"{path}: cannot be written: {error}"
        ) from error


def _digest(tensors: Mapping[str, Tensor], meta: str) -> str:
    digest = hashlib.sha256(meta.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(
            tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
            if tensor.numel()
            else b""
        )
    return digest.hexdigest()


def write(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any] | None = None) -> None:
    """Writes tensors and JSON metadata as one safetensors file, whole or not at all.

    Raises:
        ResourceError: If the disk is full.
        DataError: If the file cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    words = json.dumps(meta or {}, sort_keys=True)
    # One key: safetensors writes several in an order that changes from process to process.
    with _replacing(path) as temporary:
        save_file(plain, temporary, {"invem": _digest(plain, words) + words})


def read(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a file, after checking its digest.

    Raises:
        DataError: If the file is missing or damaged.
    """
    return _read(path)[0]


def read_meta(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns the tensors and the metadata of a file, as `read` does."""
    return _read(path)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with path.open("rb") as file:
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 0 < length <= min(_HEADER_LIMIT, path.stat().st_size):
            raise DataError(f"{path}: damaged: its header is {length} bytes long")
        with safe_open(path, framework="pt") as file:
            words = (file.metadata() or {}).get("invem", "")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise DataError(f"{path}: missing") from None
    except (OSError, SafetensorError, ValueError, RuntimeError, OverflowError) as error:
        raise DataError(f"{path}: damaged: {error}") from error
    if words[:64] != _digest(tensors, words[64:]):
        raise DataError(f"{path}: damaged: its digest does not match its content")
    meta: dict[str, Any] = json.loads(words[64:])
    return tensors, meta


def last_denoiser(run: Path) -> Path:
    """Returns the file of the newest finished denoiser of a run.

    Raises:
        DataError: If there is none.
    """
    found = sorted(
        run.glob("*-*-denoiser/denoiser.safetensors"),
        key=lambda f: [int(w) for w in f.parent.name.split("-")[:2]],
    )
    if not found:
        raise DataError(f"{run}: no denoiser is finished in it")
    return found[-1]


def write_arrays(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors as a .npz file, whole or not at all."""
    import numpy as np

    with _replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **{name: tensor.cpu().numpy() for name, tensor in tensors.items()})  # type: ignore[arg-type]


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with _replacing(path) as temporary:
        temporary.write_text(text, "utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Returns the value of a JSON file.

    Raises:
        DataError: If it is missing or damaged.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: missing") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: damaged: {error}") from error


def append_json(path: Path, value: Any) -> None:
    """Appends one line of JSON, on a line of its own even where a kill tore the one before."""
    try:
        with path.open("ab+") as file:
            torn = file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
            file.write(b"\n" * bool(torn) + json.dumps(value, sort_keys=True).encode() + b"\n")
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise (ResourceError if full else DataError)(
            f"{path}: cannot be written: {error}"
        ) from error


@contextlib.contextmanager
def lock(run: Path) -> Iterator[None]:
    """Holds a run directory for this process alone.

    Raises:
        InvemError: If another process holds it.
        RecipeError: If the directory cannot be made.
    """
    import fcntl

    try:
        run.mkdir(parents=True, exist_ok=True)
        file = (run / ".lock").open("w")
    except OSError as error:
        raise RecipeError(f"{run}: no run can be put there: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InvemError(f"{run}: another process is working on this run") from None
        yield
