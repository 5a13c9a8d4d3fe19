"""Pictures of images: columns of restorations and sheets of samples."""

import io
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from invem.report.data import Array, Restorations

__all__ = ["Column", "columns", "picture", "png", "restoration_sheet", "sample_sheet"]

_CELL, _GAP, _PER_ROW = 80, 4, 7
_BAR = 40
# Measurements up to this absolute value are shown on the scale of the images.
_IMAGE_SCALE = 3.0


class Column(NamedTuple):
    """One column of the restorations.

    Attributes:
        title: What the pictures show.
        images: The pictures, one per observation.
        scale: The values of black and of white, where a reader needs them.
    """

    title: str
    images: list[Image.Image]
    scale: tuple[float, float] | None = None


def picture(x: Array, low: float = -1.0, high: float = 1.0) -> Image.Image:
    """Returns a picture of an image, enlarged by whole pixels to about 80.

    Three channels are red, green and blue. Of any other number, the first is shown.

    Args:
        x: The image, (C, H, W).
        low: The value of black.
        high: The value of white.
    """
    x = np.nan_to_num(x, nan=low, posinf=high, neginf=low)
    unit = np.clip((x - low) / ((high - low) or 1.0), 0.0, 1.0)
    pixels = np.round(255 * unit).astype(np.uint8)
    image = Image.fromarray(pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0])
    factor = max(1, round(_CELL / max(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def columns(restorations: Restorations | None) -> list[Column]:
    """Returns the columns that can be shown: observation, one draw, mean, standard deviation of
    the draws, truth."""
    if restorations is None:
        return []
    _, y, draws, posterior, truth, mean = restorations
    found = []
    if y is not None and np.abs(np.nan_to_num(y)).max() <= _IMAGE_SCALE:
        found.append(Column("observation", [picture(v) for v in y]))
    elif y is not None:
        title = "observation (each on its own scale)"
        found.append(Column(title, [picture(v, *_range(v)) for v in y]))
    if draws is not None:
        found.append(Column("restoration (one draw)", [picture(v) for v in draws[:, 0]]))
        found += _moments(draws if posterior is None else posterior, mean)
    if truth is not None:
        found.append(Column("truth", [picture(v) for v in truth]))
    return found


def _moments(draws: Array, exact: Array | None) -> list[Column]:
    """The mean and the standard deviation of draws, (N, K, C, H, W). One draw has neither.

    An exact mean, (N, C, H, W), stands in place of that of the draws.
    """
    means = [] if exact is None else [Column("mean", [picture(v) for v in exact])]
    if draws.shape[1] < 2:
        return means
    variance = draws.var(axis=1, ddof=1)
    if draws.shape[2] == 3:
        variance = variance.mean(axis=1, keepdims=True)
    deviation = np.sqrt(variance[:, :1])
    top = _range(deviation)[1]
    if not means:
        title = f"mean of {draws.shape[1]} draws"
        means = [Column(title, [picture(v) for v in draws.mean(axis=1)])]
    return [
        *means,
        Column("standard deviation", [picture(v, 0.0, top) for v in deviation], (0.0, top)),
    ]


def _range(x: Array) -> tuple[float, float]:
    finite = x[np.isfinite(x)]
    return (float(finite.min()), float(finite.max())) if finite.size else (-1.0, 1.0)


def sample_sheet(images: Array) -> Image.Image:
    """Returns images in rows of seven on a transparent ground. images: (N, C, H, W)."""
    pictures = [picture(x) for x in images]
    width, height = (size + _GAP for size in pictures[0].size)
    across, down = min(_PER_ROW, len(pictures)), -(-len(pictures) // _PER_ROW)
    sheet = Image.new("RGBA", (across * width - _GAP, down * height - _GAP), (0, 0, 0, 0))
    for i, image in enumerate(pictures):
        sheet.paste(image.convert("RGBA"), (i % _PER_ROW * width, i // _PER_ROW * height))
    return sheet


def restoration_sheet(columns: Sequence[Column]) -> Image.Image:
    """Returns the columns side by side under their titles, on white."""
    titles = [re.sub(r" (deviation|\()", r"\n\1", c.title) for c in columns]
    widths = [max(_CELL + 44, *(image.width for image in c.images)) for c in columns]
    height = max(image.height for c in columns for image in c.images)
    rows = max(len(c.images) for c in columns)
    lines = max(
        t.count("\n") + 1 + (c.scale is not None) for t, c in zip(titles, columns, strict=True)
    )
    head = 16 * lines + _GAP
    size = (sum(widths) + _GAP * (len(widths) + 1), head + rows * (height + _GAP) + _GAP)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    left = _GAP
    for column, title, width in zip(columns, titles, widths, strict=True):
        pen.multiline_text((left, _GAP), title, fill="black")
        if column.scale is not None:
            _colour_bar(sheet, pen, (left, head - 16), column.scale)
        for i, image in enumerate(column.images):
            sheet.paste(image.convert("RGB"), (left, head + i * (height + _GAP)))
        left += width + _GAP
    return sheet


def _colour_bar(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    scale: tuple[float, float],
) -> None:
    """Draws a bar from black to white between its two values."""
    left, top = corner
    low, high = (f"{value:.2g}" for value in scale)
    pen.text((left, top), low, fill="black")
    left += round(pen.textlength(low)) + _GAP
    ramp = np.tile(np.linspace(0, 255, _BAR).astype(np.uint8), (10, 1))
    sheet.paste(Image.fromarray(ramp).convert("RGB"), (left, top))
    pen.rectangle((left, top, left + _BAR - 1, top + 9), outline="grey")
    pen.text((left + _BAR + _GAP, top), high, fill="black")


def png(image: Image.Image) -> bytes:
    """Returns a picture as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()
