"""The gradient checker: what it passes, what it finds, how it names it; a user's mistake never makes it crash."""

from __future__ import annotations

import io
import json
import time

import numpy as np
import pytest
from typer.testing import CliRunner

import tensorgraph as tg
from tensorgraph import autodiff
from tensorgraph.cli.app import app
from tensorgraph.complex_numpy import NotAnalytic, complex_numpy, guarded
from tensorgraph.gradcheck import first_nonfinite
from tensorgraph.gradcheck.reference import jvp, remainder_order, richardson
from tensorgraph.gradcheck.sampling import small_sizes
from tensorgraph.models import presets
from tensorgraph.visualize.theme import THEMES, style_of

B, T, d = tg.dims("B T d")
rng = np.random.default_rng(0)


class Block(tg.Module):
    """x + attention(x), with four query heads on two heads of keys."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = tg.nn.Linear(8, 8, False), tg.nn.Linear(8, 4, False), tg.nn.Linear(8, 4, False)
        self.norm = tg.nn.LayerNorm(8)

    def forward(self, x):
        h = self.norm(x)
        heads = lambda t, n: t.reshape(B, T, n, 2).swapaxes(1, 2)  # noqa: E731
        y = tg.ops.nn.attention(heads(self.q(h), 4), heads(self.k(h), 2), heads(self.v(h), 2), None, None, causal=True)
        return x + y.swapaxes(1, 2).reshape(B, T, 8)


class Model(tg.Module):
    """Tied embedding and head around three blocks."""

    def __init__(self, depth=3):
        super().__init__()
        self.embed = tg.nn.Embedding(7, 8)
        self.layers = (
            tg.ModuleList([Block() for _ in range(depth)]) if isinstance(depth, int) else tg.ModuleList(depth, Block())
        )

    def forward(self, tokens):
        return self.layers(self.embed(tokens)) @ self.embed.weight.T


def model_loss(depth=3):
    tokens, labels = tg.input("tokens", (B, T), "int32"), tg.input("labels", (B, T), "int32")
    return tg.cross_entropy(Model(depth)(tokens), labels)


def wrong(report):
    return {(e.verdict, e.op, e.input) for e in report.wrong if not e.whole}


# ---------------------------------------------------------------------------------------- what passes


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_a_model_passes(order, seed):
    report = tg.check_grads(model_loss(), order=order, seed=seed)
    assert report, str(report)
    assert report.worst_residual <= 1e-12
    assert report.sizes == {"B": 3, "T": 5}, "distinct, and unlike the sizes 2, 4, 7 and 8 that the model has"


def test_repeated_blocks_are_checked_once():
    three, six = tg.check_grads(model_loss(3)), tg.check_grads(model_loss(6))
    assert len(three.entries) == len(six.entries)
    assert six.nodes > 1.8 * three.nodes
    (softmax,) = [e for e in six.entries if e.op == "softmax" and e.inside == ("attention",)]
    assert softmax.count == 6 and softmax.block == "layers.*"


def test_symbolic_depth_is_written_out():
    report = tg.check_grads(model_loss(tg.dim("n")), order=2)
    assert report and report.worst_residual <= 1e-12
    assert report.notes[-1] == "blocks repeated a symbolic number of times are checked with 2 runs"


def test_symbolic_depth_whose_input_asks_for_no_gradient():
    model = Model(tg.dim("n"))
    model.embed.freeze()
    tokens, labels = tg.input("tokens", (B, T), "int32"), tg.input("labels", (B, T), "int32")
    trained = [p for p in model.parameters() if p.trained]
    assert 0 < len(trained) < len(list(model.parameters()))
    report = tg.check_grads(tg.cross_entropy(model(tokens), labels), wrt=trained, order=2)
    assert report and report.worst_residual <= 1e-12, str(report)


def test_symbolic_depth_in_symbolic_depth():
    n, m = tg.dims("n m")
    x, w = tg.input("x", (B, d), "float64"), tg.input("w", (d,), "float64")
    y = tg.repeat(lambda h, w: tg.repeat(lambda h, w: tg.sin(h * w), m, h, w) + w, n, x, w).sum()
    for wrt in (None, ["w"], ["x"]):
        report = tg.check_grads(y, wrt=wrt, order=2)
        assert report and report.worst_residual <= 1e-12, str(report)


def test_symbolic_depth_with_a_wrong_rule_of_the_loop():
    n = tg.dim("n")
    x, w = tg.input("x", (B, d), "float64"), tg.input("w", (d,), "float64")
    y = tg.repeat(lambda h, w: tg.tanh(h * w), n, x, w).sum()
    assert tg.check_grads(y)
    with (
        tg.testing.override("sum_each", lambda g, y, x, loop: (g,)),
        tg.testing.override("each", lambda g, y, x, loop: (x,)),
    ):
        report = tg.check_grads(y)
    assert [(e.verdict, e.input) for e in report.wrong] == [("WRONG SUM", "w")]


def test_same_seed_same_report():
    a, b = (tg.check_grads(model_loss(), seed=5).to_json() for _ in range(2))
    a.pop("seconds"), b.pop("seconds")
    assert a == b


def test_a_gradient_that_is_zero_by_rights_passes():
    """The sum of a normed row is 0 whatever the row: all of its gradient is rounding."""
    x = tg.input("x", (B, d))
    report = tg.check_grads(tg.layer_norm(x, None, None).sum())
    assert report and report.worst_residual <= 1e-12


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_low_precision_graphs_are_checked_in_float64(dtype):
    x, w = tg.input("x", (B, d), dtype), tg.param("w", (d, 4), dtype)
    report = tg.check_grads(tg.softmax(x @ w).square().sum())
    assert report and report.worst_residual <= 1e-12


# -------------------------------------------------------------------------------------- what is found


def test_softmax_off_by_one_percent_in_a_deep_model():
    right = tg.softmax.vjp_fn
    with tg.testing.override(tg.softmax, lambda g, y, x, axis: (right(g, y, x, axis)[0] * 1.01,)):
        report = tg.check_grads(model_loss(6))
    assert not report
    assert ("WRONG VJP", "softmax", "x") in wrong(report)
    assert {op for _, op, _ in wrong(report)} == {"softmax"}
    (entry,) = [e for e in report.entries if not e.passed]
    assert entry.inside == ("attention",) and entry.layer == "layers.0" and entry.count == 6
    assert entry.line.startswith("test_gradcheck.py:")
    assert entry.note == "it gives 1.01 times the derivative"
    assert entry.residual == pytest.approx(0.01)
    assert tg.check_grads(model_loss(6)), "and it is taken away again"


def test_wrong_repeat_order_under_grouped_queries():
    right = tg.testing.right_rule(tg.ops.nn.attention)

    def vjp(g, y, q, k, v, mask, offset, **attrs):
        gq, gk, gv, *rest = right(g, y, q, k, v, mask, offset, **attrs)
        tiled = tg.concat([gk[:, 1:], gk[:, :1]], axis=1)  # as if heads were tiled, not repeated
        return gq, tiled, gv, *rest

    with tg.testing.override("attention", vjp):
        report = tg.check_grads(model_loss())
    assert wrong(report) == {("WRONG VJP", "attention", "k")}


RULES = {
    "sign": (lambda g, y, x: (-g * (1.0 - y.square()),), "the sign is wrong"),
    "nothing": (lambda g, y, x: (None,), "it gives 0, the derivative is not"),
    "zero": (lambda g, y, x: (g * 0.0,), "it gives 0, the derivative is not"),
    "raises": (lambda g, y, x: (1 / 0,), "the rule fails: ZeroDivisionError: division by zero"),
    "other shape": (lambda g, y, x: (tg.concat([g, g], axis=0),), "the rule fails: "),
    "other dtype": (lambda g, y, x: (tg.cast(g, "int32"),), "differ"),
    "takes too much": (lambda g, y, x, more: (g,), "the rule fails: TypeError: "),
    "no tensor": (
        lambda g, y, x: ("tanh",),
        "the rule fails: the rule of tanh gives an object of type str, not a tensor",
    ),
    "too many": (lambda g, y, x: (g, g), "the rule fails: the rule of tanh gives 2 cotangents for 1 input"),
    "too few": (lambda g, y, x: (), "the rule fails: the rule of tanh gives 0 cotangents for 1 input"),
    "another rank": (
        lambda g, y, x: (g.reshape(3, 1, d),),
        "gives a cotangent of shape [3, 1, d] for an input of shape",
    ),
    "a leaf of its own": (
        lambda g, y, x: (g * tg.input("u", (3, d), "float64"),),
        "the rule fails: the rule reads u, ",
    ),
    "off by rounding": (lambda g, y, x: (g * (1.0 - y * y) * (1 + 3e-8),), "it gives 1.00000003 times the derivative"),
    "stale": (lambda g, y, x: (g * (1.0 - (y * 0.9).square()),), "every element differs; at "),
    "reversed": (lambda g, y, x: (tg.flip(g * (1.0 - y.square()), 0),), "the right numbers in the wrong places"),
}


@pytest.mark.parametrize("name", RULES)
def test_wrong_rules_are_verdicts_and_never_a_crash(name):
    rule, note = RULES[name]
    x = tg.input("x", (3, d), "float64")
    with tg.testing.override("tanh", rule):
        report = tg.check_grads((tg.tanh(x * 0.5) * tg.input("w", (3, d), "float64")).sum())
    assert wrong(report) == {("WRONG VJP", "tanh", "x")}
    (entry,) = [e for e in report.entries if not e.passed]
    assert note in entry.note


def test_transposed_cotangent_is_said_to_be():
    def vjp(g, y, a, b):
        return g @ b.T, (tg.swapaxes(a, -1, -2) @ g).T.reshape(b.shape)

    with tg.testing.override("matmul", vjp):
        report = tg.check_grads(tg.tanh(tg.input("a", (B, d)) @ tg.input("b", (d, T))))
    (entry,) = [e for e in report.entries if not e.passed]
    assert entry.input == "y" and entry.note == "the right numbers in the wrong places: axes 0 and 1 are swapped"


def test_user_op_without_a_rule():
    @tg.op(shape="B d -> B d")
    def twice(x: tg.Tensor) -> tg.Tensor:
        """2 x."""

    @twice.forward
    def _(xp, x):
        return x * 2

    report = tg.check_grads(twice(tg.input("x", (B, d))).sum())
    (entry,) = [e for e in report.entries if not e.passed]
    assert (entry.verdict, entry.op, entry.input) == ("WRONG VJP", "twice", "x")
    assert "twice has no gradient rule" in entry.note


def test_the_readmes_example():
    @tg.op(shape="n, n -> n")
    def blend(x: tg.Tensor, y: tg.Tensor) -> tg.Tensor:
        """x exp(y)."""

    blend.forward(lambda xp, x, y: x * xp.exp(y))
    blend.vjp(lambda g, out, x, y: (g * tg.exp(y), g * out * 1.01))  # 1 % too much for y

    n = tg.dim("n")
    x, y = tg.input("x", (n,)), tg.input("y", (n,))
    report = tg.check_grads(tg.tanh(blend(x, y)).sum())
    (entry,) = [e for e in report.entries if not e.passed]
    assert (entry.op, entry.input, entry.note) == ("blend", "y", "it gives 1.01 times the derivative")
    assert {t.op.name for t, r in report.values.items() if r > 1e-9} == {"blend"}


def user_op(forward, vjp):
    @tg.op(shape="n -> n")
    def mine(x: tg.Tensor) -> tg.Tensor:
        """A user's op."""

    mine.forward(forward)
    mine.vjp(vjp)
    return mine


