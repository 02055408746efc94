"""Our SVG -> shapes with places, for the formats that are drawn by hand: PDF and TikZ."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tensorgraph.visualize.escape import safe_link

Point = tuple[float, float]

_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"


@dataclass(frozen=True)
class Outline:
    """A line or an area: straight through its points, or, if `curved`, Bézier arcs of three points after the first."""

    points: tuple[Point, ...]
    curved: bool
    fill: str | None
    stroke: str | None
    width: float = 1.0
    dash: tuple[float, ...] = ()
    link: str | None = None

    @property
    def closed(self) -> bool:
        return self.points[0] == self.points[-1]


@dataclass(frozen=True)
class Words:
    """A line of text on a baseline that begins, or has its middle, at x."""

    text: str
    x: float
    y: float
    anchor: Literal["start", "middle"]
    size: float
    bold: bool
    colour: str
    link: str | None = None


@dataclass(frozen=True)
class Drawing:
    """Shapes in drawing order on a page of `width` × `height` points, y downwards."""

    width: float
    height: float
    shapes: tuple[Outline | Words, ...]

    @property
    def colours(self) -> list[str]:
        """Every colour drawn, once, in order."""
        found: dict[str, None] = {}
        for s in self.shapes:
            used = (s.colour,) if isinstance(s, Words) else (s.fill, s.stroke)
            found.update(dict.fromkeys(c for c in used if c is not None))
        return list(found)


def read_svg(svg: str, longest: float) -> Drawing:
    """The shapes of an SVG that `Picture.svg` made, made smaller if a side is longer than `longest` points.

    Links remain if they are whole (`https://...`): a file has no site from whose root a path could lead.
    """
    root = ET.fromstring(svg)
    box = [float(x) for x in root.attrib["viewBox"].split()]
    scale = min(1.0, longest / max(box[2], box[3], 1.0))
    moved = re.search(r"translate\(([-\d.]+)[ ,]([-\d.]+)\)", root[0].get("transform", ""))
    dx, dy = (float(moved[1]), float(moved[2])) if moved else (0.0, 0.0)
    links = {part: a.get(_HREF) for a in root.iter(f"{_SVG}a") for part in a.iter()}

    def place(x: str, y: str) -> Point:
        return round((float(x) + dx - box[0]) * scale, 3), round((float(y) + dy - box[1]) * scale, 3)

    def shapes() -> Iterator[Outline | Words]:
        for part in root.iter():
            link = safe_link(links.get(part))
            link = None if link is None or link.startswith("/") else link
            if part.tag == f"{_SVG}text" and (part.text or "").strip():
                x, y = place(part.attrib["x"], part.attrib["y"])
                anchor: Literal["start", "middle"] = "middle" if part.get("text-anchor") == "middle" else "start"
                size, bold = float(part.attrib["font-size"]) * scale, part.get("font-weight") == "bold"
                # A cell is set off by spaces that cannot break; they are the distance from x to its first letter.
                text = (part.text or "").replace("\u200b", "")  # set by `html_text` for Graphviz alone
                yield Words(text, x, y, anchor, round(size, 3), bold, part.get("fill", "#000000"), link)
            elif part.tag in (f"{_SVG}polygon", f"{_SVG}polyline", f"{_SVG}path"):
                given = part.get("points") or part.get("d") or ""
                points = tuple(place(x, y) for x, y in re.findall(r"(-?[\d.]+),(-?[\d.]+)", given))
                fill, stroke = (None if part.get(n, "none") == "none" else part.get(n) for n in ("fill", "stroke"))
                if points and (fill or stroke):
                    width = float(part.get("stroke-width", 1)) * scale
                    dash = tuple(float(x) * scale for x in re.findall(r"[\d.]+", part.get("stroke-dasharray", "")))
                    yield Outline(points, part.tag == f"{_SVG}path", fill, stroke, width, dash, link)

    return Drawing(box[2] * scale, box[3] * scale, tuple(shapes()))


__all__ = ["Drawing", "Outline", "Words", "read_svg"]
