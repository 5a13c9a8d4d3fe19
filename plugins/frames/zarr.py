"""Zarr folders and OME-Zarr."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from invem import DataError
from invem.atomic import FULL
from invem.errors import ResourceError
from invem.frames import FrameFile, FrameFormat, FrameWriter, Window

from ._layout import Array, Layout, usual_axes
from ._reading import (
    ArrayFile,
    Part,
    chosen,
    fill,
    library,
    native,
    parts_like,
    refusing,
    shown,
)

_SCALES = "multiscales"


@dataclass(frozen=True, kw_only=True)
class Zarr(FrameFormat):
    """One array of a Zarr folder of format 2 or 3: the one that `inside` names, the full size of an
    OME-Zarr picture, or the largest. The new folder has this array, in its place, and the
    attributes of the groups above it."""

    suffixes: ClassVar[tuple[str, ...]] = (".zarr",)
    extra: ClassVar[str] = "invem[zarr]"

    def open(self, path: Path, *, axes: str | None = None, inside: str | None = None) -> FrameFile:
        with refusing(path):
            if not path.is_dir():
                raise DataError("is no folder, as Zarr is")
            root = library("zarr", self.extra).open(os.fspath(path), mode="r")
            return ZarrFrames(path, root, axes, inside)

    def create(
        self, path: Path, like: FrameFile, *, dtype: str | None = None, name: str = ""
    ) -> FrameWriter:
        (part,) = parts_like(like)
        return _Writer(path, like, part, native(dtype or part.dtype), name)


class ZarrFrames(ArrayFile):
    """An open Zarr folder.

    Args:
        path: The folder.
        root: Its group, or its only array.
        axes: The axes of the array.
        inside: Its path.
    """

    def __init__(self, path: Path, root: Any, axes: str | None, inside: str | None) -> None:
        self.root, self.inside = root, ""
        self.array, own = root, None
        about: dict[str, Any] = {}
        if hasattr(root, "members"):
            scales = _scales(root.attrs)
            if inside is None and scales:
                self.inside = str(scales["datasets"][0]["path"])
                own, sizes = _axes_of(scales)
                about |= sizes
            else:
                members = dict(root.members(max_depth=None))
                shapes = {n: m.shape for n, m in members.items() if hasattr(m, "shape")}
                self.inside = chosen(shapes, inside)
            self.array = root[self.inside]
            about["inside"] = self.inside
        dtype = native(self.array.dtype)
        shape = tuple(self.array.shape)
        layout = Layout(shape, axes or own or _named(self.array) or usual_axes(shape))
        about |= {"axes": layout.axes, "dtype": dtype.name}
        super().__init__(path, [Part(self.array, layout, dtype)], about)


def _scales(attributes: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the description of an OME-Zarr picture (0.4, or 0.5 under "ome")."""
    found = attributes.get(_SCALES) or (attributes.get("ome") or {}).get(_SCALES)
    return dict(found[0]) if found else None


def _axes_of(scales: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Returns the axes of an OME-Zarr picture, and the size of its pixels."""
    entries = scales.get("axes") or []
    names = [e["name"] if isinstance(e, Mapping) else str(e) for e in entries]
    axes = "".join(name.upper() for name in names)
    if not names or any(len(name) != 1 for name in names):
        return None, {}
    steps = scales["datasets"][0].get("coordinateTransformations") or []
    scale = next((s["scale"] for s in steps if s.get("type") == "scale"), None)
    if scale is None or not {"Y", "X"} <= set(axes):
        return axes, {}
    unit = next((e.get("unit", "") for e in entries if isinstance(e, Mapping)
                 and e["name"].upper() == "X"), "")  # fmt: skip
    return axes, {"pixel size": [float(scale[axes.index(a)]) for a in "YX"], "unit": unit}


def _named(array: Any) -> str | None:
    """Returns the axes by the names of the dimensions of an array, if they are letters."""
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    axes = "".join(str(name).upper() for name in names or ())
    return axes if len(axes) == array.ndim and {"Y", "X"} <= set(axes) else None


class _Writer(FrameWriter):
    """Fills the array of a new folder under another name, and renames it when it is whole."""

    def __init__(
        self, path: Path, like: FrameFile, part: Part, dtype: np.dtype[Any], name: str
    ) -> None:
        self._path = path
        self._temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
        self._places = [(part, i) for i in range(part.layout.count)]
        try:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary.mkdir(parents=True)
            array = _new(self._temporary, like, part, dtype, name)
        except Exception as error:
            raise self._failed(error) from error
        self._part = Part(array, part.layout, dtype)

    def write(self, index: int, values: Array, window: Window | None = None) -> None:
        try:
            fill(self._part, index, values, window)
        except DataError:
            raise
        except Exception as error:
            raise self._failed(error) from error

    def finish(self) -> None:
        old = self._path.with_name(f".tmp-old-{self._path.name}-{os.getpid()}")
        try:
            if self._path.exists():
                self._path.replace(old)
            self._temporary.replace(self._path)
        except OSError as error:
            if old.exists() and not self._path.exists():
                old.replace(self._path)
            raise self._failed(error) from error
        shutil.rmtree(old, ignore_errors=True)

    def discard(self) -> None:
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _failed(self, error: Exception) -> DataError | ResourceError:
        self.discard()
        kind = ResourceError if getattr(error, "errno", None) in FULL else DataError
        reason = " ".join(str(error).split()) or type(error).__name__
        return kind(f"{shown(self._path)}: cannot be written: {reason[:300]}")


def _new(path: Path, like: FrameFile, part: Part, dtype: np.dtype[Any], name: str) -> Any:
    """Makes a folder with an empty array, as it is in another folder."""
    zarr = library("zarr", Zarr.extra)
    if not isinstance(like, ZarrFrames):
        return zarr.create_array(os.fspath(path), shape=part.layout.shape, dtype=dtype)
    old = like.array
    version = old.metadata.zarr_format
    how: dict[str, Any] = {"shape": old.shape, "dtype": dtype, "chunks": old.chunks}
    how["attributes"] = dict(old.attrs) | ({"values": name} if name else {})
    how["compressors"] = old.compressors or None
    how["shards"] = getattr(old, "shards", None)
    if version == 2:
        separator = getattr(old.metadata, "dimension_separator", ".")
        how["chunk_key_encoding"] = {"name": "v2", "separator": separator}
    else:
        how["dimension_names"] = old.metadata.dimension_names
    if not like.inside:
        return zarr.create_array(os.fspath(path), zarr_format=version, **how)
    root = zarr.create_group(
        os.fspath(path), zarr_format=version, attributes=_first_scale(dict(like.root.attrs))
    )
    group, source = root, like.root
    *above, last = like.inside.split("/")
    for part_name in above:
        source = source[part_name]
        group = group.create_group(part_name, attributes=_first_scale(dict(source.attrs)))
    return group.create_array(last, **how)


def _first_scale(attributes: dict[str, Any]) -> dict[str, Any]:
    """Returns the attributes of an OME-Zarr picture of which the full size alone is there."""
    for holder in (attributes, attributes.get("ome")):
        if holder and holder.get(_SCALES):
            holder[_SCALES] = [
                dict(scale) | {"datasets": scale["datasets"][:1]} for scale in holder[_SCALES][:1]
            ]
    return attributes
