"""Priors in files of their own: saved and loaded without the recipe or the run they come from."""

from pathlib import Path

import torch
from torch import Tensor

from invem import store
from invem.config import Catalog
from invem.errors import DataError, PluginError, RecipeError, Unsupported
from invem.objective import MakeNetwork
from invem.planning.build import factory_of
from invem.prior import Prior
from invem.running.priors import network_maker, prior_of_files
from invem.storage.directory import RunDirectory
from invem.storage.weights import exact_tensors

__all__ = ["copy_prior", "load_prior", "save_prior"]


def save_prior(prior: Prior, path: str | Path) -> None:
    """Writes a prior in closed form to a file, for `load_prior`.

    Args:
        prior: The prior. One that a run trained is saved by `Run.save_prior`, which knows how its
            network is built.
        path: The file, NAME.safetensors.

    Raises:
        Unsupported: If the prior is a network.
        ResourceError: If the disk is full.
    """
    if prior.exact is None or prior.trained:
        raise Unsupported(
            "a network is saved with how it is built, which its run knows: run.save_prior(path)"
        )
    meta = {"provides": sorted(prior.provides), "made of": None}
    store.write(Path(path), exact_tensors(prior.exact), meta)


def copy_prior(directory: RunDirectory, path: str | Path) -> None:
    """Writes the newest prior of a run to a file, for `load_prior`.

    Raises:
        DataError: If no round is finished.
    """
    tensors, meta = directory.read_newest_prior()
    store.write(Path(path), tensors, meta)


def load_prior(path: str | Path, device: str | torch.device = "cpu") -> Prior:
    """Loads a prior from a file, in evaluation mode. Its network and its objective are looked up
    among the installed components by their names; no code of the file runs.

    Args:
        path: A file that `save_prior` or `Run.save_prior` wrote.
        device: The device.

    Raises:
        DataError: If the file is missing or damaged, or holds no prior.
        PluginError: If a component that it needs is not installed.
    """
    tensors, meta = store.read_meta(Path(path))
    if "made of" not in meta:
        raise DataError(f"{path}: it holds no prior")
    made = meta["made of"] or {}
    catalog = Catalog.load()
    try:
        objective = factory_of(catalog, "objectives", made.get("objective"))
        network = factory_of(catalog, "networks", made.get("network"))
    except RecipeError as error:
        raise PluginError(f"{path}: {error}") from error

    def make_network(sigma_data: float, mean: Tensor | None) -> MakeNetwork:
        if network is None:
            raise DataError(f"{path}: it does not say what network its weights are of")
        build = network
        return network_maker(lambda: build(tuple(made["shape"])), 0, sigma_data, mean)

    try:
        solved_by = None if objective is None else objective()
        return prior_of_files(tensors, meta, solved_by, make_network, torch.device(device))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path}: its weights are of another network: {reason}") from error
