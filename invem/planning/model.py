"""The measurement model of a recipe: signals, operator and noise, as functions that draw them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from invem.batched import Rng
from invem.config.nested import with_option
from invem.config.settings import settings_unchanged
from invem.errors import PluginError
from invem.measurement import Measurement
from invem.noise import NoiseModel
from invem.operator import Operator
from invem.planning.origin import Origins

__all__ = ["BLOCK", "MeasurementModel"]

BLOCK = 1024  # observations of one file, whose operators and noises are drawn together

_DRAWN = 64  # operators that must all be the identity for the operator to be one
_NOTHING: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class MeasurementModel:
    """How signals are measured.

    Attributes:
        shape: The shape of one signal.
        operator: Draws n operators: (n, shape, rng, **options) -> Operator.
        noise: Draws the noise of n measurements: (n, shape of y, rng, **options) -> NoiseModel.
        options: The options of "operator" and "noise" with their values.
        origins: The components of the plan, for messages.
    """

    shape: tuple[int, ...]
    operator: Callable[..., Operator]
    noise: Callable[..., NoiseModel]
    options: Mapping[str, Mapping[str, Any]]
    origins: Origins = field(default_factory=Origins)

    def draw(
        self, n: int, rng: torch.Generator, theta: Mapping[str, float] = _NOTHING
    ) -> tuple[Operator, NoiseModel]:
        """Draws operator and noise of n measurements.

        Args:
            n: How many.
            rng: The generator; the same one draws the same at other values of smooth options.
            theta: Other values of options, by keys such as "operator.std".
        """
        operator = self.operator(n, self.shape, rng, **self._options("operator", theta))
        zeros = torch.zeros(1, *self.shape)
        with settings_unchanged(lambda: self.origins.of(operator)):
            clean = operator[0](zeros) if n else zeros
        if not isinstance(clean, torch.Tensor):
            raise PluginError(
                f"{self.origins.of(operator)}: it returned a value of type {type(clean).__name__},"
                " not a tensor"
            )
        noise = self.noise(n, tuple(clean.shape[1:]), rng, **self._options("noise", theta))
        return operator, noise

    def example(self, theta: Mapping[str, float] = _NOTHING) -> Measurement:
        """Returns one measurement of a signal of zeros, without its noise."""
        return self.template(theta).completed()

    def template(self, theta: Mapping[str, float] = _NOTHING) -> Measurement:
        """Returns `example` with the tensors that are stored, and not what follows from y."""
        operator, noise = self.draw(1, Rng.generator(0), theta)
        return Measurement(operator(torch.zeros(1, *self.shape)), operator, noise)

    def provides(self, theta: Mapping[str, float] = _NOTHING) -> frozenset[str]:
        """Returns what measurements of this model provide (`Measurement.provides`)."""
        found = self.example(theta).provides
        if "identity" in found:
            # A mask can show all of one signal and not of the next.
            probe = torch.linspace(-1, 1, math.prod(self.shape)).reshape(1, *self.shape)
            probe = probe.expand(_DRAWN, *self.shape)
            operator, _ = self.draw(_DRAWN, Rng.generator(0))
            found = found if torch.equal(operator(probe), probe) else found - {"identity"}
        return found

    def drawn_anew(self) -> set[str]:
        """Returns the paths of the tensors that differ from one drawing to the next."""
        two = [
            Measurement(torch.zeros(1), *self.draw(2, Rng.generator(k))).tensors() for k in range(2)
        ]
        return {path for path, tensor in two[0].items() if not torch.equal(tensor, two[1][path])}

    def paths(self) -> list[str]:
        """Returns the paths of the tensors that a measurement has."""
        return list(Measurement(torch.zeros(1), *self.draw(2, Rng.generator(0))).tensors())

    def _options(self, kind: str, theta: Mapping[str, float]) -> dict[str, Any]:
        found = dict(self.options[kind])
        for key, value in theta.items():
            name, _, rest = key.partition(".")
            if name == kind:
                found = with_option(found, rest.split("."), value)
        return found
