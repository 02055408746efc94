"""Frames of a folded graph: for every stretch that repeats, and for towers; what they are called and hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tensorgraph.blocks import Fold, Form, Layer, Part, item_name, namesake, nodes_of, parts_of, trait
from tensorgraph.dims import Dim, mul, show
from tensorgraph.nn import sum_sizes
from tensorgraph.tensor import Tensor
from tensorgraph.visualize.view import Block


class Frames:
    """The frames of a picture as blocks, outermost first; `heads`: the nodes that are steps, `number` says a count.

    `of`: the innermost frame of every node of a first run; `runs`: the stretch of every frame. `detail`: layers with
    several steps within a frame are frames as well.
    """

    def __init__(
        self, folded: Fold, heads: set[Tensor], number: Callable[[Dim], str], aliases: Mapping[str, Dim], detail: bool
    ) -> None:
        self.folded, self.heads, self.number, self.aliases, self.detail = folded, heads, number, aliases, detail
        self.blocks: list[Block] = []
        self.of: dict[Tensor, str | None] = {}
        self.runs: dict[str, Part] = {}
        self._readers: dict[Tensor, Tensor] = {}  # of every weight, the first
        for node in folded.top.nodes():
            for p in weights_of(node):
                self._readers.setdefault(p, node)
        self._frames()

    def parent(self, frame: str) -> str | None:
        return self.blocks[int(frame[1:])].parent

    def path(self, frame: str | None) -> list[str]:
        """A frame and those around it, outermost first."""
        found = []
        while frame is not None:
            found.append(frame)
            frame = self.parent(frame)
        return found[::-1]

    def around(self, part: Part) -> str:
        """The frame of a stretch that repeats."""
        return next(name for name, p in self.runs.items() if p.runs[0] == part.runs[0] and p.times == part.times)

    def within(self, frame: str | None, outer: str) -> bool:
        """Whether a frame is `outer` or lies in it."""
        while frame is not None and frame != outer:
            frame = self.parent(frame)
        return frame is not None

    def _frames(self) -> None:
        """A frame for every stretch that repeats, and for towers: layers side by side that hold such stretches."""
        Work = tuple[Sequence[Tensor | Layer], Form | None, str | None]
        stack: list[Work] = [(self.folded.top.items, self.folded.form, None)]

        def held(part: Part) -> int:
            return sum(n in self.heads for n in nodes_of(part.runs[0])) if isinstance(part.runs[0][0], Layer) else 0

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
                self.of.update((i, within) for i in first if isinstance(i, Tensor))
                layers = [i for i in first if isinstance(i, Layer)]
                if part.body is None or len(first) == 1:
                    inner += [(i.items, i.form, within) for i in layers]
                    continue
                bodies = list(self.folded.cut(first, part.body))
                several = [p for p in bodies if isinstance(p.runs[0][0], Layer)]
                for p in bodies:
                    if p.times > 1 and p not in several:
                        own = self._frame(p, within)
                        self.of.update((i, own) for i in p.runs[0] if isinstance(i, Tensor))
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
        text = "" if type(times) is int and times == 1 else f"×{show(times, self.aliases)}"
        self.blocks.append(Block(name, title, parent, text, self._share(part, times)))
        self.runs[name] = part
        return name

    def _share(self, part: Part, times: Dim) -> str:
        """`7.1 M each · 85.1 M`: the weights of one run, and of all; only those that are read here first count."""
        inside = set(nodes_of(i for run in part.runs for i in run))
        per_run = [[p for p in dict.fromkeys(self._read(run)) if self._readers[p] in inside] for run in part.runs]
        uses = Counter(p for run in per_run for p in run)
        if not uses:
            return ""
        total = self.number(sum_sizes([mul(p.size, p.scope.times) for p in uses]))
        if type(times) is int and times == 1:
            return total
        own = {sum_sizes([p.size for p in run if uses[p] == 1]) for run in per_run}
        shared = sum_sizes([p.size for p, n in uses.items() if n > 1])
        if set(uses.values()) == {part.times} and part.times > 1:
            return f"{total}, stored once, used {part.times} times"
        if len(own) > 1:
            return f"{total}, some shared"
        parts = [f"{self.number(own.pop())} each"] if 1 in uses.values() else []
        parts += [f"{self.number(shared)} shared"] if shared != 0 else []
        return f"{' + '.join(parts)} · {total}"

    def _read(self, items: Iterable[Tensor | Layer]) -> Iterable[Tensor]:
        return (p for node in nodes_of(items) for p in weights_of(node))


def weights_of(node: Tensor) -> Iterable[Tensor]:
    """The weights that a node reads, as such or in turn in a loop."""
    for x in node.inputs:
        while x.op.style == "loop" and x.inputs:
            x = x.inputs[0]
        if x.op.style == "weight":
            yield x


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


__all__ = ["Frames"]
