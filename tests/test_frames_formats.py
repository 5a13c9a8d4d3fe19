"""Files of frames: each format opened from a file that its own library wrote, and written back."""

import numpy as np
import pytest
import tifffile
from invem_plugins.frames.frames import Frames
from invem_plugins.frames.npy import Npy
from invem_plugins.frames.tiff import Tiff

from invem import DataError
from invem.files import frame_files


def numbers(shape, dtype="uint16", seed=0):
    values = np.random.default_rng(seed).integers(0, 250, shape)
    return values.astype(dtype) * (1 + 1j if np.dtype(dtype).kind == "c" else 1)


def check_read(fmt, path, frames, **how):
    """The frames are these arrays, and windows are slices of them."""
    with fmt.open(path, **how) as file:
        assert len(file.frames) == len(frames)
        for i, (frame, true) in enumerate(zip(file.frames, frames, strict=True)):
            assert frame.shape == true.shape and frame.dtype == true.dtype.name
            whole = file.read(i)
            assert whole.dtype == true.dtype and np.array_equal(whole, true)
            window = tuple(slice(s // 4, s // 2 + 1) for s in true.shape[1:])
            assert np.array_equal(file.read(i, window), true[(slice(None), *window)])
        return dict(file.about)


def copy(fmt, path, out, dtype=None, change=lambda values: values, **how):
    """Writes every frame in two windows, the last frame first."""
    with fmt.open(path, **how) as file:
        name = fmt.name_for(out, dtype)
        with fmt.create(name, file, dtype=dtype) as writer:
            for i in reversed(range(len(file.frames))):
                rows = file.frames[i].shape[1]
                for part in (slice(0, rows // 2), slice(rows // 2, rows)):
                    window = (part, *(slice(0, n) for n in file.frames[i].shape[2:]))
                    writer.write(i, change(file.read(i, window)), window)
            assert not name.exists()
    assert [p for p in out.parent.iterdir() if p.name.startswith(".tmp")] == []
    return name


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "complex64"])
def test_npy(tmp_path, dtype):
    x = numbers((5, 12, 10), dtype)
    np.save(tmp_path / "a.npy", x)
    check_read(Npy(), tmp_path / "a.npy", list(x[:, None]))
    out = copy(Npy(), tmp_path / "a.npy", tmp_path / "b.npy")
    assert np.load(out).dtype == x.dtype and np.array_equal(np.load(out), x)


TIFFS = {
    "one": ((12, 10), {}),
    "stack": ((5, 12, 10), {"photometric": "minisblack"}),
    "rgb": ((12, 10, 3), {"photometric": "rgb"}),
    "planar": ((3, 12, 10), {"photometric": "rgb", "planarconfig": "separate"}),
    "zip": ((5, 12, 10), {"photometric": "minisblack", "compression": "zlib", "rowsperstrip": 5}),
    "tiled": ((5, 50, 40), {"photometric": "minisblack", "tile": (16, 32)}),
    "tiled rgb": ((50, 40, 3), {"photometric": "rgb", "tile": (16, 32), "compression": "zlib"}),
    "big": ((5, 12, 10), {"photometric": "minisblack", "bigtiff": True}),
    "end": ((5, 12, 10), {"photometric": "minisblack", "byteorder": ">"}),
    "imagej": ((2, 3, 4, 12, 10), {"imagej": True, "resolution": (2, 2),
               "metadata": {"axes": "TZCYX", "unit": "um", "spacing": 3.0}}),
    "ome": ((2, 3, 4, 12, 10), {"ome": True, "metadata": {"axes": "TCZYX", "PhysicalSizeX": 0.5,
            "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.25, "PhysicalSizeYUnit": "µm"}}),
    "ome zip": ((4, 12, 10), {"ome": True, "compression": "zlib", "metadata": {"axes": "ZYX"}}),
}  # fmt: skip


def frames_of(name, x):
    if "rgb" in name:
        return [np.moveaxis(x, -1, 0)]
    if name == "planar":
        return [x]
    if name == "imagej":
        return list(x.reshape(6, 4, 12, 10))
    if name == "ome":
        return list(x.transpose(0, 2, 1, 3, 4).reshape(8, 3, 12, 10))
    return list(x.reshape(-1, 1, *x.shape[-2:]))


@pytest.mark.parametrize("dtype", [None, "float32"])
@pytest.mark.parametrize("name", TIFFS)
def test_tiff(tmp_path, name, dtype):
    shape, how = TIFFS[name]
    x = numbers(shape)
    tifffile.imwrite(tmp_path / "a.tif", x, **how)
    check_read(Tiff(), tmp_path / "a.tif", frames_of(name, x))
    out = copy(Tiff(), tmp_path / "a.tif", tmp_path / "b.tif", dtype)
    with tifffile.TiffFile(tmp_path / "a.tif") as old, tifffile.TiffFile(out) as new:
        assert np.array_equal(new.asarray(), x) and new.asarray().dtype == (dtype or "uint16")
        assert new.series[0].axes == old.series[0].axes
        assert (new.is_ome, new.is_imagej, new.is_bigtiff) == (
            old.is_ome,
            old.is_imagej,
            old.is_bigtiff,
        )
        for tag in ("XResolution", "YResolution", "ResolutionUnit"):
            assert new.pages[0].tags[tag].value == old.pages[0].tags[tag].value
        if name == "imagej":
            assert new.imagej_metadata["spacing"] == 3 and new.imagej_metadata["unit"] == "um"
        if name == "ome":
            assert 'PhysicalSizeX="0.5"' in new.ome_metadata
            assert 'PhysicalSizeY="0.25"' in new.ome_metadata


def test_a_folder_is_listed_in_natural_order_without_hidden_names(tmp_path):
    for name in ("f10.npy", "f2.npy", ".f1.npy", "sub/f1.tif", ".hide/f.npy", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, np.ones((4, 4))) if "npy" in name else (
            tmp_path / name
        ).write_bytes(b"")
    found = [(p.relative_to(tmp_path).as_posix(), type(f)) for p, f in frame_files(tmp_path)]
    assert found == [("f2.npy", Npy), ("f10.npy", Npy), ("sub/f1.tif", Tiff)]
    assert Frames().provides == {"frames"}
    with pytest.raises(DataError, match="no name of frames"):
        Frames().files(tmp_path / "notes.txt")
