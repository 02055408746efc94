"""Where a wide picture breaks into rows, as text does. Graphviz places the boxes; here it is said which share a row.

A good place to break is one that a single value passes, as between two sublayers. Rows are chosen as TeX chooses lines:
the least sum of squares of what is left blank, and of values beyond the one that pass a break.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from tensorgraph.visualize.view import Box, Edge, View

WIDTH = 1100.0  # points: as wide as a README or a page shows with text that can be read
_INSET = 34.0  # what a frame takes on both sides


@dataclass(frozen=True)
class Rows:
    """A view with the row of each box, from the top; `frames`: the blocks that a row lies in, outermost first.

    `aside`: inputs that are read within a frame of several rows; they stand in it, at the left.
    """

    view: View
    row: Mapping[str, int]
    frames: tuple[tuple[str, ...], ...]
    aside: frozenset[str] = frozenset()

    def passing(self, edge: Edge) -> bool:
        """Whether an edge leads from row to row."""
        return self.row[edge.source] != self.row[edge.target]


def broken(view: View, width: Callable[[Box, View], float], gap: float, limit: float = WIDTH) -> Rows:
    """The rows of a view from left to right; one row where all fits, or the view runs downwards."""
    if view.direction == "TB" or any(e.kind == "gradient" for e in view.edges):
        return _one(view)
    pieces = _Pieces(view, width, gap)
    if pieces.width(0, len(pieces.boxes)) <= limit:
        return _one(view)
    starts = sorted({0, *pieces.breaks(limit)})
    if len(starts) == 1:
        return _one(view)
    return _with_ports(pieces.rows(starts))


def _one(view: View) -> Rows:
    return Rows(view, {box.id: 0 for box in view.boxes}, ((),))


class _Pieces:
    """The boxes in reading order, the values that pass between them, and how wide a piece of them is."""

    def __init__(self, view: View, width: Callable[[Box, View], float], gap: float) -> None:
        self.view = view
        flows = [e for e in view.edges if e.kind != "tied"]
        fed, feeding = {e.target for e in flows}, {e.source for e in flows}
        # What only brings a value from outside goes with what reads it and is no reason against a break.
        self.aside = {b.id for b in view.boxes if b.block is None and b.id not in fed and b.id in feeding}
        self.boxes = [b for b in view.boxes if b.id not in self.aside]
        self.index = {b.id: i for i, b in enumerate(self.boxes)}
        self.paths = [view.path(b) for b in self.boxes]
        self.wide = [width(b, view) + gap for b in self.boxes]
        pairs = [(self.index[e.source], self.index[e.target]) for e in flows if e.source not in self.aside]
        self.pairs = [(a, b) for a, b in pairs if a < b]
        self.into: list[list[int]] = [[] for _ in self.boxes]
        for a, b in self.pairs:
            self.into[b].append(a)
        self.last = [i for i in range(len(self.boxes))]
        for a, b in self.pairs:
            self.last[a] = max(self.last[a], b)

    def width(self, first: int, end: int, most: float = float("inf")) -> float:
        """Of the longest path within the boxes [first, end); what exceeds `most` is not looked at."""
        reach: list[float] = []
        for i in range(first, end):
            before = max((reach[a - first] for a in self.into[i] if a >= first), default=0.0)
            reach.append(before + self.wide[i])
            if reach[-1] > most:
                break
        return max(reach, default=0.0)

    def breaks(self, limit: float) -> list[int]:
        """Where rows start: around every frame that must itself be broken, and between by `_lines`."""
        found: list[int] = []
        stack = [(0, len(self.boxes), 0, limit)]
        while stack:
            first, end, depth, most = stack.pop()
            start = at = first
            cuts: list[int] = []
            while at < end:
                until = at + 1
                if len(self.paths[at]) > depth:
                    frame = self.paths[at][depth]
                    while until < end and frame in self.paths[until]:
                        until += 1
                    if self.width(at, until) > most - _INSET:
                        found += [*self._lines(start, at, cuts, most), at, until]
                        stack.append((at, until, depth + 1, most - _INSET))
                        start, cuts = until, []
                        at = until
                        continue
                cuts.append(at)
                at = until
            found += self._lines(start, end, cuts, most)
        return [i for i in found if i < len(self.boxes)]

    def _lines(self, first: int, end: int, cuts: Sequence[int], most: float) -> list[int]:
        """Breaks among `cuts` that leave the least blank, and that the fewest values pass."""
        points = [first, *(c for c in cuts if c > first), end]
        if end <= first or self.width(first, end) <= most:
            return []
        passing = {at: len({a for a, b in self.pairs if first <= a < at <= b}) for at in points}
        best = {first: (0.0, [first])}
        for i, b in enumerate(points[1:], 1):
            options = []
            for a in reversed(points[:i]):
                wide = self.width(a, b, 4 * most)
                blank = (most - wide) / most
                cost = (blank * blank if blank >= 0 else -20 * blank) + 4.0 * max(0, passing[b] - 1)
                cost += 8.0 if b - a == 1 else 0.0
                options.append((best[a][0] + cost + 0.05, a))
                if wide > 2 * most:
                    break
            cost, a = min(options)
            best[b] = cost, [*best[a][1], b]
        return best[end][1][1:-1]

    def rows(self, starts: Sequence[int]) -> Rows:
        row: dict[str, int] = {}
        frames: list[tuple[str, ...]] = []
        for r, (a, b) in enumerate(pairwise([*starts, len(self.boxes)])):
            row.update((box.id, r) for box in self.boxes[a:b])
            common = self.paths[a]
            for path in self.paths[a:b]:
                shared = 0
                while shared < min(len(common), len(path)) and common[shared] == path[shared]:
                    shared += 1
                common = common[:shared]
            whole = [f for f in common if self._broken(f, a, b)]
            frames.append(tuple(whole))
        for e in self.view.edges:
            if e.source in self.aside and e.target in row:
                row[e.source] = min(row.get(e.source, len(frames)), row[e.target])
        aside = {i: frames[row[i]][-1] for i in self.aside if frames[row[i]]}
        ordered = [replace(b, block=aside.get(b.id, b.block)) for b in self.view.boxes]
        ordered.sort(key=lambda b: row[b.id])
        return Rows(replace(self.view, boxes=tuple(ordered)), row, tuple(frames), frozenset(aside))

    def _broken(self, frame: str, first: int, end: int) -> bool:
        """Whether a frame has boxes outside these."""
        return any(frame in p for p in self.paths[:first]) or any(frame in p for p in self.paths[end:])


def _with_ports(rows: Rows) -> Rows:
    """Where several boxes of a row read a value from another row, it enters through a box of its own."""
    view, row = rows.view, dict(rows.row)
    readers: dict[tuple[str, int, str], list[Edge]] = {}
    for e in view.edges:
        if rows.passing(e) and e.kind != "tied" and e.source not in rows.aside:
            readers.setdefault((e.source, row[e.target], e.note), []).append(e)
    labels = {b.id: b.label for b in view.boxes}
    boxes, edges = list(view.boxes), list(view.edges)
    for number, ((source, r, note), found) in enumerate(readers.items()):
        if len(found) < 2:
            continue
        port = f"row{number}"
        row[port] = r
        first = min(i for i, b in enumerate(boxes) if row[b.id] == r and b.id not in rows.aside)
        block = rows.frames[r][-1] if rows.frames[r] else None
        boxes.insert(first, Box(port, "x", block=block, tooltip=f"{labels[source]}, from the row above"))
        edges = [replace(e, source=port, note="") if e in found else e for e in edges]
        edges.append(Edge(source, port, found[0].label, note=note))
    return Rows(replace(view, boxes=tuple(boxes), edges=tuple(edges)), row, rows.frames, rows.aside)
