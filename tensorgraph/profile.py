"""Where the time of a compiled graph goes: each kernel timed, by op and by the place in the model it comes from."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from .backends import c as c_backend
from .backends import numpy as numpy_backend
from .compiled import Compiled
from .errors import BackendError
from .graph import Graph
from .passes.fuse import Step
from .tensor import Tensor


class Profile:
    """`rows`: (node, seconds of a call) for each kernel, a region's shared evenly by its members; `wall` seconds."""

    def __init__(self, rows: list[tuple[Tensor, float]], wall: float) -> None:
        self.rows, self.wall = rows, wall

    def by_op(self) -> dict[str, float]:
        """Seconds by op, the slowest first; those of the backward pass and of updates by themselves."""
        found: dict[str, float] = {}
        for t, seconds in self.rows:
            side = "∂ " if t.scope.backward else ""
            name = "update" if t.scope.kind == "update" else side + t.op.name
            found[name] = found.get(name, 0.0) + seconds
        return dict(sorted(found.items(), key=lambda kv: -kv[1]))

    def values(self, graph: Graph, scale: float = 1e3) -> dict[Tensor, float]:
        """For each node of the graph as it was written, the time of what came of its layer's line, forward and ∂.

        In milliseconds, or seconds times `scale`; it is what `tg.draw(values=)` colours by. Updates have no place.
        """
        spent: dict[tuple[str, str], float] = {}
        for t, seconds in self.rows:
            if t.scope.kind != "update":
                key = t.scope.path, t.where
                spent[key] = spent.get(key, 0.0) + seconds * scale
        places = {t: (t.scope.path, t.where) for t in graph.nodes if not t.op.leaf}
        return {t: spent[at] for t, at in places.items() if at in spent}


def profile(f: Compiled, arrays: Mapping[str, Any], binding: Mapping[str, int], runs: int = 3) -> Profile:
    """Time each kernel over `runs` calls, after one to warm up. `arrays`: by key; donated ones are overwritten.

    Raises BackendError[TG714] for a backend whose kernels cannot be timed.
    """
    if f.options.backend not in ("numpy", "c"):
        raise BackendError("TG714", f"kernels of backend {f.options.backend!r} cannot be timed")
    lowered: Any
    if f.options.backend == "c":
        lowered = c_backend.Lowered(f.program, f.options.name, f.options.strict, timed=True)
    else:
        lowered = numpy_backend.Lowered(f.program, f.options.name, timed=True)
    bound, given = lowered.bind(binding), dict(arrays)
    bound.run(given)
    before, start = list(lowered.times), time.perf_counter()
    for _ in range(runs):
        bound.run(given)
    wall = (time.perf_counter() - start) / runs
    spent = [(b - a) / runs for a, b in zip(before, lowered.times, strict=True)]
    return Profile(list(_shared(f, spent)), wall)


def _shared(f: Compiled, spent: list[float]) -> Iterator[tuple[Tensor, float]]:
    for kernel, seconds in zip(f.program.kernels, spent, strict=True):
        nodes = [p.kernel.node for p in kernel.pieces] if isinstance(kernel, Step) else [kernel.node]
        for t in nodes:
            yield t, seconds / len(nodes)


__all__ = ["Profile", "profile"]
