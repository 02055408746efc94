"""What folding speaks of: kinds of nodes, forms of layers, layers of a graph, and stretches that repeat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

from ..dims import Dim
from ..tensor import Scope, Tensor

# A reference inside a form: slot number if >= 0, else -1 - (canonical number of a node of the form).
Ref: TypeAlias = int
Source: TypeAlias = "Affine | tuple[Ref, ...]"


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
        from .periods import fold_steps

        return tuple(fold_steps(self))

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


def nodes_of(items: Iterable[Tensor | Layer]) -> Iterator[Tensor]:
    """All nodes of some items, in canonical order."""
    for item in items:
        if isinstance(item, Layer):
            yield from item.nodes()
        else:
            yield item


def source_at(source: Source, t: int) -> Ref:
    """What run number t reads."""
    if isinstance(source, Affine):
        return source.first if t == 0 else source.start + source.step * (t - 1)
    return source[t]


_EMPTY = Form((), ())
