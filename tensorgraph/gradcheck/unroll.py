"""A graph whose blocks repeat a symbolic number of times, with those blocks written out: so that it can be run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..ops.elementwise import add
from ..tensor import Loop, Scope, Tensor, at, make, topological

Index = tuple[tuple[Loop, int], ...]  # which run of each enclosing block, outermost first
Key = tuple[Tensor, Index]


def has_loops(nodes: Iterable[Tensor]) -> bool:
    return any(t.scope.loop is not None or isinstance(t.attrs.get("loop"), Loop) for t in nodes)


def chain(loop: Loop | None) -> list[Loop]:
    """The loops around a node, outermost first."""
    out: list[Loop] = []
    while loop is not None:
        out.insert(0, loop)
        loop = loop.outer
    return out


class Unroller:
    """Copies of nodes with every repeated block run `runs` times; parameters of a block become one per run.

    h(0) = x, h(i + 1) = block(h(i)), the result is h(runs); backward the runs go from last to first, and `sum_each`
    adds them up.
    """

    def __init__(self, outputs: Iterable[Tensor], runs: int = 2) -> None:
        self.runs = runs
        self.made: dict[Key, Tensor] = {}
        self.scopes: dict[tuple[Scope, Index], Scope] = {}
        self.ends = _ends(topological(outputs))

    def copies(self, t: Tensor) -> list[Tensor]:
        """t for every run of the blocks it lies in."""
        indices: list[Index] = [()]
        for loop in chain(t.scope.loop):
            indices = [(*i, (loop, k)) for i in indices for k in range(self.runs)]
        return [self.value(t, i) for i in indices]

    def value(self, t: Tensor, index: Index = ()) -> Tensor:
        """t as it stands in one run; iterative."""
        stack: list[Key] = [(t, index)]
        while stack:
            key = stack[-1]
            if key in self.made:
                stack.pop()
                continue
            missing = [k for k in self.reads(*key) if k not in self.made]
            if missing:
                stack += missing
            else:
                self.made[key] = self.copy(*key, [self.made[k] for k in self.reads(*key)])
                stack.pop()
        return self.made[t, index]

    def reads(self, t: Tensor, index: Index) -> list[Key]:
        loop = t.attrs.get("loop")
        if not isinstance(loop, Loop):
            return [(x, _within(x, index)) for x in t.inputs]
        (x,) = t.inputs
        first, last, step = (self.runs - 1, 0, 1) if t.scope.backward else (0, self.runs - 1, -1)
        if t.op.name == "enter":
            run = dict(index)[loop]
            if run == first:
                return [(x, _within(x, index))]
            end = self.ends[t]
            return [(end, _within(end, _at(index, loop, run + step)))]
        if t.op.name == "exit":
            return [(x, _within(x, _at(index, loop, last)))]
        if t.op.name == "each":
            return [(x, _within(x, index))]
        return [(x, _within(x, _at(index, loop, k))) for k in range(self.runs)]  # sum_each

    def copy(self, t: Tensor, index: Index, inputs: list[Tensor]) -> Tensor:
        if isinstance(t.attrs.get("loop"), Loop):
            total = inputs[0]
            with at(self.scope(t.scope, index), t.loc):
                for x in inputs[1:]:
                    total = add(total, x)
            return total
        if not index and t.scope.loop is None and all(a is b for a, b in zip(t.inputs, inputs, strict=True)):
            return t
        name = t.label + "".join(f"[{i}]" for _, i in index) if t.label else ""
        scope = self.scope(t.scope, index)
        if not t.inputs and t.op.name in ("input", "param"):
            return Tensor(t.op, (), dict(t.attrs), t.shape, t.dtype, scope, t.loc, name)
        attrs = dict(t.attrs)
        if "identity" in attrs:
            layer, *rest = attrs["identity"]
            attrs["identity"] = (layer + "".join(f"[{i}]" for _, i in index), *rest)
        new = make(t.op, tuple(inputs), attrs, scope, t.loc, (t.shape, t.dtype, t.specs))
        if name:
            new.label = name
        return new

    def scope(self, s: Scope, index: Index) -> Scope:
        """The scope outside any loop that stands for s in one run."""
        if s.loop is None and not index:
            return s
        key = (s, index)
        if key not in self.scopes:
            new = Scope.__new__(Scope)
            for slot in ("name", "parent", "kind", "path", "component", "backward", "key", "call"):
                setattr(new, slot, getattr(s, slot))
            new.loop, new.times, new._twin, new._ordinal, new._calls = None, 1, None, 0, {}
            self.scopes[key] = new
        return self.scopes[key]


def _at(index: Index, loop: Loop, run: int) -> Index:
    rest = tuple(p for p in index if p[0] is not loop)
    return (*rest, (loop, run))


def _within(x: Tensor, index: Index) -> Index:
    """The part of an index that concerns the blocks x lies in."""
    have = dict(index)
    return tuple((loop, have[loop]) for loop in chain(x.scope.loop))


def _ends(order: list[Tensor]) -> dict[Tensor, Tensor]:
    """For each enter, what its block returns: the value that the exit made of it takes."""
    within: dict[Tensor, set[Tensor]] = {}
    out: dict[Tensor, Tensor] = {}
    for t in order:
        loop = t.attrs.get("loop")
        mine: set[Tensor] = set().union(*[within.get(x, set()) for x in t.inputs]) if t.inputs else set()
        if isinstance(loop, Loop) and t.op.name == "enter":
            mine = {*mine, t}
        elif isinstance(loop, Loop) and t.op.name == "exit":
            for e in [e for e in mine if e.attrs["loop"] is loop and e.scope.backward == t.scope.backward]:
                out[e] = t.inputs[0]
            mine = {e for e in mine if e.attrs["loop"] is not loop}
        within[t] = mine
    return out


def unrolled(graph: Any, runs: int = 2) -> Any:
    """A Graph with every repeated block written out `runs` times."""
    unroller = Unroller(graph.outputs.values(), runs)
    return type(graph)({k: unroller.value(y) for k, y in graph.outputs.items()}, name=graph.name, aliases=graph.aliases)
