"""The checker is checked: every differentiable input of every op × a table of mutations of its rule.

    python tests/benchmarks/mutations.py

prints JSON: `mutants`, `equivalent` (differ from the right rule by less than 1e-9 on five samples), `killed` (the
report fails), `attributed` (it names exactly the mutated op and input), `survivors`, `misattributed`, by mutation and
in total. The mutated op stands between others, in a graph of its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import tensorgraph as tg
from tensorgraph import interpret, testing
from tensorgraph.complex_numpy import complex_numpy, guarded
from tensorgraph.gradcheck.nodes import Site, input_names
from tensorgraph.gradcheck.reference import norm, signed
from tensorgraph.gradcheck.sampling import small_sizes
from tensorgraph.op import REGISTRY, Op
from tensorgraph.ops.movement import sum_to
from tensorgraph.tensor import Tensor, make, topological

Rule = Callable[..., Any]
SAMPLES = 5
EQUIVALENT = 1e-9


class NotApplicable(Exception):
    """This mutation means nothing for this rule."""


class Call:
    """What a rule was called with: mutations that change the arguments call it again."""

    def __init__(self, op: Op, rule: Rule, g: Any, y: Any, inputs: tuple[Any, ...], attrs: dict[str, Any]) -> None:
        self.op, self.rule, self.g, self.y, self.inputs, self.attrs = op, rule, g, y, inputs, attrs

    def cotangents(self, g: Any = None, inputs: tuple[Any, ...] | None = None) -> list[Tensor | None]:
        """The right rule's result, for these or for other arguments (with the op's result on those)."""
        y = self.y if inputs is None else self.op(*inputs, **self.attrs)
        given = self.rule(self.g if g is None else g, y, *(self.inputs if inputs is None else inputs), **self.attrs)
        given = list(given) if isinstance(given, (tuple, list)) else [given]
        return [c() if callable(c) and not isinstance(c, Tensor) else c for c in given]


def scale(c: Tensor, call: Call, j: int) -> Tensor:
    return c * 1.01


def sign(c: Tensor, call: Call, j: int) -> Tensor:
    return -c


def drop_term(c: Tensor, call: Call, j: int) -> Tensor:
    """The second operand of the last addition, or else the last element, is left out."""
    added = [t for t in topological([c], stop=known(call)) if t.op.name in ("add", "sub")]
    if added:
        last = added[-1]
        return replaced(c, last, tg.expand(last.inputs[0], last.shape), call)
    if not c.ndim or type(c.shape[-1]) is not int or c.shape[-1] < 2:
        raise NotApplicable
    kept = np.ones(c.shape[-1])
    kept[-1] = 0.0
    return c * tg.const(kept, c.dtype)


def transpose(c: Tensor, call: Call, j: int) -> Tensor:
    """The last two axes swapped, or the one axis reversed."""
    if not c.ndim:
        raise NotApplicable
    return tg.swapaxes(c, -1, -2).reshape(c.shape) if c.ndim > 1 else tg.flip(c, 0)


def swap(c: Tensor, call: Call, j: int) -> Tensor:
    """The cotangent of another input of the same shape."""
    for i, x in enumerate(call.inputs):
        same = i != j and isinstance(x, Tensor) and x.dtype.is_float and x.shape == call.inputs[j].shape
        if same and (other := call.cotangents()[i]) is not None:
            return other
    raise NotApplicable


def missing_sum(c: Tensor, call: Call, j: int) -> Tensor:
    """One term in place of a sum: of the last `sum` in the rule, or of the broadcast that is undone."""
    shape = call.inputs[j].shape
    if c.shape != shape:
        lead = c.ndim - len(shape)
        row = tuple(0 if i < lead or shape[i - lead] == 1 != c.shape[i] else slice(None) for i in range(c.ndim))
        return c[row].reshape(shape)
    sums = [t for t in topological([c], stop=known(call)) if t.op.name == "sum" and t.attrs["axis"]]
    if not sums:
        raise NotApplicable
    t = sums[-1]
    first = t.inputs[0][tuple(slice(0, 1) if i in t.attrs["axis"] else slice(None) for i in range(t.inputs[0].ndim))]
    return replaced(c, t, first.reshape(t.shape), call)


def repeat_order(c: Tensor, call: Call, j: int) -> Tensor:
    """Groups and members mixed up: (g r) for (r g), along an axis that has both."""
    if call.op.name == "attention" and j in (1, 2) and call.inputs[0].shape[1] != call.inputs[1].shape[1]:
        q, k = call.inputs[:2]
        order = lambda t: regrouped(t, 1, k.shape[1])  # noqa: E731
        return call.cotangents(order(call.g), (order(q), *call.inputs[1:]))[j]
    for axis, n in enumerate(c.shape):
        if type(n) is int and n > 3 and any(n % a == 0 for a in range(2, n)):
            return regrouped(c, axis, next(a for a in range(2, n) if n % a == 0))
    raise NotApplicable


def stale(c: Tensor, call: Call, j: int) -> Tensor:
    """The rule sees its inputs as they were before a small update."""
    old = tuple(x * 0.875 if isinstance(x, Tensor) and x.dtype.is_float else x for x in call.inputs)
    return call.cotangents(inputs=old)[j]


MUTATIONS: dict[str, Callable[[Tensor, Call, int], Tensor]] = {
    "scale by 1 %": scale,
    "sign": sign,
    "drop a term": drop_term,
    "transpose": transpose,
    "swap": swap,
    "missing sum": missing_sum,
    "repeat order": repeat_order,
    "stale value": stale,
}


def known(call: Call) -> set[Tensor]:
    given = [
        *call.inputs,
        *(call.g if isinstance(call.g, tuple) else [call.g]),
        *(call.y if isinstance(call.y, tuple) else [call.y]),
    ]
    return {t for t in given if isinstance(t, Tensor)}


def replaced(c: Tensor, old: Tensor, new: Tensor, call: Call) -> Tensor:
    """c with one of the nodes it is computed from replaced."""
    value: dict[Tensor, Tensor] = {old: new}
    for t in topological([c], stop=known(call)):
        if t not in value and t.inputs:
            value[t] = make(t.op, tuple(value.get(x, x) for x in t.inputs), t.attrs, t.scope, t.loc)
    return value[c]


def regrouped(c: Tensor, axis: int, groups: int) -> Tensor:
    n = c.shape[axis]
    apart = c.reshape((*c.shape[:axis], groups, n // groups, *c.shape[axis + 1 :]))
    return tg.swapaxes(apart, axis, axis + 1).reshape(c.shape)


def mutated(op: Op, j: int, mutate: Callable[[Tensor, Call, int], Tensor], strict: bool = False) -> Rule:
    """The op's rule with the cotangent of parameter j mutated; where that means nothing, as it was.

    With `strict` NotApplicable is raised there.
    """
    rule = testing.right_rule(op)

    def vjp(g: Any, y: Any, *inputs: Any, **attrs: Any) -> list[Tensor | None]:
        call = Call(op, rule, g, y, inputs, attrs)
        out = call.cotangents()
        c = out[j]
        try:
            if c is None:
                raise NotApplicable
            if mutate is not missing_sum and c.shape != inputs[j].shape:
                c = sum_to(c, inputs[j].shape)
            out[j] = mutate(c, call, j)
        except NotApplicable:
            if strict:
                raise
        return out

    return vjp


# -------------------------------------------------------------------------------------------- running


def in_context(case: testing.Case) -> tuple[tg.Graph, Callable[[int], dict[str, Any]]]:
    """The op between others: floating inputs come from products, results go through tanh into a sum."""
    one = tg.input("one", (), "float64")
    inputs = [x * one if x is not None and x.dtype.is_float else x for x in case.inputs]
    attrs = {k: v for k, v in node_of(case).kwargs.items() if k != "identity"}
    result = case.op(*inputs, **attrs)
    results = [y for y in (result if isinstance(result, tuple) else (result,)) if y.dtype.is_float]
    weights = [tg.input(f"weight{i}", y.shape, "float64") for i, y in enumerate(results)]
    total = sum((tg.tanh(y) * w).sum() for y, w in zip(results, weights, strict=True))

    def values(seed: int) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        drawn = {t.label: a for t, a in case.values({}, seed).items()}
        return drawn | {"one": np.ones(())} | {w.label: signed(rng, w.shape) for w in weights}

    return tg.Graph(total), values


def node_of(case: testing.Case) -> Tensor:
    y = case.results[0]
    return y.inputs[0] if y.op.name == "pick" else y


def concrete(op: Op) -> Iterator[testing.Case]:
    """The op's samples with numbers for sizes."""
    for s in op.samples:
        yield testing.build(op, s, small_sizes(testing.build(op, s).graph))


