"""What a graph costs, read off its nodes: parameters, FLOPs forward and backward, bytes held. Sizes may be symbols.

Every sum counts equal terms first and makes one expression at the end. Products are counted in the definitions of
composite ops, not by their formulas; what the backward pass computes again is told apart from what it must compute.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

from . import dtypes
from .autodiff import expanded
from .dims import Dim, canon, div, evaluate, free, mul, same, show, size, substitute
from .dims import binding as to_binding
from .dtypes import DType
from .errors import SizeError
from .graph import Graph
from .tensor import PICK, Loop, Tensor, _freeze, as_tensor, picks, topological

PRODUCTS = frozenset({"matmul"})  # styles whose FLOPs are counted as products
OPTIMISERS = {"none": 0, "sgd": 0, "momentum": 1, "adam": 2, "adamw": 2}  # float32 arrays kept per trained parameter


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one pass: all, and those of products (two per multiply-add)."""

    all: Dim
    products: Dim


@dataclass(frozen=True)
class Cost:
    """What a graph costs. Each entry is a size: an int, or a formula in the graph's symbols; `bind` makes ints.

    `parameters`: total, trained, frozen, each array once, and of experts those that one token uses; `components` sum to
    the total.
    `backward` includes `recomputed`: forward values that the backward pass makes again instead of keeping them.
    `bytes`: weights, gradients, optimiser, activations (forward values that the backward pass reads), kv_cache
    (keys and values of what is decoded, and of the images that it attends to).
    """

    parameters: Mapping[str, Dim]
    components: Mapping[str, Dim]
    forward: Flops
    backward: Flops
    recomputed: Flops
    bytes: Mapping[str, Dim]
    uncounted: tuple[str, ...] = ()
    aliases: Mapping[str, Dim] = field(default_factory=dict)

    def bind(self, binding: Any = None, *, partly: bool = False, **sizes: Any) -> Cost:
        """The same with numbers: `cost.bind("B=1,T=2048")`; `partly`: what has other sizes, too, stays a formula.

        Raises SizeError[TG007] for a size without value, unless `partly`.
        """
        values = to_binding(binding, sizes)

        def number(d: Dim) -> Dim:
            return substitute(d, values) if partly and not free(d) <= values.keys() else evaluate(d, values)

        def flops(f: Flops) -> Flops:
            return Flops(number(f.all), number(f.products))

        return replace(
            self,
            parameters={k: number(v) for k, v in self.parameters.items()},
            components={k: number(v) for k, v in self.components.items()},
            forward=flops(self.forward),
            backward=flops(self.backward),
            recomputed=flops(self.recomputed),
            bytes={k: number(v) for k, v in self.bytes.items()},
        )

    def rows(self) -> list[tuple[str, str, Dim]]:
        """(group, what, size) of every figure, in reading order."""
        out: list[tuple[str, str, Dim]] = [("parameters", k, v) for k, v in self.parameters.items()]
        out += [("components", k, v) for k, v in self.components.items()]
        for name in ("forward", "backward", "recomputed"):
            f: Flops = getattr(self, name)
            out += [("FLOPs", name, f.all), ("FLOPs", f"{name}, products", f.products)]
        return out + [("bytes", k, v) for k, v in self.bytes.items()]

    def to_dict(self) -> dict[str, dict[str, int | str]]:
        """For JSON: ints where sizes are numbers, else formulas as text."""
        out: dict[str, dict[str, int | str]] = {}
        for group, what, d in self.rows():
            out.setdefault(group, {})[what] = d if type(d) is int else show(d, self.aliases)
        return out

    def __str__(self) -> str:
        rows = [(g, w, f"{d:,}" if type(d) is int else show(d, self.aliases)) for g, w, d in self.rows()]
        wide = [max(len(r[i]) for r in rows) for i in range(3)]
        right = all(type(d) is int for _, _, d in self.rows())
        lines, above = [], ""
        for g, w, d in rows:
            lines.append(f"{g if g != above else '':<{wide[0]}}  {w:<{wide[1]}}  {d:>{wide[2]}}" if right
                         else f"{g if g != above else '':<{wide[0]}}  {w:<{wide[1]}}  {d}")  # fmt: skip
            above = g
        if self.uncounted:
            lines.append(f"not counted: {', '.join(self.uncounted)}")
        return "\n".join(lines)


