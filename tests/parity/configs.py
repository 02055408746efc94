"""The configurations and inputs of the language suite, as data: no torch, no transformers.

Sizes are small and distinct, so that a transposed or tiled axis cannot hide. Every config
names its own seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Batch:
    """How to draw the inputs of one call.

    `padding`: none, left, right, holes (zeros inside the mask), or full (a mask of ones).
    `labels`: none, some (every third one is -100), masked (-100 at padding), all (rows that see no key then reach the
    loss). `positions`: none, spaced (3, 5, 7 ...), mask (as generation numbers them), restart (0.. twice).
    """

    B: int = 5
    T: int = 7
    padding: str = "none"
    labels: str = "some"
    positions: str = "none"


BATCHES: dict[str, Batch] = {
    "plain": Batch(),
    "one": Batch(B=1, labels="all"),
    "three": Batch(B=3, T=4),
    "token": Batch(B=3, T=1, labels="none"),
    "left": Batch(padding="left", labels="masked"),
    "right": Batch(padding="right", labels="masked"),
    "left-positions": Batch(padding="left", labels="masked", positions="mask"),
    "left-all-labels": Batch(padding="left", labels="all"),
    "right-all-labels": Batch(padding="right", labels="all"),
    "holes": Batch(padding="holes", labels="masked"),
    "full-mask": Batch(padding="full"),
    "spaced": Batch(positions="spaced"),
    "restart": Batch(positions="restart"),
    "no-labels": Batch(labels="none"),
}
EVERY_BATCH = tuple(BATCHES)


@dataclass(frozen=True)
class Config:
    """A transformers class with keyword arguments of its config, and the batches it is run on."""

    cls: str
    settings: Mapping[str, Any]
    batches: tuple[str, ...] = ("plain",)
    seed: int = 0


# No token ends generation unless a test says so: transformers' defaults are ids of the full vocabularies.
ENDLESS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}
GPT2 = {"vocab_size": 37, "n_positions": 19, "n_embd": 15, "n_layer": 2, "n_head": 3, "n_inner": 22} | ENDLESS
# No rotary size repeats: H = 6, Hkv = 2, groups of 3, k = 8, d = 48, f = 29, V = 41.
LLAMA = {
    "vocab_size": 41,
    "hidden_size": 48,
    "intermediate_size": 29,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
} | ENDLESS
# All three bands of llama3 scaling are hit: wavelengths 6, 63, 628 and 6283 against 64/4 and 64/1.
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def gpt2(seed: int, batches: tuple[str, ...] = ("plain",), **changes: Any) -> Config:
    return Config("GPT2LMHeadModel", GPT2 | changes, batches, seed)


def llama(seed: int, batches: tuple[str, ...] = ("plain",), **changes: Any) -> Config:
    return Config("LlamaForCausalLM", LLAMA | changes, batches, seed)


def rope(**parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10000.0} | parameters}


# Activations that few models use.
RARE = [
    "gelu_10",
    "gelu_accurate",
    "gelu_fast",
    "gelu_python",
    "gelu_python_tanh",
    "hardswish",
    "laplace",
    "leaky_relu",
]
RARE += ["linear", "mish", "quick_gelu", "relu2", "relu6", "sigmoid", "swish"]
CONFIGS: dict[str, Config] = {
    "gpt2-tied": gpt2(1, EVERY_BATCH),
    "gpt2-untied": gpt2(2, ("plain", "left"), tie_word_embeddings=False),
    "gpt2-default-inner": gpt2(3, n_inner=None),
    "gpt2-narrow-inner": gpt2(4, n_inner=11, n_layer=3),
    "gpt2-relu": gpt2(5, activation_function="relu"),
    "gpt2-gelu": gpt2(6, activation_function="gelu"),
    "gpt2-silu": gpt2(7, activation_function="silu"),
    "gpt2-tanh-gelu": gpt2(8, activation_function="gelu_pytorch_tanh"),
    "gpt2-tanh": gpt2(9, activation_function="tanh"),
    "gpt2-inverse-layer": gpt2(10, scale_attn_by_inverse_layer_idx=True, n_layer=3),
    "gpt2-unscaled": gpt2(11, scale_attn_weights=False),
    "gpt2-unscaled-inverse-layer": gpt2(12, scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True),
    "gpt2-reordered": gpt2(
        13, ("plain", "left"), reorder_and_upcast_attn=True, scale_attn_by_inverse_layer_idx=True, n_layer=3
    ),
    "gpt2-epsilon": gpt2(14, layer_norm_epsilon=0.3),
    "gpt2-one-head": gpt2(15, n_head=1, n_layer=1),
    "gpt2-heads-of-one": gpt2(16, n_head=15),
    "gpt2-full-length": gpt2(17, n_positions=7),
    "llama-grouped": llama(20, EVERY_BATCH),
    "llama-multi-head": llama(21, ("plain", "left"), num_key_value_heads=6),
    "llama-kv-heads-default": llama(22, num_key_value_heads=None),
    "llama-multi-query": llama(23, ("plain", "left"), num_key_value_heads=1),
    "llama-head-dim": llama(24, ("plain", "right"), hidden_size=18, head_dim=10),
    "llama-head-dim-small": llama(25, head_dim=4),
    "llama-attention-bias": llama(26, attention_bias=True),
    "llama-mlp-bias": llama(27, mlp_bias=True),
    "llama-everything": llama(
        28,
        ("plain", "left", "right-all-labels", "token"),
        attention_bias=True,
        mlp_bias=True,
        head_dim=10,
        hidden_size=18,
        tie_word_embeddings=True,
        rope_parameters=LLAMA3_ROPE,
        num_hidden_layers=3,
    ),
    "llama-tied": llama(29, tie_word_embeddings=True),
    "llama-pad-row": llama(30, ("plain", "left-all-labels"), pad_token_id=5),
    "llama-pad-row-tied": llama(31, ("plain", "left-all-labels"), pad_token_id=5, tie_word_embeddings=True),
    "llama-epsilon": llama(32, rms_norm_eps=0.2),
    "llama-gelu": llama(33, hidden_act="gelu"),
    "llama-relu": llama(34, hidden_act="relu"),
    "llama-tanh-gelu": llama(35, hidden_act="gelu_pytorch_tanh"),
    "llama-theta": llama(36, **rope(rope_theta=500.0, rope_type="default")),
    "llama-llama3": llama(37, ("plain", "left", "spaced", "left-positions"), rope_parameters=LLAMA3_ROPE),
    "llama-linear": llama(38, ("plain", "spaced"), **rope(rope_type="linear", factor=2.5)),
    "llama-dynamic": llama(39, max_position_embeddings=5, **rope(rope_type="dynamic", factor=2.0)),
    "llama-dynamic-short": llama(40, **rope(rope_type="dynamic", factor=2.0)),
    "llama-yarn": llama(
        41, ("plain", "spaced"), **rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)
    ),
    "llama-yarn-betas": llama(
        42,
        **rope(
            rope_type="yarn",
            factor=4.0,
            original_max_position_embeddings=512,
            beta_fast=4.0,
            beta_slow=0.5,
            attention_factor=1.3,
        ),
    ),
    "llama-one-layer": llama(43, num_hidden_layers=1),
    # Without a cache the reference takes positions that jump for the beginning of another sequence.
    "llama-packed": llama(44, ("plain", "restart", "spaced", "left-positions"), use_cache=False),
    "gpt2-packed": gpt2(45, ("restart",), use_cache=False),
    **{f"gpt2-{name}": gpt2(400 + i, n_layer=1, activation_function=name) for i, name in enumerate(RARE)},
    # The window is shorter than the batch is long.
    "mistral-window": Config("MistralForCausalLM", LLAMA | {"sliding_window": 4}, EVERY_BATCH, 50),
    "mistral-head-dim": Config(
        "MistralForCausalLM",
        LLAMA | {"sliding_window": 3, "head_dim": 10, "hidden_size": 18, "tie_word_embeddings": True},
        ("plain", "left"),
        51,
    ),
    "mistral-full": Config("MistralForCausalLM", LLAMA | {"sliding_window": None}, ("plain", "left"), 52),
    "qwen2-tied": Config("Qwen2ForCausalLM", LLAMA | {"tie_word_embeddings": True}, ("plain", "left"), 53),
    "qwen2-untied": Config("Qwen2ForCausalLM", LLAMA | {"num_key_value_heads": 3}, ("plain",), 54),
    "qwen2-window": Config(
        "Qwen2ForCausalLM",
        LLAMA | {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1, "num_hidden_layers": 3},
        ("plain", "left"),
        55,
    ),
}


def inputs(batch: Batch, vocab_size: int, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """input_ids, and attention_mask, position_ids, labels where the batch has them; all int64 [B, T]."""
    rng = np.random.default_rng([seed, 99])
    B, T = batch.B, batch.T
    ids = rng.integers(0, vocab_size, (B, T))
    out: dict[str, np.ndarray[Any, Any]] = {"input_ids": ids}
    mask = np.ones((B, T), np.int64)
    if batch.padding == "holes":
        mask[:, 2] = 0
        mask[1::2, 4] = 0
    elif batch.padding in ("left", "right"):
        lengths = T - (3 * np.arange(B)) % T  # the first row is full, the others have 1 to T tokens
        columns = np.arange(T)
        kept = columns < lengths[:, None] if batch.padding == "right" else columns >= T - lengths[:, None]
        mask = kept.astype(np.int64)
    if batch.padding != "none":
        out["attention_mask"] = mask
    if batch.positions == "spaced":
        out["position_ids"] = np.tile(2 * np.arange(T) + 3, (B, 1))
    elif batch.positions == "restart":
        out["position_ids"] = np.tile(np.arange(T) % (T - T // 3), (B, 1))
    elif batch.positions == "mask":
        out["position_ids"] = np.where(mask == 1, mask.cumsum(1) - 1, 0)
    if batch.labels != "none":
        labels = ids.copy()
        if batch.labels == "some":
            labels.reshape(-1)[1::3] = -100
        elif batch.labels == "masked":
            labels[mask == 0] = -100
        out["labels"] = labels
    return out


def cases() -> list[tuple[str, str]]:
    """All pairs (config, batch), in order."""
    return [(name, batch) for name, config in CONFIGS.items() for batch in config.batches]
