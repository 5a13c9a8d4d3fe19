"""Faults of data: files, folders, pages and observations, each test named after its kind."""

import io
import struct
import subprocess
import sys
import time
import warnings
import zlib

import numpy as np
import pytest
import torch
from invem_plugins.datasets.folder import folder
from invem_plugins.noises.correlated_gaussian import correlated_gaussian
from invem_plugins.operators.kernel_blur import kernel_blur
from invem_plugins.operators.mask_file import mask_file
from PIL import Image, TiffImagePlugin
from safetensors.torch import save_file
from typer.testing import CliRunner

import invem
from invem import DataError, InvemError, RecipeError
from invem.cli.app import app
from invem.store import read_meta

torch.set_num_threads(1)

BASE = {
    "noise": {"name": "gaussian", "sigma": 0.2},
    "network": {"name": "mlp", "width": 8, "depth": 1},
    "phases": [{"name": "warm-start", "rounds": 1, "fit": {"objective": "gaussian-moments"}}],
    "evaluate": {"sampler": "exact", "observations": 0, "samples": 0},
    "compute": {"threads": 1},
}


def recipe(data, operator="identity", where="data", **more):
    return BASE | {where: data, "operator": operator} | more


def grey(values, path, **tags):
    """Writes a picture; `tags` are t270="..." and the like."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        info[int(tag[1:])] = value
    more = {"tiffinfo": info} if tags else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values)).save(path, **more)


def noisy(root, n, size=(8, 8), kind="png", seed=0):
    """Writes n pictures of 8 bits that use the whole range."""
    rng = np.random.default_rng(seed)
    for i in range(n):
        grey(rng.integers(0, 256, size, np.uint8), root / f"{i}.{kind}")


def stack(path, frames):
    pages = [Image.fromarray(frame) for frame in frames]
    path.parent.mkdir(parents=True, exist_ok=True)
    pages[0].save(path, save_all=True, append_images=pages[1:])


def read(root, **options):
    data = folder("train", root=str(root), channels=1, test=0.0, **options)
    return data[torch.arange(len(data))].x


def one_line(error):
    assert "\n" not in str(error.value), error.value
    return str(error.value)


# Restoring images that are not of the signal's shape


@pytest.mark.parametrize(
    ("operator", "channels", "shape"),
    [
        ({"name": "downsample", "factor": 2}, 1, (1, 4, 4)),
        ("grayscale", 3, (1, 8, 8)),
        ({"name": "crop", "size": 4}, 1, (1, 4, 4)),
    ],
)
def test_images_are_restored_in_the_shape_of_the_measurement(operator, channels, shape, tmp_path):
    for label in "ab":
        noisy(tmp_path / "clean" / label, 6, (12, 10), seed=ord(label))
    data = {
        "name": "folder",
        "root": str(tmp_path / "clean"),
        "size": 8,
        "channels": channels,
        "labels": True,
        "test": 0.5,
    }
    run = invem.run(recipe(data, operator), out=tmp_path / "run")
    noisy(tmp_path / "new", 5, shape[1:], seed=7)
    m = run.measurement(tmp_path / "new")
    assert m.y.shape == (5, *shape)
    assert torch.equal(m.y, read(tmp_path / "new"))
    assert run.restore(tmp_path / "new", draws=1).mean.shape == (5, channels, 8, 8)


def test_images_of_another_size_are_refused_and_not_resized(tmp_path):
    noisy(tmp_path / "clean", 6, (12, 12))
    data = {"name": "folder", "root": str(tmp_path / "clean"), "size": 8, "channels": 1, "test": 0}
    run = invem.run(recipe(data), out=tmp_path / "run")
    with pytest.raises(DataError, match=r"0\.png has 12 x 12 pixels, and observations .* 8 x 8"):
        run.restore(tmp_path / "clean", draws=1)


def test_observations_are_resized_like_those_of_the_run(tmp_path):
    noisy(tmp_path / "seen", 6, (12, 12))
    data = {"name": "folder", "root": str(tmp_path / "seen"), "size": 8, "channels": 1, "test": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = invem.run(recipe(data, where="observations"), out=tmp_path / "run")
        m = run.measurement(tmp_path / "seen")
    assert torch.equal(m.y, run.observations().y)


def test_images_for_observations_that_are_none_are_refused_at_once(tmp_path):
    noisy(tmp_path / "clean", 6)
    data = {"name": "folder", "root": str(tmp_path / "clean"), "channels": 1, "test": 0}
    run = invem.run(recipe(data, {"name": "fourier-mask"}), out=tmp_path / "run")
    with pytest.raises(DataError, match=r"shape \(2, 8, 8\), which no image has: give"):
        run.restore(tmp_path / "clean", draws=1)


def test_the_range_of_the_recipe_holds_for_new_images(tmp_path):
    for i in range(4):
        grey(np.full((4, 4), 1000 * i, np.uint16), tmp_path / "seen" / f"{i}.png")
    data = {"name": "folder", "root": str(tmp_path / "seen"), "channels": 1, "test": 0}
    data |= {"low": 0.0, "high": 4095.0}
    run = invem.run(recipe(data), out=tmp_path / "run")
    y = run.measurement(tmp_path / "seen").y
    assert torch.allclose(y[:, 0, 0, 0], torch.arange(4) * 2000 / 4095 - 1)


# Pages


@pytest.mark.parametrize("place", ["folder", "file"])
@pytest.mark.parametrize("pages", [{}, {"pages": "first"}, {"pages": "all"}])
def test_all_pages_are_restored(pages, place, tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (30, 4, 4), np.uint8)
    noisy(tmp_path / "clean", 6, (4, 4))
    data = {"name": "folder", "root": str(tmp_path / "clean"), "channels": 1, "test": 0, **pages}
    run = invem.run(recipe(data), out=tmp_path / "run")
    stack(tmp_path / "new" / "stack.tif", frames)
    given = tmp_path / "new" / ("stack.tif" if place == "file" else "")
    out = tmp_path / "restored.safetensors"
    command = ["restore", str(run.path), str(given), "--out", str(out), "--draws", "1", "--json"]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0, found.output
    assert '"observations": 30' in found.stdout
    tensors, about = read_meta(out)
    assert len(tensors["mean"]) == 30
    assert about["names"] == [f"stack.tif#{i}" for i in range(30)]
    y = run.measurement(given).y
    assert torch.allclose(y[:, 0], torch.from_numpy(frames / 127.5 - 1).float(), atol=1e-6)


def test_a_single_stack_is_split_by_its_pages(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (300, 4, 4), np.uint8)
    stack(tmp_path / "frames" / "stack.tif", frames)
    options = {"root": str(tmp_path / "frames"), "channels": 1, "pages": "all"}
    train, test = (folder(split, **options) for split in ("train", "test"))
    assert len(train) + len(test) == 300 and 15 < len(test) < 50
    assert not set(train.names) & set(test.names)
    found = invem.plan(recipe({"name": "folder", **options}, evaluate={"observations": 8}))
    assert found.train == len(train)


def test_pages_are_read_in_any_order_and_in_time_that_grows_with_their_number(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (1000, 4, 4), np.uint8)
    pages = [Image.fromarray(frame) for frame in frames]
    for packed in (None, "tiff_lzw"):
        pages[0].save(
            tmp_path / "a.tif", save_all=True, append_images=pages[1:], compression=packed
        )
        data = folder("train", root=str(tmp_path), channels=1, test=0.0, pages="all")
        start = time.process_time()
        x = data[torch.arange(1000)].x
        assert time.process_time() - start < 2  # 12 where each page is sought from the first
        assert torch.allclose(x[:, 0], torch.from_numpy(frames / 127.5 - 1).float(), atol=1e-6)
        rows = torch.tensor([5, 5, 0, 7, 0, 0, 999, 998])
        assert torch.equal(data[rows].x, x[rows])


def test_pages_that_are_not_read_are_said(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (300, 4, 4), np.uint8)
    stack(tmp_path / "frames" / "stack.tif", frames)
    data = {"name": "folder", "root": str(tmp_path / "frames"), "channels": 1}
    with pytest.raises(RecipeError, match=r"stack\.tif has 300 pages.*pages: all") as error:
        invem.plan(recipe(data, evaluate={"observations": 8}))
    one_line(error)
    found = invem.plan(recipe(data | {"test": 0}))
    assert found.warnings == ["data: of stack.tif 299 pages are left out: pages: all reads them"]


def test_a_split_without_images_says_which_share_fits(tmp_path):
    noisy(tmp_path, 3)
    with pytest.raises(
        DataError, match=r"none of the 3 images is for test .* test: ([0-9.]+)"
    ) as e:
        folder("test", root=str(tmp_path), test=0.0001)
    fits = float(str(e.value).split("; test: ")[1].split()[0])
    for split in ("train", "test"):
        assert len(folder(split, root=str(tmp_path), test=fits))
    noisy(tmp_path / "alone", 1)
    with pytest.raises(DataError, match="one image is for training or for testing"):
        folder("test", root=str(tmp_path / "alone"))


def test_thumbnails_are_no_pages(tmp_path):
    main, small = Image.new("L", (8, 8), 200), Image.new("L", (2, 2), 9)
    small.encoderinfo = {"tiffinfo": {254: 1}}
    main.save(tmp_path / "a.tif", save_all=True, append_images=[small])
    with Image.open(tmp_path / "a.tif") as image:
        assert image.n_frames == 2
        image.seek(1)
        assert image.tag_v2[254] == 1
    assert read(tmp_path, pages="all").shape == (1, 1, 8, 8)
    assert folder("train", root=str(tmp_path), test=0.0).check(True) == []


# The values of pictures


def tiff(path, data, bits, white=1):
    """Writes a grey TIFF of 2 x 2 unsigned values from its bytes."""
    tags = [(256, 4, 2), (257, 4, 2), (258, 3, bits), (259, 3, 1), (262, 3, white), (273, 4, 8)]
    tags += [(277, 3, 1), (278, 4, 2), (279, 4, len(data))]
    head = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    path.write_bytes(head + data + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0))


def test_twelve_bits_are_not_sixteen(tmp_path):
    tiff(tmp_path / "a.tif", bytes([0x00, 0x00, 0x01, 0x80, 0x0F, 0xFF]), 12)
    wanted = torch.tensor([[0.0, 1.0], [2048.0, 4095.0]]) / 2047.5 - 1
    assert torch.allclose(read(tmp_path)[0, 0], wanted, atol=1e-6)


@pytest.mark.parametrize("tag", [281, 341])
def test_the_largest_value_that_a_file_names_is_white(tag, tmp_path):
    values = np.array([[0, 1], [2048, 4095]], np.uint16)
    grey(values, tmp_path / "a.tif", **{f"t{tag}": 4095})
    assert torch.allclose(
        read(tmp_path)[0, 0], torch.from_numpy(values / 2047.5 - 1).float(), atol=1e-6
    )
    assert read(tmp_path, low=0.0, high=65535.0).max() < -0.8
    grey(values, tmp_path / "b.tif")
    with pytest.raises(RecipeError, match=r"a\.tif says .* 4095, b\.tif 65535: set low") as error:
        read(tmp_path)
    one_line(error)
    (tmp_path / "b.tif").unlink()
    grey(values + 1000, tmp_path / "a.tif", **{f"t{tag}": 4095})
    with pytest.raises(DataError, match=r"a\.tif holds the value 5095.* at most 4095: set low"):
        read(tmp_path)


@pytest.mark.parametrize("kind", ["tif", "png", "npy"])
def test_twelve_bits_stored_in_sixteen_are_a_warning_that_names_the_options(kind, tmp_path):
    rng = np.random.default_rng(0)
    root = tmp_path / "frames"
    root.mkdir()
    for i in range(40):
        values = rng.integers(0, 4096, (8, 8), np.uint16)
        if kind == "npy":
            np.save(root / f"{i}.npy", values[None])
        else:
            grey(values, root / f"{i}.{kind}")
    data = {"name": "folder", "root": str(root), "channels": 1}
    (line,) = (line for line in invem.plan(recipe(data)).warnings if "32 images" in line)
    assert "set low: 0 and high: 4095 (12 bits) or 16383 (14 bits)" in line
    assert "32 images" in line
    assert invem.plan(recipe(data | {"low": 0.0, "high": 4095.0})).warnings == []


def test_white_is_zero_is_inverted_at_any_depth(tmp_path):
    values = np.array([[0, 1000], [40000, 65535]], np.uint16)
    grey(values, tmp_path / "a.tif", t262=0)
    wanted = torch.from_numpy(1 - values / 32767.5).float()
    assert torch.allclose(read(tmp_path)[0, 0], wanted, atol=1e-6)
    tiff(tmp_path / "a.tif", (values // 257).astype(np.uint8).tobytes(), 8, white=0)
    assert torch.allclose(read(tmp_path)[0, 0], wanted, atol=0.01)
    grey((values / 65535).astype(np.float32), tmp_path / "a.tif", t262=0)
    assert torch.allclose(read(tmp_path, low=0.0, high=1.0)[0, 0], wanted, atol=1e-6)


def test_unsigned_values_of_32_bits_do_not_wrap(tmp_path):
    values = np.array([[0, 2**31 - 1], [2**31 + 1, 2**32 - 1]], np.uint32)
    tiff(tmp_path / "a.tif", values.tobytes(), 32)
    x = read(tmp_path, low=0.0, high=float(2**32 - 1))[0, 0]
    assert torch.allclose(x, torch.tensor([[-1.0, 0.0], [0.0, 1.0]]), atol=1e-6)
    x = read(tmp_path, low=2.0**31, high=2.0**31 + 2)[0, 0]
    assert x.tolist() == [[-1, -1], [0, 1]]
    grey(values.view(np.int32), tmp_path / "a.tif")
    assert read(tmp_path, low=-2.0, high=0.0)[0, 0, 1].tolist() == [-1, 0]


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values, *extra, after=(), colour=0):
    """A PNG of uint16 values with more chunks before or after the pixels."""
    height, width = values.shape[:2]
    head = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = [chunk(b"IHDR", head), *extra, chunk(b"IDAT", zlib.compress(rows)), *after]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def test_a_transparent_value_of_16_bits_is_black(tmp_path):
    values = np.array([[0, 500], [40000, 65535]], np.uint16)
    (tmp_path / "a.png").write_bytes(png(values, chunk(b"tRNS", struct.pack(">H", 40000))))
    x = read(tmp_path)[0, 0]
    wanted = torch.from_numpy(np.where(values == 40000, 0, values) / 32767.5 - 1).float()
    assert torch.allclose(x, wanted, atol=1e-6)
    colours = np.full((2, 2, 3), 40000, np.uint16)
    clear = chunk(b"tRNS", struct.pack(">HHH", 40000, 40000, 40000))
    (tmp_path / "a.png").write_bytes(png(colours, clear, colour=2))
    with pytest.raises(DataError, match=r"a\.png has a transparent colour of 16 bits: save it"):
        read(tmp_path)


def turned(kind, where):
    """A picture of 24 x 8 pixels whose left half is white, to be turned by a quarter."""
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("L", (24, 8))
    image.paste(255, (0, 0, 12, 8))
    file = io.BytesIO()
    if kind == "png":
        text = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp.encode()
        extra = chunk(b"iTXt", text) if "xmp" in where else chunk(b"eXIf", exif.tobytes()[6:])
        values = np.asarray(image).astype(np.uint16) * 257
        return png(values, after=[extra]) if "after" in where else png(values, extra)
    if kind == "tif":
        image.save(file, "TIFF", tiffinfo={700: xmp.encode()})
    else:
        image.save(file, "JPEG", xmp=xmp.encode())
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        ("png", "xmp"),
        ("png", "exif"),
        ("png", "xmp after the pixels"),
        ("png", "exif after the pixels"),
        ("jpg", "xmp"),
        ("tif", "xmp"),
    ],
)
def test_rotation_is_applied_wherever_it_stands(kind, where, tmp_path):
    (tmp_path / f"a.{kind}").write_bytes(turned(kind, where))
    x = read(tmp_path)
    assert x.shape == (1, 1, 24, 8)
    assert (x[0, 0, :10] > 0.9).all() and (x[0, 0, 14:] < -0.9).all()


def test_linked_folders_are_read_once(tmp_path):
    noisy(tmp_path / "elsewhere" / "deep", 2)
    noisy(tmp_path / "root" / "own", 3)
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "again").symlink_to(tmp_path / "root" / "own")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "root")
    data = folder("train", root=str(tmp_path / "root"), test=0.0)
    wanted = [f"linked/deep/{i}.png" for i in range(2)] + [f"own/{i}.png" for i in range(3)]
    assert data.names == wanted
    labelled = folder("train", root=str(tmp_path / "root"), test=0.0, labels=True)
    assert labelled.classes == ("linked", "own")


# What the plan finds in data


def damaged(path):
    """Cuts a file to half its length, which leaves its header as it is."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("kind", ["png", "jpg", "tif"])
