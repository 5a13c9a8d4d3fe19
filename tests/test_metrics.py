"""The metrics, against known answers."""

import math
import time
from dataclasses import replace

import pytest
import torch
from invem_plugins.metrics.calibration import Calibration
from invem_plugins.metrics.data_misfit import DataMisfit
from invem_plugins.metrics.frechet import Frechet
from invem_plugins.metrics.memorisation import Memorisation
from invem_plugins.metrics.observation_distance import ObservationDistance
from invem_plugins.metrics.observation_likelihood import ObservationLikelihood
from invem_plugins.metrics.psnr import PSNR
from invem_plugins.metrics.self_consistency import SelfConsistency
from invem_plugins.metrics.sliced_wasserstein import SlicedWasserstein
from invem_plugins.metrics.ssim import SSIM
from invem_plugins.noises.gaussian import Gaussian
from invem_plugins.noises.laplace import laplace
from invem_plugins.operators.clip import clip
from invem_plugins.operators.gaussian_blur import gaussian_blur
from invem_plugins.operators.identity import identity
from invem_plugins.operators.random_mask import random_mask
from invem_plugins.operators.random_projection import random_projection

import invem
from invem import (
    DataError,
    Example,
    Measurement,
    Mixture,
    Outcome,
    Prior,
    RecipeError,
    Rng,
    Unsupported,
)
from invem.bench import LEVELS, coverage_curve
from invem.compare import canonical_order, principal_components, ranks, share_inside
from invem.linalg import DPLR
from invem.prior import ExactDenoiser

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
    assert torch.allclose(
        value(PSNR(), truth=truth, draws=draws), torch.tensor([by_mean, 0.0]), atol=1e-4
    )
    drawn = value(PSNR(of="draw"), truth=truth, draws=draws)
    assert torch.allclose(drawn, torch.tensor([by_draw, 0.0]), atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("of", ["mean", "draw"])
def test_psnr_of_the_truth_is_best(shape, of):
    truth = normal(4, *shape)
    perfect = value(PSNR(of=of), truth=truth, draws=truth[:, None])
    assert perfect.shape == (4,) and (perfect == math.inf).all()
    near, far = (
        value(PSNR(of=of), truth=truth, draws=truth[:, None] + s * normal(4, 3, *shape))
        for s in (0.1, 0.5)
    )
    assert (far < near).all() and near.isfinite().all()


# SSIM


def waves(h, w, c=1):
    i = torch.arange(c * h * w, dtype=torch.float64).reshape(1, c, h, w)
    a = (0.37 * i).sin() * (0.011 * i).cos()
    return a, 0.8 * a + 0.2 * (1.3 * i).cos()


def test_ssim_reference():
    a, b = waves(20, 24, 2)
    # skimage 0.26: structural_similarity(a + 1, b + 1, channel_axis=0, gaussian_weights=True,
    # sigma=1.5, use_sample_covariance=False, data_range=2)
    assert value(SSIM(), truth=a, draws=b[:, None]).item() == pytest.approx(
        0.9115079350486551, abs=1e-6
    )


def test_ssim_is_that_of_skimage():
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    a, b = normal(2, 3, 33, 40).double(), normal(2, 3, 33, 40, seed=1).double()
    options = {
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
        "data_range": 2,
    }
    b = a + 0.3 * b
    for x, y, found in zip(a, b, value(SSIM(), truth=a, draws=b[:, None]), strict=True):
        x, y = 1 + x.numpy(), 1 + y.numpy()
        expected = metrics.structural_similarity(x, y, channel_axis=0, **options)
        assert found.item() == pytest.approx(expected, abs=1e-6)


def test_ssim_small_image_by_hand():
    a, b = waves(8, 8)
    w = torch.exp(-(torch.arange(-3.0, 4.0).double() ** 2) / 4.5)
    w = torch.outer(w, w) / w.sum() ** 2
    values = []
    for i in range(2):
        for j in range(2):
            p, q = 1 + a[0, 0, i : i + 7, j : j + 7], 1 + b[0, 0, i : i + 7, j : j + 7]
            mp, mq = (w * p).sum(), (w * q).sum()
            vp, vq = (w * (p - mp) ** 2).sum(), (w * (q - mq) ** 2).sum()
            cov = (w * (p - mp) * (q - mq)).sum()
            first = (2 * mp * mq + 0.02**2) / (mp**2 + mq**2 + 0.02**2)
            values.append(first * (2 * cov + 0.06**2) / (vp + vq + 0.06**2))
    expected = torch.stack(values).mean().item()
    assert value(SSIM(), truth=a, draws=b[:, None]).item() == pytest.approx(expected, abs=1e-6)


def test_ssim_compares_luminances_that_are_not_negative():
    grey = torch.ones(1, 1, 11, 11)
    found = value(SSIM(), truth=-0.02 * grey, draws=0.02 * grey[:, None]).item()
    assert found == pytest.approx(0.9992, abs=1e-4)  # means 0.98 and 1.02 of a range of 2


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
    assert value(SlicedWasserstein(), samples=x, reference=shuffled).item() == pytest.approx(
        0, abs=1e-6
    )
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
    found = value(
        SlicedWasserstein(projections=1), samples=line, reference=torch.tensor([[0.5], [2.5]])
    )
    gap = torch.tensor([0.0, 1.0, 2.0, 3.0]) - torch.tensor([0.5, 1.0, 2.0, 2.5])
    assert found.item() == pytest.approx(gap.square().mean().sqrt().item())
    point = value(SlicedWasserstein(projections=1), samples=line, reference=torch.tensor([[1.5]]))
    assert point.item() == pytest.approx(math.sqrt(1.25))


def test_sliced_wasserstein_directions():
    x, y = normal(100, 30), normal(100, 30, seed=1) * 1.3
    found = [
        value(SlicedWasserstein(projections=4, seed=s), samples=x, reference=y) for s in (0, 0, 1)
    ]
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
    assert metric(outcome(samples=x, reference=x.flip(0)), state).item() == pytest.approx(
        0, abs=1e-6
    )
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
    start = time.process_time()
    with torch.no_grad():
        state = metric.prepare(training)
    assert time.process_time() - start < 30
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


def test_frechet_of_a_network_in_a_file(tmp_path, monkeypatch):
    path = tmp_path / "detector.pt"
    torch.jit.script(Detector()).save(str(path))
    monkeypatch.setenv("INVEM_INCEPTION", str(path))
    metric = Frechet(features="inception")
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
    monkeypatch.setenv("INVEM_INCEPTION", str(tmp_path / "missing.pt"))
    with pytest.raises(DataError, match=r"missing.pt"):
        Frechet(features="inception")
    monkeypatch.delenv("INVEM_INCEPTION")
    with pytest.raises(RecipeError, match="INVEM_INCEPTION"):
        Frechet(features="inception")


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


# what metrics share


@pytest.mark.parametrize(("n", "d"), [(300, 20), (20, 300), (20, 1100)])
def test_principal_components_are_those_of_the_covariance(n, d):
    x = normal(n, d).double() * torch.linspace(3, 0.1, d) + 1
    mean, basis, variance = principal_components(x, 5)
    assert torch.allclose(mean, x.mean(0)) and torch.allclose(
        basis.T @ basis, torch.eye(5).double(), atol=1e-10
    )
    cov = torch.cov(x.T)
    assert torch.allclose(cov @ basis, basis * variance, atol=1e-8)
    assert torch.allclose(variance, torch.linalg.eigvalsh(cov)[-5:].flip(0))
    assert principal_components(x[:4], 9)[1].shape == (d, 3)


def test_canonical_order_is_that_of_the_set():
    x = normal(500, 3, 4)
    moved = x[torch.randperm(500, generator=rng())]
    assert not torch.equal(moved, x) and torch.equal(
        moved[canonical_order(moved)], x[canonical_order(x)]
    )


def test_ranks_of_calibrated_draws_are_uniform():
    draws, truth = torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[2.5]])
    assert ranks(draws, truth)[0, 0].tolist() == [0.5, 0.75]
    assert ranks(draws, torch.tensor([[2.0]]))[0, 0].tolist() == [0.25, 0.75]
    for k in (1, 2, 5):
        found = ranks(normal(4000, k, 4), normal(4000, 4, seed=1))
        for low, high in ((0.0, 0.1), (0.3, 0.35), (0.05, 0.95)):
            assert share_inside(found, low, high).mean().item() == pytest.approx(
                high - low, abs=0.01
            )


