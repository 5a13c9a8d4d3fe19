"""Inpainting by masks from a file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Generator

from invem import DataError, Mask, RecipeError, examples
from invem.hookspecs import FilePath
from invem.operator import image_shape

from .arrays import read_array


def _example(shape: tuple[int, ...], folder: Path) -> dict[str, str]:
    mask = np.indices(shape[1:]).sum(0) % 3 > 0
    np.save(folder / "mask.npy", mask)
    return {"file": str(folder / "mask.npy")}


def _nonzero(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[Any]]:
    """Returns stored values (H, W), or for colours whether any channel is not zero.

    Pillow's conversion to grey would clip small values of a float image, and round faint colours,
    to zero.
    """
    if image.mode.startswith(("1", "L", "I", "F")):
        values = np.asarray(image)
        return values[..., 0] if values.ndim == 3 else values
    colours: np.ndarray[tuple[int, ...], np.dtype[Any]] = np.asarray(image.convert("RGB"))
    return np.asarray(colours.max(-1))


def _pages(image: Image.Image) -> Iterator[Image.Image]:
    """Yields the pages of a TIFF file, or the one picture of a PNG file, rotated by EXIF."""
    for page in range(getattr(image, "n_frames", 1) if image.format == "TIFF" else 1):
        image.seek(page)
        yield ImageOps.exif_transpose(image)


@examples(_example)
def mask_file(n: int, shape: tuple[int, ...], rng: Generator, *, file: FilePath) -> Mask:
    """Measures the pixels where a mask from a file is not zero.

    Args:
        n: The number of observations.
        shape: (C, H, W).
        rng: Draws the masks, where the file holds several.
        file: A PNG or TIFF image, or a .npy file with one mask (H, W) or several (N, H, W), one of
            which is drawn per observation; each page of a TIFF file is a mask. Of a colour image, a
            pixel is measured if any channel is not zero; transparency is ignored.

    Raises:
        DataError: If the file is missing or cannot be read.
        RecipeError: If its shape is not that of the images, its values are not finite numbers, or
            a mask measures nothing.
    """
    _, height, width = image_shape("mask-file", shape)
    path = Path(file).expanduser()
    try:
        if path.suffix.lower() == ".npy":
            values = read_array("mask-file", file)
        else:
            with Image.open(path, formats=("PNG", "TIFF")) as image:
                values = np.stack([_nonzero(page) for page in _pages(image)])
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise DataError(f"mask-file: {file} cannot be read: {error}") from None
    if values.dtype.kind not in "biufc" or not np.isfinite(values).all():
        raise RecipeError(f"mask-file: {file} must hold finite numbers")
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3 or values.shape[1:] != (height, width) or not len(values):
        raise RecipeError(
            f"mask-file: {file} has the shape {values.shape}, and the images are {height}×{width}"
        )
    masks = torch.from_numpy(np.ascontiguousarray(values != 0)).float()
    if not bool(masks.flatten(1).any(1).all()):
        raise RecipeError(f"mask-file: {file} has a mask in which nothing is measured")
    return Mask(shape, masks[torch.randint(len(masks), (n,), generator=rng), None])
