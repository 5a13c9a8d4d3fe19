"""Values that were wrong without a word: each test is named after the kind of fault."""

import os
import warnings

import numpy as np
import pytest
import torch
from invem_plugins.datasets.digits import digits
from invem_plugins.datasets.folder import folder as image_folder
from invem_plugins.noises.gaussian import Gaussian as Noise
from invem_plugins.operators.fourier_mask import FourierMask, fourier_mask
from invem_plugins.operators.mask_file import mask_file
from invem_plugins.samplers.ddnm import DDNM
from invem_plugins.samplers.pseudo_inverse import PseudoInverse
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

import invem
from invem import Gaussian, Mask, Measurement, Prior, RecipeError, Rng, linalg
from invem.cli.app import app
from invem.linalg import DPLR
from invem.store import read_meta

torch.set_num_threads(1)


# Masks with weights


def weights(*shape):
    return torch.tensor([1.0, 0.5, 0.0, 2.0, -0.25, 0.0, 1.0, 3.0]).reshape(1, *shape)


@pytest.mark.parametrize(
    ("operator", "wide"),
    [(Mask((1, 2, 4), weights(1, 2, 4)), 1), (FourierMask((2, 2, 4), weights(1, 2, 4)), 2)],
    ids=["mask", "fourier-mask"],
)
def test_the_pseudo_inverse_of_a_weighted_mask_divides_by_the_weight(operator, wide):
    x = torch.randn(3, wide, 2, 4, generator=torch.Generator().manual_seed(0))
    y = operator(x)
    assert torch.allclose(operator(operator.pinv(y)), y, atol=1e-6)
    seen = (weights(1, 2, 4) != 0).float()
    assert torch.equal(operator.seen, seen)
    svd = operator.svd()
    assert (svd.s >= 0).all()
    assert torch.allclose(svd.u(svd.s * svd.vt(x)[:, : svd.s.shape[1]]), y, atol=1e-6)
    assert torch.allclose(svd.ut(svd.u(y.flatten(1))), y.flatten(1), atol=1e-6)


def test_solvers_restore_what_a_weighted_mask_shows():
    A = Mask((1, 2, 4), weights(1, 2, 4))
    x = torch.randn(3, 1, 2, 4, generator=torch.Generator().manual_seed(0))
    A = A[torch.zeros(3, dtype=torch.long)]
    m = Measurement(A(x), A, Noise(torch.zeros(3, 1, 1, 1)))
    prior = Prior.of(Gaussian(torch.zeros(1, 2, 4), DPLR(torch.ones(8), torch.zeros(8, 0))))
    shown = (weights(1, 2, 4) != 0).expand_as(x)
    for sampler in (PseudoInverse(), DDNM(plus=False, steps=4), DDNM(plus=True, steps=4)):
        found = sampler(prior, m, Rng([1, 2, 3]))
        assert torch.allclose(found[shown], x[shown], atol=1e-5)


def faint(kind, folder):
    """A mask file whose smallest values are easily lost, and which hides the first row."""
    values = np.zeros((4, 4), np.float32)
    values[1:] = 0.5
    if kind == "float.tiff":
        Image.fromarray(values).save(folder / kind)
    elif kind == "sixteen.png":
        Image.fromarray((values * 2).astype(np.uint16)).save(folder / kind)
    elif kind in ("blue.png", "alpha.png"):
        colours = np.zeros((4, 4, 4 if kind == "alpha.png" else 3), np.uint8)
        colours[1:, :, 2] = 1
        if kind == "alpha.png":
            colours[..., 3] = 255
        Image.fromarray(colours).save(folder / kind)
    else:
        with open(folder / kind, "wb") as file:
            np.save(file, values)
    return str(folder / kind)


@pytest.mark.parametrize(
    "kind", ["float.tiff", "sixteen.png", "blue.png", "alpha.png", "MASK.NPY", "mask.npy"]
)
def test_a_mask_file_measures_whatever_is_not_zero(kind, tmp_path):
    A = mask_file(2, (1, 4, 4), torch.Generator(), file=faint(kind, tmp_path))
    assert A.mask[0, 0].tolist() == [[0.0] * 4] + [[1.0] * 4] * 3


@pytest.mark.parametrize("value", [np.nan, np.inf, "text"])
def test_a_mask_file_of_no_finite_numbers_is_refused(value, tmp_path):
    values = np.full((4, 4), value)
    np.save(tmp_path / "mask.npy", values)
    with pytest.raises(RecipeError, match="finite numbers"):
        mask_file(2, (1, 4, 4), torch.Generator(), file=str(tmp_path / "mask.npy"))


