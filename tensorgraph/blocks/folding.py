"""A graph -> its tree of layers, each with a form; and the way back, from a form alone to rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from ..graph import Graph
from ..tensor import Loop, Scope, Tensor, _freeze
from .forms import Form, Kind, Layer, Part, Ref, Repeat, Slot, Step, nodes_of, parts_of, source_at
from .words import left_out, pattern_text


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
        """Items, repeated stretches as one part if that is telling; each alone if nothing is to be folded."""
        for part in parts_of(items, form) if self.folds and form is not None else [Part((tuple(items),))]:
            whole = part.body is not None and (part.telling or part.times == 1)
            yield from [part] if whole else [Part(((i,),)) for run in part.runs for i in run]

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


def _root(parent: Mapping[Tensor, Tensor], node: Tensor) -> Tensor:
    while node in parent:
        node = parent[node]
    return node


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
        # What is made of constants alone and read in several places, as tables of positions, stands in no chain.
        given: dict[Tensor | Layer, int] = {}
        for item in order:
            if all(x.op.style == "constant" or self._owner(x, layer) in given for x in item.inputs) and (
                isinstance(item, Layer) or not item.op.effect
            ):
                given[item] = 0
            for b in before[item]:
                if b in given:
                    given[b] += 1
        shared: set[Tensor | Layer] = set()
        for item in reversed(order):
            if given.get(item, 0) > 1 or item in shared:
                shared.update((item, *before[item]))
        return sorted(order, key=lambda item: item not in shared)

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
