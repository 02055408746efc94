"""Causal tiles: whether all that columns after a row's own position hold is hidden, and counts for exactly nothing.

A mask adds the lowest number, or chooses it, where the column's position is after the row's. There exp(score - max) is
0, since each row sees itself; so are the probabilities, and what is multiplied by them. Facts about those columns are
followed through a tile's regions: "off" (hidden), "low", "zero", "plain" (a product, perhaps scaled), and "top", the
largest of a row. They hold for finite scores far above the lowest number. A mask given as data may hide all that a row
sees, and its probabilities are then not 0: no facts follow from it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .. import dims
from .fuse import Piece, Step
from .layout import one, zero
from .program import Tile, Value

LOW = -1e30
Facts = dict[Value, str]


def causal(steps: Sequence[Step], tile: Tile) -> bool:
    """Whether a block of rows needs no columns after its last row."""
    columns = next(iter(tile.local.values()))
    if not all(dims.same(d, columns) for d in tile.local.values()):
        return False
    facts: Facts = {}
    hidden = False  # whether anything is
    for s in steps:
        if not s.region:
            x, y = s.pieces[0].inputs
            made = s.outputs[0] in tile.local
            given = [v.root for v in (x, y) if v.root in tile.local]
            if len(given) + made > 1 or any(facts.get(v) != "zero" for v in given):
                return False
            facts.update({s.outputs[0]: "plain"} if made else {})
            continue
        if not dims.same(s.columns, columns):
            return False
        for p in s.pieces:
            fact = _fact(p, s, tile, facts)
            if fact is None:
                return False
            hidden = hidden or fact == "off"
            facts.update(dict.fromkeys(p.outputs, fact))
        if any(
            p.kind == "map" and not p.per_row and v not in tile.local
            for p in s.pieces
            for v in p.outputs
            if v in s.stored
        ):
            return False
    return hidden


def _fact(p: Piece, s: Step, tile: Tile, facts: Facts) -> str | None:
    """What a piece makes of hidden columns; "" for anything; None if they count."""
    known = [_given(v, facts) for v in p.inputs]
    if p.per_row:
        return ""
    if p.kind == "reduce":
        return {("max", "low"): "top", ("sum", "zero"): ""}.get((p.name, known[0]))
    if p.kind != "map":
        return None
    if p.name == "less_equal":
        return "off" if _later(p, s, tile) else ""
    if p.name == "logical_and":
        positions = all(v.root.kind in ("table", "literal") or v.root in facts for v in p.inputs)
        return "off" if "off" in known and positions else ""
    if p.name == "where" and known[0] == "off":
        return known[2]
    if p.name == "add" and "low" in known:
        return "low" if {*known} <= {"low", "plain", "zero"} else ""
    if p.name == "sub" and known == ["low", "top"]:
        return "low"
    if p.name == "exp" and known[0] == "low":
        return "zero"
    if (p.name == "mul" and "zero" in known) or (p.name == "div" and known[0] == "zero"):
        return "zero"
    scaled = all(v.root.kind in ("literal", "table") for v in p.inputs[1:])
    if p.name in ("mul", "div", "tanh") and known[0] == "plain" and scaled:
        return "plain"
    return ""


def _given(v: Value, facts: Facts) -> str:
    if v.kind == "literal" and v.node.op.name == "const":
        value = np.asarray(v.node.attrs["value"])
        return "low" if value <= LOW else "zero" if value == 0 else ""
    return facts.get(v.root, "")


def _later(p: Piece, s: Step, tile: Tile) -> bool:
    """Whether a comparison asks for columns up to the row."""
    column, row = p.read(0, s.columns), p.read(1, s.columns)
    if column is None or row is None or not (_positions(p.inputs[0]) and _positions(p.inputs[1])):
        return False
    along = not any(not zero(r[2]) for r in column.rows) and one(column.column) and zero(column.offset)
    at = [r for r in row.rows if not zero(r[2])]
    down = len(at) == 1 and one(at[0][0]) and dims.same(at[0][1], tile.rows) and one(at[0][2])
    return along and down and zero(row.column) and zero(row.offset)


def _positions(v: Value) -> bool:
    """0, 1, 2, .. along the only axis."""
    t = v.root.node
    while t.op.view == "reshape":
        t = t.inputs[0]
    return v.root.kind == "table" and t.op.name == "arange"


__all__ = ["causal"]
