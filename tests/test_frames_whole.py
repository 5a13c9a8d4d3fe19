"""Whole frames of files, restored at their own size into files of the same kind."""

import sys

import numpy as np
import pytest
import tifffile
import torch
from invem_plugins.networks.convnet import ConvNet
from invem_plugins.networks.unet import UNet
from safetensors.torch import save_file
from torch import nn

import invem
from invem import DataError, Gaussian, Preconditioned, RecipeError
from invem.cli.app import main
from invem.frames import Units
from invem.tiled import Tiled, overlap_for, reach

LOW, HIGH = 100.0, 900.0


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def scene(shape, seed=0):
    """Smooth stored values with noise."""
    rows, columns = np.mgrid[: shape[-2], : shape[-1]]
    values = 500 + 200 * np.sin(rows / 9) * np.cos(columns / 7)
    return values + np.random.default_rng(seed).normal(0, 40, shape)


def recipe(folder, network):
    y = torch.from_numpy(Units(low=LOW, high=HIGH).signal(scene((64, 1, 16, 16))))
    save_file({"y": y}, folder / "y.safetensors")
    return {
        "seed": 0,
        "observations": {"name": "measurements", "file": str(folder / "y.safetensors")},
        "operator": "identity",
        "noise": {"name": "gaussian", "sigma": 0.1},
        "network": network,
        "phases": [
            {"name": "warm", "rounds": 2, "fit": {"objective": "gaussian-moments", "rank": 4}},
            {
                "name": "em",
                "rounds": 1,
                "sampler": {"name": "auto", "steps": 3},
                "fit": {"objective": "dsm", "steps": 20, "batch": 16},
            },
        ],
        "evaluate": {"observations": 4, "samples": 0, "metrics": [], "steps": 3},
        "compute": {"device": "cpu"},
    }


def with_units(run):
    """The run, as if it had learned from files of frames."""
    facts = run.plan.facts._replace(units=Units(low=LOW, high=HIGH).as_dict())
    object.__setattr__(run.plan, "facts", facts)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    network = {"name": "convnet", "kernels": [3, 3], "width": 8}
    return with_units(invem.run(recipe(folder, network), out=folder / "run"))


@pytest.fixture
def frames(tmp_path):
    """A stack of 12 bits, and an array of floats of odd size in a folder of its own."""
    folder = tmp_path / "frames"
    (folder / "more").mkdir(parents=True)
    stack = scene((3, 40, 72)).round().clip(0, 4095).astype("uint16")
    tifffile.imwrite(
        folder / "stack.tif", stack, photometric="minisblack", metadata={"axes": "TYX"}
    )
    np.save(folder / "more" / "odd.npy", scene((33, 7), 1).astype("float32"))
    return folder


def test_files_come_back_under_their_names(run, frames, tmp_path):
    out = tmp_path / "restored"
    found = run.restore_files(frames, out)
    assert sorted(found.files) == ["more/odd.npy", "stack.tif"] and found.frames == 4
    before = tifffile.imread(frames / "stack.tif")
    after = tifffile.imread(out / "stack.tif")
    assert after.dtype == before.dtype and after.shape == before.shape
    odd = np.load(out / "more" / "odd.npy")
    assert odd.dtype == np.float32 and odd.shape == (33, 7)
    assert sorted(path.name for path in out.iterdir()) == ["more", "stack.tif"]
    # The mean is one call of the denoiser at the size of the frame.
    units = Units(low=LOW, high=HIGH)
    y = torch.from_numpy(units.signal(np.load(frames / "more" / "odd.npy")))[None, None]
    prior = run.prior
    prior.denoiser.mean = prior.moments.stationary((1, 33, 7)).mean
    wanted = units.stored(prior(y, 0.1).numpy())[0, 0]
    assert np.abs(odd - wanted).max() < 1e-3


def test_files_that_are_there_are_left(run, frames, tmp_path):
    out = tmp_path / "restored"
    run.restore_files(frames / "stack.tif", out)
    written = (out / "stack.tif").stat().st_mtime_ns
    found = run.restore_files(frames, out)
    assert found.files == ("more/odd.npy",) and found.left == ("stack.tif",)
    assert (out / "stack.tif").stat().st_mtime_ns == written
    found = run.restore_files(frames, out, force=True)
    assert not found.left and (out / "stack.tif").stat().st_mtime_ns > written


def test_draws_have_a_mean_and_a_standard_deviation(run, frames, tmp_path):
    out = tmp_path / "restored"
    run.restore_files(frames / "more", out, draws=3, std=True, keep_draws=True)
    draws = np.stack([np.load(out / "draws" / f"{k}" / "odd.npy") for k in (1, 2, 3)])
    std = np.load(out / "std" / "odd.npy")
    assert std.dtype == np.float32 and np.allclose(std, draws.std(0, ddof=1), rtol=1e-2, atol=1e-2)
    run.restore_files(frames / "more", tmp_path / "one", draws=1, std=True)
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["odd.npy"]


