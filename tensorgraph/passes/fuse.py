"""Regions: elementwise kernels and reductions over one space of rows and columns become one loop nest.

A value that only its region reads has no place in memory. The pass knows no language: backends say which kernels
they can express (`maps`: per element; `special`: by a kernel of their own); the rest stays as single steps.
"""

from __future__ import annotations

import heapq
from collections.abc import Container, Iterable
from dataclasses import dataclass, field

from .. import dims
from ..dims import Dim, Shape
from ..dtypes import uint8 as BYTE
from .layout import Access, Layout, access, box, broadcast, identical, layout, one, per_row, row_major, zero
from .program import Buffer, Kernel, Program, Tile, Value

BLOCKS = 16  # parts into which rows are cut where sums run across them: fixed, so that no sum depends on the threads
SMALL = 1 << 14  # elements up to which a region of known sizes is run as one part
WIDEST = 24  # pieces that read memory in one region
REDUCTIONS = {"sum", "max", "min"}


@dataclass(eq=False)
class Piece:
    """A member of a region. `reads`: how it reads each input over `shape`; `place`: where output 0 goes.

    kind: map (one result per element), reduce (per row), column (per column), total (one), gather (per row: the element
    at a column given as data); or special, python: steps of their own.
    """

    kernel: Kernel
    kind: str
    name: str
    inputs: list[Value]
    outputs: list[Value]
    shape: Shape = ()
    reads: list[Layout] = field(default_factory=list)
    place: Layout | None = None
    columns: Dim | None = None  # the only row length that suits it
    before: list[Piece] = field(default_factory=list)
    index: int = 0
    size: Dim = 1
    per_row: bool = False  # a map over rows alone
    memo: dict[tuple[int, Dim], Access | None] = field(default_factory=dict)

    def read(self, i: int, columns: Dim) -> Access | None:
        key = (i, 1 if self.per_row else columns)
        if key not in self.memo:
            shape = self.kernel.inputs[1].shape if self.kind == "gather" and i == 1 else self.shape
            self.memo[key] = access(
                self.reads[i], shape, 1 if self.per_row or (self.kind == "gather" and i == 1) else columns
            )
        return self.memo[key]

    def write(self, columns: Dim) -> Access | None:
        key = (-1, 1 if self.per_row else columns)
        if key not in self.memo:
            at = self.place or Layout(self.outputs[0], 0, row_major(self.shape))
            self.memo[key] = access(at, self.shape, 1 if self.per_row else columns)
        return self.memo[key]


@dataclass(eq=False)
class Step(Kernel):
    """One step of a fused program: a region's pieces in order, over `rows` x `columns`; or a single piece."""

    pieces: list[Piece] = field(default_factory=list)
    rows: Dim = 1
    columns: Dim = 1
    stored: list[Value] = field(default_factory=list)
    scratch: Buffer | None = None
    serial: bool = False  # so small that it is one part
    tile: Tile | None = None

    @property
    def region(self) -> bool:
        return self.pieces[0].kind not in ("special", "python")


def generated(k: Kernel) -> bool:
    """Whether a step becomes code of its own, rather than a call of a record's forward."""
    return isinstance(k, Step) and k.pieces[0].kind != "python"


def fuse(program: Program, maps: Container[str], special: Container[str], limit: int = WIDEST) -> Program:
    """The program in steps: pieces grouped into regions, ordered anew, with places in memory planned anew."""
    pieces = list(_pieces(program, maps, special))
    grouped = _Grouping(pieces, limit).run()
    out = Program([], program.values, [], program.leaves, program.outputs, program.donated)
    out.kernels.extend(grouped)
    place(out)
    return out


# ---------------------------------------------------------------------------------------------- pieces


def _pieces(program: Program, maps: Container[str], special: Container[str]) -> Iterable[Piece]:
    for k in program.kernels:
        yield from _split(k, maps, special)
    for name, key in program.donated.items():
        v, leaf = program.outputs[name], program.leaves[key]
        if v is not leaf:
            yield _copy(Kernel(v.node, [v], [leaf], "copy", (None,)), v, leaf)


