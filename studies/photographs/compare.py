"""Whole photographs with noise: a prior learned from noisy windows alone, beside BM3D, non-local means
and total variation, and beside the same network trained on the clean windows (the ceiling).

    python studies/photographs/compare.py [--runs runs/photographs] [--threads 1]

The photographs are those that come with scikit-image and Debian's package mate-backgrounds, in grey,
reduced by area averaging to at most 768 pixels. Noise of 25/255 is added. Four are held out: no
method sees their noisy frames before it restores them. BM3D (pip install bm3d) and non-local means
are told the noise level; total variation is given the weight that is best on the held-out
photographs themselves. The table is kept in docs/results/photographs.json.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from bm3d import bm3d
from PIL import Image
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

import invem

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "docs" / "results" / "photographs.json"
sys.path.append(str(ROOT / "benchmarks"))

import results as files  # noqa: E402  (a script of benchmarks)

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]

SIGMA = 25.0  # of 255
SIDE = 768  # pixels of the longer side, at most
WEIGHTS = (0.05, 0.075, 0.1, 0.125, 0.15)  # of total variation, for values from 0 to 1
BACKGROUNDS = Path("/usr/share/backgrounds/mate/nature")
HELD_OUT = ("camera.png", "astronaut.png", "Dune.jpg", "RainDrops.jpg")
LEARNED_FROM = (
    *("chelsea.png", "coffee.png", "rocket.jpg", "coins.png", "motorcycle_left.png"),
    *("brick.png", "grass.png", "gravel.png", "Aqua.jpg", "Blinds.jpg", "FreshFlower.jpg"),
    *("Garden.jpg", "GreenMeadow.jpg", "LadyBird.jpg", "Storm.jpg", "TwoWings.jpg", "Wood.jpg"),
    "YellowFlower.jpg",
)
NETWORK = {"name": "unet", "channels": [16, 32]}
FIT = {"steps": 1800, "batch": 4, "lr": 2e-3, "decay": "cosine", "warmup": 50, "ema": 0.995}
TILE = 64  # GroupNorm then sees as much as in training


def photograph(name: str) -> Array:
    """Returns a photograph in grey, (H, W), from 0 to 255."""
    found = find_spec("skimage")
    assert found is not None and found.origin is not None
    own = Path(found.origin).parent / "data" / name
    image = Image.open(own if own.exists() else BACKGROUNDS / name).convert("L")
    scale = SIDE / max(image.size)
    if scale < 1:
        width, height = (round(n * scale) for n in image.size)
        image = image.resize((width, height), Image.Resampling.BOX)
    return np.asarray(image, np.float32)


def write_sets(folder: Path) -> None:
    """Writes the photographs: learn/noisy, learn/clean, and those held out: held/noisy, held/clean.

    Values are not clipped, so that the noise is Gaussian.
    """
    for part, names in (("learn", LEARNED_FROM), ("held", HELD_OUT)):
        for kind in ("noisy", "clean"):
            (folder / part / kind).mkdir(parents=True, exist_ok=True)
        for k, name in enumerate(names):
            x = photograph(name)
            rng = np.random.default_rng([part == "held", k])
            y = x + SIGMA * rng.standard_normal(x.shape, np.float32)
            np.save(folder / part / "clean" / f"{Path(name).stem}.npy", x)
            np.save(folder / part / "noisy" / f"{Path(name).stem}.npy", y)


def recipe(data: Path, clean: bool) -> dict[str, Any]:
    """Returns a recipe that learns from a folder, clean or noisy, as plain data."""
    windows = {"name": "frames", "root": str(data), "crop": 64, "low": 0, "high": 255}
    windows["test"] = 0.05
    sigma = 2 * SIGMA / 255
    fit: dict[str, Any] = {"objective": "sure-score", "score": 0, **FIT}
    if clean:
        # The level of the noise alone, as in the recipe without clean photographs.
        level = {"p_mean": float(np.log(sigma)), "p_std": 0.01}
        fit = {"objective": "dsm", "on": "clean", **level, **FIT}
    return {
        "data" if clean else "observations": windows,
        **({"clean": "all"} if clean else {}),
        "operator": "identity",
        "noise": {"name": "gaussian", "sigma": sigma},
        "network": NETWORK,
        "phases": [{"name": "learn", "fit": fit}],
        "evaluate": {"observations": 4, "samples": 4, "draws": 2, "posterior": 2, "steps": 4},
    }


def learned(folder: Path, clean: bool, threads: int) -> tuple[dict[str, Array], float, float]:
    """Learns, and restores the held-out photographs. Returns them by name, and the seconds of
    learning and of restoring all."""
    name = "clean" if clean else "noisy"
    made = recipe(folder / "learn" / name, clean)
    made["compute"] = {"device": "cpu", "threads": threads}
    run, out = invem.run(made, out=folder / f"run-{name}"), folder / f"restored-{name}"
    learning = sum(row["seconds"] for row in run.results["fits"]) if "fits" in run.results else 0.0
    begun = time.perf_counter()
    run.restore_files(folder / "held" / "noisy", out, tile=TILE, force=True)
    restoring = time.perf_counter() - begun
    return {Path(n).stem: np.load(out / f"{Path(n).stem}.npy") for n in HELD_OUT}, learning, restoring


def psnr(x_hat: Array, x: Array) -> float:
    """Returns the peak signal-to-noise ratio of values clipped to 0 to 255, in dB."""
    error = np.mean((np.clip(x_hat, 0, 255).astype(float) - x) ** 2)
    return float(10 * np.log10(255**2 / error))
