"""A projection -> View: the weight flowchart, one block opened, or every op."""

from __future__ import annotations

import fnmatch
from dataclasses import replace
from typing import Any

from tensorgraph.blocks import Layer
from tensorgraph.errors import GraphError
from tensorgraph.tensor import Tensor
from tensorgraph.visualize.entries import Entries
from tensorgraph.visualize.project import Projection
from tensorgraph.visualize.runs import Carried, Flow, leaving, one_each
from tensorgraph.visualize.steps import Step
from tensorgraph.visualize.towers import rising, side_by_side
from tensorgraph.visualize.view import SEED_LEGEND, Block, Box, Direction, Edge, EdgeKind, Role, View, Weight
from tensorgraph.visualize.words import in_order, span

MOST_BOXES = 1_500  # Graphviz lays out this many in some seconds; beyond, a picture helps nobody


def flowchart(
    seen: Projection, title: str, direction: Direction | None = None, root: str | None = None, force: bool = False
) -> View:
    """The view of all steps, or of those in the block `root` with what lies around it as stubs.

    Raises GraphError[TG389] for more than 1,500 boxes, unless forced.
    """
    return _Chart(seen, root).view(title, direction, force)


def opened(seen: Projection, pattern: str | None) -> str:
    """The frame to open: the first that repeats, or the first whose layers fit a pattern (`layers.*`, `Block`).

    Raises GraphError[TG391] if there is none.
    """
    for block in seen.blocks:
        layers = [i for run in seen.frames.runs[block.id].runs for i in run if isinstance(i, Layer)]
        names = {n for i in layers if i.scope is not None for n in (i.scope.path, i.scope.kind, i.scope.name)}
        if (pattern is None and block.times) or (pattern and any(fnmatch.fnmatchcase(n, pattern) for n in names)):
            return block.id
    what = "repeats" if pattern is None else f"is called {pattern!r}"
    known = ", ".join(dict.fromkeys(b.title for b in seen.blocks)) or "none"
    raise GraphError("TG391", f"no block {what}", notes=[f"blocks: {known}"], hint='level="flowchart" draws any graph')


def check_size(boxes: int, force: bool) -> None:
    """Refuse a picture that would help nobody. Raises GraphError[TG389]."""
    if boxes > MOST_BOXES and not force:
        raise GraphError(
            "TG389",
            f"this picture would have {boxes} boxes, more than {MOST_BOXES}",
            hint="draw it folded, at a coarser level, or one block; force=True draws it all the same",
        )


