"""The decoder: embedding, blocks of attention and feed-forward, head. One family differs from another by its Plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tensorgraph.dims import Dim, canon, dim, mul, symbol_name
from tensorgraph.errors import ModelError
from tensorgraph.nn import Embedding, Linear, Module, ModuleList
from tensorgraph.ops.elementwise import equal, not_equal, sqrt, tanh, upcast
from tensorgraph.ops.leaf import arange, dimension, full
from tensorgraph.ops.movement import concat, pad, reshape, unsqueeze
from tensorgraph.ops.nn import cross_entropy
from tensorgraph.ops.reduce import cumsum
from tensorgraph.tensor import Tensor

from .latent import Latent, LatentAttention
from .model import Model, Spec, ids
from .moe import MixtureOfExperts, Routing, balance_loss
from .parts import Attention, Cache, Context, FeedForward, Routed, Source, norm_of, rotation, sinusoidal
from .settings import Settings

FULL = "full_attention"
SLIDING = "sliding_attention"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that the assembly of a decoder reads. Sizes are ints or symbols; the rest are numbers and flags.

    V vocabulary, d model, f feed-forward, H heads, G key/value heads, k head size, n layers, P rows of positions.
    """

    V: Dim
    d: Dim
    f: Dim
    H: Dim
    G: Dim
    k: Dim
    n: Dim
    P: Dim | None = None
    positions: str = "rope"  # learned, sinusoidal, rope
    longest: int | None = None  # positions that the model has, if they are bounded
    renewed_after: int | None = None  # positions beyond which all are rotated otherwise: a cache is made anew
    ropes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # parameters of the rotation by layer type
    layer_types: tuple[str, ...] = ()  # one per layer; none: all full
    window: int | None = None  # of the sliding layers
    norm: str | None = "rms"
    norm_eps: float = 1e-6
    block_norms: bool = True
    pre_norms: bool = True  # norms on what attention and feed-forward take
    final_norm: bool = True
    post_norms: bool = False  # norms on what attention and feed-forward return, too
    qk_norm: bool = False
    wide_qk_norm: bool = False  # over all heads at once
    parallel: bool = False  # attention and feed-forward both take x
    mlp_norm: bool = True  # the feed-forward has a norm of its own; False: it takes what attention takes
    activation: str = "silu"
    gated: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_bias: bool = False
    fused: bool = False  # q, k, v in one weight; gate and up too
    by_head: bool = False  # in which those of each head lie together
    unrotated: tuple[int, ...] = ()  # layers whose queries and keys are not rotated
    transposed: bool = False  # weights [in, out]
    scale: float | None = None  # of the scores; None: 1/sqrt(k)
    scale_by_layer: bool = False  # layer i divides it by i + 1
    softcap: float | None = None
    logit_softcap: float | None = None
    scaled_embedding: bool = False  # times sqrt(d)
    embedding_scale: float = 1.0
    branch_scale: float = 1.0  # of what attention and feed-forward add
    logit_scale: float = 1.0
    frozen_embedding: bool = False
    tied: bool = False
    causal: bool = True  # False: who calls it says which keys each query sees
    padding: int | None = None  # the embedding's row that gets no gradient
    packed: bool = False  # positions that jump begin another sequence, where no mask is given
    experts: Routing | None = None  # in place of the feed-forward
    latent: Latent | None = None  # in place of heads with keys and values of their own

    def layer_type(self, i: int) -> str:
        return self.layer_types[i] if self.layer_types else FULL


