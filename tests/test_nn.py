"""Modules: names by attribute paths, tying by sharing, freezing by pattern, published names, initial values, loops."""

from __future__ import annotations

import numpy as np
import pytest

import tensorgraph as tg
from tensorgraph.dims import evaluate, show
from tensorgraph.errors import TensorgraphError
from tensorgraph.nn import Embedding, LayerNorm, Linear, RMSNorm, fill_name, match_name

B, T, d, f, V, n = tg.dims("B T d f V n")


def said(fn, *args, **kwargs) -> str:
    with pytest.raises(TensorgraphError) as info:
        fn(*args, **kwargs)
    return info.value.report()


class MLP(tg.Module):
    component = "mlp"

    def __init__(self):
        super().__init__()
        self.up, self.down = Linear(d, f), Linear(f, d, bias=False)

    def forward(self, x):
        return self.down(tg.gelu(self.up(x)))


class Block(tg.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.mlp = LayerNorm(d), MLP()

    def forward(self, x):
        return x + self.mlp(self.norm(x))


class Model(tg.Module):
    names = (("embed.", "transformer.wte."), ("blocks.{}.", "transformer.h.{}."))

    def __init__(self, count=2):
        super().__init__()
        self.embed = Embedding(V, d)
        self.blocks = tg.ModuleList(count, lambda i: Block())
        self.head = Linear(d, V, bias=False, component="head")
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.blocks(self.embed(ids)))


NAMES = [
    "transformer.wte.weight",
    *[
        f"transformer.h.{i}.{p}"
        for i in range(2)
        for p in ("norm.weight", "norm.bias", "mlp.up.weight", "mlp.up.bias", "mlp.down.weight")
    ],
]


# ------------------------------------------------------------------------------------------------ names


def test_names_are_paths_or_published_names():
    model = Model()
    assert list(model.named_parameters()) == NAMES
    graph = tg.Graph(model(tg.input("ids", (B, T), "int32")))
    assert set(graph.params) == set(NAMES)
    assert model.uses()["transformer.wte.weight"] == ["embed.weight", "head.weight"]
    assert {t.scope.path for t in graph.nodes if t.op.name == "gelu"} == {"blocks.0.mlp", "blocks.1.mlp"}


@pytest.mark.parametrize(
    ("pattern", "path", "want"),
    [
        ("a.{}.b.", "a.12.b.weight", (["12"], "weight")),
        ("a.{}.", "a.x.b", None),
        ("a.{}.", "a..b", None),
        ("a.", "ab", None),
        ("", "x", ([], "x")),
        ("{}.{}", "1.22", (["1", "22"], "")),
    ],
)
def test_name_patterns(pattern, path, want):
    assert match_name(pattern, path) == want


def test_names_are_filled_in_order():
    assert fill_name("h.{}.e.{}", ["3", "{}"]) == "h.3.e.{}"


def test_a_tied_weight_is_one():
    model = Model()
    assert model.head.weight is model.embed.weight
    values = model.init(binding="V=7,d=4,f=8")
    assert len(values) == len(NAMES)
    sizes = {"V": 7, "d": 4, "f": 8}
    assert evaluate(model.total(), sizes) == sum(v.size for v in values.values()) == 7 * 4 + 2 * (2 * 4 + 2 * 32 + 8)
    ids = tg.input("ids", (B, T), "int32")
    loss = model(ids).square().sum()
    (g,) = tg.grad(loss, [model.embed.weight])
    assert g.shape == (V, d)


def test_parameters_of_one_name():
    class Twice(tg.Module):
        names = (("a.", "x."), ("b.", "x."))

        def __init__(self):
            super().__init__()
            self.a, self.b = Linear(d, d), Linear(d, d)

    assert said(Twice().named_parameters) == "GraphError[TG306] two parameters are called x.weight"


def test_components_are_inherited_and_overridden():
    model = Model()
    found = {n.split(".")[-2] + "." + n.split(".")[-1]: p.component for n, p in model.named_parameters().items()}
    assert found["wte.weight"] == "embedding" and found["norm.weight"] == "norm" and found["up.bias"] == "mlp"


def test_a_module_without_forward():
    class Empty(tg.Module):
        pass

    assert said(Empty(), 3) == "GraphError[TG305] Empty has no forward\n  hint: def forward(self, x): ..."


