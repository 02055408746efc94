"""Mixture of experts: its definition written out, what files hold and what the graph holds, counts, freezing."""

from __future__ import annotations

import numpy as np
import pytest

import tensorgraph as tg
from tensorgraph.io import safetensors
from tensorgraph.models import Net, build, from_pretrained
from tensorgraph.models.parts import Context
from tensorgraph.visualize import ledger

CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "vocab_size": 31,
    "hidden_size": 12,
    "intermediate_size": 10,
    "moe_intermediate_size": 5,
    "num_hidden_layers": 2,
    "first_k_dense_replace": 1,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "q_lora_rank": 7,
    "kv_lora_rank": 6,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 2,
    "v_head_dim": 3,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
}
IDS = np.arange(14).reshape(2, 7)
MOE = "model.layers.1.mlp."


@pytest.fixture
def net():
    made = Net(build(CONFIG).astype("float64"), CONFIG).init(3)
    rng = np.random.default_rng(4)
    for name, a in made.state.items():
        made.state[name] = rng.standard_normal(a.shape) * 0.5
    return made


def written_out(x, w, config):
    """One token after the other, as DeepSeek-V3 states it."""

    def ffn(a, part):
        gate, up, down = (w[f"{part}{name}_proj.weight"] for name in ("gate", "up", "down"))
        return down @ (gate @ a / (1 + np.exp(-(gate @ a))) * (up @ a))

    out = []
    for token in x:
        scores = 1 / (1 + np.exp(-(w["gate.weight"] @ token)))
        ranks = scores + w["gate.e_score_correction_bias"]
        groups = np.split(np.arange(config["n_routed_experts"]), config["n_group"])
        worth = [np.sort(ranks[g])[-2:].sum() for g in groups]
        open_ = np.concatenate([groups[i] for i in np.argsort(worth)[-config["topk_group"] :]])
        chosen = open_[np.argsort(ranks[open_])[-config["num_experts_per_tok"] :]]
        weights = 2.5 * scores[chosen] / scores[chosen].sum()
        y = sum(v * ffn(token, f"experts.{e}.") for e, v in zip(chosen, weights, strict=True))
        out.append(y + ffn(token, "shared_experts."))
    return np.array(out)


def test_the_definition_written_out(net):
    moe = net.model.layers[1].mlp
    x = tg.input("x", (1, tg.dim("N"), moe.experts.gate.shape[-1]), "float64")
    run = tg.compile(moe(x, Context()), binding=net.model.binding)
    rows, values = np.random.default_rng(6).standard_normal((1, 20, 12)), net.values()
    weights = {n.removeprefix(MOE): a for n, a in net.state.items() if n.startswith(MOE)}
    got = run({n: values[n] for n in run.graph.params}, x=rows)
    np.testing.assert_allclose(got[0], written_out(rows[0], weights, CONFIG), rtol=1e-12, atol=1e-13)


def test_files_hold_experts_one_by_one(net, tmp_path):
    name = MOE + "experts.{}.gate_proj.weight"
    assert {n for n in net.state if "experts.5." in n} == {
        f"{MOE}experts.5.{x}_proj.weight" for x in ("gate", "up", "down")
    }
    whole = net.values()[name]
    assert whole.shape == (8, 5, 12)
    np.testing.assert_array_equal(whole[5], net.state[name.format(5)])
    assert net.values()[name] is whole
    before = net(input_ids=IDS)["logits"]
    net.state[name.format(5)] += 1.0  # in place: the stack is the same storage
    assert net.values()[name] is whole
    changed = net(input_ids=IDS)["logits"]
    assert not np.array_equal(before, changed)
    net.state[name.format(5)] = net.state[name.format(5)] - 1.0  # replaced: stacked anew
    np.testing.assert_allclose(net(input_ids=IDS)["logits"], before, rtol=1e-9)
    net.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path, dtype="float64")
    assert again.state.keys() == net.state.keys()
    np.testing.assert_array_equal(again(input_ids=IDS)["logits"], net(input_ids=IDS)["logits"])


def test_gradients_by_expert_and_none_for_the_bias_of_the_choice(net):
    _, grads = net.value_and_grad(input_ids=IDS, labels=IDS)
    bias = MOE + "gate.e_score_correction_bias"
    assert grads.keys() == net.state.keys() - {bias}
    name = MOE + "experts.2.down_proj.weight"
    u = np.random.default_rng(5).standard_normal(grads[name].shape)
    start, slope = net.state[name].copy(), (grads[name] * u).sum()
    sides = []
    for h in (1e-5, -1e-5):
        net.state[name] = start + h * u
        sides.append(net(input_ids=IDS, labels=IDS)["loss"])
    np.testing.assert_allclose((sides[0] - sides[1]) / 2e-5, slope, rtol=1e-6, atol=1e-10)
    net.model.unfreeze()
    assert bias not in net.value_and_grad(input_ids=IDS, labels=IDS)[1]


def test_a_training_step_takes_and_gives_stacks(net):
    inputs = net.model.inputs(["input_ids", "labels"])
    step = tg.compile(net.model.outputs(**inputs)["loss"], update=tg.optim.AdamW(lr=0.01), binding=net.model.binding)
    start, state = dict(net.state), step.init(net.values())
    for _ in range(3):
        value, state = step(state, input_ids=IDS.astype(np.int32), labels=IDS.astype(np.int32))
    net.state = state.params
    assert net.state.keys() == start.keys()
    assert net(input_ids=IDS, labels=IDS)["loss"] < value
    bias = MOE + "gate.e_score_correction_bias"
    np.testing.assert_array_equal(net.state[bias], start[bias])


def test_a_buffer_is_stored_and_not_counted(net):
    found = ledger(net.model)
    assert [r.name for r in found.buffers] == [MOE + "gate.e_score_correction_bias"]
    stored = sum(a.size for a in net.state.values())
    assert found.number(found.total) == f"{stored - 8:,}"


def test_the_layer_that_published_files_add_is_left_out(net, tmp_path):
    """DeepSeek-V3's files hold one layer more, which predicts the token after next; transformers ignores it by name."""
    net.save_pretrained(tmp_path)
    tensors = net.state | {
        "model.layers.61.eh_proj.weight": np.ones((2, 3)),
        "model.layers.61.enorm.weight": np.ones(2),
    }
    safetensors.write(tmp_path / "model.safetensors", tensors)
    assert from_pretrained(tmp_path).state.keys() == net.state.keys()
    safetensors.write(tmp_path / "model.safetensors", tensors | {"model.layers.62.enorm.weight": np.ones(2)})
    with pytest.raises(tg.CheckpointError, match=r"model\.layers\.62"):
        from_pretrained(tmp_path)
