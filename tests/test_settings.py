"""Wrong configs: every field of every architecture is refused by its name, when the model is built."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tensorgraph.errors import ModelError, TensorgraphError
from tensorgraph.models import ARCHITECTURES, architecture, build, clip, idefics, mllama, presets
from tensorgraph.models.settings import FIELDS, ROTATION

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
MLLAMA = {
    "text_config.num_hidden_layers": 2,
    "text_config.cross_attention_layers": [1],
    "vision_config.num_hidden_layers": 2,
    "vision_config.intermediate_layers_indices": [1],
    "vision_config.vision_output_dim": 2560,
}
ERRORS: list[tuple[str, dict[str, Any], str]] = [
    ("gpt2", {"n_embd": "768"}, "[TG913] n_embd must be a positive whole number, not '768'"),
    ("gpt2", {"n_embd": 768.0}, "[TG913] n_embd must be a positive whole number, not 768.0"),
    ("gpt2", {"n_head": 0}, "[TG913] n_head must be a positive whole number, not 0"),
    ("gpt2", {"n_inner": -1}, "[TG913] n_inner must be a positive whole number or null, not -1"),
    ("gpt2", {"vocab_size": None}, "[TG913] vocab_size must be a positive whole number, not None"),
    ("gpt2", {"vocab_size": True}, "[TG913] vocab_size must be a positive whole number, not True"),
    ("gpt2", {"layer_norm_epsilon": "1e-5"}, "[TG913] layer_norm_epsilon must be a number, 0 or more, not '1e-5'"),
    ("gpt2", {"initializer_range": None}, "[TG913] initializer_range must be a number, 0 or more, not None"),
    ("gpt2", {"tie_word_embeddings": "yes"}, "[TG913] tie_word_embeddings must be true or false, not 'yes'"),
    (
        "gpt2",
        {"eos_token_id": "a"},
        "[TG913] eos_token_id must be a whole number or a list of whole numbers or null, not 'a'",
    ),
    ("gpt2", {"activation_function": None}, "[TG913] activation_function must be the name of an activation, not None"),
    ("llama-3-8b", {"rope_theta": "x"}, "[TG913] rope_theta must be a positive number or null, not 'x'"),
    ("llama-3-8b", {"rope_theta": None}, "[TG913] rope_parameters.rope_theta is missing: rope_type 'default' needs it"),
    ("llama-3-8b", {"rope_scaling": "llama3"}, "[TG913] rope_scaling must be an object or null, not 'llama3'"),
    (
        "llama-3-8b",
        {"rope_scaling": {"type": "yarm"}},
        "[TG912] unknown rope_scaling.type 'yarm'\n  hint: did you mean yarn, dynamic?",
    ),
    (
        "llama-3-8b",
        {"rope_parameters": {"rope_type": 3}},
        "[TG913] rope_parameters.rope_type must be a text, not 3",
    ),
    (
        "llama-3-8b",
        {"rope_scaling": {"rope_type": "llama3"}},
        "[TG913] rope_scaling.factor is missing: rope_type 'llama3' needs it",
    ),
    (
        "llama-3-8b",
        {"rope_scaling": {**LLAMA3, "low_freq_factor": 0}},
        "[TG913] rope_scaling.low_freq_factor must be a positive number, not 0",
    ),
    (
        "llama-3-8b",
        {"num_key_value_heads": 3},
        "[TG913] num_attention_heads = 32 is not divisible by num_key_value_heads = 3",
    ),
    (
        "llama-3-8b",
        {"head_dim": 33},
        "[TG913] head_dim = 33: rotary positions turn pairs, so it must be even",
    ),
    (
        "llama-3-8b",
        {"num_attention_heads": 4096, "num_key_value_heads": None},
        "[TG913] hidden_size / num_attention_heads = 1: rotary positions turn pairs, so it must be even",
    ),
    (
        "llama-3-8b",
        {"head_dim": 2, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        "[TG913] head_dim = 2: rope_type 'dynamic' needs more than one pair",
    ),
    ("llama-3-8b", {"hidden_size": 4095}, "[TG913] hidden_size = 4095 is not divisible by num_attention_heads = 32"),
    (
        "llama-3-8b",
        {"pad_token_id": 128256},
        "[TG913] pad_token_id = 128256 is no id: vocab_size = 128256\n"
        "  hint: a vocabulary of 128257 or more, or pad_token_id null",
    ),
    (
        "phi-3-mini",
        {"rope_scaling": {"type": "su", "short_factor": [1.0] * 48, "long_factor": [2.0] * 47}},
        "[TG913] rope_scaling.long_factor has 47 numbers for 48 pairs",
    ),
    (
        "phi-3-mini",
        {"partial_rotary_factor": 0.95},
        "[TG913] hidden_size / num_attention_heads = 96, of which partial_rotary_factor = 0.95 makes 91: "
        "rotary positions turn pairs, so it must be even",
    ),
    ("gemma-2-9b", {"sliding_window": None}, "[TG913] sliding_window must be a positive whole number, not None"),
    ("gemma-2-9b", {"query_pre_attn_scalar": 0}, "[TG913] query_pre_attn_scalar must be a positive number, not 0"),
    (
        "gemma-2-9b",
        {"layer_types": ["chunked_attention"] * 42},
        "[TG912] layer_types: 'chunked_attention' is not supported",
    ),
    (
        "gemma-3-1b",
        {"sliding_window_pattern": 0},
        "[TG913] sliding_window_pattern must be a positive whole number, not 0",
    ),
    ("mixtral-8x7b", {"num_experts_per_tok": 9}, "[TG913] num_experts_per_tok = 9, and num_local_experts = 8"),
    ("deepseek-v3", {"n_group": 7}, "[TG913] n_routed_experts = 256 is not divisible by n_group = 7"),
    ("deepseek-v3", {"topk_group": 9}, "[TG913] topk_group = 9, and n_group = 8"),
    (
        "deepseek-v3",
        {"n_group": 256},
        "[TG913] n_group = 256 leaves 1 of n_routed_experts = 256 to a group\n  hint: a group is judged by its 2 best",
    ),
    (
        "deepseek-v3",
        {"qk_rope_head_dim": 63},
        "[TG913] qk_rope_head_dim = 63: rotary positions turn pairs, so it must be even",
    ),
    ("bert-base", {"pad_token_id": -30523}, "[TG913] pad_token_id = -30523 is no id: vocab_size = 30522"),
    (
        "vit-b-16",
        {"image_size": [224]},
        "[TG913] image_size must be a positive whole number or two of them, not [224]",
    ),
    (
        "clip-vit-l-14-336",
        {"text_config.hidden_size": "x"},
        "[TG913] text_config.hidden_size must be a positive whole number, not 'x'",
    ),
    (
        "clip-vit-l-14-336",
        {"text_config.eos_token_id": [1, 2]},
        "[TG913] text_config.eos_token_id must be one id, at which texts are read, not [1, 2]",
    ),
    ("clip-vit-l-14-336", {"vision_config": [1]}, "[TG913] vision_config must be an object or null, not [1]"),
    (
        "llava-1.5-7b",
        {"text_config.model_type": "lama"},
        "[TG912] unknown text_config.model_type 'lama'\n  hint: did you mean llama?",
    ),
    (
        "llava-1.5-7b",
        {"text_config.num_key_value_heads": 5},
        "[TG913] text_config.num_attention_heads = 32 is not divisible by num_key_value_heads = 5",
    ),
    (
        "paligemma-3b",
        {"vision_config.num_attention_heads": 17},
        "[TG913] vision_config.hidden_size = 1152 is not divisible by num_attention_heads = 17",
    ),
    (
        "idefics-9b",
        {"num_hidden_layers": 30},
        "[TG913] num_hidden_layers = 30 is not divisible by cross_layer_interval = 4",
    ),
    (
        "idefics-9b",
        {"vision_config.embed_dim": 0},
        "[TG913] vision_config.embed_dim must be a positive whole number, not 0",
    ),
    (
        "llama-3.2-11b-vision",
        {"vision_config.intermediate_layers_indices": []},
        "[TG913] vision_config.vision_output_dim = 7680 is not hidden_size times 1\n"
        "  hint: its last layer, and those of intermediate_layers_indices",
    ),
    ("mini-268", {"positions": "rotary"}, "[TG912] unknown positions 'rotary'\n  hint: known are learned, sinusoidal"),
    ("mini-268", {"n_embd": 5}, "[TG913] n_embd = 5: sinusoidal positions are pairs, so it must be even"),
]


@pytest.mark.parametrize(("name", "changes", "message"), ERRORS, ids=[f"{e[0]} {e[1]}"[:60] for e in ERRORS])
def test_errors(name, changes, message):
    with pytest.raises(ModelError) as e:
        build(name, **changes)
    assert str(e.value) == message


# ------------------------------------------------------------------------------- every field of every architecture

GONE = object()
INSIDE = {
    "clip": {"text_config": clip.TEXT, "vision_config": clip.VISION},
    "idefics": {"vision_config": idefics.VISION, "perceiver_config": idefics.PERCEIVER},
    "mllama": {"text_config": mllama.TEXT, "vision_config": mllama.VISION},
}
ROPES = {"llama-3.1-8b", "deepseek-v3", "phi-3-mini"}


def small(name: str) -> dict[str, Any]:
    """A preset's config with few layers."""
    config = copy.deepcopy(presets.config(name))
    for part in (config, config.get("text_config", {}), config.get("vision_config", {})):
        for key in ("num_hidden_layers", "n_layer", "num_global_layers", "first_k_dense_replace"):
            if key in part:
                part[key] = min(part[key], 1 if key.startswith("first") else 2)
        if "cross_layer_interval" in part:
            part["cross_layer_interval"] = 1
    if name == "llama-3.2-11b-vision":
        for path, value in MLLAMA.items():
            outer, _, inner = path.partition(".")
            config[outer][inner] = value
    return config


