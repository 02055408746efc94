"""Reverse-mode differentiation. Gradients are nodes of the same graph, in the ∂ twin of the layer they belong to."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, cast

from . import dims
from .collector import uncollected
from .errors import GradError, counted
from .op import Op, operand
from .ops.elementwise import add
from .ops.elementwise import cast as cast_
from .ops.leaf import INPUT, carried, const, enter, exit, full
from .ops.movement import sum_to
from .tensor import PICK, Scope, Tensor, as_tensor, at, make, picks, topological


def grad(y: Tensor, wrt: Any, cotangent: Any = None, *, unused: str = "error") -> Any:
    """The gradient of a scalar `y` (or of <cotangent, y>) with respect to `wrt`, in the structure of `wrt`.

    `unused`: what to do for a tensor that y does not depend on: "error", "none" or "zero".
    Raises GradError[TG401] if y is no scalar and no cotangent is given, [TG402] for an unused tensor,
    [TG403] for one that is not floating, [TG404] for an op without a rule.
    """
    y = as_tensor(y)
    if not y.dtype.is_float:
        raise GradError("TG403", f"a gradient of {y.dtype} values does not exist", operands=[operand(y, "y")])
    if cotangent is None:
        if y.shape:
            raise GradError(
                "TG401",
                "grad needs a scalar",
                operands=[operand(y, "y")],
                hint="y.sum(), or give a cotangent of y's shape",
            )
        cotangent = const(1.0, y.dtype)
    return vjp([y], wrt, [as_tensor(cotangent, y.dtype)], unused=unused)


def vjp(ys: list[Tensor], wrt: Any, cotangents: list[Tensor], *, unused: str = "error") -> Any:
    """Cotangents of `wrt` for given cotangents of `ys`, in the structure of `wrt` (tensors in lists, tuples, dicts)."""
    if unused not in ("error", "none", "zero"):
        raise GradError("TG406", f'unused must be "error", "none" or "zero", not {unused!r}')
    for y, c in zip(ys, cotangents, strict=True):
        if not dims.same_shape(y.shape, c.shape):
            text = f"a cotangent must have the shape of its value, {dims.show_shape(y.shape)}"
            raise GradError("TG407", text, operands=[operand(y, "y"), operand(c, "cotangent")])
    flat: list[Tensor] = []
    spec = _flatten(wrt, flat)
    for x in flat:
        if not x.dtype.is_float:
            raise GradError(
                "TG403", f"a gradient with respect to {x.dtype} values does not exist", operands=[operand(x, "x")]
            )
    found = backward(ys, flat, cotangents)
    grads: list[Tensor | None] = []
    for x in flat:
        g = found.get(x)
        if g is None and unused == "error":
            raise GradError(
                "TG402",
                f"no path leads from {x.label or x.op.name} to {ys[0].label or ys[0].op.name}: its gradient is zero",
                operands=[operand(x, "x"), operand(ys[0], "y")],
                notes=_where_cut(ys, x),
                hint='unused="zero" or unused="none" accepts that',
            )
        if g is None and unused == "zero":
            g = full(x.shape, 0.0, x.dtype)
        grads.append(g)
    it = iter(grads)
    return _unflatten(spec, it)


def _flatten(tree: Any, out: list[Tensor]) -> Any:
    if isinstance(tree, dict):
        return {k: _flatten(v, out) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)([_flatten(v, out) for v in tree])
    out.append(as_tensor(tree))
    return None


def _unflatten(spec: Any, it: Any) -> Any:
    if isinstance(spec, dict):
        return {k: _unflatten(v, it) for k, v in spec.items()}
    if isinstance(spec, (list, tuple)):
        return type(spec)([_unflatten(v, it) for v in spec])
    return next(it)


def _where_cut(ys: list[Tensor], x: Tensor) -> list[str]:
    """If y does depend on x, the op at which no gradient passes."""
    order = topological(ys)
    reach = {x}
    for node in order:
        if any(i in reach for i in node.inputs):
            if node.op.nodiff or (node.specs is None and not node.dtype.is_float):
                why = node.op.nodiff or f"its result is {node.dtype}"
                return [f"the path is cut by {node.op.name} at {node.where or node.scope.path}: {why}"]
            reach.add(node)
    return []


class Adjoint:
    """How one node's cotangent came about: the total, and what each use added (user, which of its inputs, part)."""

    __slots__ = ("total", "uses")

    def __init__(self) -> None:
        self.total: Any = None
        self.uses: list[tuple[Tensor | None, int, Tensor]] = []


