"""Small images with a question, the model's answer and the truth, side by side as SVG; on light pages and dark ones."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from tensorgraph.visualize.escape import clean

COLUMNS = 5
CELL, SIDE, TEXT, GAP = 168, 140, 48, 16  # a cell's width, its image's, the height of the words below; between cells
STYLE = """
  text { font: 12px Helvetica, Arial, "Liberation Sans", sans-serif; fill: #4b5563; text-anchor: middle }
  .answer { font-size: 16px; font-weight: bold; fill: #2d6a4f } .wrong { fill: #b42318 }
  .page { fill: #ffffff } .frame { fill: #1a1a2e } .ink { fill: #d8f3dc }
  @media (prefers-color-scheme: dark) {
    text { fill: #a9b2bf } .answer { fill: #74c69d } .wrong { fill: #ff8a80 } .page { fill: #0d1117 }
  }
"""


def canvases(examples: Sequence[Any], columns: int = COLUMNS) -> str:
    """SVG text of examples with `pixels` [h, w] from 0 to 1, `question`, `answer` and `truth`; wrong answers in red."""
    count = max(1, min(columns, len(examples)))
    lines = -(-len(examples) // count)
    width, height = count * (CELL + GAP) + GAP, lines * (SIDE + TEXT + GAP) + GAP
    right = sum(e.answer == e.truth for e in examples)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'role="img">',
        f"<title>{right} of {len(examples)} answers are right</title><style>{STYLE}</style>",
        f'<rect class="page" width="{width}" height="{height}"/>',
    ]
    for i, e in enumerate(examples):
        x, y = GAP + i % count * (CELL + GAP), GAP + i // count * (SIDE + TEXT + GAP)
        out += _image(e.pixels, x + (CELL - SIDE) / 2, y)
        out.append(f'<text x="{x + CELL / 2:g}" y="{y + SIDE + 18}">{html.escape(clean(e.question))}</text>')
        wrong = e.answer != e.truth
        said = f"{e.answer}, not {e.truth}" if wrong else e.answer
        kind = "answer wrong" if wrong else "answer"
        out.append(f'<text class="{kind}" x="{x + CELL / 2:g}" y="{y + SIDE + 38}">{html.escape(clean(said))}</text>')
    return "\n".join([*out, "</svg>", ""])


def _image(pixels: Any, x: float, y: float) -> list[str]:
    """A dark square, and a square of ink for every pixel that is not 0, as opaque as its value."""
    h, w = pixels.shape
    size = SIDE / max(h, w)
    out = [f'<g transform="translate({x:g} {y:g})">', f'<rect class="frame" width="{SIDE}" height="{SIDE}" rx="6"/>']
    for row, column in zip(*pixels.nonzero(), strict=True):
        place = f'x="{column * size:g}" y="{row * size:g}" width="{size:g}" height="{size:g}"'
        out.append(f'<rect class="ink" {place} fill-opacity="{float(pixels[row, column]):.3g}"/>')
    return [*out, "</g>"]


__all__ = ["canvases"]
