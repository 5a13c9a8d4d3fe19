"""Whole photographs with noise: a prior learned from noisy windows alone, beside BM3D, non-local
means and total variation, and beside the same network trained on clean windows.

    python studies/photographs/compare.py learn noisy [--runs runs/photographs] [--threads 1]
    python studies/photographs/compare.py table

`learn` carries out one recipe (noisy, draws, published or clean), or all if none is named. `table`
restores the held-out photographs by every method, prints the table, and keeps it.

The photographs are those that come with scikit-image and Debian's package mate-backgrounds, in
grey, reduced by area averaging to at most 768 pixels. Noise of 25/255 is added. Four are held out:
no method sees their noisy frames before it restores them. BM3D (pip install bm3d) and non-local
means are told the noise level; total variation is given the weight that is best on the held-out
photographs themselves. The table is kept in docs/results/photographs.json. Seconds are those of
the processor.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from bm3d import bm3d  # type: ignore[import-untyped]
from PIL import Image
from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

import invem

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "docs" / "results" / "photographs.json"
sys.path.append(str(ROOT / "benchmarks"))

import results as files  # noqa: E402  (a script of benchmarks)

Array = np.ndarray[tuple[int, ...], np.dtype[Any]]
Frames = dict[str, Array]
Row = dict[str, Any]

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
SLOW = {"batch": 4, "decay": "cosine", "ema": 0.995}
LEVEL = 2 * SIGMA / 255  # where 0 is -1 and 255 is 1
PHASES: dict[str, list[dict[str, Any]]] = {
    # The level of the data alone, which is what the posterior mean needs.
    "noisy": [
        {"objective": "sure-score", "score": 0, "steps": 2000, "lr": 2e-3, "warmup": 50, **SLOW},
    ],
    # Then all levels, which posterior draws need.
    "draws": [
        {"objective": "sure-score", "score": 0, "steps": 1500, "lr": 2e-3, "warmup": 50, **SLOW},
        {"objective": "sure-score", "through": False, "steps": 300, "lr": 5e-4, **SLOW},
    ],
    # SURE-Score as published.
    "published": [{"objective": "sure-score", "steps": 800, "batch": 8}],
    # The same network on clean windows, at the level of the data.
    "clean": [
        {
            **{"objective": "dsm", "on": "clean", "p_mean": math.log(LEVEL), "p_std": 0.01},
            **{"steps": 1800, "lr": 2e-3, "warmup": 50, **SLOW},
        }
    ],
}
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


def recipe(root: Path, kind: str, threads: int) -> dict[str, Any]:
    """Returns a recipe that learns from the photographs in a folder, as plain data.

    Args:
        root: The folder.
        kind: A name of `PHASES`.
        threads: CPU threads.
    """
    windows = {"name": "frames", "root": str(root), "crop": 64, "low": 0, "high": 255, "test": 0.05}
    given = {"data": windows, "clean": "all"} if kind == "clean" else {"observations": windows}
    phases = [{"name": f"learn-{k}", "fit": fit} for k, fit in enumerate(PHASES[kind])]
    evaluate = {"sampler": "auto", "observations": 4, "samples": 4, "posterior": 2, "steps": 4}
    return {
        **given,
        "operator": "identity",
        "noise": {"name": "gaussian", "sigma": LEVEL},
        "network": NETWORK,
        "phases": phases,
        "evaluate": evaluate,
        "compute": {"device": "cpu", "threads": threads},
    }


def learned(folder: Path, kind: str, threads: int) -> tuple[Frames, Row]:
    """Learns, and restores the held-out photographs.

    Returns:
        The restored ones by name; and the processor seconds of learning, and of one photograph.
    """
    root = folder / "learn" / ("clean" if kind == "clean" else "noisy")
    out = folder / f"restored-{kind}"
    run = invem.run(recipe(root.resolve(), kind, threads), out=folder / f"run-{kind}")
    spent = run.results["cpu"]
    begun = time.process_time()
    run.restore_files(folder / "held" / "noisy", out, tile=TILE, force=True)
    took = (time.process_time() - begun) / len(HELD_OUT)
    learning = sum(spent[phase].get("fit", 0.0) for phase in spent if phase.startswith("learn-"))
    restored = {name: np.load(out / f"{Path(name).stem}.npy") for name in HELD_OUT}
    return restored, {"learning": round(learning), "seconds": round(took, 2)}


def classical(noisy: Frames, method: Callable[[Array], Array]) -> tuple[Frames, Row]:
    """Restores photographs by a function of values from 0 to 1, as `learned` does."""
    begun = time.process_time()
    restored = {name: 255 * method(y.astype(float) / 255) for name, y in noisy.items()}
    took = (time.process_time() - begun) / len(noisy)
    return restored, {"learning": 0, "seconds": round(took, 2)}


def psnr(x_hat: Array, x: Array) -> float:
    """Returns the peak signal-to-noise ratio of values clipped to 0 to 255, in dB."""
    error = np.mean((np.clip(x_hat, 0, 255).astype(float) - x) ** 2)
    return float(10 * np.log10(255**2 / error))


def mean_psnr(restored: Frames, clean: Frames) -> float:
    """Returns the mean over the held-out photographs."""
    return sum(psnr(restored[name], clean[name]) for name in HELD_OUT) / len(HELD_OUT)


def table(folder: Path, threads: int) -> dict[str, Row]:
    """Returns one row per method: the PSNR of each held-out photograph, their mean, and seconds."""
    clean, noisy = (
        {name: np.load(folder / "held" / kind / f"{Path(name).stem}.npy") for name in HELD_OUT}
        for kind in ("clean", "noisy")
    )
    level = SIGMA / 255
    smooth = [classical(noisy, partial(denoise_tv_chambolle, weight=weight)) for weight in WEIGHTS]
    found: dict[str, tuple[Frames, Row]] = {
        "noisy": (noisy, {"learning": 0, "seconds": 0}),
        "total variation": max(smooth, key=lambda tried: mean_psnr(tried[0], clean)),
        "non-local means": classical(
            noisy,
            lambda y: denoise_nl_means(
                y, patch_size=5, patch_distance=6, h=0.6 * level, sigma=level, fast_mode=True
            ),
        ),
        "BM3D": classical(noisy, lambda y: bm3d(y, level)),
    }
    for kind in PHASES:
        if (folder / f"run-{kind}").exists():
            found[f"learned, {kind}"] = learned(folder, kind, threads)
    return {
        method: {
            **{Path(name).stem: round(psnr(restored[name], clean[name]), 2) for name in HELD_OUT},
            "mean": round(mean_psnr(restored, clean), 2),
            **row,
        }
        for method, (restored, row) in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=("learn", "table"))
    parser.add_argument("kind", nargs="?", choices=tuple(PHASES))
    parser.add_argument("--runs", type=Path, default=Path("runs/photographs"))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    if not (args.runs / "held").exists():
        write_sets(args.runs)
    if args.what == "learn":
        for kind in (args.kind,) if args.kind else PHASES:
            learned(args.runs, kind, args.threads)
        return
    rows = table(args.runs, args.threads)
    for method, row in rows.items():
        print(f"{method:<20}", *(f"{name} {value:<7}" for name, value in row.items()))
    kept = {"sigma": SIGMA, "threads": args.threads, "network": NETWORK, "phases": PHASES}
    files.write(KEPT, {**kept, "rows": rows})


if __name__ == "__main__":
    main()
