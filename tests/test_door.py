"""The Python door: the cells of docs/python.md as one notebook, and what is refused."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import invem
from invem.config import load_any
from invem.errors import Stopped

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "python.md"
CELLS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
RECIPE = {
    "data": "digits",
    "operator": {"name": "gaussian-blur", "std": 0.8, "size": 3},
    "noise": {"name": "gaussian", "sigma": 0.1},
    "network": "mlp",
    "count": 32,
    "phases": [
        {"name": "warm-start", "rounds": 2, "fit": {"objective": "gaussian-moments", "rank": 4}},
        {"name": "again", "sampler": "exact", "fit": {"objective": "gaussian-moments"}},
    ],
    "evaluate": {"metrics": ["psnr"], "observations": 4, "samples": 4, "steps": 4},
    "compute": {"threads": 1},
}


@pytest.fixture(scope="module")
def notebook(tmp_path_factory):
    """Executes the cells in order; yields where, and the names that they leave."""
    space = {"__name__": "notebook"}
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("notebook")
        patch.chdir(folder)
        for number, cell in enumerate(CELLS):
            exec(compile(cell, f"python.md, cell {number}", "exec"), space)
        yield folder, space


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return invem.run(RECIPE, out=tmp_path_factory.mktemp("door") / "run")


def test_the_page_is_a_notebook_that_runs(notebook):
    folder, space = notebook
    assert len(CELLS) >= 10 and space["run"].finished
    assert (folder / "runs" / "blurred-digits" / "metrics.jsonl").exists()


def test_every_name_of_the_door_is_on_the_page():
    text = PAGE.read_text("utf-8")
    for name in ("plan", "run", "open"):
        assert f"`invem.{name}(" in text
    members = {name for name in vars(invem.Run) if not name.startswith("_")}
    shown = set(re.findall(r"\brun\.(\w+)", text))
    assert members - shown <= {"measurement", "resolved"}


def test_a_run_says_in_short_what_it_is(run):
    assert repr(run) == f"<Run {run.path}: phase again, round 0, finished>"
    fresh = invem.Run(run.plan, run.path / "nowhere")
    assert repr(fresh) == f"<Run {run.path / 'nowhere'}: no prior yet>" and not fresh.finished
    assert repr(run.restore(run.observations("test"), draws=2)) == (
        "<Restored: 4 observations, 2 draws of each, shape (1, 8, 8)>"
    )
    assert len(repr(run.plan)) < 200


def test_a_finished_run_is_returned_without_work(run, monkeypatch):
    def no_work(*_):
        raise AssertionError("a finished run was carried out")

    monkeypatch.setattr("invem.door.carry_out", no_work)
    assert invem.run(RECIPE, out=run.path).metrics == run.metrics
    assert invem.run(RECIPE, out=run.path, device="cpu").metrics == run.metrics
    assert invem.run(RECIPE, {"compute.device": "cpu"}, out=run.path).metrics == run.metrics


def test_an_interrupted_run_goes_on_to_the_same_prior(run, tmp_path):
    def interrupt(records):
        for record in records:
            yield record
            if record.event == "fit":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        invem.run(RECIPE, out=tmp_path / "run", follow=interrupt)
    begun = invem.open(tmp_path / "run")
    assert begun.rounds and not begun.finished
    begun.resume()
    assert begun.finished and begun.metrics == run.metrics
    x_t = torch.ones(2, 1, 8, 8)
    assert torch.equal(begun.prior(x_t, 0.3), run.prior(x_t, 0.3))


def test_a_run_that_is_asked_to_stop_says_how_to_go_on(tmp_path):
    with pytest.raises(Stopped, match="invem resume") as caught:
        invem.run(RECIPE, out=tmp_path / "run", stop=lambda: 7)
    assert caught.value.exit_code == 7


def test_the_newest_prior_is_read_once(run):
    assert run.prior is run.prior
    assert run.prior.exact is not None and run.prior_at("again", 0).exact is not None


@pytest.mark.parametrize(
    ("changes", "value"),
    [
        ({"evaluate.metrics": ["ssim", {"name": "psnr", "of": "draw"}]}, ["ssim", "psnr"]),
        ({"evaluate.metrics": ()}, []),
        (["evaluate.metrics=[ssim]"], ["ssim"]),
        ("evaluate.metrics=[ssim]", ["ssim"]),
    ],
)
def test_changes_are_plain_data_or_texts(changes, value):
    recipe = invem.plan(RECIPE, changes).recipe
    assert [part.name for part in recipe.evaluate.metrics] == value


def test_changes_keep_the_types_of_their_values():
    changes = {
        "count": None,
        "seed": np.int64(3),
        "noise.sigma": np.float32(0.25),
        "operator.std": 1e-5,
        "evaluate.phases": ["again"],
        "data": {"name": "folder", "root": "12: é, #x 😀"},
    }
    recipe = load_any(RECIPE, changes).recipe
    assert recipe.count is None and recipe.seed == 3
    assert recipe.noise.options["sigma"] == 0.25 and recipe.operator.options["std"] == 1e-5
    assert recipe.evaluate.phases == ["again"]
    assert recipe.data.options["root"] == "12: é, #x 😀"


def test_a_recipe_of_plain_data_may_hold_paths_and_tuples(tmp_path):
    recipe = {**RECIPE, "phases": tuple(RECIPE["phases"]), "prior": tmp_path / "nothing"}
    with pytest.raises(invem.RecipeError, match=rf"prior: {tmp_path}/nothing"):
        invem.plan(recipe)


def test_restoring_takes_arrays_mappings_and_measurements(run):
    m = run.observations("test")
    wanted = run.restore(m, draws=2).draws
    for given in (m.y, m.y.numpy(), {"y": m.y}, run.measurement(m.y)):
        assert torch.equal(run.restore(given, draws=2).draws, wanted)
    one = run.restore(m.y[:1], draws=1)
    assert float(one.std.abs().max()) == 0
    assert not torch.equal(run.restore(m.y, draws=2, seed=1).draws, wanted)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (torch.zeros(1, 8, 8), "'y' has the shape"),
        (torch.full((1, 1, 8, 8), torch.nan), "not finite"),
        (torch.zeros(0, 1, 8, 8), "there are no observations"),
        ({"x": torch.zeros(1, 1, 8, 8)}, "a tensor named y is needed"),
        ({"y": torch.zeros(1, 1, 8, 8), "A.mask": torch.zeros(1)}, "there is no tensor 'A.mask'"),
        ("nowhere", "nowhere: there is no such file or folder"),
        (PAGE, "python.md: no file format reads it"),
    ],
)
def test_observations_that_cannot_be_restored_are_named(run, given, said):
    with pytest.raises(invem.DataError, match=said):
        run.restore(given)


@pytest.mark.parametrize(
    ("ask", "error", "said"),
    [
        (lambda run: run.prior_at("agian", 0), invem.RecipeError, "known: warm-start, again"),
        (lambda run: run.prior_at(2, 0), invem.RecipeError, "there is no phase '2'"),
        (lambda run: run.prior_at("again", 1), invem.RecipeError, "no round 1 .known: 0 to 0"),
        (lambda run: run.prior_at("again", -1), invem.RecipeError, "no round -1"),
        (lambda run: run.draws("warm-start", 0), invem.DataError, "warm-start, round 0 has no"),
        (lambda run: run.observations("val"), invem.DataError, "there are no measurements"),
        (lambda run: invem.Run(run.plan, run.path / "new").prior, invem.DataError, "is finished"),
    ],
)
def test_what_a_run_does_not_have_is_said(run, ask, error, said):
    with pytest.raises(error, match=said):
        ask(run)


def test_what_is_not_a_run_is_said(run, tmp_path):
    with pytest.raises(invem.RecipeError, match="not a run directory"):
        invem.open(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(invem.RecipeError, match="is not a run; choose another"):
        invem.run(RECIPE, out=tmp_path)
    with pytest.raises(invem.RecipeError, match="holds a run of another recipe"):
        invem.run(RECIPE, {"seed": 1}, out=run.path)


def test_a_recipe_that_was_changed_is_refused(tmp_path):
    path = invem.run(RECIPE, {"evaluate.samples": 0}, out=tmp_path / "run").path
    (path / "recipe.yaml").write_text((path / "recipe.yaml").read_text("utf-8") + "\n", "utf-8")
    with pytest.raises(invem.RecipeError, match="changed since the run was begun"):
        invem.open(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"noise.sgima": 1}, "did you mean 'sigma'"),
        ({"noise.sigma": object()}, "a recipe is made of plain data: object"),
        ({"phases.agian.rounds": 2}, "did you mean 'again'"),
    ],
)
def test_a_change_that_is_wrong_is_named(changes, said):
    with pytest.raises(invem.RecipeError, match=said):
        invem.plan(RECIPE, changes)


def test_a_device_that_is_not_there_is_refused(run):
    if torch.backends.mps.is_available():
        pytest.skip("this machine has the device")
    with pytest.raises(invem.RecipeError, match="'mps' is not available"):
        invem.open(run.path, device="mps")


def test_a_component_of_the_notebook_itself_is_used(tmp_path):
    from invem_plugins.noises.gaussian import gaussian

    from invem.config import Catalog, Plugin

    class Mine:
        @staticmethod
        @invem.hookimpl
        def invem_noises():
            return {"mine": gaussian}

    catalog = Catalog.load()
    catalog.ask(Mine, Plugin("mine", "notebook", "0"))
    changes = {"noise": {"name": "mine", "sigma": 0.1}}
    run = invem.run(RECIPE, changes, out=tmp_path / "run", catalog=catalog)
    assert run.finished and run.resolved["noise"]["name"] == "mine"
    with pytest.raises(invem.RecipeError, match="there is no noise 'mine'"):
        invem.open(run.path)
    assert invem.open(run.path, catalog=catalog).metrics == run.metrics


def test_importing_invem_is_light():
    import subprocess
    import sys

    script = "import sys, invem; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_no_submodule_hides_a_function_of_the_door():
    import invem.planning
    import invem.running

    assert callable(invem.plan) and callable(invem.run) and callable(invem.open)
