"""What every data set must do."""

from collections.abc import Iterator
from pathlib import Path

import torch

from invem.dataset import Dataset
from invem.errors import DataError
from invem.testing.base import Factory, Kind, example_options, relative_error

__all__ = ["DATASETS"]


def _cases(factory: Factory, folder: Path) -> Iterator[tuple[str, Dataset]]:
    for label, options in example_options(factory, (1, 8, 8), folder):
        for split in ("train", "test"):
            try:
                data: Dataset = factory(split, **options)
            except DataError:
                # Files that are not on this machine.
                continue
            yield f"{split}, {label}", data


DATASETS = Kind(
    "datasets",
    "Tried on both splits, where their files are on this machine.",
    _cases,
)


@DATASETS.contract("indexing", tolerance=0.0)
def indexing(data: Dataset) -> float:
    """Rows are finite float32 signals of the declared shape, the same at each call and in any
    selection."""
    row = min(3, len(data) - 1)
    rows = torch.tensor([row, 0, row])
    x, alone = data[rows].x, data[rows[1:2]].x
    assert x is not None and alone is not None
    right = (
        x.shape[1:] == torch.Size(data.shape)
        and x.dtype == torch.float32
        and bool(x.isfinite().all())
    )
    return max(float(not right), relative_error(x[1:2], alone), relative_error(x[0], x[2]))


@DATASETS.contract("range", tolerance=1e-6)
def within_range(data: Dataset) -> float:
    """The first 64 signals lie in the declared `range`; the largest excess, in units of the
    data."""
    x = data[torch.arange(min(len(data), 64))].x
    assert x is not None
    low, high = data.range
    return max(low - float(x.min()), float(x.max()) - high, 0.0)
