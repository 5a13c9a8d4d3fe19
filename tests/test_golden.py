"""The tensors of small runs of every kind of phase are what they were: to the bit where they were
made, closely elsewhere."""

import json

import golden_runs
import pytest

KEPT = json.loads(golden_runs.DIGESTS.read_text("utf-8"))


@pytest.mark.parametrize("name", golden_runs.RUNS)
def test_a_run_leaves_the_tensors_that_it_left_before(name, tmp_path):
    found, kept = golden_runs.found(golden_runs.carry_out(name, tmp_path)), KEPT["runs"][name]
    assert {file: sorted(rows) for file, rows in found.items()} == {
        file: sorted(rows) for file, rows in kept.items()
    }
    same_machine = golden_runs.machine() == KEPT["machine"]
    for file, rows in kept.items():
        for tensor, (digest, *numbers) in rows.items():
            now = found[file][tensor]
            if same_machine:
                assert now[0] == digest, f"{name}/{file}: {tensor} has changed"
            # Rounding grows along a chain of samplers and fits; a mistake is larger than this by
            # far.
            assert now[1:] == pytest.approx(numbers, rel=0.02, abs=0.02), f"{name}/{file}: {tensor}"
