"""tg.compile: structure, capture, donation, traces, debugging, wrong inputs, memory, state, threads."""

from __future__ import annotations

import copy
import pickle
import re
import threading
from typing import Any

import numpy as np
import pytest

import tensorgraph as tg
from tensorgraph.backends import cpu
from tensorgraph.backends.cimage import Native
from tensorgraph.errors import TensorgraphError
from tensorgraph.passes import memory

WITH_C = pytest.mark.skipif(cpu.compiler() is None, reason="no C compiler")

B, T, d, V = tg.dims("B T d V")


def said(fn, *args, **kwargs) -> str:
    with pytest.raises(TensorgraphError) as info:
        fn(*args, **kwargs)
    return info.value.report()


def first(fn, *args, **kwargs) -> str:
    return said(fn, *args, **kwargs).splitlines()[0]


@pytest.fixture(scope="module")
def model():
    ids, labels = tg.input("ids", (B, T), "int32"), tg.input("labels", (B, T), "int64")
    table = tg.input("table", (V, d))
    h = tg.take(table, ids).named("rows")
    with tg.scope("head"):
        logits = (h @ table.T).named("logits")
    loss = tg.cross_entropy(logits, labels)
    f = tg.compile({"loss": loss, "logits": logits})
    rng = np.random.default_rng(0)
    arrays = {
        "table": rng.normal(size=(7, 4)).astype("f4"),
        "ids": rng.integers(0, 7, (2, 3)).astype("i4"),
        "labels": rng.integers(0, 7, (2, 3)),
    }
    return f, arrays, loss, logits


# ------------------------------------------------------------------------------------------ structure


def test_outputs_keep_their_structure(model):
    _, a, loss, logits = model
    plain = tg.compile(loss)(**a)
    assert plain.shape == () and plain.dtype == np.float32
    got = tg.compile({"a": [loss, (logits,)], "b": {"c": loss}})(**a)
    assert type(got["a"]) is list and type(got["a"][1]) is tuple
    assert got["a"][0] == plain == got["b"]["c"] and got["a"][1][0].shape == (2, 3, 7)
    assert tg.compile((loss, loss))(**a) == (plain, plain)
    assert tg.compile(tg.Graph({"x": loss}))(**a) == {"x": plain}


def test_parameters_may_come_first(model):
    f, a, *_ = model
    want = f(**a)["loss"]
    assert f({"table": a["table"], "unused by this graph": 3}, ids=a["ids"], labels=a["labels"])["loss"] == want
    assert f(None, **a)["loss"] == want


def test_what_is_captured_comes_along(model):
    _, a, loss, _logits = model
    got = tg.compile(loss, capture=["rows", "head.*"])(**a)
    assert set(got["captured"]) == {"rows", "head.logits"}
    np.testing.assert_array_equal(got["captured"]["rows"], a["table"][a["ids"]])
    assert got["value"] == tg.compile(loss)(**a)
    text = said(tg.compile, loss, capture="logit")
    assert text == "GraphError[TG310] nothing in graph is called 'logit'\n  hint: did you mean head.logits?"


def test_an_output_may_be_an_input_or_a_constant():
    z = tg.input("z", (3,))
    ones = np.ones(3, "f4")
    f = tg.compile({"a": z, "b": z, "c": z.reshape(3, 1), "two": tg.const(2.0, "float32")})
    got = f(z=ones)
    assert got["two"] == 2 and not any(np.shares_memory(got[k], ones) for k in "abc")
    assert not np.shares_memory(got["a"], got["b"])
    np.testing.assert_array_equal(tg.compile(tg.zeros((B,)), binding="B=3")(), np.zeros(3))


def test_passes_are_written_down(model, tmp_path):
    _, _a, loss, _ = model
    tg.compile(loss, trace=tmp_path / "deep" / "er")
    files = sorted(p.name for p in (tmp_path / "deep" / "er").iterdir())
    assert files[0] == "00-graph.txt" and len(files) >= 5
    for name in files:
        text = (tmp_path / "deep" / "er" / name).read_text(encoding="utf-8")
        assert "return" in text and "nodes\n" in text


def test_the_source_can_be_read_and_holds_no_size(model):
    f, *_ = model
    step = f.source[f.source.index("def step") :]
    assert "np.matmul(" in step and "test_compile.py:" in step and "head" in step
    assert "f32[B,T,V]" in f.source


