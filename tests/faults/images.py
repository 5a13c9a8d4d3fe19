"""Pictures that are broken, huge, odd, or not what their name says."""

import io
import random
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from invem_plugins.datasets.folder import folder as pictures
from PIL import Image

from faults.base import Budget, Tally, case, invem, offsets, recipe, whole_run
from invem import RecipeError
from invem.errors import InvemError

GROUP = "Pictures"
SIZE = 8
GREY = 0.2  # of the odd pictures, in [-1, 1]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def grey() -> Image.Image:
    return Image.new("L", (SIZE, SIZE), 153)


def _png(width: int, height: int, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    packed = zlib.compress(data, 9)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


def broken() -> dict[str, bytes]:
    """Returns pictures that cannot be read."""
    png, jpeg = encoded(grey(), "PNG"), encoded(grey(), "JPEG")
    tiff = encoded(grey(), "TIFF")
    return {
        "empty.png": b"",
        "half.png": png[: len(png) // 2],
        "half.jpg": jpeg[: len(jpeg) // 3],
        "half.tif": tiff[: len(tiff) // 2],
        "head.png": png[:8],
        "text.png": b"this is no picture\n" * 10,
        "html.jpg": b"<html><script>alert(1)</script></html>",
        "0x0.png": _png(0, 0),
        "0x8.png": _png(0, 8),
        "bomb.png": _png(30000, 30000, bytes(10**6)),
        "claims.png": _png(2**31 - 1, 2**31 - 1),
        "lies.png": _png(SIZE, SIZE, bytes(3)),
        "gif.png": encoded(grey(), "GIF"),
        "bmp.jpg": encoded(grey(), "BMP"),
        "eps.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(/etc/passwd) run\n",
        "webp.png": encoded(grey(), "WEBP"),
    }


def odd() -> dict[str, bytes]:
    """Returns pictures of one grey in every mode, with right and wrong extensions."""
    one = grey()
    deep = Image.fromarray(np.full((SIZE, SIZE), 39321, np.uint16))
    array = io.BytesIO()
    np.save(array, np.full((1, SIZE, SIZE), 153, np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    others = [Image.new("L", (SIZE, SIZE), 10 * i) for i in range(3)]
    return {
        "grey.png": encoded(one, "PNG"),
        "grey.jpg": encoded(one, "JPEG", quality=95),
        "grey.tif": encoded(one, "TIFF"),
        "wrong-1.png": encoded(one, "JPEG", quality=95),
        "wrong-2.jpg": encoded(one, "PNG"),
        "wrong-3.tif": encoded(one, "PNG"),
        "CAPITALS.PNG": encoded(one, "PNG"),
        "rgb.png": encoded(one.convert("RGB"), "PNG"),
        "rgba.png": encoded(one.convert("RGBA"), "PNG"),
        "palette.png": encoded(one.convert("P"), "PNG"),
        "cmyk.jpg": encoded(one.convert("RGB").convert("CMYK"), "JPEG", quality=95),
        "cmyk.tif": encoded(one.convert("RGB").convert("CMYK"), "TIFF"),
        "ycbcr.tif": encoded(one.convert("YCbCr"), "TIFF"),
        "16.png": encoded(deep, "PNG"),
        "16.tif": encoded(deep, "TIFF"),
        "rotated.png": encoded(one, "PNG", exif=exif),
        "animated.png": encoded(one, "PNG", save_all=True, append_images=others),
        "pages.tif": encoded(one, "TIFF", save_all=True, append_images=others),
        "array.npy": array.getvalue(),
        "spaces and ümlaut é.png": encoded(one, "PNG"),
        "-dash.png": encoded(one, "PNG"),
        "new\nline.png": encoded(one, "PNG"),
    }


def _pictures(folder: Path) -> torch.Tensor:
    """Returns the pictures of a folder as the data set has them."""
    data = pictures("train", root=str(folder), channels=1, test=0.0)
    x = data[torch.arange(len(data))].x
    assert x is not None
    return x


@case(GROUP, "a picture that is broken, empty, a bomb or no picture, in a recipe and in `restore`")
def broken_pictures(tmp: Path, budget: Budget, tally: Tally) -> None:
    for name, data in broken().items():
        folder = tmp / "pictures"
        folder.mkdir()
        (folder / name).write_bytes(data)
        for i in range(8):  # of which a hash puts some among those for test
            (folder / f"good-{i}.png").write_bytes(encoded(grey().resize((4, 4)), "PNG"))
        change = f"data={{name: folder, root: {folder}, channels: 1, size: 4, test: 0.5}}"
        words = ["run", recipe(tmp), change, "evaluate={metrics: []}", "--out", tmp / "run"]
        for command in (words, ["restore", whole_run().path, folder]):
            done = invem(command, tmp / "said")
            wrong = f"{command[0]} {name}: {done.code} {done.err[-300:]}"
            tally.judge(done.is_refusal(2, 4, naming=name), wrong, refused=True)
        shutil.rmtree(folder)
        shutil.rmtree(tmp / "run", ignore_errors=True)


@case(
    GROUP,
    "a picture in any mode, depth or orientation, with right and wrong extensions and odd "
    "names: right grey values",
)
def odd_pictures(tmp: Path, budget: Budget, tally: Tally) -> None:
    for name, data in odd().items():
        folder = tmp / "pictures"
        folder.mkdir()
        (folder / name).write_bytes(data)
        (folder / "~second.png").write_bytes(encoded(grey(), "PNG"))
        try:
            x = _pictures(folder)
        except InvemError as error:
            fine = isinstance(error, RecipeError) or error.exit_code == 4
            tally.judge(fine and "\n" not in str(error), f"{name}: {error}", refused=True)
        except BaseException as error:
            tally.lose(f"{name}: {type(error).__name__}: {error}")
        else:
            right = x.shape[1:] == (1, SIZE, SIZE) and bool(((x - GREY).abs() < 0.03).all())
            tally.judge(right, f"{name}: shape {tuple(x.shape)}, mean {float(x.mean()):.3f}")
        shutil.rmtree(folder)


@case(GROUP, "a PNG, JPEG or TIFF file cut at a random place")
def cut_pictures(tmp: Path, budget: Budget, tally: Tally) -> None:
    rng = random.Random(8)
    noise = torch.randint(0, 255, (SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    image = Image.fromarray(noise.numpy().astype(np.uint8))
    for suffix, kind in ((".png", "PNG"), (".jpg", "JPEG"), (".tif", "TIFF")):
        data = encoded(image, kind)
        folder = tmp / suffix[1:]
        folder.mkdir()
        file = folder / f"a{suffix}"
        file.write_bytes(data)
        (folder / "~second.png").write_bytes(encoded(grey(), "PNG"))
        whole = _pictures(folder)
        for at in offsets(len(data), max(6, budget.flips // 4), rng):
            file.write_bytes(data[:at])
            try:
                x = _pictures(folder)
            except InvemError as error:
                tally.judge(file.name in str(error), f"{suffix} at {at}: {error}", refused=True)
            except BaseException as error:
                tally.lose(f"{suffix} at {at}: {type(error).__name__}: {error}")
            else:  # what was cut off was no part of the picture
                tally.judge(torch.equal(x, whole), f"{suffix} at {at} of {len(data)}: read")
