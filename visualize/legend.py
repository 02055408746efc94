"""The legend below a picture, as a table of Graphviz's: the sentence, the kinds drawn, or the scale of values."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping

from tensorgraph.visualize.escape import html_text, shorten
from tensorgraph.visualize.theme import Kind, Theme, by_powers, kind_of, not_finite, value_range, values_text
from tensorgraph.visualize.view import View

CAPTION = 10.5  # points
EM = 0.6  # mean width of a character in the widest fonts a reader may have (DejaVu, Verdana), in em

_MEANING: Mapping[Kind, str] = {
    "trained": "trained (thick border)",
    "frozen": "frozen (dashed border)",
    "mixed": "partly trained",
    "tied": "tied: stored once, counted once",
}


def legend(view: View, paint: Theme) -> str:
    """Below the picture, line by line: the legend's sentence and the kinds drawn, or the scale of values."""
    present = {kind_of(box, view) for box in view.boxes}
    rows: list[str] = []
    if view.values_limit is not None:
        label, (_, high) = html_text(view.values_label or "value"), value_range(view)
        right = f"right: {label} at most {view.values_limit:.0e}"
        about = f"wrong: {label} up to {high:.2g}" if high > view.values_limit else "wrong"
        widest = max(room(right, CAPTION), room(about, CAPTION))
        rows += [_patch(paint.frame_fill, paint) + _entry(right, widest)]
        rows += [_patch(paint.wrong, paint) + _entry(about, widest)]
    elif any(box.value is not None and math.isfinite(box.value) for box in view.boxes):
        low, high = value_range(view)
        strip = "".join(f'<TD BGCOLOR="{colour}" WIDTH="14" HEIGHT="9"></TD>' for colour in paint.scale)
        frame = (
            f'<TD BORDER="1" COLOR="{paint.frame}" CELLPADDING="0"><TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0">'
        )
        steps = ", by powers of ten" if by_powers((low, high)) else ""
        about = f"&#160;{high:.3g}&#160;&#160; {html_text(view.values_label or 'value')}{steps}{not_finite(view)}"
        rows.append(f"<TD>{low:.3g}&#160;</TD>{frame}<TR>{strip}</TR></TABLE></TD>{_entry(about)}")
    elif any(box.value is not None for box in view.boxes):
        rows.append(_entry(html_text(values_text(view))))
    else:
        if view.legend and present - {"plain", "constant"}:
            text = _entry(html_text(shorten(view.legend, 200)))
            rows.append(text if view.modes else _swatch(paint, "weight") + text)
        widest = room(shorten(view.legend, 200), CAPTION)  # a row that is not the widest would stretch its swatch
        rows += [_swatch(paint, kind) + _entry(text, widest) for kind, text in _MEANING.items() if kind in present]
    if not rows:
        return '""'
    bare = '<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="2">'
    lines = "".join(f'<TR><TD ALIGN="LEFT">{bare}<TR>{row}</TR></TABLE></TD></TR>' for row in rows)
    return f'<<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="0">{lines}</TABLE>>'


def room(text: str, size: float) -> int:
    """Points that a text takes in a wide font: kept free, so that nothing overlaps whichever font a reader has."""
    return round(EM * size * len(text))


def _entry(text: str, least: int = 0) -> str:
    return f'<TD ALIGN="LEFT" WIDTH="{max(least, room(html.unescape(text), CAPTION))}">{text}</TD>'


def _swatch(paint: Theme, kind: Kind) -> str:
    style = paint.boxes[kind]
    border = "" if style.border == "solid" else f' STYLE="{style.border}"'
    return f'<TD BORDER="1" BGCOLOR="{style.fill}" COLOR="{style.stroke}"{border} WIDTH="20" HEIGHT="9"></TD>'


def _patch(fill: str, paint: Theme) -> str:
    return f'<TD BORDER="1" BGCOLOR="{fill}" COLOR="{paint.frame}" WIDTH="20" HEIGHT="9"></TD>'


__all__ = ["CAPTION", "EM", "legend", "room"]
