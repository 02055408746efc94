"""Idefics, Flamingo as openly reproduced: gated cross-attention on an image before every n-th layer of a decoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tensorgraph.dims import Dim, dims, mul
from tensorgraph.errors import ModelError
from tensorgraph.nn import Embedding, LayerNorm, Linear, Module, ModuleList, Parameter, RMSNorm
from tensorgraph.ops.elementwise import greater_equal, not_equal, tanh, where
from tensorgraph.ops.leaf import const, dimension
from tensorgraph.ops.movement import concat, expand, reshape, unsqueeze
from tensorgraph.ops.reduce import any as any_
from tensorgraph.ops.reduce import cumsum
from tensorgraph.tensor import Tensor, scope

from . import clip, decoder, llama
from .architecture import Architecture, builder
from .decoder import Decoder, Sizes, next_token_loss, whole
from .model import Model, Spec, belongs, under
from .parts import Attention, Cache, Context, FeedForward, Source
from .settings import Settings

# transformers' IdeficsConfig, IdeficsVisionConfig and IdeficsPerceiverConfig
DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "additional_vocab_size": 0,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "alpha_type": "float",
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "cross_layer_interval": 1,
    "qk_layer_norms": False,
    "freeze_text_layers": True,
    "freeze_text_module_exceptions": [],
    "freeze_lm_head": False,
    "freeze_vision_layers": True,
    "freeze_vision_module_exceptions": [],
    "use_resampler": False,
    "vision_config": None,
    "perceiver_config": None,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
}
VISION: dict[str, Any] = {
    "embed_dim": 768,
    "image_size": 224,
    "intermediate_size": 5120,
    "patch_size": 14,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "num_channels": 3,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
}
PERCEIVER: dict[str, Any] = {
    "resampler_n_latents": 64,
    "resampler_depth": 6,
    "resampler_n_heads": 16,
    "resampler_head_dim": 96,
    "qk_layer_norms_perceiver": False,
}
CROSS = (
    ("cross.{}.attn_norm.", "model.gated_cross_attn_layers.{}.input_layernorm."),
    ("cross.{}.attn.q.", "model.gated_cross_attn_layers.{}.cross_attn.q_proj."),
    ("cross.{}.attn.k.", "model.gated_cross_attn_layers.{}.cross_attn.k_proj."),
    ("cross.{}.attn.v.", "model.gated_cross_attn_layers.{}.cross_attn.v_proj."),
    ("cross.{}.attn.out.", "model.gated_cross_attn_layers.{}.cross_attn.o_proj."),
    ("cross.{}.attn.q_norm.", "model.gated_cross_attn_layers.{}.cross_attn.q_layer_norm."),
    ("cross.{}.attn.k_norm.", "model.gated_cross_attn_layers.{}.cross_attn.k_layer_norm."),
    ("cross.{}.attn_gate", "model.gated_cross_attn_layers.{}.alpha_cross_attn"),
    ("cross.{}.mlp_norm.", "model.gated_cross_attn_layers.{}.post_attention_layernorm."),
    ("cross.{}.mlp.gate.", "model.gated_cross_attn_layers.{}.mlp.gate_proj."),
    ("cross.{}.mlp.up.", "model.gated_cross_attn_layers.{}.mlp.up_proj."),
    ("cross.{}.mlp.down.", "model.gated_cross_attn_layers.{}.mlp.down_proj."),
    ("cross.{}.mlp_gate", "model.gated_cross_attn_layers.{}.alpha_dense"),
)
RESAMPLER = (
    ("latents", "latents"),
    ("blocks.{}.context_norm.", "blocks.{}.0.context_layer_norm."),
    ("blocks.{}.latents_norm.", "blocks.{}.0.latents_layer_norm."),
    ("blocks.{}.attn.q_norm.", "blocks.{}.0.q_layer_norm."),
    ("blocks.{}.attn.k_norm.", "blocks.{}.0.k_layer_norm."),
    ("blocks.{}.attn.q.", "blocks.{}.0.q_proj."),
    ("blocks.{}.attn.k.", "blocks.{}.0.k_proj."),
    ("blocks.{}.attn.v.", "blocks.{}.0.v_proj."),
    ("blocks.{}.attn.out.", "blocks.{}.0.output_proj."),
    ("blocks.{}.mlp_norm.", "blocks.{}.1.ln."),
    ("blocks.{}.mlp.up.", "blocks.{}.1.fc."),
    ("blocks.{}.mlp.down.", "blocks.{}.1.c_proj."),
    ("norm.", "layer_norm."),
)
NAMES = (
    ("text.embed.extra.", "model.embed_tokens.additional_embedding."),
    ("text.head.extra.", "lm_head.additional_fc."),
    *under("text.", "", CROSS),
    *under("text.", "", llama.NAMES),
    *under("vision.", "model.", clip.VISION_NAMES),
    *under("resampler.", "model.perceiver_resampler.", RESAMPLER),
)
# What a config may except from freezing, by transformers' names.
KINDS: dict[str, type[Module]] = {"LayerNorm": LayerNorm, "Linear": Linear, "Embedding": Embedding}


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """L latent vectors, n blocks, H heads of size k."""

    L: int
    n: int
    H: Dim
    k: Dim
    norms: bool


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The decoder and the tower; cross-attention before every `interval`-th layer; `extra` rows of the vocabulary.

    `frozen`: the parts that are not trained, each with the names of what in it is trained nevertheless.
    """

    text: decoder.Plan
    vision: clip.VisionPlan
    interval: int
    extra: int
    norms: bool
    vector: bool  # gates are vectors
    resampling: Resampling | None
    frozen: Mapping[str, tuple[str, ...]]
    renewed_after: None = None

    @property
    def longest(self) -> int | None:
        return self.text.longest


