"""Indexing by data: gather rows, sum rows by index, write into a cache, sort, the largest k."""

from __future__ import annotations

from functools import partial
from typing import Any

from .. import dims, dtypes
from ..dims import Dim, Shape
from ..errors import DTypeError
from ..op import Bad, DataRange, InputSpec, Obligation, S, axis_of, clash, fixed, ids, need_dtype, op, same
from ..tensor import Tensor, operand
from .elementwise import equal
from .leaf import arange, zeros
from .movement import unsqueeze

builtin = partial(op, builtin=True, primitive=True, style="index", flops=lambda *_, **__: 0)
SCALAR_ID = InputSpec("", "int32", "2")


def _axis(name: str, index: int = 0) -> Any:
    return lambda xs, a: {**a, "axis": axis_of(name, a["axis"], xs[index])}


def _take_shape(x: Tensor, ids: Tensor, axis: int) -> Shape:
    need_dtype("take", ids, "i", "ids")
    return (*x.shape[:axis], *ids.shape, *x.shape[axis + 1 :])


@builtin(
    shape=_take_shape,
    dtype=lambda x, ids, axis: x.dtype,
    prepare=_axis("take"),
    ranges=lambda x, ids, axis: [DataRange(1, 0, x.shape[axis])],
    style="gather",
    samples=[
        S("V d", ids("B T", "V")),
        S("B V", ids("T", "V"), axis=1),
        S("V", ids("", "V")),
        Bad("V d", "B", match="must be integer"),
    ],
)
def take(x: Tensor, ids: Tensor, axis: int = 0) -> Tensor:
    """Rows of x by index: an embedding lookup. ids lie in [0, size of `axis`)."""


@take.forward
def _(xp: Any, x: Any, ids: Any, axis: int) -> Any:
    return xp.take(x, ids, axis=axis)


@take.vjp
def _(g: Tensor, y: Tensor, x: Tensor, ids: Tensor, axis: int) -> Any:
    return lambda: segment_sum(g, ids, x.shape[axis], axis), None


def _segment_shape(x: Tensor, ids: Tensor, count: Dim, axis: int) -> Shape:
    need_dtype("segment_sum", ids, "i", "ids")
    part = x.shape[axis : axis + ids.ndim]
    if not dims.same_shape(part, ids.shape):
        raise clash("TG118", "segment_sum: ids do not match the rows", (x, "x", None), (ids, "ids", None))
    return (*x.shape[:axis], count, *x.shape[axis + ids.ndim :])


@builtin(
    shape=_segment_shape,
    dtype=lambda x, *_, **__: x.dtype,
    prepare=lambda xs, a: {"count": dims.canon(a["count"]), "axis": int(a["axis"])},
    ranges=lambda x, ids, count, axis: [DataRange(1, 0, count)],
    flops=lambda y, x, *_, **__: x.size,
    samples=[
        S("B T d", ids("B T", "5"), count=5),
        S("B T", ids("T", "3"), count=3, axis=1),
        Bad("B d", ids("T", "3"), count=3, match="do not match"),
    ],
)
def segment_sum(x: Tensor, ids: Tensor, count: Any, axis: int = 0) -> Tensor:
    """Row i of the result is the sum of the rows of x whose id is i: the transpose of `take`."""


@segment_sum.forward
def _(xp: Any, x: Any, ids: Any, count: int, axis: int, out: Any = None) -> Any:
    lead = x.shape[:axis]
    if out is None:
        y = xp.zeros((*lead, count, *x.shape[axis + ids.ndim :]), x.dtype)
    else:
        y = out
        y.fill(0)
    flat = xp.reshape(x, (*lead, ids.size, *x.shape[axis + ids.ndim :]))
    xp.add.at(y, (slice(None),) * axis + (xp.reshape(ids, (-1,)),), flat)
    return y


@segment_sum.vjp
def _(g: Tensor, y: Tensor, x: Tensor, ids: Tensor, count: Dim, axis: int) -> Any:
    return lambda: take(g, ids, axis), None


def _index_add_shape(x: Tensor, ids: Tensor, rows: Tensor, axis: int) -> Shape:
    need_dtype("index_add", ids, "i", "ids")
    if not dims.same_shape(rows.shape, (*x.shape[:axis], *ids.shape, *x.shape[axis + 1 :])):
        raise clash(
            "TG118",
            "index_add: rows must have the shape of x, with that of ids in place of the axis indexed",
            (x, "x", None),
            (ids, "ids", None),
            (rows, "rows", None),
        )
    if rows.dtype != x.dtype:
        text = f"index_add: rows are {rows.dtype}, and x is {x.dtype}"
        raise DTypeError("TG207", text, operands=[operand(x, "x"), operand(rows, "rows")], hint="rows.cast(x.dtype)")
    return x.shape


