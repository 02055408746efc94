"""The op record: everything an op is, in one place; its registry; the shape and dtype rules that ops share."""

from __future__ import annotations

import inspect
import keyword
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from . import dims, dtypes
from .dims import Dim, Shape
from .dtypes import DType
from .errors import DTypeError, Operand, OpError, ShapeError

if TYPE_CHECKING:
    from .tensor import Tensor

Rule: TypeAlias = "Callable[..., Any]"
View: TypeAlias = "Literal['same', 'reshape', 'permute', 'expand', 'slice']"


class Obligation(NamedTuple):
    """What must hold of the sizes once they are bound: `left >= right`, `left == right`, or `right` divides `left`."""

    left: Dim
    relation: Literal[">=", "==", "divisible"]
    right: Dim
    reason: str
    node: Tensor | None = None

    def verdict(self) -> bool | None:
        """True or False when decided for every binding, None when it depends."""
        if self.relation == ">=":
            return dims.at_least(self.left, self.right)
        if self.relation == "==":
            return True if dims.same(self.left, self.right) else None
        if type(self.left) is int and type(self.right) is int:
            return self.right != 0 and self.left % self.right == 0
        try:
            return None if dims.fractional(dims.div(self.left, self.right)) else True
        except dims.SizeError:
            return None

    def holds(self, binding: Mapping[str, int]) -> bool:
        left, right = dims.evaluate(self.left, binding), dims.evaluate(self.right, binding)
        return left >= right if self.relation == ">=" else left == right if self.relation == "==" else left % right == 0

    def __str__(self) -> str:
        sign = {">=": "≥", "==": "=", "divisible": "divisible by"}[self.relation]
        where = ""
        if self.node is not None:
            where = f", assumed by {self.node.op.name} at {self.node.where}"
        return f"{dims.show(self.left)} {sign} {dims.show(self.right)}  ({self.reason}{where})"


class DataRange(NamedTuple):
    """An obligation on data: every element of input number `input` lies in [low, high), or equals `ignored`."""

    input: int
    low: int
    high: Dim
    ignored: int | None = None


class InputSpec(NamedTuple):
    """How the tests make one input of a sample."""

    shape: str
    dtype: str = "float"
    high: str | None = None  # integer inputs lie in [0, high)
    low: float = -1.0
    top: float = 1.0


class Sample(NamedTuple):
    """One well-formed call of an op, for the tests, the docs and the checker."""

    inputs: tuple[InputSpec | None, ...]
    attrs: dict[str, Any]


class BadSample(NamedTuple):
    """One ill-formed call and a part of the message it must give."""

    inputs: tuple[InputSpec | None, ...]
    attrs: dict[str, Any]
    match: str


def _specs(shapes: tuple[Any, ...]) -> tuple[InputSpec | None, ...]:
    return tuple(InputSpec(s) if isinstance(s, str) else s for s in shapes)


def S(*shapes: str | InputSpec | None, **attrs: Any) -> Sample:
    """A sample: one shape string per input ("B T d"; "" is a scalar), then attributes."""
    return Sample(_specs(shapes), attrs)


def Bad(*shapes: str | InputSpec | None, match: str, **attrs: Any) -> BadSample:
    """A bad sample: as `S`, with a part of the error's text."""
    return BadSample(_specs(shapes), attrs, match)


def ids(shape: str, high: str) -> InputSpec:
    """An integer input in [0, high)."""
    return InputSpec(shape, "int32", high)


def bools(shape: str) -> InputSpec:
    """A boolean input."""
    return InputSpec(shape, "bool")


class Param(NamedTuple):
    name: str
    kind: Literal["input", "optional", "variadic", "attr"]
    default: Any


