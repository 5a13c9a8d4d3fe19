"""NumPy's .npy files."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from invem.frames import FrameFile, FrameFormat, FrameWriter

from ._layout import Layout, usual_axes
from ._reading import ArrayFile, ArrayWriter, Part, native, parts_like, refusing, reserve


@dataclass(frozen=True, kw_only=True)
class Npy(FrameFormat):
    """One array, mapped from disk. Its axes are the usual ones unless they are given: YX, TYX, and
    TCYX, or TYXC where the last has 3 or 4 entries."""

    suffixes: ClassVar[tuple[str, ...]] = (".npy",)

    def open(self, path: Path, *, axes: str | None = None, inside: str | None = None) -> FrameFile:
        with refusing(path):
            values = np.lib.format.open_memmap(path, mode="r")
            dtype = native(values.dtype)
            layout = Layout(values.shape, axes or usual_axes(values.shape))
            about = {"axes": layout.axes, "dtype": dtype.name}
            return ArrayFile(path, [Part(values, layout, dtype)], about)

    def create(
        self, path: Path, like: FrameFile, *, dtype: str | None = None, name: str = ""
    ) -> FrameWriter:
        (part,) = parts_like(like)
        kind = native(dtype or part.dtype)
        return ArrayWriter(path, lambda temporary: [new_array(temporary, part, kind)])


def new_array(path: Path, part: Part, dtype: np.dtype[np.generic]) -> Part:
    """Makes a .npy file of the shape of another array, mapped for writing."""
    values = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=part.layout.shape)
    reserve(path, path.stat().st_size)
    return Part(values, part.layout, dtype)
