"""Adapters against peft: outputs, loss, the gradients of the adapter alone, merging, folders in both directions."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the reference needs torch: make parity")
pytest.importorskip("transformers", reason="the reference needs transformers: make parity")
pytest.importorskip("peft", reason="the reference needs peft: make parity")

import peft
import torch

from tensorgraph.errors import ModelError
from tensorgraph.models import from_pretrained
from tensorgraph.models.lora import LoRA

from . import reference as R
from .configs import BATCHES, GPT2, LLAMA, inputs

QV = ["q_proj", "v_proj"]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# class, its config, the adapter's
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", LLAMA, {"r": 4, "lora_alpha": 8, "target_modules": QV}),
    "llama-all": ("LlamaForCausalLM", LLAMA | {"mlp_bias": True}, {"r": 3, "lora_alpha": 7, "target_modules": LINEAR}),
    "llama-pattern": (
        "LlamaForCausalLM",
        LLAMA | {"tie_word_embeddings": True},
        {"r": 2, "lora_alpha": 5, "target_modules": r".*layers\.1\..*_proj", "exclude_modules": ["o_proj"]},
    ),
    "llama-head": (
        "LlamaForCausalLM",
        LLAMA,
        {"r": 2, "lora_alpha": 5, "target_modules": ["lm_head", "layers.0.mlp.up_proj"], "use_rslora": True},
    ),
    "llama-ranks": (
        "LlamaForCausalLM",
        LLAMA,
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": LINEAR,
            # peft sorts what it writes, and the first that fits counts
            "rank_pattern": {"layers.0.mlp.up_proj": 5, r"layers\.1\..*": 3, "q_proj": 2},
            "alpha_pattern": {r"layers\.0\.self_attn\.k_proj": 1, "mlp.*": 3},
        },
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        GPT2,
        {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn"], "fan_in_fan_out": True, "use_rslora": True},
    ),
    "gpt2-all": (
        "GPT2LMHeadModel",
        GPT2,
        {"r": 3, "lora_alpha": 9, "target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True},
    ),
    "qwen3": (
        "Qwen3ForCausalLM",
        LLAMA | {"head_dim": 10},
        {"r": 4, "lora_alpha": 3, "target_modules": "all-linear"},
    ),
    "llama-layers": (
        "LlamaForCausalLM",
        LLAMA,
        {"r": 2, "lora_alpha": 3, "target_modules": [*LINEAR, "model.layers.0.mlp.up_proj"], "layers_to_transform": 1},
    ),
    "gpt2-layers": (
        "GPT2LMHeadModel",
        GPT2,
        {
            "r": 2,
            "lora_alpha": 3,
            "target_modules": ["c_attn", "c_proj"],
            "layers_to_transform": [0],
            "layers_pattern": "h",
            "fan_in_fan_out": True,
        },
    ),
    "llama-whole": (
        "LlamaForCausalLM",
        LLAMA,
        {
            "r": 2,
            "lora_alpha": 3,
            "target_modules": LINEAR,
            "modules_to_save": ["lm_head", "embed_tokens", "layers.1.self_attn", "input_layernorm"],
        },
    ),
    "llama-untied": (
        "LlamaForCausalLM",
        LLAMA | {"tie_word_embeddings": True},
        {"r": 2, "lora_alpha": 3, "target_modules": QV, "modules_to_save": ["embed_tokens"]},
    ),
    "phi3": (
        "Phi3ForCausalLM",
        LLAMA | {"pad_token_id": None},
        {"r": 4, "lora_alpha": 3, "target_modules": ["qkv_proj", "gate_up_proj"]},
    ),
}
BOUNDS = {"float64": (1e-9, 1e-9), "float32": (1e-5, 1e-4)}


@functools.cache
def adapted(name: str) -> Any:
    """peft's model in float64, no weight of its adapter zero."""
    cls, config, adapter = CASES[name]
    base = R.build(cls, config, seed=200)
    with R.quiet(), R.true_float64(strict=False):
        model = peft.get_peft_model(base, peft.LoraConfig(**adapter)).double().eval()
    rng = np.random.default_rng(201)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora_" in n or "modules_to_save" in n:
                p.copy_(torch.from_numpy((rng.standard_normal(tuple(p.shape)) * 0.3).astype(np.float32)))
    return model


