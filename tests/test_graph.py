"""Graph: its text, what it obliges sizes and data to, binding and retyping that keep values, finding, export."""

from __future__ import annotations

import re

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorgraph as tg
from tensorgraph import interpret
from tensorgraph.errors import TensorgraphError

B, T, d, V, H, k = tg.dims("B T d V H k")


def said(fn, *args, **kwargs) -> str:
    with pytest.raises(TensorgraphError) as info:
        fn(*args, **kwargs)
    return info.value.report()


def language_model():
    ids, labels = tg.input("ids", (B, T), "int32"), tg.input("labels", (B, T), "int32")
    table = tg.ops.leaf.param("table", (V, d), trained=False)
    w = tg.ops.leaf.param("w", (d, d))
    x = tg.take(table, ids)
    with tg.scope("layers"), tg.scope("0"):
        x = (x + tg.softmax(x @ w, -1).named("probs")) * 0.5
    return tg.Graph({"loss": tg.cross_entropy(x @ table.T, labels), "x": x}, name="small")


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "ids": rng.integers(0, 7, (2, 3)).astype("i4"),
        "labels": rng.integers(0, 7, (2, 3)).astype("i4"),
        "table": rng.normal(size=(7, 4)),
        "w": rng.normal(size=(4, 4)),
    }


def evaluate(g, values, sizes):
    leaves = {**g.inputs, **g.params}
    return interpret.evaluate(g.outputs.values(), {t: values[n].astype(t.dtype.np) for n, t in leaves.items()}, sizes)


# ------------------------------------------------------------------------------------------------ text


def test_text_form():
    assert (
        language_model().text(where=False)
        == """\
small(
    ids: i32[B, T],
    labels: i32[B, T],
    table: f32[V, d],  # frozen
    w: f32[d, d],
) {
    %0: f32[B, T, d] = take(table, ids)
    %1: f32[B, T, d] = matmul(%0, w)        # layers.0
    %2: f32[B, T, d] = softmax(%1, axis=2)  # layers.0 'probs'
    %3: f32[B, T, d] = add(%0, %2)          # layers.0
    %4: f32[B, T, d] = mul(%3, 0.5)         # layers.0
    %5: f32[d, V] = permute(table, axes=(1, 0))
    %6: f32[B, T, V] = matmul(%4, %5)
    %7: f32[] = cross_entropy(%6, labels)
    return loss=%7, x=%4
}"""
    )


def test_text_names_lines_and_the_backward_side():
    x = tg.input("x", (3,))
    with tg.scope("a"):
        y = tg.sin(x)
    text = str(tg.Graph({"y": y, "g": tg.grad(y.sum(), x)}))
    assert "# a (test_graph.py:" in text and "# ∂a (test_graph.py:" in text
    assert "∂a" in tg.Graph(tg.grad(y.sum(), x)).text(where=False)


def test_aliases_fold_sizes_in_text():
    x = tg.input("x", (B, H * k))
    assert "x: f32[B, d]" in str(tg.Graph(x * 1.5, aliases={"d": H * k}))


def test_hostile_names_do_not_break_the_text():
    x = tg.input("a\u202eb\u2028c", (2,))
    text = str(tg.Graph(x + 1.0))
    assert len(text.splitlines()) == 6 and "\u202e" not in text


def test_the_same_model_built_again_has_the_same_text_and_graph():
    a, b = language_model(), language_model()
    assert a.text() == b.text()
    assert nx.is_isomorphic(
        a.to_networkx(), b.to_networkx(), node_match=lambda p, q: p == q, edge_match=lambda p, q: p == q
    )


def test_networkx_keeps_every_use():
    x = tg.input("x", (3,))
    g = tg.Graph(x * x - x).to_networkx()
    assert g.number_of_nodes() == 3 and g.number_of_edges() == 4
    assert nx.is_directed_acyclic_graph(g)
    sub = next(n for n, a in g.nodes(data=True) if a["op"] == "sub")
    uses = sorted((a["position"], g.nodes[u]["op"]) for u, _, a in g.in_edges(sub, data=True))
    assert uses == [(0, "mul"), (1, "input")] and g.nodes[sub]["outputs"] == ["out"]


# ------------------------------------------------------------------------------- outputs, inputs, names


def test_outputs_of_every_kind():
    x = tg.input("x", (3,))
    y, z = tg.sin(x).named("y"), tg.cos(x)
    assert list(tg.Graph(y).outputs) == ["y"] and list(tg.Graph(z).outputs) == ["out"]
    assert list(tg.Graph([y, z]).outputs) == ["y", "out1"] and list(tg.Graph([y, y]).outputs) == ["out0", "out1"]
    assert list(tg.Graph({"a": y}).outputs) == ["a"]
    assert "TG254" in said(tg.Graph, [x, None]) and "TG254" in said(tg.Graph, {"a": "b"})
    p = tg.Parameter((3,))
    assert list(tg.Graph(p).params) == ["parameter"]


