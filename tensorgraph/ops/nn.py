"""The named ops of networks. Each body is the definition, in smaller ops; a forward or vjp only where it is better."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from .. import dims
from ..dims import Dim, Shape
from ..dtypes import DType
from ..errors import DTypeError, OpError
from ..op import (
    Bad,
    DataRange,
    InputSpec,
    Obligation,
    S,
    axis_of,
    broadcast_shapes,
    clash,
    floating,
    ids,
    need_dtype,
    op,
    operand,
    same,
)
from ..tensor import Tensor, as_tensor
from .elementwise import (
    add,
    erf,
    exp,
    greater,
    less_equal,
    log,
    maximum,
    not_equal,
    rsqrt,
    sigmoid,
    stop_gradient,
    tanh,
    where,
)
from .elementwise import cast as cast_
from .indexing import one_hot, take_along
from .leaf import arange, const, dimension
from .linalg import matmul
from .movement import concat, reshape, split, swapaxes, unsqueeze
from .reduce import max, mean, sum

builtin = partial(op, builtin=True)


def _cost(per_element: int) -> Any:
    return lambda y, *_, **__: dims.mul(per_element, y.size)


def _axis(name: str) -> Any:
    return lambda xs, a: {**a, "axis": axis_of(name, a["axis"], xs[0])}


# --------------------------------------------------------------------------------------------- softmax


@builtin(
    shape=same(),
    dtype=floating("softmax"),
    prepare=_axis("softmax"),
    flops=_cost(5),
    style="softmax",
    method="softmax",
    inplace=(0,),
    samples=[S("B T"), S("B H T S", axis=-2), S("1"), Bad("B", axis=1, match="axis 1 out of range")],
)
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """exp(x - max x) / sum, along `axis`."""
    e = exp(x - stop_gradient(max(x, axis, keepdims=True)))
    return e / sum(e, axis, keepdims=True)


@softmax.forward
def _(xp: Any, x: Any, axis: int, out: Any = None) -> Any:
    if not x.size:  # no row, or rows of nothing
        return x.copy() if out is None else out
    y = xp.subtract(x, xp.max(x, axis=axis, keepdims=True), out=out)
    y = xp.exp(y, out=out)
    return xp.divide(y, xp.sum(y, axis=axis, keepdims=True, dtype=y.dtype), out=out)


@softmax.vjp
def _(g: Tensor, y: Tensor, x: Tensor, axis: int) -> Any:
    return (y * (g - sum(g * y, axis, keepdims=True)),)


@builtin(
    shape=same(),
    dtype=floating("log_softmax"),
    prepare=_axis("log_softmax"),
    flops=_cost(5),
    style="softmax",
    method="log_softmax",
    samples=[S("B T"), S("B T", axis=0), Bad("B", axis=1, match="axis 1 out of range")],
)
def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """x - max x - log(sum(exp(x - max x))), along `axis`."""
    z = x - stop_gradient(max(x, axis, keepdims=True))
    return z - log(sum(exp(z), axis, keepdims=True))


@log_softmax.vjp
def _(g: Tensor, y: Tensor, x: Tensor, axis: int) -> Any:
    return (g - exp(y) * sum(g, axis, keepdims=True),)


# ----------------------------------------------------------------------------------------- activations

C0, C1 = 0.7978845608028654, 0.044715  # sqrt(2/pi), and the cubic term of Hendrycks and Gimpel 2016
activation = partial(
    builtin,
    shape=same(),
    recompute=True,
    inplace=(0,),
    style="activation",
    samples=[S("B T"), S(""), Bad(InputSpec("B T", "int32"), match="needs a floating dtype")],
)


@activation(dtype=floating("relu"), title="ReLU", flops=_cost(1), kinks=(0.0,), method="relu")
def relu(x: Tensor) -> Tensor:
    """max(x, 0); the gradient at 0 is 0."""
    return where(greater(x, 0.0), x, const(0.0, x.dtype))


@relu.forward
def _(xp: Any, x: Any, out: Any = None) -> Any:
    return xp.maximum(x, x.dtype.type(0), out=out)


@activation(dtype=floating("gelu"), title="GELU", flops=_cost(9))
def gelu(x: Tensor) -> Tensor:
    """x times the normal distribution function of x (exact, by erf)."""
    return x * 0.5 * (erf(x * 0.7071067811865476) + 1.0)


@gelu.vjp
def _(g: Tensor, y: Tensor, x: Tensor) -> Any:
    normal = exp(x.square() * -0.5) * 0.3989422804014327
    return (g * (0.5 * (erf(x * 0.7071067811865476) + 1.0) + x * normal),)


@activation(dtype=floating("gelu_tanh"), title="GELU", flops=_cost(12))
def gelu_tanh(x: Tensor) -> Tensor:
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))): GPT-2's approximation of gelu."""
    return x * 0.5 * (tanh((x + x * x * x * C1) * C0) + 1.0)


