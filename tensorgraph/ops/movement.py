"""Movement: the same elements in another shape or place."""

from __future__ import annotations

import builtins
from functools import partial
from typing import Any, cast

import numpy as np

from .. import dims
from ..dims import Dim, Shape
from ..errors import OpError, ShapeError
from ..op import Bad, Obligation, S, axis_of, clash, equal_hint, op, operand, promoted
from ..tensor import Tensor, _hooks

builtin = partial(op, builtin=True, primitive=True, flops=lambda *_, **__: 0)


# --------------------------------------------------------------------------------------------- reshape


def _reshape_prepare(xs: Any, attrs: dict[str, Any]) -> dict[str, Any]:
    (x,), shape = xs, attrs["shape"]
    shape = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
    holes = [i for i, d in enumerate(shape) if type(d) is int and d == -1]
    if len(holes) > 1:
        raise ShapeError("TG106", f"reshape: only one size may be -1, not {len(holes)}", operands=[operand(x, "x")])
    if holes:
        left: list[Dim] = list(x.shape)
        right: list[Dim] = [dims.canon(d) for d in shape if not (type(d) is int and d == -1)]
        for d in list(right):
            for have in left:
                if dims.same(have, d):
                    left.remove(have)
                    right.remove(d)
                    break
        try:
            hole = dims.div(dims.size(left), dims.size(right)) if right else dims.size(left)
            if dims.fractional(hole) and not any(dims.fractional(d) for d in x.shape):
                raise dims.SizeError("TG006", "")
        except dims.SizeError:
            want = ", ".join("-1" if type(d) is int and d == -1 else dims.show(dims.canon(d)) for d in shape)
            raise ShapeError("TG106", f"reshape: no size fits -1 in [{want}]", operands=[operand(x, "x")]) from None
        shape = tuple(hole if type(d) is int and d == -1 else d for d in shape)
    return {"shape": dims.shape(shape)}


def _reshape_shape(x: Tensor, shape: Shape) -> Shape:
    if not dims.same(dims.size(x.shape), dims.size(shape)):
        a, b = dims.size(x.shape), dims.size(shape)
        raise ShapeError(
            "TG106",
            f"reshape: {dims.show(a)} elements do not fit {dims.show_shape(shape)}, which holds {dims.show(b)}",
            operands=[operand(x, "x")],
            hint=equal_hint(a, b),
        )
    return shape


@builtin(
    shape=_reshape_shape,
    dtype=promoted,
    prepare=_reshape_prepare,
    view="reshape",
    style="view",
    samples=[S("B T d", shape=(-1,)), S("B T", shape=(-1, 1)), Bad("B T", shape=(7, 7, 7), match="do not fit")],
)
def reshape(x: Tensor, shape: Any) -> Tensor:
    """The same elements, in row-major order, in another shape; one size may be -1."""


@reshape.forward
def _(xp: Any, x: Any, shape: Any) -> Any:
    return xp.reshape(x, shape)


@reshape.vjp
def _(g: Tensor, y: Tensor, x: Tensor, shape: Shape) -> Any:
    return (reshape(g, x.shape),)


# --------------------------------------------------------------------------------------------- permute


def _permute_prepare(xs: Any, attrs: dict[str, Any]) -> dict[str, Any]:
    (x,), axes = xs, attrs["axes"]
    axes = tuple(axis_of("permute", a, x) for a in axes)
    if sorted(axes) != list(range(x.ndim)):
        raise ShapeError(
            "TG112", f"permute: {axes} does not name each of {x.ndim} axes once", operands=[operand(x, "x")]
        )
    return {"axes": axes}


@builtin(
    shape=lambda x, axes: tuple(x.shape[a] for a in axes),
    dtype=promoted,
    prepare=_permute_prepare,
    view="permute",
    style="view",
    samples=[S("B T d", axes=(2, 0, 1)), S("B T", axes=(-1, 0)), Bad("B T", axes=(0, 0), match="does not name each")],
)
def permute(x: Tensor, axes: Any) -> Tensor:
    """x with its axes in another order."""


@permute.forward
def _(xp: Any, x: Any, axes: Any) -> Any:
    return xp.transpose(x, axes)


@permute.vjp
def _(g: Tensor, y: Tensor, x: Tensor, axes: Any) -> Any:
    return (permute(g, tuple(axes.index(i) for i in range(len(axes)))),)


