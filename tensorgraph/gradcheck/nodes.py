"""One node alone: its rule against the derivative of its forward, for each input, by the adjoint identity."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import autodiff
from ..complex_numpy import complex_numpy, guarded
from ..dims import evaluate as evaluate_size
from ..errors import GradError, TensorgraphError
from ..interpret import compute, shape_of
from ..op import DataRange
from ..ops.leaf import INPUT
from ..tensor import Tensor, at, make, pick, topological
from .explain import explain
from .program import Program, function_of
from .reference import (
    EXACT,
    LONG,
    ROUGH,
    Function,
    NotComplex,
    Slope,
    adjoint_residual,
    agrees,
    complex_step,
    distance,
    extrapolated,
    jvp,
    remainder_order,
    signed,
    unsteady,
)
from .report import KINK, NONDETERMINISTIC, NONFINITE, PASS, PRECISION, WRONG_VJP
from .sampling import draw

NEAR = 1e-3  # a kink closer than this may be why a derivative differs
SOME, MORE = 2, 16  # further points at which a rule is checked; MORE where it goes by cases
CHOOSING = ("max", "min", "maximum", "minimum")


@dataclass
class Finding:
    """The verdict on one input of one node."""

    input: str
    verdict: str
    residual: float
    note: str = ""
    method: str = "complex step"


class Place:
    """Where a node stands: the values of its inputs and which of them `moved` ones are, the ops whose definition it is
    part of, the nodes of the graph (`roots`) that hold it, and how many nodes it stands for."""

    def __init__(
        self,
        node: Tensor,
        args: list[Any],
        moved: set[Tensor],
        inside: tuple[str, ...] = (),
        count: int = 1,
        roots: Sequence[Tensor] = (),
    ) -> None:
        self.node, self.args, self.inside, self.count, self.roots = node, args, inside, count, list(roots)
        self.moves = tuple(x in moved for x in node.inputs)


def moving(order: Sequence[Tensor], moved: Iterable[Tensor] = ()) -> set[Tensor]:
    """The nodes of an order that move when the floating leaves do, or those in `moved`: all others are constants."""
    out = set(moved)
    for t in order:
        behind = t.op.name in ("input", "param") or (not t.op.nodiff and any(x in out for x in t.inputs))
        if behind and (t.specs is not None or t.dtype.is_float):
            out.add(t)
    return out


class Site:
    """A node on stand-ins of its inputs, with their values: what is checked on its own."""

    def __init__(self, node: Tensor, args: Sequence[Any], binding: Mapping[str, int]) -> None:
        self.source, self.binding = node, binding
        self.inputs = tuple(
            Tensor(INPUT, (), {}, x.shape, x.dtype, x.scope, x.loc, f"x{i}", x.specs) for i, x in enumerate(node.inputs)
        )
        self.node = make(node.op, self.inputs, node.attrs, node.scope, node.loc, (node.shape, node.dtype, node.specs))
        self.args = [np.asarray(a) if not isinstance(a, tuple) else a for a in args]
        self.outs = [(i, t) for i, t in enumerate(self.results()) if t.dtype.is_float]
        self.function = function_of(self.node, binding)
        self.y = self.compute(self.args)
        self._rules: dict[int, tuple[Program | None, list[Tensor]]] = {}

    def at_values(self, args: Sequence[Any]) -> Site:
        """The same site at other values of its inputs."""
        other = copy.copy(self)
        other.args, other.y = list(args), self.compute(args)
        return other

    def results(self) -> list[Tensor]:
        return [self.node] if self.node.specs is None else [pick(self.node, i) for i in range(len(self.node.specs))]

    def compute(self, args: Sequence[Any]) -> Any:
        with guarded():
            return self.function(args)

    def run(self, args: Sequence[Any]) -> list[Any]:
        """The floating outputs."""
        y = self.compute(args)
        return [y[i] if self.node.specs is not None else y for i, _ in self.outs]

    def only(self, j: int, args: Sequence[Any] | None = None) -> Function:
        """The floating outputs as a function of input j alone."""
        rest = list(self.args if args is None else args)
        return lambda xs: self.run([*rest[:j], xs[0], *rest[j + 1 :]])

    def slots(self) -> Iterator[tuple[int, str]]:
        """Number and name of every differentiable input."""
        names = input_names(self.source)
        for j, x in enumerate(self.inputs):
            if x.specs is None and x.dtype.is_float:
                yield j, names[j]

    def rule(self, j: int) -> tuple[Program | None, list[Tensor]]:
        """The cotangent of input j as a program, and the stand-ins of the outputs' cotangents."""
        if j in self._rules:
            return self._rules[j]
        gs = [Tensor(INPUT, (), {}, t.shape, t.dtype, t.scope, t.loc, f"g{i}") for i, t in self.outs]
        results = self.results()
        with at(self.node.scope, self.node.loc):
            found = autodiff.backward([results[i] for i, _ in self.outs], [self.inputs[j]], gs)
        c = found.get(self.inputs[j])
        given = (*self.inputs, *gs, self.node)
        stray = [
            t for t in topological([c] if c is not None else [], stop=set(given)) if t.op.name in ("input", "param")
        ]
        if stray:
            raise GradError("TG416", f"the rule reads {stray[0].label}, which is not among what it is given")
        self._rules[j] = None if c is None else Program([c], given, self.binding), gs
        return self._rules[j]

    def cotangent(self, j: int, vs: Sequence[Any], args: Sequence[Any] | None = None) -> Any:
        """vjp(v) of input j, at `args` (as given at first if None). Zeros where the rule gives none."""
        args = self.args if args is None else args
        y = self.y if args is self.args else self.compute(args)
        c, gs = self.rule(j)
        if c is None:
            return np.zeros(np.shape(args[j]))
        values = {**dict(zip(self.inputs, args, strict=True)), **dict(zip(gs, vs, strict=True)), self.node: y}
        with guarded():
            return c(values)[0]

    def out_shapes(self) -> list[tuple[int, ...]]:
        return [shape_of(t, self.binding) for _, t in self.outs]