@uncollected
def backward(
    ys: Iterable[Tensor],
    wrt: Iterable[Tensor],
    cotangents: Iterable[Tensor],
    trace: dict[Tensor, Adjoint] | None = None,
) -> dict[Tensor, Tensor]:
    """Cotangents of those of `wrt` that the gradient reaches. Iterative; each node's rule runs once.

    `trace`, if given, is filled with the Adjoint of every node passed.
    """
    ys, wanted = list(ys), set(wrt)
    order = topological(ys)
    useful = _useful(order, wanted)
    hold = _carriers(order, useful)
    if hold:
        useful = _useful(order, wanted | hold)
    carries: dict[Tensor, Tensor] = {}
    pending: dict[Tensor, list[Any]] = {}
    for y, seed in zip(ys, cotangents, strict=True):
        pending.setdefault(y, []).append(seed)
        if trace is not None:
            trace.setdefault(y, Adjoint()).uses.append((None, 0, seed))
    done: dict[Tensor, Tensor] = {}
    for node in reversed(order):
        parts = pending.pop(node, None)
        if parts is None or node not in useful:
            continue
        with at(node.scope.twin, node.loc):
            if node.specs is not None:
                g: Any = _collect_outputs(node, parts)
            else:
                g = cast("Tensor", functools.reduce(add, parts))
                if node in wanted:
                    done[node] = g
            if trace is not None:
                trace.setdefault(node, Adjoint()).total = g
            if node in hold:
                carries[node] = g
            if not node.inputs or node in hold:
                continue
            if node.op is PICK:
                pending.setdefault(node.inputs[0], []).append((node.attrs["index"], g))
                continue
            needs = [i in useful for i in node.inputs]
            for i, (x, need, c) in enumerate(zip(node.inputs, needs, cotangents_of(node, g, needs), strict=True)):
                if need and c is not None:
                    part = _fit(c, x, node)
                    pending.setdefault(x, []).append(part)
                    if trace is not None:
                        trace.setdefault(x, Adjoint()).uses.append((node, i, part))
    for node, carry in carries.items():
        done = _hand_back(done, node, carry)
    return done


def _useful(order: list[Tensor], wanted: set[Tensor]) -> set[Tensor]:
    """Nodes through which a gradient can reach something wanted."""
    out: set[Tensor] = set()
    for node in order:
        if node in wanted or (not node.op.nodiff and any(i in out for i in node.inputs)):
            out.add(node)
    return out


# A block repeated n times hands the gradient of what it carries from each run to the one before, also where nobody asks
# for the gradient of the first value carried in: then n - 1 runs make it, and the gradients within depend on it.


def _carriers(order: list[Tensor], useful: set[Tensor]) -> set[Tensor]:
    """The `enter` nodes that no wanted gradient lies behind, of repeated blocks in which one lies.

    Of blocks within blocks the outermost: behind the inner ones lies what that one hands on.
    """
    within = {t.attrs["loop"]: t.scope.backward for t in order if t.op is exit and t in useful}
    out: set[Tensor] = set()
    reached = set(useful)
    for t in order:
        if not t.op.nodiff and any(x in reached for x in t.inputs):
            reached.add(t)
        elif t.op is enter and t.dtype.is_float and within.get(t.attrs["loop"]) == t.scope.backward:
            out.add(t)
            reached.add(t)
    return out


