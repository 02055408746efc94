"""What passes between steps, and, where a repeated block is drawn once, from which run to which."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from tensorgraph.blocks import Fold, Part, nodes_of
from tensorgraph.tensor import Tensor
from tensorgraph.visualize.words import ranges

if TYPE_CHECKING:
    from tensorgraph.visualize.steps import Step, Steps

Place = Mapping[int, int]  # by the number of each repeated stretch that a node lies in, outermost first, the run


class Flow(NamedTuple):
    """A value passing from a step (or an input leaf) to a step; `note`: between which runs, if not as a chain does.

    A chain takes from outside what its first run reads, and gives to the outside what its last run makes. `runs`: the
    same, said in any case. `each`: every run of a stretch reads it; `only`: one run does, of so many.
    """

    source: Step | Tensor
    target: Step
    value: Tensor
    note: str = ""
    runs: str = ""
    each: bool = False
    only: tuple[int, int] | None = None


class Passage(NamedTuple):
    """One way of a value: from a node's place to another's; `starts`: later runs take theirs from the run before."""

    source: Place
    target: Place
    starts: bool = False


class Carried(NamedTuple):
    """What a run of a stretch gives to a later one, usually the next."""

    stretch: int
    source: Step
    target: Step
    value: Tensor
    behind: int


class Runs:
    """In which run of which repeated stretches the nodes of a folded graph lie."""

    def __init__(self, folded: Fold) -> None:
        self.times: list[int] = []
        self.parts: list[Part] = []
        self._places: dict[Tensor, Place] = {}
        self._within: dict[Tensor, tuple[int, ...]] = {}  # of nodes of first runs
        self._like: dict[Tensor, tuple[int, int, Tensor]] = {}  # of others: stretch, run, the node in its first run
        for number, (_, part) in enumerate(folded.repeats()):
            self.times.append(part.times)
            self.parts.append(part)
            first = list(nodes_of(part.runs[0]))
            for node in first:
                self._within[node] = (*self._within.get(node, ()), number)
            for t, run in enumerate(part.runs[1:], 1):
                for node, lead in zip(nodes_of(run), first, strict=True):
                    self._like.setdefault(node, (number, t, lead))

    def place(self, node: Tensor) -> Place:
        """The run that a node lies in, of every stretch."""
        known = self._places.get(node)
        if known is None:
            found: dict[int, int] = {}
            at = node
            while at in self._like:
                number, run, at = self._like[at]
                found[number] = run
            known = self._places[node] = {i: found.get(i, 0) for i in self._within.get(at, ())}
        return known

    def each(self, passages: Sequence[Passage]) -> bool:
        """Whether a value from outside all stretches enters every run of those it enters."""
        found = {_at(p.target, list(p.target)) for p in passages}
        return len(found) == math.prod(self.times[i] for i in passages[0].target)

    def single(self, places: Iterable[Place]) -> tuple[int, int] | None:
        """The one run of the one stretch that all places lie in, and how many runs it has."""
        found = {tuple(place.items()) for place in places}
        if len(found) != 1 or len(next(iter(found))) != 1:
            return None
        ((stretch, run),) = found.pop()
        return run, self.times[stretch]

    def note(self, passages: Sequence[Passage], always: bool = False, back: bool = False) -> str:
        """`from 3 of 8`, `into 2, 3 of 4`, both, or "" for what a chain implies, unless it is to be said `always`.

        `back`: of gradients, which run back.

        All passages lead from one step to one other, hence out of the same stretches and into the same.
        """
        outer, inner = passages[0].source, passages[0].target
        left = [i for i in outer if i not in inner]
        entered = [i for i in inner if i not in outer]
        ways = list(dict.fromkeys((_at(p.source, left), _at(p.target, entered)) for p in passages))
        last = tuple(0 if back else self.times[i] - 1 for i in left)
        leaves = bool(left) and (always or {a for a, _ in ways} != {last})
        whole = len({b for _, b in ways}) == math.prod(self.times[i] for i in entered)
        each = whole and len(ways) == len({a for a, _ in ways}) * len({b for _, b in ways})
        enters = bool(entered) and not each and (always or not all(p.starts for p in passages))
        if leaves and enters and len(left) == len(entered) == 1 and len({a for a, _ in ways}) > 1:
            ways.sort(key=lambda way: way[1])
            pairs = [ranges([x[0] + 1 for x in side]) for side in zip(*ways, strict=True)]
            return f"from {pairs[0]} of {self.times[left[0]]} into {pairs[1]} of {self.times[entered[0]]}"
        parts = [f"from {self._said(left, [a for a, _ in ways])}"] if leaves else []
        parts += [f"into {self._said(entered, [b for _, b in ways])}"] if enters else []
        return " ".join(parts)

    def _said(self, stretches: list[int], runs: Iterable[tuple[int, ...]]) -> str:
        """`3 of 8`, `each of 8`, `3 of 5 in 2 of 4`."""
        found = sorted(set(runs))
        sides = [sorted(set(side)) for side in zip(*found, strict=True)]
        if len(found) < math.prod(map(len, sides)):
            return "; ".join(self._said(stretches, [one]) for one in found)
        said = [
            f"{'each' if 1 < len(side) == self.times[i] else ranges([run + 1 for run in side])} of {self.times[i]}"
            for i, side in zip(stretches, sides, strict=True)
        ]
        return " in ".join(reversed(said))


def flows(steps: Steps) -> tuple[list[Flow], list[Carried]]:
    """What passes between steps and from inputs within one run or across a stretch, and what runs give each other."""
    runs = steps.runs
    ways: dict[tuple[Step | Tensor, Step, Tensor], list[tuple[Place, Place, tuple[Tensor, Tensor]]]] = {}
    found: dict[tuple[Step | Tensor, Step, Tensor], tuple[Step | Tensor, Step, Tensor]] = {}
    carried: dict[Carried, None] = {}
    fed: set[tuple[Tensor, Tensor]] = set()  # a node of a first run and what it reads, where runs read each other
    for step, node, x, read in _reading(steps):
        value = steps.resolve(x)
        source = steps.of.get(value) or (value if value.op.style == "input" else None)
        if source is None:
            continue
        made = value if isinstance(source, Tensor) else _made(steps, x, source)
        here = {} if isinstance(source, Tensor) else runs.place(made)
        there = runs.place(node)
        across = next((i for i, run in here.items() if there.get(i, run) != run), None)
        if across is not None and not isinstance(source, Tensor):
            behind = there[across] - here[across]
            carried[Carried(across, source, step, steps.resolve(made), behind)] = None
            fed.add(read)
        elif source is not step:
            way = source, step, steps.resolve(made)
            ways.setdefault(way, []).append((here, there, read))
            found.setdefault((source, step, value), way)
    out = []
    for key, way in found.items():
        passages = [Passage(a, b, read in fed and not any(b[i] for i in b if i not in a)) for a, b, read in ways[way]]
        each = bool(passages[0].target) and not passages[0].source and runs.each(passages)
        note = runs.note(passages)
        only = runs.single([p.target for p in passages]) if note and not passages[0].source else None
        out.append(Flow(*key, note, runs.note(passages, always=True), each, only))
    return out, list(carried)


def leaving(steps: Steps, x: Tensor, step: Step) -> tuple[Tensor, str, tuple[int, int] | None]:
    """What a value of a step is in the first run; from which run it leaves: in words, and as `Flow.only`."""
    made = _made(steps, x, step)
    place = steps.runs.place(made)
    return steps.resolve(made), steps.runs.note([Passage(place, {})]), steps.runs.single([place])


def one_each(only: Iterable[tuple[int, int] | None]) -> bool:
    """Whether values belong to the runs of a stretch one by one, in order."""
    found = list(only)
    return bool(found) and found == [(run, len(found)) for run in range(len(found))] and len(found) > 1


def _made(steps: Steps, x: Tensor, step: Step) -> Tensor:
    """What a value is a view or cast of, if that stands in a repeated stretch and the view behind it."""
    at: Tensor | None = (x := steps.origin.get(x, x))
    stretches = steps.runs.place(steps.origin.get(step.head, step.head)).keys()
    while at is not None and not stretches <= steps.runs.place(at).keys():
        at = next((y for y in at.inputs if steps.of.get(steps.resolve(y)) is step), None)
    return at if at is not None else x  # a layer that is one step may hold nodes outside its head's stretch


def _reading(steps: Steps) -> Iterator[tuple[Step, Tensor, Tensor, tuple[Tensor, Tensor]]]:
    """Every reading in every run: the step, the node, what it reads, and that of the first run in the same place.

    Of a node that is shown as its definition each input is read by the steps, several perhaps, that take it there.
    """
    readers: dict[tuple[Tensor, Tensor], dict[Step, None]] = {}
    for n in steps.order:
        if (step := steps.of.get(n)) is None:
            continue
        for x in n.inputs:
            read = steps.origin.get(n, n), x
            readers.setdefault(read, {})[step] = None
            yield step, read[0], x, read
    for node in steps.later:
        lead = steps.lead[node]
        for x, like in zip(node.inputs, lead.inputs, strict=True):
            for step in readers.get((lead, like), ()):
                yield step, node, x, (lead, like)


def _at(place: Place, stretches: list[int]) -> tuple[int, ...]:
    return tuple(place[i] for i in stretches)


__all__ = ["Carried", "Flow", "Passage", "Place", "Runs", "flows", "leaving", "one_each"]