def test_two_inputs_of_one_name():
    a, b = tg.input("q", (3,)), tg.input("q", (4,))
    assert said(tg.Graph, [a, b]).splitlines()[0] == "GraphError[TG309] two inputs are called 'q'"
    p, q = tg.ops.leaf.param("w", (3,)), tg.ops.leaf.param("w", (3,))
    assert said(tg.Graph, p + q).splitlines()[0] == "GraphError[TG309] two params are called 'w'"


def test_finding():
    g = language_model()
    assert [t.op.name for t in g.find("layers.*.probs")] == ["softmax"]
    assert g.find("t*") == [g.params["table"]]
    assert said(g.find, "layers.0.prob") == (
        "GraphError[TG310] nothing in small is called 'layers.0.prob'\n  hint: did you mean layers.0.probs?"
    )
    assert "TG310" in said(g.find, "[") and "TG310" in said(g.find, "")


# ---------------------------------------------------------------------------------- binding, retyping


def test_binding_and_retyping_keep_values():
    g, a = language_model(), arrays()
    sizes = {"B": 2, "T": 3, "d": 4, "V": 7}
    want = evaluate(g, a, sizes)
    bound = g.bind("B=2,T=3", d=4, V=7)
    assert bound.symbols == [] and bound.obligations == []
    for x, y in zip(evaluate(bound, a, {}), want, strict=True):
        np.testing.assert_array_equal(x, y)
    for x, y in zip(evaluate(g.map(), a, sizes), want, strict=True):
        np.testing.assert_array_equal(x, y)
    wide = g.astype("float64")
    assert {t.dtype.name for t in wide.nodes if t.dtype.is_float} == {"float64"}
    for x, y in zip(evaluate(wide, a, sizes), want, strict=True):
        np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-6)
    assert [t.label for t in wide.find("layers.*")] == ["probs"] and wide.name == "small"


def test_binding_to_other_sizes():
    g = language_model().bind({"T": 2 * B})
    assert set(g.symbols) == {"B", "V", "d"}
    assert g.inputs["ids"].shape == (B, 2 * B)


def test_binding_is_idempotent_and_partial():
    g = language_model()
    assert g.bind("B=2").bind("T=3,d=4,V=7").text() == g.bind("B=2,T=3,d=4,V=7").text()


def test_gradients_survive_retyping_exactly():
    """float64 of a retyped graph is float64 throughout: nothing was rounded to float32 on the way."""
    x = tg.input("x", (3,), "bfloat16")
    y = tg.upcast(tg.gelu(x)).sum()
    g = tg.Graph(tg.grad(y, x)).astype("float64")
    X = np.array([0.1, 0.2, 0.3])
    (got,) = interpret.evaluate(g.outputs.values(), {g.inputs["x"]: X}, {})
    from scipy.stats import norm

    np.testing.assert_allclose(got, norm.cdf(X) + X * norm.pdf(X), rtol=1e-14)


@pytest.mark.parametrize(
    ("binding", "text"),
    [
        ("T=0", "SizeError[TG010] T = 0 is below its minimum, 1"),
        ("T=3", "ShapeError[TG104] slice: slice within its axis: 3 must be ≥ 5"),
        ("T", "SizeError[TG009] cannot read 'T' as a size"),
        ({"T": 2.5}, "SizeError[TG004] 2.5 (float) is not a size"),
    ],
)
def test_bindings_that_cannot_be(binding, text):
    g = tg.Graph(tg.input("x", (T,))[:5])
    assert said(g.bind, binding).splitlines()[0] == text


# ------------------------------------------------------------------------------------------ obligations


def test_obligations_say_who_assumed_what():
    x = tg.input("x", (T, H * k))
    y = x[:5].reshape(5, H, k)
    g = tg.Graph(y)
    (o,) = g.obligations
    assert str(o) == f"T ≥ 5  (slice within its axis, assumed by slice at {o.node.where})"
    g.check_binding({"T": 5, "H": 1, "k": 1})
    assert said(g.check_binding, {"T": 4, "H": 1, "k": 1}) == f"SizeError[TG011] T = 4 breaks an obligation: {o}"
    assert said(g.check_binding, {"T": 4}).startswith("SizeError[TG007] no value for H, k")


def test_a_quotient_obliges_the_division_to_be_exact():
    G = tg.dim("G")
    q, kv = tg.input("q", (B, H, T, k)), tg.input("kv", (B, G, T, k))
    g = tg.Graph(tg.attention(q, kv, kv, None, None))
    assert [str(o).split("  ")[0] for o in g.obligations] == ["H divisible by G"]
    sizes = {"B": 1, "T": 2, "k": 3, "G": 2}
    g.check_binding({**sizes, "H": 6})
    assert "TG011" in said(g.check_binding, {**sizes, "H": 5})


def test_decided_obligations_are_no_obligations():
    assert tg.Graph(tg.input("x", (T + 5,))[:5]).obligations == []
    assert tg.Graph(tg.input("x", (7,))[:5]).obligations == []


# -------------------------------------------------------------------------------------------- inference


