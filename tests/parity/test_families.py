"""The families that differ from Llama by flags, against transformers: outputs, loss, every gradient, greedy tokens."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the reference needs torch: make parity")
pytest.importorskip("transformers", reason="the reference needs transformers: make parity")

from tensorgraph.models import from_pretrained

from . import reference as R
from .configs import BATCHES, LLAMA, Batch, Config, inputs

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


PHI3 = LLAMA | {"pad_token_id": None}
CONFIGS: dict[str, Config] = {
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
CASES = [(name, batch) for name, config in CONFIGS.items() for batch in config.batches]
BOUNDS = {"float64": (1e-9, 1e-9), "float32": (1e-5, 1e-4)}


@functools.cache
def model_of(name: str) -> Any:
    config = CONFIGS[name]
    return R.build(config.cls, config.settings, config.seed)


@functools.cache
def reference_of(name: str, batch: str) -> R.Reference:
    return R.run(model_of(name), inputs_of(name, BATCHES[batch]))


def inputs_of(name: str, batch: Batch) -> dict[str, R.Array]:
    return inputs(batch, CONFIGS[name].settings["vocab_size"], CONFIGS[name].seed)


@pytest.fixture(scope="session")
def net_of(tmp_path_factory):
    @functools.cache
    def net(name: str, dtype: str) -> Any:
        folder = tmp_path_factory.mktemp(f"{name}-{dtype}", numbered=False)
        return from_pretrained(R.save(model_of(name), folder), dtype=dtype)

    return net


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("name", "batch"), CASES)
def test_outputs_loss_and_gradients(name, batch, dtype, net_of):
    arrays, ref, net = inputs_of(name, BATCHES[batch]), reference_of(name, batch), net_of(name, dtype)
    output_bound, grad_bound = BOUNDS[dtype]
    R.assert_same(ref.outputs, net(**arrays), output_bound, gradients=False)
    loss, grads = net.value_and_grad(**arrays)
    R.assert_same({"loss": np.array(ref.loss)}, {"loss": np.asarray(loss)}, output_bound, gradients=False)
    R.assert_same(ref.grads, grads, grad_bound, gradients=True)
    assert set(net.state) == set(grads)


@pytest.mark.parametrize(("B", "T", "padding"), [(1, 3, "none"), (3, 6, "left")])
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_tokens(name, B, T, padding, net_of):
    batch = replace(BATCHES["no-labels"], B=B, T=T, padding=padding)
    arrays = inputs_of(name, batch)
    ref = R.generate(model_of(name), **arrays, max_new_tokens=9)
    np.testing.assert_array_equal(net_of(name, "float64").generate(**arrays, max_new_tokens=9), ref)


@pytest.mark.parametrize("name", ["gemma2", "phi3-window", "qwen3"])
def test_what_is_saved_is_read_back(name, net_of, tmp_path):
    net, arrays = net_of(name, "float32"), inputs_of(name, BATCHES["plain"])
    net.save_pretrained(tmp_path)
    again = R.run(R.load(tmp_path), arrays)
    R.assert_same(reference_of(name, "plain").outputs, again.outputs, 0.0, gradients=False)
    R.assert_same(reference_of(name, "plain").grads, again.grads, 0.0, gradients=True)
