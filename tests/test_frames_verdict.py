"""Did it work: metrics that need no truth, and the headline."""

import pytest
import torch
from invem_plugins.metrics.residual_correlation import ResidualCorrelation
from invem_plugins.metrics.sure import Sure
from invem_plugins.noises.gaussian import Gaussian
from invem_plugins.operators.identity import identity
from safetensors.torch import save_file
from skimage.data import camera

import invem
from invem import Measurement, Outcome, Prior, door, report
from invem.linalg import DPLR
from invem.prior import ExactDenoiser

torch.set_num_threads(1)
SHAPE = (1, 8, 8)


def white(spread):
    """A prior with independent pixels."""
    exact = invem.Gaussian(
        torch.zeros(SHAPE), DPLR(torch.full((64,), spread**2), torch.zeros(64, 0))
    )
    return Prior(ExactDenoiser(exact), exact.moments(), exact)


def seen(sigma, n=400, spread=0.5):
    rng = torch.Generator().manual_seed(0)
    x = spread * torch.randn((n, *SHAPE), generator=rng)
    y = x + sigma * torch.randn((n, *SHAPE), generator=rng)
    return x, y


@pytest.mark.parametrize("spread", [0.5, 0.1, 3.0])
def test_sure_is_the_true_error_of_any_prior(spread):
    x, y = seen(0.3)
    m = Measurement(
        y, identity(len(y), SHAPE, torch.Generator()), Gaussian(torch.full((len(y), 1, 1, 1), 0.3))
    )
    found = Sure()(Outcome(range=(-1, 1), measurement=m, prior=white(spread)), {})
    x_hat = y * spread**2 / (spread**2 + 0.3**2)
    true = (x_hat - x).square().flatten(1).mean(1) / 0.09
    gap = found - true
    assert abs(gap.mean()) < 3 * gap.std() / len(y) ** 0.5


def test_noise_has_no_structure_and_a_removed_signal_has():
    x, y = seen(0.3)
    m = Measurement(
        y, identity(len(y), SHAPE, torch.Generator()), Gaussian(torch.full((len(y), 1, 1, 1), 0.3))
    )
    value = ResidualCorrelation()(Outcome(range=(-1, 1), measurement=m, draws=x[:, None]), {})
    assert abs(value.mean()) < 3 * value.std() / len(y) ** 0.5
    ramp = torch.linspace(-1, 1, 8).expand(SHAPE)
    value = ResidualCorrelation()(
        Outcome(range=(-1, 1), measurement=m, draws=(x - ramp)[:, None]), {}
    )
    assert value.mean() > 0.3


def photographs(folder, sigma=0.2, assumed=None):
    """A recipe for noisy crops of a photograph, without truth."""
    rng = torch.Generator().manual_seed(0)
    image = torch.from_numpy(camera()).float() / 127.5 - 1
    crops = image.unfold(0, 12, 24).unfold(1, 12, 24).reshape(-1, 1, 12, 12)
    y = crops + sigma * torch.randn(crops.shape, generator=rng)
    save_file({"y": y.contiguous()}, folder / "y.safetensors")
    return {
        "observations": {
            "name": "measurements",
            "file": str(folder / "y.safetensors"),
            "shape": [1, 12, 12],
        },
        "operator": "identity",
        "noise": {"name": "gaussian", "sigma": assumed or sigma},
        "network": {"name": "mlp", "width": 8, "depth": 1},
        "phases": [
            {
                "name": "start",
                "sampler": "observation",
                "fit": {"objective": "gaussian-moments"},
            },
            {
                "name": "gaussian",
                "rounds": 8,
                "sampler": "exact",
                "fit": {"objective": "gaussian-moments"},
            },
        ],
        "evaluate": {"samples": 16, "draws": 2, "steps": 4, "posterior": 2},
    }


def headline_of(recipe, folder):
    door.run(recipe, out=folder / "run")
    data = report.load(folder / "run")
    print(report.headline(data).text, report.verdict(data), sep="\n")
    return report.headline(data)


def test_a_right_sigma_worked(tmp_path):
    told = headline_of(photographs(tmp_path), tmp_path)
    assert told.text.startswith("It worked") and "sure" in told.text, told.text


@pytest.mark.parametrize(("factor", "words"), [(0.5, "too small"), (2.0, "too large")])
def test_a_wrong_sigma_is_named(factor, words, tmp_path):
    told = headline_of(photographs(tmp_path, assumed=0.2 * factor), tmp_path)
    assert told.text.startswith("It did not work") and words in told.text, told.text
