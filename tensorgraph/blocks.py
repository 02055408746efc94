"""Repeated blocks, found by structure: what is equal is kept once, with how often it occurs. The only owner of folding.

A graph is cut at its layer openings (scopes). Each opening is given a `Form`: its nodes in a canonical order, what
they are (op, attributes, shape, dtype) and what they read, every value from outside being a numbered slot. No name,
label or path enters a form. Forms are interned, so two openings are equal iff their forms are the same object. In the
sequence of a form's steps, stretches that repeat as a chain (each takes something from the one before) are folded.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .dims import Dim, show, show_shape
from .graph import Graph
from .tensor import Loop, Scope, Tensor, _freeze

# A reference inside a form: slot number if >= 0, else -1 - (canonical number of a node of the form).
Ref: TypeAlias = int
Source: TypeAlias = "Affine | tuple[Ref, ...]"
MAX_WORK = 400_000_000  # comparisons of kinds, in NumPy, when periods are sought in one sequence


class Kind(NamedTuple):
    """What a node is, apart from what it reads."""

    op: Any
    attrs: tuple[tuple[str, Any], ...]
    types: tuple[Any, ...]

    def __str__(self) -> str:
        return self.op.name


class Slot(NamedTuple):
    """What a form takes from outside: a computed value, a weight (and whether it is trained) or a constant."""

    what: str
    shape: Any
    dtype: Any
    detail: Any = None


class Step(NamedTuple):
    """One node or one inner layer, and what it reads, in the order of its inputs or slots."""

    what: Kind | Form
    refs: tuple[Ref, ...]
    times: Dim = 1  # of a layer that is repeated a symbolic number of times

    @property
    def size(self) -> int:
        return self.what.size if isinstance(self.what, Form) else 1


class Affine(NamedTuple):
    """What run t of a repeated body reads for one slot: `first`, then `start`, `start + step`, `start + 2 step` ..."""

    first: Ref
    start: Ref
    step: int


class Repeat(NamedTuple):
    """A body run `times` times in a row: `period` steps of the form, and a source for each of the body's slots."""

    body: Form
    times: int
    period: int
    sources: tuple[Source, ...]

    @property
    def size(self) -> int:
        return self.body.size * self.times


class Form:
    """The structure of one layer opening (or of one period of a repeated stretch), free of names."""

    def __init__(self, slots: tuple[Slot, ...], steps: tuple[Step, ...]) -> None:
        self.slots, self.steps = slots, steps
        self.size = sum(s.size for s in steps)

    @cached_property
    def folded(self) -> tuple[Step | Repeat, ...]:
        """The steps, with every chain of equal stretches as one `Repeat`."""
        return tuple(_fold_steps(self))

    def __repr__(self) -> str:
        return f"<form of {self.size} nodes, {len(self.slots)} slots>"


class Layer:
    """One opening of a layer in a graph; `items`: its own nodes and inner layers, aligned with `form.steps`."""

    def __init__(self, scope: Scope | None, parent: Layer | None) -> None:
        self.scope, self.parent = scope, parent
        self.depth: int = parent.depth + 1 if parent else 0
        self.items: list[Tensor | Layer] = []
        self.inputs: list[Tensor] = []  # the values taken from outside, by slot
        self.offset = 0  # of its first node in the parent's numbering
        self.form: Form = _EMPTY

    @property
    def times(self) -> Dim:
        """How often it runs within its parent: 1, or a symbol."""
        if self.scope is None or self.scope.loop is None or self.parent is None:
            return 1
        above = self.parent.scope.loop if self.parent.scope is not None else None
        return 1 if self.scope.loop is above else self.scope.loop.count

    def parts(self) -> Iterator[Part]:
        """Its items in order, repeated stretches as one part."""
        return parts_of(self.items, self.form)

    def nodes(self) -> Iterator[Tensor]:
        """All nodes, inner ones included, in canonical order; iterative."""
        stack: list[Iterator[Tensor | Layer]] = [iter(self.items)]
        while stack:
            for item in stack[-1]:
                if isinstance(item, Layer):
                    stack.append(iter(item.items))
                    break
                yield item
            else:
                stack.pop()

    def __repr__(self) -> str:
        return f"<layer {self.scope.path if self.scope else ''}: {self.form.size} nodes>"