# Files of an operator that change after the run

RECIPE = {
    "data": "digits",
    "operator": "identity",
    "noise": {"name": "gaussian", "sigma": 0.1},
    "network": "mlp",
    "count": 16,
    "phases": [{"name": "fit", "fit": {"objective": "gaussian-moments", "rank": 2}}],
    "evaluate": {"sampler": "exact", "observations": 0, "samples": 0},
    "compute": {"threads": 1},
}


def kernels(path, *centres):
    """Writes one kernel (3, 3), or several, with these values at the centre."""
    values = np.full((len(centres), 3, 3), 0.05)
    values[:, 1, 1] = centres
    np.save(path, values if len(centres) > 1 else values[0])


@pytest.mark.parametrize("change", ["values", "size", "folder", "several"])
def test_restoring_uses_the_kernel_that_is_stored_with_the_measurements(
    change, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    kernels("kernel.npy", 0.6)
    blur = {"name": "kernel-blur", "file": "kernel.npy", "normalise": True}
    run = invem.run(RECIPE, {"operator": blur}, out="run")
    y = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = run.restore(y, draws=1).draws
    if change == "size":
        np.save("kernel.npy", np.full((5, 5), 0.04))
    elif change == "folder":
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path / "other")
        kernels("kernel.npy", 0.1)
    else:
        kernels("kernel.npy", *([0.1] if change == "values" else [0.1, 0.5, 0.9]))
    opened = invem.open(os.path.relpath(tmp_path / "run"))
    assert torch.equal(opened.restore(y, draws=1).draws, wanted)


def test_restoring_asks_for_a_kernel_that_differed_between_the_observations(tmp_path):
    kernels(tmp_path / "kernel.npy", 0.2, 0.4, 0.6)
    blur = {"name": "kernel-blur", "file": str(tmp_path / "kernel.npy"), "normalise": True}
    run = invem.run(RECIPE, {"operator": blur}, out=tmp_path / "run")
    kernels(tmp_path / "kernel.npy", 0.6)
    with pytest.raises(invem.DataError, match=r"'A\.kernel' differs between the observations"):
        invem.open(run.path).restore(torch.zeros(2, 1, 8, 8), draws=1)


# Measurements of the wrong shape or number type


def measured(folder, **tensors):
    """A recipe of measurements of a random mask with these tensors in place of the right ones."""
    rng = torch.Generator().manual_seed(0)
    right = {
        "y": torch.randn(20, 1, 4, 4, generator=rng),
        "A.mask": torch.ones(20, 1, 4, 4),
        "noise.sigma": torch.full((20, 1, 1, 1), 0.1),
    }
    save_file(right | tensors, folder / "y.safetensors")
    return RECIPE | {
        "data": None,
        "observations": {"name": "measurements", "file": str(folder / "y.safetensors")},
        "operator": "random-mask",
    }


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        ("A.mask", torch.ones(20, 4, 4), r"'A\.mask' .*\(18, 4, 4\), and must .*\(18, 1, 4, 4\)"),
        ("A.mask", torch.ones(20, 1, 4, 3), r"'A\.mask' of shape \(18, 1, 4, 3\) does not fit y"),
        ("A.mask", torch.ones(20, 1, 4, 4) > 0, r"'A\.mask' holds bool, and must hold float32"),
        ("noise.sigma", torch.ones(20), r"'noise\.sigma' .*\(18,\), and must .*\(18, 1, 1, 1\)"),
        ("noise.sigma", torch.ones(20, 1), r"'noise\.sigma' .*\(18, 1\), and must"),
        ("noise.sigma", torch.ones(20, 1, 3, 1), r"'noise\.sigma' of .* does not fit y"),
        ("y", torch.ones(20, 1, 4, 4, dtype=torch.int8), "'y' holds int8, and must hold float32"),
        ("y", torch.ones(20, 1, 4, 4, dtype=torch.uint8), "'y' holds uint8"),
        ("y", torch.ones(20, 1, 4, 4, dtype=torch.int64), "'y' holds int64"),
        ("y", torch.ones(20, 1, 4, 4) > 0, "'y' holds bool"),
        ("y", torch.ones(20, 1, 4, 4) + 1j, "'y' holds complex64"),
        ("y", torch.full((20, 1, 4, 4), 1e19), r"y has values beyond 1e\+15"),
        ("y", torch.full((20, 1, 4, 4), 1e300, dtype=torch.float64), "y has values beyond"),
    ],
)
def test_measurements_of_the_wrong_shape_or_type_are_refused_by_the_plan(
    name, tensor, said, tmp_path
):
    with pytest.raises(RecipeError, match=said) as caught:
        invem.plan(measured(tmp_path, **{name: tensor}))
    assert "\n" not in str(caught.value) and "observations" in str(caught.value)


