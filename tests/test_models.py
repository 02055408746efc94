"""Models and checkpoints without torch: the miniatures against plain NumPy, files old and new, errors in full."""

from __future__ import annotations

import json
import re

import gguf
import ml_dtypes
import numpy as np
import pytest

import tensorgraph as tg
from tensorgraph.errors import CheckpointError, DataError, ModelError, StateError, TensorgraphError
from tensorgraph.io import safetensors
from tensorgraph.models import Net, build, from_pretrained, mini

GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": 11,
    "n_positions": 8,
    "n_embd": 6,
    "n_layer": 2,
    "n_head": 2,
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 13,
    "hidden_size": 16,
    "intermediate_size": 10,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
}
IDS = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])


def net_of(config, dtype="float32", seed=0) -> Net:
    """A model with values that are neither zero nor one anywhere."""
    net = Net(build(config).astype(dtype), config).init()
    rng = np.random.default_rng(seed)
    net.state = {n: (rng.standard_normal(a.shape) * 0.3 + 0.1).astype(a.dtype) for n, a in net.state.items()}
    return net


# ------------------------------------------------------------------------------------------- the miniatures


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def mini_by_hand(w, ids, positions):
    """One layer, one head, no norms, residual connections: the model of the text, in NumPy. Weights are [out, in]."""

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    x = w["embed.weight"][ids] + positions
    T, d = x.shape
    q, k, v = (linear(f"layers.0.attn.{n}", x) for n in "qkv")
    scores = np.where(np.tri(T, dtype=bool), q @ k.T / np.sqrt(d), -np.inf)
    x = x + linear("layers.0.attn.out", softmax(scores) @ v)
    h = linear("layers.0.mlp.up", x)
    gelu = 0.5 * h * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
    return linear("head", x + linear("layers.0.mlp.down", gelu))


def sinusoids(T, d):
    out = np.zeros((T, d))
    for t in range(T):
        for i in range(0, d, 2):
            out[t, i], out[t, i + 1] = np.sin(t / 10000 ** (i / d)), np.cos(t / 10000 ** (i / d))
    return out


@pytest.mark.parametrize("name", ["mini-268", "mini-11776"])
def test_miniatures_are_the_model_of_the_text(name):
    config = tg.models.presets.config(name)
    net = net_of(config, "float64")
    ids = np.random.default_rng(1).integers(0, config["vocab_size"], config["n_positions"])
    T, w = len(ids), net.state
    positions = sinusoids(T, 4) if name == "mini-268" else w["positions.weight"]
    want = mini_by_hand(w, ids, positions)
    out = net(input_ids=ids[None], labels=ids[None])
    np.testing.assert_allclose(out["logits"][0], want, rtol=0, atol=1e-12)
    # Position t predicts token t + 1: the loss is the mean of -ln p over five of the six.
    p = softmax(want)[np.arange(T - 1), ids[1:]]
    np.testing.assert_allclose(out["loss"], -np.log(p).mean(), rtol=1e-12)


def test_gradients_of_the_miniature_are_slopes():
    net = net_of(tg.models.presets.config("mini-268"), "float64")
    ids = np.arange(6)[None]
    loss, grads = net.value_and_grad(input_ids=ids, labels=ids)
    assert "embed.weight" not in grads and sum(g.size for g in grads.values()) == 268
    rng, h = np.random.default_rng(2), 1e-5
    u = {n: rng.choice([-1.0, 1.0], g.shape) for n, g in grads.items()}
    start = dict(net.state)
    values = []
    for sign in (1, -1):
        net.state = start | {n: start[n] + sign * h * u[n] for n in u}
        values.append(net(input_ids=ids, labels=ids)["loss"])
    slope = sum((grads[n] * u[n]).sum() for n in u)
    # Central differences: truncation h² and rounding 1e-16/h, both below 1e-9 here.
    assert (values[0] - values[1]) / (2 * h) == pytest.approx(slope, rel=1e-7)
    assert loss == pytest.approx(sum(values) / 2, rel=1e-8)


