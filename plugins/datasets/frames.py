"""Windows of the frames of cameras, microscopes, scanners and telescopes."""

import hashlib
import itertools
import math
import os
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from invem_plugins.frames.frames import Frames as FrameFiles
from torch import Tensor

from invem import DataError, Dataset, Example, RecipeError, examples
from invem.frames import Frame, FrameFile, FrameFormat, Units, Window
from invem.hookspecs import FilePath

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]
Auto = float | Literal["auto"]

MOST = 20_000  # windows in all, if per_frame does not say how many
OPEN = 4  # files that are kept open
LOOKED_AT = 32  # frames that the units are decided from, evenly spread
SIDE = 2048  # what is looked at of a frame: its centre, at most this many pixels along an axis
MIXED = 32  # frames whose windows are shuffled together, so that the first ones are not alike
MANY = 10  # files of which whole ones are held out
DEPTHS = (8, 10, 12, 14, 16)  # bits of cameras
HASHED = 2**28  # bytes of files that are all read for the digest
SATURATED = 1e-3  # the share of values at the top that is worth a line


@dataclass(frozen=True, eq=False)
class Source:
    """Files of frames, of which a few are open.

    Attributes:
        root: The folder, or the file.
        files: Their paths and formats.
        axes: The meaning of each axis, or None.
        inside: The array inside of each file, or None.
    """

    root: Path
    files: tuple[tuple[Path, FrameFormat], ...]
    axes: str | None
    inside: str | None
    _open: OrderedDict[int, FrameFile] = field(default_factory=OrderedDict)

    def name(self, number: int) -> str:
        """The path of a file below the root, as it can be printed."""
        path = self.files[number][0]
        name = path.name if path == self.root else path.relative_to(self.root).as_posix()
        return name if name.isprintable() else ascii(name)

    def open(self, number: int) -> FrameFile:
        """Returns an open file; the one that was not used for longest is closed."""
        if number not in self._open:
            while len(self._open) >= OPEN:
                self._open.popitem(last=False)[1].close()
            path, fmt = self.files[number]
            try:
                self._open[number] = fmt.open(path, axes=self.axes, inside=self.inside)
            except DataError as error:
                text = str(error)
                name = self.name(number)
                raise DataError(text if name in text else f"{name}: {text}") from error
        self._open.move_to_end(number)
        return self._open[number]

    def read(self, page: "Page", window: Window | None) -> Array:
        """Returns stored values of a window of a frame.

        Raises:
            DataError: If some are not finite.
        """
        values = self.open(page.file).read(page.index, window)
        if values.dtype.kind == "f" and (bad := values.size - int(np.isfinite(values).sum())):
            raise DataError(
                f"{page.frame.name} holds values that are not finite (NaN or infinity): {bad} of"
                f" {values.size}"
            )
        return values


@dataclass(frozen=True)
class Page:
    """A frame, or the rows of it that a split may use.

    Attributes:
        file: The number of its file.
        index: Its number in the file.
        frame: What its file says of it.
        rows: The first row that may be used, and the one behind the last.
    """

    file: int
    index: int
    frame: Frame
    rows: tuple[int, int]

    @property
    def space(self) -> tuple[int, ...]:
        """The size along each axis of space, of what may be used."""
        return (self.rows[1] - self.rows[0], *self.frame.shape[2:])


