"""Every sampler on every built-in problem whose posterior is known: writes
docs/results/bench-PROBLEM.json.

    python benchmarks/exact.py [PROBLEM ...]

is ``invem bench PROBLEM --seeds 3 --observations 8`` for each, with every sampler that fits at its
defaults and the particle filters and the noise-matched Gibbs sampler at larger settings besides
(not on the manifold). About half an hour on one core.
"""

import sys
import time
from pathlib import Path

import results
import torch

from invem import store
from invem.bench import bench, benchpage, problems
from invem.config import Catalog

RESULTS = Path(__file__).parent.parent / "docs" / "results"
PROBLEMS = (
    "gaussian",
    "gaussian-loud",
    "gaussian-blur",
    "mixture-2",
    "mixture-8",
    "mixture-8-mask",
    "mixture-80",
    "manifold",
)
MORE = (
    "twisted-smc:particles=32:steps=128",
    "mcg-diff:particles=64:steps=200",
    "matched-gibbs:sweeps=200",
    "mmps:stepping=heun",
)
SEEDS, OBSERVATIONS = 3, 8


def main():
    torch.set_num_threads(1)
    catalog = Catalog.load()
    for name in sys.argv[1:] or PROBLEMS:
        begun = time.perf_counter()
        problem = problems.build(name, catalog, "held-out", "cpu")
        n, k = bench.sizes(problem, OBSERVATIONS, None)
        chosen, left = bench.settings(problem, catalog, None, [], None)
        fitting = {setting.label.partition(":")[0] for setting in chosen}
        # The prior of the manifold has hundreds of modes, and a call of its denoiser costs as much.
        chosen += [
            bench.parse(spec, catalog)
            for spec in MORE
            if spec.partition(":")[0] in fitting and name != "manifold"
        ]
        rows = []
        for row in bench.bench(problem, chosen, catalog, SEEDS, n, k, 0):
            rows.append(row)
            print(name, row.setting, f"{time.perf_counter() - begun:.0f} s", flush=True)
        asked = {
            "seeds": list(range(SEEDS)),
            "observations": n,
            "draws": k,
            "budget": None,
            "tune": 0,
        }
        found = bench.document(problem, rows, asked, left)
        store.write_text(RESULTS / f"bench-{name}.json", results.text(found))
        print(benchpage.markdown(found))


if __name__ == "__main__":
    main()