def test_a_trained_miniature_completes_the_sentence():
    config = tg.models.presets.config("mini-268")
    model = mini.build(config, symbolic=False)
    words, sentence = config["vocab"], ["The", "cat", "sat", "on", "a", "mat", "."]
    ids = np.array([[words.index(w) for w in sentence]], np.int32)
    tokens, targets = tg.input("tokens", (1, 6), "int32"), tg.input("targets", (1, 6), "int32")
    loss = tg.cross_entropy(model(tokens), targets)
    step = tg.compile(loss, update=tg.optim.AdamW(lr=1e-2))
    state = step.init(model.init(0))
    frozen = state["params/embed.weight"].copy()
    values = []
    for _ in range(400):
        value, state = step(state, tokens=ids[:, :-1], targets=ids[:, 1:])
        values.append(float(value))
    assert values[-1] < 0.1 < values[0]
    assert np.array_equal(state.params["embed.weight"], frozen)
    net = Net(mini.build(config), config, state.params)
    assert [words[i] for i in net.generate(ids[:, :5], 2)[0]] == sentence


# ---------------------------------------------------------------------------------------------------- files


@pytest.fixture(params=[GPT2, LLAMA], ids=["gpt2", "llama"])
def saved(request, tmp_path):
    net = net_of(request.param)
    return net, net.save_pretrained(tmp_path)


@pytest.fixture
def saved_gpt2(tmp_path):
    net = net_of(GPT2)
    return net, net.save_pretrained(tmp_path)


def test_saved_and_loaded_gives_the_same_bits(saved):
    net, folder = saved
    again = from_pretrained(folder)
    assert again.state.keys() == net.state.keys()
    assert all(np.array_equal(again.state[n], net.state[n]) for n in net.state)
    assert np.array_equal(again(input_ids=IDS)["logits"], net(input_ids=IDS)["logits"])
    again.save_pretrained(folder / "copy")
    assert (folder / "copy" / "config.json").read_bytes() == (folder / "config.json").read_bytes()


def test_gradients_bear_the_names_and_shapes_of_the_file(saved):
    _, folder = saved
    _, grads = from_pretrained(folder).value_and_grad(input_ids=IDS, labels=IDS)
    header = safetensors.read_header(folder / "model.safetensors")
    assert {n: g.shape for n, g in grads.items()} == {n: e.shape for n, e in header.items()}


def test_a_config_alone_gives_a_model_without_values(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(GPT2))
    for path in (tmp_path, tmp_path / "config.json"):
        net = from_pretrained(path)
        assert net.state == {} and net.config == GPT2
        with pytest.raises(StateError) as e:
            net(input_ids=IDS)
        assert e.value.report() == (
            "StateError[TG610] this gpt2 model has no values\n"
            "  hint: net.init(seed=0) draws them, from_pretrained(folder) loads them"
        )
        assert net.init(3)(input_ids=IDS)["logits"].shape == (2, 4, 11)


def test_old_gpt2_files(saved):
    net, folder = saved
    prefix = {"gpt2": "transformer.", "llama": "model."}[net.config["model_type"]]
    bare = {n.removeprefix(prefix): a for n, a in net.state.items()}
    masks = {f"h.{i}.attn.bias": np.ones((1, 1, 8, 8), np.float32) for i in range(2)}
    masks |= {f"h.{i}.attn.masked_bias": np.array(-1e4, np.float32) for i in range(2)}
    rotary = {f"layers.{i}.self_attn.rotary_emb.inv_freq": np.full(2, 7.0, np.float32) for i in range(2)}
    buffers = masks if prefix == "transformer." else rotary
    safetensors.write(folder / "model.safetensors", bare | buffers)
    again = from_pretrained(folder)
    assert again.state.keys() == bare.keys()
    assert np.array_equal(again(input_ids=IDS)["logits"], net(input_ids=IDS)["logits"])
    again.save_pretrained(folder / "copy")
    assert safetensors.read_header(folder / "copy" / "model.safetensors").keys() == bare.keys()


