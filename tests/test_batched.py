"""Batches as values, and random numbers that belong to samples."""

from dataclasses import dataclass

import pytest
import torch

from invem import Batched, Rng, shared


@dataclass(frozen=True, eq=False)
class Inner(Batched):
    a: torch.Tensor


@dataclass(frozen=True, eq=False)
class Outer(Batched):
    x: torch.Tensor
    common: torch.Tensor = shared()
    inner: Inner = None
    parts: tuple = ()
    name: str = "n"


def outer():
    x = torch.arange(12.0).reshape(4, 3)
    return Outer(x, torch.ones(5), Inner(x + 100), (Inner(x + 200), Inner(x + 300)))


@pytest.mark.parametrize("index", [2, -1, slice(1, 3), torch.tensor([3, 0, 3])])
def test_indexing_selects_in_every_field(index):
    one = outer()[index]
    rows = torch.arange(4)[[index] if isinstance(index, int) else index]
    assert torch.equal(one.x, outer().x[rows])
    assert torch.equal(one.inner.a, outer().inner.a[rows])
    assert torch.equal(one.parts[1].a, outer().parts[1].a[rows])
    assert torch.equal(one.common, torch.ones(5))


def test_tensors_by_path_and_back():
    tensors = outer().tensors()
    assert list(tensors) == ["x", "common", "inner.a", "parts.0.a", "parts.1.a"]
    assert outer().shared_paths() == {"common"}
    moved = outer().with_tensors({name: tensor + 1 for name, tensor in tensors.items()})
    assert torch.equal(moved.parts[0].a, outer().parts[0].a + 1) and moved.name == "n"
    with pytest.raises(KeyError):
        outer().with_tensors({"x": tensors["x"]})
    assert outer().to(dtype=torch.float64).parts[0].a.dtype == torch.float64


def test_streams_do_not_depend_on_the_batch():
    whole = Rng.keyed(0, "purpose", items=range(5))
    some = Rng.keyed(0, "purpose", items=[3, 1])
    for shape in ((2,), (300,), (2, 3), (1,), (70, 2)):
        assert torch.equal(whole.normal(*shape)[[3, 1]], some.normal(*shape))
        assert torch.equal(whole.uniform(*shape)[[3, 1]], some.uniform(*shape))


def test_streams_are_independent_normals():
    x = Rng.keyed("normal", items=range(4000)).normal(6)
    assert torch.allclose(x.mean(0), torch.zeros(6), atol=0.08)
    assert torch.allclose(torch.cov(x.T), torch.eye(6), atol=0.1)
    again = Rng.keyed("normal", items=range(4000))
    assert not torch.equal(again.normal(6), again.normal(6))
    assert not torch.equal(Rng.keyed("other", items=range(4000)).normal(6), x)


def test_selected_streams_start_anew():
    streams = Rng.keyed(1, items=range(3))
    first = streams.normal(4)
    assert torch.equal(streams[torch.tensor([2])].normal(4), first[2:])
    assert torch.equal(streams[1].normal(4), first[1:2])
    assert len(streams[:2]) == 2
