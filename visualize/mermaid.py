"""View -> Mermaid as GitHub renders it: generated ids, quoted and escaped labels, classes for the palette."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tensorgraph.errors import GraphError
from tensorgraph.visualize.escape import clean, mermaid_text, safe_link
from tensorgraph.visualize.theme import Style, Theme, find_theme, kind_of, style_of, values_text
from tensorgraph.visualize.view import Box, EdgeKind, View

MAX_EDGES = 500  # Mermaid's own default, which GitHub keeps
MAX_TEXT = 50_000

_ARROWS: Mapping[EdgeKind, str] = {
    "data": "-->",
    "residual": "-->",
    "tied": "-.-",
    "gradient": "-.->",
    "control": "-.->",
}


def to_mermaid(view: View, theme: str = "seed", shapes: bool = False) -> str:
    """The view as a Mermaid flowchart; `shapes` writes the labels of edges.

    Raises GraphError: [TG385] over 500 edges or 50,000 characters, which GitHub does not draw; [TG381] unknown theme.
    """
    paint = find_theme(theme)
    if len(view.edges) > MAX_EDGES:
        raise GraphError(
            "TG385",
            f"{len(view.edges)} edges: Mermaid draws at most {MAX_EDGES}",
            hint="fold the graph, draw a coarser level, or save .svg, .png or .dot",
        )
    names = {box.id: f"n{i}" for i, box in enumerate(view.boxes)}
    lines = [f"graph {view.direction}", f"    accTitle: {_plain(view.title)}", f"    accDescr: {_plain(view.legend)}"]
    lines += _nodes(view, names)
    for edge in view.edges:
        said = mermaid_text(edge.text(shapes))
        label = f'|"{said}"|' if said else ""
        lines.append(f"    {names[edge.source]} {_ARROWS[edge.kind]}{label} {names[edge.target]}")
    if any(box.value is not None for box in view.boxes):
        about = mermaid_text(f"{values_text(view)}{_limit(view)}")
        lines += [f'    legend["{about}"]', f"    style legend {_css(paint.boxes['plain'], paint)}"]
    lines += _styles(view, names, paint)
    text = "\n".join([*lines, ""])
    if len(text) > MAX_TEXT:
        raise GraphError(
            "TG385",
            f"{len(text)} characters: Mermaid draws at most {MAX_TEXT}",
            hint="fold the graph, draw a coarser level, or save .svg, .png or .dot",
        )
    return text


def _limit(view: View) -> str:
    return "" if view.values_limit is None else f", wrong above {view.values_limit:.0e}"


def _nodes(view: View, names: Mapping[str, str]) -> list[str]:
    """Boxes in order, each in its subgraphs; a block opens once, at its first box, even if its boxes lie apart."""
    inside: dict[str | None, list[Box | str]] = {}
    placed: set[str] = set()
    blocks, numbers = view.block_index, {block.id: i for i, block in enumerate(view.blocks)}
    for box in view.boxes:
        item: Box | str = box
        block = box.block
        while True:
            inside.setdefault(block, []).append(item)
            if block is None or block in placed:
                break
            placed.add(block)
            item, block = block, blocks[block].parent
    lines: list[str] = []
    stack = [iter(inside.get(None, []))]
    while stack:
        pad = "    " * len(stack)
        for thing in stack[-1]:
            if isinstance(thing, Box):
                lines.append(f"{pad}{_box(thing, view, names[thing.id])}")
            else:
                lines.append(f'{pad}subgraph b{numbers[thing]}["{mermaid_text(blocks[thing].heading) or " "}"]')
                stack.append(iter(inside[thing]))
                break
        else:
            stack.pop()
            if stack:
                lines.append("    " * len(stack) + "end")
    return lines


def _box(box: Box, view: View, name: str) -> str:
    rows = [box.label, *("  ".join(part for part in row if part) for row in view.rows(box))]
    text = "<br/>".join(mermaid_text(row) or " " for row in rows)
    left, right = ("([", "])") if box.role in ("input", "output") else ("[", "]")
    kind = kind_of(box, view)
    return f'{name}{left}"{text}"{right}' + ("" if kind == "plain" else f":::{kind}")


def _styles(view: View, names: Mapping[str, str], paint: Theme) -> list[str]:
    kinds = sorted({kind_of(box, view) for box in view.boxes} - {"plain"})
    lines = [f"    classDef {kind} {_css(paint.boxes[kind], paint)}" for kind in kinds]
    lines.append(f"    classDef default {_css(paint.boxes['plain'], paint)}")
    used = {block for box in view.boxes for block in view.path(box)}
    for i in (i for i, block in enumerate(view.blocks) if block.id in used):  # to style an unknown id would make a box
        lines.append(f"    style b{i} fill:none,stroke:{paint.frame},stroke-dasharray:5 4")
    lines += [
        f"    style {names[b.id]} {_css(style_of(b, view, paint), paint)}" for b in view.boxes if b.value is not None
    ]
    thick = [str(i) for i, edge in enumerate(view.edges) if edge.kind == "residual"]
    if thick:
        lines.append(f"    linkStyle {','.join(thick)} stroke-width:2px")
    for box in view.boxes:
        if (link := safe_link(box.link)) is not None:
            lines.append(f'    click {names[box.id]} "{link}"')
    return lines


def _css(style: Style, paint: Theme) -> str:
    """A style as Mermaid writes it; the page may be dark, so a plain box takes the border that shows on both."""
    stroke = paint.frame if style == paint.boxes["plain"] else style.stroke
    dash = {"solid": "", "dashed": ",stroke-dasharray:5 3", "dotted": ",stroke-dasharray:2 3"}[style.border]
    return (
        f"fill:{style.fill},stroke:{stroke},color:{style.text}"
        + (f",stroke-width:{style.width:g}px" if dash or style.width > 2 else "")
        + dash
    )


def _plain(text: str) -> str:
    """Text of an accessibility line, which Mermaid reads to its end without any quoting."""
    return " ".join(re.sub(r"[^\w .,:·×()+/=-]", " ", clean(text)).split()) or "flowchart"
