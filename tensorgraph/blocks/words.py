"""What repeats, what is left out of it and why, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from ..dims import show, show_shape
from ..tensor import Tensor
from .forms import Form, Kind, Layer, Part, Slot, parts_of


def pattern_text(part: Part) -> str:
    """A repeated stretch in words: `Block ×12`, `(5 Block + Block) ×8`."""
    pieces = []
    if part.body is not None and len(part.runs[0]) > 1:
        for inner in parts_of(part.runs[0], part.body):
            name = " + ".join(map(item_name, inner.runs[0]))
            pieces.append(f"{inner.times} {name}" if inner.times > 1 else name)
        return f"({' + '.join(pieces)}) ×{part.times}"
    return f"{item_name(part.runs[0][0])} ×{part.times}"


def item_name(item: Tensor | Layer) -> str:
    """What an item is called in words: a layer by its class, a node by its op."""
    if isinstance(item, Layer):
        item = namesake(item)
        return (item.scope.kind or item.scope.name or "layer") if item.scope is not None else "graph"
    return item.op.name


def namesake(layer: Layer) -> Layer:
    """The layer by which a layer is called: itself, or, if it only opens another (a list its block), that one."""
    while len(layer.items) == 1 and isinstance(layer.items[0], Layer):
        layer = layer.items[0]
    return layer


def left_out(layer: Layer, part: Part) -> list[tuple[str, str]]:
    """Layers beside a repeated stretch that are of the same class but fold with nothing, each with what differs."""
    run = {item_name(i): i for i in reversed(part.runs[0]) if isinstance(i, Layer)}
    forms = {i.form for i in part.runs[0] if isinstance(i, Layer)}
    out = []
    for item in (p.runs[0][0] for p in layer.parts() if p.times == 1):
        if isinstance(item, Layer) and item.scope is not None and (shown := run.get(item_name(item))) is not None:
            why = "equal, but no link of the chain" if item.form in forms else difference(item.form, shown.form)
            out.append((namesake(item).scope.path, why))  # type: ignore[union-attr]
    return out


def difference(a: Form, b: Form) -> str:
    """The first thing in which form `a` differs from form `b`, in words."""
    mine, others = _ops(a), _ops(b)
    if mine != others:
        more = [f"{n} {name} more" for name, n in (mine - others).items()]
        less = [f"{n} {name} less" for name, n in (others - mine).items()]
        return "has " + ", ".join((more + less)[:4])
    stack = [(a, b)]
    while stack:
        a, b = stack.pop()
        if a is b:
            continue
        for s, t in zip(a.slots, b.slots, strict=False):
            if s != t:
                return _slot_difference(s, t)
        for x, y in zip(a.steps, b.steps, strict=False):
            if x == y:
                continue
            if isinstance(x.what, Form) and isinstance(y.what, Form) and x.what is not y.what:
                stack.append((x.what, y.what))
                break
            if isinstance(x.what, Kind) and isinstance(y.what, Kind) and x.what is not y.what:
                return _kind_difference(x.what, y.what)
            if type(x.what) is type(y.what):
                return f"{_called(x.what)} reads other values"
            return f"has {_called(x.what)} where the others have {_called(y.what)}"
        else:
            if len(a.slots) != len(b.slots):
                return f"takes {len(a.slots)} values from outside, the others {len(b.slots)}"
            return f"has {a.size} nodes, the others {b.size}"
    return "no difference"


def _ops(form: Form) -> Counter[str]:
    """How often each op occurs in a form."""
    out: Counter[str] = Counter()
    stack = [form]
    while stack:
        for step in stack.pop().steps:
            if isinstance(step.what, Form):
                stack.append(step.what)
            else:
                out[step.what.op.name] += 1
    return out


def _called(what: Kind | Form) -> str:
    return what.op.name if isinstance(what, Kind) else f"a layer of {what.size} nodes"


def _slot_difference(a: Slot, b: Slot) -> str:
    if a.what != b.what:
        return f"takes a {a.what} where the others take a {b.what}"
    if a.what == "weight" and a.detail != b.detail:
        return f"the weight {_type(a)} is {'trained' if a.detail else 'frozen'}, the others' is not"
    return f"takes {_type(a)}, the others {_type(b)}" if _type(a) != _type(b) else "takes another constant"


def _type(s: Slot) -> str:
    return f"{s.dtype.short}{show_shape(s.shape)}" if s.dtype is not None else "several values"


def _kind_difference(a: Kind, b: Kind) -> str:
    if a.op is not b.op:
        return f"has {a.op.name} where the others have {b.op.name}"
    other = dict(b.attrs)
    for name, value in a.attrs:
        if name not in other or other[name] != value:
            return f"{a.op.name} with {name}={_value(value)}, the others {_value(other.get(name))}"
    return f"{a.op.name} gives another shape or dtype"


def trait(a: Form, b: Form) -> str:
    """What tells form `a` from `b`, short enough for a heading: `window 512`, `no window`, else the difference."""
    if _ops(a) == _ops(b):
        for x, y in zip(_kinds(a), _kinds(b), strict=True):
            other = dict(y.attrs)
            for name, value in x.attrs if x.op is y.op else ():
                if other.get(name) != value:
                    return f"no {name}" if value is None else f"{name} {_value(value)}"
    return difference(a, b).partition(", the others")[0]


def _kinds(form: Form) -> Iterator[Kind]:
    stack = [iter(form.steps)]
    while stack:
        for step in stack[-1]:
            if isinstance(step.what, Form):
                stack.append(iter(step.what.steps))
                break
            yield step.what
        else:
            stack.pop()


def _value(v: Any) -> str:
    if isinstance(v, tuple) and len(v) == 2 and v[0] in ("bool", "float", "DType", "loop", "ordinal"):
        return str(float.fromhex(v[1])) if v[0] == "float" else str(v[1])
    return show(v) if hasattr(v, "free_symbols") else str(v)
