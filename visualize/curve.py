"""Curves of numbers over steps as SVG: a few lines of text, plain axes, right on light pages and on dark ones."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from tensorgraph.visualize.escape import clean

WIDTH, HEIGHT = 720, 400
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 48, 52
STYLE = """
  text { font: 13px Helvetica, Arial, "Liberation Sans", sans-serif; fill: #1f2430 }
  .title { font-size: 15px; font-weight: bold }
  .page { fill: #ffffff } .grid { stroke: #d9dde4 } .axis { stroke: #6b7280 }
  .line { fill: none; stroke-width: 2.2; stroke-linejoin: round }
  .c0 { stroke: #2d6a4f } .c1 { stroke: #b45309 } .c2 { stroke: #7d3f98 } .c3 { stroke: #1d4ed8 }
  .level { stroke: #6b7280; stroke-dasharray: 6 4; stroke-width: 1.5 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .page { fill: #0d1117 } .grid { stroke: #2a313c } .axis, .level { stroke: #8b949e }
    .c0 { stroke: #74c69d } .c1 { stroke: #f2a01e } .c2 { stroke: #d4a3ea } .c3 { stroke: #8ab4ff }
  }
"""


def curve(
    title: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    levels: Mapping[str, float] | None = None,
    *,
    x: str = "step",
    y: str = "",
    places: int = 3,
) -> str:
    """SVG text of up to four named `lines` of points and of `levels`, dashed; what is not finite is left out.

    The legend gives the last number of each, with so many decimal `places`.
    """
    shown = {n: [p for p in points if math.isfinite(p[0]) and math.isfinite(p[1])] for n, points in lines.items()}
    levels = {n: v for n, v in (levels or {}).items() if math.isfinite(v)}
    xs = [p[0] for points in shown.values() for p in points] or [0.0]
    ys = [*(p[1] for points in shown.values() for p in points), *levels.values()] or [0.0]
    xt, yt = ticks(min(0.0, *xs), max(xs)), ticks(min(ys), max(ys))

    def px(v: float) -> float:
        return round(LEFT + (v - xt[0]) / (xt[-1] - xt[0]) * (WIDTH - LEFT - RIGHT), 1)

    def py(v: float) -> float:
        return round(HEIGHT - BOTTOM - (v - yt[0]) / (yt[-1] - yt[0]) * (HEIGHT - TOP - BOTTOM), 1)

    said = html.escape(clean(title))
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" role="img">',
        f"<title>{said}</title><style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}"/>',
        f'<text class="title" x="{LEFT}" y="26">{said}</text>',
    ]
    for v in yt:
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py(v)}" y2="{py(v)}"/>')
        out.append(f'<text x="{LEFT - 8}" y="{py(v) + 4}" text-anchor="end">{v:g}</text>')
    for v in xt:
        out.append(f'<text x="{px(v)}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{v:g}</text>')
    base = HEIGHT - BOTTOM
    out.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    out.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 12}" text-anchor="end">{html.escape(clean(x))}</text>')
    out.append(f'<text x="{LEFT}" y="{HEIGHT - 12}">{html.escape(clean(y))}</text>')
    drawn = [(px(a), py(b)) for points in shown.values() for a, b in points]
    at = free(drawn, [py(v) for v in levels.values()], 20 * (len(shown) + len(levels)))

    def legend(name: str, cls: str) -> None:
        nonlocal at
        at += 20
        out.append(f'<line class="{cls}" x1="{WIDTH - 250}" x2="{WIDTH - 222}" y1="{at - 4}" y2="{at - 4}"/>')
        out.append(f'<text x="{WIDTH - 214}" y="{at}">{html.escape(clean(name))}</text>')

    for i, (name, points) in enumerate(shown.items()):
        path = " ".join(f"{px(a)},{py(b)}" for a, b in points)
        out.append(f'<polyline class="line c{i % 4}" points="{path}"/>')
        legend(f"{name}: {points[-1][1]:.{places}f}" if points else name, f"line c{i % 4}")
    for name, v in levels.items():
        out.append(f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py(v)}" y2="{py(v)}"/>')
        legend(f"{name}: {v:.{places}f}", "level")
    return "\n".join([*out, "</svg>", ""])


def free(drawn: Sequence[tuple[float, float]], levels: Sequence[float], height: float) -> float:
    """Where the legend, `height` high, begins on the right: at the top, or where the fewest things lie behind it."""

    def behind(top: float) -> int:
        inside = [y for x, y in drawn if x > WIDTH - 270]
        return sum(top - 4 < y < top + height + 12 for y in (*inside, *levels))

    places = [TOP - 4 + i * (HEIGHT - TOP - BOTTOM - height - 8) / 4 for i in range(5)]
    return min(places, key=behind)


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers that enclose [low, high], 1, 2 or 5 times a power of ten apart."""
    span = high - low or abs(high) or 1.0
    raw = span / about
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(m * scale for m in (1.0, 2.0, 5.0, 10.0) if m * scale >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, max(last, first + 1) + 1)]


_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float]) -> str:
    """Numbers as one line of bars for a terminal; blanks for what is not finite."""
    finite = [v for v in values if math.isfinite(v)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    span = (high - low) or 1.0
    return "".join(_BARS[int((v - low) / span * (len(_BARS) - 1) + 0.5)] if math.isfinite(v) else " " for v in values)


__all__ = ["curve", "sparkline", "ticks"]
