"""From files to restored files in the four commands, on files that no part of invem made.

Photographs with the noise of a camera, written by the library of each format.
"""

import numpy as np
import pytest
import torch
from command import invem

from invem.files import frame_files

data = pytest.importorskip("skimage.data")


def photographs(n, side, bits=12):
    """Windows of photographs with photon noise and read-out noise, (n, side, side)."""
    rng, image = np.random.default_rng(0), data.camera().astype(float) / 255
    found = []
    for _ in range(n):
        top, left = rng.integers(0, 512 - side, 2)
        light = 20 + 200 * image[top : top + side, left : left + side]
        found.append(3 * rng.poisson(light) + 100 + 6 * rng.normal(size=light.shape))
    return np.clip(np.round(found), 0, 2**bits - 1).astype(np.uint16)


def stack(folder):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(folder / "movie.tif", photographs(12, 96), metadata={"axes": "TYX"})


def ome(folder):
    tifffile = pytest.importorskip("tifffile")
    metadata = {"axes": "TYX", "PhysicalSizeX": 0.2, "PhysicalSizeXUnit": "µm"}
    tifffile.imwrite(folder / "movie.ome.tif", photographs(12, 96), metadata=metadata)


def pictures(folder):
    from PIL import Image

    for i, frame in enumerate(photographs(12, 96)):
        frame = (frame >> 3).clip(0, 255).astype(np.uint8)
        frame[40, 50] = 0  # a dead pixel
        Image.fromarray(frame).save(folder / f"{i}.png")


def zarr(folder):
    library = pytest.importorskip("zarr")
    array = library.create_array(str(folder / "movie.zarr"), shape=(12, 96, 96), dtype="uint16")
    array[:] = photographs(12, 96)


def fits(folder):
    library = pytest.importorskip("astropy.io.fits")
    for i, frame in enumerate(photographs(12, 96)):
        library.PrimaryHDU(frame).writeto(folder / f"night-{i}.fits")


def hdf5(folder):
    library = pytest.importorskip("h5py")
    with library.File(folder / "movie.h5", "w") as file:
        file["frames"] = photographs(12, 96)


@pytest.mark.parametrize(
    "make", [stack, *(pytest.param(f, marks=pytest.mark.slow) for f in (ome, zarr, fits, hdf5))]
)
def test_the_four_commands_restore_files(make, tmp_path, monkeypatch, capsys):
    check_journey(make, tmp_path, monkeypatch, capsys)


@pytest.mark.slow
def test_pictures_with_a_dead_pixel_are_restored_and_the_pixel_is_named(
    tmp_path, monkeypatch, capsys
):
    said = check_journey(pictures, tmp_path, monkeypatch, capsys)
    assert "1 dead pixel" in said


def check_journey(make, tmp_path, monkeypatch, capsys):
    """Goes from files to restored files; returns what `inspect` said."""
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    files = tmp_path / "frames"
    files.mkdir()
    make(files)
    said = {}
    for words in (
        ("inspect", "frames"),
        ("init", "frames"),
        ("run", "frames.yaml", "--smoke"),
        ("restore", "runs/frames", "frames", "--out", "restored"),
    ):
        code, out, err = invem(monkeypatch, capsys, *words)
        assert code == 0, (words, out, err)
        said[words[0]] = out
    before, after = (frame_files(tmp_path / name) for name in ("frames", "restored"))
    names = [[path.name for path, _ in found] for found in (before, after)]
    assert names[0] == names[1]
    for (path, fmt), (other, _) in zip(before, after, strict=True):
        with fmt.open(path) as one, fmt.open(other) as two:
            assert [f.shape for f in one.frames] == [f.shape for f in two.frames]
            assert [f.dtype for f in one.frames] == [f.dtype for f in two.frames]
            for key in ("axes", "pixel size", "unit"):
                assert one.about.get(key) == two.about.get(key), key
            noisy, restored = one.read(0).astype(float), two.read(0).astype(float)
            assert abs(restored.mean() - noisy.mean()) < 0.25 * noisy.std()
            assert not np.array_equal(noisy, restored)
    return said["inspect"]
