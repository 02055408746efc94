"""Reductions: sum, mean, max, min, logsumexp, argmax, cumsum."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from .. import dims, dtypes
from ..op import Bad, S, axis_of, fixed, floating, number, op, reduced, same
from ..tensor import Tensor
from .elementwise import equal, exp, log, stop_gradient
from .leaf import dimension
from .movement import reshape


def axes_of(name: str, axis: Any, x: Tensor) -> tuple[int, ...]:
    """`axis` (None, an int or several) as a sorted tuple counted from the front."""
    if axis is None:
        return tuple(range(x.ndim))
    several = axis if isinstance(axis, (tuple, list)) else (axis,)
    return tuple(sorted({axis_of(name, a, x) for a in several}))


def _prepare(name: str) -> Any:
    return lambda xs, a: {"axis": axes_of(name, a["axis"], xs[0]), "keepdims": bool(a["keepdims"])}


def _in(y: Any, x: Tensor, **_: Any) -> dims.Dim:
    return x.size


SAMPLES = [
    S("B T"),
    S("B T d", axis=1),
    S("B T d", axis=(0, 2), keepdims=True),
    S("", axis=()),
    Bad("B", axis=1, match="axis 1 out of range"),
]


def _reduction(name: str, primitive: bool = True, dtype: Any = None, **fields: Any) -> Any:
    return partial(
        op,
        builtin=True,
        primitive=primitive,
        shape=lambda x, axis, keepdims: reduced(x, axis, keepdims),
        dtype=dtype or number(name),
        prepare=_prepare(name),
        flops=_in,
        method=name,
        samples=SAMPLES,
        style="reduce",
        **fields,
    )()


@_reduction("sum")
def sum(x: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The sum over `axis` (None: over all)."""


@sum.forward
def _(xp: Any, x: Any, axis: Any, keepdims: bool, out: Any = None) -> Any:
    return xp.sum(x, axis=axis, keepdims=keepdims, dtype=x.dtype, out=out)


def widen(g: Tensor, x: Tensor, axis: tuple[int, ...], keepdims: bool) -> Tensor:
    """A reduced value with its reduced axes put back as size 1."""
    return g if keepdims or not axis else reshape(g, tuple(1 if i in axis else d for i, d in enumerate(x.shape)))


@sum.vjp
def _(g: Tensor, y: Tensor, x: Tensor, axis: Any, keepdims: bool) -> Any:
    from .movement import expand

    return (expand(g if not g.ndim else widen(g, x, axis, keepdims), x.shape),)


def _limit(x: Any, which: str) -> Any:
    """The least ("min") or greatest value of x's dtype: what a choice among nothing gives."""
    return getattr(np.iinfo(x.dtype), which) if x.dtype.kind in "iu" else -np.inf if which == "min" else np.inf


def _extreme(name: str) -> Any:
    def vjp(g: Tensor, y: Tensor, x: Tensor, axis: Any, keepdims: bool) -> Any:
        hit = equal(x, widen(y, x, axis, keepdims)).cast(g.dtype)
        return (widen(g, x, axis, keepdims) * hit / sum(hit, axis, True),)

    return vjp


@_reduction("max")
def max(x: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The largest over `axis`; ties share the gradient. The largest of nothing is -inf, or the least integer."""


@max.forward
def _(xp: Any, x: Any, axis: Any, keepdims: bool, out: Any = None) -> Any:
    return xp.max(x, axis=axis, keepdims=keepdims, out=out, **({} if x.size else {"initial": _limit(x, "min")}))


@_reduction("min")
def min(x: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The smallest over `axis`; ties share the gradient. The smallest of nothing is inf, or the greatest integer."""


@min.forward
def _(xp: Any, x: Any, axis: Any, keepdims: bool, out: Any = None) -> Any:
    return xp.min(x, axis=axis, keepdims=keepdims, out=out, **({} if x.size else {"initial": _limit(x, "max")}))


max.vjp(_extreme("max"))
min.vjp(_extreme("min"))


@_reduction("mean", primitive=False, dtype=floating("mean"))
def mean(x: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The average over `axis`."""
    count = dims.size([d for i, d in enumerate(x.shape) if i in axis])
    return sum(x, axis, keepdims) / dimension(count, x.dtype)


@_reduction("logsumexp", primitive=False, dtype=floating("logsumexp"))
def logsumexp(x: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """log(sum(exp(x))) over `axis`, without overflow."""
    m = stop_gradient(max(x, axis, True))
    y = log(sum(exp(x - m), axis, True)) + m
    return y if keepdims or not axis else reshape(y, tuple(d for i, d in enumerate(y.shape) if i not in axis))


def _one_axis(name: str) -> Any:
    return lambda xs, a: {**a, "axis": axis_of(name, a["axis"], xs[0])}


@op(
    builtin=True,
    primitive=True,
    shape=lambda x, axis: reduced(x, (axis,), False),
    dtype=fixed(dtypes.int32),
    prepare=_one_axis("argmax"),
    flops=_in,
    method="argmax",
    style="reduce",
    nodiff="an index",
    samples=[S("B T"), S("B T", axis=0), Bad("B", axis=1, match="axis 1 out of range")],
)
def argmax(x: Tensor, axis: int = -1) -> Tensor:
    """The index of the largest along `axis`, the first of several."""


@argmax.forward
def _(xp: Any, x: Any, axis: int) -> Any:
    return xp.argmax(x, axis=axis).astype("int32")


@op(
    builtin=True,
    primitive=True,
    shape=same(),
    dtype=number("cumsum"),
    prepare=_one_axis("cumsum"),
    flops=_in,
    method="cumsum",
    style="reduce",
    samples=[
        S("B T"),
        S("B T d", axis=1),
        S("B T", axis=0, reverse=True),
        Bad("B", axis=1, match="axis 1 out of range"),
    ],
)
def cumsum(x: Tensor, axis: int = -1, reverse: bool = False) -> Tensor:
    """Running sums along `axis`, from its end if `reverse`."""


@cumsum.forward
def _(xp: Any, x: Any, axis: int, reverse: bool) -> Any:
    if not reverse:
        return xp.cumsum(x, axis=axis, dtype=x.dtype)
    return xp.flip(xp.cumsum(xp.flip(x, axis), axis=axis, dtype=x.dtype), axis)


@cumsum.vjp
def _(g: Tensor, y: Tensor, x: Tensor, axis: int, reverse: bool) -> Any:
    return (cumsum(g, axis, not reverse),)


def var(x: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """The variance over `axis` (divided by the count)."""
    return mean((x - mean(x, axis, True)).square(), axis, keepdims)


def any(x: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """Whether any element over `axis` is true."""
    return sum(x.cast("int32"), axis, keepdims) > 0


def all(x: Tensor, axis: Any = None, keepdims: bool = False) -> Tensor:
    """Whether all elements over `axis` are true."""
    return ~any(~x, axis, keepdims)


__all__ = ["all", "any", "argmax", "cumsum", "logsumexp", "max", "mean", "min", "sum", "var"]
