"""Files of frames: each format opened from a file that its own library wrote, and written back."""

import gzip
import tracemalloc

import astropy.io.fits
import h5py
import nibabel
import numpy as np
import pytest
import tifffile
import zarr
from invem_plugins.frames.fits import Fits
from invem_plugins.frames.frames import FORMATS, Frames
from invem_plugins.frames.hdf5 import Hdf5
from invem_plugins.frames.nifti import Nifti
from invem_plugins.frames.npy import Npy
from invem_plugins.frames.npz import Npz
from invem_plugins.frames.pictures import Jpeg, Png
from invem_plugins.frames.tiff import Tiff
from invem_plugins.frames.zarr import Zarr
from PIL import Image

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
        fresh = not name.exists()
        with fmt.create(name, file, dtype=dtype) as writer:
            for i in reversed(range(len(file.frames))):
                rows = file.frames[i].shape[1]
                for part in (slice(0, rows // 2), slice(rows // 2, rows)):
                    window = (part, *(slice(0, n) for n in file.frames[i].shape[2:]))
                    writer.write(i, change(file.read(i, window)), window)
            assert fresh is not name.exists()
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


def test_the_axes_of_npy_are_usual_or_given(tmp_path):
    x = numbers((5, 12, 10, 3))
    np.save(tmp_path / "a.npy", x)
    check_read(Npy(), tmp_path / "a.npy", list(np.moveaxis(x, -1, 1)))
    check_read(Npy(), tmp_path / "a.npy", [np.moveaxis(x, -1, 0)], axes="DYXC")
    check_read(Npy(), tmp_path / "a.npy", list(x), axes="TCYX")
    with pytest.raises(DataError, match="axes"):
        Npy().open(tmp_path / "a.npy", axes="YX")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    x = numbers((5, 12, 10), "complex64")
    save(tmp_path / "a.npz", x=x, other=numbers((4, 4)))
    check_read(Npz(), tmp_path / "a.npz", list(x[:, None]))
    check_read(Npz(), tmp_path / "a.npz", [numbers((4, 4))[None]], inside="other")
    out = copy(Npz(), tmp_path / "a.npz", tmp_path / "b.npz")
    with np.load(out) as new:
        assert new["x"].dtype == x.dtype and np.array_equal(new["x"], x)
    assert [p.name for p in tmp_path.iterdir() if p.name not in ("a.npz", "b.npz")] == []


@pytest.mark.parametrize(("shape", "dtype"), [((12, 10), "uint8"), ((12, 10), "uint16"),
                                              ((12, 10, 3), "uint8")])  # fmt: skip
def test_png(tmp_path, shape, dtype):
    x = numbers(shape, dtype) * (257 if dtype == "uint16" else 1)
    Image.fromarray(x).save(tmp_path / "a.png", dpi=(300, 300))
    frame = x[None] if x.ndim == 2 else np.moveaxis(x, -1, 0)
    check_read(Png(), tmp_path / "a.png", [frame])
    out = copy(Png(), tmp_path / "a.png", tmp_path / "b.png")
    with Image.open(out) as new:
        assert np.array_equal(np.asarray(new), x) and round(new.info["dpi"][0]) == 300
    out = copy(Png(), tmp_path / "a.png", tmp_path / "c.png", "float32", lambda v: v / 2)
    assert out == tmp_path / "c.tif" and np.array_equal(tifffile.imread(out), x / np.float32(2))
    with Png().open(tmp_path / "a.png") as file, pytest.raises(DataError, match=r"write b.tif"):
        Png().create(tmp_path / "b.png", file, dtype="float32")


def test_jpeg_is_read_upright_and_written_as_png(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x0110] = 6, "Camera"
    picture = Image.fromarray(numbers((16, 24, 3), "uint8"))
    picture.save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as image:
        x = np.rot90(np.asarray(image), -1)
    about = check_read(Jpeg(), tmp_path / "a.jpg", [np.moveaxis(x, -1, 0)])
    assert about["model"] == "Camera"
    out = copy(Jpeg(), tmp_path / "a.jpg", tmp_path / "b.jpg")
    assert out == tmp_path / "b.png"
    with Image.open(out) as new:
        assert np.array_equal(np.asarray(new), x)
        assert new.getexif().get(0x0110) == "Camera" and 0x0112 not in new.getexif()
    with Jpeg().open(tmp_path / "a.jpg") as file, pytest.raises(DataError, match=r"write b.png"):
        Jpeg().create(tmp_path / "b.jpg", file)


def test_hdf5_of_fastmri(tmp_path):
    k = numbers((3, 4, 12, 10), "complex64")
    with h5py.File(tmp_path / "a.h5", "w") as f:
        f.create_dataset("kspace", data=k, chunks=(1, 4, 12, 10), compression="gzip")
        f["reconstruction_rss"] = numbers((3, 12, 10), "float32")
        f["ismrmrd_header"] = "<xml/>"
        f.attrs["acquisition"], f["kspace"].attrs["b0"] = "AXT2", 1.5
    about = check_read(Hdf5(), tmp_path / "a.h5", list(k))
    assert about["inside"] == "kspace" and about["acquisition"] == "AXT2"
    out = copy(Hdf5(), tmp_path / "a.h5", tmp_path / "b.h5")
    with h5py.File(out) as f:
        assert np.array_equal(f["kspace"], k) and f["kspace"].dtype == k.dtype
        assert (f["kspace"].compression, f["kspace"].chunks) == ("gzip", (1, 4, 12, 10))
        assert f.attrs["acquisition"] == "AXT2" and f["kspace"].attrs["b0"] == 1.5
        assert f["ismrmrd_header"][()] == b"<xml/>"


def test_hdf5_of_several_arrays_needs_inside(tmp_path):
    x = numbers((3, 12, 10))
    with h5py.File(tmp_path / "a.h5", "w") as f:
        f["g/x"], f["g/y"] = x, x
        f["g"].attrs["k"] = 3
        f["g/x"].dims[0].label, f["g/x"].dims[1].label, f["g/x"].dims[2].label = "C", "Y", "X"
    with pytest.raises(DataError, match=r"set inside to one of g/x \(3, 12, 10\), g/y"):
        Hdf5().open(tmp_path / "a.h5")
    with pytest.raises(DataError, match="no array 'z'"):
        Hdf5().open(tmp_path / "a.h5", inside="z")
    check_read(Hdf5(), tmp_path / "a.h5", [x], inside="/g/x")
    out = copy(Hdf5(), tmp_path / "a.h5", tmp_path / "b.h5", "float32", inside="g/x")
    with h5py.File(out) as f:
        assert f["g/x"].dtype == np.float32 and f["g"].attrs["k"] == 3
        assert [d.label for d in f["g/x"].dims] == ["C", "Y", "X"]


@pytest.mark.parametrize("version", [2, 3])
def test_zarr(tmp_path, version):
    x = numbers((4, 12, 10))
    zarr.create_array(tmp_path / "a.zarr", data=x, chunks=(1, 5, 10), zarr_format=version,
                      attributes={"k": 1})  # fmt: skip
    check_read(Zarr(), tmp_path / "a.zarr", list(x[:, None]))
    for _ in range(2):  # the second time over the first
        out = copy(Zarr(), tmp_path / "a.zarr", tmp_path / "b.zarr")
    new = zarr.open(out, mode="r")
    assert np.array_equal(new[:], x) and new.chunks == (1, 5, 10) and new.attrs["k"] == 1
    assert new.dtype == x.dtype and new.metadata.zarr_format == version
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr", "b.zarr"]
    found = frame_files(tmp_path)
    assert [p.name for p, _ in found] == ["a.zarr", "b.zarr"]


@pytest.mark.parametrize("version", [2, 3])
def test_ome_zarr(tmp_path, version):
    x = numbers((2, 3, 12, 10))
    scales = [{
        "axes": [{"name": n, "type": "space", "unit": "micrometer"} for n in "tcyx"],
        "datasets": [{"path": p, "coordinateTransformations": [
            {"type": "scale", "scale": [1, 1, s, 2 * s]}]} for p, s in (("0", 0.5), ("1", 1))],
    }]  # fmt: skip
    attributes = {"multiscales": scales} if version == 2 else {"ome": {"multiscales": scales}}
    root = zarr.create_group(tmp_path / "a.zarr", zarr_format=version, attributes=attributes)
    root.create_array("0", data=x, chunks=(1, 1, 6, 10))
    root.create_array("1", data=x[..., ::2, ::2])
    about = check_read(Zarr(), tmp_path / "a.zarr", list(x))
    assert about["pixel size"] == [0.5, 1.0] and about["unit"] == "micrometer"
    check_read(Zarr(), tmp_path / "a.zarr", list(x[..., ::2, ::2]), inside="1", axes="TCYX")
    new = zarr.open(copy(Zarr(), tmp_path / "a.zarr", tmp_path / "b.zarr", "float32"), mode="r")
    kept = dict(new.attrs) if version == 2 else new.attrs["ome"]
    assert kept["multiscales"][0]["axes"] == scales[0]["axes"]
    assert kept["multiscales"][0]["datasets"] == scales[0]["datasets"][:1]
    assert new["0"].dtype == np.float32 and np.array_equal(new["0"][:], x)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [None, "float32"])
def test_nifti(tmp_path, ending, dtype):
    x = numbers((10, 12, 3, 2), "int16")
    affine = np.diag([2.0, 3, 4, 1]) + np.eye(4, k=3) * 7
    image = nibabel.Nifti1Image(x, affine)
    image.header.set_slope_inter(0.5, 1)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"] = b"scanner"
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"hello"))
    old = tmp_path / f"a{ending}"
    nibabel.save(image, old)
    stored = np.asarray(nibabel.load(old).dataobj.get_unscaled())
    about = check_read(Nifti(), old, list(stored.T.reshape(6, 1, 12, 10)))
    assert about["pixel size"] == [3, 2] and about["unit"] == "mm"
    assert about["description"] == "scanner"
    new = nibabel.load(copy(Nifti(), old, tmp_path / f"b{ending}", dtype))
    assert np.array_equal(new.dataobj.get_unscaled(), stored)
    assert np.array_equal(new.get_fdata(), nibabel.load(old).get_fdata())
    assert np.array_equal(new.affine, affine) and new.get_data_dtype() == (dtype or "int16")
    assert new.header.get_xyzt_units() == ("mm", "sec")
    assert new.header.extensions[0].get_content() in (b"hello", "hello")
    assert new.header.get_zooms() == nibabel.load(old).header.get_zooms()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "uint32", "float32", "float64"])
