"""Llama-3.2-Vision: images in tiles through a local and a global encoder; some layers of the decoder attend to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tensorgraph.dims import Dim, add, dims, mul
from tensorgraph.errors import ModelError
from tensorgraph.nn import Embedding, LayerNorm, Linear, Module, ModuleList, Parameter, RMSNorm
from tensorgraph.ops.elementwise import logical_not, not_equal, tanh, where
from tensorgraph.ops.leaf import arange, const
from tensorgraph.ops.movement import concat, expand, pad, reshape, stack
from tensorgraph.ops.reduce import any as any_
from tensorgraph.tensor import Tensor

from . import decoder, encoder, llama
from .architecture import Architecture, builder
from .decoder import Block, Decoder, Sizes, next_token_loss, whole
from .encoder import Image, Layers, PatchEmbedding, gated, image_of
from .model import Model, Spec, belongs, under
from .parts import Attention, Cache, Context, FeedForward, Source

# transformers' MllamaVisionConfig and MllamaTextConfig
VISION: dict[str, Any] = {
    "hidden_size": 1280,
    "hidden_act": "gelu",
    "num_hidden_layers": 32,
    "num_global_layers": 8,
    "attention_heads": 16,
    "num_channels": 3,
    "intermediate_size": 5120,
    "vision_output_dim": 7680,
    "image_size": 448,
    "patch_size": 14,
    "norm_eps": 1e-5,
    "max_num_tiles": 4,
    "intermediate_layers_indices": [3, 7, 15, 23, 30],
    "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
}
TEXT: dict[str, Any] = llama.LLAMA | {
    "vocab_size": 128256,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
    "pad_token_id": 128004,
    "rope_theta": 500000.0,
}
DEFAULTS: dict[str, Any] = {"text_config": None, "vision_config": None}
EXTRA = 8  # rows of the embedding beyond those of the head, for the image token
MULTIPLE = 8  # patches of a tile are filled up to a multiple

LAYER = (
    ("attn_norm.", "input_layernorm."),
    ("attn.q.", "self_attn.q_proj."),
    ("attn.k.", "self_attn.k_proj."),
    ("attn.v.", "self_attn.v_proj."),
    ("attn.out.", "self_attn.o_proj."),
    ("attn_gate", "gate_attn"),
    ("mlp_norm.", "post_attention_layernorm."),
    ("mlp.up.", "mlp.fc1."),
    ("mlp.down.", "mlp.fc2."),
    ("mlp_gate", "gate_ffn"),
)
CROSS = (
    ("cross_attn.q_norm.", "cross_attn.q_norm."),
    ("cross_attn.k_norm.", "cross_attn.k_norm."),
    ("cross_attn.q.", "cross_attn.q_proj."),
    ("cross_attn.k.", "cross_attn.k_proj."),
    ("cross_attn.v.", "cross_attn.v_proj."),
    ("cross_attn.out.", "cross_attn.o_proj."),
    ("attn_gate", "cross_attn_attn_gate"),
    ("mlp_gate", "cross_attn_mlp_gate"),
)
VISION_NAMES = (
    ("patches.", "patch_embedding."),
    ("cls", "class_embedding"),
    ("positions.gate", "gated_positional_embedding.gate"),
    ("positions.tiles.", "gated_positional_embedding.tile_embedding."),
    ("positions.table", "gated_positional_embedding.embedding"),
    ("before.gate", "pre_tile_positional_embedding.gate"),
    ("before.tiles.", "pre_tile_positional_embedding.embedding."),
    ("after.gate", "post_tile_positional_embedding.gate"),
    ("after.tiles.", "post_tile_positional_embedding.embedding."),
    ("pre_norm.", "layernorm_pre."),
    ("post_norm.", "layernorm_post."),
    *under("local.{}.", "transformer.layers.{}.", LAYER),
    *under("whole.{}.", "global_transformer.layers.{}.", LAYER),
)
NAMES = (
    *under("vision.", "vision_model.", VISION_NAMES),
    ("connector.", "multi_modal_projector."),
    *under("text.layers.{}.", "language_model.model.layers.{}.", CROSS),
    *under("text.", "language_model.", llama.NAMES),
)
# Versions of transformers differ in where they put the parts.
OTHERS = (
    ("language_model.model.", "model.language_model."),
    ("language_model.lm_head.", "lm_head."),
    ("vision_model.", "model.vision_model."),
    ("multi_modal_projector.", "model.multi_modal_projector."),
)


@dataclass(frozen=True, kw_only=True)
class VisionPlan:
    """The image, `tiles` of which are seen at once, in one of `ratios` arrangements; the local and global layers.

    `kept`: the local layers whose outputs are features, too.
    """

    layers: encoder.Plan
    whole: encoder.Plan
    image: Image
    tiles: int
    ratios: int
    kept: tuple[int, ...]
    out: Dim


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The decoder and the tower; the numbers of the layers that attend to the image."""

    text: decoder.Plan
    vision: VisionPlan
    cross: tuple[int, ...]
    renewed_after: None = None

    @property
    def longest(self) -> int | None:
        return self.text.longest