@pytest.mark.parametrize(
    ("forward", "method"),
    [
        (lambda xp, x: xp.sinh(x), "complex step"),
        (lambda xp, x: np.sinh(x.real), "Richardson"),  # drops the imaginary part
        (lambda xp, x: np.array([np.sinh(float(v)) for v in x]), "Richardson"),  # refuses complex numbers
        (lambda xp, x: np.sinh(x.astype("float32")).astype("float64"), "Richardson"),  # rounds
    ],
)
def test_opaque_ops_are_checked_too(forward, method):
    x = tg.input("x", (5,), "float64")
    right = user_op(forward, lambda g, y, x: (g * (tg.exp(x) + tg.exp(-x)) * 0.5,))
    report = tg.check_grads(right(x).sum())
    assert report, str(report)
    assert [e.method for e in report.entries if e.op == "mine"] == [method]
    off = user_op(forward, lambda g, y, x: (g * (tg.exp(x) + tg.exp(-x)) * 0.505,))
    assert wrong(tg.check_grads(off(x).sum())) == {("WRONG VJP", "mine", "x")}


def test_forward_that_complex_numbers_mislead():
    """np.abs of a complex number is its modulus; the check must not believe it."""
    x = tg.input("x", (5,), "float64")
    op = user_op(lambda xp, x: np.abs(x) * x, lambda g, y, x: (g * tg.abs(x) * 2.0,))
    assert tg.check_grads(op(x).sum())