# ----------------------------------------------------------------------------------------------- freezing


def test_freezing_by_name_and_component():
    model = Model().freeze("*norm*", "embedding")
    frozen = {n for n, p in model.named_parameters().items() if not p.trained}
    assert frozen == {x for x in NAMES if "norm" in x or "wte" in x}
    model.unfreeze("transformer.h.1.*")
    assert {n for n, p in model.named_parameters().items() if not p.trained} == {x for x in frozen if ".1." not in x}
    assert not any(p.trained for p in Model().freeze().parameters())
    assert said(model.freeze, "nothing*").startswith(
        "GraphError[TG307] no parameter's name fits 'nothing*'\n  names are like"
    )


def test_frozen_parameters_are_marked_in_the_graph_and_left_out_of_training():
    model = Model().freeze("*norm*")
    loss = model(tg.input("ids", (B, T), "int32")).square().mean()
    assert "transformer.h.0.norm.weight: f32[d],  # frozen" in str(tg.Graph(loss))
    step = tg.compile(loss, update=tg.optim.SGD(lr=0.1))
    assert {k for k in step.trained} == {x for x in NAMES if "norm" not in x}
    sizes = {"V": 7, "d": 4, "f": 8}
    assert evaluate(model.total(), sizes) - evaluate(model.total(trained=True), sizes) == 2 * 8
    assert evaluate(model.total(trained=False), sizes) == 16


# ----------------------------------------------------------------------------------------- initial values


def test_initial_values_are_seeded_by_name():
    a, b, c = (Model().init(s, "V=7,d=4,f=8") for s in (0, 0, 1))
    for name in NAMES:
        np.testing.assert_array_equal(a[name], b[name])
        assert a[name].dtype == np.float32
    name = "transformer.h.0.mlp.up.weight"
    assert (a[name] != c[name]).any() and (a[name] != a[name.replace(".0.", ".1.")]).any()
    np.testing.assert_array_equal(a["transformer.h.0.norm.weight"], 1)
    np.testing.assert_array_equal(a["transformer.h.0.mlp.up.bias"], 0)
    deeper = Model(3).init(0, "V=7,d=4,f=8")
    np.testing.assert_array_equal(deeper[name], a[name])
    wide = Model().init(0, "V=100,d=100,f=8")["transformer.wte.weight"]
    assert abs(float(wide.std()) - 0.02) < 5 * 0.02 / (2 * wide.size) ** 0.5
    assert Model().init(0, "V=7,d=4,f=8", dtype="bfloat16")[name].dtype == tg.bfloat16.np


@pytest.mark.parametrize("seed", [-1, 1.5, "7", None, True])
def test_a_seed_is_a_whole_number(seed):
    w = tg.param("w", (3,))
    step = tg.compile(w.sum(), update=tg.optim.SGD(lr=0.1))
    for use in (
        lambda: Linear(2, 3).init(seed),
        lambda: step.init(seed=seed),
        lambda: tg.check_grads(tg.tanh(w).sum(), seed=seed),
        lambda: tg.check_function(np.sin, lambda g, x: g * np.cos(x), 0.3, seed=seed),
    ):
        with pytest.raises(TensorgraphError) as info:
            use()
        assert str(info.value) == f"[TG525] a seed is a whole number, 0 or more, not {seed!r}"
    assert Linear(2, 3).init(np.int64(3)).keys()


def test_other_initialisations():
    class Net(tg.Module):
        def __init__(self):
            super().__init__()
            self.own = tg.Parameter((2, 3), init=lambda rng, shape: np.full(shape, 7.0))
            self.uniform = tg.Parameter((50, 4), init="uniform")

    values = Net().init()
    np.testing.assert_array_equal(values["own"], 7)
    assert np.abs(values["uniform"]).max() <= 0.5 and np.abs(values["uniform"]).max() > 0.4
    Bad = type(
        "Bad",
        (tg.Module,),
        {"__init__": lambda s: (tg.Module.__init__(s), setattr(s, "w", tg.Parameter((2,), init="x")))[0]},
    )
    assert "ModelError[TG900] unknown initialisation 'x' of w" in said(Bad().init)
    assert "TG007" in said(Model().init)


