"""HDF5 files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from invem import DataError
from invem.frames import FrameFile, FrameFormat, FrameWriter

from ._layout import Layout, usual_axes
from ._reading import ArrayFile, ArrayWriter, Part, chosen, library, native, parts_like, refusing

_KSPACE = "kspace"  # of the fastMRI data: slices, coils, rows, columns
_FASTMRI = {3: "TYX", 4: "TCYX"}
_SMALL = 2**20  # bytes, up to which other entries of a file are copied
_FILTERS = ("gzip", "lzf", "szip")  # that h5py itself has


@dataclass(frozen=True, kw_only=True)
class Hdf5(FrameFormat):
    """One array of an HDF5 file: the one that `inside` names, `kspace` of the fastMRI data, or the
    largest. Its attributes are kept, those of the groups above it, and entries of up to 1 MiB, such
    as headers."""

    suffixes: ClassVar[tuple[str, ...]] = (".h5", ".hdf5", ".he5")
    extra: ClassVar[str] = "invem[hdf5]"

    def open(self, path: Path, *, axes: str | None = None, inside: str | None = None) -> FrameFile:
        with refusing(path):
            h5py = library("h5py", self.extra)
            file = h5py.File(path, "r")
            try:
                return Hdf5Frames(path, file, axes, inside)
            except BaseException:
                file.close()
                raise

    def create(
        self, path: Path, like: FrameFile, *, dtype: str | None = None, name: str = ""
    ) -> FrameWriter:
        h5py = library("h5py", self.extra)
        (part,) = parts_like(like)
        kind = native(dtype or part.dtype)
        opened: list[Any] = []

        def begin(temporary: Path) -> list[Part]:
            opened.append(h5py.File(temporary, "w"))
            if isinstance(like, Hdf5Frames):
                values = _copy(like, opened[0], kind)
            else:
                values = opened[0].create_dataset("values", part.layout.shape, kind)
            if name:
                values.attrs["values"] = name
            return [Part(values, part.layout, kind)]

        def close() -> None:
            for file in opened:
                file.close()

        return ArrayWriter(path, begin, lambda _: close(), close)


class Hdf5Frames(ArrayFile):
    """An open HDF5 file.

    Args:
        path: The path of the file.
        file: The file.
        axes: The axes of the array.
        inside: The path of the array.
    """

    def __init__(self, path: Path, file: Any, axes: str | None, inside: str | None) -> None:
        self.file = file
        shapes: dict[str, tuple[int, ...]] = {}

        def look(name: str, item: Any) -> None:
            if getattr(item, "dtype", None) is not None and item.dtype.kind in "uifc":
                shapes[name] = item.shape

        file.visititems(look)
        known = _KSPACE if inside is None and _KSPACE in shapes else None
        self.inside = known or chosen(shapes, inside)
        values = file[self.inside]
        if values.external or values.is_virtual:
            raise DataError(f"has the values of {self.inside} in other files: copy them into it")
        dtype = native(values.dtype)
        layout = Layout(values.shape, axes or self._axes(values))
        about = {"axes": layout.axes, "dtype": dtype.name, "inside": self.inside}
        size = values.attrs.get("element_size_um")
        if size is not None:
            about |= {"pixel size": np.ravel(size).tolist()[-2:], "unit": "µm"}
        for name in ("acquisition", "instrument"):
            if isinstance(file.attrs.get(name), str):
                about[name] = file.attrs[name]
        super().__init__(path, [Part(values, layout, dtype)], about, file.close)

    def _axes(self, values: Any) -> str:
        """Returns the axes as the file labels them, or as they usually are."""
        labels = "".join(dim.label.upper() for dim in values.dims)
        if len(labels) == values.ndim == len(set(labels)) and {"Y", "X"} <= set(labels):
            return labels
        if self.inside == _KSPACE and values.ndim in _FASTMRI:
            return _FASTMRI[values.ndim]
        return usual_axes(values.shape)


def _copy(like: Hdf5Frames, new: Any, dtype: np.dtype[Any]) -> Any:
    """Makes the array of a new file, and copies what else the old one holds."""
    old = like.file[like.inside]

    def take(name: str, item: Any) -> None:
        if name == like.inside:
            return
        if not hasattr(item, "dtype"):
            _copy_attributes(item, new.require_group(name))
        elif item.nbytes <= _SMALL and not item.external and name not in new:
            like.file.copy(item, new, name=name)

    _copy_attributes(like.file, new)
    how: dict[str, Any] = {"chunks": old.chunks}
    if old.chunks and old.compression in _FILTERS:
        how |= {"compression": old.compression, "shuffle": old.shuffle}
        how["compression_opts"] = old.compression_opts
    values = new.create_dataset(like.inside, old.shape, dtype, **how)
    _copy_attributes(old, values)
    like.file.visititems(take)
    return values


def _copy_attributes(old: Any, new: Any) -> None:
    """Copies attributes; those that point at other objects of the file have no meaning in the new
    one."""
    h5py = library("h5py", Hdf5.extra)
    for name in old.attrs:
        kind = old.attrs.get_id(name).dtype
        pointing = (
            h5py.check_ref_dtype(kind)
            or kind.names
            or (h5py.check_vlen_dtype(kind) not in (None, str, bytes))
        )
        if not pointing:
            new.attrs[name] = old.attrs[name]
