"""A benchmark as one HTML page that loads nothing."""

import base64
import io
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np
from PIL import Image
from torch import Tensor

from invem.bench import table
from invem.bench.metrics import METRICS
from invem.bench.plots import calibration_plot, figure_bytes, quality_plots
from invem.errors import escaped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["render_page"]

_CELL, _GAP = 80, 4  # pixels of a picture and between two of them

Pictures = Mapping[str, Mapping[str, Tensor]]


def _visible(value: Any) -> Any:
    """Escapes what would disturb the page; markup of the template itself is left as it is."""
    return escaped(value) if type(value) is str else value


def render_page(document: Mapping[str, Any], pictures: Pictures) -> str:
    """Returns a benchmark as one HTML page that loads nothing.

    Args:
        document: The benchmark as data.
        pictures: By setting, the pictures of its row. Empty where signals are no images.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("invem.bench"),
        autoescape=True,
        finalize=_visible,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names, rows = table.metric_cells(document)
    return environment.get_template("page.html").render(
        document=document,
        summary=table.summary(document),
        samplers=table.cells(document),
        quality=[
            (METRICS[name].title(name), _svg(figure))
            for name, figure in quality_plots(document).items()
        ],
        calibration=[
            (row["setting"], _svg(calibration_plot(document, row)))
            for row in table.good_rows(document)
            if row["coverage"]
        ],
        restorations=_restorations(document, pictures),
        metric_titles=[METRICS[name].title(name) for name in names],
        metric_rows=rows,
        meanings=[(name, METRICS[name].text) for name in names],
        options=_options(document),
        machine=[(key, _text(value)) for key, value in document["environment"].items()],
    )


def _options(document: Mapping[str, Any]) -> list[list[str]]:
    """Returns the setting, the options and the search of each row."""
    return [
        [
            row["setting"],
            ", ".join(f"{k}: {v}" for k, v in row["options"].items()),
            _search(row["tuning"]) if row["tuning"] is not None else "",
        ]
        for row in document["rows"]
    ]


def _search(tuning: Mapping[str, Any]) -> str:
    before, after = (
        "not finite" if score is None else f"{score:.4g}"
        for score in (tuning["default"], tuning["best"])
    )
    return f"{tuning['trials']} trials, {tuning['score']} {before} -> {after}"


def _restorations(document: Mapping[str, Any], pictures: Pictures) -> list[dict[str, str]]:
    """Returns the label and the pictures of each line: the truth, the observations, the rows."""
    shown = {label: kept for label, kept in pictures.items() if kept}
    if not shown:
        return []
    low, high = document["problem"]["range"]
    first = next(iter(shown.values()))
    lines = [
        {"label": name, "mean": _strip(first[name], low, high)}
        for name in ("truth", "observation")
        if name in first
    ]
    for label, kept in shown.items():
        top = max(float(np.nan_to_num(kept["std"].numpy()).max()), 1e-12)
        lines.append(
            {
                "label": label,
                "mean": _strip(kept["mean"], low, high),
                "draw": _strip(kept["draw"], low, high),
                "std": _strip(kept["std"], 0.0, top),
                "white": f"{top:.2g}",
            }
        )
    return lines


def _strip(x: Tensor, low: float, high: float) -> str:
    """Returns pictures side by side as the address of a PNG. Three channels are RGB; of any other
    number the first is shown.

    Args:
        x: Shape (n, C, H, W).
        low: The value that is black.
        high: The value that is white.
    """
    values = np.nan_to_num(x.double().numpy(), nan=low, posinf=high, neginf=low)
    unit = np.clip((values - low) / ((high - low) or 1.0), 0.0, 1.0)
    n, channels, height, width = unit.shape
    colours = unit if channels == 3 else unit[:, :1].repeat(3, 1)
    factor = max(1, round(_CELL / max(height, width)))
    opaque = np.concatenate([colours, np.ones((n, 1, height, width))], 1)
    pixels = np.round(255 * opaque).astype(np.uint8).transpose(0, 2, 3, 1)
    pixels = pixels.repeat(factor, 1).repeat(factor, 2)
    gaps = np.pad(pixels, ((0, 0), (0, 0), (0, _GAP), (0, 0)))
    file = io.BytesIO()
    Image.fromarray(np.concatenate(gaps, 1)[:, :-_GAP]).save(file, "PNG", optimize=True)
    return _address(file.getvalue(), "image/png")


def _svg(figure: "Figure") -> str:
    return _address(figure_bytes(figure, "svg"), "image/svg+xml")


def _address(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _text(value: object) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
