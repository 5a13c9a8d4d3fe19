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

import torch

from invem.bench import (
    PROBLEMS,
    Design,
    build_problem,
    compare_samplers,
    make_document,
    parse_sampler,
    render_markdown,
    select_samplers,
    write_document,
)
from invem.config import Catalog

RESULTS = Path(__file__).parent.parent / "docs" / "results"
CLOSED_FORM = [name for name, definition in PROBLEMS.items() if definition.prior is not None]
MORE = (
    "twisted-smc:particles=32:steps=128",
    "mcg-diff:particles=64:steps=200",
    "matched-gibbs:sweeps=200",
    "mmps:stepping=heun",
)
SEEDS, OBSERVATIONS = 3, 8


def main() -> None:
    torch.set_num_threads(1)
    catalog = Catalog.load()
    for name in sys.argv[1:] or CLOSED_FORM:
        begun = time.perf_counter()
        problem = build_problem(name, catalog, device="cpu")
        design = Design.of(problem, SEEDS, OBSERVATIONS)
        chosen, left_out = select_samplers(problem, catalog)
        fitting = {setting.label.partition(":")[0] for setting in chosen}
        # The prior of the manifold has hundreds of modes, and a call of its denoiser costs as much.
        chosen += [
            parse_sampler(spec, catalog)
            for spec in MORE
            if spec.partition(":")[0] in fitting and name != "manifold"
        ]
        rows = []
        for row in compare_samplers(problem, chosen, catalog, design):
            rows.append(row)
            print(name, row.setting, f"{time.perf_counter() - begun:.0f} s", flush=True)
        found = make_document(problem, rows, design, left_out)
        write_document(found, RESULTS / f"bench-{name}.json")
        print(render_markdown(found))


if __name__ == "__main__":
    main()