def input_names(node: Tensor) -> list[str]:
    """The op's own names for a node's inputs: x, weight; xs[0], xs[1] of an op that takes any number."""
    op = node.op
    if op.variadic:
        return [f"{op.inputs[0].name}[{i}]" for i in range(len(node.inputs))]
    absent = node.attrs.get("absent", ())
    return [p.name for p in op.inputs if p.name not in absent]


def has_rule(node: Tensor) -> bool:
    return node.op in autodiff.overrides or node.op.vjp_fn is not None


def opens(node: Tensor) -> bool:
    """Whether a node is nothing but its definition: then the nodes of that are checked in its place."""
    return node.op.body is not None and node.op.forward_fn is None and not has_rule(node)


def definition(place: Place, binding: Mapping[str, int]) -> list[Place]:
    """The nodes of an op's definition with the values of their inputs."""
    node = place.node
    inputs = tuple(Tensor(INPUT, (), {}, x.shape, x.dtype, x.scope, x.loc, f"x{i}") for i, x in enumerate(node.inputs))
    ys = autodiff.expanded(node, inputs)
    values: dict[Tensor, Any] = dict(zip(inputs, place.args, strict=True))
    order = topological(ys if isinstance(ys, tuple) else [ys], stop=values)
    moved = moving(order, {x for x, moves in zip(inputs, place.moves, strict=True) if moves})
    inside = (*place.inside, node.op.name)
    out = []
    with guarded():
        for t in order:
            have = [values[x] for x in t.inputs]
            values[t] = compute(t, have, binding, complex_numpy)
            out.append(Place(t, have, moved, inside, place.count, place.roots))
    return out


def check_site(site: Site, rng: np.random.Generator, directions: int) -> list[Finding]:
    """The adjoint identity <vjp(v), u> = <v, J u> for each input; a verdict and a reason for each.

    At the given values along `directions` directions, then at values drawn afresh in the op's domain: a branch that
    these data never take must not hide a wrong rule.
    """
    if site.source.op.nodiff or site.source.op.surrogate or not site.outs:
        return []
    sites = [site] * directions + list(fresh_sites(site, rng, MORE if chooses(site.source) else SOME))
    return [_check_input(sites, j, name, rng) for j, name in site.slots()]


def chooses(node: Tensor) -> bool:
    """Whether what a node computes depends on its data by cases."""
    op = node.op
    return bool(op.kinks) or op.name in CHOOSING or any(x.specs is None and not x.dtype.is_float for x in node.inputs)