# without a clean signal


def prior(d=8, mean=0.0, scale=1.0, rank=None):
    """A Gaussian on R^d that is not white, of full rank or of few factors."""
    i = torch.arange(d).double()
    if rank is None:
        return invem.Gaussian.full(torch.full((d,), mean), scale * 0.8 ** (i[:, None] - i).abs())
    factor = scale**0.5 * normal(d, rank, seed=5)
    return invem.Gaussian(torch.full((d,), mean), DPLR(scale * torch.linspace(0.1, 0.4, d), factor))


def signals(law, n, *key):
    return law.sample(Rng.keyed("test", *key, items=range(n)))


def noisy(x, law, sigma=0.3, seed=0):
    A = law(len(x), tuple(x.shape[1:]), rng(seed))
    clean = A(x)
    noise = Gaussian(torch.full((len(x), *[1] * (clean.ndim - 1)), sigma))
    return Measurement(noise.sample(clean, rng(seed + 100)), A, noise)


def masked(n, shape, generator):
    return random_mask(n, shape, generator, keep=0.5)


DISTANCES = ["sliced-wasserstein", "frechet", "classifier"]


@pytest.mark.parametrize("law", [masked, identity], ids=["mask", "identity"])
@pytest.mark.parametrize(
    ("distance", "floor", "sets"),
    [("sliced-wasserstein", 1.0, 15), ("frechet", 1.0, 30), ("classifier", 0.5, 3)],
)
def test_observation_distance_has_its_floor(distance, floor, sets, law):
    found = torch.stack(
        [
            value(
                ObservationDistance(distance=distance),
                observed=noisy(signals(prior(), 200, "real", k), law, seed=k),
                simulated=noisy(signals(prior(), 200, "same", k), law, seed=50 + k),
            )
            for k in range(sets)
        ]
    )
    error = 0.5 / 400**0.5 if distance == "classifier" else found.std().item()
    assert error < 0.5 and found.mean().item() == pytest.approx(floor, abs=3 * error / sets**0.5)


