"""Tiles: steps that share their rows run block after block of them: what passes between them never exists whole.

A tile is grown from a product whose result is wide: logits, the scores of attention. It takes in the result's maker and
all its readers, as long as each can do with some rows at a time: regions over those rows, products of those rows, and
products that sum over them, block by block. Then the result is *local*: it has room for one block of rows. How many
rows that is depends on sizes alone, so results do not depend on the number of threads.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping

from .. import dims
from ..dims import Dim, Shape
from ..errors import SizeError
from . import fuse
from .causal import causal
from .fuse import Piece, Step
from .layout import identical, layout, one, per_row, row_major, zero
from .program import Program, Tile, Value

WIDE, LONGER = (
    1 << 24,
    4,
)  # bytes from which on a value is worth a tile, if its rows are so much longer than its maker's
UNKNOWN = 1024  # what a symbol counts for where it has no value yet
Fits = Callable[[Piece], bool]


def tile(program: Program, fits: Fits, binding: Mapping[str, int]) -> Program:
    """The program with tiles, in a new order if there are any. `fits`: products that the backend makes in parts."""
    tiling = _Tiling(program, fits, binding)
    program.kernels[:] = tiling.run()
    if tiling.unit:
        fuse.place(program)
    return program


class _Tiling:
    def __init__(self, program: Program, fits: Fits, binding: Mapping[str, int]) -> None:
        self.steps = [k for k in program.kernels if isinstance(k, Step)]
        self.fits, self.binding = fits, binding
        self.kept = {v.root for v in program.outputs.values()}
        self.makers: dict[Value, list[int]] = {}
        self.readers: dict[Value, list[int]] = {}
        self.unit: dict[int, set[int]] = {}  # all steps of a tile, by each of them

    def run(self) -> list[Step]:
        """The steps in order; those of a tile next to each other."""
        seeds = [n for n, s in enumerate(self.steps) if self._product(s) and self._wide(s.pieces[0])]
        if seeds:
            self._depend()
        for n in seeds:
            if n not in self.unit:
                self._grow(self.steps[n].outputs[0])
        return self._order() if self.unit else self.steps

    def _product(self, s: Step) -> bool:
        p = s.pieces[0]
        return p.kind == "special" and p.name == "matmul" and all(len(v.shape) > 1 for v in p.inputs) and self.fits(p)

    def _wide(self, p: Piece) -> bool:
        """Whether a product's result is large, and its rows far longer than those it is made of."""

        def number(d: Dim) -> int:
            return dims.evaluate(d, {n: self.binding.get(n, UNKNOWN) for n in dims.free(d)})

        out = p.outputs[0]
        try:
            large = number(dims.size(out.shape)) * out.dtype.size >= WIDE
            return large and number(out.shape[-1]) > LONGER * number(p.inputs[0].shape[-1])
        except SizeError:  # what an unknown size stands for is not divisible as the graph demands
            return False

    def _depend(self) -> None:
        """What must run after each step: readers of what it makes, and who overwrites a leaf that it touches."""
        self.after: list[set[int]] = [set() for _ in self.steps]
        for n, s in enumerate(self.steps):
            before: set[int] = set()
            for v in {v.root for v in s.inputs}:
                before.update(self.makers.get(v, ()))
                self.readers.setdefault(v, []).append(n)
            for v in {v.root for v in s.outputs}:
                if v.kind == "leaf":
                    before.update(self.readers.get(v, ()), self.makers.get(v, ()))
                self.makers.setdefault(v, []).append(n)
            for m in before - {n}:
                self.after[m].add(n)

    # -- growing
    def _grow(self, seed: Value) -> None:
        lead, rows = seed.shape[:-2], seed.shape[-2]
        tile, size = Tile(dims.size(lead), rows), dims.size(seed.shape)
        roles: dict[int, str] = {}  # of its steps
        seen, queue = {seed}, [seed]
        while queue:
            v = queue.pop(0)
            around = sorted({*self.makers[v], *self.readers.get(v, ())})
            more = {**roles, **{n: self._role(n, v, tile, lead) for n in around}}
            if v in self.kept or any(n in self.unit for n in around) or not self._together(more, roles, tile, lead):
                continue
            roles = more
            tile.local[v] = dims.div(dims.size(v.shape), dims.mul(tile.entries, rows))
            for n in around:
                for w in dict.fromkeys(x.root for x in (*self.steps[n].inputs, *self.steps[n].outputs)):
                    like = w in self.makers and w in self.readers and dims.same(dims.size(w.shape), size)
                    if like and w not in seen:
                        seen.add(w)
                        queue.append(w)
        for n, role in roles.items():
            self.steps[n].tile = tile
            self.unit[n] = set(roles)
            if role == "sums":
                tile.sums.add(self.steps[n])
        tile.causal = bool(roles) and causal([self.steps[n] for n in sorted(roles)], tile)

    def _together(self, more: dict[int, str], roles: dict[int, str], tile: Tile, lead: Shape) -> bool:
        """Whether steps may run block by block: each with what others made of its rows, and none else in between."""
        if "" in more.values() or any(more[n] != role for n, role in roles.items()):
            return False
        for n in more:
            for v in {v.root for v in self.steps[n].inputs}:
                if any(m in more for m in self.makers.get(v, ())) and self._role(n, v, tile, lead) != more[n]:
                    return False
        return not self._between(set(more))

    def _role(self, n: int, v: Value, tile: Tile, lead: Shape) -> str:
        """How a step does with some rows of a value that it makes or reads: it makes those "rows", or "sums" over them;
        "" if it needs all."""
        s = self.steps[n]
        if s.region:
            return "rows" if self._region(s, v, dims.mul(tile.entries, tile.rows)) else ""
        if not self._product(s):
            return ""
        (x, y), out, mine = s.pieces[0].inputs, s.outputs[0], (*lead, tile.rows)
        if v is out or (v is x.root and v is not y.root and _rows_first(x, mine)):
            return "rows" if dims.same_shape(out.shape[:-1], mine) else ""
        fits = dims.same_shape(y.shape[:-1], mine) and dims.same_shape((*x.shape[:-2], x.shape[-1]), mine)
        if fits and (v is not x.root or _rows_last(x, mine)) and (v is not y.root or _rows_first(y, mine)):
            return "sums"
        return ""

    def _region(self, s: Step, v: Value, rows: Dim) -> bool:
        """Whether a region over these rows makes or reads v row by row, and overwrites nothing of the caller's."""
        if s.serial or one(rows) or not dims.same(s.rows, rows) or any(o.kind == "leaf" for o in s.outputs):
            return False
        for p in s.pieces:
            if v in p.outputs and (p.place is not None or p.kind in ("column", "total") or p.name == "zero"):
                return False
            for i, w in enumerate(p.inputs):
                if w.root is v and v not in s.outputs:
                    at = p.read(i, s.columns)
                    if at is None or not (identical(at, rows, s.columns) or per_row(at, rows)):
                        return False
        return True

    def _between(self, inside: set[int]) -> bool:
        """Whether a step that is none of these must run after one of them and before another."""
        end = max(inside)
        for unit in self.unit.values():
            end = max(end, max(unit)) if min(unit) < end else end
        stack = [m for n in inside for m in self.after[n] if m not in inside]
        seen: set[int] = set()
        while stack:
            n = stack.pop()
            if n in seen or n > end:
                continue
            for k in self.unit.get(n, (n,)):
                seen.add(k)
                if not self.after[k].isdisjoint(inside):
                    return True
                stack += self.after[k]
        return False

    def _order(self) -> list[Step]:
        """Each tile as one, as early as it may run; else the order that was."""
        units = {n: tuple(sorted(self.unit.get(n, (n,)))) for n in range(len(self.steps))}
        after = {u: {units[m] for n in u for m in self.after[n]} - {u} for u in units.values()}
        waiting = dict.fromkeys(after, 0)
        for users in after.values():
            for u in users:
                waiting[u] += 1
        ready = [u for u, n in waiting.items() if not n]
        heapq.heapify(ready)
        order: list[Step] = []
        while ready:
            u = heapq.heappop(ready)
            order += [self.steps[n] for n in u]
            for w in after[u]:
                waiting[w] -= 1
                if not waiting[w]:
                    heapq.heappush(ready, w)
        assert len(order) == len(self.steps), "tiles make a cycle"
        return order


def _rows_first(v: Value, rows: Shape) -> bool:
    """Whether a value is a matrix of columns for each of these rows, one after another."""
    at = layout(v)
    return zero(at.offset) and dims.same_shape(v.shape[:-1], rows) and dims.same_shape(at.strides, row_major(v.shape))


def _rows_last(v: Value, rows: Shape) -> bool:
    """The same, transposed."""
    at = layout(v)
    shape = (*v.shape[:-2], v.shape[-1], v.shape[-2])
    strides = (*at.strides[:-2], at.strides[-1], at.strides[-2])
    return zero(at.offset) and dims.same_shape(shape[:-1], rows) and dims.same_shape(strides, row_major(shape))


__all__ = ["tile"]
