"""The two miniatures: one layer, one head, small enough to follow every number by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tensorgraph.errors import ModelError

from .architecture import Architecture, builder
from .decoder import Plan, Sizes, whole
from .parts import choose

DEFAULTS: dict[str, Any] = {
    "n_layer": 1,
    "n_head": 1,
    "positions": "learned",  # or "sinusoidal"
    "bias": False,
    "norms": False,  # a LayerNorm before attention and one before the feed-forward
    "final_norm": False,
    "layer_norm_epsilon": 1e-5,
    "activation_function": "gelu_pytorch_tanh",
    "frozen_embedding": False,
    "initializer_range": 0.5,  # 1/sqrt(d) at d = 4: GPT-2's 0.02 would drown a frozen table in the positions
    "tie_word_embeddings": False,
}


def plan(config: Mapping[str, Any], size: Sizes) -> Plan:
    """The plan of a miniature: scores scaled by 1/sqrt(k), residual connections, biases everywhere or nowhere.

    Raises ModelError[TG912] for unknown positions, [TG913] for an odd size with sinusoidal ones.
    """
    d, H, k = size.heads("n_embd", "n_head", None)
    learned = choose("positions", config["positions"], {"learned": True, "sinusoidal": False})
    if not learned and config["n_embd"] % 2:
        raise ModelError("TG913", f"n_embd = {config['n_embd']}: sinusoidal positions are pairs, so it must be even")
    bias = bool(config["bias"])
    return Plan(
        V=size("V", "vocab_size"),
        d=d,
        f=size("f", "n_inner"),
        H=H,
        G=H,
        k=k,
        n=size.layers("n_layer"),
        P=size("P", "n_positions") if learned else None,
        positions=config["positions"],
        longest=whole(config, "n_positions"),
        norm="layer" if config["norms"] or config["final_norm"] else None,
        block_norms=bool(config["norms"]),
        norm_eps=float(config["layer_norm_epsilon"]),
        final_norm=bool(config["final_norm"]),
        activation=config["activation_function"],
        gated=False,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
        head_bias=bias,
        frozen_embedding=bool(config["frozen_embedding"]),
        tied=bool(config["tie_word_embeddings"]),
    )


ARCHITECTURES = {"MiniForCausalLM": Architecture("mini", DEFAULTS, plan, names=())}
build = builder(ARCHITECTURES)
