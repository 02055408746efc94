"""Where a graph is checked: small sizes for its symbols, distinct where they meet, and values for its leaves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..dims import evaluate, free, minimum
from ..errors import GradError, SizeError
from ..graph import VIEWS, Graph
from ..interpret import shape_of
from ..op import Obligation, Op
from ..tensor import Tensor

MARGIN = 0.05  # how far from a kink values are drawn
LARGEST = 40  # the largest size tried for a symbol
TRIED = (*range(3, 11), 2, *range(11, LARGEST + 1), 1)  # in this order: widths multiply, so 2 stands before 11


def small_sizes(graph: Graph, given: Mapping[str, int] | None = None) -> dict[str, int]:
    """Sizes for the graph's symbols that fulfil its obligations, beside those given: from 3 up where they can be.

    Distinct where they meet in one node, so that a transposed or tiled axis cannot hide. Not 1, so that no axis
    broadcasts by accident; not 2, where "the others" are one: softmax, cross-entropy and rotations then obey wrong
    rules too. Raises GradError[TG411] if there are none up to 40.
    """
    binding = dict(given or {})
    owed = list(graph.obligations)
    used = [free(o.left) | free(o.right) for o in owed]
    used += [free(r[1]) for ranges in graph.data_ranges.values() for r in ranges]
    names = set(graph.symbols).union(*used) - binding.keys()
    order = _solving_order(sorted(names), owed, graph.symbols)
    symbols, numbers = _met(graph)
    ready = [[o for o in owed if _last(o, order) == n] for n in order]
    decided = [o for o in owed if _last(o, order) is None]
    if not all(_holds(o, binding) for o in decided):
        graph.check_binding({**{n: 2 for n in names}, **binding})  # names the obligation that the given sizes break
    for apart in ((symbols, numbers), (symbols, {}), ({}, {})):  # last, equal if they must be
        if (found := _search(order, ready, binding, *apart)) is not None:
            return found
    raise GradError(
        "TG411",
        f"no sizes up to {LARGEST} fulfil the obligations of {graph.name}",
        notes=[str(o) for o in owed[:6]],
        hint='give some of them: binding="T=8"',
    )


def _met(graph: Graph) -> tuple[dict[str, set[str]], dict[str, set[int]]]:
    """The symbols, and the numbers, that stand in the types of one node with each symbol."""
    symbols: dict[str, set[str]] = {}
    numbers: dict[str, set[int]] = {}
    seen = set()
    for t in graph.nodes:
        key = tuple(d for x in (t, *t.inputs) for d in x.shape)
        if key in seen:
            continue
        seen.add(key)
        names = set().union(*map(free, key))
        for n in names:
            symbols.setdefault(n, set()).update(names - {n})
            numbers.setdefault(n, set()).update(d for d in key if type(d) is int)
    return symbols, numbers


def _solving_order(names: list[str], owed: list[Obligation], first: list[str]) -> list[str]:
    """Divisors before what they divide, otherwise as they first occur: the search then seldom turns back."""
    rank = {n: first.index(n) if n in first else len(first) for n in names}
    after: dict[str, set[str]] = {n: set() for n in names}
    for o in owed:
        for big in free(o.left) & after.keys():
            after[big] |= (free(o.right) & after.keys()) - {big}
    out: list[str] = []
    left = sorted(names, key=lambda n: rank[n])
    while left:
        n = next((n for n in left if after[n] <= set(out)), left[0])
        out.append(n)
        left.remove(n)
    return out


def _last(o: Obligation, order: list[str]) -> str | None:
    used = [n for n in order if n in free(o.left) | free(o.right)]
    return used[-1] if used else None


def _holds(o: Obligation, binding: Mapping[str, int]) -> bool:
    try:
        return o.holds(binding)
    except SizeError:
        return False


def _search(
    order: list[str],
    ready: list[list[Obligation]],
    given: Mapping[str, int],
    symbols: Mapping[str, set[str]],
    numbers: Mapping[str, set[int]],
) -> dict[str, int] | None:
    """Depth first over the symbols, without recursion, at most 200,000 trials."""
    binding = dict(given)
    chosen: list[int] = []
    at, start = 0, 0  # start: the first of TRIED that is left for this symbol
    for _ in range(200_000):
        if at == len(order):
            return binding
        name = order[at]
        used = {binding[n] for n in symbols.get(name, ()) if n in binding} | numbers.get(name, set())
        for i, v in enumerate(TRIED[start:], start):
            if v >= minimum(name) and v not in used and all(_holds(o, {**binding, name: v}) for o in ready[at]):
                binding[name] = v
                chosen.append(i)
                at, start = at + 1, 0
                break
        else:
            if not at:
                return None
            binding.pop(name, None)
            at -= 1
            start = chosen.pop() + 1
            binding.pop(order[at], None)
    return None


def away(values: Any, kinks: Iterable[float]) -> Any:
    """Values moved to at least MARGIN from every kink."""
    for k in kinks:
        near = np.abs(values - k) < MARGIN
        values = np.where(near, k + np.where(values < k, -MARGIN, MARGIN) * (1 + np.abs(values - k) / MARGIN), values)
    return values


def draw(rng: np.random.Generator, shape: tuple[int, ...], low: float, high: float, kinks: Iterable[float] = ()) -> Any:
    """Floats in (low, high), away from kinks."""
    inner = min(MARGIN, (high - low) / 8)
    return away(rng.uniform(low + inner, high - inner, shape), kinks)


def sample_values(
    graph: Graph, binding: Mapping[str, int], rng: np.random.Generator, given: Mapping[str, Any] | None = None
) -> dict[Tensor, Any]:
    """A value for every leaf of a graph: integers in their ranges, floats in the domains of the ops that read them.

    Raises GradError[TG412] for a name that the graph does not have, or a value of another shape.
    """
    given = dict(given or {})
    leaves = {**graph.inputs, **graph.params}
    out: dict[Tensor, Any] = {}
    users = _readers(graph)
    for name, t in leaves.items():
        shape = shape_of(t, binding)
        if name in given:
            a = np.asarray(given.pop(name))
            if a.shape != shape:
                raise GradError("TG412", f"{name} must have the shape {list(shape)}, not {list(a.shape)}")
            out[t] = a.astype(np.float64) if t.dtype.is_float else a.astype(t.dtype.np)
        elif t.dtype.is_float:
            out[t] = _floats(t, shape, users.get(t, []), rng)
        elif t.dtype.kind == "b":
            out[t] = rng.random(shape) < 0.7
        else:
            out[t] = _integers(graph, name, t, shape, binding, rng)
    if given:
        raise GradError(
            "TG412",
            f"{graph.name} has no input called {', '.join(map(str, given))}",
            notes=[f"it has {', '.join(leaves)}"],
        )
    return out


def _readers(graph: Graph) -> dict[Tensor, list[Op]]:
    """The ops that read each leaf, seen through views and casts."""
    source: dict[Tensor, Tensor] = {}
    out: dict[Tensor, list[Op]] = {}
    for t in graph.nodes:
        for x in t.inputs:
            root = source.get(x, x)
            if root.op.leaf:
                out.setdefault(root, []).append(t.op)
        if t.op.name in VIEWS or t.op.name in ("cast", "enter", "each"):
            source[t] = source.get(t.inputs[0], t.inputs[0])
    return out


def _floats(t: Tensor, shape: tuple[int, ...], users: list[Op], rng: np.random.Generator) -> Any:
    default = (-2.0, 2.0)
    narrow = [u.domain for u in users if tuple(u.domain) != default]
    kinks = sorted({k for u in users for k in u.kinks})
    if narrow:
        low, high = max(d[0] for d in narrow), min(d[1] for d in narrow)
        if low < high:
            return draw(rng, shape, low, high, kinks)
    reach = 1.5 * shape[-1] ** -0.5 if t.op.name == "param" and len(shape) > 1 and shape[-1] else 1.0
    return draw(rng, shape, -reach, reach, kinks)


def _integers(
    graph: Graph, name: str, t: Tensor, shape: tuple[int, ...], binding: Mapping[str, int], rng: np.random.Generator
) -> Any:
    ranges = graph.data_ranges.get(name, [])
    low = max((r[0] for r in ranges), default=0)
    high = min((evaluate(r[1], binding) for r in ranges), default=2)
    a = rng.integers(low, max(high, low + 1), shape)
    ignored = {r[2] for r in ranges if r[2] is not None}
    if ignored and all(r[2] is not None for r in ranges) and a.size > 1:
        drop = rng.random(shape) < 0.2
        drop.reshape(-1)[rng.integers(a.size)] = False  # at least one label counts
        a = np.where(drop, min(ignored), a)
    return a.astype(t.dtype.np)