@builtin(
    shape=_index_add_shape,
    dtype=lambda x, *_, **__: x.dtype,
    prepare=_axis("index_add"),
    inplace=(0,),
    ranges=lambda x, ids, rows, axis: [DataRange(1, 0, x.shape[axis])],
    flops=lambda y, x, ids, rows, **__: rows.size,
    samples=[
        S("5 d", ids("B T", "5"), "B T d"),
        S("B 3", ids("T", "3"), "B T", axis=1),
        Bad("5 d", ids("T", "5"), "B d", match="rows must have"),
        Bad("5 d", "B", "B d", match="must be integer"),
        Bad(InputSpec("5 d", "int32", "5"), ids("T", "5"), "T d", match="and x is int32"),
    ],
)
def index_add(x: Tensor, ids: Tensor, rows: Tensor, axis: int = 0) -> Tensor:
    """x with each of `rows` added to the row of x whose index is its id: x + segment_sum(rows, ids), in one pass."""


@index_add.forward
def _(xp: Any, x: Any, ids: Any, rows: Any, axis: int, out: Any = None) -> Any:
    y = x.astype(xp.result_type(x, rows)) if out is None else out
    if y is not x and out is not None:
        xp.copyto(y, x)
    flat = xp.reshape(rows, (*x.shape[:axis], ids.size, *x.shape[axis + 1 :]))
    xp.add.at(y, (slice(None),) * axis + (xp.reshape(ids, (-1,)),), flat)
    return y


@index_add.vjp
def _(g: Tensor, y: Tensor, x: Tensor, ids: Tensor, rows: Tensor, axis: int) -> Any:
    return lambda: g, None, lambda: take(g, ids, axis)


def _along_shape(x: Tensor, ids: Tensor, axis: int) -> Shape:
    need_dtype("take_along", ids, "i", "ids")
    if ids.ndim != x.ndim or not all(
        i == axis or dims.same(a, b) for i, (a, b) in enumerate(zip(x.shape, ids.shape, strict=False))
    ):
        raise clash(
            "TG118",
            "take_along: x and ids must agree on every axis but the one indexed",
            (x, "x", None),
            (ids, "ids", None),
        )
    return ids.shape


@builtin(
    shape=_along_shape,
    dtype=lambda x, ids, axis: x.dtype,
    prepare=_axis("take_along"),
    ranges=lambda x, ids, axis: [DataRange(1, 0, x.shape[axis])],
    samples=[
        S("B V", ids("B T", "V")),
        S("V T", ids("B T", "V"), axis=0),
        Bad("B V", ids("T", "V"), match="must agree"),
    ],
)
def take_along(x: Tensor, ids: Tensor, axis: int = -1) -> Tensor:
    """x[..., ids[..., j], ...] along `axis`, the other axes in step."""


@take_along.forward
def _(xp: Any, x: Any, ids: Any, axis: int) -> Any:
    return xp.take_along_axis(x, ids, axis)


@take_along.vjp
def _(g: Tensor, y: Tensor, x: Tensor, ids: Tensor, axis: int) -> Any:
    return lambda: sum_along(g, ids, x.shape[axis], axis), None


def _sum_along_shape(x: Tensor, ids: Tensor, count: Dim, axis: int) -> Shape:
    need_dtype("sum_along", ids, "i", "ids")
    if not dims.same_shape(x.shape, ids.shape):
        raise clash("TG118", "sum_along: x and ids must have one shape", (x, "x", None), (ids, "ids", None))
    return tuple(count if i == axis else d for i, d in enumerate(x.shape))


@builtin(
    shape=_sum_along_shape,
    dtype=lambda x, *_, **__: x.dtype,
    prepare=lambda xs, a: {"count": dims.canon(a["count"]), "axis": axis_of("sum_along", a["axis"], xs[0])},
    ranges=lambda x, ids, count, axis: [DataRange(1, 0, count)],
    flops=lambda y, x, *_, **__: x.size,
    samples=[
        S("B T", ids("B T", "4"), count=4),
        S("B T", ids("B T", "3"), count=3, axis=0),
        Bad("B T", ids("T", "4"), count=4, match="must have one shape"),
        Bad("B", "B", count=4, match="must be integer"),
    ],
)
def sum_along(x: Tensor, ids: Tensor, count: Any, axis: int = -1) -> Tensor:
    """Zeros of size `count` along `axis`, to which x is added at ids: the transpose of `take_along`."""


@sum_along.forward
def _(xp: Any, x: Any, ids: Any, count: int, axis: int) -> Any:
    y = xp.zeros((*x.shape[:axis], count, *x.shape[axis + 1 :]), x.dtype)
    grid = list(xp.ix_(*[xp.arange(n) for n in x.shape]))
    grid[axis] = ids
    xp.add.at(y, tuple(grid), x)
    return y


@sum_along.vjp
def _(g: Tensor, y: Tensor, x: Tensor, ids: Tensor, count: Dim, axis: int) -> Any:
    return lambda: take_along(g, ids, axis), None


# --------------------------------------------------------------------------- boxes at a place given as data


def _update_shape(x: Tensor, new: Tensor, position: Tensor, axis: int) -> Shape:
    need_dtype("update_slice", position, "i", "position")
    if new.ndim != x.ndim or not all(
        i == axis or dims.same(a, b) for i, (a, b) in enumerate(zip(x.shape, new.shape, strict=False))
    ):
        raise clash(
            "TG118",
            "update_slice: x and new must agree on every axis but the one written",
            (x, "x", None),
            (new, "new", None),
        )
    return x.shape


