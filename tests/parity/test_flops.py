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
from .configs_vision import ENCODERS, SEEN, VISION, arrays_of

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


LLAVA: dict[str, Any] = {
    "text_config": {**LLAMA, "model_type": "llama", "pad_token_id": None},
    "vision_config": {"model_type": "clip_vision_model", **SEEN},
    "image_token_index": 38,
    "vision_feature_layer": -1,  # else the reference runs a layer whose output nobody reads
}


@pytest.mark.parametrize("mode", ["all", "bridge-only", "bridge+vision", "bridge+llm", "bridge+lora"])
def test_products_of_the_stages_are_those_that_torch_counts(mode):
    cls = "LlavaForConditionalGeneration"
    model = R.build(cls, LLAVA, seed=302).float()
    config = {"architectures": [cls], **model.config.to_dict()}
    net = Net(build(config), config)
    trained = {"bridge": "multi_modal_projector", "vision": "vision_tower", "llm": "language_model", "lora": "lora_"}
    parts = ["bridge", "vision", "llm"] if mode == "all" else mode.removesuffix("-only").split("+")
    if "lora" in parts:
        with R.quiet():
            adapter = peft.LoraConfig(r=3, target_modules=r".*language_model.*\.(q|k|v|o|gate|up|down)_proj")
            model = peft.get_peft_model(model, adapter)
    for n, p in model.named_parameters():
        p.requires_grad_(any(trained[part] in n or (part == "llm" and "lm_head" in n) for part in parts))
    net.mode(mode, LoRA(r=3, alpha=8) if "lora" in parts else None)
    rng = np.random.default_rng(303)
    image = model.config.vision_config
    patches = (image.image_size // image.patch_size) ** 2
    ids = rng.integers(0, 30, (B, patches + 3))
    ids[:, 1 : 1 + patches] = 38
    pixels = torch.from_numpy(rng.standard_normal((B, image.num_channels, image.image_size, image.image_size))).float()
    given = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(ids), "pixel_values": pixels}
    with R.quiet():
        with FlopCounterMode(display=False) as forward:
            loss = model(**given).loss
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    graph = net.trace("input_ids", "pixel_values", "labels", gradients=True)
    found = cost(graph, {**net.model.binding, "B": B, "T": ids.shape[1], "I": B})
    assert found.forward.products == forward.get_total_flops()
    assert found.backward.products - found.recomputed.products == backward.get_total_flops()


OTHERS = ("masked", "masked-untied", "classify", "clip", "paligemma", "idefics", "idefics-resampler", "mllama")


@pytest.mark.parametrize("name", ["llava", "paligemma", "mllama"])
def test_the_cache_holds_as_much_as_theirs(name):
    """Of Mllama with the keys and values of the images, which do not grow."""
    case = VISION[name]
    model = R.build(case.cls, dict(case.settings), seed=case.seed).float()
    config = {**model.config.to_dict(), "architectures": [case.cls]}
    net = Net(build(config), config)
    arrays = {n: a for n, a in arrays_of(case).items() if n != "labels"}
    given = {n: torch.from_numpy(np.asarray(a)) for n, a in arrays.items()}
    with R.quiet(), torch.no_grad():
        theirs = model(**{n: a.float() if a.is_floating_point() else a for n, a in given.items()}, use_cache=True)
    held = sum(
        t.numel() * t.element_size() for layer in theirs.past_key_values.layers for t in (layer.keys, layer.values)
    )
    graph = net.trace(*arrays)
    sizes = graph.infer_binding({n: a for n, a in arrays.items() if n in graph.inputs}, net.model.binding, partial=True)
    assert cost(graph, sizes).bytes["kv_cache"] == held


@pytest.mark.parametrize("name", OTHERS)
def test_products_of_encoders_and_of_models_that_see_are_those_that_torch_counts(name):
    case = {**ENCODERS, **VISION}[name]
    model = R.build(case.cls, dict(case.settings), seed=case.seed).float()
    config = {**model.config.to_dict(), "architectures": [case.cls]}
    net = Net(build(config), config)
    arrays = {n: a for n, a in arrays_of(case).items() if n not in case.flags}
    given = {n: torch.from_numpy(np.asarray(a)) for n, a in arrays.items()}
    given = {n: a.float() if a.is_floating_point() else a for n, a in given.items()}
    with R.quiet():
        with FlopCounterMode(display=False) as forward:
            loss = model(**given, **dict.fromkeys(case.flags, True)).loss
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    graph = net.trace(*arrays, *case.flags, gradients=True)
    sizes = graph.infer_binding({n: a for n, a in arrays.items() if n in graph.inputs}, net.model.binding, partial=True)
    found, masks = cost(graph, sizes), 0
    if case.cls.startswith(
        "Mllama"
    ):  # what tells real tiles from absent ones is a product there, of a column and a row
        image = case.settings["vision_config"]
        places = image["max_num_tiles"] * 16  # 3 x 3 patches and a class token, filled up to a multiple of 8
        masks = 2 * arrays["pixel_values"].shape[0] * case.tiled * places**2
    assert found.forward.products == forward.get_total_flops() - masks
    assert found.backward.products - found.recomputed.products == backward.get_total_flops()
