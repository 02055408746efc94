"""Presets and configs: exact published totals, symbols and their binding, errors about settings."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tensorgraph as tg
from tensorgraph.cost import cost
from tensorgraph.dims import evaluate, show
from tensorgraph.errors import ModelError
from tensorgraph.graph import Graph
from tensorgraph.models import ARCHITECTURES, Decoder, build, gpt2, llama, mini, presets
from tensorgraph.visualize import ledger


def gpt(d: int, n: int, heads: int, positions: int = 1024) -> dict:
    return {"n_embd": d, "n_layer": n, "n_head": heads, "n_positions": positions, "vocab_size": 50257}


def rotary(d: int, f: int, n: int, heads: int, kv_heads: int, vocabulary: int, **more: object) -> dict:
    return {
        "hidden_size": d,
        "intermediate_size": f,
        "num_hidden_layers": n,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        **more,
    }


def encoder(d: int, f: int, n: int, heads: int) -> dict:
    return {
        "hidden_size": d,
        "intermediate_size": f,
        "num_hidden_layers": n,
        "num_attention_heads": heads,
        "vocab_size": 30522,
    }


def parts(attention: int, embedding: int, mlp: int, norm: int, head: int = 0) -> dict[str, int]:
    out = {"attention": attention, "embedding": embedding, "mlp": mlp, "norm": norm, "head": head}
    return {name: count for name, count in out.items() if count}


# Published totals: preset, class, what its config says beside the class's defaults, total, components.
PUBLISHED = [
    ("gpt2", "GPT2LMHeadModel", gpt(768, 12, 12), 124439808, parts(28348416, 39383808, 56669184, 38400)),
    ("gpt2-xl", "GPT2LMHeadModel", gpt(1600, 48, 25), 1557611200, parts(491827200, 82049600, 983424000, 310400)),
    (
        "gpt3-175b",
        "GPT2LMHeadModel",
        gpt(12288, 96, 96, 2048),
        174604259328,
        parts(57986777088, 642723840, 115970015232, 4743168),
    ),
    (
        "llama-2-7b",
        "LlamaForCausalLM",
        rotary(4096, 11008, 32, 32, 32, 32000),
        6738415616,
        parts(2147483648, 131072000, 4328521728, 266240, 131072000),
    ),
    (
        "llama-2-70b",
        "LlamaForCausalLM",
        rotary(8192, 28672, 80, 64, 8, 32000),
        68976648192,
        parts(12079595520, 262144000, 56371445760, 1318912, 262144000),
    ),
    (
        "llama-3-8b",
        "LlamaForCausalLM",
        rotary(4096, 14336, 32, 32, 8, 128256),
        8030261248,
        parts(1342177280, 525336576, 5637144576, 266240, 525336576),
    ),
    (
        "llama-3-70b",
        "LlamaForCausalLM",
        rotary(8192, 28672, 80, 64, 8, 128256),
        70553706496,
        parts(12079595520, 1050673152, 56371445760, 1318912, 1050673152),
    ),
    (
        "llama-3.1-405b",
        "LlamaForCausalLM",
        rotary(16384, 53248, 126, 128, 8, 128256),
        405853388800,
        parts(71873593344, 2101346304, 329772957696, 4145152, 2101346304),
    ),
    (
        "smollm2-135m",
        "LlamaForCausalLM",
        rotary(576, 1536, 30, 9, 3, 49152, tie_word_embeddings=True),
        134515008,
        parts(26542080, 28311552, 79626240, 35136),
    ),
    (
        "mistral-7b",
        "MistralForCausalLM",
        rotary(4096, 14336, 32, 32, 8, 32000, head_dim=128),
        7241732096,
        parts(1342177280, 131072000, 5637144576, 266240, 131072000),
    ),
    (
        "mixtral-8x7b",
        "MixtralForCausalLM",
        rotary(4096, 14336, 32, 32, 8, 32000, num_local_experts=8, num_experts_per_tok=2, head_dim=128),
        46702792704,
        parts(1342177280, 131072000, 45097156608, 266240, 131072000) | {"router": 1048576},
    ),
    (
        "qwen2.5-7b",
        "Qwen2ForCausalLM",
        rotary(3584, 18944, 28, 28, 4, 152064, tie_word_embeddings=False),
        7615616512,
        parts(822212608, 544997376, 5703204864, 204288, 544997376),
    ),
    (
        "gemma-2-9b",
        "Gemma2ForCausalLM",
        rotary(3584, 14336, 42, 16, 8, 256000, head_dim=256),
        9241705984,
        parts(1849688064, 917504000, 6473908224, 605696),
    ),
    (
        "phi-3-mini",
        "Phi3ForCausalLM",
        rotary(3072, 8192, 32, 32, 32, 32064),
        3821079552,
        parts(1207959552, 98500608, 2415919104, 199680, 98500608),
    ),
    (
        "deepseek-v3",
        "DeepseekV3ForCausalLM",
        rotary(7168, 18432, 61, 128, 128, 129280),
        671026404352,
        parts(11413422080, 926679040, 657652187136, 1006592, 926679040) | {"router": 106430464},
    ),
    (
        "bert-base",
        "BertModel",
        encoder(768, 3072, 12, 12),
        109482240,
        parts(28348416, 23835648, 56669184, 38400) | {"pooler": 590592},
    ),
    (
        "minilm-l6",
        "BertModel",
        encoder(384, 1536, 6, 12),
        22713216,
        parts(3548160, 11917824, 7089408, 9984) | {"pooler": 147840},
    ),
]
# Totals alone, as the models' publishers state them.
TOTALS = {
    "gpt2-medium": 354823168,
    "gpt2-large": 774030080,
    "llama-2-13b": 13015864320,
    "llama-3.1-8b": 8030261248,
    "llama-3.1-70b": 70553706496,
    "llama-3.2-1b": 1235814400,
    "llama-3.2-3b": 3212749824,
    "smollm2-360m": 361821120,
    "smollm2-1.7b": 1711376384,
    "qwen2.5-0.5b": 494032768,
    "qwen3-0.6b": 596049920,
    "gemma-2b": 2506172416,
    "gemma-7b": 8537680896,
    "gemma-3-1b": 999885952,
    "deepseek-v2-lite": 15706484224,
    "bert-large": 335141888,
}
# The miniatures as the texts that describe them count: (preset, changes, total, trainable).
MINIATURES = [
    ("mini-268", {}, 300, 268),
    ("mini-11776", {}, 11776, 11776),
    ("mini-11776", {"tie_word_embeddings": True}, 7680, 7680),
    ("mini-11776", {"norms": True}, 11840, 11840),
    ("mini-11776", {"norms": True, "final_norm": True}, 11872, 11872),
]


def components(model) -> dict[str, int]:
    out: dict[str, int] = {}
    for p in (p for p in model.parameters() if p.counted):
        out[p.component] = out.get(p.component, 0) + evaluate(p.count, model.binding)
    return out


@pytest.mark.parametrize("symbolic", [True, False])
@pytest.mark.parametrize(("name", "cls", "config", "total", "expected"), PUBLISHED, ids=[p[0] for p in PUBLISHED])
def test_published_totals(name, cls, config, total, expected, symbolic):
    by_class = {"architectures": [cls], **config}
    kind = ARCHITECTURES[cls].model_type
    first = next(c for c, a in ARCHITECTURES.items() if a.model_type == kind)  # what a model_type alone means
    for source in (name, by_class, *([{"model_type": kind, **config}] if first == cls else [])):
        model = build(source, symbolic=symbolic)
        assert components(model) == expected
        assert evaluate(model.total(), model.binding) == total == sum(expected.values())
        assert (model.binding != {}) == symbolic


@pytest.mark.parametrize(("name", "active"), [("mixtral-8x7b", 12879925248), ("deepseek-v3", 37552282624)])
def test_what_a_token_uses_of_experts(name, active):
    model = build(name)
    assert evaluate(model.active(), model.binding) == active
    found = ledger(model).to_json()
    assert (found["active_per_token"], found["components"]) == (active, components(model))
    assert "active_per_token" not in ledger(build("llama-2-7b")).to_json()
    few = build(name, layers=5)
    graph = Graph(few(few.inputs(["input_ids"])["input_ids"]))
    found = cost(graph, {**few.binding, "B": 2, "T": 3})
    assert found.parameters["active per token"] == evaluate(few.active(), few.binding)
    assert found.parameters["total"] == evaluate(few.total(), few.binding)


@pytest.mark.parametrize("name", TOTALS)
def test_totals(name):
    model = build(name)
    assert evaluate(model.total(), model.binding) == TOTALS[name]


def test_every_preset_is_counted():
    decoders = {n for n in presets.names() if isinstance(build(n, layers=1), Decoder)}  # others: test_presets_vision.py
    assert {p[0] for p in PUBLISHED} | TOTALS.keys() | {m[0] for m in MINIATURES} >= decoders


@pytest.mark.parametrize(("name", "changes", "total", "trainable"), MINIATURES)
def test_miniatures(name, changes, total, trainable):
    model = mini.build(name, **changes)
    assert evaluate(model.total(), model.binding) == total
    assert evaluate(model.total(trained=True), model.binding) == trainable


def test_parts_of_the_miniatures():
    small = {n: p.size for n, p in mini.build("mini-268", symbolic=False).named_parameters().items()}
    names = ("q", "k", "v", "out", "up", "down", "head")
    count = {part: sum(v for n, v in small.items() if f".{part}." in f".{n}") for part in names}
    assert count == {"q": 20, "k": 20, "v": 20, "out": 20, "up": 80, "down": 68, "head": 40}
    assert components(mini.build("mini-11776")) == parts(1024, 4608, 2048, 0, 4096)


def test_sizes_are_symbols_with_factors():
    model = gpt2.build("gpt2")
    assert model.binding == {"H": 12, "k": 64, "V": 50257, "P": 1024}
    assert show(model.total(), model.aliases) == "P·d + V·d + 144·d² + 158·d"
    block = tg.nn.sum_sizes(p.count for n, p in model.named_parameters().items() if ".h.0." in n)
    assert show(block, model.aliases) == "12·d² + 13·d"
    assert evaluate(model.aliases["d"], model.binding) == 768
    llama3 = llama.build("llama-3-8b")
    assert set(llama3.binding) == {"V", "f", "H", "k", "G"}
    free = llama.build("mistral-7b")  # its config has head_dim: d is a size of its own
    assert free.aliases == {} and {"d", "k"} < free.binding.keys()


@pytest.mark.parametrize("name", ["gpt2", "llama-3-8b", "mistral-7b", "phi-3-mini", "mixtral-8x7b"])
def test_a_symbolic_number_of_layers_counts_the_same(name):
    n = tg.dim("n")
    once, unrolled = build(name, layers=n), build(name)
    assert evaluate(once.total(), once.binding) == evaluate(unrolled.total(), unrolled.binding)
    assert components(once) == components(unrolled)
    three = evaluate(once.total(), {**once.binding, "n": 3})
    assert three == evaluate(build(name, layers=3).total(), unrolled.binding)
    logits = once(**once.inputs(["input_ids", "attention_mask"]))
    assert show(logits.shape[-1]) == "V"


def test_layers_that_differ_cannot_be_one_block():
    with pytest.raises(ModelError) as e:
        build("gemma-2-9b", layers=tg.dim("n"))
    assert e.value.report() == (
        "ModelError[TG914] layers of different types cannot be one block that is repeated\n"
        "  hint: build with a number of layers"
    )


def test_layers_with_and_without_experts_cannot_be_one_block():
    with pytest.raises(ModelError) as e:
        build("deepseek-v3", layers=tg.dim("n"))
    assert e.value.report() == (
        "ModelError[TG914] a block that is repeated cannot have first ones without experts\n  hint: build with a number"
    )
    alike = build("deepseek-v3", layers=tg.dim("n"), first_k_dense_replace=0)
    three = evaluate(alike.total(), {**alike.binding, "n": 3})
    assert three == evaluate(build("deepseek-v3", layers=3, first_k_dense_replace=0).total(), alike.binding)


def test_latent_attention_caches_a_vector_per_position():
    model = build("deepseek-v3", layers=4)
    graph = Graph(model(model.inputs(["input_ids"])["input_ids"]))
    assert show(cost(graph).bytes["kv_cache"]) == "16·B·T·c_kv + 16·B·T·k"


def test_a_size_given_as_change_stays_a_symbol():
    model = build("gpt2", n_layer=2, vocab_size=99)
    assert model.binding["V"] == 99
    assert len(model.layers) == 2


def test_405_billion_parameters_symbolic():
    # In a process of its own, as a user would: symbols only, 126 layers unrolled, forward and backward.
    code = """