def test_fits(tmp_path, dtype):
    x = numbers((3, 12, 10), dtype)
    unit = astropy.io.fits.PrimaryHDU(x)
    unit.header["CRVAL1"], unit.header["CTYPE1"] = 12.5, "RA---TAN"
    unit.header["INSTRUME"], unit.header["BITDEPTH"] = "camera", 7
    unit.header["COMMENT"] = "kept"
    unit.writeto(tmp_path / "a.fits")
    assert check_read(Fits(), tmp_path / "a.fits", list(x[:, None]))["instrument"] == "camera"
    with Fits().open(tmp_path / "a.fits") as file:
        assert file.frames[0].white == (None if x.dtype.kind == "f" else 127)
    with astropy.io.fits.open(copy(Fits(), tmp_path / "a.fits", tmp_path / "b.fits")) as new:
        new.verify("exception")
        assert np.array_equal(new[0].data, x) and new[0].data.dtype.newbyteorder("=") == dtype
        assert new[0].header["CRVAL1"] == 12.5 and new[0].header["CTYPE1"] == "RA---TAN"
        assert str(new[0].header["COMMENT"]) == "kept"
    name = copy(Fits(), tmp_path / "a.fits", tmp_path / "c.fits", "float32", lambda v: v / 2)
    assert np.array_equal(astropy.io.fits.getdata(name), x / 2)


