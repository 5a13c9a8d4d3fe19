"""The study's recipes: what they are when everything that they extend is written out."""

import hashlib
import json
from pathlib import Path

import pytest

from invem.config import Catalog, load, yaml
from invem.planning.resolve import resolve

ROOT = Path(__file__).parent.parent
STUDY = ROOT / "studies" / "fashion"
# SHA-256 of each resolved recipe, and of the same with its smoke block: those of the runs in
# docs/results/study.json.
DIGESTS = json.loads((ROOT / "tests" / "study_digests.json").read_text("utf-8"))
CATALOG = Catalog.load()


def test_every_recipe_of_the_study_has_a_digest():
    assert sorted(path.stem for path in STUDY.glob("*.yaml")) == sorted(DIGESTS)


@pytest.mark.parametrize("name", DIGESTS)
def test_a_recipe_of_the_study_is_what_was_run(name):
    found = []
    for smoke in (False, True):
        text = yaml.dump(resolve(load(STUDY / f"{name}.yaml", smoke=smoke), CATALOG))
        assert "extends:" not in text
        found.append(hashlib.sha256(text.encode()).hexdigest())
    assert found == DIGESTS[name]


@pytest.mark.parametrize("path", sorted(STUDY.rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipe_of_the_study_says_what_it_is_and_is_small(path):
    lines = path.read_text("utf-8").splitlines()
    assert lines[0].startswith("# ") and max(map(len, lines)) <= 100
    assert len(lines) <= 60
