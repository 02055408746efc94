"""Generation: the cache gives what the full forward gives; sampling follows its distribution; errors in full."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from test_models import GPT2, LLAMA, net_of
from test_modes import SEEING, prompt

from tensorgraph.backends import cpu
from tensorgraph.errors import TensorgraphError
from tensorgraph.models import Net, Tokenizer, generate
from tensorgraph.models.generate import Session, choose

MISTRAL = LLAMA | {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 3}
GEMMA2 = LLAMA | {"architectures": ["Gemma2ForCausalLM"], "head_dim": 6, "sliding_window": 3, "rms_norm_eps": 1e-6}
LONG_GPT2 = GPT2 | {"n_positions": 64}
CONFIGS = {"gpt2": LONG_GPT2, "llama": LLAMA, "mistral": MISTRAL, "gemma2": GEMMA2}
# Logits of the cached and of the full forward differ by rounding alone: sums of at most 64 terms in float64.
CLOSE = 1e-12


@pytest.fixture(scope="module", params=CONFIGS)
def net(request) -> Net:
    return net_of(CONFIGS[request.param], "float64")


def ids_of(B: int, T: int) -> np.ndarray:
    return np.random.default_rng(B * 100 + T).integers(0, 11, (B, T))


@pytest.mark.parametrize("first", [1, 2, 7, 20])
@pytest.mark.parametrize("B", [1, 3])
def test_cached_logits_are_those_of_the_full_forward(net, B, first):
    ids = ids_of(B, 20)
    session = Session(net, B, capacity=4)  # it grows on the way
    logits = [session.feed(ids[:, :first])] + [session.feed(ids[:, t : t + 1]) for t in range(first, 20)]
    full = net(input_ids=ids)["logits"]
    for t, ours in enumerate(logits, first - 1):
        np.testing.assert_allclose(ours, full[:, t], rtol=0, atol=CLOSE)


@pytest.mark.skipif(cpu.compiler() is None, reason="no C compiler")
def test_auto_decodes_in_c_where_that_is_worth_it(monkeypatch):
    config, chosen = CONFIGS["llama"], lambda net: Session(net, 1)._step.options.backend
    assert chosen(net_of(config, "float32")) == "numpy", "so few weights are read before C is compiled"
    monkeypatch.setattr(generate, "WORTH", 1)
    net = net_of(config, "float32")
    assert chosen(net) == "c"
    got = Session(net, 1).feed(ids_of(1, 5))
    np.testing.assert_allclose(got, net(input_ids=ids_of(1, 5))["logits"][:, -1], atol=1e-5)
    assert chosen(net_of(config, "float16")) == "numpy", "C has no products of half precision"
    monkeypatch.setattr(cpu, "offered", lambda: False)
    assert chosen(net_of(config, "float32")) == "numpy"


def test_padding_is_not_seen(net):
    ids = ids_of(3, 9)
    lengths = np.array([9, 4, 1])
    mask = (np.arange(9) >= 9 - lengths[:, None]).astype(int)
    positions = np.where(mask == 1, mask.cumsum(1) - 1, 0)
    session = Session(net, 3, masked=True, capacity=16)
    ours = session.feed(ids, mask, positions)
    for row, n in enumerate(lengths):
        alone = net(input_ids=ids[[row], -n:])["logits"][0, -1]
        np.testing.assert_allclose(ours[row], alone, rtol=0, atol=CLOSE)


def test_greedy_is_the_argmax_of_the_full_forward(net):
    ids = ids_of(2, 3)
    want = ids
    for _ in range(8):
        best = net(input_ids=want)["logits"][:, -1].argmax(-1)
        want = np.concatenate([want, best[:, None]], axis=1)
    ours = net.generate(ids, 8)
    assert ours.dtype == np.int64
    assert np.array_equal(ours, want)
    assert np.array_equal(net.generate(ids, 8, temperature=0), want)
    assert np.array_equal(net.generate(ids, 8, top_k=1), want)
    assert np.array_equal(net.generate(ids, 0), ids)
    assert np.array_equal(net.generate(ids[0].tolist(), 8), want[:1])


@pytest.mark.parametrize("kind", SEEING)
def test_images_are_seen_once_and_remembered(kind):
    net, given = net_of(SEEING[kind], "float64", seed=2), prompt(SEEING[kind])
    del given["labels"]
    want, T, looks = given["input_ids"], given["input_ids"].shape[1], net.model.looks

    def full(ids, **other):
        """Without a cache: what the prompt's last token sees, all that follow see; PaliGemma's prefix is the prompt."""
        arrays, at = {**given, "input_ids": ids, **other}, np.arange(ids.shape[1])
        if looks:
            arrays[looks] = given[looks][:, np.minimum(at, T - 1)]
        if kind == "paligemma":
            arrays["token_type_ids"] = np.broadcast_to((at >= T).astype(int), ids.shape)
        return net(**arrays)["logits"][:, -1]

    for _ in range(4):
        want = np.concatenate([want, full(want).argmax(-1)[:, None]], axis=1)
    types = {"token_type_ids": np.zeros((2, T), int)} if kind == "paligemma" else {}
    assert np.array_equal(net.generate(**given, **types, max_new_tokens=4), want)
    blank = full(want[:, :T], pixel_values=given["pixel_values"] * 0)
    assert not np.allclose(blank, full(want[:, :T]))  # the images matter


def test_what_goes_with_images_is_checked():
    net, given = net_of(SEEING["llava"]), prompt(SEEING["llava"])
    with pytest.raises(TensorgraphError) as e:
        net.generate(given["input_ids"], 2, pixel_values=given["pixel_values"][:1])
    assert e.value.code == "TG513"
    with pytest.raises(TensorgraphError) as e:
        net.generate(given["input_ids"], 2, pixel_value=given["pixel_values"])
    assert e.value.code == "TG917" and "did you mean pixel_values?" in str(e.value)


@pytest.mark.parametrize("name", ["llama", "gemma2", "llava"])
def test_positions_beyond_those_a_model_is_made_for_are_said_once(name, caplog):
    """Rotated positions go on, as in transformers, which says so too."""
    config = SEEING["llava"] if name == "llava" else CONFIGS[name]
    inside = {"max_position_embeddings": 20}
    config = config | ({"text_config": config["text_config"] | inside} if name == "llava" else inside)
    net = net_of(config)
    given = prompt(config) if name == "llava" else {"input_ids": ids_of(1, 16)}
    given.pop("labels", None)
    length = given["input_ids"].shape[1]
    net.generate(**given, max_new_tokens=20 - length + 1)
    assert caplog.messages == []
    net.generate(**given, max_new_tokens=20 - length + 5)
    net.generate(**given, max_new_tokens=20 - length + 9)
    said = "24 positions are asked for, and the model is made for max_position_embeddings = 20"
    assert caplog.messages == [said]
    if name != "llava":
        for inputs in ({"input_ids": ids_of(1, 24)}, {"input_ids": ids_of(1, 2), "position_ids": [[3, 23]]}):
            caplog.clear()
            net_of(config)(**inputs)
            assert caplog.messages == [said]


def test_one_compiled_step_serves_all_lengths_and_batches():
    net = net_of(LLAMA)
    for B, T in ((1, 1), (1, 5), (3, 2), (2, 17)):
        net.generate(ids_of(B, T), 20)
    assert len(net._compiled) == 1


def test_a_row_that_has_ended_is_padded():
    net = net_of(LLAMA, "float64")
    ids = ids_of(3, 4)
    free = net.generate(ids, 8)
    end = int(free[0, 6])
    done = net.generate(ids, 8, eos_token_id=end, pad_token_id=12)
    for row, ours in zip(free, done, strict=True):
        stop = next((t for t in range(4, 12) if row[t] == end), 11)
        width = min(stop + 1, len(ours))
        assert np.array_equal(ours[:width], row[:width]) and (ours[width:] == 12).all()
    alone = net.generate(ids[:1], 8, eos_token_id=[end, 99])
    assert alone.shape[1] <= 7 and alone[0, -1] == end


def test_the_mask_is_read_off_a_padded_prompt():
    net = net_of(LLAMA | {"pad_token_id": 12}, "float64")
    ids = np.array([[12, 12, 3, 4], [1, 2, 3, 4]])
    mask = (ids != 12).astype(int)
    assert np.array_equal(net.generate(ids, 5), net.generate(ids, 5, attention_mask=mask))
    assert np.array_equal(net.generate(ids, 5)[0, 2:], net.generate(ids[:1, 2:], 5)[0])


# ------------------------------------------------------------------------------------------------- sampling


def drawn(logits, n=4000, **settings) -> np.ndarray:
    rows = np.tile(np.asarray(logits, np.float64), (n, 1))
    settings = {"temperature": None, "top_k": None, "top_p": None} | settings
    return np.bincount(choose(rows, np.random.default_rng(0), **settings), minlength=len(logits)) / n


P = np.array([0.4, 0.05, 0.3, 0.05, 0.2])


@pytest.mark.parametrize(
    ("settings", "want"),
    [
        ({}, P),
        ({"temperature": 0.5}, P**2 / (P**2).sum()),
        ({"temperature": 2.0}, P**0.5 / (P**0.5).sum()),
        ({"top_k": 2}, np.array([4, 0, 3, 0, 0]) / 7),
        ({"top_k": 99}, P),
        ({"top_p": 0.39}, np.array([1, 0, 0, 0, 0])),
        ({"top_p": 0.65}, np.array([4, 0, 3, 0, 0]) / 7),
        ({"top_p": 0.75}, np.array([4, 0, 3, 0, 2]) / 9),
        ({"top_p": 1.0}, P),
        ({"top_k": 3, "top_p": 0.7}, np.array([4, 0, 3, 0, 0]) / 7),
        ({"temperature": 0}, np.array([1, 0, 0, 0, 0])),
    ],
    ids=str,
)
def test_draws_follow_their_distribution(settings, want):
    have = drawn(np.log(P) + 3.0, **settings)
    assert (have[want == 0] == 0).all()
    # Five standard deviations of a share among 4,000 draws.
    assert (np.abs(have - want) <= 5 * np.sqrt(want * (1 - want) / 4000)).all()


def test_ties_at_the_edge_of_top_k_stay_in():
    assert (drawn([1.0, 1.0, 0.0], top_k=1)[:2] > 0.4).all()


def test_a_seed_gives_the_same_text():
    net = net_of(LLAMA)
    a, b, c = (net.generate(ids_of(2, 3), 12, temperature=1.5, seed=s) for s in (1, 1, 2))
    assert np.array_equal(a, b) and not np.array_equal(a, c)


# ----------------------------------------------------------------------------------------------------- text


@pytest.fixture(scope="module")
def talker() -> Net:
    tokenizer = Tokenizer.train_bpe(["the cat sat on the mat — ünïcödé 猫 " * 20], 280)
    net = net_of(LLAMA | {"vocab_size": tokenizer.vocab_size})
    net.tokenizer = tokenizer
    return net


def test_the_stream_is_the_decoded_continuation(talker):
    pieces = list(talker.stream("the cat", 30))
    ids = talker.tokenizer.encode("the cat")
    new = talker.generate([ids], 30)[0, len(ids) :]
    assert "".join(pieces) == talker.tokenizer.decode([*ids, *new])[len("the cat") :]


def test_the_stream_begins_before_the_end(talker):
    stream = talker.stream("the cat", 10**6, temperature=1.0)
    assert len(list(itertools.islice(stream, 3))) == 3


BAD = [
    (lambda n: n.generate(ids_of(1, 9), 1), "[TG510] 9 positions are asked for, and the model has 8"),
    (lambda n: n.generate(ids_of(1, 4), 6), "[TG510] 9 positions are asked for, and the model has 8"),
    (lambda n: n.generate([[1, 20]], 1), "[TG504] input_ids[0, 1] = 20 is outside [0, 11)"),
    (lambda n: n.generate([]), "[TG511] input_ids must be whole numbers [B, T], not float64 [1, 0]"),
    (lambda n: n.generate([[0.5]]), "[TG511] input_ids must be whole numbers [B, T], not float64 [1, 1]"),
    (lambda n: n.generate([[1]], -1), "[TG917] max_new_tokens must be a whole number, 0 or more, not -1"),
    (lambda n: n.generate([[1]], 2.5), "[TG917] max_new_tokens must be a whole number, 0 or more, not 2.5"),
    (lambda n: n.generate([[1]], "3"), "[TG917] max_new_tokens must be a whole number, 0 or more, not '3'"),
    (lambda n: n.generate([[1]], None), "[TG917] max_new_tokens must be a whole number, 0 or more, not None"),
    (lambda n: n.generate([[1]], temperature=-1.0), "[TG917] temperature must be a number, 0 or more, not -1.0"),
    (lambda n: n.generate([[1]], temperature="1"), "[TG917] temperature must be a number, 0 or more, not '1'"),
    (
        lambda n: n.generate([[1]], temperature=float("nan")),
        "[TG917] temperature must be a number, 0 or more, not nan",
    ),
    (lambda n: n.generate([[1]], top_k=0), "[TG917] top_k must be a whole number, 1 or more, not 0"),
    (lambda n: n.generate([[1]], top_k=2.5), "[TG917] top_k must be a whole number, 1 or more, not 2.5"),
    (
        lambda n: n.generate([[1]], top_p=1.5),
        "[TG917] top_p must be a number, more than 0 and at most 1, not 1.5",
    ),
    (lambda n: n.generate([[1]], seed=-1), "[TG917] seed must be a whole number, 0 or more, not -1"),
    (lambda n: n.generate([[1]], seed="a"), "[TG917] seed must be a whole number, 0 or more, not 'a'"),
    (lambda n: n.generate([[1]], do_sample="no"), "[TG917] do_sample must be True or False, not 'no'"),
    (
        lambda n: n.generate([[1]], eos_token_id=[1, "b"]),
        "[TG917] eos_token_id must be an id or several, not [1, 'b']",
    ),
    (lambda n: n.generate([[1]], pad_token_id=11), "[TG917] pad_token_id = 11 is not in the vocabulary of 11"),
    (
        lambda n: n.generate([[1]], topk=3),
        "[TG917] generation has no setting 'topk'\n  hint: did you mean top_k, top_p?",
    ),
    (
        lambda n: n.generate([[1]], num_beams=3),
        "[TG917] generation has no setting 'num_beams'\n"
        "  hint: there are max_new_tokens, temperature, top_k, top_p, seed, do_sample, eos_token_id, pad_token_id, "
        "attention_mask",
    ),
    (
        lambda n: n.generate([[1, 2], [3]]),
        "[TG503] input_ids is no array: a list that NumPy cannot read\n  hint: rows must be equally long: pad them",
    ),
    (
        lambda n: n.generate([[1, 2]], attention_mask=[[1, 1, 1]]),
        "[TG502] attention_mask must have the shape of input_ids, [1, 2], not [1, 3]",
    ),
    (
        lambda n: n.generate([[1, 2], [3, 4]], attention_mask=[1, 1]),
        "[TG502] attention_mask must have the shape of input_ids, [2, 2], not [1, 2]",
    ),
    (
        lambda n: n.generate([[1, 2]], attention_mask=[["a", "b"]]),
        "[TG503] attention_mask must be 0 or 1, not <U1",
    ),
    (lambda n: list(n.stream("a")), "[TG918] there is no tokenizer.json with this model"),
]
HINTS = {
    "TG510": "\n  hint: give a shorter prompt, or fewer new tokens",
    "TG511": "\n  hint: net.tokenizer.encode(text)",
    "TG918": "\n  hint: generate(input_ids) takes ids",
}


@pytest.mark.parametrize(("wrong", "message"), BAD, ids=[m for _, m in BAD])
def test_errors(wrong, message):
    with pytest.raises(TensorgraphError) as e:
        wrong(net_of(GPT2))
    if e.value.code == "TG504":  # where the input was made follows
        assert str(e.value).startswith(message + "\n    input_ids : i32[B, T]")
    else:
        assert str(e.value) == message + HINTS.get(e.value.code, "")


def test_exactly_as_many_positions_as_there_are():
    net = net_of(GPT2)
    assert net.generate(ids_of(1, 8), 1).shape == (1, 9)
    assert net.generate(ids_of(2, 4), 5).shape == (2, 9)
