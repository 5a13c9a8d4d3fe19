"""TIFF files: single pages, stacks, tiles, BigTIFF, OME-TIFF and the hyperstacks of ImageJ."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree

import numpy as np
import tifffile

from invem import DataError
from invem.frames import FrameFile, FrameFormat, FrameWriter

from ._layout import Array, Key, Layout
from ._reading import (
    ArrayFile,
    ArrayWriter,
    Part,
    native,
    parts_like,
    refusing,
    reserve,
)

_LARGEST = ("SMaxSampleValue", "MaxSampleValue")
_VALUED = {280, 281, 340, 341}  # tags whose numbers are values of pixels
# Text about the picture and the instrument, and how it lies. Private tags are kept too.
_KEPT = {271, 272, 274, 285, 305, 306, 315, 316, 700, 33432, 34675} | _VALUED
_PRIVATE = range(32768, 65536)
_STRUCTURE = {34665, 34853, 37724, 40965, 50255, 330}  # offsets into the old file
_PLAIN = {1: "B", 2: "s", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 11: "f", 12: "d"}
_BIG = 2**32 - 2**25  # bytes, from which 4 GiB offsets do not hold headers too
_DESCRIPTION = 270
_INCH, _CENTIMETRE = 2, 3
_MICRONS = {_INCH: 25400.0, _CENTIMETRE: 10000.0}
_OME_TYPES = {"float32": "float", "float64": "double", "complex64": "complex"}
_OME_TYPES |= {"complex128": "double-complex"}


@dataclass(frozen=True, kw_only=True)
class Tiff(FrameFormat):
    """The pages of a TIFF file. Thumbnails and smaller copies are no frames."""

    suffixes: ClassVar[tuple[str, ...]] = (".tif", ".tiff", ".btf", ".tf8")

    def open(self, path: Path, *, axes: str | None = None, inside: str | None = None) -> FrameFile:
        with refusing(path):
            # Other files that OME metadata name are files of their own.
            tif = tifffile.TiffFile(path, _multifile=False)
            try:
                return TiffFrames(path, tif, axes)
            except BaseException:
                tif.close()
                raise

    def create(
        self, path: Path, like: FrameFile, *, dtype: str | None = None, name: str = ""
    ) -> FrameWriter:
        if isinstance(like, TiffFrames):
            return like.copy(path, dtype)
        return plain_tiff(path, parts_like(like), dtype)


class TiffFrames(ArrayFile):
    """An open TIFF file.

    Args:
        path: The file.
        tif: The open file.
        axes: The axes of its only series, if they are not what the file says.
    """

    def __init__(self, path: Path, tif: tifffile.TiffFile, axes: str | None) -> None:
        self.tif = tif
        _check_whole(tif)
        self.series = _series(tif)
        if axes is not None and len(self.series) > 1:
            raise DataError(f"holds {len(self.series)} images of several kinds: leave out axes")
        parts = [_part(series, axes) for series in self.series]
        super().__init__(path, parts, _about(tif, self.series, parts), tif.close)

    def copy(self, path: Path, dtype: str | None) -> FrameWriter:
        """Begins a file with these pages and what the first of each series says of itself."""
        kinds = [native(dtype or part.dtype) for part in self.parts]
        size = sum(
            math.prod(p.layout.shape) * k.itemsize for p, k in zip(self.parts, kinds, strict=True)
        )
        big = self.tif.is_bigtiff or size > _BIG

        def begin(temporary: Path) -> list[Part]:
            settings = [
                _settings(series.keyframe, kind == part.dtype)
                for series, part, kind in zip(self.series, self.parts, kinds, strict=True)
            ]
            if self.tif.is_ome:
                pages = [len(series.pages) for series in self.series]
                settings[0]["description"] = _ome(self.tif.pages.first.description, kinds, pages)
            return _begin(temporary, self.parts, kinds, settings, big, self.tif.byteorder)

        return ArrayWriter(path, begin)


def plain_tiff(path: Path, parts: Sequence[Part], dtype: str | None) -> FrameWriter:
    """Begins a TIFF file with the frames of a file of another format."""
    kinds = [native(dtype or part.dtype) for part in parts]
    size = sum(math.prod(p.layout.shape) * k.itemsize for p, k in zip(parts, kinds, strict=True))
    settings = []
    for part in parts:
        colour = part.layout.axes[-1] in "CS" and part.layout.shape[-1] in (3, 4)
        settings.append({"photometric": "rgb" if colour else "minisblack"})
    return ArrayWriter(
        path, lambda temporary: _begin(temporary, parts, kinds, settings, size > _BIG, "<")
    )


def _begin(
    path: Path,
    parts: Sequence[Part],
    kinds: Sequence[np.dtype[Any]],
    settings: Sequence[Mapping[str, Any]],
    big: bool,
    order: str,
) -> list[Part]:
    """Writes headers alone, and maps the values for writing."""
    offsets = []
    order = order if order in "<>" else "<"
    with tifffile.TiffWriter(path, bigtiff=big, byteorder=order) as writer:  # type: ignore[arg-type]
        for part, kind, own in zip(parts, kinds, settings, strict=True):
            place = writer.write(
                None,
                shape=part.layout.shape,
                dtype=kind,
                metadata=None,
                software=False,
                returnoffset=True,
                **own,
            )
            assert place is not None
            offsets.append(place)
    reserve(path, max(sum(place) for place in offsets))
    return [
        Part(
            np.memmap(
                path,
                kind.newbyteorder(">" if order == ">" else "<"),
                "r+",
                place[0],
                part.layout.shape,
            ),
            part.layout,
            kind,
        )
        for part, kind, place in zip(parts, kinds, offsets, strict=True)
    ]


def _settings(page: Any, same: bool) -> dict[str, Any]:
    """Returns how a page is stored and what it says of itself, for writing.

    Args:
        page: The page.
        same: Whether the type of the values is that of the page.
    """
    text = page.description
    if not same:  # the range of the display is that of other values
        text = re.sub(r"(?m)^(min|max)=.*\n", "", text) if text.startswith("ImageJ=") else text
    own: dict[str, Any] = {"description": text.encode() if text else None}
    kind = tifffile.PHOTOMETRIC
    known = (kind.MINISBLACK, kind.MINISWHITE, kind.RGB, kind.SEPARATED)
    colour = page.samplesperpixel in (3, 4)
    own["photometric"] = page.photometric if page.photometric in known else kind.MINISBLACK
    if page.photometric == kind.YCBCR and colour:
        own["photometric"] = kind.RGB
    if page.samplesperpixel > 1:
        own["planarconfig"] = page.planarconfig
        own["extrasamples"] = page.extrasamples or None
    if "XResolution" in page.tags and "YResolution" in page.tags:
        pair = (page.tags["XResolution"].value, page.tags["YResolution"].value)
        if all(part[1] for part in pair):
            own["resolution"] = pair
            own["resolutionunit"] = _unit(page)
    if page.is_reduced or page.subfiletype:
        own["subfiletype"] = page.subfiletype
    own["extratags"] = [entry for tag in page.tags if (entry := _kept(tag, same)) is not None]
    return own


def _kept(tag: Any, same: bool) -> tuple[int, int, int, Any, bool] | None:
    """Returns a tag as it is written again; None for one of the structure of the old file."""
    code = tag.code
    wanted = code in _KEPT or (code in _PRIVATE and code not in _STRUCTURE)
    if not wanted or int(tag.dtype) not in _PLAIN or (code in _VALUED and not same):
        return None
    value = tag.parent.filehandle
    value.seek(tag.valueoffset)
    raw = value.read(tag.valuebytecount)
    letter = _PLAIN[int(tag.dtype)]
    if letter in "sB":
        return (code, int(tag.dtype), len(raw), raw, True)
    numbers = np.frombuffer(raw, tag.parent.byteorder + letter).tolist()
    return (code, int(tag.dtype), len(numbers), numbers if len(numbers) > 1 else numbers[0], True)


def _unit(page: Any) -> int:
    tag = page.tags.get("ResolutionUnit")
    return int(tag.value) if tag is not None and int(tag.value) in (1, 2, 3) else _INCH


def _ome(text: str, kinds: Sequence[np.dtype[Any]], pages: Sequence[int]) -> bytes:
    """Returns OME metadata of a file whose pages are written one image after the other.

    Args:
        text: The metadata of the old file.
        kinds: The type of the values of each image.
        pages: The number of pages of each image.
    """
    root = ElementTree.fromstring(text)
    space = root.tag.partition("}")[0] + "}" if root.tag.startswith("{") else ""
    if space:
        ElementTree.register_namespace("", space[1:-1])
    root.attrib.pop("UUID", None)
    first = 0
    for pixels, kind, count in zip(root.iter(f"{space}Pixels"), kinds, pages, strict=False):
        pixels.set("Type", _OME_TYPES.get(kind.name, kind.name))
        if pixels.get("SignificantBits") and kind.kind not in "ui":
            del pixels.attrib["SignificantBits"]
        pixels.attrib.pop("BigEndian", None)
        old = pixels.findall(f"{space}TiffData")
        place = list(pixels).index(old[0]) if old else len(pixels)
        for element in old:
            pixels.remove(element)
        data = ElementTree.Element(f"{space}TiffData", IFD=str(first), PlaneCount=str(count))
        pixels.insert(place, data)
        first += count
    found: bytes = ElementTree.tostring(root, "us-ascii")  # it begins with a declaration
    return found


def _check_whole(tif: tifffile.TiffFile) -> None:
    """Refuses a file of which pages, or what the first one says of itself, lie after its end.

    tifffile reads what is left, and a stack would end early.
    """
    handle, layout = tif.filehandle, tif.tiff
    end = tif.pages.next_page_offset
    if end is not None:
        handle.seek(end)
        if handle.read(layout.offsetsize) != bytes(layout.offsetsize):
            raise DataError("is cut off or damaged: its list of pages does not end")
    page = tif.pages.first
    handle.seek(page.offset)
    order = "little" if layout.byteorder == "<" else "big"
    count = int.from_bytes(handle.read(layout.tagnosize), order)  # type: ignore[arg-type]
    entries = handle.read(count * layout.tagsize)
    codes = {
        int.from_bytes(entries[i : i + 2], order)  # type: ignore[arg-type]
        for i in range(0, len(entries), layout.tagsize)
    }
    if _DESCRIPTION in codes and _DESCRIPTION not in page.tags:
        raise DataError("is cut off or damaged: its description lies after its end")


def _series(tif: tifffile.TiffFile) -> list[Any]:
    """Returns the images of a file, without thumbnails and previews."""
    series = [s for s in tif.series if s.name != "Label" and s.size]
    if any(page is None for s in series for page in s.pages):
        # Pages of it are in other files: these here are counted as they lie.
        own: list[Any] = [page.aspage() for page in tif.pages]
        series = [
            tifffile.TiffPageSeries([page], page.shape, page.dtype, page.axes) for page in own
        ]
    whole = [s for s in series if not s.keyframe.is_reduced] or series[:1]
    if not whole:
        raise DataError("holds no pictures")
    return whole


def _part(series: Any, axes: str | None) -> Part:
    """Returns an image of a file as an array that is read by page or by tile."""
    page = series.keyframe
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
        raise DataError("holds numbers of colours (a palette): save it as grey or RGB")
    dtype = native(series.dtype)
    layout = Layout(tuple(series.shape), axes or _axes(series))
    return Part(Pages(series), layout, dtype, _white(page))


def _axes(series: Any) -> str:
    """Returns the axes of a series, one letter each; what tifffile does not know counts frames."""
    axes: str = series.axes.upper()
    spare = iter("TNPQIRVWUAHEBFGJKLMO")
    found = ""
    for letter in axes:
        odd = letter in found or letter in "D_"
        found += next(s for s in spare if s not in axes + found) if odd else letter
    return found


def _white(page: Any) -> float | None:
    """Returns the largest value that a page claims, less than what its type holds."""
    for name in _LARGEST:
        tag = page.tags.get(name)
        if tag is not None:
            value = float(np.max(np.asarray(tag.value, np.float64)))
            full = np.iinfo(page.dtype).max if page.dtype.kind in "ui" else math.inf
            return value if 1 <= value < full else None
    bits = page.bitspersample
    if page.dtype.kind == "u" and isinstance(bits, int) and bits < 8 * page.dtype.itemsize:
        return 2.0**bits - 1
    return None


def _about(tif: tifffile.TiffFile, series: Sequence[Any], parts: Sequence[Part]) -> dict[str, Any]:
    """Returns what a file says of itself."""
    page = series[0].keyframe
    names = [n for n in ("ome", "imagej", "bigtiff") if getattr(tif, f"is_{n}")]
    about: dict[str, Any] = {"axes": parts[0].layout.axes, "dtype": parts[0].dtype.name}
    about["kind"] = " ".join(["tiff", *names])
    if len(series) > 1:
        about["images"] = len(series)
    about |= _pixel_size(tif, page)
    for name in ("Make", "Model", "Software", "DateTime"):
        tag = page.tags.get(name)
        if tag is not None and isinstance(tag.value, str):
            about[name.lower()] = tag.value.strip()
    if page.description and not (tif.is_ome or tif.is_imagej):
        about["description"] = " ".join(page.description.split())[:300]
    return about


def _pixel_size(tif: tifffile.TiffFile, page: Any) -> dict[str, Any]:
    """Returns the size of a pixel as (rows, columns) with its unit, where the file says it."""
    if tif.is_ome:
        return _ome_size(page.parent.pages.first.description)
    if "XResolution" not in page.tags or "YResolution" not in page.tags:
        return {}
    pairs = [page.tags[name].value for name in ("YResolution", "XResolution")]
    if not all(top and bottom for top, bottom in pairs):
        return {}
    sizes = [bottom / top for top, bottom in pairs]
    unit = (tif.imagej_metadata or {}).get("unit") if tif.is_imagej else None
    if unit:
        return {"pixel size": sizes, "unit": str(unit)}
    scale = _MICRONS.get(_unit(page))
    # 72 and 96 dots per inch are what programs write that know of no size.
    known = scale is not None and sizes[0] not in (1.0, 1 / 72, 1 / 96)
    return {"pixel size": [s * scale for s in sizes], "unit": "µm"} if known and scale else {}


def _ome_size(text: str) -> dict[str, Any]:
    for element in ElementTree.fromstring(text).iter():
        if element.tag.endswith("Pixels"):
            sizes = [element.get(f"PhysicalSize{axis}") for axis in "YX"]
            if all(sizes):
                unit = element.get("PhysicalSizeXUnit", "µm")
                return {"pixel size": [float(s or 0) for s in sizes], "unit": unit}
            break
    return {}


class Pages:
    """The values of a series of pages, read where they are sliced.

    Args:
        series: The series.
    """

    def __init__(self, series: Any) -> None:
        self._series, self._page = series, series.keyframe
        self._outer = tuple(series.shape[: len(series.shape) - len(self._page.shape)])
        self._whole: Array | None = None
        if series.dataoffset is not None and not series.keyframe.is_tiled:
            self._whole = series.keyframe.parent.filehandle.memmap_array(
                series.keyframe.parent.byteorder + series.dtype.char,
                series.shape,
                series.dataoffset,
            )

    def __getitem__(self, key: Key) -> Array:
        if self._whole is not None:
            found: Array = self._whole[key]
            return found
        rank = len(self._outer)
        outer, inner = key[:rank], key[rank:]
        # Channels that are pages are sliced whole; everything else that counts is a number.
        ranges = [range(k, k + 1) if isinstance(k, int) else range(*k.indices(n))
                  for k, n in zip(outer, self._outer, strict=True)]  # fmt: skip
        grid = itertools.product(*ranges)
        numbers = [int(np.ravel_multi_index(g, self._outer)) if rank else 0 for g in grid]
        pages = np.stack([self._window(self._series.pages[n], inner) for n in numbers])
        kept = [len(r) for r, k in zip(ranges, outer, strict=True) if not isinstance(k, int)]
        return pages.reshape(*kept, *pages.shape[1:])

    def _window(self, page: Any, inner: Key) -> Array:
        """Reads the part of a page that a key names, tile by tile or strip by strip."""
        frame = self._page
        full = _normal(frame, inner)
        out = np.zeros([k.stop - k.start for k in full], frame.dtype)
        if page is None:
            return out.reshape(_sliced(frame.shape, inner))
        handle = frame.parent.filehandle
        for number, (offset, count) in enumerate(
            zip(page.dataoffsets, page.databytecounts, strict=True)
        ):
            _, place, shape = frame.decode(None, number)
            begin = (*place[:4], 0)
            ends = [b + n for b, n in zip(begin[1:4], shape[:3], strict=True)]
            spans = [(place[0], place[0] + 1), *zip(begin[1:4], ends, strict=True)]
            overlap = [
                (max(a, k.start), min(b, k.stop)) for (a, b), k in zip(spans, full[:4], strict=True)
            ]
            if count == 0 or any(a >= b for a, b in overlap):
                continue
            handle.seek(offset)
            raw = handle.read(count)
            if len(raw) < count:
                raise DataError("is cut off: a page of it lies after its end")
            data, _, _ = frame.decode(raw, number, jpegtables=page.jpegtables)
            src = tuple(slice(a - s, b - s) for (a, b), (s, _) in zip(overlap, spans, strict=True))
            dst = tuple(
                slice(a - k.start, b - k.start) for (a, b), k in zip(overlap, full[:4], strict=True)
            )
            out[dst] = data[src[1:]][..., full[4]]
        return out.reshape(_sliced(frame.shape, inner))


def _normal(page: Any, inner: Key) -> list[slice]:
    """Returns a key of a page as slices of (planes, depth, rows, columns, samples)."""
    names = {letter: part for letter, part in zip(page.axes, inner, strict=True)}
    sizes = page.shaped
    full = [slice(0, size) for size in sizes]
    contiguous = page.planarconfig != tifffile.PLANARCONFIG.SEPARATE
    for letter, axis in {"Y": 2, "X": 3, "Z": 1, "S": 4 if contiguous else 0}.items():
        part = names.get(letter)
        if part is not None:
            full[axis] = slice(part, part + 1) if isinstance(part, int) else part
    return full


def _sliced(shape: Sequence[int], key: Key) -> list[int]:
    return [
        len(range(*k.indices(n))) for n, k in zip(shape, key, strict=True) if isinstance(k, slice)
    ]
