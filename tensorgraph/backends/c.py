"""The C backend: the fused program as one translation unit, called through ctypes; the rest runs on NumPy's kernels.

The unit has one function per distinct region, and one per stretch of steps between two NumPy kernels. Pointers and
symbolic sizes are passed in tables, so new sizes never rebuild; sizes that the model fixed stand in the text.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from .. import dims
from ..dims import Dim
from ..passes.fuse import BLOCKS, Step
from ..passes.memory import Plan, plan
from ..passes.program import Buffer, Program, Tile, Value
from ..tensor import Tensor
from . import cgen, cindex, cpacked, cproducts, cpu
from . import numpy as plain
from .cgen import MAPS, c_type
from .cimage import Frame, Image, Native, out_of_range
from .ckernels import OPEN
from .cproducts import tileable

SPECIAL = cproducts.SPECIAL | cindex.SPECIAL | cpacked.SPECIAL
GRAIN = 1 << 15  # element operations worth handing to another thread
ROW_BUFFER = 512  # columns up to which a row buffer of known size is a local array

PRELUDE = """
TG_FN int64_t tg_index(Call *c, int64_t i, int64_t n) {
    if ((uint64_t)i < (uint64_t)n) return i;
    c->bad = 1;
    return 0;
}
TG_PART int64_t tg_parts(const Call *c, int64_t work) {
    int64_t most = 4 * c->threads, parts = work / TG_GRAIN;
    return c->threads < 2 || parts < 2 ? 1 : parts > most ? most : parts;
}
TG_PART void tg_run(Call *c, Fn fn, void *const *a, int64_t n, int64_t parts, int64_t unit) {
    if (parts < 2) fn(c, a, 0, n, 0, c->w); else c->rt->run(c, fn, a, n, parts, unit);
}
""".replace("TG_GRAIN", str(GRAIN))


# What the steps of tiles need.
TILES = """
TG_FN int64_t tg_less(int64_t a, int64_t b) { return a < b ? a : b; }
/* a[0], from row a[1] on */
TG_PART void tg_from(Call *c, void *const *a, int64_t lo, int64_t hi, int64_t block, char *w) {
    const int64_t from = (int64_t)(intptr_t)a[1];
    ((Fn)a[0])(c, a + 2, from + lo, from + hi, block, w);
}
/* a product with no more than the seen columns of what is local: they are its m, n or k */
TG_PART Gemm tg_seen(Gemm g, int sum, char axis, int64_t seen) {
    int64_t *const d = axis == 'm' ? &g.m : axis == 'n' ? &g.n : &g.k;
    if (sum && seen < *d && !g.add) { /* later blocks see more, and add to it */
        memset(g.c, 0, (size_t)(g.m * g.ldc * (g.wide ? 8 : 4)));
        g.add = 1;
    }
    *d = seen;
    return g;
}
/* the part of a product that belongs to rows r.. of entries e.. : of its result, or (sum) of what it sums up */
TG_PART Gemm tg_rows(Gemm g, int sum, int64_t e, int64_t en, int64_t r, int64_t rn) {
    const int64_t z = g.wide ? 8 : 4, e2 = e % g.batch[2], e1 = e / g.batch[2] % g.batch[1];
    const int64_t e0 = e / (g.batch[2] * g.batch[1]);
    int64_t a = sum ? r * g.a1 : r * g.a0, b = sum ? r * g.b0 : 0, y = sum ? 0 : r * g.ldc;
    g.first = e; g.count = en; g.add = sum && r > 0;
    if (sum) g.k = rn; else g.m = rn;
    if (en == 1) {
        a += e0 * g.as[0] + e1 * g.as[1] + e2 * g.as[2];
        b += e0 * g.bs[0] + e1 * g.bs[1] + e2 * g.bs[2];
        y += e0 * g.cs[0] + e1 * g.cs[1] + e2 * g.cs[2];
        g.first = 0; g.batch[0] = g.batch[1] = g.batch[2] = 1;
    }
    g.a = (const char *)g.a + z * a; g.b = (const char *)g.b + z * b; g.c = (char *)g.c + z * y;
    return g;
}
"""

# Around a step, if it is timed: seconds added up in the unit.
CLOCK = "struct timespec t0, t1; clock_gettime(CLOCK_MONOTONIC, &t0);"
SPENT = (
    "clock_gettime(CLOCK_MONOTONIC, &t1); tg_spent[",
    "] += (t1.tv_sec - t0.tv_sec) + 1e-9 * (t1.tv_nsec - t0.tv_nsec); }",
)


def keep(t: Tensor) -> bool:
    """Ops that stay whole: their definition would not be faster. Half precision keeps the records' own forwards."""
    if t.op.forward_fn is None:
        return False
    if any(x.dtype.is_float and x.dtype.size == 2 for x in (t, *t.inputs) if x.specs is None):
        return True
    return t.op.name in cgen.MAPS or t.op.style not in ("softmax", "activation")


