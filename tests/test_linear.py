"""The linear operators that laws share, and the physics of those that stand for a device."""

import math

import pytest
import torch
from invem_plugins.operators._kspace import fourier, fourier_adjoint
from invem_plugins.operators._tomography import Geometry, project

import invem.linear
from invem import Mask, Matrix, Measurement, Rng
from invem.config import Catalog
from invem.linear import CircularConvolution, Convolution, Separable

CATALOG = Catalog.load()


def normal(*shape, key="x"):
    return torch.randn(*shape, generator=Rng.generator(key, *shape), dtype=torch.float64)


def law(name, n, shape, **options):
    return CATALOG.find("operators", name).load()(n, shape, Rng.generator("test"), **options)


@pytest.mark.parametrize("boundary", ["reflect", "zero", "valid"])
def test_large_kernels_go_through_fourier_space_to_the_same_result(boundary, monkeypatch):
    A = Convolution((2, 20, 22), normal(3, 1, 9, 7), boundary)
    x = normal(3, 2, 20, 22)
    y = A(x)
    back = A.adjoint(y)
    monkeypatch.setattr(invem.linear, "_DIRECT", 0)
    assert torch.allclose(A(x), y, atol=1e-12)
    assert torch.allclose(A.adjoint(y), back, atol=1e-11)


def test_a_convolution_is_a_convolution_and_no_correlation():
    kernel = torch.zeros(1, 1, 3, 3)
    kernel[..., 0, 1] = 1.0  # one pixel up
    x = normal(1, 1, 5, 5).float()
    for A in (Convolution((1, 5, 5), kernel, "zero"), CircularConvolution((1, 5, 5), kernel)):
        assert torch.allclose(A(x)[..., :-1, :], x[..., 1:, :], atol=1e-6)


def test_a_circular_convolution_is_a_separable_one_where_both_apply():
    one = law("gaussian-blur", 1, (2, 9, 8), std=1.0, size=5, boundary="circular")
    kernel = one(
        torch.zeros(1, 2, 9, 8).index_put(
            (torch.tensor(0), torch.tensor(0), torch.tensor(4), torch.tensor(4)), torch.tensor(1.0)
        )
    )
    other = CircularConvolution((2, 9, 8), kernel[:, :1, 2:7, 2:7])
    x = normal(1, 2, 9, 8).float()
    assert torch.allclose(one(x), other(x), atol=1e-5)


@pytest.mark.parametrize(
    "A",
    [
        Mask((1, 6, 6), torch.ones(2, 1, 6, 6)),
        Matrix((6,), torch.ones(2, 3, 6)),
        Separable((1, 6, 6), torch.ones(3, 6), torch.ones(2, 6)),
        Convolution((1, 6, 6), torch.ones(2, 1, 3, 3)),
        CircularConvolution((1, 6, 6), torch.ones(2, 1, 3, 3)),
    ],
    ids=lambda A: type(A).__name__,
)
def test_nothing_stays_on_the_cpu(A):
    away, x = A.to("meta"), torch.empty(2, *A.shape, device="meta")
    y = away(x)
    assert y.device.type == away.adjoint(y).device.type == "meta"
    assert y.shape == A(torch.zeros(2, *A.shape)).shape


def test_fourier_is_orthonormal():
    x = normal(2, 2, 7, 8)
    assert torch.allclose(fourier(x).square().sum(), x.square().sum())
    assert torch.allclose(fourier_adjoint(fourier(x)), x)
    flat = torch.zeros(1, 2, 8, 8).index_fill(1, torch.tensor(0), 1.0)
    assert fourier(flat)[0, 0, 4, 4] == pytest.approx(8.0)


@pytest.mark.parametrize("distance", [None, 80.0])
def test_a_disc_projects_to_its_chords(distance):
    """The projection of a disc of radius r at distance t from its centre is 2 sqrt(r^2 - t^2), in
    units of the width of the image."""
    size, r = 64, 20.0
    at = torch.arange(4 * size, dtype=torch.float64) / 4 - (size - 0.25) / 2
    fine = ((at**2 + at[:, None] ** 2) < r**2).double()
    disc = torch.nn.functional.avg_pool2d(fine[None, None], 4)
    detectors = 96
    y = project(Geometry(size, (0.0, 0.3, math.pi / 4, 1.2), detectors, distance), disc)[0, 0]
    bins = torch.arange(detectors, dtype=torch.float64) - (detectors - 1) / 2
    t = (
        bins
        if distance is None
        else distance * torch.sin(bins * 2 * math.asin(size * 0.5**0.5 / distance) / detectors)
    )
    chords = 2 * (r**2 - t**2).clamp(min=0).sqrt() / size
    inside = t.abs() < 0.9 * r
    assert torch.allclose(y[:, inside], chords[inside].expand(4, -1), rtol=0.02)
    assert float(y[:, t.abs() > r + 1.5].abs().max()) == 0


