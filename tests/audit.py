"""Asks pip-audit for known weaknesses of the versions that are pinned.

It fails only for a weakness that was found. Without pip-audit, or where the advisory service knows
none of the packages (no network, a mirror without advisories), it says so and passes.
"""

import json
import subprocess
import sys
from pathlib import Path

PINNED = Path(__file__).parent.parent / "constraints.txt"


def main() -> None:
    command = [
        sys.executable,
        "-m",
        "pip_audit",
        "-r",
        str(PINNED),
        "--no-deps",
        "--format",
        "json",
    ]
    command += ["--timeout", "5"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
        )
        packages = json.loads(done.stdout)["dependencies"]
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError):
        print("pip-audit: skipped: it is not installed, or the advisory service does not answer")
        return
    asked = [row for row in packages if "skip_reason" not in row]
    if not asked:
        print(f"pip-audit: skipped: the service knows none of the {len(packages)} packages")
        return
    print(f"pip-audit: {len(asked)} of {len(packages)} packages asked about")
    weak = [(row["name"], row["version"], vuln) for row in asked for vuln in row["vulns"]]
    for name, version, vuln in weak:
        fixed = ", ".join(vuln.get("fix_versions", [])) or "no version yet"
        print(f"{name} {version}: {vuln['id']}, fixed in {fixed}")
    sys.exit(bool(weak))


if __name__ == "__main__":
    main()
