"""The catalogue: every plugin is asked by itself, and what is wrong with one harms no other."""

import sys
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import pytest

from invem.config import KINDS, Catalog, Component, Plugin, load, options_of, parse_options
from invem.errors import PluginError, RecipeError
from invem.operator import OperatorLaw
from invem.planning.make import make
from invem.planning.resolve import resolve
from invem.schedule import Schedule

CATALOG = Catalog.load()


def offering(tmp_path, monkeypatch, source, name="stranger"):
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop(name, None)
    return Catalog.load([EntryPoint(name=name, value=name, group="invem")])


HEAD = "from invem import hookimpl\n"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise RuntimeError('no device')", "RuntimeError: no device"),
        ("import sys; sys.exit(3)", "SystemExit"),
        ("import not_there", "ModuleNotFoundError"),
        (
            HEAD + "@hookimpl\ndef invem_operators(): raise KeyError('x')",
            "invem_operators: KeyError",
        ),
        (HEAD + "@hookimpl\ndef invem_operators(): return ['blur']", "must return {name: factory}"),
        (
            HEAD + "@hookimpl\ndef invem_operators(): return {'blur': 3}",
            "must return {name: factory}",
        ),
        (HEAD + "@hookimpl\ndef invem_operator(): return {}", "did you mean 'invem_operators'"),
    ],
)
def test_a_broken_plugin_is_one_line(tmp_path, monkeypatch, source, said):
    catalog = offering(tmp_path, monkeypatch, source)
    assert len(catalog.problems) == 1
    assert said in catalog.problems[0]
    assert "\n" not in catalog.problems[0]
    with pytest.raises(PluginError, match="there is no operator"):
        catalog.find("operators", "blur")


def test_a_name_offered_twice_is_written_with_its_distribution():
    catalog = Catalog()
    for dist in ("one", "two"):
        plugin = SimpleNamespace()
        exec(HEAD + "@hookimpl\ndef invem_operators(): return {'blur': 'm:f'}", vars(plugin))
        catalog.ask(lambda plugin=plugin: plugin, Plugin("module", dist, "1"))
    with pytest.raises(RecipeError, match=r"offered twice: write 'one/blur' or 'two/blur'"):
        catalog.find("operators", "blur")
    assert catalog.find("operators", "two/blur").distribution == "two"


def test_an_unknown_name_is_suggested():
    with pytest.raises(RecipeError, match="did you mean 'gaussian-blur'"):
        CATALOG.find("operators", "gausian-blur")


def test_what_comes_with_invem_is_healthy():
    assert CATALOG.problems == []
    assert all(CATALOG.offers[kind] for kind in KINDS)


COMPONENTS = [c for kind in KINDS for found in CATALOG.offers[kind].values() for c in found]


@pytest.mark.parametrize("component", COMPONENTS, ids=lambda c: f"{c.kind}-{c.name}")
def test_every_component_is_documented_and_its_options_have_defaults_and_types(component):
    factory = component.load()
    assert component.summary
    for option in options_of(factory).values():
        assert option.annotation is not option.empty
        assert f"{option.name}:" in (factory.__doc__ or ""), f"{option.name} is not documented"


def test_schedules_decrease():
    for name in ("karras", "geometric"):
        with pytest.raises(RecipeError, match="sigma_min must be below sigma_max"):
            CATALOG.find("schedules", name).load()(sigma_min=30.0)


def test_a_schedule_that_cannot_be_imported_harms_no_recipe_without_it(tmp_path, monkeypatch):
    from pathlib import Path

    from invem import config

    (tmp_path / "bad.py").write_text(
        HEAD + "@hookimpl\ndef invem_schedules(): return {'bad': 'nope_module:Bad'}\n"
    )
    monkeypatch.setenv("INVEM_PLUGINS_DIR", str(tmp_path))
    loaded = config.load(Path(__file__).parent.parent / "recipes" / "blur.yaml")
    assert resolve(loaded, Catalog.load())["phases"][1]["sampler"]["schedule"]["name"] == "karras"


