"""`invem init`: writes a recipe for files of frames, with what was measured of them."""

import json
import os
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from invem.atomic import write_text
from invem.errors import DataError, RecipeError
from invem.frames import Units
from invem.survey import Survey

__all__ = ["write_recipe"]

_STEPS = 1500  # gradient steps: minutes on two idle cores, for a small network and crops of 64
_ADDED = 0.2  # the noise that is added to clean frames, where low is -1 and high is 1


def write_recipe(
    found: Survey,
    path: Path,
    *,
    crop: int = 64,
    clean: bool = False,
    axes: str | None = None,
    inside: str | None = None,
    force: bool = False,
) -> Units:
    """Writes a commented recipe that learns from frames.

    Args:
        found: What was measured of them.
        path: The recipe.
        crop: The size of the squares that are learned from, in pixels.
        clean: Whether the frames are clean, and noise is added.
        axes: The meaning of each axis, if it was given.
        inside: The path of the array inside of the files, if it was given.
        force: Whether a recipe that is there is replaced.

    Returns:
        The units of the stored values.

    Raises:
        RecipeError: If there is one already, or the crop does not fit.
        DataError: If the noise could not be measured, or is none.
    """
    if path.exists() and not force:
        raise RecipeError(f"{path}: exists already; choose another --out, or add --force")
    smallest = min(min(shape[-2:]) for shape in found.shapes)
    if crop % 4 or not 8 <= crop <= smallest:
        raise RecipeError(
            f"crop {crop} does not fit: a multiple of 4 from 8 to {smallest}, the smallest frame"
        )
    if found.noise is None and not clean:
        raise DataError(f"{found.path}: {found.why}")
    units, words = _measured(found, clean)
    text = _template().render(
        words,
        name=path.name,
        stem=path.stem,
        looked=found.looked,
        frames=found.frames,
        root=json.dumps(_relative(found.path, path.parent)),
        axes=axes and json.dumps(axes),
        inside=inside and json.dumps(inside),
        crop=crop,
        clean=clean,
        low=f"{units.low:g}",
        high=f"{units.high:g}",
        gain=f"{units.gain:g}" if units.gain else "",
        offset=f"{units.offset:g}",
        read=f"{units.read:g}",
        steps=_STEPS,
    )
    write_text(path, text)
    return units


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("invem.scaffold"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    return environment.get_template("frames.yaml.jinja")


def _measured(found: Survey, clean: bool) -> tuple[Units, dict[str, str]]:
    """Returns the units of stored values, and the noise in words."""
    low, high = _rounded(found.dark), _rounded(found.light)
    low, high = (low, high) if low < high else (found.low, found.high)
    units, sigma = Units(low=low, high=high), _ADDED
    words = {"gain_words": "", "read_words": "", "sigma_words": ""}
    noise = found.noise
    if noise is not None and not clean:
        gain, offset, read = (_rounded(v) for v in (noise.gain, noise.offset, noise.read))
        if gain:
            units = Units(low=low, high=high, gain=gain, offset=offset, read=read)
        sigma = units.sigma if gain else 2 * noise.sigma / (high - low)
        words = {
            "gain_words": f"{noise.gain:.3g} +- {noise.gain_error:.2g}",
            "read_words": f"{noise.read:.3g} +- {noise.read_error:.2g}",
            "sigma_words": f"{noise.sigma:.3g} +- {noise.sigma_error:.2g}",
        }
    return units, {**words, "sigma": f"{sigma:.4g}"}


def _rounded(value: float) -> float:
    """Returns a number with 4 figures, as a person writes it."""
    return float(f"{value:.4g}")


def _relative(path: Path, folder: Path) -> str:
    """Returns a path as seen from a folder; absolute where there is no way from one to the other,
    as between drives."""
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:
        return path.resolve().as_posix()
