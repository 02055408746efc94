"""Elementwise maths: one record each. Cotangents given as functions are made only when they are needed."""

from __future__ import annotations

from functools import partial
from typing import Any

from .. import dims, dtypes
from ..dtypes import DType
from ..op import Bad, InputSpec, Op, S, bools, broadcast, fixed, floating, need_dtype, number, op, promoted, same
from ..tensor import Tensor
from .leaf import const

POSITIVE = InputSpec("B T", low=0.3, top=3.0)


def _size(y: Tensor, *_: Any, **__: Any) -> dims.Dim:
    return y.size


builtin = partial(op, builtin=True, primitive=True, flops=_size)


def unary(name: str, doc: str, *, cost: int = 1, kind: str = "float", **fields: Any) -> Op:
    """A record for a function of one element, computed by the NumPy ufunc `ufunc`."""

    def fn(x: Tensor) -> Tensor: ...

    fn.__name__, fn.__doc__ = name, doc
    wrong = ("int32", "needs a floating dtype") if kind == "float" else ("bool", "needs numbers")
    bad = [Bad(InputSpec("B T", wrong[0]), match=wrong[1])]
    fields.setdefault("samples", [S("B T"), S(""), S("B T d"), *bad])
    return op(
        fn,
        builtin=True,
        primitive=True,
        shape=same(),
        dtype=floating(name) if kind == "float" else number(name),
        flops=lambda y, x: dims.mul(cost, y.size),
        inplace=(0,),
        style="elementwise",
        **fields,
    )


neg = unary("neg", "-x", kind="any", ufunc="negative", method="__neg__", formula=lambda sp, x: -x)
abs = unary(
    "abs",
    "|x|; the gradient at 0 is 0.",
    kind="any",
    ufunc="absolute",
    method="__abs__ abs",
    kinks=(0.0,),
    formula=lambda sp, x: sp.sqrt(x**2),
)
sign = unary("sign", "-1, 0 or 1.", kind="any", ufunc="sign", method="sign", nodiff="constant but at 0", kinks=(0.0,))
floor = unary(
    "floor",
    "The largest whole number not above x.",
    ufunc="floor",
    method="floor",
    nodiff="constant but at whole numbers",
    kinks=(-2.0, -1.0, 0.0, 1.0, 2.0),
)
exp = unary("exp", "e to the x.", cost=1, ufunc="exp", method="exp", formula=lambda sp, x: sp.exp(x))
log = unary(
    "log", "The natural logarithm.", ufunc="log", method="log", domain=(0.1, 4.0), formula=lambda sp, x: sp.log(x)
)
sqrt = unary(
    "sqrt", "The square root.", ufunc="sqrt", method="sqrt", domain=(0.1, 4.0), formula=lambda sp, x: sp.sqrt(x)
)
square = unary("square", "x * x.", kind="any", ufunc="square", method="square", formula=lambda sp, x: x**2)
reciprocal = unary(
    "reciprocal", "1 / x.", ufunc="reciprocal", method="reciprocal", domain=(0.2, 4.0), formula=lambda sp, x: 1 / x
)
sin = unary("sin", "The sine, x in radians.", ufunc="sin", method="sin", formula=lambda sp, x: sp.sin(x))
cos = unary("cos", "The cosine, x in radians.", ufunc="cos", method="cos", formula=lambda sp, x: sp.cos(x))
tanh = unary("tanh", "The hyperbolic tangent.", ufunc="tanh", method="tanh", formula=lambda sp, x: sp.tanh(x))
expm1 = unary("expm1", "exp(x) - 1, exact near 0.", ufunc="expm1", formula=lambda sp, x: sp.exp(x) - 1)
log1p = unary(
    "log1p", "log(1 + x), exact near 0.", ufunc="log1p", domain=(-0.8, 4.0), formula=lambda sp, x: sp.log(1 + x)
)
rsqrt = unary(
    "rsqrt",
    "1 / sqrt(x).",
    cost=2,
    method="rsqrt",
    elementwise=True,
    domain=(0.1, 4.0),
    formula=lambda sp, x: 1 / sp.sqrt(x),
)
erf = unary(
    "erf",
    "The error function, 2/sqrt(pi) times the integral of exp(-t^2) from 0 to x.",
    cost=4,
    ufunc="erf",
    method="erf",
    formula=lambda sp, x: sp.erf(x),
)
sigmoid = unary(
    "sigmoid",
    "1 / (1 + exp(-x)).",
    cost=4,
    method="sigmoid",
    elementwise=True,
    formula=lambda sp, x: 1 / (1 + sp.exp(-x)),
)


@rsqrt.forward
def _(xp: Any, x: Any, out: Any = None) -> Any:
    return xp.reciprocal(xp.sqrt(x, out=out), out=out)


