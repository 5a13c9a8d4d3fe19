"""What files of frames hold, what is wrong with them, and what noise they have."""

import contextlib
import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from invem.analysis.camera import CameraNoise, Kind, photon_transfer
from invem.analysis.pixels import Structure, bad_pixels, bits_used, structure
from invem.errors import DataError
from invem.files import frame_files
from invem.frames import Frame, FrameFormat

__all__ = ["Survey", "inspect"]

Array = np.ndarray[Any, np.dtype[Any]]

_PLACES = 24  # frames that are looked at, evenly spread, each with the next one of its file
_WINDOW = 384  # rows and columns of them, in the middle
_SHOWN = 8  # differences that are named


@dataclass(frozen=True)
class _Place:
    """One frame: its file's number, its own in the file, and what the header says of it."""

    file: int
    index: int
    frame: Frame


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What files of frames hold. `inspect` makes one.

    Attributes:
        path: The file or folder.
        files: The number of files.
        formats: How many files there are of each ending.
        frames: The number of frames.
        shapes: How many frames there are of each shape, (channels, *space).
        dtypes: How many frames there are of each type.
        about: What the first file says of itself, as text.
        looked: How many frames were read.
        low: The lowest value that was seen, in stored units.
        high: The highest one.
        dark: The value with 0.1 % of values below it.
        light: The value with 0.1 % of values above it.
        bits: The bits that whole numbers have; None for others.
        problems: What is wrong, one line each.
        noise: The noise; None if it cannot be estimated.
        structure: How the noise is shared between pixels.
        why: Why there is no estimate of the noise; empty if there is one.
        sample: Up to 24 frames, evenly spread, as (name, values), for a contact sheet.
    """

    path: Path
    files: int
    formats: dict[str, int]
    frames: int
    shapes: dict[tuple[int, ...], int]
    dtypes: dict[str, int]
    about: dict[str, str]
    looked: int
    low: float
    high: float
    dark: float
    light: float
    bits: int | None
    problems: list[str]
    noise: CameraNoise | None
    structure: Structure
    why: str = ""
    sample: list[tuple[str, Array]] = field(default_factory=list, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Returns plain data, without the values of frames."""
        return {
            "path": str(self.path),
            "files": self.files,
            "formats": self.formats,
            "frames": self.frames,
            "shapes": {" x ".join(map(str, shape)): n for shape, n in self.shapes.items()},
            "dtypes": self.dtypes,
            "about": self.about,
            "looked": self.looked,
            "low": self.low,
            "high": self.high,
            "dark": self.dark,
            "light": self.light,
            "bits": self.bits,
            "problems": self.problems,
            "noise": None if self.noise is None else self.noise.as_dict(),
            "structure": self.structure.as_dict(),
            "why": self.why,
        }


def inspect(
    path: str | Path,
    *,
    axes: str | None = None,
    inside: str | None = None,
    offset: float | None = None,
    kind: Kind | None = None,
) -> Survey:
    """Looks at files of frames: what is there, what is wrong with it, and what noise it has.

    All headers are read, and the middle of up to 48 frames.

    Args:
        path: A file, or a folder of files.
        axes: The meaning of each axis, such as "TYX"; what the files say if left out.
        inside: The path of the array inside of files that hold several.
        offset: The stored value without light, if it is known.
        kind: "gaussian" or "poisson-gaussian", if it is known.

    Raises:
        DataError: If there are no frames, or none can be read.
    """
    path = Path(path).expanduser()
    try:
        files = frame_files(path)
        places, about, problems = _headers(path, files, axes, inside)
        frames, more = _read(files, places, axes, inside)
    except DataError as error:
        text = str(error)
        raise DataError(text if text.startswith(str(path)) else f"{path}: {text}") from error
    return _survey(path, files, places, frames, about, [*problems, *more], offset, kind)


