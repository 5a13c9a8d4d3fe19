"""Recipes: what is accepted, how overrides apply, and errors that name place, key and what is
allowed."""

import math
import random
import re
import time

import pytest
from pydantic import ValidationError

from invem import config as recipes
from invem.config import Compute, Evaluate, Fit, Part, Phase, Recipe, yaml
from invem.errors import RecipeError

TEXT = """\
# Blurred digits.
seed: 0
data: digits
operator: {name: random-mask, keep: 0.4}
noise: {name: gaussian, sigma: 0.05}
network: {name: unet, channels: [32, 64]}
phases:
  - name: warm-start
    rounds: 16
    fit: {objective: gaussian-moments, rank: 16}
  - name: em
    rounds: 6
    sampler:
      name: mmps
      steps: 32
      schedule: {name: karras, rho: 7}
    fit: {objective: dsm, on: draws, steps: 800, lr: 1e-3}
evaluate: {metrics: [psnr, {name: frechet, features: 64}], samples: 1024}
smoke: {phases.0.rounds: 2, phases.em.rounds: 1, phases.em.fit.steps: 5}
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text):
        path = tmp_path / "r.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return "r.yaml"

    return write


@pytest.fixture
def read(file):
    return lambda *overrides, text=TEXT, smoke=False: recipes.load(file(text), overrides, smoke)


@pytest.fixture
def problems(read):
    def lines(*overrides, text=TEXT, smoke=False):
        with pytest.raises(RecipeError) as caught:
            read(*overrides, text=text, smoke=smoke)
        return str(caught.value).split("\n")

    return lines


def test_a_recipe_is_read(read):
    loaded = read()
    recipe = loaded.recipe
    assert recipe.operator == Part(name="random-mask", options={"keep": 0.4})
    assert recipe.data == Part(name="digits")
    assert [phase.name for phase in recipe.phases] == ["warm-start", "em"]
    assert recipe.phases[1].fit == Fit(objective="dsm", on="draws", steps=800, lr=1e-3)
    assert recipe.compute == Compute()
    assert (loaded.text, loaded.source) == (TEXT, "r.yaml")


def test_keys_that_fit_does_not_know_are_options_of_the_objective(read):
    assert read().recipe.phases[0].fit == Fit(objective="gaussian-moments", options={"rank": 16})


def test_an_option_may_be_called_options(read):
    recipe = read("noise.options={a: 1}").recipe
    assert recipe.noise.options == {"sigma": 0.05, "options": {"a": 1}}
    assert recipes.dump(recipe)["noise"] == {"name": "gaussian", "sigma": 0.05, "options": {"a": 1}}


def test_whole_numbers_are_accepted_as_floats(read):
    assert (
        read("phases.em.fit.lr=1", "phases.em.fit.ema=0", "sigma_data=1").recipe.phases[1].fit.lr
        == 1.0
    )


@pytest.mark.parametrize("text", [TEXT.replace("\n", "\r\n"), "\ufeff" + TEXT])
def test_windows_line_ends_and_a_byte_order_mark_are_accepted(read, text):
    assert read(text=text).recipe == read().recipe


def test_values_are_frozen(read):
    with pytest.raises(ValidationError):
        read().recipe.seed = 1


def test_smoke_changes_the_recipe(read):
    phases = read(smoke=True).recipe.phases
    assert (phases[0].rounds, phases[1].rounds, phases[1].fit.steps) == (2, 1, 5)


def test_overrides_come_after_smoke(read):
    assert read("phases.em.rounds=3", smoke=True).recipe.phases[1].rounds == 3


@pytest.mark.parametrize(
    ("override", "get", "expected"),
    [
        ("seed=7", lambda r: r.seed, 7),
        ("phases.em.rounds=2", lambda r: r.phases[1].rounds, 2),
        ("phases.1.rounds=2", lambda r: r.phases[1].rounds, 2),
        ("phases.0.fit.steps=5", lambda r: r.phases[0].fit.steps, 5),
        ("phases.0.fit.rank=5", lambda r: r.phases[0].fit.options, {"rank": 5}),
        ("operator.keep=2", lambda r: r.operator.options, {"keep": 2}),
        ("operator.sigma=1e-2", lambda r: r.operator.options, {"keep": 0.4, "sigma": 0.01}),
        ("operator=blur", lambda r: r.operator, Part(name="blur")),
        (
            "operator={name: blur, sigma: 2}",
            lambda r: r.operator,
            Part(name="blur", options={"sigma": 2}),
        ),
        ("operator.name=blur", lambda r: r.operator, Part(name="blur", options={"keep": 0.4})),
        ("data.size=8", lambda r: r.data, Part(name="digits", options={"size": 8})),
        ("network.channels.1=8", lambda r: r.network.options, {"channels": [32, 8]}),
        ("network.channels=[1]", lambda r: r.network.options, {"channels": [1]}),
        (
            "phases.em.sampler.schedule.rho=3",
            lambda r: r.phases[1].sampler.options["schedule"]["rho"],
            3,
        ),
        ("noise.schedule.name=a", lambda r: r.noise.options["schedule"], {"name": "a"}),
        ("phases.warm-start.sampler.name=dps", lambda r: r.phases[0].sampler, Part(name="dps")),
        ("evaluate.metrics.0.range=2", lambda r: r.evaluate.metrics[0].options, {"range": 2}),
        ("evaluate.metrics=[]", lambda r: r.evaluate.metrics, []),
        ("compute.device=cpu", lambda r: r.compute.device, "cpu"),
        ("compute.compile=false", lambda r: r.compute.compile, False),
        ("clean=all", lambda r: r.clean, "all"),
        ("clean=50", lambda r: r.clean, 50),
        ("count=null", lambda r: r.count, None),
        ("count=", lambda r: r.count, None),
        ("phases.0.fit.text=a=b", lambda r: r.phases[0].fit.options["text"], "a=b"),
        ("phases.0.fit.on=clean", lambda r: r.phases[0].fit.on, "clean"),
        ("requires=[invem-ct>=0.3]", lambda r: r.requires, ["invem-ct>=0.3"]),
    ],
)
def test_an_override_sets_one_value(read, override, get, expected):
    assert get(read(override).recipe) == expected


def test_the_last_override_wins(read):
    assert read("seed=1", "seed=2").recipe.seed == 2


def test_overrides_do_not_change_the_document(read):
    assert read("operator.keep=1").document.value["operator"]["keep"] == 0.4


def test_a_recipe_can_be_changed_again(read):
    first = read("seed=1", smoke=True)
    second = recipes.replace(first, ["noise.sigma=1", "phases.em.rounds=4"])
    assert (second.recipe.seed, second.recipe.phases[0].rounds, second.recipe.phases[1].rounds) == (
        1,
        2,
        4,
    )
    assert first.recipe.noise.options == {"sigma": 0.05}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "override 'seed': key=value is needed"),
        ("", "override '': key=value is needed"),
        ("=1", "override '=1': key=value is needed"),
        (
            "sede=1",
            (
                "override 'sede=1': sede: unknown key; did you mean 'seed'? Allowed: seed, data,"
                " observations, operator, noise, network, count, clean, sigma_data, prior, assume,"
                " phases, evaluate, compute, smoke, requires"
            ),
        ),
        (
            "phases.em.ronds=2",
            (
                "override 'phases.em.ronds=2': phases.1.ronds: unknown key; did you mean 'rounds'?"
                " Allowed: name, rounds, sampler, fit, network, observations, draws, batch,"
                " refresh, restart, anneal, overlap, calibrate, stop"
            ),
        ),
        (
            "compute.dev=cpu",
            (
                "override 'compute.dev=cpu': compute.dev: unknown key; did you mean 'device'? "
                "Allowed: device, precision, compile, threads"
            ),
        ),
        (
            "phases.emm.rounds=2",
            (
                "override 'phases.emm.rounds=2': phases: there is no item 'emm'; did you mean 'em'?"
                " Allowed: 0, 1, warm-start, em"
            ),
        ),
        (
            "network.channels.2=2",
            (
                "override 'network.channels.2=2': network.channels: there is no item '2'. Allowed:"
                " 0, 1"
            ),
        ),
        ("seed.a=1", "override 'seed.a=1': seed has no parts"),
        ("operator.keep.a=1", "override 'operator.keep.a=1': operator.keep has no parts"),
        ("smoke.a=1", "override 'smoke.a=1': smoke has no parts that can be set one by one"),
        ("operator..a=1", "override 'operator..a=1': the key has an empty part"),
        (
            "phases.em.rounds=x",
            "override 'phases.em.rounds=x': phases.1.rounds: got 'x', a whole number is needed",
        ),
        ("phases.em=1", "override 'phases.em=1': phases.1: got 1, a mapping is needed"),
        (
            "compute.device=gpu",
            (
                "override 'compute.device=gpu': compute.device: got 'gpu'; did you mean 'cpu'? "
                "Allowed: auto, cpu, cuda, cuda:0, mps"
            ),
        ),
        (
            "phases.0.fit=null",
            "override 'phases.0.fit=null': phases.0.fit: a phase needs a sampler, a fit or both",
        ),
        (
            "evaluate.sampler.steps=3",
            "override 'evaluate.sampler.steps=3': evaluate.sampler.name: missing key",
        ),
        ("noise={sigma: 1}", "override 'noise={sigma: 1}': noise.name: missing key"),
        (
            "observations=x",
            (
                "override 'observations=x': observations: exactly one of data and observations is"
                " needed"
            ),
        ),
        ("data=null", "r.yaml:2:1: exactly one of data and observations is needed"),
    ],
)
def test_an_override_that_fails_is_named(problems, override, expected):
    assert problems(override) == [expected]


@pytest.mark.parametrize("value", ["[1", "*x", "a\n---\nb", "\0", "[" * 10**5])
def test_the_value_of_an_override_is_checked(problems, value):
    (line,) = problems(f"seed={value}")
    assert line.startswith("override 'seed=")


def test_the_later_of_two_overrides_is_blamed(problems):
    assert problems("compute.threads=0", "compute={threads: -1}") == [
        "override 'compute={threads: -1}': compute.threads: got -1, at least 1 or 'auto' is needed"
    ]


def test_a_deep_override_is_refused(problems):
    (line,) = problems("operator" + ".a" * 10**5 + "=1")
    assert line.endswith("the key has more than 32 parts")


def test_ten_thousand_overrides_take_no_time(read):
    start = time.process_time()
    assert (
        read(*(f"operator.a{i}={i}" for i in range(10_000))).recipe.operator.options["a9999"]
        == 9999
    )
    assert time.process_time() - start < 5


def test_ten_thousand_bad_overrides_are_cut_short(problems):
    lines = problems(*["operatr.a=1"] * 10_000)
    assert len(lines) == 101
    assert lines[-1] == "... and more"


BAD = """\
seed: true
dta: {name: digits}
operator: 3
noise: {sigma: 0.05}
network: unet
clean: al
sigma_data: -1
phases:
  - name: Warm
    rounds: 0
  - name: em
    ruonds: 6
    sampler: [mmps]
    fit: {objective: dsm, on: draw, steps: 1.5, lr: fast, ema: 1, clip: .inf, batch: 2.0}
