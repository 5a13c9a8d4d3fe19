"""From a plan to the observation model whose identifiability is computed."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from invem.analysis import ObservationModel
from invem.batched import Rng
from invem.measurement import Measurement
from invem.noise import NoiseModel
from invem.operator import Operator
from invem.planning import checked
from invem.planning.model import BLOCK

if TYPE_CHECKING:
    from invem.planning.plan import Plan

__all__ = ["observation_model"]


def observation_model(plan: "Plan") -> ObservationModel:
    """Returns how a run of the plan makes its training observations, with the operators and noise
    that the run will draw."""
    recipe = plan.recipe

    def draw(k: int, block: int) -> tuple[Operator, NoiseModel]:
        rng = Rng.generator(recipe.seed, "measure", "train", block)
        return plan.model.draw(k, rng, recipe.assume)

    def signals(k: int) -> Tensor:
        x = plan.data("train")[torch.arange(k)].x
        assert x is not None
        return x

    def stored(k: int) -> dict[str, Tensor]:
        tensors = plan.data("train").measured(torch.arange(k)) or {}
        return {path: tensor for path, tensor in tensors.items() if path != "y"}

    def measured(k: int, block: int) -> Measurement:
        rows = torch.arange(block * BLOCK, block * BLOCK + k)
        x = plan.data("train")[rows].x
        assert x is not None
        operator, noise = draw(k, block)
        if plan.observed:
            m = Measurement(x, operator, noise)
            given = plan.data("train").measured(rows)
            return m if given is None else m.with_tensors(m.tensors() | given)
        true = plan.model.draw(k, Rng.generator(recipe.seed, "measure", "train", block))
        rng = Rng.generator(recipe.seed, "identify", "measure", block)
        return Measurement(checked.measured(*true, x, rng, plan.origins), operator, noise)

    return ObservationModel(
        draw=draw,
        block=BLOCK,
        operator=recipe.operator.name,
        shape=plan.shape,
        range=plan.facts.range,
        observations=plan.train,
        stored=stored if plan.observed else None,
        signals=None if plan.observed else signals,
        measured=measured,
        clean=plan.train if recipe.clean == "all" else min(recipe.clean, plan.train),
        prior=recipe.prior is not None,
    )
