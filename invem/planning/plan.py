"""A plan: everything that a run needs, checked before anything is computed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from invem import analysis
from invem.config import Fit, Loaded, Phase, Recipe
from invem.dataset import Dataset
from invem.metric import Metric
from invem.objective import ClosedFormObjective, Objective
from invem.planning.model import MeasurementModel
from invem.planning.observation_model import observation_model
from invem.planning.origin import Origins
from invem.sampler import PosteriorSampler
from invem.stopping import StoppingRule
from invem.storage.directory import RunDirectory

__all__ = ["Facts", "Plan", "Stage"]


@dataclass(frozen=True)
class Stage:
    """One phase with its components.

    Attributes:
        phase: The phase of the recipe.
        sampler: Draws the signals that are learned from, if the phase draws.
        objective: What the phase fits, if it fits.
        on: What is learned from: "draws", "observations" or "clean".
        stop: Decides after each round whether the phase ends.
        evaluator: The sampler of the held-out restorations, if there is one.
        annealed: The samplers of the first rounds, where options change from round to round;
            `sampler` is that of all later ones.
        network: Builds the network that the phase trains, if it has one of its own: (shape) ->
            network.
        own: Says which network of its own that is; "" is the recipe's.
    """

    phase: Phase
    sampler: PosteriorSampler | None
    objective: Objective | ClosedFormObjective | None
    on: str
    stop: StoppingRule
    evaluator: PosteriorSampler | None = None
    annealed: tuple[PosteriorSampler, ...] = ()
    network: Callable[..., Any] | None = None
    own: str = ""

    def at(self, index: int) -> PosteriorSampler | None:
        """Returns the sampler of a round."""
        return self.annealed[index] if index < len(self.annealed) else self.sampler


class Facts(NamedTuple):
    """What a run keeps of its data set, so that a finished run needs the data set no more.

    Attributes:
        shape: The shape of one signal.
        range: The lowest and the highest value of a signal.
        whole_train: The length of the training split.
        whole_test: The length of the test split; 0 if it is not used.
        prior: What the prior provides that the first phase begins with; None if it begins with
            none.
        digests: The digest of each split that is used (`Dataset.digest`); none before the run is
            begun.
        units: The map from stored values to signals, as plain data (`Units.as_dict`); None if the
            data set has none.
    """

    shape: tuple[int, ...]
    range: tuple[float, float]
    whole_train: int
    whole_test: int
    prior: tuple[str, ...] | None = None
    digests: Mapping[str, str] = MappingProxyType({})
    units: Mapping[str, Any] | None = None


@dataclass(frozen=True, repr=False)
class Plan:
    """Everything that a run needs, checked.

    Attributes:
        loaded: The recipe as it was read.
        data: Opens the data set of a split.
        observed: Whether the data set holds measurements, not signals.
        model: How signals are measured.
        network: Builds a new network of the recipe: (shape) -> network.
        stages: The phases.
        metrics: The metrics by label.
        resolved: The recipe as plain data, every default written out.
        components: Kind, name, distribution and version of every component.
        origins: Says which of them an error comes from.
        facts: Shape, range and sizes of the data set.
        train: The number of training observations.
        test: The number of held-out observations.
        warnings: What a person should know, one line each.
    """

    loaded: Loaded
    data: Callable[[str], Dataset]
    observed: bool
    model: MeasurementModel
    network: Callable[..., Any]
    stages: list[Stage]
    metrics: dict[str, Metric]
    resolved: dict[str, Any]
    components: list[dict[str, str]]
    origins: Origins
    facts: Facts
    train: int
    test: int
    warnings: list[str]

    def __repr__(self) -> str:
        phases = ", ".join(f"{s.phase.name} ({s.phase.rounds})" for s in self.stages)
        return (
            f"<Plan of {self.loaded.source}: {self.train} observations of signals of shape"
            f" {self.shape}; phases and their rounds: {phases}>"
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one signal."""
        return self.facts.shape

    @property
    def recipe(self) -> Recipe:
        """The checked recipe."""
        return self.loaded.recipe

    def builder_of(
        self, stage: Stage | None, shape: tuple[int, ...] | None = None
    ) -> Callable[[], Any]:
        """Returns what builds a new network of a phase; of the recipe without one.

        Args:
            stage: The phase.
            shape: The shape of one signal; that of the data set if left out.
        """
        own = None if stage is None else stage.network
        build = self.network if own is None else own
        return lambda: build(self.shape if shape is None else shape)

    def made_of(self, p: int) -> dict[str, Any]:
        """Returns what the prior of a phase is built from, as plain data: shape of the signals,
        objective with its options, and network with its options ("network" is None for a closed
        form). A file of the prior holds it, so that it can be loaded without the recipe."""
        phase = self.resolved["phases"][p]
        own = Fit.model_fields.keys()
        options = {key: value for key, value in phase["fit"].items() if key not in own}
        trained = isinstance(self.stages[p].objective, Objective)
        network = phase["network"] or self.resolved["network"]
        return {
            "shape": list(self.shape),
            "objective": {"name": phase["fit"]["objective"], **options},
            "network": network if trained else None,
        }

    def foreign_prior(self) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
        """Reads the newest prior of the run that the recipe names as `prior`.

        Raises:
            DataError: If there is none, or it is damaged.
        """
        return read_foreign_prior(str(self.recipe.prior))

    def identifiability(self) -> analysis.Identifiability:
        """Returns what the observations can tell of the signals, before anything is learned.

        Raises:
            Unsupported: If the operator is one that this cannot be said of.
        """
        with self.origins.naming():
            return analysis.identify(observation_model(self))

    def describe(self) -> dict[str, Any]:
        """Returns the plan as plain data: what `invem plan` prints."""
        return {
            "recipe": self.loaded.source,
            "seed": self.recipe.seed,
            "signal": list(self.shape),
            "observations": self.train,
            "held out": self.test,
            "metrics": list(self.metrics),
            "warnings": self.warnings,
            "components": self.components,
            "steps": [self._describe(p, stage) for p, stage in enumerate(self.stages)],
        }

    def _describe(self, p: int, stage: Stage) -> dict[str, Any]:
        phase = stage.phase
        row: dict[str, Any] = {"phase": f"{p}-{phase.name}", "rounds": phase.rounds}
        if stage.sampler is not None:
            n = min(phase.observations or self.train, self.train) * phase.draws
            forwards, products = stage.sampler.cost
            row["draws a round"] = max(round(n * phase.refresh), 1)
            row["forwards a draw"] = forwards
            row["vector-Jacobian products a draw"] = products
        if phase.fit is not None:
            row |= {"objective": phase.fit.objective, "on": stage.on}
            if isinstance(stage.objective, Objective):
                row |= {"gradient steps a round": phase.fit.steps, "batch": phase.fit.batch}
        return row


def read_foreign_prior(run: str) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """Reads the newest prior of another run.

    Args:
        run: Its directory.

    Raises:
        DataError: If there is none, or it is damaged.
    """
    directory = RunDirectory(Path(run).expanduser())
    return directory.read_newest_prior()
