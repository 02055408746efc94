"""Folding is exact: a folded graph unfolds to the graph it was made of, and only what is equal is folded."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

import tensorgraph as tg
from tensorgraph.blocks import Fold, Layer, fold, pattern_text, unfold
from tensorgraph.cli.target import open_target
from tensorgraph.graph import Graph
from tensorgraph.models import build, presets
from tensorgraph.ops.leaf import const
from tensorgraph.tensor import Tensor, at


def model(name: str, gradients: bool = False, **changes: Any) -> Graph:
    """A model's graph from its preset; with the gradients of its parameters."""
    m = build(name, **changes)
    out = m.outputs(**m.inputs(["input_ids", "labels"]))
    if not gradients:
        return Graph(out, name=name, aliases=m.aliases)
    wrt = {n: p for n, p in m.named_parameters().items() if p.trained}
    return Graph({"loss": out["loss"], **tg.grad(out["loss"], wrt)}, name=name, aliases=m.aliases)


# -------------------------------------------------------------------------------------------- isomorphism
# Two graphs are isomorphic if their nodes can be told apart by colours that say what a node is, what it reads, in
# order, and what reads it, and if both have the same colours. Nothing of this is shared with the code that folds.


def plain(graph: Graph) -> tuple[list[Any], list[tuple[int, ...]]]:
    """(what, inputs) of every node of a graph, leaves first."""
    leaves = [t for t in graph.nodes if t.op.leaf]
    nodes = [*leaves, *(t for t in graph.nodes if not t.op.leaf)]
    index = {t: i for i, t in enumerate(nodes)}
    return [said(t) for t in nodes], [tuple(index[x] for x in t.inputs) for t in nodes]


def said(t: Tensor) -> str:
    """What a node is, in words."""
    attrs = {} if t.op.leaf and t.op.style == "input" else t.attrs
    shown = {k: v.count if k == "loop" else v for k, v in attrs.items() if k not in ("identity", "component")}
    return f"{t.op.name} {sorted((k, repr(v)) for k, v in shown.items())} {t.type_text}"


def expanded(folded: Fold) -> tuple[list[Any], list[tuple[int, ...]]]:
    """The same of an unfolded form. Its kinds carry frozen attributes, so each is said by a node that has that kind."""
    rows = unfold(folded)
    words = {}
    for node, row in zip(folded.top.nodes(), rows, strict=True):
        words.setdefault(row.kind, said(node))
    n = len(folded.leaves)
    what = [said(t) for t in folded.leaves] + [words[row.kind] for row in rows]
    return what, [()] * n + [tuple(r if r >= 0 else n - 1 - r for r in row.refs) for row in rows]


def colours(graph: tuple[list[Any], list[tuple[int, ...]]]) -> list[int]:
    what, inputs = graph
    users: list[list[tuple[int, int]]] = [[] for _ in what]
    for i, xs in enumerate(inputs):
        for position, x in enumerate(xs):
            users[x].append((i, position))
    order = topological(inputs)
    colour = [hash(w) for w in what]
    for _ in range(3):
        for i in order:
            colour[i] = hash((colour[i], *[colour[x] for x in inputs[i]]))
        for i in reversed(order):
            colour[i] = hash((colour[i], *sorted((colour[u], p) for u, p in users[i])))
    return colour


def topological(inputs: list[tuple[int, ...]]) -> list[int]:
    waiting = [len(set(xs)) for xs in inputs]
    users: list[list[int]] = [[] for _ in inputs]
    for i, xs in enumerate(inputs):
        for x in set(xs):
            users[x].append(i)
    ready = [i for i, n in enumerate(waiting) if n == 0]
    order = []
    while ready:
        i = ready.pop()
        order.append(i)
        for u in users[i]:
            waiting[u] -= 1
            if waiting[u] == 0:
                ready.append(u)
    assert len(order) == len(inputs), "a circle"
    return order


def assert_isomorphic(graph: Graph, discrete: bool = True) -> Fold:
    folded = fold(graph)
    mine, theirs = colours(plain(graph)), colours(expanded(folded))
    assert Counter(mine) == Counter(theirs)
    if discrete:  # then the colours themselves are an isomorphism
        assert len(set(mine)) == len(mine)
    return folded


MODELS = [
    ("gpt2", {}),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    ("llama-3.2-1b", {}),
    ("gemma-3-1b", {}),
    ("gemma-2-9b", {"num_hidden_layers": 6}),
    ("phi-3-mini", {"num_hidden_layers": 5}),
    ("qwen2.5-0.5b", {"num_hidden_layers": 4}),
    ("mini-268", {}),
    ("llama-3-8b", {"layers": tg.dim("n")}),
]


