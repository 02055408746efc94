"""GGUF files as checkpoints: metadata as a config, tensors by their names, q and k rows as everywhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tensorgraph.errors import ModelError
from tensorgraph.io.files import Array
from tensorgraph.io.gguf import GGUF, unpermute_rope

from .architecture import Names

# "<architecture>.<key>" of the metadata -> field of the config. Source: docs/gguf.md of github.com/ggml-org/ggml.
FIELDS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
TOKENS = {"bos": "bos_token_id", "eos": "eos_token_id", "padding": "pad_token_id"}
NAMES: Names = (
    ("embed.", "token_embd."),
    ("layers.{}.attn_norm.", "blk.{}.attn_norm."),
    ("layers.{}.attn.q.", "blk.{}.attn_q."),
    ("layers.{}.attn.k.", "blk.{}.attn_k."),
    ("layers.{}.attn.v.", "blk.{}.attn_v."),
    ("layers.{}.attn.q_norm.", "blk.{}.attn_q_norm."),
    ("layers.{}.attn.k_norm.", "blk.{}.attn_k_norm."),
    ("layers.{}.attn.out.", "blk.{}.attn_output."),
    ("layers.{}.mlp_norm.", "blk.{}.ffn_norm."),
    ("layers.{}.mlp.gate.", "blk.{}.ffn_gate."),
    ("layers.{}.mlp.up.", "blk.{}.ffn_up."),
    ("layers.{}.mlp.down.", "blk.{}.ffn_down."),
    ("norm.", "output_norm."),
    ("head.", "output."),
)
BUFFERS = ("rope_freqs.weight",)  # read into the config


class Kind(NamedTuple):
    """What a GGUF architecture is in transformers, and whether its q and k rows are permuted."""

    cls: str
    permuted: bool


KINDS = {
    "llama": Kind("LlamaForCausalLM", True),
    "qwen2": Kind("Qwen2ForCausalLM", False),
    "qwen3": Kind("Qwen3ForCausalLM", False),
}


def config(file: GGUF) -> dict[str, Any]:
    """The config of the model in a file, under transformers' names.

    Raises ModelError[TG911] for an architecture that is not supported, [TG912] for a rotation of positions that is not.
    """
    name = file.metadata.get("general.architecture")
    if name not in KINDS:
        raise ModelError(
            "TG911", f"{file.path.name}: unknown GGUF architecture {name!r}", hint=f"supported are {', '.join(KINDS)}"
        )
    out: dict[str, Any] = {"architectures": [KINDS[name].cls], "model_type": name}
    for key, field in FIELDS.items():
        if (value := file.metadata.get(f"{name}.{key}")) is not None:
            out[field] = value
    out.setdefault("vocab_size", len(file.metadata.get("tokenizer.ggml.tokens", ())))
    for key, field in TOKENS.items():
        if (value := file.metadata.get(f"tokenizer.ggml.{key}_token_id")) is not None:
            out[field] = value
    out["tie_word_embeddings"] = "output.weight" not in file.tensors
    out["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    if name == "llama":
        out["mlp_bias"] = "blk.0.ffn_up.bias" in file.tensors
        if window := file.metadata.get(f"{name}.attention.sliding_window"):  # Mistral's files bear Llama's name
            out |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": window}
            del out["attention_bias"], out["mlp_bias"]  # which that class has not
    out |= _rope(file, name, out)
    return out


def _rope(file: GGUF, name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    older = file.metadata.get(f"{name}.rope.scale_linear")  # before there were kinds of scaling
    kind = file.metadata.get(f"{name}.rope.scaling.type", "none" if older in (None, 1.0) else "linear")
    rotated, head = file.metadata.get(f"{name}.rope.dimension_count"), config.get("head_dim")
    if head is None and all(isinstance(config.get(n), int) for n in ("hidden_size", "num_attention_heads")):
        head = config["hidden_size"] // max(config["num_attention_heads"], 1)
    if rotated is not None and rotated != head:
        text = f"{file.path.name}: rotating {rotated} of a head's {head} values is not supported in GGUF files"
        raise ModelError("TG912", text)
    if kind == "linear":
        factor = file.metadata.get(f"{name}.rope.scaling.factor", older)
        return {"rope_scaling": {"rope_type": "linear", "factor": factor}}
    if kind not in ("none", "longrope"):
        raise ModelError("TG912", f"{file.path.name}: positions scaled by {kind!r} are not supported in GGUF files")
    if "rope_freqs.weight" in file.tensors:  # divisors of the frequencies: how Llama 3.1's scaling is stored
        factors = [float(x) for x in file.tensors.read("rope_freqs.weight", "float32")]
        scaling = {"short_factor": factors, "long_factor": factors, "factor": 1.0}
        return {"rope_scaling": {"rope_type": "longrope", "attention_factor": 1.0, **scaling}}
    return {}


def reader(file: GGUF, config: Mapping[str, Any]) -> Callable[[str, Any], Array]:
    """A function (name, dtype) -> array, with the rows of q and k in the order that rotation by halves expects."""
    permuted = KINDS[file.metadata["general.architecture"]].permuted
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads

    def read(name: str, dtype: Any) -> Array:
        w = file.tensors.read(name, dtype)
        part = name.split(".")[2] if name.startswith("blk.") else ""
        if permuted and part in ("attn_q", "attn_k"):
            return unpermute_rope(w, heads if part == "attn_q" else kv_heads)
        return w

    return read
