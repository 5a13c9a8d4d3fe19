"""Commands on files of frames: inspect, what they hold; init, a recipe for them."""

import enum
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from invem.cli.app import AsJson
from invem.cli.output import make_parent, print_data, print_warnings, say
from invem.cli.plan import plan

if TYPE_CHECKING:
    from invem.analysis.camera import CameraNoise
    from invem.survey import Survey

__all__ = ["init", "inspect"]

_WIDTH, _INDENT = 60, 9

FramesPath = Annotated[
    Path, typer.Argument(metavar="PATH", help="A file of frames, or a folder of files.")
]
AxesOption = Annotated[
    str | None,
    typer.Option("--axes", help="The meaning of each axis, such as TYX; else what files say."),
]
Inside = Annotated[
    str | None, typer.Option("--inside", help="The array inside of files that hold several.")
]
Offset = Annotated[
    float | None, typer.Option("--offset", help="The stored value without light, if known.")
]


class Noise(enum.StrEnum):
    """The kinds of noise that can be asked for."""

    AUTO = "auto"
    GAUSSIAN = "gaussian"
    POISSON_GAUSSIAN = "poisson-gaussian"

    @property
    def kind(self) -> Literal["gaussian", "poisson-gaussian"] | None:
        """The kind, or None to measure it."""
        if self is Noise.AUTO:
            return None
        return "gaussian" if self is Noise.GAUSSIAN else "poisson-gaussian"


def inspect(
    path: FramesPath,
    axes: AxesOption = None,
    inside: Inside = None,
    offset: Offset = None,
    sheet: Annotated[
        Path | None, typer.Option("--sheet", help="Write a picture of some frames, in PNG.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what files of frames hold, what is wrong with them, and what noise they have."""
    from invem import survey

    if sheet is not None:
        make_parent(sheet)
    found = survey.inspect(path, axes=axes, inside=inside, offset=offset)
    if sheet is not None:
        from invem.report.sheet import contact_sheet

        contact_sheet(found.sample, sheet)
    if as_json:
        print_data({**found.as_dict(), "sheet": None if sheet is None else str(sheet)}, True)
        return
    for name, text in _lines(found):
        say(_row(name, text))
    if sheet is not None:
        say(_row("sheet", str(sheet)))


def init(
    path: FramesPath,
    noise: Annotated[Noise, typer.Option("--noise", help="The noise.")] = Noise.AUTO,
    crop: Annotated[
        int, typer.Option("--crop", help="Pixels of the squares that are learned from.")
    ] = 64,
    out: Annotated[Path, typer.Option("--out", help="The recipe.")] = Path("frames.yaml"),
    clean: Annotated[
        bool, typer.Option("--clean", help="The frames are clean: noise is added to them.")
    ] = False,
    axes: AxesOption = None,
    inside: Inside = None,
    offset: Offset = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a recipe that is there already.")
    ] = False,
) -> None:
    """Write a recipe for files of frames, with what was measured of them, and say what it takes."""
    from invem import survey
    from invem.errors import RecipeError
    from invem.scaffold.recipe import write_recipe

    if out.exists() and not force:
        raise RecipeError(f"{out}: exists already; choose another --out, or add --force")
    make_parent(out)
    found = survey.inspect(path, axes=axes, inside=inside, offset=offset, kind=noise.kind)
    write_recipe(found, out, crop=crop, clean=clean, axes=axes, inside=inside, force=force)
    for k, text in enumerate([found.why] if found.noise is None else _noise(found.noise)):
        say(_row("" if k else "noise", text))
    print_warnings(found.problems)
    say(_row("recipe", str(out)))
    say("")
    plan(out)


def _row(name: str, text: str) -> str:
    """Returns a line with its name, broken at 60 columns."""
    return textwrap.fill(
        text,
        _WIDTH,
        initial_indent=f"{name:<{_INDENT}}",
        subsequent_indent=" " * _INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _lines(found: "Survey") -> Iterator[tuple[str, str]]:
    kinds = ", ".join(found.formats)
    yield "frames", f"{found.frames} in {found.files} {_many('file', found.files)} ({kinds})"
    shape = max(found.shapes, key=lambda s: found.shapes[s])
    channels = "" if shape[0] == 1 else f"{shape[0]} channels of "
    yield "size", f"{channels}{' x '.join(map(str, shape[1:]))}, {', '.join(found.dtypes)}"
    told = {k: v for k, v in found.about.items() if k not in ("kind", "dtype")}
    if told:
        yield "says", ", ".join(f"{key} {value}" for key, value in list(told.items())[:6])
    bits = "" if found.bits is None else f", {found.bits} bits"
    yield "values", f"{found.low:g} to {found.high:g}{bits}"
    yield "", f"most from {found.dark:.4g} to {found.light:.4g} (0.1 % beyond each)"
    if found.noise is None:
        yield "noise", found.why
    else:
        for k, text in enumerate(_noise(found.noise)):
            yield "noise" if not k else "", text
    if found.structure.words == []:
        yield "", "white: pixels do not share it"
    for k, text in enumerate(found.problems):
        yield "problems" if not k else "", text
    if not found.problems:
        yield "problems", f"none in the {found.looked} frames that were read"


def _noise(noise: "CameraNoise") -> Iterator[str]:
    if noise.gain:
        yield "of photons: it rises with the light"
        yield f"gain {noise.gain:.3g} +- {noise.gain_error:.2g} a photon"
        if noise.read:
            yield f"offset {noise.offset:.4g}, read {noise.read:.3g} +- {noise.read_error:.2g}"
        else:
            yield f"none below {noise.offset:.4g}; --offset tells the read-out noise apart"
        yield f"sigma {noise.dark:.3g} where dark, {noise.bright:.3g} where bright"
    else:
        yield f"of one level: sigma {noise.sigma:.3g} +- {noise.sigma_error:.2g}"
    yield f"by {noise.how}{'' if noise.still else ': at most that much'}"


def _many(word: str, n: int) -> str:
    return word if n == 1 else f"{word}s"