@pytest.mark.parametrize("gradients", [False, True], ids=["forward", "gradients"])
@pytest.mark.parametrize(("name", "changes"), MODELS, ids=[f"{n}{'+' if c else ''}" for n, c in MODELS])
def test_unfolding_gives_back_the_graph(name: str, changes: dict[str, Any], gradients: bool) -> None:
    assert_isomorphic(model(name, gradients, **changes))


# One preset of each architecture, and how it folds.
FOLDS = {
    "gpt2": "layers: Block ×12",
    "llama-3.1-405b": "layers: Block ×126",
    "mistral-7b": "layers: Block ×32",
    "mixtral-8x7b": "layers: Block ×32",
    "deepseek-v2-lite": "layers: Block ×26\n    left out: layers.0: has 1 add less",
    "deepseek-v3": "layers: Block ×3\nlayers: Block ×58",
    "qwen2.5-0.5b": "layers: Block ×24",
    "qwen3-0.6b": "layers: Block ×28",
    "gemma-2b": "layers: Block ×18",
    "gemma-2-9b": "layers: (Block + Block) ×21",
    "gemma-3-1b": "layers: (5 Block + Block) ×4",
    "phi-3-mini": "layers: Block ×32",
    "bert-base": "layers: Layer ×12",
    "vit-b-16": "vit.layers: Layer ×12",
    "clip-vit-l-14-336": "text.layers: Layer ×12\nvision.layers: Layer ×24",
    "llava-1.5-7b": "vision.layers: Layer ×23\ntext.layers: Block ×32",
    "paligemma-3b": "vision.layers: Layer ×27\ntext.layers: Block ×18",
    "idefics-9b": "vision.layers: Layer ×32\nresampler.blocks: ResamplerBlock ×6\ntext: (CrossBlock + 4 Block) ×8",
    "llama-3.2-11b-vision": "vision.local: Layer ×32\nvision.whole: Layer ×8\n"
    "text.layers: (3 Block + CrossLayer + Block) ×8",
    "mini-268": "",
}


def test_the_folds_are_of_every_architecture() -> None:
    def named(preset: str) -> Any:
        return presets.config(preset)["architectures"]

    assert {str(named(p)) for p in FOLDS} == {str(named(p)) for p in presets.names()}


@pytest.mark.parametrize("name", FOLDS)
def test_every_architecture_folds_as_published_and_unfolds(name: str) -> None:
    assert assert_isomorphic(open_target(name).trace()).text().startswith(FOLDS[name])


def test_networkx_agrees_that_it_is_the_same_graph() -> None:
    """Oracle: networkx's VF2++ on a small model, with what a node is and which input an edge is."""
    import networkx as nx

    def subdivided(graph: tuple[list[Any], list[tuple[int, ...]]]) -> Any:
        g = nx.DiGraph()
        for i, (what, xs) in enumerate(zip(*graph, strict=True)):
            g.add_node(i, what=what)
            for position, x in enumerate(xs):  # an edge is a node that says its position
                g.add_node((i, position), what=position)
                g.add_edges_from([(x, (i, position)), ((i, position), i)])
        return g

    graph = model("gpt2", layers=3)
    a, b = subdivided(plain(graph)), subdivided(expanded(fold(graph)))
    assert nx.vf2pp_is_isomorphic(a, b, node_label="what")


# ------------------------------------------------------------------------------------------ planted periods

UNARY = [tg.tanh, tg.exp, tg.sin, tg.cos, tg.sigmoid, tg.square, tg.relu, tg.silu, tg.sqrt, tg.neg]


def planted(seed: int, scoped: bool) -> tuple[Tensor, int, int]:
    """A random chain: odd nodes, a random body `times` over, odd nodes; how often, and the nodes of one body."""
    rng = random.Random(seed)
    period, times = rng.randint(2, 7), rng.randint(2, 9)
    body = [(rng.choice(UNARY), rng.random() < 0.4, rng.random() < 0.3) for _ in range(period)]
    x = h = tg.input("x", (tg.dim("B"), 4))
    fresh = iter(range(10_000))

    def odd(h: Tensor) -> Tensor:
        return h * const(1.5 + next(fresh), "float32")

    for _ in range(rng.randint(1, 5)):  # one at least: else the first body would read x in two ways that are one
        h = odd(h)
    for t in range(times):

        def run(h: Tensor) -> Tensor:
            first = h
            for fn, weighted, residual in body:
                h = fn(h)
                if weighted:
                    h = h @ tg.ops.leaf.param(f"w{next(fresh)}", (4, 4))
                if residual:
                    h = h + first
            return h + x

        if scoped:
            with tg.scope(f"any{rng.randint(0, 99)}_{t}", kind=rng.choice("ABC")):
                h = run(h)
        else:
            h = run(h)
    for _ in range(rng.randint(0, 5)):
        h = odd(h)
    return h, times, 1 + sum(1 + weighted + residual for _, weighted, residual in body)


