"""NumPy's .npz archives."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from invem.fileformat import FileFormat
from invem.store import write_arrays


@dataclass(frozen=True, kw_only=True)
class Npz(FileFormat):
    """Results as a .npz file, one array per name."""

    suffix: ClassVar[str] = ".npz"

    def write(self, path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
        write_arrays(path, tensors)
