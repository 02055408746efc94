"""Products: matmul, einsum, products of rows in groups."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from .. import dims
from ..dims import Dim, Shape
from ..errors import OpError, ShapeError
from ..op import Bad, DataRange, S, broadcast_shapes, clash, floating, ids, need_dtype, op, operand
from ..tensor import Tensor
from .movement import reshape, swapaxes

builtin = partial(op, builtin=True, primitive=True, style="matmul")


def _matmul_shape(x: Tensor, y: Tensor) -> Shape:
    a, b = x.shape, y.shape
    if not a or not b:
        raise ShapeError(
            "TG108",
            "matmul: a scalar has no axes to contract",
            operands=[operand(x, "x"), operand(y, "y")],
            hint="multiply with *",
        )
    i, j = a[-1], b[-2] if len(b) > 1 else b[0]
    if i is not j and not dims.same(i, j):
        names = (x.label or "x", y.label or "y")
        text = f"matmul: inner sizes differ: '{dims.show(i)}' of {names[0]} against '{dims.show(j)}' of {names[1]}"
        fits = len(b) > 1 and dims.same(i, b[-1])
        hint = f"{names[1]}.T has shape {dims.show_shape((*b[:-2], b[-1], b[-2]))}" if fits else None
        raise clash("TG101", text, (x, "x", -1), (y, "y", -2 if len(b) > 1 else 0), hint=hint)
    lead = _lead(x, y)
    return (*lead, *((a[-2],) if len(a) > 1 else ()), *((b[-1],) if len(b) > 1 else ()))


class _Lead:
    """The leading (batch) axes of a tensor, named as the tensor, for the broadcasting rule and its errors."""

    def __init__(self, x: Tensor) -> None:
        self.shape, self.label, self.op, self.dtype = x.shape[:-2], x.label, x.op, x.dtype
        self.scope, self.where, self.type_text = x.scope, x.where, x.type_text


def _lead(x: Tensor, y: Tensor) -> Shape:
    if len(y.shape) <= 2:
        return x.shape[:-2]
    if len(x.shape) <= 2:
        return y.shape[:-2]
    return broadcast_shapes("matmul", cast("Tensor", _Lead(x)), cast("Tensor", _Lead(y)))


def _matmul_flops(out: Tensor, x: Tensor, y: Tensor) -> Dim:
    return dims.mul(2, dims.mul(out.size, x.shape[-1]))


@builtin(
    shape=_matmul_shape,
    dtype=floating("matmul"),
    flops=_matmul_flops,
    method="__matmul__ __rmatmul__ matmul",
    samples=[
        S("B d", "d f"),
        S("B T d", "d f"),
        S("B H T k", "B H k S"),
        S("d", "d"),
        S("B T d", "d"),
        S("d", "d f"),
        S("H T k", "B 1 k S"),
        Bad("B d", "f d", match="inner sizes differ"),
        Bad("", "d", match="scalar"),
    ],
)
def matmul(x: Tensor, y: Tensor) -> Tensor:
    """The matrix product over the last axis of x and the one before last of y; leading axes broadcast."""


@matmul.forward
def _(xp: Any, x: Any, y: Any, out: Any = None) -> Any:
    if x.dtype.itemsize == 2:  # half precision is multiplied in float32 and rounded once
        return xp.matmul(x.astype("float32"), y.astype("float32")).astype(x.dtype)
    return xp.matmul(x, y, out=out)


@matmul.vjp
def _(g: Tensor, out: Tensor, x: Tensor, y: Tensor) -> Any:
    if x.ndim == 1 and y.ndim == 1:
        return lambda: g * y, lambda: g * x
    if x.ndim == 1:  # [d] @ [.., d, f] = [.., f]
        row = reshape(g, (*g.shape[:-1], 1, g.shape[-1]))
        return lambda: squeeze_sum(matmul(row, y.T), x), lambda: matmul(reshape(x, (x.shape[0], 1)), row)
    if y.ndim == 1:  # [.., T, d] @ [d] = [.., T]
        col = reshape(g, (*g.shape, 1))
        return lambda: matmul(
            col, reshape(y, (1, y.shape[0]))
        ), lambda: _flat(x).T @ (g if g.ndim == 1 else reshape(g, (-1,)))
    if y.ndim == 2:  # the weight's gradient in one product over all rows, never one per batch entry
        return lambda: matmul(g, y.T), lambda: _flat(x).T @ _flat(g)
    return lambda: matmul(g, y.T), lambda: matmul(swapaxes(x, -1, -2), g)


def _flat(x: Tensor) -> Tensor:
    return x if x.ndim == 2 else cast("Tensor", reshape(x, (dims.size(x.shape[:-1]), x.shape[-1])))


def squeeze_sum(g: Tensor, like: Tensor) -> Tensor:
    """[.., 1, d] summed to [d]."""
    from .movement import sum_to

    return cast("Tensor", reshape(sum_to(g, (1, like.shape[0])), like.shape))


# ---------------------------------------------------------------------------------------------- einsum


def _einsum_prepare(xs: Any, attrs: dict[str, Any]) -> dict[str, Any]:
    spec = attrs["spec"]
    left, arrow, right = str(spec).replace(" ", "").partition("->")
    ins = left.split(",")
    letters = left.replace(",", "") + right
    if not arrow or not all(c.isalpha() and c.isascii() for c in letters):
        raise OpError("TG257", f"einsum: {spec!r} is not of the form 'ij,jk->ik'", hint="write the output; no ellipsis")
    if any(len(set(p)) != len(p) for p in [*ins, right]) or not set(right) <= set(left):
        raise OpError("TG257", f"einsum: {spec!r} repeats a letter within a term, or has one on the right only")
    if len(ins) != len(xs) or any(len(p) != x.ndim for p, x in zip(ins, xs, strict=True)):
        got = ", ".join(x.type_text for x in xs)
        raise ShapeError("TG117", f"einsum: {spec!r} does not fit {got}")
    for i, p in enumerate(ins):
        rest = set(right).union(*[set(q) for j, q in enumerate(ins) if j != i])
        if not set(p) <= rest:
            raise OpError(
                "TG257", f"einsum: {spec!r} sums {sorted(set(p) - rest)} of one term alone", hint="sum that axis first"
            )
    return {"spec": f"{left}->{right}"}


def _letters(xs: Any, spec: str) -> dict[str, Dim]:
    sizes: dict[str, Dim] = {}
    owner: dict[str, tuple[Tensor, int]] = {}
    for p, x in zip(spec.split("->")[0].split(","), xs, strict=True):
        for i, c in enumerate(p):
            if c in sizes and not dims.same(sizes[c], x.shape[i]):
                old = owner[c]
                raise clash(
                    "TG117",
                    f"einsum: {c} is '{dims.show(sizes[c])}' and '{dims.show(x.shape[i])}'",
                    (old[0], "x", old[1]),
                    (x, "y", i),
                )
            sizes.setdefault(c, x.shape[i])
            owner.setdefault(c, (x, i))
    return sizes


@builtin(
    shape=lambda *xs, spec: tuple(_letters(xs, spec)[c] for c in spec.split("->")[1]),
    dtype=floating("einsum"),
    prepare=_einsum_prepare,
    flops=lambda y, *xs, spec: dims.mul(len(xs), dims.size(list(_letters(xs, spec).values()))),
    samples=[
        S("B T d", "d f", spec="btd,df->btf"),
        S("B H T k", "B H S k", spec="bhtk,bhsk->bhts"),
        S("B", "T", spec="b,t->tb"),
        Bad("B d", "f d", spec="bd,df->bf", match="d is 'd' and 'f'"),
        Bad("B", spec="b->", match="of one term alone"),
    ],
)
def einsum(*xs: Tensor, spec: str) -> Tensor:
    """Products summed over shared letters: `einsum("btd,df->btf", x, w)`."""


@einsum.forward
def _(xp: Any, *xs: Any, spec: str) -> Any:
    if xs[0].dtype.itemsize == 2:
        return xp.einsum(spec, *[x.astype("float32") for x in xs]).astype(xs[0].dtype)
    return xp.einsum(spec, *xs, optimize=len(xs) > 2)


@einsum.vjp
def _(g: Tensor, y: Tensor, *xs: Tensor, spec: str) -> Any:
    left, right = spec.split("->")
    ins = left.split(",")
    out = []
    for i, p in enumerate(ins):
        others = [(q, x) for j, (q, x) in enumerate(zip(ins, xs, strict=True)) if j != i]
        new = ",".join([right, *[q for q, _ in others]]) + "->" + p
        out.append(lambda new=new, others=others: einsum(g, *[x for _, x in others], spec=new))
    return tuple(out)


# --------------------------------------------------------------------------- rows in groups, sizes as data
# Group e is rows sizes[0] + ... + sizes[e - 1] and the next sizes[e]; groups end where the rows do, and rows beyond the
# last group belong to none. Source: the grouped products of Gale et al. 2022 (MegaBlocks).


def groups(sizes: Any, count: int) -> Any:
    """(group, slice of its rows), for groups that have any."""
    start = 0
    for e, n in enumerate(sizes.real.tolist()):
        stop = min(count, start + max(0, int(n)))
        if stop > start:
            yield e, slice(start, stop)
        start = stop


def widened(x: Any) -> Any:
    """Half precision is multiplied in float32 and rounded once."""
    return x.astype("float32") if x.dtype.itemsize == 2 else x


def _grouped_flops(y: Tensor, x: Tensor, other: Tensor, sizes: Tensor) -> Dim:
    return dims.mul(2, dims.mul(x.size, other.shape[-1]))


def _grouped_matmul_shape(x: Tensor, w: Tensor, sizes: Tensor) -> Shape:
    need_dtype("grouped_matmul", sizes, "i", "sizes")
    if (x.ndim, w.ndim, sizes.ndim) != (2, 3, 1):
        got = ", ".join(t.type_text for t in (x, w, sizes))
        raise ShapeError("TG125", f"grouped_matmul: expected x [N, d], w [E, d, f], sizes [E]; got {got}")
    if not dims.same(x.shape[1], w.shape[1]):
        text = f"grouped_matmul: inner sizes differ: '{dims.show(x.shape[1])}' against '{dims.show(w.shape[1])}'"
        hint = "w.T has the last two axes swapped" if dims.same(x.shape[1], w.shape[2]) else None
        raise clash("TG125", text, (x, "x", 1), (w, "w", 1), hint=hint)
    if not dims.same(w.shape[0], sizes.shape[0]):
        raise clash("TG125", "grouped_matmul: one weight and one size per group", (w, "w", 0), (sizes, "sizes", 0))
    return x.shape[0], w.shape[2]


@builtin(
    shape=_grouped_matmul_shape,
    dtype=lambda x, w, sizes: floating("grouped_matmul")(x, w),
    ranges=lambda x, w, sizes: [DataRange(2, 0, dims.add(x.shape[0], 1))],
    flops=_grouped_flops,
    samples=[
        S("N d", "E d f", ids("E", "3")),
        S("9 d", "4 d 2", ids("4", "4")),
        Bad("N d", "E f d", ids("E", "3"), match="inner sizes differ"),
        Bad("N d", "E d f", ids("F", "3"), match="one size per group"),
        Bad("N d", "d f", ids("E", "3"), match="expected x"),
        Bad("N d", "E d f", "E", match="must be integer"),
    ],
)
def grouped_matmul(x: Tensor, w: Tensor, sizes: Tensor) -> Tensor:
    """Rows of x [N, d], sorted by group, times the matrix of their group, w [E, d, f]: [N, f]. sizes [E] are data.

    Rows beyond the last group give 0.
    """


@grouped_matmul.forward
def _(xp: Any, x: Any, w: Any, sizes: Any) -> Any:
    y = xp.zeros((x.shape[0], w.shape[2]), xp.result_type(x, w))
    for e, rows in groups(sizes, x.shape[0]):
        y[rows] = xp.matmul(widened(x[rows]), widened(w[e]))
    return y


@grouped_matmul.vjp
def _(g: Tensor, y: Tensor, x: Tensor, w: Tensor, sizes: Tensor) -> Any:
    return lambda: grouped_matmul(g, w.T, sizes), lambda: grouped_outer(x, g, sizes), None


def _grouped_outer_shape(x: Tensor, y: Tensor, sizes: Tensor) -> Shape:
    need_dtype("grouped_outer", sizes, "i", "sizes")
    if (x.ndim, y.ndim, sizes.ndim) != (2, 2, 1):
        got = ", ".join(t.type_text for t in (x, y, sizes))
        raise ShapeError("TG125", f"grouped_outer: expected x [N, d], y [N, f], sizes [E]; got {got}")
    if not dims.same(x.shape[0], y.shape[0]):
        raise clash("TG125", "grouped_outer: x and y must have the same rows", (x, "x", 0), (y, "y", 0))
    return sizes.shape[0], x.shape[1], y.shape[1]


@builtin(
    shape=_grouped_outer_shape,
    dtype=lambda x, y, sizes: floating("grouped_outer")(x, y),
    ranges=lambda x, y, sizes: [DataRange(2, 0, dims.add(x.shape[0], 1))],
    flops=_grouped_flops,
    samples=[
        S("N d", "N f", ids("E", "3")),
        S("9 d", "9 2", ids("4", "4")),
        Bad("N d", "M f", ids("E", "3"), match="the same rows"),
        Bad("N d", "N f", ids("", "3"), match="expected x"),
        Bad("N d", "N f", "E", match="must be integer"),
    ],
)
def grouped_outer(x: Tensor, y: Tensor, sizes: Tensor) -> Tensor:
    """xᵀ y of the rows of each group, x [N, d], y [N, f]: [E, d, f]; the gradient of `grouped_matmul` in its weight."""


@grouped_outer.forward
def _(xp: Any, x: Any, y: Any, sizes: Any) -> Any:
    z = xp.zeros((sizes.shape[0], x.shape[1], y.shape[1]), xp.result_type(x, y))
    for e, rows in groups(sizes, x.shape[0]):
        z[e] = xp.matmul(widened(x[rows]).T, widened(y[rows]))
    return z


@grouped_outer.vjp
def _(g: Tensor, z: Tensor, x: Tensor, y: Tensor, sizes: Tensor) -> Any:
    return lambda: grouped_matmul(y, g.T, sizes), lambda: grouped_matmul(x, g, sizes), None


__all__ = ["einsum", "grouped_matmul", "grouped_outer", "matmul"]