def vision_plan(config: Mapping[str, Any], size: Sizes) -> VisionPlan:
    """The plan of a MllamaVisionConfig. Raises ModelError[TG913] for layers that are not there."""
    fields = {"heads": "attention_heads", "norm_eps": "norm_eps"}
    layers = encoder.plan_of(config, size, **fields, qkv_bias=False, out_bias=False)
    kept = tuple(config["intermediate_layers_indices"])
    count = whole(config, "num_hidden_layers")
    if not all(type(i) is int and -count <= i < count for i in kept):
        raise ModelError(
            "TG913", f"{size.inside}intermediate_layers_indices {list(kept)} are not all among {count} layers"
        )
    if whole(config, "vision_output_dim") != whole(config, "hidden_size") * (1 + len(kept)):
        text = (
            f"{size.inside}vision_output_dim = {config['vision_output_dim']} is not hidden_size times {1 + len(kept)}"
        )
        raise ModelError("TG913", text, hint="its last layer, and those of intermediate_layers_indices")
    return VisionPlan(
        layers=layers,
        whole=replace(layers, n=whole(config, "num_global_layers"), gated=True),
        image=image_of(config),
        tiles=whole(config, "max_num_tiles"),
        ratios=len(config["supported_aspect_ratios"]),
        kept=kept,
        out=mul(1 + len(kept), layers.d),
    )


def plan(config: Mapping[str, Any], size: Sizes) -> Plan:
    """The plan of a MllamaConfig: sizes of the image's tower are marked, d_v."""
    text = size.part("text_config", {**TEXT, **(config["text_config"] or {})}, layers=True)
    vision = size.part("vision_config", {**VISION, **(config["vision_config"] or {})}, "_v")
    said = llama.family(lambda _: {})(text.config, text)
    if type(said.n) is not int:
        raise ModelError("TG914", "layers with cross-attention among them cannot be one block that is repeated")
    return Plan(
        text=replace(said, tied=False),
        vision=vision_plan(vision.config, vision),
        cross=tuple(text.config["cross_attention_layers"]),
    )


class Tiled(Module):
    """x [B·N, tiles, P, d] plus tanh(gate) times a row per arrangement and tile: the same for all patches of a tile."""

    component = "embedding"

    def __init__(self, p: VisionPlan) -> None:
        super().__init__()
        self.tiles = Embedding(p.ratios + 1, mul(p.tiles, p.layers.d))
        self.gate = Parameter((1,), init="zeros")

    def forward(self, x: Tensor, ratio: Tensor) -> Tensor:
        rows = reshape(self.tiles(ratio), (*x.shape[:2], 1, x.shape[3]))
        return x + rows * tanh(self.gate)


class TiledPositions(Module):
    """x [B·N, tiles, P, d] plus a row per patch, weighted by 1 - tanh(gate), and one per tile, too, by tanh(gate)."""

    component = "embedding"

    def __init__(self, p: VisionPlan) -> None:
        super().__init__()
        P, d = p.image.patches + 1, p.layers.d
        self.gate = Parameter((1,), init="zeros")
        self.table = Parameter((P, d))
        self.tiles = Embedding(p.ratios + 1, mul(p.tiles, mul(P, d)))

    def forward(self, x: Tensor, ratio: Tensor) -> Tensor:
        weight = tanh(self.gate)
        return x + self.table * (1.0 - weight) + reshape(self.tiles(ratio), x.shape) * weight