def test_forward_and_definition_that_disagree():
    @tg.op(shape="n -> n")
    def cube(x: tg.Tensor) -> tg.Tensor:
        """x^3, but computed as x^2."""
        return x * x * x

    cube.forward(lambda xp, x: x * x)
    report = tg.check_grads(cube(tg.input("x", (4,), "float64")).sum())
    (entry,) = [e for e in report.entries if not e.passed]
    assert entry.op == "cube" and entry.note.endswith("its forward and its definition disagree")


def test_kink_is_no_mistake_but_a_wrong_subgradient_is():
    x = tg.input("x", (4,), "float64")
    at_zero = {"x": np.array([-1.0, 0.0, 0.5, 2.0])}
    assert tg.check_grads(tg.relu(x).sum(), values=at_zero)
    assert tg.check_grads(tg.maximum(x, 0.0).sum(), values=at_zero)
    half = lambda g, y, x: (tg.where(x > 0.0, g, tg.where(tg.equal(x, 0.0), g * 0.25, g * 0.0)),)  # noqa: E731
    with tg.testing.override("relu", half):
        report = tg.check_grads(tg.relu(x).sum(), values=at_zero)
    assert report and [e.verdict for e in report.entries if e.op == "relu"] == ["KINK"]
    triple = lambda g, y, x: (tg.where(x > 0.0, g, tg.where(tg.equal(x, 0.0), g * 3.0, g * 0.0)),)  # noqa: E731
    with tg.testing.override("relu", triple):
        report = tg.check_grads(tg.relu(x).sum(), values=at_zero)
    assert wrong(report) == {("WRONG VJP", "relu", "x")}


@pytest.mark.parametrize("forward", [lambda xp, x: np.abs(x), lambda xp, x: np.maximum(x.real, -x.real)])
def test_subgradients_of_ops_that_complex_numbers_mislead(forward):
    x, at_zero = tg.input("x", (4,), "float64"), {"x": np.array([-1.0, 0.0, 0.5, 2.0])}
    slope = lambda at: lambda g, y, x: (tg.where(x > 0.0, g, tg.where(x < 0.0, -g, g * at)),)  # noqa: E731
    for at, verdict in ((0.0, "PASS"), (0.5, "KINK"), (-1.0, "KINK"), (1.5, "WRONG VJP")):
        report = tg.check_grads(user_op(forward, slope(at))(x).sum(), values=at_zero)
        assert [e.verdict for e in report.entries if e.op == "mine"] == [verdict], str(report)


def test_constants_have_no_kinks():
    """Nothing moves a table: that it lies at a kink, or where a derivative is infinite, is no finding."""
    x, ids = tg.input("x", (3,), "float64"), tg.input("ids", (3,), "int32")
    table = tg.maximum(tg.const([-1.0, 0.0, 2.0], "float64"), 0.0) + tg.relu(tg.cast(tg.cast(x, "int32"), "float64"))
    report = tg.check_grads(x * (table + tg.sqrt(tg.cast(ids * 0, "float64"))))
    assert report and {e.op for e in report.entries} == {"mul"}, str(report)
    report = tg.check_grads(x ** tg.const([2.0, 3.0, 1.0], "float64"), values={"x": np.array([-1.0, 0.0, 2.0])})
    assert report and {e.verdict for e in report.entries} == {"PASS"}, str(report)


def test_a_branch_that_the_data_never_take():
    x = tg.input("x", (4,), "float64")
    positive_only = lambda g, y, x: (g,)  # noqa: E731
    with tg.testing.override("relu", positive_only):
        report = tg.check_grads(tg.relu(x).sum(), values={"x": np.array([1.0, 2.0, 3.0, 4.0])})
    assert wrong(report) == {("WRONG VJP", "relu", "x")}