def _hand_back(done: dict[Tensor, Tensor], node: Tensor, g: Tensor) -> dict[Tensor, Tensor]:
    """`done`, its gradients from within the block tied to the carried one, whose own nodes count n - 1 times.

    Those of a block within it that hands on gradients of its own count once less than they run: m·n - 1 times.
    """
    loop = node.attrs["loop"]
    kept = set(topological(done.values()))
    handing = {t.attrs["loop"] for t in kept if t.op is enter and t.scope.backward}
    outside = node.inputs[0].scope.times
    scopes: dict[Scope, Scope] = {}
    new: dict[Tensor, Tensor] = {}
    for t in topological([g]):
        if t in kept or not t.scope.backward or dims.same(t.scope.times, 1):
            continue
        if t.scope not in scopes:
            times = dims.sub(t.scope.times, outside)
            if t.scope.loop not in handing:
                times = dims.mul(dims.div(t.scope.times, loop.count), dims.sub(loop.count, 1))
            scopes[t.scope] = t.scope.copy(times)
        inputs = tuple([new.get(i, i) for i in t.inputs])
        new[t] = make(t.op, inputs, t.attrs, scopes[t.scope], t.loc, (t.shape, t.dtype, t.specs))
    with at(node.inputs[0].scope.twin, node.loc):
        carry = exit(new.get(g, g), loop=loop)
    inside = {t for t in topological(done.values()) if t.op is enter and t.attrs["loop"] is loop and t.scope.backward}
    return {
        x: make(carried, (y, carry), {}, y.scope, y.loc, (y.shape, y.dtype, None))
        if inside & set(topological([y]))
        else y
        for x, y in done.items()
    }


def _collect_outputs(node: Tensor, parts: list[tuple[int, Tensor]]) -> tuple[Tensor | None, ...]:
    """One cotangent per result: zeros for a floating one that is not used, None for one that is not floating."""
    assert node.specs is not None
    out: list[Tensor | None] = [None] * len(node.specs)
    for i, g in parts:
        have = out[i]
        out[i] = g if have is None else add(have, g)
    return tuple(
        full(shape, 0.0, kind) if g is None and kind.is_float else g
        for g, (shape, kind) in zip(out, node.specs, strict=True)
    )


def _fit(g: Tensor, x: Tensor, node: Tensor) -> Tensor:
    """A cotangent summed to the shape of its input and cast to its dtype: broadcasting is undone here alone.

    Raises GradError[TG408] for a cotangent whose shape the input's does not broadcast to.
    """
    if g.shape is not x.shape:
        lead = g.ndim - x.ndim
        if lead < 0 or not all(
            dims.same(a, b) or dims.same(a, 1) for a, b in zip(x.shape, g.shape[lead:], strict=True)
        ):
            shapes = dims.show_shape(g.shape), dims.show_shape(x.shape)
            text = (
                f"the rule of {node.op.name} gives a cotangent of shape {shapes[0]} for an input of shape {shapes[1]}"
            )
            raise GradError("TG408", text, operands=[operand(x), operand(g, "cotangent")])
        g = sum_to(g, x.shape)
    if g.dtype is not x.dtype and g.dtype != x.dtype:
        g = cast_(g, x.dtype)
    return g


def cotangents_of(node: Tensor, g: Any, needs: list[bool]) -> list[Tensor | None]:
    """What a node's rule gives for each of its (present) inputs, before un-broadcasting.

    Raises GradError[TG404] for an op without a rule, [TG409] for a rule that gives too few or too many cotangents, or
    something else than tensors. Trailing inputs that need none may be left out.
    """
    op = node.op
    rule = overrides.get(op) or op.vjp_fn
    if rule is None:
        if op.body is None:
            raise GradError(
                "TG404",
                f"{op.name} has no gradient rule",
                operands=[operand(node)],
                hint=f"write one: @{op.name}.vjp, a function (g, y, *inputs, **attributes) -> one cotangent per input",
            )
        return _vjp_of_body(node, g, needs)

    result = rule(g, picks(node), *node.args(), **node.kwargs)
    if not isinstance(result, (tuple, list)):
        result = (result,)
    if not op.variadic and len(result) > len(op.inputs):
        raise _odd(node, f"gives {counted(len(result), 'cotangent')} for {counted(len(op.inputs), 'input')}")
    if op.has_optional:
        absent = node.attrs.get("absent", ())
        result = [r for r, p in zip(result, op.inputs, strict=False) if p.name not in absent]
    if any(needs[len(result) :]):
        raise _odd(node, f"gives {counted(len(result), 'cotangent')} for {counted(len(node.inputs), 'input')}")
    out: list[Tensor | None] = []
    for need, given in itertools.zip_longest(needs, result[: len(needs)]):
        c = given() if need and callable(given) and not isinstance(given, Tensor) else given
        if need and c is not None and not isinstance(c, Tensor):
            raise _odd(node, f"gives an object of type {type(c).__name__}, not a tensor")
        out.append(c if need else None)
    return out


