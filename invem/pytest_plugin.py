"""``pytest --invem NAME``: the contracts of components as tests, with no test file at all. NAME is
what `invem plugin check` takes."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--invem",
        action="append",
        default=[],
        metavar="NAME",
        help="run the contracts of this invem component, kind or module",
    )


def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    names = config.getoption("--invem")
    if names:
        items += list(
            Contracts.from_parent(session, name="invem", nodeid="invem", names=names).collect()
        )


class Contracts(pytest.Collector):
    """The contracts of some components, an item each."""

    def __init__(self, names: list[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.names = names

    def collect(self) -> Iterator[pytest.Item]:
        from invem.cli.components import find_components
        from invem.errors import InvemError
        from invem.testing import KINDS

        try:
            found = [(c.kind, c.name, c.load()) for c in find_components(self.names)]
        except InvemError as error:
            raise pytest.UsageError(str(error)) from error
        for kind, name, factory in found:
            for contract in KINDS[kind].contracts:
                yield Contract.from_parent(
                    self,
                    name=f"{kind}/{name}: {contract}",
                    kind=kind,
                    factory=factory,
                    contract=contract,
                )


class Contract(pytest.Item):
    """One contract of one component."""

    def __init__(
        self, kind: str, factory: Callable[..., Any], contract: str, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.kind, self.factory, self.contract = kind, factory, contract

    def runtest(self) -> None:
        from invem.errors import MissingExtra
        from invem.testing import check

        try:
            (result,) = check(self.kind, self.factory, self.contract)
        except MissingExtra as error:
            pytest.skip(str(error))
        if result.passed is None:
            pytest.skip(result.detail)
        if not result.passed:
            raise ContractError(
                f"{self.name}: {result.value} (at most {result.tolerance}) {result.detail}"
            )

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        return (
            str(excinfo.value)
            if isinstance(excinfo.value, ContractError)
            else super().repr_failure(excinfo, style)
        )

    def reportinfo(self) -> tuple[Any, int | None, str]:
        return "invem", None, self.name


class ContractError(AssertionError):
    """A contract that does not hold."""