def test_clipped_values_are_counted(run, tmp_path):
    values = np.full((20, 20), 2.0)
    values[:10] = 250
    np.save(tmp_path / "a.npy", values.astype("uint8"))
    dark = Units(low=-3000, high=-1000).as_dict()
    facts = run.plan.facts
    object.__setattr__(run.plan, "facts", facts._replace(units=dark))
    try:
        found = run.restore_files(tmp_path / "a.npy", tmp_path / "restored")
    finally:
        object.__setattr__(run.plan, "facts", facts)
    assert found.values == 400 and 0 < found.clipped <= 400
    assert np.load(tmp_path / "restored" / "a.npy").dtype == np.uint8


def test_what_does_not_fit_is_refused(run, frames, tmp_path):
    with pytest.raises(RecipeError, match="written over"):
        run.restore_files(frames, frames)
    with pytest.raises(RecipeError, match="multiple of 32"):
        run.restore_files(frames, tmp_path / "out", tile=100)
    np.save(tmp_path / "rgb.npy", np.zeros((2, 3, 8, 8), "uint8"))
    with pytest.raises(DataError, match="channels"):
        run.restore_files(tmp_path / "rgb.npy", tmp_path / "out")
    facts = run.plan.facts
    object.__setattr__(run.plan, "facts", facts._replace(units=None))
    with pytest.raises(RecipeError, match="what stored values mean"):
        run.restore_files(frames, tmp_path / "out")
    object.__setattr__(run.plan, "facts", facts)


def test_the_command_writes_a_folder(run, frames, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("invem.cli.runs.open_run", lambda *_: run)
    out = tmp_path / "restored"
    monkeypatch.setattr(
        sys, "argv", ["invem", "restore", str(run.path), str(frames), "--out", str(out)]
    )
    for words in ("2 files, 4 frames", "0 files, 0 frames"):
        with pytest.raises(SystemExit):
            main()
        assert words in capsys.readouterr().out
    assert (out / "more" / "odd.npy").exists()


def test_nothing_is_written_over_what_is_restored_nor_twice(run, tmp_path):
    from PIL import Image

    frames = tmp_path / "frames"
    frames.mkdir()
    np.save(frames / "a.npy", scene((1, 16, 16)).astype(np.float32))
    with pytest.raises(RecipeError, match="written over; choose another folder"):
        run.restore_files(frames, frames, force=True)
    for name in ("b.jpg", "b.png"):
        Image.fromarray(np.full((16, 16), 200, np.uint8)).save(frames / name)
    with pytest.raises(RecipeError, match=r"b\.jpg and b\.png would both be written as .*b\.png"):
        run.restore_files(frames, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def random_network(kind, **options):
    torch.manual_seed(0)
    net = kind((1, 64, 64), **options)
    for name, parameter in net.named_parameters():
        # Norms keep their scale, so that the network is as smooth as a trained one.
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif "norm" not in name:
            nn.init.zeros_(parameter)
    return Preconditioned(net, 0.5).eval().requires_grad_(False)


def test_tiles_are_the_whole_where_the_network_sees_little():
    network = random_network(ConvNet, kernels=[5, 3, 3], width=8)
    assert reach(network, 1) == 4 and overlap_for(network, 1) == 32
    for size in ((150, 70), (64, 257), (97, 33)):
        x = torch.randn(2, 1, *size)
        sigma = torch.tensor([0.3, 0.6])
        tiled = Tiled(network, 32, 32)
        assert (tiled(x, sigma) - network(x, sigma)).abs().max() < 1e-5


def test_gradients_through_tiles_are_those_of_the_whole():
    network = random_network(ConvNet, kernels=[3, 3], width=4)
    x, v = torch.randn(1, 1, 130, 40), torch.randn(1, 1, 130, 40)
    found = []
    for denoiser in (network, Tiled(network, 32, 32)):
        given = x.clone().requires_grad_()
        out = denoiser(given, 0.4)
        twice = [torch.autograd.grad(out, given, v, retain_graph=True)[0] for _ in range(2)]
        assert torch.equal(*twice)
        found.append(twice[0])
    assert (found[0] - found[1]).abs().max() < 1e-5


def test_there_is_no_seam_in_a_unet():
    network = random_network(UNet, channels=[8, 16], blocks=1)
    assert overlap_for(network, 1) == 64
    x = torch.from_numpy(scene((1, 1, 256, 64)) / 200 - 2.5).float()
    change = (Tiled(network, 64, 64)(x, 0.2) - network(x, 0.2)).squeeze().diff(dim=0).abs().mean(1)
    seams = change[63:255:64]
    assert seams.max() < 1.5 * change.amax() and seams.mean() < 2 * change.mean()


def test_a_stationary_gaussian_has_mean_and_variance_of_each_channel():
    x = torch.randn(500, 2, 4, 4) * torch.tensor([0.2, 0.5]).reshape(2, 1, 1) + 0.3
    found = Gaussian.fit(x, 3).stationary((2, 9, 5))
    assert found.shape == (2, 9, 5)
    var = found.cov.diag.reshape(2, -1)
    assert torch.allclose(var.mean(1).sqrt(), torch.tensor([0.2, 0.5]), rtol=0.05)
    assert torch.allclose(found.mean.mean((1, 2)), torch.full((2,), 0.3), atol=0.02)