def _odd(node: Tensor, what: str) -> GradError:
    return GradError(
        "TG409",
        f"the rule of {node.op.name} {what}",
        operands=[operand(node)],
        hint="it returns a tuple with one tensor per input, or None where no gradient passes",
    )


overrides: dict[Op, Callable[..., Any]] = {}  # tg.testing.override puts wrong rules here, and takes them away again


# --------------------------------------------------------------------------- rules read off definitions


class _Template(NamedTuple):
    """The gradient of an op's body, made once on placeholders and copied wherever the same types occur."""

    inputs: tuple[Tensor, ...]
    g: tuple[Tensor, ...]
    order: list[Tensor]
    result: tuple[Tensor | None, ...]


_templates: dict[Any, _Template] = {}
MOST_TEMPLATES = 256


def expanded(node: Tensor, inputs: Iterable[Tensor] | None = None) -> Any:
    """The op's definition on this node's inputs, in its scope and at its line: what inlining puts in its place."""
    body = node.op.body
    assert body is not None
    with at(node.scope, node.loc):
        return body(*node.args(inputs), **node.kwargs)


def _placeholder(x: Tensor, name: str) -> Tensor:
    return Tensor(INPUT, (), {}, x.shape, x.dtype, x.scope, x.loc, name)


def _vjp_of_body(node: Tensor, g: Any, needs: list[bool]) -> list[Tensor | None]:
    gs = g if isinstance(g, tuple) else (g,)
    if node.scope.loop is not None:  # placeholders of a repeated block belong to that block
        key = None
    else:
        types = tuple((x.shape, x.dtype) for x in node.inputs)
        key = (node.op, types, tuple(node.attrs.items()), tuple(needs), tuple(c is None for c in gs))
        try:
            hash(key)
        except TypeError:
            key = None
    template = _templates.get(key) if key is not None else None
    if template is None:
        template = _make_template(node, gs, needs)
        if key is not None:
            if len(_templates) >= MOST_TEMPLATES:
                _templates.clear()
            _templates[key] = template
    swap: dict[Tensor, Tensor] = dict(zip(template.inputs, node.inputs, strict=True))
    swap.update(zip(template.g, [c for c in gs if c is not None], strict=True))
    twin = node.scope.twin
    for t in template.order:
        if t not in swap:
            swap[t] = (
                make(t.op, tuple([swap[i] for i in t.inputs]), t.attrs, twin, node.loc, (t.shape, t.dtype, t.specs))
                if t.inputs or not t.op.leaf
                else t
            )
    return [None if r is None else swap[r] for r in template.result]


def _make_template(node: Tensor, gs: tuple[Any, ...], needs: list[bool]) -> _Template:
    inputs = tuple(_placeholder(x, f"x{i}") for i, x in enumerate(node.inputs))
    ys = expanded(node, inputs)
    ys = list(ys) if isinstance(ys, tuple) else [ys]
    live = [(y, c) for y, c in zip(ys, gs, strict=True) if c is not None]
    g = tuple(_placeholder(c, f"g{i}") for i, (_, c) in enumerate(live))
    found = backward([y for y, _ in live], [x for x, n in zip(inputs, needs, strict=True) if n], list(g))
    result = tuple(found.get(x) if n else None for x, n in zip(inputs, needs, strict=True))
    return _Template(inputs, g, topological(r for r in result if r is not None), result)


def value_and_grad(y: Tensor, wrt: Any, **kwargs: Any) -> tuple[Tensor, Any]:
    """`(y, grad(y, wrt))`."""
    return y, grad(y, wrt, **kwargs)


__all__ = ["backward", "cotangents_of", "expanded", "grad", "overrides", "value_and_grad", "vjp"]