@gelu_tanh.vjp
def _(g: Tensor, y: Tensor, x: Tensor) -> Any:
    t = tanh((x + x * x * x * C1) * C0)
    return (g * (0.5 * (t + 1.0) + x * 0.5 * (1.0 - t.square()) * ((x * x * (3.0 * C1) + 1.0) * C0)),)


@activation(dtype=floating("silu"), title="SiLU", flops=_cost(5), method="silu")
def silu(x: Tensor) -> Tensor:
    """x sigmoid(x), also called swish."""
    return x * sigmoid(x)


@silu.vjp
def _(g: Tensor, y: Tensor, x: Tensor) -> Any:
    s = sigmoid(x)
    return (g * (s + y * (1.0 - s)),)


@activation(dtype=floating("quick_gelu"), title="quick GELU", flops=_cost(6))
def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x): the activation of CLIP."""
    return x * sigmoid(x * 1.702)


@activation(dtype=floating("softplus"), flops=_cost(4), kinks=(0.0,))  # of its definition, not of the function
def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), without overflow."""
    return maximum(x, const(0.0, x.dtype)) + log(exp(-x.abs()) + 1.0)


@softplus.vjp
def _(g: Tensor, y: Tensor, x: Tensor) -> Any:
    return (g * sigmoid(x),)


# ----------------------------------------------------------------------------------------------- norms


def _norm_shape(name: str) -> Any:
    def rule(x: Tensor, *weights: Tensor | None, **_: Any) -> Shape:
        axis_of(name, -1, x)
        for w, slot in zip(weights, ("weight", "bias"), strict=False):
            if w is not None and (w.ndim != 1 or not dims.same(w.shape[0], x.shape[-1])):
                raise clash(
                    "TG119",
                    f"{name}: {slot} must have the size of the last axis of x",
                    (x, "x", -1),
                    (w, slot, None),
                )
        return x.shape

    return rule


@builtin(
    shape=_norm_shape("layer_norm"),
    dtype=floating("layer_norm"),
    flops=_cost(8),
    style="norm",
    title="LayerNorm",
    samples=[
        S("B T d", "d", "d"),
        S("B d", "d", None),
        S("T d", None, None),
        Bad("B d", "f", "f", match="last axis"),
        Bad("", None, None, match="axis -1 out of range"),
    ],
)
def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(variance + eps) over the last axis, times weight, plus bias (Ba et al. 2016)."""
    c = x - mean(x, -1, keepdims=True)
    y = c * (mean(c.square(), -1, keepdims=True) + eps).rsqrt()
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


@layer_norm.vjp
def _(g: Tensor, y: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
    c = x - mean(x, -1, keepdims=True)
    r = (mean(c.square(), -1, keepdims=True) + eps).rsqrt()
    h = c * r
    gw = g if weight is None else g * weight
    dx = r * (gw - mean(gw, -1, keepdims=True) - h * mean(gw * h, -1, keepdims=True))
    return dx, lambda: g * h, lambda: g


@builtin(
    shape=_norm_shape("rms_norm"),
    dtype=floating("rms_norm"),
    flops=_cost(5),
    style="norm",
    title="RMSNorm",
    samples=[
        S("B T d", "d"),
        S("T d", None),
        S("B d", "d", eps=1e-3, offset=1.0),
        Bad("B d", "f", match="last axis"),
        Bad("", None, match="axis -1 out of range"),
    ],
)
def rms_norm(x: Tensor, weight: Tensor | None, eps: float = 1e-6, offset: float = 0.0) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last axis, times offset + weight (Zhang and Sennrich 2019; Gemma: 1)."""
    y = x * (mean(x.square(), -1, keepdims=True) + eps).rsqrt()
    return y if weight is None else y * (weight + offset if offset else weight)