HOSTILE = ["a']; import os; P['", 'q"x', "tab\\n", "日本 語", "{x}", "#", "end\\", "*/ //", "P", "v", "np"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_only_names(name):
    x = tg.input(name, (2,))
    f = tg.compile({"out": x + 1.0}, name=f"bad {name}")
    compile(f.source, "test", "exec")
    np.testing.assert_array_equal(f(**{name: np.ones(2, "f4")})["out"], [2, 2])


# ---------------------------------------------------------------------------------------- wrong inputs


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"labels": None}, "DataError[TG503] labels must be int64, not object"),
        ({"label": 3}, "DataError[TG501] graph has no input called label"),
        ({"ids": np.zeros((2, 3), "f4")}, "DataError[TG503] ids must be int32, not float32"),
        ({"ids": np.zeros((2, 3), bool)}, "DataError[TG503] ids must be int32, not bool"),
        ({"ids": [[1, 2, 3], [4]]}, "DataError[TG503] ids is no array: a list that NumPy cannot read"),
        ({"table": np.zeros((7, 4), "c8")}, "DataError[TG503] table must be float32, not complex64"),
        ({"table": "abc"}, "DataError[TG503] table must be float32, not <U3"),
        ({"ids": np.full((2, 3), 7, "i4")}, "DataError[TG504] ids[0, 0] = 7 is outside [0, 7)"),
        ({"ids": np.array([[0, 0, 0], [0, -1, 0]], "i4")}, "DataError[TG504] ids[1, 1] = -1 is outside [0, 7)"),
        ({"labels": np.full((2, 3), -99)}, "DataError[TG504] labels[0, 0] = -99 is outside [0, 7)"),
        ({"ids": np.zeros(3, "i4")}, "DataError[TG502] ids must have the shape [B, T], not [3]"),
        ({"labels": np.zeros((2, 2), int)}, "DataError[TG502] T is 3 by axis 1 of ids, and 2 by axis 1 of labels"),
        ({"ids": np.full((2, 3), 2**33)}, "DataError[TG503] ids has values that int32 cannot hold"),
        ({"table": np.zeros((0, 4), "f4")}, "SizeError[TG010] V = 0 is below its minimum, 1"),
    ],
)
def test_wrong_inputs(model, change, text):
    f, a, *_ = model
    got = first(f, **{**a, **change})
    assert got == text or ("TG504" in text and got.split("=")[0].split("[")[1] == text.split("=")[0].split("[")[1])


def test_missing_and_unknown_inputs(model):
    f, a, *_ = model
    assert said(f, ids=a["ids"]) == (
        "DataError[TG501] no value given for labels, table\n  labels: i64[B, T]\n  table: f32[V, d]"
    )
    assert said(f, **a, label=3).splitlines()[-1] == "  hint: did you mean labels, table?"
    assert first(f, a["ids"], table=a["table"]) == (
        "DataError[TG505] parameters come first, as a dict by name, not as ndarray"
    )


def test_kinds_matter_and_widths_do_not(model):
    f, a, *_ = model
    want = f(**a)["loss"]
    for table in (
        a["table"].astype("f8"),
        a["table"].astype(">f4"),
        np.asfortranarray(a["table"]),
        a["table"].tolist(),
    ):
        assert f(**{**a, "table": table})["loss"] == want
    for kind in ("i1", "i2", "i8", "u1", "u2", "u4", "u8"):
        assert f(**{**a, "ids": a["ids"].astype(kind), "labels": a["labels"].astype(kind)})["loss"] == want
    strided = np.repeat(np.repeat(a["table"], 2, 0), 2, 1)[::2, ::2]
    assert f(**{**a, "table": strided})["loss"] == want
    frozen = a["table"].copy()
    frozen.flags.writeable = False
    assert f(**{**a, "table": frozen})["loss"] == want


