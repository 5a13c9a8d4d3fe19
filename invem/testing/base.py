"""What all kinds share: a contract, a kind with its contracts, a result, how one is measured."""

import inspect
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from invem.batched import Rng

__all__ = [
    "BATCH",
    "LARGE",
    "SHAPES",
    "Contract",
    "Factory",
    "Kind",
    "Result",
    "example_options",
    "inner_products",
    "normal_like",
    "relative_error",
    "run_contract",
]

SHAPES = ((1, 8, 8), (3, 8, 16), (2, 9, 9), (1, 7, 10), (2, 8, 8), (6,))
"""The signal shapes that operators and networks are tried on: images (C, H, W) and a vector."""

LARGE = ((1, 28, 28), (2, 28, 28), (3, 32, 32))
"""Shapes of images that people use. A solver that ends early shows there, and not on small ones."""

BATCH = 3
"""The number of samples in the batches of operators and networks."""

Factory = Callable[..., Any]
"""What the hook of a plugin returns for one name."""

Case = TypeVar("Case")
Measure = TypeVar("Measure", bound=Callable[..., float | None])


class Result(NamedTuple):
    """The result of one contract on one component.

    Attributes:
        contract: The name of the contract.
        passed: Whether it holds, or None where it does not apply.
        value: The measured number, the worst over shapes and options.
        tolerance: The largest value that passes, or None for a number that is only reported.
        detail: Where it failed, or why it does not apply.
    """

    contract: str
    passed: bool | None
    value: float | None = None
    tolerance: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class Contract(Generic[Case]):
    """One property that every component of a kind must have.

    Attributes:
        name: Its name, unique within the kind.
        tolerance: The largest value that passes, or None for a number that is only reported.
        measure: Maps a case to the measured number, or to None where the contract does not apply.
    """

    name: str
    tolerance: float | None
    measure: Callable[[Case], float | None]

    @property
    def sentence(self) -> str:
        """What must hold: the first paragraph of the docstring of `measure`, on one line."""
        paragraph, _, _ = (inspect.getdoc(self.measure) or "").partition("\n\n")
        return " ".join(paragraph.split())


@dataclass(frozen=True)
class Kind(Generic[Case]):
    """The contracts of one kind of component.

    Attributes:
        name: The name of the kind in the catalogue, in the plural.
        tried_on: One sentence on the cases, for the documentation.
        cases: Yields (label, case) for a factory: each shape and each set of options that it
            accepts. The folder is for files that the options name.
        contracts: The contracts by name, in the order in which they are measured.
        large: As `cases`, at sizes that people use; None where size makes no difference.
    """

    name: str
    tried_on: str
    cases: Callable[[Factory, Path], Iterator[tuple[str, Case]]]
    contracts: dict[str, Contract[Case]] = field(default_factory=dict)
    large: Callable[[Factory, Path], Iterator[tuple[str, Case]]] | None = None

    def contract(self, name: str, tolerance: float | None) -> Callable[[Measure], Measure]:
        """Registers the decorated function as a contract of this kind.

        The first paragraph of its docstring is the sentence in docs/contracts.md.

        Args:
            name: The name of the contract.
            tolerance: The largest value that passes, or None for a number that is only reported.
        """

        def register(measure: Measure) -> Measure:
            self.contracts[name] = Contract(name, tolerance, measure)
            return measure

        return register


def run_contract(contract: Contract[Case], cases: Iterable[tuple[str, Case]]) -> Result:
    """Measures one contract on all cases and returns the worst result.

    A case that raises fails the contract; the message is the detail of the result.

    Args:
        contract: What is measured.
        cases: Pairs of a label and a case.
    """
    worst, where, applies = -math.inf, "", False
    for label, case in cases:
        torch.random.manual_seed(0)
        try:
            value = contract.measure(case)
        except Exception as error:
            message = " ".join(str(error).split())[:200]
            return Result(
                contract.name, False, detail=f"{label}: {type(error).__name__}: {message}"
            )
        if value is None:
            continue
        applies = True
        if math.isnan(value) or value > worst:
            worst, where = value, label
        if math.isnan(worst):
            break
    if not applies:
        return Result(contract.name, None, detail="does not apply")
    passed = contract.tolerance is None or worst <= contract.tolerance
    return Result(contract.name, passed, worst, contract.tolerance, "" if passed else where)


def example_options(
    factory: Factory, shape: tuple[int, ...], folder: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (label, options): the defaults, if every option has one, and then each of `examples`.

    Args:
        factory: What the hook of a plugin returns.
        shape: The shape of one signal, for examples that depend on it.
        folder: An existing folder, for examples that write a file.
    """
    required = [
        p
        for p in inspect.signature(factory).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.default is p.empty
    ]
    if not required:
        yield "defaults", {}
    for example in getattr(factory, "__invem_examples__", ()):
        own_folder = Path(tempfile.mkdtemp(dir=folder))
        options = dict(example(shape, own_folder) if callable(example) else example)
        shown = {k: v for k, v in options.items() if not isinstance(v, str) or "/" not in v}
        yield ", ".join(f"{k}: {v}" for k, v in shown.items()) or "example", options


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Returns the largest absolute difference, divided by the largest entry of the reference.

    Args:
        value: Real or complex, of the shape of the reference.
        reference: What it is compared with.

    Raises:
        AssertionError: If the shapes differ.
    """
    if value.shape != reference.shape:
        raise AssertionError(f"shape {tuple(value.shape)}, not {tuple(reference.shape)}")
    if not value.numel():
        return 0.0
    a, b = (
        torch.view_as_real(t.resolve_conj()) if t.is_complex() else t
        for t in (value.detach(), reference.detach())
    )
    return float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-12))


def inner_products(a: Tensor, b: Tensor) -> Tensor:
    """Returns <a_i, b_i> for each sample, shape (B,). a, b: (B, ...)."""
    return (a * b).flatten(1).sum(1)


def normal_like(x: Tensor, name: str) -> Tensor:
    """Returns standard normal numbers like x (shape, dtype, device), the same for a name."""
    generator = Rng.generator("contracts", name)
    return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
