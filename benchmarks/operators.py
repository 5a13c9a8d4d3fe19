"""The time of A and of its adjoint over that of the bare arithmetic and over deepinv's, interleaved
in one process, batch 16.

    python benchmarks/operators.py --json docs/results/operators.json
    python benchmarks/operators.py --from docs/results/operators.json

deepinv is left out where it does not import. A ratio is the median of the ratios of one repetition,
with their quartiles.
"""

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import results
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, pad

from invem.config import Catalog

BATCH = 16

Call = Callable[[Tensor], Tensor]
Law = Callable[..., Any]
# Our operator, the bare arithmetic of it and of its adjoint, and what deepinv has.
Problem = tuple[Any, Call | None, Call | None, list[Any]]


def mask(law: Law, size: int, deepinv: Any) -> Problem:
    A = law("random-mask", (1, size, size), keep=0.4)
    theirs = deepinv and deepinv.Inpainting((1, size, size), mask=A.mask.float())
    return A, lambda x: A.mask * x, lambda y: A.mask * y, [theirs]


def gaussian(law: Law, size: int, deepinv: Any) -> Problem:
    A = law("gaussian-blur", (1, size, size), std=2.0, boundary="circular", size=13)
    kernel = A.adjoint(point(size))[:1].roll((size // 2, size // 2), (-2, -1))
    kernel = kernel[..., size // 2 - 6 : size // 2 + 7, size // 2 - 6 : size // 2 + 7].contiguous()

    def bare(x: Tensor) -> Tensor:
        return conv2d(pad(x, (6, 6, 6, 6), "circular"), kernel)

    theirs = (
        [deepinv.Blur(kernel, padding="circular"), deepinv.BlurFFT((1, size, size), kernel)]
        if deepinv
        else []
    )
    return A, bare, bare, theirs


def motion(law: Law, size: int, deepinv: Any) -> Problem:
    A = law("motion-blur", (1, size, size), size=15, boundary="circular")
    spectrum = torch.fft.rfft2(A(point(size)))

    def bare(x: Tensor) -> Tensor:
        image: Tensor = torch.fft.irfft2(torch.fft.rfft2(x) * spectrum, s=(size, size))
        return image

    def back(y: Tensor) -> Tensor:
        image: Tensor = torch.fft.irfft2(torch.fft.rfft2(y) * spectrum.conj(), s=(size, size))
        return image

    half = A(point(size)).roll((size // 2, size // 2), (-2, -1))
    kernel = half[..., size // 2 - 7 : size // 2 + 8, size // 2 - 7 : size // 2 + 8].contiguous()
    theirs = (
        [deepinv.Blur(kernel, padding="circular"), deepinv.BlurFFT((1, size, size), kernel)]
        if deepinv
        else []
    )
    return A, bare, back, theirs


def downsampling(law: Law, size: int, deepinv: Any) -> Problem:
    A = law("downsample", (1, size, size), factor=4)

    def back(y: Tensor) -> Tensor:
        return y.repeat_interleave(4, -1).repeat_interleave(4, -2) / 16

    theirs = deepinv and deepinv.Downsampling(
        (1, size, size), filter=torch.full((1, 1, 4, 4), 1 / 16), factor=4
    )
    return A, lambda x: avg_pool2d(x, 4), back, [theirs]


def mri(law: Law, size: int, deepinv: Any) -> Problem:
    A = law("multi-coil-mri", (2, size, size), coils=8)
    coils, kept = torch.view_as_complex(A.coils.movedim(1, -1).contiguous()), A.mask[:, :1]

    def bare(x: Tensor) -> Tensor:
        seen = torch.view_as_complex(x.movedim(1, -1).contiguous())[:, None] * coils
        spectrum: Tensor = kept * torch.fft.fft2(seen, norm="ortho")
        return spectrum

    def back(k: Tensor) -> Tensor:
        return torch.view_as_real(
            (coils.conj() * torch.fft.ifft2(kept * k, norm="ortho")).sum(1)
        ).movedim(-1, 1)

    theirs = deepinv and deepinv.MultiCoilMRI(
        mask=kept.float().expand(BATCH, 2, size, size), coil_maps=coils[None], img_size=(size, size)
    )
    return A, bare, back, [theirs]


def radon(law: Law, size: int, deepinv: Any) -> Problem:
    A = law("radon", (1, size, size), angles=60)
    theirs = deepinv and deepinv.Tomography(60, size, normalize=False)
    return A, None, None, [theirs]


PROBLEMS = {
    "mask": mask,
    "Gaussian blur": gaussian,
    "motion blur, a kernel each": motion,
    "×4 downsampling": downsampling,
    "multi-coil MRI, 8 coils": mri,
    "Radon, 60 angles": radon,
}


def point(size: int) -> Tensor:
    """An image that is one at the origin."""
    x = torch.zeros(BATCH, 1, size, size)
    x[..., 0, 0] = 1
    return x


def once(call: Call, x: Tensor, least: float) -> float:
    """Seconds for one call, over as many as take `least` seconds."""
    n, begun = 0, time.perf_counter()
    while (spent := time.perf_counter() - begun) < least or not n:
        call(x)
        n += 1
    return spent / n


def ratio(ours: list[float], other: list[float]) -> list[float]:
    """The lower quartile, the median and the upper quartile of other/ours."""
    return [
        round(q, 2)
        for q in statistics.quantiles([b / a for a, b in zip(ours, other, strict=True)], n=4)
    ]


def _calls(
    name: str,
    what: str,
    x: Tensor,
    A: Any,
    bare: Call | None,
    back: Call | None,
    theirs: list[Any],
) -> dict[str, tuple[Call, Tensor]]:
    """What is timed, A or its adjoint, of each implementation, with its argument.

    Raises:
        AssertionError: deepinv's operator is another one.
    """
    forward = what == "A"
    calls: dict[str, tuple[Call, Tensor]] = {"invem": (A, x) if forward else (A.adjoint, A(x))}
    if bare is not None and back is not None:
        calls["bare"] = (bare, x) if forward else (back, bare(x))
    for i, physics in enumerate(theirs):
        calls[f"deepinv {type(physics).__name__}"] = (
            (physics.A, x) if forward else (physics.A_adjoint, physics.A(x))
        )
        if forward and name in ("mask", "Gaussian blur", "motion blur, a kernel each"):
            gap = float((physics.A(x) - A(x)).abs().max())
            if gap > 1e-4:
                raise AssertionError(f"{name}: deepinv's {i} is another operator ({gap})")
    return calls


@torch.no_grad()
def measure(name: str, size: int, repetitions: int, least: float) -> list[dict[str, Any]]:
    """The rows of one problem at one size: A and its adjoint."""
    try:
        import deepinv.physics as peer
    except (ImportError, RuntimeError):
        peer = None
    catalog = Catalog.load()

    def law(operator: str, shape: tuple[int, ...], **options: Any) -> Any:
        return catalog.find("operators", operator).load()(
            BATCH, shape, torch.Generator().manual_seed(0), **options
        )

    A, bare, back, theirs = PROBLEMS[name](law, size, peer)
    theirs = [physics for physics in theirs if physics]
    x = torch.randn(BATCH, *A.shape, generator=torch.Generator().manual_seed(1))
    rows = []
    for what in ("A", "adjoint"):
        calls = _calls(name, what, x, A, bare, back, theirs)
        spent: dict[str, list[float]] = {label: [] for label in calls}
        for call, value in calls.values():
            call(value)
        for _ in range(repetitions):
            for label, (call, value) in calls.items():
                spent[label].append(once(call, value, least))
        row = {
            "problem": name,
            "size": size,
            "what": what,
            "milliseconds": round(1e3 * statistics.median(spent["invem"]), 3),
        }
        if "bare" in spent:
            row["over bare"] = ratio(spent["bare"], spent["invem"])
        peers = [label for label in spent if label.startswith("deepinv")]
        if peers:
            best = min(peers, key=lambda label: statistics.median(spent[label]))
            row |= {"deepinv": best, "deepinv over invem": ratio(spent["invem"], spent[best])}
        rows.append(row)
        print(row, flush=True)
    return rows


def table(found: dict[str, Any]) -> str:
    """The Markdown table."""
    lines = [
        "| operator | size | | ms | over bare arithmetic | deepinv over invem |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for row in found["rows"]:
        cells = (row.get("over bare"), row.get("deepinv over invem"))
        bare, peer = (
            "" if cell is None else f"{cell[1]:g} ({cell[0]:g}–{cell[2]:g})" for cell in cells
        )
        lines.append(
            f"| {row['problem']} | {row['size']}² | {row['what']} | {row['milliseconds']:.3g} |"
            f" {bare} | {peer} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--from", dest="kept", type=Path, help="Print the table of an earlier JSON."
    )
    parser.add_argument("--repetitions", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.05, help="Least time of one repetition.")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.kept:
        print(table(json.loads(options.kept.read_text("utf-8"))))
        return
    torch.set_num_threads(1)
    rows = [
        row
        for name in PROBLEMS
        for size in options.sizes
        for row in measure(name, size, options.repetitions, options.seconds)
    ]
    installed = {
        d.metadata["name"]: d.version
        for d in metadata.distributions()
        if d.metadata["name"] in ("deepinv", "invem", "torch")
    }
    found = {
        "versions": installed,
        "threads": 1,
        "batch": BATCH,
        "machine": platform.processor() or platform.machine(),
        "rows": rows,
    }
    if options.json:
        results.write(options.json, found)
    print(table(found))


if __name__ == "__main__":
    main()
