"""Figures of a report: what a plugin offers, and a chart of values over the rounds.

Charts are drawn by matplotlib, which is imported when the first one is drawn. No state of pyplot
is used, and the same values give the same bytes.
"""

import io
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from invem.config import Catalog, Component
from invem.errors import escaped
from invem.report.data import ReportData, Round

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

__all__ = ["Drawn", "Figure", "chart", "drawn_figures"]

Picture = bytes | str

# In points. A phone shows the chart at about its own size, so its text stays readable there.
_SIZE, _FONT = (400, 240), 12
_INK, _SOFT, _LINE, _ACCENT = "#1b1f24", "#5d6671", "#d9dee4", "#1f66b8"
_STYLE: dict[Any, Any] = {
    "font.size": _FONT,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "grid.color": _LINE,
    # A constant seed for the identifiers in the file: the same chart is the same bytes.
    "svg.hashsalt": "invem",
}
# Sizes in points to place labels by: the axis, a character, the distance of two ticks.
_AXIS, _CHARACTER, _TICK_GAP = 0.84 * _SIZE[0], 0.6 * _FONT, 2.0 * _FONT
_NAME_ROWS, _NAME_LENGTH = 3, 28
# The arithmetic of an axis overflows near the largest floating-point number.
_LARGEST = 1e100


class Figure(ABC):
    """A figure of the report. It becomes a section of the page, with its title and its caption.

    Attributes:
        title: The heading.
        caption: One sentence that says what is drawn.
    """

    title: ClassVar[str]
    caption: ClassVar[str] = ""

    @abstractmethod
    def draw(self, run: ReportData) -> Picture | Mapping[str, Picture] | None:
        """Draws the figure of a run.

        Args:
            run: What the report shows of the run. Any part of it may be missing.

        Returns:
            A picture: a PNG file as bytes, or an SVG file as text. Several pictures side by side
                are a mapping from the heading of each. None where the figure does not apply.
        """


class Drawn(NamedTuple):
    """A figure that was drawn.

    Attributes:
        title: The heading.
        caption: One sentence that says what is drawn.
        pictures: Pictures by heading; a single one has none.
    """

    title: str
    caption: str
    pictures: dict[str, Picture]


def drawn_figures(run: ReportData) -> tuple[list[Drawn], list[str]]:
    """Draws the figure of every plugin that applies to a run.

    Returns:
        The figures, in the order of the catalogue, and one line per figure that failed. A figure
            that fails harms no other.
    """
    figures, problems = [], []
    for component in _offers():
        try:
            figure = component.load()()
            pictures = _checked(figure.draw(run))
            if pictures:
                figures.append(Drawn(str(figure.title), str(figure.caption), pictures))
        except (Exception, SystemExit) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            problems.append(f"{component.name} of {component.distribution}: {reason}")
    return figures, problems


def _offers() -> Iterator[Component]:
    for components in Catalog.load().offers["figures"].values():
        yield from components


def _checked(drawn: Any) -> dict[str, Picture]:
    """The pictures by heading.

    Raises:
        TypeError: If something is neither a PNG file nor an SVG file.
    """
    if drawn is None:
        return {}
    pictures = dict(drawn) if isinstance(drawn, Mapping) else {"": drawn}
    for picture in pictures.values():
        svg = isinstance(picture, str) and "<svg" in picture
        if not svg and not (isinstance(picture, bytes) and picture.startswith(b"\x89PNG")):
            raise TypeError("draw must return a PNG file as bytes or an SVG file as text")
    return {str(heading): picture for heading, picture in pictures.items()}


def chart(
    rounds: Sequence[Round],
    values: Sequence[float],
    *,
    errors: Sequence[float] = (),
    dashed: float | None = None,
    dotted: float | None = None,
    log: bool = False,
) -> str | None:
    """Draws a curve of values in the order of the rounds, as SVG.

    The axis below shows the number of each round, counted from 1, and the name of each phase.

    Args:
        rounds: The round of each value; several values in a row may share one.
        values: What is drawn. A value that is not finite, or beyond 1e100, interrupts the curve.
        errors: The half length of an error bar per value; none where it is no such number.
        dashed: The height of a dashed line.
        dotted: The height of a dotted line.
        log: Whether the axis is logarithmic. It is linear all the same if a value is not positive.

    Returns:
        The chart as an SVG file; None if no value is finite.
    """
    finite = [value for value in values if _drawable(value)]
    if not finite:
        return None
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    # What a user has configured for matplotlib does not change the report.
    default: dict[Any, Any] = {
        key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"
    }
    with matplotlib.rc_context({**default, **_STYLE}):
        canvas = Canvas(figsize=(_SIZE[0] / 72, _SIZE[1] / 72), dpi=72, layout="constrained")
        FigureCanvasAgg(canvas)
        axes = canvas.add_subplot()
        axes.grid(axis="y", linewidth=0.8)
        axes.set_axisbelow(True)
        if log and min(finite) > 1 / _LARGEST:
            axes.set_yscale("log")
        _curve(axes, values, errors)
        for height, dashes in ((dashed, (5, 3)), (dotted, (1, 1.5))):
            if height is not None and _drawable(height):
                axes.axhline(height, color=_SOFT, linewidth=1.4, dashes=dashes)
        axes.set_xlim(-0.5, len(rounds) - 0.5)
        _number_values(axes)
        _name_rounds(axes, rounds)
        return _svg(canvas)


