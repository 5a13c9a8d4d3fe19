"""Blur by kernels from a file, such as a measured point-spread function."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Generator

from invem import LinearOperator, RecipeError, examples
from invem.hookspecs import FilePath
from invem.linear import blur

from .arrays import read_array


def _example(shape: tuple[int, ...], folder: Path) -> dict[str, str]:
    np.save(folder / "kernel.npy", np.array([[0, 1, 0], [1, 4, 1], [0, 1, 1]]) / 9)
    return {"file": str(folder / "kernel.npy")}


@examples(_example)
def kernel_blur(
    n: int,
    shape: tuple[int, ...],
    rng: Generator,
    *,
    file: FilePath,
    normalise: bool = False,
    boundary: Literal["reflect", "circular", "zero", "valid"] = "reflect",
) -> LinearOperator:
    """Blurs each image with a kernel from a file.

    Args:
        n: The number of observations.
        shape: (C, H, W).
        rng: Draws the kernels, where the file holds several.
        file: A .npy file with one kernel (h, w), or several (N, h, w), one of which is drawn per
            observation; h and w odd.
        normalise: Whether each kernel is divided by its sum. If not, it must sum to one.
        boundary: The padding: mirrored ("reflect"), periodic ("circular"), "zero" or none
            ("valid").

    Raises:
        DataError: If the file is missing or cannot be read.
        RecipeError: If a kernel has even or too many entries, is not finite or does not sum to one.
    """
    values = read_array("kernel-blur", file)
    kernels = (
        torch.from_numpy(np.ascontiguousarray(values, np.float32))
        if values.dtype.kind in "fiu"
        else torch.empty(0)
    )
    kernels = kernels[None] if kernels.ndim == 2 else kernels
    if kernels.ndim != 3 or not kernels.numel() or not bool(kernels.isfinite().all()):
        raise RecipeError(
            f"kernel-blur: {file} must hold finite numbers of shape (h, w) or (N, h, w), got"
            f" {values.dtype} {values.shape}"
        )
    total = kernels.sum((1, 2), keepdim=True)
    if normalise and bool((total.abs() < 1e-6).any()):
        raise RecipeError(
            f"kernel-blur: {file} has a kernel that sums to zero, which cannot be normalised"
        )
    if not normalise and bool(((total - 1).abs() > 1e-3).any()):
        wrong = float(total.flatten()[(total - 1).abs().flatten().argmax()])
        raise RecipeError(
            f"kernel-blur: {file} has a kernel that sums to {wrong:.4g}, not to one; write"
            " normalise: true to divide by it"
        )
    kernels = kernels / total if normalise else kernels
    return blur(
        "kernel-blur", shape, kernels[torch.randint(len(kernels), (n,), generator=rng)], boundary
    )
