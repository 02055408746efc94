"""Costs agree with what running the graph does, with the literature's formulas, and with published sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tensorgraph as tg
from tensorgraph.cost import cost
from tensorgraph.errors import SizeError
from tensorgraph.graph import Graph
from tensorgraph.interpret import evaluate, shape_of
from tensorgraph.models import build
from tensorgraph.xp import numpy as plain

SIZES = {"B": 2, "T": 5}
SMALL = {"V": 11, "H": 4, "G": 2, "k": 6, "d": 24, "f": 10, "P": 7, "n": 3}


def language_model(
    name: str, freeze: tuple[str, ...] = (), gradients: bool = True, **changes: Any
) -> tuple[Graph, Any]:
    m = build(name, **changes)
    for pattern in freeze:
        m.freeze(pattern)
    out = m.outputs(**m.inputs(["input_ids", "labels"]))
    wrt = {n: p for n, p in m.named_parameters().items() if p.trained} if gradients else {}
    grads = tg.grad(out["loss"], wrt, unused="none") if wrt else {}
    kept = {n: g for n, g in grads.items() if g is not None}
    return Graph({"loss": out["loss"], **kept}, name=name, aliases=m.aliases), m


class Counting:
    """NumPy that counts the multiply-adds of matrix products as they are run."""

    def __init__(self) -> None:
        self.flops = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(plain, name)

    def matmul(self, x: Any, y: Any, out: Any = None) -> Any:
        result = plain.matmul(x, y, out=out)
        self.flops += 2 * int(np.size(result)) * x.shape[-1]
        return result


def run(graph: Graph, binding: dict[str, int], outputs: Any = None) -> int:
    """FLOPs of the products that computing the outputs takes, counted from arrays."""
    rng = np.random.default_rng(0)
    values = {}
    for t in [*graph.inputs.values(), *graph.params.values()]:
        shape = shape_of(t, binding)
        ids = t.dtype.kind == "i"
        values[t] = rng.integers(0, 5, shape).astype(np.int32) if ids else rng.normal(size=shape).astype(np.float32)
    counting = Counting()
    evaluate(outputs or list(graph.outputs.values()), values, binding, counting)
    return counting.flops


MODELS = [
    ("gpt2", (), {"layers": 2}),
    ("llama-3-8b", (), {"layers": 2}),
    ("llama-3-8b", ("*mlp*", "*embed*"), {"layers": 2}),
    ("gemma-3-1b", (), {"layers": 7}),
    ("phi-3-mini", ("*",), {"layers": 1}),
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("name", "freeze", "changes"), MODELS)
def test_products_are_those_that_running_the_graph_makes(name: str, freeze: Any, changes: Any) -> None:
    """Oracle: the shapes of the arrays, while the records' definitions run."""
    graph, _ = language_model(name, freeze, **changes)
    binding = {n: v for n, v in {**SMALL, **SIZES}.items() if n in graph.symbols}
    found = cost(graph, binding)
    assert found.forward.products == run(graph, binding, [graph.outputs["loss"]])
    assert found.forward.products + found.backward.products == run(graph, binding)  # type: ignore[operator]


def test_a_transformer_costs_what_the_literature_says() -> None:
    """2 per weight and token, 4·T²·d per layer for the scores and the weighted sum (Kaplan et al. 2020, table 1)."""
    graph, m = language_model("gpt2")
    B, T = 3, 100
    found = cost(graph, {**m.binding, "B": B, "T": T})
    d, V, layers = 768, 50257, 12
    weights = layers * 12 * d * d + V * d
    assert found.forward.products == B * (2 * T * weights + layers * 4 * T * T * d)


@pytest.mark.parametrize("name", ["gpt2", "llama-3-8b", "gemma-2-9b"])
def test_a_full_backward_is_twice_the_forward_beside_what_it_makes_again(name: str) -> None:
    graph, m = language_model(name, layers=2)
    found = cost(graph, {**m.binding, **SIZES})
    again, B, T = found.recomputed.products, 2, 5
    scores = 2 * B * m.binding["H"] * T * T * m.binding["k"]
    assert again == 2 * scores  # of each layer: its attention keeps queries and keys, and makes the scores again
    assert found.backward.products - again == 2 * found.forward.products  # type: ignore[operator]


