"""Rows one below the other: Graphviz lays out each row, here they are stacked and joined as lines of text are.

An edge from row to row leaves its row on the right, goes back below it, and enters the other from the left. Within a
row Graphviz leads its ends, to corners that stand for the margins; between rows it runs straight.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from tensorgraph.visualize import engine as graphviz
from tensorgraph.visualize.dot import to_dot
from tensorgraph.visualize.places import BETWEEN, MARGIN, Places, Point, read_places
from tensorgraph.visualize.rows import Rows
from tensorgraph.visualize.view import Block, Box, Edge

LANE, RADIUS = 9.0, 7.0  # points between wires side by side, and of their round corners


@dataclass(frozen=True)
class Wire:
    """An edge between rows, from box `upper` to box `lower`; its corners `leaves` and `enters` lie in `frames`.

    Edges that leave a box with the same frames around share a corner. One that ties weights has both on the left.
    """

    number: int
    edge: Edge
    upper: str
    lower: str
    frames: tuple[str, ...]
    leaves: str
    enters: str

    @property
    def tied(self) -> bool:
        return self.edge.kind == "tied"


def laid_out(rows: Rows, theme: str, shapes: bool, engine: graphviz.Engine) -> str:
    """DOT text of rows with every place in it, for Graphviz to draw as it stands."""
    stack = _Stack(rows)
    parts = [stack.row(r, theme, shapes, engine) for r in range(len(rows.frames))]
    return to_dot(rows.view, theme, shapes, stack.placed(parts).attributes(rows.view))


class _Stack:
    def __init__(self, rows: Rows) -> None:
        self.rows, self.view = rows, rows.view
        self.members: list[list[Box]] = [[] for _ in rows.frames]
        for box in self.view.boxes:
            self.members[rows.row[box.id]].append(box)
        self.main = [[b.id for b in boxes if b.id not in rows.aside] for boxes in self.members]
        wires = [self._wire(i, e) for i, e in enumerate(self.view.edges) if rows.passing(e)]
        self.wires = sorted(wires, key=lambda w: (-len(w.frames), rows.row[w.upper], rows.row[w.lower]))

    def _wire(self, number: int, edge: Edge) -> Wire:
        row = self.rows.row
        upper, lower = sorted((edge.source, edge.target), key=row.__getitem__)
        frames = []
        for a, b in zip(self.rows.frames[row[upper]], self.rows.frames[row[lower]], strict=False):
            if a != b:
                break
            frames.append(a)
        name = f"{edge.kind == 'tied'} {len(frames)} {upper}"
        return Wire(number, edge, upper, lower, tuple(frames), f"from {name}", f"to {row[lower]} {name}")

    # -- one row
    def row(self, r: int, theme: str, shapes: bool, engine: graphviz.Engine) -> Places:
        """The layout of a row with its corners: the leftmost box begins at x = 0, the highest at y = 0."""
        row, main = self.rows.row, self.main[r]
        pieces: list[tuple[Any, Edge]] = []  # what a curve is known by: an edge's number, a corner, None if not seen
        corners: dict[str, Box] = {}
        for number, e in enumerate(self.view.edges):
            if row[e.source] == row[e.target] == r:
                pieces.append((number, e))
        inner = {key for key, _ in pieces}
        within = {(e.source, e.target) for _, e in pieces if e.kind != "tied" and e.source in main and e.target in main}
        first = [b for b in main if b not in {target for _, target in within}]
        last = [b for b in main if b not in {source for source, _ in within}]
        for w in self.wires:
            block = w.frames[-1] if w.frames else None
            if row[w.upper] == r and w.leaves not in corners:
                corners[w.leaves] = Box(w.leaves, "", "corner", block=block)
                ends = (w.leaves, w.upper) if w.tied else (w.upper, w.leaves)
                pieces.append((w.leaves, Edge(*ends, "", w.edge.kind)))
                sides = ((w.leaves, b) for b in first) if w.tied else ((b, w.leaves) for b in last)
                pieces += [held for side in sides for held in _held(*side, ends)]
            if row[w.lower] == r:
                ends = w.enters, w.lower
                if w.enters not in corners:
                    corners[w.enters] = Box(w.enters, "", "corner", block=block)
                    pieces += [held for b in first for held in _held(w.enters, b, ends)]
                pieces.append((w.number, Edge(*ends, w.edge.label, w.edge.kind, note=w.edge.note)))
        for b in self.members[r]:
            if b.id in self.rows.aside:
                pieces += _held(b.id, main[0])
        boxes = (*corners.values(), *self.members[r])
        used = {b for box in boxes for b in self.view.path(box)}
        begun = {f for frames in self.rows.frames[:r] for f in frames}
        blocks = tuple(Block(b.id, "", b.parent) if b.id in begun else b for b in self.view.blocks if b.id in used)
        part = replace(self.view, boxes=boxes, edges=tuple(e for _, e in pieces), blocks=blocks, whole=self.view)
        made = graphviz.render(to_dot(part, theme, shapes), "json", engine)
        out = read_places(made, part, [key for key, _ in pieces])
        lows = [y for key, curve in out.curves.items() if key in inner for _, y in curve]
        for frame in self.rows.frames[r]:  # a residual connection bends lower than Graphviz's frames know
            left, _, right, top = out.frames[frame]
            out.widen(frame, (left, min([top, *lows]) - MARGIN / 2, right, top))
        return out.moved(-min(map(out.left, main)), -out.extent()[3])

    # -- all rows
    def placed(self, parts: Iterable[Places]) -> Places:
        """All rows below each other, and what leads from row to row."""
        out, y = Places(), 0.0
        below = []
        for r, part in enumerate(parts):
            moved = part.moved(0, y)
            out.add(moved)
            below.append(moved.extent()[1])
            lanes = len({w.leaves for w in self.wires if self.rows.row[w.upper] == r and not w.tied})
            y = below[-1] - BETWEEN - LANE * lanes
            if r == 0:
                out.title, out.legend = part.title, part.legend
        self._join(out, below)
        self._nest(out)
        return out

    def _nest(self, p: Places) -> None:
        """Each frame holds those within it."""
        for block in reversed(self.view.blocks):
            if block.parent is not None and block.id in p.frames:
                left, bottom, right, top = p.frames[block.id]
                p.widen(block.parent, (left - MARGIN, bottom - MARGIN * 0.7, right + MARGIN, top + MARGIN * 0.7))

    def _join(self, p: Places, below: list[float]) -> None:
        """Wires as curves, the innermost first; frames are widened for those that pass within them."""
        lanes: dict[int, list[str]] = {}
        for w in sorted(self.wires, key=lambda w: p.boxes[w.leaves][1]):
            lane = lanes.setdefault(self.rows.row[w.upper], [])
            if not w.tied and w.leaves not in lane:
                lane.append(w.leaves)  # the higher one leaves, the farther right and the lower back
        trunks: dict[str, float] = {}
        depth, taken = -1, list[float]()
        for w in self.wires:
            if len(w.frames) != depth:
                depth, taken = len(w.frames), []
                self._nest(p)
            if w.leaves not in trunks:
                trunks[w.leaves] = self._trunk(p, w, taken)
                taken.append(trunks[w.leaves])
            start, end, x = p.boxes[w.leaves], p.boxes[w.enters], trunks[w.leaves]
            right, way = x, [start, (x, start[1])]
            if not w.tied:
                r = self.rows.row[w.upper]
                place = lanes[r].index(w.leaves)
                right, y = start[0] + LANE * (1 + place), below[r] - BETWEEN * 0.6 - LANE * place
                way = [start, (right, start[1]), (right, y), (x, y)]
            first = p.curves[w.leaves][:: -1 if w.tied else 1]
            if w.tied and self._hangs(p, w):  # from below it crosses nothing that enters the last row
                under, (at, y), (_, high) = below[-1] - LANE, p.boxes[w.lower], p.sizes[w.lower]
                p.curves[w.number] = [*first, *_rounded([*way, (x, under), (at, under), (at, y - high / 2)])]
            else:
                p.curves[w.number] = [*first, *_rounded([*way, (x, end[1]), end]), *p.curves[w.number][1:]]
            for frame in w.frames:
                _, bottom, _, top = p.frames[frame]
                p.widen(frame, (x - MARGIN, bottom, right + MARGIN, top))
        for w in self.wires:
            p.curves.pop(w.leaves, None)
            for corner in (w.leaves, w.enters):
                p.boxes.pop(corner, None)

    def _hangs(self, p: Places, wire: Wire) -> bool:
        """Whether the lower end stands in the last row, outside all frames, with nothing below."""
        r, (x, y), (wide, _) = self.rows.row[wire.lower], p.boxes[wire.lower], p.sizes[wire.lower]
        boxes = [b.id for b in self.members[r] if b.id != wire.lower]
        free = all(p.boxes[b][1] >= y or abs(p.boxes[b][0] - x) > (p.sizes[b][0] + wide) / 2 for b in boxes)
        return free and r == len(self.members) - 1 and not any(self.view.path(b) for b in self.members[r])

    def _trunk(self, p: Places, wire: Wire, taken: list[float]) -> float:
        """Where a wire runs down: left of all that stands in the rows that it passes and of the frames it enters."""
        row = self.rows.row
        alike = [w for w in self.wires if w.leaves == wire.leaves]
        last = max(row[w.lower] for w in alike)
        xs = [p.boxes[c][0] for w in alike for c in ((w.enters, w.leaves) if w.tied else (w.enters,))]
        for r in range(row[wire.upper] + 1, last + 1):
            xs += [p.frames[f][0] for f in self.rows.frames[r][len(wire.frames) :]]
            xs += [p.left(b.id) for b in self.members[r] if r < last]
        x = min(xs) - LANE
        while any(abs(x - other) < LANE / 2 for other in taken):
            x -= LANE
        return x


def _held(tail: str, head: str, *drawn: tuple[str, str]) -> list[tuple[None, Edge]]:
    """An edge that only keeps `tail` left of `head`, unless one that is seen does."""
    return [] if (tail, head) in drawn else [(None, Edge(tail, head, "", "order"))]


def _rounded(corners: list[Point]) -> list[Point]:
    """Straight lines with round corners, as a Bézier curve that goes on from its first point."""
    out: list[Point] = []
    at = corners[0]
    for before, corner, after in zip(corners, corners[1:], corners[2:], strict=False):
        a, b = _towards(corner, before), _towards(corner, after)
        out += [at, a, a, corner, corner, b]
        at = b
    return [*out, at, corners[-1], corners[-1]]


def _towards(a: Point, b: Point) -> Point:
    """The point that is RADIUS from a, or half the way, to b."""
    far = abs(a[0] - b[0]) + abs(a[1] - b[1])
    part = min(RADIUS, far / 2) / far if far else 0.0
    return a[0] + (b[0] - a[0]) * part, a[1] + (b[1] - a[1]) * part


__all__ = ["laid_out"]