def test_the_ignored_label_is_no_id(model):
    f, a, *_ = model
    labels = a["labels"].copy()
    labels[0] = -100
    got = f(**{**a, "labels": labels})
    z = got["logits"].astype(np.float64)
    logp = z - np.log(np.exp(z).sum(-1, keepdims=True))
    want = -np.mean([logp[1, t, labels[1, t]] for t in range(3)])
    assert float(got["loss"]) == pytest.approx(want, rel=1e-5)
    assert np.isnan(f(**{**a, "labels": np.full((2, 3), -100)})["loss"]), "as PyTorch: the mean of nothing"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"backend": "tpu"}, "BackendError[TG700] unknown backend 'tpu'"),
        ({"debug": "x"}, "BackendError[TG700] unknown debug mode 'x'"),
        ({"donate": {"out": "table"}}, "GraphError[TG311] 'out' cannot overwrite 'table': their types differ"),
        ({"donate": {"no": "table"}}, "GraphError[TG311] cannot donate 'table' to 'no': no such input or output"),
        ({"binding": "B=0"}, "SizeError[TG010] B = 0 is below its minimum, 1"),
    ],
)
def test_wrong_options(model, options, text):
    assert first(tg.compile, model[2], **options) == text


def test_nothing_to_compile():
    for empty in ([], {}, {"a": []}):
        assert first(tg.compile, empty) == "GraphError[TG313] nothing to compile: there are no outputs"
    assert first(tg.compile, "abc") == "OpError[TG254] a str is not a tensor"


def test_a_binding_and_the_arrays_must_agree(model):
    f = tg.compile(model[2], binding="B=5")
    assert first(f, **model[1]) == "DataError[TG502] ids: axis 0 has 2, where the graph has B = 5"


def test_obligations_are_checked_when_sizes_are_known():
    x = tg.input("x", (T,))
    f = tg.compile(x[:5])
    assert f(x=np.arange(7, dtype="f4")).tolist() == [0, 1, 2, 3, 4]
    text = said(f, x=np.zeros(3, "f4"))
    assert text.startswith(
        "SizeError[TG011] T = 3 breaks an obligation: T ≥ 5  (slice within its axis, assumed by slice at"
    )


# ------------------------------------------------------------------------------------- the first nan or inf


def test_the_first_value_that_is_not_finite_is_named():
    x, w = tg.input("x", (3,)), tg.input("w", (3,))
    with tg.scope("layers"), tg.scope("7"):
        y = tg.log(x - w)
    loss = (y * 2.0).sum()
    f = tg.compile(loss, debug="nonfinite")
    assert np.isfinite(f(x=np.full(3, 2, "f4"), w=np.ones(3, "f4")))
    text = said(f, x=np.array([0, 3, 2], "f4"), w=np.ones(3, "f4"))
    rows = text.splitlines()
    assert rows[0] == "GradError[TG405] log is the first to produce nan"
    assert "layers.7" in rows[1] and "test_compile.py:" in rows[1] and rows[2] == "  x in [-1, 2]"
    g = tg.compile(tg.grad(tg.sqrt(x).sum(), x), debug="nonfinite")
    assert first(g, x=np.zeros(3, "f4")).endswith("is the first to produce inf, in the backward pass")


def test_what_is_given_and_is_not_finite_is_named():
    x, w, m = tg.input("x", (3,)), tg.param("w", (3,)), tg.input("m", (3,))
    f = tg.compile((tg.softmax(x + m) * w).sum(), debug="nonfinite")
    good = {"x": np.ones(3, "f4"), "m": np.array([0, -np.inf, 0], "f4")}
    assert np.isfinite(f({"w": np.ones(3, "f4")}, **good)), "a mask's -inf is no fault"
    bad = np.array([1, np.nan, 3], "f4")
    assert first(f, {"w": np.ones(3, "f4")}, **{**good, "x": bad}) == "GradError[TG405] the input x is given nan"
    assert first(f, {"w": bad}, **good) == "GradError[TG405] the parameter w is given nan"
    big = tg.compile(x * 2.0, debug="nonfinite")
    assert first(big, x=np.array([1, np.inf, 3], "f4")) == "GradError[TG405] the input x is given inf"


def test_debugging_leaves_state_alone_when_it_fails():
    p, t = tg.ops.leaf.param("p", (2,)), tg.input("t", ())
    step = tg.compile((tg.log(p) * t).sum(), update=tg.optim.SGD(lr=1.0), debug="nonfinite")
    state = step.init({"p": np.array([1.0, -1.0])})
    assert "TG405" in first(step, state, t=1.0)
    np.testing.assert_array_equal(state["params/p"], [1, -1])


