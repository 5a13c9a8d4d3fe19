"""Priors in files of their own: what is loaded is what was saved, without recipe or run."""

import golden_runs
import pytest
import torch

from invem import DataError, Gaussian, Prior, Rng, Unsupported, store
from invem.config import Catalog, load
from invem.door import Run
from invem.planning.make import make
from invem.priorfile import copy_prior, load_prior, save_prior


def opened(name, folder):
    path = golden_runs.carry_out(name, folder)
    return Run(make(load(path / "recipe.yaml"), Catalog.load()), path)


def test_a_closed_form_is_loaded_as_it_was_saved(tmp_path):
    prior = Prior.of(Gaussian.standard((1, 3, 3), 0.7))
    save_prior(prior, tmp_path / "prior.safetensors")
    again, x = load_prior(tmp_path / "prior.safetensors"), torch.linspace(-1, 1, 9)
    x = x.reshape(1, 1, 3, 3)
    assert torch.equal(again(x, 0.3), prior(x, 0.3)) and again.provides == prior.provides


@pytest.mark.parametrize("name", ["mmps", "closed-forms", "conditional", "refine", "distil"])
def test_the_prior_of_a_run_is_loaded_without_the_run(name, tmp_path):
    run = opened(name, tmp_path)
    copy_prior(run.directory, tmp_path / "prior.safetensors")
    prior, again = run.prior, load_prior(tmp_path / "prior.safetensors")
    x = torch.linspace(-1, 1, 2 * int(torch.tensor(run.plan.shape).prod()))
    x = x.reshape(2, *run.plan.shape)
    assert torch.equal(prior(x, 0.3), again(x, 0.3)) and again.provides == prior.provides
    assert torch.equal(prior.known_moments().mean, again.known_moments().mean)
    if prior.generator is not None:
        draws = [
            p.generator(Rng.keyed(0, items=range(2)), run.plan.shape, x) for p in (prior, again)
        ]
        assert torch.equal(*draws)


def test_what_cannot_be_saved_or_loaded_is_refused(tmp_path):
    run = opened("mmps", tmp_path)
    with pytest.raises(Unsupported, match="save_prior"):
        save_prior(run.prior, tmp_path / "prior.safetensors")
    store.write(tmp_path / "other.safetensors", {"x": torch.zeros(3)})
    with pytest.raises(DataError, match="holds no prior"):
        load_prior(tmp_path / "other.safetensors")
