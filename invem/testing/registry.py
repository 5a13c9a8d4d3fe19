"""All kinds with their contracts: measuring a component, a pytest test of it, a page of them."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from invem.errors import RecipeError
from invem.testing.base import Factory, Kind, Result, run_contract
from invem.testing.datasets import DATASETS
from invem.testing.figures import FIGURES
from invem.testing.formats import FORMATS
from invem.testing.metrics import METRICS
from invem.testing.networks import NETWORKS
from invem.testing.noises import NOISES
from invem.testing.objectives import OBJECTIVES
from invem.testing.operators import OPERATORS
from invem.testing.samplers import SAMPLERS
from invem.testing.schedules import SCHEDULES
from invem.testing.stops import STOPS

__all__ = ["KINDS", "check", "contracts", "explain"]

_ALL: tuple[Kind[Any], ...] = (
    OPERATORS,
    NOISES,
    NETWORKS,
    SAMPLERS,
    OBJECTIVES,
    DATASETS,
    METRICS,
    SCHEDULES,
    STOPS,
    FORMATS,
    FIGURES,
)

KINDS: dict[str, Kind[Any]] = {kind.name: kind for kind in _ALL}
"""The contracts of each kind of component, by the name of the kind."""


def check(
    kind: str, factory: Factory, only: str | None = None, large: bool = False
) -> list[Result]:
    """Measures the contracts of a kind on a component, over several shapes and over its options.

    The options are the defaults and those that the component gives by `examples`.

    Args:
        kind: The kind in the plural, a key of `KINDS`: "operators", "samplers", ...
        factory: What the hook of the plugin returns.
        only: The name of the one contract to measure; all contracts if left out.
        large: Whether operators are measured at sizes that people use, which takes minutes.

    Raises:
        RecipeError: If there is no such kind.
    """
    if kind not in KINDS:
        raise RecipeError(f"there is no kind '{kind}' (known: {', '.join(KINDS)})")
    selected = [c for name, c in KINDS[kind].contracts.items() if only in (None, name)]
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        make = KINDS[kind].large if large else None
        cases = list((make or KINDS[kind].cases)(factory, Path(folder)))
        if not cases:
            detail = "it accepts none of the shapes and options that were tried"
            return [Result(contract.name, False, detail=detail) for contract in selected]
        return [run_contract(contract, cases) for contract in selected]


def contracts(kind: str, factory: Factory) -> Callable[[str], None]:
    """Returns a pytest test with one case per contract of the kind.

    Args:
        kind: The kind of the component, as for `check`.
        factory: What the hook of the plugin returns.
    """
    import pytest

    @pytest.mark.parametrize("contract", KINDS[kind].contracts)
    def test(contract: str) -> None:
        (result,) = check(kind, factory, contract)
        if result.passed is None:
            pytest.skip(result.detail)
        assert result.passed, (
            f"{contract}: {result.value} (at most {result.tolerance}) {result.detail}"
        )

    return test


def explain() -> str:
    """Returns the contracts of every kind as Markdown tables: name, tolerance and a sentence."""
    lines: list[str] = []
    for kind in KINDS.values():
        lines += [f"## {kind.name.capitalize()}", "", kind.tried_on, ""]
        lines += ["| contract | at most | what must hold |", "|---|---:|---|"]
        for contract in kind.contracts.values():
            bound = "reported" if contract.tolerance is None else f"{contract.tolerance:g}"
            lines.append(f"| {contract.name} | {bound} | {contract.sentence} |")
        lines.append("")
    return "\n".join(lines)