@pytest.mark.parametrize("kind", [torch.float16, torch.float8_e4m3fn])
def test_masks_in_low_precision_are_converted(kind, tmp_path):
    mask = {"A.mask": torch.ones(20, 1, 4, 4).to(kind)}
    run = invem.run(measured(tmp_path, **mask), out=tmp_path / "run")
    m = run.measurement(run.observations().tensors() | {"A.mask": mask["A.mask"][:16]})
    assert m.A.mask.dtype == torch.float32


def test_measurements_in_double_precision_are_converted(tmp_path):
    wanted = invem.run(measured(tmp_path), out=tmp_path / "single")
    double = {
        "y": torch.randn(20, 1, 4, 4, generator=torch.Generator().manual_seed(0)).double(),
        "A.mask": torch.ones(20, 1, 4, 4).double(),
        "noise.sigma": torch.full((20, 1, 1, 1), 0.1).double(),
    }
    run = invem.run(measured(tmp_path, **double), out=tmp_path / "double")
    assert torch.equal(run.prior.moments.mean, wanted.prior.moments.mean)
    m = run.measurement(double)
    assert all(tensor.dtype == torch.float32 for tensor in m.tensors().values())


def test_a_noise_level_per_pixel_fits(tmp_path):
    assert invem.plan(measured(tmp_path, **{"noise.sigma": torch.ones(20, 1, 4, 4)})).train == 16


@pytest.mark.parametrize("kind", [torch.int32, torch.bool, torch.float64])
def test_restoring_converts_numbers_that_lose_nothing(kind, tmp_path):
    run = invem.run(measured(tmp_path), out=tmp_path / "run")
    ones = torch.ones(2, 1, 4, 4)
    more = {"A.mask": ones, "noise.sigma": torch.ones(2, 1, 1, 1)}
    wanted = run.restore({"y": ones} | more, draws=2)
    found = run.restore({"y": ones.to(kind)} | more | {"A.mask": ones.to(kind)}, draws=2)
    assert torch.equal(found.draws, wanted.draws)


def test_restoring_refuses_complex_numbers_where_real_ones_are_needed(tmp_path):
    run = invem.run(measured(tmp_path), out=tmp_path / "run")
    ones = torch.ones(2, 1, 4, 4)
    more = {"A.mask": ones, "noise.sigma": torch.ones(2, 1, 1, 1)}
    with pytest.raises(invem.DataError, match="'y' is complex"):
        run.restore({"y": ones.to(torch.complex64)} | more)


# A share of clean images in batches that are too small


def shares(clean, batch, count, draws=1):
    fit = {"objective": "dsm", "steps": 2, "batch": batch, "clean": clean}
    em = {"name": "em", "sampler": "exact", "draws": draws, "fit": fit}
    return RECIPE | {"phases": [*RECIPE["phases"], em], "clean": "all", "count": count}


@pytest.mark.parametrize(("batch", "count"), [(1, 16), (64, 1)])
def test_clean_images_in_batches_of_one_are_refused_by_the_plan(batch, count):
    with pytest.raises(RecipeError, match=r"phases\.1\.fit\.clean: .* batches of 2 or more"):
        invem.plan(shares(0.5, batch, count))


@pytest.mark.parametrize(("count", "draws"), [(2, 1), (1, 2)])
def test_clean_images_leave_a_place_for_a_draw_in_small_batches(count, draws, tmp_path):
    assert invem.run(shares(0.9, 64, count, draws), out=tmp_path / "run").finished


# Samplers that divide by the noise


def test_tmpd_without_noise_is_refused_by_the_plan():
    em = {"name": "em", "sampler": "tmpd"}
    recipe = RECIPE | {"phases": [*RECIPE["phases"], em]}
    with pytest.raises(RecipeError, match=r"tmpd needs noise with a density \(density\)"):
        invem.plan(recipe, {"noise.sigma": 0})
    assert invem.plan(recipe).stages[1].sampler is not None


# Too few signals for a metric