def plan(config: Settings, size: Sizes) -> Plan:
    """The plan of an IdeficsConfig. Raises ModelError[TG912] for what a config may not freeze or gate with."""
    seen = size.part("vision_config", {**VISION, **(config["vision_config"] or {})}, "_v")
    if config["alpha_type"] not in ("float", "vector"):
        raise ModelError("TG913", f"alpha_type must be float or vector, not {config['alpha_type']!r}")
    frozen = {
        part: tuple(config[f"freeze_{part}_module_exceptions"])
        for part in ("text", "vision")
        if config[f"freeze_{part}_layers"]
    }
    for name in (n for names in frozen.values() for n in names if n not in KINDS):
        raise ModelError("TG912", f"{name!r} cannot be excepted from freezing", hint=f"known are {', '.join(KINDS)}")
    if config["freeze_lm_head"]:
        frozen["head"] = ()
    text = llama.family(lambda _: {})(config.changed(**{**llama.LLAMA, **config, "pad_token_id": None}), size)
    if type(text.n) is not int:
        raise ModelError("TG914", "layers with cross-attention between them cannot be one block that is repeated")
    interval = whole(config, "cross_layer_interval")
    if size.given_layers is None and text.n % interval:
        raise ModelError("TG913", f"num_hidden_layers = {text.n} is not divisible by cross_layer_interval = {interval}")
    resampling = None
    if config["use_resampler"]:
        inner = size.part("perceiver_config", {**PERCEIVER, **(config["perceiver_config"] or {})}, "_r")
        own = inner.config
        resampling = Resampling(
            L=whole(own, "resampler_n_latents"),
            n=whole(own, "resampler_depth"),
            H=inner("H", "resampler_n_heads"),
            k=inner("k", "resampler_head_dim"),
            norms=bool(own["qk_layer_norms_perceiver"]),
        )
    return Plan(
        text=text,
        vision=clip.vision_plan(seen.config, seen, "embed_dim"),
        interval=interval,
        extra=config["additional_vocab_size"],
        norms=bool(config["qk_layer_norms"]),
        vector=config["alpha_type"] == "vector",
        resampling=resampling,
        frozen=frozen,
    )


class TwoTables(Embedding):
    """Rows by id of a table [V, d], and beyond it of a second one [e, d], which can be trained alone."""

    def __init__(self, V: Dim, e: int, d: Dim) -> None:
        super().__init__(V, d)
        self.count, self.extra = V, Embedding(e, d) if e else None

    def forward(self, ids: Tensor) -> Tensor:
        if self.extra is None:
            return super().forward(ids)
        size, zero = dimension(self.count, ids.dtype), const(0, ids.dtype)
        beyond = greater_equal(ids, size)
        more = self.extra(where(beyond, ids - size, zero))
        return where(unsqueeze(beyond, ids.ndim), more, super().forward(where(beyond, zero, ids)))


