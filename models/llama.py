"""Llama and the families that differ from it by flags: Mistral, Mixtral, Qwen2, Qwen3, Gemma 1 to 3, Phi-3.

All have rotary positions, RMSNorm before each branch and a gated feed-forward (Mixtral: experts); the table at the end
says the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tensorgraph.dims import evaluate
from tensorgraph.errors import ModelError

from .architecture import Architecture, builder
from .decoder import FULL, SLIDING, Plan, Sizes, padding_row, whole
from .moe import Routing
from .parts import NEEDED, SCALINGS, choose
from .settings import ROTATION, Rotation, Settings

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


def rope_parameters(config: Mapping[str, Any], renamed: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """Parameters of the rotation by layer type, from `rope_parameters` or the older `rope_theta` and `rope_scaling`.

    `renamed`: rotations that are called otherwise. Raises ModelError: TG912 an unknown rope_type, TG913 a parameter
    that is missing or malformed.
    """
    field = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    given = Rotation(config.get(field) or {}, f"{getattr(config, 'inside', '')}{field}.")
    nested = {kind: given[kind] for kind in (FULL, SLIDING) if given.get(kind) is not None}
    if nested and FULL not in nested:
        raise ModelError("TG913", f"{given.inside}{FULL} is missing")
    out: dict[str, dict[str, Any]] = {}
    for kind, own in (nested or {FULL: given}).items():
        inside = f"{given.inside}{kind}." if nested else given.inside
        p = Rotation({key: value for key, value in own.items() if value is not None}, inside)
        if nested:  # transformers reads this one beside the layer types
            p["truncate"] = given.get("truncate", True)
        said = "rope_type" if "rope_type" in p or "type" not in p else "type"
        p["rope_type"] = p.get(said, "default")
        p["rope_type"] = (renamed or {}).get(p["rope_type"], p["rope_type"])
        for key in ("rope_theta", "partial_rotary_factor"):
            if config.get(key) is not None:
                p.setdefault(key, config[key])
        p["max_position_embeddings"] = config["max_position_embeddings"]
        trained = config.get("original_max_position_embeddings")
        p.setdefault("original_max_position_embeddings", config["max_position_embeddings"])
        if trained is not None:
            p["original_max_position_embeddings"] = trained
        choose(inside + said, p["rope_type"], SCALINGS)
        if missing := [key for key in NEEDED[p["rope_type"]] if key not in p]:
            text = f"{inside}{missing[0]} is missing: rope_type {p['rope_type']!r} needs it"
            raise ModelError("TG913", text)
        p.check(ROTATION)
        out[kind] = p
    return out


def check_head(config: Mapping[str, Any], head_size: str, k: int, rope: Mapping[str, Any]) -> None:
    """Raise ModelError[TG913] for a head that cannot be turned in pairs, or not with these divisors."""
    inside, kind = getattr(config, "inside", ""), rope["rope_type"]
    field = head_size if config.get(head_size) is not None else "hidden_size / num_attention_heads"
    share = rope.get("partial_rotary_factor", 1.0)
    turned = int(k * share)
    of = f"{inside}{field} = {k}" + (f", of which partial_rotary_factor = {share} makes {turned}" if share != 1 else "")
    if turned < 2 or turned % 2:
        raise ModelError("TG913", f"{of}: rotary positions turn pairs, so it must be even")
    if kind == "dynamic" and turned == 2:
        raise ModelError("TG913", f"{of}: rope_type 'dynamic' needs more than one pair")
    for key in ("short_factor", "long_factor"):
        if kind == "longrope" and len(rope[key]) != turned // 2:
            where = getattr(rope, "inside", "")
            raise ModelError("TG913", f"{where}{key} has {len(rope[key])} numbers for {turned // 2} pairs")


def literal_head(rope: Mapping[str, Any], config: Mapping[str, Any], head_size: str) -> bool:
    """Whether a rotation needs the head size as a number.

    The divisors of longrope are a list as long as half a head; a share of a head that is not whole is cut.
    """
    k = config.get(head_size) or whole(config, "hidden_size") / whole(config, "num_attention_heads")
    return rope["rope_type"] in ("longrope", "su") or k * rope.get("partial_rotary_factor", 1.0) % 1 != 0


Parts = Callable[[Mapping[str, Any], Sizes], Mapping[str, Any]]


def family(
    flags: Callable[[Mapping[str, Any]], Mapping[str, Any]], parts: Parts | None = None, head_size: str = "head_dim"
) -> Callable[..., Plan]:
    """A plan function: what all these families share, and the flags of one of them.

    `parts`: what has sizes of its own (experts); `head_size`: the field of the size that is rotated.
    """

    def plan(config: Mapping[str, Any], size: Sizes) -> Plan:
        own = dict(flags(config))
        if "ropes" not in own:
            own["ropes"] = rope_parameters(config)
        if not own.pop("partial_rotary", False):  # read by Phi-3, and elsewhere for scaled types alone
            for p in own["ropes"].values():
                if p["rope_type"] == "default":
                    p.pop("partial_rotary_factor", None)
        literal = any(literal_head(p, config, head_size) for p in own["ropes"].values())
        d, H, k = size.heads("hidden_size", "num_attention_heads", head_size, literal=literal)
        for p in own["ropes"].values():
            check_head(config, head_size, evaluate(k, size.binding), p)
        V, G = size("V", "vocab_size"), H
        if (groups := config["num_key_value_heads"]) is not None:
            G = size("G", "num_key_value_heads")
            if (heads := whole(config, "num_attention_heads")) % groups:
                raise ModelError(
                    "TG913",
                    f"{size.inside}num_attention_heads = {heads} is not divisible by num_key_value_heads = {groups}",
                )
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
            raise ModelError("TG913", f"{size.inside}layer_types has {len(types)} entries for {count} layers")
        if other := [kind for kind in types if kind not in (FULL, SLIDING)]:
            raise ModelError("TG912", f"{size.inside}layer_types: {other[0]!r} is not supported")
        return Plan(
            **{
                "V": V,
                "d": d,
                "f": size("f", "intermediate_size"),
                "H": H,
                "G": G,
                "k": k,
                "n": count,
                "layer_types": tuple(types[:count]) if types else (),
                "norm_eps": float(config["rms_norm_eps"]),
                "activation": config["hidden_act"],
                "tied": bool(config["tie_word_embeddings"]),
                "packed": config.get("use_cache") is False,  # a cache hides jumps from transformers
                "padding": padding_row(config),
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
        "window": whole(c, "sliding_window"),
        "layer_types": types,
        "softcap": c["attn_logit_softcapping"],
        "logit_softcap": c["final_logit_softcapping"],
    }


def _gemma3(c: Settings) -> dict[str, Any]:
    given, scaling = Rotation(c.get("rope_parameters") or {}, "rope_parameters."), c.get("rope_scaling") or {}
    full, local = (given.get(kind) or {"rope_type": "default"} for kind in (FULL, SLIDING))
    local = {"rope_theta": c["rope_local_base_freq"], **local}
    ropes = rope_parameters(c.changed(rope_scaling=None, rope_parameters={FULL: {**full, **scaling}, SLIDING: local}))
    # transformers reads attn_logit_softcapping and does not use it.
    return {**_gemma2(c, c["sliding_window_pattern"]), "softcap": None, "qk_norm": True, "ropes": ropes}


def _phi3(c: Mapping[str, Any]) -> dict[str, Any]:
    ropes = rope_parameters(c, {"su": "longrope", "yarn": "longrope"})
    long = ropes[FULL]["rope_type"] == "longrope"
    renewed = ropes[FULL]["original_max_position_embeddings"] if long else None
    own = {"fused": True, "ropes": ropes, "renewed_after": renewed, "partial_rotary": True}
    return {**_all_sliding(c), **own}


def chosen(c: Mapping[str, Any], experts: str) -> int:
    """How many experts a token uses. Raises ModelError[TG913] if there are not so many."""
    used, count = whole(c, "num_experts_per_tok"), whole(c, experts)
    if used > count:
        inside = getattr(c, "inside", "")
        raise ModelError("TG913", f"{inside}num_experts_per_tok = {used}, and {experts} = {count}")
    return used


def _mixtral(c: Mapping[str, Any], size: Sizes) -> dict[str, Any]:
    routing = Routing(
        E=size("E", "num_local_experts"),
        top_k=chosen(c, "num_local_experts"),
        f=size("f", "intermediate_size"),
        balance=float(c["router_aux_loss_coef"]),
        reported=bool(c["output_router_logits"]),
    )
    return {"experts": routing}


def architecture(
    model_type: str, defaults: dict[str, Any], flags: Any, names: Any = NAMES, buffers: Any = BUFFERS, **more: Any
) -> Architecture:
    """A family by its flags; `more` as `family` takes it."""
    return Architecture(model_type, defaults, family(flags, **more), names, prefix="model.", buffers=buffers)


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
