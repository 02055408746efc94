"""Checking a graph's gradients: the whole along random directions, and every kind of node alone."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .. import autodiff
from ..dims import binding as parse_binding
from ..errors import GradError, TensorgraphError
from ..graph import Graph
from ..tensor import Tensor, as_tensor, topological
from .finite import locate
from .nodes import Finding, Site, check_site, definition, opens
from .reference import EXACT
from .report import KINK, NO_PATH, PASS, WRONG_SUM, WRONG_VJP, Entry, Report
from .sampling import sample_values, small_sizes
from .whole import Whole, compute_all

STAGES = ("whole", "nodes")


def check_grads(
    y: Any,
    *,
    values: Mapping[str, Any] | None = None,
    binding: Any = None,
    seed: int = 0,
    directions: int = 2,
    order: int = 1,
    wrt: Any = None,
    stages: Iterable[str] = STAGES,
) -> Report:
    """Check the gradients of `y` (a tensor, several, or a Graph) against complex-step derivatives in float64.

    Sizes left symbolic are bound to small distinct numbers, leaves without `values` are drawn in the domains of the ops
    that read them. Every kind of node is checked alone, per input, by <vjp(v), u> = <v, J u>; the whole graph along
    `directions` random directions. `order=2` checks the gradient's own gradient as well. `wrt`: what the whole is
    differentiated by (names, tensors or Parameters; every floating leaf if None).

    Returns a Report, true if all is right. Raises GradError[TG411] if no small sizes fit, [TG412] for values that do
    not fit, [TG413] for an unknown stage, order or name in `wrt`.
    """
    start = time.perf_counter()
    stages = tuple(stages)
    if order not in (1, 2) or directions < 1 or not set(stages) <= set(STAGES):
        raise GradError("TG413", f"check_grads: order is 1 or 2, directions at least 1, stages are {', '.join(STAGES)}")
    declared = y if isinstance(y, Graph) else Graph(y)
    graph = declared.astype("float64")
    given = parse_binding(binding) if binding else {}
    sizes = small_sizes(graph, given)
    graph.check_binding(sizes)
    rng = np.random.default_rng(seed)
    leaves = sample_values(graph, sizes, rng, values)
    run = _Run(graph, sizes, leaves, rng, directions, _wanted(graph, wrt))
    run.check(stages)
    if order == 2 and not run.broken:
        second = _gradient_graph(run)
        if second is not None:
            deeper = _Run(second[0], sizes, second[1], rng, directions, None, counted=run.kinds)
            deeper.check(stages)
            run.whole += deeper.whole
            run.entries += deeper.entries
            run.residuals |= deeper.residuals
    names = {t: s for t, s in zip(graph.nodes, declared.nodes, strict=False)}
    colours = {names.get(t, t): r for t, r in run.residuals.items()}
    return Report(
        run.entries, run.whole, directions, seed, sizes, declared.name, run.notes, time.perf_counter() - start, colours
    )


def _wanted(graph: Graph, wrt: Any) -> list[Tensor] | None:
    if wrt is None:
        return None
    known = {**graph.inputs, **graph.params}
    out = []
    for w in wrt if isinstance(wrt, (list, tuple)) else [wrt]:
        name = w if isinstance(w, str) else as_tensor(w).label
        if name not in known:
            raise GradError(
                "TG413", f"{graph.name} has no input or parameter called {name!r}", notes=[f"it has {', '.join(known)}"]
            )
        out.append(known[name])
    return out


class _Run:
    """One check of one graph in float64."""

    def __init__(
        self,
        graph: Graph,
        sizes: Mapping[str, int],
        leaves: Mapping[Tensor, Any],
        rng: np.random.Generator,
        directions: int,
        wrt: list[Tensor] | None,
        counted: Mapping[Any, Any] | None = None,
    ) -> None:
        self.graph, self.sizes, self.rng, self.directions, self.wrt = graph, sizes, rng, directions, wrt
        self.known = counted or {}  # kinds that were checked before, in the graph whose gradient this is
        self.have: dict[Tensor, Any] = dict(leaves)
        self.entries: list[Entry] = []
        self.whole: list[Entry] = []
        self.notes: list[str] = []
        self.kinds: dict[Any, Entry] = {}
        self.residuals: dict[Tensor, float] = {}
        self.broken = False
        self.gradient: Whole | None = None

    def check(self, stages: tuple[str, ...]) -> None:
        self.have = compute_all(self.graph.nodes, self.have, self.sizes)
        if not all(_finite(self.have[y]) for y in self.graph.outputs.values()):
            self.whole.append(locate(self.graph.nodes, self.have, "forward"))
            self.broken = True
            return
        if "nodes" in stages:
            self.check_nodes()
        if "whole" in stages:
            self.check_whole()

    # -- nodes
    def check_nodes(self) -> None:
        """Each kind once: definitions are opened level by level, so that a rule is blamed where it stands."""
        level = [(t, [self.have[x] for x in t.inputs], 1, (), [t]) for t in self.graph.nodes if t.inputs]
        while level:
            kinds: dict[Any, list[Any]] = {}
            for t, args, count, inside, roots in level:
                key = _kind(t, inside)
                if key in kinds:
                    kinds[key][2] += count
                    kinds[key][4].extend(roots)
                else:
                    kinds[key] = [t, args, count, inside, list(roots)]
            level = []
            for key, (t, args, count, inside, roots) in kinds.items():
                if opens(t):
                    level += [
                        (s, have, count, (*inside, t.op.name), roots) for s, have in definition(t, args, self.sizes)
                    ]
                    continue
                if key in self.known:
                    continue
                self._check_kind(key, t, args, count, inside, roots)

    def _check_kind(
        self, key: Any, t: Tensor, args: list[Any], count: int, inside: tuple[str, ...], roots: list[Tensor]
    ) -> None:
        if not any(x.specs is None and x.dtype.is_float for x in t.inputs):
            return
        site = Site(t, args, self.sizes)
        findings = check_site(site, self.rng, self.directions)
        if not findings:
            return
        bad = [f for f in findings if f.verdict not in (PASS, KINK)]
        if bad and t.op.body is not None and t.op.vjp_fn is None and t.op.name not in autodiff.overrides:
            if self._blame(t, args, inside, count, roots):
                return
            bad[0].note += "; its forward and its definition disagree"
        worst = max(findings, key=lambda f: (f.verdict not in (PASS, KINK), f.verdict == KINK, f.residual))
        entry = self._entry(t, worst, count, inside)
        entry.inputs = {f.input: f.residual for f in findings}
        wrongs = [f for f in bad if f is not worst]
        self._put(key, entry, roots)
        for f in wrongs:
            self._put((key, f.input), self._entry(t, f, count, inside), roots)

    def _blame(self, t: Tensor, args: list[Any], inside: tuple[str, ...], count: int, roots: list[Tensor]) -> bool:
        """Whether a node of t's definition has a wrong rule, which is then reported in t's place."""
        found = False
        stack = [(s, have, (*inside, t.op.name)) for s, have in definition(t, args, self.sizes)]
        while stack:
            s, have, within = stack.pop()
            if opens(s):
                stack += [(r, h, (*within, s.op.name)) for r, h in definition(s, have, self.sizes)]
                continue
            for f in check_site(Site(s, have, self.sizes), self.rng, self.directions):
                if f.verdict not in (PASS, KINK):
                    self._put((_kind(s, within), f.input), self._entry(s, f, count, within), roots)
                    found = True
        return found

    def _put(self, key: Any, entry: Entry, roots: list[Tensor]) -> None:
        if key in self.kinds:
            self.kinds[key].count += entry.count
            return
        self.kinds[key] = entry
        self.entries.append(entry)
        for r in roots:
            self.residuals[r] = max(self.residuals.get(r, 0.0), entry.residual)

    def _entry(self, t: Tensor, f: Finding, count: int, inside: tuple[str, ...]) -> Entry:
        return Entry(
            f.verdict, t.op.name, f.residual, f.input if f.verdict != PASS else "", {}, f.note, t.scope.path, block(t), t.where,
            f"{', '.join(x.type_text for x in t.inputs)} -> {t.type_text}", count, inside, t.scope.backward, f.method, t,
        )  # fmt: skip

    # -- the whole
    def check_whole(self) -> None:
        leaves = [t for t in self.graph.nodes if t.op.name in ("input", "param") and t.dtype.is_float]
        whole = Whole(
            self.graph, self.sizes, self.have, leaves if self.wrt is None else self.wrt, self.rng, self.directions
        )
        if not whole.outs:
            return
        try:
            whole.build()
            residual = whole.residual()
        except Exception as why:  # rules are the user's code; that they fail is a finding
            self.broken = True
            text = why.summary if isinstance(why, TensorgraphError) else f"{type(why).__name__}: {why}"
            self.add_whole(WRONG_VJP, np.inf, f"computing the gradient fails: {text}")
            return
        self.gradient = whole
        if self.wrt is not None:
            for t in self.wrt:
                if t not in whole.grads:
                    cut = "; ".join(autodiff._where_cut(whole.outs, t)) or "nothing leads from it to the result"
                    self.add_whole(NO_PATH, np.inf, cut, t.label)
        if not all(map(_finite, whole.adjoints.values())):
            values = compute_all(topological(whole.grads.values()), {**self.have, **whole.cotangents}, self.sizes)
            self.whole.append(locate(topological(whole.grads.values()), values, "backward"))
            self.broken = True
        elif residual <= EXACT:
            self.add_whole(PASS, residual)
        elif not all(e.passed for e in self.entries):
            self.broken = True
            self.add_whole(WRONG_VJP, residual, "follows from the nodes above")
        elif any(e.verdict == KINK for e in self.entries):
            self.add_whole(KINK, 0.0, "a value lies at a kink, where the derivative is one-sided")
        else:
            self.broken = True
            self.blame_sums(whole, residual)

    def add_whole(self, verdict: str, residual: float, note: str = "", name: str = "") -> None:
        self.whole.append(Entry(verdict, "whole graph", residual, name, note=note, whole=True))

    def blame_sums(self, whole: Whole, residual: float) -> None:
        """All kinds of nodes are right and the whole is not: the edge, or the one node that differs from its kind."""
        edges = whole.wrong_edges()
        for t, name, note, size in edges:
            if t.inputs:
                site = Site(t, [self.have[x] for x in t.inputs], self.sizes)
                own = [f for f in check_site(site, self.rng, self.directions) if f.verdict not in (PASS, KINK)]
                if own:
                    self.entries += [self._entry(t, f, 1, ()) for f in own]
                    continue
            entry = self._entry(t, Finding(name, WRONG_SUM, size, note), 1, ())
            entry.op = t.path or t.op.name
            self.entries.append(entry)
            self.residuals[t] = size
        note = "" if edges else "all nodes are right, and every sum that was traced"
        self.add_whole(WRONG_SUM, residual, note or "follows from the sums above")


def _gradient_graph(run: _Run) -> tuple[Graph, dict[Tensor, Any]] | None:
    whole = run.gradient
    if whole is None or not whole.grads:
        return None
    second = Graph({f"∂{t.label}": g for t, g in whole.grads.items()}, name=f"gradient of {run.graph.name}")
    return second, {t: a for t, a in {**run.have, **whole.cotangents}.items() if t.op.leaf}


def _finite(a: Any) -> bool:
    return (
        all(map(_finite, a))
        if isinstance(a, tuple)
        else np.asarray(a).dtype.kind != "f" or bool(np.all(np.isfinite(a)))
    )


_DIGITS = re.compile(r"(?<![^.])\d+(?![^.])")


def block(t: Tensor) -> str:
    """The layer with its numbers left out: `layers.*.attn`."""
    return _DIGITS.sub("*", t.scope.path)


def _kind(t: Tensor, inside: tuple[str, ...]) -> Any:
    """What nodes of one kind share: op, attributes, types of their inputs, place in blocks of one structure."""
    types = tuple((x.shape, x.dtype) if x.specs is None else x.specs for x in t.inputs)
    attrs = tuple((k, _plain(v)) for k, v in t.attrs.items() if k != "identity")
    return (t.op, attrs, types, block(t), t.scope.kind, t.scope.component, t.scope.backward, inside)


def _plain(v: Any) -> Any:
    return (
        (v.shape, v.tobytes())
        if isinstance(v, np.ndarray)
        else tuple(map(_plain, v))
        if type(v) is tuple
        else (type(v), v)
    )


__all__ = ["STAGES", "check_grads"]
