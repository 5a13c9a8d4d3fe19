"""Carries out the cases and prints a table; ends with 1 if anything was lost.

    python tests/faults/run.py --kills 200 --fuzz 60
    python tests/faults/run.py --only kill_at_random --kills 1000
    python tests/faults/run.py --kills 200 --fuzz 60 --flips 200 --write

With --write it writes docs/results/reliability.json and docs/reliability.md; with --only as well,
the rows of these cases alone.
"""

import argparse
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from faults import page
from faults.base import Budget, Case, Tally, fault_of, load_cases


def carried_out(one: Case, budget: Budget) -> Tally:
    """Carries out one case in a folder of its own."""
    tally = Tally()
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    try:
        one.carry_out(folder, budget, tally)
    except Exception as error:
        tally.lose(f"the case itself failed: {error!r}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return tally


def row(one: Case, tally: Tally) -> dict[str, Any]:
    """Returns a case and its counts as plain data."""
    counts = {"tried": tally.tried, "survived": tally.survived, "detected": tally.detected}
    kind = "control" if one.control else "known" if one.waits_for else "case"
    where = dict(sorted(tally.where.items()))
    return {
        "key": one.key,
        "group": one.group,
        "fault": one.fault,
        "kind": kind,
        **counts,
        "lost": tally.lost,
        "where": where,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=Budget().kills)
    parser.add_argument("--fuzz", type=float, default=Budget().fuzz, help="seconds")
    parser.add_argument("--flips", type=int, default=Budget().flips, help="per kind of file")
    parser.add_argument("--only", nargs="+", default=[], help="cases, or modules of cases")
    parser.add_argument("--jobs", type=int, default=2, help="cases at once")
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    budget = Budget(asked.kills, asked.fuzz, asked.flips)
    cases = [
        one
        for one in load_cases().values()
        if not asked.only
        or {one.key, one.carry_out.__module__.rpartition(".")[2]} & set(asked.only)
    ]
    wrong = []
    with ThreadPoolExecutor(asked.jobs) as pool:
        going = {pool.submit(carried_out, one, budget): one for one in cases}
        for future in as_completed(going):
            one, tally = going[future], future.result()
            print(
                f"{one.key:30} tried {tally.tried:5}  survived {tally.survived:5}  detected"
                f" {tally.detected:5}  lost {tally.lost:5}",
                flush=True,
            )
            if told := fault_of(one, tally):
                wrong.append(f"{one.key}: {told}")
                print("".join(f"    {reason[:400]!r}\n" for reason in tally.reasons[:5]), end="")
            if asked.write:
                page.write([row(one, tally)], list(load_cases()))
    for told in wrong:
        print(f"error: {told[:600]}", file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
