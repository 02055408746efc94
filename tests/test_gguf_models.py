"""Models in GGUF files: what the header says of rotations, windows and biases is what runs, or is refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

import tensorgraph as tg
from tensorgraph.models import Net, build, from_pretrained, gguf

CONFIG = {
    "vocab_size": 19,
    "hidden_size": 16,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}
HEADER = {
    "context_length": 32,
    "embedding_length": 16,
    "block_count": 2,
    "feed_forward_length": 12,
    "attention.head_count": 2,
    "attention.head_count_kv": 2,
    "vocab_size": 19,
}
IDS = np.arange(14).reshape(2, 7)


def permuted(w: np.ndarray) -> np.ndarray:
    """Rows of q or k as converters write them: the two halves of a head interleaved."""
    return w.reshape(2, 2, 4, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def file_of(folder: Path, config: dict[str, Any], header: dict[str, Any]) -> tuple[Net, Path]:
    """A model with random values, and the file that a converter would make of it with these fields in its header."""
    settings = {"architectures": ["LlamaForCausalLM"], **CONFIG, **config}
    net = Net(build(settings), settings).init(0)
    rng = np.random.default_rng(1)
    net.state = {n: rng.normal(0, 0.3, a.shape).astype("float32") for n, a in net.state.items()}
    published = {p: n for n, p in net.model.named_parameters().items()}
    net.model.names = gguf.NAMES
    writer = GGUFWriter(path := folder / "model.gguf", "llama")
    for key, value in {**HEADER, **header}.items():
        add = writer.add_string if isinstance(value, str) else writer.add_float32 if isinstance(value, float) else None
        (add or writer.add_uint32)(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-6)
    for name, p in net.model.named_parameters().items():
        a = net.state[published[p]]
        writer.add_tensor(name, permuted(a) if "attn_q." in name or "attn_k." in name else a)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    again = Net(build(settings), settings)
    again.state = net.state
    return again, path


@pytest.mark.parametrize(
    ("config", "header"),
    [
        ({}, {}),
        ({}, {"rope.dimension_count": 8}),
        ({"mlp_bias": True}, {}),
        ({"attention_bias": True}, {}),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.5}},
            {"rope.scaling.type": "linear", "rope.scaling.factor": 2.5},
        ),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.5}}, {"rope.scale_linear": 2.5}),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 3}, {"attention.sliding_window": 3}),
    ],
    ids=["plain", "all-rotated", "mlp-bias", "attention-bias", "linear", "linear-as-once-written", "window"],
)
def test_the_file_runs_as_the_model_it_was_made_of(tmp_path, config, header):
    net, path = file_of(tmp_path, config, header)
    want, got = net(input_ids=IDS)["logits"], from_pretrained(path)(input_ids=IDS)["logits"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"rope.scaling.type": "linear"}, "factor"),
        ({"rope.scaling.type": "yarn"}, "positions scaled by 'yarn' are not supported in GGUF files"),
        ({"rope.dimension_count": 4}, "rotating 4 of a head's 8 values is not supported in GGUF files"),
    ],
)
def test_what_is_not_supported_is_refused(tmp_path, header, words):
    _, path = file_of(tmp_path, {}, header)
    with pytest.raises(tg.errors.TensorgraphError, match=words):
        from_pretrained(path)
