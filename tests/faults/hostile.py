"""Files that were made to harm: lying headers, pickles under other names, bombs."""

import io
import json
import os
import pickle
import resource
import shutil
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from faults import child
from faults.base import Budget, Tally, case, finish, invem, recipe, start, whole_run

GROUP = "Hostile files"
LIMIT = 5.0, 500  # seconds of processor time and MB of memory that a refusal may cost


def headed(header: Any, data: bytes = b"\0" * 64, length: int | None = None) -> bytes:
    """Returns a safetensors file with a header as it is given."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[Any], ends: list[Any], dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": ends}


def headers() -> Iterator[tuple[str, bytes]]:
    """Yields files whose header lies."""
    whole = tensor([16], [0, 64])
    yield "length 2^63", headed(b"{}", length=2**63)
    yield "length 2^64 - 1", headed(b"{}", length=2**64 - 1)
    yield "length 0", headed(b"", length=0)
    yield "length beyond the file", headed({"y": whole}, length=10**6)
    yield "9 MB of header", headed(b'{"y":' + b" " * 9 * 2**20 + b"{}}")
    yield "100,000 tensors", headed({f"t{i}": tensor([0], [0, 0]) for i in range(100000)}, b"")
    yield "overlapping tensors", headed({"y": whole, "A.mask": tensor([16], [0, 64])})
    yield "a gap", headed({"y": tensor([8], [32, 64])})
    yield "a negative shape", headed({"y": tensor([-16], [0, 64])})
    yield "a huge shape", headed({"y": tensor([2**62, 2**62], [0, 64])})
    yield "a shape that overflows", headed({"y": tensor([2**32, 2**32, 16], [0, 64])})
    yield "offsets the wrong way", headed({"y": tensor([16], [64, 0])})
    yield "offsets beyond the file", headed({"y": tensor([2**30], [0, 2**32])})
    yield "an unknown type", headed({"y": tensor([16], [0, 64], "F33")})
    yield "a type that is a number", headed({"y": tensor([16], [0, 64], 3)})
    yield "nested 100,000 deep", headed(b"[" * 100000 + b"]" * 100000)
    yield "not JSON", headed(b"\xff\xfe\0\0")
    yield "a list", headed([])
    yield "null", headed(b"null")
    yield "an empty header", headed({})
    yield "metadata that are a list", headed({"__metadata__": [], "y": whole})
    yield "metadata of numbers", headed({"__metadata__": {"invem": 3}, "y": whole})
    yield "a name twice", headed(b'{"y":' + json.dumps(whole).encode() + b',"y":{}}')
    yield "a name like a path", headed({"../../../etc/passwd": whole})
    yield "a name of control characters", headed({"\x1b[2J\n[/red]": whole})
    yield "a digest of zeros", headed({"__metadata__": {"invem": "0" * 64 + "{}"}, "y": whole})
    yield "a digest without metadata", headed({"__metadata__": {"invem": "0" * 64}, "y": whole})


def probe(tmp: Path, files: dict[str, bytes], door: str) -> Iterator[tuple[str, str]]:
    """Has files read in one process each by a way into invem; yields name and answer."""
    for name, data in files.items():
        path = tmp / "hostile.safetensors"
        path.write_bytes(data)
        said = tmp / "answer"
        said.unlink(missing_ok=True)
        process = start(child.reading, str(path), door, str(whole_run().path), str(said))
        done = finish(process, tmp / "nothing")
        answer = said.read_text("utf-8") if said.exists() else f"died with {done.code}"
        yield name, answer


def judged(tally: Tally, where: str, answer: str) -> None:
    """Counts an answer of `child.reading`: its kind, seconds, MB and words, by tabs."""
    kind, _, rest = answer.partition("\t")
    if kind != "refused":
        tally.lose(f"{where}: {answer[:300]}")
        return
    seconds, memory, text = rest.split("\t", 2)
    slow = float(seconds) > LIMIT[0] or float(memory) > LIMIT[1]
    tally.judge(not slow and "\n" not in text, f"{where}: {answer[:300]}", refused=True)


DOORS = ("store", "restore", "measurements", "prior")


@case(
    GROUP,
    "a safetensors file whose header lies, read as a file of a run, as observations, "
    "as measurements and as a prior",
)
def lying_headers(tmp: Path, budget: Budget, tally: Tally) -> None:
    for door in DOORS:
        for name, answer in probe(tmp, dict(headers()), door):
            judged(tally, f"{door}: {name}", answer)


class _Canary:
    """Pickles to a call that makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def pickles(canary: Path) -> dict[str, bytes]:
    """Returns files that make the folder `canary` if they are unpickled."""
    bomb = _Canary(canary)
    torch_file, array, archive = io.BytesIO(), io.BytesIO(), io.BytesIO()
    torch.save({"y": bomb}, torch_file)
    np.save(array, np.array([[[bomb]]], dtype=object), allow_pickle=True)
    np.savez(archive, y=np.array([bomb], dtype=object))
    return {
        "pickle": pickle.dumps(bomb),
        "pickle of protocol 0": pickle.dumps(bomb, 0),
        "torch.save": torch_file.getvalue(),
        ".npy": array.getvalue(),
        ".npz": archive.getvalue(),
    }


