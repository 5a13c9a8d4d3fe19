"""Recipes that extend others: how differences merge, and where messages point."""

from itertools import pairwise

import pytest

from invem import config
from invem.config import yaml
from invem.config.extends import MAX_PARENTS
from invem.errors import RecipeError

BASE = """\
seed: 3
data: {name: digits, size: 8}
count: 64
operator: {name: random-mask, keep: 0.4}
noise: gaussian
network: {name: unet, channels: [32, 64]}
phases:
  - name: warm-start
    rounds: 16
    fit: {objective: gaussian-moments, rank: 16}
  - name: em
    rounds: 6
    sampler: {name: mmps, steps: 32, schedule: {name: karras, rho: 7}}
    fit: {objective: dsm, steps: 800, weighting: diem}
evaluate: {metrics: [psnr, ssim], samples: 1024}
smoke: {count: 8, phases.em.rounds: 1, evaluate.samples: 4}
"""


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def load(child, *overrides, smoke=False, **files):
        for name, text in {"base": BASE, **files, "r": child}.items():
            (tmp_path / f"{name}.yaml").write_text(text, "utf-8")
        return config.load("r.yaml", overrides, smoke)

    return load


@pytest.fixture
def problems(load):
    def lines(child, *overrides, **given):
        with pytest.raises(RecipeError) as caught:
            load(child, *overrides, **given)
        return str(caught.value).split("\n")

    return lines


def dumped(loaded):
    return config.dump(loaded.recipe)


def test_a_recipe_that_only_extends_is_its_parent(load, tmp_path):
    child = load("extends: base.yaml\n")
    assert child.recipe == config.load("base.yaml").recipe
    assert "extends" not in dumped(child) and "extends" not in child.value
    assert child.text == "extends: base.yaml\n"


@pytest.mark.parametrize(
    ("child", "get", "expected"),
    [
        ("seed: 5", lambda r: (r["seed"], r["count"]), (5, 64)),
        ("data: {size: 16}", lambda r: r["data"], {"name": "digits", "size": 16}),
        ("data: {flip: true}", lambda r: r["data"], {"name": "digits", "size": 8, "flip": True}),
        ("operator: identity", lambda r: r["operator"], {"name": "identity"}),
        ("operator: {name: blur, std: 2}", lambda r: r["operator"], {"name": "blur", "std": 2}),
        ("operator: [a, b]", lambda r: r["operator"], {"name": "chain", "of": ["a", "b"]}),
        ("noise: {sigma: 1}", lambda r: r["noise"], {"name": "gaussian", "sigma": 1}),
        ("noise: {}", lambda r: r["noise"], {"name": "gaussian"}),
        ("operator: {keep: null}", lambda r: r["operator"], {"name": "random-mask"}),
        ("operator: {more: null}", lambda r: r["operator"]["more"], None),
        ("network: {channels: [8]}", lambda r: r["network"]["channels"], [8]),
        ("evaluate: {metrics: [psnr]}", lambda r: r["evaluate"]["metrics"], [{"name": "psnr"}]),
        ("evaluate: {draws: 3}", lambda r: r["evaluate"]["samples"], 1024),
        ("evaluate: null", lambda r: r["evaluate"]["samples"], 256),
        ("count: null", lambda r: r["count"], None),
        ("{data: null, observations: scans}", lambda r: r["data"], None),
    ],
)
def test_keys_are_merged(load, child, get, expected):
    text = f"extends: base.yaml\n{child}\n"
    if child.startswith("{"):
        text = child.replace("{", "{extends: base.yaml, ", 1)
    assert get(dumped(load(text))) == expected


def phase(load, differences, name="em"):
    loaded = load(f"extends: base.yaml\nphases: {differences}\n")
    return next(p for p in dumped(loaded)["phases"] if p["name"] == name)


def test_a_mapping_of_phases_holds_differences(load):
    em = phase(load, "{em: {rounds: 2, sampler: {steps: 4}, fit: {lr: 0.5}}}")
    assert (em["rounds"], em["fit"]["lr"], em["fit"]["steps"]) == (2, 0.5, 800)
    assert em["sampler"] == {"name": "mmps", "steps": 4, "schedule": {"name": "karras", "rho": 7}}
    assert em["fit"]["weighting"] == "diem"


def test_a_list_of_phases_replaces(load):
    new = "[{name: only, fit: {objective: gaussian-moments}}]"
    assert [p.name for p in load(f"extends: base.yaml\nphases: {new}\n").recipe.phases] == ["only"]