def test_bfloat16_shards(saved):
    net, folder = saved
    half = {n: a.astype(ml_dtypes.bfloat16) for n, a in net.state.items()}
    names = list(half)
    files = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    for file, part in files.items():
        safetensors.write(folder / file, {n: half[n] for n in part})
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {n: file for file, part in files.items() for n in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    again = from_pretrained(folder, dtype="float64")
    assert all(np.array_equal(again.state[n], half[n].astype(np.float64)) for n in names)
    assert {a.dtype for a in again.state.values()} == {np.dtype("float64")}


def test_the_dtype_in_the_config_is_that_of_the_values(tmp_path):
    config = GPT2 | {"dtype": "bfloat16"}
    net_of(config).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"


def test_a_tied_head_in_the_file_must_be_the_embedding(saved_gpt2):
    net, folder = saved_gpt2
    table = net.state["transformer.wte.weight"]
    safetensors.write(folder / "model.safetensors", net.state | {"lm_head.weight": table})
    assert "lm_head.weight" not in from_pretrained(folder).state
    safetensors.write(folder / "model.safetensors", net.state | {"lm_head.weight": table + 1})
    with pytest.raises(CheckpointError) as e:
        from_pretrained(folder)
    assert e.value.summary == (
        f"{folder.name}: lm_head.weight differs from transformer.wte.weight, to which the config ties it"
    )


def test_gguf_file_is_the_same_model(tmp_path):
    # Written by the gguf package, with q and k rows paired as llama.cpp's converter pairs them.
    net = net_of(LLAMA | {"tie_word_embeddings": True})
    path = tmp_path / "tiny.gguf"
    w = gguf.GGUFWriter(path, "llama")
    w.add_block_count(2)
    w.add_context_length(32)
    w.add_embedding_length(16)
    w.add_feed_forward_length(10)
    w.add_head_count(4)
    w.add_head_count_kv(2)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(13)
    w.add_rope_freq_base(10000.0)
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    names = {}
    for name, a in net.state.items():
        heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
        if heads:
            a = a.reshape(heads, 2, len(a) // heads // 2, 16).swapaxes(1, 2).reshape(a.shape)
        names[name] = table.get_name(name, try_suffixes=(".weight",))
        w.add_tensor(names[name], np.ascontiguousarray(a))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    again = from_pretrained(path)
    assert again.tokenizer is None
    assert again.state.keys() == set(names.values())
    assert all(np.array_equal(again.state[names[n]], a) for n, a in net.state.items())
    np.testing.assert_allclose(again(input_ids=IDS)["logits"], net(input_ids=IDS)["logits"], rtol=0, atol=1e-6)
    again.save_pretrained(tmp_path / "hf")
    published = from_pretrained(tmp_path / "hf")
    assert published.state.keys() == net.state.keys()
    assert np.array_equal(published(input_ids=IDS)["logits"], again(input_ids=IDS)["logits"])


# -------------------------------------------------------------------------------------------------- calling


def test_a_graph_is_made_once_per_set_of_inputs():
    net = net_of(GPT2)
    for T in (1, 3, 8):
        ids = np.ones((2, T), int)
        assert net(input_ids=ids)["logits"].shape == (2, T, 11)
    assert len(net._compiled) == 1
    net(input_ids=IDS, attention_mask=np.ones((2, 4)))
    assert len(net._compiled) == 2


def test_positions_may_be_shared_by_the_batch():
    net = net_of(GPT2)
    one, both = np.array([[4, 3, 2, 1]]), np.array([[4, 3, 2, 1]] * 2)
    a, b = (net(input_ids=IDS, position_ids=p)["logits"] for p in (one, both))
    assert np.array_equal(a, b)


@pytest.mark.parametrize("kind", [bool, int, float])
def test_a_mask_may_be_of_any_dtype(kind):
    net = net_of(LLAMA)
    mask = np.array([[0, 1, 1, 1], [0, 0, 1, 1]])
    a, b = (net(input_ids=IDS, attention_mask=m)["logits"] for m in (mask, mask.astype(kind)))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, net(input_ids=IDS)["logits"])


def test_the_row_of_padding_gets_no_gradient_from_the_embedding():
    plain, padded = net_of(LLAMA), net_of(LLAMA | {"pad_token_id": 3})
    name = "model.embed_tokens.weight"
    a, b = (net.value_and_grad(input_ids=IDS, labels=IDS)[1][name] for net in (plain, padded))
    assert np.abs(a[3]).max() > 0 and not b[3].any()
    assert np.array_equal(np.delete(a, 3, 0), np.delete(b, 3, 0))


def test_frozen_parameters_have_no_gradient():
    net = net_of(LLAMA)
    every = net.value_and_grad(input_ids=IDS, labels=IDS)[1]
    net.model.freeze("model.layers.*", "embedding")
    assert net.value_and_grad(input_ids=IDS, labels=IDS)[1].keys() == {"model.norm.weight", "lm_head.weight"}
    net.model.unfreeze()
    again = net.value_and_grad(input_ids=IDS, labels=IDS)[1]
    assert all(np.array_equal(again[n], every[n]) for n in every)


def test_cotangents_stand_for_the_loss():
    net = net_of(GPT2, "float64")
    ids = IDS[:, :3]
    _, want = net.value_and_grad(input_ids=ids, labels=ids)
    logits = net(input_ids=ids)["logits"]
    p = softmax(logits[:, :-1])
    np.put_along_axis(p, ids[:, 1:, None], np.take_along_axis(p, ids[:, 1:, None], -1) - 1, -1)
    slope = np.concatenate([p, np.zeros_like(p[:, :1])], axis=1) / 4  # of the mean over 2 · 2 labels
    value, grads = net.value_and_grad(input_ids=ids, cotangents={"logits": slope})
    assert value == pytest.approx((slope * logits).sum(), rel=1e-12)
    for name, g in want.items():
        np.testing.assert_allclose(grads[name], g, rtol=0, atol=1e-13)


def test_trace_shows_symbols():
    graph = Net(build("gpt2"), tg.models.presets.config("gpt2")).trace("input_ids", "labels", gradients=True)
    assert "transformer.h.11.attn.c_attn.weight: f32[d, 3·d]" in str(graph)
    assert set(graph.symbols) == set("BTVPHk")


def raised(f) -> TensorgraphError:
    with pytest.raises(TensorgraphError) as e:
        f()
    return e.value


BAD_CALLS = [
    (
        {"input_ids": [[1, 2, 11]]},
        DataError,
        "[TG504] input_ids[0, 2] = 11 is outside [0, 11)\n"
        "    input_ids : i32[B, T]    WHERE\n"
        "  needed by take in embed WHERE",
    ),
    (
        {"input_ids": [[1, 2, 3]], "labels": [[1, 2, 99]]},
        DataError,
        "[TG504] labels[0, 2] = 99 is outside [0, 11), and not -100, which is left out\n"
        "    labels : i32[B, T]    WHERE\n"
        "  needed by cross_entropy in gpt2 WHERE",
    ),
    (
        {"input_ids": [[1.5, 2]]},
        DataError,
        "[TG503] input_ids must be int32, not float64\n    input_ids : i32[B, T]    WHERE",
    ),
    (
        {"input_ids": [1, 2]},
        DataError,
        "[TG502] input_ids must have the shape [B, T], not [2]\n    input_ids : i32[B, T]    WHERE",
    ),
    (
        {"input_ids": [[1, 2, 3]], "attention_mask": [[1, 1]]},
        DataError,
        "[TG502] T is 3 by axis 1 of input_ids, and 2 by axis 1 of attention_mask\n"
        "    input_ids      : i32[B, T]    WHERE\n"
        "                            ^\n"
        "    attention_mask : i32[B, T]    WHERE\n"
        "                            ^\n"
        "  given: input_ids [1, 3], attention_mask [1, 2]",
    ),
    ({"input_ids": np.ones((1, 0), int)}, DataError, "[TG502] input_ids is empty: [1, 0]"),
    (
        {"input_ids": [[1, 2], [3]]},
        DataError,
        "[TG503] input_ids is no array: a list that NumPy cannot read\n  hint: rows must be equally long: pad them",
    ),
    (
        {"input_ids": [[1, 2, 3]], "attention_mask": [["a", "b", "c"]]},
        DataError,
        "[TG503] attention_mask must be 0 or 1, not <U1",
    ),
    (
        {"input_ids": [[1, 2, 3]], "labels": [[1, 2]]},
        DataError,
        "[TG502] T is 3 by axis 1 of input_ids, and 2 by axis 1 of labels\n"
        "    input_ids : i32[B, T]    WHERE\n"
        "                       ^\n"
        "    labels    : i32[B, T]    WHERE\n"
        "                       ^\n"
        "  given: input_ids [1, 3], labels [1, 2]",
    ),
    (
        {"input_ids": [[1, 2, 3]], "labels": [[1.0, 2.0, 3.0]]},
        DataError,
        "[TG503] labels must be int32, not float64\n    labels : i32[B, T]    WHERE",
    ),
    ({"labels": [[1, 2]]}, DataError, "[TG501] no value given for input_ids\n  input_ids: i32[B, T]"),
    (
        {"input_ids": [[1]], "token_ids": [[1]]},
        DataError,
        "[TG512] the model has no input called 'token_ids'\n"
        "  hint: it takes input_ids, attention_mask, position_ids, labels",
    ),
    (
        {"input_ids": [[1] * 9]},
        DataError,
        "[TG510] 9 positions are asked for, and the model has 8\n  hint: give a shorter prompt, or fewer new tokens",
    ),
    (
        {"input_ids": [[1, 2]], "position_ids": [[7, 8]]},
        DataError,
        "[TG504] position_ids[0, 1] = 8 is outside [0, 8)\n"
        "    position_ids : i32[B, T]    WHERE\n"
        "  needed by take in positions WHERE",
    ),
]


@pytest.mark.parametrize(("inputs", "kind", "message"), BAD_CALLS, ids=[c[2].split("\n")[0][8:50] for c in BAD_CALLS])
def test_wrong_inputs(inputs, kind, message):
    e = raised(lambda: net_of(GPT2)(**inputs))
    assert type(e) is kind
    assert re.sub(r"\w+\.py:\d+", "WHERE", str(e)) == message


def test_a_gradient_of_what_is_frozen_is_refused():
    net = net_of(GPT2)
    net.model.freeze()
    e = raised(lambda: net.value_and_grad(input_ids=[[1, 2]], labels=[[1, 2]]))
    count = len(net.model.parameters())
    assert e.report() == (
        f"GradError[TG417] all {count} parameters are frozen: there is no gradient\n  hint: model.unfreeze(pattern)"
    )
    net.model.unfreeze("*.ln_f.*")
    assert len(net.value_and_grad(input_ids=[[1, 2]], labels=[[1, 2]])[1]) == 2


def test_inputs_have_names():
    net = net_of(GPT2)
    for call in (net, net.value_and_grad):
        e = raised(lambda call=call: call([[1, 2]]))
        assert str(e) == ("[TG512] inputs are given by name, as to transformers' forward\n  hint: net(input_ids=...)")


def test_a_gradient_needs_a_loss():
    e = raised(lambda: net_of(GPT2).value_and_grad(input_ids=IDS))
    assert type(e) is ModelError
    assert str(e) == ("[TG916] there is no loss to differentiate\n  hint: give labels=..., or cotangents={output: R}")


def test_tensors_that_do_not_fit_are_listed_together(saved_gpt2):
    net, folder = saved_gpt2
    state = dict(net.state)
    del state["transformer.wpe.weight"]
    state["transformer.h.0.attn.c_attn.weight"] = np.zeros((18, 6), np.float32)
    state["extra.weight"] = np.zeros(3, np.float32)
    safetensors.write(folder / "model.safetensors", state)
    e = raised(lambda: from_pretrained(folder))
    assert type(e) is CheckpointError
    assert str(e).replace(str(folder.parent), "FOLDER") == (
        f"[TG820] {folder.name}: 3 tensors do not fit the gpt2 model of the config\n"
        "  in FOLDER\n"
        "  mis-shaped: transformer.h.0.attn.c_attn.weight is [18, 6] in the file, the model has [6, 18] = [d, 3·d]\n"
        "  missing: transformer.wpe.weight [8, 6] = [P, d]\n"
        "  unexplained: extra.weight [3]"
    )


def test_every_missing_tensor_is_in_the_details(saved):
    net, folder = saved
    safetensors.write(folder / "model.safetensors", dict(list(net.state.items())[:1]))
    e = raised(lambda: from_pretrained(folder))
    assert {n.split()[1] for n in e.details if n.startswith("missing")} == set(list(net.state)[1:])
    assert len(str(e).splitlines()) <= 12


def test_tensors_that_differ_by_number_are_one_line(tmp_path):
    config = {**LLAMA, "num_hidden_layers": 12}
    net = net_of(config)
    net.save_pretrained(tmp_path / "net")
    state = {n: a for n, a in net.state.items() if ".mlp.up_proj." not in n and ".3." not in n}
    for i in (0, 1, 2, 5, 7, 8):
        state[f"model.layers.{i}.self_attn.q_proj.bias"] = np.zeros(16, np.float32)
    state["model.norm.weight"] = np.zeros(16, np.int64)
    safetensors.write(tmp_path / "net" / "model.safetensors", state)
    e = raised(lambda: from_pretrained(tmp_path / "net"))
    assert str(e).replace(str(tmp_path), "FOLDER") == (
        "[TG820] net: 27 tensors do not fit the llama model of the config\n"
        "  in FOLDER\n"
        "  mis-typed: model.norm.weight is int64 in the file, the model has floats\n"
        "  missing: model.layers.{0…11}.…  ×20\n"
        "  unexplained: model.layers.{0…2,5,7…8}.self_attn.q_proj.bias [16]  ×6\n"
        "  hint: the error's details name each; so does tensorgraph --details"
    )
    assert len(e.details) == 27
    assert e.details[0] == "mis-typed: model.norm.weight is int64 in the file, the model has floats"
    assert e.details[-1] == "unexplained: model.layers.8.self_attn.q_proj.bias [16]"
    safetensors.write(
        tmp_path / "net" / "model.safetensors", {n: a for n, a in net.state.items() if ".mlp.up_proj." not in n}
    )
    e = raised(lambda: from_pretrained(tmp_path / "net"))
    assert str(e).replace(str(tmp_path), "FOLDER") == (
        "[TG820] net: 12 tensors do not fit the llama model of the config\n"
        "  in FOLDER\n"
        "  missing: model.layers.{0…11}.mlp.up_proj.weight [10, 16] = [f, d]  ×12\n"
        "  hint: the error's details name each; so does tensorgraph --details"
    )


@pytest.mark.parametrize("dtype", ["int8", "int64", "bool", np.int32])
def test_values_are_floats(dtype, saved):
    e = raised(lambda: from_pretrained(saved[1], dtype=dtype))
    name = dtype if isinstance(dtype, str) else "int32"
    assert e.report() == (
        f"DTypeError[TG206] a model's values are floats: {name} cannot hold them\n"
        "  hint: float32, float64, bfloat16 or float16"
    )


def test_sizes_that_the_config_does_not_say_are_logged(tmp_path, caplog):
    path = tmp_path / "config.json"
    config = {k: v for k, v in LLAMA.items() if k != "hidden_size"}
    path.write_text(json.dumps({**config, "num_attention_heads": 32}))
    assert from_pretrained(path).model.binding["k"] == 128
    path.write_text(json.dumps({"model_type": "gpt2", "hidden_size": 24, "n_layer": 1}))
    from_pretrained(path)
    path.write_text(json.dumps(GPT2))
    from_pretrained(path)
    assert [r.getMessage() for r in caplog.records] == [
        "hidden_size is not in the config: 4096, the class's default",
        "n_head, vocab_size, n_positions are not in the config: 12, 50257, 1024, the class's defaults",
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "[TG801] nowhere: no such file or folder\n  in FOLDER"),
        (
            "gpt2",
            "[TG801] gpt2: no such file or folder\n  in FOLDER\n"
            "  hint: gpt2 is a preset, without values: models.build('gpt2')",
        ),
    ],
)
def test_nothing_there(name, message, tmp_path):
    e = raised(lambda: from_pretrained(tmp_path / name))
    assert str(e).replace(str(tmp_path), "FOLDER") == message


def test_a_pickle_is_not_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(GPT2))
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    e = raised(lambda: from_pretrained(tmp_path))
    assert str(e).replace(str(tmp_path.parent), "FOLDER") == (
        f"[TG801] {tmp_path.name}: pytorch_model.bin is a pickle, which runs code when it is read\n"
        "  in FOLDER\n"
        "  hint: convert it to safetensors"
    )


def test_flags_of_transformers_that_change_nothing_are_taken(saved):
    net, _ = saved
    got = net(input_ids=IDS, use_cache=False, return_dict=True)["logits"]
    assert np.array_equal(got, net(input_ids=IDS)["logits"])