@case(GROUP, "a pickle with the extension of data; no code of it runs")
def pickles_are_not_opened(tmp: Path, budget: Budget, tally: Tally) -> None:
    canary, whole = tmp / "canary", whole_run().path
    files = pickles(canary)
    for door in DOORS:
        for name, answer in probe(tmp, files, door):
            judged(tally, f"{door}: {name}", answer)
    for name, data in files.items():  # images, arrays, masks, and the files of a run
        for suffix in (".npy", ".png", ".tiff", ".npz"):
            folder = tmp / "pictures"
            folder.mkdir()
            (folder / f"a{suffix}").write_bytes(data)
            done = invem(["restore", whole, folder], tmp / "said")
            tally.judge(done.is_refusal(2), f"{name} as {suffix}: {done.err[-200:]}", refused=True)
            shutil.rmtree(folder)
        mask = tmp / "mask.npy"
        mask.write_bytes(data)
        words = [f"operator={{name: mask-file, file: {mask}}}"]
        done = invem(["plan", recipe(tmp), *words], tmp / "said")
        tally.judge(done.is_refusal(2), f"{name} as a mask: {done.err[-200:]}", refused=True)
        for place in (
            "run.json",
            "recipe.yaml",
            "metrics.jsonl",
            "1-001-denoiser/denoiser.safetensors",
        ):
            run = tmp / "copy"
            shutil.copytree(whole, run)
            (run / place).write_bytes(data)
            words = ["sample", run] if place.endswith("safetensors") else ["report", run]
            if place == "recipe.yaml":
                words = ["resume", run]
            done = invem(words, tmp / "said")
            fine = done.is_refusal(2, 4)
            if place == "metrics.jsonl" and done.code == 0:
                tally.survived += 1  # lines that are not JSON are left out, as torn ones are
            else:
                tally.judge(fine, f"{name} as {place}: {done.code} {done.err[-200:]}", refused=True)
            shutil.rmtree(run)
    if canary.exists():
        tally.lose("the code of a pickle ran")


@case(GROUP, "**Control**: the same pickles, unpickled", control=True)
def pickles_that_are_opened(tmp: Path, budget: Budget, tally: Tally) -> None:
    for data in list(pickles(tmp / "canary").values())[:2]:
        pickle.loads(data)
        if (tmp / "canary").exists():
            tally.lose("the code ran")
            (tmp / "canary").rmdir()
        else:
            tally.survived += 1


def _claiming(shape: tuple[int, ...], descr: str = "|u1") -> bytes:
    buffer = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue() + b"x" * 100


def arrays() -> dict[str, bytes]:
    """Returns .npy files that claim more than they hold, or hold what is no picture."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("y.npy", _claiming((1, 4, 4)) + b"\0" * 10**8)
    good = io.BytesIO()
    np.save(good, np.zeros((4, 4), dtype=np.uint8))
    return {
        "80 TB": _claiming((10**9, 283, 283)),
        "more than the file": _claiming((1, 50, 50)),
        "beyond 64 bits": _claiming((2**70, 5, 5)),
        "negative": _claiming((4, -5, -5)),
        "five dimensions": _claiming((1, 1, 1, 2, 2)),
        "objects": _claiming((1, 5, 5), "|O"),
        "text": _claiming((1, 5, 5), "<U100"),
        "cut": good.getvalue()[:90],
        "cut in the header": good.getvalue()[:20],
        "empty": b"",
        "a zip bomb": packed.getvalue(),
        "no pixels": _claiming((0, 4, 4)),
    }


@case(GROUP, "a `.npy` or `.npz` file that claims what it does not hold, or unpacks to 100 MB")
def array_bombs(tmp: Path, budget: Budget, tally: Tally) -> None:
    whole = whole_run().path
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    for name, data in arrays().items():
        for suffix in (".npy", ".npz"):
            folder = tmp / "pictures"
            folder.mkdir()
            (folder / f"a{suffix}").write_bytes(data)
            for words in (
                ["restore", whole, folder],
                ["restore", whole, folder / f"a{suffix}"],
                ["plan", recipe(tmp), f"data={{name: folder, root: {folder}, channels: 1}}"],
                ["plan", recipe(tmp), f"operator={{name: mask-file, file: {folder}/a{suffix}}}"],
                ["plan", recipe(tmp), f"operator={{name: kernel-blur, file: {folder}/a{suffix}}}"],
                [
                    "plan",
                    recipe(tmp),
                    f"noise={{name: correlated-gaussian, file: {folder}/a{suffix}}}",
                ],
            ):
                done = invem(words, tmp / "said")
                wrong = f"{name}{suffix} {words[0]}: {done.code} {done.err[-200:]}"
                tally.judge(done.is_refusal(2, 4), wrong, refused=True)
            shutil.rmtree(folder)
    grown = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss - before
    if grown > 300_000:
        tally.lose(f"a process took {grown // 1000} MB more")


@case(GROUP, "observations whose tensors have the wrong names, types or shapes")
def wrong_observations(tmp: Path, budget: Budget, tally: Tally) -> None:
    whole, path = whole_run().path, tmp / "y.safetensors"
    y, mask = torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
    sigma = torch.full((2, 1, 1, 1), 0.2)
    for tensors in (
        {"x": y},
        {"y": y},
        {"y": y[:0], "A.mask": mask[:0]},
        {"y": y[..., :3], "A.mask": mask},
        {"y": y.to(torch.complex64), "A.mask": mask},
        {"y": y * float("nan"), "A.mask": mask},
        {"y": y, "A.mask": mask[:1]},
        {"y": y, "A.mask": mask * float("inf")},
        {"y": y, "A.mask": mask, "noise.sigma": -sigma},
        {"y": y, "A.mask": mask, "B.unknown": mask},
        {"y": torch.tensor(1.0), "A.mask": mask},
        {"y": y, "A.mask": mask.to(torch.complex64)},
    ):
        save_file({name: t.contiguous().clone() for name, t in tensors.items()}, path)
        done = invem(["restore", whole, path], tmp / "said")
        wrong = f"{ {n: (t.dtype, tuple(t.shape)) for n, t in tensors.items()} }: {done.err[-200:]}"
        tally.judge(done.is_refusal(2), wrong, refused=True)