class _Chart:
    def __init__(self, seen: Projection, root: str | None) -> None:
        self.seen, self.root = seen, root
        self.frame = {step: seen.frame_of(step) for step in seen.steps}
        self.steps = [s for s in seen.steps if root is None or seen.frames.within(self.frame[s], root)]
        self.inside = set(self.steps)
        self.flows = [f for f in seen.parts.flows if f.target in self.inside or f.source in self.inside]
        self.into = Entries(seen, self.steps, self.flows)
        self.boxes: list[Box] = []
        self.edges: dict[tuple[str, str], Edge] = {}
        self.runs: dict[tuple[str, str], dict[str, str]] = {}  # of every edge: notes, and what they are in full
        self.stubs: dict[Any, str] = {}
        self.near: dict[Step, list[Box]] = {}  # inputs that stand just before what reads them
        self.late: list[Box] = []  # where values go that leave the opened block

    def view(self, title: str, direction: Direction | None, force: bool) -> View:
        seen = self.seen
        check_size(len(self.steps), force)
        self._inputs()
        waiting = dict(self.into.ports)
        for step in self.steps:
            for port, name in list(waiting.items()):
                if seen.frames.within(self.frame[step], port[0]):
                    del waiting[port]
                    tip = f"{port[1].type_text}: what each run takes"
                    self.boxes.append(Box(name, self.into.entering(port[1]), block=port[0], tooltip=tip))
            self.boxes += [*self.near.get(step, ()), seen.box(step, self.frame[step])]
        for flow in self.flows:
            self._flow(flow)
        self._carried()
        self._outputs()
        for step in self.steps:
            for owner in seen.uses.beside(step):
                ends = seen.ids[owner], seen.ids[step]
                if owner in self.inside and ends not in self.edges:  # else its box says it
                    self._edge(*ends, "", "tied")
        self._as_above()
        used = {b.block for b in self.boxes}
        blocks = [b for b in seen.blocks if any(u is not None and seen.frames.within(u, b.id) for u in used)]
        if self.root is not None:
            blocks = [b for b in blocks if seen.frames.within(b.id, self.root)]
            blocks = [Block(b.id, b.title, None, b.times, b.note) if b.id == self.root else b for b in blocks]
        edges = list(self.edges.values())
        known = self.boxes, edges, blocks, seen.frames.within
        up = rising(*known) if seen.parts.expand else set()
        if direction is None:
            above = len(seen.frames.path(self.root)) - 1
            deep = (
                max(len(seen.frames.path(b.block)) for b in self.boxes) - above
            )  # beside nested frames wires have room
            direction = "TB" if up or side_by_side(*known) or (self.root and deep > 2) else "LR"
        if direction == "TB" and up:
            down = {b.id for b in self.boxes if b.role != "output"} - up
            edges = [replace(e, up={e.source, e.target} <= up and e.kind != "tied") for e in edges]
            edges = [replace(e, loose=e.source in up and e.target in down) for e in edges]
        legend = SEED_LEGEND if any(b.role == "weight" for b in self.boxes) else ""
        notes = tuple(filter(None, dict.fromkeys(map(seen.why_odd, self.steps))))
        return View(title, tuple(self.boxes), tuple(edges), tuple(blocks), direction, legend, notes=notes)

    def _as_above(self) -> None:
        """A frame that equals one before it, but for its times, becomes a box that says so."""
        seen = self.seen
        shown: dict[Any, Block] = {}
        if not seen.parts.expand or self.root is not None or not seen.folded.folds:
            return
        for block in seen.blocks:
            (first, *rest) = seen.frames.runs[block.id].runs[0]
            boxes = [b for b in self.boxes if b.block is not None and seen.frames.within(b.block, block.id)]
            if rest or not isinstance(first, Layer) or len(boxes) < 4:
                continue
            like = shown.setdefault(first.form, block)
            if like is block:
                continue
            gone = {b.id for b in boxes}
            states = sorted({w.trained for b in boxes for w in b.weights if w.tied_to is None}, reverse=True)
            label = f"{block.title} {block.times}".strip()
            weights = tuple(Weight(label, "", block.note, trained) for trained in states)
            read = [w for b in boxes for w in b.weights]
            if read and not weights:
                weights = (Weight(label, "", "", any(w.trained for w in read), like.title),)
            box = Box(block.id, label, "weight" if weights else "plain",
                      ("as above",), weights, block.parent, f"{block.heading}: the same as {like.heading}")  # fmt: skip
            at = self.boxes.index(boxes[0])
            self.boxes[at : at + 1] = [box]
            self.boxes = [b for b in self.boxes if b.id not in gone]
            edges, self.edges = self.edges.values(), {}
            for e in edges:
                source, target = (block.id if x in gone else x for x in (e.source, e.target))
                if source != target and not (e.kind == "tied" and (source, target) in self.edges):
                    kind = e.kind if e.kind == "tied" or block.id not in (source, target) else "data"
                    self._edge(source, target, e.label, kind, e.note)

    # -- what enters
    def _inputs(self) -> None:
        read = {f.target for f in self.seen.parts.flows}
        for flow in self.flows:
            if flow.target not in self.inside:
                continue
            if isinstance(flow.source, Tensor):
                tip = f"{flow.source.type_text} · {flow.source.where if self.seen.where else ''}".strip(" ·")
                frame = self.into.home(flow)
                near = flow.target if frame is not None else None
                alike = self.into.own.get(flow, [flow])
                label = span(f.source.label for f in alike if isinstance(f.source, Tensor))
                if flow is alike[0]:
                    self._stub((flow.source, frame), label or "input", tip, "input", near, frame)
            elif flow.source not in self.inside:
                carried = not flow.each and any(v is flow.value for _, v in self.into.ports)
                label = f"from {self.seen.labels[flow.source]}" + (", or the layer before" if carried else "")
                self._stub(flow.value, label, flow.value.type_text)
        for step in self.steps:
            given = self.seen.given(step, step not in read)
            if given is not None:
                inside = given.scope is not step.scope and given.scope.name  # a layer that makes a table names it
                text = given.label or inside or (given.op.title if not given.inputs else "constants")
                name = self._stub(given, text, given.type_text, "constant")
                self._edge(name, self.seen.ids[step], self.seen.shape_text(given))

    def _stub(
        self,
        key: Any,
        label: str,
        tooltip: str,
        role: Role = "input",
        near: Step | None = None,
        block: str | None = None,
    ) -> str:
        """The box of what comes from elsewhere: before all, or just before the first step that reads it."""
        if key not in self.stubs:
            self.stubs[key] = f"i{len(self.stubs)}"
            box = Box(self.stubs[key], label, role, block=block, tooltip=tooltip)
            self.near.setdefault(near, []).append(box) if near is not None else self.boxes.append(box)
        return self.stubs[key]

    # -- what passes
    def _edge(
        self, source: str, target: str, label: str, kind: EdgeKind = "data", note: str = "", runs: str = ""
    ) -> None:
        """One line per pair of boxes; several values on it are labelled together, with their `runs` if those differ."""
        have = self.edges.get((source, target))
        if have is not None:
            labels = dict.fromkeys([*have.label.split("; "), label])
            label, kind = "; ".join(x for x in labels if x), have.kind if have.kind != "data" else kind
        said = self.runs.setdefault((source, target), {})
        said[note] = runs or note
        note = note if len(said) == 1 else "; ".join(filter(None, dict.fromkeys(said.values())))
        self.edges[source, target] = Edge(source, target, label, kind, note=note)

    def _flow(self, flow: Flow) -> None:
        seen, label = self.seen, self.seen.shape_text(flow.value)
        if flow in self.into.own:
            if flow is self.into.own[flow][0]:
                self._edge(self.stubs[flow.source, self.into.home(flow)], seen.ids[flow.target], label)
            return
        if flow.target in self.inside:
            if isinstance(flow.source, Tensor):
                start = self.stubs[flow.source, self.into.home(flow)]
            else:
                start = seen.ids[flow.source] if flow.source in self.inside else self.stubs[flow.value]
            for port in self.into.path(flow) if not flow.note else ():
                self._edge(start, self.into.ports[port], label)
                start = self.into.ports[port]
            self._edge(start, seen.ids[flow.target], label, self.into.kinds.get(flow, "data"), flow.note, flow.runs)
        elif isinstance(flow.source, Step):
            carried = self.frame[flow.source] is not None
            key = (flow.value, "out")
            if key not in self.stubs:
                last = flow.note or ("or the layer after" if carried else "")
                text = f"to {seen.labels[flow.target]}" + (f", {last}" if last else "")
                self.stubs[key] = f"o{len(self.stubs)}"
                self.late.append(Box(self.stubs[key], text, "output"))
            self._edge(seen.ids[flow.source], self.stubs[key], label)

    def _carried(self) -> None:
        """What a run gives to the next, unless it is all that the run is about: then its frame says so."""
        import networkx as nx

        found: dict[int, dict[tuple[Step, Tensor, int], list[Carried]]] = {}
        for c in self.seen.parts.carried:
            if c.source in self.inside:
                found.setdefault(c.stretch, {}).setdefault((c.source, c.value, c.behind), []).append(c)
        flow = nx.DiGraph([(f.source, f.target) for f in self.seen.parts.flows])
        flow.add_nodes_from(self.steps)
        for stretch, given in found.items():
            frame = self.seen.frames.around(self.seen.parts.runs.parts[stretch])
            within = {s for s in self.steps if self.seen.frames.within(self.frame[s], frame)}
            ((source, value, behind), ways), *others = given.items()
            if not others and behind == 1 and within <= {source} | nx.ancestors(flow, source):
                continue
            for (source, value, behind), ways in given.items():
                label = "next run" if behind == 1 else f"{behind} runs on"
                if others:
                    label += ": " + ", ".join(dict.fromkeys(self.seen.labels[c.target] for c in ways))
                name = f"c{len(self.boxes)}"
                at = next(i for i, b in enumerate(self.boxes) if b.id == self.seen.ids[source])
                self.boxes.insert(at + 1, Box(name, label, "output", block=frame, tooltip=value.type_text))
                self._edge(self.seen.ids[source], name, self.seen.shape_text(value))

    def _outputs(self) -> None:
        """Boxes for what the graph gives; one for values that are made one by each run of a block."""
        self.boxes += self.late
        parts = self.seen.parts
        given: dict[tuple[Step, Tensor], list[tuple[tuple[int, int] | None, str, Tensor, str]]] = {}
        for name, x in self.seen.graph.outputs.items():
            made = parts.source(x)
            if not isinstance(made, Step) and self.root is None and not x.scope.backward:
                self._unmade(name, parts.resolve(x))
            if isinstance(made, Step) and made in self.inside:
                value, note, only = leaving(parts, x, made)
                given.setdefault((made, value), []).append((only, name, x, note))
        for (made, _), found in given.items():
            found.sort(key=lambda f: f[0] or (0, 0))
            names = [name for _, name, _, _ in found]
            block = self.into.repeated(self.frame[made]) if one_each(f[0] for f in found) and in_order(names) else None
            for _, name, x, note in found[:1] if block else found:
                key = f"out{len(self.boxes)}"
                label = span(names) if block else "output" if name == "out" else name
                self.boxes.insert(self._after(made, block), Box(key, label, "output", block=block, tooltip=x.type_text))
                self._edge(self.seen.ids[made], key, self.seen.shape_text(x), note="" if block else note)

    def _unmade(self, name: str, x: Tensor) -> None:
        """An output that no step makes: a box by itself, or, of an input that steps read as well, one beside it."""
        read = next((self.stubs[key] for key in ((x, None), x) if key in self.stubs), None)
        if read is None:
            self.stubs[x, None] = f"i{len(self.stubs)}"
            self.boxes.append(self.seen.leaf(x, self.stubs[x, None]))
            return
        key = f"out{len(self.boxes)}"
        self.boxes.append(Box(key, "output" if name == "out" else name, "output", tooltip=x.type_text))
        self._edge(read, key, self.seen.shape_text(x))

    def _after(self, step: Step, inside: str | None = None) -> int:
        """The place behind a step, or behind all that share its outermost frame, unless it is to be `inside`."""
        outer = next(iter(self.seen.frames.path(self.frame[step])), None) if inside is None else None
        name = self.seen.ids[step]
        own = (
            i for i, b in enumerate(self.boxes) if b.id == name or (outer and self.seen.frames.within(b.block, outer))
        )
        return max(own) + 1


__all__ = ["MOST_BOXES", "check_size", "flowchart", "opened"]
