"""Kernels in C that index: lookups and sums by ids, boxes at a place given as data, order, odd reductions."""

from __future__ import annotations

from .. import dims
from ..passes.fuse import Piece, Step
from ..passes.layout import row_major
from ..passes.program import Value
from . import cgen
from .cgen import c_type
from .ckernels import Kernels

SPECIAL = {"take", "take_along", "segment_sum", "sum_along", "index_add", "gather", "reduce", "update_slice",
           "dynamic_slice", "argmax", "argsort"}  # fmt: skip
RUN = 8  # elements that are put in order by insertion


class Indexing(Kernels):
    """Statements for steps that read or write at places given as data; None for layouts that no stride describes."""

    # -- rows by id
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
            f"    if ({count} > 0) for (int64_t j = 0; j < {tail}; j++) y[r * {tail} + j] = from[j * {s2}];",
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
        if cut is None or along is None or out.dtype.kind == "b":  # a sum of truths is no sum of bytes
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
        count = self.size(x.shape[axis])
        place = f"{{ const int64_t at = tg_index(c, ids[{self._index(at_i.strides)}], {count});"
        read = f"x[{row} + at * {self.size(at.strides[axis])}]"
        one = f"{place} if (at < {count}) y[{self._index(row_major(out.shape))}] = {read}; }}"
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
        if out.dtype.kind == "b":
            return None
        (a, at), (i, at_i), to = self._read(x), self._read(ids), row_major(out.shape)
        row = self._index([0 if n == axis else s for n, s in enumerate(to)])
        count = self.size(out.shape[axis])
        place = f"{{ const int64_t at = tg_index(c, ids[{self._index(at_i.strides)}], {count});"
        one = f"{place} if (at < {count}) y[{row} + at * {self.size(to[axis])}] += x[{self._index(at.strides)}]; }}"
        whole = axis == 0
        first, rows = ("0", self.size(out.shape[0])) if whole else ("lo", "hi - lo")
        clear = f"memset(y + {first} * {self.size(to[0])}, 0, (size_t)(({rows}) * {self.size(to[0])}) * sizeof({t}));"
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
        """Insertion into runs, then merges of ever longer ones, which keep equal elements in order; NaN comes last."""
        x, out, attrs = piece.inputs[0], piece.outputs[0], piece.kernel.node.attrs
        axis, t = attrs["axis"], c_type(x.dtype)
        a, at = self._read(x)
        cut = self._cut(at, x.shape, axis, axis + 1)
        if cut is None:
            return None
        (lead, s0), (n, s1), (tail, s2) = cut
        self.scratch.append(dims.mul(32, x.shape[axis]))
        falling = {"f": "-", "b": "!"}.get(x.dtype.kind, "~") if attrs["descending"] else ""

        def before(u: str, v: str) -> str:
            return f"({u}.key < {v}.key || ({v}.key != {v}.key && {u}.key == {u}.key))"

        body = [
            f"typedef struct {{ {t} key; int32_t at; }} Item;",
            f"const {t} *const x = a[0]; int32_t *const y = a[1];",
            "for (int64_t r = lo; r < hi; r++) {",
            f"    const {t} *const row = x + (r / {tail}) * {s0} + (r % {tail}) * {s2};",
            f"    int32_t *const to = y + (r / {tail}) * {n} * {tail} + r % {tail};",
            f"    Item *from = (Item *)w, *made = from + {n};",
            f"    for (int64_t i = 0; i < {n}; i++) {{",
            f"        const Item new = {{({t}){falling}row[i * {s1}], (int32_t)i}};",
            "        int64_t k = i;",
            f"        for (; k % {RUN} && {before('new', 'from[k - 1]')}; k--) from[k] = from[k - 1];",
            "        from[k] = new;",
            "    }",
            f"    for (int64_t width = {RUN}; width < {n}; width *= 2) {{",
            f"        for (int64_t start = 0; start < {n}; start += 2 * width) {{",
            f"            const int64_t middle = start + width < {n} ? start + width : {n};",
            f"            const int64_t end = middle + width < {n} ? middle + width : {n};",
            "            int64_t k = start, i = start, j = middle;",
            "            while (i < middle && j < end)",
            f"                made[k++] = {before('from[j]', 'from[i]')} ? from[j++] : from[i++];",
            "            while (i < middle) made[k++] = from[i++];",
            "            while (j < end) made[k++] = from[j++];",
            "        }",
            "        Item *const last = from; from = made; made = last;",
            "    }",
            f"    for (int64_t i = 0; i < {n}; i++) to[i * {tail}] = from[i].at;",
            "}",
        ]
        return self._parallel([a, self.pointer(out)], body, f"{lead} * {tail}", f"{lead} * {n} * {tail} * 8")


__all__ = ["SPECIAL", "Indexing"]