@dataclass(frozen=True, eq=False)
class Windows(Dataset):
    """Windows of frames, read on access.

    Attributes:
        source: The files.
        pages: The frames of this split that windows are cut from.
        places: The page and the first row, column, ... of each window, shape (N, 1 + axes).
        shape: The shape of one window.
        notes: What is left out, in words.
        units: The map from stored values to signals.
        windowed: Whether windows are less than frames.
    """

    source: Source
    pages: tuple[Page, ...]
    places: Array
    shape: tuple[int, ...]
    notes: tuple[str, ...]
    units: Units
    windowed: bool
    range = (-1.0, 1.0)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Tensor) -> Example:
        x = torch.empty(len(index), *self.shape)
        rows = self.places[index.numpy()]
        for i in np.lexsort(rows.T[::-1]):  # by page, so that each file is opened once
            values = self.source.read(self.pages[rows[i][0]], self._window(rows[i]))
            x[int(i)] = torch.from_numpy(self.units.signal(values))
        return Example(x)

    def _window(self, place: Array) -> Window:
        pairs = zip(place[1:].tolist(), self.shape[1:], strict=True)
        return tuple(slice(first, first + size) for first, size in pairs)

    def digest(self) -> str:
        """Returns a digest of the names, sizes and bytes of all files; of more than 256 MiB, of
        64 windows in place of all bytes."""
        found = hashlib.sha256(repr((self.units, self.shape)).encode() + self.places.tobytes())
        sizes = [_size(path) for path, _ in self.source.files]
        for number, (path, _) in enumerate(self.source.files):
            found.update(f"{self.source.name(number)}\0{sizes[number]}\0".encode())
            if sum(sizes) <= HASHED and path.is_file():
                with open(path, "rb") as file:
                    found.update(hashlib.file_digest(file, "sha256").digest())
        found.update(super().digest().encode())
        return found.hexdigest()

    def check(self, observed: bool) -> list[str]:
        """Looks at up to 32 frames of this split: are all values finite, and how many are at the
        top of the range?"""
        top = total = 0
        for page in _spread(self.pages):
            values = self.source.read(page, _middle(page))
            if values.dtype.kind in "ui":
                top += int((values >= self._top(page)).sum())
                total += values.size
        lines = list(self.notes)
        if total and top / total >= SATURATED:
            lines.append(
                f"{100 * top / total:.2g} % of the values are at the top of their range"
                " (saturated): what was brighter there is lost, and the noise looks smaller"
            )
        return lines

    def _top(self, page: Page) -> float:
        largest = float(np.iinfo(page.frame.dtype).max)
        ends = (page.frame.white, self.units.high if "bits" in self.units.how else None)
        return min(largest, *(end for end in ends if end is not None), largest)


def _example(shape: tuple[int, ...], root: Path) -> dict[str, Any]:
    values = np.random.default_rng(0).integers(0, 256, (20, 20, 24), np.uint8)
    values[:, 0, 0] = 255
    np.save(root / "stack.npy", values)
    return {"root": str(root), "crop": 8, "test": 0.2}


