"""Gaussian noise with correlations between the entries of a measurement."""

import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from annotated_types import Ge, Gt, Le
from torch import Generator, Tensor

from invem import DataError, NoiseModel, RecipeError, examples
from invem.hookspecs import FilePath
from invem.linalg import DPLR


@dataclass(frozen=True, eq=False)
class CorrelatedGaussian(NoiseModel):
    """y = A(x) + D^1/2 z + F z', with covariance D + F F^T, the same for all observations.

    Attributes:
        cov: The covariance of the flattened noise.
    """

    cov: DPLR

    def sample(self, clean: Tensor, rng: Generator) -> Tensor:
        m, r = self.cov.factor.shape
        z = torch.randn(len(clean), m + r, generator=rng, dtype=clean.dtype).to(clean.device)
        return clean + (z[:, :m] * self.cov.diag.sqrt() + z[:, m:] @ self.cov.factor.T).reshape(
            clean.shape
        )

    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        gap = (y - clean).flatten(1)
        return -0.5 * (
            (gap * self.cov.solve(gap)).sum(1)
            + self.cov.logdet()
            + gap.shape[1] * math.log(2 * math.pi)
        )


def _example(shape: tuple[int, ...], folder: Path) -> dict[str, str]:
    m = math.prod(shape)
    np.savez(
        folder / "noise.npz", diag=np.full(m, 0.01), factor=np.linspace(0, 0.2, 2 * m).reshape(m, 2)
    )
    return {"file": str(folder / "noise.npz")}


@examples(_example, {"along": "columns"})
def correlated_gaussian(
    n: int,
    shape: tuple[int, ...],
    rng: Generator,
    *,
    sigma: Annotated[float, Gt(0), Le(1e15)] = 0.05,
    stripes: Annotated[float, Ge(0)] = 0.05,
    along: Literal["rows", "columns"] = "rows",
    file: FilePath | None = None,
) -> CorrelatedGaussian:
    """Adds white noise and stripes, or Gaussian noise with a covariance from a file.

    A stripe is an offset per row or column of the measurement, as from read-out electronics. A
    covariance from a file is of low rank plus diagonal.

    Args:
        n: The number of observations; the noise is the same for all.
        shape: The shape of one measurement.
        rng: Not used.
        sigma: The standard deviation of the white noise, in units of the data.
        stripes: The standard deviation of the offsets, in units of the data.
        along: Whether "rows" or "columns" share an offset; all entries of a vector share one.
        file: A .npz file with `diag`, shape (m,), and `factor`, shape (m, r), for measurements of m
            entries. It replaces `sigma` and `stripes`.

    Raises:
        DataError: If the file cannot be read.
        RecipeError: If its arrays have other shapes, or `diag` is not positive.
    """
    m = math.prod(shape)
    if file is not None:
        try:
            diag, factor = _read(Path(file).expanduser(), m)
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            EOFError,
            BadZipFile,
            zlib.error,
        ) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"correlated-gaussian: {file} cannot be read: {reason}") from None
        if not bool(diag.isfinite().all() and factor.isfinite().all()):
            raise RecipeError(f"correlated-gaussian: {file} has values that are not finite")
        if diag.shape != (m,) or factor.ndim != 2 or len(factor) != m or not bool((diag > 0).all()):
            raise RecipeError(
                f"correlated-gaussian: {file} must hold diag ({m},), positive, and factor ({m}, r)"
            )
    else:
        height, width = (shape[-2], shape[-1]) if len(shape) > 1 else (1, m)
        rest = m // (height * width)
        one, other = (
            (torch.eye(height), torch.ones(width, 1))
            if along == "rows"
            else (torch.ones(height, 1), torch.eye(width))
        )
        stripe = torch.kron(one, other)
        diag, factor = torch.full((m,), sigma**2), stripes * torch.kron(torch.eye(rest), stripe)
    return CorrelatedGaussian(DPLR(diag, factor))


def _read(path: Path, m: int) -> tuple[Tensor, Tensor]:
    """Reads diag and factor; an archive that unpacks to more than they can need is refused."""
    names, most = ("diag", "factor"), 8 * m * (m + 1) + 4096
    with ZipFile(path) as archive:
        for name in names:
            size = archive.getinfo(f"{name}.npy").file_size
            if size > most:
                raise ValueError(f"{name} unpacks to {size:,} bytes, and {most:,} are enough")
    with np.load(path, allow_pickle=False) as arrays:
        diag, factor = (torch.from_numpy(np.asarray(arrays[name], np.float32)) for name in names)
    return diag, factor
