"""A picture as TikZ: a LaTeX document of one page, laid out as Graphviz did, in the type of the paper around it."""

from __future__ import annotations

import urllib.parse

from tensorgraph.visualize.escape import latex_text
from tensorgraph.visualize.shapes import Outline, Words, read_svg

LONGEST = 14_400.0  # points; TeX's greatest length is little more

_HEAD = r"""\RequirePackage{fix-cm}
\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[utf8]{inputenc}
\usepackage{textcomp}
\usepackage{helvet}
\usepackage{tikz}
\usepackage[paperwidth=WIDTHbp,paperheight=HEIGHTbp,margin=0bp]{geometry}
\renewcommand{\familydefault}{\sfdefault}
\pagestyle{empty}
\setlength{\parindent}{0pt}
\setlength{\topskip}{0pt}
"""


def to_tikz(svg: str) -> str:
    """The LaTeX document of an SVG that `Picture.svg` made; needs TikZ, hyperref where boxes link, and any TeX engine.

    The `tikzpicture` in it stands alone: it can be moved into a paper together with the colours above it.
    """
    drawing = read_svg(svg, LONGEST)
    colours = {c: f"c{i}" for i, c in enumerate(drawing.colours)}
    lines = [_HEAD.replace("WIDTH", f"{drawing.width:g}").replace("HEIGHT", f"{drawing.height:g}").rstrip("\n")]
    if any(isinstance(s, Words) and s.link for s in drawing.shapes):
        lines.append(r"\usepackage[hidelinks]{hyperref}")
    lines += [rf"\definecolor{{{name}}}{{HTML}}{{{c[1:].upper()}}}" for c, name in colours.items()]
    lines.append(r"\begin{document}")
    lines.append(r"\begin{tikzpicture}[x=1bp,y=-1bp,line join=round,inner sep=0bp,outer sep=0bp]")
    lines.append(rf"\useasboundingbox (0,0) rectangle ({drawing.width:g},{drawing.height:g});")
    for shape in drawing.shapes:
        lines.append(_outline(shape, colours) if isinstance(shape, Outline) else _words(shape, colours))
    return "\n".join([*lines, r"\end{tikzpicture}", r"\end{document}", ""])


def _outline(shape: Outline, colours: dict[str, str]) -> str:
    options = [f"fill={colours[shape.fill]}"] if shape.fill else []
    if shape.stroke:
        options += [f"draw={colours[shape.stroke]}", f"line width={shape.width:g}bp"]
    if shape.dash:
        on, off = shape.dash[0], shape.dash[-1]
        options.append(f"dash pattern=on {on:g}bp off {off:g}bp")
    points = [f"({x:g},{y:g})" for x, y in shape.points]
    if shape.curved:
        arcs = (points[i : i + 3] for i in range(1, len(points) - 2, 3))
        path = points[0] + "".join(f" .. controls {a} and {b} .. {c}" for a, b, c in arcs)
    else:
        path = " -- ".join(points)
    return rf"\path[{', '.join(options)}] {path}{' -- cycle' if shape.closed else ''};"


def _words(words: Words, colours: dict[str, str]) -> str:
    anchor = "base" if words.anchor == "middle" else "base west"
    font = rf"\fontsize{{{words.size:g}bp}}{{{words.size:g}bp}}\selectfont" + (r"\bfseries" if words.bold else "")
    text = latex_text(words.text)
    if words.link:
        text = rf"\href{{{_url(words.link)}}}{{{text}}}"
    place = f"({words.x:g},{words.y:g})"
    return rf"\node[anchor={anchor}, text={colours[words.colour]}, font={{{font}}}] at {place} {{{text}}};"


def _url(link: str) -> str:
    r"""A link inside \href: percent-encoded already, and what TeX would still read is escaped."""
    return "".join(f"\\{c}" if c in "%#&_" else urllib.parse.quote(c) if c in "$~{}^\\" else c for c in link)


__all__ = ["to_tikz"]
