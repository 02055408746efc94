"""Palettes as data, and which style of the palette a box takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tensorgraph.errors import GraphError
from tensorgraph.visualize.view import Box, View

Kind = Literal["plain", "weight", "frozen", "trained", "mixed", "tied", "constant"]

# Graphviz lays out by the widths of Helvetica; the SVG asks for it, for a face of the same widths, then for any other.
FONT = "Helvetica"
FONTS = "Helvetica,Arial,Liberation Sans,Arimo,sans-serif"


@dataclass(frozen=True)
class Style:
    """How a box is painted; `border` tells states apart where colour cannot."""

    fill: str
    stroke: str
    text: str
    border: Literal["solid", "dashed", "dotted"] = "solid"
    width: float = 1.2


@dataclass(frozen=True)
class Theme:
    """A palette: the page, its text, lines by kind of edge, boxes by kind, frames, a sequential scale for values."""

    name: str
    page: str
    text: str
    muted: str
    edge: str
    residual: str
    tied: str
    gradient: str
    frame: str
    frame_fill: str
    boxes: Mapping[Kind, Style]
    scale: tuple[str, ...]
    wrong: str = "#d92d20"


_SEED_WEIGHT = Style("#2d6a4f", "#1b4332", "#d8f3dc")
_SEED_BOXES: dict[Kind, Style] = {
    "plain": Style("#1a1a2e", "#16213e", "#e0e0e0"),
    "weight": _SEED_WEIGHT,
    "trained": Style("#f2a01e", "#9a5b00", "#1d1300", width=2.6),
    "frozen": Style("#a9bfe6", "#4a6396", "#0f1a30", "dashed"),
    "mixed": Style("#f2a01e", "#9a5b00", "#1d1300", "dashed", 2.6),
    "tied": Style("#7d3f98", "#4f1f66", "#fbeeff", "dashed"),
    "constant": Style("#1a1a2e", "#5c6784", "#e0e0e0", "dotted"),
}
_DARK_BOXES: dict[Kind, Style] = {
    "plain": Style("#1a1a2e", "#5a688f", "#e0e0e0"),
    "weight": Style("#2d6a4f", "#74c69d", "#d8f3dc"),
    "trained": Style("#f2a01e", "#ffd58a", "#1d1300", width=2.6),
    "frozen": Style("#a9bfe6", "#5f7fbf", "#0f1a30", "dashed"),
    "mixed": Style("#f2a01e", "#ffd58a", "#1d1300", "dashed", 2.6),
    "tied": Style("#7d3f98", "#d4a3ea", "#fbeeff", "dashed"),
    "constant": Style("#1a1a2e", "#8a97ba", "#e0e0e0", "dotted"),
}
_LIGHT_BOXES: dict[Kind, Style] = {
    "plain": Style("#f4f5f7", "#8a94a6", "#1c2330"),
    "weight": Style("#3a9868", "#1f6b45", "#06210f"),
    "trained": Style("#ffb627", "#a86500", "#241700", width=2.6),
    "frozen": Style("#a3bdf2", "#4a6bb5", "#0d1a38", "dashed"),
    "mixed": Style("#ffb627", "#a86500", "#241700", "dashed", 2.6),
    "tied": Style("#7d3f98", "#4f1f66", "#fbeeff", "dashed"),
    "constant": Style("#f4f5f7", "#8a94a6", "#1c2330", "dotted"),
}
_MONO_BOXES: dict[Kind, Style] = {
    "plain": Style("#ffffff", "#000000", "#000000", width=0.9),
    "weight": Style("#d9d9d9", "#000000", "#000000", width=1.8),
    "trained": Style("#d9d9d9", "#000000", "#000000", width=3.0),
    "frozen": Style("#ffffff", "#000000", "#000000", "dashed", 1.8),
    "mixed": Style("#ffffff", "#000000", "#000000", "dashed", 3.0),
    "tied": Style("#ffffff", "#000000", "#000000", "dotted", 1.8),
    "constant": Style("#ffffff", "#000000", "#000000", "dotted", 0.9),
}
_VIRIDIS = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")

THEMES: Mapping[str, Theme] = {
    theme.name: theme
    for theme in (
        Theme(
            "seed",
            "#ffffff",
            "#1f2430",
            "#5b6270",
            "#6b7280",
            "#838b99",
            "#7d3f98",
            "#b3261e",
            "#8b93a3",
            "#f7f8fa",
            _SEED_BOXES,
            _VIRIDIS,
        ),
        Theme(
            "light",
            "#ffffff",
            "#1f2430",
            "#5b6270",
            "#6b7280",
            "#838b99",
            "#7d3f98",
            "#b3261e",
            "#9aa3b2",
            "#fbfcfd",
            _LIGHT_BOXES,
            _VIRIDIS,
        ),
        Theme(
            "dark",
            "#0d1117",
            "#e6edf3",
            "#9aa4b2",
            "#8b949e",
            "#6e7681",
            "#d4a3ea",
            "#ff7b72",
            "#6e7681",
            "#11161d",
            _DARK_BOXES,
            _VIRIDIS,
        ),
        Theme(
            "mono",
            "#ffffff",
            "#000000",
            "#404040",
            "#000000",
            "#000000",
            "#000000",
            "#000000",
            "#000000",
            "#ffffff",
            _MONO_BOXES,
            ("#ffffff", "#e6e6e6", "#cccccc", "#b3b3b3", "#999999"),
            "#000000",
        ),
    )
}


def find_theme(name: str) -> Theme:
    """The palette of that name; raises GraphError [TG381] with the known names."""
    if name not in THEMES:
        raise GraphError("TG381", f"unknown theme {name!r}", hint=f"one of: {', '.join(THEMES)}")
    return THEMES[name]


def kind_of(box: Box, view: View) -> Kind:
    """Which style a box takes: tied before frozen or trained, those only where the view tells modes apart."""
    if box.role == "constant":
        return "constant"
    if box.role != "weight":
        return "plain"
    if box.tied:
        return "tied"
    if view.modes and box.training:
        return {"trained": "trained", "frozen": "frozen", "partly trained": "mixed"}[box.training]  # type: ignore[return-value]
    return "weight"


def style_of(box: Box, view: View, theme: Theme) -> Style:
    """A box's style; a value's colour takes the place of the fill, and the border still tells the kind."""
    style = theme.boxes[kind_of(box, view)]
    if view.values_limit is not None:
        wrong = box.value is not None and not box.value <= view.values_limit
        fill = theme.wrong if wrong else theme.frame_fill
        return Style(fill, style.stroke, readable_on(fill), style.border, 2.6 if wrong else style.width)
    if box.value is None:
        valued = any(b.value is not None for b in view.boxes)  # then what has none must not look as if it had
        fill = theme.frame_fill
        return Style(fill, style.stroke, readable_on(fill), style.border, style.width) if valued else style
    if not math.isfinite(box.value):
        return Style(theme.page, theme.gradient, theme.text, "dotted", 2.6)
    fill = colour_of(box.value, value_range(view), theme.scale)
    return Style(fill, style.stroke, readable_on(fill), style.border, style.width)


def value_range(view: View) -> tuple[float, float]:
    """Least and greatest finite value of the view; (0, 0) where there is none."""
    values = [box.value for box in view.boxes if box.value is not None and math.isfinite(box.value)]
    return (min(values), max(values)) if values else (0.0, 0.0)


def values_text(view: View) -> str:
    """What the colours mean, in words: the label and the range."""
    low, high = value_range(view)
    finite = any(box.value is not None and math.isfinite(box.value) for box in view.boxes)
    said = f"{low:.3g} to {high:.3g}{not_finite(view)}" if finite else "none is finite"
    return f"{view.values_label or 'value'}: {said}"


def not_finite(view: View) -> str:
    """What dotted boxes mean, if there are any; see `style_of`."""
    odd = any(box.value is not None and not math.isfinite(box.value) for box in view.boxes)
    return "; dotted: nan or infinite" if odd else ""


def by_powers(bounds: tuple[float, float]) -> bool:
    """Whether a scale runs by powers of ten: values all positive and three of them apart, as norms of gradients are."""
    low, high = bounds
    return low > 0 and high / 1e3 >= low


def colour_of(value: float, bounds: tuple[float, float], scale: tuple[str, ...]) -> str:
    """The colour of a value on a sequential scale between the bounds, linear or `by_powers`."""
    low, high = bounds
    if by_powers(bounds):
        low, high, value = math.log(low), math.log(high), math.log(value)
    part = 0.0 if high <= low else (value / 2 - low / 2) / (high / 2 - low / 2)  # halves: the span may overflow
    at = min(max(part, 0.0), 1.0) * (len(scale) - 1)
    first = min(int(at), len(scale) - 2)
    mix = at - first
    pair = zip(rgb(scale[first]), rgb(scale[first + 1]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * mix):02x}" for a, b in pair)


def readable_on(fill: str) -> str:
    """Black or white, whichever has more contrast with the fill (one of them always has 4.5:1)."""
    return max(("#000000", "#ffffff"), key=lambda text: contrast(fill, text))


def contrast(a: str, b: str) -> float:
    """Contrast ratio of two colours, 1 to 21. Source: WCAG 2.2, relative luminance."""
    first, second = sorted((_luminance(a), _luminance(b)))
    return (second + 0.05) / (first + 0.05)


def rgb(colour: str) -> tuple[int, int, int]:
    """Red, green and blue of "#rrggbb", 0 to 255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _luminance(colour: str) -> float:
    parts = (c / 255 for c in rgb(colour))
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
