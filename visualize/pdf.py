"""A picture as PDF: vectors, text that can be selected and searched, fonts inside, the same bytes every time."""

from __future__ import annotations

import functools
import io
from importlib import resources
from typing import Any

from tensorgraph.errors import GraphError
from tensorgraph.visualize.shapes import Outline, Words, read_svg
from tensorgraph.visualize.theme import rgb

LONGEST = 14_400.0  # points: no page is longer. Source: ISO 32000-1, annex C.2
_FONTS = ("Arimo-Regular", "Arimo-Bold")  # of Helvetica's widths, by which Graphviz lays out


def to_pdf(svg: str, title: str, subject: str = "") -> bytes:
    """The PDF of an SVG of a view in `characters`. Raises GraphError [TG394] where ReportLab is missing."""
    try:
        from reportlab.pdfgen.canvas import Canvas
    except ImportError as error:
        raise GraphError("TG394", "PDF needs ReportLab", hint="pip install reportlab; .svg works without it") from error
    drawing = read_svg(svg, LONGEST)
    characters()
    out = io.BytesIO()
    page = Canvas(out, (drawing.width, drawing.height), invariant=1, initialFontName=_FONTS[0])
    page.setTitle(title)
    page.setSubject(subject)
    page.setCreator("tensorgraph")
    page.setLineJoin(1)
    for shape in drawing.shapes:
        if isinstance(shape, Outline):
            _outline(page, shape, drawing.height)
        else:
            _words(page, shape, drawing.height)
    page.showPage()
    page.save()
    return out.getvalue()


@functools.cache
def characters() -> frozenset[int]:
    """The code points that the fonts have, which are registered once: Latin, Greek, Cyrillic, symbols."""
    from reportlab.pdfbase.pdfmetrics import registerFont
    from reportlab.pdfbase.ttfonts import TTFont

    found = []
    for name in _FONTS:
        data = resources.files("tensorgraph.visualize").joinpath("fonts", f"{name}.ttf").read_bytes()
        font = TTFont(name, io.BytesIO(data))
        registerFont(font)
        found.append(frozenset(font.face.charToGlyph))
    return frozenset.intersection(*found)


def _outline(page: Any, shape: Outline, height: float) -> None:
    points = [(x, height - y) for x, y in shape.points]
    path = page.beginPath()
    path.moveTo(*points[0])
    if shape.curved:
        for i in range(1, len(points) - 2, 3):
            path.curveTo(*points[i], *points[i + 1], *points[i + 2])
    else:
        for point in points[1:]:
            path.lineTo(*point)
    if shape.closed:
        path.close()
    if shape.fill:
        page.setFillColorRGB(*_parts(shape.fill))
    if shape.stroke:
        page.setStrokeColorRGB(*_parts(shape.stroke))
        page.setLineWidth(shape.width)
        page.setDash(list(shape.dash))
    page.drawPath(path, stroke=int(shape.stroke is not None), fill=int(shape.fill is not None))
    if shape.link and shape.fill:
        xs, ys = [x for x, _ in points], [y for _, y in points]
        page.linkURL(shape.link, (min(xs), min(ys), max(xs), max(ys)), relative=0, thickness=0)


def _words(page: Any, words: Words, height: float) -> None:
    page.setFillColorRGB(*_parts(words.colour))
    page.setFont(_FONTS[words.bold], words.size)
    draw = page.drawCentredString if words.anchor == "middle" else page.drawString
    draw(words.x, height - words.y, words.text.replace("\u200b", ""))


def _parts(colour: str) -> tuple[float, float, float]:
    r, g, b = rgb(colour)
    return r / 255, g / 255, b / 255


__all__ = ["characters", "to_pdf"]
