"""The contracts: what every component of a kind must do, as functions that measure it.

A test file of a plugin is three lines::

    from invem.testing import contracts
    from my_scanner import random_rows
    test_random_rows = contracts("operators", random_rows)

`invem plugin check NAME` prints the same as a table. ``python -m invem.testing`` prints the
contracts of each kind with their tolerances.

A new contract is one function in the file of its kind, under ``@KIND.contract(name, tolerance)``.
"""

from invem.testing.base import (
    SHAPES,
    Contract,
    Factory,
    Kind,
    Result,
    example_options,
    relative_error,
    run_contract,
)
from invem.testing.problems import Observed, exact_priors, example_measurement, example_prior
from invem.testing.registry import KINDS, check, contracts, explain

__all__ = [
    "KINDS",
    "SHAPES",
    "Contract",
    "Factory",
    "Kind",
    "Observed",
    "Result",
    "check",
    "contracts",
    "exact_priors",
    "example_measurement",
    "example_options",
    "example_prior",
    "explain",
    "relative_error",
    "run_contract",
]
