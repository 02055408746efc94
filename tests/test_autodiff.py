"""Gradients: structure, what is cut, higher derivatives against sympy, repeated blocks against unrolled ones."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

import tensorgraph as tg
from tensorgraph import interpret
from tensorgraph.dims import canon, evaluate, mul
from tensorgraph.errors import TensorgraphError
from tensorgraph.tensor import picks, topological

B, T, d, n = tg.dims("B T d n")


def value(y, /, **arrays):
    leaves = {t.label: t for t in topological([y]) if t.op.name in ("input", "param")}
    return interpret.evaluate([y], {leaves[k]: np.asarray(v) for k, v in arrays.items() if k in leaves}, {})[0]


def said(fn, *args, **kwargs) -> str:
    with pytest.raises(TensorgraphError) as info:
        fn(*args, **kwargs)
    return info.value.report()


def scalar(name="x"):
    return tg.input(name, (), "float64")


# ------------------------------------------------------------------------------------------- structure


def test_gradients_come_in_the_structure_of_wrt():
    x, w, b = tg.input("x", (3,)), tg.input("w", (3,)), tg.Parameter((3,))
    y = (x * w + b).sum()
    g = tg.grad(y, {"a": [x, (w,)], "b": {"c": b}})
    assert set(g) == {"a", "b"} and type(g["a"]) is list and type(g["a"][1]) is tuple
    assert g["a"][0].shape == (3,) and isinstance(g["b"]["c"], tg.Tensor)
    assert tg.grad(y, x) is g["a"][0], "equal gradients are one node"
    assert tg.grad(y, []) == [] and tg.grad(y, {}) == {}
    again, (gx,) = tg.value_and_grad(y, [x])
    assert again is y and gx is g["a"][0]


def test_cotangents():
    x = tg.input("x", (3,), "float64")
    y, v = tg.sin(x), tg.input("v", (3,), "float64")
    g = tg.grad(y, x, cotangent=v)
    np.testing.assert_allclose(value(g, x=[0.1, 0.2, 0.3], v=[1, 2, 3]), np.cos([0.1, 0.2, 0.3]) * [1, 2, 3])
    (a,) = tg.vjp([y, x * 2.0], [x], [v, v])
    np.testing.assert_allclose(value(a, x=[0.1, 0.2, 0.3], v=[1, 2, 3]), (np.cos([0.1, 0.2, 0.3]) + 2) * [1, 2, 3])


def test_an_intermediate_value_has_a_gradient_too():
    x = scalar()
    h = tg.sin(x)
    assert float(value(tg.grad(h * h, h), x=0.5)) == pytest.approx(2 * np.sin(0.5), rel=1e-15)
    assert float(value(tg.grad(h, h), x=0.5)) == 1.0


def test_the_same_tensor_twice_in_wrt():
    x = scalar()
    a, b = tg.grad(x * x, [x, x])
    assert a is b


# ---------------------------------------------------------------------------------------- no path, no rule


def test_no_path():
    x, w = tg.input("x", (3,)), tg.input("w", (3,))
    text = said(tg.grad, x.sum(), w).splitlines()
    assert text[0] == "GradError[TG402] no path leads from w to sum: its gradient is zero"
    assert text[-1] == '  hint: unused="zero" or unused="none" accepts that'
    assert tg.grad(x.sum(), w, unused="none") is None
    np.testing.assert_array_equal(value(tg.grad(x.sum(), w, unused="zero"), x=np.ones(3)), np.zeros(3))


@pytest.mark.parametrize(
    ("cut", "why"),
    [
        (lambda x: tg.stop_gradient(x), "stop_gradient at {}: asked for"),
        (lambda x: x.cast("int32").cast("float32"), "cast at {}: its result is int32"),
        (lambda x: tg.where(x > 0.0, 1.0, 2.0), "greater at {}: a truth value"),
        (lambda x: tg.floor(x), "floor at {}: constant but at whole numbers"),
        (lambda x: tg.argsort(x).cast("float32"), "argsort at {}: an index"),
    ],
)
def test_where_the_path_is_cut(cut, why):
    x = tg.input("x", (3,))
    y = tg.sin(cut(x)).sum()
    where = next(t for t in topological([y]) if t.op.name == why.split(" ")[0]).where
    assert f"  the path is cut by {why.format(where)}" in said(tg.grad, y, x).splitlines()


@pytest.mark.parametrize(
    ("fn", "text"),
    [
        (lambda x, i: tg.grad(x, x), "GradError[TG401] grad needs a scalar"),
        (lambda x, i: tg.grad(i.sum(), x), "GradError[TG403] a gradient of int32 values does not exist"),
        (lambda x, i: tg.grad(x.sum(), i), "GradError[TG403] a gradient with respect to int32 values does not exist"),
        (
            lambda x, i: tg.grad(x.sum(), x, unused="?"),
            'GradError[TG406] unused must be "error", "none" or "zero", not \'?\'',
        ),
        (lambda x, i: tg.grad(x, x, x.sum()), "GradError[TG407] a cotangent must have the shape of its value, [3]"),
        (lambda x, i: tg.grad(3.0, x), "GradError[TG402] no path leads from x to const: its gradient is zero"),
        (lambda x, i: tg.grad(x.sum(), "x"), "OpError[TG254] a str is not a tensor"),
    ],
)
def test_gradients_that_cannot_be(fn, text):
    assert said(fn, tg.input("x", (3,)), tg.input("i", (3,), "int32")).splitlines()[0] == text


def test_an_op_without_a_rule_says_what_to_write():
    @tg.op(shape="n -> n")
    def mystery(x: tg.Tensor) -> tg.Tensor:
        """Unknown."""

    @mystery.forward
    def _(xp, x):
        return x

    x = tg.input("x", (3,))
    text = said(tg.grad, mystery(x).sum(), x).splitlines()
    assert text[0] == "GradError[TG404] mystery has no gradient rule"
    assert text[-1].startswith("  hint: write one: @mystery.vjp")


# ----------------------------------------------------------------------------------------------- values


def test_uses_are_summed_and_broadcasting_is_undone():
    x, y = tg.input("x", (3, 1), "float64"), tg.input("y", (4,), "float64")
    z = (x * y + x + tg.sin(x) * y).sum()
    gx, gy = tg.grad(z, [x, y])
    assert gx.shape == x.shape and gy.shape == y.shape
    X, Y = np.array([[0.1], [0.2], [0.3]]), np.array([1.0, 2, 3, 4])
    np.testing.assert_allclose(value(gx, x=X, y=Y), (Y + 1 + np.cos(X) * Y).sum(1, keepdims=True), rtol=1e-14)
    np.testing.assert_allclose(value(gy, x=X, y=Y), (X + np.sin(X)).sum() * np.ones(4), rtol=1e-14)


def test_gradients_have_the_dtype_of_their_tensor():
    h, x = tg.input("h", (3,), "bfloat16"), tg.input("x", (3,), "float32")
    gh, gx = tg.grad((h * x.cast("float64")).sum(), [h, x])
    assert (gh.dtype.name, gx.dtype.name) == ("bfloat16", "float32")


def test_multi_output_ops():
    @tg.op(shape="n -> n, n", outputs=("s", "c"))
    def both(x: tg.Tensor) -> tuple[tg.Tensor, tg.Tensor]:
        """sin and cos."""
        return tg.sin(x), tg.cos(x)

    x = tg.input("x", (3,), "float64")
    s, c = both(x)
    X = np.array([0.1, 0.2, 0.3])
    np.testing.assert_allclose(value(tg.grad((s * c).sum(), x), x=X), np.cos(2 * X), rtol=1e-14)
    np.testing.assert_allclose(value(tg.grad(c.sum(), x), x=X), -np.sin(X), rtol=1e-14)


def test_backward_nodes_live_in_the_twin_of_their_layer():
    x = tg.input("x", (3, 3))
    with tg.scope("block"):
        with tg.scope("attn", component="attention"):
            y = tg.softmax(x @ x)
        z = tg.gelu(y).sum()
    g = tg.grad(z, x)
    forward = set(topological([z]))
    for t in topological([g]):
        if t not in forward and not t.op.leaf:
            assert t.scope.backward and t.scope.path in ("block", "block.attn", "")
            assert t.where.startswith("test_autodiff.py:")
    assert {t.scope.component for t in topological([g]) if t.scope.path == "block.attn"} == {"attention"}


# ------------------------------------------------------------------------------- higher order, against sympy

X = sp.Symbol("x", real=True)
FUNCTIONS = {
    "polynomial": (lambda x: x * x * x * 2.0 - x * x + 1.0, 2 * X**3 - X**2 + 1),
    "tanh(x^2)": (lambda x: tg.tanh(x * x), sp.tanh(X**2)),
    "exp(sin x)": (lambda x: tg.exp(tg.sin(x)), sp.exp(sp.sin(X))),
    "x^x": (lambda x: tg.exp(x * tg.log(x)), sp.exp(X * sp.log(X))),
    "sigmoid": (lambda x: tg.sigmoid(x) / (1.0 + x * x), 1 / (1 + sp.exp(-X)) / (1 + X**2)),
    "gelu": (lambda x: tg.gelu(x), X * (1 + sp.erf(X / sp.sqrt(2))) / 2),
    "silu": (lambda x: tg.silu(x * x), X**2 / (1 + sp.exp(-(X**2)))),
    "softplus": (lambda x: tg.softplus(x), sp.log(1 + sp.exp(X))),
    "sqrt": (lambda x: tg.sqrt(x * x + 1.0), sp.sqrt(X**2 + 1)),
    "softmax": (
        lambda x: tg.softmax(tg.concat(x.reshape(1), (x * x).reshape(1), axis=0))[0],
        1 / (1 + sp.exp(X**2 - X)),
    ),
    "logsumexp": (
        lambda x: tg.logsumexp(tg.concat(x.reshape(1), (x * 2.0).reshape(1), axis=0)),
        sp.log(sp.exp(X) + sp.exp(2 * X)),
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_three_derivatives(name):
    ours, theirs = FUNCTIONS[name]
    x = scalar()
    y = ours(x)
    for _ in range(3):
        y, theirs = tg.grad(y.sum(), x), sp.diff(theirs, X)
        for at in (0.3, 0.9, 1.7):
            want = float(theirs.subs(X, sp.Rational(at)).evalf(30))
            assert float(value(y, x=at)) == pytest.approx(want, rel=1e-12, abs=1e-13)


polynomials = st.lists(st.integers(-3, 3), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(polynomials, polynomials, st.integers(-8, 8))
def test_derivatives_of_random_polynomials_are_exact(a, b, at):
    """Products and quotients of whole numbers: no rounding at all."""
    x = scalar()

    def horner(coefficients, v):
        out = v * 0.0
        for c in coefficients:
            out = out * v + float(c)
        return out

    f = horner(a, x) * horner(b, horner(a, x * 1.0) * 0.0 + x)
    p, q = sp.Poly(a, X), sp.Poly(b, X)
    for k in range(3):
        assert float(value(f, x=float(at))) == float((p * q).diff((X, k)).eval(at))
        f = tg.grad(f, x, unused="zero")


# -------------------------------------------------------------------------------------- repeated blocks


class Block(tg.Module):
    """An MLP with a tied, a captured and a frozen weight."""

    def __init__(self, tied):
        super().__init__("mlp")
        self.up = tg.nn.Linear(d, 4 * d)
        self.frozen = tg.nn.Linear(4 * d, d, bias=False)
        self.tied = tied

    def forward(self, x, scale, mask):
        h = tg.gelu(self.up(tg.nn.F.layer_norm(x, None, None) * scale))
        return x + self.frozen(h) @ self.tied.T * mask


class Model(tg.Module):
    def __init__(self, count, freeze=()):
        super().__init__()
        self.embed = tg.nn.Embedding(7, d)
        tied = tg.Parameter((d, d))
        self.tied = tied
        self.layers = tg.ModuleList(count, lambda i: Block(tied))
        self.freeze("*frozen*", *freeze)

    def forward(self, ids, scale, mask):
        x = self.layers(self.embed(ids), scale, mask)
        return x @ self.tied


def counts(count, freeze=(), backward=True):
    """FLOPs and nodes that carry any, by op, forward and backward, with n = 3."""
    model = Model(count, freeze)
    ids, scale, mask = tg.input("ids", (B, T), "int32"), tg.input("scale", (d,)), tg.input("mask", (B, T, 1))
    loss = model(ids, scale, mask).square().sum()
    wrt = [p for p in model.parameters() if p.trained]
    grads = tg.grad(loss, wrt) if backward else []
    sizes = {"B": 2, "T": 5, "d": 3, "n": 3}
    flops: Counter[tuple[bool, str]] = Counter()
    for t in topological([loss, *grads]):
        if t.op.flops and not t.op.leaf and t.op.name != "pick":
            cost = canon(t.op.flops(picks(t) if t.specs is not None else t, *t.args(), **t.kwargs))
            times = t.scope.times if t.op.name not in ("enter", "exit", "sum_each") else 1
            flops[t.scope.backward, t.op.name] += evaluate(mul(cost, times), sizes)
    params = evaluate(model.total(), sizes), evaluate(model.total(trained=True), sizes)
    return params, {k: v for k, v in flops.items() if v}


@pytest.mark.parametrize("freeze", [(), ("*up*",)], ids=str)
def test_a_symbolic_number_of_layers_counts_like_the_unrolled(freeze):
    """Products, the bulk of the cost, agree op by op; sums over runs stand for the additions of unrolled uses."""
    (total, loop), (want_total, unrolled) = counts(n, freeze), counts(3, freeze)
    assert total == want_total
    added = {k: v for k, v in loop.items() if k[1] in ("add", "sum_each")}
    assert {k: v for k, v in loop.items() if k not in added} == {k: v for k, v in unrolled.items() if k[1] != "add"}
    assert sum(added.values()) == sum(v for k, v in unrolled.items() if k[1] == "add")


def test_a_block_must_return_what_it_takes():
    x = tg.input("x", (B, d))
    text = said(tg.ops.leaf.repeat, lambda h: tg.concat(h, h, axis=1), n, x).splitlines()
    assert text[0] == "ShapeError[TG107] a block that is repeated must return what it takes"
    assert "TG107" in said(tg.ops.leaf.repeat, lambda h: h.cast("float64"), n, x)


def test_only_what_a_block_returns_leaves_it():
    inside = []

    def block(h):
        inside.append(tg.sin(h))
        return h + inside[0]

    x = tg.input("x", (B, d))
    y = tg.ops.leaf.repeat(block, n, x)
    assert "TG304" in said(lambda: y + inside[0])


def test_a_symbolic_number_of_layers_is_not_run():
    y = tg.ops.leaf.repeat(lambda h: tg.sin(h), n, tg.input("x", (2,)))
    assert "TG701" in said(lambda: tg.compile(y, binding="n=3")(x=np.ones(2, "f4")))
