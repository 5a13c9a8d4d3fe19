"""The data set `frames`: windows of stacks, pictures and arrays, and their units."""

import tracemalloc

import numpy as np
import pytest
import tifffile
import torch
from invem_plugins.datasets.frames import frames
from PIL import Image
from skimage import data as photographs
from skimage.transform import resize

import invem
from invem import DataError, RecipeError

torch.set_num_threads(1)
RECIPE = """
seed: 0
observations: {{name: frames, root: {root}, crop: 16, per_frame: 4}}
operator: {operator}
noise: {{name: gaussian, sigma: 0.2}}
network: {{name: convnet}}
phases:
  - {{name: init, rounds: 1, fit: {{objective: gaussian-moments}}}}
  - {{name: em, rounds: 1, sampler: auto, fit: {{objective: dsm, steps: 2, batch: 8}}}}
"""


def stack(path, pages=60, side=64, photons=200, **options):
    """A stack of 12 bits: photographs with photon noise."""
    rng = np.random.default_rng(0)
    photo = resize(photographs.camera(), (2 * side, 2 * side), anti_aliasing=True)
    found = []
    for _ in range(pages):
        y, x = rng.integers(0, side, 2)
        light = photo[y : y + side, x : x + side] * 0.8
        found.append(np.clip(rng.poisson(light * photons) * 4000 / photons, 0, 4095))
    values = np.array(found).astype(np.uint16)
    tifffile.imwrite(path, values, photometric="minisblack", **options)
    return values


def every(data):
    return data[torch.arange(len(data))].x


def test_a_stack_of_12_bits(tmp_path):
    values = stack(tmp_path / "stack.tif")
    train, test = (frames(split, root=tmp_path, crop=16) for split in ("train", "test"))
    assert (len(train), len(test), train.shape) == (54 * 16, 6 * 16, (1, 16, 16))
    assert train.units == test.units and (train.units.low, train.units.high) == (0, 4095)
    assert train.units.how == "12 bits" and train.windowed
    held = {test.pages[i].index for i in test.places[:, 0]}
    assert held == set(range(54, 60)) and {page.index for page in train.pages} == set(range(54))
    # A window is exactly what the file holds there.
    number, y, x = train.places[7]
    stored = values[train.pages[number].index, y : y + 16, x : x + 16]
    assert np.allclose(train.units.stored(train[torch.tensor([7])].x[0, 0].numpy()), stored)
    # The first windows are of many pages.
    assert len(set(train.places[:64, 0])) > 16


def test_windows_of_a_grid_do_not_overlap_and_are_the_same_again(tmp_path):
    stack(tmp_path / "stack.tif", pages=3)
    one, two = (frames("train", root=tmp_path, crop=20) for _ in range(2))
    assert np.array_equal(one.places, two.places) and one.digest() == two.digest()
    assert len(one) == 2 * 9
    for number in range(2):
        seen = np.zeros((64, 64), int)
        for _, y, x in one.places[one.places[:, 0] == number]:
            seen[y : y + 20, x : x + 20] += 1
        assert seen.max() == 1
    other = frames("train", root=tmp_path, crop=20, seed=1)
    assert not np.array_equal(one.places, other.places) and one.digest() != other.digest()
    assert len(frames("train", root=tmp_path, crop=20, per_frame=30)) == 60
    rows = torch.tensor([5, 0, 5])
    assert torch.equal(one[rows].x, torch.stack([one[rows[i : i + 1]].x[0] for i in range(3)]))


def test_a_value_that_changes_changes_the_digest(tmp_path):
    values = stack(tmp_path / "stack.tif", pages=4)
    before = frames("train", root=tmp_path, crop=16).digest()
    values[0, 0, 0] ^= 1
    tifffile.imwrite(tmp_path / "stack.tif", values, photometric="minisblack")
    assert frames("train", root=tmp_path, crop=16).digest() != before


def test_pictures_in_colour_and_files_held_out_by_name(tmp_path):
    photo = photographs.astronaut()
    for i in range(12):
        Image.fromarray(photo[8 * i : 8 * i + 32, :48]).save(tmp_path / f"{i}.png")
    train, test = (frames(split, root=tmp_path, crop=16, test=0.3) for split in ("train", "test"))
    assert train.shape == (3, 16, 16) and train.units.high == 255
    names = [{page.frame.name for page in data.pages} for data in (train, test)]
    assert names[0] and names[1] and not names[0] & names[1] and len(names[0] | names[1]) == 12
    whole = frames("train", root=tmp_path)
    assert whole.shape == (3, 32, 48) and not whole.windowed
    Image.fromarray(photo[:20, :20]).save(tmp_path / "small.png")
    with pytest.raises(DataError, match="differ in size"):
        frames("train", root=tmp_path)
    small = frames("train", root=tmp_path, crop=24)
    assert any("1 of 13 frames left out" in line for line in small.check(True))
    Image.fromarray(photo[:32, :32, 0]).save(tmp_path / "z.png")
    with pytest.raises(DataError, match=r"z\.png has the shape \(1, 32, 32\)"):
        frames("train", root=tmp_path, crop=16)


