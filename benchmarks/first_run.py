"""Runs the three first-run recipes as a person does and writes wall time, peak memory and results
to docs/results/digits-*.json.

python benchmarks/first_run.py [blur inpainting denoising]
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import results

ROOT = Path(__file__).parent.parent


def main() -> None:
    for name in sys.argv[1:] or ["blur", "inpainting", "denoising"]:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / name
            begun = time.monotonic()
            process = subprocess.Popen(
                [sys.executable, "-m", "invem", "run", f"recipes/{name}.yaml", "--out", out],
                cwd=ROOT,
            )
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.monotonic() - begun
            if status:
                sys.exit(os.waitstatus_to_exitcode(status))
            found = subprocess.run(
                [sys.executable, "-m", "invem", "eval", out, "--json"],
                capture_output=True,
                check=True,
            ).stdout
        result = json.loads(found) | {
            "run": f"runs/{name}",
            "wall": round(wall, 1),
            "peak": round(usage.ru_maxrss / 1024),
        }
        path = ROOT / "docs" / "results" / f"digits-{name}.json"
        results.write(path, result)
        print(f"{name}: {wall:.0f} s, {result['peak']} MiB -> {path}")


if __name__ == "__main__":
    main()