# ------------------------------------------------------------------------------------------------- layers


def run(module, x, sizes="", **values):
    y = module(tg.input("x", x.shape, x.dtype.name))
    return tg.compile(y)({n: np.asarray(v) for n, v in values.items()}, x=x)


def test_layers_compute_what_they_say():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4)).astype("f4")
    W, b = rng.normal(size=(3, 4)).astype("f4"), rng.normal(size=3).astype("f4")
    np.testing.assert_allclose(run(Linear(4, 3), x, weight=W, bias=b), x @ W.T + b, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        run(Linear(4, 3, transposed=True, bias=False), x, weight=W.T.copy()), x @ W.T, rtol=1e-5, atol=1e-6
    )
    g = rng.normal(size=4).astype("f4")
    rms = x / np.sqrt((x.astype("f8") ** 2).mean(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(run(RMSNorm(4), x, weight=g), rms * g, rtol=1e-5)
    np.testing.assert_allclose(run(RMSNorm(4, offset=1.0), x, weight=g), rms * (1 + g), rtol=1e-5)
    c = x - x.mean(-1, keepdims=True)
    ln = c / np.sqrt((c.astype("f8") ** 2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(run(LayerNorm(4, bias=False), x, weight=g), ln * g, rtol=1e-4, atol=1e-6)


def test_padding_row_gets_no_gradient():
    e = Embedding(5, 3, padding=2)
    ids = tg.input("ids", (4,), "int32")
    y = e(ids)
    f = tg.compile({"y": y, "g": tg.grad(y.sum(), e.weight)})
    W = np.arange(15, dtype="f4").reshape(5, 3)
    out = f({"weight": W}, ids=[2, 0, 2, 4])
    np.testing.assert_array_equal(out["y"], W[[2, 0, 2, 4]])
    np.testing.assert_array_equal(out["g"].sum(1), [3, 0, 0, 0, 3])


# ------------------------------------------------------------------------------------------------- lists


def test_lists_of_blocks():
    model = Model(3)
    assert len(model.blocks) == 3 and [m is model.blocks[i] for i, m in enumerate(model.blocks)] == [True] * 3
    plain = tg.ModuleList(Block() for _ in range(2))
    assert [p for p, _ in plain.children()] == ["0", "1"]
    assert len(tg.ModuleList(0, lambda i: Block())) == 0
    assert "TG308" in said(tg.ModuleList, 3, Block())


def test_a_symbolic_number_of_blocks_is_one_block_n_times():
    model = Model(n)
    params = model.named_parameters()
    assert [show(p.count) for p in params.values()] == ["V·d", "d·n", "d·n", "d·f·n", "f·n", "d·f·n"]
    graph = tg.Graph(model(tg.input("ids", (B, T), "int32")))
    assert sum(t.op.name == "gelu" for t in graph.nodes) == 1
    assert {show(t.scope.times) for t in graph.nodes if t.op.name == "gelu"} == {"n"}
    sizes = {"V": 7, "d": 4, "f": 8}
    for k in (1, 2, 5):
        assert evaluate(model.total(), {**sizes, "n": k}) == evaluate(Model(k).total(), sizes)


def test_summary_adds_up():
    rows = Model().summary().splitlines()
    assert len(rows) == len(NAMES) + 1
    assert rows[0].split() == ["transformer.wte.weight", "[V,", "d]", "V·d"]
    assert rows[-1].split(maxsplit=1)[0] == "total"


def test_a_layer_defines_forward():
    with pytest.raises(tg.GraphError) as e:

        class Wrong(tg.Module):
            def __call__(self, x):
                return x

    assert e.value.report() == (
        "GraphError[TG305] Wrong defines __call__: a layer defines forward, and is called\n"
        "  hint: def forward(self, x): ..."
    )


def test_a_negative_size_is_refused_where_the_layer_is_made() -> None:
    with pytest.raises(tg.ShapeError, match=r"TG109\] a parameter: the size -1 is negative"):
        tg.nn.Linear(-1, 3)


def test_values_are_drawn_for_a_parameter_without_axes() -> None:
    class Net(tg.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = tg.nn.Parameter(())

    assert Net().init(0)["scale"].shape == ()