def cost(
    graph: Graph,
    binding: Any = None,
    *,
    dtype: Any = None,
    optimiser: str = "adamw",
    parameters: Iterable[Any] | None = None,
) -> Cost:
    """What a graph costs before any pass; `binding` makes numbers of it, `dtype` replaces that of all floats.

    `parameters`: all those of the model, where the graph does not read every one; they are counted and stored.

    Backward figures are those of the graph's own ∂ nodes: a graph without gradients has none, a frozen part costs
    what flows through it. Raises SizeError[TG013] for an unknown optimiser.
    """
    if optimiser not in OPTIMISERS:
        raise SizeError("TG013", f"unknown optimiser {optimiser!r}", hint=f"one of: {', '.join(OPTIMISERS)}")
    kind = dtypes.dtype(dtype) if dtype is not None else None
    forward, backward, again, uncounted = _flops(graph)
    stored = [as_tensor(p) for p in parameters] if parameters is not None else list(graph.params.values())
    counts, components = _parameters(stored)
    found = Cost(
        counts,
        components,
        forward,
        backward,
        again,
        _bytes(graph, stored, kind, OPTIMISERS[optimiser]),
        tuple(sorted(uncounted)),
        graph.aliases,
    )
    return found if binding is None else found.bind(binding)


class Tally:
    """A sum of sizes that are added one by one: equal ones are counted, and added up once."""

    def __init__(self) -> None:
        self.counts: dict[Dim, int] = {}

    def add(self, term: Dim, times: int = 1) -> None:
        self.counts[term] = self.counts.get(term, 0) + times

    def total(self) -> Dim:
        """The sum, one expression."""
        whole = sum(n * d for d, n in self.counts.items() if type(d) is int)
        rest = [n * cast("Any", d) for d, n in self.counts.items() if type(d) is not int]
        if not rest:
            return whole
        import sympy

        return canon(sympy.Add(whole, *rest))


# ------------------------------------------------------------------------------------------ parameters


def active_size(p: Tensor) -> Dim | None:
    """How many numbers of a parameter one token uses, all repetitions together; None: all."""
    used = p.attrs.get("used")
    return None if used is None else mul(div(mul(p.size, p.scope.times), p.shape[0]), used)


def _parameters(stored: Iterable[Tensor]) -> tuple[dict[str, Dim], dict[str, Dim]]:
    total, trained, frozen, active = Tally(), Tally(), Tally(), Tally()
    components: dict[str, Tally] = {}
    several = False
    for p in stored:
        if not p.attrs.get("counted", True):
            continue
        count, part = mul(p.size, p.scope.times), active_size(p)
        total.add(count)
        active.add(count if part is None else part)
        several = several or part is not None
        (trained if p.attrs.get("trained", True) else frozen).add(count)
        components.setdefault(p.attrs.get("component") or "other", Tally()).add(count)
    sums: dict[str, Dim] = {"total": total.total(), "trained": trained.total(), "frozen": frozen.total()}
    if several:
        sums["active per token"] = active.total()
    return sums, {name: t.total() for name, t in sorted(components.items())}


# ----------------------------------------------------------------------------------------------- FLOPs


class _Work:
    """FLOPs of nodes and of definitions, kept by op, types and attributes: blocks repeat."""

    def __init__(self) -> None:
        self.known: dict[Any, tuple[Dim, tuple[tuple[Dim, int], ...]]] = {}
        self.uncounted: set[str] = set()

    def of(self, node: Tensor) -> tuple[Dim, tuple[tuple[Dim, int], ...]]:
        """All FLOPs of one node, and those of the products in it, by size."""
        types = tuple((x.shape, x.dtype, x.specs) for x in node.inputs)
        key = (node.op, types, tuple((k, _freeze(v)) for k, v in node.attrs.items() if not isinstance(v, Loop)))
        found = self.known.get(key)
        if found is None:
            found = self.known[key] = self._count(node)
        return found

    def _count(self, node: Tensor) -> tuple[Dim, tuple[tuple[Dim, int], ...]]:
        own = _formula(node)
        if node.op.style in PRODUCTS:
            return own if own is not None else 0, ((own, 1),) if own is not None else ()
        if node.op.body is None:
            if own is None:
                self.uncounted.add(node.op.name)
            return own if own is not None else 0, ()
        products, everything = Tally(), Tally()
        stack = _inside(node)
        while stack:
            inner = stack.pop()
            part = _formula(inner)
            if inner.op.style in PRODUCTS and part is not None:
                products.add(part)
            elif inner.op.body is not None:
                stack += _inside(inner)
                continue
            if part is not None:
                everything.add(part)
        return own if own is not None else everything.total(), tuple(products.counts.items())


def _formula(node: Tensor) -> Dim | None:
    if node.op.flops is None:
        return None
    return cast("Dim", node.op.flops(picks(node), *node.args(), **node.kwargs))


def _inside(node: Tensor) -> list[Tensor]:
    """The nodes of a composite op's definition."""
    made = expanded(node)
    several = made if isinstance(made, (tuple, list)) else [made]
    return [t for t in topological(several, stop=set(node.inputs)) if not t.op.leaf]