def swapaxes(x: Tensor, a: int, b: int) -> Tensor:
    """x with two axes swapped."""
    a, b = axis_of("swapaxes", a, x), axis_of("swapaxes", b, x)
    axes = list(range(x.ndim))
    axes[a], axes[b] = b, a
    return cast("Tensor", permute(x, tuple(axes)))


def _transpose(x: Tensor) -> Tensor:
    if x.ndim < 2:
        raise ShapeError("TG112", ".T needs at least two axes", operands=[operand(x, "x")])
    return swapaxes(x, -1, -2)


_hooks["transpose"] = _transpose

# ---------------------------------------------------------------------------------------------- expand


def _expand_shape(x: Tensor, shape: Shape) -> Shape:
    if len(shape) < x.ndim:
        raise ShapeError("TG113", f"expand: {dims.show_shape(shape)} has fewer axes than x", operands=[operand(x, "x")])
    for i, d in enumerate(reversed(x.shape), 1):
        if not dims.same(d, shape[-i]) and not (type(d) is int and d == 1):
            raise clash(
                "TG113",
                f"expand: '{dims.show(d)}' cannot become '{dims.show(shape[-i])}'",
                (x, "x", -i),
                hint=equal_hint(d, shape[-i]),
            )
    return shape


@builtin(
    shape=_expand_shape,
    dtype=promoted,
    prepare=lambda _, a: {"shape": dims.shape(a["shape"])},
    view="expand",
    style="view",
    samples=[S("B 1 d", shape=(2, "B", "T", "d")), S("", shape=(3,)), Bad("B T", shape=("B",), match="fewer axes")],
)
def expand(x: Tensor, shape: Any) -> Tensor:
    """x repeated along its axes of size 1, and along new leading axes."""


@expand.forward
def _(xp: Any, x: Any, shape: Any) -> Any:
    return xp.broadcast_to(x, shape)


expand.vjp(lambda g, y, x, shape: (g,))  # un-broadcasting is done centrally


def sum_to(g: Tensor, shape: Shape) -> Tensor:
    """g summed over the axes along which `shape` was broadcast: the one place where gradients un-broadcast."""
    from .reduce import sum

    if dims.same_shape(g.shape, shape):
        return g
    lead = g.ndim - len(shape)
    axis = tuple(range(lead))
    axis += tuple(
        i + lead
        for i, d in enumerate(shape)
        if type(d) is int and d == 1 and not (type(g.shape[i + lead]) is int and g.shape[i + lead] == 1)
    )
    y = sum(g, axis, keepdims=False) if axis else g
    return cast("Tensor", y if dims.same_shape(y.shape, shape) else reshape(y, shape))


# ------------------------------------------------------------------------------------- slice and pad


def _slice_prepare(xs: Any, attrs: dict[str, Any]) -> dict[str, Any]:
    """One (start, stop, step) per axis, in normal form: start >= 0, stop - start a whole number of steps or clamped."""
    (x,), ranges = xs, attrs["ranges"]
    if len(ranges) > x.ndim:
        raise ShapeError("TG114", f"slice: {len(ranges)} ranges for {x.ndim} axes", operands=[operand(x, "x")])
    out = []
    for i, d in enumerate(x.shape):
        start, stop, step = ranges[i] if i < len(ranges) and ranges[i] is not None else (0, d, 1)
        step = 1 if step is None else step
        if type(step) is not int or step < 1:
            raise OpError(
                "TG256", f"slice: the step must be a positive int, not {step!r}", hint="tg.flip reverses an axis"
            )
        start, stop = (0 if start is None else dims.canon(start)), (d if stop is None else dims.canon(stop))
        if type(start) is int and start < 0:
            start = dims.add(d, start)
        if type(stop) is int and stop < 0:
            stop = dims.add(d, stop)
        if type(d) is int:  # as NumPy: clamped where all is known
            start = min(max(start, 0), d) if type(start) is int else start
            stop = min(max(stop, start if type(start) is int else 0), d) if type(stop) is int else stop
        out.append((start, stop, step))
    return {"ranges": tuple(out)}