class TwoHeads(Linear):
    """x @ weightᵀ [.., V], and beside it those of the extra rows [.., e]."""

    component = "head"

    def __init__(self, d: Dim, V: Dim, e: int) -> None:
        super().__init__(d, V, bias=False)
        self.extra = Linear(d, e, bias=False) if e else None

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.extra is None else concat(y, self.extra(x), axis=-1)


class CrossBlock(Module):
    """x + tanh(a) · attention of norm(x) on images, then x + tanh(b) · feed-forward(norm(x)) (Alayrac et al. 2022)."""

    def __init__(self, p: Plan) -> None:
        super().__init__()
        t, eps = p.text, p.text.norm_eps
        gate = (1, 1, t.d) if p.vector else (1,)
        self.attn_norm = RMSNorm(t.d, eps)
        norm = (lambda size: RMSNorm(size, eps)) if p.norms else None
        self.attn = Attention(t.d, t.H, t.k, norm=norm, causal=False, source_size=p.vision.layers.d)
        self.attn_gate = Parameter(gate, init="zeros")
        self.mlp_norm = RMSNorm(t.d, eps)
        self.mlp = FeedForward(t.d, t.f, t.activation, gated=True)
        self.mlp_gate = Parameter(gate, init="zeros")

    def forward(self, x: Tensor, source: Source) -> Tensor:
        a = self.attn(self.attn_norm(x), Context(mask=source.mask), source.x)
        if source.seeing is not None:  # tokens that see no image take nothing from it
            a = where(source.seeing, a, const(0.0, a.dtype))
        x = x + a * tanh(self.attn_gate)
        return x + self.mlp(self.mlp_norm(x)) * tanh(self.mlp_gate)


