"""SigLIP's encoder of images: no class token; a learned query attends to all patches to make one vector of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tensorgraph.nn import LayerNorm, Module, Parameter
from tensorgraph.ops.movement import expand
from tensorgraph.tensor import Tensor

from . import encoder
from .architecture import Architecture, builder
from .clip import LAYERS
from .decoder import Sizes
from .encoder import Image, ImageEmbedding, image_of
from .model import Model, Spec, under
from .parts import Attention, Context, FeedForward

# transformers' SiglipVisionConfig
DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "vision_use_head": True,
}
NAMES = under(
    "",
    "vision_model.",
    (
        ("embed.patches.", "embeddings.patch_embedding."),
        ("embed.positions", "embeddings.position_embedding.weight"),
        ("norm.", "post_layernorm."),
        ("head.attn.qkv.weight", "head.attention.in_proj_weight"),
        ("head.attn.qkv.bias", "head.attention.in_proj_bias"),
        ("head.attn.out.", "head.attention.out_proj."),
        ("head.norm.", "head.layernorm."),
        ("head.probe", "head.probe"),
        ("head.mlp.up.", "head.mlp.fc1."),
        ("head.mlp.down.", "head.mlp.fc2."),
        *LAYERS,
    ),
)
BUFFERS = ("vision_model.embeddings.position_ids",)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The image and the layers; whether there is a head."""

    layers: encoder.Plan
    image: Image
    head: bool


def plan(config: Mapping[str, Any], size: Sizes) -> Plan:
    """The plan of a SiglipVisionConfig."""
    return Plan(layers=encoder.plan_of(config, size), image=image_of(config), head=bool(config["vision_use_head"]))


class PoolingHead(Module):
    """One vector [B, d] of hidden states [B, P, d]: a learned query attends to them; then x + feed-forward(norm(x))."""

    component = "pooler"

    def __init__(self, p: encoder.Plan) -> None:
        super().__init__()
        self.probe = Parameter((1, 1, p.d))
        self.attn = Attention(p.d, p.H, p.k, bias=True, out_bias=True, fused=True, causal=False)
        self.norm = LayerNorm(p.d, p.norm_eps)
        self.mlp = FeedForward(p.d, p.f, p.activation, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        B, _, d = x.shape
        y = self.attn(expand(self.probe, (B, 1, d)), Context(), x)
        return (y + self.mlp(self.norm(y)))[:, 0]


class SiglipVision(Model):
    """The image's tower of SigLIP (Zhai et al. 2023): `last_hidden_state` [B, P, d], `pooler_output` [B, d]."""

    needs = ("pixel_values",)

    def __init__(self, p: Plan) -> None:
        super().__init__()
        self.plan = p
        self.embed = ImageEmbedding(p.layers.d, p.image, bias=True, classed=False)
        self.layers = encoder.Layers(p.layers)
        self.norm = LayerNorm(p.layers.d, p.layers.norm_eps)
        self.head = PoolingHead(p.layers) if p.head else None

    def specs(self, names: tuple[str, ...]) -> dict[str, Spec]:
        return {"pixel_values": self.plan.image.spec("B", self.dtype)}

    def forward(self, pixel_values: Tensor) -> dict[str, Any]:
        states = self.layers(self.embed(pixel_values), Context())
        out = {"last_hidden_state": self.norm(states[-1]).named("last_hidden_state"), "hidden_states": states}
        if self.head is not None:
            out["pooler_output"] = self.head(out["last_hidden_state"]).named("pooler_output")
        return out


ARCHITECTURES = {
    "SiglipVisionModel": Architecture(
        "siglip_vision_model", DEFAULTS, plan, NAMES, prefix="vision_model.", buffers=BUFFERS, model=SiglipVision
    )
}
build = builder(ARCHITECTURES)
