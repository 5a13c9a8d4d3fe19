"""Batches of B independent values, and the random numbers of a batch."""

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

__all__ = ["Batched", "Index", "Rng", "shared", "to_float64"]

Index = int | slice | Tensor

# Small requests are served from this many numbers per stream: one call per stream costs more.
_AHEAD = 256


def shared(**options: Any) -> Any:
    """Marks a tensor field of a `Batched` dataclass as common to the batch, without a B axis."""
    return dataclasses.field(metadata={"shared": True}, **options)


@dataclasses.dataclass(frozen=True, eq=False)
class Batched:
    """An immutable batch of B values.

    Each tensor field has shape (B, ...) unless it is marked `shared()`. A field may itself be a
    batch, or a tuple of batches.

    Indexing selects samples in every tensor field at once. So shuffling, sharding, K draws per
    measurement and moving to a device need no code of their own. An integer selects a batch of one.
    """

    def __getitem__(self, index: Index) -> Self:
        if isinstance(index, int):
            index = slice(index, index + 1 or None)
        return self._map(lambda field, value: value if field else value[index])

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """Moves every tensor to `device` and converts floating-point and complex ones to `dtype`.

        A complex tensor gets the precision of `dtype`.
        """

        def move(_: bool, value: Tensor) -> Tensor:
            if value.is_complex():
                return value.to(device=device, dtype=dtype.to_complex() if dtype else None)
            return value.to(device=device, dtype=dtype if value.is_floating_point() else None)

        return self._map(move)

    def tensors(self) -> dict[str, Tensor]:
        """Returns the tensor fields by path ("mask"; "A.mask" in a nested value), for storage."""
        return {path: value for path, _, value in self._leaves()}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """Returns a copy with each tensor field replaced by the tensor of its path.

        It restores a value from storage.

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


def to_float64(x: Tensor) -> Tensor:
    """Returns x in float64, or in float32 on a device that has no float64 (MPS)."""
    return x.float() if x.device.type == "mps" else x.double()


class Rng:
    """Random numbers for a batch of B samples, one stream per sample.

    A draw depends neither on the batch of a sample, nor on the order of batches, nor on the number
    of machines. Numbers are drawn on the CPU and then moved, so they are the same on every device.
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
        """Returns a single torch generator for a key, to draw for many samples at once."""
        return torch.Generator().manual_seed(_seed(*key))

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: Index) -> "Rng":
        """Selects samples; their streams restart."""
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
