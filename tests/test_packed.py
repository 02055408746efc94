"""Packed weights: what rounding leaves, generation from them, one compilation however long the text grows."""

from __future__ import annotations

import itertools
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tensorgraph import models
from tensorgraph.backends import cpu
from tensorgraph.cli.bench import weight_bytes
from tensorgraph.errors import DataError, ModelError
from tensorgraph.models import packed, room
from tensorgraph.models.generate import Session
from tensorgraph.models.pretrained import Net
from tensorgraph.models.room import Room

GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 67, "n_positions": 256}
LLAMA = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": 67,
    "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True, "hidden_act": "silu",
}  # fmt: skip
MIXTRAL = LLAMA | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, "rope_theta": 1e4}
BACKENDS = ["numpy", pytest.param("c", marks=pytest.mark.skipif(cpu.compiler() is None, reason="no compiler"))]


def net(config: dict[str, Any], backend: str = "numpy", weights: str | None = None) -> Net:
    made = Net(models.build(config), config, backend=backend, weights=weights).init(3)
    rng = np.random.default_rng(0)
    made.state = {n: (a + 0.2 * rng.standard_normal(a.shape)).astype(a.dtype) for n, a in made.state.items()}
    return made


def unpacked(made: Net, kind: str) -> dict[str, Any]:
    """The values with every weight of a product rounded as it is packed, by the definition."""
    out = dict(made.values())
    session = Session(Net(made.model, made.config, made.state, weights=kind), 1)
    assert session._weights is not None
    for name, transposed in session._weights.turned.items():
        w = np.swapaxes(out[name], -1, -2) if transposed else out[name]
        if kind == "int8":
            scale = np.abs(w).max(-1, keepdims=True).astype("f8") / 127
            w = np.rint(w / scale) * scale
        else:
            w = w.astype(ml_dtypes.bfloat16)
        out[name] = (np.swapaxes(w, -1, -2) if transposed else w).astype("f4")
    return out


def test_int8_is_within_half_a_step() -> None:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((50, 70)).astype("f4")
    w[7] = 0
    q, scale = np.empty(w.shape, np.int8), np.empty(50, np.float32)
    packed.pack(w, q, scale)
    assert (np.abs(q).max(1)[:7] == 127).all()
    assert (np.abs(q * scale[:, None] - w) <= scale[:, None] * (0.5 + 1e-4)).all() and not q[7].any()
    half = np.empty(w.shape, ml_dtypes.bfloat16)
    packed.pack(w, half, None)
    assert (half == w.astype(ml_dtypes.bfloat16)).all()


def test_packed_weights_lie_side_by_side() -> None:
    session = Session(net(LLAMA, weights="int8"), 1)
    assert session._weights is not None
    found = {n: a for n, a in session.values().items() if n.endswith(".int8")}
    assert all(a.ctypes.data % 64 == 0 for a in found.values())
    places = sorted((a.ctypes.data, a.nbytes) for a in found.values())
    assert all(at + size <= after for (at, size), (after, _) in itertools.pairwise(places))
    small = Room(1000)
    large = [small.empty(shape, "i1") for shape in ((3, 5), (small.size, 2), (7, 1), (small.size, 1))]
    for i, a in enumerate(large):
        a[...] = i
    assert all((a == i).all() for i, a in enumerate(large))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
@pytest.mark.parametrize("config", [GPT2, LLAMA, MIXTRAL], ids=["gpt2", "llama", "mixtral"])
def test_generation_is_that_of_the_rounded_weights(config: dict[str, Any], kind: str, backend: str) -> None:
    made = net(config, backend, kind)
    plain = Net(made.model, config, unpacked(made, kind), backend=backend)
    sessions = [Session(n, 1) for n in (made, plain)]
    assert sessions[0]._weights is not None and len(sessions[0]._weights.turned) >= 9
    rng = np.random.default_rng(1)
    for length in (9, 1, 1, 3):  # many rows, one, few
        ids = rng.integers(0, 67, (1, length)).astype("i4")
        got, want = (s.feed(ids) for s in sessions)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


def test_experts_are_packed_and_counted_by_what_a_token_reads() -> None:
    whole, session = (Session(net(MIXTRAL, weights=kind), 1) for kind in (None, "int8"))
    for s in (whole, session):
        s.feed(np.zeros((1, 1), np.int32))
    assert session._weights is not None and sum("experts" in n for n in session._weights.turned) == 2 * 3
    experts = sum(a.nbytes for n, a in whole.values().items() if "experts" in n)
    others = sum(a.nbytes for n, a in whole.values().items() if "experts" not in n)
    assert weight_bytes(whole) == others + experts // 2  # 2 of 4; the tied table is read whole
    d, f = MIXTRAL["hidden_size"], MIXTRAL["intermediate_size"]
    assert [a.shape for n, a in session.values().items() if "w2" in n and n.endswith(".int8")] == [(4, d, f)] * 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_compiled_or_planned_anew_as_the_text_grows(backend: str) -> None:
    made = net(GPT2, backend, weights="int8")
    session = Session(made, 1, capacity=128)
    session.feed(np.zeros((1, 4), np.int32))
    calls = []
    session.feed(np.zeros((1, 1), np.int32))
    for _ in range(99):
        count = 0

        def count_calls(frame: Any, event: str, arg: Any) -> None:
            nonlocal count
            count += event == "call"

        sys.setprofile(count_calls)
        try:
            session.feed(np.zeros((1, 1), np.int32))
        finally:
            sys.setprofile(None)
        calls.append(count)
    assert len(session._step._bound) == 2 and len(made._compiled) == 1  # the prompt, and one token
    assert max(calls) == min(calls), "the work that Python does for a token is the same for every token"
    assert backend == "numpy" or calls[0] < 60, "it is one call into C"


