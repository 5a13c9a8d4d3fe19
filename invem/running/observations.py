"""Stored measurements: read and verified once, with operator and noise at any values of their
options."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from invem.analysis import rebuilt
from invem.batched import Rng
from invem.errors import DataError
from invem.measurement import Measurement
from invem.noise import NoiseModel
from invem.operator import Operator
from invem.planning.model import BLOCK, MeasurementModel
from invem.storage.directory import Folder

__all__ = ["BLOCK", "Observations", "with_shared"]

_MANY = 16  # so many choices of one of two agree by chance in 1 of 32,768 cases
_NOTHING: Mapping[str, float] = MappingProxyType({})


class Observations:
    """The stored measurements of one split.

    Args:
        model: What the observations are measurements of.
        folder: Their folder.
        key: The seed and the split: what operators and noises were drawn with, block by block.
    """

    def __init__(self, model: MeasurementModel, folder: Folder, key: tuple[int, str]) -> None:
        self.model, self.folder, self.key = model, folder, key
        self._blocks: list[dict[str, Tensor]] = []
        self._joined: tuple[dict[str, float], Measurement] | None = None

    def generator(self, k: int) -> torch.Generator:
        """Returns the generator that operator and noise of a block are drawn with."""
        return Rng.generator(self.key[0], "measure", self.key[1], k)

    def at(self, theta: Mapping[str, float] = _NOTHING) -> Measurement:
        """Returns all measurements.

        Args:
            theta: Options of operator and noise that are believed instead of the recipe's, by keys
                such as "operator.std".

        Raises:
            DataError: If there are none, or a file is damaged.
        """
        # The two steps of overlapping rounds may ask for different values at the same time.
        kept = self._joined
        if kept is None or kept[0] != dict(theta):
            kept = self._joined = dict(theta), self._read(theta)
        return kept[1]

    def shared(self, theta: Mapping[str, float] = _NOTHING) -> dict[str, Tensor]:
        """Returns the tensors that are common to all observations, by path."""
        m = self.at(theta)
        common = m.shared_paths()
        return {path: tensor for path, tensor in m.tensors().items() if path in common}

    def repeated(self, theta: Mapping[str, float] = _NOTHING) -> dict[str, Tensor]:
        """Returns what every observation has the same value of, by path: one row, (1, ...).

        Few observations can agree by chance: a tensor that the model draws anew is then left out.
        """
        m = self.at(theta)
        drawn = m.shared_paths() | {"y"}
        if len(m) < _MANY:
            drawn |= self.model.drawn_anew()
        return {
            path: tensor[:1]
            for path, tensor in m.tensors().items()
            if path not in drawn and bool((tensor == tensor[:1]).all())
        }

    def _read(self, theta: Mapping[str, float]) -> Measurement:
        parts = self._blocks or self.folder.read_all()
        if not parts:
            raise DataError(f"{self.folder.path}: there are no measurements")
        if theta:
            self._blocks = parts  # a calibration asks for many values
            parts = [self._rebuilt(k, part, theta) for k, part in enumerate(parts)]
        template = self.model.template(theta)
        common = template.shared_paths()
        joined = {
            path: tensor if path in common else torch.cat([part[path] for part in parts])
            for path, tensor in parts[0].items()
        }
        return template.with_tensors(joined).completed()

    def _rebuilt(
        self, k: int, part: Mapping[str, Tensor], theta: Mapping[str, float]
    ) -> dict[str, Tensor]:
        """Returns the tensors of a block with operator and noise at other values."""
        n = len(part["y"])
        before = self.model.draw(n, self.generator(k))
        after = self.model.draw(n, self.generator(k), theta)
        stored = Measurement(part["y"], *before).with_tensors(part)
        return rebuilt(stored, before, after).tensors()


def with_shared(
    operator: Operator, noise: NoiseModel, shared: Mapping[str, Tensor]
) -> tuple[Operator, NoiseModel]:
    """Returns operator and noise with the tensors that are common to all observations of a run."""
    drawn = Measurement(torch.zeros(1), operator, noise)
    paths = drawn.shared_paths()
    if not paths:
        return operator, noise
    m = drawn.with_tensors(drawn.tensors() | {path: shared[path] for path in paths})
    return m.A, m.noise