@examples(_example)
def frames(
    split: str,
    *,
    root: FilePath,
    crop: Annotated[int, Ge(1)] | None = None,
    channels: Annotated[int, Ge(1)] | None = None,
    axes: str | None = None,
    inside: str | None = None,
    low: Auto = "auto",
    high: Auto = "auto",
    gain: Annotated[float, Ge(0)] = 0.0,
    offset: float = 0.0,
    read: Annotated[float, Ge(0)] = 0.0,
    test: Annotated[float, Ge(0), Lt(1)] = 0.1,
    per_frame: Annotated[int, Gt(0)] | None = None,
    background: Annotated[float, Ge(0)] = 0.0,
    seed: Annotated[int, Ge(0)] = 0,
) -> Windows:
    """Reads windows of the frames in a file or a folder, in any format of `invem_plugins.frames`.

    Only windows are read, when they are asked for: memory does not grow with the files. Nothing
    is resized or clipped. Frames with noise are `observations`, clean ones are `data`.

    Held out are whole files of ten or more, chosen by a hash of the name. Of fewer files it is the
    last pages of each stack, and some of the files with one frame. Of one single frame it is a
    strip at the bottom, so that one large picture can be learned from and judged.

    Args:
        split: "train" or "test".
        root: The file or the folder.
        crop: The size of a window along every axis of space, in pixels; None for whole frames,
            which must then have one size.
        channels: The number of channels that all frames must have; that of the first if left out.
        axes: The meaning of each axis, one letter each: T or N frames, Z depth, C or S channels, Y
            rows, X columns. What the files say, or the usual order, if left out.
        inside: The path of the array inside of files that hold several (HDF5, Zarr, .npz).
        low: The stored value that becomes -1. "auto" takes 0 for integers; for floating-point
            numbers the percentile 0.1, and a little below it.
        high: The stored value that becomes 1. "auto" takes what the files name as their largest
            value; or the end of the 8, 10, 12, 14 or 16 bits that the values of 32 frames need; or
            for floating-point numbers the percentile 99.9, and a little above it.
        gain: Stored units per photon: values are made to have noise of one level by the
            generalised Anscombe transform. 0 for no transform.
        offset: The stored value without light, for `gain`.
        read: The standard deviation of the read-out noise in stored units, for `gain`.
        test: The fraction held out for testing.
        per_frame: The number of windows of each frame. A grid without overlap if left out, or
            fewer, evenly many of each frame, if that were more than 20,000 in all.
        background: Leaves out windows whose standard deviation is at most this many times that of
            the noise, such as 1.2; but keeps the tenth with the most in them. 0 keeps all.
        seed: Another seed cuts other windows.

    Raises:
        DataError: If there are no frames for the split, they differ in size or channels, are
            complex or not finite, or cannot be read.
        RecipeError: If low is not below high.
    """
    if split not in ("train", "test"):
        raise RecipeError(f"split '{split}' is not one of: train, test")
    base = Path(root).expanduser()
    if not base.exists():
        raise DataError(f"{root} does not exist")
    source = Source(base, tuple(FrameFiles().files(base)), axes, inside)
    whole = _scan(source, channels)
    units = _units(source, whole, low, high, {"gain": gain, "offset": offset, "read": read})
    pages, notes = _fitting(whole, crop)
    axes_of_space = len(pages[0].frame.shape) - 1
    size = pages[0].space if crop is None else (crop,) * axes_of_space
    mine = _of_split(source, pages, split, test, crop)
    if not mine:
        fits = f"test: {test:g} holds out none" if split == "test" else "test is too large"
        raise DataError(f"{root}: of {len(pages)} frames none is for {split}: {fits}")
    most = per_frame or max(MOST // len(pages), 1)
    places = _places(mine, size, most, seed, more=per_frame is not None)
    if len(pages) == 1 and test:
        notes.append("there is one frame: the strip at its bottom is held out for testing")
    shape = (pages[0].frame.shape[0], *size)
    data = Windows(source, tuple(mine), places, shape, tuple(notes), units, crop is not None)
    return _with_content(data, background) if background else data


def _scan(source: Source, channels: int | None) -> list[Page]:
    """Returns all frames of all files, of which only headers are read."""
    found: list[Page] = []
    for number in range(len(source.files)):
        for index, frame in enumerate(source.open(number).frames):
            if np.dtype(frame.dtype).kind == "c":
                raise DataError(
                    f"{frame.name} holds complex values: the data set `measurements` reads such"
                    " measurements, with their operator"
                )
            found.append(Page(number, index, frame, (0, frame.shape[1])))
    if not found:
        raise DataError(f"{source.root} holds no frames")
    wanted = channels or found[0].frame.shape[0]
    for page in found:
        shape = page.frame.shape
        if shape[0] != wanted or len(shape) != len(found[0].frame.shape):
            raise DataError(
                f"{page.frame.name} has the shape {shape} (channels first), and"
                f" {found[0].frame.name} {found[0].frame.shape}: all must have {wanted} channels;"
                " set axes if they are read in a wrong order"
            )
    return found


def _fitting(pages: list[Page], crop: int | None) -> tuple[list[Page], list[str]]:
    """Returns the frames that are large enough, and what is left out in words."""
    sizes = Counter(page.space for page in pages)
    shown = ", ".join(" x ".join(map(str, size)) for size, _ in sizes.most_common(3))
    if crop is None:
        if len(sizes) > 1:
            raise DataError(f"the frames differ in size ({shown}): set crop to learn from windows")
        return pages, []
    large = [page for page in pages if min(page.space) >= crop]
    if not large:
        raise DataError(f"no frame ({shown}) is as large as crop: {crop}")
    left = len(pages) - len(large)
    return large, [f"{left} of {len(pages)} frames left out: smaller than {crop}"] if left else []


def _spread(pages: Sequence[Page]) -> list[Page]:
    rows = np.linspace(0, len(pages) - 1, min(len(pages), LOOKED_AT)).round().astype(int)
    return [pages[i] for i in rows]


def _middle(page: Page) -> Window:
    first = (page.rows[0], *(0 for _ in page.space[1:]))
    return tuple(
        slice(start + max(n - SIDE, 0) // 2, start + max(n - SIDE, 0) // 2 + min(n, SIDE))
        for start, n in zip(first, page.space, strict=True)
    )


def _units(
    source: Source, pages: list[Page], low: Auto, high: Auto, noise: dict[str, float]
) -> Units:
    """Decides the units of all frames, from those of both splits."""
    ends, how = (0.0, 1.0), "given"
    if low == "auto" or high == "auto":
        ends, how = _found_ends(source, pages)
        given = [name for name, end in (("low", low), ("high", high)) if end != "auto"]
        how = f"{how}; {given[0]} given" if given else how
    low, high = ends[0] if low == "auto" else low, ends[1] if high == "auto" else high
    if not low < high:
        raise RecipeError(f"low ({low:g}) must be below high ({high:g}; {how})")
    return Units(low=low, high=high, how=how, **noise)


def _found_ends(source: Source, pages: list[Page]) -> tuple[tuple[float, float], str]:
    """Returns the ends of the range that the files say or show, and where they come from."""
    samples: list[Array] = []
    least, largest = math.inf, -math.inf
    for page in _spread(pages):
        values = source.read(page, _middle(page))
        least, largest = min(least, float(values.min())), max(largest, float(values.max()))
        samples.append(values.ravel()[:: max(values.size // 2**16, 1)].astype(np.float64))
    whole = all(np.dtype(page.frame.dtype).kind in "uib" for page in pages)
    whites = {page.frame.white for page in pages}
    white = next(iter(whites)) if len(whites) == 1 else None
    if whole and white is not None and least >= 0 and largest <= white:
        fulls = {float(2**b - 1) for b in (16, 32)}  # says the type, and nothing of the camera
        if white not in fulls:
            return (0.0, float(white)), f"the files: white is {white:g}"
    if whole and least >= 0 and largest < 2 ** DEPTHS[-1]:
        bits = next(bits for bits in DEPTHS if largest < 2**bits)
        return (0.0, float(2**bits - 1)), f"{bits} bits"
    low, high = np.percentile(np.concatenate(samples), [0.1, 99.9]).tolist()
    wider = 0.05 * (high - low)
    if not wider:
        raise DataError(f"all values that were looked at are {low:g}: set low and high")
    return (low - wider, high + wider), "percentiles 0.1 and 99.9, widened"


def _key(text: str) -> int:
    return int.from_bytes(hashlib.sha256(os.fsencode(text)).digest()[:8], "big")


def _of_split(
    source: Source, pages: list[Page], split: str, test: float, crop: int | None
) -> list[Page]:
    """Returns the frames of a split, in order."""
    if len(pages) == 1:
        return _of_one(pages[0], split, test, crop)
    of_file = Counter(page.file for page in pages)
    keys = {number: _key(source.name(number)) for number in of_file}
    held: set[tuple[int, int]] = set()
    if len(of_file) >= MANY:
        chosen = {number for number in of_file if keys[number] < test * 2**64}
        by_key = sorted(of_file, key=lambda number: keys[number])
        chosen = (chosen or set(by_key[:1])) - set(by_key[-1:]) if test else set()
        held = {(page.file, page.index) for page in pages if page.file in chosen}
    elif test:
        alone = sorted((n for n in of_file if of_file[n] == 1), key=lambda number: keys[number])
        stacks = len(alone) < len(of_file)
        share = round(test * len(alone)) if stacks else max(round(test * len(alone)), 1)
        chosen = set(alone[: min(share, len(alone) - (not stacks))])
        for number, group in itertools.groupby(pages, lambda page: page.file):
            own = list(group)
            last = min(max(round(test * len(own)), 1), len(own) - 1)
            last = last if len(own) > 1 else number in chosen
            held |= {(page.file, page.index) for page in own[len(own) - last :]}
    return [page for page in pages if ((page.file, page.index) in held) == (split == "test")]


def _of_one(page: Page, split: str, test: float, crop: int | None) -> list[Page]:
    """Returns the part of a single frame that is for a split."""
    height = page.frame.shape[1]
    if not test:
        return [page] if split == "train" else []
    if crop is None:
        raise DataError(
            f"{page.frame.name} is the only frame: set crop to learn from windows of it, or test: 0"
        )
    strip = max(round(test * height), crop)
    if height - strip < crop:
        raise DataError(
            f"{page.frame.name} is the only frame, and its {height} rows are too few for windows of"
            f" {crop} and a strip to test with: choose a smaller crop, or test: 0"
        )
    rows = (0, height - strip) if split == "train" else (height - strip, height)
    return [Page(page.file, page.index, page.frame, rows)]


def _places(pages: list[Page], size: tuple[int, ...], most: int, seed: int, more: bool) -> Array:
    """Returns the page and the first row, column, ... of each window, shape (N, 1 + axes).

    Windows of 32 frames at a time are shuffled, so that the first ones differ.

    Args:
        pages: The frames.
        size: The size of a window.
        most: The largest number of windows of a frame.
        seed: The seed.
        more: Whether there are so many in any case: further grids overlap the first.
    """
    order = np.random.default_rng(_key(f"{seed}")).permutation(len(pages))
    found: list[Array] = []
    for first in range(0, len(order), MIXED):
        group: list[Array] = []
        for number in order[first : first + MIXED]:
            page = pages[number]
            rng = np.random.default_rng(_key(f"{seed}\0{page.frame.name}"))
            own = _grid(page, size, rng)
            while more and len(own) < most:
                own = np.concatenate([own, _grid(page, size, rng)])
            own = own[:most]
            group.append(np.column_stack([np.full(len(own), number), own]))
        rows = np.concatenate(group)
        mixing = np.random.default_rng(_key(f"{seed}\0group {first}"))
        found.append(rows[mixing.permutation(len(rows))])
    places: Array = np.concatenate(found)
    return places


def _grid(page: Page, size: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Returns the corners of windows side by side, from a random offset and in random order."""
    starts = []
    for axis, (n, own) in enumerate(zip(page.space, size, strict=True)):
        offset = int(rng.integers(n % own + 1)) + (0 if axis else page.rows[0])
        starts.append(np.arange(n // own) * own + offset)
    corners = np.stack([grid.ravel() for grid in np.meshgrid(*starts, indexing="ij")], 1)
    found: Array = corners[rng.permutation(len(corners))]
    return found


def _with_content(data: Windows, background: float) -> Windows:
    """Leaves out the windows that hold noise alone."""
    found = list(_ratios(data))
    ratios = np.array(found)
    floor = np.sort(ratios)[-max(math.ceil(len(ratios) / 10), 1)]
    keep = ratios > min(background, floor) if floor > background else ratios >= floor
    left = int((~keep).sum())
    note = (f"{left} of {len(ratios)} windows left out as background",) if left else ()
    return replace(data, places=data.places[keep], notes=(*data.notes, *note))


def _ratios(data: Windows) -> Iterator[float]:
    """Yields the standard deviation of each window, in units of that of its noise."""
    for first in range(0, len(data), 256):
        x = data[torch.arange(first, min(first + 256, len(data)))].x
        assert x is not None
        for values in x.double():
            yield float(values.flatten(1).std(1).mean()) / max(_noise(data.units, values), 1e-12)


def _noise(units: Units, values: Tensor) -> float:
    """Returns the level of the noise of a window: known by `gain`, or the median of differences
    of neighbours, of which signals with few edges have no part."""
    if units.gain:
        return units.sigma
    steps = (values[..., 1:] - values[..., :-1]).abs().flatten()
    return float(steps.median()) / (0.6745 * math.sqrt(2)) if len(steps) else 0.0


def _size(path: Path) -> int:
    inner = (p for p in path.rglob("*") if p.is_file()) if path.is_dir() else (path,)
    return sum(p.stat().st_size for p in inner)
