"""Whether a graph that is right in float64 is right in its own dtype too, and which op loses the digits if not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import autodiff
from ..complex_numpy import guarded
from ..dtypes import DType
from ..graph import Graph
from ..interpret import compute, evaluate
from ..ops.leaf import INPUT
from ..tensor import Tensor
from .finite import first_fault
from .reference import norm
from .report import PRECISION, Entry

Values = dict[Tensor, Any]


def lowest(graph: Graph) -> DType | None:
    """The least precise floating dtype of a graph's leaves, if it is below float64."""
    kinds = [t.dtype for t in (*graph.inputs.values(), *graph.params.values()) if t.dtype.is_float and t.dtype.size < 8]
    return min(kinds, key=lambda k: -epsilon(k)) if kinds else None


def epsilon(kind: DType) -> float:
    return 2.0**-7 if kind.name == "bfloat16" else float(np.finfo(kind.np).eps)


def paired(a: Graph, b: Graph) -> dict[Tensor, Tensor]:
    """Nodes of one graph beside those of another of the same structure."""
    out: dict[Tensor, Tensor] = {}
    stack = [(a.outputs[k], b.outputs[k]) for k in a.outputs]
    while stack:
        x, y = stack.pop()
        if x not in out:
            out[x] = y
            stack += zip(x.inputs, y.inputs, strict=True)
    return out


def check_precision(
    low: Graph, wide: Graph, leaves: Values, sizes: Mapping[str, int], cotangents: list[Any], floor: float
) -> list[Entry]:
    """Findings where half of a dtype's digits are lost: relative errors above the square root of its epsilon.

    Of the gradient as a whole, by norms (`floor`: what is below it is 0 but for rounding);
    and of each node's forward, given inputs that the dtype can represent.
    """
    kind = lowest(low)
    if kind is None:
        return []
    bound = epsilon(kind) ** 0.5
    twin = paired(low, wide)
    here: Values = {}
    there: Values = {}
    for t, w in twin.items():
        if w in leaves:
            a = np.asarray(leaves[w]).astype(t.dtype.np)
            here[t], there[w] = a, a.astype(np.float64) if t.dtype.is_float else a
    found, seen = [], set()
    with guarded():
        for t in low.nodes:
            if t in here:
                continue
            w = twin[t]
            there[w] = compute(w, [there[x] for x in w.inputs], sizes)
            here[t] = compute(t, [here[x] for x in t.inputs], sizes)
            key = (t.op, t.scope.path, tuple(x.dtype for x in t.inputs))
            if (
                t.inputs
                and key not in seen
                and not isinstance(there[w], tuple)
                and t.dtype.is_float
                and t.dtype.size < 8
            ):
                seen.add(key)
                entry = _node(t, w, there, sizes, bound)
                if entry is not None:
                    found.append(entry)
    return found + _whole(low, wide, here, there, sizes, cotangents, bound, kind, floor)


def _node(t: Tensor, w: Tensor, there: Values, sizes: Mapping[str, int], bound: float) -> Entry | None:
    args = [_rounded(there[x], y) for x, y in zip(w.inputs, t.inputs, strict=True)]
    got = np.asarray(compute(t, args, sizes)).astype(np.float64)
    exact = [a.astype(np.float64) if x.dtype.is_float else a for a, x in zip(args, t.inputs, strict=True)]
    true = compute(w, exact, sizes)
    top = float(np.max(np.abs(true), initial=0.0))
    error = float(np.max(np.abs(got - true), initial=0.0)) / top if top else 0.0
    if error <= bound or not np.isfinite(top):
        return None
    moved = compute(w, [_moved(a, epsilon(t.dtype)) for a in exact], sizes)
    if error * top <= EXCUSED * float(np.max(np.abs(moved - true), initial=0.0)):
        return None  # the function itself is that sensitive: no way of computing it does better
    note = f"in {t.dtype} its result is off by {error:.1e} of the largest element, the bound is {bound:.1e}"
    return Entry(PRECISION, t.op.name, error, note=note, layer=t.scope.path, line=t.where, type=t.type_text, node=t)


EXCUSED = 100  # times the effect of rounding the inputs: what a stable way of computing stays below


def _moved(a: Any, eps: float) -> Any:
    """a with every element moved by up to one rounding, always in the same pattern."""
    a = np.asarray(a)
    if a.dtype.kind != "f":
        return a
    return a * (1 + eps * np.random.default_rng(0).uniform(-1, 1, a.shape))


def _rounded(a: Any, t: Tensor) -> Any:
    return a if t.specs is not None else np.asarray(a).astype(t.dtype.np)


def _whole(
    low: Graph,
    wide: Graph,
    here: Values,
    there: Values,
    sizes: Mapping[str, int],
    cotangents: list[Any],
    bound: float,
    kind: DType,
    floor: float,
) -> list[Entry]:
    got, order = _gradient(low, here, sizes, cotangents)
    true, _ = _gradient(wide, there, sizes, cotangents)
    if not all(np.all(np.isfinite(g)) for g in got.values()):
        fault = first_fault(order, here)
        note = f"in {kind} a value overflows that float64 holds" + (f": {fault}" if fault else "")
        node = fault.node if fault else None
        where = (node.scope.path, node.where) if node is not None else ("", "")
        name = node.op.name if node is not None else "whole graph"
        return [Entry(PRECISION, name, np.inf, note=note, layer=where[0], line=where[1], node=node, whole=node is None)]
    gaps = {n: norm(got[n] - true[n]) for n in true}
    size = sum(norm(g) ** 2 for g in true.values()) ** 0.5
    if size <= floor:
        return []
    error = sum(g * g for g in gaps.values()) ** 0.5 / size
    if error <= bound:
        return []
    worst = max(gaps, key=lambda n: gaps[n])
    shaken = {
        t: _moved(a, epsilon(kind)) if t.op.name in ("input", "param") else a for t, a in there.items() if not t.inputs
    }
    near, _ = _gradient(wide, shaken, sizes, cotangents)
    if error * size <= EXCUSED * sum(norm(near[n] - true[n]) ** 2 for n in true) ** 0.5:
        return []
    note = f"in {kind} the gradient is off by {error:.1e} of its norm, the bound is {bound:.1e}"
    return [Entry(PRECISION, "whole graph", error, worst, note=note, whole=True)]


def _gradient(
    graph: Graph, have: Values, sizes: Mapping[str, int], cotangents: list[Any]
) -> tuple[dict[str, Any], list[Tensor]]:
    outs = [y for y in graph.outputs.values() if y.specs is None and y.dtype.is_float]
    leaves = [t for t in (*graph.inputs.values(), *graph.params.values()) if t.dtype.is_float]
    gs = [Tensor(INPUT, (), {}, y.shape, y.dtype, y.scope.twin, y.loc, f"cotangent{i}") for i, y in enumerate(outs)]
    found = autodiff.backward(outs, leaves, gs)
    given = {**have, **{g: c.astype(g.dtype.np) for g, c in zip(gs, cotangents, strict=True)}}
    with guarded():
        values = evaluate(found.values(), given, sizes)
    named = {t.label: np.asarray(a).astype(np.float64) for t, a in zip(found, values, strict=True)}
    return named, graph.nodes