def test_fits_of_several_parts(tmp_path):
    x = numbers((12, 10), "float32")
    parts = [astropy.io.fits.PrimaryHDU(), astropy.io.fits.ImageHDU(x, name="SCI"),
             astropy.io.fits.CompImageHDU(x.astype("int16"), name="DQ")]  # fmt: skip
    parts[0].header["TELESCOP"], parts[1].header["BUNIT"] = "T", "ADU"
    astropy.io.fits.HDUList(parts).writeto(tmp_path / "a.fits")
    about = check_read(Fits(), tmp_path / "a.fits", [x[None]])
    assert about["telescope"] == "T" and about["values in"] == "ADU"
    check_read(Fits(), tmp_path / "a.fits", [x[None].astype("int16")], inside="dq")
    with astropy.io.fits.open(copy(Fits(), tmp_path / "a.fits", tmp_path / "b.fits")) as new:
        assert np.array_equal(new[0].data, x) and len(new) == 1
        assert new[0].header["TELESCOP"] == "T" and new[0].header["BUNIT"] == "ADU"
    copy(Fits(), tmp_path / "a.fits", tmp_path / "c.fits", inside="DQ")


def test_tiff_of_twelve_bits_and_thumbnails(tmp_path):
    x = numbers((12, 10))
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        tag = [(281, "H", 1, 4095, False), (271, "s", 0, "Maker", True)]
        writer.write(x, extratags=tag, metadata=None, description="text", subifds=1)
        writer.write(x[::2, ::2], subfiletype=1, metadata=None)
        writer.write(x[:6], metadata=None, extratags=tag)
        writer.write(x[::3, ::3], subfiletype=1, metadata=None)
    about = check_read(Tiff(), tmp_path / "a.tif", [x[None], x[None, :6]])
    assert about["make"] == "Maker"
    with Tiff().open(tmp_path / "a.tif") as file:
        assert [f.white for f in file.frames] == [4095, 4095]
        assert [f.name for f in file.frames] == ["a.tif#0", "a.tif#1"]
    out = copy(Tiff(), tmp_path / "a.tif", tmp_path / "b.tif")
    with tifffile.TiffFile(out) as new:
        assert [page.shape for page in new.pages] == [(12, 10), (6, 10)]
        assert new.pages[0].tags[281].value == 4095 and new.pages[0].description == "text"


