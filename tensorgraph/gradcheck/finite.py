"""Where a value stopped being finite: the first op, its layer and line, and the ranges of its inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..complex_numpy import guarded
from ..graph import Graph
from ..interpret import compute
from ..tensor import Tensor
from .nodes import input_names, value_range
from .report import NONFINITE, Entry


class Nonfinite(NamedTuple):
    """A leaf that is given NaN, or a node that makes NaN or infinity of finite inputs (or NaN of infinite ones)."""

    node: Tensor
    value: str
    inputs: dict[str, str]
    phase: str

    def __str__(self) -> str:
        side = "∂" if self.node.scope.backward else ""
        where = ", ".join(p for p in (side + self.node.scope.path, self.node.where) if p)
        given = "; ".join(f"{n} in {r}" for n, r in self.inputs.items())
        return f"{self.node.op.name} ({where or 'top'}) gives {self.value} from {given or 'no inputs'}"


def first_nonfinite(
    graph: Graph, values: Mapping[str, Any] | Mapping[Tensor, Any], binding: Mapping[str, int] | None = None
) -> Nonfinite | None:
    """The first node of a graph, in the order of computing, that makes a non-finite value of what it is given.

    `values` are keyed by the names of inputs and parameters, or by the leaves themselves, and keep their dtypes; sizes
    not in `binding` are read off them. What is infinite
    (a mask's -inf) is no fault unless NaN is made of it, or an output of what was given.
    """
    named = {**graph.inputs, **graph.params}
    have: dict[Tensor, Any] = {}
    for k, v in values.items():
        have[named[k] if isinstance(k, str) else k] = np.asarray(v)
    sizes = dict(binding or {})
    if set(graph.symbols) - sizes.keys():
        sizes = graph.infer_binding({t.label: a for t, a in have.items()}, sizes)
    leaves = list(have)
    for t in leaves:
        if _state(have[t])[1]:
            return Nonfinite(t, "nan", {}, "forward")
    for t in graph.nodes:
        if t in have:
            continue
        with guarded():
            have[t] = compute(t, [have[x] for x in t.inputs], sizes)
        if (found := _fault(t, have)) is not None:
            return found
    if any(_state(have[y])[0] for y in graph.outputs.values()):
        return next((Nonfinite(t, "inf", {}, "forward") for t in leaves if _state(have[t])[0]), None)
    return None


def _fault(t: Tensor, have: Mapping[Tensor, Any]) -> Nonfinite | None:
    if not t.inputs or t.op.name == "pick":
        return None
    infinite, nan = _state(have[t])
    if not infinite and not nan:
        return None
    before = [_state(have[x]) for x in t.inputs]
    if (nan and not any(b[1] for b in before)) or not any(b[0] or b[1] for b in before):
        named = dict(zip(input_names(t), (value_range(have[x]) for x in t.inputs), strict=True))
        return Nonfinite(t, "nan" if nan else "inf", named, "backward" if t.scope.backward else "forward")
    return None


def _state(a: Any) -> tuple[bool, bool]:
    """Whether a value holds infinities, and NaN."""
    if isinstance(a, tuple):
        states = [_state(x) for x in a]
        return any(s[0] for s in states), any(s[1] for s in states)
    a = np.asarray(a)
    if a.dtype.kind in "iub":
        return False, False
    a = a.astype(np.float64) if a.dtype.kind != "f" else a
    return bool(np.isinf(a).any()), bool(np.isnan(a).any())


def first_fault(order: Iterable[Tensor], have: Mapping[Tensor, Any]) -> Nonfinite | None:
    """The first node of an order that makes something non-finite, given all values."""
    return next((f for t in order if t in have and (f := _fault(t, have)) is not None), None)


def locate(order: Iterable[Tensor], have: Mapping[Tensor, Any], phase: str) -> Entry:
    """The finding for values that are not finite, given all of them."""
    found = first_fault(order, have)
    if found is None:
        given = [t for t in have if not t.inputs and t.label and any(_state(have[t]))]
        held = "; ".join(f"{t.label} in {value_range(have[t])}" for t in given)
        note = f"a given value is not finite: {held}" if held else f"a value is not finite ({phase})"
        return Entry(NONFINITE, "whole graph", np.inf, ", ".join(t.label for t in given), note=note, whole=True)
    t = found.node
    return Entry(
        NONFINITE, t.op.name, np.inf, ", ".join(found.inputs), note=str(found), layer=t.scope.path, line=t.where,
        backward=t.scope.backward, node=t, whole=True,
    )  # fmt: skip