def cotangent(case: testing.Case, j: int, seed: int) -> Any:
    """What the rule in force gives for present input j, for random cotangents."""
    rng = np.random.default_rng(seed)
    values = case.values({}, seed)
    node = node_of(case)
    with guarded():
        args = interpret.evaluate(node.inputs, values, {}, complex_numpy)
    site = Site(node, args, {})
    return np.asarray(site.cotangent(j, [signed(rng, s) for s in site.out_shapes()]), np.float64)


def differs(op: Op, case: testing.Case, j: int, rule: Rule) -> float:
    """The largest relative difference from the right rule on five samples."""
    worst = 0.0
    for seed in range(SAMPLES):
        right = cotangent(case, j, seed)
        with testing.override(op, rule):
            wrong = cotangent(case, j, seed)
        worst = max(worst, norm(wrong - right) / max(norm(right), 1e-300) if norm(wrong - right) else 0.0)
    return worst


def mutants(op: Op) -> Iterator[tuple[str, str, testing.Case, int, int]]:
    """(mutation, input name, case, number of the present input, of the parameter), for every sample."""
    for case in concrete(op):
        node = node_of(case)
        names = input_names(node)
        slots = [i for i, x in enumerate(case.inputs) if x is not None]
        for j, x in enumerate(node.inputs):
            if x.dtype.is_float:
                for name in MUTATIONS:
                    yield name, names[j], case, j, slots[j]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", help="only this op")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.perf_counter()
    counts: dict[str, Counter[str]] = {name: Counter() for name in MUTATIONS}
    survivors, elsewhere, errors = [], [], []
    for op in REGISTRY.values():
        if op.nodiff or not op.samples or (options.op and op.name != options.op):
            continue
        for name, slot, case, j, parameter in mutants(op):
            what = f"{case}: {slot}: {name}"
            try:
                gap = differs(op, case, j, mutated(op, parameter, MUTATIONS[name], strict=True))
            except NotApplicable:
                continue
            except tg.TensorgraphError as why:
                errors.append(f"{what}: {why.summary}")
                continue
            counts[name]["mutants"] += 1
            if gap < EQUIVALENT:
                counts[name]["equivalent"] += 1
                continue
            graph, values = in_context(case)
            with testing.override(op, mutated(op, parameter, MUTATIONS[name])):
                report = tg.check_grads(graph, values=values(options.seed), seed=options.seed)
            if report:
                survivors.append(what)
                continue
            counts[name]["killed"] += 1
            blamed = {(e.op, e.input) for e in report.wrong if not e.whole}
            if blamed == {(op.name, slot)}:
                counts[name]["attributed"] += 1
            else:
                elsewhere.append(f"{what}: {sorted(blamed)}")
    total: Counter[str] = sum(counts.values(), Counter())
    living = total["mutants"] - total["equivalent"]
    out = {
        "mutants": total["mutants"],
        "equivalent": total["equivalent"],
        "killed": total["killed"],
        "attributed": total["attributed"],
        "kill_rate": round(total["killed"] / max(1, living), 4),
        "attribution_rate": round(total["attributed"] / max(1, living), 4),
        "survivors": survivors,
        "misattributed": elsewhere,
        "not_buildable": errors,
        "by_mutation": {n: dict(c) for n, c in counts.items()},
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(json.dumps(out, indent=2, ensure_ascii=False))
    return 0 if total["killed"] == living and total["attributed"] >= 0.95 * living else 1


if __name__ == "__main__":
    sys.exit(main())
