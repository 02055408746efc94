"""What architectures share: attention, feed-forward, norms, position schemes, the cache of keys and values."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NamedTuple

from tensorgraph.dims import Dim, add, div, mul, same, sub
from tensorgraph.dtypes import DType
from tensorgraph.errors import ModelError
from tensorgraph.nn import LayerNorm, Linear, Module, RMSNorm
from tensorgraph.ops.elementwise import (
    cast,
    cos,
    equal,
    floor,
    greater,
    less,
    logical_not,
    maximum,
    minimum,
    pow,
    sin,
    where,
)
from tensorgraph.ops.indexing import update_slice
from tensorgraph.ops.leaf import arange, const, dimension, input
from tensorgraph.ops.movement import concat, reshape, split, stack, swapaxes, unsqueeze
from tensorgraph.ops.nn import attention, linear, rope
from tensorgraph.ops.reduce import max
from tensorgraph.tensor import Tensor, scope

from .activations import ACTIVATIONS

Rotation = tuple[Tensor, Tensor]


def choose(what: str, name: Any, table: Mapping[str, Any]) -> Any:
    """table[name]. Raises ModelError[TG912] naming the nearest entries."""
    if isinstance(name, str) and name in table:
        return table[name]
    near = difflib.get_close_matches(str(name), table, 3, 0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"known are {', '.join(sorted(table))}"
    raise ModelError("TG912", f"unknown {what} {name!r}", hint=hint)


# ---------------------------------------------------------------------------------------- what layers share


class Cache:
    """Keys and values of earlier positions as inputs of the graph, and what the new ones make of them as outputs.

    Each attention in turn takes its own inputs `cache.<i>.<name>` [B, G, C, k]; C, the capacity, bounds the positions.
    `position`, an int32 scalar input, is the number of positions held; new ones are written from there on.
    """

    def __init__(self, capacity: Dim, position: Tensor) -> None:
        self.capacity, self.position = capacity, position
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self._layers = 0

    def extend(self, **new: Tensor) -> tuple[Tensor, ...]:
        """The held arrays of one attention with the new positions [B, G, T, k] written in."""
        out = []
        for name, x in new.items():
            label = f"cache.{self._layers}.{name}"
            held = input(label, (*x.shape[:2], self.capacity, *x.shape[3:]), x.dtype)
            self.inputs[label] = held
            self.outputs[label] = update_slice(held, x, self.position, axis=2)
            out.append(self.outputs[label])
        self._layers += 1
        return tuple(out)


class Routed(NamedTuple):
    """How one layer routed its tokens: scores [N, E] of the experts, and those chosen [N, K]."""

    scores: Tensor
    chosen: Tensor


@dataclass(frozen=True)
class Source:
    """What cross-attention attends to: x [B, S, s]; `mask`, bool [B, 1, T, S], says which of it each query sees.

    `seeing`, bool [B, T, 1], is false for queries that see nothing of it.
    """

    x: Tensor
    mask: Tensor | None = None
    seeing: Tensor | None = None


@dataclass
class Context:
    """What all layers of one forward share: `mask` (bool [B, 1, 1, S], or None), `rope` by layer type, the cache.

    `routed` gathers what routers chose, if it is asked for. `source` is what layers of cross-attention attend to.
    """

    mask: Tensor | None = None
    rope: dict[str, Rotation] = field(default_factory=dict)
    cache: Cache | None = None
    routed: list[Routed] | None = None
    source: Source | None = None


# ----------------------------------------------------------------------------------------------- attention


class Attention(Module):
    """Multi-head attention of x [B, T, d], on itself or on a source [B, S, s]: H query heads share G key/value heads.

    `fused`: q, k and v are one weight; `by_head`: in which those of each head lie together. `norm`: makes a norm of the
    head size k for q and k, applied before rotation; `wide`: one over all heads at once.
    `rope`: which rotation of the context to use. `window`, `softcap`, `scale`: as in the attention op. `source_size`:
    s, if it is not d. `cached`: generation keeps keys and values, though a mask takes the place of `causal`.
    Sources: Vaswani et al. 2017; Ainslie et al. 2023 (grouped queries).
    """

    component = "attention"

    def __init__(
        self,
        d: Dim,
        H: Dim,
        k: Dim,
        G: Dim | None = None,
        *,
        bias: bool = False,
        out_bias: bool = False,
        fused: bool = False,
        by_head: bool = False,
        transposed: bool = False,
        norm: Callable[[Dim], Module] | None = None,
        wide: bool = False,
        rope: str | None = None,
        causal: bool = True,
        window: int | None = None,
        softcap: float | None = None,
        scale: float | None = None,
        source_size: Dim | None = None,
        cached: bool = False,
    ) -> None:
        super().__init__()
        s = d if source_size is None else source_size
        self.heads, self.head_dim, self.groups = H, k, H if G is None else G
        self.rope, self.causal, self.window, self.softcap, self.scale = rope, causal, window, softcap, scale
        self.cached = cached
        q_size, kv_size = mul(H, k), mul(self.groups, k)
        self.parts = (q_size, kv_size, kv_size)
        self.fused, self.by_head, self.wide = fused, by_head, wide
        if fused:
            self.qkv = Linear(d, add(q_size, mul(2, kv_size)), bias, transposed=transposed)
        else:
            self.q = Linear(d, q_size, bias, transposed=transposed)
            self.k = Linear(s, kv_size, bias, transposed=transposed)
            self.v = Linear(s, kv_size, bias, transposed=transposed)
        self.q_norm = norm(q_size if wide else k) if norm else None
        self.k_norm = norm(kv_size if wide else k) if norm else None
        self.out = Linear(q_size, d, out_bias, transposed=transposed)

    def forward(self, x: Tensor, context: Context, source: Tensor | None = None) -> Tensor:
        q, k, v = self._project(x, source)
        if self.wide and self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = self._heads(q, self.heads), self._heads(k, self.groups), self._heads(v, self.groups)
        if not self.wide and self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.rope is not None:
            q, k = rotate(q, context.rope[self.rope]), rotate(k, context.rope[self.rope])
        if self.cached:
            k, v = k.named("cached.key"), v.named("cached.value")
        offset = None
        if context.cache is not None and source is None:
            k, v = context.cache.extend(key=k, value=v)
            offset = context.cache.position
        y = attention(q, k, v, context.mask, offset, self.scale, self.causal, self.window, self.softcap)
        return self.out(reshape(swapaxes(y, 1, 2), (*x.shape[:2], self.parts[0])))

    def _project(self, x: Tensor, source: Tensor | None) -> tuple[Tensor, ...]:
        if not self.fused:
            s = x if source is None else source
            return self.q(x), self.k(s), self.v(s)
        if self.by_head:
            apart = split(reshape(self.qkv(x), (*x.shape[:2], self.heads, mul(3, self.head_dim))), 3, -1)
            return tuple(reshape(y, (*x.shape[:2], self.parts[0])) for y in apart)
        if source is None:
            return split(self.qkv(x), self.parts, -1)
        weights = split(self.qkv.weight.__tensor__(), self.parts, -1 if self.qkv.transposed else 0)
        biases = (None,) * 3 if self.qkv.bias is None else split(self.qkv.bias.__tensor__(), self.parts, 0)
        rows = ((x, source, source), weights, biases)
        return tuple(linear(a, w.T if self.qkv.transposed else w, b) for a, w, b in zip(*rows, strict=True))

    def _heads(self, x: Tensor, count: Dim) -> Tensor:
        return swapaxes(reshape(x, (*x.shape[:2], count, self.head_dim)), 1, 2)


class FeedForward(Module):
    """down(act(up(x))), or down(act(gate(x)) · up(x)) if `gated` (Shazeer 2020); `fused`: both are one weight."""

    component = "mlp"

    def __init__(
        self,
        d: Dim,
        f: Dim,
        activation: str,
        *,
        gated: bool = False,
        bias: bool = False,
        fused: bool = False,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        self.activation = choose("activation", activation, ACTIVATIONS)
        self.gated, self.fused = gated, fused
        if gated and fused:
            self.gate_up = Linear(d, mul(2, f), bias, transposed=transposed)
        else:
            if gated:
                self.gate = Linear(d, f, bias, transposed=transposed)
            self.up = Linear(d, f, bias, transposed=transposed)
        self.down = Linear(f, d, bias, transposed=transposed)

    def forward(self, x: Tensor) -> Tensor:
        if not self.gated:
            return self.down(self.activation(self.up(x)))
        gate, up = split(self.gate_up(x), 2, -1) if self.fused else (self.gate(x), self.up(x))
        return self.down(self.activation(gate) * up)


def norm_of(kind: str, eps: float) -> Callable[[Dim], Module]:
    """A function size -> norm: "layer" (with bias), "rms", or "rms+1" (weight stored less 1, as Gemma does)."""
    makers: dict[str, Callable[[Dim], Module]] = {
        "layer": lambda size: LayerNorm(size, eps),
        "rms": lambda size: RMSNorm(size, eps),
        "rms+1": lambda size: RMSNorm(size, eps, offset=1.0),
    }
    return choose("norm", kind, makers)


# ------------------------------------------------------------------------------------------------ positions
# Angles are made from constants, sizes and positions alone, in at least float32: a compiler folds them per binding.


def real(dtype: DType) -> str:
    """The dtype in which angles for values of `dtype` are made."""
    return "float64" if dtype.name == "float64" else "float32"


def retyped(x: Tensor, dtype: DType) -> Tensor:
    """x in `dtype`; itself if it is so already."""
    return x if x.dtype == dtype else cast(x, dtype)


def sinusoidal(positions: Tensor, d: Dim, dtype: DType) -> Tensor:
    """sin and cos of position / 10000^(2i/d), interleaved: [T] -> [T, d], [B, T] -> [B, T, d] (Vaswani et al. 2017)."""
    with scope("positions"):
        angles = unsqueeze(positions.cast(real(dtype)), positions.ndim) * powers(10000.0, d, real(dtype))
        pairs = stack([sin(angles), cos(angles)], axis=positions.ndim + 1)
        return retyped(reshape(pairs, (*positions.shape, d)), dtype)


def powers(theta: float | Tensor, size: Dim, dtype: str) -> Tensor:
    """theta^(-2i/size) for i < size/2."""
    exponent = arange(size=div(size, 2), dtype=dtype) * -2.0 / dimension(size, const(0, dtype).dtype)
    return pow(theta, exponent)


def rotate(x: Tensor, table: Rotation) -> Tensor:
    """The first axes of each head rotated: all of them, or as many as the table has angles for."""
    size = mul(2, table[0].shape[-1])
    if same(size, x.shape[-1]):
        return rope(x, *table)
    turned, rest = split(x, (size, sub(x.shape[-1], size)), -1)
    return concat([rope(turned, *table), rest], axis=-1)


def rotation(parameters: Mapping[str, Any], k: Dim, positions: Tensor, dtype: DType) -> Rotation:
    """cos and sin [T, k/2], or [B, 1, T, k/2] for positions [B, T], of rotary embedding (Su et al. 2021).

    `parameters`: transformers' `rope_parameters` for one layer type: rope_type, rope_theta, and those of the type.
    """
    with scope("rope"):
        size = part(k, parameters.get("partial_rotary_factor", 1.0))
        frequencies, scale = SCALINGS[parameters["rope_type"]](parameters, size, positions, real(dtype))
        angles = unsqueeze(positions.cast(real(dtype)), positions.ndim) * frequencies
        if positions.ndim == 2:
            angles = unsqueeze(angles, 1)
        tables = (cos(angles), sin(angles)) if scale == 1.0 else (cos(angles) * scale, sin(angles) * scale)
        return retyped(tables[0], dtype), retyped(tables[1], dtype)


def part(k: Dim, factor: float) -> Dim:
    """The share `factor` of k."""
    if factor == 1.0 or type(k) is int:
        return k if factor == 1.0 else int(k * factor)
    ratio = Fraction(factor).limit_denominator(64)
    return div(mul(k, ratio.numerator), ratio.denominator)


Scaling = Callable[[Mapping[str, Any], Dim, Tensor, str], tuple[Tensor, float]]


def _default(p: Mapping[str, Any], k: Dim, positions: Tensor, dtype: str) -> tuple[Tensor, float]:
    return powers(float(p["rope_theta"]), k, dtype), 1.0


def _linear(p: Mapping[str, Any], k: Dim, positions: Tensor, dtype: str) -> tuple[Tensor, float]:
    return powers(float(p["rope_theta"]), k, dtype) / float(p["factor"]), 1.0


def _dynamic(p: Mapping[str, Any], k: Dim, positions: Tensor, dtype: str) -> tuple[Tensor, float]:
    """The base grows with the longest position seen, beyond the trained length."""
    trained, factor = float(p["max_position_embeddings"]), float(p["factor"])
    length = maximum((max(positions) + 1).cast(dtype), trained)
    size = dimension(k, length.dtype)
    theta = float(p["rope_theta"]) * pow(length * factor / trained - (factor - 1.0), size / (size - 2.0))
    return powers(theta, k, dtype), 1.0


def _llama3(p: Mapping[str, Any], k: Dim, positions: Tensor, dtype: str) -> tuple[Tensor, float]:
    """Long wavelengths are stretched by `factor`, short ones kept, those between interpolated."""
    length, factor = float(p["original_max_position_embeddings"]), float(p["factor"])
    low, high = float(p["low_freq_factor"]), float(p["high_freq_factor"])
    base = powers(float(p["rope_theta"]), k, dtype)
    wavelength = 2.0 * math.pi / base
    stretched = where(greater(wavelength, length / low), base / factor, base)
    smooth = (length / wavelength - low) / (high - low)
    between = logical_not(less(wavelength, length / high)) & logical_not(greater(wavelength, length / low))
    return where(between, (1.0 - smooth) * stretched / factor + smooth * stretched, stretched), 1.0


def _yarn(p: Mapping[str, Any], k: Dim, positions: Tensor, dtype: str) -> tuple[Tensor, float]:
    """Stretched where a frequency turns rarely within the trained length, kept where often (Peng et al. 2023)."""
    theta, length = float(p["rope_theta"]), float(p["original_max_position_embeddings"])
    factor = float(p.get("factor") or p["max_position_embeddings"] / length)
    base = powers(theta, k, dtype)
    size = dimension(k, base.dtype)

    def turning(rotations: float) -> Tensor:
        return size * (math.log(length / (rotations * 2.0 * math.pi)) / (2.0 * math.log(theta)))

    low, high = turning(float(p.get("beta_fast") or 32)), turning(float(p.get("beta_slow") or 1))
    if p.get("truncate", True):
        low, high = floor(low), -floor(-high)
    low, high = maximum(low, 0.0), minimum(high, size - 1.0)
    high = where(equal(low, high), high + 0.001, high)
    steps = arange(size=div(k, 2), dtype=dtype)
    stretched = minimum(maximum((steps - low) / (high - low), 0.0), 1.0)
    blend = base / factor * stretched + base * (1.0 - stretched)

    def mscale(m: float) -> float:
        return 0.1 * m * math.log(factor) + 1.0 if factor > 1 else 1.0

    scale = p.get("attention_factor")
    if scale is None:
        several = p.get("mscale") and p.get("mscale_all_dim")
        scale = mscale(p["mscale"]) / mscale(p["mscale_all_dim"]) if several else mscale(1.0)
    return blend, float(scale)


def _longrope(p: Mapping[str, Any], k: Dim, positions: Tensor, dtype: str) -> tuple[Tensor, float]:
    """Each frequency has its own divisor, one set up to the trained length and one beyond (Ding et al. 2024)."""
    length = p["original_max_position_embeddings"]
    short, long = const(p["short_factor"], dtype), const(p["long_factor"], dtype)
    divisor = where(greater(max(positions) + 1, int(length)), long, short)
    factor = float(p.get("factor") or p["max_position_embeddings"] / length)
    scale = p.get("attention_factor")
    if scale is None:
        scale = math.sqrt(1 + math.log(factor) / math.log(length)) if factor > 1 else 1.0
    return powers(float(p["rope_theta"]), k, dtype) / divisor, float(scale)


SCALINGS: dict[str, Scaling] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
# The parameters that each cannot do without.
NEEDED = {
    "default": ("rope_theta",),
    "linear": ("rope_theta", "factor"),
    "dynamic": ("rope_theta", "factor"),
    "llama3": ("rope_theta", "factor", "low_freq_factor", "high_freq_factor"),
    "yarn": ("rope_theta",),
    "longrope": ("rope_theta", "short_factor", "long_factor"),
}

__all__ = [
    "Attention",
    "Cache",
    "Context",
    "FeedForward",
    "Routed",
    "Source",
    "choose",
    "norm_of",
    "rotate",
    "rotation",
    "sinusoidal",
]