def _copy(k: Kernel, v: Value, out: Value, place: Layout | None = None, read: Layout | None = None) -> Piece:
    shape = v.shape
    return Piece(k, "map", "copy", [v], [out], shape, [read or layout(v)], place, size=dims.size(shape))


def _split(k: Kernel, maps: Container[str], special: Container[str]) -> Iterable[Piece]:
    node, out = k.node, k.outputs[0]
    name = node.op.name
    stored = {"bfloat16"} if name.startswith("packed_") else set()  # weights that are unpacked as they are read
    if not all(v.dtype.name in SUPPORTED or v.dtype.name in stored for v in (*k.inputs, *k.outputs)):
        yield Piece(k, "python", name, k.inputs, k.outputs)
    elif k.kind == "copy":
        yield _copy(k, k.inputs[0], out)
    elif name in maps:
        reads = [broadcast(layout(v), v.shape, out.shape) for v in k.inputs]
        yield Piece(k, "map", name, k.inputs, k.outputs, out.shape, reads, size=dims.size(out.shape))
    elif name in REDUCTIONS:
        yield _reduction(k)
    elif name == "concat":
        axis: int = node.attrs["axis"]
        start: Dim = 0
        whole = Layout(out, 0, row_major(out.shape))
        for v in k.inputs:
            ranges = [(start if i == axis else 0, 0, 1) for i in range(len(out.shape))]
            yield _copy(k, v, out, box(whole, ranges))
            start = dims.add(start, v.shape[axis])
    elif name == "pad":
        fill = Piece(k, "map", "zero", [], [out], out.shape, size=dims.size(out.shape))
        yield fill
        whole = Layout(out, 0, row_major(out.shape))
        part = _copy(k, k.inputs[0], out, box(whole, [(lo, 0, inner + 1) for lo, _, inner in node.attrs["widths"]]))
        part.before.append(fill)
        yield part
    elif name == "flip":
        v, axis = k.inputs[0], node.attrs["axis"]
        at = layout(v)
        last = dims.mul(dims.sub(v.shape[axis], 1), at.strides[axis])
        turned = tuple(dims.mul(-1, s) if i == axis else s for i, s in enumerate(at.strides))
        yield _copy(k, v, out, None, Layout(at.root, dims.add(at.offset, last), turned))
    elif (
        name == "take_along" and node.attrs["axis"] == len(out.shape) - 1 and one(out.shape[-1]) and "gather" in special
    ):
        x, ids = k.inputs
        yield Piece(
            k,
            "gather",
            name,
            k.inputs,
            k.outputs,
            x.shape,
            [layout(x), layout(ids)],
            columns=x.shape[-1],
            size=dims.size(x.shape),
        )
    else:
        yield Piece(k, "special" if name in special else "python", name, k.inputs, k.outputs)


SUPPORTED = {"bool", "int8", "uint8", "int32", "int64", "float32", "float64"}


def _reduction(k: Kernel) -> Piece:
    x, out = k.inputs[0], k.outputs[0]
    name, size = k.node.op.name, dims.size(x.shape)
    marks = [(d, i in k.node.attrs["axis"]) for i, d in enumerate(x.shape) if not one(d)]
    kinds = [m for _, m in marks]
    read = layout(x)
    if x.dtype.kind == "b":
        return Piece(k, "python", name, k.inputs, k.outputs)
    if not any(kinds):
        return Piece(k, "map", "copy", k.inputs, k.outputs, x.shape, [read], size=size)
    if all(kinds):
        return Piece(k, "total", name, k.inputs, k.outputs, x.shape, [read], size=size)
    if kinds == sorted(kinds):
        return Piece(
            k,
            "reduce",
            name,
            k.inputs,
            k.outputs,
            x.shape,
            [read],
            columns=dims.size([d for d, m in marks if m]),
            size=size,
        )
    if kinds == sorted(kinds, reverse=True):
        return Piece(
            k,
            "column",
            name,
            k.inputs,
            k.outputs,
            x.shape,
            [read],
            columns=dims.size([d for d, m in marks if not m]),
            size=size,
        )
    return Piece(k, "special", "reduce", k.inputs, [out])