def fresh_sites(site: Site, rng: np.random.Generator, count: int) -> Iterator[Site]:
    """The same node at other values: floats in the op's domain, integers in their ranges, booleans at random."""
    op, node = site.source.op, site.source
    ranges = {r.input: r for r in op.ranges(*node.args(), **node.kwargs)} if op.ranges else {}
    place = [i for i, x in enumerate(node.args()) if x is not None]
    for _ in range(count):
        args: list[Any] = []
        for i, (x, a) in enumerate(zip(site.inputs, site.args, strict=True)):
            if x.specs is not None:
                return
            if x.dtype.is_float:
                args.append(draw(rng, np.shape(a), *op.domain, op.kinks))
            elif x.dtype.kind == "b":
                args.append(rng.random(np.shape(a)) < 0.5)
            elif place[i] in ranges:
                args.append(_draw_ids(rng, np.shape(a), ranges[place[i]], site.binding).astype(x.dtype.np))
            else:
                args.append(rng.permutation(np.ravel(a)).reshape(np.shape(a)))
        try:
            other = site.at_values(args)
        except Exception:  # these values may lie outside a user's op: then only the given ones count
            return
        ys = other.y if isinstance(other.y, tuple) else (other.y,)
        if all(np.all(np.isfinite(y)) for y in ys if np.asarray(y).dtype.kind == "f"):
            yield other


def _draw_ids(rng: np.random.Generator, shape: tuple[int, ...], r: DataRange, binding: Mapping[str, int]) -> Any:
    high = evaluate_size(r.high, binding)
    a = rng.integers(r.low, max(high, r.low + 1), shape)
    if r.ignored is None or a.size < 2:
        return a
    drop = rng.random(shape) < 0.2
    drop.reshape(-1)[rng.integers(a.size)] = False
    return np.where(drop, r.ignored, a)


def _check_input(sites: list[Site], j: int, name: str, rng: np.random.Generator) -> Finding:
    worst, method = 0.0, "complex step"
    for k, site in enumerate(sites):
        u = signed(rng, np.shape(site.args[j]))
        vs = [signed(rng, s) for s in site.out_shapes()]
        try:
            c = np.asarray(site.cotangent(j, vs))
        except TensorgraphError as why:
            return Finding(name, WRONG_VJP, np.inf, f"the rule fails: {why.summary}")
        except Exception as why:  # a rule is the user's code
            return Finding(name, WRONG_VJP, np.inf, f"the rule fails: {type(why).__name__}: {why}")
        if c.shape != np.shape(site.args[j]):
            note = f"the rule gives the shape {list(c.shape)}, the input has {list(np.shape(site.args[j]))}"
            return Finding(name, WRONG_VJP, np.inf, note)
        if not np.all(np.isfinite(c)) and all(np.all(np.isfinite(np.asarray(a, float))) for a in site.args):
            return Finding(name, NONFINITE, np.inf, f"the rule gives {_nonfinite(c)}; inputs: {ranges(site)}")
        slope = jvp(site.only(j), [site.args[j]], [u], site.source.op.builtin)
        residual = adjoint_residual(c, u, vs, slope.value)
        method = slope.method
        if not agrees(residual, slope):
            residual, method, fine = _second_opinion(site, j, u, vs, residual, slope)
            if not fine:
                spread = distance([np.asarray(site.cotangent(j, vs))], [c])
                if spread > EXACT:
                    note = f"computed twice from the same values the rule's result differs by {spread:.1e}"
                    return Finding(name, NONDETERMINISTIC, spread, note)
                if k == 0 and (note := unsteady(residual, slope)):
                    return Finding(name, PRECISION, residual, note, method)
                found = _wrong(site, j, name, u, vs, c, residual, method, rng)
                if found.verdict == WRONG_VJP and site is not sites[0]:
                    found.note += " (at other values than the graph's)"
                if found.verdict == WRONG_VJP or k == 0:
                    return found
                continue
        worst = max(worst, residual)
    if chooses(sites[0].source) and kink_distance(sites[0], j) == 0.0:  # rule and derivative chose alike: so do others
        return _at_kink(name, 0.0, method)
    return Finding(name, PASS, worst, method=method)


def _second_opinion(
    site: Site, j: int, u: Any, vs: list[Any], residual: float, slope: Slope
) -> tuple[float, str, bool]:
    """Whether a residual is rounding, which long double shrinks, or a forward that complex numbers mislead."""
    if slope.method == "complex step" and np.isfinite(residual):
        if LONG is not np.float64:
            args = [a.astype(LONG) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a for a in site.args]
            wide = [v.astype(LONG) for v in vs]
            try:
                longer = complex_step(site.only(j, args), [args[j]], [u.astype(LONG)])
                finer = adjoint_residual(site.cotangent(j, wide, args), u, wide, longer.value)
                if finer <= residual / 30:
                    return finer, "complex step in long double", True
            except NotComplex:
                pass
        elif residual < 1e-9:
            return residual, "complex step", True
    if slope.error > 1e-7:  # a rough forward: the order of the remainder decides
        order = _order(site, j, u, vs)
        if order is not None and order > 1.7:
            return residual, "order of the remainder", True
    return residual, slope.method, False


