"""FLOPs of products, forward and backward, against torch's counter on the same models with eager attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the reference needs torch: make parity")
pytest.importorskip("transformers", reason="the reference needs transformers: make parity")
pytest.importorskip("peft", reason="the reference needs peft: make parity")

import peft
import torch
from torch.utils.flop_counter import FlopCounterMode

from tensorgraph.cost import cost
from tensorgraph.models import LoRA, Net, build, lora

from . import reference as R
from .configs import GPT2, LLAMA
from .configs_families import MIXTRAL, V2, V3

B, T = 2, 7
MODELS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "gpt2": ("GPT2LMHeadModel", GPT2, ("c_attn", "c_fc")),
    "llama": ("LlamaForCausalLM", LLAMA, ("q_proj", "v_proj", "down_proj")),
    "gemma2": ("Gemma2ForCausalLM", LLAMA | {"head_dim": 10, "pad_token_id": None}, ("q_proj", "o_proj")),
    "mixtral": ("MixtralForCausalLM", MIXTRAL, ("q_proj", "o_proj")),
    "v2": ("DeepseekV2ForCausalLM", V2, ("q_b_proj", "kv_b_proj")),
    "v3": ("DeepseekV3ForCausalLM", V3, ("kv_a_proj_with_mqa", "o_proj")),
}


def counted(model: Any, ids: Any) -> tuple[int, int]:
    """(forward, backward) by torch's counter."""
    with R.quiet():
        with FlopCounterMode(display=False) as forward:
            loss = model(input_ids=ids, labels=ids).loss
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    return forward.get_total_flops(), backward.get_total_flops()


def ours(net: Net) -> tuple[int, int]:
    found = cost(net.trace("input_ids", "labels", gradients=True), {**net.model.binding, "B": B, "T": T})
    return found.forward.products, found.backward.products - found.recomputed.products


@pytest.mark.parametrize("mode", ["all", "head", "lora"])
@pytest.mark.parametrize("name", MODELS)
def test_products_are_those_that_torch_counts(name, mode):
    cls, config, targets = MODELS[name]
    model = R.build(cls, config, seed=300).float()
    net = Net(build({"architectures": [cls], **model.config.to_dict()}), model.config.to_dict())
    if mode == "head":  # the last norm and what follows it
        last = ("lm_head", "transformer.ln_f", "model.norm")
        for n, p in model.named_parameters():
            p.requires_grad_(n.startswith(last) or (n == "transformer.wte.weight"))
        net.model.freeze()
        for n, p in net.model.named_parameters().items():
            p.trained = n.startswith(last) or n == "transformer.wte.weight"
    if mode == "lora":
        adapter = peft.LoraConfig(r=3, target_modules=list(targets), fan_in_fan_out=name == "gpt2")
        with R.quiet():
            model = peft.get_peft_model(model, adapter)
        lora.add(net.model, LoRA(r=3, alpha=8, targets=targets))
    ids = torch.from_numpy(np.random.default_rng(301).integers(0, 30, (B, T)))
    assert ours(net) == counted(model, ids)