import tensorgraph as tg
from tensorgraph.dims import evaluate
model = tg.models.build("llama-3.1-405b")
outputs = model.outputs(**model.inputs(["input_ids", "labels"]))
gradients = tg.grad(outputs["loss"], [p.__tensor__() for p in model.parameters()])
graph = tg.Graph([outputs["loss"], *gradients])
assert len(gradients) == 126 * 9 + 3 and set(graph.symbols) == set("BTVHGkf")
assert all(g.shape == p.shape for g, p in zip(gradients, model.parameters()))
assert len(tg.Graph(gradients).params) == len(gradients)
graph.check_binding({**model.binding, "B": 1, "T": 8192})
print(evaluate(model.total(), model.binding))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "405853388800\n", done.stderr


ERRORS = [
    (
        lambda: build("lama-3-8b"),
        "ModelError[TG910] unknown model 'lama-3-8b'\n  hint: did you mean llama-3-8b, llama-3.1-8b, llama-3-70b?",
    ),
    (
        lambda: build("whisper"),
        "ModelError[TG910] unknown model 'whisper'\n  hint: `tensorgraph list` and models.presets.names() say which",
    ),
    (
        lambda: build({"architectures": ["LlamaForCausal"]}),
        "ModelError[TG911] unknown architecture 'LlamaForCausal'\n"
        "  hint: nearest are LlamaForCausalLM, Olmo2ForCausalLM, GemmaForCausalLM",
    ),
    (
        lambda: build({"architectures": ["Zebra"]}),
        "ModelError[TG911] unknown architecture 'Zebra'\n"
        "  hint: nearest are BertForMaskedLM, Qwen3ForCausalLM, Qwen2ForCausalLM",
    ),
    (
        lambda: gpt2.build("llama-3-8b"),
        "ModelError[TG911] unknown architecture 'LlamaForCausalLM'\n  hint: supported are GPT2LMHeadModel",
    ),
    (
        lambda: build({}),
        'ModelError[TG911] the config names no architecture: it has neither "architectures" nor "model_type"',
    ),
    (lambda: build("gpt2", n_head=7), "ModelError[TG913] n_embd = 768 is not divisible by n_head = 7"),
    (lambda: build("gpt2", n_layer="12"), "ModelError[TG913] n_layer must be a positive whole number, not '12'"),
    (
        lambda: build("gpt2", activation_function="gelo"),
        "ModelError[TG912] unknown activation_function 'gelo'\n  hint: did you mean gelu, gelu_10, gelu_python?",
    ),
    (
        lambda: build("gpt2", add_cross_attention=True),
        "ModelError[TG912] add_cross_attention: GPT-2 with an encoder is not supported",
    ),
    (
        lambda: build("llama-3-8b", rope_scaling={"rope_type": "yarm", "factor": 2.0}),
        "ModelError[TG912] unknown rope_scaling.rope_type 'yarm'\n  hint: did you mean yarn, dynamic?",
    ),
    (
        lambda: build("llama-3-8b", rope_scaling={"rope_type": "llama3"}),
        "ModelError[TG913] rope_scaling.factor is missing: rope_type 'llama3' needs it",
    ),
]


def forward(name, **changes):
    model = build(name, **changes)
    return model.outputs(**model.inputs(["input_ids"]))


@pytest.mark.parametrize(("wrong", "message"), ERRORS, ids=[e[1].splitlines()[0][:60] for e in ERRORS])
def test_errors(wrong, message):
    with pytest.raises(ModelError) as e:
        wrong()
    assert e.value.report() == message


def test_a_misspelt_setting_is_not_ignored():
    with pytest.raises(tg.ModelError) as e:
        build("gpt2", n_layers=2)
    assert (
        e.value.report()
        == "ModelError[TG912] gpt2 has no setting 'n_layers'\n  hint: did you mean n_layer, num_hidden_layers?"
    )
