"""Kernels of their own in C: products, gathers and sums by index, boxes at a place given as data, odd reductions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from .. import dims
from ..dims import Dim, Shape
from ..dtypes import DType
from ..passes.fuse import Piece, Step
from ..passes.layout import Layout, broadcast, collapse, layout, one, row_major, zero
from ..passes.program import Value
from . import cgen, cpu
from .cgen import c_type

SPECIAL = {"matmul", "grouped_matmul", "grouped_outer", "take", "take_along", "segment_sum", "sum_along", "index_add",
           "gather", "reduce", "update_slice", "dynamic_slice", "argmax", "argsort"}  # fmt: skip
INLINE = 1 << 13  # multiplications of a product of known sizes up to which it is a plain loop
OPEN = "    const int64_t *const s = c->s; (void)s; (void)block; (void)w;"


class Kernels:
    """Statements for a step that is no region; None if C has no way to do it."""

    scratch: list[Dim]  # bytes that a step needs for each thread

    def size(self, d: Any) -> str:
        raise NotImplementedError

    def pointer(self, root: Value) -> str:
        raise NotImplementedError

    def _function(self, body: list[str]) -> str:
        raise NotImplementedError

    def special(self, step: Step) -> list[str] | None:
        piece = step.pieces[0]
        if piece.kind != "special":
            return None
        found: list[str] | None = getattr(self, "_" + piece.name)(piece, step)
        return found

    # -- parts of statements
    def _read(self, v: Value) -> tuple[str, Layout]:
        """A pointer to the first element, and the layout."""
        at = layout(v)
        text = f"({c_type(v.root.dtype)} *){self.pointer(v.root)}"
        return (text if zero(at.offset) else f"({text} + {self.size(at.offset)})"), at

    def _axes(self, at: Layout, shape: Shape) -> tuple[str, str] | None:
        """(size, stride) of some axes taken as one; None if no stride serves all."""
        axes = collapse(list(zip(shape, at.strides, strict=True)))
        if len(axes) > 1:
            return None
        return (self.size(axes[0][0]), self.size(axes[0][1])) if axes else ("1", "0")

    def _cut(self, at: Layout, shape: Shape, *cuts: int) -> list[tuple[str, str]] | None:
        """An array's axes in groups, each taken as one."""
        out: list[tuple[str, str]] = []
        for a, b in itertools.pairwise([0, *cuts, len(shape)]):
            found = self._axes(at._replace(strides=at.strides[a:b]), shape[a:b])
            if found is None:
                return None
            out.append(found)
        return out

    def _parallel(self, args: list[str], body: list[str], n: str, work: str) -> list[str]:
        f = self._function([OPEN, *["    " + x for x in body], "}"])
        return [f"{{ void *const a[] = {{{', '.join(args)}}};", f"  tg_run(c, {f}, a, {n}, tg_parts(c, {work}), 1); }}"]

    def _once(self, args: list[str], body: list[str]) -> list[str]:
        """A call of a function with this body: what is done alike in every layer is compiled once."""
        f = self._function([OPEN, *["    " + x for x in body], "}"])
        return [f"{{ void *const a[] = {{{', '.join(args)}}}; {f}(c, a, 0, 1, 0, c->w); }}"]

    def _nest(self, shape: Sequence[Dim], body: str, first: int = 0) -> str:
        """Loops over a shape from axis `first` on, indices i0, i1, ..."""
        loops = [f"for (int64_t i{n} = 0; i{n} < {self.size(shape[n])}; i{n}++)" for n in range(first, len(shape))]
        return " ".join([*loops, body])

    def _index(self, strides: Sequence[Dim]) -> str:
        return " + ".join(f"i{n} * {self.size(s)}" for n, s in enumerate(strides) if not zero(s)) or "0"

    # -- products
    def _matmul(self, piece: Piece, step: Step) -> list[str] | None:
        p = product(piece)
        if p is None:
            return None
        kind = piece.outputs[0].dtype
        (a, _), (b, _), out = self._read(piece.inputs[0]), self._read(piece.inputs[1]), self.pointer(piece.outputs[0])
        if p.batches is None:
            return self._small(a, b, out, kind, p.shape, p.strides)
        columns = ["{" + ", ".join(self.size(row[i]) for row in p.batches) + "}" for i in range(4)]
        sizes = [self.size(d) for d in (*p.shape, *p.strides, p.shape[1])]
        fields = ", ".join([str(int(kind.size == 8)), "TG_FIXED", *sizes[:3], *columns, *sizes[3:], a, b, out])
        if step.tile is None:
            return [f"{{ const Gemm g = {{{fields}}}; c->rt->gemm(c, &g); }}"]
        sums, local = int(step in step.tile.sums), step.tile.local
        block = f"tg_rows((Gemm){{{fields}}}, {sums}, entry, wide, row, high)"
        if step.tile.causal:
            left = piece.inputs[0].root in local
            axis = ("m" if left else "n") if sums else "n" if piece.outputs[0] in local else "k"
            block = f"tg_seen({block}, {sums}, '{axis}', seen)"
        return [f"{{ const Gemm g = {block}; c->rt->gemm(c, &g); }}"]

    def _small(self, a: str, b: str, out: str, kind: DType, shape: Shape, strides: Shape) -> list[str]:
        t, (m, n, k) = c_type(kind), cast("tuple[int, int, int]", shape)
        a0, a1, b0, b1 = (self.size(d) for d in strides)
        fma = f"tg_fma_{'d' if kind.size == 8 else 'f'}"
        product = f"{fma}(x[i * {a0} + p * {a1}], y[p * {b0} + j * {b1}], row[j])"
        body = [
            f"const {t} *const x = a[0], *const y = a[1]; {t} *const z = a[2];",
            f"for (int i = 0; i < {m}; i++) {{",
            f"    {t} row[{max(1, n)}];",
            f"    for (int j = 0; j < {n}; j++) row[j] = 0;",
            f"    for (int p = 0; p < {k}; p++)",
            f"        for (int j = 0; j < {n}; j++) row[j] = {product};",
            f"    for (int j = 0; j < {n}; j++) z[i * {n} + j] = row[j];",
            "}",
        ]
        return self._once([a, b, out], body)

    # -- products of rows in groups, whose sizes are data
    def _grouped_matmul(self, piece: Piece, step: Step) -> list[str] | None:
        (x, w, sizes), out = piece.inputs, piece.outputs[0]
        if not (_multiplied(x, w, out) and _matrices(x) and _matrices(w)):
            return None
        (a, at_x), (b, at_w) = self._read(x), self._read(w)
        kind, n, (d, f) = c_type(out.dtype), self.size(x.shape[0]), (self.size(k) for k in w.shape[1:])
        (x0, x1), (w0, w1, w2) = (tuple(self.size(k) for k in at.strides) for at in (at_x, at_w))
        shape = ["to - from", f, d, x0, x1, w1, w2, f]
        one_group = self._gemm(out, shape, f"x + from * {x0}", f"w_ + e * {w0}", f"y + from * {f}")
        rest = f"memset(y + from * {f}, 0, (size_t)(({n} - from) * {f}) * sizeof({kind}));"
        head = f"const {kind} *const x = a[0], *const w_ = a[1]; {kind} *const y = a[3];"
        return self._groups([a, b], sizes, out, n, head, f"if (to > from) {one_group}", rest)

    def _grouped_outer(self, piece: Piece, step: Step) -> list[str] | None:
        (x, y, sizes), out = piece.inputs, piece.outputs[0]
        if not (_multiplied(x, y, out) and _matrices(x) and _matrices(y)):
            return None
        (a, at_x), (b, at_y) = self._read(x), self._read(y)
        kind, n, (d, f) = c_type(out.dtype), self.size(x.shape[0]), (self.size(v.shape[1]) for v in (x, y))
        x0, x1, y0, y1 = (self.size(s) for s in (*at_x.strides, *at_y.strides))
        to, shape = f"z + e * {d} * {f}", [d, f, "to - from", x1, x0, y0, y1, f]
        one_group = self._gemm(out, shape, f"x + from * {x0}", f"y + from * {y0}", to)
        body = f"if (to > from) {one_group} else memset({to}, 0, (size_t)({d} * {f}) * sizeof({kind}));"
        head = f"const {kind} *const x = a[0], *const y = a[1]; {kind} *const z = a[3];"
        return self._groups([a, b], sizes, out, n, head, body, "")

    def _gemm(self, out: Value, shape: list[str], x: str, y: str, z: str) -> str:
        """A product of two matrices: m, n, k, strides of both along rows and columns, that of the result's rows."""
        wide = str(int(out.dtype.size == 8))
        fields = ", ".join([wide, "TG_FIXED", *shape[:3], "{1, 1, 1}", "{0}", "{0}", "{0}", *shape[3:], x, y, z])
        return f"{{ const Gemm g = {{{fields}}}; c->rt->gemm(c, &g); }}"

    def _groups(
        self, factors: list[str], sizes: Value, out: Value, rows: str, head: str, body: str, rest: str
    ) -> list[str] | None:
        """`body` for each group e, of rows from .. to: one after another, each with all threads; then `rest`.

        Both factors are a[0] and a[1], the result is a[3], a third factor a[4].
        """
        (at, where), t = self._read(sizes), c_type(sizes.dtype)
        step = self.size(where.strides[0])
        lines = [
            head,
            f"const {t} *const sizes = a[2];",
            "int64_t from = 0;",
            f"for (int64_t e = 0; e < {self.size(sizes.shape[0])}; e++) {{",
            f"    const int64_t count = (int64_t)sizes[e * {step}], left = {rows} - from;",
            "    const int64_t to = from + (count < 0 ? 0 : count < left ? count : left);",
            f"    {body}",
            "    from = to;",
            "}",
            rest,
        ]
        return self._once([*factors[:2], at, self.pointer(out), *factors[2:]], [line for line in lines if line])

    # -- by index
    def _take(self, piece: Piece, step: Step) -> list[str] | None:
        x, ids, out = *piece.inputs, piece.outputs[0]
        axis, t = piece.kernel.node.attrs["axis"], c_type(out.dtype)
        (a, at), (i, at_i) = self._read(x), self._read(ids)
        cut, along = self._cut(at, x.shape, axis, axis + 1), self._axes(at_i, ids.shape)
        if cut is None or along is None:
            return None
        (lead, s0), (count, s1), (tail, s2) = cut
        n = self.size(dims.size(ids.shape))
        body = [
            f"const {t} *const x = a[0]; const {c_type(ids.dtype)} *const ids = a[1]; {t} *const y = a[2];",
            "for (int64_t r = lo; r < hi; r++) {",
            f"    const int64_t i = tg_index(c, ids[(r % {n}) * {along[1]}], {count});",
            f"    const {t} *const from = x + (r / {n}) * {s0} + i * {s1};",
            f"    for (int64_t j = 0; j < {tail}; j++) y[r * {tail} + j] = from[j * {s2}];",
            "}",
        ]
        return self._parallel([a, i, self.pointer(out)], body, f"{lead} * {n}", f"{lead} * {n} * {tail}")

    def _segment_sum(self, piece: Piece, step: Step) -> list[str] | None:
        x, ids = piece.inputs
        return self._add_rows(piece, x, ids, None)

    def _index_add(self, piece: Piece, step: Step) -> list[str] | None:
        x, ids, rows = piece.inputs
        if any(v.dtype != piece.outputs[0].dtype for v in (x, rows)) or not x.contiguous:
            return None
        return self._add_rows(piece, rows, ids, None if step.alias[0] == 0 else x, clear=False)

    def _add_rows(self, piece: Piece, x: Value, ids: Value, old: Value | None, clear: bool = True) -> list[str] | None:
        """Each part owns a range of the result's rows and looks at all ids: the order of a sum is that of the rows.

        They are added to zeros (`clear`), to a copy of `old`, or to what the result's storage holds.
        """
        out = piece.outputs[0]
        axis, t = piece.kernel.node.attrs["axis"], c_type(out.dtype)
        (a, at), (i, at_i) = self._read(x), self._read(ids)
        cut, along = self._cut(at, x.shape, axis, axis + len(ids.shape)), self._axes(at_i, ids.shape)
        if cut is None or along is None:
            return None
        (lead, s0), (_, s1), (tail, s2) = cut
        n, count = self.size(dims.size(ids.shape)), self.size(out.shape[axis])
        room = f"(size_t)((hi - lo) * {tail}) * sizeof({t})"
        start = [f"    memset(y + first, 0, {room});"] if clear else []
        if old is not None:
            start = [f"    memcpy(y + first, (const {t} *)a[3] + first, {room});"]
        body = [
            f"const {t} *const x = a[0]; const {c_type(ids.dtype)} *const ids = a[1]; {t} *const y = a[2];",
            f"for (int64_t l = 0; l < {lead}; l++) {{",
            *([f"    const int64_t first = (l * {count} + lo) * {tail};"] if start else []),
            *start,
            f"    for (int64_t r = 0; r < {n}; r++) {{",
            f"        const int64_t i = tg_index(c, ids[r * {along[1]}], {count});",
            "        if (i < lo || i >= hi) continue;",
            f"        {t} *const to = y + (l * {count} + i) * {tail};",
            f"        const {t} *const from = x + l * {s0} + r * {s1};",
            f"        for (int64_t j = 0; j < {tail}; j++) to[j] += from[j * {s2}];",
            "    }",
            "}",
        ]
        args = [a, i, self.pointer(out), *([] if old is None else [self._read(old)[0]])]
        return self._parallel(args, body, count, f"{lead} * ({count if start else 0} + {n}) * {tail}")

    def _take_along(self, piece: Piece, step: Step) -> list[str] | None:
        x, ids, out = *piece.inputs, piece.outputs[0]
        axis, t = piece.kernel.node.attrs["axis"], c_type(out.dtype)
        (a, at), (i, at_i) = self._read(x), self._read(ids)
        row = self._index([0 if n == axis else s for n, s in enumerate(at.strides)])
        place = f"tg_index(c, ids[{self._index(at_i.strides)}], {self.size(x.shape[axis])})"
        one = f"y[{self._index(row_major(out.shape))}] = x[{row} + {place} * {self.size(at.strides[axis])}];"
        body = [
            f"const {t} *const x = a[0]; const {c_type(ids.dtype)} *const ids = a[1]; {t} *const y = a[2];",
            "for (int64_t i0 = lo; i0 < hi; i0++) " + self._nest(out.shape, one, 1),
        ]
        args = [a, i, self.pointer(out)]
        return self._parallel(args, body, self.size(out.shape[0]), self.size(dims.size(out.shape)))

    def _sum_along(self, piece: Piece, step: Step) -> list[str] | None:
        """Sums of one entry of the first axis are of one part, in order; along the first axis there is but one part."""
        x, ids, out = *piece.inputs, piece.outputs[0]
        axis, t = piece.kernel.node.attrs["axis"], c_type(out.dtype)
        (a, at), (i, at_i), to = self._read(x), self._read(ids), row_major(out.shape)
        row = self._index([0 if n == axis else s for n, s in enumerate(to)])
        place = f"tg_index(c, ids[{self._index(at_i.strides)}], {self.size(out.shape[axis])})"
        one = f"y[{row} + {place} * {self.size(to[axis])}] += x[{self._index(at.strides)}];"
        whole = axis == 0
        first, count = ("0", self.size(out.shape[0])) if whole else ("lo", "hi - lo")
        clear = f"memset(y + {first} * {self.size(to[0])}, 0, (size_t)(({count}) * {self.size(to[0])}) * sizeof({t}));"
        body = [
            f"const {t} *const x = a[0]; const {c_type(ids.dtype)} *const ids = a[1]; {t} *const y = a[2];",
            clear,
            self._nest(x.shape, one)
            if whole
            else "for (int64_t i0 = lo; i0 < hi; i0++) " + self._nest(x.shape, one, 1),
        ]
        args = [a, i, self.pointer(out)]
        if whole:
            return self._once(args, body)
        return self._parallel(args, body, self.size(out.shape[0]), self.size(dims.size(x.shape)))

    def _update_slice(self, piece: Piece, step: Step) -> list[str] | None:
        (x, new, position), out = piece.inputs, piece.outputs[0]
        axis, t = piece.kernel.node.attrs["axis"], c_type(out.dtype)
        if new.dtype != out.dtype or x.dtype != out.dtype:
            return None
        (a, at), (b, at_b), (p, _) = self._read(x), self._read(new), self._read(position)
        to = row_major(out.shape)
        copy = self._nest(out.shape, f"y[{self._index(to)}] = x[{self._index(at.strides)}];")
        room = f"{self.size(dims.sub(x.shape[axis], new.shape[axis]))} + 1"
        body = [
            f"const {t} *const x = a[0], *const n = a[1]; {t} *const y = a[3]; (void)x;",
            *([copy] if step.alias[0] != 0 else []),
            f"const int64_t at = tg_index(c, *({c_type(position.dtype)} *)a[2], {room}) * {self.size(to[axis])};",
            self._nest(new.shape, f"y[at + {self._index(to)}] = n[{self._index(at_b.strides)}];"),
        ]
        return self._once([a, b, p, self.pointer(out)], body)

    def _dynamic_slice(self, piece: Piece, step: Step) -> list[str] | None:
        (x, position), out = piece.inputs, piece.outputs[0]
        axis, t = piece.kernel.node.attrs["axis"], c_type(out.dtype)
        (a, at), (p, _) = self._read(x), self._read(position)
        room = f"{self.size(dims.sub(x.shape[axis], out.shape[axis]))} + 1"
        to = self._index(row_major(out.shape))
        body = [
            f"const {t} *const x = a[0]; {t} *const y = a[2];",
            f"const {c_type(position.dtype)} *const p = a[1];",
            f"const int64_t at = tg_index(c, *p, {room}) * {self.size(at.strides[axis])};",
            self._nest(out.shape, f"y[{to}] = x[at + {self._index(at.strides)}];"),
        ]
        return self._once([a, p, self.pointer(out)], body)

    # -- reductions whose axes are neither first nor last
    def _reduce(self, piece: Piece, step: Step) -> list[str] | None:
        x, out, node = piece.inputs[0], piece.outputs[0], piece.kernel.node
        axes, t, name = node.attrs["axis"], c_type(out.dtype), node.op.name
        a, at = self._read(x)
        kept = iter(row_major([d for i, d in enumerate(x.shape) if i not in axes]))
        y = f"y[{self._index([0 if i in axes else next(kept) for i in range(len(x.shape))])}]"
        start = cgen.start(name, out.dtype)
        inner = f"{{ const {t} u = x[{self._index(at.strides)}]; {cgen.merge(name, y, 'u', out.dtype)} }}"
        lead = min(axes)  # axes kept before the first that is summed up: they are dealt out
        outer, each = (
            x.shape[:lead],
            self.size(dims.size([d for i, d in enumerate(x.shape) if i > lead and i not in axes])),
        )
        steps = zip(range(lead), row_major(outer), outer, strict=True)
        body = [
            f"const {t} *const x = a[0]; {t} *const y = a[1];",
            "for (int64_t r = lo; r < hi; r++) {",
            *(f"    const int64_t i{n} = r / {self.size(s)} % {self.size(d)};" for n, s, d in steps),
            f"    for (int64_t i = 0; i < {each}; i++) y[r * {each} + i] = {start};",
            "    " + self._nest(x.shape, inner, lead),
            "}",
        ]
        elements = " * ".join(self.size(d) for d in x.shape)
        return self._parallel([a, self.pointer(out)], body, self.size(dims.size(outer)), elements)

    def _argmax(self, piece: Piece, step: Step) -> list[str] | None:
        """The first NaN, or else the first of the largest, as in NumPy."""
        x, out = piece.inputs[0], piece.outputs[0]
        axis, t = piece.kernel.node.attrs["axis"], c_type(x.dtype)
        a, at = self._read(x)
        others = [i for i in range(len(x.shape)) if i != axis]
        row = self._index([at.strides[i] for i in others])
        inner = [
            f"{{ const {t} *const row = x + {row}; int64_t at = 0; {t} best = row[0];",
            f"  for (int64_t j = 1; j < {self.size(x.shape[axis])} && best == best; j++) {{",
            f"    const {t} v = row[j * {self.size(at.strides[axis])}];",
            "    if (v > best || v != v) { best = v; at = j; }",
            "  }",
            "  *y++ = (int32_t)at; }",
        ]
        head = f"const {t} *const x = a[0]; int32_t *y = a[1];"
        body = [head, self._nest([x.shape[i] for i in others], inner[0]), *inner[1:]]
        return self._once([a, self.pointer(out)], body)

    def _argsort(self, piece: Piece, step: Step) -> list[str] | None:
        """Merges of ever longer stretches, which keep equal elements in order; NaN comes last, as in NumPy."""
        x, out, attrs = piece.inputs[0], piece.outputs[0], piece.kernel.node.attrs
        axis, t = attrs["axis"], c_type(x.dtype)
        a, at = self._read(x)
        cut = self._cut(at, x.shape, axis, axis + 1)
        if cut is None:
            return None
        (lead, s0), (n, s1), (tail, s2) = cut
        self.scratch.append(dims.mul(8, x.shape[axis]))
        key = f"({t}){'-' if attrs['descending'] else ''}row[{{}} * {s1}]"
        body = [
            f"const {t} *const x = a[0]; int32_t *const y = a[1];",
            "for (int64_t r = lo; r < hi; r++) {",
            f"    const {t} *const row = x + (r / {tail}) * {s0} + (r % {tail}) * {s2};",
            f"    int32_t *const to = y + (r / {tail}) * {n} * {tail} + r % {tail};",
            f"    int32_t *from = (int32_t *)w, *made = from + {n};",
            f"    for (int64_t i = 0; i < {n}; i++) from[i] = (int32_t)i;",
            f"    for (int64_t width = 1; width < {n}; width *= 2) {{",
            f"        for (int64_t start = 0; start < {n}; start += 2 * width) {{",
            f"            const int64_t middle = start + width < {n} ? start + width : {n};",
            f"            const int64_t end = middle + width < {n} ? middle + width : {n};",
            "            for (int64_t k = start, i = start, j = middle; k < end; k++) {",
            "                int left = i < middle;",
            "                if (left && j < end) {",
            f"                    const {t} u = {key.format('from[i]')}, v = {key.format('from[j]')};",
            "                    left = !(v < u || (u != u && v == v));",
            "                }",
            "                made[k] = left ? from[i++] : from[j++];",
            "            }",
            "        }",
            "        int32_t *const last = from; from = made; made = last;",
            "    }",
            f"    for (int64_t i = 0; i < {n}; i++) to[i * {tail}] = from[i];",
            "}",
        ]
        return self._parallel([a, self.pointer(out)], body, f"{lead} * {tail}", f"{lead} * {n} * {tail} * 8")