class Block(Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)); or both branches of the same x. For x [B, T, d]."""

    def __init__(self, p: Plan, i: int) -> None:
        super().__init__()
        make = norm_of(p.norm, p.norm_eps) if p.norm else None
        norm = make if p.block_norms else None
        kind = p.layer_type(i)
        scale = p.scale / (i + 1) if p.scale is not None and p.scale_by_layer else p.scale
        self.parallel, self.branch_scale = p.parallel, p.branch_scale
        self.attn_norm = norm(p.d) if norm and p.pre_norms else None
        rope = (kind if kind in p.ropes else FULL) if p.positions == "rope" and i not in p.unrotated else None
        self.attn = (
            LatentAttention(p.d, p.H, p.latent, rope or FULL)
            if p.latent is not None
            else Attention(
                p.d,
                p.H,
                p.k,
                p.G,
                bias=p.qkv_bias,
                out_bias=p.out_bias,
                fused=p.fused,
                by_head=p.by_head,
                transposed=p.transposed,
                norm=make if p.qk_norm else None,
                wide=p.wide_qk_norm,
                rope=rope,
                causal=p.causal,
                cached=not p.causal,
                window=p.window if kind == SLIDING else None,
                softcap=p.softcap,
                scale=scale,
            )
        )
        self.attn_post_norm = norm(p.d) if norm and p.post_norms else None
        self.mlp_norm = norm(p.d) if norm and p.pre_norms and p.mlp_norm else None
        self.mlp: FeedForward | MixtureOfExperts
        if p.experts is not None and i >= p.experts.dense:
            self.mlp = MixtureOfExperts(p.d, p.experts, p.activation, bias=p.mlp_bias)
        else:
            self.mlp = FeedForward(
                p.d, p.f, p.activation, gated=p.gated, bias=p.mlp_bias, fused=p.fused, transposed=p.transposed
            )
        self.mlp_post_norm = norm(p.d) if norm and p.post_norms else None

    def forward(self, x: Tensor, context: Context) -> Tensor:
        n = x if self.attn_norm is None else self.attn_norm(x)
        a = self.attn(n, context)
        a = self._branch(a if self.attn_post_norm is None else self.attn_post_norm(a))
        y = x if self.parallel else x + a
        h = (n if self.parallel else y) if self.mlp_norm is None else self.mlp_norm(y)
        h = self.mlp(h, context) if isinstance(self.mlp, MixtureOfExperts) else self.mlp(h)
        h = self._branch(h if self.mlp_post_norm is None else self.mlp_post_norm(h))
        return x + (a + h) if self.parallel else y + h

    def _branch(self, x: Tensor) -> Tensor:
        return x if self.branch_scale == 1.0 else x * self.branch_scale


class PositionTable(Embedding):
    """A learned row per position: the first T, or those asked for."""

    def forward(self, places: Tensor | None, T: Dim) -> Tensor:  # type: ignore[override]
        return self.weight.__tensor__()[:T] if places is None else super().forward(places)


class Decoder(Model):
    """A causal language model: tokens [B, T] -> logits [B, T, V]."""

    needs = ("input_ids",)
    learns = ("labels",)

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        p = self.plan = plan
        if p.experts is not None:
            if type(p.n) is not int and (p.experts.dense or p.experts.reported):
                what = "first ones without experts" if p.experts.dense else "a loss over all routers"
                raise ModelError("TG914", f"a block that is repeated cannot have {what}", hint="build with a number")
            if p.experts.balance is not None:
                self.flags = ("output_router_logits",)
        self.embed = Embedding(p.V, p.d, padding=p.padding)
        self.embed.weight.trained = not p.frozen_embedding
        if p.positions == "learned":
            self.positions = PositionTable(p.P, p.d)
        self.layers = ModuleList(p.n, lambda i: Block(p, i))
        self.norm = norm_of(p.norm, p.norm_eps)(p.d) if p.norm and p.final_norm else None
        self.head = Linear(p.d, p.V, p.head_bias, component="head")
        if p.tied:
            self.head.weight = self.embed.weight

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        visible: Tensor | None = None,
        merge: Callable[[Tensor], Tensor] | None = None,
        routed: list[Routed] | None = None,
        source: Source | None = None,
    ) -> Tensor:
        """Logits [B, T, V]; with a cache, those of the last position alone [B, 1, V].

        `attention_mask` [B, T] is 0 at padding ([B, C] with a cache); `position_ids` [B, T] default to 0 .. T - 1.
        `visible`, bool [B, 1, T, S], says which keys each query sees, padding included. `merge` makes of the embedded
        tokens [B, T, d] what the layers take.
        `routed` is filled with what the routers of experts chose. `source`: what layers of cross-attention attend to.
        """
        p, T = self.plan, input_ids.shape[1]
        counted = arange(size=T) if cache is None else arange(size=T) + cache.position
        places = counted if position_ids is None else position_ids
        x = self.embed(input_ids)
        if p.scaled_embedding:
            x = x * (float(p.d) ** 0.5 if type(p.d) is int else sqrt(dimension(p.d, x.dtype)))
        if p.embedding_scale != 1.0:
            x = x * p.embedding_scale
        if merge is not None:
            x = merge(x)
        if p.positions == "learned":
            first = position_ids is None and cache is None
            x = x + self.positions(None if first else places, T)
        elif p.positions == "sinusoidal":
            x = x + sinusoidal(places, p.d, x.dtype)
        if p.packed and position_ids is not None and attention_mask is None and visible is None and cache is None:
            visible = unsqueeze(packed(position_ids), 1)
        context = Context(
            mask=key_mask(attention_mask) if visible is None else visible, cache=cache, routed=routed, source=source
        )
        for kind in _rotations(p):
            context.rope[kind] = rotation(p.ropes[kind], p.k, places, x.dtype)
        x = self.run(x, context)
        if cache is not None:
            x = x[:, -1:]
        logits = self.head(x if self.norm is None else self.norm(x))
        if p.logit_scale != 1.0:
            logits = logits * p.logit_scale
        if p.logit_softcap is not None:
            logits = tanh(logits / p.logit_softcap) * p.logit_softcap
        return logits.named("logits")

    def run(self, x: Tensor, context: Context) -> Tensor:
        """All layers, one after another."""
        return self.layers(x, context)

    def specs(self, names: tuple[str, ...]) -> dict[str, Spec]:
        return ids("input_ids", "attention_mask", "position_ids", "labels")

    def outputs(
        self, labels: Tensor | None = None, output_router_logits: bool = False, **inputs: Any
    ) -> dict[str, Tensor]:
        """`logits`, and with `labels` [B, T] the `loss`, from tensors under transformers' names.

        With `output_router_logits` the loss that balances experts, too: `aux_loss`, which `loss` then includes.
        """
        self.assign_names()
        r, routed = self.plan.experts, list[Routed]()
        if r is None or not (r.reported or output_router_logits):
            logits = self(**inputs)
            return {"logits": logits} if labels is None else {"loss": next_token_loss(logits, labels), "logits": logits}
        logits = self(**inputs, routed=routed)
        aux = balance_loss(routed, r, inputs.get("attention_mask"))
        out = {"aux_loss": aux, "logits": logits}
        return out if labels is None else {"loss": next_token_loss(logits, labels) + aux * r.balance, **out}


def _rotations(p: Plan) -> list[str]:
    if p.positions != "rope":
        return []
    kinds = set(p.layer_types or (FULL,))
    return [kind for kind in p.ropes if kind in kinds or (kind == FULL and not kinds <= p.ropes.keys())]


def key_mask(attention_mask: Tensor | None) -> Tensor | None:
    """Which keys all queries see, bool [B, 1, 1, S], from a mask [B, S] that is 0 at padding."""
    if attention_mask is None:
        return None
    B, S = attention_mask.shape
    return reshape(not_equal(attention_mask, 0), (B, 1, 1, S))


def packed(position_ids: Tensor) -> Tensor:
    """Which positions [B, T, T] are of one sequence: a row whose positions jump holds several."""
    before, after = position_ids[:, :-1], position_ids[:, 1:]
    number = pad(cumsum(not_equal(after - before, 1).cast("int32"), axis=1), ((0, 0), (1, 0)))
    return equal(unsqueeze(number, 2), unsqueeze(number, 1))


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of logits [B, T, V] at t against labels [B, T] at t + 1, over labels that are not -100."""
    last = full((labels.shape[0], 1), -100, labels.dtype)
    targets = concat([labels[:, 1:], last], axis=1)
    return cross_entropy(upcast(logits), targets, ignore=-100).named("loss")


