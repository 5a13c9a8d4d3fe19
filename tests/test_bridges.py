"""Operators and networks of other libraries, against those libraries themselves. Where one is
absent its tests are skipped."""

import json
import subprocess
import sys

import pytest
import torch

from invem import DataError, RecipeError
from invem.config import Catalog
from invem.errors import MissingExtra

CATALOG = Catalog.load()
MASKS = {
    "physics": "Inpainting",
    "generator": "BernoulliSplittingMaskGenerator",
    "generator_options": {"split_ratio": 0.5},
}


def x(*shape):
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(0)) - 1


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_missing_extra_names_the_command_that_brings_it():
    code = (
        "import sys; sys.modules.update(deepinv=None, diffusers=None, azula=None)\nfrom invem"
        ".errors import MissingExtra\nfrom invem.config import Catalog\nimport torch\nload ="
        " lambda kind, name: Catalog.load().find(kind, name).load()\nfor call in (lambda:"
        " load('operators', 'deepinv')(1, (1, 8, 8), torch.Generator(), physics='Blur'),\n   "
        " lambda: load('networks', 'deepinv')((1, 8, 8), model='DRUNet'), lambda: load('networks',"
        " 'diffusers')((1, 8, 8)),\n    lambda: load('networks', 'azula')((1, 8, 8))):\n    try:"
        " call()\n    except MissingExtra as error: print(error)\n"
    )
    lines = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert [line.partition("install it with: ")[2] for line in lines] == [
        f"pip install 'invem[{extra}]'" for extra in ("deepinv", "deepinv", "diffusers", "azula")
    ]


