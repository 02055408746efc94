"""Steps in C for weights stored in fewer bits: see `packed.h` and `matvec.c`."""

from __future__ import annotations

from .. import dims
from ..dtypes import DType
from ..passes.fuse import Piece, Step
from ..passes.layout import layout, one, row_major
from ..passes.program import Value
from .cgen import c_type
from .ckernels import OPEN
from .cproducts import Products

SPECIAL = {"packed_matmul", "packed_grouped", "packed_rows"}
KINDS = {"int8": (0, "int8_t", "tg_byte"), "bfloat16": (1, "uint16_t", "tg_half")}
ROWS = 512  # as UNPACKED in matvec.c


class PackedProducts(Products):
    """Statements for products with packed weights; None where x is not float32, or not stored row by row."""

    packed = False  # whether the unit needs packed.h

    def _kind(self, w: DType, others: list[DType]) -> tuple[int, str, str] | None:
        return KINDS.get(w.name) if all(t.name == "float32" for t in others) else None

    def _packed_matmul(self, piece: Piece, step: Step) -> list[str] | None:
        (x, w, *scale), out = piece.inputs, piece.outputs[0]
        kind = self._kind(w.dtype, [x.dtype, out.dtype, *[s.dtype for s in scale]])
        if kind is None or not all(self._plain(v) for v in (x, w, *scale)):
            return None
        (n, k), m = w.shape, dims.size(x.shape[:-1])
        self.scratch.append(dims.mul(4 * ROWS, k))
        at = [self._start(v) for v in (x, w, *scale)] + ([] if scale else ["0"])
        sizes = [self.size(d) for d in (m, n, k)]
        fields = ", ".join(["TG_FIXED", str(kind[0]), *sizes, *at, self.pointer(out)])
        return [f"{{ const Packed g = {{{fields}}}; c->rt->packed(c, &g); }}"]

    def _packed_grouped(self, piece: Piece, step: Step) -> list[str] | None:
        (x, w, *scale, sizes), out = piece.inputs, piece.outputs[0]
        kind = self._kind(w.dtype, [x.dtype, out.dtype, *[s.dtype for s in scale]])
        if kind is None or not all(self._plain(v) for v in (x, w, *scale)):
            return None
        n, (f, d) = self.size(x.shape[0]), (self.size(k) for k in w.shape[1:])
        self.scratch.append(dims.mul(4 * ROWS, w.shape[2]))
        scales = f"(const float *)a[4] + e * {f}" if scale else "0"
        at = f"x + from * {d}, w_ + e * {f} * {d}, {scales}, y + from * {f}"
        one_group = f"{{ const Packed g = {{TG_FIXED, {kind[0]}, to - from, {f}, {d}, {at}}}; c->rt->packed(c, &g); }}"
        rest = f"memset(y + from * {f}, 0, (size_t)(({n} - from) * {f}) * sizeof(float));"
        head = f"const float *const x = a[0]; const {kind[1]} *const w_ = a[1]; float *const y = a[3];"
        factors = [self._start(v) for v in (x, w, *scale)]
        return self._groups(factors, sizes, out, n, head, f"if (to > from) {one_group}", rest)

    def _packed_rows(self, piece: Piece, step: Step) -> list[str] | None:
        (w, *scale, ids), out = piece.inputs, piece.outputs[0]
        kind = self._kind(w.dtype, [out.dtype, *[s.dtype for s in scale]])
        if kind is None or ids.dtype.name not in ("int32", "int64") or len(w.shape) != 2:
            return None
        if not all(self._plain(v) for v in (w, *scale, ids)):
            return None
        self.packed = True
        (count, k), n = (self.size(d) for d in w.shape), self.size(dims.size(ids.shape))
        args = [self._start(w), self._start(ids), self.pointer(out), *[self._start(s) for s in scale]]
        body = [
            f"const {kind[1]} *const w_ = a[0]; const {ids.dtype.name}_t *const ids = a[1]; float *const y = a[2];",
            f"const float *const scale = {'a[3]' if scale else '0'};",
            "for (int64_t r = lo; r < hi; r++) {",
            f"    const int64_t i = tg_index(c, ids[r], {count});",
            "    const float t = scale ? scale[i] : 1;",
            f"    for (int64_t j = 0; j < {k}; j++) y[r * {k} + j] = t * {kind[2]}(w_[i * {k} + j]);",
            "}",
        ]
        f = self._function([OPEN, *["    " + line for line in body], "}"])
        return [f"{{ void *const a[] = {{{', '.join(args)}}}; tg_run(c, {f}, a, {n}, tg_parts(c, {n} * {k}), 1); }}"]

    def _start(self, v: Value) -> str:
        """A pointer to the first element."""
        kind = KINDS[v.dtype.name][1] if v.dtype.name in KINDS else c_type(v.dtype)
        return f"(({kind} *){self.pointer(v.root)} + {self.size(layout(v).offset)})"

    def _plain(self, v: Value) -> bool:
        """Whether a value lies in memory row by row."""
        strides = zip(layout(v).strides, row_major(v.shape), v.shape, strict=True)
        return all(dims.same(s, r) or one(d) for s, r, d in strides)


__all__ = ["SPECIAL", "PackedProducts"]
