"""Where the elements of a value lie: offsets and strides as sizes, so that code reads views without copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

from .. import dims
from ..dims import Dim, Shape
from .program import Value


class Layout(NamedTuple):
    """Element (i0, i1, ..) of a value lies `offset + sum(i * stride)` elements into the storage of `root`."""

    root: Value
    offset: Dim
    strides: tuple[Dim, ...]


class Access(NamedTuple):
    """The same, over rows r and columns j: `offset + sum((r / inner % size) * stride for rows) + j * column`."""

    root: Value
    offset: Dim
    rows: tuple[tuple[Dim, Dim, Dim], ...]  # (inner, size, stride)
    column: Dim


def one(d: Dim) -> bool:
    return type(d) is int and d == 1


def zero(d: Dim) -> bool:
    return type(d) is int and d == 0


@dims.memoised
def _row_major(shape: Shape) -> tuple[Dim, ...]:
    out: list[Dim] = []
    step: Dim = 1
    for d in reversed(shape):
        out.append(step)
        step = dims.mul(step, d)
    return tuple(reversed(out))


def row_major(shape: Sequence[Dim]) -> tuple[Dim, ...]:
    return _row_major(tuple(shape))


def layout(v: Value) -> Layout:
    """A value's layout in the storage that it looks at."""
    chain = []
    while v.base is not None:
        chain.append(v)
        v = v.base
    found = Layout(v, 0, row_major(v.shape))
    shape = v.shape
    for view in reversed(chain):
        kind, attrs = view.node.op.view, view.node.attrs
        base = cast("Value", view.base)
        if kind == "permute":
            found = found._replace(strides=tuple(found.strides[a] for a in attrs["axes"]))
        elif kind == "expand":
            found = broadcast(found, shape, view.shape)
        elif kind == "slice":
            found = box(found, attrs["ranges"])
        elif base.contiguous:
            found = found._replace(strides=row_major(view.shape))
        else:
            found = found._replace(strides=_cut(shape, found.strides, view.shape))
        shape = view.shape
    return found


def box(at: Layout, ranges: Sequence[tuple[Dim, Dim, int]]) -> Layout:
    """The layout of a slice: one (start, stop, step) per axis."""
    offset = at.offset
    for (start, _, _), stride in zip(ranges, at.strides, strict=True):
        offset = dims.add(offset, dims.mul(start, stride))
    return Layout(at.root, offset, tuple(dims.mul(s, r[2]) for s, r in zip(at.strides, ranges, strict=True)))


def broadcast(at: Layout, shape: Shape, to: Shape) -> Layout:
    """The layout over a wider shape: axes of size 1, and those it lacks, stand still."""
    lead = len(to) - len(shape)
    strides = [0 if one(d) and not one(t) else s for d, s, t in zip(shape, at.strides, to[lead:], strict=True)]
    return at._replace(strides=(*([0] * lead), *strides))


def _cut(shape: Shape, strides: tuple[Dim, ...], new: Shape) -> tuple[Dim, ...]:
    """Strides after a reshape that only cuts axes, or adds and drops axes of size 1."""
    out: list[Dim] = [0] * len(new)
    at = 0
    for d, stride in zip(shape, strides, strict=True):
        if one(d):
            continue
        first, have = at, cast("Dim", 1)
        while not dims.same(have, d) or (at < len(new) and at == first):
            have = dims.mul(have, new[at])
            at += 1
        step = stride
        for i in range(at - 1, first - 1, -1):
            out[i] = step
            step = dims.mul(step, new[i])
    return tuple(out)


def collapse(axes: Sequence[tuple[Dim, Dim]]) -> list[tuple[Dim, Dim]]:
    """(size, stride) pairs with neighbours merged wherever one stride serves both; axes of size 1 dropped."""
    out: list[tuple[Dim, Dim]] = []
    for size, stride in axes:
        if one(size):
            continue
        if out and dims.same(out[-1][1], dims.mul(size, stride)):
            out[-1] = (dims.mul(out[-1][0], size), stride)
        else:
            out.append((size, stride))
    return out


def access(at: Layout, shape: Shape, columns: Dim) -> Access | None:
    """A layout over `shape` as rows of `columns` elements; None if no single stride leads along a row."""
    found = _rows(at.strides, shape, columns)
    return None if found is None else Access(at.root, at.offset, *found)


@dims.memoised
def _rows(strides: tuple[Dim, ...], shape: Shape, columns: Dim) -> tuple[tuple[tuple[Dim, Dim, Dim], ...], Dim] | None:
    """The rows and the column of an access."""
    axes = [(d, s) for d, s in zip(shape, strides, strict=True) if not one(d)]
    flat = collapse(axes)
    if not flat:
        return (), 0
    total = dims.size([d for d, _ in axes])
    if len(flat) == 1:
        stride = flat[0][1]
        if dims.same(total, columns):
            return (), stride
        if zero(stride):
            return (), 0
        rows = dims.div(total, columns)
        return ((1, rows, dims.mul(stride, columns)),), 0 if one(columns) else stride
    inner: Dim = 1
    cut = len(axes)
    while not dims.same(inner, columns):
        if not cut:
            return None
        cut -= 1
        inner = dims.mul(inner, axes[cut][0])
    along = collapse(axes[cut:])
    if len(along) > 1:
        return None
    outer: list[tuple[Dim, Dim, Dim]] = []
    below: Dim = 1
    for size, stride in reversed(collapse(axes[:cut])):
        outer.append((below, size, stride))
        below = dims.mul(below, size)
    return tuple(reversed(outer)), along[0][1] if along else 0


def identical(a: Access, rows: Dim, columns: Dim) -> bool:
    """Whether an access walks its storage in row-major order from the start."""
    if not zero(a.offset) or not (one(columns) or one(a.column)):
        return False
    if one(rows):
        return not a.rows
    return len(a.rows) == 1 and dims.same(a.rows[0][1], rows) and dims.same(a.rows[0][2], columns)


def per_row(a: Access, rows: Dim) -> bool:
    """Whether an access takes element r of its storage for all columns of row r."""
    if not zero(a.offset) or not zero(a.column):
        return False
    if one(rows):
        return not a.rows
    return len(a.rows) == 1 and dims.same(a.rows[0][1], rows) and one(a.rows[0][2])
