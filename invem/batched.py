"""Values that are a batch of B independent things, and the random numbers of a batch."""

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

__all__ = ["Batched", "Index", "Rng", "shared", "wide"]

Index = int | slice | Tensor

# Numbers a stream draws at once for small requests: a call for each stream costs more than they do.
_AHEAD = 256


def shared(**options: Any) -> Any:
    """Marks a tensor field of a `Batched` dataclass as common to the whole batch: it has no leading
    B axis."""
    return dataclasses.field(metadata={"shared": True}, **options)


@dataclasses.dataclass(frozen=True, eq=False)
class Batched:
    """An immutable batch of B values. Each tensor field has shape (B, ...) unless it is marked
    `shared()`; a field may be a batch itself, or a tuple of them.

    Indexing selects samples in every tensor field at once, so shuffling, sharding, drawing K times
    from the same measurement and moving to a device are one generic operation. An integer selects a
    batch of one.
    """

    def __getitem__(self, index: Index) -> Self:
        if isinstance(index, int):
            index = slice(index, index + 1 or None)
        return self._map(lambda field, value: value if field else value[index])

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """Moves every tensor to `device`, every floating-point one to `dtype` and every complex one
        to that precision."""

        def move(_: bool, value: Tensor) -> Tensor:
            if value.is_complex():
                return value.to(device=device, dtype=dtype.to_complex() if dtype else None)
            return value.to(device=device, dtype=dtype if value.is_floating_point() else None)

        return self._map(move)

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensor fields by path (`"mask"`, `"A.mask"` for a nested value): what a store
        writes."""
        return {path: value for path, _, value in self._leaves()}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """Returns a copy in which each tensor field is replaced by the one of that path: what a
        store reads.

        Raises:
            KeyError: If a path is missing.
        """
        changes: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Batched):
                changes[field.name] = value.with_tensors(_below(tensors, field.name))
            elif _is_batch(value):
                inner = _below(tensors, field.name)
                changes[field.name] = tuple(
                    v.with_tensors(_below(inner, str(i))) for i, v in enumerate(value)
                )
            elif isinstance(value, Tensor):
                changes[field.name] = tensors[field.name]
        return dataclasses.replace(self, **changes)

    def _leaves(self, prefix: str = "") -> Iterator[tuple[str, bool, Tensor]]:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Batched):
                yield from value._leaves(f"{prefix}{field.name}.")
            elif _is_batch(value):
                for i, part in enumerate(value):
                    yield from part._leaves(f"{prefix}{field.name}.{i}.")
            elif isinstance(value, Tensor):
                yield prefix + field.name, bool(field.metadata.get("shared")), value

    def shared_paths(self) -> set[str]:
        """Returns the paths of the tensor fields that are common to the batch."""
        return {path for path, common, _ in self._leaves() if common}

    def _map(self, change: Any) -> Self:
        changes: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Batched):
                changes[field.name] = value._map(change)
            elif _is_batch(value):
                changes[field.name] = tuple(part._map(change) for part in value)
            elif isinstance(value, Tensor):
                changes[field.name] = change(bool(field.metadata.get("shared")), value)
        return dataclasses.replace(self, **changes) if changes else self


def _is_batch(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and bool(value)
        and all(isinstance(part, Batched) for part in value)
    )


def _below(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {
        path[len(name) + 1 :]: tensor
        for path, tensor in tensors.items()
        if path.startswith(name + ".")
    }


def _seed(*key: int | str) -> int:
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def wide(x: Tensor) -> Tensor:
    """Returns x in float64, or in float32 on a device that has no float64 (MPS)."""
    return x.float() if x.device.type == "mps" else x.double()


class Rng:
    """Random numbers for a batch of B samples, in which stream i belongs to sample i and to nothing
    else.

    A draw therefore does not depend on the batch that a sample happens to be in, on the order of
    the batches or on the number of machines. Numbers are drawn on the CPU and moved, so that they
    are the same on every device.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = list(seeds)
        self._streams: list[torch.Generator] | None = None
        self._ahead: dict[tuple[torch.dtype, bool], Tensor] = {}

    @classmethod
    def keyed(cls, *key: int | str, items: Sequence[int | str]) -> Self:
        """Derives one stream per item from a key such as (seed, purpose, phase, round)."""
        return cls([_seed(*key, item) for item in items])

    @staticmethod
    def generator(*key: int | str) -> torch.Generator:
        """Returns a single torch generator for a key, for a law that is drawn for many samples at
        once."""
        return torch.Generator().manual_seed(_seed(*key))

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: Index) -> "Rng":
        """Selects samples; their streams start anew."""
        if isinstance(index, Tensor):
            return Rng([self.seeds[i] for i in index.tolist()])
        return Rng(self.seeds[index] if isinstance(index, slice) else [self.seeds[index]])

    def _fill(self, shape: tuple[int, ...], dtype: torch.dtype, normal: bool) -> Tensor:
        k = math.prod(shape)
        if 4 * k > _AHEAD:
            return self._draw(k, dtype, normal).reshape(len(self), *shape)
        ahead = self._ahead.get((dtype, normal))
        if ahead is None or ahead.shape[1] < k:
            ahead = self._draw(_AHEAD, dtype, normal)
        self._ahead[dtype, normal] = ahead[:, k:]
        return ahead[:, :k].reshape(len(self), *shape).contiguous()

    def _draw(self, k: int, dtype: torch.dtype, normal: bool) -> Tensor:
        if self._streams is None:
            self._streams = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        out = torch.empty(len(self), k, dtype=dtype)
        for row, stream in zip(out, self._streams, strict=True):
            if normal:
                row.normal_(generator=stream)
            else:
                row.uniform_(generator=stream)
        return out

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draws standard normals, shape (B, *shape)."""
        return self._fill(shape, dtype, normal=True)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draws uniform numbers in [0, 1), shape (B, *shape)."""
        return self._fill(shape, dtype, normal=False)

    def normal_like(self, x: Tensor) -> Tensor:
        """Draws standard normals with the shape, dtype and device of x, shape (B, *shape)."""
        return self._fill(tuple(x.shape[1:]), x.dtype, normal=True).to(x.device)