class Op:
    """One op: called with tensors it makes a node; everything else about it is a field here.

    body        its definition in smaller ops, or None for a primitive
    shape       (*inputs, **attrs) -> shape, or a tuple of shapes if `outputs` names several; or a pattern string
    dtype       (*inputs, **attrs) -> DType (or a tuple)
    forward_fn  (xp, *arrays, **attrs) -> array(s); with an `out=` parameter if it can write in place
    vjp_fn      (g, y, *inputs, **attrs) -> one cotangent or None per input; never un-broadcasts
    flops       (y, *inputs, **attrs) -> size
    prepare     (inputs, attrs) -> attrs in normal form (axes counted from the front, shapes canonical)
    requires    (*inputs, **attrs) -> obligations on sizes
    ranges      (*inputs, **attrs) -> obligations on data
    ufunc       name of the NumPy ufunc that computes it
    style       the family it belongs to, by which pictures and costs treat it; title: what pictures call it
    view        the result is the input's storage seen otherwise
    inplace     inputs whose storage the result may take over (elementwise ops: all)
    recompute   its rule computes parts of the body again: in a differentiated graph the body is inlined, to share them
    nodiff      why no gradient passes; surrogate: why the rule is not the derivative
    domain      (low, high) from which inputs are sampled; kinks: points where the derivative jumps
    formula     (sympy symbols) -> sympy expression of one element
    """

    def __init__(self, fn: Rule, **fields: Any) -> None:
        called = "function" if fn.__name__ == "<lambda>" else fn.__name__
        bare = called.rstrip("_")
        self.name: str = fields.pop("name", None) or (called if keyword.iskeyword(bare) else bare)
        if not self.name.isidentifier() or keyword.iskeyword(self.name):  # it is a name in generated code, too
            raise OpError("TG250", f"{self.name!r} is no name for an op", hint='an identifier: name="leaky_relu"')
        self.fn = fn
        self.doc: str = inspect.getdoc(fn) or ""
        self.params = tuple(_params(self.name, fn))
        self.inputs = tuple(p for p in self.params if p.kind != "attr")
        self.attrs = tuple(p for p in self.params if p.kind == "attr")
        self.variadic = any(p.kind == "variadic" for p in self.params)
        self.has_optional = any(p.kind == "optional" for p in self.params)
        self.body: Rule | None = fn if fields.pop("composite", None) else None
        shape = fields.pop("shape", None)
        self.shape: Rule = pattern(self.name, shape) if isinstance(shape, str) else shape
        self.dtype: Rule = fields.pop("dtype", None) or promoted
        self.outputs: tuple[str, ...] = tuple(fields.pop("outputs", ()))
        several = shape.rpartition("->")[2].count(",") if isinstance(shape, str) else 0
        if several and len(self.outputs) != several + 1:
            text = f"op {self.name}: {shape!r} has {several + 1} results, outputs= names {len(self.outputs)}"
            raise OpError("TG253", text, hint='outputs=("sin", "cos") names two')
        self.flops: Rule | None = fields.pop("flops", None)
        self.style: str = fields.pop("style", "op")
        self.title: str = fields.pop("title", "") or self.name.replace("_", " ")
        self.samples = [s for s in fields.get("samples", ()) if isinstance(s, Sample)]
        self.bad_samples = [s for s in fields.pop("samples", ()) if isinstance(s, BadSample)]
        self.prepare: Rule | None = fields.pop("prepare", None)
        self.requires: Rule | None = fields.pop("requires", None)
        self.ranges: Rule | None = fields.pop("ranges", None)
        self.ufunc: str | None = fields.pop("ufunc", None)
        self.view: View | None = fields.pop("view", None)
        self.inplace: tuple[int, ...] = tuple(fields.pop("inplace", ()))
        self.nodiff: str | None = fields.pop("nodiff", None)
        self.surrogate: str | None = fields.pop("surrogate", None)
        self.domain: tuple[float, float] = fields.pop("domain", (-2.0, 2.0))
        self.kinks: tuple[float, ...] = tuple(fields.pop("kinks", ()))
        self.formula: Rule | None = fields.pop("formula", None)
        self.methods: tuple[str, ...] = tuple(fields.pop("method", "").split())
        self.leaf: bool = fields.pop("leaf", False)
        self.effect: bool = fields.pop("effect", False)
        self.builtin: bool = fields.pop("builtin", False)
        self.recompute: bool = fields.pop("recompute", False)
        self.vectorised: bool = bool(self.ufunc) or fields.pop("elementwise", False)
        self.forward_fn: Rule | None = None
        self.forward_out = False
        self.vjp_fn: Rule | None = None
        if fields:
            raise OpError("TG250", f"op {self.name}: unknown field {', '.join(fields)}")
        if self.ufunc:
            ufunc = self.ufunc
            self.forward_fn = lambda xp, *a, **k: getattr(xp, ufunc)(*a, **k)
            self.forward_out = True

    def forward(self, fn: Rule) -> Op:
        """Decorator: how arrays are computed, `fn(xp, *arrays, **attrs)`."""
        self.forward_fn = fn
        self.forward_out = "out" in inspect.signature(fn).parameters
        return self

    def vjp(self, fn: Rule) -> Op:
        """Decorator: the cotangents of the inputs, `fn(g, y, *inputs, **attrs)`."""
        self.vjp_fn = fn
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        raise OpError("TG250", "tensorgraph.tensor is not imported")  # tensor.py puts `apply` here

    def __repr__(self) -> str:
        return f"<op {self.name}>"


