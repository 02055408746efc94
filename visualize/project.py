"""What a picture says of a folded graph: frames for repeated layers, labels, weights, tooltips. Read off the nodes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tensorgraph.blocks import Fold, fold, left_out
from tensorgraph.dims import Dim, evaluate, free, show
from tensorgraph.errors import GraphError
from tensorgraph.graph import Graph, nearest
from tensorgraph.nn import sum_sizes
from tensorgraph.tensor import Tensor
from tensorgraph.visualize.frames import Frames
from tensorgraph.visualize.links import link_for
from tensorgraph.visualize.steps import Step, Steps
from tensorgraph.visualize.uses import Uses
from tensorgraph.visualize.view import Box, Role, Weight
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
        self.every = every
        self.ids: dict[Step | Tensor, str] = {}
        heads = {self.parts.origin.get(s.head, s.head) for s in self.steps}
        self.frames = Frames(self.folded, heads, self.number, graph.aliases, detail)
        self.blocks = self.frames.blocks
        self.labels: dict[Step, str] = {}
        self.uses = Uses(self.parts)
        self._values = self._by_node(values or {})
        self._paths: dict[Tensor, dict[str, None]] = {}
        for node in self.parts.later:
            lead = self.folded.representative[node]
            self._paths.setdefault(lead, {})[node.scope.path] = None
        self.odd = self._odd()
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
        return self.frames.of.get(self.parts.origin.get(step.head, step.head))

    def given(self, step: Step, only: bool) -> Tensor | None:
        """The table or range of constants that a step adds to its input, or, if it is its `only` source, reads."""
        nodes = step.nodes if only else [step.head] if step.head.op.style == "elementwise" and not step.whole else []
        xs = [x for n in nodes for x in self.parts.inputs(n) if x in self.parts.free and x.shape]
        return xs[0] if xs else None

    def _odd(self) -> dict[str, str]:
        """By path, layers that stand beside a repetition of their class, and in what they differ."""
        found: dict[str, str] = {}
        for layer, part in self.folded.repeats() if self.folded.folds else ():
            if part.telling and not (layer.scope is not None and layer.scope.backward):
                for path, why in left_out(layer, part):
                    found.setdefault(path, f"{path} is left out of the repetition: {why}")
        return found

    def why_odd(self, step: Step) -> str:
        """Why the layer of a step is not folded with those beside it; "" if it is, or none is like it."""
        path = step.scope.path
        return next((why for odd, why in self.odd.items() if f"{path}.".startswith(f"{odd}.")), "")

    # -- names
    def _names(self) -> None:
        reading: dict[Any, list[Step]] = {}  # by layer, its steps with weights
        for step in self.steps:
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
            own = [p for p in step.weights if self.uses.owned(step, p)]
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

    def leaf(self, x: Tensor, name: str) -> Box:
        """The box of an output that no step makes: an input, a weight or a constant."""
        role: Role = "weight" if x.op.style == "weight" else "input" if x.op.style == "input" else "constant"
        label = short_name(x.label) if x.label and role == "weight" else x.label or x.op.title
        weights = (Weight(label, self.shape(x.shape) or "scalar", self.number(x.size), is_trained(x)),)
        tip = " · ".join(filter(None, (x.type_text, x.where if self.where else "")))
        return Box(name, label, role, weights=weights if role == "weight" else (), tooltip=tip)

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
        owned = [self.uses.owned(step, p) for p in read]
        sharing = [self.uses.sharing(step, p) for p in read]
        trained = {is_trained(p) for p in read if p.attrs.get("counted", True)} or {True}
        name = self.labels[step] if len(read) > 1 or not self.every else short_name(read[0].label)
        if all(owned) and len(trained) == 1 and len(set(sharing)) == 1:
            shapes: dict[str, int] = {}
            for p in read:
                text = self.shape(p.shape) or "scalar"
                shapes[text] = shapes.get(text, 0) + 1
            if len(shapes) <= 3:
                parts = [f"({s})" + (f" ×{n}" if n > 1 else "") for s, n in shapes.items()]
                count = self.number(sum_sizes([p.size for p in read]))
                count = ", ".join(filter(None, (count, sharing[0])))
                return (Weight(name, " + ".join(parts), count, trained.pop()),)
        names = (
            {s: ", ".join(short_name(p.label) for p in s.weights) for s in self.steps} if self.every else self.labels
        )
        out = []
        for p, own, shared in zip(read, owned, sharing, strict=True):
            tied = None if own else self.uses.tied_to(step, p, names)
            label, count = short_name(p.label) if len(read) > 1 else name, self.number(p.size)
            out.append(
                Weight(label, self.shape(p.shape), f"{count}, {shared}" if shared else count, is_trained(p), tied)
            )
        return tuple(out)

    def _tooltip(self, step: Step, origin: Tensor) -> str:
        ops = list(dict.fromkeys(n.op.name for n in step.nodes if n.op.style != "view")) or [step.head.op.name]
        path = span([origin.scope.path, *self._paths.get(origin, ())])
        about = [", ".join(ops), step.nodes[-1].type_text, path, origin.where if self.where else ""]
        for p in step.weights:
            name = span([p.label, *(x.label for x in self.uses.of[step, p].alike)])
            about.append(f"{name} {p.type_text} {self.number(p.size)}")
        return " · ".join(part for part in (*about, self.why_odd(step)) if part)

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
                near = nearest(key, byname)
                hint = f"did you mean {near}?" if near else None
                raise GraphError("TG388", f"values: nothing in the graph is called {key!r}", hint=hint)
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


def _settings(node: Tensor) -> tuple[str, ...]:
    """Attributes of a node that are not the usual ones: `causal`, `window 512`."""
    usual = {p.name: p.default for p in node.op.attrs}
    out = []
    for name, value in node.kwargs.items():
        if value != usual.get(name) and type(value) in (bool, int):
            out.append(name if value is True else f"{name} {value}")
    return tuple(out)


__all__ = ["Projection"]