# ---------------------------------------------------------------------------------------------- memory


def test_memory_is_told_before_a_call(model):
    f, a, *_ = model
    report = f.memory("B=2,T=3,d=4,V=7")
    f(**a)
    (bound,) = [b[0] for b in list(f._bound.values())[:1]]
    assert report.arena == bound.memory.arena and bound.arena.nbytes <= report.arena + 64
    assert report.given == sum(v.nbytes for v in a.values())
    assert report.returned == 4 + 2 * 3 * 7 * 4
    assert report.scratch == 4 * 2 * 3 * 4  # take returns its rows
    assert report.peak == report.arena + report.given + report.returned + report.tables + report.scratch
    assert str(report).startswith("peak ") and report.largest[0][0] >= report.largest[-1][0]
    assert first(f.memory, "B=2") == "SizeError[TG007] no value for V, d, T"


def test_the_arena_is_reused():
    """A chain of a hundred layers needs two buffers, not a hundred."""
    x = tg.input("x", (B, d))
    y = x
    for _ in range(100):
        y = tg.softmax(y + x)
    report = tg.compile(y).memory("B=1000,d=1000")
    assert report.arena <= 3 * 4_000_000 + 4096


def test_too_large_is_refused_before_allocation(monkeypatch):
    x = tg.input("x", (B, d))
    with tg.scope("layers.3"):
        y = (tg.sin(x) @ tg.cos(x).T).named("scores")
    f = tg.compile(y.sum())
    monkeypatch.setattr(memory, "available", lambda: 10**6)
    monkeypatch.setattr(np, "empty", lambda *a, **k: pytest.fail("allocated"))
    text = re.sub(r"test_compile.py:\d+", "HERE", said(f, x=np.broadcast_to(np.float32(0), (4000, 10))))
    assert text == (
        "BackendError[TG710] graph needs 64.3 MB, and 1.0 MB are free\n"
        "  the largest alive at once:\n"
        "        64.0 MB  matmul layers.3.scores  HERE\n"
        "         0.2 MB  sin layers.3  HERE\n"
        "         0.2 MB  cos layers.3  HERE\n"
        "         0.2 MB  x\n"
        '  hint: smaller sizes, remat="block" in training, or a lower precision: graph.astype("bfloat16")'
    )


def test_a_limit_is_bytes_or_a_size_in_words(monkeypatch):
    x = tg.input("x", (B, 4))
    f = tg.compile(x.sum(), memory_limit="0.1kB")
    assert said(f, x=np.ones((8, 4), "f4")).splitlines()[0].endswith("and the limit is 100 B")
    assert "128 B  x" in str(f.memory("B=8")) and "0.0" not in str(f.memory("B=8"))
    for wrong in (-1, 1.5, True, "much", "-2GB"):
        assert said(tg.compile, x.sum(), memory_limit=wrong).startswith("BackendError[TG716] memory_limit is")
    assert [memory.shown(n) for n in (0, 999, 1500, 250_000, 21 * 10**9)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "0.2 MB",
        "21.0 GB",
    ]


def test_a_state_that_does_not_fit_is_refused_before_allocation(monkeypatch):
    w, x = tg.param("w", (3000, 1000)), tg.input("x", (B, 3000))
    step = tg.compile((x @ w).square().sum(), update=tg.optim.AdamW(1e-3), memory_limit=40 * 10**6, name="train")
    monkeypatch.setattr(np, "zeros", lambda *a, **k: pytest.fail("allocated"))
    rows = said(step.init, binding="B=2").splitlines()
    assert rows[0] == "BackendError[TG710] train needs 48.0 MB, and the limit is 40.0 MB"
    assert {r.split()[2] for r in rows[2:6]} == {"matmul", "params/w", "m/w", "v/w"}


def test_available_memory_is_known_or_none():
    free = memory.available()
    assert free is None or 0 < free < 2**50


def test_few_bindings_are_kept():
    x = tg.input("x", (T,))
    f = tg.compile(tg.sin(x))
    for n in range(1, 60):
        assert f(x=np.zeros(n, "f4")).shape == (n,)
    assert len(f._bound) <= 16


# ----------------------------------------------------------------------------------------------- state


