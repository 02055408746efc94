"""Decoders of Llama's parts, arranged otherwise: OLMo-2, Granite, SmolLM3, Phi, GPT-NeoX."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .architecture import Architecture, builder
from .decoder import FULL, SLIDING, whole
from .llama import BUFFERS, FOUR_NORMS, LLAMA, NAMES, architecture, family

OLMO2: dict[str, Any] = LLAMA | {
    "vocab_size": 50304,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 1,
}
GRANITE = LLAMA | {
    "embedding_multiplier": 1.0,
    "logits_scaling": 1.0,
    "residual_multiplier": 1.0,
    "attention_multiplier": 1.0,
}
SMOLLM3 = LLAMA | {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rope_theta": 2000000.0,
    "pad_token_id": 128004,
    "use_sliding_window": False,
    "sliding_window": None,
    "no_rope_layers": None,
    "no_rope_layer_interval": 4,
    "tie_word_embeddings": True,
}
# Their norms are LayerNorms, and layer_norm_eps is what Llama calls rms_norm_eps.
EPSILON = {"layer_norm_eps": "rms_norm_eps"}
PHI = LLAMA | {
    "vocab_size": 51200,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "hidden_act": "gelu_new",
    "rms_norm_eps": 1e-5,
    "partial_rotary_factor": 0.5,
    "qk_layernorm": False,
}
PHI_NAMES = (
    ("layers.{}.attn.out.", "model.layers.{}.self_attn.dense."),
    ("layers.{}.attn.q_norm.", "model.layers.{}.self_attn.q_layernorm."),
    ("layers.{}.attn.k_norm.", "model.layers.{}.self_attn.k_layernorm."),
    ("layers.{}.mlp.up.", "model.layers.{}.mlp.fc1."),
    ("layers.{}.mlp.down.", "model.layers.{}.mlp.fc2."),
    ("norm.", "model.final_layernorm."),
    *NAMES,
)
NEOX = LLAMA | {
    "vocab_size": 50432,
    "hidden_size": 6144,
    "intermediate_size": 24576,
    "num_hidden_layers": 44,
    "num_attention_heads": 64,
    "hidden_act": "gelu",
    "rms_norm_eps": 1e-5,
    "partial_rotary_factor": 0.25,
    "attention_bias": True,
    "use_parallel_residual": True,
}
NEOX_NAMES = (
    ("embed.", "gpt_neox.embed_in."),
    ("layers.{}.attn_norm.", "gpt_neox.layers.{}.input_layernorm."),
    ("layers.{}.attn.qkv.", "gpt_neox.layers.{}.attention.query_key_value."),
    ("layers.{}.attn.out.", "gpt_neox.layers.{}.attention.dense."),
    ("layers.{}.mlp_norm.", "gpt_neox.layers.{}.post_attention_layernorm."),
    ("layers.{}.mlp.up.", "gpt_neox.layers.{}.mlp.dense_h_to_4h."),
    ("layers.{}.mlp.down.", "gpt_neox.layers.{}.mlp.dense_4h_to_h."),
    ("norm.", "gpt_neox.final_layer_norm."),
    ("head.", "embed_out."),
)
# Masks and frequencies that older files carry.
NEOX_BUFFERS = (
    "gpt_neox.layers.{}.attention.bias",
    "gpt_neox.layers.{}.attention.masked_bias",
    "gpt_neox.layers.{}.attention.rotary_emb.inv_freq",
)


def _biases(c: Mapping[str, Any]) -> dict[str, Any]:
    return {"qkv_bias": c["attention_bias"], "out_bias": c["attention_bias"]}


def _olmo2(c: Mapping[str, Any]) -> dict[str, Any]:
    return {**_biases(c), "pre_norms": False, "post_norms": True, "qk_norm": True, "wide_qk_norm": True}


def _granite(c: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **_biases(c),
        "mlp_bias": c["mlp_bias"],
        "scale": float(c["attention_multiplier"]),
        "embedding_scale": float(c["embedding_multiplier"]),
        "branch_scale": float(c["residual_multiplier"]),
        "logit_scale": 1.0 / float(c["logits_scaling"]),
    }


def _smollm3(c: Mapping[str, Any]) -> dict[str, Any]:
    count, every = whole(c, "num_hidden_layers"), whole(c, "no_rope_layer_interval")
    rotated = c["no_rope_layers"]  # 1 where there is a rotation
    rotated = [(i + 1) % every for i in range(count)] if rotated is None else rotated
    window, types = c["sliding_window"], c.get("layer_types")
    if types is None and c["use_sliding_window"]:
        types = [FULL if turns else SLIDING for turns in rotated]
    return {
        **_biases(c),
        "mlp_bias": c["mlp_bias"],
        "unrotated": tuple(i for i, turns in enumerate(rotated) if not turns),
        "window": window,
        "layer_types": types if window is not None else None,
    }


def _phi(c: Mapping[str, Any]) -> dict[str, Any]:
    flags = dict.fromkeys(("qkv_bias", "out_bias", "mlp_bias", "head_bias", "parallel", "partial_rotary"), True)
    return {**flags, "gated": False, "mlp_norm": False, "norm": "layer", "qk_norm": c["qk_layernorm"]}


def _neox(c: Mapping[str, Any]) -> dict[str, Any]:
    flags = dict.fromkeys(("fused", "by_head", "mlp_bias", "partial_rotary"), True)
    own = {"gated": False, "norm": "layer", "parallel": c["use_parallel_residual"], "padding": None}
    return {**_biases(c), **flags, **own}


ARCHITECTURES = {
    "Olmo2ForCausalLM": architecture("olmo2", OLMO2, _olmo2, FOUR_NORMS),
    "GraniteForCausalLM": architecture("granite", GRANITE, _granite),
    "SmolLM3ForCausalLM": architecture("smollm3", SMOLLM3, _smollm3),
    "PhiForCausalLM": Architecture(
        "phi", PHI, family(_phi), PHI_NAMES, prefix="model.", buffers=BUFFERS, synonyms=EPSILON
    ),
    "GPTNeoXForCausalLM": Architecture(
        "gpt_neox",
        NEOX,
        family(_neox),
        NEOX_NAMES,
        prefix="gpt_neox.",
        buffers=NEOX_BUFFERS,
        synonyms=EPSILON | {"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"},
    ),
}
build = builder(ARCHITECTURES)