class Block(NamedTuple):
    """A size that only a binding tells: how many entries (axis 0) or rows (1) a block of a tile has."""

    tile: Tile
    axis: int


class Lowered(cpacked.PackedProducts, cindex.Indexing, plain.Lowered):
    """A fused program as C and as the Python that calls it."""

    def __init__(self, program: Program, name: str = "graph", strict: bool = False, timed: bool = False) -> None:
        self.strict = strict
        self.slots: dict[Value | Buffer, int] = {}
        self.c_sizes: list[Dim | Block] = []
        self._c_slot: dict[Dim | Block, int] = {}
        self.tile: Tile | None = None  # what the step in hand belongs to
        self.functions: dict[str, str] = {}  # body -> name
        self.segments: list[list[str]] = []
        self.scratch: list[Dim] = []
        for v in program.leaves.values():
            self.slots[v] = len(self.slots)
        super().__init__(program, name, timed)

    def bind(self, binding: Mapping[str, int]) -> Bound | Native:  # type: ignore[override]
        bound = Bound(self, binding, plan(self.program, binding))
        if not self.native:
            return bound
        return Native(bound.image, self.segment, set(self.program.donated.values()), bound.frame)

    # -- sizes and pointers
    def size(self, d: Dim | Block) -> str:
        if type(d) is int:
            return str(d)
        if d not in self._c_slot:
            self._c_slot[d] = len(self.c_sizes)
            self.c_sizes.append(d)
        return f"s[{self._c_slot[d]}]"

    def pointer(self, root: Value | Buffer) -> str:
        text = f"p[{self.slots.setdefault(root, len(self.slots))}]"
        if self.tile is None or not isinstance(root, Value) or root not in self.tile.local:
            return text
        row = f"{self.size(self.tile.local[root])} * {root.dtype.size}"
        return f"(void *)((uintptr_t){text} - (uintptr_t)(at * {row}))"  # as if there were room for all rows

    # -- building
    def _build(self) -> None:
        steps = cast("list[Step]", self.program.kernels)
        needed: set[Value] = set()
        lines: list[str] = []
        inside = False  # a stretch of C
        for number, step in enumerate(steps):
            around = self._blocks(step.tile) if step.tile is not self.tile else []
            text = self._region(step) if step.region else self.special(step)
            if text is not None:
                if not inside:
                    lines.append(f"C.unit{len(self.segments)}(v.call)")
                    self.segments.append([])
                    inside = True
                self.segments[-1] += around
                self.segments[-1].append(f"    /* {self._note(step.outputs[-1], step).replace('*/', '')} */")
                clocked = [f"{{ {CLOCK}", *text, f"{SPENT[0]}{number}{SPENT[1]}"] if self.timed else text
                self.segments[-1] += ["    " + x for x in clocked]
                continue
            assert step.tile is None, "a tile has a step that is no C"
            if around:  # the end of a tile
                self.segments[-1] += around
            inside = False
            piece = step.pieces[0]
            needed.update([*piece.inputs, *piece.outputs])
            call = plain.Kernel(piece.kernel.node, piece.inputs, piece.outputs, "op", step.alias)
            lines += self._timed(number, f"{self._kernel(call):<{plain.WIDTH}}  # {self._note(step.outputs[0], step)}")
        if self.tile is not None:
            self.segments[-1] += self._blocks(None)
        p = self.program
        needed.update(p.outputs.values())
        for v in p.values:
            if v.kind == "view" and v in needed:
                w: Value | None = v
                while w is not None:
                    needed.add(w)
                    w = w.base
        for v in p.values:
            if v in needed and v.kind == "arena" and v.buffer is not None:
                self.views_lines.append(
                    f"v.t{v.index} = a[{v.buffer.index}].reshape({self._shape(v.shape)})  # {self._note(v)}"
                )
            elif v in needed and v.kind == "view" and v.root.kind != "leaf":
                self.views_lines.append(f"v.t{v.index} = {self._seen(v)}  # {self._note(v)}")
        self.step_lines = lines
        self.results = [v for n, v in p.outputs.items() if n not in p.donated]
        results = [f"{self._ref(v)}.copy()" if v.shape else f"{self._ref(v)}[()]" for v in self.results]
        self.step_lines.append(f"return ({', '.join(results)}{',' if len(results) == 1 else ''})")
        one = len(lines) == 2 and inside
        self.native = one and all(v.root.kind == "arena" for v in self.results)  # one call into C, and its results
        self._compile()

    def _blocks(self, tile: Tile | None) -> list[str]:
        """The end of the loop over the blocks of rows of one tile, and the head of that of the next."""
        lines = ["    }}"] if self.tile is not None else []
        self.tile = tile
        if tile is None:
            return lines
        columns = [self.size(d) for d in tile.local.values()][:1]
        entries, rows, en, rn = (self.size(d) for d in (tile.entries, tile.rows, Block(tile, 0), Block(tile, 1)))
        return [
            *lines,
            f"    for (int64_t entry = 0; !entry || entry < {entries}; entry += {en})",
            f"    for (int64_t row = 0; !row || row < {rows}; row += {rn}) {{",
            f"    const int64_t wide = tg_less({en}, {entries} - entry), high = tg_less({rn}, {rows} - row);",
            f"    const int64_t at = entry * {rows} + row, rows = wide * high; (void)at; (void)rows;",
            *[f"    const int64_t seen = wide > 1 ? {d} : tg_less(row + high, {d});" for d in columns if tile.causal],
            "    {",
        ]

    def _compile(self) -> None:
        self.c_source = self.unit = ""
        self._clocks: Any = None
        if not self.segments:
            return
        packed = [cpu.text("packed.h")] if self.packed else []
        clocks = [f"#include <time.h>\ndouble tg_spent[{len(self.spent)}];"] if self.timed else []
        args = "(Call *c, void *const *a, int64_t lo, int64_t hi, int64_t block, char *w) {"
        functions = [f"TG_PART void {name}{args}\n{body}" for body, name in self.functions.items()]
        tiles = [TILES] if any(s.tile is not None for s in cast("list[Step]", self.program.kernels)) else []
        parts = [cpu.text("runtime.h"), cgen.MATHS, PRELUDE, *tiles, *packed, *clocks, *functions]
        for i, body in enumerate(self.segments):
            parts += [
                f"TG_COLD int segment{i}(Call *c) {{",
                "    void *const *const p = c->p; const int64_t *const s = c->s; (void)p; (void)s;",
                *body,
                "    return (int)c->bad;",
                "}",
            ]
        self.c_source = "\n".join(parts) + "\n"
        bare = re.sub(r"/\*.*?\*/", "", self.c_source, flags=re.DOTALL)  # one build, wherever the model's lines stand
        with ThreadPoolExecutor(1) as beside:  # two compilers at once, where the runtime is not built either
            runtime = beside.submit(cpu.library)
            library = cpu.load(bare, cpu.flags(self.strict))
            runtime.result()
        self.unit = Path(library._name).name
        calls = [cpu.segment(library, i) for i in range(len(self.segments))]
        self.segment = calls[0]
        self._units.update({f"unit{i}": _checked(call) for i, call in enumerate(calls)})
        self._clocks = (ctypes.c_double * len(self.spent)).in_dll(library, "tg_spent") if self.timed else None

    @property
    def times(self) -> list[float]:
        within = self._clocks or [0.0] * len(self.spent)
        return [a + b for a, b in zip(self.spent, within, strict=True)]

    def _function(self, body: list[str]) -> str:
        """The name of a function with this body; equal bodies are one function."""
        return self.functions.setdefault("\n".join(body), f"r{len(self.functions)}")

    # -- regions
    def _region(self, step: Step) -> list[str]:
        region = cgen.Region(step, self.size)
        columns, rows = self.size(step.columns), self.size(step.rows)
        head, foot, after = self._across(step, region)
        causal = step.tile is not None and step.tile.causal
        loop = self._flat(region) if region.flat else self._rows(step, region, columns, "seen" if causal else columns)
        if causal:
            head.insert(0, f"const int64_t seen = (int64_t)(intptr_t)a[{len(region.roots)}];")
        body = [OPEN, *["    " + x for x in (*region.pointers, *head, *loop, *foot)], "}"]
        f = self._function(body)
        args = ", ".join(self.pointer(r) for r in region.roots) or "0"  # complete only now that the body is written
        n = columns if region.flat else rows
        if step.tile is not None:
            args, n = f"(void *){f}, (void *)(intptr_t)at, {args}", "rows"
            args += ", (void *)(intptr_t)seen" if causal else ""
            f = "tg_from"
        if step.serial:
            run = f"{f}(c, a, 0, {n}, 0, c->w);"
        else:
            elements = n if region.flat else f"{n} * {columns}"
            parts = str(BLOCKS) if region.across else f"tg_parts(c, {elements} * {max(1, region.work)})"
            run = f"tg_run(c, {f}, a, {n}, {parts}, {64 if region.flat else 1});"
        return [f"{{ void *const a[] = {{{args}}};", f"  {run}", *after, "}"]

    def _across(self, step: Step, region: cgen.Region) -> tuple[list[str], list[str], list[str]]:
        """Sums across rows: where a part sums up, what it leaves, and how the parts become one, in a fixed order."""
        head: list[str] = []
        foot: list[str] = []
        after: list[str] = []
        at: Dim = 0
        columns = self.size(step.columns)
        width: Dim = 0
        for x in region.across:
            width = dims.add(width, dims.mul(step.columns if x.column else 1, 8))
        for x in region.across:
            kind = x.value.dtype
            t, zero_ = c_type(kind), cgen.start(x.name, kind)
            wide = "double" if kind.is_float and not x.column and x.name == "sum" else t
            if step.scratch is None:
                place = f"a[{region.slot(x.value)}]"
            else:
                parts = self.pointer(step.scratch)
                place = f"((char *)a[{region.slot(step.scratch)}] + block * {self.size(width)} + {self.size(at)})"
            if x.column:
                head += [
                    f"{t} *const {x.acc} = ({t} *){place};",
                    f"for (int64_t j = 0; j < {columns}; j++) {x.acc}[j] = {zero_};",
                ]
            else:
                head.append(f"{wide} {x.acc} = {zero_};")
                kept = wide if step.scratch is not None else t
                foot.append(f"*({kept} *){place} = ({kept}){x.acc};")
            if step.scratch is not None:
                n, source = (columns, t) if x.column else ("1", wide)
                part = f"(({source} *)((char *){parts} + b * {self.size(width)} + {self.size(at)}))[j]"
                merge = cgen.merge(x.name, "t", "u", kind)
                out = f"(({t} *){self.pointer(x.value)})[j]"
                begin = zero_ if step.tile is None else f"at ? ({source}){out} : {zero_}"
                after += [f"  for (int64_t j = 0; j < {n}; j++) {{", f"    {source} t = {begin};",
                          f"    for (int64_t b = 0; b < {BLOCKS}; b++) {{ const {source} u = {part}; {merge} }}",
                          f"    {out} = ({t})t;", "  }"]  # fmt: skip
            at = dims.add(at, dims.mul(step.columns if x.column else 1, 8))
        return head, foot, after

    def _flat(self, region: cgen.Region) -> list[str]:
        rows = [x for s in region.stages for x in s.rows]
        body = [x for s in region.stages for x in s.columns]
        return [
            *region.base,
            *region.loaded,
            *rows,
            '_Pragma("omp simd")',
            "for (int64_t j = lo; j < hi; j++) {",
            *["    " + x for x in body],
            "}",
        ]

    def _rows(self, step: Step, region: cgen.Region, columns: str, seen: str) -> list[str]:
        lines: list[str] = []
        local = type(step.columns) is int and step.columns <= ROW_BUFFER
        for i, (name, kind) in enumerate(region.buffers):
            t = c_type(kind)
            if local:
                lines.append(f"{t} {name}[{max(1, cast('int', step.columns))}];")
            else:
                lines.append(f"{t} *const {name} = ({t} *)(w + {i} * (({columns} * 8 + 63) / 64 * 64));")
        if region.buffers and not local:
            self.scratch.append(
                dims.add(dims.mul(dims.mul(step.columns, 8), len(region.buffers)), 64 * len(region.buffers))
            )
        inner: list[str] = []
        pending: list[str] = []
        for stage in region.stages:
            inner += pending + stage.rows
            pending = []
            if not stage.columns:
                continue
            clauses = ""
            for acc, kind, name in stage.reductions:
                inner.append(f"{cgen.accumulator(name, kind)} {acc} = {cgen.start(name, kind)};")
                clauses += f" reduction({'+' if name == 'sum' else name}:{acc})"
                if name != "sum" and kind.is_float:
                    inner.append(f"int n{acc} = 0;")
                    clauses += f" reduction(|:n{acc})"
                pending.append(region.finish(acc, kind, name))
            pending += stage.stores
            inner += [
                f'_Pragma("omp simd{clauses}")',
                f"for (int64_t j = 0; j < {seen}; j++) {{",
                *["    " + x for x in stage.columns],
                "}",
            ]
        inner += pending
        return [
            *lines,
            "for (int64_t r = lo; r < hi; r++) {",
            *["    " + x for x in (*region.base, *region.loaded, *inner)],
            "}",
        ]