def _steps(start: Dim, stop: Dim, step: int) -> Dim:
    if step == 1:
        return dims.sub(stop, start)
    if type(start) is int and type(stop) is int:
        return builtins.max(0, -((start - stop) // step))
    if type(start) is int:  # ceil(n/s - start/s) = n/s - floor(start/s), if s divides n
        return dims.sub(dims.div(stop, step), start // step)
    return dims.div(dims.sub(stop, start), step)


def _slice_requires(x: Tensor, ranges: Any) -> list[Obligation]:
    out = []
    for d, (start, stop, _) in zip(x.shape, ranges, strict=True):
        out += [
            Obligation(d, ">=", stop, "slice within its axis"),
            Obligation(stop, ">=", start, "slice"),
            Obligation(start, ">=", 0, "slice"),
        ]
    return out


@builtin(
    name="slice",
    shape=lambda x, ranges: tuple(_steps(*r) for r in ranges),
    dtype=promoted,
    prepare=_slice_prepare,
    requires=_slice_requires,
    view="slice",
    style="view",
    samples=[
        S("B 5", ranges=(None, (1, 4, 1))),
        S("7", ranges=((0, 7, 2),)),
        S("T", ranges=((0, 1, 1),)),
        Bad("B T", ranges=((0, 1, 1),) * 3, match="3 ranges for 2 axes"),
    ],
)
def slice_(x: Tensor, ranges: Any) -> Tensor:
    """A box of x: one (start, stop, step) per axis."""


@slice_.forward
def _(xp: Any, x: Any, ranges: Any) -> Any:
    return x[tuple(slice(*r) for r in ranges)]


@slice_.vjp
def _(g: Tensor, y: Tensor, x: Tensor, ranges: Any) -> Any:
    widths = []
    for d, n, (start, _, step) in zip(x.shape, y.shape, ranges, strict=True):
        reach = dims.add(start, dims.add(dims.mul(dims.sub(n, 1), step), 1))  # one past the last element taken
        widths.append((start, dims.sub(d, reach), step - 1))
    return (pad(g, tuple(widths)),)


def _padded(d: Dim, low: Dim, high: Dim, inner: int) -> Dim:
    grown = dims.add(d, dims.mul(dims.sub(d, 1), inner)) if inner else d
    return dims.add(dims.add(low, grown), high)


def _pad_prepare(xs: Any, attrs: dict[str, Any]) -> dict[str, Any]:
    (x,), widths = xs, attrs["widths"]
    if len(widths) != x.ndim:
        raise ShapeError("TG114", f"pad: {len(widths)} widths for {x.ndim} axes", operands=[operand(x, "x")])
    return {"widths": tuple((dims.canon(w[0]), dims.canon(w[1]), int(w[2]) if len(w) > 2 else 0) for w in widths)}


def _pad_requires(x: Tensor, widths: Any) -> list[Obligation]:
    return [Obligation(w, ">=", 0, "pad by a positive width") for lo, hi, _ in widths for w in (lo, hi)]


@builtin(
    shape=lambda x, widths: tuple(_padded(d, *w) for d, w in zip(x.shape, widths, strict=True)),
    dtype=promoted,
    prepare=_pad_prepare,
    requires=_pad_requires,
    style="move",
    samples=[
        S("B T", widths=((1, 2), (0, 0))),
        S("3", widths=((1, 0, 2),)),
        Bad("B T", widths=((1, 1),), match="1 widths for 2"),
    ],
)
def pad(x: Tensor, widths: Any) -> Tensor:
    """x with zeros around it: one (low, high) or (low, high, between elements) per axis."""


@pad.forward
def _(xp: Any, x: Any, widths: Any) -> Any:
    y = xp.zeros(
        tuple(lo + hi + (n + (n - 1) * inner if n else 0) for n, (lo, hi, inner) in zip(x.shape, widths, strict=True)),
        x.dtype,
    )
    y[tuple(slice(lo, m - hi, inner + 1) for m, (lo, hi, inner) in zip(y.shape, widths, strict=True))] = x
    return y


@pad.vjp
def _(g: Tensor, y: Tensor, x: Tensor, widths: Any) -> Any:
    return (
        slice_(g, tuple((lo, dims.sub(m, hi), inner + 1) for m, (lo, hi, inner) in zip(y.shape, widths, strict=True))),
    )


def getitem(x: Tensor, index: Any) -> Tensor:
    """`x[1, :, None, ..., a:b]`: ints, ranges, None and one Ellipsis. Tensors as indices are `tg.take`."""
    index = index if isinstance(index, tuple) else (index,)
    if arrays := [i for i in index if isinstance(i, (Tensor, np.ndarray, list))]:
        what = "a tensor" if isinstance(arrays[0], Tensor) else "a list" if isinstance(arrays[0], list) else "an array"
        raise OpError("TG256", f"{what} cannot index a tensor", hint="tg.take(x, ids, axis) gathers rows")
    used = builtins.sum(i is not None and i is not Ellipsis for i in index)
    if used > x.ndim or builtins.sum(i is Ellipsis for i in index) > 1:
        raise ShapeError("TG114", f"{used} indices for {x.ndim} axes", operands=[operand(x, "x")])
    full: list[Any] = []
    for i in index:
        full += [slice(None)] * (x.ndim - used) if i is Ellipsis else [i]
    full += [slice(None)] * (x.ndim - used if Ellipsis not in index else 0)
    ranges: list[Any] = []
    keep: list[Any] = []
    for i in full:
        if i is None:
            keep.append(1)
            continue
        d = x.shape[len(ranges)]
        if isinstance(i, slice):
            ranges.append((i.start, i.stop, i.step))
            keep.append(len(ranges) - 1)
        else:
            at = dims.canon(i)
            if type(at) is int and type(d) is int and not -d <= at < d:
                raise clash("TG114", f"index {at} out of range for size {d}", (x, "x", len(ranges)))
            at = dims.add(d, at) if type(at) is int and at < 0 else at
            ranges.append((at, dims.add(at, 1), 1))
    y = slice_(x, tuple(ranges)) if any(r != (None, None, None) for r in ranges) else x
    position, shape = 0, []
    for i in full:
        if i is None:
            shape.append(1)
        else:
            if isinstance(i, slice):
                shape.append(y.shape[position])
            position += 1
    return cast("Tensor", y if len(shape) == y.ndim and None not in full else reshape(y, tuple(shape)))


_hooks["getitem"] = getitem

# ------------------------------------------------------------------------------------ concat and split


def _concat_shape(*xs: Tensor, axis: int) -> Shape:
    first, total = xs[0], cast("Dim", 0)
    for x in xs:
        if x.ndim != first.ndim:
            raise ShapeError(
                "TG115", "concat: different numbers of axes", operands=[operand(first, "x0"), operand(x, "x1")]
            )
        for i in range(x.ndim):
            if i != axis and not dims.same(x.shape[i], first.shape[i]):
                raise clash(
                    "TG115",
                    f"concat: axis {i} differs",
                    (first, "x0", i),
                    (x, "x1", i),
                    hint=equal_hint(first.shape[i], x.shape[i]),
                )
        total = dims.add(total, x.shape[axis])
    return tuple(total if i == axis else d for i, d in enumerate(first.shape))


def _concat_prepare(xs: Any, attrs: dict[str, Any]) -> dict[str, Any]:
    if not xs:
        raise OpError("TG255", "concat: no tensors given")
    return {"axis": axis_of("concat", attrs["axis"], xs[0])}


@builtin(
    shape=_concat_shape,
    dtype=promoted,
    prepare=_concat_prepare,
    style="move",
    samples=[
        S("B T", "B d", axis=1),
        S("B T", "B T", "B T", axis=0),
        Bad("B T", "d T", axis=1, match="axis 0 differs"),
    ],
)
def concat(*xs: Tensor, axis: int = 0) -> Tensor:
    """Tensors one after another along `axis`."""


@concat.forward
def _(xp: Any, *xs: Any, axis: int, out: Any = None) -> Any:
    return xp.concatenate(xs, axis=axis, out=out)


@concat.vjp
def _(g: Tensor, y: Tensor, *xs: Tensor, axis: int) -> Any:
    return split(g, tuple(x.shape[axis] for x in xs), axis)


def stack(xs: Any, axis: int = 0) -> Tensor:
    """Tensors of one shape along a new axis."""
    xs = list(xs)
    if not xs:
        raise OpError("TG255", "stack: no tensors given")
    for x in xs[1:]:
        if not dims.same_shape(x.shape, xs[0].shape):
            raise clash("TG115", "stack: the shapes differ", (xs[0], "x0", None), (x, "x1", None))
    n = xs[0].ndim + 1
    if not -n <= axis < n:
        raise clash("TG110", f"stack: axis {axis} out of range for {n} axes", (xs[0], "x0", None))
    at = axis % n
    return cast("Tensor", concat([reshape(x, (*x.shape[:at], 1, *x.shape[at:])) for x in xs], axis=at))


def _split_prepare(xs: Any, attrs: dict[str, Any]) -> dict[str, Any]:
    (x,) = xs
    axis, sizes = axis_of("split", attrs["axis"], x), attrs["sizes"]
    if type(sizes) is int:
        sizes = (dims.div(x.shape[axis], sizes),) * sizes
    return {"sizes": dims.shape(sizes), "axis": axis}


def _split_shape(x: Tensor, sizes: Shape, axis: int) -> Any:
    total: Dim = 0
    for s in sizes:
        total = dims.add(total, s)
    if not dims.same(total, x.shape[axis]):
        raise clash(
            "TG116", f"split: parts of {dims.show(total)} do not make up '{dims.show(x.shape[axis])}'", (x, "x", axis)
        )
    return tuple(tuple(s if i == axis else d for i, d in enumerate(x.shape)) for s in sizes)


def split(x: Tensor, sizes: Any, axis: int = -1) -> tuple[Tensor, ...]:
    """x cut along `axis` into parts of the given sizes (an int: that many equal parts)."""
    attrs = _split_prepare((x,), {"sizes": sizes, "axis": axis})
    _split_shape(x, attrs["sizes"], attrs["axis"])
    out, start = [], cast("Dim", 0)
    for n in attrs["sizes"]:
        stop = dims.add(start, n)
        out.append(slice_(x, tuple((start, stop, 1) if i == attrs["axis"] else None for i in range(x.ndim))))
        start = stop
    return tuple(out)


@builtin(
    shape=lambda x, axis: x.shape,
    dtype=promoted,
    prepare=lambda xs, a: {"axis": axis_of("flip", a["axis"], xs[0])},
    style="move",
    samples=[S("B T"), S("B T d", axis=1), Bad("B", axis=2, match="axis 2 out of range")],
)
def flip(x: Tensor, axis: int = -1) -> Tensor:
    """x with one axis reversed."""


@flip.forward
def _(xp: Any, x: Any, axis: int) -> Any:
    return xp.flip(x, axis)


flip.vjp(lambda g, y, x, axis: (flip(g, axis),))


def squeeze(x: Tensor, axis: int) -> Tensor:
    """x without an axis of size 1."""
    axis = axis_of("squeeze", axis, x)
    if not dims.same(x.shape[axis], 1):
        raise clash("TG112", f"squeeze: the size of axis {axis} is '{dims.show(x.shape[axis])}', not 1", (x, "x", axis))
    return cast("Tensor", reshape(x, (*x.shape[:axis], *x.shape[axis + 1 :])))


def unsqueeze(x: Tensor, axis: int) -> Tensor:
    """x with a new axis of size 1 at `axis`."""
    if not -x.ndim - 1 <= axis <= x.ndim:
        raise clash("TG110", f"unsqueeze: axis {axis} out of range for {x.ndim + 1} axes", (x, "x", None))
    axis %= x.ndim + 1
    return cast("Tensor", reshape(x, (*x.shape[:axis], 1, *x.shape[axis:])))


def _reshape_method(self: Tensor, *shape: Any) -> Tensor:
    return cast("Tensor", reshape(self, shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape))


def _permute_method(self: Tensor, *axes: Any) -> Tensor:
    return cast("Tensor", permute(self, axes[0] if len(axes) == 1 and isinstance(axes[0], (tuple, list)) else axes))


for _name, _fn in (
    ("reshape", _reshape_method),
    ("permute", _permute_method),
    ("swapaxes", swapaxes),
    ("split", split),
    ("squeeze", squeeze),
    ("unsqueeze", unsqueeze),
    ("expand", lambda self, *s: expand(self, s[0] if len(s) == 1 and isinstance(s[0], (tuple, list)) else s)),
):
    setattr(Tensor, _name, _fn)

__all__ = [
    "concat",
    "expand",
    "flip",
    "pad",
    "permute",
    "reshape",
    "slice_",
    "split",
    "squeeze",
    "stack",
    "swapaxes",
    "unsqueeze",
]