def _survey(
    path: Path,
    files: "_Files",
    places: list["_Place"],
    frames: "list[_Read]",
    about: dict[str, str],
    problems: list[str],
    offset: float | None,
    kind: Kind | None,
) -> Survey:
    values = [frame for _, frame, _ in frames]
    noise, shared, why = _noise(values, _paired(frames), offset, kind)
    ends = _range([np.where(np.isfinite(v), v, 0) if v.dtype.kind in "fc" else v for v in values])
    bits = _bits(values, _white(places))
    problems += [*_of_values(places, values, ends, bits), *shared.words, *_of_pixels(frames)]
    if noise is not None and noise.clipped:
        problems.append(
            f"{noise.clipped:.1%} of the values are at the lowest or the highest one: clipped"
        )
    return Survey(
        path=path,
        files=len(files),
        formats=dict(Counter(_ending(file) for file, _ in files)),
        frames=len(places),
        shapes=dict(Counter(place.frame.shape for place in places)),
        dtypes=dict(Counter(place.frame.dtype for place in places)),
        about=about,
        looked=len(frames),
        low=ends[0],
        high=ends[3],
        dark=ends[1],
        light=ends[2],
        bits=bits[0] - bits[1] if bits else None,
        problems=problems,
        noise=noise,
        structure=shared,
        why=why,
        sample=[(place.frame.name, value) for place, value, first in frames if first],
    )


def _noise(
    values: list[Array], pairs: list[Array], offset: float | None, kind: Kind | None
) -> tuple[CameraNoise | None, Structure, str]:
    """Returns the noise, how pixels share it, and why it cannot be estimated."""
    noise, why = None, ""
    try:
        noise = photon_transfer(pairs or values, pages=bool(pairs), offset=offset, kind=kind)
    except DataError as error:
        why = str(error)
    still = noise is not None and noise.still
    return noise, structure([_real(v) for v in (pairs if still else values)], still=still), why


def _bits(values: list[Array], white: float | None) -> tuple[int, int] | None:
    if not all(v.dtype.kind in "iu" for v in values):
        return None
    return bits_used(np.concatenate([v.ravel() for v in values]), white)


_Files = Sequence[tuple[Path, FrameFormat]]
_Read = tuple[_Place, Array, bool]  # the last says whether it is not the second of a pair


def _ending(path: Path) -> str:
    return path.suffix.lower() or path.name


def _headers(
    path: Path, files: _Files, axes: str | None, inside: str | None
) -> tuple[list[_Place], dict[str, str], list[str]]:
    """Returns every frame by its header, what the first file says, and what cannot be read."""
    places: list[_Place] = []
    about: dict[str, str] = {}
    broken: list[str] = []
    for i, (file, fmt) in enumerate(files):
        try:
            with fmt.open(file, axes=axes, inside=inside) as opened:
                places += [_Place(i, k, frame) for k, frame in enumerate(opened.frames)]
                about = about or {str(k): str(v) for k, v in opened.about.items()}
        except DataError as error:
            broken.append(str(error))
    if not places:
        raise DataError(broken[0] if broken else "there are no frames")
    problems = [f"cannot be read: {line}" for line in broken[:_SHOWN]]
    if len(broken) > _SHOWN:
        problems.append(f"cannot be read: {len(broken) - _SHOWN} files more")
    return places, about, problems


def _read(
    files: _Files, places: Sequence[_Place], axes: str | None, inside: str | None
) -> tuple[list[_Read], list[str]]:
    """Returns the middle of frames, evenly spread, each followed by the next page of its file."""
    chosen = sorted({round(k) for k in np.linspace(0, len(places) - 1, _PLACES)})
    found: list[_Read] = []
    problems: list[str] = []
    used: set[int] = set()
    for k in chosen:
        here = [k]
        following = places[k + 1] if k + 1 < len(places) else None
        if following and following.file == places[k].file and k + 1 not in used:
            here.append(k + 1)
        if k in used:
            continue
        used.update(here)
        file, fmt = files[places[k].file]
        try:
            with fmt.open(file, axes=axes, inside=inside) as opened:
                for j in here:
                    place = places[j]
                    value = opened.read(place.index, _middle(place.frame.shape))
                    found.append((place, np.asarray(value), j == k))
        except DataError as error:
            problems.append(f"cannot be read: {error}")
    if not found:
        raise DataError(problems[0].removeprefix("cannot be read: "))
    return found, problems