# -------------------------------------------------------------------------------------------- grouping


class _Group:
    def __init__(self, pieces: list[Piece], columns: Dim | None) -> None:
        self.pieces, self.columns = pieces, columns
        self.size = pieces[0].size
        self.top = pieces[-1].index  # the last piece of it, or of any group that must run before it
        self.recomputed = pieces[0].kernel.node.scope.kind == "recomputed"  # these come late, and stay by themselves


class _Grouping:
    """Greedy: each piece joins the groups of its producers, then groups that read the same large value."""

    def __init__(self, pieces: list[Piece], limit: int) -> None:
        self.pieces, self.limit = pieces, limit
        self.group: list[_Group] = []
        self.maker: dict[Value, list[Piece]] = {}
        self.writers: dict[Value, list[Piece]] = {}
        self.preds: list[list[int]] = []
        self.succs: list[list[int]] = []
        self.readers: dict[Value, list[Piece]] = {}
        self.fits: dict[tuple[int, bool, Dim], bool] = {}
        self.early = _early(pieces)

    def run(self) -> list[Step]:
        for i, p in enumerate(self.pieces):
            p.index = i
            self._depend(p)
            self.group.append(_Group([p], p.columns))
            if p.kind not in ("special", "python"):
                g = self.group[i]
                g.columns = self._columns([p], p.columns)
                if g.columns is None:  # no single stride leads along its rows
                    p.kind, p.name = ("special", "reduce") if p.name in REDUCTIONS else ("python", p.name)
                    self._read(p)
                    continue
                for q in self._candidates(p):
                    self._join(self.group[q], self.group[i])
            self._read(p)
        return self._order()

    def _read(self, p: Piece) -> None:
        for v in p.inputs:
            self.readers.setdefault(v.root, []).append(p)

    def _depend(self, p: Piece) -> None:
        """After whom a piece must run: writers of what it reads, and readers of leaves that it overwrites."""
        before = {q.index for q in p.before}
        for v in p.inputs:
            before |= {q.index for q in self.writers.get(v.root, ())}
        for v in p.outputs:
            if v.kind == "leaf":
                before |= {q.index for q in self.readers.get(v.root, ())} | {
                    q.index for q in self.writers.get(v.root, ())
                }
        for v in p.outputs:
            if v.kind == "leaf":
                self.writers[v.root], self.readers[v.root] = [p], []
            else:
                self.writers.setdefault(v.root, []).append(p)
        before.discard(p.index)
        self.preds.append(sorted(before))
        self.succs.append([])
        for q in before:
            self.succs[q].append(p.index)

    def _candidates(self, p: Piece) -> list[int]:
        makers = [q for q in self.preds[p.index] if self.pieces[q].kind not in ("special", "python")]
        beside: list[int] = []
        for v in p.inputs:
            if v.root.kind != "literal" and dims.same(dims.size(v.shape), p.size) and not one(p.size):
                beside += [q.index for q in self.readers.get(v.root, ())[-4:] if q.kind not in ("special", "python")]
        return sorted(makers, reverse=True) + sorted(set(beside) - set(makers), reverse=True)

    # -- joining
    def _join(self, a: _Group, b: _Group) -> bool:
        if a is b or len(a.pieces) + len(b.pieces) > 96 or a.recomputed + b.recomputed == 1:
            return False
        rows: list[Piece] = []
        if not dims.same(a.size, b.size):
            rows = self._as_rows(a, b) or self._as_rows(b, a) or []
            if not rows:
                return False
        size = a.size if rows is b.pieces or not rows else b.size
        pinned = [p.columns for p in (*a.pieces, *b.pieces) if p.columns is not None]
        if any(not dims.same(pinned[0], c) for c in pinned[1:]):
            return False
        pieces = sorted([*a.pieces, *b.pieces], key=lambda p: p.index)
        if self._written_twice(pieces) or self._between(a, b):
            return False
        for p in rows:
            p.per_row = True
        columns = self._columns(pieces, pinned[0] if pinned else None)
        if columns is None or not self._inner_fit(pieces, columns, size) or self._streams(pieces) > self.limit:
            for p in rows:
                p.per_row = False
            return False
        joined = _Group(pieces, columns)
        joined.size = size
        for p in pieces:
            self.group[p.index] = joined
        top = joined.top = max(a.top, b.top)
        stack = [g for g in (a, b) if g.top < top]
        while stack:
            for p in stack.pop().pieces:
                for q in self.succs[p.index]:
                    after = self.group[q]
                    if after.top < top:
                        after.top = top
                        stack.append(after)
        return True

    def _as_rows(self, a: _Group, b: _Group) -> list[Piece] | None:
        """The pieces of b, if they may run once per row of a."""
        pinned = next((p.columns for p in a.pieces if p.columns is not None), None)
        if pinned is None or zero(pinned) or any(p.kind not in ("map", "total") or p.per_row for p in b.pieces):
            return None
        if any(p in self.early for p in b.pieces):
            return None
        return b.pieces if dims.same(dims.mul(b.size, pinned), a.size) else None

    def _written_twice(self, pieces: list[Piece]) -> bool:
        """Whether one of them overwrites a leaf that another touches."""
        leaves = {v.root: p for p in pieces for v in p.outputs if v.kind == "leaf"}
        return bool(leaves) and any(leaves.get(v.root, p) is not p for p in pieces for v in (*p.inputs, *p.outputs))

    def _between(self, a: _Group, b: _Group) -> bool:
        """Whether another group must run after one of the two and before the other."""
        least = min(a.top, b.top)
        stack = [self.group[q] for g in (a, b) for p in g.pieces for q in self.preds[p.index]]
        stack = [g for g in stack if g is not a and g is not b]
        seen: set[_Group] = set()
        while stack:
            g = stack.pop()
            if g in seen or g.top < least:
                continue
            seen.add(g)
            if len(seen) > 300:
                return True
            for p in g.pieces:
                for q in self.preds[p.index]:
                    h = self.group[q]
                    if h is a or h is b:
                        return True
                    if h is not g:
                        stack.append(h)
        return False

    def _columns(self, pieces: list[Piece], pinned: Dim | None) -> Dim | None:
        """A row length at which every piece can walk its operands."""
        if pinned is not None:
            choices = [pinned]
        else:
            whole = [p for p in pieces if not p.per_row]
            shape = max((p.shape for p in whole), key=len)
            axes = [d for d in shape if not one(d)]
            choices = [dims.size(axes[i:]) for i in range(len(axes))] or [1]
            if any(p.kind == "total" for p in pieces) and len(choices) > 1:
                choices = choices[1:]
        for c in choices:
            if all(self._fits(p, c) for p in pieces):
                return c
        return None

    def _fits(self, p: Piece, columns: Dim) -> bool:
        key = p.index, p.per_row, columns
        found = self.fits.get(key)
        if found is None:
            found = p.kind != "map" or p.write(columns) is not None
            found = self.fits[key] = found and all(p.read(i, columns) is not None for i in range(len(p.reads)))
        return found

    def _inner_fit(self, pieces: list[Piece], columns: Dim, size: Dim) -> bool:
        """Whether what one piece makes and another reads is read where it is made."""
        makers = {v: p for p in pieces for v in p.outputs if v.kind == "arena"}
        rows = dims.div(size, columns) if not zero(columns) else 0
        for p in pieces:
            for i, v in enumerate(p.inputs):
                q = makers.get(v.root)
                if q is None:
                    continue
                if q.kind in ("column", "total") or q.place is not None:
                    return False
                at = p.read(i, columns)
                assert at is not None
                by_row = q.per_row or q.kind in ("reduce", "gather")
                if by_row and p.kind in ("reduce", "column", "gather") and not (p.kind == "gather" and i == 1):
                    return False
                if p.kind == "gather" and i == 1 and not by_row:
                    return False
                if by_row and p.kind == "total" and not p.per_row:
                    return False
                if not (per_row(at, rows) if by_row else identical(at, rows, columns) and not p.per_row):
                    return False
        return True

    def _streams(self, pieces: list[Piece]) -> int:
        made = {v for p in pieces for v in p.outputs}
        return len({v.root for p in pieces for v in p.inputs if v.root not in made and v.kind != "literal"})

    # -- order
    def _order(self) -> list[Step]:
        groups = list(dict.fromkeys(self.group))
        waiting: dict[_Group, int] = {}
        users: dict[_Group, list[_Group]] = {}
        for g in groups:
            before = {self.group[q] for p in g.pieces for q in self.preds[p.index]} - {g}
            waiting[g] = len(before)
            for b in before:
                users.setdefault(b, []).append(g)
        ready = [(_rank(g), g.pieces[0].index, i, g) for i, g in enumerate(groups) if not waiting[g]]
        heapq.heapify(ready)
        out: list[Step] = []
        while ready:
            g = heapq.heappop(ready)[3]
            out.append(_step(g))
            for u in users.get(g, ()):
                waiting[u] -= 1
                if not waiting[u]:
                    heapq.heappush(ready, (_rank(u), u.pieces[0].index, u.pieces[0].index, u))
        assert len(out) == len(groups), "groups make a cycle"
        return out


