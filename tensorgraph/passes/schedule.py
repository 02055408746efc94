"""The order in which nodes run: as they were made, with every update as soon as its gradient is there."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping

from ..tensor import Tensor, topological
from .rewrite import age


def schedule(outputs: Iterable[Tensor], after: Mapping[Tensor, Iterable[Tensor]] | None = None) -> list[Tensor]:
    """A topological order by age; update nodes come first among the ready ones. `after[n]`: nodes that n must wait for.

    Orderings in `after` that would make a cycle must have been left out by the caller.
    """
    nodes = topological(outputs)
    inside = set(nodes)
    waiting: dict[Tensor, int] = {}
    users: dict[Tensor, list[Tensor]] = {}
    for t in nodes:
        before = {*t.inputs, *(b for b in (after or {}).get(t, ()) if b in inside)}
        waiting[t] = len(before)
        for b in before:
            users.setdefault(b, []).append(t)
    ready = [(_rank(t), age(t), t) for t in nodes if not waiting[t]]
    heapq.heapify(ready)
    order: list[Tensor] = []
    while ready:
        t = heapq.heappop(ready)[2]
        order.append(t)
        for u in users.get(t, ()):
            waiting[u] -= 1
            if not waiting[u]:
                heapq.heappush(ready, (_rank(u), age(u), u))
    assert len(order) == len(nodes), "orderings make a cycle"
    return order


def _rank(t: Tensor) -> int:
    """What is computed again waits its turn even where a view of it is a copy: it is there to come late."""
    if t.scope.kind == "recomputed":
        return 1
    return 0 if t.op.leaf or t.scope.kind == "update" or t.op.style == "view" else 1
