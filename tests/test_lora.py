"""Adapters: what they train, folders, merging, errors. Against peft: tests/parity/test_lora.py."""

from __future__ import annotations

import json

import numpy as np
import pytest

import tensorgraph as tg
from tensorgraph.dims import evaluate
from tensorgraph.errors import CheckpointError, ModelError
from tensorgraph.io import safetensors
from tensorgraph.models import Net, build, from_pretrained, lora
from tensorgraph.models.lora import LoRA

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 31,
    "hidden_size": 12,
    "intermediate_size": 10,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 4,
}
IDS = np.arange(14).reshape(2, 7)


@pytest.fixture
def net(tmp_path):
    made = Net(build(LLAMA).astype("float64"), LLAMA).init(1)
    made.save_pretrained(tmp_path / "base")
    return made.add_adapter(LoRA(r=2, alpha=3, targets=("q_proj", "down_proj")), seed=2)


@pytest.mark.parametrize(("r", "trained"), [(16, 39_976_960), (32, 79_953_920)])
@pytest.mark.parametrize("layers", [None, tg.dim("n")], ids=["unrolled", "symbolic"])
def test_what_all_linear_layers_of_llama_2_7b_train(r, trained, layers):
    model = lora.add(build("llama-2-7b", layers=layers), LoRA(r=r, alpha=16))
    assert evaluate(model.total(trained=True), model.binding) == trained
    assert evaluate(model.total(trained=False), model.binding) == 6738415616


def test_an_adapter_changes_nothing_at_first_and_all_else_is_frozen(net, tmp_path):
    base = from_pretrained(tmp_path / "base", dtype="float64")
    np.testing.assert_array_equal(net(input_ids=IDS)["logits"], base(input_ids=IDS)["logits"])
    grads = net.value_and_grad(input_ids=IDS, labels=IDS)[1]
    assert set(grads) == set(lora.parameters(net.model)) == set(net.state) - set(base.state)
    assert sorted(grads)[:2] == [f"base_model.model.model.layers.0.mlp.down_proj.lora_{x}.weight" for x in "AB"]
    assert all((g == 0).all() == name.endswith("lora_A.weight") for name, g in grads.items())


def test_a_step_moves_the_adapter_alone(net):
    inputs = net.model.inputs(["input_ids", "labels"])
    step = tg.compile(net.model.outputs(**inputs)["loss"], update=tg.optim.AdamW(lr=0.1), binding=net.model.binding)
    _, state = step(step.init(net.values()), input_ids=IDS.astype(np.int32), labels=IDS.astype(np.int32))
    moved = {n for n, a in state.params.items() if not np.array_equal(a, net.state[n])}
    assert moved == set(lora.parameters(net.model))


def test_folders_and_merging(net, tmp_path):
    for name in lora.parameters(net.model):
        net.state[name] = np.random.default_rng(len(name)).standard_normal(net.state[name].shape)
    net.save_adapter(tmp_path / "adapter")
    again = from_pretrained(tmp_path / "base", dtype="float64", adapter=tmp_path / "adapter")
    assert again.adapter == net.adapter
    want = net(input_ids=IDS)["logits"]
    np.testing.assert_array_equal(again(input_ids=IDS)["logits"], want)
    merged = again.merged()
    np.testing.assert_allclose(merged(input_ids=IDS)["logits"], want, rtol=1e-12, atol=1e-13)
    assert all(p.trained for p in merged.model.parameters())
    np.testing.assert_array_equal(again.generate(IDS, 5), merged.generate(IDS, 5))


def errors():
    yield {"use_dora": True}, "TG912", "adapters with use_dora = True are not supported"
    yield {"bias": "all"}, "TG912", "adapters with bias = 'all' are not supported"
    yield {"r": 0}, "TG913", "the rank r of an adapter must be a positive whole number, not 0"
    yield {"target_modules": "("}, "TG913", "target_modules is no regular expression"
    yield {"target_modules": 3}, "TG913", "target_modules must be a string or a list of strings, not 3"
    yield {"lora_alpha": "x"}, "TG913", "lora_alpha must be a number, not 'x'"
    yield {"modules_to_save": ["score"]}, "TG922", "no module is called 'score', to be trained whole"
    yield {"modules_to_save": [3]}, "TG913", "modules_to_save must be a string or a list of strings, not [3]"
    yield {"layers_to_transform": [2]}, "TG922", "no linear layer is called ('q_proj', 'down_proj') in layers 2"
    yield {"layers_to_transform": "1"}, "TG913", "layers_to_transform must be a whole number or a list of them, not '1'"
    yield (
        {"layers_to_transform": 1, "target_modules": "all-linear"},
        "TG913",
        "layers_to_transform goes with a list of target_modules, not with one string",
    )
    yield (
        {"target_modules": ["q_proj", "embed_tokens"]},
        "TG912",
        "adapters of embeddings are not supported: model.embed_tokens\n"
        "  hint: whole=('embed_tokens',), in peft modules_to_save, trains it whole",
    )
    yield {"rank_pattern": {"q_proj": 0}}, "TG913", "the rank r of an adapter must be a positive whole number, not 0"
    yield {"rank_pattern": {"(": 2}}, "TG913", "rank_pattern is no regular expression"
    yield {"alpha_pattern": {"q_proj": "x"}}, "TG913", "alpha_pattern must be an object of numbers, not {'q_proj': 'x'}"
    yield {"target_modules": ["c_attn"]}, "TG922", "no linear layer is called ('c_attn',)"