@pytest.fixture
def training():
    class Net(tg.Module):
        def __init__(self):
            super().__init__()
            self.lin = tg.nn.Linear(d, 3)

        def forward(self, x):
            return self.lin(x)

    loss = Net()(tg.input("x", (B, d))).square().sum()
    return tg.compile(loss, update=tg.optim.AdamW(lr=0.1)), {"x": np.ones((2, 4), "f4")}


def test_a_consumed_state_is_refused(training):
    step, a = training
    old = step.init(seed=0, binding="d=4")
    _, new = step(old, **a)
    want = (
        "StateError[TG601] this state was consumed by a step and is no longer valid\n"
        "  hint: value, state = step(state, ...)"
    )
    assert said(step, old, **a) == want
    assert said(lambda: old["step"]) == said(lambda: len(old)) == said(lambda: old.params) == want
    assert repr(old) == "<State consumed>" and repr(new) == "<State of 7 arrays, step 1>"


def test_a_failed_call_consumes_nothing(training):
    step, a = training
    state = step.init(seed=0, binding="d=4")
    before = {k: v.copy() for k, v in state.items()}
    for wrong, code in (
        ({}, "TG501"),
        ({"y": 1}, "TG501"),
        ({"x": np.ones((2, 5), "f4")}, "TG502"),
        ({"x": "a"}, "TG503"),
    ):
        assert code in first(step, state, **wrong)
    for k, v in before.items():
        np.testing.assert_array_equal(state[k], v)
    _, state = step(state, **a)
    assert int(state["step"]) == 1


def test_state_cannot_be_written_from_outside(training):
    step, _ = training
    state = step.init(seed=0, binding="d=4")
    with pytest.raises(ValueError, match="read-only"):
        state["params/lin.weight"][:] = 0
    state.params["lin.weight"][:] = 7
    assert (state["params/lin.weight"] != 7).all(), "params are copies"


def test_states_of_other_steps(training):
    step, a = training
    other = tg.compile(step.compiled.graph.outputs["value/out"], update=tg.optim.SGD(lr=0.1))
    state = step.init(seed=0, binding="d=4")
    assert first(other, state, **a) == "StateError[TG602] this state belongs to another step"
    assert first(other.load, dict(state)).startswith(
        "StateError[TG602] this is not the state of this step: m/lin.bias, m/lin"
    )
    assert first(step, {}, **a) == "StateError[TG603] a step takes a State first, not dict"
    one, _ = step(step.load(dict(state)), **a)
    two, _ = step(state, **a)
    assert one == two


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"step": np.array([1, 2])}, "StateError[TG602] step must have the shape [], not [2]"),
        (
            {"params/lin.weight": np.ones((2, 4))},
            "StateError[TG602] params/lin.weight must have the shape [3, d], not [2, 4]",
        ),
        ({"m/lin.weight": np.ones((3, 5))}, "StateError[TG602] m/lin.weight must have the shape [3, 4], not [3, 5]"),
        ({"m/lin.weight": np.ones((3, 4), "c8")}, "DataError[TG503] m/lin.weight must be float32, not complex64"),
    ],
)
def test_a_saved_state_that_does_not_fit(training, change, text):
    step, _ = training
    assert first(step.load, {**dict(step.init(seed=0, binding="d=4")), **change}) == text


@pytest.mark.parametrize(
    ("params", "text"),
    [
        ({"lin.weight": np.ones((3, 4))}, "StateError[TG602] no value for parameter lin.bias"),
        (
            {"lin.weight": np.ones((2, 4)), "lin.bias": np.ones(3)},
            "StateError[TG602] parameter lin.weight must have the shape [3, d], not [2, 4]",
        ),
        (
            {"lin.weight": np.ones((3, 4)), "lin.bias": np.ones(3), "zz": 1},
            "StateError[TG602] the step has no parameter called zz",
        ),
        (
            {"lin.weight": np.ones((3, 4), complex), "lin.bias": np.ones(3)},
            "DataError[TG503] lin.weight must be float32, not complex128",
        ),
        ("x", "StateError[TG603] init takes parameters as a dict by name, not a str"),
    ],
)
def test_parameters_that_do_not_fit(training, params, text):
    assert first(training[0].init, params) == text