def test_filtered_back_projection_finds_the_density():
    size = 64
    at = torch.linspace(-1, 1, size)
    disc = ((at**2 + at[:, None] ** 2) < 0.36).float()[None, None]
    A = law("radon", 1, (1, size, size), angles=90)
    found = A.filtered(A(disc))
    inner = (at**2 + at[:, None] ** 2) < 0.25
    assert float(found[0, 0][inner].mean()) == pytest.approx(1.0, abs=0.02)
    exact = A.pinv(A(disc))
    assert float((A(exact) - A(disc)).abs().max() / A(disc).max()) < 1e-3


@pytest.mark.parametrize(
    "name", ["gaussian-blur", "anisotropic-blur", "motion-blur", "defocus-blur", "varying-blur"]
)
def test_a_blur_keeps_the_brightness(name):
    A = law(name, 3, (1, 16, 16), size=5)
    assert torch.allclose(
        A(torch.full((3, 1, 16, 16), 0.7)), torch.full((3, 1, 16, 16), 0.7), atol=1e-5
    )


def test_paths_of_motion_differ_and_have_their_length():
    A = law("motion-blur", 5, (1, 32, 32), size=21, length=8.0, turn=0.0)
    kernel = A.kernel[:, 0].double()
    assert not torch.allclose(kernel[0], kernel[1])
    at = torch.arange(21, dtype=torch.float64) - 10
    variance = (kernel * (at**2 + at[:, None] ** 2)).sum((1, 2)) - sum(
        (kernel * a).sum((1, 2)) ** 2 for a in (at, at[:, None])
    )
    # A straight line of length l has the variance l^2/12; the bilinear weights add at most 1/2.
    assert bool(((variance > 64 / 12 - 0.2) & (variance < 64 / 12 + 0.6)).all())


def test_averages_are_averages_and_bicubic_keeps_lines():
    x = normal(1, 2, 8, 12).float()
    assert torch.allclose(
        law("downsample", 1, (2, 8, 12), factor=4)(x),
        torch.nn.functional.avg_pool2d(x, 4),
        atol=1e-6,
    )
    ramp = torch.arange(32.0).expand(1, 1, 32, 32)
    small = law("downsample", 1, (1, 32, 32), factor=2, method="bicubic")(ramp)[0, 0, 8]
    assert torch.allclose(small[3:-3], torch.arange(16.0)[3:-3] * 2 + 0.5, atol=1e-4)


@pytest.mark.parametrize("pattern", ["random", "equispaced", "variable"])
def test_an_accelerated_scan_measures_its_share_and_the_centre(pattern):
    mask = law("fourier-mask", 20, (2, 16, 64), acceleration=4, centre=0.125, pattern=pattern).mask
    columns = mask[:, 0, 0]
    assert bool((mask == columns[:, None, None]).all())
    assert bool((columns[:, 28:36] == 1).all())
    assert 0.24 < float(mask.mean()) < 0.35
    assert not torch.equal(columns[0], columns[1])


def test_coils_see_the_whole_together():
    A = law("multi-coil-mri", 2, (2, 16, 16), coils=6, acceleration=1, centre=0.1)
    x = normal(2, 2, 16, 16).float()
    assert torch.allclose(A.adjoint(A(x)), x, atol=1e-5)


def test_quantisation_is_coarser_at_lower_quality_and_idempotent():
    x = 0.5 * normal(2, 1, 16, 16).float()
    errors = []
    for quality in (90, 50, 10):
        A = law("jpeg", 2, (1, 16, 16), quality=quality)
        assert torch.allclose(A(A(x)), A(x), atol=1e-4)
        errors.append(float((A(x) - x).square().mean()))
    assert errors == sorted(errors)


def test_phase_retrieval_forgets_shifts_and_signs_of_the_spectrum():
    A = law("phase-retrieval", 1, (1, 8, 8))
    x = normal(1, 1, 8, 8)
    assert torch.allclose(A(x), A(x.flip(-2, -1)), atol=1e-10)
    assert A(x).shape == (1, 1, 16, 16)