@rms_norm.vjp
def _(g: Tensor, y: Tensor, x: Tensor, weight: Tensor | None, eps: float, offset: float) -> Any:
    r = (mean(x.square(), -1, keepdims=True) + eps).rsqrt()
    h = x * r
    gw = g if weight is None else g * (weight + offset if offset else weight)
    return r * (gw - h * mean(gw * h, -1, keepdims=True)), lambda: g * h


# ------------------------------------------------------------------------------------------------ rope


def _rope_shape(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Shape:
    axis_of("rope", -1, x)
    half = dims.div(x.shape[-1], 2)
    for t, slot in ((cos, "cos"), (sin, "sin")):
        axis_of("rope", -1, t, slot)
        if not dims.same(t.shape[-1], half):
            raise clash(
                "TG120",
                f"rope: {slot} must have half the size of the last axis of x, {dims.show(half)}",
                (x, "x", -1),
                (t, slot, -1),
            )
    broadcast_shapes("rope", cos, sin)
    return x.shape


@builtin(
    shape=_rope_shape,
    dtype=floating("rope"),
    flops=_cost(3),
    style="rope",
    title="RoPE",
    samples=[
        S("B H T 4", "T 2", "T 2"),
        S("B H T 4", "B 1 T 2", "B 1 T 2", interleaved=True),
        Bad("B T 6", "T 2", "T 2", match="half the size"),
        Bad("", "", "", match="axis -1 out of range"),
    ],
)
def rope(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    """Rotate pairs of the last axis by angles given as cos and sin [.., T, k/2] (Su et al. 2021).

    Pairs are (i, i + k/2), or (2i, 2i + 1) if `interleaved`.
    """
    if interleaved:
        pairs = reshape(x, (*x.shape[:-1], dims.div(x.shape[-1], 2), 2))
        a, b = (reshape(p, p.shape[:-1]) for p in split(pairs, (1, 1), -1))
        y = concat([unsqueeze(a * cos - b * sin, -1), unsqueeze(b * cos + a * sin, -1)], axis=-1)
        return cast("Tensor", reshape(y, x.shape))
    a, b = split(x, 2, -1)
    return cast("Tensor", concat([a * cos - b * sin, b * cos + a * sin], axis=-1))


# ------------------------------------------------------------------------------------------- attention

LOWEST = {"float16": -65504.0, "bfloat16": -3.3895313892515355e38}
FLOAT32_LOWEST = -3.4028234663852886e38


def _attention_shape(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, offset: Tensor | None, **_: Any) -> Shape:
    for t, slot in ((q, "q"), (k, "k"), (v, "v")):
        if t.ndim != 4:
            raise clash("TG121", f"attention: {slot} must have the axes [B, H, T, k]", (t, slot, None))
    if not dims.same(q.shape[3], k.shape[3]):
        raise clash("TG121", "attention: the head sizes of q and k differ", (q, "q", 3), (k, "k", 3))
    for axis, what in ((1, "heads"), (2, "positions")):
        if not dims.same(k.shape[axis], v.shape[axis]):
            raise clash("TG121", f"attention: the {what} of k and v differ", (k, "k", axis), (v, "v", axis))
    for t, slot in ((k, "k"), (v, "v")):
        if not dims.same(q.shape[0], t.shape[0]):
            raise clash("TG121", "attention: the batch sizes differ", (q, "q", 0), (t, slot, 0))
    if mask is not None:
        scores = (*q.shape[:3], k.shape[2])
        for i, (d, want) in enumerate(zip(reversed(mask.shape), reversed(scores), strict=False), 1):
            if not dims.same(d, 1) and not dims.same(d, want):
                text = f"attention: mask must broadcast to {dims.show_shape(scores)}"
                raise clash("TG121", text, (q, "q", None), (k, "k", None), (mask, "mask", -i))
        if mask.ndim > 4:
            raise clash("TG121", "attention: mask has more than four axes", (mask, "mask", None))
    return (*q.shape[:3], v.shape[3])


def _attention_requires(q: Tensor, k: Tensor, *_: Any, **__: Any) -> list[Obligation]:
    return (
        []
        if dims.same(q.shape[1], k.shape[1])
        else [Obligation(q.shape[1], "divisible", k.shape[1], "query heads are shared evenly")]
    )


def _attention_dtype(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, offset: Tensor | None, **_: Any) -> DType:
    if mask is not None and mask.dtype.kind == "i":
        raise DTypeError(
            "TG204",
            "attention: mask must be bool (True: visible) or floating (added)",
            operands=[operand(mask, "mask")],
        )
    if offset is not None:
        need_dtype("attention", offset, "i", "offset")
    return cast("DType", floating("attention")(q, k, v))


def _attention_flops(y: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> Dim:
    rows = dims.mul(dims.size(q.shape[:3]), k.shape[2])
    return dims.mul(rows, dims.add(dims.mul(2, dims.add(q.shape[3], v.shape[3])), 5))


def visible(T: Dim, S: Dim, offset: Tensor | None, causal: bool, window: int | None) -> Tensor | None:
    """Which keys [T, S] a query sees: none later than itself if causal, none `window` or more behind; None: all."""
    if not causal and window is None:
        return None
    i, j = unsqueeze(arange(size=T), 1), arange(size=S)
    i = i if offset is None else i + offset
    see = less_equal(j, i) if causal else None
    if window is not None:
        near = greater(j, i - window)
        see = near if see is None else see & near
    return see


@builtin(
    shape=_attention_shape,
    dtype=_attention_dtype,
    requires=_attention_requires,
    flops=_attention_flops,
    style="attention",
    samples=[
        S("B H T k", "B H S k", "B H S d", None, None),
        S("B 4 T k", "B 2 T k", "B 2 T k", None, None, causal=True),
        S("B H T k", "B H S k", "B H S k", "B 1 T S", None, scale=0.3, softcap=2.0),
        S("B H T k", "B H S k", "B H S k", InputSpec("B 1 1 S", "bool"), None),
        S("B 6 T k", "B 2 7 k", "B 2 7 k", None, InputSpec("", "int32", "2"), causal=True, window=2),
        Bad("B H T k", "B H T d", "B H T d", None, None, match="head sizes"),
    ],
)
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    offset: Tensor | None,
    scale: float | None = None,
    causal: bool = False,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """softmax(q kᵀ · scale) v (Vaswani et al. 2017), for q [B, H, T, k], k [B, G, S, k], v [B, G, S, v].

    H may be a multiple of G (grouped queries). `mask` broadcasts to [B, H, T, S]: bool (True: visible) or added.
    `causal`: query i sees keys up to i + offset; `window`: only the last `window` of them. `softcap`: c·tanh(scores/c).
    A row that sees nothing weighs all keys alike, as the reference implementations do.
    """
    B, H, T, K = q.shape
    G, S = k.shape[1], k.shape[2]
    R = dims.div(H, G)
    grouped = not dims.same(H, G)
    if grouped:  # [B, G, R, T, k] against [B, G, 1, S, k]
        q, k, v = reshape(q, (B, G, R, T, K)), unsqueeze(k, 2), unsqueeze(v, 2)
    scores = matmul(q, swapaxes(k, -1, -2)).named("scores")
    scores = scores * (scale if scale is not None else _root(K, scores))
    if softcap is not None:
        scores = tanh(scores / softcap) * softcap
    hidden = const(LOWEST.get(scores.dtype.name, FLOAT32_LOWEST), scores.dtype)
    zero = const(0.0, scores.dtype)
    see = visible(T, S, offset, causal, window)
    if mask is not None and mask.dtype.kind == "b":
        see = mask if see is None else mask & see
        mask = None
    for bias in (mask, None if see is None else where(see, zero, hidden)):
        if bias is not None:
            if grouped and bias.ndim == 3:
                bias = unsqueeze(bias, 0)
            if grouped and bias.ndim == 4:
                h = bias.shape[1]
                one = type(h) is int and h == 1
                bias = reshape(
                    bias, (bias.shape[0], 1, 1, *bias.shape[2:]) if one else (bias.shape[0], G, R, *bias.shape[2:])
                )
            scores = scores + bias
    probs = softmax(scores).named("probs")
    y = matmul(probs, v).named("weighted_sum")
    return cast("Tensor", reshape(y, (B, H, T, y.shape[-1]))) if grouped else y


def _root(k: Dim, like: Tensor) -> Any:
    """1 / sqrt(k), a number if k is one."""
    return float(k) ** -0.5 if type(k) is int else rsqrt(dimension(k, like.dtype))


# ------------------------------------------------------------------------------------------------ loss


def _xent_shape(logits: Tensor, labels: Tensor, ignore: int | None, reduction: str) -> Shape:
    need_dtype("cross_entropy", labels, "i", "labels")
    if reduction not in ("mean", "sum", "none"):
        raise OpError("TG258", f"cross_entropy: reduction must be 'mean', 'sum' or 'none', not {reduction!r}")
    axis_of("cross_entropy", -1, logits, "logits")
    if not dims.same_shape(logits.shape[:-1], labels.shape):
        raise clash(
            "TG122",
            "cross_entropy: labels must have the shape of logits without the last axis",
            (logits, "logits", None),
            (labels, "labels", None),
        )
    return labels.shape if reduction == "none" else ()


@builtin(
    shape=_xent_shape,
    dtype=lambda logits, *_, **__: floating("cross_entropy")(logits),
    style="loss",
    title="cross-entropy",
    flops=lambda y, logits, *_, **__: dims.mul(6, logits.size),
    ranges=lambda logits, labels, ignore, reduction: [DataRange(1, 0, logits.shape[-1], ignore)],
    samples=[
        S("B V", ids("B", "V")),
        S("B T V", ids("B T", "V"), reduction="none"),
        S("B V", ids("B", "V"), reduction="sum", ignore=1),
        Bad("B V", ids("T", "V"), match="without the last axis"),
        Bad("B V", "B", match="must be integer"),
        Bad("", ids("", "V"), match="axis -1 out of range"),
    ],
)
def cross_entropy(logits: Tensor, labels: Tensor, ignore: int | None = -100, reduction: str = "mean") -> Tensor:
    """-log softmax(logits)[label] over the last axis, averaged over labels other than `ignore` (nan without any)."""
    lse_max = stop_gradient(max(logits, -1, keepdims=True))
    z = logits - lse_max
    lse = log(sum(exp(z), -1))
    real, safe = _real_labels(labels, ignore)
    loss = lse - reshape(take_along(z, unsqueeze(safe, safe.ndim), -1), labels.shape)
    if real is not None:
        loss = where(real, loss, const(0.0, loss.dtype))
    if reduction == "none":
        return loss
    return sum(loss) if reduction == "sum" else sum(loss) / _count(labels, real, loss.dtype)


def _real_labels(labels: Tensor, ignore: int | None) -> tuple[Tensor | None, Tensor]:
    if ignore is None:
        return None, labels
    real = not_equal(labels, ignore)
    return real, where(real, labels, const(0, labels.dtype))


def _count(labels: Tensor, real: Tensor | None, dtype: DType) -> Tensor:
    return dimension(labels.size, dtype) if real is None else sum(cast_(real, dtype))


@cross_entropy.vjp
def _(g: Tensor, y: Tensor, logits: Tensor, labels: Tensor, ignore: int | None, reduction: str) -> Any:
    real, safe = _real_labels(labels, ignore)
    weight = g if reduction != "mean" else g / _count(labels, real, g.dtype)
    if real is not None:
        weight = where(real, weight, const(0.0, g.dtype))
    if weight.ndim:
        weight = unsqueeze(weight, weight.ndim)
    return (softmax(logits) - one_hot(safe, logits.shape[-1], logits.dtype)) * weight, None


def linear(x: Tensor, weight: Any, bias: Any = None) -> Tensor:
    """x @ weightᵀ + bias, for a weight stored [out, in] as in PyTorch."""
    y = matmul(x, as_tensor(weight).T)
    return y if bias is None else add(y, bias)


ACTIVATIONS = {
    "relu": relu,
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu_tanh": gelu_tanh,
    "silu": silu,
    "swish": silu,
    "quick_gelu": quick_gelu,
    "tanh": tanh,
    "sigmoid": sigmoid,
    "gelu_fast": gelu_tanh,
}

__all__ = [
    "ACTIVATIONS",
    "attention",
    "cross_entropy",
    "gelu",
    "gelu_tanh",
    "layer_norm",
    "linear",
    "log_softmax",
    "quick_gelu",
    "relu",
    "rms_norm",
    "rope",
    "silu",
    "softmax",
    "softplus",
]