class Part(NamedTuple):
    """A stretch of a layer: one item, or a body of items run several times (`runs[0]` stands for all)."""

    runs: tuple[tuple[Tensor | Layer, ...], ...]
    body: Form | None = None

    @property
    def times(self) -> int:
        return len(self.runs)

    @property
    def telling(self) -> bool:
        """Whether a reader is helped by its folding: whole layers repeat, or many nodes; not two products in a row."""
        run = self.runs[0]
        return self.times > 1 and (any(isinstance(i, Layer) for i in run) or (self.times - 1) * len(run) >= 8)


def parts_of(items: Sequence[Tensor | Layer], form: Form) -> Iterator[Part]:
    """Items that are aligned with a form's steps, cut as the form folds."""
    at = 0
    for f in form.folded:
        if isinstance(f, Repeat):
            ends = range(at, at + f.period * f.times, f.period)
            yield Part(tuple(tuple(items[i : i + f.period]) for i in ends), f.body)
            at += f.period * f.times
        else:
            yield Part(((items[at],),))
            at += 1


class Row(NamedTuple):
    """One node of an unfolded graph: what it is, and what it reads (leaf number if >= 0, else -1 - row number)."""

    kind: Kind
    refs: tuple[int, ...]


class Fold:
    """A graph folded: its tree of layers (`top`), the leaves it reads, and its form, which `unfold` expands again."""

    def __init__(self, graph: Graph, top: Layer, folds: bool = True) -> None:
        self.graph, self.top, self.folds = graph, top, folds
        self.leaves: list[Tensor] = top.inputs
        self.form: Form = top.form

    @cached_property
    def representative(self) -> dict[Tensor, Tensor]:
        """For every node of a later run of a repeated block, the node of the first run in the same place."""
        out: dict[Tensor, Tensor] = {}
        for _, part in self.repeats():
            first = list(nodes_of(part.runs[0]))
            for run in part.runs[1:]:
                out.update((node, out.get(lead, lead)) for node, lead in zip(nodes_of(run), first, strict=True))
        return {node: _root(out, node) for node in out}

    @cached_property
    def stretch(self) -> dict[Tensor, int]:
        """For every node of a later run, the number of the outermost repeated stretch (of `repeats`) it lies in."""
        out: dict[Tensor, int] = {}
        for i, (_, part) in enumerate(self.repeats()):
            for run in part.runs[1:]:
                for node in nodes_of(run):
                    out.setdefault(node, i)
        return out

    def repeats(self) -> list[tuple[Layer, Part]]:
        """Every repeated stretch that stands in a first run, with the layer that holds it, outermost first."""
        found: list[tuple[Layer, Part]] = []
        stack: list[tuple[Layer, Sequence[Tensor | Layer], Form]] = [(self.top, self.top.items, self.form)]
        while stack:
            layer, items, form = stack.pop()
            inner: list[tuple[Layer, Sequence[Tensor | Layer], Form]] = []
            for part in self.cut(items, form):
                first = part.runs[0]
                if part.times > 1:
                    found.append((layer, part))
                if part.body is not None and not (len(first) == 1 and isinstance(first[0], Layer)):
                    inner.append((layer, first, part.body))
                else:
                    inner += [(x, x.items, x.form) for x in first if isinstance(x, Layer)]
            stack += reversed(inner)
        return found

    def cut(self, items: Sequence[Tensor | Layer], form: Form | None) -> Iterator[Part]:
        """Items, repeated stretches as one part; each alone if nothing is to be folded."""
        return parts_of(items, form) if self.folds and form is not None else (Part(((i,),)) for i in items)

    def flat(self) -> Fold:
        """The same graph with nothing folded: every node stands for itself."""
        return Fold(self.graph, self.top, folds=False)

    def text(self) -> str:
        """What repeats, a line per stretch: `(5 a + 1 b) ×8`; and what is left out of a repetition, with the reason."""
        lines = []
        said: set[str] = set()
        for layer, part in self.repeats():
            if not part.telling:
                continue
            where = layer.scope.path if layer.scope is not None and layer.scope.path else self.graph.name
            mark = "∂" if layer.scope is not None and layer.scope.backward else ""
            lines.append(f"{mark}{where}: {pattern_text(part)}")
            odd = [(name, why) for name, why in left_out(layer, part) if mark + name not in said]
            lines += [f"    left out: {name}: {why}" for name, why in odd]
            said.update(mark + name for name, _ in odd)
        return "\n".join(lines)


