"""View -> DOT text. Graphviz makes the layout; here stand only attributes, and the tables that become labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

from tensorgraph.visualize.escape import clean, dot_string, html_text, safe_link, shorten
from tensorgraph.visualize.legend import CAPTION, EM, legend, room
from tensorgraph.visualize.theme import FONT, Theme, find_theme, style_of
from tensorgraph.visualize.view import Box, Edge, EdgeKind, View

T = TypeVar("T")
Given = Mapping[str, dict[str, str]]  # attributes by name: of a node n0, an edge e0, a cluster_b0, the page ""
NOWHERE: Given = MappingProxyType({})

GAP = 28.8  # points from box to box along the flow
LABEL, SMALL = 13.0, 10.0  # sizes of type, in points

# A heavy edge stays short and straight: what the model computes forms the spine, the rest bends around it.
_EDGES: Mapping[EdgeKind, Mapping[str, str]] = {
    "data": {"weight": "8"},
    "residual": {"weight": "1", "penwidth": "1.6"},
    "tied": {"style": "dashed", "dir": "none", "constraint": "false", "weight": "0", "penwidth": "1.4"},
    "gradient": {"style": "dashed", "arrowtail": "empty", "dir": "back", "weight": "4"},
    "control": {"style": "dotted", "constraint": "false"},
    "order": {"style": "invis", "weight": "1"},
}


def to_dot(view: View, theme: str = "seed", shapes: bool = False, places: Given = NOWHERE) -> str:
    """The view as DOT text; `shapes` draws the labels of edges, `places` has attributes for names in the text.

    The same view gives the same text. Raises GraphError [TG381] for an unknown theme.
    """
    paint = find_theme(theme)
    page = {"label": _title(view, paint), "labeljust": "l", "labelloc": "t", "peripheries": "0", "margin": "12"}
    lines = [
        "digraph {",
        f"  graph [{_attributes(_graph(view, paint) | places.get('', {}))}];",
        f"  node [{_attributes(_NODE)}];",
        f"  edge [{_attributes(_edge_default(paint))}];",
    ]
    names = {box.id: f"n{i}" for i, box in enumerate(view.boxes)}
    leaving = Counter(edge.source for edge in view.edges if edge.kind == "data")
    corners = {box.id for box in view.boxes if box.role == "corner"}
    bridges: list[str] = []  # said first, they bring both their ends together
    edges: list[str] = []
    for i, edge in _reading(view, tuple(enumerate(view.edges))):
        attributes = _edge(edge, i, paint, shapes, leaving[edge.source]) | places.get(f"e{i}", {})
        if edge.target in corners:
            attributes["dir"] = "none"
        line = f"  {' -> '.join(_ends(edge, names))} [{_attributes(attributes)}];"
        (bridges if edge.loose else edges).append(line)
    lines += bridges
    lines.append(f"  subgraph cluster_page {{ graph [{_attributes(page | places.get('cluster_page', {}))}];")
    lines += [*_frames(view, paint, names, places), "  }", *edges, *_level(view, names)]
    return "\n".join([*lines, "}", ""])


def _level(view: View, names: Mapping[str, str]) -> list[str]:
    """Unseen edges that hold the uppermost boxes of a chain below what those read beside which they stand."""
    beside = {box.id: box.beside for box in view.boxes if box.beside is not None}
    lower = {e.source for e in view.edges if e.kind == "gradient" and e.target in beside}
    upper = {to: names[box] for box, to in beside.items() if box not in lower}
    pairs = [(names[e.source], upper[e.target]) for e in view.edges if e.kind == "data" and e.target in upper]
    return [f"  {a} -> {b} [{_attributes(_EDGES['order'])}];" for a, b in dict.fromkeys(pairs)]


def titles(view: View) -> dict[str, str]:
    """What a reader sees on pointing at a part of the picture, by the part's title in Graphviz's SVG."""
    names = {box.id: f"n{i}" for i, box in enumerate(view.boxes)}
    labels = {box.id: box.label for box in view.boxes}
    found = {names[box.id]: tooltip(box) for box in view.boxes}
    for edge in view.edges:
        about = f"{labels[edge.source]} → {labels[edge.target]}"
        said = edge.text(True)
        found["->".join(_ends(edge, names))] = f"{said}: {about}" if said else about
    found |= {f"cluster_b{i}": block.heading for i, block in enumerate(view.blocks)}
    return {key: clean(text) for key, text in found.items()} | {"cluster_page": clean(view.title)}


def _ends(edge: Edge, names: Mapping[str, str]) -> tuple[str, str]:
    """Tail and head: those of what runs up are exchanged, as of a gradient beside the steps that ran down."""
    ends = names[edge.source], names[edge.target]
    return ends[::-1] if edge.up or edge.kind == "gradient" else ends


def tooltip(box: Box) -> str:
    """The box's own tooltip, or its label with every weight's name, shape and count."""
    listed = "; ".join(" ".join(part for part in (w.name, w.shape, w.counted) if part) for w in box.weights)
    return box.tooltip or (f"{box.label}: {listed}" if listed else box.label)


_CORNER = {"shape": "point", "style": "invis", "width": "0.01", "height": "0.01", "label": '""'}
_NODE = {
    "shape": "box",
    "style": "rounded,filled",
    "fontname": FONT,
    "fontsize": f"{LABEL:g}",
    "margin": "0.13,0.07",
    "height": "0.42",
    "width": "0.42",
}


def _graph(view: View, paint: Theme) -> dict[str, str]:
    across = view.direction == "LR"
    return {
        "rankdir": view.direction,
        "bgcolor": paint.page,
        "fontname": FONT,
        "fontsize": f"{CAPTION:g}",
        "fontcolor": paint.muted,
        "pad": "0.25",
        "nodesep": "0.28" if across else "0.36",
        "ranksep": f"{GAP / 72:g}" if across else "0.36",
        "splines": "true",
        "outputorder": "edgesfirst",
        "label": legend(view.whole or view, paint),
        "labelloc": "b",
        "labeljust": "l",
    }


def _edge_default(paint: Theme) -> dict[str, str]:
    return {
        "color": paint.edge,
        "fontcolor": paint.muted,
        "fontname": FONT,
        "fontsize": f"{SMALL:g}",
        "arrowsize": "0.65",
        "penwidth": "1.1",
    }


def _frames(view: View, paint: Theme, names: Mapping[str, str], places: Given) -> list[str]:
    """Boxes and frames in the order of the boxes: a frame opens where its first box stands; an explicit stack nests."""
    numbers = {block.id: i for i, block in enumerate(view.blocks)}
    lines: list[str] = []
    opened: tuple[str, ...] = ()
    for box in _reading(view, view.boxes):
        path = view.path(box)
        shared = 0
        while shared < min(len(path), len(opened)) and path[shared] == opened[shared]:
            shared += 1
        lines += ["  }"] * (len(opened) - shared)
        lines += [_frame(view, paint, numbers[b], depth, places) for depth, b in enumerate(path[shared:], shared)]
        opened = path
        node = _CORNER if box.role == "corner" else _node(box, view, paint)
        lines.append(f"  {names[box.id]} [{_attributes(node | places.get(names[box.id], {}))}];")
    return [*lines, *["  }"] * len(opened)]


def _reading(view: View, items: tuple[T, ...]) -> tuple[T, ...]:
    """Graphviz sets what comes first leftmost, and with rankdir=LR lowest: reversed, the first stands on top."""
    return items if view.direction == "TB" else items[::-1]


def _frame(view: View, paint: Theme, number: int, depth: int, places: Given) -> str:
    block = view.blocks[number]
    attributes = {
        "style": "rounded,dashed,filled" if depth == 0 else "rounded,dashed",
        "color": paint.frame,
        "fillcolor": paint.frame_fill,
        "penwidth": "1.2" if depth == 0 else "0.8",
        "margin": "14" if depth == 0 else "10",
        "labeljust": "l",
        "labelloc": "t",
        "fontname": FONT,
        "peripheries": "1",
    }
    size = LABEL - 1 - min(depth, 2)
    if view.direction == "LR":
        attributes["label"] = _heading(size, paint, block.heading) if block.heading else '""'
        attributes |= places.get(f"cluster_b{number}", {})
        return f"  subgraph cluster_b{number} {{ graph [{_attributes(attributes)}];"
    # Downwards the spine would run through a heading: there it stands as a node, in the first row of its block.
    heading = _heading(size, paint, f"{block.title} {block.times}", block.note)
    node = {"shape": "plaintext", "style": "", "width": "0", "height": "0", "margin": "0.02", "label": heading}
    attributes["label"] = '""'
    return f"  subgraph cluster_b{number} {{ graph [{_attributes(attributes)}];\n  h{number} [{_attributes(node)}];"


def _heading(size: float, paint: Theme, *lines: str) -> str:
    """Lines of text and an empty row below: the lane of edges that pass over boxes, else they cross the text."""
    rows = "".join(
        f'<TR><TD ALIGN="LEFT" WIDTH="{room(shorten(line, 90), size)}">'
        f'<FONT POINT-SIZE="{size - i:g}" COLOR="{paint.text}">'
        f"{_bold(line, i == 0)}</FONT></TD></TR>"
        for i, line in enumerate(lines)
        if line
    )
    return f'<<TABLE BORDER="0" CELLSPACING="0" CELLPADDING="0">{rows}<TR><TD HEIGHT="10"></TD></TR></TABLE>>'


def _bold(line: str, first: bool) -> str:
    text = html_text(shorten(line, 90)) or "&#160;"
    return f"<B>{text}</B>" if first else text


def _node(box: Box, view: View, paint: Theme) -> dict[str, str]:
    style = style_of(box, view, paint)
    rows = view.rows(box)
    attributes = {
        "label": f"<{_label(box, rows)}>",
        "fillcolor": style.fill,
        "color": style.stroke,
        "fontcolor": style.text,
        "style": "filled,rounded" if style.border == "solid" else f"filled,rounded,{style.border}",
        "penwidth": f"{style.width:g}",
        "width": f"{_least_width(box, rows):.2f}",
        "tooltip": dot_string(tooltip(box)),
    }
    link = safe_link(box.link)
    return attributes if link is None else attributes | {"URL": dot_string(link), "target": '"_top"'}


def _label(box: Box, rows: tuple[tuple[str, ...], ...]) -> str:
    columns = max([len(row) for row in rows], default=1)
    span = f' COLSPAN="{columns}"' if columns > 1 else ""
    cells = [f'<TR><TD{span}><FONT POINT-SIZE="{LABEL:g}">{_shown(box.label)}</FONT></TD></TR>']
    for row in rows:
        texts = [f'<FONT POINT-SIZE="{SMALL:g}">{_shown(cell)}</FONT>' for cell in row]
        if len(texts) == 1:
            cells.append(f"<TR><TD{span}>{texts[0]}</TD></TR>")
        else:
            sides = ("LEFT", "CENTER", "RIGHT")
            cells.append(
                "<TR>"
                + "".join(f'<TD ALIGN="{s}">&#160;{t}&#160;</TD>' for s, t in zip(sides, texts, strict=True))
                + "</TR>"
            )
    return f'<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="1">{"".join(cells)}</TABLE>'


def _shown(text: str) -> str:
    """Text in a box: an empty cell would be a syntax error, an endless one would push all else off the page."""
    return html_text(shorten(text)) or "&#160;"


def _least_width(box: Box, rows: tuple[tuple[str, ...], ...]) -> float:
    """Inches that the text takes in a wide font, see `_room`."""
    widest = max([len(shorten(box.label)) * LABEL, *(sum(len(shorten(c)) + 1 for c in row) * SMALL for row in rows)])
    return max(0.42, (EM * widest + 10) / 72)


def box_width(box: Box, view: View) -> float:
    """About how wide a box is, in points."""
    return 72 * _least_width(box, view.rows(box)) + 8


def edge_width(edge: Edge, shapes: bool) -> float:
    """About how much room what is written on an edge takes, in points."""
    said = edge.text(shapes and edge.kind != "residual")
    return 0.85 * EM * SMALL * len(said) if edge.kind != "tied" else 0.0


def _edge(edge: Edge, number: int, paint: Theme, shapes: bool, siblings: int) -> dict[str, str]:
    colours = {"residual": paint.residual, "tied": paint.tied, "gradient": paint.gradient}
    attributes = {"id": f"e{number}", **_EDGES[edge.kind], "color": colours.get(edge.kind, paint.edge)}
    if edge.loose:
        attributes["constraint"] = "false"
    if edge.up:
        attributes["dir"] = "back"
    if edge.kind == "data" and siblings > 1:
        attributes["weight"] = "12"  # what branches at one box stands in one row: queries, keys and values
    said = edge.text(shapes and edge.kind != "residual")  # the shape beside the spine is that of the sum it joins
    if said:
        # The empty row lifts the text off the line, on which it would stand where the line runs level.
        lift = '<TR><TD HEIGHT="3"></TD></TR>'
        text = f"<TR><TD>&#160;{_shown(said)}&#160;</TD></TR>{lift}"
        attributes["label"] = f'<<TABLE BORDER="0" CELLSPACING="0" CELLPADDING="0">{text}</TABLE>>'
    return attributes


def _title(view: View, paint: Theme) -> str:
    return (
        f'<<FONT POINT-SIZE="15" COLOR="{paint.text}"><B>{html_text(shorten(view.title, 120)) or "&#160;"}</B></FONT>>'
    )


def _attributes(pairs: Mapping[str, str]) -> str:
    """Attributes as DOT; a value that begins with `<` or `"` is already a DOT string of ours."""
    return ", ".join(
        f"{key}={value if value.startswith(('<', chr(34))) else dot_string(value)}" for key, value in pairs.items()
    )
