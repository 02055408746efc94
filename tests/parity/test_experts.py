"""Mixtures of experts and latent attention against transformers: outputs, loss, every gradient, greedy tokens."""

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
from .test_families import PLAIN, family

MIXTRAL = LLAMA | {"num_local_experts": 5, "num_experts_per_tok": 2}

CONFIGS: dict[str, Config] = {
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
CONFIGS |= {
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
def folder_of(tmp_path_factory):
    return functools.cache(lambda name: R.save(model_of(name), tmp_path_factory.mktemp(name, numbered=False)))


@pytest.fixture(scope="session")
def net_of(folder_of):
    return functools.cache(lambda name, dtype: from_pretrained(folder_of(name), dtype=dtype))


def check(net: Any, arrays: dict[str, Any], ref: R.Reference, dtype: str) -> set[str]:
    output_bound, grad_bound = BOUNDS[dtype]
    R.assert_same(ref.outputs, net(**arrays), output_bound, gradients=False)
    loss, grads = net.value_and_grad(**arrays)
    R.assert_same({"loss": np.array(ref.loss)}, {"loss": np.asarray(loss)}, output_bound, gradients=False)
    R.assert_same(ref.grads, grads, grad_bound, gradients=True)
    return set(grads)


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("name", "batch"), CASES)
def test_outputs_loss_and_gradients(name, batch, dtype, net_of, folder_of):
    net = net_of(name, dtype)
    trained = check(net, inputs_of(name, BATCHES[batch]), reference_of(name, batch), dtype)
    assert set(net.state) == R.names_in(folder_of(name))
    assert {n for n in net.state if "e_score_correction_bias" not in n} == trained


def test_the_loss_that_balances_experts_is_there_if_asked_for(net_of):
    for batch in PLAIN:
        arrays = inputs_of("mixtral", BATCHES[batch]) | {"output_router_logits": True}
        result = with_flag(model_of("mixtral"), arrays)
        assert "aux_loss" in result.outputs
        check(net_of("mixtral", "float64"), arrays, result, "float64")
    assert "aux_loss" not in net_of("mixtral", "float64")(**inputs_of("mixtral", BATCHES["plain"]))


def with_flag(model: Any, arrays: dict[str, Any]) -> R.Reference:
    """`run` with a flag, which is no array."""
    own, model.config.output_router_logits = model.config.output_router_logits, True
    try:
        return R.run(model, {n: a for n, a in arrays.items() if a is not True})
    finally:
        model.config.output_router_logits = own


@pytest.mark.parametrize(("B", "T", "padding"), [(1, 3, "none"), (3, 6, "left")])
@pytest.mark.parametrize("name", [n for n, c in CONFIGS.items() if not c.settings.get("output_router_logits")])
def test_greedy_tokens(name, B, T, padding, net_of):
    batch = replace(BATCHES["no-labels"], B=B, T=T, padding=padding)
    arrays = inputs_of(name, batch)
    ref = R.generate(model_of(name), **arrays, max_new_tokens=9)
    np.testing.assert_array_equal(net_of(name, "float64").generate(**arrays, max_new_tokens=9), ref)


@pytest.mark.parametrize("name", ["mixtral", "v2-groups", "v3"])
def test_what_is_saved_is_read_back(name, net_of, tmp_path):
    net, arrays = net_of(name, "float32"), inputs_of(name, BATCHES["plain"])
    net.save_pretrained(tmp_path)
    again = R.run(R.load(tmp_path), arrays)
    R.assert_same(reference_of(name, "plain").outputs, again.outputs, 0.0, gradients=False)
    R.assert_same(reference_of(name, "plain").grads, again.grads, 0.0, gradients=True)
