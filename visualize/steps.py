"""Nodes -> steps: which nodes of a folded graph make one box, and what flows between boxes. Knows styles, not ops.

A step that carries weights is the node that reads a parameter, with the small change around it: views, casts, bias,
scale. A layer without inner layers is one step if it holds at most one product, norm, activation or the like. What is
computed from constants alone is no step, nor are integers and truth values on their way to others: they go with what
they are computed from (masks, positions, the sorting of tokens by expert). Attention is shown as its definition:
scores, softmax, weighted sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tensorgraph.autodiff import expanded
from tensorgraph.blocks import Fold
from tensorgraph.tensor import Scope, Tensor, topological
from tensorgraph.visualize.runs import Flow, Runs, flows

HEAVY = frozenset({"matmul", "gather", "norm", "activation", "softmax", "attention", "rope", "loss", "cache"})
SMALL = frozenset({"elementwise", "view", "move", "reduce", "constant", "index", "loop", "random"})
UNFOLDED = frozenset({"attention"})  # styles whose definition is shown in place of the op


PRODUCTS = frozenset({"matmul", "gather", "attention"})


def _chooses(n: Tensor) -> bool:
    """Whether a node makes integers of numbers: which of several is greatest."""
    return n.specs is None and n.dtype.kind in "iu" and any(x.specs is None and x.dtype.is_float for x in n.inputs)


class Step:
    """A group of nodes shown as one box: `head` names it; `weights` are the parameters it reads, in order."""

    def __init__(self, head: Tensor, scope: Scope) -> None:
        self.head, self.scope = head, scope
        self.nodes: list[Tensor] = []
        self.weights: dict[Tensor, None] = {}
        self.origin = head  # the node of the graph that the head was expanded from
        self.whole = False  # a layer of its own

    def __repr__(self) -> str:
        return f"<step {self.head.op.name} of {len(self.nodes)} nodes in {self.scope.path}>"


class Steps:
    """The steps of a folded graph in reading order, what flows between them, and where each value comes from.

    Only forward nodes that stand for themselves take part: first runs of repeated blocks. `every`: each node a step.
    """

    def __init__(self, folded: Fold, *, every: bool = False, whole: bool = False) -> None:
        self.folded, self.every = folded, every
        self.expand = not every and not whole
        self.lead = folded.representative
        self.outputs = set(folded.graph.outputs.values())
        self.counts = not any(t.dtype.is_float for t in self.outputs)  # a graph of integers: they are what it is about
        self.alias: dict[Tensor, Tensor] = {}  # a node shown as something else: its expansion, or the input it views
        self.of: dict[Tensor, Step] = {}
        self.weights: dict[Tensor, tuple[Tensor, ...]] = {}  # parameters that a value without data is made of
        self.free: set[Tensor] = set()  # values made of constants alone
        self.origin: dict[Tensor, Tensor] = {}
        self.order: list[Tensor] = []
        self.later: list[Tensor] = []  # nodes of later runs
        self._collect()
        self._sort_out()
        self._group()
        self.steps: list[Step] = list(dict.fromkeys(self.of[n] for n in self.order if n in self.of))
        self.runs = Runs(folded)
        self.flows, self.carried = flows(self)

    # -- which nodes
    def _collect(self) -> None:
        """Forward nodes that do not need a gradient, first runs only, composite ones of some styles expanded."""
        tainted: set[Tensor] = set()
        for node in self.folded.graph.nodes:
            if node.scope.backward or any(x in tainted for x in node.inputs):
                tainted.add(node)
        for node in self.folded.top.nodes():
            if node in tainted:
                continue
            if node in self.lead:
                self.later.append(node)
                continue
            if self.expand and node.op.style in UNFOLDED and node.op.body is not None and node.specs is None:
                made = expanded(node)
                inner = [t for t in topological([made], stop=set(node.inputs)) if not t.op.leaf]
                self.order += inner
                self.origin.update(dict.fromkeys(inner, node))
                self.alias[node] = made
            else:
                self.order.append(node)

    def resolve(self, x: Tensor) -> Tensor:
        """The node that stands for x: of the first run, expanded, and past views of inputs."""
        x = self.lead.get(x, x)
        while x in self.alias:
            x = self.alias[x]
        return x

    def inputs(self, node: Tensor) -> list[Tensor]:
        return [self.resolve(x) for x in node.inputs]

    # -- data, weights, constants
    def is_data(self, x: Tensor) -> bool:
        return not self.is_weight(x) and not self.is_free(x)

    def is_weight(self, x: Tensor) -> bool:
        return x in self.weights or x.op.style == "weight"

    def is_free(self, x: Tensor) -> bool:
        return x in self.free or (x.op.leaf and x.op.style == "constant")

    def parameters(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x,) if x.op.style == "weight" else self.weights.get(x, ())

    def _sort_out(self) -> None:
        """Views, casts and small change of weights alone are part of the step that reads them."""
        if self.every:
            return
        shown = {self.resolve(t) for t in self.folded.graph.outputs.values()}
        for node in self.order:  # what a layer returns to others is its step, even if it is only rows of a table
            shown.update(x for x in self.inputs(node) if x.scope is not node.scope and x.scope.kind)
        for node in self.order:
            xs = self.inputs(node)
            if any(map(self.is_data, xs)) or node.op.effect:
                continue
            read = dict.fromkeys(p for x in xs for p in self.parameters(x))
            if not read:
                self.free.add(node)
            elif node.op.style in SMALL and node not in shown:
                self.weights[node] = tuple(read)

    # -- grouping
    def _group(self) -> None:
        nodes = [n for n in self.order if n not in self.free and n not in self.weights]
        wholes = {} if self.every else self._whole_layers(nodes)
        while True:
            self.of.clear()
            for node in [k for k, v in self.alias.items() if v.op.style == "input"]:
                del self.alias[node]
            self._assign(nodes, wholes)
            circle = self._circle(nodes)
            if not circle:
                return
            wholes = {n: s for n, s in wholes.items() if self.of.get(n) not in circle}

    def _whole_layers(self, nodes: Iterable[Tensor]) -> dict[Tensor, Scope]:
        """Nodes of layers that are one step: without inner layers, and with at most one heavy node.

        A layer that chooses, as a router does, may make scores of its product in any way.
        """
        heavy: dict[Scope, int] = {}
        inner: set[Scope] = set()
        choosing = {n.scope for n in nodes if _chooses(n)}
        for n in nodes:
            weighty = n.op.style in (PRODUCTS if n.scope in choosing else HEAVY)
            heavy[n.scope] = heavy.get(n.scope, 0) + weighty + 2 * (n in self.origin)
            above = n.scope.parent
            while above is not None and above not in inner:
                inner.add(above)
                above = above.parent
        fit = {s for s, count in heavy.items() if count <= 1 and s not in inner and s.kind and s.parent is not None}
        return {n: n.scope for n in nodes if n.scope in fit}

    def _assign(self, nodes: list[Tensor], wholes: Mapping[Tensor, Scope]) -> None:
        by_layer: dict[Scope, Step] = {}
        parts: dict[Tensor, list[Tensor]] = {}  # of each expanded node, its steps' heads
        waiting: dict[Tensor, list[Tensor]] = {}
        for n in nodes:
            xs = self.inputs(n)
            data = list(dict.fromkeys(x for x in xs if self.is_data(x)))
            layer = wholes.get(n)
            origin = self.origin.get(n)
            if layer is not None:
                step = by_layer.get(layer)
                if step is None:
                    step = by_layer[layer] = Step(n, layer)
                    step.whole = True
                elif n.op.style in HEAVY:
                    step.head = step.origin = n
            elif origin is not None and n.op.style not in HEAVY:
                near = [self.of[x] for x in data if x in self.of and self.origin.get(x) is origin]
                if not near:
                    waiting.setdefault(origin, []).append(n)
                    continue
                step = near[-1]
                for early in waiting.pop(origin, ()):
                    self._put(early, step)
            else:
                host = None if self.every or origin is not None else self._host(n, xs, data)
                if host is not None and not isinstance(host, Step):
                    self.alias[n] = host
                    continue
                step = host or Step(n, n.scope)
                if origin is not None:
                    step.origin = origin
                    parts.setdefault(origin, []).append(n)
                    for early in waiting.pop(origin, ()):
                        self._put(early, step)
            self._put(n, step)

    def _put(self, n: Tensor, step: Step) -> None:
        self.of[n] = step
        step.nodes.append(n)
        for x in self.inputs(n):
            step.weights.update(dict.fromkeys(self.parameters(x)))

    def _host(self, n: Tensor, xs: list[Tensor], data: list[Tensor]) -> Step | Tensor | None:
        """The step that a node is small change of; an input leaf, if it only views one."""
        if n.specs is None and not n.dtype.is_float and n not in self.outputs and not self.counts:
            homes = {self.of.get(x, x): None for x in data}
            if len(homes) == 1 and not any(x.dtype.is_float for x in data):
                return next(iter(homes))
        if len(data) != 1 or n.op.style not in ("view", "move", "elementwise", "loop"):
            return None
        (x,) = data
        step = self.of.get(x)
        if n.op.style == "elementwise":
            if len(xs) == 1 and len(n.op.inputs) == 1 and n.op.flops is not None and n.op.flops(n, x, **n.kwargs) != 0:
                return None  # a function of one value is a step; a cast is not
            if step is None or any(i.shape for i in xs if i in self.free):
                return None  # a table that is added is seen; a number is not
            if any(map(self.is_weight, xs)) and not (step.weights and step.scope is n.scope):
                return None
            return step
        if n.op.style == "view" or n.op.style == "loop":
            return step if step is not None else x
        return x if step is None and not x.dtype.is_float else step  # ids and labels that are padded or shifted

    def _circle(self, nodes: Iterable[Tensor]) -> set[Step]:
        """Whole layers whose step would be read by something it reads itself."""
        import networkx as nx

        edges = {(self.of[x], self.of[n]) for n in nodes if n in self.of for x in self.inputs(n) if x in self.of}
        parts = nx.strongly_connected_components(nx.DiGraph([(a, b) for a, b in edges if a is not b]))
        return {s for part in parts if len(part) > 1 for s in part if s.whole}

    def source(self, x: Tensor) -> Step | Tensor | None:
        """The step that makes a value, or the input that it is."""
        x = self.resolve(x)
        return self.of.get(x) or (x if x.op.style == "input" else None)


__all__ = ["Flow", "Step", "Steps"]
