"""The data sets: what they hold, and every way in which their files can be broken."""

import gzip
import hashlib
import io
import os
import struct
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from invem_plugins.datasets.cifar10 import cifar10
from invem_plugins.datasets.digits import digits
from invem_plugins.datasets.fashion_mnist import fashion_mnist
from invem_plugins.datasets.folder import folder
from invem_plugins.datasets.synthetic import synthetic
from PIL import Image

from invem import DataError, RecipeError

torch.set_num_threads(1)
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def everything(dataset):
    return dataset[torch.arange(len(dataset))]


def refused(kind, *words):
    """A one-line error that has all of these words."""
    return pytest.raises(
        kind, match=r"(?s)\A(?=[^\n]*\Z)" + "".join(f"(?=.*{word})" for word in words)
    )


# digits


def test_digits():
    train, test = digits("train"), digits("test")
    assert (len(train), len(test), train.shape, train.range) == (1500, 297, (1, 8, 8), (-1.0, 1.0))
    x, measurement, label = everything(train)
    assert x.dtype == torch.float32 and x.min() == -1 and x.max() == 1 and measurement is None
    assert label.dtype == torch.int64 and sorted(set(label.tolist())) == list(range(10))
    assert set(((x + 1) * 8).flatten().tolist()) <= set(map(float, range(17)))
    padded = digits("test", pad=4)
    assert padded.shape == (1, 16, 16)
    assert torch.equal(everything(padded).x[..., 4:-4, 4:-4], everything(test).x)
    assert (everything(padded).x[..., :4] == -1).all()


def test_digits_are_those_of_scikit_learn():
    source = pytest.importorskip(
        "sklearn.datasets", reason="scikit-learn is not installed"
    ).load_digits()
    order = sorted(range(1797), key=lambda i: hashlib.sha256(str(i).encode()).digest())
    x = torch.cat([everything(digits(split)).x for split in ("train", "test")])
    label = torch.cat([everything(digits(split)).label for split in ("train", "test")])
    assert np.array_equal((x[:, 0].numpy() + 1) * 8, source.images[order])
    assert np.array_equal(label.numpy(), source.target[order])


@pytest.mark.parametrize("factory", [digits, fashion_mnist, cifar10, synthetic])
def test_unknown_split(factory):
    with refused(RecipeError, "valid", "train, test"):
        factory("valid")


# Fashion-MNIST


@pytest.mark.skipif(
    not DEBIAN.is_dir(), reason="the Debian package dataset-fashion-mnist is not installed"
)
def test_fashion_mnist():
    test = fashion_mnist("test")
    assert (len(test), test.shape) == (10_000, (1, 28, 28))
    x, _, label = test[torch.tensor([0, 9999])]
    assert x.min() == -1 and x.max() <= 1 and label.tolist() == [9, 5]
    assert len(fashion_mnist("train", size=16)) == 60_000


def idx(magic, *shape, data=None):
    data = bytes(i % 251 for i in range(int(np.prod(shape)))) if data is None else data
    return struct.pack(f">{1 + len(shape)}i", magic, *shape) + data


def mnist(root, images=None, labels=None, suffix=""):
    pack = gzip.compress if suffix else bytes
    (root / f"t10k-images-idx3-ubyte{suffix}").write_bytes(pack(images or idx(0x803, 3, 28, 28)))
    (root / f"t10k-labels-idx1-ubyte{suffix}").write_bytes(pack(labels or idx(0x801, 3)))
    return str(root)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files(tmp_path, suffix):
    root = mnist(tmp_path, suffix=suffix)
    x, _, label = everything(fashion_mnist("test", root=root))
    raw = torch.tensor([i % 251 for i in range(3 * 784)]).reshape(3, 1, 28, 28)
    assert torch.allclose(x, raw / 127.5 - 1) and label.tolist() == [0, 1, 2]
    small = fashion_mnist("test", root=root, size=16)
    y = everything(small).x
    assert small.shape == (1, 16, 16) and (y[..., 0, :] == -1).all()
    assert torch.allclose(y[1, 0, 3, 5], x[1, 0, 4:6, 8:10].mean(), atol=1e-6)


def test_idx_missing(tmp_path):
    with refused(DataError, "apt-get install dataset-fashion-mnist", "t10k-images-idx3-ubyte"):
        fashion_mnist("test", root=str(tmp_path))


