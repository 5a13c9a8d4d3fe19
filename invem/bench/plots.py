"""The plots of a benchmark: quality against cost, and calibration.

matplotlib is imported only when a plot is drawn.
"""

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from invem.bench.metrics import METRICS, shown
from invem.bench.table import good_rows
from invem.errors import RecipeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["calibration_plot", "figure_bytes", "quality_plot", "quality_plots", "write_figure"]

_FORMATS = (".svg", ".png")
# The type of the keys in matplotlib lists every setting by name.
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "invem",  # the same plot has the same bytes
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.edgecolor": "#9aa4af",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": "#444c56",
    "grid.color": "#e3e7eb",
    "xtick.color": "#444c56",
    "ytick.color": "#444c56",
    "savefig.dpi": 150,
}
_ACCENT, _SOFT = "#1f66b8", "#5d6671"


class _Point(NamedTuple):
    cost: float
    value: float
    sem: float
    label: str

    def bar(self, log: bool) -> tuple[float, float]:
        """The ends of the bar of one standard error. On a logarithmic axis it stays above zero."""
        below = min(self.sem, self.value / 2) if log else self.sem
        return self.value - below, self.value + self.sem


def write_figure(document: Mapping[str, Any], path: Path, metric: str | None = None) -> None:
    """Writes the plot of quality against cost as an image.

    Args:
        document: The benchmark.
        path: Where; ``.svg`` or ``.png``.
        metric: What is plotted. By default, the first metric of the page that was measured.

    Raises:
        RecipeError: If the file is of another kind, or no sampler has the metric.
    """
    check_figure_path(path)
    names = [metric] if metric is not None else shown("plots", document["problem"]["exact"])
    drawn = (quality_plot(document, name) for name in names)
    figure = next((plot for plot in drawn if plot is not None), None)
    if figure is None:
        raise RecipeError(f"{path}: no sampler has a value of {' or '.join(names)}")
    path.write_bytes(figure_bytes(figure, path.suffix[1:]))


def check_figure_path(path: Path) -> None:
    """Refuses a file that `write_figure` cannot write.

    Raises:
        RecipeError: If the name ends in neither ``.svg`` nor ``.png``.
    """
    if path.suffix not in _FORMATS:
        raise RecipeError(f"{path}: the name of a figure ends in {' or '.join(_FORMATS)}")


def figure_bytes(figure: "Figure", kind: str) -> bytes:
    """Returns a plot as a file. kind: "svg" or "png"."""
    import matplotlib

    file = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(file, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return file.getvalue()


def quality_plots(document: Mapping[str, Any]) -> "dict[str, Figure]":
    """Returns the plots of quality against cost of the page, by metric."""
    names = shown("plots", document["problem"]["exact"])
    drawn = {name: quality_plot(document, name) for name in names}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def quality_plot(document: Mapping[str, Any], metric: str) -> "Figure | None":
    """Plots a metric against forwards and products per draw; None if no sampler has the metric.

    Bars are one standard error. A dashed line is the metric of exact draws.
    """
    points = _points(document, metric)
    if not points:
        return None
    import matplotlib
    from matplotlib.figure import Figure

    log = METRICS[metric].best == "low" and all(point.value > 0 for point in points)
    floor = (document["floor"] or {}).get(metric, {"value": None})["value"]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9.8, 3.9), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xscale("log")
        axes.set_yscale("log" if log else "linear")
        axes.set_xlabel("forwards and products per draw")
        axes.set_ylabel(METRICS[metric].title(metric))
        for point in points:
            axes.plot(point.cost, point.value, color=_ACCENT, marker="o", ms=4)
            axes.plot([point.cost] * 2, point.bar(log), color=_ACCENT, lw=1)
        if floor:
            axes.axhline(floor, color=_SOFT, ls="--", lw=1)
        axes.margins(0.06, 0.1)
        _set_ticks(axes, log)
        _label_points(figure, axes, points, log)
    return figure


def _points(document: Mapping[str, Any], metric: str) -> list[_Point]:
    points = []
    for row in good_rows(document):
        found = row["metrics"].get(metric)
        if found is not None and found["value"] is not None:
            cost = max(row["forwards"] + row["products"], 1.0)
            points.append(_Point(cost, found["value"], found["sem"] or 0.0, row["setting"]))
    return points


def _set_ticks(axes: "Axes", log_y: bool) -> None:
    """Plain numbers on the axes, also on logarithmic ones that span less than a decade."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

    for axis, log, (low, high) in (
        (axes.xaxis, True, axes.get_xlim()),
        (axes.yaxis, log_y, axes.get_ylim()),
    ):
        decades = math.log10(high / low) if log else 0.0
        subs = (1.0, 2.0, 5.0) if decades < 4 else (1.0,)
        axis.set_major_locator(LogLocator(subs=subs) if decades > 1 else MaxNLocator(5))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(StrMethodFormatter("{x:.6g}"))


def _label_points(figure: "Figure", axes: "Axes", points: list[_Point], log: bool) -> None:
    """Writes each label beside its point, at the first place where it hides no label and no bar."""
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    frame = axes.get_window_extent()
    taken = [
        Bbox(axes.transData.transform([(point.cost, end) for end in point.bar(log)]))
        for point in points
    ]
    shifts = sorted(range(-60, 61, 12), key=abs)
    places = [(7 * side, shift) for shift in shifts for side in (1, -1)]
    for point in sorted(points, key=lambda point: -point.value):
        text = point.label if len(point.label) < 40 else point.label[:39] + "…"
        label = axes.annotate(
            text,
            (point.cost, point.value),
            xytext=(0, 0),
            textcoords="offset points",
            va="center",
            color=_SOFT,
            fontsize=7,
        )
        for across, up in places:
            label.set_position((across, up))
            label.set_horizontalalignment("left" if across > 0 else "right")
            box = label.get_window_extent()
            inside = box.x0 > frame.x0 and box.x1 < frame.x1
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(label.get_window_extent())


def calibration_plot(document: Mapping[str, Any], row: Mapping[str, Any]) -> "Figure":
    """Plots the empirical coverage of the central intervals of a row against the nominal one."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(2.6, 2.3), layout="constrained")
        axes = figure.add_subplot(xlim=(0, 1), ylim=(0, 1), xlabel="nominal coverage")
        axes.set_ylabel("empirical coverage")
        axes.plot([0, 1], [0, 1], color=_SOFT, ls="--", lw=1)
        axes.plot(document["levels"], row["coverage"], color=_ACCENT, lw=1.6)
    return figure