def _middle(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Returns the window in the middle of a frame; one plane of a volume."""
    sizes = [*(1 for _ in shape[1:-2]), _WINDOW, _WINDOW][-len(shape[1:]) :]
    starts = [max((n - size) // 2, 0) for n, size in zip(shape[1:], sizes, strict=True)]
    return tuple(
        slice(start, start + min(size, n))
        for start, size, n in zip(starts, sizes, shape[1:], strict=True)
    )


def _paired(frames: Sequence[_Read]) -> list[Array]:
    """Returns pages that follow each other in a file: the two of each pair in turn."""
    found: list[Array] = []
    for (_, a, first), (_, b, second) in itertools.pairwise(frames):
        if first and not second:
            found += [a, b]
    return found


def _real(values: Array) -> Array:
    return np.stack([values.real, values.imag]) if np.iscomplexobj(values) else values


def _range(values: Sequence[Array]) -> tuple[float, float, float, float]:
    """Returns the lowest value, that with 0.1 % below it, that with 0.1 % above it, the highest."""
    flat = np.concatenate([_real(v).astype(np.float64).ravel() for v in values])
    low, dark, light, high = np.quantile(flat, [0, 0.001, 0.999, 1])
    return float(low), float(dark), float(light), float(high)


def _white(places: Sequence[_Place]) -> float | None:
    return max((p.frame.white for p in places if p.frame.white is not None), default=None)


def _of_values(
    places: Sequence[_Place],
    values: Sequence[Array],
    ends: tuple[float, float, float, float],
    bits: tuple[int, int] | None,
) -> list[str]:
    """Returns what is wrong with sizes, types and values."""
    found = []
    shapes = Counter(place.frame.shape for place in places)
    if len(shapes) > 1:
        named = ", ".join(f"{' x '.join(map(str, s))} ({n})" for s, n in shapes.most_common(4))
        more = f" and {len(shapes) - 4} more" if len(shapes) > 4 else ""
        found.append(f"frames differ in size: {named}{more}")
    types = Counter(place.frame.dtype for place in places)
    if len(types) > 1:
        found.append(f"frames differ in type: {', '.join(types)}")
    broken = sum(int((~np.isfinite(v)).sum()) for v in values if v.dtype.kind in "fc")
    if broken:
        found.append(f"{broken} values are not finite")
    if ends[0] == ends[3]:
        return [*found, f"all values are {ends[0]:g}"]
    if bits:
        size = 8 * values[0].dtype.itemsize
        if bits[1] and bits[0] > 8:
            step, held = 2 ** bits[1], bits[0] - bits[1]
            found.append(f"values are multiples of {step}: {held} bits, shifted")
        if ends[2] - ends[1] < 0.02 * 2 ** bits[0] or bits[0] < size // 2:
            found.append(
                f"a sliver of the range is used: {ends[1]:g} to {ends[2]:g} of {size} bits"
            )
    return found


def _of_pixels(frames: Sequence[_Read]) -> list[str]:
    """Returns what is wrong with pages and pixels: pages that are there twice, dead and hot
    pixels."""
    found = []
    seen: dict[bytes, str] = {}
    twice = []
    for place, value, _ in frames:
        digest = hashlib.sha256(repr(value.shape).encode() + value.tobytes()).digest()
        if digest in seen and value.min() != value.max():
            twice.append(f"{place.frame.name} is {seen[digest]}")
        seen.setdefault(digest, place.frame.name)
    if twice:
        found.append(f"{len(twice)} of {len(frames)} frames are there twice: {twice[0]}")
    dead = hot = 0
    with contextlib.suppress(ValueError):
        dead, hot = bad_pixels([_real(v) for _, v, _ in frames])
    if dead:
        found.append(f"{dead} dead {'pixel' if dead == 1 else 'pixels'}: the same in every frame")
    if hot:
        found.append(f"{hot} {'pixel' if hot == 1 else 'pixels'} far from all neighbours, always")
    return found
