"""The time of an E-step and of an M-step before and after a change of the code, interleaved.

    git worktree add ../before COMMIT
    python benchmarks/rebuild.py --before ../before --after . --json docs/results/rebuild.json
    python benchmarks/rebuild.py --from docs/results/rebuild.json

Both checkouts carry out the same recipes in processes of their own, in turn, with one thread; each
needs an interpreter in which it is installed (.venv/bin/python by default). A recipe trains a small
U-Net on clean phantoms of 28×28 pixels and draws once from the posterior of each observation. The
times are those that a run writes into its log: seconds of the processor, which other work on the
machine disturbs less than those of the wall. A ratio is that of two runs of one repetition.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import results
import torch

OPERATORS = {
    "mask": "{name: random-mask, keep: 0.4}",
    "blur": "{name: gaussian-blur, std: 1.2}",
}
RECIPE = """\
seed: 0
data: {{name: synthetic, size: 28, train: {observations}, test: 8}}
clean: all
operator: {operator}
noise: {{name: gaussian, sigma: 0.05}}
network: {{name: unet, channels: [32, 64], patch: 2}}
phases:
  - name: train
    fit: {{objective: dsm, on: clean, steps: {steps}, batch: 128, moments: 16}}
  - name: draw
    sampler: {{name: mmps, steps: 16}}
    batch: 64
evaluate: {{metrics: [], samples: 0, observations: 0}}
compute: {{threads: 1, device: cpu}}
"""
DOOR = "import sys; from invem.door import run; run(sys.argv[1], out=sys.argv[2])"


def command(checkout: Path, python: Path, recipe: Path, out: Path) -> list[str]:
    """Returns the command that carries out a recipe in a checkout, by its door if it has one."""
    if (checkout / "invem" / "door.py").exists():
        return [str(python), "-c", DOOR, str(recipe), str(out)]
    return [str(python), "-m", "invem", "run", str(recipe), "--out", str(out)]


def carry_out(checkout: Path, python: Path, recipe: Path, out: Path) -> dict[str, Any]:
    """Carries out a recipe and returns the rows of its log by event."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        command(checkout, python, recipe, out),
        cwd=checkout,
        env=environment | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]
    return {row["event"]: row for row in rows}


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns a row per step and operator, with the times of every repetition."""
    sides = {"before": (options.before, options.python_before)}
    sides["after"] = (options.after, options.python_after)
    spent: dict[tuple[str, str], dict[str, list[dict[str, float]]]] = {}
    for repetition in range(options.repetitions):
        for name, operator in OPERATORS.items():
            order = list(sides) if repetition % 2 == 0 else list(reversed(sides))
            for side in order:
                checkout, python = (path.absolute() for path in sides[side])
                # The M-step knows no operator: it is timed with the first one.
                timed = name == next(iter(OPERATORS))
                steps = options.steps if timed else 10
                with tempfile.TemporaryDirectory() as folder:
                    recipe = Path(folder) / "recipe.yaml"
                    text = RECIPE.format(
                        operator=operator, observations=options.observations, steps=steps
                    )
                    recipe.write_text(text, "utf-8")
                    log = carry_out(checkout, python, recipe, Path(folder) / "run")
                wanted = [("e-step", f"E-step, {name}")] + [("fit", "M-step")] * timed
                for event, label in wanted:
                    row = {clock: log[event][clock] for clock in ("cpu", "seconds")}
                    spent.setdefault((event, label), {"before": [], "after": []})[side].append(row)
                    print(f"{repetition} {side} {label}: {row['cpu']:.2f} s", flush=True)
    return [{"step": label, "repetitions": times} for (_, label), times in sorted(spent.items())]


def summary(row: dict[str, Any], clock: str = "cpu") -> list[list[float]]:
    """Returns least, median and greatest of the times before, after, and of their ratio."""
    before, after = ([t[clock] for t in row["repetitions"][side]] for side in ("before", "after"))
    ratios = [b / a for a, b in zip(before, after, strict=True)]
    return [[min(x), statistics.median(x), max(x)] for x in (before, after, ratios)]


def table(found: dict[str, Any]) -> str:
    """Returns the Markdown table: medians, with the least and the greatest in brackets."""
    lines = [
        "| step | before, CPU s | after, CPU s | after over before |",
        "|---|---:|---:|---:|",
    ]
    for row in found["rows"]:
        cells = [f"{m:.3g} ({low:.3g}–{high:.3g})" for low, m, high in summary(row)]
        lines.append(f"| {row['step']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def commit(checkout: Path) -> str:
    """Returns the commit that a checkout is at."""
    words = ["git", "-C", str(checkout), "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, help="The earlier checkout.")
    parser.add_argument("--after", type=Path, default=Path(), help="The later one.")
    parser.add_argument("--python-before", type=Path, help="Its interpreter.")
    parser.add_argument("--python-after", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--from", dest="kept", type=Path, help="Print the table of an earlier JSON."
    )
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--observations", type=int, default=128, help="Draws of an E-step.")
    parser.add_argument("--steps", type=int, default=200, help="Gradient steps of an M-step.")
    options = parser.parse_args()
    if options.kept:
        print(table(json.loads(options.kept.read_text("utf-8"))))
        return
    if options.before is None:
        parser.error("--before is needed")
    for side in ("before", "after"):
        if getattr(options, f"python_{side}") is None:
            own = getattr(options, side) / ".venv" / "bin" / "python"
            setattr(options, f"python_{side}", own)
    found = {
        "commits": {"before": commit(options.before), "after": commit(options.after)},
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "threads": 1,
        "observations": options.observations,
        "steps": options.steps,
        "rows": measure(options),
    }
    if options.json:
        results.write(options.json, found)
    print(table(found))


if __name__ == "__main__":
    main()
