"""The metrics, against known answers."""

import math
import time
from dataclasses import replace

import pytest
import torch
from invem_plugins.metrics.data_misfit import DataMisfit
from invem_plugins.metrics.frechet import Frechet
from invem_plugins.metrics.psnr import PSNR
from invem_plugins.metrics.sliced_wasserstein import SlicedWasserstein
from invem_plugins.metrics.ssim import SSIM
from invem_plugins.noises.gaussian import Gaussian
from invem_plugins.operators.random_mask import random_mask

from invem import DataError, Example, Measurement, Outcome, RecipeError, Unsupported

torch.set_num_threads(1)
RANGE = (-1.0, 1.0)
SHAPES = [(6,), (1, 8, 8), (3, 5, 7)]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=rng(seed))


def outcome(**parts):
    return Outcome(range=RANGE, **parts)


def value(metric, training=None, **parts):
    return metric(outcome(**parts), {} if training is None else metric.prepare(training))


# PSNR


def test_psnr_by_hand():
    truth = torch.zeros(2, 1, 2, 2)
    draws = torch.zeros(2, 2, 1, 2, 2)
    draws[0, 0], draws[0, 1] = 0.2, -0.1
    draws[1] = 2.0
    by_mean = 10 * math.log10(4 / 0.05**2)
    by_draw = (10 * math.log10(4 / 0.04) + 10 * math.log10(4 / 0.01)) / 2
    assert torch.allclose(value(PSNR(), truth=truth, draws=draws), torch.tensor([by_mean, 0.0]), atol=1e-4)
    drawn = value(PSNR(of="draw"), truth=truth, draws=draws)
    assert torch.allclose(drawn, torch.tensor([by_draw, 0.0]), atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("of", ["mean", "draw"])
def test_psnr_of_the_truth_is_best(shape, of):
    truth = normal(4, *shape)
    perfect = value(PSNR(of=of), truth=truth, draws=truth[:, None])
    assert perfect.shape == (4,) and (perfect == math.inf).all()
    near, far = (
        value(PSNR(of=of), truth=truth, draws=truth[:, None] + s * normal(4, 3, *shape)) for s in (0.1, 0.5)
    )
    assert (far < near).all() and near.isfinite().all()


# SSIM


def waves(h, w, c=1):
    i = torch.arange(c * h * w, dtype=torch.float64).reshape(1, c, h, w)
    a = (0.37 * i).sin() * (0.011 * i).cos()
    return a, 0.8 * a + 0.2 * (1.3 * i).cos()


def test_ssim_reference():
    a, b = waves(20, 24, 2)
    # skimage 0.26: structural_similarity(a, b, channel_axis=0, gaussian_weights=True, sigma=1.5,
    # use_sample_covariance=False, data_range=2)
    assert value(SSIM(), truth=a, draws=b[:, None]).item() == pytest.approx(0.5260455160231795, abs=1e-6)


def test_ssim_is_that_of_skimage():
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    a, b = normal(2, 3, 33, 40).double(), normal(2, 3, 33, 40, seed=1).double()
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 2}
    b = a + 0.3 * b
    for x, y, found in zip(a, b, value(SSIM(), truth=a, draws=b[:, None]), strict=True):
        expected = metrics.structural_similarity(x.numpy(), y.numpy(), channel_axis=0, **options)
        assert found.item() == pytest.approx(expected, abs=1e-6)


def test_ssim_small_image_by_hand():
    a, b = waves(8, 8)
    w = torch.exp(-(torch.arange(-3.0, 4.0).double() ** 2) / 4.5)
    w = torch.outer(w, w) / w.sum() ** 2
    values = []
    for i in range(2):
        for j in range(2):
            p, q = a[0, 0, i : i + 7, j : j + 7], b[0, 0, i : i + 7, j : j + 7]
            mp, mq = (w * p).sum(), (w * q).sum()
            vp, vq = (w * (p - mp) ** 2).sum(), (w * (q - mq) ** 2).sum()
            cov = (w * (p - mp) * (q - mq)).sum()
            first = (2 * mp * mq + 0.02**2) / (mp**2 + mq**2 + 0.02**2)
            values.append(first * (2 * cov + 0.06**2) / (vp + vq + 0.06**2))
    expected = torch.stack(values).mean().item()
    assert value(SSIM(), truth=a, draws=b[:, None]).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 8, 8), (3, 5, 17), (2, 30, 11)])