class Product(NamedTuple):
    """A product as C makes it: (m, n, k); strides of both operands along their rows and columns; three leading axes as
    (size, stride in x, in y, in the result), or None for a product that is a plain loop."""

    shape: Shape
    strides: Shape
    batches: list[list[Dim]] | None


def product(piece: Piece) -> Product | None:
    """None if C has no way to make it."""
    x, y, out = *piece.inputs, piece.outputs[0]
    kind = out.dtype
    if x.dtype != kind or y.dtype != kind or kind.name not in ("float32", "float64"):
        return None
    at_a, at_b = layout(x), layout(y)
    lead = out.shape[: len(out.shape) - (len(x.shape) > 1) - (len(y.shape) > 1)]
    k = x.shape[-1]
    m, a0 = (x.shape[-2], at_a.strides[-2]) if len(x.shape) > 1 else (1, k)
    n, b1 = (y.shape[-1], at_b.strides[-1]) if len(y.shape) > 1 else (1, 1)
    a1, b0 = at_a.strides[-1], at_b.strides[-2] if len(y.shape) > 1 else at_b.strides[-1]
    found = Product((m, n, k), (a0, a1, b0, b1), None)
    if not lead and type(m) is int and type(n) is int and type(k) is int and m * n * k <= INLINE:
        return found
    if cpu.blas() is None or not (_walkable(a0, a1, m, k) and _walkable(b0, b1, k, n)):
        return None
    batches = _batches(x, y, at_a, at_b, lead, dims.mul(m, n))
    return None if batches is None else found._replace(batches=batches)


