"""Configurations of families that differ from Llama by flags, and of experts, as data: no torch, no transformers."""

from __future__ import annotations

from typing import Any

from .configs import LLAMA, Config

PLAIN = ("plain", "left", "left-positions")
# Sizes that no two axes share; a window shorter than the batch is long.
GEMMA: dict[str, Any] = LLAMA | {"head_dim": 10, "hidden_size": 18, "pad_token_id": None}
FULL, SLIDING = "full_attention", "sliding_attention"
FOUR_LAYERS = {"num_hidden_layers": 4, "sliding_window": 3}


def family(
    cls: str, seed: int, base: dict[str, Any] = LLAMA, batches: tuple[str, ...] = PLAIN, **changes: Any
) -> Config:
    return Config(cls, base | changes, batches, seed)


def longrope(length: int, k: int, **extra: Any) -> dict[str, Any]:
    factors = {
        "short_factor": [1.0 + 0.1 * i for i in range(k // 2)],
        "long_factor": [2.0 + 0.3 * i for i in range(k // 2)],
    }
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, **factors, **extra}
    return {"rope_parameters": rope, "original_max_position_embeddings": length, "max_position_embeddings": 64}


LINEAR = {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.5}}
NEOX = {name: value for name, value in LLAMA.items() if name != "num_key_value_heads"}
PHI3 = LLAMA | {"pad_token_id": None}
FAMILIES: dict[str, Config] = {
    "mistral": family("MistralForCausalLM", 60, sliding_window=4),
    "mistral-head-dim": family(
        "MistralForCausalLM", 61, head_dim=10, hidden_size=18, sliding_window=2, hidden_act="gelu"
    ),
    "mistral-full": family("MistralForCausalLM", 62, sliding_window=None, tie_word_embeddings=True),
    "qwen2": family("Qwen2ForCausalLM", 63, num_key_value_heads=3),
    "qwen2-tied": family("Qwen2ForCausalLM", 64, tie_word_embeddings=True, rms_norm_eps=0.1),
    "qwen2-window": family("Qwen2ForCausalLM", 65, use_sliding_window=True, max_window_layers=1, **FOUR_LAYERS),
    "qwen3": family("Qwen3ForCausalLM", 66, head_dim=10),
    "qwen3-bias": family("Qwen3ForCausalLM", 67, attention_bias=True, tie_word_embeddings=True, head_dim=6),
    "qwen3-window": family(
        "Qwen3ForCausalLM", 68, use_sliding_window=True, max_window_layers=2, head_dim=8, **FOUR_LAYERS
    ),
    "gemma": family("GemmaForCausalLM", 69, GEMMA),
    "gemma-multi-query": family("GemmaForCausalLM", 70, GEMMA, num_key_value_heads=1, pad_token_id=3),
    "gemma-bias": family(
        "GemmaForCausalLM", 71, GEMMA, attention_bias=True, tie_word_embeddings=False, hidden_act="gelu"
    ),
    "gemma2": family("Gemma2ForCausalLM", 72, GEMMA, **FOUR_LAYERS),
    "gemma2-caps": family("Gemma2ForCausalLM", 73, GEMMA, attn_logit_softcapping=1.5, final_logit_softcapping=2.5),
    "gemma2-types": family(
        "Gemma2ForCausalLM",
        74,
        GEMMA,
        **FOUR_LAYERS,
        layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        query_pre_attn_scalar=7,
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
    ),
    "gemma3": family("Gemma3ForCausalLM", 75, GEMMA, num_hidden_layers=7, sliding_window=3),
    "gemma3-scaled": family(
        "Gemma3ForCausalLM",
        76,
        GEMMA,
        **FOUR_LAYERS,
        layer_types=["sliding_attention", "full_attention"] * 2,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
        final_logit_softcapping=3.0,
    ),
    # The reference looks for `truncate` beside the layer types alone, and within them does not see it.
    "gemma3-yarn": family(
        "Gemma3ForCausalLM",
        83,
        GEMMA,
        ("plain",),
        **FOUR_LAYERS,
        layer_types=["sliding_attention", "full_attention"] * 2,
        rope_parameters={
            kind: {"rope_type": "yarn", "factor": 4.0, "rope_theta": 500.0, "truncate": False}
            for kind in (FULL, SLIDING)
        },
    ),
    "gemma3-bias": family("Gemma3ForCausalLM", 77, GEMMA, attention_bias=True, query_pre_attn_scalar=5),
    "phi3": family("Phi3ForCausalLM", 78, PHI3),
    "phi3-window": family("Phi3ForCausalLM", 79, PHI3, sliding_window=3, num_key_value_heads=6, pad_token_id=5),
    "phi3-longrope-short": family("Phi3ForCausalLM", 80, PHI3, **longrope(32, 8)),
    "phi3-longrope-long": family("Phi3ForCausalLM", 81, PHI3, **longrope(5, 8)),
    # Of heads of 6, 4.5 axes would turn: the reference cuts that to 4.
    "phi3-cut": family(
        "Phi3ForCausalLM",
        84,
        PHI3 | {"hidden_size": 36},
        ("plain",),
        rope_parameters={"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.75},
    ),
    "phi3-partial": family(
        "Phi3ForCausalLM", 82, PHI3, **longrope(5, 6, partial_rotary_factor=0.75, attention_factor=1.2)
    ),
}

FAMILIES |= {
    "olmo2": family("Olmo2ForCausalLM", 110),
    "olmo2-multi-query": family("Olmo2ForCausalLM", 111, num_key_value_heads=1, attention_bias=True, pad_token_id=3),
    "olmo2-tied": family(
        "Olmo2ForCausalLM", 112, tie_word_embeddings=True, num_key_value_heads=6, rms_norm_eps=0.1, **LINEAR
    ),
    "granite": family(
        "GraniteForCausalLM",
        113,
        embedding_multiplier=3.0,
        residual_multiplier=0.4,
        attention_multiplier=0.2,
        logits_scaling=2.5,
    ),
    "granite-bias": family("GraniteForCausalLM", 114, attention_bias=True, mlp_bias=True, residual_multiplier=0.7),
    "granite-tied": family(
        "GraniteForCausalLM", 115, tie_word_embeddings=True, logits_scaling=0.6, pad_token_id=3, **LINEAR
    ),
    "smollm3": family("SmolLM3ForCausalLM", 116, PHI3, num_hidden_layers=4, no_rope_layer_interval=2),
    "smollm3-window": family(
        "SmolLM3ForCausalLM", 117, PHI3, **FOUR_LAYERS, use_sliding_window=True, no_rope_layers=[1, 0, 0, 1]
    ),
    # No layer turns anything: positions are no input of the graph that generates.
    "smollm3-unrotated": family("SmolLM3ForCausalLM", 119, PHI3, ("plain",), no_rope_layers=[0, 0]),
    "smollm3-untied": family(
        "SmolLM3ForCausalLM", 118, PHI3, tie_word_embeddings=False, attention_bias=True, mlp_bias=True, pad_token_id=3
    ),
    "phi": family("PhiForCausalLM", 120),
    "phi-norms": family("PhiForCausalLM", 121, qk_layernorm=True, num_key_value_heads=6, layer_norm_eps=0.1),
    "phi-scaled": family(
        "PhiForCausalLM", 122, tie_word_embeddings=True, pad_token_id=3, partial_rotary_factor=0.75, **LINEAR
    ),
    "neox": family("GPTNeoXForCausalLM", 123, NEOX),
    "neox-in-turn": family("GPTNeoXForCausalLM", 124, NEOX, use_parallel_residual=False, rotary_pct=0.5),
    "neox-no-bias": family(
        "GPTNeoXForCausalLM",
        125,
        NEOX,
        attention_bias=False,
        tie_word_embeddings=True,
        hidden_act="relu",
        rotary_pct=1.0,
    ),
}

# Mixtures of experts, and latent attention.
MIXTRAL = LLAMA | {"num_local_experts": 5, "num_experts_per_tok": 2}

EXPERTS: dict[str, Config] = {
    "mixtral": family("MixtralForCausalLM", 90, MIXTRAL),
    "mixtral-window": family(
        "MixtralForCausalLM", 91, MIXTRAL, sliding_window=3, num_experts_per_tok=3, head_dim=10, pad_token_id=4
    ),
    "mixtral-one": family(
        "MixtralForCausalLM", 92, MIXTRAL, num_experts_per_tok=1, tie_word_embeddings=True, num_hidden_layers=3
    ),
    "mixtral-all": family("MixtralForCausalLM", 93, MIXTRAL, num_experts_per_tok=5, hidden_act="gelu"),
    "mixtral-balanced": family(
        "MixtralForCausalLM", 94, MIXTRAL, output_router_logits=True, router_aux_loss_coef=0.7, num_experts_per_tok=3
    ),
}
V2 = LLAMA | {
    "num_key_value_heads": 6,
    "moe_intermediate_size": 11,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 12,  # view_as_complex wants even strides
    "q_lora_rank": 14,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 8,
    "v_head_dim": 7,
    "n_routed_experts": 12,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
}
GROUPS = {"n_group": 4, "topk_group": 2}
V3 = V2 | GROUPS
YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
EXPERTS |= {
    "v2": family("DeepseekV2ForCausalLM", 100, V2),
    "v2-plain-q": family("DeepseekV2ForCausalLM", 101, V2, q_lora_rank=None, first_k_dense_replace=0, mlp_bias=True),
    "v2-groups": family(
        "DeepseekV2ForCausalLM",
        102,
        V2,
        topk_method="group_limited_greedy",
        **GROUPS,
        routed_scaling_factor=3.0,
        num_hidden_layers=3,
        attention_bias=True,
    ),
    "v2-yarn": family(
        "DeepseekV2ForCausalLM",
        103,
        V2,
        rope_parameters=YARN | {"mscale": 0.7, "mscale_all_dim": 0.9},
        max_position_embeddings=128,
        n_shared_experts=1,
        tie_word_embeddings=True,
    ),
    "v3": family("DeepseekV3ForCausalLM", 104, V3),
    "v3-not-normalised": family(
        "DeepseekV3ForCausalLM", 105, V3, norm_topk_prob=False, attention_bias=True, first_k_dense_replace=0
    ),
    "v3-yarn": family(
        "DeepseekV3ForCausalLM",
        106,
        V3,
        rope_parameters=YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
        max_position_embeddings=128,
        routed_scaling_factor=1.7,
        num_hidden_layers=3,
    ),
    "v3-halves": family(
        "DeepseekV3ForCausalLM", 107, V3, rope_interleave=False, q_lora_rank=None, n_group=1, topk_group=1
    ),
}