def test_donated_arrays_must_be_ones_own():
    p, q = tg.input("p", (3,)), tg.input("q", (3,))
    f = tg.compile({"new": p + q}, donate={"new": "p"})
    a = np.ones(3, "f4")
    assert first(f, p=a, q=a) == "DataError[TG506] p is overwritten in place, and shares its memory with q"
    assert first(f, p=np.ones(3), q=a) == "DataError[TG503] p is overwritten in place and must be float32, not float64"
    frozen = np.ones(3, "f4")
    frozen.flags.writeable = False
    assert first(f, p=frozen, q=a) == "DataError[TG506] p is overwritten in place, and the array given is read-only"
    np.testing.assert_array_equal(frozen, 1)


# ----------------------------------------------------------------------------------------- eval, threads


def test_eval(model):
    _, a, loss, _ = model
    assert loss.eval(**a) == tg.compile(loss)(**a)
    assert first(loss.eval, ids=a["ids"]) == "DataError[TG501] no value given for labels, table"


def test_threads_take_turns():
    x = tg.input("x", (B, d), "float64")
    f = tg.compile(tg.softmax(x @ x.T).sum(0))
    arrays = [np.random.default_rng(i).normal(size=(40, 30)) for i in range(4)]
    want = [f(x=a) for a in arrays]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(50):
            if (f(x=arrays[i]) != want[i]).any():
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_two_runs_give_the_same_bits(model):
    f, a, *_ = model
    one, two = f(**a), f(**a)
    for k in one:
        np.testing.assert_array_equal(one[k], two[k])


def test_what_updates_is_an_optimiser():
    with pytest.raises(tg.GraphError) as e:
        tg.compile(tg.param("w", (2,)).sum(), update=3e-4)
    assert e.value.report() == (
        "GraphError[TG314] update must be an optimiser, not float\n  hint: update=tg.optim.AdamW(lr=3e-4)"
    )


def times(factor: float, name: str) -> Any:
    """An op of its own with this name, which multiplies."""

    def body(x: tg.Tensor) -> tg.Tensor: ...

    body.__name__ = name
    made = tg.op(body, shape="B -> B")
    made.forward(lambda xp, x: x * np.float32(factor))
    return made


@pytest.mark.parametrize("backend", ["numpy", pytest.param("c", marks=WITH_C)])
@pytest.mark.parametrize("name", ["unit0", "pick", "input", "np", "F", "step", "lambda_"])
def test_an_op_may_have_the_name_of_anything_in_generated_code(backend, name):
    x = tg.input("x", (2,))
    found = tg.compile(tg.exp(times(3.0, name)(tg.exp(x))), backend=backend)(x=np.zeros(2, "f4"))
    np.testing.assert_allclose(found, np.exp(3.0), rtol=1e-6)


@pytest.mark.parametrize("name", ["my op", "x.y", "lambda", "<lambda>", "x(np,a[0]) if print('INJECTED') else F.x"])
def test_what_is_no_name_is_none_for_an_op(name):
    with pytest.raises(tg.OpError, match=r"TG250.*is no name for an op"):
        tg.op(lambda x: x, name=name, shape="B -> B")


@pytest.mark.parametrize("backend", ["numpy", pytest.param("c", marks=WITH_C)])
def test_ops_of_one_name_are_two_ops(backend):
    x = tg.input("x", (2,))
    made = {f"{name} {factor}": times(factor, name)(x) for name in ("act", "tanh", "matmul") for factor in (2.0, 3.0)}
    found = tg.compile({**made, "own": tg.tanh(x)}, backend=backend)(x=np.ones(2, "f4"))
    for key in made:
        np.testing.assert_array_equal(found[key], float(key[-3:]), err_msg=key)
    np.testing.assert_allclose(found["own"], np.tanh(1.0), rtol=1e-6)


def test_an_op_that_nobody_defined():
    @tg.op(shape="B d -> B d")
    def swish(x: tg.Tensor) -> tg.Tensor: ...

    with pytest.raises(tg.BackendError) as e:
        swish(tg.input("x", tg.dims("B d"))).eval(x=np.ones((2, 3)))
    assert e.value.report() == (
        "BackendError[TG702] swish has no forward\n"
        "  hint: write one: @swish.forward, a function (xp, *arrays, **attributes)"
    )


