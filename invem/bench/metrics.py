"""Which metrics a benchmark has, and what they mean. They are data, in ``data/metrics.yaml``."""

from collections.abc import Mapping
from importlib import resources
from typing import Any, NamedTuple

from invem.config import yaml

__all__ = ["LEVELS", "METRICS", "Meaning", "shown", "tuning_metric"]

LEVELS = tuple(round(0.05 * i, 2) for i in range(1, 20))


class Meaning(NamedTuple):
    """What a metric is.

    Attributes:
        unit: Its unit, or "".
        best: "high", "low" or the number that a perfect sampler has.
        text: A sentence.
        source: Where it comes from: a "component" of the catalogue or a "statistic" of
            `invem.bench.statistics`, with its options.
        images_only: Whether it is computed only for images.
    """

    unit: str
    best: str
    text: str
    source: Mapping[str, Any]
    images_only: bool = False

    def title(self, name: str) -> str:
        """Returns the head of a column: the name, the unit and which way is better."""
        arrow = {"high": "↑", "low": "↓"}.get(self.best, f"→ {self.best}")
        return f"{name} {f'({self.unit}) ' if self.unit else ''}{arrow}"


def _read() -> dict[str, Any]:
    text = (resources.files("invem.bench") / "data" / "metrics.yaml").read_text("utf-8")
    found: dict[str, Any] = yaml.load(text, "metrics.yaml").value
    return found


_DATA = _read()
METRICS = {name: Meaning(**entry) for name, entry in _DATA["metrics"].items()}


def shown(where: str, exact: bool) -> list[str]:
    """Returns the metrics that are shown.

    Args:
        where: "columns" of the table, or "plots" of quality against cost.
        exact: Whether the posterior is known.
    """
    names: list[str] = _DATA[where]["exact" if exact else "truth"]
    return names


def tuning_metric(exact: bool) -> str:
    """Returns the metric that tuning improves. exact: whether the posterior is known."""
    name: str = _DATA["tuning"]["exact" if exact else "truth"]
    return name