def _order(site: Site, j: int, u: Any, vs: list[Any]) -> float | None:
    run = site.only(j)

    def value(h: float) -> float:
        with guarded():
            return float(sum(np.sum(v * y) for v, y in zip(vs, run([site.args[j] + h * u]), strict=True)))

    return remainder_order(value, float(np.sum(site.cotangent(j, vs) * u)))


def _wrong(
    site: Site, j: int, name: str, u: Any, vs: list[Any], c: Any, residual: float, method: str, rng: np.random.Generator
) -> Finding:
    gap = kink_distance(site, j)
    if (gap is None or gap < NEAR) and _legitimate(site, j, vs, c, rng):
        return _at_kink(name, gap, method)
    note, size = explain(site.only(j), site.args[j], u, vs, c, trusted=method == "complex step")
    return Finding(name, WRONG_VJP, size or residual, note, method)


def _at_kink(name: str, gap: float | None, method: str) -> Finding:
    where = f"{gap:.1e} from a kink" if gap is not None else "next to a kink"
    return Finding(name, KINK, 0.0, f"the input lies {where}; the rule gives one of its subgradients there", method)


def kink_distance(site: Site, j: int) -> float | None:
    """How far input j is from where the derivative jumps; None if the record does not say where that is."""
    op, x = site.source.op, np.asarray(site.args[j])
    if not x.size:
        return None
    if op.kinks:
        return float(min(np.min(np.abs(x - k)) for k in op.kinks))
    if op.name in ("maximum", "minimum"):
        return float(np.min(np.abs(np.asarray(site.args[0]) - np.asarray(site.args[1]))))
    if op.name in ("max", "min") and op.builtin:
        kept = [i for i in range(x.ndim) if i not in site.source.attrs["axis"]]
        rows = np.sort(
            np.transpose(x, (*kept, *site.source.attrs["axis"])).reshape(*(x.shape[i] for i in kept), -1), -1
        )
        if rows.shape[-1] < 2:
            return np.inf
        return float(np.min(rows[..., -1] - rows[..., -2] if op.name == "max" else rows[..., 1] - rows[..., 0]))
    return np.inf if op.builtin else None


def _legitimate(site: Site, j: int, vs: list[Any], c: Any, rng: np.random.Generator) -> bool:
    """Whether c lies among the limits of derivatives nearby (Clarke's subdifferential), element by element."""
    seen = []
    own = not site.source.op.builtin  # no complex step is to be trusted there
    for _ in range(16):
        args = list(site.args)
        x = np.asarray(args[j])
        args[j] = x + signed(rng, x.shape) * (1e-4 if own else 1e-7) * np.maximum(1, np.abs(x))
        u = signed(rng, x.shape)
        try:
            near = site.cotangent(j, vs, args)
            fn = site.only(j, args)
            slope = extrapolated(fn, [args[j]], [u], 2e-5) if own else complex_step(fn, [args[j]], [u])
        except (NotComplex, TensorgraphError):
            return False
        bound = max(1e-6 if own else 1e-9, 10 * slope.error)
        if slope.error > ROUGH or adjoint_residual(near, u, vs, slope.value) > bound:
            return False
        seen.append(near)
    low, high = np.min(seen, axis=0), np.max(seen, axis=0)
    slack = (1e-3 if own else 1e-5) * max(1e-300, float(np.max(np.abs(seen))))
    return bool(np.all(c >= low - slack) and np.all(c <= high + slack))


def _nonfinite(c: Any) -> str:
    return "nan" if np.isnan(c).any() else "inf"


def ranges(site: Site) -> str:
    """The range of each input's values, for messages."""
    return ", ".join(f"{n} in {value_range(a)}" for n, a in zip(input_names(site.source), site.args, strict=True))


def value_range(a: Any) -> str:
    """`[-1.2, 3.4]`, and how many elements are not finite."""
    a = np.asarray(a)
    if not a.size:
        return "[]"
    if a.dtype.kind not in "fV" and a.dtype.name != "bfloat16":
        return f"[{a.min()}, {a.max()}]"
    a = a.astype(np.float64)
    fine = a[np.isfinite(a)]
    text = f"[{fine.min():.4g}, {fine.max():.4g}]" if fine.size else "[]"
    parts = [
        f"{int(n)} {what}"
        for n, what in ((np.isnan(a).sum(), "nan"), (np.isposinf(a).sum(), "inf"), (np.isneginf(a).sum(), "-inf"))
        if n
    ]
    return text + (f" and {', '.join(parts)}" if parts else "")