@pytest.mark.parametrize(
    "backend", ["numpy", pytest.param("c", marks=pytest.mark.skipif(cpu.compiler() is None, reason="no C compiler"))]
)
def test_a_computed_index_out_of_range_is_told_and_the_state_is_nobodys(backend):
    """Some parameters may have moved by then: a state that is half of one step and half of the next is no state."""
    w, ids = tg.param("w", (5, 2)), tg.input("ids", (3,), "int32")
    loss = tg.square(tg.take(w, ids + 1)).sum()
    step = tg.compile(loss, update=tg.optim.SGD(0.1), backend=backend)
    state = step.init({"w": np.ones((5, 2), "f4")})
    for _ in range(2):  # the second call goes the short way
        _, state = step(state, ids=np.array([0, 1, 3], "i4"))
    saved = {k: v.copy() for k, v in state.items()}
    with pytest.raises(TensorgraphError, match=r"TG505.*computed by the graph"):
        step(state, ids=np.array([0, 1, 4], "i4"))
    with pytest.raises(TensorgraphError, match=r"TG601.*failed halfway"):
        step(state, ids=np.array([0, 1, 3], "i4"))
    _, state = step(step.load(saved), ids=np.array([0, 1, 3], "i4"))
    with pytest.raises(TensorgraphError, match="TG505"):
        step(step.load(saved), ids=np.array([0, 1, -2], "i4"))
    with pytest.raises(TensorgraphError, match=r"TG50[1-3]"):
        step(state, ids=np.array([0, 1], "i4"))  # nothing was done: the state is as it was
    step(state, ids=np.array([0, 1, 3], "i4"))


def test_a_copy_of_a_state_is_another_state():
    w = tg.param("w", (3,))
    step = tg.compile(tg.square(w).sum(), update=tg.optim.SGD(0.1), backend="numpy")
    state = step.init({"w": np.ones(3, "f4")})
    kept = copy.deepcopy(state)
    _, state = step(state)
    assert kept["params/w"].tolist() == [1, 1, 1] and state["params/w"][0] < 1
    _, again = step(kept)
    assert again["params/w"].tolist() == state["params/w"].tolist()
    with pytest.raises(TensorgraphError, match="TG605"):
        pickle.dumps(state)


@WITH_C
@pytest.mark.parametrize("first", [True, False])
def test_a_step_of_c_that_is_interrupted_leaves_a_whole_state(monkeypatch, first):
    """Before the call or after it: the state given is what it was, or what it has become."""
    x, w = tg.input("x", (B, d)), tg.ops.param("w", (d,))
    step = tg.compile(tg.mean(tg.square(x * w)), update=tg.optim.SGD(0.1), backend="c")
    given = {"x": np.ones((2, 3), "f4")}
    state = step.init({"w": np.ones(3)})
    if not first:
        _, state = step(state, **given)
    bound = next(iter(step.compiled._bound.values())).bound if not first else None
    for late in (False, True):
        before = int(state["step"])

        def interrupted(call, *args, late=late):
            if late:
                call(*args)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            if first:
                patch.setattr(Native, "run", lambda self, P, run=Native.run: interrupted(run, self, P))
            else:
                patch.setattr(state.repeat, "step", lambda *args, call=state.repeat.step: interrupted(call, *args))
            with pytest.raises(KeyboardInterrupt):
                step(state, **given)
        assert int(state["step"]) == before + late
    value, state = step(state, **given)
    again = step.init({"w": np.ones(3)})
    for _ in range(int(state["step"])):
        value_again, again = step(again, **given)
    assert value == value_again and (state["params/w"] == again["params/w"]).all()
    assert bound is None or bound.atomic


def test_an_interrupted_step_leaves_no_state_that_looks_whole(monkeypatch):
    """Ctrl-C between two updates: one parameter is of the next step, the other of this one."""
    a, b = tg.param("a", (3,)), tg.param("b", (4, 3))
    step = tg.compile(tg.square(b @ a).sum(), update=tg.optim.SGD(0.1), backend="numpy")
    state = step.init(0)
    _, state = step(state)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(state.repeat.lowered, "body", interrupted)
    with pytest.raises(KeyboardInterrupt):
        step(state)
    with pytest.raises(TensorgraphError, match=r"TG601.*halfway"):
        step(state)
