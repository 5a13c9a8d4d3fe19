"""The marker `kills`: a thousand kills, left out unless it is asked for with `-m kills`."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "kills: a thousand kills; run by `pytest -m kills`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "kills" in str(config.option.markexpr):
        return
    left_out = [item for item in items if "kills" in item.keywords]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)
