"""The commands on files of frames: inspect and init."""

import json

import numpy as np
import pytest
from command import invem

from invem import DataError, config, inspect
from invem.config import Catalog, yaml
from invem.frames import Units

OFFERS = Catalog.load().offers


def frames(photons, n=24):
    rng = np.random.default_rng(0)
    i, j = np.mgrid[:96, :96]
    found = []
    for _ in range(n):
        f, p = rng.uniform(0.02, 0.06, 2), rng.uniform(0, 6, 2)
        u = (2 + np.sin(f[0] * i + p[0]) + np.sin(f[1] * j + p[1])) / 4
        noise = np.sqrt(3 * 3000 * u + 400) if photons else np.full_like(u, 40.0)
        found.append(np.round(200 + 3000 * u + noise * rng.normal(size=u.shape)))
    return np.clip(found, 0, 4095).astype(np.uint16)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "frames").mkdir()
    np.save(tmp_path / "frames" / "a.npy", frames(photons=True))
    return tmp_path


def test_inspect_says_what_is_there_in_60_columns(folder, monkeypatch, capsys):
    sheet = folder / "inspect.png"
    code, out, err = invem(monkeypatch, capsys, "inspect", folder / "frames", "--sheet", sheet)
    assert code == 0, err
    assert "24 in 1 file (.npy)" in out and "96 x 96, uint16" in out and "12 bits" in out
    assert "of photons" in out and "problems none" in out
    lines = [line for line in out.splitlines() if str(folder) not in line]
    assert max(map(len, lines)) <= 60
    assert sheet.read_bytes()[:4] == b"\x89PNG"


def test_inspect_gives_the_same_as_data(folder, monkeypatch, capsys):
    command = ("inspect", folder / "frames", "--offset", 200, "--json")
    code, out, _ = invem(monkeypatch, capsys, *command)
    found = json.loads(out)
    assert code == 0 and found["frames"] == 24 and found["bits"] == 12
    assert found["noise"]["kind"] == "poisson-gaussian"
    assert found["noise"]["gain"] == pytest.approx(3, rel=0.1)
    assert found == {**inspect(folder / "frames", offset=200).as_dict(), "sheet": None}


def test_inspect_says_what_is_wrong(folder):
    values = frames(photons=False, n=12)
    values[:, 30, 40] = 77
    values[5] = values[4]
    np.save(folder / "frames" / "b.npy", values)
    np.save(folder / "frames" / "c.npy", values[:1, :64])
    (folder / "frames" / "d.npy").write_bytes(b"no array")
    text = "\n".join(inspect(folder / "frames").problems)
    assert "cannot be read" in text and "differ in size: 1 x 96 x 96 (36)" in text
    found = inspect(folder / "frames" / "b.npy").problems
    assert any("there twice" in line for line in found)
    assert any("1 dead pixel:" in line for line in found)


def test_what_is_no_frame_is_one_line(folder, monkeypatch, capsys):
    code, _, err = invem(monkeypatch, capsys, "inspect", folder / "nothing")
    assert code and len(err.splitlines()) == 1 and "there is no such file" in err
    with pytest.raises(DataError, match="there is no such file"):
        inspect(folder / "nothing")


def written(folder, monkeypatch, capsys, *words):
    monkeypatch.setattr("invem.cli.frames.plan", lambda recipe: None)
    out = folder / "frames.yaml"
    code, _, err = invem(monkeypatch, capsys, "init", folder / "frames", "--out", out, *words)
    assert code == 0, err
    return out, yaml.load(out.read_bytes(), "frames.yaml").value


def test_init_writes_photon_noise_with_the_level_after_the_transform(folder, monkeypatch, capsys):
    out, made = written(folder, monkeypatch, capsys, "--offset", 200, "--crop", 32)
    given = made["observations"]
    assert given["root"] == "frames" and given["crop"] == 32
    assert given["gain"] == pytest.approx(3, rel=0.1) and given["offset"] == 200
    units = Units(**{k: given[k] for k in ("low", "high", "gain", "offset", "read")})
    assert made["noise"]["sigma"] == pytest.approx(units.sigma, rel=1e-3)
    stored = frames(photons=True).astype(float)
    d = units.signal(stored)
    d = (d[:, 1:, 1:] - d[:, :-1, 1:] - d[:, 1:, :-1] + d[:, :-1, :-1]) / 2
    assert np.std(d) == pytest.approx(units.sigma, rel=0.06)
    lines = out.read_text().splitlines()
    assert sum(line.lstrip().startswith("#") for line in lines) > 20
    config.load(out)


def test_init_writes_noise_of_one_level_in_units_of_the_data(folder, monkeypatch, capsys):
    np.save(folder / "frames" / "a.npy", frames(photons=False))
    _, made = written(folder, monkeypatch, capsys)
    given = made["observations"]
    assert "gain" not in given
    sigma = made["noise"]["sigma"] * (given["high"] - given["low"]) / 2
    assert sigma == pytest.approx(40, rel=0.06)
    _, asked = written(folder, monkeypatch, capsys, "--force", "--noise", "gaussian")
    assert asked["noise"]["name"] == "gaussian"


def test_init_replaces_nothing_and_refuses_in_one_line(folder, monkeypatch, capsys):
    out, _ = written(folder, monkeypatch, capsys)
    command = ("init", folder / "frames", "--out", out)
    code, _, err = invem(monkeypatch, capsys, *command)
    assert code == 2 and "exists already" in err and "--force" in err and err.count("\n") == 1
    code, _, err = invem(monkeypatch, capsys, *command, "--force", "--crop", 30)
    assert code == 2 and "multiple of 4 from 8 to 96" in err


@pytest.mark.skipif("frames" not in OFFERS["datasets"], reason="no data set of frames")
@pytest.mark.parametrize("words", [(), ("--noise", "gaussian"), ("--clean",)])
def test_the_plan_takes_the_recipe(folder, monkeypatch, capsys, words):
    out = folder / "frames.yaml"
    command = ("init", folder / "frames", "--out", out, "--crop", 32, *words)
    code, said, err = invem(monkeypatch, capsys, *command)
    assert code == 0, err
    assert "time " in said and "memory " in said and "disk " in said
    code, said, err = invem(monkeypatch, capsys, "show", out)
    assert code == 0, err