class MllamaVision(Module):
    """The tower: `pixel_values` [B, N, tiles, c, h, w] -> features [B, N, tiles, P, (1 + kept) · d]."""

    def __init__(self, p: VisionPlan) -> None:
        super().__init__()
        self.plan, d = p, p.layers.d
        self.patches = PatchEmbedding(d, p.image, bias=False)
        self.cls = Parameter((d,))
        self.before, self.positions, self.after = Tiled(p), TiledPositions(p), Tiled(p)
        self.pre_norm, self.post_norm = LayerNorm(d), LayerNorm(d)
        self.local, self.whole = Layers(p.layers), Layers(p.whole)

    def forward(self, pixels: Tensor, ratio: Tensor, tiles: Tensor) -> Tensor:
        p = self.plan
        B, N, R, *image = pixels.shape
        S, d, P = mul(B, N), p.layers.d, p.image.patches
        ratio = reshape(ratio, (S,))
        x = reshape(self.patches(reshape(pixels, (mul(S, R), *image))), (S, R, P, d))
        x = self.before(x, ratio)
        x = concat(expand(reshape(self.cls, (1, 1, 1, d)), (S, R, 1, d)), x, axis=2)
        x = self.pre_norm(self.positions(x, ratio))
        fill = -(P + 1) % MULTIPLE
        x = pad(x, ((0, 0), (0, 0), (0, fill), (0, 0)))
        filled = (S, R, P + 1 + fill, d)
        context = Context(mask=seen(reshape(tiles, (S, R)), P + 1, fill))
        _, *states = self.local(reshape(x, (S, mul(R, filled[2]), d)), context)
        x = self.after(reshape(self.post_norm(states[-1]), filled), ratio)
        x = self.whole(reshape(x, states[-1].shape), context)[-1]
        kept = stack([states[i] for i in p.kept], axis=3)
        features = concat(x, reshape(kept, (*x.shape[:2], mul(len(p.kept), d))), axis=2)
        return reshape(reshape(features, (*filled[:3], p.out))[:, :, : P + 1], (B, N, R, P + 1, p.out))


def seen(tiles: Tensor, P: int, fill: int) -> Tensor:
    """Who sees whom, bool [S, 1, R·(P + fill), R·(P + fill)], of tiles [S, R] that are 0 where there is no image.

    Only what is filled up does not see what is filled up: patches of the image see all.
    """
    S, R = tiles.shape
    real = reshape(not_equal(tiles, 0), (S, R, 1))
    real = expand(real, (S, R, P + fill)) & (arange(size=P + fill) < P) if fill else expand(real, (S, R, P))
    length = mul(R, P + fill)
    return reshape(real, (S, 1, length, 1)) | reshape(real, (S, 1, 1, length))


class CrossLayer(Module):
    """x + tanh(a) · attention of norm(x) on images, then x + tanh(b) · feed-forward(norm(x)); x without images."""

    component = "cross_attention_blocks"

    def __init__(self, p: decoder.Plan) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(p.d, p.norm_eps)
        norms = Attention(p.d, p.H, p.k, p.G, norm=lambda size: RMSNorm(size, p.norm_eps), causal=False)
        self.cross_attn = belongs(norms, self.component)
        self.attn_gate = Parameter((1,), init="zeros")
        self.mlp_norm = RMSNorm(p.d, p.norm_eps)
        self.mlp = FeedForward(p.d, p.f, p.activation, gated=True)
        self.mlp_gate = Parameter((1,), init="zeros")

    def forward(self, x: Tensor, context: Context) -> Tensor:
        s = context.source
        if s is None:
            return x
        x = x + gated(self.cross_attn(self.attn_norm(x), Context(mask=s.mask), s.x), self.attn_gate)
        h = self.mlp(self.mlp_norm(x))
        return x + gated(h if s.seeing is None else where(s.seeing, h, const(0.0, h.dtype)), self.mlp_gate)