@pytest.mark.parametrize(
    ("shapes", "given", "want"),
    [
        ([(T + 1, H * k), (H,)], [(4, 12), (3,)], {"T": 3, "H": 3, "k": 4}),
        ([(k + T,), (H * k,), (H,)], [(9,), (12,), (3,)], {"H": 3, "k": 4, "T": 5}),
        ([(2 * T, 3 * B)], [(8, 9)], {"T": 4, "B": 3}),
        ([(T * T,)], [(49,)], {"T": 7}),
        ([(2 * T * T + 1,)], [(99,)], {"T": 7}),
        ([(H * k, H)], [(12, 3)], {"H": 3, "k": 4}),
    ],
)
def test_sizes_are_read_off_arrays(shapes, given, want):
    xs = [tg.input(f"x{i}", s) for i, s in enumerate(shapes)]
    g = tg.Graph(sum(x.sum() for x in xs))
    values = {f"x{i}": np.zeros(s) for i, s in enumerate(given)}
    assert g.infer_binding(values) == want
    assert g.infer_binding(dict(reversed(values.items()))) == want, "whatever the order"


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.permutations(range(3)))
def test_inference_inverts_binding(b, t, h, order):
    shapes = [(B + T, 3), (T * H, H + 2), (H,)]
    xs = [tg.input(f"x{i}", s) for i, s in enumerate(shapes)]
    g = tg.Graph(sum(x.sum() for x in xs))
    sizes = {"B": b, "T": t, "H": h}
    values = {f"x{i}": np.zeros(interpret.shape_of(xs[i], sizes)) for i in order}
    assert g.infer_binding(values) == sizes


@pytest.mark.parametrize(
    ("shape", "given", "text"),
    [
        ((2 * T,), (7,), "DataError[TG502] x: axis 0 has 7, which 2·T cannot be"),
        ((T * T,), (8,), "DataError[TG502] x: axis 0 has 8, which T² cannot be"),
        ((T, T), (3, 4), "DataError[TG502] T is 3 by axis 0 of x, and 4 by axis 1 of x"),
        ((T, 3), (3, 4), "DataError[TG502] x: axis 1 has 4, where the graph has 3"),
        ((H * k,), (12,), "DataError[TG507] x: axis 0 has 12, which does not say what H and k are"),
        ((T,), (3, 3), "DataError[TG502] x must have the shape [T], not [3, 3]"),
        ((T + 5,), (3,), "DataError[TG502] x: axis 0 has 3, which T + 5 cannot be"),
    ],
)
def test_arrays_that_do_not_fit(shape, given, text):
    g = tg.Graph(tg.input("x", shape) * 2.0)
    assert said(g.infer_binding, {"x": np.zeros(given)}).splitlines()[0] == text


def test_arrays_that_disagree_are_both_named():
    """Neither is accused: whichever came first said what the size is."""
    x, w, p = tg.input("x", (B, d)), tg.input("w", (d, 3)), tg.input("p", (2 * d,))
    g = tg.Graph((x @ w).sum() + p.sum())
    found = said(g.infer_binding, {"x": np.zeros((2, 5)), "w": np.zeros((4, 3)), "p": np.zeros(10)})
    line = re.findall(r"test_graph.py:\d+", found)[0]
    assert found == (
        "DataError[TG502] d is 5 by axis 1 of x, and 4 by axis 0 of w\n"
        f"    x : f32[B, d]    {line}\n"
        "               ^\n"
        f"    w : f32[d, 3]    {line}\n"
        "            ^\n"
        "  given: x [2, 5], w [4, 3]"
    )
    found = said(g.infer_binding, {"x": np.zeros((2, 5)), "w": np.zeros((5, 3)), "p": np.zeros(9)})
    assert found.startswith("DataError[TG502] 2·d is 10 by axis 1 of x, and 9 by axis 0 of p\n")


def test_a_size_below_its_minimum_is_refused():
    x = tg.input("x", (T,))
    assert said(tg.compile(x * 2.0), x=np.zeros(0, "f4")).splitlines()[0] == (
        "SizeError[TG010] T = 0 is below its minimum, 1"
    )


# ----------------------------------------------------------------------------------------- data ranges


def test_ranges_reach_inputs_through_views():
    ids = tg.input("ids", (B, T), "int32")
    table = tg.input("table", (V, d))
    g = tg.Graph(tg.take(table, ids[:, 1:].reshape(-1)))
    ((low, high, ignored, node),) = g.data_ranges["ids"]
    assert (low, high, ignored, node.op.name) == (0, V, None, "take")


def test_ranges_of_several_uses_and_of_the_input_itself():
    ids = tg.input("ids", (3,), "int32", high=5, low=1)
    g = tg.Graph(tg.take(tg.input("a", (V, 2)), ids) + tg.take(tg.input("b", (d, 2)), ids))
    assert [(r[0], r[1]) for r in g.data_ranges["ids"]] == [(0, V), (0, d), (1, 5)]
    sizes = {"V": 9, "d": 4}
    g.check_data({"ids": np.array([1, 2, 3])}, sizes)
    assert said(g.check_data, {"ids": np.array([1, 4, 3])}, sizes).splitlines()[0] == (
        "DataError[TG504] ids[1] = 4 is outside [0, 4)"
    )
    assert "ids[2] = 0 is outside [1, 5)" in said(g.check_data, {"ids": np.array([1, 2, 0])}, sizes)
