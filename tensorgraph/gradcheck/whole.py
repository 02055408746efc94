"""The whole graph along random directions; where all nodes are right and the whole is not, the edge that is not."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import autodiff
from ..complex_numpy import complex_numpy, guarded
from ..errors import GradError, TensorgraphError
from ..graph import Graph
from ..interpret import bound, compute, evaluate, shape_of
from ..ops.leaf import INPUT
from ..tensor import Tensor, topological
from .nodes import has_rule, input_names, value_range
from .program import function_of
from .reference import EXACT, LONG, jvp, norm, signed

Values = dict[Tensor, Any]


def compute_all(order: Sequence[Tensor], have: Values, sizes: Mapping[str, int]) -> Values:
    """Values of all nodes from those of the leaves, every one kept."""
    out = dict(have)
    with guarded():
        for t in order:
            if t not in out:
                args = [out[x] for x in t.inputs]
                out[t] = compute(t, args, sizes, complex_numpy) if t.op.builtin else compute_own(t, args, sizes)
    return out


def compute_own(t: Tensor, args: Sequence[Any], sizes: Mapping[str, int]) -> Any:
    """A user's op, from copies of its inputs.

    Raises GradError[TG415] if it fails, or gives other shapes or another number of results than it declares.
    """
    where = f" ({t.where})" if t.where else ""
    try:
        with guarded():
            y = compute(t, [copy.deepcopy(a) for a in args], sizes, complex_numpy)
    except TensorgraphError:
        raise
    except Exception as why:
        given = ", ".join(f"{n} {value_range(a)}" for n, a in zip(input_names(t), args, strict=True))
        text = f"the forward of {t.op.name}{where} fails in float64: {type(why).__name__}: {why}"
        raise GradError("TG415", text, notes=[f"inputs: {given}"] if given else []) from why
    if t.specs is not None and len(y) != len(t.specs):
        text = f"the forward of {t.op.name}{where} gives {len(y)} result{'s' * (len(y) != 1)}"
        raise GradError("TG415", f"{text}, {len(t.specs)} are declared")
    parts = zip(y, [shape for shape, _ in t.specs], strict=True) if t.specs is not None else [(y, t.shape)]
    for i, (part, shape) in enumerate(parts):
        want = bound(shape, sizes)
        if np.shape(part) != want:
            which = f" as result {i}" if t.specs is not None else ""
            text = f"the forward of {t.op.name}{where} gives the shape {list(np.shape(part))}{which}"
            raise GradError("TG415", f"{text}, {list(want)} is declared")
    return y


class Whole:
    """The gradient of <cotangents, outputs>: its nodes, how each came about, and the directions it is checked along."""

    def __init__(
        self,
        graph: Graph,
        sizes: Mapping[str, int],
        have: Values,
        wanted: list[Tensor],
        rng: np.random.Generator,
        directions: int,
    ) -> None:
        self.graph, self.sizes, self.have, self.wanted = graph, sizes, have, wanted
        self.outs = [y for y in graph.outputs.values() if y.specs is None and y.dtype.is_float]
        self.gs = [
            Tensor(INPUT, (), {}, y.shape, y.dtype, y.scope.twin, y.loc, f"cotangent{i}")
            for i, y in enumerate(self.outs)
        ]
        self.cotangents = {g: signed(rng, shape_of(y, sizes)) for g, y in zip(self.gs, self.outs, strict=True)}
        self.moves = [{t: signed(rng, shape_of(t, sizes)) for t in wanted} for _ in range(directions)]
        self.functions: dict[Tensor, Any] = {}
        self.trace: dict[Tensor, autodiff.Adjoint] = {}
        self.grads: dict[Tensor, Tensor] = {}
        self.adjoints: Values = {}
        self.slack = EXACT  # what the references know the derivative to
        self.through: set[Tensor] = set()  # stop_gradients that tangents pass

    def build(self) -> None:
        """Make the gradient as nodes. Raises whatever a rule raises."""
        self.grads = autodiff.backward(self.outs, self.wanted, self.gs, self.trace)

    def solve(self, have: Values, kind: Any = np.float64) -> Values:
        """The value of every adjoint node, and of every part that was added to one."""
        asked: dict[Tensor, None] = dict.fromkeys(self.grads.values())
        for a in self.trace.values():
            totals = a.total if isinstance(a.total, tuple) else (a.total,)
            asked |= dict.fromkeys(t for t in totals if t is not None)
        given = {**have, **{g: v.astype(kind) for g, v in self.cotangents.items()}}
        with guarded():
            return dict(zip(asked, evaluate(asked, given, self.sizes, complex_numpy), strict=True))

    def tangents(self, moves: Mapping[Tensor, Any], have: Values) -> Values:
        """The derivative of every floating value when leaves move: node by node, each by a complex step."""
        out: Values = dict(moves)
        for t in self.graph.nodes:
            if t in self.through and t.inputs[0] in out:
                out[t] = out[t.inputs[0]]
            if t in out or t.op.nodiff or t.op.surrogate or not any(x in out for x in t.inputs):
                continue
            if t.op.name == "pick":
                part = out[t.inputs[0]][t.attrs["index"]]
                if part is not None:
                    out[t] = part
            elif (y := self.push(t, [out.get(x) for x in t.inputs], have)) is not None:
                out[t] = y
        return out

    def push(self, t: Tensor, tangents: Sequence[Any], have: Values) -> Any:
        """The tangent of one node from those of its inputs; None if none of its outputs is floating."""
        floats = [i for i, (_, d) in enumerate(t.specs or ((t.shape, t.dtype),)) if d.is_float]
        if not floats:
            return None

        fn = self.functions.get(t)
        if fn is None:
            fn = self.functions[t] = function_of(t, self.sizes)

        def run(xs: list[Any]) -> list[Any]:
            y = fn(xs)
            return [y[i] for i in floats] if t.specs is not None else [y]

        found = jvp(run, [have[x] for x in t.inputs], tangents, t.op.builtin)
        self.slack = max(self.slack, 10 * found.error)
        slope = found.value
        if t.specs is None:
            return slope[0]
        return tuple(slope[floats.index(i)] if i in floats else None for i in range(len(t.specs)))

    def measure(self, have: Values, adjoints: Values, moves: Mapping[Tensor, Any]) -> tuple[float, float]:
        """The gap of the adjoint identity over the whole, and its scale: the largest norm of products at any node."""
        tangents = self.tangents(moves, have)
        left = [np.sum(adjoints[g] * moves[t]) for t, g in self.grads.items()]
        right = [self.cotangents[g] * tangents[y] for g, y in zip(self.gs, self.outs, strict=True) if y in tangents]
        own = sum(norm(adjoints[g] * moves[t]) ** 2 for t, g in self.grads.items()) ** 0.5
        inner = [
            norm(adjoints[a.total] * tangents[t])
            for t, a in self.trace.items()
            if t in tangents and isinstance(a.total, Tensor) and not isinstance(tangents[t], tuple)
        ]
        scale = max(own, sum(norm(r) ** 2 for r in right) ** 0.5, 1e-3 * max(inner, default=0.0))
        return abs(float(sum(left) - sum(map(np.sum, right)))), scale

    def residual(self) -> float:
        """The worst relative gap along the directions; a gap that long double shrinks is rounding and counts so."""
        self.adjoints = self.solve(self.have)
        wide: tuple[Values, Values] | None = None
        worst = 0.0
        for moves in self.moves:
            gap, scale = self.measure(self.have, self.adjoints, moves)
            if gap > EXACT * scale and LONG is not np.float64:
                if wide is None:
                    leaves = {t: self.have[t] for t in self.have if not t.inputs}
                    long = {t: a.astype(LONG) if np.asarray(a).dtype.kind == "f" else a for t, a in leaves.items()}
                    have = compute_all(self.graph.nodes, long, self.sizes)
                    wide = have, self.solve(have, LONG)
                finer, _ = self.measure(*wide, {t: u.astype(LONG) for t, u in moves.items()})
                gap = finer if finer <= gap / 30 else gap
            worst = max(worst, gap / scale if scale and np.isfinite(gap) else np.inf if gap else 0.0)
        return worst

    # -- rules that hold something constant
    def stops(self) -> dict[tuple[Tensor, int], set[Tensor]]:
        """The stop_gradients that a rule makes within the cotangent of an input, by node and input."""
        out: dict[tuple[Tensor, int], set[Tensor]] = {}
        forward = set(self.graph.nodes)
        for a in self.trace.values():
            for user, slot, part in a.uses:
                if user is not None and has_rule(user):
                    total = self.trace[user].total
                    given = {user, *user.inputs, *(total if isinstance(total, tuple) else (total,))}
                    inside = topological([part], stop=given)
                    if found := {t for t in inside if t.op.name == "stop_gradient" and t not in forward}:
                        out[user, slot] = found
        return out

    # -- sums
    def wrong_edges(self) -> list[tuple[Tensor, str, str, float]]:
        """(node, input, what is wrong, residual) for every sum or use that breaks the adjoint identity, outputs first.

        Judged by partially accumulated adjoints: what a node received, and what it handed to each of its inputs.
        """
        parts = {p: None for a in self.trace.values() for _, _, p in a.uses}
        given = {**self.have, **self.cotangents, **self.adjoints}
        with guarded():
            value = dict(zip(parts, evaluate(parts, given, self.sizes, complex_numpy), strict=True))
        value.update(self.adjoints)
        tangents = self.tangents(self.moves[0], self.have)
        found = []
        for t, a in self.trace.items():
            if isinstance(a.total, Tensor) and a.uses and (wrong := self._wrong_sum(t, a, value)):
                found.append(wrong)
        for t, a in self.trace.items():
            found += self._wrong_uses(t, a, value, tangents)
        return found

    def _wrong_sum(self, t: Tensor, a: autodiff.Adjoint, value: Values) -> tuple[Tensor, str, str, float] | None:
        terms = [value[p] for _, _, p in a.uses]
        total = value[a.total]
        true = sum(terms)
        scale = max(norm(true), norm(total))
        residual = norm(total - true) / scale if scale else 0.0
        if residual <= max(1e-9, self.slack):
            return None
        for (user, slot, _), term in zip(a.uses, terms, strict=True):
            if user is not None and norm(total - (true - term)) <= 1e-9 * scale:
                where = ", ".join(p for p in (user.scope.path, user.where) if p)
                name = input_names(user)[slot]
                return (
                    t,
                    name,
                    f"the sum of {len(terms)} uses leaves out the one by {user.op.name} ({where}), input {name}",
                    residual,
                )
        return t, "", f"the sum over {len(terms)} uses is not the sum of its terms", residual

    def _wrong_uses(
        self, t: Tensor, a: autodiff.Adjoint, value: Values, tangents: Values
    ) -> list[tuple[Tensor, str, str, float]]:
        """Inputs of t to which it hands something else than its adjoint times its derivative."""
        if not t.inputs or not isinstance(a.total, Tensor) or t.op.name == "pick" or t not in tangents:
            return []
        out = []
        for j, x in enumerate(t.inputs):
            if x not in tangents or isinstance(tangents[x], tuple):
                continue
            handed = [p for user, slot, p in self.trace[x].uses if user is t and slot == j] if x in self.trace else []
            if not handed and x not in self.trace:
                continue  # nothing wanted lies behind it
            moved = self.push(t, [tangents[x] if i == j else None for i in range(len(t.inputs))], self.have)
            right = value[a.total] * moved
            left = value[handed[0]] * tangents[x] if handed else np.zeros(())
            scale = max(norm(left), norm(right))
            if scale and abs(np.sum(left) - np.sum(right)) > max(1e-9, self.slack) * scale:
                name = input_names(t)[j]
                residual = float(abs(np.sum(left) - np.sum(right)) / scale)
                says = "hands on something else than its adjoint times its derivative" if handed else "hands nothing on"
                out.append((t, name, f"{t.op.name} {says} to input {name}", residual))
        return out