def test_floats_have_the_range_of_their_percentiles(tmp_path):
    values = np.random.default_rng(0).normal(1e-4, 1e-5, (10, 32, 32))
    values[3, 3, 3] = 1.0  # a hot pixel
    np.save(tmp_path / "a.npy", values.astype(np.float32))
    data = frames("train", root=tmp_path / "a.npy", crop=16)
    assert "percentiles" in data.units.how and 1e-4 < data.units.high < 2e-4
    given = frames("train", root=tmp_path, crop=16, low=0, high=2e-4)
    assert given.units.how == "given" and given.units.high == 2e-4
    assert every(given).abs().median() < 0.2
    values[2, 5, :3] = np.nan
    np.save(tmp_path / "a.npy", values.astype(np.float32))
    with pytest.raises(DataError, match=r"a\.npy.*not finite.*3 of 1024"):
        frames("train", root=tmp_path, crop=16)
    with pytest.raises(RecipeError, match="low"):
        frames("train", root=tmp_path, low=2.0, high=1.0)


def test_complex_frames_are_refused(tmp_path):
    np.save(tmp_path / "k.npy", np.ones((4, 16, 16), np.complex64))
    with pytest.raises(DataError, match="measurements"):
        frames("train", root=tmp_path, crop=8)


def test_one_frame_is_split_by_space(tmp_path):
    Image.fromarray(photographs.camera()[:128, :96]).save(tmp_path / "one.png")
    train, test = (frames(split, root=tmp_path, crop=16) for split in ("train", "test"))
    assert train.places[:, 1].max() + 16 <= 112 <= test.places[:, 1].min()
    assert len(train) == 7 * 6 and len(test) == 6
    assert any("strip" in line for line in train.check(True))
    with pytest.raises(DataError, match="only frame"):
        frames("train", root=tmp_path)
    with pytest.raises(DataError, match="too few"):
        frames("train", root=tmp_path, crop=96)


def test_noise_of_one_level_by_gain(tmp_path):
    rng = np.random.default_rng(0)
    light = np.linspace(50, 900, 64)[:, None] * np.ones(64)
    values = (rng.poisson(np.broadcast_to(light, (10, 64, 64))) * 3 + 100).astype(np.uint16)
    tifffile.imwrite(tmp_path / "s.tif", values, photometric="minisblack")
    data = frames("train", root=tmp_path, gain=3.0, offset=100.0, test=0)
    std = every(data).std(0).mean(-1)[0]
    assert abs(float(std[:8].mean()) / data.units.sigma - 1) < 0.1
    assert abs(float(std[-8:].mean()) / data.units.sigma - 1) < 0.1


def test_background_is_left_out_and_saturation_is_said(tmp_path):
    values = np.random.default_rng(0).normal(500, 10, (5, 64, 64))
    values[:, 16:48, 16:48] += np.linspace(0, 3000, 32)
    np.save(tmp_path / "a.npy", values.clip(0, 4095).astype(np.uint16))
    whole = frames("train", root=tmp_path, crop=16)
    part = frames("train", root=tmp_path, crop=16, background=1.5)
    assert 0 < len(part) < len(whole)
    assert any("left out as background" in line for line in part.check(True))
    assert len(frames("train", root=tmp_path, crop=16, background=1e9)) >= len(whole) / 10
    np.save(tmp_path / "a.npy", (values * 2).clip(0, 4095).astype(np.uint16))
    assert any("saturated" in t for t in frames("train", root=tmp_path, crop=16).check(True))


def test_memory_does_not_grow_with_the_files(tmp_path):
    made = np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.uint16, (40, 1024, 1024))
    made[:, ::64] = 4095
    del made
    tracemalloc.start()
    data = frames("train", root=tmp_path, crop=64, per_frame=4)
    data[torch.arange(64)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**25 < 40 * 2**21


def test_a_recipe_learns_from_windows(tmp_path):
    (tmp_path / "in").mkdir()
    stack(tmp_path / "in" / "stack.tif")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(root=tmp_path / "in", operator="identity"))
    plan = invem.plan(path)
    assert plan.facts.units["how"] == "12 bits" and plan.facts.shape == (1, 16, 16)
    assert not any("fill" in line for line in plan.warnings)
    path.write_text(RECIPE.format(root=tmp_path / "in", operator="{name: gaussian-blur, std: 1}"))
    with pytest.raises(RecipeError, match="sees beyond a pixel"):
        invem.plan(path)
    path.write_text(path.read_text().replace("observations:", "data:"))
    invem.plan(path)
