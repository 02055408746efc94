"""Llama and the families that differ from it by flags: Mistral, Mixtral, Qwen2, Qwen3, Gemma 1 to 3, Phi-3.

All have rotary positions, RMSNorm before each branch and a gated feed-forward (Mixtral: experts); the table at the end
says the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tensorgraph.errors import ModelError

from .architecture import Architecture, builder
from .decoder import FULL, SLIDING, Plan, Sizes, whole
from .moe import Routing

NAMES = (
    ("embed.", "model.embed_tokens."),
    ("layers.{}.attn_norm.", "model.layers.{}.input_layernorm."),
    ("layers.{}.attn.q.", "model.layers.{}.self_attn.q_proj."),
    ("layers.{}.attn.k.", "model.layers.{}.self_attn.k_proj."),
    ("layers.{}.attn.v.", "model.layers.{}.self_attn.v_proj."),
    ("layers.{}.attn.qkv.", "model.layers.{}.self_attn.qkv_proj."),
    ("layers.{}.attn.q_norm.", "model.layers.{}.self_attn.q_norm."),
    ("layers.{}.attn.k_norm.", "model.layers.{}.self_attn.k_norm."),
    ("layers.{}.attn.out.", "model.layers.{}.self_attn.o_proj."),
    ("layers.{}.mlp_norm.", "model.layers.{}.post_attention_layernorm."),
    ("layers.{}.mlp.gate.", "model.layers.{}.mlp.gate_proj."),
    ("layers.{}.mlp.up.", "model.layers.{}.mlp.up_proj."),
    ("layers.{}.mlp.gate_up.", "model.layers.{}.mlp.gate_up_proj."),
    ("layers.{}.mlp.down.", "model.layers.{}.mlp.down_proj."),
    ("norm.", "model.norm."),
    ("head.", "lm_head."),
)
# Four norms a layer: what Llama calls post_attention_layernorm comes before the feed-forward, Gemma's after attention.
FOUR_NORMS = (
    ("layers.{}.attn_post_norm.", "model.layers.{}.post_attention_layernorm."),
    ("layers.{}.mlp_norm.", "model.layers.{}.pre_feedforward_layernorm."),
    ("layers.{}.mlp_post_norm.", "model.layers.{}.post_feedforward_layernorm."),
    *NAMES,
)
EXPERTS = (
    ("layers.{}.mlp.router.", "model.layers.{}.block_sparse_moe.gate."),
    ("layers.{}.mlp.experts.gate", "model.layers.{}.block_sparse_moe.experts.{}.w1.weight"),
    ("layers.{}.mlp.experts.down", "model.layers.{}.block_sparse_moe.experts.{}.w2.weight"),
    ("layers.{}.mlp.experts.up", "model.layers.{}.block_sparse_moe.experts.{}.w3.weight"),
    *NAMES,
)
# Frequencies of the rotation that older files carry.
BUFFERS = ("model.layers.{}.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq")

LLAMA: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "pad_token_id": None,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
MISTRAL = LLAMA | {
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
MIXTRAL = MISTRAL | {
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
}
QWEN = LLAMA | {
    "vocab_size": 151936,
    "intermediate_size": 22016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
GEMMA = LLAMA | {
    "vocab_size": 256000,
    "hidden_size": 3072,
    "intermediate_size": 24576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "pad_token_id": 0,
    "tie_word_embeddings": True,
}
GEMMA2 = GEMMA | {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
GEMMA3 = GEMMA2 | {
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "sliding_window_pattern": 6,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}
PHI3 = LLAMA | {
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 32000,
    "sliding_window": None,
}


def rope_parameters(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Parameters of the rotation by layer type, from `rope_parameters` or the older `rope_theta` and `rope_scaling`."""
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, Mapping):
        raise ModelError("TG913", f"rope_parameters must be an object, not {given!r}")
    nested = {kind: given[kind] for kind in (FULL, SLIDING) if isinstance(given.get(kind), Mapping)}
    out = {}
    for kind, own in (nested or {FULL: given}).items():
        p = {key: value for key, value in own.items() if value is not None}
        if nested:  # transformers reads this one beside the layer types
            p["truncate"] = given.get("truncate", True)
        p["rope_type"] = p.get("rope_type", p.get("type", "default"))
        for key in ("rope_theta", "partial_rotary_factor"):
            if config.get(key) is not None:
                p.setdefault(key, config[key])
        p["max_position_embeddings"] = config["max_position_embeddings"]
        trained = config.get("original_max_position_embeddings")
        p.setdefault("original_max_position_embeddings", config["max_position_embeddings"])
        if trained is not None:
            p["original_max_position_embeddings"] = trained
        out[kind] = p
    return out


