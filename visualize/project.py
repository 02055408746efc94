"""What a picture says of a folded graph: frames for repeated layers, labels, weights, tooltips. Read off the nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tensorgraph.blocks import Fold, Form, Layer, Part, fold, item_name, namesake, nodes_of, parts_of, trait
from tensorgraph.dims import Dim, evaluate, free, mul, show
from tensorgraph.errors import GraphError
from tensorgraph.graph import Graph
from tensorgraph.nn import sum_sizes
from tensorgraph.tensor import Tensor
from tensorgraph.visualize.links import link_for
from tensorgraph.visualize.steps import Step, Steps
from tensorgraph.visualize.view import Block, Box, Weight
from tensorgraph.visualize.words import human, own_name, short_name, span


class Projection:
    """A graph seen at one level: steps as boxes, repeated layers as blocks, counts in numbers if sizes are bound."""

    def __init__(
        self,
        graph: Graph,
        *,
        every: bool = False,
        whole: bool = False,
        unfold: bool = False,
        detail: bool = False,
        binding: Mapping[str, int] | None = None,
        values: Mapping[Any, float] | None = None,
        links: str | Mapping[str, str] | None = None,
        where: bool = True,
    ) -> None:
        self.graph, self.binding, self.links, self.where = graph, dict(binding or {}), links, where
        self.folded: Fold = fold(graph)
        if unfold:
            self.folded = self.folded.flat()
        self.parts = Steps(self.folded, every=every, whole=whole)
        self.steps = self.parts.steps
        self.every, self.detail = every, detail
        self.ids: dict[Step | Tensor, str] = {}
        self.blocks: list[Block] = []
        self.block_of: dict[Tensor, str | None] = {}
        self.runs: dict[str, Part] = {}
        self.labels: dict[Step, str] = {}
        self.owners: dict[Tensor, Step] = {}
        self._values = self._by_node(values or {})
        self._alike: dict[Tensor, dict[Tensor, None]] = {}  # weights of later runs, by that of the first
        self._paths: dict[Tensor, dict[str, None]] = {}
        for node in self.parts.later:
            lead = self.folded.representative[node]
            self._paths.setdefault(lead, {})[node.scope.path] = None
            for mine, x in zip(lead.inputs, node.inputs, strict=True):
                if mine.op.style == "weight" and mine is not x:
                    self._alike.setdefault(mine, {})[x] = None
        self._frames()
        self._names()

    # -- numbers
    def number(self, size: Dim) -> str:
        """A count as people read it: `38.6 M` when all its sizes are bound, else the formula."""
        if type(size) is int or free(size) <= self.binding.keys():
            return human(evaluate(size, self.binding))
        return show(size, self.graph.aliases)

    def shape_text(self, x: Tensor) -> str:
        """`B, T, d`, for a value as it is shown."""
        x = self.parts.resolve(x)
        return self.shape(x.shape) or "scalar"

    def shape(self, sizes: Iterable[Dim]) -> str:
        return ", ".join(show(d, self.graph.aliases) for d in sizes)

    # -- blocks
    def frame_of(self, step: Step) -> str | None:
        """The innermost frame in which a step stands."""
        return self.block_of.get(self.parts.origin.get(step.head, step.head))

    def parent_of(self, frame: str) -> str | None:
        return self.blocks[int(frame[1:])].parent

    def frame_around(self, part: Part) -> str:
        """The frame of a stretch that repeats."""
        return next(name for name, p in self.runs.items() if p.runs[0] == part.runs[0] and p.times == part.times)

    def within(self, frame: str | None, outer: str) -> bool:
        """Whether a frame is `outer` or lies in it."""
        while frame is not None and frame != outer:
            frame = self.parent_of(frame)
        return frame is not None

    def given(self, step: Step, only: bool) -> Tensor | None:
        """The table or range of constants that a step adds to its input, or, if it is its `only` source, reads."""
        nodes = step.nodes if only else [step.head] if step.head.op.style == "elementwise" and not step.whole else []
        xs = [x for n in nodes for x in self.parts.inputs(n) if x in self.parts.free and x.shape]
        return xs[0] if xs else None

    def _frames(self) -> None:
        """A frame for every stretch that repeats, and for towers: layers side by side that hold such stretches."""
        Work = tuple[Sequence[Tensor | Layer], Form | None, str | None]
        stack: list[Work] = [(self.folded.top.items, self.folded.form, None)]
        heads = {self.parts.origin.get(s.head, s.head) for s in self.steps}

        def held(part: Part) -> int:
            return sum(n in heads for n in nodes_of(part.runs[0])) if isinstance(part.runs[0][0], Layer) else 0

        while stack:
            items, form, frame = stack.pop()
            parts = [p for p in self.folded.cut(items, form) if not in_backward(p.runs[0][0])]
            alone: set[Any] = set()  # layers that would be folded, and are asked not to be
            if not self.folded.folds and form is not None:
                alone = {i for p in parts_of(items, form) if p.telling for run in p.runs for i in run}
            towers = [p for p in parts if p.times == 1 and isinstance(p.runs[0][0], Layer) and repeats_inside(p)]
            inner: list[Work] = []
            for part in parts:
                first, within = part.runs[0], frame
                looped = isinstance(first[0], Layer) and first[0].times != 1
                tower = (len(towers) > 1 and part in towers) or (frame is not None and self.detail and held(part) > 1)
                if part.telling or looped or tower or (isinstance(first[0], Layer) and first[0] in alone):
                    within = self._frame(part, frame)
                self.block_of.update((i, within) for i in first if isinstance(i, Tensor))
                layers = [i for i in first if isinstance(i, Layer)]
                if part.body is None or len(first) == 1:
                    inner += [(i.items, i.form, within) for i in layers]
                    continue
                bodies = list(self.folded.cut(first, part.body))
                several = [p for p in bodies if isinstance(p.runs[0][0], Layer)]
                for p in bodies:
                    if p.times > 1 and p not in several:
                        own = self._frame(p, within)
                        self.block_of.update((i, own) for i in p.runs[0] if isinstance(i, Tensor))
                if len(several) == 1:
                    inner += [(i.items, i.form, within) for i in layers]
                for p in several if len(several) > 1 else ():
                    own = self._frame(p, within, several)
                    inner += [(i.items, i.form, own) for i in p.runs[0] if isinstance(i, Layer)]
            stack += reversed(inner)

    def _frame(self, part: Part, parent: str | None, beside: Iterable[Part] = ()) -> str:
        name = f"b{len(self.blocks)}"
        layers = [i for i in part.runs[0] if isinstance(i, Layer)]
        times: Dim = part.times
        if layers and layers[0].times != 1:
            times = mul(times, layers[0].times)
            inner = [i for i in layers[0].items if isinstance(i, Layer)]
            layers = inner if len(inner) == 1 else layers
        scope = namesake(layers[0]).scope if layers else None
        title = "steps" if scope is None else scope.kind or scope.name
        if scope is not None and part.times == 1 and not beside and type(times) is int and scope.name:
            title = (
                scope.path if scope.name.isdigit() else scope.name
            )  # a tower is called by its place, a repeated layer by its class
        if len(layers) > 1 and part.body is not None:
            inside = parts_of(part.runs[0], part.body)
            title = f"({' + '.join(f'{p.times} {item_name(p.runs[0][0])}' for p in inside)})"
        for other in beside:
            mine, theirs = part.runs[0][0], other.runs[0][0]
            if other is part or not isinstance(mine, Layer) or not isinstance(theirs, Layer):
                continue
            if item_name(mine) == item_name(theirs) and mine.form is not theirs.form:
                title = f"{title}, {trait(mine.form, theirs.form)}"
                break
        text = "" if type(times) is int and times == 1 else f"×{show(times, self.graph.aliases)}"
        self.blocks.append(Block(name, title, parent, text, self._share(part, times)))
        self.runs[name] = part
        return name

    def _share(self, part: Part, times: Dim) -> str:
        """`7.1 M each · 85.1 M`: the weights of one run, and of all, each array once."""
        per_run = [dict.fromkeys(self._read(run)) for run in part.runs]
        everywhere = dict.fromkeys(p for run in per_run for p in run)
        if not everywhere:
            return ""
        once = sum_sizes([p.size for p in per_run[0]])
        total = sum_sizes([mul(p.size, p.scope.times) for p in everywhere])
        if type(times) is int and times == 1:
            return self.number(total)
        if part.times > 1 and len(everywhere) == len(per_run[0]):
            return f"{self.number(total)}, stored once, used {part.times} times"
        return f"{self.number(once)} each · {self.number(total)}"

    def _read(self, items: Iterable[Tensor | Layer]) -> Iterable[Tensor]:
        for node in nodes_of(items):
            for x in node.inputs:
                while x.op.style == "loop" and x.inputs:
                    x = x.inputs[0]
                if x.op.style == "weight":
                    yield x

    # -- names
    def _names(self) -> None:
        reading: dict[Any, list[Step]] = {}  # by layer, its steps with weights
        for step in self.steps:
            for p in step.weights:
                self.owners.setdefault(p, step)
            if step.weights:
                reading.setdefault(step.scope, []).append(step)
        for i, step in enumerate(self.steps):
            self.ids[step] = f"s{i}"
            others = [s for s in reading.get(step.scope, ()) if s is not step]
            self.labels[step] = self._label(step, bool(step.weights) and all(_adapts(s, step) for s in others))

    def _label(self, step: Step, alone: bool) -> str:
        head, scope = step.head, step.scope
        if self.every:
            return head.op.title
        if head in self.parts.origin:
            return head.label.replace("_", " ") if head.op.style == "matmul" and head.label else head.op.title
        if step.whole or (step.weights and alone and scope.name and not scope.name.isdigit()):
            if scope.name and not scope.name.isdigit():
                return scope.name
            above = scope.parent.name if scope.name and scope.parent is not None else ""
            return f"{above}.{scope.name}" if above and not above.isdigit() else scope.kind or head.op.title
        if step.weights:
            own = [p for p in step.weights if self.owners[p] is step]
            if not own and head.label:
                return head.label
            names = dict.fromkeys(short_name(p.label) for p in (own or step.weights))
            return ", ".join(names)
        return head.op.title

    # -- boxes
    def box(self, step: Step, block: str | None) -> Box:
        origin = self.parts.origin.get(step.head, step.head)
        weights = self._weights(step)
        return Box(
            self.ids[step],
            self.labels[step],
            "weight" if weights else "plain",
            lines=self._lines(step, origin),
            weights=weights,
            block=block,
            tooltip=self._tooltip(step, origin),
            link=self._link(step, origin),
            value=self._values.get(step),
        )

    def _lines(self, step: Step, origin: Tensor) -> tuple[str, ...]:
        if self.every:
            shape = () if step.head.specs is not None else (self.shape(step.head.shape) or "scalar",)
            return (step.head.label, *shape) if step.head.label else shape
        if origin is not step.head and step is self.parts.of.get(self._first(origin)):
            return _settings(origin)
        return ()

    def _first(self, origin: Tensor) -> Tensor:
        return next(n for n in self.parts.order if self.parts.origin.get(n) is origin)

    def _weights(self, step: Step) -> tuple[Weight, ...]:
        """What a step reads, as one line if all is its own and trained alike, else a line each."""
        read = list(step.weights)
        if not read:
            return ()
        owned = [self.owners[p] is step for p in read]
        trained = {is_trained(p) for p in read if p.attrs.get("counted", True)} or {True}
        name = self.labels[step] if len(read) > 1 or not self.every else short_name(read[0].label)
        if all(owned) and len(trained) == 1:
            shapes: dict[str, int] = {}
            for p in read:
                text = self.shape(p.shape) or "scalar"
                shapes[text] = shapes.get(text, 0) + 1
            if len(shapes) <= 3:
                parts = [f"({s})" + (f" ×{n}" if n > 1 else "") for s, n in shapes.items()]
                count = self.number(sum_sizes([p.size for p in read]))
                return (Weight(name, " + ".join(parts), count, trained.pop()),)
        out = []
        for p, own in zip(read, owned, strict=True):
            tied = None if own else short_name(p.label) if self.every else self.labels[self.owners[p]]
            label = short_name(p.label) if len(read) > 1 else name
            out.append(Weight(label, self.shape(p.shape), self.number(p.size), is_trained(p), tied))
        return tuple(out)

    def _tooltip(self, step: Step, origin: Tensor) -> str:
        ops = list(dict.fromkeys(n.op.name for n in step.nodes if n.op.style != "view")) or [step.head.op.name]
        path = span([origin.scope.path, *self._paths.get(origin, ())])
        about = [", ".join(ops), step.nodes[-1].type_text, path, origin.where if self.where else ""]
        for p in step.weights:
            name = span([p.label, *(x.label for x in self._alike.get(p, ()))])
            about.append(f"{name} {p.type_text} {self.number(p.size)}")
        return " · ".join(part for part in about if part)

    def _link(self, step: Step, origin: Tensor) -> str | None:
        return link_for(self.links, label=self.labels[step], op=origin.op.name, path=origin.scope.path,
                        component=origin.scope.component)  # fmt: skip

    def _by_node(self, values: Mapping[Any, float]) -> dict[Step, float]:
        """For each step, the value of greatest size among its nodes and weights, over all runs of its block."""
        if not values:
            return {}
        byname: dict[str, Tensor] = {t.path: t for t in self.graph.nodes if t.label}
        found: dict[Step, float] = {}
        uses: dict[Tensor, list[Step]] = {}
        lead = self.folded.representative
        for t in self.graph.nodes:
            for x in t.inputs:
                if x.op.style == "weight" and (step := self.parts.of.get(self.parts.resolve(lead.get(t, t)))):
                    uses.setdefault(x, []).append(step)
        for step in self.steps:
            for p in step.weights:
                uses.setdefault(p, []).append(step)
        within = getattr(values, "within", {})
        inner: dict[tuple[Tensor, str], set[Step]] = {}
        for t, origin in self.parts.origin.items():
            if t in self.parts.of:
                inner.setdefault((origin, t.op.name), set()).add(self.parts.of[t])
        for key, value in values.items():
            node = byname.get(key) if isinstance(key, str) else key if isinstance(key, Tensor) else key.__tensor__()
            if node is None:
                raise GraphError("TG388", f"values: nothing in the graph is called {key!r}")
            own = within.get(node, {}).items()
            parts = [(s, r) for op, r in own for s in inner.get((lead.get(node, node), op), ())]
            for step, residual in parts:
                found[step] = max(residual, found.get(step, 0.0))
            if parts:
                continue
            step_of = self.parts.of.get(self.parts.resolve(node))
            for step in uses.get(node, []) + ([step_of] if step_of is not None else []):
                if step not in found or abs(value) > abs(found[step]):
                    found[step] = float(value)
        return found


def _adapts(other: Step, step: Step) -> bool:
    """Whether a step's weights are called by those of another of its layer, as `q_proj.lora_A` is by `q_proj`."""
    (own, *_), (above, *_) = ([".".join(own_name(p.label)) for p in s.weights] for s in (step, other))
    return f".{above}".rpartition(".")[0].endswith(f".{own}")


def is_trained(p: Tensor) -> bool:
    """Whether a parameter is trained; what is stored and not counted (a router's correction) is never called frozen."""
    return bool(p.attrs.get("trained", True)) or not p.attrs.get("counted", True)


def in_backward(item: Tensor | Layer) -> bool:
    """Whether an item belongs to the backward pass."""
    return item.scope is not None and item.scope.backward


def repeats_inside(part: Part) -> bool:
    """Whether some layer below repeats."""
    stack = [part]
    while stack:
        for layer in (i for i in stack.pop().runs[0] if isinstance(i, Layer)):
            if layer.times != 1:
                return True
            for inner in layer.parts():
                if inner.telling:
                    return True
                stack.append(inner)
    return False


def _settings(node: Tensor) -> tuple[str, ...]:
    """Attributes of a node that are not the usual ones: `causal`, `window 512`."""
    usual = {p.name: p.default for p in node.op.attrs}
    out = []
    for name, value in node.kwargs.items():
        if value != usual.get(name) and type(value) in (bool, int):
            out.append(name if value is True else f"{name} {value}")
    return tuple(out)


__all__ = ["Projection"]