REGISTRY: dict[str, Op] = {}


def _params(name: str, fn: Rule) -> Iterator[Param]:
    """Tensor arguments: annotated so (the class, its name, `Tensor | None`), or neither annotated nor defaulted."""
    for p in inspect.signature(fn).parameters.values():
        note = p.annotation.__name__ if isinstance(p.annotation, type) else re.sub("[\"']", "", str(p.annotation))
        kinds = {k.strip().rpartition(".")[2] for k in note.replace("Optional[", "None |").rstrip("]").split("|")}
        bare = p.annotation is p.empty and p.default is p.empty and p.kind is not p.KEYWORD_ONLY
        tensor = "Tensor" in kinds or (bare and p.kind is not p.VAR_KEYWORD)
        if tensor and p.kind is p.VAR_POSITIONAL:
            yield Param(p.name, "variadic", None)
        elif tensor:
            yield Param(p.name, "optional" if "None" in kinds else "input", None)
        elif p.kind is p.VAR_POSITIONAL or p.kind is p.VAR_KEYWORD:
            raise OpError("TG250", f"op {name}: parameter *{p.name} must be annotated Tensor")
        else:
            yield Param(p.name, "attr", p.default)


def op(fn: Rule | None = None, *, primitive: bool = False, **fields: Any) -> Any:
    """Make an op of a function. With `shape=` it is one record; the function's body is its definition.

    A user's op owes `shape` (a rule or a pattern such as `"B T d, d -> B T d"`) and either a body in smaller
    ops or a `@name.forward`. Fields: see `Op`.

    Raises OpError[TG250] for an unknown field, or a name that is none.
    """

    def make(fn: Rule) -> Op:
        record = Op(fn, composite=not primitive and not _is_stub(fn), **fields)
        if record.builtin:
            if record.name in REGISTRY:
                raise OpError("TG250", f"two built-in ops are called {record.name}")
            REGISTRY[record.name] = record
        elif record.name in (*REGISTRY, "pick"):  # passes and backends know built-in ops by name: this is another
            record.name = f"user_{record.name}"
        if record.shape is None:
            raise OpError(
                "TG251",
                f"op {record.name}: no shape rule",
                hint='@tg.op(shape="B T d, d -> B T d"), or shape=lambda x: x.shape',
            )
        return record

    return make(fn) if fn is not None else make


def _documented_stub() -> None:
    """A docstring and nothing else."""


_STUBS = (_documented_stub.__code__.co_code, (lambda: None).__code__.co_code)


def _is_stub(fn: Rule) -> bool:
    """Whether a function has no body but a docstring: such an op is a primitive."""
    code = getattr(fn, "__code__", None)
    return code is None or (code.co_code in _STUBS and not code.co_names)


# ------------------------------------------------------------------------------------------ error helpers


def operand(t: Tensor, name: str | None = None, axis: int | None = None) -> Operand:
    """A tensor as a line of an error, one axis marked."""
    text, mark = t.type_text, None
    if axis is not None and t.shape:
        parts = [dims.show(d) for d in t.shape]
        axis %= len(parts)
        start = len(t.dtype.short) + 1 + sum(len(p) + 2 for p in parts[:axis])
        mark = (start, start + len(parts[axis]))
    return Operand(t.label or name or t.op.name, text, t.scope.path, t.where, mark)