def _early(pieces: list[Piece]) -> set[Piece]:
    """Sums over everything of what is given (how many labels are real), and what they sum up: they come before the
    rows that need them, and are not found beside those."""
    given: dict[Value, Piece] = {}
    out: set[Piece] = set()
    for p in pieces:
        inner = [v.root for v in p.inputs if v.root.kind == "arena"]
        if p.kind in ("map", "total") and all(v in given for v in inner):
            given.update((v, p) for v in p.outputs if p.kind == "map" and v.kind == "arena")
            stack = [p] if p.kind == "total" else []
            while stack:
                q = stack.pop()
                if q not in out:
                    out.add(q)
                    stack += [given[v.root] for v in q.inputs if v.root in given]
    return out


def _rank(g: _Group) -> int:
    return 0 if all(p.kernel.node.scope.kind == "update" for p in g.pieces) else 1


def _step(g: _Group) -> Step:
    made = {v for p in g.pieces for v in p.outputs}
    inputs = list(dict.fromkeys(v for p in g.pieces for v in p.inputs if v.root not in made or v.kind == "leaf"))
    outputs = list(dict.fromkeys(v for p in g.pieces for v in p.outputs))
    step = Step(g.pieces[-1].kernel.node, inputs, outputs, "op", (None,) * len(outputs), pieces=g.pieces)
    if step.region:
        assert g.columns is not None
        step.columns = g.columns
        step.rows = _rows(g.pieces) if zero(g.columns) else dims.div(g.size, g.columns)
        step.serial = type(g.size) is int and g.size <= SMALL
    else:  # arena buffers are placed anew, and what takes one over is decided then
        aliases = zip(g.pieces[0].kernel.alias, outputs, strict=True)
        step.alias = tuple(slot if v.kind == "leaf" else None for slot, v in aliases)
    return step