def test_frozen_weights_cost_no_gradient_of_their_own() -> None:
    full, m = language_model("llama-3-8b", layers=2)
    part, _ = language_model("llama-3-8b", ("*mlp*",), layers=2)
    binding = {**m.binding, **SIZES}
    d, f, tokens = m.binding["H"] * m.binding["k"], m.binding["f"], 10
    saved = cost(full, binding).backward.products - cost(part, binding).backward.products  # type: ignore[operator]
    assert saved == 2 * 2 * 3 * d * f * tokens
    head, _ = language_model("llama-3-8b", ("*layers*", "*embed*", "*norm*"), layers=2)
    assert cost(head, binding).backward.products == 2 * m.binding["V"] * d * tokens
    none, _ = language_model("llama-3-8b", ("*",), layers=2)
    found = cost(none, binding)
    assert (found.backward.all, found.bytes["gradients"], found.bytes["activations"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("freeze", "tied"),
    [
        ((), False),
        ((), True),
        (("*mlp.*",), False),
        (("*embed*",), True),
        (("*embed*",), False),
        (("*embed*", "*q_proj*", "*norm*"), False),
    ],
)
def test_a_symbolic_number_of_layers_costs_what_the_unrolled_model_costs(freeze: Any, tied: bool) -> None:
    changes = {"tie_word_embeddings": tied}
    loop, m = language_model("llama-3-8b", freeze, layers=tg.dim("n"), **changes)
    unrolled, _ = language_model("llama-3-8b", freeze, layers=3, **changes)
    binding = {**m.binding, **SIZES, "n": 3}
    a, b = cost(loop, binding), cost(unrolled, binding)
    assert a.parameters == b.parameters and a.components == b.components
    assert a.forward == b.forward
    assert a.backward == b.backward
    for name in ("weights", "gradients", "optimiser", "kv_cache"):
        assert a.bytes[name] == b.bytes[name]


@pytest.mark.parametrize(
    ("name", "total"),
    [("gpt2", 124_439_808), ("llama-3-8b", 8_030_261_248), ("llama-3.1-405b", 405_853_388_800), ("mini-11776", 11_776)],
)
def test_published_totals(name: str, total: int) -> None:
    graph, m = language_model(name, gradients=False)
    found = cost(graph, {**m.binding, "B": 1, "T": 8})
    assert found.parameters["total"] == total == sum(found.components.values())  # type: ignore[arg-type]
    assert found.parameters["trained"] + found.parameters["frozen"] == total  # type: ignore[operator]


def test_formulas_fold_to_the_sizes_that_people_know() -> None:
    graph, m = language_model("gpt2", layers=1, gradients=False)
    assert str(cost(graph)).splitlines()[0] == "parameters  total                 P·d + V·d + 12·d² + 15·d"
    symbolic = cost(graph).forward.products
    bound = {**m.binding, "B": 2, "T": 9}
    assert cost(graph).bind(bound).forward.products == cost(graph, bound).forward.products
    assert "T" in {str(s) for s in symbolic.free_symbols}  # type: ignore[union-attr]


def test_bytes_by_dtype_and_optimiser() -> None:
    graph, m = language_model("llama-3-8b", layers=2)
    binding = {**m.binding, "B": 1, "T": 1}
    half = cost(graph, binding, dtype="bfloat16")
    total = half.parameters["total"]
    assert half.bytes["weights"] == half.bytes["gradients"] == 2 * total  # type: ignore[operator]
    assert half.bytes["optimiser"] == 8 * total  # type: ignore[operator]
    assert cost(graph, binding, optimiser="sgd").bytes["optimiser"] == 0
    assert half.bytes["kv_cache"] == 2 * 2 * 8 * 128 * 2  # layers, keys and values, G, k, bytes: per token
    with pytest.raises(SizeError) as raised:
        cost(graph, optimiser="sdg")
    assert str(raised.value) == ("[TG013] unknown optimiser 'sdg'\n  hint: one of: none, sgd, momentum, adam, adamw")


def test_only_values_that_the_backward_reads_are_kept() -> None:
    n = tg.dim("n")
    x, w = tg.input("x", (n, 3)), tg.input("w", (3,))
    y = tg.tanh(x @ w).sum()
    graph = Graph({"y": y, **{k: g for k, g in zip("xw", tg.grad(y, [x, w]), strict=True)}})
    assert cost(graph).bytes["activations"] == 4 * n  # type: ignore[operator]
    assert cost(graph).forward.products == 6 * n  # type: ignore[operator]


def test_an_own_op_is_counted_by_its_definition_or_named() -> None:
    @tg.op(shape="B d, d -> B d")
    def scaled(x: tg.Tensor, w: tg.Tensor) -> tg.Tensor:
        """x times w, by way of a product."""
        return (x @ w.reshape(w.shape[0], 1)) * x

    @tg.op(shape="B d -> B d", primitive=True)
    def opaque(x: tg.Tensor) -> tg.Tensor:
        """Nobody knows."""

    x, w = tg.input("x", (4, 3)), tg.input("w", (3,))
    found = cost(Graph(opaque(scaled(x, w))))
    assert (found.forward.all, found.forward.products, found.uncounted) == (24 + 12, 24, ("opaque",))
    assert str(found).splitlines()[-1] == "not counted: opaque"