def fold(graph: Graph) -> Fold:
    """The graph with repeated blocks found by structure; near-linear in the number of nodes.

    Equal are ops, attributes, symbolic shapes, dtypes, trainability, inner edges and which outside values are the same.
    """
    return _Folder(graph).run()


def unfold(folded: Fold) -> list[Row]:
    """The rows of the graph that a folded form stands for, from the form alone; row i is node i in canonical order."""
    form = folded.form
    rows: list[Row | None] = [None] * form.size
    stack: list[tuple[Form, int, tuple[int, ...]]] = [(form, 0, tuple(range(len(form.slots))))]
    while stack:
        form, base, given = stack.pop()

        def read(r: Ref, base: int = base, given: tuple[int, ...] = given) -> int:
            return given[r] if r >= 0 else r - base

        at = base
        for f in form.folded:
            if isinstance(f, Repeat):
                for t in range(f.times):
                    stack.append((f.body, at + t * f.body.size, tuple(read(source_at(s, t)) for s in f.sources)))
            elif isinstance(f.what, Form):
                stack.append((f.what, at, tuple(map(read, f.refs))))
            else:
                rows[at] = Row(f.what, tuple(map(read, f.refs)))
            at += f.size
    return [r for r in rows if r is not None]


def source_at(source: Source, t: int) -> Ref:
    """What run number t reads."""
    if isinstance(source, Affine):
        return source.first if t == 0 else source.start + source.step * (t - 1)
    return source[t]


# ----------------------------------------------------------------------------------------------- forms

_EMPTY = Form((), ())