# --------------------------------------------------------------------------------------------- from settings


class Sizes:
    """Makes the sizes of a model: symbols bound to the configured values, or just the values."""

    def __init__(self, config: Mapping[str, Any], symbolic: bool, layers: Dim | None, inside: str = "") -> None:
        self.config = Settings(config, inside)
        self.symbolic, self.given_layers, self.inside = symbolic, layers, inside
        self.binding: dict[str, int] = {}
        self.aliases: dict[str, Dim] = {}
        self.fields: dict[str, str] = {}  # the config's field of each size
        self.mark = ""

    def part(self, field: str, config: Mapping[str, Any], mark: str = "", *, layers: bool = False) -> Sizes:
        """Sizes of a model inside: its config is the field `field`, its symbols are called `d` and `mark`.

        `layers`: the number of layers that is asked for is that of this part.
        """
        inner = Sizes(config, self.symbolic, self.given_layers if layers else None, f"{self.inside}{field}.")
        inner.binding, inner.aliases, inner.fields = self.binding, self.aliases, self.fields
        inner.mark = self.mark + mark
        return inner

    def __call__(self, name: str, field: str, *, literal: bool = False) -> Dim:
        """The size called `name`, from a field of the config. Raises ModelError[TG913] unless it is a positive int."""
        value, name = whole(self.config, field), name + self.mark
        self.fields[name] = self.inside + field
        if not self.symbolic or literal:
            return value
        self.binding[name] = value
        return dim(name)

    def layers(self, field: str) -> Dim:
        """The number of layers: that of the config, or the one asked for instead, which may be a symbol."""
        count = whole(self.config, field)
        self.fields["n" + self.mark] = self.inside + field
        given = count if self.given_layers is None else canon(self.given_layers)
        name = symbol_name(given)
        if name is not None:
            self.binding[name] = count
        return given

    def heads(self, d: str, H: str, k: str | None, *, literal: bool = False) -> tuple[Dim, Dim, Dim]:
        """(d, H, k) from the fields' names. Where no field gives k, d = H·k; one head alone is not a symbol.

        Raises ModelError[TG913] if H does not divide d.
        """
        if k is not None and self.config.get(k) is not None:
            return self("d", d), self("H", H), self("k", k, literal=literal)
        width, heads = whole(self.config, d), whole(self.config, H)
        names = {own: own + self.mark for own in ("d", "H", "k")}
        self.fields |= {names["d"]: self.inside + d, names["H"]: self.inside + H}
        if width % heads:
            raise ModelError("TG913", f"{self.inside}{d} = {width} is not divisible by {H} = {heads}")
        if not self.symbolic or literal:
            return width, heads, width // heads
        if heads == 1:
            return self("d", d), 1, dim(names["d"])
        self.binding |= {names["H"]: heads, names["k"]: width // heads}
        H_, k_ = dim(names["H"]), dim(names["k"])
        self.aliases[names["d"]] = mul(H_, k_)
        return self.aliases[names["d"]], H_, k_


def whole(config: Mapping[str, Any], field: str) -> int:
    """A positive int of the config. Raises ModelError[TG913]."""
    value = config.get(field)
    if type(value) is not int or value < 1:
        inside = getattr(config, "inside", "")
        raise ModelError("TG913", f"{inside}{field} must be a positive whole number, not {value!r}")
    return value


def padding_row(config: Mapping[str, Any]) -> int | None:
    """The embedding's row that gets no gradient. Raises ModelError[TG913] for one that is not there."""
    row, V = config["pad_token_id"], whole(config, "vocab_size")
    if row is None:
        return None
    if not -V <= row < V:
        inside = getattr(config, "inside", "")
        raise ModelError(
            "TG913",
            f"{inside}pad_token_id = {row} is no id: vocab_size = {V}",
            hint=f"a vocabulary of {row + 1} or more, or pad_token_id null" if row >= V else None,
        )
    return int(row % V)


Planner = Callable[[Settings, Sizes], Any]