def clash(code: str, text: str, *marked: tuple[Tensor, str, int | None], hint: str | None = None) -> ShapeError:
    """A ShapeError that shows operands with the clashing axes underlined and says where their sizes come from."""
    sizes = [t.shape[a] for t, _, a in marked if a is not None and t.shape]
    origins = dims.origins(dict.fromkeys(n for d in sizes for n in sorted(dims.free(d))))
    return ShapeError(code, text, operands=[operand(*m) for m in marked], notes=[origins] if origins else [], hint=hint)


def axis_of(name: str, axis: Any, x: Tensor, slot: str = "x") -> int:
    """`axis` counted from the front. Raises ShapeError[TG110] if it is out of range, OpError[TG252] if not an int."""
    if type(axis) is not int:
        try:
            axis = axis.__index__()
        except (AttributeError, TypeError):
            raise OpError("TG252", f"{name}: axis must be an int, not {axis!r}") from None
    n = len(x.shape)
    if not -n <= axis < n:
        raise clash("TG110", f"{name}: axis {axis} out of range for {n} axes", (x, slot, None))
    return int(axis % n)


# ------------------------------------------------------------------------------------------- shape rules


def same(index: int = 0) -> Rule:
    """The shape of one input."""
    return lambda *xs, **_: xs[index].shape


def broadcast_shapes(name: str, *xs: Tensor) -> Shape:
    """Shapes aligned from the right; only the literal 1 stretches. Raises ShapeError[TG102]."""
    first = xs[0].shape
    if all(x.shape is first for x in xs):
        return first
    widest = first
    for x in xs:
        widest = x.shape if len(x.shape) > len(widest) else widest
    out = list(widest)
    for x in xs:
        off = len(out) - len(x.shape)
        for i, d in enumerate(x.shape):
            have = out[off + i]
            if have is d or dims.same(have, d) or (type(d) is int and d == 1):
                continue
            if type(have) is int and have == 1:
                out[off + i] = d
                continue
            raise _broadcast_clash(name, xs)
    return tuple(out)


def _broadcast_clash(name: str, xs: Sequence[Tensor]) -> ShapeError:
    names = _slot_names(xs)
    for i in range(-1, -1 - max(len(x.shape) for x in xs), -1):
        wide = [(x, n) for x, n in zip(xs, names, strict=True) if len(x.shape) >= -i and x.shape[i] != 1]
        for x, n in wide[1:]:
            (x0, n0) = wide[0]
            if not dims.same(x.shape[i], x0.shape[i]):
                a, b = dims.show(x0.shape[i]), dims.show(x.shape[i])
                text = f"{name}: sizes differ: '{a}' of {x0.label or n0} against '{b}' of {x.label or n}"
                return clash("TG102", text, (x0, n0, i), (x, n, i), hint=equal_hint(x0.shape[i], x.shape[i]))
    raise AssertionError("no clash found")


def _slot_names(xs: Sequence[Tensor]) -> list[str]:
    return ["x", "y", "z"][: len(xs)] if len(xs) <= 3 else [f"x{i}" for i in range(len(xs))]


def equal_hint(a: Dim, b: Dim) -> str | None:
    """How to state that two sizes are equal, if one of them is a symbol."""
    for s, other in ((a, b), (b, a)):
        name = dims.symbol_name(s)
        if name and name not in dims.free(other) and not (type(other) is int and other < 1):
            if type(other) is int:
                return f"if {name} is {other}, build with that size or state tg.assume({name}, {other})"
            return f"if they are equal, state it: tg.assume({name}, {other})"
    return None


def broadcast(name: str) -> Rule:
    return lambda *xs, **_: broadcast_shapes(name, *[x for x in xs if x is not None])


def reduced(x: Tensor, axis: tuple[int, ...], keepdims: bool) -> Shape:
    """The shape after reducing `axis` (already in normal form)."""
    if keepdims:
        return tuple(1 if i in axis else d for i, d in enumerate(x.shape))
    return tuple(d for i, d in enumerate(x.shape) if i not in axis)