def _rows(pieces: list[Piece]) -> Dim:
    """How many rows of no columns there are: a sum of each is written all the same."""
    return next((dims.size(p.outputs[0].shape) for p in pieces if p.kind == "reduce"), 0)


# --------------------------------------------------------------------------------------------- placing


def place(p: Program) -> None:
    """Buffers for what is read outside the region that makes it; a region takes over what only it still reads.

    The steps of a tile run many times over: what is local to it lives from step to step of one block, all else that
    they touch from the first step to the last.
    """
    end = len(p.kernels)
    last: dict[Value, int] = {}
    first: dict[Value, int] = {}
    outside: set[Value] = set()
    steps: list[Step] = [k for k in p.kernels if isinstance(k, Step)]
    begins: dict[Tile, int] = {}
    ends: dict[Tile, int] = {}
    for n, s in enumerate(steps):
        if s.tile is not None:
            begins.setdefault(s.tile, n)
            ends[s.tile] = n
    p.buffers.clear()

    def when(s: Step, v: Value, n: int, at: dict[Tile, int]) -> int:
        return n if s.tile is None or v in s.tile.local else at[s.tile]

    for n, s in enumerate(steps):
        made = set(s.outputs)
        for piece in s.pieces:
            for v in piece.inputs:
                last[v.root] = when(s, v.root, n, ends)
                if v.root not in made:
                    outside.add(v.root)
        for v in s.outputs:
            first.setdefault(v, when(s, v, n, begins))
            last[v] = max(last.get(v, n), when(s, v, n, ends))
    for v in p.outputs.values():
        last[v.root] = end
        outside.add(v.root)
    for v in p.values:
        v.buffer = None
    for n, s in enumerate(steps):
        taken: set[Buffer] = set()
        s.stored = [v for v in s.outputs if v.kind != "arena" or v in outside or not s.region]
        for v in s.stored:
            if v.kind != "arena" or v.buffer is not None:
                continue
            found = _take_over(s, v, n, last, first, taken)
            if found is None:
                v.buffer = Buffer(len(p.buffers), dims.size(v.shape), v.dtype, first[v], n, v.node)
                if s.tile is not None and v in s.tile.local:
                    v.buffer.size, v.buffer.rows = s.tile.local[v], s.tile.room
                p.buffers.append(v.buffer)
            else:
                v.buffer = found
                taken.add(found)
        for v in s.stored:
            if v.buffer is not None:
                v.buffer.last = max(v.buffer.last, last[v])
        across = [q for q in s.pieces if q.kind in ("column", "total")]
        if across and not s.serial:
            width: Dim = 0
            for q in across:
                width = dims.add(width, dims.mul(s.columns if q.kind == "column" else 1, 8))
            s.scratch = Buffer(len(p.buffers), dims.mul(width, BLOCKS), across[0].outputs[0].dtype, n, n, s.node)
            s.scratch.dtype = BYTE
            p.buffers.append(s.scratch)