@pytest.mark.parametrize("law", [masked, identity], ids=["mask", "identity"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_observation_distance_grows_with_the_error(distance, law):
    observed = noisy(signals(prior(), 400, "real"), law)
    scores = [
        value(
            ObservationDistance(distance=distance),
            observed=observed,
            simulated=noisy(signals(prior(8, mean, 1 + mean), 400, "other"), law, seed=50),
        ).item()
        for mean in (0.6, 1.2, 2.4)
    ]
    assert (0.55 if distance == "classifier" else 2) < scores[0] < scores[1] < scores[2]


def test_observation_distance_is_a_ratio_to_the_floor():
    x = signals(prior(), 1000, "real")
    observed, other = noisy(x, identity), signals(prior(), 1000, "other")

    def score(shift, distance):
        simulated = replace(
            noisy(other, identity, seed=1), y=noisy(other, identity, seed=1).y + shift
        )
        return value(
            ObservationDistance(distance=distance), observed=observed, simulated=simulated
        ).item()

    assert score(200.0, "sliced-wasserstein") / score(100.0, "sliced-wasserstein") == pytest.approx(
        2, rel=1e-3
    )
    assert score(200.0, "frechet") / score(100.0, "frechet") == pytest.approx(4, rel=1e-2)


def test_observation_distance_of_a_classifier_is_that_of_bayes():
    zero = torch.zeros(3000, 1)
    observed, simulated = noisy(zero, identity, 1.0), noisy(zero + 1.5, identity, 1.0, seed=1)
    best = 0.5 * (1 + math.erf(0.75 / 2**0.5))
    found = value(
        ObservationDistance(distance="classifier"), observed=observed, simulated=simulated
    ).item()
    assert found == pytest.approx(best, abs=0.02)
    apart = noisy(zero + 50, identity, 1.0, seed=1)
    assert (
        value(ObservationDistance(distance="classifier"), observed=observed, simulated=apart).item()
        == 1
    )


@pytest.mark.parametrize("distance", DISTANCES)
def test_observation_distance_reads_what_is_seen(distance):
    metric = ObservationDistance(distance=distance)
    observed, simulated = (noisy(signals(prior(), 101 + k, k), masked, seed=k) for k in range(2))
    found = value(metric, observed=observed, simulated=simulated)
    assert found.shape == () and found.isfinite()
    changed = [replace(m, y=torch.where(m.A.seen != 0, m.y, 7.0)) for m in (observed, simulated)]
    assert torch.equal(value(metric, observed=changed[0], simulated=changed[1]), found)
    order = torch.randperm(101, generator=rng())
    again = value(metric, observed=observed[order], simulated=simulated[order.flip(0)][:90])
    assert not torch.equal(again, found)
    again = value(metric, observed=observed[order], simulated=simulated[torch.arange(101, -1, -1)])
    assert again.item() == pytest.approx(found.item(), rel=1e-6)


@pytest.mark.parametrize("distance", DISTANCES)
def test_observation_distance_of_hopeless_sets(distance):
    metric = ObservationDistance(distance=distance)
    m = noisy(normal(20, 8), identity)
    assert value(metric, observed=m, simulated=replace(m, y=m.y * math.nan)).isnan()
    for observed, simulated in ((m[:3], m), (m, m[:1])):
        with pytest.raises(DataError, match="four observations"):
            value(metric, observed=observed, simulated=simulated)
    wide = noisy(normal(8, 3, 20, 20), identity)
    assert value(
        metric, observed=wide, simulated=wide.__class__(wide.y + 1, wide.A, wide.noise)
    ).isfinite()


def reference(law, m):
    """log N(y; A mean, A C A^T + S) over what is seen by each operator, one after the other, per
    entry."""
    mean, cov = law.mean.flatten().double(), law.cov.to(dtype=torch.float64).dense()
    found = []
    for i in range(len(m)):
        one = m[i].to(dtype=torch.float64)
        columns = one.A[torch.zeros(len(mean), dtype=torch.long)](
            torch.eye(len(mean)).double().reshape(-1, *law.shape)
        )
        matrix = columns.flatten(1).T
        seen = (
            torch.ones(len(matrix)).bool()
            if one.A.seen is None
            else one.A.seen.expand_as(one.y).flatten() != 0
        )
        matrix, y, var = (
            matrix[seen],
            one.y.flatten()[seen],
            one.noise.var().expand_as(one.y).flatten()[seen],
        )
        gaussian = torch.distributions.MultivariateNormal(
            matrix @ mean, matrix @ cov @ matrix.T + torch.diag(var)
        )
        found.append(gaussian.log_prob(y) / len(y) if len(y) else torch.zeros(()).double())
    return torch.stack(found)


def soft(n, shape, generator):
    """A mask with weights."""
    mask = random_mask(n, shape, generator, keep=0.5)
    return replace(mask, mask=mask.mask * (0.5 + torch.rand(mask.mask.shape, generator=generator)))


def projection(n, shape, generator):
    return random_projection(n, shape, generator, measurements=3)


LAWS = [identity, masked, soft, projection]


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("varied", [False, True])
def test_likelihood_of_the_moments(law, rank, varied):
    gaussian = prior(mean=0.4, rank=rank)
    m = noisy(signals(gaussian, 40, "x"), law)
    if varied:
        m = replace(m, noise=Gaussian(torch.linspace(0.1, 0.5, m.y.numel()).reshape(m.y.shape)))
    found = value(ObservationLikelihood(), measurement=m, prior=Prior.of(gaussian))
    assert torch.allclose(found.double(), reference(gaussian, m), atol=1e-5)


def test_likelihood_of_the_moments_of_blurred_images():
    gaussian = prior(49, rank=5)
    gaussian = invem.Gaussian(gaussian.mean.reshape(1, 7, 7), gaussian.cov)
    m = noisy(signals(gaussian, 20, "x"), lambda *a: gaussian_blur(*a, std=1.0, size=3))
    found = value(ObservationLikelihood(), measurement=m, prior=Prior.of(gaussian))
    assert torch.allclose(found.double(), reference(gaussian, m), atol=1e-5)


def test_likelihood_of_nothing_is_zero_and_of_hidden_entries_is_not_counted():
    m = noisy(normal(6, 8), masked)
    m = replace(m, A=replace(m.A, mask=torch.cat([m.A.mask[:3], torch.zeros(3, 8)])))
    found = value(ObservationLikelihood(), measurement=m, prior=Prior.of(prior()))
    assert (found[:3] != 0).all() and (found[3:] == 0).all()
    changed = replace(m, y=torch.where(m.A.seen != 0, m.y, 9.0))
    assert torch.equal(
        value(ObservationLikelihood(), measurement=changed, prior=Prior.of(prior())),
        found,
    )


@pytest.mark.parametrize("of", ["moments", "network"])
def test_likelihood_is_highest_for_the_prior_that_is_right(of):
    m = noisy(signals(prior(), 300, "x"), identity)
    metric = ObservationLikelihood(of=of)
    right, *wrong = (
        value(metric, measurement=m, prior=Prior.of(law)).mean().item()
        for law in (prior(), prior(mean=0.3), prior(scale=2.0), prior(scale=0.5))
    )
    assert all(other < right - 0.005 for other in wrong)


@pytest.mark.parametrize(("steps", "least"), [(16, 2e-3), (32, 2e-4)])
def test_likelihood_of_a_gaussian_denoiser_by_the_flow(steps, least):
    gaussian = prior(6, mean=0.4, rank=2)
    m = noisy(signals(gaussian, 100, "x"), identity)
    m = replace(m, noise=Gaussian(torch.linspace(0.1, 0.5, 100)[:, None]))
    metric = ObservationLikelihood(of="network", steps=steps, probes=6)
    found = value(metric, measurement=m, prior=Prior.of(gaussian))
    assert (found.double() - reference(gaussian, m)).abs().max().item() < least


def forgetful(law):
    """A mixture that does not know its moments."""
    return Prior(ExactDenoiser(law))


@pytest.mark.parametrize("kind", [Prior.of, forgetful])
def test_likelihood_of_a_mixture_by_the_flow(kind):
    d, sigma = 4, 0.2
    covs = torch.stack([torch.diag(torch.tensor([0.01, 0.1, 0.3, 1.0])) * s for s in (1.0, 0.3)])
    law = Mixture(
        torch.tensor([0.7, 0.3]), torch.stack([torch.full((d,), -1.0), torch.full((d,), 0.5)]), covs
    )
    m = noisy(signals(law, 200, "x"), identity, sigma)
    found = value(
        ObservationLikelihood(of="network", steps=32, probes=d), measurement=m, prior=kind(law)
    ).double()
    normals = [
        torch.distributions.MultivariateNormal(
            mean.double(), cov.double() + sigma**2 * torch.eye(d)
        )
        for mean, cov in zip(law.means, law.covs, strict=True)
    ]
    parts = torch.stack(
        [
            w.log() + each.log_prob(m.y.double())
            for w, each in zip(law.weights, normals, strict=True)
        ]
    )
    expected = parts.logsumexp(0) / d
    # Without moments the law at the highest level, 20, is N(0, 400 I): what is left out of the
    # mean, 0.55, costs the mean of 4 entries of 0.55 z/20.
    assert (found - expected).abs().max().item() < (
        2e-3 if kind == Prior.of else 4 * 0.55 / 20 / d**0.5
    )
    assert (found - expected).mean().abs().item() < (2e-4 if kind == Prior.of else 4e-3)


def test_likelihood_by_random_vectors_is_unbiased_and_of_the_observation():
    gaussian = prior(6)
    m = noisy(signals(gaussian, 400, "x"), identity)
    known, one = Prior.of(gaussian), ObservationLikelihood(of="network", steps=8)
    found = value(one, measurement=m, prior=known)
    gap = found - value(replace(one, probes=6), measurement=m, prior=known)
    assert gap.std() > 0 and gap.mean().abs() < 4 * gap.std() / 400**0.5
    order = torch.randperm(400, generator=rng())
    moved = value(one, measurement=m[order][:50], prior=known)
    assert torch.allclose(moved, found[order][:50], atol=1e-5)
    flat = invem.Gaussian(torch.zeros(6), DPLR(torch.linspace(0.1, 2, 6), torch.zeros(6, 0)))
    few, all_ = (value(replace(one, probes=k), measurement=m, prior=Prior.of(flat)) for k in (1, 6))
    assert torch.allclose(few, all_, atol=1e-5), (
        "of a diagonal Jacobian one vector of signs is exact"
    )


def test_likelihood_where_there_is_none():
    x, known = normal(4, 6), Prior.of(prior(6))
    silent = noisy(x, identity, 0.0)
    with pytest.raises(RecipeError, match="noise is 0"):
        value(ObservationLikelihood(), measurement=silent, prior=known)
    with pytest.raises(Unsupported, match="linear"):
        value(ObservationLikelihood(), measurement=noisy(x, clip), prior=known)
    with pytest.raises(Unsupported, match="identity"):
        value(ObservationLikelihood(of="network"), measurement=noisy(x, masked), prior=known)
    mixed = replace(noisy(x, identity), noise=Gaussian(torch.rand(4, 6) + 0.1))
    with pytest.raises(Unsupported, match="one level"):
        value(ObservationLikelihood(of="network"), measurement=mixed, prior=known)
    heavy = replace(noisy(x, identity), noise=laplace(4, (6,), rng()))
    with pytest.raises(Unsupported):
        value(ObservationLikelihood(), measurement=heavy, prior=known)
    large = noisy(
        normal(2, 1, 4, 4), lambda n, shape, g: random_projection(n, shape, g, measurements=1100)
    )
    with pytest.raises(Unsupported, match="1024"):
        value(
            ObservationLikelihood(),
            measurement=large,
            prior=Prior.of(invem.Gaussian.standard((1, 4, 4))),
        )


def test_memorisation_of_copies_and_of_fresh_draws():
    trained, fresh = normal(600, 1, 6, 6), normal(500, 1, 6, 6, seed=1)
    assert value(Memorisation(), samples=fresh, trained=trained).tolist() == [0.0] * 500
    copies = trained[:500] + 0.05 * fresh
    found = value(Memorisation(), samples=torch.cat([copies, fresh[:250]]), trained=trained)
    assert found.tolist() == [1.0] * 500 + [0.0] * 250
    twice = value(Memorisation(), samples=trained[:9], trained=torch.cat([trained, trained]))
    assert twice.tolist() == [1.0] * 9, "a copy of what is there twice"
    with pytest.raises(DataError, match="two training"):
        value(Memorisation(), samples=fresh, trained=trained[:1])


def test_memorisation_by_hand():
    trained = torch.tensor([[0.0, 0.0], [4.0, 0.0], [100.0, 0.0]])
    samples = torch.tensor(
        [[0.99, 0.0], [1.01, 0.0], [2.0, 0.0], [3.5, 0.0], [100.0, 20.0], [100.0, 50.0]]
    )
    assert value(Memorisation(), samples=samples, trained=trained).tolist() == [1, 0, 0, 1, 1, 0]
    assert value(Memorisation(ratio=0.9), samples=samples, trained=trained).tolist() == [
        1,
        1,
        0,
        1,
        1,
        1,
    ]
    assert value(Memorisation(), samples=samples + 1e3, trained=trained + 1e3).tolist() == [
        1,
        0,
        0,
        1,
        1,
        0,
    ]


@pytest.mark.parametrize("d", [1, 2, 4])
def test_memorisation_by_chance(d):
    samples, trained = (torch.rand(4000, d, generator=rng(k)) for k in range(2))
    found = value(Memorisation(), samples=samples, trained=trained).mean().item()
    assert found == pytest.approx(3.0**-d, abs=4 * (3.0**-d / 4000) ** 0.5)


# calibration


@pytest.mark.parametrize("k", [2, 4, 19])
def test_calibration_of_exact_draws(k):
    truth, draws = normal(2000, 10), normal(2000, k, 10, seed=1)
    assert Calibration().target == 0.9 and Calibration(of="spread-error").target == 1
    for level in (0.5, 0.9):
        metric = Calibration(level=level)
        found = value(metric, truth=truth, draws=draws)
        assert (
            found.shape == (2000,)
            and found.mean().item() == pytest.approx(level, abs=0.01)
            and metric.target == level
        )
    assert value(Calibration(of="spread-error"), truth=truth, draws=draws).item() == pytest.approx(
        1, abs=0.02
    )


def test_calibration_is_that_of_bench():
    truth, draws = normal(50, 3, 4), 0.7 * normal(50, 6, 3, 4, seed=1)
    where = ranks(draws.flatten(2), truth.flatten(1))
    expected = coverage_curve(where)[:, LEVELS.index(0.9)]
    assert torch.allclose(value(Calibration(), truth=truth, draws=draws).double(), expected)


@pytest.mark.parametrize("k", [2, 8, 18, 30])
def test_calibration_of_a_truth_that_is_never_among_the_draws(k):
    truth = normal(100, 5)
    found = value(Calibration(), truth=truth, draws=9 + normal(100, k, 5, seed=1)).mean().item()
    assert found == pytest.approx(max(0.0, 1 - 0.1 * (k + 1) / 2), abs=1e-6)


@pytest.mark.parametrize("s", [0.5, 2.0])
def test_calibration_of_too_narrow_and_too_wide_draws(s):
    truth, draws = normal(3000, 10), s * normal(3000, 3, 10, seed=1)
    found = value(Calibration(of="spread-error"), truth=truth, draws=draws)
    assert found.shape == () and found.item() == pytest.approx(2 * s**2 / (1 + s**2), rel=0.02)
    draws = s * normal(1000, 99, 10, seed=1)
    level = math.erf(s * 1.6449 / 2**0.5)
    assert value(Calibration(), truth=truth[:1000], draws=draws).mean().item() == pytest.approx(
        level, abs=0.02
    )


def test_calibration_of_too_few_or_broken_draws():
    truth, draws = normal(4, 6), normal(4, 3, 6, seed=1)
    with pytest.raises(DataError, match="two draws"):
        value(Calibration(), truth=truth, draws=draws[:, :1])
    draws[2, 1, 0] = math.nan
    assert value(Calibration(), truth=truth, draws=draws).isnan().tolist() == [
        False,
        False,
        True,
        False,
    ]
    assert value(Calibration(of="spread-error"), truth=truth, draws=draws).isnan()


# self-consistency

KINDS = ["residual", "spectrum", "marginals"]


def again(law, n, operator=masked, sigma=0.3, key=""):
    """Samples, simulated observations of them, and exact draws given those."""
    x = signals(law, n, key, "x")
    m = noisy(x, operator, sigma, seed=len(key))
    return {
        "samples": x,
        "simulated": m,
        "resimulated": law.posterior(m, Rng.keyed("test", key, "again", items=range(n))),
    }


@pytest.mark.parametrize(
    "law", [masked, identity, projection], ids=["mask", "identity", "projection"]
)
def test_self_consistency_of_an_exact_sampler(law):
    # Three standard deviations of 12 sets of 1,000, as measured.
    parts = again(prior(mean=0.5), 1000, law)
    assert value(SelfConsistency(), **parts).mean().item() == pytest.approx(1, abs=0.08)
    for of, least in (("spectrum", 0.12), ("marginals", 0.03)):
        assert value(SelfConsistency(of=of), **parts).item() == pytest.approx(0, abs=least)


@pytest.mark.parametrize("of", ["spectrum", "marginals"])
def test_self_consistency_has_no_bias_of_few_samples(of):
    found = torch.stack(
        [
            value(SelfConsistency(of=of), **again(prior(4), 40, identity, key="k" * k))
            for k in range(60)
        ]
    )
    assert found.mean().abs().item() < 3 * found.std().item() / 60**0.5
    assert (found < 0).any() and (found > 0).any()


def test_self_consistency_of_the_posterior_mean():
    var = 0.5
    parts = again(invem.Gaussian.standard((4,)), 6000, identity, var**0.5)
    mean = parts["simulated"].y / (1 + var)
    assert value(
        SelfConsistency(), simulated=parts["simulated"], resimulated=mean
    ).mean().item() == pytest.approx(var / (1 + var), rel=0.02)
    lost = value(SelfConsistency(of="spectrum"), samples=parts["samples"], resimulated=mean)
    assert lost.item() == pytest.approx(var / (1 + var), abs=0.04)
    # Of normals whose standard deviations are 1 and s the distribution functions are furthest apart
    # at t^2 = 2 s^2 log(1/s)/(1 - s^2).
    s = (1 + var) ** -0.5
    t = (2 * s**2 * math.log(1 / s) / (1 - s**2)) ** 0.5
    gap = 0.5 * (math.erf(t / s / 2**0.5) - math.erf(t / 2**0.5))
    apart = value(SelfConsistency(of="marginals"), samples=parts["samples"], resimulated=mean)
    assert apart.item() == pytest.approx(gap, abs=0.015)


@pytest.mark.parametrize("of", KINDS)
def test_self_consistency_of_a_wrong_sampler(of):
    parts, metric = again(prior(), 1000), SelfConsistency(of=of)
    right = abs(value(metric, **parts).mean().item() - metric.target)
    for wrong in (
        1.3 * parts["resimulated"],
        parts["resimulated"] + 0.3,
        parts["resimulated"] + normal(1000, 8),
    ):
        if of == "spectrum" and torch.allclose(wrong - parts["resimulated"], torch.tensor(0.3)):
            continue
        assert (
            abs(value(metric, **parts | {"resimulated": wrong}).mean().item() - metric.target)
            > right + 0.02
        )


@pytest.mark.parametrize("of", KINDS)
def test_self_consistency_of_pairs_in_any_order(of):
    parts, metric, order = (
        again(prior(), 200),
        SelfConsistency(of=of),
        torch.randperm(200, generator=rng()),
    )
    found = value(metric, **parts)
    moved = value(metric, **{name: part[order] for name, part in parts.items()})
    assert moved.mean().item() == pytest.approx(found.mean().item(), rel=1e-5)
    more = parts | {"samples": torch.cat([parts["samples"], normal(5, 8)])}
    assert torch.equal(value(metric, **more), found), (
        "the first of the samples are those that were drawn again"
    )


def test_self_consistency_where_there_is_none():
    parts = again(prior(), 20)
    hidden = replace(parts["simulated"].A, mask=torch.cat([torch.zeros(5, 8), torch.ones(15, 8)]))
    assert value(
        SelfConsistency(), **parts | {"simulated": replace(parts["simulated"], A=hidden)}
    ).shape == (15,)
    silent = replace(parts["simulated"], noise=Gaussian(torch.zeros(20, 1)))
    with pytest.raises(RecipeError, match="standard deviation of the noise, which is 0"):
        value(SelfConsistency(), **parts | {"simulated": silent})
    with pytest.raises(DataError, match="8 samples"):
        value(
            SelfConsistency(of="spectrum"),
            samples=parts["samples"],
            resimulated=parts["resimulated"][:7],
        )
    broken = parts["resimulated"] * math.nan
    assert value(SelfConsistency(of="spectrum"), **parts | {"resimulated": broken}).isnan()
    constant = parts | {"samples": torch.zeros(20, 8)}
    assert not value(SelfConsistency(of="spectrum"), **constant).isfinite()


# all


ALL = [
    PSNR(),
    SSIM(),
    DataMisfit(),
    SlicedWasserstein(),
    Frechet(),
    *[ObservationDistance(distance=distance) for distance in DISTANCES],
    ObservationLikelihood(),
    ObservationLikelihood(of="network", steps=2),
    Memorisation(),
    Calibration(),
    Calibration(of="spread-error"),
    *[SelfConsistency(of=of) for of in KINDS],
]


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: type(metric).__name__)
def test_missing_parts(metric):
    x = normal(8, 1, 8, 8)
    m = noisy(x, identity) if "identity" in metric.needs else measured(x)
    parts = {name: x for name in ("truth", "samples", "reference", "resimulated", "trained")}
    parts |= {"draws": torch.stack([x, -x], 1), "measurement": m, "observed": m, "simulated": m}
    parts["prior"] = Prior.of(invem.Gaussian.standard((1, 8, 8)))
    state = metric.prepare(Example(x))
    whole = outcome(**parts)
    before = torch.random.get_rng_state()
    assert metric(whole, state).shape in ((8,), ())
    assert torch.equal(before, torch.random.get_rng_state()), "global randomness is not touched"
    needed = metric.needs - {"var", "normal", "image", "adjoint", "identity", "several draws"}
    for name in needed:
        with pytest.raises(Unsupported, match="needs"):
            metric(replace(whole, **{name: None}), state)
    only_needed = outcome(**{name: parts[name] for name in needed})
    assert torch.equal(metric(only_needed, state), metric(whole, state))