class _Folder:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.top = Layer(None, None)
        self.layers: dict[Scope, Layer] = {}
        self.home: dict[Tensor, Layer] = {}
        self.number: dict[Tensor, int] = {}
        self.kinds: dict[Any, Kind] = {}
        self.forms: dict[Any, Form] = {}
        self.slots: dict[Tensor, Slot] = {}
        self.serial: dict[Tensor | Layer, int] = {}

    def run(self) -> Fold:
        for node in sorted((t for t in self.graph.nodes if not t.op.leaf), key=lambda t: t.serial):
            layer = self._layer(node.scope)
            self.home[node] = layer
            layer.items.append(node)
            above: Layer | None = layer
            while above is not None and above not in self.serial:
                self.serial[above] = node.serial
                if above.parent is not None:
                    above.parent.items.append(above)
                above = above.parent
        pending = sorted([*self.layers.values(), self.top], key=lambda layer: -layer.depth)
        for layer in pending:
            if layer is not self.top and layer not in self.serial:
                continue
            while True:
                order = self._order(layer)
                if order is not None:
                    break
            self._form(layer, order)
        return Fold(self.graph, self.top)

    def _layer(self, scope: Scope) -> Layer:
        """The layer of a scope; that of a backward scope lies in its parent's backward layer."""
        chain = []
        s: Scope | None = scope
        while s is not None and s not in self.layers:
            chain.append(s)
            s = s.parent.twin if s.parent is not None and s.backward else s.parent
        layer = self.layers[s] if s is not None else self.top
        for s in reversed(chain):
            layer = self.layers[s] = Layer(s, layer)
        return layer

    def _inputs(self, item: Tensor | Layer) -> Sequence[Tensor]:
        return item.inputs

    def _owner(self, x: Tensor, layer: Layer) -> Tensor | Layer | None:
        """The item of `layer` that holds x; None if x lies outside."""
        at = self.home.get(x)
        if at is None:
            return None
        if at is layer:
            return x
        while at.depth > layer.depth + 1:
            assert at.parent is not None
            at = at.parent
        return at if at.parent is layer else None

    def _order(self, layer: Layer) -> list[Tensor | Layer] | None:
        """Items in canonical order: depth first from those that no other item reads. None: a layer was dissolved."""
        items = sorted(layer.items, key=lambda i: i.serial if isinstance(i, Tensor) else self.serial[i])
        before: dict[Tensor | Layer, list[Tensor | Layer]] = {}
        read: set[Tensor | Layer] = set()
        for item in items:
            owners = [o for x in item.inputs if (o := self._owner(x, layer)) is not None and o is not item]
            before[item] = owners
            read.update(owners)
        sinks = [i for i in items if i not in read]
        order = _depth_first(sinks, before)
        if len(order) == len(items) and len(sinks) > 1:
            found = self._identities(order, layer)
            sinks.sort(key=found.__getitem__)
            order = _depth_first(sinks, before)
        if len(order) != len(items) or not _sorted_well(order, before):
            self._dissolve(layer, before)
            return None
        return order

    def _identities(self, order: list[Tensor | Layer], layer: Layer) -> dict[Tensor | Layer, int]:
        """A number for each item that depends on all it is computed from, and on nothing else."""
        numbers: dict[Any, int] = {}
        out: dict[Tensor | Layer, int] = {}
        for item in order:
            key: list[Any] = [item.form if isinstance(item, Layer) else self._kind(item)]
            for x in item.inputs:
                owner = self._owner(x, layer)
                if owner is None:
                    key.append(self._slot(x))
                else:
                    key.append((out[owner], self._within(x, owner)))
            out[item] = numbers.setdefault(tuple(key), len(numbers))
        return out

    def _within(self, x: Tensor, item: Tensor | Layer) -> int:
        """The canonical number of x among the nodes of an item."""
        if item is x:
            return 0
        n, at = self.number[x], self.home[x]
        while at is not item:
            n += at.offset
            assert at.parent is not None
            at = at.parent
        return n

    def _dissolve(self, layer: Layer, before: Mapping[Tensor | Layer, list[Tensor | Layer]]) -> None:
        """Inner layers that read each other in a circle cannot stand in a row: their items become the layer's own."""
        import networkx as nx

        g = nx.DiGraph([(o, item) for item, owners in before.items() for o in owners])
        circle = {i for part in nx.strongly_connected_components(g) if len(part) > 1 for i in part}
        gone = [i for i in layer.items if isinstance(i, Layer) and i in circle]
        assert gone, "nodes of one layer depend on each other in a circle"
        layer.items = [i for i in layer.items if i not in gone]
        for inner in gone:
            layer.items += inner.items
            for item in inner.items:
                if isinstance(item, Layer):
                    item.parent = layer
                    self._lift(item)
                else:
                    self.home[item] = layer

    def _lift(self, layer: Layer) -> None:
        stack = [layer]
        while stack:
            at = stack.pop()
            assert at.parent is not None
            at.depth = at.parent.depth + 1
            stack += [i for i in at.items if isinstance(i, Layer)]

    def _form(self, layer: Layer, order: list[Tensor | Layer]) -> None:
        offset = 0
        for item in order:
            if isinstance(item, Layer):
                item.offset = offset
                offset += item.form.size
            else:
                self.number[item] = offset
                offset += 1
        slots: dict[Tensor, int] = {}
        steps = []
        for item in order:
            refs = []
            for x in item.inputs:
                owner = self._owner(x, layer)
                if owner is None:
                    refs.append(slots.setdefault(x, len(slots)))
                elif owner is x:
                    refs.append(-1 - self.number[x])
                else:
                    assert isinstance(owner, Layer)
                    refs.append(-1 - owner.offset - self._within(x, owner))
            if isinstance(item, Layer):
                steps.append(Step(item.form, tuple(refs), item.times))
            else:
                steps.append(Step(self._kind(item), tuple(refs)))
        key = (tuple(map(self._slot, slots)), tuple(steps))
        form = self.forms.get(key)
        if form is None:
            form = self.forms[key] = Form(*key)
        layer.items, layer.inputs, layer.form = order, list(slots), form

    def _kind(self, node: Tensor) -> Kind:
        attrs = tuple((k, _attribute(k, v)) for k, v in node.attrs.items()) if node.attrs else ()
        types = node.specs if node.specs is not None else (node.shape, node.dtype)
        key = (node.op, attrs, types)
        found = self.kinds.get(key)
        if found is None:
            found = self.kinds[key] = Kind(*key)
        return found

    def _slot(self, x: Tensor) -> Slot:
        found = self.slots.get(x)
        if found is None:
            if not x.op.leaf or x.op.style == "input":
                found = Slot("value", x.shape if x.specs is None else x.specs, x.dtype)
            elif x.op.style == "weight":
                found = Slot("weight", x.shape, x.dtype, bool(x.attrs.get("trained", True)))
            else:
                found = Slot("constant", x.shape, x.dtype, tuple((k, _attribute(k, v)) for k, v in x.attrs.items()))
            self.slots[x] = found
        return found