@pytest.mark.parametrize("of", ["mean", "draw"])
def test_ssim_of_the_truth_is_one(shape, of):
    truth = normal(3, *shape)
    assert torch.allclose(value(SSIM(of=of), truth=truth, draws=truth[:, None]), torch.ones(3))
    draws = truth[:, None] + 0.3 * normal(3, 4, *shape, seed=1)
    noisy = value(SSIM(of=of), truth=truth, draws=draws)
    assert noisy.shape == (3,) and (noisy < 1).all()
    one = value(SSIM(of="draw"), truth=truth[1:2], draws=draws[1:2])
    assert of == "mean" or torch.allclose(one, noisy[1:2], atol=1e-6)


def test_ssim_of_vectors_is_refused():
    with pytest.raises(Unsupported, match="images"):
        value(SSIM(), truth=normal(3, 5), draws=normal(3, 2, 5))


# data misfit


def measured(x, sigma=0.3):
    A = random_mask(len(x), tuple(x.shape[1:]), rng(1), keep=0.5)
    noise = Gaussian(torch.full((len(x), *[1] * (x.ndim - 1)), sigma))
    return Measurement(noise.sample(A(x), rng(2)), A, noise)


@pytest.mark.parametrize("shape", SHAPES)
def test_misfit_of_the_truth_is_one(shape):
    x = normal(3000, *shape)
    m = measured(x)
    found = value(DataMisfit(), draws=x[:, None], measurement=m)
    assert found.shape == (3000,)
    assert found.square().mean().sqrt().item() == pytest.approx(1, abs=0.02)
    residual = (m.y - m.A(x))[7] / 0.3
    assert found[7].item() == pytest.approx(residual.square().mean().sqrt().item(), rel=1e-5)


def test_misfit_of_draws_and_of_their_mean():
    x = torch.zeros(2, 1, 4, 4)
    noise = Gaussian(torch.full((2, 1, 1, 1), 0.5))
    m = Measurement(x, random_mask(2, (1, 4, 4), rng(), keep=1.0), noise)
    draws = torch.stack([x + 1, x - 1], 1)
    assert torch.allclose(value(DataMisfit(), draws=draws, measurement=m), torch.full((2,), 2.0))
    assert torch.allclose(value(DataMisfit(of="mean"), draws=draws, measurement=m), torch.zeros(2))


def test_misfit_without_noise_is_refused():
    x = normal(4, 6)
    with pytest.raises(RecipeError, match="data-misfit"):
        value(DataMisfit(), draws=x[:, None], measurement=measured(x, sigma=0.0))


# sliced Wasserstein


@pytest.mark.parametrize("shape", [(8,), (1, 8, 8), (4, 4, 8)])
def test_sliced_wasserstein_of_a_shifted_set(shape):
    x = normal(50, *shape)
    shuffled = x[torch.randperm(50, generator=rng())]
    assert value(SlicedWasserstein(), samples=x, reference=shuffled).item() == pytest.approx(0, abs=1e-6)
    found = value(SlicedWasserstein(), samples=x, reference=shuffled + 0.3)
    assert found.shape == () and found.item() == pytest.approx(0.3, rel=1e-4)


def test_sliced_wasserstein_of_scaled_gaussians():
    x, y = normal(20_000, 16), 2 * normal(20_000, 16, seed=1)
    assert value(SlicedWasserstein(), samples=x, reference=y).item() == pytest.approx(1, rel=0.02)


def test_sliced_wasserstein_of_sets_of_different_sizes():
    x = normal(5000, 8)
    small = value(SlicedWasserstein(), samples=x, reference=normal(1777, 8, seed=1) + 0.5)
    assert small.item() == pytest.approx(0.5, rel=0.1)
    line = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    found = value(SlicedWasserstein(projections=1), samples=line, reference=torch.tensor([[0.5], [2.5]]))
    gap = torch.tensor([0.0, 1.0, 2.0, 3.0]) - torch.tensor([0.5, 1.0, 2.0, 2.5])
    assert found.item() == pytest.approx(gap.square().mean().sqrt().item())
    point = value(SlicedWasserstein(projections=1), samples=line, reference=torch.tensor([[1.5]]))
    assert point.item() == pytest.approx(math.sqrt(1.25))