def _checked(call: Any) -> Callable[[Any], None]:
    def checked(address: Any) -> None:
        if call(address):
            raise out_of_range()

    return checked


class Bound(plain.Bound):
    """A lowered program for one binding: arena, arrays, and the tables that C reads."""

    lowered: Lowered

    def __init__(self, lowered: Lowered, binding: Mapping[str, int], memory: Plan) -> None:
        super().__init__(lowered, binding, memory)
        placed: list[tuple[int, int]] = []
        tables: list[tuple[int, Any]] = []
        for v, slot in lowered.slots.items():
            if not isinstance(v, Value):
                placed.append((slot, memory.offsets[v.index]))
            elif v.kind == "arena":
                assert v.buffer is not None
                placed.append((slot, memory.offsets[v.buffer.index]))
            elif v.kind != "leaf":
                tables.append((slot, np.ascontiguousarray(getattr(self.v, f"t{v.index}"))))
        sizes = [
            d.tile.block(binding)[d.axis] if isinstance(d, Block) else dims.evaluate(d, binding)
            for d in lowered.c_sizes
        ]
        need = max((dims.evaluate(d, binding) for d in lowered.scratch), default=0)
        self.image = Image(
            lowered.unit,
            list(lowered.program.leaves),
            len(lowered.slots),
            placed,
            tables,
            sizes,
            memory.arena,
            -(-need // 64) * 64,
            [self._result(v) for v in lowered.results] if lowered.native else [],
        )
        self.frame = Frame(self.image, self.arena)
        self.v.call = ctypes.addressof(self.frame.call)

    def _result(self, v: Value) -> tuple[int, tuple[int, ...], tuple[int, ...], str]:
        a = getattr(self.v, f"t{v.index}")
        start = self.arena.ctypes.data + -self.arena.ctypes.data % 64
        return a.ctypes.data - start, a.shape, a.strides, v.dtype.name

    def run(self, P: dict[str, Any]) -> tuple[Any, ...]:
        given, back = self.frame.enter(self.image.leaves, P)
        results = self.lowered.step(given, self.v)
        owned = set(self.lowered.program.donated.values()) if back else set()
        for key, copy in back:
            if key in owned:
                P[key][...] = copy
        return results

    def repeat(self, P: dict[str, Any], given: Mapping[str, Any], ranges: list[Any]) -> None:
        """Python has a part in every call."""


__all__ = ["MAPS", "SPECIAL", "Bound", "Lowered", "keep", "tileable"]
