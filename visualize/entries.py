"""How values enter frames: past a whole computation, through a box of their own, or each run its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from tensorgraph.tensor import Tensor
from tensorgraph.visualize.project import Projection
from tensorgraph.visualize.runs import Flow, one_each
from tensorgraph.visualize.steps import Step
from tensorgraph.visualize.view import EdgeKind
from tensorgraph.visualize.words import in_order

Port = tuple[str, Tensor]  # a frame, and the value that enters it more than once


class Entries:
    """What is known of flows into some steps: `kinds`, the `ports` through which they lead, inputs that runs `own`."""

    def __init__(self, seen: Projection, steps: Sequence[Step], flows: Sequence[Flow]) -> None:
        self.seen, self.steps, self.flows = seen, steps, flows
        self.frame = {step: seen.frame_of(step) for step in seen.steps}
        self.kinds = self._kinds()
        self.ports = self._ports()
        self.own = self._own()
        self.towers = self._towers()

    def home(self, flow: Flow) -> str | None:
        """The frame in which an input stands, beside what reads it: one whose every run reads it or one like it, or
        the tower in which several steps do."""
        if flow.each or flow in self.own:
            return self.repeated(self.frame[flow.target])
        return self.towers.get(flow.source) if isinstance(flow.source, Tensor) else None

    def repeated(self, frame: str | None) -> str | None:
        """The frame around one that repeats, or itself."""
        while frame is not None and self.seen.frames.runs[frame].times == 1:
            frame = self.seen.frames.parent(frame)
        return frame

    def _towers(self) -> dict[Tensor, str]:
        """Inputs that one tower reads before and behind what it repeats: from outside a line would follow its frame."""
        readers: dict[Tensor, dict[Step, None]] = {}
        for f in self.flows:
            if isinstance(f.source, Tensor) and not f.each and f not in self.own:
                readers.setdefault(f.source, {})[f.target] = None
        out: dict[Tensor, str] = {}
        for x, steps in readers.items():
            around = {next(iter(self.seen.frames.path(self.frame[s])), None) for s in steps}
            frame = around.pop()
            if around or frame is None or self.seen.frames.runs[frame].times != 1:
                continue
            places = [i for i, s in enumerate(self.steps) if s in steps]
            if any(self.frame[s] != frame for s in self.steps[places[0] : places[-1]]):
                out[x] = frame
        return out

    def _own(self) -> dict[Flow, list[Flow]]:
        """Inputs of which each run of a block reads one, as of a cache: all of them, for each."""
        found: dict[tuple[Step, str], list[Flow]] = {}
        times = Counter(f.source for f in self.flows)
        for f in self.flows:
            if isinstance(f.source, Tensor) and f.only and times[f.source] == 1:
                found.setdefault((f.target, f.value.type_text), []).append(f)
        out: dict[Flow, list[Flow]] = {}
        for alike in found.values():
            alike.sort(key=lambda f: f.only or (0, 0))
            names = [f.source.label for f in alike if isinstance(f.source, Tensor)]
            if one_each(f.only for f in alike) and in_order(names):
                out.update(dict.fromkeys(alike, alike))
        return out

    def _kinds(self) -> dict[Flow, EdgeKind]:
        """An addend that leads past the whole computation of the other one is a residual connection.

        A value with a note is another one than that on which the computation goes on.
        """
        import networkx as nx

        into: dict[Step, list[Flow]] = {}
        for f in self.seen.parts.flows:
            into.setdefault(f.target, []).append(f)
        g = nx.DiGraph([(f.source, f.target) for f in self.seen.parts.flows if not f.note])
        g.add_nodes_from(end for f in self.seen.parts.flows for end in (f.source, f.target))
        out: dict[Flow, EdgeKind] = {}
        for step in self.steps:
            arriving = into.get(step, ())
            if step.head.op.ufunc != "add" or len(arriving) < 2:
                continue
            for f in arriving:
                others = {o.source for o in arriving if o.source is not f.source}
                if not f.note and any(nx.has_path(g, f.source, o) for o in others):
                    out[f] = "residual"
        return out

    def _ports(self) -> dict[Port, str]:
        """A value that enters a frame several times enters it once, through a box of its own.

        It is read there as input and as residual, or by several steps of every run, as what attention across reads.
        """
        out: dict[Port, str] = {}
        across: dict[Port, set[Step]] = {}
        for flow in self.flows:
            frame = self.frame.get(flow.target)
            if flow.each and isinstance(flow.source, Step) and frame is not None and not self.seen.every:
                across.setdefault((frame, flow.value), set()).add(flow.target)
        for port, readers in across.items():
            if len(readers) > 1:
                out[port] = f"x{len(out)}"
        for flow in self.kinds:
            frame = self.frame.get(flow.target)
            if frame is None or self.seen.every:
                continue
            source = self.frame.get(flow.source) if isinstance(flow.source, Step) else None
            if not self.seen.frames.within(source, frame):
                out.setdefault((frame, flow.value), f"x{len(out)}")
        return out

    def entering(self, value: Tensor) -> str:
        """What a value is called that enters a frame: x, or, if all runs take it from outside, whose it is."""
        flow = next(f for f in self.flows if f.value is value)
        return f"from {self.seen.labels[flow.source]}" if flow.each and isinstance(flow.source, Step) else "x"

    def path(self, flow: Flow) -> Iterable[Port]:
        """The ports through which a flow enters the frames of its target, outermost first."""
        found: list[Port] = []
        frame = self.frame.get(flow.target)
        while frame is not None:
            if (frame, flow.value) in self.ports:
                found.append((frame, flow.value))
            frame = self.seen.frames.parent(frame)
        return reversed(found)


__all__ = ["Entries", "Port"]
