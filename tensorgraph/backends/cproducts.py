"""Products in C: of matrices, many at once, and of rows in groups whose sizes are data. See `runtime.c`."""

from __future__ import annotations

from typing import NamedTuple, cast

from .. import dims
from ..dims import Dim, Shape
from ..dtypes import DType
from ..passes.fuse import Piece, Step
from ..passes.layout import Layout, broadcast, layout, one, row_major, zero
from ..passes.program import Value
from . import cpu
from .cgen import c_type
from .ckernels import Kernels

SPECIAL = {"matmul", "grouped_matmul", "grouped_outer"}
INLINE = 1 << 13  # multiplications of a product of known sizes up to which it is a plain loop


class Products(Kernels):
    """Statements for products; None for dtypes and layouts that BLAS does not read."""

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
        fields = self._fields(kind, sizes, columns, a, b, out)
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
        one_group = self._gemm(out.dtype, shape, f"x + from * {x0}", f"w_ + e * {w0}", f"y + from * {f}")
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
        one_group = self._gemm(out.dtype, shape, f"x + from * {x0}", f"y + from * {y0}", to)
        body = f"if (to > from) {one_group} else memset({to}, 0, (size_t)({d} * {f}) * sizeof({kind}));"
        head = f"const {kind} *const x = a[0], *const y = a[1]; {kind} *const z = a[3];"
        return self._groups([a, b], sizes, out, n, head, body, "")

    def _gemm(self, kind: DType, sizes: list[str], x: str, y: str, z: str) -> str:
        """One product of two matrices."""
        fields = self._fields(kind, sizes, ["{1, 1, 1}", "{0}", "{0}", "{0}"], x, y, z)
        return f"{{ const Gemm g = {{{fields}}}; c->rt->gemm(c, &g); }}"

    def _fields(self, kind: DType, sizes: list[str], batches: list[str], x: str, y: str, z: str) -> str:
        """Of a Gemm. `sizes`: m, n, k, strides of both along rows and columns, that of the result's rows."""
        return ", ".join([str(int(kind.size == 8)), "TG_FIXED", *sizes[:3], *batches, *sizes[3:], x, y, z])

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
            f"    const int64_t count = tg_index(c, sizes[e * {step}], {rows} + 1), left = {rows} - from;",
            "    const int64_t to = from + (count < left ? count : left);",
            f"    {body}",
            "    from = to;",
            "}",
            rest,
        ]
        return self._once([*factors[:2], at, self.pointer(out), *factors[2:]], [line for line in lines if line])


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


__all__ = ["SPECIAL", "Products", "tileable"]