compute: {compile: 1, threads: 0}
evaluate: {metrics: [3, psnr]}
requires: x
"""


def test_all_problems_are_reported_at_once(problems):
    part = "a name or a mapping with a name is needed"
    top = ", ".join([*Recipe.model_fields, "extends"])
    phase = ", ".join(Phase.model_fields)
    assert problems(text=BAD) == [
        "r.yaml:1:7: seed: got true, a whole number is needed",
        "r.yaml:1:1: exactly one of data and observations is needed",
        f"r.yaml:3:11: operator: got 3, {part}",
        "r.yaml:4:8: noise.name: missing key",
        "r.yaml:6:8: clean: got 'al', a whole number or 'all' is needed; did you mean 'all'?",
        "r.yaml:7:13: sigma_data: got -1, more than 0 or 'auto' is needed",
        (
            "r.yaml:9:11: phases.0.name: got 'Warm', a word of lower-case letters, digits and"
            " hyphens is needed"
        ),
        "r.yaml:10:13: phases.0.rounds: got 0, at least 1 is needed",
        "r.yaml:9:5: phases.0: a phase needs a sampler, a fit or both",
        f"r.yaml:13:14: phases.1.sampler: got a list, {part}",
        (
            "r.yaml:14:31: phases.1.fit.on: got 'draw'; did you mean 'draws'? "
            "Allowed: draws, observations, clean"
        ),
        "r.yaml:14:44: phases.1.fit.steps: got 1.5, a whole number is needed",
        "r.yaml:14:86: phases.1.fit.batch: got 2.0, a whole number is needed",
        "r.yaml:14:53: phases.1.fit.lr: got 'fast', a number is needed",
        "r.yaml:14:64: phases.1.fit.ema: got 1, less than 1 is needed",
        "r.yaml:14:73: phases.1.fit.clip: got inf, a finite number is needed",
        f"r.yaml:12:5: phases.1.ruonds: unknown key; did you mean 'rounds'? Allowed: {phase}",
        f"r.yaml:16:22: evaluate.metrics.0: got 3, {part}",
        "r.yaml:15:20: compute.compile: got 1, true or false or 'auto' is needed",
        "r.yaml:15:32: compute.threads: got 0, at least 1 or 'auto' is needed",
        "r.yaml:17:11: requires: got 'x', a list is needed",
        f"r.yaml:2:1: dta: unknown key; did you mean 'data'? Allowed: {top}",
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("seed: 0", "seed: -1", "r.yaml:2:7: seed: got -1, at least 0 is needed"),
        ("seed: 0", "seed: no", "r.yaml:2:7: seed: got 'no', a whole number is needed"),
        ("lr: 1e-3", "lr: true", "r.yaml:17:54: phases.1.fit.lr: got true, a number is needed"),
        (
            "lr: 1e-3",
            "lr: .nan",
            "r.yaml:17:54: phases.1.fit.lr: got nan, a finite number is needed",
        ),
        (
            "data: digits",
            "data: 1",
            "r.yaml:3:7: data: got 1, a name or a mapping with a name is needed",
        ),
        ("data: digits", "data: ''", "r.yaml:3:7: data: got '', some text is needed"),
        (
            "name: em",
            "name: warm-start",
            "r.yaml:8:3: phases: two phases have the name 'warm-start'",
        ),
        ("objective: dsm, ", "", "r.yaml:17:10: phases.1.fit.objective: missing key"),
        ("seed: 0", "seed: 0\nseed: 1", "r.yaml:3:1: the key 'seed' is given twice"),
    ],
)
def test_a_problem_is_located(problems, old, new, expected):
    assert problems(text=TEXT.replace(old, new)) == [expected]


@pytest.mark.parametrize("text", ["", "[]", "text", "1", "null"])
def test_a_recipe_must_be_a_mapping(problems, text):
    (line,) = problems(text=text)
    assert line.startswith("r.yaml:1:1: a recipe is a mapping, got ")


def test_at_least_one_phase_is_needed(problems):
    assert problems("phases=[]") == [
        "override 'phases=[]': phases: got an empty list, at least one item is needed"
    ]


def test_both_sources_are_one_too_many(problems):
    text = TEXT.replace("data: digits", "data: digits\nobservations: scans")
    assert problems(text=text) == [
        "r.yaml:4:15: observations: exactly one of data and observations is needed"
    ]


def test_a_value_of_the_smoke_block_is_located_there(problems):
    (line,) = problems(text=TEXT.replace("phases.0.rounds: 2", "phases.0.rounds: x"), smoke=True)
    assert line == "r.yaml:19:26: phases.0.rounds: got 'x', a whole number is needed"


def test_a_key_of_the_smoke_block_is_located_there(problems):
    (line,) = problems(text=TEXT.replace("phases.0.rounds", "phases.0.ronds"), smoke=True)
    assert line.startswith(
        "r.yaml:19:9: smoke: phases.0.ronds: unknown key; did you mean 'rounds'? Allowed: "
    )


def test_a_key_with_line_breaks_stays_on_one_line(problems):
    (line,) = problems(text=TEXT + '"a\\n\\e[31mb": 1\n')
    assert "a\\n\\x1b[31mb: unknown key" in line


def test_thousands_of_problems_are_cut_short(problems):
    lines = problems(text=TEXT + "".join(f"k{i}: 1\n" for i in range(5000)))
    assert len(lines) == 101


@pytest.mark.parametrize(
    ("path", "key", "expected"),
    [
        (("operator", "keep"), False, "r.yaml:4:37"),
        (("operator", "keep"), True, "r.yaml:4:31"),
        (("operator", "missing"), True, "r.yaml:4:11"),
        (("data", "name"), False, "r.yaml:3:7"),
        (("phases", 0, "fit", "rank"), True, "r.yaml:10:40"),
        (("network", "channels", 1), False, "r.yaml:6:38"),
        (("phases", 1, "sampler", "schedule", "rho"), True, "r.yaml:16:32"),
        (("noise", "sigma"), False, "override 'noise.sigma=2'"),
        (("noise", "sigma"), True, "override 'noise.sigma=2'"),
        (("noise", "name"), False, "r.yaml:5:15"),
        (("compute",), False, "override 'compute.device=cpu'"),
        ((), False, "r.yaml:2:1"),
    ],
)
def test_a_path_is_located(read, path, key, expected):
    assert recipes.locate(read("noise.sigma=2", "compute.device=cpu"), path, key) == expected


def test_other_checks_make_located_errors(read):
    problem = recipes.error(read(), ("operator", "keep"), "unknown key", key=True)
    assert isinstance(problem, RecipeError)
    assert str(problem) == "r.yaml:4:31: operator.keep: unknown key"


@pytest.mark.parametrize("name", ["r", "q.yaml", "R.yml"])
def test_a_missing_file_is_an_error(file, name):
    file(TEXT)
    with pytest.raises(RecipeError, match=rf"\A{name}: there is no such file"):
        recipes.load(name)


@pytest.mark.parametrize("name", ["recipes/inpaint.yaml", "inpainting", "recipes/inpainting"])
def test_a_similar_file_is_suggested(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "inpainting.yaml").write_text(TEXT)
    with pytest.raises(RecipeError, match=r"; did you mean 'recipes/inpainting\.yaml'\?\Z"):
        recipes.load(name)


@pytest.mark.parametrize("name", [".", "", "a\0b", "a" * 5000, "r.yaml/x", "\udcff"])
def test_what_cannot_be_read_is_an_error_of_one_line(file, name):
    file(TEXT)
    with pytest.raises(RecipeError, match=r"\A[^\n]+\Z"):
        recipes.load(name)


def test_an_endless_file_is_refused():
    with pytest.raises(RecipeError, match=r"\A/dev/zero:1:1: 1048577 bytes are too many"):
        recipes.load("/dev/zero")


@pytest.mark.parametrize(
    "overrides", [[], ["data=null", "observations=scans"], ["compute.compile=true"]]
)
@pytest.mark.parametrize("smoke", [False, True])
def test_a_dumped_recipe_loads_to_an_equal_one(read, file, overrides, smoke):
    recipe = read(*overrides, smoke=smoke).recipe
    again = recipes.load(file(yaml.dump(recipes.dump(recipe)))).recipe
    assert again == recipe


def test_a_dump_has_the_shape_of_the_file(read):
    data = recipes.dump(read().recipe)
    assert data["operator"] == {"name": "random-mask", "keep": 0.4}
    assert data["phases"][0]["fit"]["rank"] == 16
    assert data["evaluate"]["metrics"] == [{"name": "psnr"}, {"name": "frechet", "features": 64}]


def test_models_can_be_built_in_python():
    recipe = Recipe(
        observations=Part(name="scans"),
        operator=Part(name="blur", options={"sigma": 1.0}),
        noise=Part(name="none"),
        network=Part(name="unet"),
        phases=[Phase(name="a", sampler=Part(name="dps"))],
        evaluate=Evaluate(metrics=[Part(name="psnr")]),
    )
    assert recipe.operator.options == {"sigma": 1.0}


def test_every_key_is_described_in_the_schema():
    schema = recipes.json_schema()
    models = [schema, *schema["$defs"].values()]
    models = [model["anyOf"][1] if "anyOf" in model else model for model in models]
    keys = {name: key for model in models for name, key in model["properties"].items()}
    assert {name for name, key in keys.items() if not {"description", "$ref"} & key.keys()} == set()
    assert "options" not in keys


def test_a_part_is_a_name_or_an_open_mapping_in_the_schema():
    text, mapping = recipes.json_schema()["$defs"]["Part"]["anyOf"]
    assert text == {"type": "string"}
    assert (mapping["required"], mapping["additionalProperties"]) == (["name"], True)


PIECES = [
    *"[]{}:,-#&*!|>'\"%@`? \t\n\r.~=",
    *(
        "\0",
        "\ufeff",
        "\u2028",
        "é",
        "null",
        "true",
        "1e999",
        "9" * 200,
        ".nan",
        "-1",
        "<<: ",
        "--- ",
        "? ",
        "  ",
    ),
    *(
        '"\\ud800"',
        "!!python/object:os.system",
        "&a",
        "*a",
        "[" * 40,
        "phases",
        "options: ",
        "name: ",
        "0",
        "- ",
    ),
]


def mutated(rng):
    raw = bytearray(TEXT.encode())
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(raw) + 1)
        match rng.randrange(5):
            case 0:
                raw[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                raw[at:at] = rng.choice(PIECES).encode()
            case 2:
                del raw[at : at + rng.randrange(1, 12)]
            case 3:
                lines = raw.split(b"\n")
                lines.insert(rng.randrange(len(lines)), rng.choice(lines))
                raw = bytearray(b"\n".join(lines))
            case 4:
                raw[at:at] = raw[(start := rng.randrange(len(raw))) : start + rng.randrange(40)]
    return bytes(raw)


def test_mutated_recipes_load_or_fail_with_located_lines(file):
    rng = random.Random(0)
    keys = [
        "phases.em.rounds",
        "operator.keep",
        "evaluate.metrics.0.a",
        "phases.0",
        "smoke",
        "",
        "data.b.c",
    ]
    end, worst, outcomes = time.process_time() + 3, 0.0, set()
    while (start := time.process_time()) < end:
        raw = mutated(rng)
        overrides = [f"{rng.choice(keys)}={rng.choice(PIECES)}"] if rng.random() < 0.3 else []
        try:
            recipes.load(file(raw), overrides, smoke=rng.random() < 0.3)
            outcomes.add("loaded")
        except RecipeError as problem:
            for line in str(problem).split("\n"):
                assert re.match(r"(r\.yaml:\d+:\d+|override '.*'): .", line), (raw, line)
                assert line.isprintable(), (raw, line)
            outcomes.add("refused")
        worst = max(worst, time.process_time() - start)
    assert outcomes == {"loaded", "refused"}
    assert worst < 1


def test_an_infinite_option_is_left_to_the_component(read):
    assert read("operator.keep=.inf").recipe.operator.options["keep"] == math.inf