def test_null_removes_a_phase_or_a_part_of_one(load):
    loaded = load("extends: base.yaml\nphases: {warm-start: null, em: {fit: null}}\n")
    assert [p.name for p in loaded.recipe.phases] == ["em"]
    assert loaded.recipe.phases[0].fit is None


def test_an_option_that_is_a_component_follows_the_same_rules(load):
    assert phase(load, "{em: {sampler: {schedule: {rho: 3}}}}")["sampler"]["schedule"] == {
        "name": "karras",
        "rho": 3,
    }
    for schedule in ("{name: geometric}", "geometric"):
        found = phase(load, f"{{em: {{sampler: {{schedule: {schedule}}}}}}}")["sampler"]
        assert found["schedule"] in ({"name": "geometric"}, "geometric")


def test_another_objective_keeps_the_keys_of_the_fit_and_drops_the_options(load):
    fit = phase(load, "{em: {fit: {objective: ambient, delta: 0.1}}}")["fit"]
    assert (fit["objective"], fit["steps"], fit["delta"]) == ("ambient", 800, 0.1)
    assert "weighting" not in fit


def test_smoke_is_merged_in_the_order_of_a_recipe(load):
    child = "extends: base.yaml\nsmoke: {phases.em.fit.steps: 2, count: 4}\n"
    smoke = dumped(load(child))["smoke"]
    assert list(smoke.items()) == [
        ("count", 4),
        ("phases.em.rounds", 1),
        ("phases.em.fit.steps", 2),
        ("evaluate.samples", 4),
    ]
    recipe = load(child, smoke=True).recipe
    assert (recipe.count, recipe.phases[1].rounds, recipe.phases[1].fit.steps) == (4, 1, 2)
    assert dumped(load("extends: base.yaml\nsmoke: {count: null}\n"))["smoke"] == {
        "phases.em.rounds": 1,
        "evaluate.samples": 4,
    }


def test_overrides_come_last(load):
    child = "extends: base.yaml\ncount: 32\nphases: {em: {rounds: 2}}\n"
    recipe = load(child, "phases.em.rounds=9", "count=7", smoke=True).recipe
    assert (recipe.phases[1].rounds, recipe.count) == (9, 7)


def test_a_recipe_can_be_changed_again(load):
    again = config.replace(load("extends: base.yaml\ncount: 32\n"), ["seed=8"])
    assert (again.recipe.seed, again.recipe.count) == (8, 32)


def test_paths_are_relative_to_the_file_that_names_them(load, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "top.yaml").write_text("extends: ../base.yaml\nseed: 4\n", "utf-8")
    assert load("extends: mid.yaml\n", mid="extends: deep/top.yaml\ncount: 1\n").recipe.seed == 4


def test_each_value_is_located_in_its_own_file(load):
    loaded = load(
        "extends: mid.yaml\nphases:\n  em: {fit: {lr: 1.0}}\n",
        mid="extends: base.yaml\nnoise: {sigma: 1}\nphases: {warm-start: null}\n",
    )
    places = {
        ("seed",): "base.yaml:1:7",
        ("noise", "name"): "base.yaml:5:8",
        ("noise", "sigma"): "mid.yaml:2:16",
        ("noise",): "mid.yaml:2:8",
        ("phases", 0, "rounds"): "base.yaml:12:13",
        ("phases", 0, "fit", "lr"): "r.yaml:3:18",
        ("phases", 0): "r.yaml:3:7",
        ("compute",): "r.yaml:1:1",
    }
    assert {path: config.locate(loaded, path) for path in places} == places
    assert config.locate(loaded, ("phases", 0, "fit", "lr"), key=True) == "r.yaml:3:14"
    assert config.locate(loaded, ("phases", 0, "fit", "steps"), key=True) == "base.yaml:14:27"


def test_problems_of_both_files_are_reported_at_once(problems):
    lines = problems(
        "extends: bad.yaml\nphases: {em: {rounds: 0}}\nsed: 1\n",
        bad=BASE.replace("seed: 3", "seed: -1").replace("rank: 16", "rank: 16, lr: fast"),
    )
    assert [line.partition(": got")[0].partition(": unknown")[0] for line in lines] == [
        "bad.yaml:1:7: seed",
        "bad.yaml:10:54: phases.0.fit.lr",
        "r.yaml:2:23: phases.1.rounds",
        "r.yaml:3:1: sed",
    ]