def test_accumulation_that_forgets_one_use_of_a_tied_weight(monkeypatch):
    """All rules are right, one sum is not: the edge is named."""
    whole = autodiff.add
    weights = []

    def forgetful(a, b):
        is_tied = a.shape == b.shape == (7, 8)
        return a if is_tied else whole(a, b)

    monkeypatch.setattr(autodiff, "add", forgetful)
    report = tg.check_grads(model_loss())
    assert not report and not weights
    (entry,) = [e for e in report.entries if not e.passed]
    assert entry.verdict == "WRONG SUM" and entry.op == "embed.weight" and entry.input == "x"
    assert entry.note.startswith("the sum of 2 uses leaves out the one by take (embed, test_gradcheck.py:")


def test_broadcast_that_is_undone_wrongly(monkeypatch):
    monkeypatch.setattr(autodiff, "_fit", lambda g, x, node: g if g.shape == x.shape else g[(0,) * (g.ndim - x.ndim)])
    x, b = tg.input("x", (B, d), "float64"), tg.input("b", (d,), "float64")
    report = tg.check_grads(tg.tanh(x + b))
    assert ("WRONG VJP", "add", "y") in wrong(report)


def test_no_path_says_where_it_is_cut():
    x, w = tg.input("x", (d,)), tg.input("w", (d,))
    y = (tg.stop_gradient(x * w) * w).sum()
    assert tg.check_grads(y), "without asking, a cut is no fault"
    report = tg.check_grads(y, wrt=["x"])
    (entry,) = report.wrong
    assert entry.verdict == "NO PATH" and entry.input == "x"
    assert entry.note.startswith("the path is cut by stop_gradient at test_gradcheck.py:")
    assert entry.note.endswith(": asked for")


def held_twice(g, y, x):
    return (g * tg.stop_gradient(x * x) * 3.0,)


def held_once(g, y, x):  # exp(x - stop(x)) is 1, and its derivative is not 0
    return (g * x * x * 3.0 * tg.exp(x - tg.stop_gradient(x)),)


def held_rightly(g, y, x):  # what cancels, and what is constant wherever it has a derivative
    shift = tg.stop_gradient(x)
    return (g * (x * tg.sign(x) * tg.stop_gradient(tg.sign(x)) * x * 3.0 + shift - shift),)


@pytest.mark.parametrize(("rule", "right"), [(held_twice, False), (held_once, False), (held_rightly, True)])
def test_a_rule_that_holds_something_constant_is_wrong_when_differentiated_again(rule, right):
    @tg.op(shape="... d -> ... d")
    def cube(x: tg.Tensor) -> tg.Tensor: ...

    cube.forward(lambda xp, x: x * x * x)
    cube.vjp(rule)
    x, w = tg.input("x", (B, 3)), tg.param("w", (3, 3))
    y = tg.tanh(cube(x @ w)).sum()
    assert tg.check_grads(y).passed
    report = tg.check_grads(y, order=2)
    assert report.passed == right
    if not right:
        (entry,) = report.wrong
        assert (entry.verdict, entry.op, entry.input) == ("WRONG VJP", "cube", "x")
        assert entry.note.startswith("its rule holds by stop_gradient what is not constant: differentiated again it is")
    own = tg.check_grads((tg.stop_gradient(x) * tg.tanh(x)).sum(), order=2)
    assert own.passed, "one's own is taken as asked for"


@pytest.mark.parametrize("f", [tg.abs, tg.relu, tg.softplus, lambda x: tg.maximum(x, 0.0)])
def test_values_at_a_kink_are_said_whichever_side_was_chosen(f):
    x = tg.input("x", (3,))
    report = tg.check_grads(f(x).sum(), values={"x": np.array([1.0, 0.0, -2.0])})
    entry = next(e for e in report.entries if e.op != "sum")
    assert report.passed and entry.verdict == "KINK"
    assert entry.note == "the input lies 0.0e+00 from a kink; the rule gives one of its subgradients there"
    off = tg.check_grads(f(x).sum(), values={"x": np.array([1.0, 0.1, -2.0])})
    assert {e.verdict for e in off.entries} == {"PASS"}


def test_nonfinite_names_the_first_node_and_its_inputs():
    x = tg.input("x", (3,), "float64")
    report = tg.check_grads(tg.exp(tg.log(x * -1.0)).sum(), values={"x": np.array([1.0, 2.0, 3.0])})
    (entry,) = report.wrong
    assert entry.verdict == "NONFINITE" and entry.op == "log"
    assert "gives nan from x in [-3, -1]" in entry.note


def test_nonfinite_values_that_were_given():
    x = tg.input("x", (3,), "float64")
    (entry,) = tg.check_grads((x * 2.0).sum(), values={"x": np.array([1.0, np.nan, 3.0])}).wrong
    assert (entry.verdict, entry.input) == ("NONFINITE", "x")
    assert entry.note.startswith("a given value is not finite: x in ") and "nan" in entry.note


def test_nonfinite_backward():
    x = tg.input("x", (3,), "float64")
    report = tg.check_grads(tg.sqrt(x * 1.0).sum(), values={"x": np.array([1.0, 0.0, 3.0])})
    assert {e.verdict for e in report.wrong} == {"NONFINITE"}