Parts = Callable[[Mapping[str, Any], Sizes], Mapping[str, Any]]


def family(
    flags: Callable[[Mapping[str, Any]], Mapping[str, Any]], parts: Parts | None = None, head_size: str = "head_dim"
) -> Callable[..., Plan]:
    """A plan function: what all these families share, and the flags of one of them.

    `parts`: what has sizes of its own (experts); `head_size`: the field of the size that is rotated.
    """

    def plan(config: Mapping[str, Any], size: Sizes) -> Plan:
        own = {"ropes": rope_parameters(config), **flags(config)}
        if not own.pop("partial_rotary", False):  # read by Phi-3, and elsewhere for scaled types alone
            for p in own["ropes"].values():
                if p["rope_type"] == "default":
                    p.pop("partial_rotary_factor", None)
        # The divisors of longrope are a list as long as half a head, so the head size is the number it has.
        literal = any(p["rope_type"] in ("longrope", "su") for p in own["ropes"].values())
        d, H, k = size.heads("hidden_size", "num_attention_heads", head_size, literal=literal)
        grouped = config["num_key_value_heads"] is not None
        V, padding = size("V", "vocab_size"), config["pad_token_id"]
        count = size.layers("num_hidden_layers")
        types = own.pop("layer_types", None) or ()
        if types and type(count) is not int:
            if len(set(types)) > 1:
                raise ModelError(
                    "TG914",
                    "layers of different types cannot be one block that is repeated",
                    hint="build with a number of layers",
                )
            types = ()
        if types and len(types) < count:
            raise ModelError("TG913", f"layer_types has {len(types)} entries for {count} layers")
        return Plan(
            **{
                "V": V,
                "d": d,
                "f": size("f", "intermediate_size"),
                "H": H,
                "G": size("G", "num_key_value_heads") if grouped else H,
                "k": k,
                "n": count,
                "layer_types": tuple(types[:count]) if types else (),
                "norm_eps": float(config["rms_norm_eps"]),
                "activation": config["hidden_act"],
                "tied": bool(config["tie_word_embeddings"]),
                "packed": config.get("use_cache") is False,  # a cache hides jumps from transformers
                "padding": padding % whole(config, "vocab_size") if padding is not None else None,
                **own,
                **(parts(config, size) if parts else {}),
            }
        )

    return plan


def _llama(c: Mapping[str, Any]) -> dict[str, Any]:
    return {"qkv_bias": c["attention_bias"], "out_bias": c["attention_bias"], "mlp_bias": c["mlp_bias"]}


def _all_sliding(c: Mapping[str, Any]) -> dict[str, Any]:
    if c["sliding_window"] is None:
        return {}
    return {"window": c["sliding_window"], "layer_types": (SLIDING,) * whole(c, "num_hidden_layers")}


def _qwen(c: Mapping[str, Any]) -> dict[str, Any]:
    window = c["sliding_window"] if c["use_sliding_window"] else None
    types = c.get("layer_types")
    if types is None and window is not None:
        types = [FULL if i < c["max_window_layers"] else SLIDING for i in range(whole(c, "num_hidden_layers"))]
    return {"window": window, "layer_types": types if window is not None else None}


def _qwen2(c: Mapping[str, Any]) -> dict[str, Any]:
    return {**_qwen(c), "qkv_bias": True}


