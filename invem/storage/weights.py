"""Priors in files: one vocabulary for weights, written and read here alone.

A file of a prior in closed form holds ``exact.*``, the tensors of the distribution. A file of a
trained model holds

- ``raw.*``: the state of the model, weights and buffers;
- ``average.*``: the moving average of the weights alone;
- ``optimizer.I.*``: the state of the optimiser for weight I, where it is gone on from;
- ``moments.*``: the mean and covariance of the training signals.

Its metadata say which parts of the model are networks of the recipe (``networks``, as prefixes),
what these predict (``learns``), the scale that they are built for (``sigma_data``), and for how
many steps they were trained (``steps``). A checkpoint of a fit has the same names.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from invem.gaussian import Gaussian
from invem.prior import ClosedForm, closed_form

__all__ = ["TrainedWeights", "below", "exact_tensors", "moments_of", "prefixed", "shape_of"]


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Returns the tensors whose name begins with a prefix, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors with a prefix before their names."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def exact_tensors(exact: ClosedForm) -> dict[str, Tensor]:
    """Returns the content of a file of a prior in closed form."""
    return prefixed("exact.", exact.tensors())


def moments_of(tensors: Mapping[str, Tensor]) -> Gaussian | None:
    """Returns the moments that a file of a trained model holds, if it does."""
    own = below(tensors, "moments.")
    found = closed_form(own) if own else None
    return found if found is None or isinstance(found, Gaussian) else found.moments()


def shape_of(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the shape of the signals that the prior of a file is of."""
    if made := meta.get("made of"):
        return tuple(made["shape"])
    moments = moments_of(tensors)
    return moments.shape if moments is not None else closed_form(below(tensors, "exact.")).shape


@dataclass
class TrainedWeights:
    """The weights of a model, while it is trained and after.

    Attributes:
        raw: The state of the model.
        average: The moving average of its weights.
        optimizer: The state of the optimiser: by weight, by name.
        networks: The prefix of each network of the recipe within the model, "" for a model that is
            one.
        learns: What the networks predict.
        sigma_data: The scale that they are built for, in units of the data; 0 if they came with
            their weights.
        steps: The gradient steps that the average has seen.
    """

    raw: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    networks: tuple[str, ...] = ("",)
    learns: str = "signals"
    sigma_data: float = 0.0
    steps: int = 0

    @classmethod
    def from_file(
        cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
    ) -> "TrainedWeights | None":
        """Returns the weights that a file holds; None if its prior is in closed form."""
        if "networks" not in meta:
            return None
        return cls(
            raw=below(tensors, "raw."),
            average=below(tensors, "average."),
            optimizer=below(tensors, "optimizer."),
            networks=tuple(meta["networks"]),
            learns=str(meta["learns"]),
            sigma_data=float(meta["sigma_data"]),
            steps=int(meta["steps"]),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensors of a file, without the moments."""
        return (
            prefixed("raw.", self.raw)
            | prefixed("average.", self.average)
            | prefixed("optimizer.", self.optimizer)
        )

    def meta(self) -> dict[str, Any]:
        """Returns the metadata of a file."""
        return {
            "networks": list(self.networks),
            "learns": self.learns,
            "sigma_data": self.sigma_data,
            "steps": self.steps,
        }

    def averaged(self) -> dict[str, Tensor]:
        """Returns the state of the model with the averaged weights."""
        return {**self.raw, **self.average}

    def of_networks(self, count: int, averaged: bool) -> list[dict[str, Tensor]]:
        """Returns the state of as many networks: those of the model where it has so many, otherwise
        the first of them for each."""
        whole = self.averaged() if averaged else self.raw
        found = [below(whole, prefix) for prefix in self.networks]
        return found if len(found) == count else [found[0]] * count

    def alone(self) -> "TrainedWeights | None":
        """Returns the weights as those of a plain network.

        None if the model is more than one: if it has several networks, or tensors of its own beside
        them.
        """
        if len(self.networks) != 1:
            return None
        prefix = self.networks[0]
        if not all(name.startswith(prefix) for name in self.raw):
            return None
        raw, average = below(self.raw, prefix), below(self.average, prefix)
        return replace(self, raw=raw, average=average, networks=("",))
