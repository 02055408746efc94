"""DeepSeek-V2 and V3: latent attention, and experts, some of them shared, after the first layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tensorgraph.dims import mul
from tensorgraph.errors import ModelError

from .architecture import builder
from .decoder import FULL, Sizes, whole
from .latent import Latent
from .llama import BUFFERS, LLAMA, NAMES, architecture, chosen, rope_parameters
from .moe import Routing

DEEPSEEK_NAMES = (
    ("layers.{}.attn.q_a.", "model.layers.{}.self_attn.q_a_proj."),
    ("layers.{}.attn.q_norm.", "model.layers.{}.self_attn.q_a_layernorm."),
    ("layers.{}.attn.q_b.", "model.layers.{}.self_attn.q_b_proj."),
    ("layers.{}.attn.kv_a.", "model.layers.{}.self_attn.kv_a_proj_with_mqa."),
    ("layers.{}.attn.kv_norm.", "model.layers.{}.self_attn.kv_a_layernorm."),
    ("layers.{}.attn.kv_b.", "model.layers.{}.self_attn.kv_b_proj."),
    ("layers.{}.mlp.router.bias", "model.layers.{}.mlp.gate.e_score_correction_bias"),
    ("layers.{}.mlp.router.", "model.layers.{}.mlp.gate."),
    ("layers.{}.mlp.experts.gate", "model.layers.{}.mlp.experts.{}.gate_proj.weight"),
    ("layers.{}.mlp.experts.up", "model.layers.{}.mlp.experts.{}.up_proj.weight"),
    ("layers.{}.mlp.experts.down", "model.layers.{}.mlp.experts.{}.down_proj.weight"),
    ("layers.{}.mlp.shared.gate.", "model.layers.{}.mlp.shared_experts.gate_proj."),
    ("layers.{}.mlp.shared.up.", "model.layers.{}.mlp.shared_experts.up_proj."),
    ("layers.{}.mlp.shared.down.", "model.layers.{}.mlp.shared_experts.down_proj."),
    *NAMES,
)
V2: dict[str, Any] = LLAMA | {
    "vocab_size": 102400,
    "kv_lora_rank": 512,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "rope_interleave": True,
    "first_k_dense_replace": 0,
    "moe_intermediate_size": 1407,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": None,
    "n_group": None,
    "topk_group": None,
    "topk_method": "greedy",
    "routed_scaling_factor": 1.0,
}
V3 = V2 | {
    "vocab_size": 129280,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "max_position_embeddings": 4096,
    "first_k_dense_replace": 3,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
}


def _v2(c: Mapping[str, Any], size: Sizes) -> dict[str, Any]:
    methods = {"greedy": False, "group_limited_greedy": True}
    if c["topk_method"] not in methods:
        hint = f"known are {', '.join(methods)}"
        raise ModelError("TG912", f"unknown topk_method {c['topk_method']!r}", hint=hint)
    limited = methods[c["topk_method"]]
    # transformers reads norm_topk_prob and does not use it.
    return _parts(c, size, limited, scores="softmax", normalised=False, zeroed=True)


def _v3(c: Mapping[str, Any], size: Sizes) -> dict[str, Any]:
    return _parts(c, size, True, scores="sigmoid", normalised=bool(c["norm_topk_prob"]), judges=2, biased=True)


def _parts(c: Mapping[str, Any], size: Sizes, limited: bool, **routing: Any) -> dict[str, Any]:
    rope = rope_parameters(c)[FULL]
    several = rope.get("mscale_all_dim") if rope["rope_type"] != "default" else None
    factor = rope.get("factor", 1.0)
    stretched = 0.1 * several * math.log(factor) + 1.0 if several and factor > 1 else 1.0
    latent = Latent(
        q_rank=size("c_q", "q_lora_rank") if c["q_lora_rank"] is not None else None,
        kv_rank=size("c_kv", "kv_lora_rank"),
        plain=size("k_nope", "qk_nope_head_dim"),
        rotated=size("k", "qk_rope_head_dim"),
        v=size("k_v", "v_head_dim"),
        interleaved=bool(c["rope_interleave"]),
        bias=bool(c["attention_bias"]),
        scale=stretched**2,
    )
    groups = whole(c, "n_group") if limited else 1
    kept = whole(c, "topk_group") if groups > 1 else 1
    if groups > 1:
        check_groups(whole(c, "n_routed_experts"), groups, kept, routing.get("judges", 1))
    f = size("f_e", "moe_intermediate_size")
    experts = Routing(
        E=size("E", "n_routed_experts", literal=groups > 1),
        top_k=chosen(c, "n_routed_experts"),
        f=f,
        shared=mul(whole(c, "n_shared_experts"), f) if c["n_shared_experts"] else None,
        scale=float(c["routed_scaling_factor"]),
        groups=groups,
        kept=kept,
        dense=c["first_k_dense_replace"] or 0,
        **routing,
    )
    return {"latent": latent, "experts": experts}


def check_groups(experts: int, groups: int, kept: int, judges: int) -> None:
    """Raise ModelError[TG913] for groups that the experts do not divide into, or that are too few or too small."""
    if experts % groups:
        raise ModelError("TG913", f"n_routed_experts = {experts} is not divisible by n_group = {groups}")
    if kept > groups:
        raise ModelError("TG913", f"topk_group = {kept}, and n_group = {groups}")
    if experts // groups < judges:
        text = f"n_group = {groups} leaves {experts // groups} of n_routed_experts = {experts} to a group"
        raise ModelError("TG913", text, hint=f"a group is judged by its {judges} best")


def _flags(c: Mapping[str, Any]) -> dict[str, Any]:
    return {"mlp_bias": bool(c["mlp_bias"])}


HEADS = {"head_size": "qk_rope_head_dim"}
SECOND_TOKEN = "model.layers.61."  # published files add a layer that predicts the token after next; the class has none
ARCHITECTURES = {
    "DeepseekV2ForCausalLM": architecture("deepseek_v2", V2, _flags, DEEPSEEK_NAMES, parts=_v2, **HEADS),
    "DeepseekV3ForCausalLM": architecture(
        "deepseek_v3", V3, _flags, DEEPSEEK_NAMES, (*BUFFERS, SECOND_TOKEN), parts=_v3, **HEADS
    ),
}
build = builder(ARCHITECTURES)
