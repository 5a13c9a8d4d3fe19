"""Networks: any channels, any size, any level; and nothing that ties a sample to its batch or a
tensor to a device."""

import pytest
import torch

from invem import Gaussian, Preconditioned, RecipeError, Rng
from invem.config import Catalog

CATALOG = Catalog.load()
IMAGES = [(1, 8, 8), (3, 28, 28), (2, 9, 14), (1, 5, 5), (4, 16, 2)]
UNETS = [
    {},
    {"channels": [8]},
    {"channels": [8, 16, 24], "attention": [1], "heads": 2},
    {"channels": [8, 16], "patch": 2, "blocks": 1},
]
CASES = [("unet", shape, {"channels": [8, 16], **options}) for shape in IMAGES for options in UNETS]
CASES += [("mlp", shape, {"width": 16}) for shape in [(8,), (1, 5, 5)]]
CONDITIONED = [
    ("unet", (2, 9, 14), {"channels": [8, 16], "patch": 2}),
    ("unet", (1, 8, 8), {"channels": [8]}),
]
CONDITIONED += [("mlp", (8,), {"width": 16})]
CASES += [(name, shape, {**options, "condition": 2}) for name, shape, options in CONDITIONED]


def build(name, shape, options):
    torch.manual_seed(0)
    network = CATALOG.find("networks", name).load()(shape, **options)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    return Preconditioned(network, 0.5).eval()


@pytest.fixture(params=CASES, ids=str)
def case(request):
    _, shape, _ = request.param
    return (
        build(*request.param),
        torch.randn(3, *shape, generator=Rng.generator("x")),
        request.param,
    )


def test_every_way_to_write_a_level_is_the_same(case):
    denoiser, x, _ = case
    one = denoiser(x, 0.7)
    assert one.shape == x.shape
    levels = torch.full((3,), 0.7)
    assert torch.allclose(denoiser(x, levels), one, atol=1e-5)
    assert torch.allclose(denoiser(x, levels.reshape(3, *[1] * (x.ndim - 1))), one, atol=1e-5)
    assert torch.allclose(denoiser(x, torch.tensor(0.7)), one, atol=1e-5)


def test_a_sample_does_not_see_the_others_nor_their_levels(case):
    denoiser, x, _ = case
    levels = torch.tensor([0.1, 1.0, 10.0])
    whole = denoiser(x, levels)
    for i in range(3):
        assert torch.allclose(
            denoiser(x[i : i + 1], float(levels[i])), whole[i : i + 1], atol=1e-4, rtol=1e-4
        )


def test_it_is_saved_and_loaded_whole(case):
    denoiser, x, (name, shape, options) = case
    other = build(name, shape, options)
    for weight in other.parameters():
        torch.nn.init.zeros_(weight)
    other.load_state_dict(denoiser.state_dict())
    assert torch.equal(other(x, 0.3), denoiser(x, 0.3))


def test_it_runs_on_another_device_and_in_half_precision(case):
    denoiser, x, (name, shape, options) = case
    with torch.autocast("cpu", torch.bfloat16):
        half = denoiser(x, 0.5)
    assert half.dtype == torch.float32
    assert torch.allclose(half, denoiser(x, 0.5), atol=0.1, rtol=0.1)
    away = build(name, shape, options).to("meta")
    away.mean = torch.zeros(shape, device="meta")
    out = away(x.to("meta"), torch.ones(3, device="meta"))
    assert out.shape == x.shape and out.device.type == "meta" and out.dtype == torch.float32


def test_every_parameter_has_a_gradient(case):
    denoiser, x, _ = case
    denoiser(x, 0.5).square().sum().backward()
    assert all(
        weight.grad is not None and bool(weight.grad.abs().sum() > 0)
        for weight in denoiser.parameters()
    )


def test_a_new_network_is_the_best_linear_guess():
    """Before training c_skip alone acts: the exact denoiser of N(mean, sigma_data^2 I)."""
    for name, shape in (("unet", (1, 8, 8)), ("mlp", (8,))):
        denoiser = Preconditioned(CATALOG.find("networks", name).load()(shape), 0.5)
        prior = Gaussian.standard(shape, 0.5)
        x = torch.randn(2, *shape, generator=Rng.generator("x"))
        for sigma in (0.01, 0.5, 20.0):
            assert torch.allclose(
                denoiser(x, sigma), prior.denoise(x, torch.tensor(sigma)), atol=1e-5
            )


@pytest.mark.parametrize(("name", "shape", "options"), CONDITIONED, ids=str)
@pytest.mark.parametrize("condition", [1, 2])
def test_a_condition_is_given_beside_the_state(name, shape, options, condition):
    """No condition is zeros, and each of its tensors reaches every output of its own sample."""
    denoiser = build(name, shape, {**options, "condition": condition})
    x, cond = (
        torch.randn(3, *more, *shape, generator=Rng.generator("x", *more))
        for more in ((), (condition,))
    )
    assert denoiser.condition == condition
    assert build(name, shape, options).condition == 0
    assert torch.equal(denoiser(x, 0.7), denoiser(x, 0.7, torch.zeros_like(cond)))
    whole = denoiser(x, 0.7, cond)
    assert whole.shape == x.shape
    for i in range(3):
        assert torch.allclose(
            denoiser(x[i : i + 1], 0.7, cond[i : i + 1]), whole[i : i + 1], atol=1e-4, rtol=1e-4
        )
    for k in range(condition):
        moved = cond.clone()
        moved[1:, k] += 1
        out = denoiser(x, 0.7, moved)
        assert torch.allclose(out[0], whole[0], atol=1e-5)
        assert bool(((out - whole)[1:].abs() > 1e-6).all())
    assert torch.allclose(denoiser(x, 0.7, cond.double()), whole)
    denoiser(x, 0.7, cond).square().sum().backward()
    assert all(bool(weight.grad.any()) for weight in denoiser.parameters())


@pytest.mark.parametrize(
    ("shape", "options", "said"),
    [
        ((8,), {}, "try mlp"),
        ((1, 8, 8), {"attention": [2]}, "attention names levels 0 to 1"),
        ((1, 8, 8), {"attention": [0], "heads": 3}, "heads must divide"),
    ],
)
def test_what_a_unet_cannot_be(shape, options, said):
    with pytest.raises(RecipeError, match=said):
        CATALOG.find("networks", "unet").load()(shape, **options)