@builtin(
    shape=_update_shape,
    dtype=lambda x, new, position, axis: x.dtype,
    prepare=_axis("update_slice"),
    inplace=(0,),
    style="move",
    ranges=lambda x, new, position, axis: [DataRange(2, 0, dims.add(dims.sub(x.shape[axis], new.shape[axis]), 1))],
    samples=[
        S("B 5 d", "B 2 d", SCALAR_ID, axis=1),
        S("4", "1", SCALAR_ID),
        Bad("B 5", "T 2", SCALAR_ID, axis=1, match="must agree"),
    ],
)
def update_slice(x: Tensor, new: Tensor, position: Tensor, axis: int = 0) -> Tensor:
    """x with `new` written from `position` on along `axis`; in place where x is not needed afterwards (a cache)."""


@update_slice.forward
def _(xp: Any, x: Any, new: Any, position: Any, axis: int, out: Any = None) -> Any:
    y = x.astype(xp.result_type(x, new)) if out is None else out
    if y is not x and out is not None:
        xp.copyto(y, x)
    at = int(position.real)
    y[(slice(None),) * axis + (slice(at, at + new.shape[axis]),)] = new
    return y


@update_slice.vjp
def _(g: Tensor, y: Tensor, x: Tensor, new: Tensor, position: Tensor, axis: int) -> Any:
    return (
        lambda: update_slice(g, zeros(new.shape, g.dtype), position, axis),
        lambda: dynamic_slice(g, position, new.shape[axis], axis),
        None,
    )


def _dynamic_slice_shape(x: Tensor, position: Tensor, size: Dim, axis: int) -> Shape:
    need_dtype("dynamic_slice", position, "i", "position")
    return tuple(size if i == axis else d for i, d in enumerate(x.shape))


@builtin(
    shape=_dynamic_slice_shape,
    dtype=lambda x, *_, **__: x.dtype,
    requires=lambda x, position, size, axis: [Obligation(x.shape[axis], ">=", size, "slice within its axis")],
    prepare=lambda xs, a: {"size": dims.canon(a["size"]), "axis": axis_of("dynamic_slice", a["axis"], xs[0])},
    style="move",
    ranges=lambda x, position, size, axis: [DataRange(1, 0, dims.add(dims.sub(x.shape[axis], size), 1))],
    samples=[
        S("B 5 d", SCALAR_ID, size=2, axis=1),
        S("3", SCALAR_ID, size=1),
        Bad("3", "", size=1, match="must be integer"),
        Bad("3", SCALAR_ID, size=4, match="slice within its axis"),
    ],
)
def dynamic_slice(x: Tensor, position: Tensor, size: Any, axis: int = 0) -> Tensor:
    """`size` rows of x from `position` on along `axis`."""


@dynamic_slice.forward
def _(xp: Any, x: Any, position: Any, size: int, axis: int) -> Any:
    at = int(position.real)
    return x[(slice(None),) * axis + (slice(at, at + size),)]


@dynamic_slice.vjp
def _(g: Tensor, y: Tensor, x: Tensor, position: Tensor, size: Dim, axis: int) -> Any:
    return lambda: update_slice(zeros(x.shape, g.dtype), g, position, axis), None


# ------------------------------------------------------------------------------------------------ order


@builtin(
    shape=same(),
    dtype=fixed(dtypes.int32),
    prepare=_axis("argsort"),
    method="argsort",
    nodiff="an index",
    samples=[S("B T"), S("B T", axis=0, descending=True), Bad("B", axis=1, match="axis 1 out of range")],
)
def argsort(x: Tensor, axis: int = -1, descending: bool = False) -> Tensor:
    """The order that sorts x along `axis`; equal elements keep theirs."""


@argsort.forward
def _(xp: Any, x: Any, axis: int, descending: bool) -> Any:
    falling = xp.invert if x.dtype.kind in "biu" else xp.negative  # -x of integers wraps
    return xp.argsort(falling(x) if descending else x, axis=axis, kind="stable").astype("int32")


def top_k(x: Tensor, k: int, axis: int = -1) -> tuple[Tensor, Tensor]:
    """The k largest along `axis`, largest first, and their indices."""
    axis = axis_of("top_k", axis, x)
    order = argsort(x, axis, True)
    first = order[tuple(slice(0, k) if i == axis else slice(None) for i in range(x.ndim))]
    return take_along(x, first, axis), first


def one_hot(ids: Tensor, count: Any, dtype: Any = "float32") -> Tensor:
    """1 at each id, 0 elsewhere, along a new last axis of size `count`."""
    return equal(unsqueeze(ids, ids.ndim), arange(size=count, dtype=ids.dtype)).cast(dtype)


__all__ = [
    "argsort",
    "dynamic_slice",
    "index_add",
    "one_hot",
    "segment_sum",
    "sum_along",
    "take",
    "take_along",
    "top_k",
    "update_slice",
]