@functools.cache
def reference(name: str, batch: str) -> R.Reference:
    model = adapted(name)
    tensors = {n: torch.from_numpy(np.asarray(a)) for n, a in arrays_of(name, batch).items()}
    model.zero_grad()
    with R.quiet(), R.true_float64():
        result = model(**tensors)
        result.loss.backward()
    grads = {
        n.replace(".modules_to_save", "").replace(".default", ""): p.grad.numpy().copy()
        for n, p in model.named_parameters()
        if p.requires_grad
    }
    return R.Reference({"logits": result.logits.detach().numpy()}, result.loss.item(), grads)


def arrays_of(name: str, batch: str) -> dict[str, R.Array]:
    return inputs(BATCHES[batch], CASES[name][1]["vocab_size"], seed=202)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    @functools.cache
    def make(name: str) -> tuple[Path, Path]:
        cls, config, _ = CASES[name]
        base = R.save(R.build(cls, config, seed=200), tmp_path_factory.mktemp(f"base-{name}"))
        folder = tmp_path_factory.mktemp(f"adapter-{name}")
        with R.quiet():
            adapted(name).save_pretrained(folder)
        return base, folder

    return make


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("batch", ["plain", "left"])
@pytest.mark.parametrize("name", CASES)
def test_outputs_loss_and_gradients(name, batch, dtype, folders):
    base, adapter = folders(name)
    ref, arrays = reference(name, batch), arrays_of(name, batch)
    output_bound, grad_bound = BOUNDS[dtype]
    net = from_pretrained(base, dtype=dtype, adapter=adapter)
    R.assert_same(ref.outputs, {"logits": net(**arrays)["logits"]}, output_bound, gradients=False)
    loss, grads = net.value_and_grad(**arrays)
    R.assert_same({"loss": np.array(ref.loss)}, {"loss": np.asarray(loss)}, output_bound, gradients=False)
    R.assert_same(ref.grads, grads, grad_bound, gradients=True)
    own = {n for n in R.names_in(adapter) if "base_layer" not in n}
    assert set(grads) == own
    whole = {n.removeprefix("base_model.model.") for n in own if ".lora_" not in n}
    still = {"lm_head.weight"} if name == "llama-untied" else set()  # the head keeps the table that it was tied to
    assert set(net.state) == own | (R.names_in(base) - whole) | still


@pytest.mark.parametrize("name", CASES)
def test_merged_is_the_same_model(name, folders, tmp_path):
    base, adapter = folders(name)
    net, arrays = from_pretrained(base, dtype="float64", adapter=adapter), arrays_of(name, "left")
    if name == "llama-untied":
        with pytest.raises(ModelError, match="TG925"):
            net.merged()
        return
    merged = net.merged()
    assert set(merged.state) == R.names_in(base)
    R.assert_same(net(**arrays), merged(**arrays), 1e-12, gradients=False)
    merged.save_pretrained(tmp_path)
    again = {"logits": R.run(R.load(tmp_path), arrays).outputs["logits"]}
    R.assert_same(reference(name, "left").outputs, again, 1e-9, gradients=False)


@pytest.mark.parametrize("name", CASES)
def test_what_is_saved_peft_reads(name, folders, tmp_path):
    base, adapter = folders(name)
    net = from_pretrained(base, adapter=adapter)
    net.save_adapter(tmp_path)
    cls, config, _ = CASES[name]
    with R.quiet():
        again = peft.PeftModel.from_pretrained(R.build(cls, config, seed=200), tmp_path).double().eval()
    arrays = {n: torch.from_numpy(np.asarray(a)) for n, a in arrays_of(name, "plain").items()}
    with R.quiet(), R.true_float64(), torch.no_grad():
        logits = again(**arrays).logits.numpy()
    R.assert_same(reference(name, "plain").outputs, {"logits": logits}, 1e-12, gradients=False)


def test_an_adapter_of_ours(folders, tmp_path):
    base, _ = folders("llama")
    net, arrays = from_pretrained(base, dtype="float64"), arrays_of("llama", "plain")
    before = net(**arrays)["logits"]
    net.add_adapter(LoRA(r=4, alpha=8, targets=("q_proj", "v_proj")))
    np.testing.assert_array_equal(before, net(**arrays)["logits"])
    assert set(net.value_and_grad(**arrays)[1]) == set(reference("llama", "plain").grads)
    net.save_adapter(tmp_path)
    with R.quiet():
        peft.PeftModel.from_pretrained(R.build("LlamaForCausalLM", LLAMA, seed=200), tmp_path)