def pattern(name: str, text: str) -> Rule:
    """A shape rule from a pattern: `"B T d, d -> B T d"`; `...` stands for any leading axes; integers for themselves.

    Raises OpError[TG253] for a malformed pattern; its rule raises ShapeError[TG103].
    """
    left, arrow, right = text.partition("->")
    if not arrow:
        raise OpError("TG253", f"op {name}: shape pattern {text!r} has no '->'", hint='"B T d, d -> B T d"')
    ins = [p.split() for p in left.split(",")]
    outs = [p.split() for p in right.split(",")]
    known = {w for p in ins for w in p}
    for p in ins + outs:
        for w in p:
            if w != "..." and not w.isidentifier() and not w.isdigit():
                raise OpError("TG253", f"op {name}: {w!r} in shape pattern {text!r} is neither a name nor a number")
    for w in (w for p in outs for w in p):
        if w not in known and not w.isdigit():
            raise OpError("TG253", f"op {name}: {w!r} is on the right of {text!r} only")

    def rule(*xs: Tensor, **_: Any) -> Any:
        env: dict[str, Any] = {}
        tensors = [x for x in xs if x is not None]
        if len(tensors) != len(ins):
            raise ShapeError("TG103", f"{name}: {len(ins)} tensors in {text!r}, got {len(tensors)}")
        owner: dict[str, tuple[Tensor, int]] = {}
        for x, p in zip(tensors, ins, strict=True):
            extra = len(x.shape) - len(p) + (1 if "..." in p else 0)
            if extra < 0 or ("..." not in p and extra):
                raise clash("TG103", f"{name}: expected the shape [{', '.join(p)}]", (x, "x", None))
            i = 0
            for w in p:
                if w == "...":
                    part = x.shape[i : i + extra]
                    if not dims.same_shape(env.setdefault("...", part), part):
                        raise clash("TG103", f"{name}: leading axes differ", (tensors[0], "x", None), (x, "y", None))
                    i += extra
                    continue
                want = int(w) if w.isdigit() else env.setdefault(w, x.shape[i])
                if not dims.same(want, x.shape[i]):
                    old = owner.get(w)
                    have = dims.show(x.shape[i])
                    raise clash(
                        "TG103",
                        f"{name}: {w} is '{dims.show(want)}' and '{have}'"
                        if old
                        else f"{name}: expected {w}, got '{have}'",
                        *([(old[0], "x", old[1])] if old else []),
                        (x, "y" if old else "x", i),
                    )
                owner.setdefault(w, (x, i))
                i += 1
        shapes = tuple(
            tuple(d for w in p for d in (env[w] if w == "..." else (int(w) if w.isdigit() else env[w],))) for p in outs
        )
        return shapes[0] if len(shapes) == 1 else shapes

    return rule


# ------------------------------------------------------------------------------------------- dtype rules


def promoted(*xs: Tensor | None, **_: Any) -> DType:
    """The common dtype of all tensors."""
    out: DType | None = None
    for x in xs:
        if x is not None and x.dtype is not out:
            out = x.dtype if out is None else dtypes.promote(out, x.dtype)
    assert out is not None
    return out


def number(name: str) -> Rule:
    """The common dtype, which must not be bool. Raises DTypeError[TG202]."""

    def rule(*xs: Tensor | None, **_: Any) -> DType:
        out = promoted(*xs)
        if out.kind == "b":
            bad = next(x for x in xs if x is not None)
            text = f"{name}: needs numbers, got bool"
            raise DTypeError("TG202", text, operands=[operand(bad, "x")], hint='x.cast("int32")')
        return out

    return rule


def floating(name: str) -> Rule:
    """The common dtype, which must be floating. Raises DTypeError[TG201]."""

    def rule(*xs: Tensor | None, **_: Any) -> DType:
        out = promoted(*xs)
        if not out.is_float:
            bad = next(x for x in xs if x is not None and not x.dtype.is_float)
            raise DTypeError(
                "TG201",
                f"{name}: needs a floating dtype, got {out}",
                operands=[operand(bad, "x")],
                hint='x.cast("float32")',
            )
        return out

    return rule


def fixed(dtype: DType) -> Rule:
    """Always this dtype."""
    return lambda *_, **__: dtype


def need_dtype(name: str, x: Tensor, kinds: str, slot: str) -> None:
    """Raise DTypeError[TG202] unless x's kind is one of `kinds` ('b', 'i', 'f')."""
    if x.dtype.kind not in kinds:
        words = " or ".join({"b": "bool", "i": "integer", "f": "floating"}[k] for k in kinds)
        raise DTypeError(
            "TG202", f"{name}: {x.label or slot} must be {words}, not {x.dtype}", operands=[operand(x, slot)]
        )