def test_a_key_that_is_needed_cannot_be_removed(problems):
    assert problems("extends: base.yaml\noperator: null\nphases: {em: {name: null}}\n") == [
        "r.yaml:2:11: operator: got nothing, a name or a mapping with a name is needed",
        "r.yaml:3:21: phases.1.name: got nothing, text is needed",
    ]


def test_what_neither_file_has_is_missing_in_the_child(problems):
    part = "data: digits\nnoise: none\nnetwork: unet\nphases: [{name: a, sampler: dps}]\n"
    assert problems("extends: part.yaml\n", part=part) == ["r.yaml:1:1: operator: missing key"]


def test_differences_of_an_unknown_phase_are_named(problems):
    assert problems("extends: base.yaml\nphases: {emm: {rounds: 1}, em: {rounds: 1}}\n") == [
        "r.yaml:2:10: phases: there is no phase 'emm' to change; did you mean 'em'?"
        " Allowed: warm-start, em"
    ]


def test_differences_of_phases_need_a_parent_with_phases(problems):
    assert problems("extends: a.yaml\nphases: {em: null}\n", a="seed: 1\n")[-1] == (
        "r.yaml:2:9: phases: got a mapping, a list is needed"
    )


def test_two_phases_of_one_name_are_still_found(problems):
    twice = BASE.replace("name: warm-start", "name: em")
    assert problems("extends: twice.yaml\nphases: {em: {rounds: 2}}\n", twice=twice) == [
        "r.yaml:2:9: phases: two phases have the name 'em'"
    ]


def test_a_problem_of_the_parents_smoke_block_points_there(problems):
    child = "extends: base.yaml\nphases: {em: null}\n"
    (line,) = problems(child, smoke=True)
    assert line.startswith("base.yaml:16:19: smoke: phases: there is no item 'em'. Allowed: ")


def test_a_recipe_cannot_extend_itself(problems):
    assert problems("extends: r.yaml\n") == [
        "r.yaml:1:10: extends: a recipe cannot extend itself: r.yaml -> r.yaml"
    ]
    assert problems("extends: mid.yaml\n", mid="seed: 1\nextends: r.yaml\n") == [
        "mid.yaml:2:10: extends: a recipe cannot extend itself: r.yaml -> mid.yaml -> r.yaml"
    ]


def test_a_chain_may_have_eight_parents(load, problems):
    def chain(parents):
        names = ["base", *(f"p{i}" for i in range(parents - 1))]
        return {
            name: f"extends: {parent}.yaml\n" for parent, name in pairwise(names)
        }, f"extends: {names[-1]}.yaml\n"

    files, child = chain(MAX_PARENTS)
    assert load(child, **files).recipe.seed == 3
    files, child = chain(MAX_PARENTS + 1)
    assert problems(child, **files) == [
        "p0.yaml:1:10: extends: more than 8 recipes extend one another"
    ]


@pytest.mark.parametrize("value", ["3", "[base.yaml]", "''", "{a: 1}"])
def test_extends_is_one_path(problems, value):
    (line,) = problems(f"extends: {value}\n")
    assert line.startswith("r.yaml:1:10: extends: got ")
    assert line.endswith(", the path of a recipe is needed")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bas.yaml", "r.yaml:1:10: extends: bas.yaml: there is no such file; did you mean"),
        (".", "r.yaml:1:10: extends: .: it is a folder, and a recipe is a YAML file"),
        ("/dev/zero", "/dev/zero:1:1: 1048577 bytes are too many"),
        ("list.yaml", "list.yaml:1:1: a recipe is a mapping, got a list"),
        ("tag.yaml", "tag.yaml:1:7: tags (!) are not allowed"),
    ],
)
def test_a_parent_that_cannot_be_used_is_named(problems, name, expected):
    (line,) = problems(f"extends: {name}\n", list="[1]\n", tag="seed: !!int 3\n")
    assert line.startswith(expected)


def test_a_misspelt_extends_is_suggested(problems):
    assert "r.yaml:1:1: extend: unknown key; did you mean 'extends'?" in "\n".join(
        problems("extend: base.yaml\n")
    )


def test_a_merged_recipe_is_dumped_and_read_again(load, tmp_path):
    recipe = load("extends: base.yaml\nphases: {em: {rounds: 2}}\nnoise: {sigma: 1}\n").recipe
    (tmp_path / "again.yaml").write_text(yaml.dump(config.dump(recipe)), "utf-8")
    assert config.load("again.yaml").recipe == recipe
