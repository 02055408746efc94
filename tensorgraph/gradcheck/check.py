"""Checking a graph's gradients: the whole along random directions, and every kind of node alone."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .. import autodiff
from ..complex_numpy import complex_numpy, guarded
from ..dims import binding as parse_binding
from ..errors import GradError, TensorgraphError
from ..graph import Graph
from ..interpret import compute, evaluate
from ..ops.leaf import INPUT
from ..ops.random import generator
from ..tensor import Tensor, as_tensor, topological
from .finite import locate
from .nodes import Finding, Place, Site, check_site, definition, input_names, moving, opens
from .precision import check_precision, paired
from .reference import EXACT, distance, norm
from .report import KINK, NO_PATH, NONDETERMINISTIC, PASS, WRONG_SUM, WRONG_VJP, Entry, Report, Residuals
from .sampling import sample_values, small_sizes
from .unroll import Unroller, has_loops, unrolled
from .whole import Whole, compute_all

STAGES = ("nodes", "whole", "precision")
RUNS = 2  # of a block that is repeated a symbolic number of times
SHOWN = 8  # sizes or places that a note lists
Values = dict[Tensor, Any]


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

    Sizes left symbolic are bound to small numbers, distinct where they meet; leaves without `values` are drawn in the
    domains of the ops that read them. Every kind of node is checked alone, per input, by <vjp(v), u> = <v, J u>; the
    whole graph along `directions` random directions; a graph that is right in float64 is then run in its own dtype.
    `order=2` checks the gradient's own gradient as well. `wrt`: what the whole is differentiated by (names, tensors or
    Parameters; every floating leaf if None). Blocks repeated a symbolic number of times are written out twice.

    Returns a Report, true if all is right. Raises GradError[TG411] if no small sizes fit, [TG412] for values that do
    not fit, [TG413] for an unknown stage, order or name in `wrt`.
    """
    with guarded():
        return _check(y, values, binding, seed, directions, order, wrt, tuple(stages))


def _check(
    y: Any,
    values: Mapping[str, Any] | None,
    binding: Any,
    seed: int,
    directions: int,
    order: int,
    wrt: Any,
    stages: tuple[str, ...],
) -> Report:
    start = time.perf_counter()
    if order not in (1, 2) or directions < 1 or not set(stages) <= set(STAGES):
        raise GradError("TG413", f"check_grads: order is 1 or 2, directions at least 1, stages are {', '.join(STAGES)}")
    declared = y if isinstance(y, Graph) else Graph(y)
    symbolic = declared.astype("float64")
    graph, unroller = symbolic, None
    if has_loops(symbolic.nodes):
        unroller = Unroller(symbolic.outputs.values(), RUNS)
        graph = Graph({k: unroller.value(t) for k, t in symbolic.outputs.items()}, name=declared.name)
    sizes = small_sizes(graph, parse_binding(binding) if binding else {})
    graph.check_binding(sizes)
    rng = generator(seed)
    leaves = sample_values(graph, sizes, rng, _spread(values, graph))
    cut, cut_leaves, notes = _without_surrogates(graph, leaves, sizes)
    run = _Run(cut, sizes, cut_leaves, rng, directions, _wanted(graph, wrt))
    run.notes += notes + _literal_sizes(declared) + _held_constant(symbolic)
    if not any(t.dtype.is_float for t in leaves):
        run.notes.append("no input or parameter is floating: there is no gradient to check")
    run.check(stages)
    if unroller is not None:
        run.notes.append(f"blocks repeated a symbolic number of times are checked with {RUNS} runs")
        run.check_loops(symbolic, unroller)
    whole = run.gradient
    if order == 2 and not run.broken and whole is not None and whole.grads:
        run.go_deeper(whole)
    if "precision" in stages and not run.broken and whole is not None and not notes:
        low = unrolled(declared, RUNS) if unroller is not None else declared
        floor = 1e-10 * max(map(norm, whole.adjoints.values()), default=0.0)
        run.entries += check_precision(low, graph, leaves, sizes, [whole.cotangents[g] for g in whole.gs], floor)
    colours = run.residuals
    if unroller is not None:
        colours = colours.renamed({copied: t for (t, _), copied in unroller.made.items()})
    colours = colours.renamed(paired(symbolic, declared))
    took = time.perf_counter() - start
    return Report(run.entries, run.whole, directions, seed, sizes, declared.name, run.notes, took, colours)


def _literal_sizes(graph: Graph) -> list[str]:
    """What happens to sizes that are numbers."""
    leaves = (*graph.inputs.values(), *graph.params.values())
    sizes = sorted({d for t in leaves for d in t.shape if type(d) is int and d > 1})
    if not sizes:
        return []
    shown = ", ".join(map(str, sizes[:SHOWN])) + (", ..." if len(sizes) > SHOWN else "")
    rest = "those left symbolic are bound to small ones, distinct where they meet"
    return [f"sizes given as numbers are kept: {shown} ({rest})"]


