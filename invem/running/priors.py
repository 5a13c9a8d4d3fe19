"""Priors of a run: the value that a file of an M-step stands for."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from invem.batched import Rng
from invem.config import Catalog
from invem.denoiser import Denoiser, Preconditioned
from invem.errors import DataError, RecipeError
from invem.objective import ClosedFormObjective, MakeNetwork, Objective
from invem.planning.build import factory_of
from invem.planning.plan import Stage
from invem.planning.tried import try_network
from invem.prior import Prior, closed_form
from invem.running.context import Context
from invem.storage.directory import Round
from invem.storage.weights import TrainedWeights, below, moments_of, shape_of

__all__ = [
    "first_prior",
    "last_prior",
    "network_maker",
    "newest_weights",
    "prior_of_files",
    "read_prior",
]

FILE = "denoiser"  # of an M-step
FOREIGN = "prior"  # what another run learned, in the run directory


def network_maker(
    build: Callable[[], Any],
    seed: int,
    sigma_data: float,
    mean: Tensor | None,
    *key: int,
    made: list[Denoiser] | None = None,
) -> MakeNetwork:
    """Returns a function that builds networks, each from a random stream of its own.

    Args:
        build: Builds the network of the recipe or of a phase: () -> nn.Module.
        seed: The seed of the recipe.
        sigma_data: The scale of the preconditioning, for networks that are no denoisers themselves.
        mean: The centre of the signals, shape (*shape); None is zero.
        key: What the random streams of the weights are for, beside the number of the network.
        made: Where each network is appended.
    """
    networks = [] if made is None else made

    def make() -> Denoiser:
        stream = Rng.keyed(seed, "network", *key, items=[len(networks)])
        with torch.random.fork_rng(devices=[]):
            torch.random.manual_seed(stream.seeds[0])
            built = build()
        network = built if isinstance(built, Denoiser) else Preconditioned(built, sigma_data)
        if mean is not None:
            network.mean = mean
        networks.append(network)
        return network

    return make


def prior_of_files(
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    objective: Objective | ClosedFormObjective | None,
    make_network: Callable[[float, Tensor | None], MakeNetwork],
    device: torch.device,
    shape: tuple[int, ...] | None = None,
) -> Prior:
    """Returns the prior that a file holds, in evaluation mode, on a device.

    Args:
        tensors: The tensors of the file.
        meta: Its metadata.
        objective: What it was fitted by; None reads a plain network, or a distribution that invem
            itself knows.
        make_network: Returns a builder of networks: (sigma_data, mean) -> MakeNetwork.
        device: The device.
        shape: The shape of one signal, if it is another one than that of the training signals. The
            network is then centred at one value of each channel, and the moments are a stand-in
            (`Gaussian.stationary`).

    Raises:
        RuntimeError: If the weights are of another network.
        RecipeError: If the model is more than a network, and there is no objective that builds it;
            or if a prior in closed form is asked for at another shape.
    """
    weights = TrainedWeights.from_file(tensors, meta)
    if weights is None and shape is not None:
        raise RecipeError(
            f"a prior in closed form is of signals of shape {shape_of(tensors, meta)} alone; larger"
            " frames need a network that is convolutional"
        )
    if weights is None:
        own = {name: tensor.to(device) for name, tensor in below(tensors, "exact.").items()}
        if isinstance(objective, ClosedFormObjective):
            return Prior.of(objective.closed_form(own))
        return Prior.of(closed_form(own))
    moments = moments_of(tensors)
    mean = None if moments is None else moments.mean
    if moments is not None and shape is not None:
        moments = moments.stationary(shape)
        # One value of each channel fits windows of every size.
        mean = moments.mean.flatten(1)[:, :1].reshape(-1, *[1] * (len(shape) - 1))
    make = make_network(weights.sigma_data, mean)
    own_moments = None if moments is None else moments.to(device)
    if not isinstance(objective, Objective):
        network = _ready(make(), plain_network(weights), device)
        return Prior(network, own_moments)
    model = _ready(objective.build(make, None, None), weights, device)
    return objective.prior(model, own_moments)


def _ready(model: Denoiser, weights: TrainedWeights, device: torch.device) -> Denoiser:
    """Returns a model with the averaged weights, in evaluation mode, on a device."""
    model.load_state_dict(weights.averaged())
    return model.to(device).eval().requires_grad_(False)


def plain_network(weights: TrainedWeights) -> TrainedWeights:
    """Returns the weights of a model as those of a plain network.

    Raises:
        RecipeError: If the model is more than a network.
    """
    plain = weights.alone()
    if plain is None:
        raise RecipeError(
            "its objective put a module around the network; go on from it in the same recipe"
        )
    return plain


def read_prior(run: Context, at: Round | None, shape: tuple[int, ...] | None = None) -> Prior:
    """Reads the prior that a round fitted; without a round the one that another run learned.

    Args:
        run: The run.
        at: The round.
        shape: The shape of one signal, if it is another one than that of the run (see
            `prior_of_files`).

    Raises:
        DataError: If the file is missing or damaged.
        RecipeError: If it is of another network than the recipe's, or cannot be of the shape.
    """
    folder = run.directory if at is None else run.directory.fit(at)
    name = FOREIGN if at is None else FILE
    tensors, meta = folder.read_meta(name)
    stage = None if at is None else run.stage(at)

    made: list[Denoiser] = []

    def make_network(sigma_data: float, mean: Tensor | None) -> MakeNetwork:
        build = run.plan.builder_of(stage, shape)
        return network_maker(build, run.recipe.seed, sigma_data, mean, made=made)

    objective = _foreign_objective(meta) if stage is None else stage.objective
    try:
        prior = prior_of_files(tensors, meta, objective, make_network, run.device, shape)
    except RuntimeError as error:
        if shape is not None:
            raise RecipeError(
                f"the network of this run is of signals of shape {run.shape} alone; frames of"
                f" another size, such as {shape}, need a network that is convolutional"
            ) from error
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(
            f"{folder.file(name)}: it is of another network than the recipe's: {reason}"
        ) from error
    # A network that has learned nothing yet may answer zero, which hides its mistakes.
    for network in made:
        try_network(network, run.shape, run.device, run.plan.origins)
    return prior


def _foreign_objective(meta: Mapping[str, Any]) -> ClosedFormObjective | None:
    """Returns the objective that solved a prior of another run in closed form; None for a network,
    which is built as this recipe has it."""
    made = meta.get("made of") or {}
    if made.get("network") is not None or "networks" in meta:
        return None
    make = factory_of(Catalog.load(), "objectives", made.get("objective"))
    found: ClosedFormObjective | None = None if make is None else make()
    return found


def first_prior(run: Context) -> Prior | None:
    """Returns the prior that the first phase begins with, and keeps a copy of what another run
    learned."""
    named = run.recipe.prior
    if named is None:
        return None
    if named == "network":
        network = built_network(run).to(run.device).eval().requires_grad_(False)
        return Prior(network)
    if not run.directory.has(FOREIGN):
        tensors, meta = run.plan.foreign_prior()
        shape = shape_of(tensors, meta)
        if shape != tuple(run.shape):
            raise RecipeError(f"prior {named}: it is of signals of shape {shape}, not {run.shape}")
        run.directory.write(FOREIGN, tensors, meta)
    return read_prior(run, None)


def built_network(run: Context) -> Denoiser:
    """Returns the recipe's network as it is built, with the weights that it comes with."""
    return network_maker(run.plan.builder_of(None), run.recipe.seed, 0.5, None)()


