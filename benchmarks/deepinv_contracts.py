"""The contracts of operators, on the physics of deepinv through the bridge.

    python benchmarks/deepinv_contracts.py --json docs/results/deepinv-contracts.json --markdown

needs `pip install 'invem[deepinv]'`. For each physics: which contracts hold, which fail, and the
number that was measured.
"""

import argparse
import functools
import json
import re
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import results
import torch
from invem_plugins.bridges.deepinv import physics

from invem import RecipeError
from invem.hookspecs import examples
from invem.testing import SHAPES, check

KERNEL = [[0.0, 0.1, 0.0], [0.2, 0.4, 0.1], [0.0, 0.2, 0.0]]

CASES: list[tuple[str, dict[str, Any]]] = [
    ("Denoising", {"physics": "Denoising"}),
    ("Inpainting", {"physics": "Inpainting", "options": {"mask": 0.5}}),
    (
        "Inpainting, per-sample masks",
        {
            "physics": "Inpainting",
            "generator": "BernoulliSplittingMaskGenerator",
            "generator_options": {"split_ratio": 0.4},
        },
    ),
    ("Demosaicing", {"physics": "Demosaicing"}),
    ("Decolorize", {"physics": "Decolorize"}),
    ("Blur, valid", {"physics": "Blur", "options": {"filter": KERNEL, "padding": "valid"}}),
    ("Blur, circular", {"physics": "Blur", "options": {"filter": KERNEL, "padding": "circular"}}),
    ("Blur, reflect", {"physics": "Blur", "options": {"filter": KERNEL, "padding": "reflect"}}),
    ("Blur, replicate", {"physics": "Blur", "options": {"filter": KERNEL, "padding": "replicate"}}),
    (
        "Blur, motion, per-sample",
        {
            "physics": "Blur",
            "options": {"padding": "circular"},
            "generator": "MotionBlurGenerator",
            "generator_options": {"psf_size": [5, 5]},
        },
    ),
    ("BlurFFT", {"physics": "BlurFFT", "options": {"filter": KERNEL}}),
    ("Downsampling", {"physics": "Downsampling", "options": {"factor": 2, "filter": "bilinear"}}),
    ("DownsamplingMatlab", {"physics": "DownsamplingMatlab", "options": {"factor": 2}}),
    ("CompressedSensing", {"physics": "CompressedSensing", "options": {"m": 20}}),
    ("StructuredRandom", {"physics": "StructuredRandom", "options": {"output_size": [1, 6, 6]}}),
    ("SinglePixelCamera", {"physics": "SinglePixelCamera", "options": {"m": 20}}),
    (
        "MRI",
        {
            "physics": "MRI",
            "generator": "RandomMaskGenerator",
            "generator_options": {"acceleration": 2},
        },
    ),
    (
        "MultiCoilMRI",
        {
            "physics": "MultiCoilMRI",
            "options": {"coil_maps": 3},
            "generator": "RandomMaskGenerator",
            "generator_options": {"acceleration": 2},
        },
    ),
    (
        "Tomography, parallel",
        {"physics": "Tomography", "options": {"angles": 5, "normalize": False}},
    ),
    (
        "Tomography, exact adjoint off",
        {
            "physics": "Tomography",
            "options": {"angles": 5, "normalize": False, "adjoint_via_backprop": False},
        },
    ),
    (
        "CASSI, spatial-spectral",
        {"physics": "CompressiveSpectralImaging", "options": {"mode": "ss"}},
    ),
    (
        "CASSI, single disperser",
        {"physics": "CompressiveSpectralImaging", "options": {"mode": "sd"}},
    ),
    (
        "HyperSpectralUnmixing",
        {"physics": "HyperSpectralUnmixing", "options": {"M": [[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]]}},
    ),
    ("Pansharpen", {"physics": "Pansharpen", "options": {"factor": 2, "filter": "bilinear"}}),
    ("RandomPhaseRetrieval", {"physics": "RandomPhaseRetrieval", "options": {"m": 20}}),
    (
        "StructuredRandomPhaseRetrieval",
        {
            "physics": "StructuredRandomPhaseRetrieval",
            "options": {"output_size": [1, 6, 6], "n_layers": 2},
        },
    ),
]


def measure(options: dict[str, Any]) -> dict[str, Any]:
    """The results of one physics, over the shapes that it takes."""
    taken = []
    for shape in SHAPES:
        try:
            physics(1, shape, torch.Generator(), **options)
            taken.append(shape)
        except RecipeError as error:
            why = str(error)
    if not taken:
        return {"shapes": [], "why": why}
    return {
        "shapes": [list(shape) for shape in taken],
        "results": [r._asdict() for r in check("operators", law(options))],
    }


def law(options: dict[str, Any]) -> Any:
    """The law of the bridge with these options as its only example."""

    @examples(options)
    @functools.wraps(physics)
    def one(*args: Any, **given: Any) -> Any:
        return physics(*args, **given)

    return one


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument(
        "--from", dest="kept", type=Path, help="Print the table of an earlier JSON."
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if options.kept:
        found = json.loads(options.kept.read_text("utf-8"))
    else:
        versions = {name: metadata.version(name) for name in ("invem", "deepinv", "torch")}
        found = {
            "versions": versions,
            "physics": {name: {"options": case, **measure(case)} for name, case in CASES},
        }
    if options.json:
        results.write(options.json, found)
    if options.markdown or not options.json:
        print(table(found))


def table(found: dict[str, Any]) -> str:
    """The Markdown table: a row for each physics."""
    lines = [
        "| physics of deepinv | contracts that hold | that fail (measured) |",
        "|---|---:|---|",
    ]
    for name, case in found["physics"].items():
        if not case["shapes"]:
            lines.append(
                f"| {name} | | takes none of the shapes: {' '.join(case['why'].split())[:100]} |"
            )
            continue
        holds = sum(r["passed"] is True for r in case["results"])
        failed = [f"{r['contract']} ({number(r)})" for r in case["results"] if r["passed"] is False]
        lines.append(f"| {name} | {holds} | {'; '.join(failed)} |")
    return "\n".join(lines)


def number(result: dict[str, Any]) -> str:
    """The number that was measured and where, or the error."""
    if result["value"] is None:
        detail = " ".join(result["detail"].replace("|", "/").split())
        found = re.match(r"(\(.*?\)).*?: (\w+Error: .*)", detail)
        if found is None:
            raise ValueError(f"no shape and error in {detail!r}")
        return f"{found[1]}: {found[2][:90]}"
    return f"{result['value']:.2g} at {result['detail'].split(', physics')[0]}"


if __name__ == "__main__":
    main()