def test_the_plan_finds_every_truncated_file(kind, tmp_path):
    noisy(tmp_path / "frames", 100, (64, 64), kind)
    data = {"name": "folder", "root": str(tmp_path / "frames"), "channels": 1, "test": 0}
    assert invem.plan(recipe(data)).warnings == []
    kept = (tmp_path / "frames" / f"42.{kind}").read_bytes()
    damaged(tmp_path / "frames" / f"42.{kind}")
    with pytest.raises(RecipeError, match=rf"42\.{kind}.*\(broken: skip") as error:
        invem.plan(recipe(data))
    one_line(error)
    (line,) = invem.plan(recipe(data | {"broken": "skip"})).warnings
    assert f"1 broken file left out: 42.{kind}" in line
    # What is appended after the end, as cameras do, harms nothing.
    (tmp_path / "frames" / f"42.{kind}").write_bytes(kept + b"\0" * 100_000)
    assert invem.plan(recipe(data)).warnings == []


def test_the_run_names_a_damaged_file_before_it_computes(tmp_path):
    noisy(tmp_path / "frames", 100, (16, 16))
    data = {"name": "folder", "root": str(tmp_path / "frames"), "channels": 1, "test": 0}
    path = tmp_path / "frames" / "42.png"
    whole = path.read_bytes()
    place = whole.index(b"IDAT") + 100
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
    (tmp_path / "recipe.yaml").write_text(invem.config.yaml.dump(recipe(data)))
    command = ["invem", "run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]
    found = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    assert found.returncode == 2 and found.stderr.count("42.png") == 1, found.stderr
    assert "Traceback" not in found.stderr
    assert not any((tmp_path / "run").glob("0-*"))
    assert not (tmp_path / "run" / "identifiability.json").exists()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_counted_by_the_plan(bad, tmp_path):
    values = np.random.default_rng(0).random((100, 4, 4)).astype(np.float32)
    values[41, 1, 1:3] = values[77, 0, 0] = bad
    root = tmp_path / "frames"
    root.mkdir()
    data = {"name": "folder", "root": str(root), "channels": 1, "low": 0.0, "high": 1.0, "test": 0}
    np.save(root / "a.npy", values)
    with pytest.raises(
        RecipeError, match=r"a\.npy holds values .* not finite .*: 3 of 1600"
    ) as error:
        invem.plan(recipe(data))
    one_line(error)
    (root / "a.npy").unlink()
    grey(values[41], root / "b.tif")
    with pytest.raises(
        RecipeError, match=r"b\.tif holds values .* not finite .*: 2 of 16"
    ) as error:
        invem.plan(recipe(data))
    one_line(error)
    file = tmp_path / "y.safetensors"
    save_file({"y": torch.from_numpy(values)[:, None]}, file)
    seen = {"name": "measurements", "file": str(file)}
    with pytest.raises(
        RecipeError, match=r"y has values .* not finite .*: 3 of 1600, the first in observation 41"
    ):
        invem.plan(recipe(seen, where="observations"))


def test_new_observations_that_are_not_finite_are_counted(tmp_path):
    noisy(tmp_path / "frames", 6)
    data = {"name": "folder", "root": str(tmp_path / "frames"), "channels": 1, "test": 0}
    run = invem.run(recipe(data), out=tmp_path / "run")
    y = torch.zeros(2, 1, 8, 8)
    y[1, 0, 2, :3] = torch.nan
    with pytest.raises(DataError, match=r"'y' has values that are not finite .*: 3 of 128"):
        run.restore(y)


def test_fewer_data_than_asked_for_are_said(tmp_path):
    noisy(tmp_path / "frames", 20)
    data = {"name": "folder", "root": str(tmp_path / "frames"), "channels": 1, "test": 0}
    found = invem.plan(recipe(data, count=500))
    assert found.warnings == ["count: 500, and there are 20, which are all used"]
    assert invem.plan(recipe(data, count=20)).warnings == []


def test_the_test_split_is_looked_at_too(tmp_path):
    values = np.random.default_rng(0).random((30, 4, 4)).astype(np.float32)
    root = tmp_path / "frames"
    root.mkdir()
    for i, value in enumerate(values):
        grey(value, root / f"{i}.tif")
    options = {"root": str(root), "channels": 1, "low": 0.0, "high": 1.0, "test": 0.3}
    name = folder("test", **options).names[1]
    values[0, 0, 0] = np.nan
    grey(values[0], root / name)
    with pytest.raises(RecipeError, match=f"{name} holds values that are not finite .*: 1 of 16"):
        invem.plan(recipe({"name": "folder", **options}, evaluate={"observations": 4}))


# Frames that are resized


def resized(made):
    return [line for line in invem.plan(made).warnings if "resized" in line]


def test_resized_observations_are_a_warning_that_names_the_options(tmp_path, recwarn):
    noisy(tmp_path / "frames", 30, (20, 24))
    data = {"name": "folder", "root": str(tmp_path / "frames"), "channels": 1, "test": 0, "size": 8}
    (line,) = resized(recipe(data, where="observations"))
    assert line.startswith(
        "observations: 30 images are resized from 24 x 20 pixels to 8 x 8, which changes the noise"
    )
    assert "fit: cut" in line and "without size" in line and "\n" not in line
    invem.run(recipe(data, where="observations"), out=tmp_path / "run")
    assert line in [str(item.message) for item in recwarn]
    assert not resized(recipe(data))  # of clean images nothing is lost
    for more in ({"fit": "cut"}, {"size": 20, "fit": "cut"}):
        assert not resized(recipe(data | more, where="observations"))
    noisy(tmp_path / "frames", 30, (8, 12))
    assert not resized(recipe(data, where="observations"))
    assert torch.equal(
        read(tmp_path / "frames", size=8), read(tmp_path / "frames", size=8, fit="cut")
    )
    noisy(tmp_path / "frames", 30, (8, 11))
    assert len(invem.plan(recipe(data, where="observations")).warnings) == 1


def test_a_cut_image_is_the_centre_as_it_is(tmp_path):
    values = np.arange(7 * 9, dtype=np.uint8).reshape(7, 9) * 4
    grey(values, tmp_path / "a.png")
    x = read(tmp_path, size=3, fit="cut")[0, 0]
    wanted = torch.from_numpy(values[2:5, 3:6] / 127.5 - 1).float()
    assert torch.allclose(x, wanted, atol=1e-6)
    with pytest.raises(DataError, match=r"9 x 7 pixels, too few to cut 8 x 8.*fit: crop"):
        read(tmp_path, size=8, fit="cut")


def test_restoring_says_what_is_odd_about_the_images(tmp_path):
    noisy(tmp_path / "seen", 6, (12, 12))
    data = {"name": "folder", "root": str(tmp_path / "seen"), "size": 8, "channels": 1, "test": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = invem.run(recipe(data, where="observations"), out=tmp_path / "run")
    for i in range(4):
        grey(np.full((12, 12), 1000 * i, np.uint16), tmp_path / "new" / f"{i}.png")
    with pytest.warns(UserWarning) as said:
        run.measurement(tmp_path / "new")
    lines = [str(item.message) for item in said]
    assert len(lines) == 2 and all(line.startswith(str(tmp_path / "new")) for line in lines)
    found = CliRunner().invoke(app, ["restore", str(run.path), str(tmp_path / "new")])
    assert found.exit_code == 0, found.output
    assert [line for line in found.stderr.splitlines() if line.startswith("warning: ")] == [
        f"warning: {line}" for line in lines
    ]


def test_a_share_that_holds_nothing_out_names_one_that_does(tmp_path):
    file = tmp_path / "y.safetensors"
    seen = {"name": "measurements", "file": str(file)}
    more = {"evaluate": {"observations": 4}}
    save_file({"y": torch.zeros(3, 1, 4, 4)}, file)
    with pytest.raises(RecipeError, match=r"none is for test with test: 0\.1; test: 0\.33 holds"):
        invem.plan(recipe(seen, where="observations", **more))
    assert invem.plan(recipe(seen | {"test": 0.33}, where="observations", **more)).test == 1
    save_file({"y": torch.zeros(1, 1, 4, 4)}, file)
    with pytest.raises(RecipeError, match=r"of 1 observations none .* give more, or test: 0"):
        invem.plan(recipe(seen, where="observations", **more))


# Other files that recipes name


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_damaged_file_of_an_operator_or_a_noise_is_refused(tmp_path):
    rng, shape = torch.Generator(), (1, 4, 4)
    kinds = {
        "npz": lambda file: correlated_gaussian(2, shape, rng, file=file),
        "npy": lambda file: kernel_blur(2, shape, rng, file=file, normalise=True),
        "tif": lambda file: mask_file(2, shape, rng, file=file),
        "png": lambda file: mask_file(2, shape, rng, file=file),
    }
    np.savez_compressed(tmp_path / "a.npz", diag=np.ones(16), factor=np.ones((16, 2)))
    np.save(tmp_path / "a.npy", np.full((3, 3), 0.2))
    noisy(tmp_path, 1, (4, 4), "tif")
    noisy(tmp_path, 1, (4, 4), "png")
    for kind, make in kinds.items():
        file = next(tmp_path.glob(f"*.{kind}"))
        wanted = make(str(file)).tensors()
        whole, refused = file.read_bytes(), 0
        for left in range(0, len(whole) - 1, max(len(whole) // 40, 1)):
            file.write_bytes(whole[:left])
            try:
                found = make(str(file)).tensors()  # the end of a TIFF may hold nothing
                assert all(torch.equal(found[name], wanted[name]) for name in wanted)
            except InvemError as error:
                refused += "\n" not in str(error)
        assert refused >= 30
    np.savez(tmp_path / "a.npz", diag=np.ones(16), factor=np.full((16, 2), np.nan))
    with pytest.raises(RecipeError, match=r"a\.npz has values that are not finite"):
        kinds["npz"](str(tmp_path / "a.npz"))


def test_each_page_of_a_mask_file_is_a_mask(tmp_path):
    frames = np.zeros((3, 4, 4), np.uint8)
    for i in range(3):
        frames[i, i] = 255
    stack(tmp_path / "masks.tif", frames)
    rng = torch.Generator().manual_seed(0)
    A = mask_file(200, (1, 4, 4), rng, file=str(tmp_path / "masks.tif"))
    found = {tuple(mask[0].any(1).nonzero().flatten().tolist()) for mask in A.mask}
    assert found == {(0,), (1,), (2,)}
