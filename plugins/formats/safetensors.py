"""Safetensors files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from invem import DataError
from invem.fileformat import Expected, FileFormat
from invem.store import check_header, write


@dataclass(frozen=True, kw_only=True)
class Safetensors(FileFormat):
    """A safetensors file with y, and the operator and noise tensors that differ per observation.

    The tensors are named by their paths ("A.mask", "noise.sigma").
    """

    suffix: ClassVar[str] = ".safetensors"

    def read(self, path: Path, expected: Expected) -> dict[str, Tensor]:
        try:
            check_header(path)
            return load_file(path)
        except FileNotFoundError:
            raise DataError("there is no such file or folder") from None
        except (OSError, SafetensorError, ValueError) as error:
            raise DataError(f"cannot be read: {error}") from error

    def write(self, path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        write(path, tensors, about)
