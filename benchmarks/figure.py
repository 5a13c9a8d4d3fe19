"""Draws the quality-against-cost plot of an `invem bench --json` file as SVG.

python benchmarks/figure.py docs/results/bench-digits.json docs/digits-bench.svg
"""

import json
import re
import sys
from pathlib import Path

from invem.bench import benchpage

STYLE = (
    "text { font: 11px sans-serif; fill: #333 } .axis { stroke: #ddd; fill: none } .dash { stroke:"
    " #888; stroke-dasharray: 4; fill: none } .bar { stroke: #357; fill: none } .dot { fill: #357 }"
)


def main():
    source, target = map(Path, sys.argv[1:3])
    found = json.loads(source.read_text("utf-8"))
    figures = re.findall(
        r"<figcaption>(.*?)</figcaption><svg (.*?)>(.*?)</svg>", benchpage._scatter(found), re.S
    )
    caption, attributes, body = figures[0]
    width, height = map(float, re.search(r"viewBox=\"0 0 (\S+) (\S+)\"", attributes).groups())
    title = f'<text x="8" y="14">{caption}</text>'
    frame = (
        f'xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height + 20:g}" viewBox="0'
        f' -20 {width:g} {height + 20:g}"'
    )
    paper = f'<rect x="0" y="-20" width="{width:g}" height="{height + 20:g}" fill="white"/>'
    title = title.replace('y="14"', 'y="-6"')
    target.write_text(f"<svg {frame}><style>{STYLE}</style>{paper}{title}{body}</svg>\n", "utf-8")


if __name__ == "__main__":
    main()
