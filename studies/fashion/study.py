"""The study of docs/benchmarks.md: the paper's three tasks on Fashion-MNIST at 16x16, one recipe of
this folder for each row.

    python studies/fashion/study.py list
    python studies/fashion/study.py run ours-mask [--seed 1] [--runs runs/study]
    python studies/fashion/study.py keep ours-mask [--seed 1]
    python studies/fashion/study.py spread ours-mask [--seed 1]
    python studies/fashion/study.py floor

`run` carries a row out on one core, or resumes it, and keeps its result in docs/results/study.json,
one line per run. `keep` only keeps the result of a finished run. `spread` adds to it the Fréchet
distances of four more sets of samples. `floor` keeps the Sinkhorn divergence between two sets of
true points of the manifold, as many as the samples that are compared. `benchmarks/tables.py` makes
the tables from that file, and a test compares them.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
KEPT = ROOT / "docs" / "results" / "study.json"
sys.path.append(str(ROOT / "benchmarks"))

import results as files  # noqa: E402  (a script of benchmarks)

Row = dict[str, Any]  # the result of one run
ROWS = {
    "observations": "observations",
    "warm-start": "Gaussian warm start",
    "mixture": "mixture of Gaussians",
    "settle": "mixture, fitted anew after `refine`",
    "emdiffusion": "EMDiffusion",
    "diem": "DiEM",
    "diffem": "DiffEM",
    "scsi": "SCSI",
    "ambient": "Ambient",
    "msm": "MSM",
    "gsure": "GSURE",
    "ambient-tweedie": "Ambient Tweedie",
    "ambient-tweedie-consistency": "Ambient Tweedie, consistency",
    "sure-score": "SURE-Score",
    "rsd": "RSD, one step",
    "sfbd": "SFBD",
    "sfbd-online": "SFBD, online",
    "sfbd-omni": "SFBD-OMNI",
    "mmps": "EM of the network, MMPS",
    "ours": "**ours**",
    "clean": "clean images (the ceiling)",
    "floor": "as many true points (the floor)",
}
SAME = {
    "noise-28": "mask-28",
    "blur-28": "mask-28",
}  # tasks whose ceiling was not run: its network, and its samples, are those of another
REFERENCE = 10_000  # test images that samples are compared with, as an evaluation does
PARTS = ("observations", "warm-start", "mixture", "settle")  # rows that are a phase of our default
COLUMNS = ("frechet", "psnr", "data-misfit", "calibration", "observation-distance")
HEADS = ("Fréchet", "PSNR, dB", "misfit", "coverage", "observation distance")


def all_kept() -> dict[str, Row]:
    """Returns the results by name and seed."""
    return json.loads(KEPT.read_text("utf-8"))


def kept(name: str, seed: int) -> Row | None:
    """Returns the result of a recipe with a seed, None if there is none."""
    return all_kept().get(f"{name}-{seed}")


def put(row: Row) -> None:
    """Keeps a result, in place of an earlier one with the same name and seed."""
    rows = all_kept() | {f"{row['name']}-{row['seed']}": row}
    files.write(KEPT, dict(sorted(rows.items())), levels=1)


def keep(name: str, seed: int, runs: Path) -> None:
    """Keeps what the tables need of a finished run."""
    from invem.door import open as open_run

    found = open_run(runs / f"{name}-{seed}").results
    stages = [row["name"] for row in found["evaluations"]]
    learning = {
        phase: sum(v for event, v in spent.items() if event in ("e-step", "fit"))
        for phase, spent in found["cpu"].items()
    }
    passes = {phase: sum(spent.values()) for phase, spent in found["passes"].items()}
    recipe = yaml.safe_load(found["recipe"])
    granted, count = recipe.get("clean", 0), recipe.get("count")
    row = {
        "name": name,
        "seed": seed,
        "environment": found["environment"],
        "components": found["components"],
        "clean": count if granted == "all" else granted,
        "cpu": learning,
        "passes": passes,
        "evaluations": found["evaluations"],
    }
    assert stages, f"{name}: nothing was evaluated"
    put(row)


def spread(name: str, seed: int, runs: Path, sets: int = 4) -> None:
    """Adds to a result the Fréchet distances of further sets of samples of its last network."""
    import torch

    from invem import Outcome
    from invem.door import open as open_run
    from invem.running.evaluate import unconditional

    torch.set_num_threads(1)
    run = open_run(runs / f"{name}-{seed}")
    place = next(i for i, label in enumerate(run.plan.metrics) if label.startswith("frechet"))
    metric = list(run.plan.metrics.values())[place]
    state = run.directory.prepared.read(str(place))
    data = run.plan.data("test")
    reference = data[torch.arange(min(len(data), REFERENCE))].x
    prior, row = run.prior, kept(name, seed)
    row["spread"] = []
    for k in range(sets):
        samples = unconditional(run.context, prior, run.recipe.evaluate.samples, "spread", k)
        outcome = Outcome(tuple(run.plan.facts.range), samples=samples, reference=reference)
        row["spread"].append(float(metric(outcome, state)))
    put(row)


def floor(count: int = 4096) -> None:
    """Keeps the divergence between two sets of true points of the manifold."""
    import torch
    from invem_plugins.datasets.curve import smooth_manifold
    from invem_plugins.metrics.sinkhorn import Sinkhorn

    from invem import Outcome

    x, y = (smooth_manifold(split)[torch.arange(count)].x for split in ("train", "test"))
    value = float(
        Sinkhorn(epsilon=1e-3, samples=count, tol=1e-3)(
            Outcome((-2.0, 2.0), samples=x, reference=y), {}
        )
    )
    evaluation = {"name": "floor", "metrics": {"sinkhorn": {"value": value}}}
    row = {
        "name": "floor-manifold",
        "seed": 0,
        "clean": count,
        "cpu": {},
        "passes": {},
        "evaluations": [evaluation],
    }
    put(row)


def cells(
    columns: Sequence[str], evaluation: Row, cpu: float, passes: float, clean: int
) -> list[str]:
    """Returns the cells of one line: the metrics, clean images, CPU minutes, millions of passes."""
    values = evaluation["metrics"]
    shown = []
    for name in columns:
        value = next((v for label, v in values.items() if label.startswith(name)), None)
        digits = ".2f" if name == "psnr" else ".3g"
        shown.append(
            "" if value is None or value["value"] is None else format(value["value"], digits)
        )
    return [*shown, str(clean), f"{cpu / 60:.1f}", f"{passes / 1e6:.2f}"]


def line(label: str, columns: Sequence[str], found: Row, phase: str | None = None) -> str:
    """Returns one line of a table: of a run, or of a phase and those before it."""
    phases = [e["name"] for e in found["evaluations"]]
    last = len(phases) - 1 if phase is None else phases.index(phase)
    before = phases[: last + 1] if phase else [*found["cpu"], *found["passes"]]
    cpu, passes = (
        sum(spent for name, spent in found[key].items() if name in before)
        for key in ("cpu", "passes")
    )
    clean = 0 if phase == "observations" else found["clean"]
    return (
        f"| {label} | "
        + " | ".join(cells(columns, found["evaluations"][last], cpu, passes, clean))
        + " |"
    )


def samples_alone(task: str) -> Row | None:
    """Returns the ceiling of a task without what depends on the task, None if there is none."""
    found = kept(f"clean-{task}", 0)
    for evaluation in found["evaluations"] if found else ():
        evaluation["metrics"] = {
            label: value
            for label, value in evaluation["metrics"].items()
            if label.startswith("frechet")
        }
    return found


def spreads() -> str:
    """Returns the table of the Fréchet distance over sets of samples of one network."""
    lines = ["| | seed | mean | standard deviation of one set |", "|---|---:|---:|---:|"]
    for _, found in sorted(all_kept().items()):
        if values := found.get("spread"):
            digits = f"{statistics.mean(values):.3g} | {statistics.stdev(values):.2g}"
            lines.append(f"| `{found['name']}` | {found['seed']} | {digits} |")
    return "\n".join(lines)


def table(task: str) -> str:
    """Returns the table of one task: one line per row, and one more for each further seed."""
    if task == "spread":
        return spreads()
    columns, heads = (
        (("sinkhorn",), ("Sinkhorn divergence",)) if task == "manifold" else (COLUMNS, HEADS)
    )
    shown = [*heads, "clean images", "CPU, min", "network passes, millions"]
    lines = ["| | " + " | ".join(shown) + " |", "|---|" + "---:|" * len(shown)]
    for row, label in ROWS.items():
        found = kept(f"{'ours' if row in PARTS else row}-{task}", 0) or (
            row == "clean" and samples_alone(SAME.get(task, ""))
        )
        if not found or (row in PARTS and row not in [e["name"] for e in found["evaluations"]]):
            continue
        if row == "observations" and task == "manifold":
            continue
        lines.append(line(label, columns, found, row if row in PARTS else None))
        for seed in (1, 2):
            if row not in PARTS and (more := kept(f"{row}-{task}", seed)) is not None:
                lines.append(line(f"{label.strip('*')}, seed {seed}", columns, more))
    return "\n".join(lines) if len(lines) > 2 else "Not run yet."


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["list", "run", "keep", "spread", "floor"])
    parser.add_argument("name", nargs="?", help="A recipe of this folder, without .yaml.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/study"))
    options = parser.parse_args()
    if options.what == "list":
        for path in sorted(HERE.glob("*.yaml")):
            print(path.stem)
        return
    if options.what == "floor":
        floor()
        return
    if options.what == "spread":
        spread(options.name, options.seed, options.runs)
        return
    out = options.runs / f"{options.name}-{options.seed}"
    if options.what == "run":
        invem = str(Path(sys.executable).with_name("invem"))
        recipe = [
            invem,
            "run",
            str(HERE / f"{options.name}.yaml"),
            f"seed={options.seed}",
            "--out",
            str(out),
        ]
        subprocess.run([invem, "resume", str(out)] if out.exists() else recipe, check=True)
    keep(options.name, options.seed, options.runs)


if __name__ == "__main__":
    main()