def test_a_tile_of_a_large_file_is_read_alone(tmp_path, monkeypatch):
    x = numbers((512, 512), "uint8")
    tifffile.imwrite(tmp_path / "a.tif", x, tile=(64, 64), compression="zlib")
    count = 0
    with Tiff().open(tmp_path / "a.tif") as file:
        page = file.tif.pages[0]
        decode = page.decode

        def spy(data, *rest, **how):
            nonlocal count
            count += data is not None
            return decode(data, *rest, **how)

        monkeypatch.setattr(page, "decode", spy)
        got = file.read(0, (slice(60, 70), slice(64, 128)))
    assert count == 2 and np.array_equal(got[0], x[60:70, 64:128])


@pytest.mark.parametrize("name", ["npy", "tif", "nii", "fits", "h5"])
def test_files_larger_than_memory_are_opened_and_written(tmp_path, name, monkeypatch):
    """8 GiB that are holes on disk."""
    monkeypatch.setattr("os.posix_fallocate", lambda number, start, size: None, raising=False)
    monkeypatch.setattr("invem_plugins.frames._reading.reserve", lambda path, size: None)
    shape, path = (2**13, 1024, 1024), tmp_path / f"a.{name}"
    if name == "npy":
        np.lib.format.open_memmap(path, "w+", np.uint8, shape).flush()
    elif name == "tif":
        tifffile.memmap(path, shape=shape, dtype="uint8", bigtiff=True, metadata=None)
    elif name == "h5":
        with h5py.File(path, "w") as f:
            f.create_dataset("x", shape, "uint8", chunks=(1, 1024, 1024))
    else:
        sparse_header(path, shape)
    fmt = next(f for f in FORMATS if f.accepts(path))
    tracemalloc.start()
    with fmt.open(path) as file:
        assert len(file.frames) == 2**13
        assert file.read(5000, (slice(0, 8), slice(0, 8))).shape == (1, 8, 8)
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


