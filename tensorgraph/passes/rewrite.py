"""Passes that rewrite a graph: inline definitions, merge equal nodes, drop work that does nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any, cast

from .. import dims
from ..autodiff import expanded
from ..dims import Dim
from ..op import REGISTRY
from ..tensor import PICK, Tensor, _freeze, at, identities, make, reached

Outputs = dict[str, Tensor]
Rule = Callable[[Tensor, tuple[Tensor, ...]], "Tensor | None"]


# When a node was made, or that for which a pass put it: passes change no order, whatever was made before them.
age = attrgetter("age", "serial")


def date(t: Tensor, when: int) -> None:
    """Let a node and what it depends on be no younger than `when`."""
    stack = [t]
    while stack:
        x = stack.pop()
        if x.age > when:
            x.age = when
            stack += x.inputs


def in_order(outputs: Iterable[Tensor]) -> list[Tensor]:
    """All nodes by age: inputs first, and backward nodes as reverse mode met them."""
    return sorted(reached(outputs), key=age)


def transform(outputs: Outputs, rule: Rule) -> Outputs:
    """Rebuild a graph, a rule deciding what stands for each node given its new inputs (None: the same op)."""
    new: dict[Tensor, Tensor] = {}
    for t in in_order(outputs.values()):
        inputs = t.inputs
        for i in inputs:
            if new[i] is not i:
                inputs = tuple([new[i] for i in inputs])
                break
        swap = rule(t, inputs)
        if swap is None:
            if inputs is t.inputs:
                swap = t
            else:
                swap = again(t, inputs)
                swap.age = t.age
        elif swap.age > t.age:
            date(swap, t.age)
        new[t] = swap
    return {k: new[v] for k, v in outputs.items()}


def again(t: Tensor, inputs: tuple[Tensor, ...]) -> Tensor:
    """The same node on new inputs of the same types; nothing is inferred anew, and equal ones are left to `cse`."""
    return Tensor(t.op, inputs, t.attrs, t.shape, t.dtype, t.scope, t.loc, t.label, t.specs)


def inline(outputs: Outputs, keep: Callable[[Tensor], bool]) -> Outputs:
    """Replace every op that has a definition by it, unless `keep` says that it is computed as it is."""
    while True:
        if all(t.op.body is None or keep(t) for t in reached(outputs.values())):
            return outputs
        parts: dict[Tensor, Any] = {}

        def rule(t: Tensor, inputs: tuple[Tensor, ...], parts: dict[Tensor, Any] = parts) -> Tensor | None:
            if t.op is PICK and inputs[0] in parts:
                return cast("Tensor", parts[inputs[0]][t.attrs["index"]])
            if t.op.body is None or keep(t):
                return None
            inner = expanded(t, inputs)
            if isinstance(inner, tuple):
                stand_in = again(t, inputs)
                parts[stand_in] = inner
                return stand_in
            if t.label and not inner.op.leaf and not inner.label:
                inner.label = t.label
            return cast("Tensor", inner)

        outputs = transform(outputs, rule)


def cse(outputs: Outputs) -> Outputs:
    """Merge equal nodes across scopes: what backward recomputes of forward is computed once. Effects stay apart."""
    seen: dict[Any, Tensor] = {}

    def rule(t: Tensor, inputs: tuple[Tensor, ...]) -> Tensor | None:
        if t.op.leaf or t.op.effect:
            return None
        key = (t.op, *map(id, inputs), *[_freeze(v) for v in t.attrs.values()])
        found = seen.get(key)
        if found is None:
            found = seen[key] = t if inputs is t.inputs else again(t, inputs)
        elif t.label and not found.label:
            found.label = t.label
        return found

    return transform(outputs, rule)


def settle(outputs: Outputs) -> Outputs:
    """Give random and effectful nodes the identities that they have in this graph, which all later passes keep."""
    own = identities(reached(outputs.values()))

    def rule(t: Tensor, inputs: tuple[Tensor, ...]) -> Tensor | None:
        if t not in own or own[t] == t.attrs["identity"]:
            return None
        attrs = {**t.attrs, "identity": own[t]}
        return again(make(t.op, t.inputs, attrs, t.scope, t.loc, (t.shape, t.dtype, t.specs)), inputs)

    return transform(outputs, rule) if own else outputs


# -------------------------------------------------------------------------------------------- simplify

_R = REGISTRY


def _scalar(t: Tensor) -> Any:
    return t.attrs["value"] if t.op.name == "const" and not t.shape else None


def simplify(outputs: Outputs) -> Outputs:
    """Drop what does nothing: times one, plus zero, views of views, needless expansion; glue split gradients, and add
    those of rows where the others are."""

    def rule(t: Tensor, inputs: tuple[Tensor, ...]) -> Tensor | None:
        tries = (_glue, _onto, _simpler) if t.op.name == "add" and t.scope.backward else (_simpler,)
        return next((found for f in tries if (found := f(t, inputs)) is not None), None)

    return transform(outputs, rule)


def _simpler(t: Tensor, inputs: tuple[Tensor, ...]) -> Tensor | None:
    name = t.op.name
    if (
        name in ("reshape", "permute", "expand")
        and dims.same_shape(t.shape, inputs[0].shape)
        and (name != "permute" or t.attrs["axes"] == tuple(range(t.ndim)))
    ):
        return inputs[0]
    if name == "reshape" and inputs[0].op.name == "reshape":
        return again(t, inputs[0].inputs)
    if name == "permute" and inputs[0].op.name == "permute":
        axes = tuple(inputs[0].attrs["axes"][a] for a in t.attrs["axes"])
        below = inputs[0].inputs[0]
        if axes == tuple(range(len(axes))):
            return below
        return make(t.op, (below,), {"axes": axes}, t.scope, t.loc, (t.shape, t.dtype, None))
    if name == "cast" and inputs[0].dtype == t.dtype:
        return inputs[0]
    if name in ("mul", "div", "add", "sub") and len(inputs) == 2:
        given, inputs = inputs, _unexpand(t, inputs)
        unit = 1 if name in ("mul", "div") else 0
        for i, other in ((1, 0), (0, 1)) if name in ("mul", "add") else ((1, 0),):
            x = inputs[other]
            if _scalar(inputs[i]) == unit and x.dtype == t.dtype and dims.same_shape(x.shape, t.shape):
                return x
        if inputs is not given:
            return again(t, inputs)
    return None


def _unexpand(t: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """`x * expand(s)` as `x * s` where x has the full shape anyway; the same object if nothing is to be done."""
    a, b = inputs
    if b.op.name == "expand" and dims.same_shape(a.shape, t.shape):
        return a, b.inputs[0]
    if a.op.name == "expand" and dims.same_shape(b.shape, t.shape):
        return a.inputs[0], b
    return inputs


def _glue(t: Tensor, inputs: tuple[Tensor, ...]) -> Tensor | None:
    """A ∂ sum of padded pieces that tile one axis (the gradient of a split) is their concatenation."""
    pieces: list[Tensor] = []
    stack = list(inputs[::-1])
    while stack:
        x = stack.pop()
        if x.op.name == "pad":
            pieces.append(x)
        elif x.op.name == "add" and x.scope.backward and len(pieces) + len(stack) < 64:
            stack += x.inputs[::-1]
        else:
            return None
    axis: int | None = None
    for p in pieces:
        for i, (lo, hi, inner) in enumerate(p.attrs["widths"]):
            if inner:
                return None
            if not (_zero(lo) and _zero(hi)):
                if axis not in (None, i):
                    return None
                axis = i
    if axis is None:
        return None
    rest, start, row = list(pieces), cast("Dim", 0), []
    while rest:
        nxt = next((p for p in rest if dims.same(p.attrs["widths"][axis][0], start)), None)
        if nxt is None:
            return None
        rest.remove(nxt)
        row.append(nxt.inputs[0])
        start = dims.add(start, nxt.inputs[0].shape[axis])
    if not dims.same(start, t.shape[axis]):
        return None
    with at(t.scope, t.loc):
        return make(_R["concat"], tuple(row), {"axis": axis}, t.scope, t.loc, (t.shape, t.dtype, None))


def _onto(t: Tensor, inputs: tuple[Tensor, ...]) -> Tensor | None:
    """A ∂ sum with rows put in their places (the gradient of a tied embedding) adds them there, without the zeros."""
    for rest, placed in (inputs, inputs[::-1]):
        if placed.op.name == "segment_sum" and rest.dtype == t.dtype and dims.same_shape(rest.shape, t.shape):
            rows, ids = placed.inputs
            attrs = {"axis": placed.attrs["axis"]}
            return make(_R["index_add"], (rest, ids, rows), attrs, t.scope, t.loc, (t.shape, t.dtype, None))
    return None


def _zero(d: Dim) -> bool:
    return type(d) is int and d == 0


def flatten_matmul(outputs: Outputs) -> Outputs:
    """x [.., T, d] @ w [d, f] as one product of all rows: one GEMM instead of one per leading index."""

    def rule(t: Tensor, inputs: tuple[Tensor, ...]) -> Tensor | None:
        if t.op.name != "matmul" or inputs[0].ndim <= 2 or inputs[1].ndim != 2:
            return None
        x, w = inputs
        rows = dims.size(x.shape[:-1])
        shape = (rows, x.shape[-1])
        flat = make(_R["reshape"], (x,), {"shape": shape}, t.scope, t.loc, (shape, x.dtype, None))
        y = make(t.op, (flat, w), {}, t.scope, t.loc, ((rows, w.shape[-1]), t.dtype, None))
        return make(_R["reshape"], (y,), {"shape": t.shape}, t.scope, t.loc, (t.shape, t.dtype, None))

    return transform(outputs, rule)
