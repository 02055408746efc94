"""GPT-2 and GPT-3's shape: learned positions, LayerNorm, plain GELU feed-forward, fused q|k|v stored [in, out]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tensorgraph.dims import mul
from tensorgraph.errors import ModelError

from .architecture import Architecture, builder
from .decoder import Plan, Sizes, whole

# transformers' GPT2Config
DEFAULTS: dict[str, Any] = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
# The names that transformers gives the same fields in other models.
SYNONYMS = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
NAMES = (
    ("embed.", "transformer.wte."),
    ("positions.", "transformer.wpe."),
    ("layers.{}.attn_norm.", "transformer.h.{}.ln_1."),
    ("layers.{}.attn.qkv.", "transformer.h.{}.attn.c_attn."),
    ("layers.{}.attn.out.", "transformer.h.{}.attn.c_proj."),
    ("layers.{}.mlp_norm.", "transformer.h.{}.ln_2."),
    ("layers.{}.mlp.up.", "transformer.h.{}.mlp.c_fc."),
    ("layers.{}.mlp.down.", "transformer.h.{}.mlp.c_proj."),
    ("norm.", "transformer.ln_f."),
    ("head.", "lm_head."),
)
# Causal masks that older files carry.
BUFFERS = ("transformer.h.{}.attn.bias", "transformer.h.{}.attn.masked_bias")


def plan(config: Mapping[str, Any], size: Sizes) -> Plan:
    """The plan of a GPT-2 config. Raises ModelError[TG912] for cross-attention."""
    if config["add_cross_attention"]:
        raise ModelError("TG912", "add_cross_attention: GPT-2 with an encoder is not supported")
    # A scale that differs by layer is a number of each layer, so the head size must be one.
    by_layer = bool(config["scale_attn_by_inverse_layer_idx"])
    d, H, k = size.heads("n_embd", "n_head", None, literal=by_layer)
    count = size.layers("n_layer")
    if by_layer and type(count) is not int:
        text = "layers whose scale differs cannot be one block that is repeated"
        raise ModelError("TG914", text, hint="build with a number of layers")
    scale = None if config["scale_attn_weights"] else 1.0
    if by_layer and scale is None:
        scale = float(k) ** -0.5
    return Plan(
        V=size("V", "vocab_size"),
        d=d,
        f=mul(4, d) if config["n_inner"] is None else size("f", "n_inner"),
        H=H,
        G=H,
        k=k,
        n=count,
        P=size("P", "n_positions"),
        positions="learned",
        longest=whole(config, "n_positions"),
        norm="layer",
        norm_eps=float(config["layer_norm_epsilon"]),
        activation=config["activation_function"],
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        fused=True,
        transposed=True,
        scale=scale,
        scale_by_layer=by_layer,
        tied=bool(config["tie_word_embeddings"]),
        packed=config.get("use_cache") is False,
    )


ARCHITECTURES = {
    "GPT2LMHeadModel": Architecture(
        "gpt2", DEFAULTS, plan, NAMES, prefix="transformer.", buffers=BUFFERS, synonyms=SYNONYMS
    )
}
build = builder(ARCHITECTURES)
