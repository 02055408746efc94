"""View -> plain text: one line per step, frames for blocks, and the inputs of a step unless it is the line above."""

from __future__ import annotations

from collections.abc import Mapping

from tensorgraph.visualize.escape import clean
from tensorgraph.visualize.theme import Kind, kind_of, values_text
from tensorgraph.visualize.view import Edge, View

_MARKS: dict[Kind, str] = {
    "weight": "■",
    "trained": "■",
    "frozen": "□",
    "mixed": "◧",
    "tied": "◇",
    "constant": "·",
    "plain": " ",
}


def to_text(view: View, shapes: bool = False) -> str:
    """The view as text for a terminal, without colours; `shapes` adds the labels of edges."""
    lines = [clean(view.title), ""]
    opened: tuple[str, ...] = ()
    blocks = view.block_index
    above: str | None = None
    labels = {box.id: clean(box.label) for box in view.boxes}
    arriving: dict[str, list[Edge]] = {box.id: [] for box in view.boxes}
    for edge in view.edges:
        arriving[edge.target].append(edge)
    heads = {
        box.id: "│ " * len(view.path(box)) + f"{_MARKS[kind_of(box, view)]} {labels[box.id]}" for box in view.boxes
    }
    saids = {box.id: "  ".join(clean(cell) for row in view.rows(box) for cell in row if cell) for box in view.boxes}
    wide = max(map(len, heads.values()), default=0), max(map(len, saids.values()), default=0)
    for box in view.boxes:
        path = view.path(box)
        shared = 0
        while shared < min(len(path), len(opened)) and path[shared] == opened[shared]:
            shared += 1
        lines += ["│ " * depth + "└─" for depth in range(len(opened) - 1, shared - 1, -1)]
        for depth in range(shared, len(path)):
            lines.append("│ " * depth + "┌ " + clean(blocks[path[depth]].heading))
        opened = path
        sources = _sources(labels, arriving[box.id], above, shapes)
        lines.append(f"{heads[box.id]:<{wide[0]}}  {saids[box.id]:<{wide[1]}}  {sources}")
        above = box.id
    lines += ["│ " * depth + "└─" for depth in range(len(opened) - 1, -1, -1)]
    return "\n".join([*(line.rstrip() for line in lines), *_legend(view), ""])


def _sources(labels: Mapping[str, str], edges: list[Edge], above: str | None, shapes: bool) -> str:
    if not shapes and len(edges) == 1 and edges[0].source == above and edges[0].kind == "data" and not edges[0].note:
        return ""
    parts = []
    for edge in edges:
        about = [word for word in (edge.kind if edge.kind != "data" else "", clean(edge.text(shapes))) if word]
        parts.append(labels[edge.source] + (f" ({', '.join(about)})" if about else ""))
    return "← " + ", ".join(parts) if parts else ""


def _legend(view: View) -> list[str]:
    kinds = {kind_of(box, view) for box in view.boxes}
    words = {
        "weight": clean(view.legend),
        "trained": "trained",
        "frozen": "frozen",
        "mixed": "partly trained",
        "tied": "tied: stored once",
    }
    lines = [f"{_MARKS[kind]} {text}" for kind, text in words.items() if kind in kinds and text]
    if any(box.value is not None for box in view.boxes):
        lines.append(clean(values_text(view)))
    lines += map(clean, view.notes)
    return ["", *lines] if lines else []
