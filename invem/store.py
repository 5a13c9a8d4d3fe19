"""Tensor files that are whole or absent, with their digest inside."""

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from invem.atomic import replacing
from invem.errors import DataError

__all__ = ["check_header", "read", "read_meta", "write", "write_arrays"]

_HEADER_LIMIT = 8 * 2**20  # bytes
_MOST_TENSORS = 2**16  # a network and its optimiser have some thousands


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
    with replacing(path, SafetensorError) as temporary:
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
        check_header(path)
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


def check_header(path: Path) -> None:
    """Looks at the header of a safetensors file before the library reads it, which takes seconds
    and much memory where a broken one names hundreds of thousands of tensors.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the header is longer than the file or than 8 MiB, or names more than 65,536
            tensors.
    """
    with path.open("rb") as file:
        head = file.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
        if not 0 < length <= min(_HEADER_LIMIT, path.stat().st_size):
            raise ValueError(f"its header is {length} bytes long")
        count = file.read(length).count(b'"data_offsets"')
    if count > _MOST_TENSORS:
        raise ValueError(f"it holds {count} tensors, and {_MOST_TENSORS} are the most")


def write_arrays(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors as a .npz file, whole or not at all."""
    import numpy as np

    with replacing(path, SafetensorError) as temporary, temporary.open("wb") as file:
        np.savez(file, **{name: tensor.cpu().numpy() for name, tensor in tensors.items()})  # type: ignore[arg-type]