def subjects() -> list[str]:
    """A preset of each architecture, and one of each rotation."""
    found: dict[str, str] = {}
    for name in presets.names():
        found.setdefault(presets.config(name)["architectures"][0], name)
    return [*found.values(), *(ROPES - set(found.values()))]


def paths(config: dict[str, Any]) -> list[tuple[str, ...]]:
    """Every field that the config may have, those in configs inside too."""
    a = architecture.find(config, ARCHITECTURES)[1]
    out: list[tuple[str, ...]] = [(key,) for key in {**a.defaults, **config} if key != "architectures"]
    for outer in ("text_config", "vision_config", "perceiver_config", "rope_scaling"):
        own = {**INSIDE.get(a.model_type, {}).get(outer, {}), **(config.get(outer) or {})}
        out += [(outer, key) for key in own if key != "model_type"]
    return out


def changed(config: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    config = copy.deepcopy(config)
    part = config
    for key in path[:-1]:
        part[key] = part.get(key) or {}
        part = part[key]
    if value is GONE:
        part.pop(path[-1], None)
    else:
        part[path[-1]] = value
    return config


def outcome(config: dict[str, Any], path: tuple[str, ...], value: Any, trace: bool) -> None:
    """A model, or an error that names the field: nothing else."""
    try:
        model = build(changed(config, path, value))
        if trace:
            model.outputs(**model.inputs([*(model.usual or model.needs), *model.learns]))
    except TensorgraphError as e:
        assert path[-1] in str(e), f"{path} = {value!r}: {e.report()}"


@pytest.mark.parametrize("name", subjects())
def test_a_wrong_field_is_named(name):
    config = small(name)
    for path in paths(config):
        outcome(config, path, "x", trace=False)
        outcome(config, path, -1, trace=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", subjects())
def test_any_value_of_any_field_gives_a_model_or_names_the_field(name):
    config = small(name)
    for path in paths(config):
        for value in ("1", 0, 3, None, 1.5, True, [], {}, [1, "x"], GONE):
            outcome(config, path, value, trace=True)


def test_the_table_knows_what_architectures_read():
    read = {key for a in ARCHITECTURES.values() for key in a.defaults}
    read |= {key for parts in INSIDE.values() for part in parts.values() for key in part}
    assert read - {"model_type"} <= FIELDS.keys()
    assert {key for p in presets.names() for key in presets.config(p).get("rope_scaling") or ()} <= ROTATION.keys()