def test_sliced_wasserstein_directions():
    x, y = normal(100, 30), normal(100, 30, seed=1) * 1.3
    found = [value(SlicedWasserstein(projections=4, seed=s), samples=x, reference=y) for s in (0, 0, 1)]
    assert found[0] == found[1] != found[2]


# Fréchet


def two_gaussians(n, d=6):
    x, y = normal(n, d).double(), normal(n, d, seed=1).double()
    a, b = normal(d, d, seed=2).double(), normal(d, d, seed=3).double()
    return (x @ a.T).float(), (y @ b.T + 0.5).float(), a @ a.T, b @ b.T


def test_frechet_of_two_gaussians():
    x, y, cov_x, cov_y = two_gaussians(200_000)
    overlap = torch.linalg.eigvals(cov_x @ cov_y).real.clamp(min=0).sqrt().sum()
    expected = (6 * 0.25 + cov_x.trace() + cov_y.trace() - 2 * overlap) / cov_x.trace()
    found = value(Frechet(), Example(x), samples=y, reference=x)
    assert found.shape == () and found.item() == pytest.approx(expected.item(), rel=0.02)


@pytest.mark.parametrize("shape", SHAPES)
def test_frechet_of_pixels(shape):
    x = normal(400, *shape)
    metric, scale = Frechet(), math.prod(shape)
    assert metric.needs == {"samples", "reference"}
    state = metric.prepare(Example(x))
    assert metric(outcome(samples=x, reference=x.flip(0)), state).item() == pytest.approx(0, abs=1e-6)
    shifted = metric(outcome(samples=x + 0.3, reference=x), state).item()
    total = x.flatten(1).var(0).sum().item()
    if scale <= 64:
        assert shifted == pytest.approx(scale * 0.09 / total, rel=1e-3)
    middle = x.mean(0, keepdim=True).expand(5, *shape)
    assert metric(outcome(samples=middle, reference=x), state).item() == pytest.approx(1, rel=1e-3)


def test_frechet_principal_components_are_exact():
    x = normal(300, 100) @ torch.diag(torch.linspace(3, 0.1, 100)) + 1
    state = Frechet(rank=5).prepare(Example(x))
    values, vectors = torch.linalg.eigh(torch.cov(x.T.double()))
    top = vectors[:, -5:] / values[-5:].sum().sqrt()
    expected, found = top @ top.T, state["components"].double() @ state["components"].double().T
    assert torch.allclose(expected, found, atol=2e-3 * expected.abs().max().item())
    assert set(state) == {"mean", "components"} and state["components"].shape == (100, 5)


def test_frechet_rank_is_limited_by_the_data():
    assert Frechet().prepare(Example(normal(10, 100)))["components"].shape == (100, 9)
    assert Frechet().prepare(Example(normal(100, 1)))["components"].shape == (1, 1)
    x = normal(100, 1)
    assert value(Frechet(), Example(x), samples=x + 1, reference=x).item() == pytest.approx(
        1 / x.var().item()
    )