class CrossDecoder(Decoder):
    """A decoder some of whose layers attend to `context.source` in place of the text."""

    def __init__(self, p: Plan) -> None:
        super().__init__(p.text)
        t = p.text
        self.embed = Embedding(add(t.V, EXTRA), t.d, padding=t.padding)
        self.layers = ModuleList(t.n, lambda i: CrossLayer(t) if i in p.cross else Block(t, i))


class Mllama(Model):
    """A decoder that looks at images in some of its layers (Grattafiori et al. 2024): `logits` [B, T, V], `loss`.

    `pixel_values` [B, N, tiles, c, h, w], `aspect_ratio_ids` [B, N], `aspect_ratio_mask` [B, N, tiles];
    `cross_attention_mask` [B, T, N, tiles] says which tiles each token sees.
    """

    needs = ("input_ids",)
    usual = ("input_ids", "pixel_values", "aspect_ratio_ids", "aspect_ratio_mask", "cross_attention_mask")
    seen = usual[1:]
    looks = "cross_attention_mask"
    learns = ("labels",)
    plan: Plan

    def __init__(self, p: Plan) -> None:
        super().__init__()
        self.plan = p
        self.vision = belongs(MllamaVision(p.vision), "vision")
        self.connector = Linear(p.vision.out, p.text.d, component="connector")
        self.text = CrossDecoder(p)

    def specs(self, names: tuple[str, ...]) -> dict[str, Spec]:
        (_, *image), dtype = self.plan.vision.image.spec("B", self.dtype)
        B, T, N = dims("B T N")
        tiles = self.plan.vision.tiles
        return {
            **self.text.specs(names),
            "pixel_values": ((B, N, tiles, *image), dtype),
            "aspect_ratio_ids": ((B, N), "int32"),
            "aspect_ratio_mask": ((B, N, tiles), "int32"),
            "cross_attention_mask": ((B, T, N, tiles), "int32"),
        }

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        aspect_ratio_ids: Tensor | None = None,
        aspect_ratio_mask: Tensor | None = None,
        cross_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        cache: Cache | None = None,
        features: Tensor | None = None,
        **text: Any,
    ) -> dict[str, Any]:
        """`features` [B, N, tiles, P, d]: those that an earlier call with a cache returned, for `pixel_values`."""
        source = None
        if pixel_values is not None:
            if aspect_ratio_ids is None or aspect_ratio_mask is None:
                raise ModelError("TG914", "pixel_values come with aspect_ratio_ids and aspect_ratio_mask")
            features = self.connector(self.vision(pixel_values, aspect_ratio_ids, aspect_ratio_mask))
        if features is not None:
            B, N, R, P, d = features.shape
            source = Source(reshape(features, (B, mul(mul(N, R), P), d)), *looks(cross_attention_mask, P))
        logits = self.text(input_ids, source=source, cache=cache, **text)
        out = {} if labels is None else {"loss": next_token_loss(logits, labels)}
        return {**out, "logits": logits, "features": None if cache is None else features}


def looks(mask: Tensor | None, P: Dim) -> tuple[Tensor | None, Tensor | None]:
    """Which features each token sees, of a mask [B, T, N, tiles], and whether it sees any. Who sees none sees all."""
    if mask is None:
        return None, None
    B, T, N, R = mask.shape
    sees = not_equal(mask, 0)
    any_at_all = any_(reshape(sees, (B, T, mul(N, R))), 2, keepdims=True)
    every = reshape(expand(reshape(sees, (B, T, N, R, 1)), (B, T, N, R, P)), (B, 1, T, mul(mul(N, R), P)))
    return every | reshape(logical_not(any_at_all), (B, 1, T, 1)), any_at_all


ARCHITECTURES = {
    "MllamaForConditionalGeneration": Architecture(
        "mllama", DEFAULTS, plan, NAMES, buffers=llama.BUFFERS, model=Mllama, others=OTHERS
    )
}
build = builder(ARCHITECTURES)