def test_listing_the_bridges_imports_none_of_them():
    code = (
        "import sys\nfrom invem.config import Catalog\nc ="
        " Catalog.load()\nc.find('operators', 'deepinv').load().__doc__\nc.find('networks',"
        " 'diffusers').load(); c.find('networks', 'azula').load()\nassert not {'deepinv',"
        " 'diffusers', 'azula'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class TestDeepinv:
    @pytest.fixture(autouse=True)
    def library(self):
        try:
            import deepinv
        except (ImportError, RuntimeError) as error:
            pytest.skip(f"deepinv does not import: {error}")
        return deepinv

    @pytest.fixture
    def physics(self):
        return CATALOG.find("operators", "deepinv").load()

    def test_the_change_of_range_is_exact(self, library, physics):
        kernel = [
            [0.0, 0.1, 0.0],
            [0.2, 0.4, 0.1],
            [0.0, 0.1, 0.0],
        ]  # its sum is not one, so that the offset counts
        A = physics(
            3, (1, 8, 8), rng(), physics="Blur", options={"filter": kernel, "padding": "valid"}
        )
        theirs = library.physics.Blur(filter=torch.tensor([[kernel]]), padding="valid")
        signal = x(3, 1, 8, 8)
        assert torch.allclose(A(signal) + A.offset(), theirs.A((signal + 1) / 2), atol=1e-6)
        assert torch.allclose(A.adjoint(A(signal)), theirs.A_adjoint(A(signal)) / 2, atol=1e-6)
        narrow = physics(
            3,
            (1, 8, 8),
            rng(),
            physics="Blur",
            options={"filter": kernel, "padding": "valid"},
            low=0.0,
        )
        assert (
            torch.allclose(narrow(signal), theirs.A(signal), atol=1e-6)
            and not narrow.offset().any()
        )

    def test_a_nonlinear_physics_sees_the_unit_range(self, library, physics):
        A = physics(2, (1, 4, 4), rng(), physics="RandomPhaseRetrieval", options={"m": 20})
        signal = x(2, 1, 4, 4)
        assert torch.allclose(A(signal), A.physics.A((signal + 1) / 2 + 0j), atol=1e-5)
        assert "adjoint" not in A.provides

    def test_each_sample_has_its_own_parameters(self, physics):
        A = physics(4, (1, 8, 8), rng(), **MASKS)
        ones = torch.ones(4, 1, 8, 8)
        hidden = A(ones) == 0
        assert not torch.equal(hidden[0], hidden[1])
        again = physics(4, (1, 8, 8), rng(), **MASKS)
        assert torch.equal(A(ones), again(ones))
        assert A.provides == {"vjp", "adjoint", "pinv", "svd"}

    def test_measurements_of_several_parts_are_one_vector(self, physics):
        A = physics(
            2, (4, 8, 8), rng(), physics="Pansharpen", options={"factor": 2, "filter": "bilinear"}
        )
        signal = x(2, 4, 8, 8)
        y = A(signal)
        assert y.shape == (2, 4 * 4 * 4 + 64)
        v = torch.rand_like(y)
        assert torch.allclose((y * v).sum(1), (signal * A.adjoint(v)).flatten(1).sum(1), atol=1e-4)

    def test_a_call_leaves_the_physics_as_it_was(self, physics):
        A = physics(
            2, (1, 8, 8), rng(), physics="Tomography", options={"angles": 4, "normalize": False}
        )
        before = {name: tensor.clone() for name, tensor in A.physics.state_dict().items()}
        keys = set(A.physics.__dict__)
        torch.func.vmap(A)(x(3, 2, 1, 8, 8))
        A.adjoint(A(x(2, 1, 8, 8)))
        assert A.physics.state_dict().keys() == before.keys() and set(A.physics.__dict__) == keys
        assert all(
            torch.equal(value, before[name]) for name, value in A.physics.state_dict().items()
        )

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"physics": "Inpaintin"}, "did you mean 'Inpainting'"),
            ({"physics": "BlurFFT", "options": {"filtr": [[1.0]]}}, "no option 'filtr'"),
            ({"physics": "Inpainting", "generator": "Nothing"}, "no generator 'Nothing'"),
            (
                {"physics": "BlurFFT", "options": {"filter": [[1.0]]}, "low": 1.0},
                "low must be less than high",
            ),
            ({"physics": "CompressiveSpectralImaging"}, "does not take signals of shape (1, 8, 8)"),
        ],
    )
    def test_a_mistake_is_one_line(self, physics, options, words):
        with pytest.raises(RecipeError) as error:
            physics(2, (1, 8, 8), rng(), **options)
        assert words in str(error.value)

    def test_its_denoisers_are_networks(self, library):
        build = CATALOG.find("networks", "deepinv").load()
        net = build((1, 8, 8), model="DRUNet", options={"nc": [8, 8, 8, 8], "nb": 1}).eval()
        signal, levels = x(3, 1, 8, 8), torch.tensor([0.1, 0.2, 0.4])
        with torch.no_grad():
            assert torch.allclose(
                net(signal, levels), 2 * net.model((signal + 1) / 2, levels / 2) - 1, atol=1e-6
            )
        with pytest.raises(RecipeError, match="downloaded"):
            build((1, 8, 8), model="DRUNet", options={"pretrained": "download"})
        with pytest.raises(RecipeError, match="did you mean 'DRUNet'"):
            build((1, 8, 8), model="DRUNet2")

    def test_a_run_with_both(self, tmp_path):
        recipe = tmp_path / "r.yaml"
        recipe.write_text(
            f"data: digits\ncount: 64\noperator: {json.dumps({'name': 'deepinv', **MASKS})}\nnoise:"
            " {name: gaussian, sigma: 0.1}\nnetwork: {name: deepinv, model: UNet,\n  options:"
            " {scales: 2, channels_per_scale: [8, 8], batch_norm: false}}\nevaluate:"
            " {observations: 8, samples: 0, draws: 2}\nphases:\n  - {name: warm, rounds: 1,"
            " fit: {objective: gaussian-moments}}\n  - {name: em, rounds: 1, sampler: {name:"
            " mmps, steps: 3}, fit: {objective: dsm, steps: 4, batch: 16}}\n"
        )
        command = [
            sys.executable,
            "-c",
            "from invem.cli import main; main()",
            "run",
            str(recipe),
            "--out",
            str(tmp_path / "run"),
            "--device",
            "cpu",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


class TestDiffusers:
    @pytest.fixture(autouse=True)
    def library(self):
        try:
            from diffusers import UNet2DModel
        except (ImportError, RuntimeError) as error:
            pytest.skip(f"diffusers does not import: {error}")
        return UNet2DModel

    @pytest.fixture
    def build(self):
        return CATALOG.find("networks", "diffusers").load()

    @pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
    def test_it_agrees_with_the_scheduler_at_its_own_steps(self, build, prediction):
        from diffusers import DDPMScheduler

        net = build((1, 8, 8), channels=[8, 8], groups=4, prediction=prediction).eval()
        scheduler = DDPMScheduler(prediction_type=prediction, clip_sample=False)
        for t in (0, 10, 500, 999):
            kept = scheduler.alphas_cumprod[t]
            sigma = ((1 - kept) / kept).sqrt()
            assert net.time(sigma.reshape(1)).item() == pytest.approx(t, abs=0.02)
            state = x(2, 1, 8, 8)
            with torch.no_grad():
                theirs = scheduler.step(net.unet(state, t).sample, t, state).pred_original_sample
                ours = net(state / kept.sqrt(), sigma)
            assert torch.allclose(ours, theirs, atol=1e-3 * float(theirs.abs().max())), (
                prediction,
                t,
            )

    def test_levels_beyond_the_scheduler_are_its_last(self, build):
        net = build((1, 8, 8), channels=[8, 8], groups=4)
        assert net.time(torch.tensor([1e-6, 1e6])).tolist() == [0, 999]

    def test_a_local_directory_gives_the_same_network(self, build, tmp_path):
        from diffusers import DDPMScheduler

        net = build((1, 8, 8), channels=[8, 8], groups=4, prediction="epsilon").eval()
        net.unet.save_pretrained(tmp_path / "unet")
        DDPMScheduler(prediction_type="epsilon").save_pretrained(tmp_path / "scheduler")
        again = build((1, 8, 8), path=str(tmp_path)).eval()
        with torch.no_grad():
            assert torch.equal(net(x(2, 1, 8, 8), 0.5), again(x(2, 1, 8, 8), 0.5))
        with pytest.raises(RecipeError, match="1 channels"):
            build((3, 8, 8), path=str(tmp_path))
        with pytest.raises(DataError, match="no unet"):
            build((1, 8, 8), path=str(tmp_path / "unet"))
        (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").rename(
            tmp_path / "unet" / "diffusion_pytorch_model.bin"
        )
        with pytest.raises(DataError):
            build((1, 8, 8), path=str(tmp_path))


class TestAzula:
    @pytest.fixture(autouse=True)
    def library(self):
        try:
            import azula.denoise
        except (ImportError, RuntimeError) as error:
            pytest.skip(f"azula does not import: {error}")
        return azula.denoise

    def test_a_denoiser_is_the_same_under_any_schedule(self, library):
        from azula.noise import VPSchedule
        from invem_plugins.bridges.azula import AzulaDenoiser

        class Backbone(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = torch.nn.Parameter(torch.ones(()))

            def forward(self, x, t):
                return self.weight * torch.tanh(x) * t.reshape(-1, 1, 1, 1)

        theirs = library.KarrasDenoiser(Backbone(), VPSchedule())
        t = torch.tensor(0.6)
        alpha, sigma = theirs.schedule(t)
        state = x(2, 1, 4, 4)
        expected = theirs(state, t).mean
        ours = AzulaDenoiser(theirs)
        assert torch.allclose(ours(state / alpha, sigma / alpha), expected, atol=1e-5)

    def test_its_unet_is_a_network(self):
        net = CATALOG.find("networks", "azula").load()(
            (1, 9, 9), channels=[8, 8], blocks=1, features=16
        )
        assert net(x(2, 1, 9, 9), torch.tensor([0.1, 3.0])).shape == (2, 1, 9, 9)


def test_the_error_of_a_missing_extra_is_a_plugin_error():
    assert MissingExtra("deepinv", ImportError("x")).exit_code == 3


def test_no_weights_that_a_recipe_names_run_code(tmp_path, monkeypatch):
    """Some classes of deepinv unpickle their `pretrained` (those in `models/direct_mri.py`)."""
    import os
    from types import ModuleType

    class Careless(torch.nn.Module):
        def __init__(self, pretrained=None):
            super().__init__()
            torch.load(pretrained, weights_only=False)

        def forward(self, x, sigma):
            return x

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    library = ModuleType("deepinv")
    library.models = ModuleType("deepinv.models")
    library.models.Careless = Careless
    monkeypatch.setitem(sys.modules, "deepinv", library)
    torch.save({"model": Bomb()}, tmp_path / "weights.pt")
    network = CATALOG.find("networks", "deepinv").load()
    with pytest.raises(RecipeError, match="Weights only load failed"):
        network((3, 8, 8), model="Careless", options={"pretrained": str(tmp_path / "weights.pt")})
    assert not (tmp_path / "exploded").exists()
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