def _held_constant(graph: Graph) -> list[str]:
    """Where the user's own stop_gradient leaves something out of the gradient: right as asked for, if it was meant."""
    moved = moving(graph.nodes)
    held = [t for t in graph.nodes if t.op.name == "stop_gradient" and t.inputs[0] in moved]
    cuts = dict.fromkeys(" ".join(p for p in (t.scope.path, t.where) if p) for t in held)
    return [f"held constant by stop_gradient, as asked: {', '.join(list(cuts)[:SHOWN])}"] if cuts else []


def _spread(values: Mapping[str, Any] | None, graph: Graph) -> dict[str, Any]:
    """Values by name; one given for a parameter of a repeated block is that of each run."""
    leaves = {**graph.inputs, **graph.params}
    out: dict[str, Any] = {}
    for name, a in (values or {}).items():
        runs = [n for n in leaves if n.startswith(f"{name}[") and n[len(name) :].strip("[]0123456789") == ""]
        out.update(dict.fromkeys(runs, a) if name not in leaves and runs else {name: a})
    return out


def _wanted(graph: Graph, wrt: Any) -> list[Tensor] | None:
    if wrt is None:
        return None
    known = {**graph.inputs, **graph.params}
    out = []
    for w in wrt if isinstance(wrt, (list, tuple)) else [wrt]:
        name = w if isinstance(w, str) else as_tensor(w).label
        found = [known[n] for n in known if n == name or n.startswith(f"{name}[")]
        if not found:
            have = ", ".join(known)
            raise GradError(
                "TG413", f"{graph.name} has no input or parameter called {name!r}", notes=[f"it has {have}"]
            )
        out += found
    return out