def _drawable(value: float) -> bool:
    return math.isfinite(value) and abs(value) < _LARGEST


def _curve(axes: "Axes", values: Sequence[float], errors: Sequence[float]) -> None:
    few = len(values) < 40
    heights = [value if _drawable(value) else math.nan for value in values]
    axes.plot(
        range(len(values)),
        heights,
        color=_ACCENT,
        linewidth=1.6,
        marker="o" if few else "",
        markersize=5,
    )
    for place, (value, error) in enumerate(zip(heights, errors, strict=False)):
        if _drawable(value) and _drawable(error) and error > 0:
            axes.vlines(place, value - error, value + error, color=_ACCENT, linewidth=1.2)


def _number_values(axes: "Axes") -> None:
    """Writes about five plain numbers beside the axis."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = axes.get_ylim()
    axes.yaxis.set_minor_locator(NullLocator())
    # A decade or less shows too few powers of ten.
    if axes.get_yscale() == "log" and high / low > 5:
        subs = (1.0,) if high / low > 1000 else (1.0, 3.0) if high / low > 30 else (1.0, 2.0, 5.0)
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10], min_n_ticks=3))
    # Enough digits that no two of them are the same.
    largest = max(abs(low), abs(high))
    digits = min(max(6, math.ceil(math.log10(largest / (high - low))) + 2), 15) if largest else 6
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.{digits}g}".replace("-", "−")))


def _name_rounds(axes: "Axes", rounds: Sequence[Round]) -> None:
    """Numbers the rounds from 1 and names the phases below, so that no two labels touch."""
    begins = [i for i, r in enumerate(rounds) if i == 0 or r != rounds[i - 1]]
    width = _AXIS / len(rounds)
    stride = _stride(_AXIS / len(begins))
    ticks: list[int] = []
    for i in begins:
        number = rounds[i].number
        wanted = number is not None and (number == 0 or (number + 1) % stride == 0)
        if wanted and (not ticks or (i - ticks[-1]) * width >= _TICK_GAP):
            ticks.append(i)
    axes.set_xticks(ticks, [str((rounds[i].number or 0) + 1) for i in ticks])
    ends = [-math.inf] * _NAME_ROWS
    phases = [i for i in begins if i == 0 or rounds[i].phase != rounds[i - 1].phase]
    for begin, end in zip(phases, [*phases[1:], len(rounds)], strict=True):
        if begin:
            axes.axvline(begin - 0.5, color=_LINE, linewidth=0.8)
        name = escaped(rounds[begin].phase)
        name = name if len(name) <= _NAME_LENGTH else name[: _NAME_LENGTH - 1] + "…"
        half = _CHARACTER * len(name) / 2
        middle = min(max((begin + end) / 2 * width, half), _AXIS - half)
        row = next((r for r, taken in enumerate(ends) if middle - half > taken), None)
        if row is not None:
            ends[row] = middle + half + _CHARACTER
            place, below = (middle / _AXIS, 0), (0, -_FONT * (1.8 + 1.2 * row))
            axes.annotate(
                name,
                place,
                below,
                xycoords="axes fraction",
                textcoords="offset points",
                color=_SOFT,
                ha="center",
                va="top",
                parse_math=False,
            )


def _stride(width: float) -> int:
    """The smallest of 1, 2, 5, 10, ... rounds whose ticks stand far enough apart."""
    steps = (factor * int(10**power) for power in range(9) for factor in (1, 2, 5))
    return next(step for step in steps if step * width >= _TICK_GAP)


def _svg(canvas: "Canvas") -> str:
    file = io.StringIO()
    unset = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    canvas.savefig(file, format="svg", transparent=True, metadata=unset)
    return file.getvalue()
