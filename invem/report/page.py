"""Pieces of a page, for the page of a benchmark alone."""

import base64
import io
import json
import math
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
import numpy.typing as npt
from PIL import Image

Array = npt.NDArray[np.float64]
_CELL, _GAP = 80, 4


def _image(x: Array, low: float = -1.0, high: float = 1.0) -> Image.Image:
    """A picture of x (C, H, W), in nearest-neighbour pixels; channels are RGB if C is 3, else the
    first is shown."""
    x = np.nan_to_num(x, nan=low, posinf=high, neginf=low)
    unit = np.clip((x - low) / ((high - low) or 1.0), 0.0, 1.0)
    pixels = np.round(255 * unit).astype(np.uint8)
    image = Image.fromarray(pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0])
    factor = max(1, round(_CELL / max(image.size)))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _strip(images: Sequence[Image.Image]) -> Image.Image:
    """Images of one size, side by side on a transparent ground."""
    width, height = images[0].size
    sheet = Image.new("RGBA", ((width + _GAP) * len(images) - _GAP, height), (0, 0, 0, 0))
    for i, image in enumerate(images):
        sheet.paste(image.convert("RGBA"), (i * (width + _GAP), 0))
    return sheet


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def _img(image: Image.Image, alt: str) -> str:
    data = base64.b64encode(_png(image)).decode("ascii")
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img src="data:image/png;base64,{data}" {size} alt="{escape(alt)}">'


_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5d6671; --line: #d9dee4; --ground:
  #ffffff;
  --panel: #f5f7f9; --accent: #1f66b8; --good: #1a7f45; --bad: #b3392f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --soft: #9aa4af; --line: #343b43;
  --ground: #15181c;
  --panel: #1d2126; --accent: #74aef0; --good: #63c78c; --bad: #ee8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 32px 24px 64px; background: var(--ground);
  color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 44px 0 12px; padding-bottom: 6px; border-bottom: 1px solid
  var(--line); }
p { margin: 0 0 12px; max-width: 75ch; } .soft { color: var(--soft); } .good { color: var(--good); }
.bad { color: var(--bad); } .scroll { overflow-x: auto; }
.strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); gap: 12px;
  margin-top: 24px; }
.card { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 12px
  16px; }
.card b { display: block; font-size: 26px; line-height: 1.3; font-variant-numeric: tabular-nums; }
.card b small { font-size: 14px; font-weight: 400; color: var(--soft); }
.card span { display: block; font-size: 14px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 15px; }
th, td { text-align: left; padding: 5px 20px 5px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { font-weight: 600; } thead th { color: var(--soft); font-size: 14px; vertical-align: bottom; }
td.n, th.n { text-align: right; white-space: nowrap; } tbody th { font-weight: 400; white-space:
  nowrap; }
table.grid th, table.grid td { border: 0; padding: 3px 10px 3px 0; } table.grid thead th {
  max-width: 150px; }
img { display: block; image-rendering: pixelated; }
.samples { display: grid; grid-template-columns: max-content 1fr; gap: 6px 16px; align-items:
  center; }
.samples img { max-width: 100%; height: auto; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(400px, 1fr)); gap: 24px; }
figure { margin: 0; min-width: 0; } figcaption { font-weight: 600; font-size: 15px; } svg { width:
  100%; height: auto; }
svg text { fill: var(--soft); font-size: 12px; } svg .axis { stroke: var(--line); }
svg .curve { stroke: var(--accent); fill: none; stroke-width: 1.8; } svg .dot { fill:
  var(--accent); }
svg .bar { stroke: var(--accent); stroke-width: 1.2; } svg .dash { stroke: var(--soft);
  stroke-dasharray: 5 4; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 14px
  16px; overflow-x: auto;
  font: 14px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media (max-width: 480px) { .plots { grid-template-columns: 1fr; } .samples {
  grid-template-columns: 1fr; } }
"""


def _text(value: object) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _table(head: Iterable[str], rows: Iterable[Sequence[str]], numbers: bool = False) -> str:
    """A table of cells that are HTML already; with `numbers`, all but the first column are set to
    the right."""
    kind = ' class="n"' if numbers else ""
    titles = "".join(f"<th{kind if i else ''}>{cell}</th>" for i, cell in enumerate(head))
    top = (
        f"<thead><tr>{titles}</tr></thead>"
        if titles.replace("<th>", "").replace("</th>", "")
        else ""
    )
    body = ""
    for row in rows:
        body += f"<tr><th>{row[0]}</th>{''.join(f'<td{kind}>{cell}</td>' for cell in row[1:])}</tr>"
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'


def _ticks(low: float, high: float, log: bool) -> list[float]:
    """About five round numbers between the ends; with `log` the ends are powers of ten."""
    if log:
        for mantissas in ((1,), (1, 3), (1, 2, 5), range(1, 10)):
            powers = range(math.floor(low), math.ceil(high) + 1)
            powers = powers[:: max(1, len(powers) // 6)]
            found = [
                m * 10.0**p for p in powers for m in mantissas if low <= p + math.log10(m) <= high
            ]
            if len(found) >= 3:
                return found
        return found or [10**low, 10**high]
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