def _batches(x: Value, y: Value, a: Layout, b: Layout, lead: Shape, step: Dim) -> list[list[Dim]] | None:
    """Leading axes, merged where one stride serves two; None if more than three remain."""

    def along(v: Value, at: Layout) -> tuple[Dim, ...]:
        if len(v.shape) <= 2:
            return (0,) * len(lead)
        return broadcast(at._replace(strides=at.strides[:-2]), v.shape[:-2], lead).strides

    out: list[list[Dim]] = []
    steps = (dims.mul(step, d) for d in row_major(lead))
    for d, *strides in zip(lead, along(x, a), along(y, b), steps, strict=True):
        if one(d):
            continue
        if out and all(dims.same(p, dims.mul(d, q)) for p, q in zip(out[-1][1:], strides, strict=True)):
            out[-1] = [dims.mul(out[-1][0], d), *strides]
        else:
            out.append([d, *strides])
    return None if len(out) > 3 else [[1, 0, 0, 0]] * (3 - len(out)) + out


def _multiplied(x: Value, y: Value, out: Value) -> bool:
    """Whether BLAS makes products of these dtypes."""
    return cpu.blas() is not None and x.dtype == y.dtype == out.dtype and out.dtype.name in ("float32", "float64")


def _matrices(v: Value) -> bool:
    """Whether BLAS can read the matrices of an array's last two axes."""
    return _walkable(*layout(v).strides[-2:], *v.shape[-2:])


def tileable(piece: Piece) -> bool:
    """Whether a product may be made for some of its rows at a time."""
    found = product(piece)
    return found is not None and found.batches is not None


def _walkable(along_rows: Dim, along_columns: Dim, rows: Dim, columns: Dim) -> bool:
    """Whether BLAS can read a matrix: one of its strides is 1, none is 0; a vector may have any stride but 0."""
    if one(rows) or one(columns):
        return (one(rows) or not zero(along_rows)) and (one(columns) or not zero(along_columns))
    return (one(along_rows) and not zero(along_columns)) or (one(along_columns) and not zero(along_rows))


__all__ = ["SPECIAL", "Kernels", "tileable"]
