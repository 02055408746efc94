"""Tensors: equal nodes are one object, values stay out of the graph, nothing recurses, nothing is kept alive."""

from __future__ import annotations

import gc
import itertools
import math
import operator
import sys
import types
import weakref

import numpy as np
import pytest

import tensorgraph as tg
from tensorgraph import autodiff, dtypes, interpret
from tensorgraph.errors import DTypeError, GraphError, OpError, ShapeError, TensorgraphError
from tensorgraph.tensor import _table, topological

B, T, d = tg.dims("B T d")


@pytest.fixture
def x():
    return tg.input("x", (3,))


# -------------------------------------------------------------------------------------------- interning


def test_equal_nodes_are_one_object(x):
    assert tg.sin(x) is tg.sin(x) and x + 1 is x + 1.0, "a number takes the dtype beside it"
    assert x.sum() is x.sum(axis=0) and x.sum(-1) is x.sum((0,)), "axes are counted from the front"
    assert tg.reshape(x, (1, -1)) is x.reshape(1, 3)
    assert tg.input("x", (3,)) is not tg.input("x", (3,)), "leaves are told apart by object"


def test_attributes_enter_with_their_type_and_bits(x):
    i = tg.input("i", (3,), "int32")
    different = [
        (x * 0.0, x * -0.0),
        (tg.cumsum(x, reverse=False), tg.cumsum(x, reverse=True)),
        (tg.const(1, "int32"), tg.const(1, "int64")),
        (tg.const(True), tg.const(1, "int32")),
        (tg.const(1, "int32"), tg.const(1.0, "float32")),
        (tg.const([1.0, 2.0]), tg.const([1.0, -2.0])),
        (tg.const([[1.0, 2.0]]), tg.const([1.0, 2.0])),
        (i.cast("int64"), i.cast("float32")),
    ]
    for a, b in different:
        assert a is not b
    assert tg.const([1.0, 2.0]) is tg.const(np.array([1.0, 2.0]))
    nan = float("nan")
    assert tg.const(nan, "float32") is tg.const(nan, "float32"), "bits decide, not =="


def test_interning_is_per_layer(x):
    with tg.scope("a") as a:
        u = tg.sin(x)
        with tg.scope("b"):
            v = tg.sin(x)
    with tg.scope("a"):
        w = tg.sin(x)
    assert len({u, v, w}) == 3
    assert [t.scope.path for t in (u, v, w)] == ["a", "a.b", "a"] and u.scope is a


def test_random_nodes_are_never_one(x):
    seed = tg.input("seed", (), "int32")
    a, b = tg.random.uniform(seed, (3,)), tg.random.uniform(seed, (3,))
    assert a is not b


def test_graphs_hold_no_values():
    with pytest.raises(ShapeError) as info:
        tg.input("x", (65,)) + np.ones(65)
    assert str(info.value) == (
        "[TG105] an array of 65 elements cannot be a constant of a graph (at most 64)\n"
        '  hint: make it an input: tg.input("x", shape), and pass the array when running'
    )
    tg.input("x", (64,)) + np.ones(64)
    mine = np.ones(3)
    c = tg.const(mine)
    mine[:] = 7
    np.testing.assert_array_equal(tg.compile(c)(), np.ones(3), "a literal is a copy")


# ----------------------------------------------------------------------------------- what a node is not


