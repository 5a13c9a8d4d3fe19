"""A contact sheet: a few frames side by side, with their names."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from invem.atomic import write_bytes

__all__ = ["contact_sheet"]

Array = np.ndarray[Any, np.dtype[Any]]

_MOST, _COLUMNS, _LETTERS = 16, 4, 28


def contact_sheet(frames: Sequence[tuple[str, Array]], path: Path) -> int:
    """Writes a picture of up to 16 frames, each stretched between its percentiles 0.5 and 99.5.

    Args:
        frames: Names and stored values, each (channels, *space).
        path: The file, in PNG.

    Returns:
        How many are shown.

    Raises:
        ResourceError: If the disk is full.
        DataError: If the file cannot be written.
    """
    from matplotlib.figure import Figure

    places = np.linspace(0, len(frames) - 1, min(len(frames), _MOST)).round().astype(int)
    columns = min(_COLUMNS, len(places))
    rows = math.ceil(len(places) / columns)
    figure = Figure(figsize=(2.6 * columns, 2.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, k in zip(axes, places, strict=False):
        name, values = frames[int(k)]
        axis.imshow(_picture(values), cmap="gray", interpolation="nearest", vmin=0, vmax=1)
        # Names of files may hold a dollar, which begins a formula.
        short = name if len(name) <= _LETTERS else f"...{name[3 - _LETTERS :]}"
        axis.set_title(short.replace("$", r"\$"), fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    write_bytes(path, file.getvalue())
    return len(places)


def _picture(values: Array) -> Array:
    """Returns values between 0 and 1, shape (H, W) or (H, W, 3)."""
    found = np.abs(values) if np.iscomplexobj(values) else values.astype(np.float64)
    found = found.reshape(found.shape[0], -1, *found.shape[-2:])[:, 0]  # one plane of a volume
    found = np.moveaxis(found, 0, -1) if len(found) == 3 else found[0]
    finite = found[np.isfinite(found)]
    low, high = np.quantile(finite, [0.005, 0.995]) if len(finite) else (0.0, 1.0)
    stretched: Array = np.clip((found - low) / max(high - low, 1e-12), 0, 1)
    return np.nan_to_num(stretched)