class CrossDecoder(Decoder):
    """A decoder with cross-attention on `context.source` before every n-th layer."""

    def __init__(self, p: Plan) -> None:
        super().__init__(p.text)
        t = p.text
        self.interval = p.interval
        self.embed = TwoTables(t.V, p.extra, t.d)
        self.head = TwoHeads(t.d, t.V, p.extra)
        if t.tied:
            self.head.weight = self.embed.weight
            if self.head.extra is not None and self.embed.extra is not None:
                self.head.extra.weight = self.embed.extra.weight
        assert type(t.n) is int
        self.cross = ModuleList(belongs(CrossBlock(p), "cross_attention_blocks") for _ in range(t.n // p.interval))

    def run(self, x: Tensor, context: Context) -> Tensor:
        cross = list(self.cross)
        if len(cross) * self.interval != len(self.layers):
            text = f"{len(self.layers)} layers are not divisible by cross_layer_interval = {self.interval}"
            raise ModelError("TG914", text, hint="they are counted, but do not run")
        for i, layer in enumerate(self.layers):
            if i % self.interval == 0:
                with scope("cross", "ModuleList"):
                    x = cross[i // self.interval](x, context.source)
            with scope("layers", "ModuleList"):
                x = layer(x, context)
        return x


class ResamplerBlock(Module):
    """Latents attend to the features and to themselves; then a feed-forward."""

    def __init__(self, d: Dim, p: Resampling) -> None:
        super().__init__()
        self.context_norm, self.latents_norm, self.mlp_norm = LayerNorm(d), LayerNorm(d), LayerNorm(d)
        self.attn = Attention(d, p.H, p.k, norm=LayerNorm if p.norms else None, causal=False)
        self.mlp = FeedForward(d, mul(4, d), "relu")

    def forward(self, latents: Tensor, features: Tensor) -> Tensor:
        x = self.latents_norm(latents)
        latents = self.attn(x, Context(), concat(self.context_norm(features), x, axis=1)) + latents
        return self.mlp(self.mlp_norm(latents)) + latents


class Resampler(Module):
    """Any number of features [N, S, d] -> a fixed number [N, L, d] (Jaegle et al. 2021)."""

    def __init__(self, d: Dim, p: Resampling) -> None:
        super().__init__()
        self.latents = Parameter((p.L, d))
        self.blocks = ModuleList(p.n, lambda i: ResamplerBlock(d, p))
        self.norm = LayerNorm(d)

    def forward(self, features: Tensor) -> Tensor:
        L, d = self.latents.shape
        x = expand(reshape(self.latents, (1, L, d)), (features.shape[0], L, d))
        return self.norm(self.blocks(x, features))


class Idefics(Model):
    """A decoder that looks at images between its layers (Laurençon et al. 2023): `logits` [B, T, V + e], `loss`.

    `pixel_values` [B, N, c, h, w]; `image_attention_mask` [B, T, N] says which images each token sees.
    """

    needs = ("input_ids", "pixel_values", "image_attention_mask")
    seen = ("pixel_values", "image_attention_mask")
    looks = "image_attention_mask"
    learns = ("labels",)
    plan: Plan

    def __init__(self, p: Plan) -> None:
        super().__init__()
        self.plan = p
        self.vision = belongs(clip.ClipVision(p.vision), "vision")
        self.resampler = (
            belongs(Resampler(p.vision.layers.d, p.resampling), "connector") if p.resampling is not None else None
        )
        self.text = CrossDecoder(p)
        for part, kept in p.frozen.items():
            if part == "text":
                freeze(self.text.layers, kept)
                freeze(self.text.norm, kept)
                self.text.embed.weight.trained = False
            elif part == "vision":
                freeze(self.vision, kept)
            elif not p.text.tied:  # else it is the embedding's
                self.text.head.weight.trained = False

    def specs(self, names: tuple[str, ...]) -> dict[str, Spec]:
        (_, *image), dtype = self.plan.vision.image.spec("B", self.dtype)
        return {
            **self.text.specs(names),
            "pixel_values": ((*dims("B N"), *image), dtype),
            "image_attention_mask": (dims("B T N"), "int32"),
        }

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        *,
        image_attention_mask: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        cache: Cache | None = None,
        features: Tensor | None = None,
    ) -> dict[str, Any]:
        """`features` [B, N, S, d]: the `image_hidden_states` of an earlier call, in place of `pixel_values`."""
        images = features if pixel_values is None else self._seen(pixel_values)
        assert images is not None
        (B, N, S, d), T = images.shape, input_ids.shape[1]
        sees = not_equal(image_attention_mask, 0)
        mask = reshape(expand(unsqueeze(sees, 3), (B, T, N, S)), (B, 1, T, mul(N, S)))
        source = Source(reshape(images, (B, mul(N, S), d)), mask, any_(sees, 2, keepdims=True))
        if position_ids is None and attention_mask is not None:
            places = cumsum(attention_mask, axis=1) - 1
            position_ids = where(not_equal(attention_mask, 0), places, const(1, places.dtype))
        logits = self.text(input_ids, attention_mask, position_ids, cache, source=source)
        out = {} if labels is None else {"loss": next_token_loss(logits, labels)}
        return {**out, "logits": logits, "image_hidden_states": images, "features": None if cache is None else images}

    def _seen(self, pixels: Tensor) -> Tensor:
        (B, N), image = pixels.shape[:2], pixels.shape[2:]
        x = self.vision(reshape(pixels, (mul(B, N), *image)))["last_hidden_state"]
        x = x if self.resampler is None else self.resampler(x)
        return reshape(x, (B, N, *x.shape[1:])).named("image_hidden_states")


def freeze(module: Any, kept: tuple[str, ...]) -> None:
    """No parameter in `module` is trained but those of the kinds of module that are named."""
    kinds = tuple(KINDS[name] for name in kept)
    for _, m in module.modules():
        for p in vars(m).values():
            if isinstance(p, Parameter):
                p.trained = isinstance(m, kinds)


ARCHITECTURES = {
    "IdeficsForVisionText2Text": Architecture(
        "idefics",
        DEFAULTS,
        plan,
        NAMES,
        buffers=(*llama.BUFFERS, "model.vision_model.embeddings.position_ids"),
        model=Idefics,
    )
}
build = builder(ARCHITECTURES)
