"""Products with weights stored in fewer bits: rows of int8 with a scale each, or of bfloat16. For inference."""

from __future__ import annotations

from functools import partial
from typing import Any

from .. import dims, dtypes
from ..dims import Dim, Shape
from ..op import Bad, DataRange, InputSpec, S, clash, ids, need_dtype, op
from ..tensor import Tensor
from .elementwise import cast as cast_
from .indexing import take
from .linalg import grouped_matmul, groups, matmul, widened
from .movement import swapaxes, unsqueeze

builtin = partial(op, builtin=True)
BLOCK = 1 << 18  # elements that are unpacked at a time


def _need_scale(name: str, w: Tensor, scale: Tensor | None) -> None:
    if scale is not None and not dims.same_shape(scale.shape, w.shape[:-1]):
        raise clash("TG126", f"{name}: there is one scale for each row of w", (w, "w", 0), (scale, "scale", None))


def _matmul_shape(x: Tensor, w: Tensor, scale: Tensor | None) -> Shape:
    if x.ndim < 1 or w.ndim != 2 or not dims.same(x.shape[-1], w.shape[1]):
        raise clash("TG126", "packed_matmul: the rows of w must be as long as those of x", (x, "x", -1), (w, "w", -1))
    _need_scale("packed_matmul", w, scale)
    return (*x.shape[:-1], w.shape[0])


def _flops(y: Tensor, x: Tensor, w: Tensor, scale: Tensor | None) -> Dim:
    return dims.mul(2, dims.mul(y.size, x.shape[-1]))


@builtin(
    shape=_matmul_shape,
    dtype=lambda x, *_: x.dtype,
    flops=_flops,
    style="matmul",
    samples=[
        S("B T d", InputSpec("f d", "int8", "7"), "f"),
        S("d", InputSpec("f d", "bfloat16"), None),
        Bad("B d", InputSpec("d f", "int8", "7"), None, match="as long as"),
        Bad("B d", InputSpec("f d", "int8", "7"), "d", match="one scale for each row"),
    ],
)
def packed_matmul(x: Tensor, w: Tensor, scale: Tensor | None) -> Tensor:
    """x wᵀ · scale, for x [..., d] and weights w [f, d] of int8 or bfloat16, a scale [f] for each row of w."""
    y = matmul(x, swapaxes(cast_(w, x.dtype), 0, 1))
    return y if scale is None else y * cast_(scale, x.dtype)


def _product(xp: Any, x: Any, w: Any, scale: Any, out: Any = None) -> Any:
    rows, step = w.shape[0], max(1, BLOCK // max(1, w.shape[1]))
    y = xp.empty((*x.shape[:-1], rows), x.dtype) if out is None else out
    x = widened(x)
    for at in range(0, rows, step):
        part = slice(at, at + step)
        found = xp.matmul(x, xp.swapaxes(w[part].astype(x.dtype), 0, 1))
        y[..., part] = found if scale is None else found * scale[part].astype(x.dtype)
    return y


packed_matmul.forward(_product)


def _grouped_shape(x: Tensor, w: Tensor, scale: Tensor | None, sizes: Tensor) -> Shape:
    need_dtype("packed_grouped", sizes, "i", "sizes")
    if (x.ndim, w.ndim, sizes.ndim) != (2, 3, 1) or not dims.same(x.shape[-1], w.shape[2]):
        text = "packed_grouped: x [N, d], w [E, f, d] and sizes [E] are wanted, rows of w as long as those of x"
        raise clash("TG126", text, (x, "x", -1), (w, "w", -1), (sizes, "sizes", None))
    if not dims.same(w.shape[0], sizes.shape[0]):
        raise clash("TG126", "packed_grouped: one weight and one size per group", (w, "w", 0), (sizes, "sizes", 0))
    _need_scale("packed_grouped", w, scale)
    return x.shape[0], w.shape[1]


@builtin(
    shape=_grouped_shape,
    dtype=lambda x, *_: x.dtype,
    ranges=lambda x, w, scale, sizes: [DataRange(3, 0, dims.add(x.shape[0], 1))],
    flops=lambda y, x, *_: dims.mul(2, dims.mul(y.size, x.shape[-1])),
    style="matmul",
    samples=[
        S("N d", InputSpec("E f d", "int8", "7"), "E f", ids("E", "3")),
        S("9 d", InputSpec("4 2 d", "bfloat16"), None, ids("4", "4")),
        Bad("N d", InputSpec("E d f", "int8", "7"), None, ids("E", "3"), match="as long as"),
        Bad("N d", InputSpec("E f d", "int8", "7"), None, ids("F", "3"), match="one size per group"),
        Bad("N d", InputSpec("E f d", "int8", "7"), "E d", ids("E", "3"), match="one scale for each row"),
    ],
)
def packed_grouped(x: Tensor, w: Tensor, scale: Tensor | None, sizes: Tensor) -> Tensor:
    """Rows of x [N, d], sorted by group, times the packed matrix of their group: [N, f]. w [E, f, d], scale [E, f].

    As `grouped_matmul`: sizes [E] are data, and rows beyond the last group give 0.
    """
    unpacked = cast_(w, x.dtype)
    whole = unpacked if scale is None else unpacked * unsqueeze(cast_(scale, x.dtype), 2)
    return grouped_matmul(x, whole.T, sizes)


@packed_grouped.forward
def _(xp: Any, x: Any, w: Any, scale: Any, sizes: Any) -> Any:
    y = xp.zeros((x.shape[0], w.shape[1]), x.dtype)
    for e, rows in groups(sizes, x.shape[0]):
        y[rows] = _product(xp, x[rows], w[e], None if scale is None else scale[e])
    return y


def _rows_shape(w: Tensor, scale: Tensor | None, places: Tensor, dtype: Any) -> Shape:
    need_dtype("packed_rows", places, "i", "ids")
    if w.ndim != 2:
        raise clash("TG126", "packed_rows: w must be a table [V, d]", (w, "w", None))
    _need_scale("packed_rows", w, scale)
    return (*places.shape, *w.shape[1:])


@builtin(
    shape=_rows_shape,
    dtype=lambda w, scale, ids, dtype: dtype,
    ranges=lambda w, scale, ids, dtype: [DataRange(2, 0, w.shape[0])],
    prepare=lambda xs, a: {"dtype": dtypes.dtype(a["dtype"])},
    flops=lambda y, *_, **__: y.size,
    style="gather",
    samples=[
        S(InputSpec("V d", "int8", "7"), "V", ids("B T", "V"), dtype="float32"),
        S(InputSpec("V d", "bfloat16"), None, ids("T", "V"), dtype="float32"),
        Bad(InputSpec("V d", "int8", "7"), "d", ids("B T", "V"), dtype="float32", match="one scale for each row"),
    ],
)
def packed_rows(w: Tensor, scale: Tensor | None, ids: Tensor, dtype: Any = "float32") -> Tensor:
    """Rows of w [V, d] by id, times their scale: an embedding lookup in a packed table."""
    rows = cast_(take(w, ids), dtype)
    return rows if scale is None else rows * unsqueeze(cast_(take(scale, ids), dtype), ids.ndim)


@packed_rows.forward
def _(xp: Any, w: Any, scale: Any, ids: Any, dtype: Any) -> Any:
    rows = xp.take(w, ids, axis=0).astype(dtype.np)
    return rows if scale is None else rows * xp.take(scale, ids)[..., None].astype(dtype.np)


__all__ = ["packed_grouped", "packed_matmul", "packed_rows"]
