"""Every fault of `tests/faults/`, a few times; `tests/faults/run.py` injects it many times."""

import json

import pytest

from faults import page
from faults.base import Budget, Tally, fault_of, load_cases

CASES = load_cases()
QUICK = {  # the others start many processes
    "kill_a_naive_writer",
    "kill_at_commits",
    "flip_tensors",
    "cut_tensors",
    "swap_tensors",
    "flip_without_digest",
    "swap_without_place",
    "pickles_that_are_opened",
    "odd_pictures",
    "cut_pictures",
    "stop_by_sigterm",
    "many_overrides",
    "samplers_not_finite",
}


@pytest.mark.parametrize(
    "key", [key if key in QUICK else pytest.param(key, marks=pytest.mark.slow) for key in CASES]
)
def test_nothing_is_lost(key, tmp_path):
    tally = Tally()
    CASES[key].carry_out(tmp_path, Budget(kills=4, fuzz=1.0, flips=5), tally)
    assert not fault_of(CASES[key], tally), tally.reasons[:5]


@pytest.mark.kills
@pytest.mark.parametrize("key", ["kill_at_random", "kill_at_commits"])
def test_a_thousand_kills_lose_nothing(key, tmp_path):
    tally = Tally()
    CASES[key].carry_out(tmp_path, Budget(kills=1000), tally)
    assert tally.tried >= 500 and not fault_of(CASES[key], tally), tally.reasons[:5]


def test_the_page_is_what_the_results_say():
    found = json.loads(page.RESULTS.read_text("utf-8"))
    assert page.PAGE.read_text("utf-8") == page.text(found)


def test_the_results_have_every_case_and_nothing_lost():
    rows = {row["key"]: row for row in json.loads(page.RESULTS.read_text("utf-8"))["rows"]}
    assert list(rows) == list(CASES)
    for key, row in rows.items():
        assert row["fault"] == CASES[key].fault and row["tried"] > 0
        assert row["tried"] == row["survived"] + row["detected"] + row["lost"]
        assert (row["lost"] == 0) == (row["kind"] == "case")
    killed = rows["kill_at_random"]["tried"] + rows["kill_at_commits"]["tried"]
    assert killed >= 200