@pytest.mark.parametrize(
    ("images", "labels", "word"),
    [
        (idx(0x803, 3, 28, 28)[:-1], None, "fewer than the 2352 bytes"),
        (idx(0x803, 3, 28, 28) + b"x", None, "more than the 2352 bytes"),
        (idx(0x803, 3, 28, 28)[:7], None, "not an idx file"),
        (idx(0x801, 3), None, "not an idx file"),
        (None, idx(0x803, 3, 28, 28), "not an idx file"),
        (idx(0x803, 3, 27, 28), None, "27 x 28, not 28 x 28"),
        (None, idx(0x801, 4), "3 test images but 4 labels"),
        (idx(0x803, 2**31 - 1, 28, 28, data=b""), None, "not plausible"),
        (idx(0x803, -3, 28, 28, data=b""), None, "not plausible"),
    ],
)
def test_idx_damaged(tmp_path, images, labels, word):
    with refused(DataError, word):
        fashion_mnist("test", root=mnist(tmp_path, images, labels))


def test_idx_damaged_gzip(tmp_path):
    root = mnist(tmp_path, suffix=".gz")
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for bad in (whole[: len(whole) // 2], b"not gzip", whole[:30] + bytes(20) + whole[50:]):
        path.write_bytes(bad)
        with refused(DataError, "t10k-images-idx3-ubyte.gz"):
            fashion_mnist("test", root=root)


# CIFAR-10


def test_cifar10(tmp_path):
    path, root = tmp_path / "test_batch.bin", str(tmp_path)
    with refused(DataError, "test_batch.bin", "does not exist", "cifar-10-batches-bin"):
        cifar10("test", root=root)
    record = bytes([7]) + bytes([0] * 1024 + [255] * 1024 + [51] * 1024)
    path.write_bytes(record)
    os.truncate(path, 10_000 * 3073)
    test = cifar10("test", root=root)
    x, _, label = test[torch.tensor([0, 1])]
    assert (len(test), test.shape, label.tolist()) == (10_000, (3, 32, 32), [7, 0])
    assert torch.allclose(x[0, :, 3, 5], torch.tensor([-1.0, 1.0, -0.6]))
    with refused(DataError, "data_batch_1.bin"):
        cifar10("train", root=root)
    path.write_bytes(b"\xff" + record[1:])
    os.truncate(path, 10_000 * 3073)
    with refused(DataError, "labels above 9"):
        cifar10("test", root=root)
    os.truncate(path, 10_000 * 3073 - 1)
    with refused(DataError, "test_batch.bin has 30729999 bytes, not 30730000"):
        cifar10("test", root=root)


# synthetic


def test_phantoms():
    data = synthetic("train", size=32, channels=2)
    x = data[torch.arange(100)].x
    assert (len(data), data.shape) == (4096, (2, 32, 32))
    assert x.min() == -1 and x.max() <= 1 and x.std() > 0.2
    assert not torch.equal(x[0], x[1]) and not torch.equal(x[0, 0], x[0, 1])
    assert len(set(x[0, 0].flatten().tolist())) > 20, "edges are anti-aliased"
    for other in (synthetic("test", channels=2), synthetic("train", channels=2, seed=1)):
        assert not torch.equal(other[torch.tensor([0])].x[0], x[0])


def test_phantoms_do_not_depend_on_the_batch():
    data = synthetic("train", size=17)
    x = data[torch.arange(200)].x
    some = torch.tensor([199, 3, 64, 3, -4096])
    assert torch.equal(data[some].x, x[[199, 3, 64, 3, 0]])
    assert data[torch.arange(0)].x.shape == (0, 1, 17, 17)
    with pytest.raises(IndexError):
        data[torch.tensor([4096])]


def test_a_phantom_has_the_area_of_its_ellipse():
    x = synthetic("train", size=128, ellipses=1)[torch.arange(4)].x.add(1).div(2)
    fine = synthetic("train", size=512, ellipses=1)[torch.arange(4)].x.add(1).div(2)
    assert torch.allclose(x.mean((1, 2, 3)), fine.mean((1, 2, 3)), rtol=2e-3)


def test_phantoms_are_fast():
    data = synthetic("train", size=64)
    data[torch.arange(2)]
    start = time.process_time()
    data[torch.arange(256)]
    assert time.process_time() - start < 2


# folder


def grey(size=(12, 12), low=0):
    w, h = size
    return Image.fromarray((np.add.outer(np.arange(h) * 3, np.arange(w)) + low).astype(np.uint8))


def only(root, **options):
    """The images of a folder, all of them for testing."""
    return everything(folder("test", root=str(root), test=1.0, **options)).x


def test_folder(tmp_path):
    for name in (
        "b/2.png",
        "a/1.jpg",
        "a/0.TIFF",
        "b/3.jpeg",
        "a/ignored.txt",
        "a/.hidden.png",
        ".cache/x.png",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if path.suffix == ".txt" or "hidden" in name or "cache" in name:
            path.write_text("not an image")
        else:
            grey().save(path)
    data = folder("test", root=str(tmp_path), test=1.0, labels=True)
    assert [item.name for item in data.items] == ["a/0.TIFF", "a/1.jpg", "b/2.png", "b/3.jpeg"]
    assert data.shape == (3, 12, 12) and data.classes == ("a", "b") and data.skipped == ()
    x, _, label = data[torch.tensor([0, 2])]
    assert label.tolist() == [0, 1]
    assert torch.allclose(x[1, 2], torch.from_numpy(np.array(grey())) / 127.5 - 1, atol=1e-6)
    assert torch.equal(x[0], x[1])
    with refused(DataError, "none of the 4 images", "train", "test"):
        folder("train", root=str(tmp_path), test=1.0)
    grey().save(tmp_path / "stray.png")
    with refused(DataError, "stray.png has no label"):
        folder("test", root=str(tmp_path), test=1.0, labels=True)


def test_folder_split_is_stable(tmp_path):
    for i in range(60):
        grey(low=i).save(tmp_path / f"{i:03}.png")
    parts = {
        s: {i.name for i in folder(s, root=str(tmp_path), test=0.3).items}
        for s in ("train", "test")
    }
    assert len(parts["train"] | parts["test"]) == 60 and not parts["train"] & parts["test"]
    assert 6 < len(parts["test"]) < 30
    for i in range(60, 90):
        grey(low=i).save(tmp_path / f"{i:03}.png")
    for split, names in parts.items():
        assert names <= {item.name for item in folder(split, root=str(tmp_path), test=0.3).items}


def test_folder_without_images(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    with refused(DataError, str(tmp_path), "no image", ".png"):
        only(tmp_path)
    with refused(DataError, "missing is not a folder"):
        only(tmp_path / "missing")
    with refused(RecipeError, "valid"):
        folder("valid", root=str(tmp_path))


def test_folder_of_two_sizes(tmp_path):
    grey((12, 12)).save(tmp_path / "a.png")
    grey((13, 12)).save(tmp_path / "b.png")
    with refused(DataError, "a.png has 12 x 12", "b.png 13 x 12", "set size"):
        only(tmp_path)
    assert only(tmp_path, size=8).shape == (2, 3, 8, 8)


def test_folder_fit(tmp_path):
    stripes = np.zeros((8, 16), np.uint8)
    stripes[:, 4:12] = 200
    Image.fromarray(stripes).save(tmp_path / "a.png")
    assert torch.allclose(only(tmp_path, size=8, channels=1), torch.tensor(200 / 127.5 - 1))
    whole = only(tmp_path, size=8, channels=1, fit="resize")[0, 0]
    assert whole[4, 0] < -0.9 and whole[4, 4] > 0.5


def test_folder_very_oblong_image_needs_little_memory(tmp_path):
    Image.new("L", (20_000, 1)).save(tmp_path / "a.png")
    assert only(tmp_path, size=64).shape == (1, 3, 64, 64)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, data=b""):
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def encoded(kind, **options):
    buffer = io.BytesIO()
    grey((64, 64)).save(buffer, kind, **options)
    return buffer.getvalue()


BROKEN = {
    "empty.png": b"",
    "text.png": b"this is not an image",
    "gif.png": encoded("GIF"),
    "truncated.png": encoded("PNG")[:-400],
    "truncated.jpg": encoded("JPEG")[:-300],
    "truncated.tif": encoded("TIFF")[:-300],
    "header.tif": b"II*\x00\x08\x00\x00\x00\xff\xff",
    "zero.png": png(0, 0),
    "claims.png": png(8000, 8000, zlib.compress(b"x")),
    "huge.png": png(2**31 - 1, 2**31 - 1, zlib.compress(b"x")),
    "nonsense.npy": b"\x80\x04K\x01.",
}


@pytest.mark.parametrize("name", BROKEN)
def test_folder_broken_file(tmp_path, name):
    (tmp_path / name).write_bytes(BROKEN[name])
    with refused(DataError, name):
        only(tmp_path)
    with refused(DataError, "only broken images, such as " + name):
        only(tmp_path, broken="skip")
    grey((64, 64)).save(tmp_path / "good.png")
    data = folder("test", root=str(tmp_path), test=1.0, broken="skip")
    assert data.skipped == (name,) and [item.name for item in data.items] == ["good.png"]


def test_folder_good_file_with_a_wrong_extension(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded("PNG"))
    assert only(tmp_path).shape == (1, 3, 64, 64)


def test_folder_bomb_is_refused_before_it_is_decoded(tmp_path):
    Image.new("1", (11_000, 11_000)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    start = time.process_time()
    with refused(DataError, "bomb.png", "11000 x 11000", "max_pixels"):
        only(tmp_path, size=8)
    assert time.process_time() - start < 0.5
    (tmp_path / "bomb.png").unlink()
    grey().save(tmp_path / "a.png")
    assert only(tmp_path, max_pixels=144).shape == (1, 3, 12, 12)
    with refused(DataError, "max_pixels allows 1 to 143"):
        only(tmp_path, max_pixels=143)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes on this system")
def test_folder_ignores_what_is_not_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    grey().save(tmp_path / "a.png")
    assert len(only(tmp_path)) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has file names that are any bytes")
def test_folder_odd_names(tmp_path):
    for name in (b"caf\xc3\xa9 1.png", b"\xff.png", b"new\nline.png"):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            grey().save(file, "PNG")
    assert len(only(tmp_path)) == 3
    (tmp_path / "new\nline.png").write_bytes(b"broken")
    with refused(DataError, r"new\\nline.png"):
        only(tmp_path)


def test_folder_16_bits(tmp_path):
    values = np.array([[0, 65535], [1, 32768]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    Image.fromarray(values).save(tmp_path / "b.tif")
    expected = torch.from_numpy(values / 32767.5 - 1).float()
    for x in only(tmp_path, channels=1):
        assert torch.allclose(x[0], expected, atol=1e-7)
    x = only(tmp_path, channels=1, low=0.0, high=2.0)[0, 0]
    assert x.tolist() == [[-1, 1], [0, 1]]


def test_folder_floats(tmp_path):
    values = np.array([[0.0, 5.0], [10.0, 20.0]], np.float32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    with refused(RecipeError, "a.tif", "set low and high"):
        folder("test", root=str(tmp_path), test=1.0)
    with refused(RecipeError, "set low and high"):
        folder("test", root=str(tmp_path), test=1.0, broken="skip")
    assert only(tmp_path, channels=1, low=0.0, high=10.0)[0, 0].tolist() == [[-1, 0], [1, 1]]
    for low, high in ((1.0, None), (1.0, 1.0), (float("nan"), 1.0)):
        with refused(RecipeError, "low", "high"):
            only(tmp_path, low=low, high=high)
    values[0, 0] = np.nan
    Image.fromarray(values).save(tmp_path / "b.tif")
    with refused(DataError, "b.tif", "not finite"):
        only(tmp_path, low=0.0, high=10.0)
    Image.fromarray(np.array([[7, 100_000]], np.int32)).save(tmp_path / "a.tif")
    (tmp_path / "b.tif").unlink()
    with refused(RecipeError, "a.tif", "32-bit"):
        only(tmp_path)


def test_folder_colour_modes(tmp_path):
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    clear = Image.new("RGBA", (4, 4), (255, 255, 255, 0))
    for name, image in {
        "cmyk.jpg": red.convert("CMYK"),
        "cmyk.tif": red.convert("CMYK"),
        "palette.png": red.convert("P", palette=Image.Palette.ADAPTIVE),
        "rgb.png": red,
        "rgba.png": red.convert("RGBA"),
        "ycbcr.tif": red.convert("YCbCr"),
    }.items():
        image.save(tmp_path / name)
    assert torch.allclose(only(tmp_path)[:, :, 1, 1], torch.tensor([1.0, -1.0, -1.0]), atol=0.03)
    assert torch.allclose(only(tmp_path, channels=1), torch.tensor(2 * 0.299 - 1), atol=0.03)
    for path in tmp_path.iterdir():
        path.unlink()
    clear.save(tmp_path / "clear.png")
    clear.convert("LA").save(tmp_path / "clear-grey.png")
    Image.new("P", (4, 4), 3).save(tmp_path / "clear-palette.png", transparency=3)
    Image.new("1", (4, 4), 0).save(tmp_path / "one-bit.png")
    assert (only(tmp_path) == -1).all()


@pytest.mark.parametrize("name", ["a.jpg", "a.tif", "a.png"])
def test_folder_rotation(tmp_path, name):
    image = Image.new("L", (24, 8))
    image.paste(255, (0, 0, 12, 8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / name, exif=exif)
    x = only(tmp_path, channels=1)
    assert x.shape == (1, 1, 24, 8)
    assert (x[0, 0, :10] > 0.9).all() and (x[0, 0, 14:] < -0.9).all()
    assert only(tmp_path, size=8, channels=1, fit="resize").mean().abs() < 0.01


def test_folder_animation(tmp_path):
    frames = [Image.new("L", (4, 4), 255 * i) for i in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with refused(DataError, "no image"):
        only(tmp_path)
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    assert (only(tmp_path, pages="all") == -1).all() and len(only(tmp_path)) == 1


def test_folder_pages(tmp_path):
    pages = [Image.new("L", (4, 4), 100 * i) for i in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    assert len(only(tmp_path)) == 1
    x = only(tmp_path, pages="all", channels=1)
    assert torch.allclose(x[:, 0, 0, 0], torch.tensor([0.0, 100.0, 200.0]) / 127.5 - 1)


def test_folder_npy(tmp_path):
    path = tmp_path / "a.npy"
    values = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    np.save(path, values.astype(np.uint8))
    assert torch.allclose(only(tmp_path), torch.from_numpy(values / 127.5 - 1).float(), atol=1e-6)
    assert only(tmp_path, size=8).shape == (2, 3, 8, 8)
    np.save(path, np.asfortranarray(values[:, 0].astype(">u2") * 256))
    expected = torch.from_numpy(values[:, :1] * 256 / 32767.5 - 1).float()
    assert torch.allclose(only(tmp_path, channels=1), expected, atol=1e-6)
    np.save(path, values[:, :1] / 10.0)
    with refused(RecipeError, "a.npy", "set low and high"):
        only(tmp_path)
    x = only(tmp_path, channels=1, low=0.0, high=2.0)
    assert torch.allclose(
        x, torch.from_numpy(values[:, :1] / 10.0 - 1).float().clamp(-1, 1), atol=1e-6
    )
    with refused(DataError, "max_pixels"):
        only(tmp_path, low=0.0, high=2.0, max_pixels=19)


def lying(shape, tail=b"x" * 100, descr="|u1"):
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue() + tail


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (lying((10**9, 283, 283)), "header claims"),
        (lying((1, 5, 5)), "header claims"),
        (lying((2**70, 5, 5)), "header claims"),
        (lying((4, -5, -5)), "cannot be read"),
        (lying((4, 25)), "allowed are"),
        (lying((2, 5, 5, 2)), "allowed are"),
        (lying((100, 1, 1), descr="|i1"), "holds int8; allowed are uint8"),
        (lying((1, 5, 5), descr="|O"), "holds object; allowed are uint8"),
        (lying((4, 5, 5))[:40], "cannot be read"),
    ],
)
def test_folder_npy_that_lies(tmp_path, data, word):
    (tmp_path / "a.npy").write_bytes(data)
    with refused(DataError, "a.npy", word):
        only(tmp_path)


def test_folder_npy_of_objects_is_not_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    np.save(tmp_path / "a.npy", np.array([[[Bomb()]]], dtype=object), allow_pickle=True)
    with refused(DataError, "a.npy holds object"):
        only(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_folder_file_that_changes_while_in_use(tmp_path):
    grey((12, 12)).save(tmp_path / "a.png")
    data = folder("test", root=str(tmp_path), test=1.0)
    grey((9, 12)).save(tmp_path / "a.png")
    with refused(DataError, "a.png", r"\(3, 12, 9\)"):
        everything(data)
    (tmp_path / "a.png").unlink()
    with refused(DataError, "a.png cannot be read"):
        everything(data)