def test_nondeterministic():
    noise = np.random.default_rng(1)
    op = user_op(lambda xp, x: x * noise.normal(), lambda g, y, x: (g,))
    report = tg.check_grads(op(tg.input("x", (4,), "float64")).sum())
    (entry,) = report.wrong
    assert entry.verdict == "NONDETERMINISTIC" and entry.op == "mine" and entry.residual > 0
    assert entry.note.endswith("of the largest element; no derivative is checked before that is mended")


def test_a_rule_that_is_nondeterministic():
    noise = np.random.default_rng(1)
    noisy = user_op(lambda xp, x: x * noise.normal(), lambda g, y, x: (g,))
    x = tg.input("x", (4,), "float64")
    with tg.testing.override("tanh", lambda g, y, x: (noisy(g),)):
        report = tg.check_grads(tg.tanh(x).sum())
    (entry,) = [e for e in report.entries if not e.passed]
    assert (entry.verdict, entry.op) == ("NONDETERMINISTIC", "tanh") and entry.residual > 0
    assert entry.note.startswith("computed twice from the same values the rule's result differs by")


@pytest.mark.parametrize("again", [True, False])
def test_a_forward_that_writes_into_its_input(again):
    def forward(xp, x):
        x[...] = x * 2.0 if again else 0.0
        return x * 1.0

    x = tg.input("x", (4,), "float64")
    report = tg.check_grads(user_op(forward, lambda g, y, x: (g,))(tg.sin(x)).sum())
    (entry,) = [e for e in report.wrong if e.input]
    assert (entry.verdict, entry.op, entry.input) == ("NONDETERMINISTIC", "mine", "x")
    assert entry.note == "its forward writes into this input, which others read too"


def test_a_forward_that_fails_or_gives_another_shape_than_declared():
    x = tg.input("x", (4,), "float64")
    for forward, words in (
        (lambda xp, x: 1 / 0, "fails in float64: ZeroDivisionError: division by zero"),
        (lambda xp, x: x[:3], "gives the shape [3], [4] is declared"),
        (lambda xp, x: x.sum(), "gives the shape [], [4] is declared"),
    ):
        with pytest.raises(tg.errors.GradError) as caught:
            tg.check_grads(user_op(forward, lambda g, y, x: (g,))(x).sum())
        first = str(caught.value).splitlines()[0]
        assert first.startswith("[TG415] the forward of mine (test_gradcheck.py:") and first.endswith(words), first


def test_an_op_with_two_results():
    @tg.op(shape="n -> n, n", outputs=("sin", "cos"))
    def both(x: tg.Tensor) -> tg.Tensor:
        """sin x and cos x."""

    x = tg.input("x", (d,), "float64")
    both.forward(lambda xp, x: (xp.sin(x), xp.cos(x)))
    sin, cos = both(x)
    both.vjp(lambda g, y, x: (g[0] * y[1] - g[1] * y[0],))
    assert tg.check_grads((sin * cos).sum())
    assert tg.check_grads(sin.sum()), "a result that is not used has the cotangent 0"
    both.vjp(lambda g, y, x: (g[0] * y[1] + g[1] * y[0],))
    for result, whole in (((sin * cos).sum(), "WRONG VJP"), (sin.sum(), "PASS")):
        report = tg.check_grads(result)
        assert wrong(report) == {("WRONG VJP", "both", "x")}, "also where that result is not used"
        assert [e.verdict for e in report.whole] == [whole]
    both.forward(lambda xp, x: (xp.sin(x),))
    with pytest.raises(tg.errors.GradError, match=r"gives 1 result, 2 are declared"):
        tg.check_grads(sin.sum())
    with pytest.raises(tg.errors.OpError, match="has 2 results, outputs= names 0"):
        tg.op(shape="n -> n, n")(lambda x: None)


def test_no_gradient_to_check_is_said():
    report = tg.check_grads(tg.input("i", (d,), "int32") + 1)
    assert report and report.notes == ["no input or parameter is floating: there is no gradient to check"]


def test_a_forward_of_less_precision_than_declared():
    x = tg.input("x", (4,), "float64")
    forward = lambda xp, x: xp.exp(x).astype("complex64" if x.dtype.kind == "c" else "float32")  # noqa: E731
    assert tg.check_grads(user_op(forward, lambda g, y, x: (g * tg.exp(x),))(x).sum())
    assert not tg.check_grads(user_op(forward, lambda g, y, x: (g * tg.exp(x) * 1.01,))(x).sum())


def test_precision_lost_in_the_models_dtype():
    x = tg.input("x", (64,), "float32")
    y = (x + 1e5).square().mean() - (x + 1e5).mean().square()  # the variance, as one should not take it
    report = tg.check_grads(y)
    assert {e.verdict for e in report.wrong} == {"PRECISION"}
    assert "in float32 the gradient is off by" in report.wrong[0].note
    wide = tg.input("x", (64,), "float64")
    assert tg.check_grads((wide + 1e5).square().mean() - (wide + 1e5).mean().square())


def test_surrogate_rules_are_not_judged_but_what_is_around_them_is():
    @tg.op(shape="n -> n", surrogate="straight through")
    def rounded(x: tg.Tensor) -> tg.Tensor:
        """The nearest whole number; the gradient passes as if it were not there."""

    rounded.forward(lambda xp, x: xp.rint(x))
    rounded.vjp(lambda g, y, x: (g,))
    x = tg.input("x", (5,), "float64")
    y = tg.sin(rounded(tg.exp(x)) * x).sum()
    report = tg.check_grads(y)
    assert report and "its rule is not the derivative: straight through" in report.notes[0]
    with tg.testing.override("exp", lambda g, y, x: (g,)):
        assert ("WRONG VJP", "exp", "x") in wrong(tg.check_grads(y))


