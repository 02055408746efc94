"""The rows of a ledger: every weight of a module, as it is stored, or of a graph, as it is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tensorgraph.cost import active_size
from tensorgraph.dims import Dim, mul, show
from tensorgraph.dims import binding as to_binding
from tensorgraph.errors import GraphError
from tensorgraph.graph import Graph
from tensorgraph.nn import Module, Parameter
from tensorgraph.tensor import Tensor
from tensorgraph.visualize.ledger import OTHER, Ledger, Row


def ledger(what: Any, binding: Any = None, *, name: str | None = None) -> Ledger:
    """The ledger of a module, a graph or a loaded model; `binding` gives sizes beside those the model brings.

    Raises GraphError[TG393] for anything else.
    """
    source = getattr(what, "model", what)
    bound = {**(getattr(source, "binding", None) or {}), **to_binding(binding)}
    if isinstance(source, Module):
        aliases = dict(getattr(source, "aliases", None) or {})
        title = name or str(getattr(source, "config", {}).get("model_type") or type(source).__name__)
        rows, buffers = _from_module(source, aliases)
        return Ledger(title, tuple(rows), tuple(buffers), bound, aliases)
    if isinstance(source, Graph):
        rows, buffers = _from_graph(source)
        return Ledger(name or source.name, tuple(rows), tuple(buffers), bound, source.aliases)
    raise GraphError("TG393", f"a {type(what).__name__} has no weights", hint="a module, a graph or a loaded model has")


def _from_module(module: Module, aliases: Mapping[str, Dim]) -> tuple[list[Row], list[Row]]:
    uses, rows, buffers = module.uses(), [], []
    for name, p in module.named_parameters().items():
        places = tuple(path.rpartition(".")[0] for path in uses[name])
        if not p.counted:
            buffers.append(Row(name, p.shape, 0, "buffer", p.dtype, False, None, "stored", places))
            continue
        component, reading = p.component or OTHER, _reading(p, aliases)
        active = None if p.used is None else p.active
        rows.append(
            Row(name, p.shape, p.count, component, p.dtype, p.trained, None, reading, places, 1, p.times, active)
        )
        for path in uses[name][1:]:
            where = path.rpartition(".")[0]
            rows.append(Row(module.rename(path), p.shape, 0, component, p.dtype, p.trained, name, reading, (where,)))
    return rows, buffers


def _from_graph(graph: Graph) -> tuple[list[Row], list[Row]]:
    used: dict[Tensor, dict[str, None]] = {}
    constant: set[Tensor] = set()
    tables: dict[Tensor, dict[str, None]] = {}
    for node in graph.nodes:
        if node.op.style not in ("input", "weight") and not node.op.effect and all(x in constant for x in node.inputs):
            constant.add(node)
            continue
        for x in node.inputs:
            if not node.scope.backward and x.op.style == "weight":
                used.setdefault(x, {})[node.scope.path or node.op.name] = None
            if x in constant and x.dtype.is_float and x.ndim > 1 and not node.scope.backward:
                tables.setdefault(x, {})[node.scope.path or node.op.name] = None
    rows = [
        Row(n, t.shape, mul(t.size, t.scope.times), t.attrs.get("component") or OTHER, t.dtype,
            bool(t.attrs.get("trained", True)), None, "", tuple(used.get(t, ())), 1, t.scope.times, active_size(t))
        for n, t in graph.params.items() if t.attrs.get("counted", True)
    ]  # fmt: skip
    buffers = [Row(_made_by(t), t.shape, 0, "buffer", t.dtype, False, None, "", tuple(w)) for t, w in tables.items()]
    stored = [(n, t) for n, t in graph.params.items() if not t.attrs.get("counted", True)]
    buffers += [Row(n, t.shape, 0, "buffer", t.dtype, False, None, "stored", tuple(used.get(t, ()))) for n, t in stored]
    return rows, buffers


def _made_by(table: Tensor) -> str:
    """A table's name, or the op that made it, behind casts and views."""
    while not table.label and len(table.inputs) == 1 and (table.op.view or table.op.name == "cast"):
        table = table.inputs[0]
    return table.label or table.op.title


def _reading(p: Parameter, aliases: Mapping[str, Dim]) -> str:
    """How a matrix is read, `d → f`, whichever way it is stored."""
    if len(p.shape) != 2 or not p.reading:
        return p.reading
    first, last = (show(d) for d in p.shape)
    a, b = (show(d, aliases) for d in p.shape)
    return f"{b} → {a}" if p.reading == f"{last} → {first}" else f"{a} → {b}"


__all__ = ["ledger"]
