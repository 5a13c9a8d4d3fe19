"""The mean and the spread of each sampler on the d = 8 Gaussian problem of docs/samplers.md: writes
docs/results/biases.json.

Exact, by the propagation of tests/test_regression.py, for the samplers that are affine; by 4,000
draws of one y for the others. A minute.
"""

import sys
from pathlib import Path

import results
import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from test_regression import (  # noqa: E402
    CATALOG,
    DENOISER,
    FINE,
    JACOBIAN,
    SEEN,
    C,
    Rng,
    build,
    compared,
    seen_once,
    spread,
)

from invem import PosteriorSampler

VP = CATALOG.find("schedules", "vp").load()()
AFFINE = {
    "mmps": ("mmps", {"steps": 16, **JACOBIAN}),
    "daps-mm": ("daps-mm", {"steps": 30, **JACOBIAN}),
    "matched-gibbs": ("matched-gibbs", {"sweeps": 10}),
    "langevin": ("langevin", {}),
    "split-gibbs, last 0.3": (
        "split-gibbs",
        {"first": 10.0, "last": 0.3, "sweeps": 100, "levels": 1},
    ),
    "split-gibbs": ("split-gibbs", {"levels": 1}),
    "pigdm": ("pigdm", {"stepping": "ancestral", "steps": 1000, "variance": 1.0, "schedule": FINE}),
    "tmpd": ("tmpd", {"stepping": "ancestral", "steps": 1000, "schedule": FINE}),
    "dps, likelihood": ("dps", {"guidance": "likelihood", "steps": 1000, "schedule": FINE}),
    "ddrm": ("ddrm", {"schedule": FINE}),
    "ddrm, 200 steps": ("ddrm", {"steps": 200, "schedule": FINE}),
    "ddnm": ("ddnm", {"plus": False, "schedule": FINE}),
    "diffpir": ("diffpir", {"schedule": FINE}),
    "dds": ("dds", {"schedule": FINE}),
    "daps, exact kernel": ("daps", {"kernel": "exact", "steps": 100, "schedule": FINE}),
}
DRAWN = {
    **{
        f"dps, norm {w}": ("dps", {"weight": w, "steps": 1000, "schedule": VP}, 0.1)
        for w in (0.1, 0.3, 1.0)
    },
    "sitcom": ("sitcom", {"inner": 60, "rate": 0.05, "schedule": FINE}, 0.1),
    "sitcom, noise 0.5": ("sitcom", {"inner": 60, "rate": 0.05, "schedule": FINE}, 0.5),
    "lgd": ("lgd", {}, 0.1),
    "mpgd": ("mpgd", {}, 0.1),
    "red-diff": ("red-diff", {}, 0.1),
}


def drawn(sampler: PosteriorSampler, noise: float, n: int = 4000) -> tuple[float, float, float]:
    """The same by draws of one y."""
    m = seen_once(n, noise)
    x = sampler(DENOISER, m, Rng.keyed("d", items=range(n))).double()
    A = torch.eye(8, dtype=torch.float64)[SEEN]
    gain = C @ A.T @ torch.linalg.inv(A @ C @ A.T + noise**2 * torch.eye(4))
    gap = x.mean(0) - gain @ m.y[0, SEEN]
    values = spread(x, noise)
    return (
        float((gap.square() / (C - gain @ A @ C).diagonal()).mean().sqrt()),
        float(values[0]),
        float(values[-1]),
    )


def main() -> None:
    torch.set_num_threads(1)
    rows = {}
    for label, (name, options) in AFFINE.items():
        rows[label] = [round(value, 3) for value in compared(build(name, **options), 0.1)[:3]]
        print(label, rows[label], flush=True)
    for label, (name, options, noise) in DRAWN.items():
        rows[label] = [round(value, 3) for value in drawn(build(name, **options), noise)]
        print(label, rows[label], flush=True)
    found = {
        "torch": torch.__version__,
        "columns": ["mean", "smallest eigenvalue", "largest eigenvalue"],
        "rows": rows,
    }
    results.write(ROOT / "docs" / "results" / "biases.json", found)


if __name__ == "__main__":
    main()