def mean_of_the_others(g, y, x, axis):
    n = x.shape[axis]
    return (y * (1 - y) * (g - (g.sum(axis, keepdims=True) - g) / (n - 1)),)


def test_softmax_whose_others_are_averaged():
    x = tg.input("x", tg.dims("m n"), "float64")
    with tg.testing.override(tg.softmax, mean_of_the_others):
        assert tg.check_grads(tg.softmax(x, -1), binding="n=2"), "with one other it is right"
        assert not tg.check_grads(tg.softmax(x, -1))


def test_cross_entropy_that_spreads_the_rest_evenly():
    def rule(g, y, logits, labels, ignore, reduction):
        p, target = tg.softmax(logits, -1), tg.one_hot(labels, logits.shape[-1], logits.dtype)
        hit = (p * target).sum(-1, keepdims=True)
        even = (1 - target) * (1 - hit) / (logits.shape[-1] - 1)
        return ((target * (hit - 1) + even) * g / labels.size, None)

    b, V = tg.dims("b V")
    loss = tg.cross_entropy(tg.input("x", (b, V), "float64"), tg.input("labels", (b,), "int32"), ignore=None)
    with tg.testing.override(tg.cross_entropy, rule):
        assert tg.check_grads(loss, binding="V=2"), "of two, the other has all of it"
        assert not tg.check_grads(loss)


def test_rotation_with_the_frequencies_in_reverse():
    def rule(g, y, x, cos, sin, interleaved):
        return (tg.rope(g, tg.flip(cos, -1), -tg.flip(sin, -1), interleaved), None, None)

    with tg.testing.override(tg.rope, rule):
        done = CliRunner().invoke(app, ["check", "mistral-7b", "--json"])
    assert done.exit_code == 1
    assert "rope" in [e["op"] for e in json.loads(done.output)["ops"] if e["verdict"] == "WRONG VJP"]


# ------------------------------------------------------------------------------------------ the report


def bad_report():
    right = tg.softmax.vjp_fn
    with tg.testing.override(tg.softmax, lambda g, y, x, axis: (right(g, y, x, axis)[0] * 1.01,)):
        return tg.check_grads(model_loss(2))


def test_second_derivatives_are_named_where_they_are_wrong():
    x = tg.input("x", (4,), "float64")
    with tg.testing.override("square", lambda g, y, x: (g * x * 1.98,)):
        assert tg.check_grads(tg.tanh(x).sum()), "the first is right"
        report = tg.check_grads(tg.tanh(x).sum(), order=2)
    assert [e.op for e in report.rows(only_wrong=True)] == ["square", "whole gradient"]
    entry = report.rows(only_wrong=True)[0]
    assert entry.backward and entry.note == "it gives 0.99 times the derivative" and "∂" in entry.words()


def test_report_as_json():
    report = bad_report()
    data = json.loads(json.dumps(report.to_json()))
    assert data["passed"] is False and data["directions"] == 2 and data["seed"] == 0
    assert data["worst_residual"] == report.worst_residual
    first = data["ops"][0]
    assert first["op"] == "softmax" and first["verdict"] == "WRONG VJP" and first["input"] == "x"
    assert first["layer"] == "layers.0" and first["count"] == 2 and first["line"].startswith("test_gradcheck.py:")
    assert {e["verdict"] for e in data["ops"][1:]} == {"PASS"}


def test_report_as_text_and_table():
    report = bad_report()
    text = report.text(only_wrong=True)
    assert text.splitlines()[0].startswith("gradients of graph are wrong: worst residual 1.")
    assert "softmax in attention" in text and "it gives 1.01 times the derivative" in text and "PASS" not in text
    assert str(report).splitlines()[-2].strip().startswith("... and")
    assert str(report).splitlines()[-1].strip().startswith("sizes given as numbers are kept: 4, 7, 8")
    from rich.console import Console

    console = Console(width=160, record=True, file=io.StringIO())
    console.print(report)
    shown = console.export_text()
    assert "WRONG VJP" in shown and "sizes given as numbers are kept" in shown
    assert report._repr_mimebundle_()["text/plain"] == str(report)


def test_culprits_stand_above_what_follows_from_them():
    """The whole may be further off than the node that is wrong."""
    x = tg.input("x", (d,), "float64")
    with tg.testing.override("exp", lambda g, y, x: (g * y * 1.01,)):
        report = tg.check_grads(tg.square(tg.exp(x) - 1e3).sum() - 1e6 * tg.exp(x * 1.5).sum())
    rows = report.rows(only_wrong=True)
    assert [e.op for e in rows] == ["exp", "whole graph"] and rows[-1].note == "follows from the nodes above"


def test_what_stop_gradient_leaves_out_is_noted():
    x, w = tg.input("x", (d,)), tg.input("w", (d,))
    report = tg.check_grads((tg.stop_gradient(x * w) * w).sum())
    assert report and report.notes[-1].startswith("held constant by stop_gradient, as asked: test_gradcheck.py:")
    assert tg.check_grads((tg.stop_gradient(tg.const(2.0)) * w).sum()).notes == []
    assert tg.check_grads(tg.softmax(w).sum()).notes == [], "within an op's definition it is no matter of the user's"


def test_exception_has_the_same_words():
    report = bad_report()
    with pytest.raises(tg.errors.GradError) as caught:
        report.raise_if_failed()
    lines = str(caught.value).splitlines()
    assert len(lines) <= 12 and caught.value.code == "TG420"
    assert lines[1].strip().startswith("WRONG VJP: softmax in attention, layers.0, test_gradcheck.py:")
    assert lines[1].endswith(": input x (2 nodes alike): it gives 1.01 times the derivative")
    good = tg.check_grads(tg.input("x", (3,)).sum())
    assert good.raise_if_failed() is good