def judged(*metrics, **changes):
    fit = {"objective": "gaussian-moments", "rank": 2}
    em = {"name": "em", "sampler": "exact", "fit": fit}
    options = {"sampler": "exact", "observations": 2, "samples": 8, "metrics": list(metrics)}
    recipe = RECIPE | {"phases": [*RECIPE["phases"], em], "evaluate": options}
    return recipe | changes.pop("top", {}) | {"evaluate": options | changes}


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (judged("memorisation", top={"count": 1}), r"memorisation needs 2 .*, and there are 1"),
        (judged("observation-distance", top={"count": 3}), r"needs 4 .*, and there are 3"),
        (judged("observation-distance", samples=3), r"needs 4 .*, and there are 3"),
        (
            judged({"name": "self-consistency", "of": "spectrum"}, samples=7),
            r"needs 8 .*samples.*, and there are 7",
        ),
        (judged("frechet", samples=1), r"frechet needs unconditional samples .* 2 or more"),
    ],
)
def test_too_few_signals_for_a_metric_are_refused_by_the_plan(recipe, said):
    with pytest.raises(RecipeError, match=said):
        invem.plan(recipe)


def images(folder, held_out, *, of_class=""):
    """Writes images until so many are held out; returns the data set."""
    rng = np.random.default_rng(0)
    (folder / of_class).mkdir(exist_ok=True)
    for i in range(12):
        values = rng.integers(0, 256, (8, 8), np.uint8)
        Image.fromarray(values).save(folder / of_class / f"{i}.png")
    data = {"name": "folder", "root": str(folder), "channels": 1}
    count = {k: len(folder_images(folder, k / 100)) for k in range(1, 100)}
    share = next(k for k, n in count.items() if n == held_out)
    return data | {"test": share / 100}


def folder_images(root, share):
    try:
        return image_folder("test", root=str(root), channels=1, test=share)
    except invem.DataError:
        return ()


def test_one_image_for_a_distance_between_sets_is_refused_by_the_plan(tmp_path):
    data = images(tmp_path, 1)
    said = r"frechet needs 2 or more .*reference.*, and there are 1"
    with pytest.raises(RecipeError, match=said):
        invem.plan(judged("frechet", top={"data": data}))
    with pytest.raises(RecipeError, match=r"frechet needs 2 or more training signals"):
        data = images(tmp_path, 11)
        invem.plan(judged("frechet", top={"data": data}))


def test_a_classifier_without_labels_is_refused_by_the_plan(tmp_path):
    metric, data = {"name": "frechet", "features": "classifier"}, images(tmp_path, 3)
    with pytest.raises(RecipeError, match=r"frechet needs labelled clean signals"):
        invem.plan(judged(metric, top={"data": data}))
    images(tmp_path, 3, of_class="a")
    for path in tmp_path.glob("*.png"):
        path.unlink()
    assert invem.plan(judged(metric, top={"data": data | {"labels": True, "test": 0.5}})).metrics


@pytest.mark.parametrize("name", ["frechet", "memorisation", "observation-distance"])
def test_the_least_number_that_a_metric_names_is_enough(name, tmp_path):
    samples = 4 if name == "observation-distance" else 2
    recipe = judged(name, samples=samples, top={"count": samples})
    run = invem.run(recipe, out=tmp_path / "run")
    assert run.metrics[-1]["metrics"][name]["value"] is not None


# The share of the frequencies that is measured


@pytest.mark.parametrize("pattern", ["random", "equispaced", "variable"])
@pytest.mark.parametrize("width", [16, 31, 64, 320])
@pytest.mark.parametrize(("acceleration", "centre"), [(1, 0), (4, 0.08), (8, 0.08), (8, 0.125)])
def test_the_acceleration_that_is_asked_for_comes_out(pattern, width, acceleration, centre):
    rng = torch.Generator().manual_seed(0)
    options = {"acceleration": acceleration, "centre": centre, "pattern": pattern}
    masks = fourier_mask(200, (1, 4, width), rng, **options).mask[:, 0, 0]
    assert masks.sum(1).sub(width / acceleration).abs().max() <= 1
    kept = round(centre * width)
    first = width // 2 - kept // 2
    assert (masks[:, first : first + kept] == 1).all()
    if pattern == "equispaced":
        assert masks.any(0).all() or acceleration * centre == 1
        outer = masks[:, masks.mean(0) < 1]
        for row in outer:
            steps = row.nonzero()[:, 0].diff()
            assert not len(steps) or steps.max() - steps.min() <= 1


def test_no_mask_of_few_columns_is_empty():
    rng = torch.Generator().manual_seed(0)
    options = {"acceleration": 32, "centre": 0, "pattern": "equispaced"}
    masks = fourier_mask(200, (1, 16, 16), rng, **options).mask
    assert (masks[:, 0, 0].sum(1) == 1).all()


# The order and the names of results


