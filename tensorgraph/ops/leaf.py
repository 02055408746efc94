"""Leaves: inputs, parameters, constants, sizes as values, index ranges; and the frame of a repeated block."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from .. import dims, dtypes
from ..dims import Dim
from ..dtypes import DType
from ..errors import GraphError, ShapeError
from ..op import Bad, Op, S, op, operand
from ..tensor import ROOT, Loop, Scope, Tensor, _hooks, at, caller, current_scope, leaf, make

builtin = partial(op, builtin=True, primitive=True)
free = partial(builtin, flops=lambda *_, **__: 0)


def _any_dtype(*_: Any, dtype: DType, **__: Any) -> DType:
    return dtype


def _record(name: str, doc: str, **fields: Any) -> Op:
    def fn() -> None: ...

    fn.__name__, fn.__doc__ = name, doc
    return builtin(
        fn, shape=lambda **k: k.get("shape", ()), dtype=_any_dtype, leaf=True, flops=lambda *_, **__: 0, **fields
    )


INPUT = _record("input", "An array given at every call.", style="input")
PARAM = _record("param", "A learned array, kept in the state.", style="weight")
CONST = _record("const", "A literal of at most 64 elements.", style="constant")
DIMENSION = _record("dimension", "A size as a number.", style="constant")


def input(name: str, shape: Any = (), dtype: Any = "float32", high: Any = None, low: int = 0) -> Tensor:
    """A named input of the graph, of `shape` (ints and sizes) and `dtype`.

    An integer input may state its range [low, high), which is then checked at every call.
    Raises GraphError[TG301] for a malformed name, SizeError for a malformed shape, DTypeError[TG200].
    """
    _check_name("input", name)
    attrs = {"low": low, "high": dims.canon(high)} if high is not None else {}
    return leaf(INPUT, name, dims.shape(shape), dtypes.dtype(dtype), attrs)


def param(
    name: str,
    shape: Any,
    dtype: Any = "float32",
    *,
    trained: bool = True,
    component: str = "",
    scope: Scope | None = None,
) -> Tensor:
    """A learned array named `name`; `trained=False` freezes it. Modules make theirs with `tg.Parameter`."""
    _check_name("parameter", name)
    return leaf(
        PARAM, name, dims.shape(shape), dtypes.dtype(dtype), {"trained": trained, "component": component}, scope
    )


def _check_name(kind: str, name: Any) -> None:
    if not isinstance(name, str) or not name or any(ord(c) < 32 or ord(c) == 127 for c in name):
        raise GraphError(
            "TG301",
            f"{name!r} is not a name for an {kind}" if kind == "input" else f"{name!r} is not a name for a {kind}",
        )


def const(value: Any, dtype: Any = None) -> Tensor:
    """A literal: a number or a small array. Equal literals are one node.

    A number stays as it was given and is rounded to `dtype` when it is computed with, so that retyping is exact.
    """
    kind = dtypes.dtype(dtype) if dtype is not None else dtypes.of_array(np.asarray(value))
    array = np.asarray(value).astype(kind.np)
    exact = float(value) if array.ndim == 0 and kind.is_float else array.item() if array.ndim == 0 else array
    attrs = {"value": exact, "dtype": kind, "shape": array.shape}
    return make(CONST, (), attrs, ROOT, caller(), (array.shape, kind, None))


def dimension(value: Any, like: DType | None = None) -> Tensor:
    """A size as a scalar of the dtype `like`, or int32: `x / tg.dimension(d)`. A bare size takes that beside it."""
    value = dims.canon(value)
    kind = like if like is not None and like.kind != "b" else dtypes.int32
    if type(value) is int:
        return const(value, kind)
    return make(DIMENSION, (), {"value": value, "dtype": kind}, ROOT, caller(), ((), kind, None))


_hooks["const"] = const
_hooks["dimension"] = dimension


@free(
    shape=lambda *, size, **_: (size,),
    dtype=_any_dtype,
    samples=[S(size=5, dtype="int32"), S(size=1, dtype="float32"), Bad(size=2.5, match="not a size")],
    prepare=lambda _, a: {"size": dims.canon(a["size"]), "dtype": dtypes.dtype(a["dtype"])},
    style="constant",
    title="0, 1, 2 …",
)
def arange(*, size: Dim, dtype: Any = "int32") -> Tensor:
    """0, 1, ... size - 1."""


@arange.forward
def _(xp: Any, size: int, dtype: DType) -> Any:
    return xp.arange(size).astype(dtype.np)


def zeros(shape: Any, dtype: Any = "float32") -> Tensor:
    """Zeros of a shape: a scalar, expanded."""
    from .movement import expand

    return expand(const(0, dtype), dims.shape(shape))


def full(shape: Any, value: float, dtype: Any = "float32") -> Tensor:
    """One number, expanded to a shape."""
    from .movement import expand

    return expand(const(value, dtype), dims.shape(shape))


# ------------------------------------------------------------------------------------- repeated blocks
# A block run `n` times, n a symbol: h0 = x; h(i+1) = block(h(i)); the result is h(n). Inside, a value from outside
# is the same for every run (`each`), so its gradient is the sum over runs (`sum_each`).


def _loop_shape(*xs: Tensor, loop: Loop) -> Any:
    return xs[0].shape


loop_op = partial(free, shape=_loop_shape, style="loop")


@loop_op(view="same")
def enter(x: Tensor, *, loop: Loop) -> Tensor:
    """The value carried into a block that is repeated `loop.count` times."""


@loop_op(view="same")
def exit(y: Tensor, *, loop: Loop) -> Tensor:
    """The carried value after the last run of a repeated block."""


@loop_op(view="same")
def each(v: Tensor, *, loop: Loop) -> Tensor:
    """A value from outside a repeated block, the same in each run."""


@builtin(
    shape=_loop_shape, style="loop", flops=lambda y, x, loop: dims.mul(dims.sub(loop.count, 1), dims.size(x.shape))
)
def sum_each(v: Tensor, *, loop: Loop) -> Tensor:
    """The sum of a value over all runs of a repeated block."""


@free(shape=lambda g, carry: g.shape, view="same", style="loop")
def carried(g: Tensor, carry: Tensor) -> Tensor:
    """A gradient within a repeated block, whose later runs hand `carry` to the earlier ones, asked for or not."""


@carried.forward
def _(xp: Any, g: Any, carry: Any) -> Any:
    return g


carried.vjp(lambda g, y, x, carry: (g, None))


def _outside(x: Tensor) -> Scope:
    return x.scope.twin


@enter.vjp
def _(g: Tensor, y: Tensor, x: Tensor, loop: Loop) -> Any:
    with at(_outside(x), y.loc):
        return (exit(g, loop=loop),)


@exit.vjp
def _(g: Tensor, y: Tensor, x: Tensor, loop: Loop) -> Any:
    with at(x.scope.twin, y.loc):
        return (enter(g, loop=loop),)


@each.vjp
def _(g: Tensor, y: Tensor, x: Tensor, loop: Loop) -> Any:
    with at(_outside(x), y.loc):
        return (sum_each(g, loop=loop),)


@sum_each.vjp
def _(g: Tensor, y: Tensor, x: Tensor, loop: Loop) -> Any:
    with at(x.scope.twin, y.loc):
        return (each(g, loop=loop),)


def _into(v: Tensor, loop: Loop, where: Scope) -> Tensor:
    """`each` stands in the scope of the loop that it enters, be it around other loops."""
    s: Scope = where
    while s.loop is not loop:
        assert s.parent is not None
        s = s.parent
    with at(s.twin if where.backward else s):
        return each(v, loop=loop)


_hooks["each"] = _into


def repeat(block: Any, n: Dim, x: Tensor, *context: Any) -> Tensor:
    """Run `block` a symbolic number of times: made once, in a scope of multiplicity `n`.

    Such a graph is for counting, cost, checking and drawing. Raises ShapeError[TG107] if the block changes
    the shape or dtype of the carried value.
    """
    outer = current_scope()
    loop = Loop(n, outer.loop, outer.path)
    inner = Scope("n", outer, kind="repeat", loop=loop)
    with at(inner):
        h = enter(x, loop=loop)
        y = block(h, *context)
    if not dims.same_shape(y.shape, x.shape) or y.dtype != x.dtype:
        raise ShapeError(
            "TG107",
            "a block that is repeated must return what it takes",
            operands=[operand(x, "takes"), operand(y, "returns")],
        )
    return exit(y, loop=loop)


__all__ = [
    "arange",
    "const",
    "dimension",
    "full",
    "input",
    "param",
    "repeat",
    "zeros",
]
