"""The view model: what a picture says, as plain data; every renderer takes a `View` and knows nothing of ops.

All strings are already formatted by whoever projects a graph to a view. Ids are names of ours or of the user; renderers
generate their own ids, in the order of the boxes. Boxes stand in reading order: the terminal prints them as they stand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Literal

from tensorgraph.errors import GraphError

# A corner is a place on a margin that layouts use, an edge "order" what only holds places apart: neither is seen.
Role = Literal["weight", "plain", "input", "output", "constant", "corner"]
EdgeKind = Literal["data", "residual", "tied", "gradient", "control", "order"]
Direction = Literal["LR", "TB"]

SEED_LEGEND = "Highlighted: every step that uses learned weight matrices"


@dataclass(frozen=True)
class Weight:
    """One learned array: name, symbolic shape ("V, d") and count ("38.6 M"); `tied_to` names its owner if shared."""

    name: str
    shape: str
    count: str
    trained: bool = True
    tied_to: str | None = None

    @property
    def texts(self) -> tuple[str, ...]:
        """All that is shown of it."""
        return self.name, self.shape, self.counted

    @property
    def counted(self) -> str:
        """The count, or for a tied weight whose it is: nothing is counted twice."""
        return self.count if self.tied_to is None else f"tied = {self.tied_to} · 0 new"


@dataclass(frozen=True)
class Box:
    """One step: a label, further lines, the weights it uses, the block it lies in, and a value to colour it by.

    A box with role "weight" is highlighted; its weights are listed when the view shows weights. It stands `beside`
    another box where that is possible, as a gradient beside its step.
    """

    id: str
    label: str
    role: Role = "plain"
    lines: tuple[str, ...] = ()
    weights: tuple[Weight, ...] = ()
    block: str | None = None
    tooltip: str = ""
    link: str | None = None
    value: float | None = None
    beside: str | None = None

    @property
    def tied(self) -> bool:
        """True where every weight of the box is owned elsewhere."""
        return bool(self.weights) and all(w.tied_to is not None for w in self.weights)

    @property
    def training(self) -> str:
        """ "trained", "frozen" or "partly trained" by its weights; "" for a box without weights."""
        states = {w.trained for w in self.weights}
        return "" if not states else "partly trained" if len(states) == 2 else "trained" if True in states else "frozen"


@dataclass(frozen=True)
class Edge:
    """What flows from box to box; `label` (a symbolic shape) is drawn on request. A tied edge joins owner and user.

    `note` is always drawn: which run of a repeated block the value leaves or enters, where a chain does not imply it.
    `up`: where the picture runs downwards, this edge runs upwards, as in a tower whose top is a bridge to another;
    `loose`: it holds neither end on any level, as what leads from such a bridge.
    """

    source: str
    target: str
    label: str = ""
    kind: EdgeKind = "data"
    up: bool = False
    loose: bool = False
    note: str = ""

    def text(self, shapes: bool) -> str:
        """What is written on it."""
        return ": ".join(part for part in (self.note, self.label if shapes else "") if part)


@dataclass(frozen=True)
class Block:
    """A group of boxes drawn as a frame, titled "block ×12 · 7.1 M each · 85.1 M"; blocks nest by `parent`."""

    id: str
    title: str
    parent: str | None = None
    times: str = ""
    note: str = ""

    @property
    def heading(self) -> str:
        """Title, multiplicity and note on one line."""
        return " · ".join(part for part in (f"{self.title} {self.times}".strip(), self.note) if part)


@dataclass(frozen=True)
class View:
    """A whole picture.

    `show_weights=False` draws labels alone (the seed's flowchart). `values_label` names what `Box.value` measures;
    above `values_limit`, where one is given, it is wrong. `whole` is the view of which this is a part: states, values
    and the legend are those of the whole. `notes` are said below a text: why a layer stands alone, else in its tooltip.
    Raises GraphError [TG380] for a doubled id, an edge or block that names nothing, or blocks that nest in a circle.
    """

    title: str
    boxes: tuple[Box, ...]
    edges: tuple[Edge, ...] = ()
    blocks: tuple[Block, ...] = ()
    direction: Direction = "LR"
    legend: str = SEED_LEGEND
    show_weights: bool = True
    values_label: str = ""
    values_limit: float | None = None
    whole: View | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        boxes, blocks = self.box_index, self.block_index
        if len(boxes) != len(self.boxes) or len(blocks) != len(self.blocks):
            raise GraphError("TG380", f"view {self.title!r}: two boxes or two blocks have the same id")
        for edge in self.edges:
            for end in (edge.source, edge.target):
                if end not in boxes:
                    raise GraphError("TG380", f"view {self.title!r}: an edge names {end!r}, which is no box")
        for owner, block in [*((b.id, b.block) for b in self.boxes), *((b.id, b.parent) for b in self.blocks)]:
            if block is not None and block not in blocks:
                raise GraphError("TG380", f"view {self.title!r}: {owner!r} lies in {block!r}, which is no block")
        for inner in self.blocks:
            seen, above = {inner.id}, inner.parent
            while above is not None:
                if above in seen:
                    raise GraphError("TG380", f"view {self.title!r}: block {inner.id!r} lies inside itself")
                seen.add(above)
                above = blocks[above].parent

    @cached_property
    def box_index(self) -> Mapping[str, int]:
        """Position of each box by id."""
        return MappingProxyType({box.id: i for i, box in enumerate(self.boxes)})

    @cached_property
    def block_index(self) -> Mapping[str, Block]:
        """Each block by id."""
        return MappingProxyType({block.id: block for block in self.blocks})

    @cached_property
    def modes(self) -> bool:
        """True where some weights are frozen: then every box with weights says whether it is trained."""
        return (
            self.whole.modes
            if self.whole is not None
            else any(not w.trained for box in self.boxes for w in box.weights)
        )

    def path(self, box: Box) -> tuple[str, ...]:
        """Ids of the blocks a box lies in, outermost first."""
        found, block = [], box.block
        while block is not None:
            found.append(block)
            block = self.block_index[block].parent
        return tuple(reversed(found))

    def rows(self, box: Box) -> tuple[tuple[str, ...], ...]:
        """What stands under a box's label, in lines of one cell or of three (name, shape, count)."""
        rows: list[tuple[str, ...]] = [(line,) for line in box.lines]
        if self.show_weights and len(box.weights) == 1:
            (w,) = box.weights
            rows += [(part,) for part in (w.name if w.name != box.label else "", shape_text(w), w.counted) if part]
        elif self.show_weights:
            rows += [(w.name, shape_text(w), w.counted) for w in box.weights]
        if self.modes and box.training:
            rows.append((box.training,))
        return tuple(rows)


def shape_text(weight: Weight) -> str:
    """A weight's shape in parentheses, as it is given if it brings its own."""
    return weight.shape if not weight.shape or weight.shape.startswith(("(", "[")) else f"({weight.shape})"
