"""The bias of each sampler in mean and covariance on the d = 8 Gaussian problem of
docs/samplers.md: writes docs/results/biases.json.

It is exact (`invem.testing.affine`) for the samplers that are affine; the others are measured by
4,000 draws of one y. About a minute.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import results
import torch
from invem_plugins.noises.gaussian import gaussian

from invem import Karras, NoiseModel, PosteriorSampler, Rng
from invem.config import Catalog
from invem.testing.affine import AffineProblem, Bias

ROOT = Path(__file__).parent.parent
CATALOG = Catalog.load()
SEEN = [0, 2, 3, 6]
C = 0.8 ** (torch.arange(8, dtype=torch.float64)[:, None] - torch.arange(8)).abs()
FINE = Karras(sigma_max=80.0, sigma_min=0.002)
JACOBIAN = {"covariance": "jacobian", "iterations": 8, "schedule": FINE}
VP = CATALOG.find("schedules", "vp").load()()
AFFINE: dict[str, tuple[str, dict[str, Any]]] = {
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
DRAWN: dict[str, tuple[str, dict[str, Any], float]] = {
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


def build(name: str, **options: Any) -> PosteriorSampler:
    sampler: PosteriorSampler = CATALOG.find("samplers", name).load()(**options)
    return sampler


def noise_of(n: int, sigma: float) -> NoiseModel:
    noise: NoiseModel = gaussian(n, (8,), Rng.generator(0), sigma=sigma)
    return noise


def drawn(sampler: PosteriorSampler, noise: float, n: int) -> Bias:
    """The bias by n draws of one y."""
    here = AffineProblem(C, SEEN, noise, noise_of)
    m = here.repeated(n)
    return here.drawn_bias(m, sampler(here.prior, m, Rng.keyed("d", items=range(n))))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "results" / "biases.json")
    parser.add_argument("--draws", type=int, default=4000, help="Draws of one y.")
    parser.add_argument("--only", nargs="+", help="Samplers, by their label.")
    options = parser.parse_args()
    torch.set_num_threads(1)
    exact = AffineProblem(C, SEEN, 0.1, noise_of)
    cases = {
        **{label: partial(exact.bias, build(name, **o)) for label, (name, o) in AFFINE.items()},
        **{
            label: partial(drawn, build(name, **o), noise, options.draws)
            for label, (name, o, noise) in DRAWN.items()
        },
    }
    rows = {}
    for label, bias in cases.items():
        if options.only and label not in options.only:
            continue
        rows[label] = [round(value, 3) for value in bias()[:3]]
        print(label, rows[label], flush=True)
    found = {
        "torch": torch.__version__,
        "columns": ["mean", "smallest eigenvalue", "largest eigenvalue"],
        "rows": rows,
    }
    results.write(options.json, found)


if __name__ == "__main__":
    main()