def test_restored_images_are_in_natural_order_with_the_names_of_their_files(tmp_path):
    run = invem.run(RECIPE, out=tmp_path / "run")
    (tmp_path / "scans" / "b").mkdir(parents=True)
    wanted = [
        "1.png",
        "2.png",
        "10.png",
        "b/3.npy#0",
        "b/3.npy#1",
        "b/20.png",
        "x1y9.png",
        "x1y10.png",
    ]
    for level, name in enumerate(wanted):
        values = np.full((8, 8), 10 * level, np.uint8)
        if name == "b/3.npy#0":
            np.save(tmp_path / "scans" / "b" / "3.npy", np.stack([values, values + 10]))
        elif "#" not in name:
            Image.fromarray(values).save(tmp_path / "scans" / name)
    out = tmp_path / "restored.safetensors"
    command = ["restore", str(run.path), str(tmp_path / "scans"), "--out", str(out), "--draws", "2"]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0, found.output
    tensors, about = read_meta(out)
    assert about["names"] == wanted and len(tensors["mean"]) == len(wanted)
    assert tensors["mean"].flatten(1).mean(1).diff().gt(0).all()


# Data that change between start and resume


def interrupted(recipe, path):
    """A run that is stopped before anything is measured."""

    def stop(records):
        for record in records:
            if record.event == "measure":
                raise KeyboardInterrupt
            yield record

    with pytest.raises(KeyboardInterrupt):
        invem.run(recipe, out=path, follow=stop)
    for file in path.rglob("0000*.safetensors"):
        file.unlink()
    return invem.open(path)


@pytest.mark.parametrize("split", ["train", "test"])
def test_pictures_that_were_replaced_are_refused_when_a_run_goes_on(split, tmp_path):
    (tmp_path / "images").mkdir()
    data = images(tmp_path / "images", 3)
    top = {"data": data, "count": None}
    run = interrupted(judged("psnr", observations=3, samples=0, top=top), tmp_path / "run")
    assert set(run.plan.facts.digests) == {"train", "test"}
    name = run.plan.data(split).data.items[-1].name
    path = tmp_path / "images" / name
    before = path.read_bytes()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)
    with pytest.raises(
        RecipeError, match=f"the {split} data have changed .*, their values are not"
    ):
        run.resume()
    path.write_bytes(before)
    assert invem.open(run.path).resume() is None and invem.open(run.path).finished


@pytest.mark.parametrize("name", ["y", "A.mask"])
def test_measurements_that_were_replaced_are_refused_when_a_run_goes_on(name, tmp_path):
    run = interrupted(measured(tmp_path), tmp_path / "run")
    measured(tmp_path, **{name: torch.ones(20, 1, 4, 4) * 0.5})
    with pytest.raises(RecipeError, match="the train data have changed"):
        run.resume()


def test_the_digest_of_a_data_set_is_of_its_values():
    one, two = (digits("train").digest() for _ in range(2))
    assert one == two != digits("test").digest() != digits("train", pad=1).digest()


# Solvers that stop early


@pytest.fixture
def fresh_warnings(monkeypatch):
    monkeypatch.setattr(linalg, "_WARNED", set())


@pytest.mark.parametrize("ask", ["posterior", "posterior_mean"])
def test_an_exact_posterior_that_stops_early_warns_once(ask, fresh_warnings):
    rng = torch.Generator().manual_seed(0)
    prior = Gaussian(torch.zeros(1, 8, 8), DPLR(torch.linspace(1e-2, 10, 64), torch.zeros(64, 0)))
    A = Mask((1, 8, 8), torch.ones(3, 1, 8, 8))
    m = Measurement(
        torch.randn(3, 1, 8, 8, generator=rng), A, Noise(torch.full((3, 1, 1, 1), 0.01))
    )
    given = (m, Rng([1, 2, 3])) if ask == "posterior" else (m,)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact = getattr(prior, ask)(*given)
    with pytest.warns(RuntimeWarning, match=r"after 3 iterations in 3 of 3 .*residual of up to"):
        early = getattr(prior, ask)(*given, iterations=3)
    assert not torch.allclose(early, exact, atol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        getattr(prior, ask)(*given, iterations=3)


def test_conjugate_gradients_say_their_residual():
    b = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    scale = torch.tensor([1.0, 2.0, 5.0])
    found = linalg.cg(lambda v: scale * v, b, 2)
    wanted = (b - scale * found.x).norm(dim=1) / b.norm(dim=1).clamp(min=1)
    wanted[0] = (b - scale * found.x)[0].norm() / b[0].norm()
    assert torch.allclose(found.residual.float(), wanted, atol=1e-5) and found.residual[1] == 0
    assert linalg.cg(lambda v: scale * v, b, 3, tol=1e-5).residual.max() < 1e-5
