"""Which weights a step reads in which run, and whose they are: each is new where it is read first, elsewhere tied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from tensorgraph.tensor import Tensor
from tensorgraph.visualize.runs import Passage, Place
from tensorgraph.visualize.steps import Step, Steps


class Use(NamedTuple):
    """A weight that a step reads in its first run, and the weights in its place there in all runs, with the place."""

    step: Step
    weight: Tensor
    runs: tuple[tuple[Place, Tensor], ...]

    @property
    def alike(self) -> list[Tensor]:
        """The weights of all runs, each once."""
        return list(dict.fromkeys(w for _, w in self.runs))


class Uses:
    """All uses of weights; `owners`: the step that reads each weight first, in any run."""

    def __init__(self, steps: Steps) -> None:
        self.runs = steps.runs
        self.of: dict[tuple[Step, Tensor], Use] = {}
        self.owners: dict[Tensor, Step] = {}
        self._first: dict[Tensor, tuple[Use, Place]] = {}
        later: dict[tuple[Tensor, Tensor], list[tuple[Place, Tensor]]] = {}  # by node of a first run and its weight
        for node in steps.later:
            lead = steps.lead[node]
            pairs = zip(lead.inputs, node.inputs, strict=True)
            for mine, x in dict.fromkeys(p for p in pairs if p[0].op.style == "weight"):
                later.setdefault((lead, mine), []).append((self.runs.place(node), x))
        readers: dict[Tensor, tuple[tuple[Tensor, Tensor], ...]] = {}  # below what weights alone make
        found: dict[tuple[Step, Tensor], dict[Tensor, None]] = {}
        for node in steps.order:
            first = steps.origin.get(node, node)
            read = [r for x in steps.inputs(node) for r in readers.get(x, ())]
            read += [(first, x) for x in node.inputs if x.op.style == "weight"]
            if node in steps.weights:
                readers[node] = tuple(dict.fromkeys(read))
            elif (step := steps.of.get(node)) is not None:
                for reader, p in read:
                    found.setdefault((step, p), {})[reader] = None
        for step in steps.steps:
            for p in step.weights:
                ways = [(self.runs.place(n), p) for n in found.get((step, p), ())]
                ways += [way for n in found.get((step, p), ()) for way in later.get((n, p), ())]
                unique = {(tuple(place.items()), w): (place, w) for place, w in ways}
                use = self.of[step, p] = Use(step, p, tuple(unique.values()))
                for place, w in use.runs:
                    self._first.setdefault(w, (use, place))
                    self.owners.setdefault(w, step)
                self._first.setdefault(p, (use, {}))
                self.owners.setdefault(p, step)

    def new(self, step: Step, p: Tensor) -> list[Tensor]:
        """The weights that are read here first."""
        use = self.of[step, p]
        return [w for w in use.alike or [p] if self._first[w][0] is use]

    def owned(self, step: Step, p: Tensor) -> bool:
        """Whether some run reads a weight here first; else all are tied."""
        return bool(self.new(step, p))

    def sharing(self, step: Step, p: Tensor) -> str:
        """`2 stored, each used 3 times`, where runs share weights; "" where each has its own."""
        use, new = self.of[step, p], self.new(step, p)
        times = [sum(x is w for _, x in use.runs) for w in new]
        if len(new) >= len(use.runs) or not new:
            return ""
        if sum(times) < len(use.runs):
            return f"{len(new)} new in {len(use.runs)} runs, else tied"
        if len(new) == 1:
            return f"stored once, used {times[0]} times"
        if len(set(times)) == 1:
            return f"{len(new)} stored, each used {times[0]} times"
        return f"{len(new)} stored, used by {len(use.runs)} runs"

    def tied_to(self, step: Step, p: Tensor, names: Mapping[Step, str]) -> str:
        """Whose weights these are: `q`, and, where only some of its runs have them, `q, from 4 of 6`."""
        use = self.of[step, p]
        first = [(self._first[w], place) for place, w in use.runs] or [(self._first[p], {})]
        owners = list(dict.fromkeys(owner.step for (owner, _), _ in first))
        if len(owners) > 1:
            return " and ".join(dict.fromkeys(names[s] for s in owners))
        places = [(theirs, here) for (owner, theirs), here in first if len(owner.alike) > 1]
        note = ""
        if places and all(here.get(i, run) == run for theirs, here in places for i, run in theirs.items()):
            note = self.runs.note([Passage(*way) for way in places], always=True)
        elif places:
            said = {tuple(theirs.items()): theirs for theirs, _ in places}
            note = self.runs.note([Passage(theirs, {}) for theirs in said.values()], always=True)
        return ", ".join(filter(None, (names[owners[0]], note)))

    def beside(self, step: Step) -> Iterable[Step]:
        """The other steps whose weights this one reads."""
        all_read = dict.fromkeys(w for p in step.weights for w in (self.of[step, p].alike or [p]))
        return dict.fromkeys(self.owners[w] for w in all_read if self.owners[w] is not step)


__all__ = ["Use", "Uses"]