def last_prior(run: Context, shape: tuple[int, ...] | None = None) -> Prior:
    """Returns the newest prior of the run.

    Args:
        run: The run.
        shape: The shape of one signal, if it is another one than that of the run.

    Raises:
        DataError: If no round is finished.
        RecipeError: If the prior cannot be of the shape.
    """
    fitted = run.directory.fitted()
    if fitted:
        return read_prior(run, fitted[-1], shape)
    if shape is not None and run.directory.has(FOREIGN):
        return read_prior(run, None, shape)
    if shape is not None and run.recipe.prior == "network":
        return Prior(built_network(run).to(run.device).eval().requires_grad_(False))
    if run.directory.has(FOREIGN) or run.recipe.prior == "network":
        prior = first_prior(run)
        assert prior is not None
        return prior
    path = run.directory.path
    raise DataError(f"{path}: no denoiser is finished in it; go on with: invem resume {path}")


def newest_weights(run: Context, at: Round) -> TrainedWeights | None:
    """Returns the newest weights of the network that a round trains, of the rounds before it.

    They must be of the same network, and have predicted the same: see `Objective.learns`.
    """
    stage = run.stage(at)
    for p in range(at.phase, -1, -1):
        if not _same_network(run.plan.stages[p], stage):
            continue
        last = at.number if p == at.phase else run.plan.stages[p].phase.rounds
        for r in range(last - 1, -1, -1):
            folder = run.directory.fit(Round(p, r))
            if folder.has(FILE):
                found = TrainedWeights.from_file(*folder.read_meta(FILE))
                if found is not None and found.networks:
                    return found
    if stage.own or learns(stage) != Objective.learns:
        return None
    if run.recipe.prior == "network":
        state = dict(built_network(run).state_dict())
        return TrainedWeights(raw=state, average={})
    if run.directory.has(FOREIGN):
        return TrainedWeights.from_file(*run.directory.read_meta(FOREIGN))
    return None


def learns(stage: Stage) -> str:
    """Returns what the network of a phase predicts."""
    trained = isinstance(stage.objective, Objective)
    return stage.objective.learns if trained else Objective.learns  # type: ignore[union-attr]


def _same_network(one: Stage, other: Stage) -> bool:
    return one.own == other.own and learns(one) == learns(other)