@sigmoid.forward
def _(xp: Any, x: Any, out: Any = None) -> Any:
    # (1 + tanh(x/2)) / 2 never overflows, unlike 1 / (1 + exp(-x))
    half = x.dtype.type(0.5)
    y = xp.multiply(x, half, out=out)
    y = xp.tanh(y, out=out)
    y = xp.add(y, x.dtype.type(1), out=out)
    return xp.multiply(y, half, out=out)


neg.vjp(lambda g, y, x: (-g,))
abs.vjp(lambda g, y, x: (g * sign(x),))
exp.vjp(lambda g, y, x: (g * y,))
log.vjp(lambda g, y, x: (g / x,))
sqrt.vjp(lambda g, y, x: (g * 0.5 / y,))
square.vjp(lambda g, y, x: (g * x * 2.0,))
reciprocal.vjp(lambda g, y, x: (-g * square(y),))
sin.vjp(lambda g, y, x: (g * cos(x),))
cos.vjp(lambda g, y, x: (-g * sin(x),))
tanh.vjp(lambda g, y, x: (g * (1.0 - square(y)),))
expm1.vjp(lambda g, y, x: (g * (y + 1.0),))
log1p.vjp(lambda g, y, x: (g / (x + 1.0),))
rsqrt.vjp(lambda g, y, x: (g * y * square(y) * -0.5,))
erf.vjp(lambda g, y, x: (g * exp(-square(x)) * 1.1283791670955126,))
sigmoid.vjp(lambda g, y, x: (g * y * (1.0 - y),))


def binary(name: str, doc: str, **fields: Any) -> Op:
    """A record for a function of two elements, with broadcasting."""

    def fn(x: Tensor, y: Tensor) -> Tensor: ...

    fn.__name__, fn.__doc__ = name, doc
    fields.setdefault(
        "samples",
        [S("B T", "B T"), S("B T d", "d"), S("B 1", "B T"), S("", "T"), Bad("B T", "B d", match="sizes differ")],
    )
    fields.setdefault("inplace", (0, 1))
    return op(fn, builtin=True, primitive=True, shape=broadcast(name), flops=_size, style="elementwise", **fields)


add = binary("add", "x + y.", title="+", ufunc="add", method="__add__ __radd__", formula=lambda sp, x, y: x + y)
sub = binary(
    "sub",
    "x - y.",
    title="−",
    dtype=number("sub"),
    ufunc="subtract",
    method="__sub__ __rsub__",
    formula=lambda sp, x, y: x - y,
)
mul = binary("mul", "x * y.", title="×", ufunc="multiply", method="__mul__ __rmul__", formula=lambda sp, x, y: x * y)
div = binary(
    "div",
    "x / y.",
    title="÷",
    dtype=floating("div"),
    ufunc="divide",
    method="__truediv__ __rtruediv__",
    formula=lambda sp, x, y: x / y,
    domain=(0.2, 3.0),
)
pow = binary(
    "pow",
    "x to the y, for x > 0.",
    dtype=floating("pow"),
    ufunc="power",
    method="__pow__ __rpow__ pow",
    domain=(0.2, 2.0),
    formula=lambda sp, x, y: x**y,
)
maximum = binary("maximum", "The larger; where they tie the gradient is halved.", ufunc="maximum", method="maximum")
minimum = binary("minimum", "The smaller; where they tie the gradient is halved.", ufunc="minimum", method="minimum")

add.vjp(lambda g, out, x, y: (g, g))
sub.vjp(lambda g, out, x, y: (g, lambda: -g))
mul.vjp(lambda g, out, x, y: (lambda: g * y, lambda: g * x))
div.vjp(lambda g, out, x, y: (lambda: g / y, lambda: -g * out / y))
pow.vjp(lambda g, out, x, y: (lambda: g * y * pow(x, y - 1.0), lambda: g * out * log(x)))


def comparison(name: str, doc: str, ufunc: str, method: str = "") -> Op:
    return binary(name, doc, dtype=fixed(dtypes.bool_), ufunc=ufunc, method=method, inplace=(), nodiff="a truth value")


less = comparison("less", "x < y.", "less", "__lt__")
less_equal = comparison("less_equal", "x <= y.", "less_equal", "__le__")
greater = comparison("greater", "x > y.", "greater", "__gt__")
greater_equal = comparison("greater_equal", "x >= y.", "greater_equal", "__ge__")
equal = comparison("equal", "Whether x and y are equal.", "equal")
not_equal = comparison("not_equal", "Whether x and y differ.", "not_equal")


def _half(win: Tensor, tie: Tensor, g: Tensor) -> Tensor:
    zero = const(0.0, g.dtype)
    return where(win, g, where(tie, g * 0.5, zero))