def test_weights_that_multiply_the_same_are_one_product() -> None:
    made = net(LLAMA, weights="int8")
    session = Session(made, 1)
    assert session._weights is not None
    products = [t for t in session._step.graph.nodes if t.op.name == "packed_matmul"]
    assert len(products) == 2 * 4 + 1  # q, k and v; out; gate and up; down; and the head
    rows = {session.values()[t.inputs[1].label].shape for t in products}
    assert rows == {(32 + 2 * 16, 32), (32, 32), (2 * 48, 32), (32, 48), (67, 32)}
    before = session.feed(np.zeros((1, 3), np.int32))
    name = next(n for n in made.state if n.endswith("v_proj.weight"))
    made.state[name] = made.state[name] * np.float32(2)  # one of three
    session.position = 0
    changed = session.feed(np.zeros((1, 3), np.int32))
    assert not np.allclose(before, changed)
    assert changed.tobytes() == Session(net_like(made), 1).feed(np.zeros((1, 3), np.int32)).tobytes()


def net_like(made: Net) -> Net:
    return Net(made.model, made.config, made.state, weights=made.weights, backend=made.backend)


def test_weights_are_packed_again_when_they_change() -> None:
    made = net(GPT2, weights="int8")
    before = Session(made, 1).feed(np.zeros((1, 3), np.int32))
    made.state = {n: -a if n.endswith("wte.weight") else a for n, a in made.state.items()}
    assert not np.allclose(before, Session(made, 1).feed(np.zeros((1, 3), np.int32)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [None, "int8"])
def test_a_call_made_again_is_checked_and_sees_other_weights_and_longer_caches(kind: str | None, backend: str) -> None:
    made = net(GPT2, backend, kind)
    session = Session(made, 1, capacity=8)
    for t in range(6):
        session.feed(np.full((1, 1), t, np.int32))
    with pytest.raises(DataError) as info:
        session.feed(np.full((1, 1), 67, np.int32))
    assert info.value.code == "TG504"
    with pytest.raises(DataError) as info:
        session.feed(np.full((1, 1), 2**32 + 1))
    assert info.value.code == "TG503"
    made.state = {n: a * np.float32(0.5) for n, a in made.state.items()}
    for t in range(6, 12):  # the cache grows on the way
        got = session.feed(np.full((1, 1), t))
    fresh = Session(made, 1, capacity=16)
    for name, a in session._cache.items():
        fresh._cache[name][:, :, :6] = a[:, :, :6]
    fresh.position = 6
    for t in range(6, 12):
        want = fresh.feed(np.full((1, 1), t, np.int32))
    np.testing.assert_array_equal(got, want)


def test_packed_weights_never_hold_the_values_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = GPT2 | {"n_embd": 256, "vocab_size": 4001}
    given = Net(models.build(big), big).init(0)
    folder, ids = given.save_pretrained(tmp_path / "net"), np.array([[1, 2, 3]])
    full = sum(a.nbytes for a in given.state.values())
    opened = models.from_pretrained(folder, weights="int8", backend="numpy")
    session = Session(opened, 1)
    assert session._weights is not None
    monkeypatch.setattr(room, "PAGE", 64)  # blocks as large as what lies in them: what is traced is what is asked for
    session._weights._room = Room(1)
    tracemalloc.start()
    kept = sum(a.nbytes for a in session.values().values())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    largest = max(a.nbytes for a in given.state.values())
    assert kept < 0.3 * full and peak < kept + 1.3 * largest < full  # one value at a time
    from_values = Session(Net(given.model, big, given.state, weights="int8", backend="numpy"), 1)
    want = from_values.feed(ids)
    assert session.feed(ids).tobytes() == want.tobytes() and opened._unread is not None
    np.testing.assert_array_equal(opened(input_ids=ids)["logits"], given(input_ids=ids)["logits"])  # the values
    assert opened._unread is None and opened.state.keys() == given.state.keys()
    assert Session(opened, 1).feed(ids).tobytes() == want.tobytes()


def test_unknown_weights_are_an_error_in_words() -> None:
    with pytest.raises(ModelError) as info:
        Net(models.build(GPT2), GPT2, weights="int4")
    assert info.value.report() == (
        "ModelError[TG950] weights cannot be packed as 'int4'\n  hint: one of float32, bfloat16, int8"
    )