def test_the_defaults_of_operators_in_a_list_are_written_out(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(
        "data: digits\noperator: [{name: gaussian-blur, std: 1.0, size: 3}, downsample]\nnoise:"
        " gaussian\nnetwork: mlp\nphases:\n  - {name: w, fit: {objective: gaussian-moments}}\n"
    )
    resolved = resolve(load(path), CATALOG)
    assert resolved["operator"]["of"] == [
        {"name": "gaussian-blur", "std": 1.0, "size": 3, "boundary": "reflect"},
        {"name": "downsample", "factor": 2, "method": "average"},
    ]


def test_a_sampler_that_does_not_fit_is_refused_with_those_that_do(tmp_path):
    path = tmp_path / "r.yaml"
    text = (
        "data: digits\noperator: {name: clip}\nnoise: gaussian\nnetwork: mlp\nclean: 8\nphases:\n "
        " - {name: w, fit: {objective: dsm, on: clean, steps: 1}}\n  - {name: em, sampler: mmps,"
        " fit: {objective: dsm, steps: 1}}\n"
    )
    path.write_text(text)
    with pytest.raises(
        RecipeError,
        match=r"mmps needs a linear operator \(adjoint\), which clip with gaussian noise does not",
    ) as error:
        make(load(path), CATALOG)
    fitting = str(error.value).partition("these fit: ")[2].split(", ")
    assert {"dps", "daps", "lgd", "sitcom"} <= set(fitting) and not {"mmps", "ddrm", "exact"} & set(
        fitting
    )
    path.write_text(text.replace("clip", "identity").replace("mmps", "exact"))
    with pytest.raises(RecipeError, match="exact needs a prior in closed form"):
        make(load(path), CATALOG)
    path.write_text(
        text.replace("clip", "identity")
        .replace("mmps", "exact")
        .replace("dsm, on: clean, steps: 1", "gaussian-moments")
    )
    make(load(path), CATALOG)


def installed(tmp_path, monkeypatch, name, entry=True):
    """Installs a distribution that offers an operator, or nothing."""
    module = name.lower() + "_module"
    info = tmp_path / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    if entry:
        (info / "entry_points.txt").write_text(f"[invem]\nplugin = {module}\n")
    text = f"@hookimpl\ndef invem_operators(): return {{'{name.lower()}': 'm:f'}}\n"
    (tmp_path / f"{module}.py").write_text(HEAD + text)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize("word", ["my-scanner", "My_Scanner", "MY.SCANNER", " my--scanner ,"])
def test_a_chosen_distribution_is_found_by_any_spelling_of_its_name(tmp_path, monkeypatch, word):
    installed(tmp_path, monkeypatch, "My_Scanner")
    installed(tmp_path, monkeypatch, "Other")
    monkeypatch.setenv("INVEM_PLUGINS", word)
    catalog = Catalog.load()
    assert catalog.find("operators", "my_scanner").distribution == "My_Scanner"
    assert "other" not in catalog.offers["operators"] and "identity" in catalog.offers["operators"]
    assert catalog.problems == []


def test_a_chosen_distribution_that_is_not_installed_is_a_problem(tmp_path, monkeypatch):
    installed(tmp_path, monkeypatch, "Silent", entry=False)
    monkeypatch.setenv("INVEM_PLUGINS", "my-scaner, invem, silent")
    catalog = Catalog.load()
    assert catalog.problems == [
        "plugin 'my-scaner' of INVEM_PLUGINS is not installed",
        "plugin 'silent' of INVEM_PLUGINS is installed, but offers no component",
    ]
    with pytest.raises(PluginError, match="'my-scaner' of INVEM_PLUGINS is not installed"):
        catalog.find("operators", "scan")


@pytest.mark.parametrize("chosen", ["", " , ", "invem"])
def test_no_distribution_may_be_chosen(monkeypatch, chosen):
    monkeypatch.setenv("INVEM_PLUGINS", chosen)
    assert Catalog.load().problems == []
    assert {plugin.distribution for plugin in Catalog.load().plugins} == {"invem"}


def weigher(*, schedule: Schedule = None, parts: list[OperatorLaw] = [], size: int = 3):  # noqa: B006
    """A component with components among its options."""


def parsed(given):
    problems = []
    component = Component("samplers", "weigher", weigher, "here", "1")
    values = parse_options(CATALOG, component, given, lambda *problem: problems.append(problem))
    return values, problems


def test_options_that_are_components_are_built_or_bound():
    values, problems = parsed({"schedule": "karras", "parts": ["identity", {"name": "clip"}]})
    assert problems == []
    assert type(values["schedule"]).__name__ == "Karras" and values["size"] == 3
    assert [part.func for part in values["parts"]] == [
        CATALOG.find("operators", name).load() for name in ("identity", "clip")
    ]
    values, problems = parsed({"schedule": {"name": "karras", "rho": 3.0}})
    assert values["schedule"].rho == 3.0 and values["parts"] == []


@pytest.mark.parametrize(
    ("given", "path", "said"),
    [
        ({"schedule": 3}, ("schedule",), "a schedule is a name, or a mapping with a name"),
        ({"schedule": "kras"}, ("schedule",), "there is no schedule 'kras'"),
        ({"schedule": {"name": "karras", "rho": "x"}}, ("schedule", "rho"), "a number is needed"),
        (
            {"schedule": {"name": "karras", "sigma_min": 1e9}},
            ("schedule",),
            "sigma_min must be below sigma_max",
        ),
        ({"parts": ["clip", 3]}, ("parts", 1), "an operator is a name, or a mapping with a name"),
        ({"parts": ["klip"]}, ("parts", 0), "there is no operator 'klip'"),
        ({"parts": [{"name": "random-mask", "kep": 1}]}, ("parts", 0, "kep"), "unknown key"),
        ({"parts": "clip"}, ("parts",), "a list is needed"),
    ],
)
def test_a_component_among_the_options_that_is_wrong_is_named(given, path, said):
    _, problems = parsed(given)
    assert len(problems) == 1
    assert problems[0][0] == path and said in problems[0][2]