def _without_surrogates(graph: Graph, leaves: Values, sizes: Mapping[str, int]) -> tuple[Graph, Values, list[str]]:
    """The graph with every value made by a surrogate rule as a leaf: around it derivatives are what they should be."""
    bent = [t for t in graph.nodes if t.op.surrogate and t.specs is None and t.dtype.is_float]
    if not bent:
        return graph, leaves, []
    have = compute_all(graph.nodes, leaves, sizes)
    stand_ins = {
        t: Tensor(INPUT, (), {}, t.shape, t.dtype, t.scope, t.loc, f"{t.op.name}#{i}") for i, t in enumerate(bent)
    }
    before = [x for t in bent for x in t.inputs if x.dtype.is_float and not x.op.leaf]
    outputs = {**graph.outputs, **{f"into {i}": x for i, x in enumerate(before)}}
    cut = Graph(outputs, name=graph.name).map(leaf=stand_ins.get)
    cut.outputs = {
        k: stand_ins.get(graph.outputs.get(k, y), y) if k in graph.outputs else y for k, y in cut.outputs.items()
    }
    notes = [f"{t.op.name} ({t.where or t.scope.path}): its rule is not the derivative: {t.op.surrogate}" for t in bent]
    return cut, {**leaves, **{s: have[t] for t, s in stand_ins.items()}}, notes


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
        known: Mapping[Any, Any] | None = None,
    ) -> None:
        self.graph, self.sizes, self.rng, self.directions, self.wrt = graph, sizes, rng, directions, wrt
        self.known = known or {}  # kinds that were checked before, in the graph whose gradient this is
        self.have: Values = dict(leaves)
        self.entries: list[Entry] = []
        self.whole: list[Entry] = []
        self.notes: list[str] = []
        self.kinds: dict[Any, Entry] = {}
        self.residuals = Residuals()
        self.broken = False
        self.gradient: Whole | None = None

    def check(self, stages: tuple[str, ...]) -> None:
        self.have = compute_all(self.graph.nodes, self.have, self.sizes)
        self.check_repeatable()
        if not all(_finite(self.have[y]) for y in self.graph.outputs.values()):
            self.whole.append(locate(self.graph.nodes, self.have, "forward"))
            self.broken = True
        if self.broken:
            return
        if "nodes" in stages:
            self.check_nodes()
        if "whole" in stages:
            self.check_whole()

    def check_repeatable(self) -> None:
        """A user's op must give the same twice."""
        for t in self.graph.nodes:
            if t.op.builtin or not t.inputs:
                continue
            args = [self.have[x] for x in t.inputs]
            copies = copy.deepcopy(args)
            with guarded():
                again = compute(t, copies, self.sizes, complex_numpy)
            for name, a, b in zip(input_names(t), args, copies, strict=True):
                if not _same(a, b):
                    note = "its forward writes into this input, which others read too"
                    self.entries.append(self._entry(t, Finding(name, NONDETERMINISTIC, np.inf, note), 1, ()))
                    self.broken = True
            pairs = zip(*(y if isinstance(y, tuple) else (y,) for y in (self.have[t], again)), strict=True)
            spread = max(distance([a], [b]) if _finite(a) and _finite(b) else 0.0 for a, b in pairs)
            if spread > EXACT:
                note = f"computed twice from the same inputs it differs by {spread:.1e} of the largest element"
                note += "; no derivative is checked before that is mended"
                self.entries.append(self._entry(t, Finding("", NONDETERMINISTIC, spread, note), 1, ()))
                self.broken = True

    # -- nodes
    def check_nodes(self) -> None:
        """Each kind once: definitions are opened level by level, so that a rule is blamed where it stands."""
        moved = moving(self.graph.nodes)
        level = [Place(t, [self.have[x] for x in t.inputs], moved, roots=[t]) for t in self.graph.nodes]
        while level:
            kinds: dict[Any, Place] = {}
            for place in level:
                if not any(place.moves):
                    continue  # no leaf moves it: it has no part in any gradient
                found = kinds.setdefault(_kind(place), place)
                if found is not place:
                    found.count += place.count
                    found.roots = found.roots + place.roots
            level = []
            for key, place in kinds.items():
                if opens(place.node):
                    level += definition(place, self.sizes)
                elif key not in self.known:
                    self._check_kind(key, place)

    def _check_kind(self, key: Any, place: Place) -> None:
        t, count, inside, roots = place.node, place.count, place.inside, place.roots
        findings = check_site(Site(t, place.args, self.sizes), self.rng, self.directions)
        if findings:  # of a constant, neither kink nor infinity matters
            moves = dict(zip(input_names(t), place.moves, strict=True))
            findings = [f for f in findings if moves[f.input] or f.verdict in (PASS, WRONG_VJP)]
        if not findings:
            return
        bad = [f for f in findings if f.verdict not in (PASS, KINK)]
        if bad and t.op.body is not None and t.op.vjp_fn is None and t.op not in autodiff.overrides:
            if self._blame(place):
                return
            bad[0].note += "; its forward and its definition disagree"
        worst = max(findings, key=lambda f: (f.verdict not in (PASS, KINK), f.verdict == KINK, f.residual))
        entry = self._entry(t, worst, count, inside)
        entry.inputs = {f.input: f.residual for f in findings}
        self._put(key, entry, roots)
        for f in bad:
            if f is not worst:
                self._put((key, f.input), self._entry(t, f, count, inside), roots)

    def _blame(self, place: Place) -> bool:
        """Whether a node of an op's definition has a wrong rule, which is then reported in the op's place."""
        found = False
        stack = definition(place, self.sizes)
        while stack:
            p = stack.pop()
            if opens(p.node):
                stack += definition(p, self.sizes)
                continue
            for f in check_site(Site(p.node, p.args, self.sizes), self.rng, self.directions):
                if f.verdict not in (PASS, KINK):
                    self._put((_kind(p), f.input), self._entry(p.node, f, p.count, p.inside), p.roots)
                    found = True
        return found

    def _put(self, key: Any, entry: Entry, roots: list[Tensor]) -> None:
        if key in self.kinds:
            self.kinds[key].count += entry.count
            return
        self.kinds[key] = entry
        self.entries.append(entry)
        part = entry.inside[1] if len(entry.inside) > 1 else entry.op if entry.inside else ""
        for r in roots:
            self.residuals.put(r, entry.residual, part)

    def _entry(self, t: Tensor, f: Finding, count: int, inside: tuple[str, ...]) -> Entry:
        types = f"{', '.join(x.type_text for x in t.inputs)} -> {t.type_text}"
        name = f.input if f.verdict != PASS else ""
        return Entry(
            f.verdict, t.op.name, f.residual, name, {}, f.note, t.scope.path, block(t), t.where, types, count, inside,
            t.scope.backward, f.method, t,
        )  # fmt: skip

    # -- the whole
    def check_whole(self) -> None:
        leaves = [t for t in self.graph.nodes if t.op.name in ("input", "param") and t.dtype.is_float]
        wanted = leaves if self.wrt is None else self.wrt
        whole = Whole(self.graph, self.sizes, self.have, wanted, self.rng, self.directions)
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
        for t in self.wrt or ():
            if t not in whole.grads:
                cut = "; ".join(autodiff._where_cut(whole.outs, t)) or "nothing leads from it to the result"
                self.add_whole(NO_PATH, np.inf, cut, t.label)
        if not all(map(_finite, whole.adjoints.values())):
            order = topological(whole.grads.values())
            values = compute_all(order, {**self.have, **whole.cotangents}, self.sizes)
            self.whole.append(locate(order, values, "backward"))
            self.broken = True
        elif residual <= whole.slack:
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
            self.residuals.put(t, size)
        note = "" if edges else "all nodes are right, and every sum that was traced"
        self.add_whole(WRONG_SUM, residual, note or "follows from the sums above")

    def check_loops(self, symbolic: Graph, unroller: Unroller) -> None:
        """The gradient of the graph with repeated blocks, written out, must be that of the graph written out.

        Also by the blocks' own leaves alone: then nothing before the blocks asks for the gradient they hand on.
        """
        whole = self.gradient
        if whole is None or self.broken:
            return
        outs = [y for y in symbolic.outputs.values() if y.specs is None and y.dtype.is_float]
        wanted = set(whole.wanted)
        leaves = [t for t in symbolic.nodes if t.op.name in ("input", "param") and t.dtype.is_float]
        leaves = [t for t in leaves if wanted & set(unroller.copies(t))]
        given = {**self.have, **whole.cotangents}
        for group in (leaves, [t for t in leaves if t.scope.loop is not None]):
            found = autodiff.backward(outs, group, whole.gs)
            backward = Unroller([*outs, *found.values()], RUNS)
            backward.made.update(unroller.made)
            for leaf, g in found.items():
                with guarded():
                    got = evaluate(backward.copies(g), given, self.sizes, complex_numpy)
                for one, a in zip(unroller.copies(leaf), got, strict=True):
                    true = whole.adjoints[whole.grads[one]] if one in whole.grads else np.zeros_like(a)
                    gap = norm(a - true) / max(norm(true), 1e-300) if norm(a - true) else 0.0
                    if gap > 1e-10:
                        self.add_whole(WRONG_SUM, gap, "the sum over the runs of a repeated block is wrong", one.label)
                        self.broken = True

    def check_held(self, stops: Mapping[tuple[Tensor, int], set[Tensor]]) -> None:
        """In the gradient of a gradient: what a rule holds constant must be so, else its own gradient lacks a part."""
        whole = self.gradient
        assert whole is not None
        for (t, slot), held in stops.items():
            whole.through = held
            residual = whole.residual()
            if residual > whole.slack:
                lines = ", ".join(dict.fromkeys(x.where for x in held if x.where))
                note = (
                    f"its rule holds by stop_gradient what is not constant: differentiated again it is wrong ({lines})"
                )
                key = (t.op, slot, t.attrs.get("absent"), "held")
                self._put(key, self._entry(t, Finding(input_names(t)[slot], WRONG_VJP, residual, note), 1, ()), [t])
                self.broken = True
        whole.through = set()

    def go_deeper(self, whole: Whole) -> None:
        """The gradient checked as a graph of its own; kinds of nodes seen before are not checked again."""
        second = Graph({f"∂{t.label}": g for t, g in whole.grads.items()}, name=f"gradient of {self.graph.name}")
        leaves = {t: a for t, a in {**self.have, **whole.cotangents}.items() if t.op.leaf}
        deeper = _Run(second, self.sizes, leaves, self.rng, self.directions, None, self.kinds)
        deeper.check(STAGES)
        if deeper.gradient is not None and not deeper.broken:
            deeper.check_held(whole.stops())
        for e in deeper.whole:
            e.op = "whole gradient" if e.op == "whole graph" else e.op
        self.whole += deeper.whole
        self.entries += deeper.entries
        self.broken |= deeper.broken


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return all(map(_same, a, b))
    return np.array_equal(a, b, equal_nan=np.asarray(a).dtype.kind == "f")


def _finite(a: Any) -> bool:
    if isinstance(a, tuple):
        return all(map(_finite, a))
    return np.asarray(a).dtype.kind != "f" or bool(np.all(np.isfinite(a)))


_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


def block(t: Tensor) -> str:
    """The layer with its numbers left out: `layers.*.attn`."""
    return _NUMBER.sub("*", t.scope.path)


def _kind(place: Place) -> Any:
    """What nodes of one kind share: op, attributes, types of their inputs, place in blocks of one structure."""
    t = place.node
    types = tuple((x.shape, x.dtype) if x.specs is None else x.specs for x in t.inputs)
    attrs = tuple((k, _plain(v)) for k, v in t.attrs.items() if k != "identity")
    return (t.op, attrs, types, block(t), t.scope.kind, t.scope.component, t.scope.backward, place.inside, place.moves)


def _plain(v: Any) -> Any:
    if isinstance(v, np.ndarray):
        return v.shape, v.tobytes()
    return tuple(map(_plain, v)) if type(v) is tuple else (type(v), v)


__all__ = ["STAGES", "check_grads"]