maximum.vjp(
    lambda g, out, x, y: (lambda: _half(greater(x, y), equal(x, y), g), lambda: _half(less(x, y), equal(x, y), g))
)
minimum.vjp(
    lambda g, out, x, y: (lambda: _half(less(x, y), equal(x, y), g), lambda: _half(greater(x, y), equal(x, y), g))
)


def _logical(name: str) -> Any:
    def rule(*xs: Tensor, **_: Any) -> DType:
        for x in xs:
            need_dtype(name, x, "b", "x")
        return dtypes.bool_

    return rule


logical = [S(bools("B T"), bools("B T")), S(bools("B T"), bools("T")), Bad("B T", "B T", match="must be bool")]
logical_and = binary(
    "logical_and",
    "Both.",
    dtype=_logical("logical_and"),
    ufunc="logical_and",
    method="__and__ __rand__",
    nodiff="a truth value",
    samples=logical,
)
logical_or = binary(
    "logical_or",
    "Either.",
    dtype=_logical("logical_or"),
    ufunc="logical_or",
    method="__or__ __ror__",
    nodiff="a truth value",
    samples=logical,
)


@builtin(
    shape=same(),
    dtype=_logical("logical_not"),
    ufunc="logical_not",
    method="__invert__",
    inplace=(0,),
    nodiff="a truth value",
    style="elementwise",
    samples=[S(bools("B T")), Bad("B T", match="must be bool")],
)
def logical_not(x: Tensor) -> Tensor:
    """Not x."""


def _where_dtype(c: Tensor, x: Tensor, y: Tensor) -> DType:
    need_dtype("where", c, "b", "condition")
    return promoted(x, y)


@builtin(
    shape=broadcast("where"),
    dtype=_where_dtype,
    inplace=(2,),
    style="elementwise",
    samples=[S(bools("B T"), "B T", "B T"), S(bools("T"), "B T", ""), Bad("B", "B", "B", match="must be bool")],
)
def where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """x where the condition is true, else y; the branch not taken gets no gradient."""


@where.forward
def _(xp: Any, c: Any, x: Any, y: Any, out: Any = None) -> Any:
    if out is None:
        return xp.where(c, x, y)
    if out is not y:
        xp.copyto(out, y)
    xp.copyto(out, x, where=c)
    return out


@where.vjp
def _(g: Tensor, out: Tensor, c: Tensor, x: Tensor, y: Tensor) -> Any:
    zero = const(0.0, g.dtype)
    return None, lambda: where(c, g, zero), lambda: where(c, zero, g)


def _cast_prepare(values: Any, attrs: dict[str, Any]) -> dict[str, Any]:
    return {"dtype": dtypes.dtype(attrs["dtype"])}


@builtin(
    shape=same(),
    dtype=lambda x, dtype: dtype,
    prepare=_cast_prepare,
    method="cast astype",
    style="elementwise",
    flops=lambda *_, **__: 0,
    samples=[S("B T", dtype="float32"), S("B", dtype="bfloat16"), S("B", dtype="int32")],
)
def cast(x: Tensor, dtype: Any) -> Tensor:
    """x in another dtype. Float to float passes the gradient; to an integer or bool does not."""


@cast.forward
def _(xp: Any, x: Any, dtype: DType) -> Any:
    return xp.cast(x, dtype)


@cast.vjp
def _(g: Tensor, y: Tensor, x: Tensor, dtype: DType) -> Any:
    return ((lambda: cast(g, x.dtype)) if x.dtype.is_float and y.dtype.is_float else None,)


def upcast(x: Tensor) -> Tensor:
    """x in at least float32: what a model writes where half precision would lose too much.

    Unlike `cast("float32")` it leaves float64 alone, so a graph retyped to float64 is exact.
    """
    return cast(x, "float32") if x.dtype.is_float and x.dtype.size < 4 else x


@builtin(
    shape=same(),
    dtype=promoted,
    method="stop_gradient",
    view="same",
    style="view",
    flops=lambda *_, **__: 0,
    nodiff="asked for",
    samples=[S("B T")],
)
def stop_gradient(x: Tensor) -> Tensor:
    """x, through which no gradient passes."""


@stop_gradient.forward
def _(xp: Any, x: Any) -> Any:
    return xp.stop_gradient(x)


__all__ = [
    "abs",
    "add",
    "cast",
    "cos",
    "div",
    "equal",
    "erf",
    "exp",
    "expm1",
    "floor",
    "greater",
    "greater_equal",
    "less",
    "less_equal",
    "log",
    "log1p",
    "logical_and",
    "logical_not",
    "logical_or",
    "maximum",
    "minimum",
    "mul",
    "neg",
    "not_equal",
    "pow",
    "reciprocal",
    "rsqrt",
    "sigmoid",
    "sign",
    "sin",
    "sqrt",
    "square",
    "stop_gradient",
    "sub",
    "tanh",
    "upcast",
    "where",
]