def _qwen3(c: Mapping[str, Any]) -> dict[str, Any]:
    bias = {"qkv_bias": c["attention_bias"], "out_bias": c["attention_bias"]}
    return {**_qwen(c), **bias, "qk_norm": True}


def _gemma(c: Mapping[str, Any]) -> dict[str, Any]:
    if c.get("use_bidirectional_attention"):
        raise ModelError("TG912", "use_bidirectional_attention: attention in both directions is not supported")
    # "gelu" in the first files means the approximation by tanh.
    activation = "gelu_pytorch_tanh" if c["hidden_act"] == "gelu" else c["hidden_act"]
    bias = {"qkv_bias": c["attention_bias"], "out_bias": c["attention_bias"]}
    return {**bias, "activation": activation, "norm": "rms+1", "scaled_embedding": True}


def _gemma2(c: Mapping[str, Any], pattern: int = 2) -> dict[str, Any]:
    types = c.get("layer_types")
    if types is None:
        types = [SLIDING if (i + 1) % pattern else FULL for i in range(whole(c, "num_hidden_layers"))]
    return {
        **_gemma(c),
        "activation": c["hidden_activation"],
        "post_norms": True,
        "scale": float(c["query_pre_attn_scalar"]) ** -0.5,
        "window": c["sliding_window"],
        "layer_types": types,
        "softcap": c["attn_logit_softcapping"],
        "logit_softcap": c["final_logit_softcapping"],
    }


def _gemma3(c: Mapping[str, Any]) -> dict[str, Any]:
    ropes = rope_parameters(c)
    local = {"rope_type": "default", "rope_theta": c["rope_local_base_freq"]}
    ropes.setdefault(SLIDING, local)
    # transformers reads attn_logit_softcapping and does not use it.
    return {**_gemma2(c, c["sliding_window_pattern"]), "softcap": None, "qk_norm": True, "ropes": ropes}


def _phi3(c: Mapping[str, Any]) -> dict[str, Any]:
    ropes = rope_parameters(c)
    for p in ropes.values():
        p["rope_type"] = "longrope" if p["rope_type"] in ("su", "yarn") else p["rope_type"]
    long = ropes[FULL]["rope_type"] == "longrope"
    renewed = ropes[FULL]["original_max_position_embeddings"] if long else None
    own = {"fused": True, "ropes": ropes, "renewed_after": renewed, "partial_rotary": True}
    return {**_all_sliding(c), **own}


def _mixtral(c: Mapping[str, Any], size: Sizes) -> dict[str, Any]:
    routing = Routing(
        E=size("E", "num_local_experts"),
        top_k=whole(c, "num_experts_per_tok"),
        f=size("f", "intermediate_size"),
        balance=float(c["router_aux_loss_coef"]),
        reported=bool(c["output_router_logits"]),
    )
    return {"experts": routing}


def architecture(
    model_type: str, defaults: dict[str, Any], flags: Any, names: Any = NAMES, **more: Any
) -> Architecture:
    """A family by its flags; `more` as `family` takes it."""
    return Architecture(model_type, defaults, family(flags, **more), names, prefix="model.", buffers=BUFFERS)


ARCHITECTURES = {
    "LlamaForCausalLM": architecture("llama", LLAMA, _llama),
    "MistralForCausalLM": architecture("mistral", MISTRAL, _all_sliding),
    "MixtralForCausalLM": architecture("mixtral", MIXTRAL, _all_sliding, EXPERTS, parts=_mixtral),
    "Qwen2ForCausalLM": architecture("qwen2", QWEN, _qwen2),
    "Qwen3ForCausalLM": architecture("qwen3", QWEN | {"head_dim": 128}, _qwen3),
    "GemmaForCausalLM": architecture("gemma", GEMMA, _gemma),
    "Gemma2ForCausalLM": architecture("gemma2", GEMMA2, _gemma2, FOUR_NORMS),
    "Gemma3ForCausalLM": architecture("gemma3_text", GEMMA3, _gemma3, FOUR_NORMS),
    "Phi3ForCausalLM": architecture("phi3", PHI3, _phi3),
}
build = builder(ARCHITECTURES)