def _attribute(name: str, value: Any) -> Any:
    if isinstance(value, Loop):
        return ("loop", value.count)
    if name == "identity":  # of a random op: (layer path, ordinal); the path is a name
        return ("ordinal", value[1])
    return _freeze(value)


def _depth_first(
    roots: Iterable[Tensor | Layer], before: Mapping[Tensor | Layer, list[Tensor | Layer]]
) -> list[Tensor | Layer]:
    order: list[Tensor | Layer] = []
    seen: set[Tensor | Layer] = set()
    for root in roots:
        if root in seen:
            continue
        seen.add(root)
        stack = [(root, iter(before[root]))]
        while stack:
            item, rest = stack[-1]
            for b in rest:
                if b not in seen:
                    seen.add(b)
                    stack.append((b, iter(before[b])))
                    break
            else:
                stack.pop()
                order.append(item)
    return order


def _sorted_well(order: list[Tensor | Layer], before: Mapping[Tensor | Layer, list[Tensor | Layer]]) -> bool:
    place = {item: i for i, item in enumerate(order)}
    return all(place[b] < i for i, item in enumerate(order) for b in before[item])


def nodes_of(items: Iterable[Tensor | Layer]) -> Iterator[Tensor]:
    """All nodes of some items, in canonical order."""
    for item in items:
        if isinstance(item, Layer):
            yield from item.nodes()
        else:
            yield item


def _root(parent: Mapping[Tensor, Tensor], node: Tensor) -> Tensor:
    while node in parent:
        node = parent[node]
    return node


# --------------------------------------------------------------------------------------------- periods


def _fold_steps(form: Form) -> Iterator[Step | Repeat]:
    """Steps in order; the stretch that saves most is folded first, then what lies left and right of it."""
    numbers: dict[Any, int] = {}
    kinds = np.array([numbers.setdefault((s.what, s.times), len(numbers)) for s in form.steps], np.int64)
    offsets = [0]
    for s in form.steps:
        offsets.append(offsets[-1] + s.size)
    chosen: dict[int, tuple[int, Repeat]] = {}
    pending = [(0, len(form.steps))]
    while pending:
        low, high = pending.pop()
        for start, period, times in _candidates(kinds[low:high]):
            found = _chain(form, offsets, low + start, period, times)
            if found is not None:
                start, repeat = found
                end = start + repeat.period * repeat.times
                chosen[start] = (end, repeat)
                pending += [(low, start), (end, high)]
                break
    i = 0
    while i < len(form.steps):
        if i in chosen:
            i, repeat = chosen[i]
            yield repeat
        else:
            yield form.steps[i]
            i += 1