@pytest.mark.parametrize(
    ("use", "error", "text"),
    [
        (bool, GraphError, "[TG302] the truth value of x is not known while the graph is built"),
        (lambda x: 0 < x < 1, GraphError, "[TG302] the truth value of greater is not known while the graph is built"),
        (np.asarray, GraphError, "[TG303] x is a node of a graph, not an array"),
        (float, GraphError, "[TG303] x has no value while the graph is built: float() needs a number"),
        (int, GraphError, "[TG303] x has no value while the graph is built: int() needs a number"),
        (math.exp, GraphError, "[TG303] x has no value while the graph is built: float() needs a number"),
        (round, GraphError, "[TG303] x has no value while the graph is built: round() needs a number"),
        (
            lambda x: f"{x:.3f}",
            GraphError,
            "[TG303] x has no value while the graph is built: it cannot be formatted as '.3f'",
        ),
        (
            lambda x: operator.setitem(x, 0, 1.0),
            GraphError,
            "[TG303] x is a node of a graph: no element of it can be set",
        ),
        (np.tanh, OpError, "[TG261] numpy.tanh takes arrays, and x is a node of a graph"),
        (lambda x: np.add(x, 1), OpError, "[TG261] numpy.add takes arrays, and x is a node of a graph"),
        (np.mean, OpError, "[TG261] numpy.mean takes arrays, and x is a node of a graph"),
        (
            lambda x: np.concatenate([x, x]),
            OpError,
            "[TG261] numpy.concatenate takes arrays, and x is a node of a graph",
        ),
        (
            lambda x: operator.iadd(np.ones(3), x),
            OpError,
            "[TG261] numpy.add takes arrays, and x is a node of a graph",
        ),
        (lambda x: x // 2, OpError, "[TG262] x takes no //"),
        (lambda x: 2 % x, OpError, "[TG262] x takes no %"),
        (lambda x: x ^ 2, OpError, "[TG262] x takes no ^"),
        (
            lambda x: x == 0,
            OpError,
            "[TG260] == asks whether x is the same node as something else; it does not compare values",
        ),
    ],
)
def test_a_node_has_no_value(use, error, text):
    for x in (tg.input("x", (B,)), tg.Parameter((B,))):
        name = "x" if isinstance(x, tg.Tensor) else "parameter"
        if use is bool and name != "x":
            assert bool(x), "as in `if self.bias`"
            continue
        with pytest.raises(error) as info:
            use(x)
        assert str(info.value).splitlines()[0] == text.replace(" x ", f" {name} ").replace("x takes", f"{name} takes")
        assert str(info.value).splitlines()[-1].startswith("  hint: ")


def test_equality_is_identity_and_a_comparison_with_a_number_is_refused(x):
    y, p = tg.sin(x), tg.Parameter((3,))
    assert x == x and x != y and x != None and x != "x" and y in [x, y] and {x: 1, p: 2}[x] == 1  # noqa: E711
    assert p == p and p != x and len({x, y, p}) == 3
    for use in (
        lambda: tg.where(x == 0, x, 1.0),
        lambda: x != 0.0,
        lambda: operator.eq(0, x),
        lambda: np.zeros(3) == x,
        lambda: x == np.float32(1),
        lambda: 1.0 in x,
    ):
        with pytest.raises(OpError, match=r"TG26[01]"):
            use()
    with pytest.raises(OpError) as info:
        x == 0  # noqa: B015
    assert str(info.value).splitlines()[-1] == "  hint: tg.equal(x, 0) compares, and tg.not_equal"


@pytest.mark.parametrize("wrong", [True, False, 0, 1.0])
def test_a_condition_is_a_tensor(x, wrong):
    mask = tg.greater(x, 0.0)
    for use in (
        lambda: tg.where(wrong, x, x),
        lambda: tg.where(x == tg.sin(x) if wrong is False else wrong, x, x),
        lambda: mask & wrong,
        lambda: wrong | mask,
        lambda: tg.logical_not(wrong),
    ):
        with pytest.raises(OpError, match=r"\[TG260\]") as info:
            use()
        assert str(info.value).splitlines()[-1] == "  hint: tg.equal(x, 0) compares, as <, <=, > and >= do"
    assert tg.where(mask, True, False).dtype.name == "bool", "values may be numbers"


def test_length_and_iteration_need_a_number():
    rows = list(tg.input("z", (3, 2)))
    assert len(rows) == 3 and all(r.shape == (2,) for r in rows)
    for use in (len, list):
        with pytest.raises(ShapeError, match=r"\[TG111\] len\(\) of x: its first size is not a number"):
            use(tg.input("x", (B, 2)))
        with pytest.raises(ShapeError, match="TG111"):
            use(tg.input("x", ()))


@pytest.mark.parametrize("name", ["", "a b", "a.", ".a", "a\nb", 3, None, "a-b"])
def test_malformed_names(x, name):
    with pytest.raises(GraphError, match="TG301"):
        tg.sin(x).named(name)


@pytest.mark.parametrize("name", ["", "a\nb", "a\x00b", "\x7f", None, 3])
def test_malformed_input_names(name):
    with pytest.raises(GraphError, match="TG301"):
        tg.input(name, (3,))


def test_named_values(x):
    y = tg.sin(x).named("attn.probs")
    assert y.label == "attn.probs" and y.path == "attn.probs" and tg.Graph(y).find("attn.*") == [y]
    with pytest.raises(GraphError) as info:
        x.named("z")
    assert str(info.value) == "[TG301] x is an input or parameter and has its name already"


@pytest.mark.parametrize("shape", [(-1,), (-T,), (B, 1 - T - B)])
def test_negative_sizes(shape):
    with pytest.raises(ShapeError, match="TG109"):
        tg.input("x", shape)


def test_a_size_that_may_be_negative_is_an_obligation():
    x = tg.input("x", (T - 5,))
    assert [str(o).split("  ")[0] for o in tg.Graph(x + 1.0).obligations] == ["T - 5 ≥ 0"]
    with pytest.raises(TensorgraphError, match=r"TG011.*T = 3 breaks an obligation: T - 5 ≥ 0"):
        tg.Graph(x + 1.0).check_binding({"T": 3})


# ---------------------------------------------------------------------------------------------- dtypes

LATTICE = {
    "bool": 0,
    "uint8": 1,
    "int8": 1,
    "int32": 2,
    "int64": 3,
    "float16": 4,
    "bfloat16": 4,
    "float32": 5,
    "float64": 6,
}


@pytest.mark.parametrize(("a", "b"), list(itertools.product(dtypes.ALL, repeat=2)))
def test_promotion(a, b):
    """The wider wins, a float over any integer (as in JAX); incomparable ones meet in the next that holds both."""
    got = dtypes.promote(dtypes.ALL[a], dtypes.ALL[b])
    assert got == dtypes.promote(dtypes.ALL[b], dtypes.ALL[a])
    if a == b:
        assert got.name == a
    elif LATTICE[a] == LATTICE[b]:
        assert got.name == {"uint8": "int32", "int8": "int32"}.get(a, "float32")
    else:
        assert got.name == max(a, b, key=LATTICE.__getitem__)


@pytest.mark.parametrize(
    ("use", "want"),
    [
        (lambda v: v.h * 2.0, "bfloat16"),
        (lambda v: v.h + v.i, "bfloat16"),
        (lambda v: v.i * 2, "int32"),
        (lambda v: v.i * 2.0, "float32"),
        (lambda v: v.f * v.x, "float64"),
        (lambda v: v.x + np.float32(2), "float32"),
        (lambda v: np.float64(3) * v.h, "bfloat16"),
        (lambda v: np.int64(3) - v.i, "int32"),
        (lambda v: v.x * True, "float32"),
        (lambda v: v.b + 1, "int32"),
        (lambda v: np.array([1.0, 2.0, 3.0]) + v.x, "float64"),
        (lambda v: operator.add([1, 2, 3], v.x), "float32"),
        (lambda v: 2**v.x, "float32"),
        (lambda v: tg.where(v.b, v.h, 1.0), "bfloat16"),
        (lambda v: v.x / v.i, "float32"),
        (lambda v: d * v.x, "float32"),
        (lambda v: v.x * tg.dimension(d, v.x.dtype), "float32"),
    ],
)
def test_scalars_are_weak(use, want):
    kinds = dict(x="float32", h="bfloat16", i="int32", f="float64", b="bool")
    v = types.SimpleNamespace(**{name: tg.input(name, (3,), kind) for name, kind in kinds.items()})
    assert use(v).dtype.name == want


def test_numpy_on_the_left_leaves_the_operator_to_us(x):
    for y in (np.float32(2) * x, np.ones(3, "f4") * x, np.ones(3, "f4") @ x, np.float64(2) - x, np.float64(2) < x):
        assert isinstance(y, tg.Tensor)
    got = tg.compile(np.float64(2) - x)(x=np.ones(3, "f4"))
    np.testing.assert_array_equal(got, np.ones(3))
    np.testing.assert_array_equal(tg.compile(np.float64(2) < x)(x=np.array([1, 2, 3], "f4")), [False, False, True])


@pytest.mark.parametrize(
    ("use", "error", "text"),
    [
        (lambda i, b: i / 2, DTypeError, "[TG201] div: needs a floating dtype, got int32"),
        (lambda i, b: i + 2**40, DTypeError, "[TG205] 1099511627776 does not fit in int32"),
        (lambda i, b: tg.input("u", (), "uint8") + 300, DTypeError, "[TG205] 300 does not fit in uint8"),
        (lambda i, b: tg.input("u", (), "uint8") - -1, DTypeError, "[TG205] -1 does not fit in uint8"),
        (lambda i, b: -b, DTypeError, "[TG202] neg: needs numbers, got bool"),
        (lambda i, b: b - b, DTypeError, "[TG202] sub: needs numbers, got bool"),
        (lambda i, b: b.sum(), DTypeError, "[TG202] sum: needs numbers, got bool"),
        (lambda i, b: ~i, DTypeError, "[TG202] logical_not: i must be bool, not int32"),
        (lambda i, b: i.cast("float31"), DTypeError, "[TG200] unknown dtype 'float31'"),
        (lambda i, b: i + 1j, OpError, "[TG254] a complex is not a tensor"),
        (lambda i, b: i + "a", OpError, "[TG254] a str is not a tensor"),
        (lambda i, b: i + None, OpError, "[TG255] add: argument 'y' is None"),
        (lambda i, b: tg.softmax(i), DTypeError, "[TG201] softmax: needs a floating dtype, got int32"),
        (lambda i, b: tg.take(i, i.cast("float32")), DTypeError, "[TG202] take: ids must be integer, not float32"),
    ],
)
def test_wrong_dtypes(use, error, text):
    with pytest.raises(error) as info:
        use(tg.input("i", (3,), "int32"), tg.input("b", (3,), "bool"))
    assert str(info.value).splitlines()[0] == text


# ----------------------------------------------------------------------------------- provenance, memory


def test_a_node_knows_the_users_line(x):
    y = tg.softmax(x)
    line = sys._getframe().f_lineno - 1
    assert y.where == f"test_tensor.py:{line}"
    z = tg.gelu(y).sum()
    g = tg.grad(z, x)
    made = {t.where for t in topological([g]) if not t.op.leaf}
    assert made == {f"test_tensor.py:{line}", f"test_tensor.py:{line + 3}"}, "rules keep the line of the op"


def test_nodes_die_with_their_last_user(x):
    def work():
        y = tg.sin(x)
        for i in range(200):
            y = tg.softmax(tg.gelu(y) * float(i))
        g = tg.grad(y.sum(), x)
        tg.compile({"y": y, "g": g})(x=np.ones(3, "f4"))
        return weakref.ref(y), weakref.ref(g)

    before = len(_table)
    refs = work()
    gc.collect()
    assert [r() for r in refs] == [None, None]
    assert len(_table) - before < 100, "only templates of rules stay"
    for i in range(3 * autodiff.MOST_TEMPLATES):
        q = tg.input("q", (i + 1,))
        tg.grad(tg.logsumexp(q), q)
    assert len(autodiff._templates) <= autodiff.MOST_TEMPLATES


def test_a_hundred_thousand_nodes_deep(x):
    """Built, differentiated, printed, exported, compiled, run and collected: no recursion anywhere."""
    n = 100_000
    y = x
    for _ in range(n // 2):
        y = tg.sin(y) + 0.25
    graph = tg.Graph(y)
    assert len(graph.nodes) == n + 2
    assert str(graph).count("\n") == n + 4
    g = tg.grad(y.sum(), x)
    assert len(topological([g])) > 2 * n
    (value,) = interpret.evaluate([g], {x: np.ones(3)}, {})
    assert np.isfinite(value).all()
    alive = weakref.ref(y)
    del y, graph, g
    gc.collect()
    assert alive() is None


def test_a_deep_chain_compiles_and_runs(x):
    y = x
    for _ in range(3_000):
        y = tg.sin(y) + 0.25
    f = tg.compile({"y": y, "g": tg.grad(y.sum(), x)})
    out = f(x=np.zeros(3, "f4"))
    want = np.zeros(3, "f4")
    for _ in range(3_000):
        want = np.sin(want) + np.float32(0.25)
    np.testing.assert_array_equal(out["y"], want)
    assert tg.Graph(y).to_networkx().number_of_nodes() == 6_002
    assert len(tg.Graph(y).astype("float64").nodes) == 6_002


# ------------------------------------------------------------------------------------------ random numbers


class Drop(tg.Module):
    def forward(self, x, seed):
        return tg.random.dropout(x, 0.5, seed)


class Net(tg.Module):
    def __init__(self):
        super().__init__()
        self.drop, self.other = Drop(), Drop()

    def forward(self, x, seed):
        return [self.drop(x, seed), self.drop(x, seed), self.other(x, seed)]


def drawn(net, x, seed):
    return [*net(x, seed), *net(x, seed)]


def test_every_call_draws_its_own_numbers_and_a_rebuilt_model_the_same():
    x, seed = tg.input("x", (64,)), tg.input("seed", (), "int32")
    ones = np.ones(64, "f4")
    ys = drawn(Net(), x, seed)
    first = tg.compile(ys)(x=ones, seed=3)
    again = tg.compile(drawn(Net(), x, seed))(x=ones, seed=3)
    plain = interpret.evaluate(ys, {x: ones, seed: np.int32(3)}, {})
    other = tg.compile(ys)(x=ones, seed=4)
    for i, (a, b, c, e) in enumerate(zip(first, again, plain, other, strict=True)):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
        assert (a != e).any()
        for j in range(i):
            assert (a != first[j]).any(), f"calls {j} and {i} draw the same numbers"
    assert str(tg.Graph(ys)) == str(tg.Graph(drawn(Net(), x, seed)))


def test_draws_outside_any_layer():
    seed = tg.input("seed", (), "int32")

    def build():
        return [tg.random.uniform(seed, (4,)), tg.random.uniform(seed, (4,)), tg.random.normal(seed, (4,))]

    a, b = tg.compile(build())(seed=1), tg.compile(build())(seed=1)
    for p, q in zip(a, b, strict=True):
        np.testing.assert_array_equal(p, q)
    assert (a[0] != a[1]).any()


def test_draws_do_not_depend_on_the_shape_of_the_array():
    seed = tg.input("seed", (2,), "int32")

    def draw(*shape):
        with tg.scope("here"):
            return tg.compile(tg.random.uniform(seed, shape))(seed=[7, 1])

    np.testing.assert_array_equal(draw(24), draw(2, 3, 4).ravel())
    np.testing.assert_array_equal(draw(24)[:6], draw(3, 2).ravel())


def test_the_gradient_sees_the_same_draw():
    x, seed = tg.input("x", (1000,)), tg.input("seed", (), "int32")
    y = tg.random.dropout(x, 0.25, seed)
    out = tg.compile({"y": y, "g": tg.grad(y.sum(), x)})(x=np.ones(1000, "f4"), seed=0)
    np.testing.assert_array_equal(out["y"], out["g"])
    assert abs(float((out["y"] == 0).mean()) - 0.25) < 5 * (0.25 * 0.75 / 1000) ** 0.5


def test_einsum_takes_its_letters_first_as_numpy_does():
    x, w = tg.input("x", tg.dims("B d")), tg.input("w", tg.dims("d f"))
    assert tg.einsum("bd,df->bf", x, w) is tg.einsum(x, w, spec="bd,df->bf")
    with pytest.raises(tg.OpError, match="'spec' is given twice"):
        tg.einsum("bd,df->bf", x, w, spec="bd,df->bf")


@pytest.mark.parametrize(("index", "what"), [([0, 1], "a list"), (np.array([0, 1]), "an array")])
def test_arrays_do_not_index(index, what):
    with pytest.raises(tg.OpError, match=f"{what} cannot index a tensor"):
        tg.input("x", (3,))[index]