@pytest.mark.parametrize(("change", "code", "text"), list(errors()))
def test_configs_that_are_refused(change, code, text, net, tmp_path):
    folder = net.save_adapter(tmp_path / "adapter")
    config = json.loads((folder / lora.CONFIG).read_text())
    (folder / lora.CONFIG).write_text(json.dumps(config | change))
    with pytest.raises(ModelError, match=code) as e:
        from_pretrained(tmp_path / "base", adapter=folder)
    assert text in str(e.value)


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "model.layers.0.mlp.up_proj")])
def test_some_layers_and_modules_that_are_trained_whole(targets, tmp_path):
    base = Net(build(LLAMA).astype("float64"), LLAMA).init(1)
    base.save_pretrained(tmp_path / "base")
    before, head = base(input_ids=IDS)["logits"], base.state["lm_head.weight"]
    base.add_adapter(LoRA(r=2, alpha=3, targets=targets, layers=(1,), whole=("lm_head", "norm")), seed=2)
    np.testing.assert_array_equal(base(input_ids=IDS)["logits"], before)
    own = set(lora.parameters(base.model))
    layers = {n.split(".")[4] for n in own if ".lora_" in n}
    assert layers == ({"1"} if targets == "all-linear" else {"0", "1"}), "a name in full counts in any layer"
    whole = {n.removeprefix("base_model.model.") for n in own if ".lora_" not in n}
    norms = {f"model.layers.{i}.{x}_layernorm.weight" for i in (0, 1) for x in ("input", "post_attention")}
    assert whole == {"lm_head.weight", "model.norm.weight", *norms}
    assert set(base.value_and_grad(input_ids=IDS, labels=IDS)[1]) == own
    assert set(base.mode("lora").value_and_grad(input_ids=IDS, labels=IDS)[1]) == own
    rng = np.random.default_rng(3)
    base.state = {n: a + rng.standard_normal(a.shape) * (n in own) for n, a in base.state.items()}
    base.save_adapter(tmp_path / "adapter")
    again = from_pretrained(tmp_path / "base", dtype="float64", adapter=tmp_path / "adapter")
    want = base(input_ids=IDS)["logits"]
    np.testing.assert_array_equal(again(input_ids=IDS)["logits"], want)
    assert np.abs(want - before).max() > 0.1
    merged = again.merged()
    np.testing.assert_allclose(merged(input_ids=IDS)["logits"], want, rtol=1e-12, atol=1e-12)
    assert set(merged.state) == set(from_pretrained(tmp_path / "base").state)
    assert not np.array_equal(merged.state["lm_head.weight"], head)


def test_a_module_of_tied_weights_is_trained_whole_alone(tmp_path):
    config = LLAMA | {"tie_word_embeddings": True}
    tied = Net(build(config), config).init(1)
    before = tied(input_ids=IDS)["logits"]
    tied.add_adapter(LoRA(r=1, alpha=1, targets=("q_proj",), whole=("embed_tokens",)))
    np.testing.assert_array_equal(tied(input_ids=IDS)["logits"], before)
    name = "base_model.model.model.embed_tokens.weight"
    assert name in tied.value_and_grad(input_ids=IDS, labels=IDS)[1] and "lm_head.weight" in tied.state
    with pytest.raises(ModelError, match=r"TG925.*one of its uses alone is trained whole"):
        tied.merged()


def test_tensors_that_do_not_fit(net, tmp_path):
    folder = net.save_adapter(tmp_path / "adapter")
    tensors = safetensors.read(folder / lora.FILE)
    name = sorted(tensors)[0]
    safetensors.write(folder / lora.FILE, {n: a for n, a in tensors.items() if n != name} | {"more": np.zeros(2)})
    with pytest.raises(CheckpointError) as e:
        from_pretrained(tmp_path / "base", adapter=folder)
    assert list(e.value.notes)[-2:] == [f"missing: {name} [2, 10] = [2, f]", "unexplained: more [2]"]
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        from_pretrained(tmp_path / "base", adapter=tmp_path)


def test_what_cannot_be_done_with_an_adapter(net, tmp_path):
    with pytest.raises(ModelError, match="TG926"):
        net.save_pretrained(tmp_path / "new")
    with pytest.raises(ModelError, match="TG923"):
        net.add_adapter(LoRA(r=1, alpha=1))
    bare = from_pretrained(tmp_path / "base")
    for call in (bare.merged, lambda: bare.save_adapter(tmp_path / "new")):
        with pytest.raises(ModelError, match="TG924"):
            call()
    tied = Net(build(LLAMA | {"tie_word_embeddings": True}), LLAMA).init()
    tied.add_adapter(LoRA(r=1, alpha=1, targets=("lm_head",)))
    with pytest.raises(ModelError, match="TG925"):
        tied.merged()
