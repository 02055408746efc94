"""Towers: outermost frames that stand beside each other, and which of them are drawn upwards to meet another."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

from tensorgraph.visualize.view import Block, Box, Edge


def rising(
    boxes: Sequence[Box], edges: Iterable[Edge], blocks: Iterable[Block], within: Callable[[str | None, str], bool]
) -> set[str]:
    """Boxes of towers whose values enter, over a bridge, a tower with inputs of its own, and of the bridge.

    Drawn upwards, they stand beside that tower and meet it at the top. `within`: whether a frame lies in another.
    """
    import networkx as nx

    frames = [b.id for b in blocks if b.parent is None]
    if len(frames) < 2:
        return set()
    flow = nx.DiGraph([(e.source, e.target) for e in edges if e.kind != "tied"])
    inside = {f: {b.id for b in boxes if within(b.block, f)} for f in frames}
    before = {f: set().union(*(nx.ancestors(flow, b) for b in inside[f])) for f in frames}
    last = [f for f in frames if all(inside[g] & before[f] for g in frames if g != f)]
    if len(last) != 1:
        return set()
    towers = set().union(*(inside[f] for f in frames if f != last[0]))
    own = {b.id for b in boxes if b.role == "input" and inside[last[0]] & set(flow.successors(b.id))}
    over = {b for b in before[last[0]] - inside[last[0]] - own if towers & ({b} | nx.ancestors(flow, b))}
    under = set().union(*(nx.ancestors(flow, b) for b in towers)) - own
    return over | under if own else set()


def side_by_side(
    boxes: Sequence[Box], edges: Iterable[Edge], blocks: Iterable[Block], within: Callable[[str | None, str], bool]
) -> bool:
    """Whether two outermost frames stand beside each other, as towers that meet: no value passes between them."""
    import networkx as nx

    frames = {b.id for b in blocks if b.parent is None}
    home = {b.id: next((f for f in frames if within(b.block, f)), b.id) for b in boxes}
    flow = nx.DiGraph([(home[e.source], home[e.target]) for e in edges if e.kind != "tied"])
    inside = {f: nx.descendants(flow, f) for f in frames if f in flow}
    return any(a not in inside[b] and b not in inside[a] for a, b in itertools.combinations(inside, 2))


__all__ = ["rising", "side_by_side"]