def test_residuals_colour_the_nodes_of_the_graph():
    loss = model_loss(2)
    right = tg.softmax.vjp_fn
    with tg.testing.override(tg.softmax, lambda g, y, x, axis: (right(g, y, x, axis)[0] * 1.01,)):
        report = tg.check_grads(loss)
    red = {t for t, r in report.values.items() if r > 1e-9}
    assert red == {t for t in tg.Graph(loss).nodes if t.op.name == "attention"}


def test_a_drawing_shows_the_wrong_op_in_red():
    """Also within attention, where the op stands in a definition; and in blocks repeated a symbolic number of times."""
    right = tg.softmax.vjp_fn
    for depth in (2, tg.dim("n")):
        loss = model_loss(depth)
        with tg.testing.override(tg.softmax, lambda g, y, x, axis: (right(g, y, x, axis)[0] * 1.01,)):
            report = tg.check_grads(loss)
        view = tg.draw(loss, values=report.values).view
        colours = {box.label: style_of(box, view, THEMES["seed"]).fill for box in view.boxes}
        assert [label for label, fill in colours.items() if fill == THEMES["seed"].wrong] == ["softmax"]
        assert set(colours.values()) == {THEMES["seed"].wrong, THEMES["seed"].frame_fill}
    assert "wrong: residual up to 0.01" in tg.draw(loss, values=report.values).dot
    good = tg.draw(loss, values=tg.check_grads(loss).values)
    assert THEMES["seed"].wrong not in {style_of(box, good.view, THEMES["seed"]).fill for box in good.view.boxes}


def test_wrong_arguments_are_answered_in_words():
    y = tg.input("x", (d,)).sum()
    for options, match in (
        ({"order": 3}, "order is 1 or 2"),
        ({"stages": ["spell"]}, "stages are nodes, whole, precision"),
        ({"wrt": "w"}, "no input or parameter called 'w'"),
        ({"values": {"w": 1.0}}, "no input called w"),
        ({"values": {"x": np.ones((2, 2))}}, r"x must have the shape \[3\], not \[2, 2\]"),
    ):
        with pytest.raises(tg.errors.GradError, match=match):
            tg.check_grads(y, **options)


def test_sizes_that_cannot_be_are_said():
    H, G = tg.dims("H G")
    x = tg.input("x", (tg.dims_div(H, G) if hasattr(tg, "dims_div") else H / G, 3))
    assert small_sizes(tg.Graph(x.sum())) == {"G": 4, "H": 8}
    n = tg.dim("n")
    hopeless = tg.input("y", (n + 1000,))[:n] + tg.input("z", (n,))
    assert small_sizes(tg.Graph(hopeless)) == {"n": 3}
    with pytest.raises(tg.errors.SizeError, match="breaks an obligation"):
        tg.check_grads(tg.Graph(x.sum()), binding="H=3,G=2")


# ------------------------------------------------------------------------------------ published models

SAMPLE = ("gpt2", "smollm2-135m", "gemma-3-1b", "bert-base", "vit-b-16", "mini-268", "mini-11776")


def check_preset(name):
    """What `tensorgraph check NAME --json` prints, within the time it may take."""
    start = time.process_time()
    done = CliRunner().invoke(app, ["check", name, "--json"])
    seconds = time.process_time() - start
    found = json.loads(done.output)
    assert done.exit_code == 0 and found["passed"] is True, found
    assert found["worst_residual"] <= 1e-12 and found["directions"] == 2 and found["seed"] == 0
    assert found["ops"] and {op["verdict"] for op in found["ops"]} == {"PASS"}
    assert found["model"] == name and found["whole"][0]["verdict"] == "PASS"
    assert seconds < (5 if name.startswith("mini") else 30), f"{name}: {seconds:.1f} s"
    return found


@pytest.mark.parametrize("name", SAMPLE)
def test_published_models_pass(name):
    found = check_preset(name)
    assert name != "vit-b-16" or "images of 224 × 224 pixels are checked at 32 × 48" in found["notes"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in presets.names() if n not in SAMPLE])
def test_every_published_model_passes(name):
    check_preset(name)


# ---------------------------------------------------------------------------------- functions elsewhere

X, W = rng.normal(size=(4, 3)), rng.normal(size=3)


def f(x, w):
    return np.tanh(x @ w).sum()


def grad_f(x, w):
    slope = 1 - np.tanh(x @ w) ** 2
    return np.outer(slope, w), x.T @ slope


def test_numpy_function_with_its_gradient():
    report = tg.check_function(f, grad_f, X, W)
    assert report and report.worst_residual <= 1e-12
    report = tg.check_function(f, lambda x, w: (grad_f(x, w)[0], grad_f(x, w)[1] * 1.01), X, W)
    (entry,) = report.wrong
    assert entry.input == "w" and entry.note == "it gives 1.01 times the derivative"
    assert tg.check_function(f, grad_f(X, W), X, W), "the gradient itself will do"


def test_numpy_function_with_its_vjp():
    assert tg.check_function(lambda x: np.maximum(x, 0), lambda g, x: g * (x > 0), X)
    assert tg.check_function(np.abs, lambda g, x: g * np.sign(x), X, kind="vjp")
    assert tg.check_function(lambda x: np.linalg.norm(x), lambda x: x / np.linalg.norm(x), X)
    assert tg.check_function(lambda x: (np.sin(x), np.cos(x)), lambda g, x: g[0] * np.cos(x) - g[1] * np.sin(x), X)
    assert not tg.check_function(lambda x: np.abs(x), lambda g, x: g * x, X)
    assert not tg.check_function(lambda x: np.sin(x), lambda g, x: g * np.cos(x)[:1], X)