def labelled(n=600, seed=0):
    """Images of four classes: which quarter is bright."""
    label = torch.randint(0, 4, (n,), generator=rng(seed))
    x = 0.2 * normal(n, 1, 8, 8, seed=seed + 1) - 0.8
    for i, kind in enumerate(label.tolist()):
        x[i, 0, 4 * (kind // 2) :][:4, 4 * (kind % 2) :][:, :4] += 1.2
    return Example(x, label=label + 3)


def test_frechet_of_classifier_features():
    metric = Frechet(features="classifier")
    assert metric.needs == {"samples", "reference", "labels", "image"}
    training = labelled()
    before = torch.random.get_rng_state()
    start = time.perf_counter()
    with torch.no_grad():
        state = metric.prepare(training)
    assert time.perf_counter() - start < 30
    assert torch.equal(before, torch.random.get_rng_state()), "global randomness is not touched"
    assert all(not tensor.requires_grad and tensor.isfinite().all() for tensor in state.values())
    x, fresh = training.x, labelled(seed=10)
    score = {
        "same": metric(outcome(samples=x.flip(0), reference=x), state).item(),
        "fresh": metric(outcome(samples=fresh.x, reference=x), state).item(),
        "one class": metric(outcome(samples=fresh.x[fresh.label == 3], reference=x), state).item(),
        "noise": metric(outcome(samples=normal(*x.shape, seed=5), reference=x), state).item(),
    }
    assert score["same"] == pytest.approx(0, abs=1e-5)
    assert score["same"] < score["fresh"] < 0.1 < score["one class"]
    assert score["noise"] > 0.1
    again = metric.prepare(training)
    assert all(torch.equal(state[name], again[name]) for name in state)


def test_frechet_classifier_needs_labelled_images():
    metric = Frechet(features="classifier")
    with pytest.raises(DataError, match="features: pixels"):
        metric.prepare(Example(normal(10, 1, 8, 8)))
    with pytest.raises(DataError, match="features: pixels"):
        metric.prepare(Example(normal(10, 8), label=torch.zeros(10, dtype=torch.long)))
    with pytest.raises(DataError, match="two clean training images"):
        metric.prepare(Example(None))


class Detector(torch.nn.Module):
    """Has the call of inception-2015-12-05.pt: bytes in, features out."""

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert images.dtype == torch.uint8 and return_features
        return images.double().mean([2, 3])


def test_frechet_of_a_network_in_a_file(tmp_path):
    path = tmp_path / "detector.pt"
    torch.jit.script(Detector()).save(str(path))
    metric = Frechet(features="inception", weights=str(path))
    x = normal(50, 1, 8, 8).mul(0.1).clamp(-0.5, 0.5)
    assert metric.prepare(Example(x)) == {}
    assert value(metric, samples=x, reference=x).item() == pytest.approx(0, abs=1e-5)
    found = value(metric, samples=x + 10 / 127.5, reference=x).item()
    assert found == pytest.approx(3 * 100, rel=1e-3)
    with pytest.raises(Unsupported, match="1 or 3 channels"):
        value(metric, samples=normal(5, 4), reference=normal(5, 4))
    path.write_bytes(b"not a network")
    with pytest.raises(DataError, match=r"\A[^\n]*detector.pt is not a TorchScript file[^\n]*\Z"):
        value(metric, samples=x, reference=x)
    with pytest.raises(RecipeError, match="weights"):
        Frechet(features="inception")
    with pytest.raises(DataError, match=r"missing.pt"):
        Frechet(features="inception", weights=str(tmp_path / "missing.pt"))


def test_frechet_of_hopeless_sets():
    x = normal(20, 4)
    state = Frechet().prepare(Example(x))
    broken = x.clone()
    broken[3, 2] = math.nan
    assert Frechet()(outcome(samples=broken, reference=x), state).isnan()
    with pytest.raises(DataError, match="two samples"):
        Frechet()(outcome(samples=x[:1], reference=x), state)
    for training in (torch.ones(20, 4), broken):
        with pytest.raises(DataError, match="training images"):
            Frechet().prepare(Example(training))


# all


@pytest.mark.parametrize("metric", [PSNR(), SSIM(), DataMisfit(), SlicedWasserstein(), Frechet()])
def test_missing_parts(metric):
    x = normal(4, 1, 8, 8)
    parts = {"truth": x, "draws": x[:, None], "measurement": measured(x), "samples": x, "reference": x}
    state = metric.prepare(Example(x))
    whole = outcome(**parts)
    assert metric(whole, state).shape in ((4,), ())
    for name in metric.needs - {"var", "image"}:
        with pytest.raises(Unsupported, match="needs"):
            metric(replace(whole, **{name: None}), state)
    only_needed = outcome(**{name: parts[name] for name in metric.needs - {"var", "image"}})
    assert torch.equal(metric(only_needed, state), metric(whole, state))