@pytest.mark.parametrize(
    ("name", "shape", "options", "said"),
    [
        ("box-mask", (1, 8, 8), {"size": 9}, "size must be at most 8"),
        ("gaussian-blur", (8,), {}, r"acts on images \(channels, height, width\)"),
        ("motion-blur", (1, 8, 8), {"size": 4}, "must be odd"),
        ("motion-blur", (1, 8, 8), {"size": 17}, "too large for images of 8×8"),
        ("downsample", (1, 9, 8), {}, "factor must divide"),
        ("hadamard", (1, 6, 6), {}, "power of two"),
        ("multi-coil-mri", (1, 8, 8), {}, "2 channels"),
        (
            "fourier-mask",
            (2, 8, 8),
            {"centre": 0.5},
            "centre must be at most 1/acceleration = 0.25",
        ),
        ("radon", (1, 8, 9), {}, "square"),
        ("jpeg", (1, 8, 9), {}, "multiples of 8"),
        ("grayscale", (1, 8, 8), {}, "at least 2 channels"),
    ],
)
def test_what_a_law_cannot_do_is_one_line(name, shape, options, said):
    from invem import RecipeError

    with pytest.raises(RecipeError, match=said) as caught:
        law(name, 2, shape, **options)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_files_of_masks_and_kernels(tmp_path):
    import numpy as np

    from invem import DataError, RecipeError

    np.save(tmp_path / "mask.npy", np.eye(8))
    assert bool(
        (
            law("mask-file", 2, (1, 8, 8), file=str(tmp_path / "mask.npy")).mask[1, 0]
            == torch.eye(8)
        ).all()
    )
    with pytest.raises(RecipeError, match=r"has the shape \(1, 8, 8\), and the images are 9×9"):
        law("mask-file", 2, (1, 9, 9), file=str(tmp_path / "mask.npy"))
    with pytest.raises(DataError, match="cannot be read"):
        law("mask-file", 2, (1, 9, 9), file=str(tmp_path / "none.npy"))
    np.save(tmp_path / "kernel.npy", np.ones((3, 3)))
    with pytest.raises(RecipeError, match="sums to 9, not to one; write normalise: true"):
        law("kernel-blur", 2, (1, 8, 8), file=str(tmp_path / "kernel.npy"))
    A = law("kernel-blur", 2, (1, 8, 8), file=str(tmp_path / "kernel.npy"), normalise=True)
    assert torch.allclose(A(torch.ones(2, 1, 8, 8)), torch.ones(2, 1, 8, 8))


def test_the_score_of_a_measurement_is_the_gradient_of_its_likelihood():
    x = normal(4, 1, 8, 8)
    for name in ("random-mask", "gaussian-blur", "gamma"):
        A = law(name, 4, (1, 8, 8)).to(dtype=torch.float64)
        noise = (
            CATALOG.find("noises", "gaussian")
            .load()(4, (1, 8, 8), Rng.generator("noise"), sigma=0.3)
            .to(dtype=torch.float64)
        )
        m = Measurement(noise.sample(A(x), Rng.generator("y")), A, noise)
        at = (0.3 * x + 0.1).requires_grad_()
        (expected,) = torch.autograd.grad(m.log_prob(at).sum(), at)
        assert torch.allclose(m.score(at.detach()), expected, atol=1e-8)


@pytest.mark.parametrize("name", ["radon", "fan-beam"])
def test_the_pseudo_inverse_of_noisy_projections_is_least_squares(name):
    """More rays than pixels, so that noisy data are in no image's range: the fit is that of the
    dense pseudo-inverse."""
    A = law(name, 1, (1, 6, 6), angles=12)
    basis = torch.eye(36, dtype=torch.float64).reshape(36, 1, 6, 6)
    dense = A(basis).flatten(1).T
    y = normal(1, *A(basis).shape[1:])
    best = dense @ torch.linalg.pinv(dense) @ y.flatten()
    assert torch.allclose(A(A.pinv(y)).flatten(), best, atol=1e-4)


@pytest.mark.parametrize("boundary", ["reflect", "circular", "zero", "valid"])
def test_a_large_separable_blur_is_its_matrices(boundary):
    A = law("gaussian-blur", 2, (1, 130, 200), std=2.0, size=9, boundary=boundary).to(
        dtype=torch.float64
    )
    assert len(A._bands[0]) > 1
    x = normal(2, 1, 130, 200)
    y = A.rows @ (x @ A.columns.T)
    assert torch.allclose(A(x), y, atol=1e-12)
    assert torch.allclose(A.adjoint(y), A.rows.T @ (y @ A.columns), atol=1e-12)
    assert not Separable((1, 130, 130), torch.zeros(130, 130), torch.zeros(130, 130))(
        torch.ones(1, 1, 130, 130)
    ).any()