def test_numpy_function_at_a_kink():
    at_zero = np.array([-1.0, 0.0, 2.0])
    assert tg.check_function(lambda x: np.abs(x), lambda g, x: g * (np.sign(x) + 0.5 * (x == 0)), at_zero)
    assert not tg.check_function(lambda x: np.abs(x), lambda g, x: g * (np.sign(x) + 5.0 * (x == 0)), at_zero)


def test_which_kind_of_gradient_it_is_must_be_clear():
    with pytest.raises(tg.errors.GradError, match="may be a vjp"):
        tg.check_function(f, lambda *xs: grad_f(*xs), X, W)
    assert tg.check_function(f, lambda *xs: grad_f(*xs), X, W, kind="grad")
    with pytest.raises(tg.errors.GradError, match="one number as result"):
        tg.check_function(lambda x: np.sin(x), lambda x: np.cos(x), X)


# ------------------------------------------------------------------------------------------ its own parts


def test_complex_namespace_decides_on_the_real_part():
    xp = complex_numpy
    x = np.array([1 + 5j, 1 - 5j, -2 + 1j])
    with guarded():
        assert xp.maximum(x, 0.5).tolist() == [1 + 5j, 1 - 5j, 0.5]
        assert xp.max(x) == 1 + 5j and xp.min(x) == -2 + 1j
        assert xp.max(x.reshape(1, 3), axis=(0, 1), keepdims=True).shape == (1, 1)
        assert xp.greater(x, 1).tolist() == [False] * 3
        assert xp.absolute(x).tolist() == [1 + 5j, 1 - 5j, 2 - 1j]
        assert xp.sort(x).tolist() == [-2 + 1j, 1 + 5j, 1 - 5j]
        assert xp.floor(x).tolist() == [1, 1, -2] and xp.sign(x).tolist() == [1, 1, -1]
        assert xp.clip(x, -1, 0.5).tolist() == [0.5, 0.5, -1]
        assert xp.stop_gradient(x).dtype == np.float64
        assert xp.cast(x, tg.int32).tolist() == [1, 1, -2] and xp.cast(x, tg.float32).dtype == np.complex128
        assert np.isnan(xp.sqrt(x)[2]) and np.isnan(xp.log(x)[2]) and np.isnan(xp.power(x, 0.5)[2])
        assert xp.power(x, 2)[2] == pytest.approx((-2 + 1j) ** 2)
        assert xp.mod(x, 0.75)[2] == pytest.approx(0.25 + 1j)
        for name in ("conj", "vdot", "std", "var"):
            with pytest.raises(NotAnalytic, match=f"xp.{name} is not analytic"):
                getattr(xp, name)(x)
            assert xp.std(x.real) == np.std(x.real)
        with pytest.raises(NotAnalytic, match="linalg"):
            _ = xp.linalg
        with pytest.raises(np.exceptions.ComplexWarning):
            x.astype("float64")


def test_complex_erf_is_the_derivative_of_erf():
    x = np.linspace(-5, 5, 101)
    slope = jvp(lambda xs: [complex_numpy.erf(xs[0])], [x], [np.ones(101)])
    np.testing.assert_allclose(slope.value[0], 2 / np.sqrt(np.pi) * np.exp(-x * x), rtol=1e-13)


def test_references_agree_and_say_how_well_they_know():
    def run(xs):
        return [np.exp(xs[0]) * np.sin(xs[0])]

    x, u = np.linspace(0.1, 2, 7), np.ones(7)
    sharp, rough = jvp(run, [x], [u]), richardson(run, [x], [u])
    true = np.exp(x) * (np.sin(x) + np.cos(x))
    np.testing.assert_allclose(sharp.value[0], true, rtol=1e-14)
    np.testing.assert_allclose(rough.value[0], true, rtol=1e-13)
    assert sharp.error == 0 and rough.error < 1e-13
    noisy = richardson(lambda xs: [run(xs)[0].astype("float32")], [x], [u])
    assert np.max(np.abs(noisy.value[0] - true)) < 10 * noisy.error * np.max(np.abs(true))


def test_order_of_a_remainder():
    assert remainder_order(np.exp, 1.0) == pytest.approx(2, abs=0.1)
    assert remainder_order(np.exp, 1.01) == pytest.approx(1, abs=0.3)


def test_first_nonfinite():
    x, w = tg.input("x", (B, 3)), tg.input("w", (3,))
    with tg.scope("head"):
        y = tg.log((x * w).sum(-1))
    graph = tg.Graph(y.sum())
    good = {"x": np.ones((2, 3), "float32"), "w": np.ones(3, "float32")}
    assert first_nonfinite(graph, good) is None
    found = first_nonfinite(graph, {**good, "w": np.array([1, -2, 0.5], "float32")})
    assert found is not None and found.node.op.name == "log" and found.phase == "forward"
    assert str(found).startswith("log (head, test_gradcheck.py:") and "gives nan from x in [-0.5, -0.5]" in str(found)
    masked = tg.where(tg.input("m", (3,), "bool"), w, float("-inf"))
    graph = tg.Graph(tg.softmax(masked))
    assert first_nonfinite(graph, {"m": np.array([True, False, True]), "w": np.ones(3, "float32")}) is None
    none = first_nonfinite(graph, {"m": np.zeros(3, bool), "w": np.ones(3, "float32")})
    assert none is not None and none.node.op.name == "softmax" and "3 -inf" in str(none)