def _take_over(
    s: Step, out: Value, n: int, last: dict[Value, int], first: dict[Value, int], taken: set[Buffer]
) -> Buffer | None:
    if s.tile is not None and out not in s.tile.local:
        return None
    if not s.region:
        return _take_over_special(s, out, n, last)
    maker = next(q for q in s.pieces if out in q.outputs)
    if maker.kind != "map" or maker.per_row or maker.place is not None or maker.name == "zero":
        return None
    for piece in s.pieces:
        for v in piece.inputs:
            root = v.root
            b = root.buffer
            if (
                root.kind != "arena"
                or b is None
                or b in taken
                or last[root] != n
                or first[root] == n
                or root.dtype != out.dtype
                or (s.tile is not None and root not in s.tile.local)
            ):
                continue
            if b.last != n or not dims.same(dims.size(root.shape), dims.size(out.shape)):
                continue
            reads = [
                q.read(i, s.columns)
                for q in s.pieces
                for i, w in enumerate(q.inputs)
                if w.root is root and not (q.kind == "gather" and i == 0)
            ]
            if all(a is not None and identical(a, s.rows, s.columns) for a in reads) and not any(
                q.per_row and w.root is root for q in s.pieces for w in q.inputs
            ):
                return b
    return None


def _take_over_special(s: Step, out: Value, n: int, last: dict[Value, int]) -> Buffer | None:
    """A step by itself overwrites an input only where its record says so."""
    op = s.node.op
    i = s.outputs.index(out)
    for slot in op.inplace if not op.outputs else op.inplace[i : i + 1]:
        if slot >= len(s.pieces[0].inputs) or len(s.outputs) > 1:
            continue
        v = s.pieces[0].inputs[slot]
        b = v.root.buffer
        others = any(w.root is v.root for j, w in enumerate(s.pieces[0].inputs) if j != slot)
        if v.root.kind != "arena" or b is None or b.last != n or last[v.root] != n or others:
            continue
        whole = dims.same_shape(v.shape, out.shape) and dims.same(dims.size(v.root.shape), dims.size(out.shape))
        if whole and v.contiguous and v.dtype == out.dtype:
            s.alias = tuple(slot if j == i else a for j, a in enumerate(s.alias))
            return b
    return None
