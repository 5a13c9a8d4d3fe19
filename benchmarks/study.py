"""The study of docs/benchmarks.md: the paper's three tasks on Fashion-MNIST at 16x16, one recipe of recipes/study for each row.

    python benchmarks/study.py list
    python benchmarks/study.py run ours-mask [--seed 1] [--runs runs/study]
    python benchmarks/study.py keep ours-mask [--seed 1]

`run` carries a row out, or goes on with it, on one core, and keeps its result in docs/results/study/. `keep` only does the latter, from a
finished run. `benchmarks/tables.py` makes the tables from there. A test compares them.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "docs" / "results" / "study"
TASKS = {"mask": "60 % of the pixels hidden, noise 0.05", "noise": "noise 0.2", "blur": "blur of std 1.2 px, noise 0.05"}
ROWS = {
    "observations": "observations",
    "warm-start": "Gaussian warm start",
    "emdiffusion": "EMDiffusion",
    "diem": "DiEM",
    "diffem": "DiffEM",
    "ambient": "Ambient",
    "gsure": "GSURE",
    "ambient-tweedie": "Ambient Tweedie",
    "ambient-tweedie-consistency": "Ambient Tweedie, consistency",
    "sure-score": "SURE-Score",
    "sfbd": "SFBD",
    "ours": "**ours**",
    "clean": "clean images (the ceiling)",
}
COLUMNS = ("frechet", "psnr", "ssim", "data-misfit", "calibration", "observation-distance")


def kept(name, seed):
    path = KEPT / f"{name}-{seed}.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def keep(name, seed, runs):
    """Writes what the tables need of a finished run."""
    from invem.engine.run import results

    found = results(runs / f"{name}-{seed}")
    stages = [row["name"] for row in found["evaluations"]]
    learning = {phase: sum(v for event, v in spent.items() if event in ("e-step", "fit")) for phase, spent in found["cpu"].items()}
    passes = {phase: sum(spent.values()) for phase, spent in found["passes"].items()}
    clean = next((line.split(":")[1].strip() for line in found["recipe"].splitlines() if line.startswith("clean:")), "0")
    row = {
        "name": name,
        "seed": seed,
        "environment": found["environment"],
        "components": found["components"],
        "clean": 4096 if clean == "all" else int(clean),
        "cpu": learning,
        "passes": passes,
        "evaluations": found["evaluations"],
    }
    assert stages, f"{name}: nothing was evaluated"
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / f"{name}-{seed}.json").write_text(json.dumps(row, indent=1, sort_keys=True) + "\n", "utf-8")


def cells(found, evaluation, cpu, passes, clean):
    values = evaluation["metrics"]
    shown = []
    for name in COLUMNS:
        value = next((v for label, v in values.items() if label.startswith(name)), None)
        digits = ".2f" if name == "psnr" else ".3g"
        shown.append("" if value is None or value["value"] is None else format(value["value"], digits))
    return [*shown, str(clean), f"{cpu / 60:.1f}", f"{passes / 1e6:.2f}"]


def table(task):
    """The table of one task: one line a row, those of several seeds with their spread."""
    lines = [
        "| | Fréchet | PSNR, dB | SSIM | misfit | coverage | observation distance | clean images | CPU, min | network passes, millions |",
        "|---|" + "---:|" * 9,
    ]
    ours = kept(f"ours-{task}", 0)
    for row, label in ROWS.items():
        found = ours if row in ("observations", "warm-start") else kept(f"{row}-{task}", 0)
        if found is None:
            continue
        phases = [e["name"] for e in found["evaluations"]]
        if row == "observations":
            shown = cells(found, found["evaluations"][phases.index("observations")], 0, 0, 0)
        elif row == "warm-start":
            shown = cells(found, found["evaluations"][phases.index("warm-start")], found["cpu"]["warm-start"], 0, found["clean"])
        else:
            shown = cells(found, found["evaluations"][-1], sum(found["cpu"].values()), sum(found["passes"].values()), found["clean"])
        lines.append(f"| {label} | " + " | ".join(shown) + " |")
        for seed in (1, 2):
            more = None if row in ("observations", "warm-start") else kept(f"{row}-{task}", seed)
            if more is not None:
                shown = cells(more, more["evaluations"][-1], sum(more["cpu"].values()), sum(more["passes"].values()), more["clean"])
                lines.append(f"| {label.strip('*')}, seed {seed} | " + " | ".join(shown) + " |")
    return "\n".join(lines) if len(lines) > 2 else "Not run yet."


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["list", "run", "keep"])
    parser.add_argument("name", nargs="?", help="A recipe of recipes/study, without .yaml.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/study"))
    options = parser.parse_args()
    if options.what == "list":
        for path in sorted((ROOT / "recipes" / "study").glob("*.yaml")):
            print(path.stem)
        return
    out = options.runs / f"{options.name}-{options.seed}"
    if options.what == "run":
        invem = str(Path(sys.executable).with_name("invem"))
        recipe = [invem, "run", str(ROOT / "recipes" / "study" / f"{options.name}.yaml"), f"seed={options.seed}", "--out", str(out)]
        subprocess.run([invem, "resume", str(out)] if out.exists() else recipe, check=True)
    keep(options.name, options.seed, options.runs)


if __name__ == "__main__":
    main()