def _flops(graph: Graph) -> tuple[Flops, Flops, Flops, set[str]]:
    work = _Work()
    sums = {name: (Tally(), Tally()) for name in ("forward", "backward", "recomputed")}
    again = _recomputed(graph)
    for node in graph.nodes:
        if node.op.leaf or node.op is PICK or node.scope.kind == "update":
            continue
        total, products = work.of(node)
        names = ["backward" if node.scope.backward else "forward"] + (["recomputed"] if node in again else [])
        for name in names:
            everything, product = sums[name]
            everything.add(mul(total, node.scope.times))
            for p, n in products:
                product.add(mul(p, node.scope.times), n)
    made = {name: Flops(a.total(), b.total()) for name, (a, b) in sums.items()}
    return made["forward"], made["backward"], made["recomputed"], work.uncounted


def _recomputed(graph: Graph) -> set[Tensor]:
    """∂ nodes that compute a value which the forward pass has computed, as a node or inside a composite op.

    Two values are the same if they are the same op with the same attributes on the same values.
    """
    numbers: dict[Any, int] = {}
    value: dict[Tensor, int] = {}
    known: set[int] = set()

    def number(node: Tensor) -> int:
        if not node.inputs and node.op.leaf:
            key: Any = ("leaf", id(node))
        elif node.op.effect and "identity" not in node.attrs:
            key = ("effect", id(node))
        else:
            attrs = tuple((k, id(v) if isinstance(v, Loop) else _freeze(v)) for k, v in node.attrs.items())
            key = (node.op, attrs, node.scope.loop, *[value[x] for x in node.inputs])
        return numbers.setdefault(key, len(numbers))

    for node in graph.nodes:
        value[node] = mine = number(node)
        if node.scope.backward:
            continue
        known.add(mine)
        if node.op.body is not None and node.op.vjp_fn is None:
            for inner in _inside(node):
                for x in inner.inputs:
                    if x not in value:
                        value[x] = number(x)
                value[inner] = number(inner)
                known.add(value[inner])
    # Only now: a ∂ node may stand before the forward node whose value it computes.
    backward = (t for t in graph.nodes if t.scope.backward and not t.op.leaf and t.op.style != "view")
    return {t for t in backward if value[t] in known}


# ----------------------------------------------------------------------------------------------- bytes


def _bytes(graph: Graph, stored: Iterable[Tensor], kind: DType | None, copies: int) -> dict[str, Dim]:
    def width(t: DType) -> int:
        return kind.size if kind is not None and t.is_float else t.size

    sums = {name: Tally() for name in ("weights", "gradients", "optimiser", "activations", "kv_cache")}
    has_gradients = any(t.scope.backward for t in graph.nodes)
    for p in stored:
        sums["weights"].add(mul(width(p.dtype), mul(p.size, p.scope.times)))
    for p in graph.params.values():
        count = mul(p.size, p.scope.times)
        if p.attrs.get("trained", True) and has_gradients:
            sums["gradients"].add(mul(width(p.dtype), count))
            if copies:
                sums["optimiser"].add(mul(4 * copies, count))
    for t in _kept(graph):
        for shape, dtype in t.specs or ((t.shape, t.dtype),):
            sums["activations"].add(mul(mul(width(dtype), size(shape)), t.scope.times))
    cached = [t for t in graph.nodes if (t.label or "").startswith("cached.") and not t.scope.backward]
    for t in cached:  # what a layer says it holds instead of keys and values
        sums["kv_cache"].add(mul(mul(width(t.dtype), t.size), t.scope.times))
    told = {t.scope.path for t in cached}
    attentions = [t for t in graph.nodes if t.op.style == "attention" and not t.scope.backward]
    positions = {t.inputs[0].shape[-2] for t in attentions if t.kwargs.get("causal")}  # of what is decoded
    for t in attentions:
        q, k, v = t.inputs[:3]
        across = q.shape[-2] in positions and not same(q.shape[-2], k.shape[-2])  # to an image, the same at each step
        if (t.kwargs.get("causal") or across) and t.scope.path not in told:
            for x in (k, v):
                sums["kv_cache"].add(mul(mul(width(x.dtype), x.size), t.scope.times))
    return {name: t.total() for name, t in sums.items()}


def _kept(graph: Graph) -> list[Tensor]:
    """Forward values that ∂ nodes read, each storage once: views are what they view. Neither leaves nor what is made
    of constants alone, such as masks and tables of positions, are counted."""
    found: dict[Tensor, None] = {}
    data: set[Tensor] = set()
    for node in graph.nodes:
        if node.op.style in ("input", "weight") or any(x in data for x in node.inputs):
            data.add(node)
        if not node.scope.backward:
            continue
        for x in node.inputs:
            while x.inputs and x.op.view:
                x = x.inputs[0]
            if not x.scope.backward and not x.op.leaf and x in data:
                found[x] = None
    return list(found)


__all__ = ["Cost", "Flops", "active_size", "cost"]