def _candidates(kinds: Any) -> Iterator[tuple[int, int, int]]:
    """(start, period, times) of stretches whose kinds repeat, those that save most first, short periods before long."""
    n = len(kinds)
    if n < 2:
        return
    found = []
    for period in range(1, min(n // 2, max(64, MAX_WORK // n)) + 1):
        same = kinds[:-period] == kinds[period:]
        if not same.any():
            continue
        edges = np.flatnonzero(np.diff(same.astype(np.int8), prepend=0, append=0))
        for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            if end - start >= period:
                times = (end - start) // period + 1
                found.append((-(times - 1) * period, period, start, times))
        if found and -min(found)[0] >= n - period - 1:
            break
    for _, period, start, times in sorted(found)[:256]:
        yield start, period, times


def _chain(form: Form, offsets: list[int], start: int, period: int, times: int) -> tuple[int, Repeat] | None:
    """The longest stretch in which equal bodies follow each other, each reading something of the one before."""
    views = [_body(form, offsets, start + t * period, period) for t in range(times)]
    best: tuple[int, int] = (0, 1)
    first = 0
    for t in range(1, times + 1):
        if t == times or not _follows(views[t - 1], views[t], offsets, start + (t - 1) * period, period):
            if t - first > best[1]:
                best = (first, t - first)
            first = t
    first, length = best
    if length < 2:
        return None
    at = start + first * period
    runs = views[first : first + length]
    sources = tuple(_source([run[1][s] for run in runs]) for s in range(len(runs[0][1])))
    only = form.steps[at].what
    if period == 1 and isinstance(only, Form):
        body = only
        wide = [form.steps[at + t].refs for t in range(length)]
        sources = tuple(_source([refs[s] for refs in wide]) for s in range(len(wide[0])))
    else:
        body = _body_form(form, offsets, at, period)
    return at, Repeat(body, length, period, sources)


def _body(form: Form, offsets: list[int], at: int, period: int) -> tuple[Any, list[Ref]]:
    """One period seen alone: its steps with references renumbered, and what it takes from outside, by slot."""
    low, high = offsets[at], offsets[at + period]
    outside: dict[Ref, int] = {}
    steps = []
    for s in form.steps[at : at + period]:
        refs = tuple(r + low if r < 0 and low <= -1 - r < high else outside.setdefault(r, len(outside)) for r in s.refs)
        steps.append(Step(s.what, refs, s.times))
    return tuple(steps), list(outside)


def _follows(before: Any, now: Any, offsets: list[int], at: int, period: int) -> bool:
    """Whether a run equals the one before, which begins at step `at`, and reads a node of it."""
    low, high = offsets[at], offsets[at + period]
    return before[0] == now[0] and any(r < 0 and low <= -1 - r < high for r in now[1])


def _source(refs: list[Ref]) -> Source:
    step = refs[2] - refs[1] if len(refs) > 2 else 0
    if all(b - a == step for a, b in itertools.pairwise(refs[1:])):
        return Affine(refs[0], refs[1], step)
    return tuple(refs)


def _body_form(form: Form, offsets: list[int], at: int, period: int) -> Form:
    steps, outside = _body(form, offsets, at, period)
    types = _node_types(form, outside)
    return Form(tuple(types), steps)


def _node_types(form: Form, refs: Iterable[Ref]) -> list[Slot]:
    """The types of references of a form."""
    starts: list[int] = []
    at = 0
    for s in form.steps:
        starts.append(at)
        at += s.size
    out = []
    for r in refs:
        inner, ref = form, r
        while ref < 0:
            place = starts if inner is form else _starts(inner)
            i = int(np.searchsorted(place, -1 - ref, side="right")) - 1
            step = inner.steps[i]
            if isinstance(step.what, Kind):
                types = step.what.types
                shape, dtype = types if len(types) == 2 and not isinstance(types[1], tuple) else (types, None)
                out.append(Slot("value", shape, dtype))
                break
            inner, ref = step.what, ref + place[i]
        else:
            out.append(inner.slots[ref])
    return out


def _starts(form: Form) -> list[int]:
    out, at = [], 0
    for s in form.steps:
        out.append(at)
        at += s.size
    return out


# ----------------------------------------------------------------------------------------------- words


def pattern_text(part: Part) -> str:
    """A repeated stretch in words: `Block ×12`, `(5 Block + Block) ×8`."""
    pieces = []
    if part.body is not None and len(part.runs[0]) > 1:
        for inner in parts_of(part.runs[0], part.body):
            name = " + ".join(map(item_name, inner.runs[0]))
            pieces.append(f"{inner.times} {name}" if inner.times > 1 else name)
        return f"({' + '.join(pieces)}) ×{part.times}"
    return f"{item_name(part.runs[0][0])} ×{part.times}"


def item_name(item: Tensor | Layer) -> str:
    """What an item is called in words: a layer by its class, a node by its op."""
    if isinstance(item, Layer):
        return (item.scope.kind or item.scope.name or "layer") if item.scope is not None else "graph"
    return item.op.name


def left_out(layer: Layer, part: Part) -> list[tuple[str, str]]:
    """Layers beside a repeated stretch that are of the same class but fold with nothing, each with what differs."""
    shown = next((i for i in part.runs[0] if isinstance(i, Layer)), None)
    if shown is None or shown.scope is None:
        return []
    forms = {i.form for i in part.runs[0] if isinstance(i, Layer)}
    out = []
    for item in (p.runs[0][0] for p in layer.parts() if p.times == 1):
        if isinstance(item, Layer) and item.scope is not None and item.scope.kind == shown.scope.kind:
            why = "equal, but no link of the chain" if item.form in forms else difference(item.form, shown.form)
            out.append((item.scope.path, why))
    return out


def difference(a: Form, b: Form) -> str:
    """The first thing in which form `a` differs from form `b`, in words."""
    mine, others = _ops(a), _ops(b)
    if mine != others:
        more = [f"{n} {name} more" for name, n in (mine - others).items()]
        less = [f"{n} {name} less" for name, n in (others - mine).items()]
        return "has " + ", ".join((more + less)[:4])
    stack = [(a, b)]
    while stack:
        a, b = stack.pop()
        if a is b:
            continue
        for s, t in zip(a.slots, b.slots, strict=False):
            if s != t:
                return _slot_difference(s, t)
        for x, y in zip(a.steps, b.steps, strict=False):
            if x == y:
                continue
            if isinstance(x.what, Form) and isinstance(y.what, Form) and x.what is not y.what:
                stack.append((x.what, y.what))
                break
            if isinstance(x.what, Kind) and isinstance(y.what, Kind) and x.what is not y.what:
                return _kind_difference(x.what, y.what)
            if type(x.what) is type(y.what):
                return f"{_called(x.what)} reads other values"
            return f"has {_called(x.what)} where the others have {_called(y.what)}"
        else:
            if len(a.slots) != len(b.slots):
                return f"takes {len(a.slots)} values from outside, the others {len(b.slots)}"
            return f"has {a.size} nodes, the others {b.size}"
    return "no difference"


def _ops(form: Form) -> Counter[str]:
    """How often each op occurs in a form."""
    out: Counter[str] = Counter()
    stack = [form]
    while stack:
        for step in stack.pop().steps:
            if isinstance(step.what, Form):
                stack.append(step.what)
            else:
                out[step.what.op.name] += 1
    return out


def _called(what: Kind | Form) -> str:
    return what.op.name if isinstance(what, Kind) else f"a layer of {what.size} nodes"


def _slot_difference(a: Slot, b: Slot) -> str:
    if a.what != b.what:
        return f"takes a {a.what} where the others take a {b.what}"
    if a.what == "weight" and a.detail != b.detail:
        return f"the weight {_type(a)} is {'trained' if a.detail else 'frozen'}, the others' is not"
    return f"takes {_type(a)}, the others {_type(b)}" if _type(a) != _type(b) else "takes another constant"


def _type(s: Slot) -> str:
    return f"{s.dtype.short}{show_shape(s.shape)}" if s.dtype is not None else "several values"


def _kind_difference(a: Kind, b: Kind) -> str:
    if a.op is not b.op:
        return f"has {a.op.name} where the others have {b.op.name}"
    other = dict(b.attrs)
    for name, value in a.attrs:
        if name not in other or other[name] != value:
            return f"{a.op.name} with {name}={_value(value)}, the others {_value(other.get(name))}"
    return f"{a.op.name} gives another shape or dtype"


def trait(a: Form, b: Form) -> str:
    """What tells form `a` from `b`, short enough for a heading: `window 512`, `no window`, else the difference."""
    if _ops(a) == _ops(b):
        for x, y in zip(_kinds(a), _kinds(b), strict=True):
            other = dict(y.attrs)
            for name, value in x.attrs if x.op is y.op else ():
                if other.get(name) != value:
                    return f"no {name}" if value is None else f"{name} {_value(value)}"
    return difference(a, b).partition(", the others")[0]


def _kinds(form: Form) -> Iterator[Kind]:
    stack = [iter(form.steps)]
    while stack:
        for step in stack[-1]:
            if isinstance(step.what, Form):
                stack.append(iter(step.what.steps))
                break
            yield step.what
        else:
            stack.pop()


def _value(v: Any) -> str:
    if isinstance(v, tuple) and len(v) == 2 and v[0] in ("bool", "float", "DType", "loop", "ordinal"):
        return str(float.fromhex(v[1])) if v[0] == "float" else str(v[1])
    return show(v) if hasattr(v, "free_symbols") else str(v)


__all__ = [
    "Affine", "Fold", "Form", "Kind", "Layer", "Part", "Repeat", "Row", "Slot", "Step", "difference", "fold",
    "left_out", "nodes_of", "parts_of", "pattern_text", "trait", "unfold",
]  # fmt: skip