def sparse_header(path, shape):
    if path.suffix == ".fits":
        header = astropy.io.fits.PrimaryHDU(np.zeros((1, 1, 1), "uint8")).header
        for axis, size in enumerate(reversed(shape)):
            header[f"NAXIS{axis + 1}"] = size
        header.tofile(path)
    else:
        header = nibabel.Nifti1Header()
        header.set_data_shape(shape[::-1])
        header.set_data_dtype("uint8")
        header["magic"], header["vox_offset"] = b"n+1", 352
        with path.open("wb") as file:
            header.write_to(file)
    with path.open("r+b") as file:
        size = int(np.prod(shape))
        file.truncate(path.stat().st_size + -(-size // 2880) * 2880)


def examples(folder):
    x = numbers((4, 40, 50), "uint16")
    np.save(folder / "a.npy", x)
    np.savez_compressed(folder / "a.npz", x=x)
    tifffile.imwrite(folder / "a.tif", x, photometric="minisblack")
    tifffile.imwrite(folder / "z.tif", x, photometric="minisblack", compression="zlib")
    tifffile.imwrite(folder / "o.tif", x, ome=True, metadata={"axes": "TYX"})
    Image.fromarray(x[0]).save(folder / "a.png")
    Image.fromarray(x[0].astype("uint8")).save(folder / "a.jpg")
    with h5py.File(folder / "a.h5", "w") as f:
        f["x"] = x
    nibabel.save(nibabel.Nifti1Image(x.astype("int16"), np.eye(4)), folder / "a.nii")
    nibabel.save(nibabel.Nifti1Image(x.astype("int16"), np.eye(4)), folder / "a.nii.gz")
    astropy.io.fits.PrimaryHDU(x).writeto(folder / "a.fits")
    zarr.create_array(folder / "a.zarr", data=x)


def read_all(path):
    fmt = next(f for f in FORMATS if f.accepts(path))
    with fmt.open(path) as file:
        for i in range(len(file.frames)):
            file.read(i)


def test_damaged_files_are_refused_in_one_line(tmp_path):
    examples(tmp_path)
    noise = np.random.default_rng(1).bytes(3000)
    for path in sorted(tmp_path.iterdir()):
        read_all(path)
        if path.is_dir():
            (path / "zarr.json").write_text("{")
            with pytest.raises(DataError, match=r"a.zarr"):
                read_all(path)
            continue
        whole = path.read_bytes()
        for content in (b"", noise, whole[:200], whole[: len(whole) // 2]):
            path.write_bytes(content)
            with pytest.raises(DataError) as caught:
                read_all(path)
            assert "\n" not in str(caught.value) and str(path) in str(caught.value)
        rng = np.random.default_rng(2)
        for _ in range(10):  # any bytes changed: read or refused, and never anything else
            spoiled = bytearray(whole)
            for at in rng.integers(0, min(len(whole), 600), 5):
                spoiled[at] = rng.integers(256)
            path.write_bytes(spoiled)
            try:
                read_all(path)
            except DataError as error:
                assert "\n" not in str(error)


def test_nothing_is_left_of_a_file_that_is_not_finished(tmp_path):
    examples(tmp_path)
    there = sorted(tmp_path.iterdir())
    for path in there:
        fmt = next(f for f in FORMATS if f.accepts(path))
        with fmt.open(path) as file:
            new = fmt.name_for(path.with_name("new" + path.name[1:]))
            with pytest.raises(ZeroDivisionError), fmt.create(new, file):
                1 / 0  # noqa: B018
        assert sorted(tmp_path.iterdir()) == there


def test_a_missing_library_is_named_with_its_command(tmp_path, monkeypatch):
    examples(tmp_path)
    for module, name in (("h5py", "a.h5"), ("zarr", "a.zarr"), ("nibabel", "a.nii"),
                         ("astropy.io.fits", "a.fits")):  # fmt: skip
        monkeypatch.setitem(__import__("sys").modules, module, None)
        with pytest.raises(DataError, match=r"pip install 'invem\[\w+\]'"):
            read_all(tmp_path / name)


def test_integers_are_rounded_and_held_within_their_type(tmp_path):
    np.save(tmp_path / "a.npy", numbers((4, 4), "uint8"))
    with Npy().open(tmp_path / "a.npy") as file, Npy().create(tmp_path / "b.npy", file) as writer:
        writer.write(0, np.full((1, 4, 4), 299.6) * np.array([-1, 0, 0.5, 1]))
    assert np.load(tmp_path / "b.npy")[0].tolist() == [0, 0, 150, 255]


def test_a_gz_that_unpacks_to_more_than_its_header_says_is_read_as_far_as_that(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 2), "int16"), np.eye(4)), tmp_path / "a.nii")
    with gzip.open(tmp_path / "a.nii.gz", "wb") as file:
        file.write((tmp_path / "a.nii").read_bytes() + bytes(10**7))
    read_all(tmp_path / "a.nii.gz")
