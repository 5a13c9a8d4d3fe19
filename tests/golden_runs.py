"""Runs whose tensors are known to the bit: every kind of phase, small. See tests/test_golden.py.

`python tests/golden_runs.py` writes tests/golden/digests.json anew. A commit that changes a digest
says which and why.
"""

import hashlib
import json
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from invem import store
from invem.config import Catalog, load
from invem.planning.make import make
from invem.running.loop import carry_out as run_plan

FOLDER = Path(__file__).parent / "golden"
DIGESTS = FOLDER / "digests.json"
SIGNALS = {"x", "y", "draws"}  # the tensors that are sketched too
RUNS = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def machine() -> str:
    """Names what decides the last bits of a number: the version of PyTorch and the instructions of
    the processor."""
    capability = torch.backends.cpu.get_cpu_capability()
    return (
        f"torch {torch.__version__.partition('+')[0]}, {platform.machine()} {capability}, one"
        " thread"
    )


def carry_out(name: str, folder: Path) -> Path:
    """Runs one of `RUNS` below a folder and returns the run directory."""
    recipe = folder / f"{name}.yaml"
    text = (FOLDER / recipe.name).read_text("utf-8")
    if "y.safetensors" in text:
        rng = torch.Generator().manual_seed(0)
        x = torch.rand(40, 1, 6, 6, generator=rng).cumsum(-1) / 3 - 1
        mask = (torch.rand(40, 1, 6, 6, generator=rng) < 0.6).float()
        y = mask * x + 0.1 * torch.randn(40, 1, 6, 6, generator=rng)
        save_file({"y": y, "A.mask": mask}, folder / "y.safetensors")
        text = text.replace("y.safetensors", str(folder / "y.safetensors"))
    recipe.write_text(text, "utf-8")
    torch.set_num_threads(1)
    for _ in run_plan(make(load(recipe), Catalog.load()), folder / name):
        pass
    return folder / name


def digest(tensor: torch.Tensor) -> str:
    """Returns eight digits that are another for any other dtype, shape or bit."""
    words = f"{tensor.dtype}:{tuple(tensor.shape)};".encode()
    raw = (
        tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        if tensor.numel()
        else b""
    )
    return hashlib.sha256(words + raw).hexdigest()[:8]


def sketch(tensor: torch.Tensor) -> list[float]:
    """Returns mean and root mean square: what another processor must agree with too, but for
    rounding."""
    x = tensor.double().flatten()
    return (
        [float(f"{value:.6g}") for value in (x.mean(), x.square().mean().sqrt())]
        if x.numel()
        else []
    )


def found(run_directory: Path) -> dict[str, Any]:
    """Returns the digest of each tensor of each file of a run, and the sketch of each that holds
    signals."""
    out: dict[str, Any] = {}
    for path in sorted(run_directory.rglob("*.safetensors")):
        tensors = store.read(path)
        rows = {name: [digest(tensors[name])] for name in sorted(tensors)}
        for name in rows.keys() & SIGNALS:
            rows[name] += sketch(tensors[name])
        out[str(path.relative_to(run_directory))] = rows
    return out


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        runs = {name: found(carry_out(name, folder)) for name in sys.argv[1:] or RUNS}
    finally:
        shutil.rmtree(folder)
    kept = json.loads(DIGESTS.read_text("utf-8"))["runs"] if DIGESTS.exists() else {}
    lines = []
    for name, files in sorted((kept | runs).items()):
        rows = ",\n".join(
            f"   {json.dumps(file)}: {json.dumps(tensors)}" for file, tensors in files.items()
        )
        lines.append(f"  {json.dumps(name)}: {{\n{rows}\n  }}")
    DIGESTS.write_text(
        f'{{\n "machine": {json.dumps(machine())},\n "runs": {{\n' + ",\n".join(lines) + "\n }\n}\n"
    )


if __name__ == "__main__":
    main()
