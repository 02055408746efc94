"""Graph: named outputs and all they depend on. Text form, obligations, binding of sizes, retyping, export."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, cast

import numpy as np

from . import dims, dtypes
from .autodiff import vjp
from .dims import Dim
from .dtypes import DType
from .errors import DataError, GraphError, SizeError
from .op import Obligation, operand
from .ops.leaf import CONST, DIMENSION, const, input
from .tensor import Loop, Tensor, as_tensor, identities, make, topological

VIEWS = ("reshape", "permute", "expand", "slice", "stop_gradient")


class Graph:
    """The graph of some outputs: a tensor, a list of tensors, or a dict of named ones.

    `aliases` folds products of sizes back when printing ({"d": H·k}). Inputs and parameters are found by walking;
    their names must be unique. Raises GraphError[TG309] if two inputs or parameters share a name.
    """

    def __init__(self, outputs: Any, *, name: str = "graph", aliases: Mapping[str, Dim] | None = None) -> None:
        if isinstance(outputs, (Tensor, int, float)) or hasattr(outputs, "__tensor__"):
            outputs = as_tensor(outputs)
            outputs = {outputs.label or "out": outputs}
        elif not isinstance(outputs, Mapping):
            many = [as_tensor(t) for t in outputs]
            outputs = {t.label or f"out{i}": t for i, t in enumerate(many)}
            if len(outputs) < len(many):
                outputs = {f"out{i}": t for i, t in enumerate(many)}
        self.outputs: dict[str, Tensor] = {k: as_tensor(v) for k, v in outputs.items()}
        self.name, self.aliases = name, dict(aliases or {})
        self.nodes: list[Tensor] = topological(self.outputs.values())
        self.inputs: dict[str, Tensor] = self._leaves("input")
        self.params: dict[str, Tensor] = self._leaves("param")

    def _leaves(self, kind: str) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for t in sorted((t for t in self.nodes if t.op.name == kind), key=lambda t: t.serial):
            if t.label in out:
                raise GraphError(
                    "TG309", f"two {kind}s are called {t.label!r}", operands=[operand(out[t.label]), operand(t)]
                )
            out[t.label] = t
        return out

    # -- sizes
    @cached_property
    def symbols(self) -> list[str]:
        """Names of all free sizes, in the order in which they first occur."""
        seen: dict[str, None] = {}
        for t in self.nodes:
            for shape, _ in t.specs or ((t.shape, t.dtype),):
                for d in shape:
                    if type(d) is not int:
                        seen.update(dict.fromkeys(sorted(dims.free(d))))
            if t.op is DIMENSION:
                seen.update(dict.fromkeys(sorted(dims.free(t.attrs["value"]))))
        return list(seen)

    @cached_property
    def obligations(self) -> list[Obligation]:
        """What the sizes must fulfil once they are bound, with the op that assumed it; each once."""
        out: dict[tuple[Any, ...], Obligation] = {}
        for name, value in dims.assumptions(self.symbols).items():
            out[name, "==", value] = Obligation(dims.dim(name, dims.minimum(name)), "==", value, "stated by tg.assume")
        for t in self.nodes:
            for shape, _ in t.specs or ((t.shape, t.dtype),):
                for d in shape:
                    for term in dims.fractional(d) if type(d) is not int else ():
                        over = _product(term, positive=True)
                        under = _product(term, positive=False)
                        out.setdefault(
                            (over, "divisible", under), Obligation(over, "divisible", under, f"size {dims.show(d)}", t)
                        )
            if t.op.leaf:
                for d in t.shape:
                    if dims.at_least(d, 0) is None:
                        out.setdefault((d, ">=", 0), Obligation(d, ">=", 0, "a size", t))
            if t.op.requires:
                for o in t.op.requires(*t.args(), **t.kwargs):
                    if o.verdict() is None:
                        out.setdefault((o.left, o.relation, o.right), o._replace(node=t))
        return list(out.values())

    @cached_property
    def data_ranges(self) -> dict[str, list[tuple[int, Dim, int | None, Tensor]]]:
        """For each integer input, the ranges [low, high) its elements must lie in, with the op that needs it."""
        out: dict[str, list[tuple[int, Dim, int | None, Tensor]]] = {}
        for t in self.nodes:
            if t.op.ranges:
                for r in t.op.ranges(*t.args(), **t.kwargs):
                    sources = [t.args()[r.input]]
                    while sources:
                        source = sources.pop()
                        if source.op.name in (*VIEWS, "concat"):
                            sources += source.inputs
                        elif source.op.name == "input":
                            out.setdefault(source.label, []).append((r.low, r.high, r.ignored, t))
        for name, t in self.inputs.items():
            if "high" in t.attrs:
                out.setdefault(name, []).append((t.attrs["low"], t.attrs["high"], None, t))
        return out

    def check_binding(self, binding: Mapping[str, int], *, partly: bool = False) -> None:
        """Raise SizeError[TG011] for the first obligation that these sizes break, [TG007] for a size without value.

        `partly`: sizes may be without value; what speaks of them is not checked.
        """
        missing = [s for s in self.symbols if s not in binding]
        if missing and not partly:
            raise SizeError(
                "TG007",
                f"no value for {', '.join(missing)}",
                hint=f'bind them: "{",".join(m + "=4" for m in missing[:3])}"',
            )
        dims.check_minima({s: binding[s] for s in self.symbols if s in binding})
        for o in self.obligations:
            if (not missing or dims.free(o.left) | dims.free(o.right) <= binding.keys()) and not o.holds(binding):
                have = ", ".join(f"{n} = {binding[n]}" for n in sorted(dims.free(o.left) | dims.free(o.right)))
                raise SizeError("TG011", f"{have} breaks an obligation: {o}")

    def bind(self, binding: Any = None, **sizes: Any) -> Graph:
        """The same graph with sizes replaced by numbers (or other sizes): `g.bind("B=2", T=8)`."""
        given = (
            dims.parse_binding(binding)
            if isinstance(binding, str)
            else {k: dims.canon(v) for k, v in (binding or {}).items()}
        )
        values = {**given, **{k: dims.canon(v) for k, v in sizes.items()}}
        dims.check_minima({k: v for k, v in values.items() if type(v) is int})
        out = self.map(dim=lambda d: dims.substitute(d, values))
        for o in out.obligations:
            if not (dims.free(o.left) | dims.free(o.right)) and not o.holds({}):
                raise SizeError("TG011", f"these sizes break an obligation: {o}")
        return out

    def with_gradients(self) -> Graph:
        """The graph with the gradients of its trained parameters, if it has none: of its scalar outputs, else of all.

        Without parameters, those of its float inputs. An output that is no scalar is given an input as its cotangent.
        """
        if any(t.scope.backward for t in self.nodes):
            return self
        ys = {n: t for n, t in self.outputs.items() if t.dtype.is_float}
        ys = {n: t for n, t in ys.items() if not t.shape} or ys
        trained = {n: t for n, t in self.params.items() if t.attrs.get("trained", True)}
        wrt = trained if self.params else {n: t for n, t in self.inputs.items() if t.dtype.is_float}
        if not wrt:
            return self
        seeds = [const(1.0, t.dtype) if not t.shape else input(f"∂{n}", t.shape, t.dtype.name) for n, t in ys.items()]
        found = vjp(list(ys.values()), wrt, seeds, unused="none")
        grads = {f"∂{n}": g for n, g in found.items() if g is not None}
        return Graph({**self.outputs, **grads}, name=self.name, aliases=self.aliases)

    def astype(self, dtype: Any) -> Graph:
        """The same graph with every floating leaf in another dtype: exact float64 for checking."""
        kind = dtypes.dtype(dtype)
        return self.map(dtype=lambda t: kind if t.is_float else t)

    def map(
        self,
        dim: Callable[[Dim], Dim] | None = None,
        dtype: Callable[[DType], DType] | None = None,
        leaf: Callable[[Tensor], Tensor | None] | None = None,
    ) -> Graph:
        """Rebuild with other sizes, dtypes of leaves and casts, or leaves; shape rules run again."""
        new: dict[Tensor, Tensor] = {}
        size = dim or (lambda d: d)
        kind = dtype or (lambda t: t)
        for t in self.nodes:
            if leaf is not None and (swap := leaf(t)) is not None:
                new[t] = swap
            elif t.op.name in ("input", "param"):
                shape, dt = tuple(size(d) for d in t.shape), kind(t.dtype)
                attrs = {k: size(v) if k == "high" else v for k, v in t.attrs.items()}
                new[t] = (
                    t
                    if dims.same_shape(shape, t.shape) and dt == t.dtype
                    else Tensor(t.op, (), attrs, shape, dt, t.scope, t.loc, t.label)
                )
            elif t.op is CONST:
                new[t] = const(t.attrs["value"], kind(t.dtype)) if kind(t.dtype) != t.dtype else t
            elif t.op is DIMENSION:
                value, dt = size(t.attrs["value"]), kind(t.dtype)
                new[t] = (
                    const(value, dt)
                    if type(value) is int
                    else make(t.op, (), {"value": value, "dtype": dt}, t.scope, t.loc, ((), dt, None))
                )
            else:
                attrs = t.attrs if not t.attrs else {k: _map_attr(v, size, kind) for k, v in t.attrs.items()}
                inputs = tuple([new[i] for i in t.inputs])
                known = None if dim or dtype else (t.shape, t.dtype, t.specs)
                if t.op.name == "pick":
                    shape_, dtype_ = cast("Any", inputs[0].specs)[t.attrs["index"]]
                    known = (shape_, dtype_, None)
                new[t] = made = make(t.op, inputs, attrs, t.scope, t.loc, known)
                if t.label:
                    made.label = t.label
        return Graph({k: new[v] for k, v in self.outputs.items()}, name=self.name, aliases=self.aliases)

    # -- finding
    def find(self, pattern: str) -> list[Tensor]:
        """Nodes whose path fits a pattern with `*` and `?`: `graph.find("layers.*.attn.probs")`.

        Only named values, inputs and parameters have a path of their own. Raises GraphError[TG310] if nothing fits.
        """
        named = [t for t in self.nodes if t.label]
        found = [t for t in named if fnmatch.fnmatchcase(t.path, pattern)]
        if not found:
            near = nearest(pattern, [t.path for t in named])
            raise GraphError(
                "TG310", f"nothing in {self.name} is called {pattern!r}", hint=f"did you mean {near}?" if near else None
            )
        return found

    # -- forms
    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        return f"<Graph {self.name}: {len(self.nodes)} nodes, {len(self.inputs)} inputs, {len(self.params)} parameters>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        from .tensor import _hooks

        return cast("dict[str, Any]", _hooks["display"](self)) if "display" in _hooks else {"text/plain": self.text()}

    def text(self, where: bool = True) -> str:
        """The typed text form: one line per node, with its layer and line."""
        names: dict[Tensor, str] = {}
        lines = [f"{self.name}("]
        for t in self.inputs.values():
            names[t] = _ident(t.label)
            lines.append(f"    {names[t]}: {self._type(t)},")
        for t in self.params.values():
            names[t] = _ident(t.label)
            frozen = "" if t.attrs.get("trained", True) else "  # frozen"
            lines.append(f"    {names[t]}: {self._type(t)},{frozen}")
        lines.append(") {" if len(lines) > 1 else "")
        if len(lines) == 2:
            lines = [f"{self.name}() {{"]
        body: list[tuple[str, str]] = []
        own = identities(self.nodes)
        n = 0
        for t in self.nodes:
            if t in names:
                continue
            if t.op is CONST and not t.shape:
                names[t] = _number(t.attrs["value"])
                continue
            if t.op is DIMENSION:
                names[t] = f"({dims.show(t.attrs['value'], self.aliases)})"
                continue
            names[t] = f"%{n}"
            n += 1
            plain = {p.name: p.default for p in t.op.attrs}
            plain["absent"] = t.attrs.get("absent")
            args = [names[i] for i in t.inputs]
            args += [
                f"{k}={self._attr(own[t] if k == 'identity' else v)}"
                for k, v in t.attrs.items()
                if not (t.op is CONST and k != "value") and (k not in plain or plain[k] is not v)
            ]
            mark = "∂" if t.scope.backward else ""
            path = t.scope.path + (f" {t.label!r}" if t.label else "")
            note = (f"{mark}{path}" + (f" ({t.where})" if t.where and where else "")).strip()
            body.append((f"    {names[t]}: {self._type(t)} = {t.op.name}({', '.join(args)})", note))
        width = min(96, max((len(a) for a, b in body if b), default=0))
        lines += [f"{a:<{width}}  # {b}" if b else a for a, b in body]
        lines.append(
            "    return "
            + ", ".join(f"{k}={names[v]}" if len(self.outputs) > 1 else names[v] for k, v in self.outputs.items())
        )
        return "\n".join([*lines, "}"])

    def _type(self, t: Tensor) -> str:
        specs = t.specs if t.specs is not None else ((t.shape, t.dtype),)
        text = ", ".join(f"{k.short}{dims.show_shape(s, self.aliases)}" for s, k in specs)
        return text if t.specs is None else f"({text})"

    def _attr(self, v: Any) -> str:
        if isinstance(v, DType):
            return v.name
        if isinstance(v, tuple):
            return "(" + ", ".join(self._attr(x) for x in v) + ("," if len(v) == 1 else "") + ")"
        if isinstance(v, Loop):
            return dims.show(v.count)
        if isinstance(v, np.ndarray):
            return np.array2string(v, separator=", ", threshold=8, max_line_width=10**6).replace("\n", "")
        return dims.show(v, self.aliases) if hasattr(v, "free_symbols") else repr(v)

    def to_networkx(self) -> Any:
        """A networkx.MultiDiGraph: one node per op with its attributes, one edge per use with its position."""
        import networkx as nx

        g = nx.MultiDiGraph(name=self.name)
        index = {t: i for i, t in enumerate(self.nodes)}
        own = identities(self.nodes)
        for t, i in index.items():
            attrs = {k: self._attr(own[t] if k == "identity" else v) for k, v in t.attrs.items()}
            shape = tuple(dims.show(d) for d in t.shape) if t.specs is None else ()
            g.add_node(
                i,
                op=t.op.name,
                label=t.label,
                shape=shape,
                dtype=str(t.dtype),
                scope=t.scope.path,
                backward=t.scope.backward,
                attrs=attrs,
            )
            for position, x in enumerate(t.inputs):
                g.add_edge(index[x], i, position=position)
        for name, t in self.outputs.items():
            g.nodes[index[t]].setdefault("outputs", []).append(name)
        return g

    # -- data
    def infer_binding(
        self, arrays: Mapping[str, Any], binding: Mapping[str, int] | None = None, *, partial: bool = False
    ) -> dict[str, int]:
        """The sizes that given arrays imply, beside those already bound; checks every name and shape.

        `partial`: arrays may be missing.
            Raises DataError[TG501] for missing and unknown names, [TG502] for a shape that does not fit.
        """
        known = {**self.inputs, **self.params}
        missing = [n for n in known if n not in arrays]
        unknown = [n for n in arrays if n not in known]
        if unknown:
            near = nearest(unknown[0], list(known))
            raise DataError(
                "TG501",
                f"{self.name} has no input called {', '.join(unknown[:3])}",
                hint=f"did you mean {near}?" if near else None,
            )
        if missing and not partial:
            raise DataError("TG501", f"no value given for {', '.join(missing[:4])}{' ...' if len(missing) > 4 else ''}",
                            notes=[f"{n}: {known[n].type_text}" for n in missing[:4]])  # fmt: skip
        out: dict[str, int] = dict(binding or {})
        source: dict[str, tuple[str, int]] = {}  # of the sizes that arrays tell: which, and its axis
        hard: list[tuple[str, Dim, int, int]] = []
        for name, a in arrays.items():
            t = known[name]
            shape = np.shape(a)
            if len(shape) != len(t.shape):
                raise DataError(
                    "TG502",
                    f"{name} must have the shape {dims.show_shape(t.shape)}, not {list(shape)}",
                    operands=[operand(t)],
                )
            for axis, (d, have) in enumerate(zip(t.shape, shape, strict=True)):
                symbol = dims.symbol_name(d)
                if symbol is not None and symbol not in out:
                    out[symbol], source[symbol] = have, (name, axis)
                if symbol is not None and out[symbol] == have:
                    continue
                if type(d) is int and d == have:
                    continue
                hard.append((name, d, axis, have))
        waiting = hard
        while waiting:  # an axis with one unknown size tells it, and may so settle another
            later = []
            for name, d, axis, have in waiting:
                unknown_ = sorted(dims.free(d) - out.keys())
                if len(unknown_) == 1 and (value := _solve(d, unknown_[0], have, out)) is not None:
                    out[unknown_[0]], source[unknown_[0]] = value, (name, axis)
                elif len(unknown_) > 1:
                    later.append((name, d, axis, have))
                    continue
                places = [source[n] for n in sorted(dims.free(d)) if n in source]
                if unknown_ and unknown_[0] not in out:
                    text, places = f"{name}: axis {axis} has {have}, which {dims.show(d)} cannot be", []
                elif (value := dims.evaluate(d, out)) == have:
                    continue
                elif places:  # arrays that disagree: either may be wrong
                    said = " and ".join(f"axis {i} of {n}" for n, i in places)
                    text = f"{dims.show(d)} is {value} by {said}, and {have} by axis {axis} of {name}"
                else:
                    want = dims.show(d) if type(d) is int else f"{dims.show(d)} = {value}"
                    text = f"{name}: axis {axis} has {have}, where the graph has {want}"
                clashing = list(dict.fromkeys([*places, (name, axis)]))
                shapes = {n: list(np.shape(arrays[n])) for n, _ in clashing}
                given = ", ".join(f"{n} {s}" for n, s in shapes.items()) if len(shapes) > 1 else str(shapes[name])
                raise DataError(
                    "TG502",
                    text,
                    operands=[operand(known[n], axis=i) for n, i in clashing],
                    notes=[f"given: {given}"],
                )
            if len(later) == len(waiting):
                name, d, axis, have = later[0]
                open_ = sorted(dims.free(d) - out.keys())
                text = f"{name}: axis {axis} has {have}, which does not say what {' and '.join(open_)} are"
                hint = f'say it: binding="{open_[0]}=4"'
                raise DataError("TG507", text, operands=[operand(known[name], axis=axis)], hint=hint)
            waiting = later
        for name, size in dims.assumptions(self.symbols).items():
            if name not in out and dims.free(size) <= out.keys():
                out[name] = dims.evaluate(size, out)
        return out

    def check_data(
        self, arrays: Mapping[str, Any], binding: Mapping[str, int], names: Iterable[str] | None = None
    ) -> None:
        """Raise DataError[TG504] if an integer input leaves its range, naming the value and its place."""
        for name in self.data_ranges if names is None else names:
            ranges = self.data_ranges[name]
            a = np.asarray(arrays[name])
            for low, high, ignored, t in ranges:
                top = dims.evaluate(high, binding)
                bad = outside(a, low, top, ignored)
                if bad is not None:
                    place = tuple(int(i) for i in np.argwhere(bad)[0])
                    at = f"{name}[{', '.join(map(str, place))}]" if place else name
                    text = f"{at} = {int(a[place])} is outside [{low}, {top})"
                    text += f", and not {ignored}, which is left out" if ignored is not None else ""
                    raise DataError(
                        "TG504",
                        text,
                        operands=[operand(self.inputs[name])],
                        notes=[f"needed by {t.op.name} in {t.scope.path or self.name} {t.where}".rstrip()],
                    )


def outside(a: Any, low: int, high: int, ignored: int | None) -> Any:
    """Where elements of an integer array neither lie in [low, high) nor are `ignored`; None if there are none."""
    if not a.size or (low <= a.min() and a.max() < high):
        return None
    bad = (a < low) | (a >= high)
    if ignored is not None:
        bad &= a != ignored
    return bad if bad.any() else None


def _product(term: dims.Term, *, positive: bool) -> Dim:
    from fractions import Fraction

    coef = Fraction(term.coef)
    out: Dim = coef.numerator if positive else coef.denominator
    for name, power in term.powers:
        if (power > 0) == positive:
            for _ in range(abs(power)):
                out = dims.mul(out, dims.dim(name, dims.minimum(name)))
    return out


def _solve(d: Dim, name: str, value: int, known: Mapping[str, int]) -> int | None:
    """The value of `name`, which occurs in one power, that makes a size equal `value`, if there is a whole one."""
    terms = dims.terms(d)
    at0 = sum(_term(t, name, 0, known) for t in terms if name not in dict(t.powers))
    slope = sum(_term(t, name, 1, known) for t in terms if name in dict(t.powers))
    powers = {p for t in terms for n, p in t.powers if n == name}
    power = powers.pop()
    if powers or power < 1 or not slope or (value - at0) % slope or (value - at0) / slope < 0:
        return None
    root = round(((value - at0) // slope) ** (1 / power))
    return root if root**power * slope + at0 == value else None


def _term(t: dims.Term, name: str, value: int, known: Mapping[str, int]) -> Any:
    from fractions import Fraction

    out: Any = Fraction(t.coef)
    for n, p in t.powers:
        out *= Fraction(value if n == name else known[n]) ** p
    return out


def _map_attr(v: Any, size: Callable[[Dim], Dim], kind: Callable[[DType], DType]) -> Any:
    if isinstance(v, DType):
        return kind(v)
    if isinstance(v, tuple):
        return tuple(_map_attr(x, size, kind) for x in v)
    return size(v) if hasattr(v, "free_symbols") else v


def _ident(label: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in label)


def _number(v: Any) -> str:
    return repr(v) if not isinstance(v, np.ndarray) else str(v)


def nearest(name: str, names: Iterable[str]) -> str:
    """Up to three names like this one, as text."""
    import difflib

    return ", ".join(difflib.get_close_matches(name, list(names), 3, 0.5))


__all__ = ["Graph", "outside"]
