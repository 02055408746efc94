"""Every setting bites: a net that reads one setting otherwise, or lacks one part, is not the reference.

A change must exceed the bound of single precision, so that no test of parity can miss it in either dtype.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the reference needs torch: make parity")
pytest.importorskip("transformers", reason="the reference needs transformers: make parity")

from tensorgraph.models import from_pretrained
from tensorgraph.models.decoder import Block
from tensorgraph.models.latent import LatentAttention
from tensorgraph.models.moe import MixtureOfExperts
from tensorgraph.models.parts import Attention
from tensorgraph.nn import Module, RMSNorm

from . import configs, configs_families, configs_vision
from . import reference as R
from .configs_families import EXPERTS, FAMILIES, FULL, SLIDING, YARN

TEXTS = {**configs.CONFIGS, **FAMILIES, **EXPERTS}
CASES = {**configs_vision.ENCODERS, **configs_vision.VISION}
OUTPUTS, GRADIENTS = 1e-5, 1e-4
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
BETAS = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 512,
    "beta_fast": 4.0,
    "beta_slow": 0.5,
    "attention_factor": 1.3,
}
GEMMA3_LOCAL = {"rope_type": "default", "rope_theta": 10000.0}

# (configuration, a field of its config.json, another value)
SETTINGS: list[tuple[str, str, Any]] = [
    ("gpt2-relu", "activation_function", "gelu_new"),
    ("gpt2-unscaled", "scale_attn_weights", True),
    ("gpt2-inverse-layer", "scale_attn_by_inverse_layer_idx", False),
    ("gpt2-epsilon", "layer_norm_epsilon", 1e-5),
    ("gpt2-packed", "use_cache", True),
    ("llama-epsilon", "rms_norm_eps", 1e-6),
    ("llama-theta", "rope_parameters", PLAIN_ROPE),
    ("llama-llama3", "rope_parameters", PLAIN_ROPE),
    ("llama-llama3", "rope_parameters", configs.LLAMA3_ROPE | {"low_freq_factor": 2.0}),
    ("llama-llama3", "rope_parameters", configs.LLAMA3_ROPE | {"original_max_position_embeddings": 128}),
    ("llama-linear", "rope_parameters", {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}),
    ("llama-dynamic", "rope_parameters", PLAIN_ROPE),
    ("llama-dynamic", "max_position_embeddings", 6),
    ("llama-yarn-betas", "rope_parameters", BETAS | {"truncate": False}),
    ("llama-yarn-betas", "rope_parameters", BETAS | {"beta_fast": None}),
    ("llama-yarn-betas", "rope_parameters", BETAS | {"beta_slow": None}),
    ("llama-yarn-betas", "rope_parameters", BETAS | {"attention_factor": None}),
    ("llama-yarn-betas", "rope_parameters", BETAS | {"factor": 2.0}),
    ("llama-gelu", "hidden_act", "gelu_pytorch_tanh"),
    ("llama-pad-row", "pad_token_id", None),
    ("mistral", "sliding_window", None),
    ("mistral", "sliding_window", 5),
    ("qwen2-window", "layer_types", [FULL] * 4),
    ("qwen2-window", "use_sliding_window", False),
    ("qwen3-window", "layer_types", [SLIDING] * 4),
    ("qwen3-window", "sliding_window", 2),
    ("gemma", "hidden_act", "relu"),
    ("gemma-multi-query", "pad_token_id", None),
    ("gemma2", "sliding_window", 4),
    ("gemma2", "query_pre_attn_scalar", 10),
    ("gemma2-caps", "attn_logit_softcapping", None),
    ("gemma2-caps", "final_logit_softcapping", None),
    ("gemma2-types", "layer_types", [SLIDING, FULL] * 2),
    ("gemma3", "sliding_window", 4),
    ("gemma3", "layer_types", [FULL] * 7),
    ("gemma3", "rope_parameters", {FULL: GEMMA3_LOCAL, SLIDING: GEMMA3_LOCAL}),
    ("gemma3-scaled", "rope_parameters", {FULL: {"rope_type": "default", "rope_theta": 1e6}, SLIDING: GEMMA3_LOCAL}),
    ("gemma3-scaled", "final_logit_softcapping", None),
    ("gemma3-bias", "query_pre_attn_scalar", 10),
    ("phi3-window", "sliding_window", None),
    ("phi3-longrope-long", "original_max_position_embeddings", 32),
    ("phi3-longrope-long", "max_position_embeddings", 32),
    ("phi3-cut", "rope_parameters", {"rope_type": "default", "rope_theta": 500.0}),
    ("olmo2-tied", "rms_norm_eps", 1e-6),
    ("granite", "embedding_multiplier", 1.0),
    ("granite", "residual_multiplier", 1.0),
    ("granite", "attention_multiplier", 1.0),
    ("granite", "logits_scaling", 1.0),
    ("smollm3", "no_rope_layers", [1] * 4),
    ("smollm3-window", "sliding_window", 2),
    ("smollm3-window", "layer_types", [FULL] * 4),
    ("phi-norms", "layer_norm_eps", 1e-6),
    ("phi-scaled", "rope_parameters", configs_families.LINEAR["rope_parameters"]),
    ("neox", "use_parallel_residual", False),
    ("neox", "rope_parameters", PLAIN_ROPE | {"partial_rotary_factor": 0.5}),
    ("mixtral", "num_experts_per_tok", 1),
    ("mixtral-window", "sliding_window", None),
    ("mixtral-balanced", "router_aux_loss_coef", 0.1),
    ("mixtral-balanced", "output_router_logits", False),
    ("v2", "routed_scaling_factor", 1.5),
    ("v2", "rope_interleave", False),
    ("v2-groups", "topk_method", "greedy"),
    ("v2-groups", "topk_group", 1),
    ("v2-groups", "n_group", 2),
    ("v2-yarn", "rope_parameters", YARN | {"mscale": 0.7, "mscale_all_dim": 0.7}),
    ("v2-yarn", "rope_parameters", YARN | {"mscale": 0.9, "mscale_all_dim": 0.9}),
    ("v2-yarn", "rope_parameters", PLAIN_ROPE),
    ("v3", "topk_group", 1),
    ("v3", "n_group", 2),
    ("v3", "num_experts_per_tok", 2),
    ("v3", "norm_topk_prob", False),
    ("v3", "routed_scaling_factor", 1.0),
    ("v3", "rope_interleave", False),
    ("v3-not-normalised", "norm_topk_prob", True),
    ("v3-halves", "rope_interleave", True),
    ("bert-right", "hidden_act", "gelu"),
    ("bert-spaced", "layer_norm_eps", 1e-12),
    ("bert-left", "num_attention_heads", 3),
    ("masked-pad-row", "pad_token_id", 0),
    ("vit-no-bias", "layer_norm_eps", 1e-12),
    ("vit-remainder", "hidden_act", "gelu"),
    ("vit-pooler", "pooler_act", "tanh"),
    ("classify-bits", "problem_type", "regression"),
    ("clip", "text_config.eos_token_id", 2),
    ("clip", "vision_config.hidden_act", "gelu"),
    ("clip-vision-remainder", "layer_norm_eps", 1e-5),
    ("clip-text-right", "eos_token_id", 39),
    ("siglip-remainder", "layer_norm_eps", 1e-6),
    ("siglip-pooled-only", "hidden_act", "gelu"),
    ("llava", "vision_feature_layer", -1),
    ("llava-several", "vision_feature_layer", [-2, 1, -1]),
    ("llava-several", "projector_hidden_act", "gelu"),
    ("llava-mistral", "text_config.sliding_window", None),
    ("llava-siglip", "text_config.pad_token_id", None),
    ("deepseek-vl-left", "vision_config.hidden_act", "gelu_pytorch_tanh"),
    ("paligemma-right", "text_config.rope_parameters", {"rope_type": "default", "rope_theta": 100.0}),
    ("paligemma-right", "text_config.pad_token_id", None),
    ("idefics-norms", "vision_config.layer_norm_eps", 1e-5),
    ("idefics", "rms_norm_eps", 0.1),
    ("idefics", "freeze_text_layers", True),
    ("idefics-frozen", "freeze_vision_layers", False),
    ("idefics-frozen-head", "freeze_lm_head", False),
    ("idefics-resampler", "perceiver_config.resampler_head_dim", 3),
    ("mllama", "vision_config.intermediate_layers_indices", [1, 2]),
    ("mllama-left", "vision_config.norm_eps", 1e-5),
    ("mllama-left", "text_config.rms_norm_eps", 1e-5),
    ("mllama-right", "text_config.rope_parameters", PLAIN_ROPE),
]
# Fields that must change together, for the shapes to stay.
WITH: dict[str, dict[str, Any]] = {"perceiver_config.resampler_head_dim": {"perceiver_config.resampler_n_heads": 7}}


def kinds(model: Module, kind: type) -> list[Any]:
    found = [m for _, m in model.modules() if isinstance(m, kind)]
    assert found, f"no {kind.__name__} in the model"
    return found


def without(kind: type, *parts: str) -> Callable[[Any], None]:
    """Parts of all modules of a kind return what they are given."""

    def change(model: Any) -> None:
        for m in kinds(model, kind):
            for part in parts:
                getattr(m, part).forward = lambda x: x

    return change


def unshared(model: Any) -> None:
    for m in kinds(model, MixtureOfExperts):
        m.shared.forward = lambda x: x * 0.0


def no_offset(model: Any) -> None:
    for m in kinds(model, RMSNorm):
        m.offset = 0.0


def unscaled_embedding(model: Any) -> None:
    object.__setattr__(model.plan, "scaled_embedding", False)


def all_see_all(model: Any) -> None:
    for m in kinds(model, Attention):
        m.causal = False


def unbiased_choice(model: Any) -> None:
    for m in kinds(model, MixtureOfExperts):
        m.router.bias = None


# What no field of a config says: parts of the architecture itself.
PARTS: dict[str, tuple[str, Callable[[Any], None]]] = {
    "qwen3 without norms of queries and keys": ("qwen3", without(Attention, "q_norm", "k_norm")),
    "gemma3 without norms of queries and keys": ("gemma3", without(Attention, "q_norm", "k_norm")),
    "olmo2 without norms of queries and keys": ("olmo2", without(Attention, "q_norm", "k_norm")),
    "phi without norms of queries and keys": ("phi-norms", without(Attention, "q_norm", "k_norm")),
    "gemma with plain norms": ("gemma", no_offset),
    "gemma with an embedding as it is": ("gemma", unscaled_embedding),
    "gemma2 without norms after": ("gemma2", without(Block, "attn_post_norm", "mlp_post_norm")),
    "v2 without the norm of the latent": ("v2", without(LatentAttention, "kv_norm")),
    "v2 without shared experts": ("v2", unshared),
    "v3 without the bias of the choice": ("v3", unbiased_choice),
    "clip without the first norm": ("clip-vision", lambda model: setattr(model.pre_norm, "forward", lambda x: x)),
    "clip's text that sees what follows": ("clip-text", all_see_all),
    "mllama without norms of queries and keys": ("mllama", lambda model: bare_cross(model.text.layers)),
    "idefics without norms of queries and keys": ("idefics-norms", lambda model: bare_cross(model.text.cross)),
}


def bare_cross(layers: Any) -> None:
    for m in kinds(layers, Attention):
        if m.q_norm is not None:
            m.q_norm.forward = m.k_norm.forward = lambda x: x


def padded(arrays: dict[str, Any], settings: Mapping[str, Any], image: int | None = None) -> None:
    """One id of the text becomes the one whose row gets no gradient."""
    if "input_ids" in arrays and settings.get("pad_token_id") is not None:
        words = np.flatnonzero(arrays["input_ids"] != image)
        arrays["input_ids"].reshape(-1)[words[0]] = settings["pad_token_id"]


@functools.cache
def reference_of(name: str) -> tuple[Any, dict[str, Any], R.Reference, Any, tuple[str, ...]]:
    """(model, inputs, what it computes, cotangents, float inputs)."""
    if name in TEXTS:
        text = TEXTS[name]
        model = R.build(text.cls, text.settings, text.seed)
        batch = configs.BATCHES["restart" if name == "gpt2-packed" else "plain"]
        arrays: dict[str, Any] = configs.inputs(batch, text.settings["vocab_size"], text.seed)
        padded(arrays, text.settings)
        return model, arrays, R.run(model, arrays), None, ()
    case = CASES[name]
    model, arrays = R.build(case.cls, case.settings, case.seed), configs_vision.arrays_of(case)
    padded(arrays, case.settings.get("text_config", case.settings), case.settings.get("image_token_index"))
    outputs = R.run(model, arrays, gradients=False).outputs
    given = configs_vision.cotangents_of(case, outputs)
    return model, arrays, R.run(model, arrays, cotangents=given, wrt_inputs=case.wrt), given, case.wrt


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    return functools.cache(lambda name: R.save(reference_of(name)[0], tmp_path_factory.mktemp(f"plain-{name}")))


def differs(net: Any, name: str) -> bool:
    """Whether outputs, or else gradients or their names, are beyond the bounds of single precision."""
    _, arrays, ref, given, wrt = reference_of(name)
    if R.compare(ref.outputs, net(**arrays), OUTPUTS, gradients=False):
        return True
    _, grads = net.value_and_grad(**arrays, cotangents=given, wrt_inputs=wrt)
    return bool(R.compare(ref.grads, grads, GRADIENTS, gradients=True))


def changed(folder: Path, to: Path, changes: dict[str, Any]) -> Path:
    shutil.copytree(folder, to, dirs_exist_ok=True)
    config = json.loads((to / "config.json").read_text())
    for key, value in changes.items():
        *outer, field = key.split(".")
        inner = functools.reduce(lambda c, part: c[part], outer, config)
        assert inner.get(field) != value, "no change"
        inner[field] = value
    (to / "config.json").write_text(json.dumps(config))
    return to


@pytest.mark.parametrize("name", sorted({name for name, *_ in SETTINGS} | {name for name, _ in PARTS.values()}))
def test_as_it_is_it_is_the_reference(name, folder_of):
    assert not differs(from_pretrained(folder_of(name), "float64"), name)


@pytest.mark.parametrize(("name", "field", "value"), SETTINGS)
def test_a_setting_that_is_read_otherwise_shows(name, field, value, folder_of, tmp_path):
    folder = changed(folder_of(name), tmp_path, {field: value, **WITH.get(field, {})})
    assert differs(from_pretrained(folder, "float64"), name)


@pytest.mark.parametrize("what", PARTS)
def test_a_part_that_is_left_out_shows(what, folder_of):
    name, change = PARTS[what]
    net = from_pretrained(folder_of(name), "float64")
    change(net.model)
    assert differs(net, name)


def test_settings_of_every_family_bite():
    assert len(SETTINGS) + len(PARTS) >= 100
    classes = {(TEXTS.get(name) or CASES[name]).cls for name, *_ in SETTINGS}
    everything = {c.cls for c in (*TEXTS.values(), *CASES.values())}
    assert np.setdiff1d(sorted(everything), sorted(classes)).tolist() == []