@pytest.mark.parametrize("scoped", [True, False], ids=["layers", "flat"])
@pytest.mark.parametrize("seed", range(40))
def test_planted_periods_are_found_and_unfold(seed: int, scoped: bool) -> None:
    y, times, size = planted(seed, scoped)
    folded = assert_isomorphic(Graph(y), discrete=False)
    parts = [p for layer, p in folded.repeats() if layer.depth <= 1]
    if scoped:  # the layers bear random names and classes: structure alone makes them equal
        assert [p.times for p in parts if isinstance(p.runs[0][0], Layer)] == [times]
    else:  # at most one run is lost at the ends
        assert sum((p.times - 1) * len(p.runs[0]) for p in parts) >= (times - 2) * size


# ---------------------------------------------------------------------------------------- what is not equal


def texts(graph: Graph) -> list[str]:
    return fold(graph).text().splitlines()


def test_repeated_layers_are_found_whatever_they_are_called() -> None:
    assert texts(model("gpt2")) == ["layers: Block ×12"]
    assert texts(model("llama-3.1-405b")) == ["layers: Block ×126"]


def test_a_periodic_pattern_and_its_rest() -> None:
    assert texts(model("gemma-3-1b")) == ["layers: (5 Block + Block) ×4", "layers: Block ×2", "layers: Block ×5"]
    assert texts(model("gemma-2-9b")) == ["layers: (Block + Block) ×21"]


def test_what_differs_by_layer_is_left_out_with_the_reason() -> None:
    found = texts(model("gpt2", scale_attn_by_inverse_layer_idx=True, n_layer=3))
    assert found == []  # each layer has its own scale: nothing repeats
    kinds = ["sliding_attention"] * 3 + ["full_attention"] + ["sliding_attention"] * 4
    found = texts(model("gemma-2-9b", num_hidden_layers=8, layer_types=kinds))
    assert found == [
        "layers: Block ×3",
        "    left out: layers.3: attention with window=None, the others 4096",
        "layers: Block ×4",
    ]


def test_trainability_is_structure() -> None:
    m = build("gpt2", layers=6)
    m.freeze("*.h.2.*")
    found = texts(Graph(m.outputs(**m.inputs(["input_ids"]))))
    reason = "    left out: layers.2: the weight f32[H·k] is frozen, the others' is not"
    assert found == ["layers: Block ×2", reason, "layers: Block ×3"]


class Layered(tg.Module):
    def __init__(self, layers: list[tg.Module]) -> None:
        super().__init__()
        self.layers = tg.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Dense(tg.Module):
    def __init__(self, w: tg.Parameter, gain: float = 1.0) -> None:
        super().__init__()
        self.w, self.gain = w, gain

    def forward(self, x: Tensor) -> Tensor:
        return tg.tanh(x @ self.w) * self.gain


def test_a_shared_weight_is_part_of_the_structure() -> None:
    x, w = tg.input("x", (3, 4)), tg.Parameter((4, 4))
    shared = fold(Graph(Layered([Dense(w) for _ in range(5)])(x)))
    own = fold(Graph(Layered([Dense(tg.Parameter((4, 4))) for _ in range(5)])(x)))
    (_, a), (_, b) = shared.repeats()[0], own.repeats()[0]
    assert (a.times, b.times) == (5, 5)
    assert len(shared.leaves) == 2 + len(own.leaves) - 6
    other = Layered([*[Dense(tg.Parameter((4, 4))) for _ in range(2)], Dense(tg.Parameter((4, 4)), gain=2.0)])
    assert texts(Graph(other(x))) == ["layers: Dense ×2", "    left out: layers.2: takes another constant"]


def test_layers_side_by_side_do_not_fold() -> None:
    """Equal layers that read the same value, such as q, k and v, are no chain."""
    x = tg.input("x", (3, 4))
    model = Layered([Dense(tg.Parameter((4, 4))) for _ in range(3)])
    model.assign_names()
    q, k, v = (layer(x) for layer in model.layers)
    assert fold(Graph(q * k + v)).text() == ""


def test_layers_that_read_each_other_in_a_circle_are_taken_apart() -> None:
    x = tg.input("x", (3,))
    with tg.scope("inner", kind="Inner") as inner:
        a = tg.tanh(x)
    b = tg.exp(a)
    with at(inner):
        c = tg.sin(b)
    folded = assert_isomorphic(Graph(c))
    assert folded.form.size == 3


def test_a_chain_of_a_hundred_thousand_nodes() -> None:
    y = tg.input("x", (3,))
    for _ in range(100_000):
        y = tg.tanh(y)
    folded = fold(Graph(y))
    (_, part) = folded.repeats()[0]
    assert part.times == 100_000 and pattern_text(part) == "tanh ×100000"
    assert len(unfold(folded)) == 100_000
