"""Stored files: whole or absent, and damage is found."""

import os
import random

import pytest
import torch

from invem import atomic, store
from invem.errors import DataError, InvemError, ResourceError
from invem.storage import sealed

TENSORS = {
    "x": torch.arange(24.0).reshape(2, 3, 4),
    "n": torch.tensor(3),
    "empty": torch.empty(0, 5),
}


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "run" / "a.safetensors"
    store.write(file, TENSORS, {"step": 7})
    return file


def test_what_is_written_is_read(path):
    tensors, meta = store.read_meta(path)
    assert meta == {"step": 7}
    assert tensors.keys() == TENSORS.keys()
    assert all(
        torch.equal(tensors[k], TENSORS[k]) and tensors[k].dtype == TENSORS[k].dtype
        for k in TENSORS
    )
    assert os.listdir(path.parent) == [path.name]


def test_the_same_content_is_the_same_bytes(path, tmp_path):
    other = tmp_path / "b.safetensors"
    store.write(other, dict(reversed(TENSORS.items())), {"step": 7})
    assert other.read_bytes() == path.read_bytes()


def test_every_flipped_bit_is_found(path):
    whole = path.read_bytes()
    chooser = random.Random(0)
    for _ in range(200):
        raw = bytearray(whole)
        raw[chooser.randrange(len(raw))] ^= 1 << chooser.randrange(8)
        path.write_bytes(raw)
        try:
            tensors, meta = store.read_meta(path)
        except DataError as error:
            assert str(path) in str(error)
        else:  # padding of the header, which holds nothing
            assert meta == {"step": 7}
            assert all(torch.equal(tensors[k], TENSORS[k]) for k in TENSORS)


@pytest.mark.parametrize("share", [0, 0.01, 0.2, 0.5, 0.99])
def test_a_truncated_file_is_found(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match="damaged"):
        store.read(path)


def test_a_foreign_file_is_refused(path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(DataError, match="digest"):
        store.read(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.safetensors: missing"):
        store.read(tmp_path / "nothing.safetensors")
    with pytest.raises(DataError, match="missing"):
        sealed.read(tmp_path / "nothing.json", "nothing.json")


def test_a_write_that_fails_leaves_the_old_file_and_no_other(path, monkeypatch):
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "save_file", full)
    with pytest.raises(ResourceError, match=r"a\.safetensors"):
        store.write(path, {"x": torch.ones(1)})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_run_is_held_by_one_process(tmp_path):
    with (
        atomic.lock(tmp_path),
        pytest.raises(InvemError, match="another process"),
        atomic.lock(tmp_path),
    ):
        pass
    with atomic.lock(tmp_path):
        pass


def test_a_line_after_a_torn_one_is_whole(tmp_path):
    path = tmp_path / "log.jsonl"
    atomic.append_line(path, '{"a": 1}\n')
    path.write_bytes(path.read_bytes() + b'{"b": ')
    atomic.append_line(path, '{"c": 3}\n')
    assert path.read_text().splitlines() == ['{"a": 1}', '{"c": 3}']
