"""The backward level: each step and its gradient step (∂), what is saved for it, and where the gradient stops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tensorgraph.tensor import Loc, Scope, Tensor
from tensorgraph.visualize.flowchart import check_size, flowchart
from tensorgraph.visualize.project import Projection
from tensorgraph.visualize.runs import Passage, Place
from tensorgraph.visualize.steps import Step
from tensorgraph.visualize.view import Block, Box, Direction, Edge, View
from tensorgraph.visualize.words import short_name

Key = tuple[Scope, Loc]


def backward(seen: Projection, title: str, direction: Direction | None = None, force: bool = False) -> View:
    """The flowchart with a ∂ box for every step that gradients pass, an edge for every gradient and saved value.

    Raises GraphError[TG389] for a picture of more than 1,500 boxes, unless forced.
    """
    return _Backward(seen).view(title, direction, force)


class _Backward:
    def __init__(self, seen: Projection) -> None:
        self.seen = seen
        # Steps whose gradients are one box: written in one line of one layer.
        self.group: dict[Step, list[Step]] = {step: [step] for step in seen.steps}
        self.of: dict[Key, Step] = {}
        lead = seen.folded.representative
        self.scopes = {n.scope.twin: lead[n].scope.twin for n in reversed(list(lead)) if not n.scope.backward}
        self.places = self._places()
        self.learning = self._learning()
        made = [(n, step) for step in seen.steps for n in step.nodes]
        alike: dict[Key, dict[Step, None]] = {}  # steps with nodes of one line, which may be views alone
        for n, step in sorted(made, key=lambda pair: pair[0].op.style == "view"):  # a view is a step's small change
            key = n.scope.twin, n.loc
            alike.setdefault(key, {})[step] = None
            other = self.of.setdefault(key, step)
            if other is not step and n.op.style != "view":
                self._join(other, step)
        self.box_of: dict[Tensor, Step | Scope] = {}
        self.fed: set[Step | Scope] = set()  # boxes that a gradient reaches within the first run, or from outside
        self.after: set[Step | Scope] = set()  # boxes that a gradient reaches from the next run
        self.sums = {p.scope.twin: p for p in seen.graph.params.values()}  # where gradients of several uses are added
        into: dict[Tensor, set[Step | Scope]] = {}  # the boxes that read a gradient
        for n in reversed(seen.graph.nodes):
            if not n.scope.backward:
                continue
            scope = self.scopes.get(n.scope, n.scope)
            found = self.of.get((scope, n.loc))
            box: Step | Scope = scope if found is None else self.group[found][0]
            near = into.get(n, set()) & {self.group[s][0] for s in alike.get((scope, n.loc), ())}
            self.box_of[n] = next(iter(near)) if len(near) == 1 else box
            for x in n.inputs:
                into.setdefault(x, set()).add(self.box_of[n])
        self.box_of = dict(reversed(self.box_of.items()))

    def _join(self, a: Step, b: Step) -> None:
        if self.group[a] is not self.group[b]:
            both = self.group[a] + [s for s in self.group[b] if s not in self.group[a]]
            for s in both:
                self.group[s] = both

    def _places(self) -> dict[Scope, Place]:
        """For backward scopes, the runs that all forward nodes of the layer lie in."""
        runs, found = self.seen.parts.runs, dict[Scope, Place]()
        for node in self.seen.graph.nodes:
            if not node.scope.backward and not node.op.leaf:
                here = runs.place(node)
                known = found.setdefault(node.scope.twin, here)
                if known != here:
                    found[node.scope.twin] = {i: run for i, run in known.items() if here.get(i) == run}
        return found

    def view(self, title: str, direction: Direction | None, force: bool) -> View:
        seen = self.seen
        forward = flowchart(seen, title, direction, force=force)
        boxes = {b.id: b for b in forward.boxes}
        # A tie needs no line here: the gradients of its uses meet in a box of their own.
        edges = {(e.source, e.target): e for e in forward.edges if e.kind != "tied"}
        ids: dict[Step | Scope, str] = {}
        made: dict[Step | Scope, list[Tensor]] = {}
        for n, owner in self.box_of.items():
            ids.setdefault(owner, f"g{len(ids)}")
            made.setdefault(owner, []).append(n)
        self._gradients(edges, ids)
        kept, read = self._saved()
        back: list[Box] = []
        framed: dict[str, str] = {}
        for owner, nodes in made.items():
            frame = seen.frame_of(owner) if isinstance(owner, Step) else None
            if frame is not None and isinstance(owner, Step):
                frame = framed.setdefault(frame, f"∂{frame}")
            box = self._box(ids[owner], owner, nodes, frame)
            back.append(replace(box, lines=(*box.lines, *self._reads(owner, read.get(owner, {})))))
        for frame in list(framed):
            above = seen.frames.parent(frame)
            while above is not None and above not in framed:
                framed[above] = f"∂{above}"
                above = seen.frames.parent(above)
        for step in seen.steps:
            b = boxes[seen.ids[step]]
            shapes = list(dict.fromkeys(seen.shape_text(x) for x in kept.get(step, ())))
            lines = [f"kept: {' and '.join(shapes) if len(shapes) < 3 else f'{len(kept[step])} values'}"][: len(shapes)]
            lines += [self._why_not(step)] if self.group[step][0] not in ids else []
            tip = [b.tooltip, f"kept: {' and '.join(shapes)}" if shapes else ""]
            boxes[b.id] = replace(b, lines=(*b.lines, *lines), tooltip=" · ".join(filter(None, tip)))
        blocks = list(forward.blocks)
        for block in seen.blocks:
            if block.id in framed:
                parent = framed[block.parent] if block.parent is not None else None
                blocks.append(Block(framed[block.id], f"∂ {block.title}", parent, block.times))
        # Gradients run against the flow, so the ∂ boxes stand in the order in which they are computed.
        order = {id_: i for i, id_ in enumerate(dict.fromkeys(ids[self.box_of[n]] for n in self.box_of))}
        back.sort(key=lambda b: order[b.id])
        everything = (*boxes.values(), *_together(back))
        check_size(len(everything), force)
        legend, way = forward.legend + _LEGEND, direction or "TB"
        return View(title, everything, tuple(edges.values()), tuple(blocks), way, legend, notes=forward.notes)

    def _gradients(self, edges: dict[tuple[str, str], Edge], ids: dict[Step | Scope, str]) -> None:
        """A gradient passes from ∂ box to ∂ box, but not from run to run of the same block."""
        runs = self.seen.parts.runs
        ways: dict[tuple[Step | Scope, Step | Scope], dict[tuple[int, ...], list[Passage]]] = {}
        for n, owner in self.box_of.items():
            for x in n.inputs:
                source = self.box_of.get(x)
                if source is None or source is owner:
                    continue
                if self._carried(n, x):
                    self.after.add(owner)
                    continue
                self.fed.add(owner)
                key = (ids[source], ids[owner])
                edges.setdefault(key, Edge(*key, self.seen.shape_text(x), "gradient"))
                here, there = (self.places.get(y.scope.twin, {}) for y in (x, n))
                last = all(run == runs.times[i] - 1 for i, run in there.items() if i not in here)
                ways.setdefault((source, owner), {}).setdefault((*here, -1, *there), []).append(
                    Passage(here, there, last)
                )
        for (source, owner), alike in ways.items():
            notes = dict.fromkeys(runs.note(passages, back=True) for passages in alike.values())
            key = (ids[source], ids[owner])
            edges[key] = replace(edges[key], note="; ".join(filter(None, notes)))
        self._joined(edges, ids)

    def _joined(self, edges: dict[tuple[str, str], Edge], ids: dict[Step | Scope, str]) -> None:
        """What reaches the last run of a block enters it where in other runs that of the layer after does."""
        onto: dict[str, set[str]] = {}
        for (source, target), e in edges.items():
            if e.kind == "gradient" and not e.note:
                onto.setdefault(source, set()).add(target)
        frames = {ids[o]: self.seen.frame_of(o) for o in ids if isinstance(o, Step)}
        for end in (name for o, name in ids.items() if o in self.after and o not in self.fed):
            for source, targets in onto.items():
                inside = {t for t in targets if frames.get(t) is not None and frames.get(t) == frames.get(end)}
                if frames.get(source) != frames.get(end) and inside and inside <= onto.get(end, set()):
                    first = edges[source, min(inside)]
                    for t in inside:
                        del edges[source, t]
                    edges[source, end] = replace(first, target=end)

    def _carried(self, n: Tensor, x: Tensor) -> bool:
        """Whether x comes from another run of a repeated block that n belongs to."""
        here, there = (self.places.get(y.scope.twin, {}) for y in (n, x))
        return any(there.get(i, run) != run for i, run in here.items())

    def _saved(self) -> tuple[dict[Step, dict[Tensor, None]], dict[Step | Scope, dict[Step, None]]]:
        """The values of each step that some ∂ box reads, which are kept until then; and whose values a ∂ box reads."""
        kept: dict[Step, dict[Tensor, None]] = {}
        read: dict[Step | Scope, dict[Step, None]] = {}
        for n, owner in self.box_of.items():
            for x in n.inputs:
                if x in self.box_of or x.op.leaf or self._carried(n, x):
                    continue
                value = self.seen.parts.resolve(x)
                step = self.seen.parts.of.get(value)
                if step is not None:
                    kept.setdefault(step, {})[value] = None
                    read.setdefault(owner, {})[step] = None
        return kept, read

    def _reads(self, owner: Step | Scope, read: Mapping[Step, None]) -> tuple[str, ...]:
        """`reads its input and output`, or whose values a ∂ box reads."""
        own = self.group[owner] if isinstance(owner, Step) else []
        before = {f.source for f in self.seen.parts.flows if f.target in own}
        said = dict.fromkeys(
            "its output" if s in own else "its input" if s in before else self.seen.labels[s] for s in read
        )
        return (f"reads {', '.join(sorted(said, key=lambda text: not text.startswith('its')))}",) if said else ()

    def _box(self, id_: str, owner: Step | Scope, nodes: list[Tensor], frame: str | None) -> Box:
        if isinstance(owner, Scope):
            parameter = self.sums.get(owner)
            label = (
                f"∂ {short_name(parameter.label) if parameter is not None else owner.name or owner.kind or 'output'}"
            )
            weights: list[Tensor] = []
        else:
            label = "∂ " + ", ".join(dict.fromkeys(self.seen.labels[s] for s in self.group[owner]))
            weights = [p for s in self.group[owner] for p in s.weights]
        trained = [p for p in weights if p.attrs.get("trained", True)]
        lines = ("for its input only: frozen",) if weights and not trained else ()
        if trained:
            lines = ("+ gradient of its weights",)
        if isinstance(owner, Scope) and owner in self.sums:
            lines = ("sum over its uses",)
        if owner in self.after - self.fed:
            lines = (*lines, "from the layer after")
        ops = ", ".join(dict.fromkeys(n.op.name for n in nodes if n.op.style != "view"))
        return Box(
            id_,
            label,
            lines=lines,
            block=frame,
            beside=self.seen.ids[owner] if isinstance(owner, Step) else None,
            tooltip=f"{ops} · {nodes[0].where if self.seen.where else ''}".strip(" ·"),
        )

    def _why_not(self, step: Step) -> str:
        """Why no gradient passes a step, in three words."""
        stop = next((n.op.nodiff for n in step.nodes if n.op.nodiff), None)
        if stop is not None:
            return f"no gradient: {stop}"
        if step.weights and not any(p.attrs.get("trained", True) for p in step.weights):
            return "no gradient: frozen"
        return "passes the gradient on" if step in self.learning else "no gradient needed"

    def _learning(self) -> set[Step]:
        """Steps whose values depend on trained weights."""
        import networkx as nx

        flow = nx.DiGraph([(f.source, f.target) for f in self.seen.parts.flows])
        flow.add_nodes_from(self.seen.steps)
        first = [s for s in self.seen.steps if any(p.attrs.get("trained", True) for p in s.weights)]
        return set(first).union(*(nx.descendants(flow, s) for s in first))


_LEGEND = " · dashed: gradients · kept: stored until the backward pass"


def _together(boxes: list[Box]) -> list[Box]:
    """Boxes of one frame next to each other, in the order of the frame's first."""
    seen: dict[Any, list[Box]] = {}
    for b in boxes:
        seen.setdefault(b.block if b.block is not None else b.id, []).append(b)
    return [b for group in seen.values() for b in group]


__all__ = ["backward"]
