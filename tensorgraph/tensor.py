"""Tensor: one node of a graph. Interning, layer scopes, provenance, and how calling an op record makes a node."""

from __future__ import annotations

import hashlib
import inspect
import itertools
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakValueDictionary

import numpy as np

from . import dims, dtypes
from .dims import Dim, Shape
from .dtypes import DType
from .errors import DTypeError, GraphError, Loc, OpError, ShapeError, caller, place
from .op import Op, operand
from .symbolic import Symbolic, not_a_condition

LITERAL_LIMIT = 64  # law 3: larger arrays are inputs or parameters, never part of a graph

# ---------------------------------------------------------------------------------------------- scopes


class Loop:
    """A block that is repeated a symbolic number of times (`ModuleList(n)` with a symbol n)."""

    __slots__ = ("count", "outer", "path")

    def __init__(self, count: Dim, outer: Loop | None, path: str = "") -> None:
        self.count, self.outer, self.path = count, outer, path


class Scope:
    """One opening of a layer: its path (`layers.3.attn`), component, and whether it is the backward twin (∂).

    `key` is the path with the number of the call, where a layer is called again by the same caller: `drop#1`; `call`
    is the number of the outermost call, unique in this process. Random and effectful ops are told apart by them.
    """

    __slots__ = (
        "_calls", "_ordinal", "_twin", "backward", "call", "component", "key", "kind", "loop", "name", "parent", "path",
        "times",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        parent: Scope | None,
        *,
        kind: str = "",
        component: str = "",
        loop: Loop | None = None,
        backward: bool = False,
    ) -> None:
        self.name, self.parent, self.kind, self.backward = name, parent, kind, backward
        above = parent.path if parent else ""
        self.path: str = f"{above}.{name}" if above and name else above or name
        self.component: str = component or (parent.component if parent else "")
        self.loop: Loop | None = loop or (parent.loop if parent else None)
        times: Dim = parent.times if parent else 1
        self.times: Dim = dims.mul(times, loop.count) if loop else times
        self._twin: Scope | None = None
        self._ordinal = 0
        self._calls: dict[str, int] = {}
        if parent is None or parent.parent is None:
            self.key, self.call = self.path, next(_calls)
        else:
            again = parent._calls.get(name, 0)
            parent._calls[name] = again + 1
            own = f"{name}#{again}" if again else name
            self.key, self.call = f"{parent.key}.{own}" if parent.key and own else parent.key or own, parent.call

    @property
    def twin(self) -> Scope:
        """The scope of this layer's backward nodes (a backward scope is its own twin)."""
        if self.backward:
            return self
        if self._twin is None:
            self._twin = self.copy(self.times)
            self._twin.backward = True
        return self._twin

    def copy(self, times: Dim) -> Scope:
        """The same opening of the layer, counted `times` times."""
        t = Scope.__new__(Scope)
        for slot in ("name", "parent", "kind", "path", "component", "loop", "key", "call", "backward"):
            setattr(t, slot, getattr(self, slot))
        t.times, t._twin, t._ordinal, t._calls = times, None, 0, {}
        return t

    def next_identity(self) -> tuple[str, int, int]:
        """What tells the next random or effectful node made here apart: layer, ordinal in it, outermost call.

        Calls are numbered in the order of the process; `identities` counts them within one graph instead, so that a
        model built again draws the same numbers. What is made outside any layer is a call of its own.
        """
        if self.parent is None:
            return ("", 0, next(_calls))
        self._ordinal += 1
        return (("∂" if self.backward else "") + self.key, self._ordinal - 1, self.call)

    def __repr__(self) -> str:
        return f"<scope {'∂' if self.backward else ''}{self.path or '(top)'}>"


_calls = itertools.count()
ROOT = Scope("", None)
_here: ContextVar[tuple[Scope, Loc | None]] = ContextVar("tensorgraph_scope", default=(ROOT, None))


def current_scope() -> Scope:
    return _here.get()[0]


def current_loc() -> Loc | None:
    """The line at which nodes are made now, if `at` says one."""
    return _here.get()[1]


@contextmanager
def at(scope: Scope, loc: Loc | None = None) -> Iterator[Scope]:
    """Make nodes in `scope`; with `loc`, as if written at that line."""
    token = _here.set((scope, loc))
    try:
        yield scope
    finally:
        _here.reset(token)


@contextmanager
def scope(name: str, kind: str = "", component: str = "", loop: Loop | None = None) -> Iterator[Scope]:
    """Open a layer scope below the current one."""
    above, loc = _here.get()
    with at(Scope(name, above, kind=kind, component=component, loop=loop), loc) as s:
        yield s


# ---------------------------------------------------------------------------------------------- Tensor

_serial = 0


class Tensor(Symbolic):
    """One node: an op applied to inputs, in a layer scope, with a symbolic shape and a dtype; never a value.

    Equal nodes of one scope are the same object. An op with several outputs makes a node whose `specs` hold
    (shape, dtype) pairs; users meet its `pick`s, which are ordinary tensors.
    """

    __slots__ = (
        "__weakref__",
        "age",
        "attrs",
        "dtype",
        "inputs",
        "label",
        "loc",
        "op",
        "scope",
        "serial",
        "shape",
        "specs",
    )

    op: Op
    inputs: tuple[Tensor, ...]
    attrs: dict[str, Any]
    shape: Shape
    dtype: DType
    scope: Scope
    loc: Loc
    label: str
    serial: int
    age: int  # when it was made, or that for which a pass put it
    specs: tuple[tuple[Shape, DType], ...] | None

    if TYPE_CHECKING:  # what attach_methods puts here from the records, for type checkers

        def __add__(self, other: Any) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __rmatmul__(self, other: Any) -> Tensor: ...
        def __pow__(self, other: Any) -> Tensor: ...
        def __rpow__(self, other: Any) -> Tensor: ...
        def __and__(self, other: Any) -> Tensor: ...
        def __rand__(self, other: Any) -> Tensor: ...
        def __or__(self, other: Any) -> Tensor: ...
        def __ror__(self, other: Any) -> Tensor: ...
        def __lt__(self, other: Any) -> Tensor: ...
        def __le__(self, other: Any) -> Tensor: ...
        def __gt__(self, other: Any) -> Tensor: ...
        def __ge__(self, other: Any) -> Tensor: ...
        def __neg__(self) -> Tensor: ...
        def __abs__(self) -> Tensor: ...
        def __invert__(self) -> Tensor: ...

        abs: Callable[[], Tensor]
        argmax: Callable[..., Tensor]
        argsort: Callable[..., Tensor]
        astype: Callable[[Any], Tensor]
        cast: Callable[[Any], Tensor]
        cos: Callable[[], Tensor]
        cumsum: Callable[..., Tensor]
        erf: Callable[[], Tensor]
        exp: Callable[[], Tensor]
        expand: Callable[..., Tensor]
        floor: Callable[[], Tensor]
        log: Callable[[], Tensor]
        log_softmax: Callable[..., Tensor]
        logsumexp: Callable[..., Tensor]
        matmul: Callable[[Any], Tensor]
        max: Callable[..., Tensor]
        maximum: Callable[[Any], Tensor]
        mean: Callable[..., Tensor]
        min: Callable[..., Tensor]
        minimum: Callable[[Any], Tensor]
        permute: Callable[..., Tensor]
        pow: Callable[[Any], Tensor]
        reciprocal: Callable[[], Tensor]
        relu: Callable[[], Tensor]
        reshape: Callable[..., Tensor]
        rsqrt: Callable[[], Tensor]
        sigmoid: Callable[[], Tensor]
        sign: Callable[[], Tensor]
        silu: Callable[[], Tensor]
        sin: Callable[[], Tensor]
        softmax: Callable[..., Tensor]
        split: Callable[..., tuple[Tensor, ...]]
        sqrt: Callable[[], Tensor]
        square: Callable[[], Tensor]
        squeeze: Callable[[int], Tensor]
        stop_gradient: Callable[[], Tensor]
        sum: Callable[..., Tensor]
        swapaxes: Callable[[int, int], Tensor]
        tanh: Callable[[], Tensor]
        unsqueeze: Callable[[int], Tensor]

    def __init__(
        self,
        op: Op,
        inputs: tuple[Tensor, ...],
        attrs: dict[str, Any],
        shape: Shape,
        dtype: DType,
        scope: Scope,
        loc: Loc,
        label: str = "",
        specs: tuple[tuple[Shape, DType], ...] | None = None,
    ) -> None:
        global _serial
        _serial += 1
        self.op, self.inputs, self.attrs, self.shape, self.dtype = op, inputs, attrs, shape, dtype
        self.scope, self.loc, self.label, self.specs = scope, loc, label, specs
        self.serial = self.age = _serial

    # -- what it is
    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> Dim:
        return dims.size(self.shape)

    @property
    def type_text(self) -> str:
        """`f32[B, T, d]`; of an op with several outputs, all of them."""
        specs = self.specs if self.specs is not None else ((self.shape, self.dtype),)
        text = ", ".join(f"{t.short}{dims.show_shape(s)}" for s, t in specs)
        return text if self.specs is None else f"({text})"

    @property
    def where(self) -> str:
        """`llama.py:88`, or "" if unknown."""
        return place(self.loc)

    @property
    def path(self) -> str:
        """Scope path and label: `layers.3.attn.probs`."""
        if self.op.leaf:
            return self.label
        return ".".join(p for p in (self.scope.path, self.label) if p)

    def named(self, label: str) -> Tensor:
        """Give this value a name by which it is found, captured and printed; returns it.

        Raises GraphError[TG301] for a leaf, whose name is given when it is made, and for a malformed name.
        """
        if self.op.leaf:
            raise GraphError("TG301", f"{self.label} is an input or parameter and has its name already")
        if not isinstance(label, str) or not all(part.isidentifier() or part.isdigit() for part in label.split(".")):
            raise GraphError("TG301", f"{label!r} is not a name", hint='names are like "probs" or "attn.probs"')
        self.label = label
        return self

    def args(self, values: Iterable[Any] | None = None) -> list[Any]:
        """The op's tensor arguments in the order of its signature (None for an absent optional one).

        `values` stand for the inputs if given.
        """
        have = list(self.inputs if values is None else values)
        if not self.op.has_optional:
            return have
        absent = self.attrs.get("absent", ())
        out, it = [], iter(have)
        for p in self.op.inputs:
            out.append(None if p.name in absent else next(it))
        return out

    @property
    def kwargs(self) -> dict[str, Any]:
        """The op's attributes, as its rules take them."""
        if "absent" in self.attrs:
            return {k: v for k, v in self.attrs.items() if k != "absent"}
        return self.attrs

    def __repr__(self) -> str:
        where = f" at {self.where}" if self.where else ""
        return f"<{self.op.name}{' ' + repr(self.path) if self.path else ''} {self.type_text}{where}>"

    def __len__(self) -> int:
        if not self.shape or type(self.shape[0]) is not int:
            why = "its first size is not a number" if self.shape else "a scalar has no axes"
            raise ShapeError(
                "TG111",
                f"len() of {self.label or self.op.name}: {why}",
                operands=[operand(self)],
                hint="x.shape[0] is that size, and an op takes the whole axis at once" if self.shape else None,
            )
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        n = len(self)
        return (self[i] for i in range(n))

    def __bool__(self) -> bool:
        raise GraphError(
            "TG302",
            f"the truth value of {self.label or self.op.name} is not known while the graph is built",
            operands=[operand(self)],
            hint="choose with tg.where(condition, a, b)",
        )

    def __getitem__(self, index: Any) -> Tensor:
        return cast("Tensor", _hooks["getitem"](self, index))

    @property
    def T(self) -> Tensor:
        """The last two axes swapped."""
        return cast("Tensor", _hooks["transpose"](self))

    def eval(self, backend: str = "auto", **arrays: Any) -> Any:
        """Compute this one value from named arrays: `y.eval(x=X, w=W)`."""
        return _hooks["eval"](self, backend, arrays)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return _hooks["display"](self) if "display" in _hooks else {"text/plain": repr(self)}


_hooks: dict[str, Any] = {}  # filled by files below this one: getitem, transpose, eval; and display, by visualize

_table: WeakValueDictionary[tuple[Any, ...], Tensor] = WeakValueDictionary()


def _freeze(v: Any) -> Any:
    """An attribute as part of a node's identity: with its type, floats by their bits, arrays by digest."""
    t = type(v)
    if t is int or t is str or v is None:
        return v
    if t is bool:
        return ("bool", v)
    if t is float:
        return ("float", v.hex())
    if t is tuple:
        return tuple(map(_freeze, v))
    if isinstance(v, np.ndarray):
        return (v.dtype.str, v.shape, hashlib.blake2b(np.ascontiguousarray(v).tobytes(), digest_size=16).digest())
    if isinstance(v, (DType, slice)):
        return (t.__name__, str(v))
    return v


def make(
    op: Op,
    inputs: tuple[Tensor, ...],
    attrs: dict[str, Any],
    scope: Scope,
    loc: Loc,
    known: tuple[Any, Any, Any] | None = None,
) -> Tensor:
    """The node for op(inputs, attrs) in a scope: an existing equal one, or a new one after its shape rule.

    `known` gives (shape, dtype, specs) where they are known already, e.g. copied from an equal node.
    """
    key = (
        (op, scope, *map(id, inputs), *[_freeze(v) for v in attrs.values()]) if attrs else (op, scope, *map(id, inputs))
    )
    found = _table.get(key)
    if found is not None:
        return found
    if known is None:
        node = Tensor(op, inputs, attrs, (), dtypes.float32, scope, loc)
        args, kwargs = (node.args(), node.kwargs) if op.has_optional else (inputs, attrs)
        with_loc = _here.set((scope, loc))
        try:
            shape, dtype = op.shape(*args, **kwargs), op.dtype(*args, **kwargs)
            if op.outputs:
                kinds = (
                    dtype
                    if isinstance(dtype, (tuple, list)) and not isinstance(dtype, DType)
                    else (dtype,) * len(op.outputs)
                )
                node.specs = tuple((dims.shape(s), k) for s, k in zip(shape, kinds, strict=True))
            else:
                node.shape, node.dtype = shape, dtype
            if op.requires:
                for o in op.requires(*args, **kwargs):
                    if o.verdict() is False:
                        raise _broken(op, o, node)
            for s, _ in node.specs if node.specs is not None else ((shape, dtype),):
                need_sizes(op.name, s)
        finally:
            _here.reset(with_loc)
    else:
        node = Tensor(op, inputs, attrs, known[0], known[1], scope, loc, "", known[2])
    _table[key] = node
    return node


def need_sizes(name: str, shape: Shape) -> None:
    """Raise ShapeError[TG109] if a size is negative whatever it is bound to."""
    for d in shape:
        if (d < 0) if type(d) is int else dims.at_least(d, 0) is False:
            raise ShapeError("TG109", f"{name}: the size {dims.show(d)} is negative")


def _broken(op: Op, o: Any, node: Tensor) -> ShapeError:
    sign = {">=": "≥", "==": "=", "divisible": "divisible by"}[o.relation]
    return ShapeError(
        "TG104",
        f"{op.name}: {o.reason}: {dims.show(o.left)} must be {sign} {dims.show(o.right)}",
        operands=[operand(x) for x in dict.fromkeys(node.inputs[:3])],
    )


def pick(node: Tensor, index: int) -> Tensor:
    """Output number `index` of an op with several."""
    assert node.specs is not None
    shape, dtype = node.specs[index]
    return make(PICK, (node,), {"index": index}, node.scope, node.loc, (shape, dtype, None))


def picks(node: Tensor) -> Any:
    """What a user sees of a node: itself, or the tuple of its outputs."""
    return node if node.specs is None else tuple(pick(node, i) for i in range(len(node.specs)))


def _pick() -> None:
    """One output of an op that has several."""


PICK = Op(_pick, name="pick", shape=lambda: (), dtype=lambda: dtypes.float32, style="view", view="same", builtin=True)


# --------------------------------------------------------------------------------------- leaves, scalars


def leaf(
    op: Op, label: str, shape: Shape, dtype: DType, attrs: dict[str, Any] | None = None, scope: Scope | None = None
) -> Tensor:
    """A leaf: identified by object, never interned."""
    need_sizes(label, shape)
    return Tensor(op, (), attrs or {}, shape, dtype, scope or current_scope(), caller(), label)


def as_tensor(value: Any, like: DType | None = None) -> Tensor:
    """A tensor of anything: a tensor, a Python number (weakly typed), a size, a small array.

    Raises ShapeError[TG105] for an array of more than 64 elements, OpError[TG254] for anything else.
    """
    if isinstance(value, Tensor):
        return value
    if hasattr(value, "__tensor__"):  # a Parameter
        return cast("Tensor", value.__tensor__())
    if isinstance(value, np.generic) or type(value) in (bool, int, float):
        item = value.item() if isinstance(value, np.generic) else value
        if type(item) in (bool, int, float):
            kind = dtypes.weak(item, like)
            if type(item) is int and kind.kind == "i" and not np.iinfo(kind.np).min <= item <= np.iinfo(kind.np).max:
                raise DTypeError(
                    "TG205", f"{item} does not fit in {kind}", hint='cast the tensor first: x.cast("int64")'
                )
            return cast("Tensor", _hooks["const"](item, kind))
    if isinstance(value, (list, tuple)) and not any(isinstance(v, Tensor) for v in value):
        value = np.asarray(value)
        if value.dtype == np.float64:
            value = value.astype((like if like is not None and like.is_float else dtypes.float32).np)
        elif value.dtype == np.int64:
            value = value.astype(np.int32)
    if isinstance(value, np.ndarray):
        if value.size > LITERAL_LIMIT:
            raise ShapeError(
                "TG105",
                f"an array of {value.size:,} elements cannot be a constant of a graph (at most {LITERAL_LIMIT})",
                hint='make it an input: tg.input("x", shape), and pass the array when running',
            )
        return cast("Tensor", _hooks["const"](value, dtypes.of_array(value)))
    if hasattr(value, "free_symbols"):
        return cast("Tensor", _hooks["dimension"](value, like))
    raise OpError(
        "TG254", f"a {type(value).__name__} is not a tensor", hint="tensors, numbers, sizes and small arrays are"
    )


# ----------------------------------------------------------------------------------------------- calling


def apply(self: Op, /, *args: Any, **kwargs: Any) -> Any:
    """Calling a record makes a node in the current scope (several tensors, for an op with several outputs).

    Raises OpError[TG255] for wrong arguments, and whatever the op's rules raise.
    """
    values, attrs = _bind(self, args, kwargs)
    for v in values:
        if type(v) is not Tensor:
            values = _lift(self, values)
            break
    where, loc = _here.get()
    loc = caller() if loc is None else loc
    if self.prepare is not None:
        attrs = self.prepare(values, attrs)
    if self.has_optional:
        absent = tuple(p.name for p, v in zip(self.inputs, values, strict=True) if v is None)
        if absent:
            attrs = {**attrs, "absent": absent}
            values = [v for v in values if v is not None]
    if where.loop is not None and self.name not in LOOP_OPS:
        values = [into_loop(v, where) for v in values]
    else:
        for v in values:
            if v.scope.loop is not where.loop and self.name not in LOOP_OPS and v.op.name != "const":
                values = [into_loop(v, where) for v in values]
                break
    if self.effect:
        attrs = {**attrs, "identity": where.next_identity()}
    return picks(make(self, tuple(values), attrs, where, loc))


LOOP_OPS = frozenset({"enter", "exit", "each", "sum_each", "carried"})


def into_loop(v: Tensor, where: Scope) -> Tensor:
    """A value as seen inside the repeated block of `where`: what comes from outside passes through `each`."""
    mine, want = v.scope.loop, where.loop
    if mine is want or v.op.name in ("const", "dimension"):
        return v
    chain = []
    while want is not None and want is not mine:
        chain.append(want)
        want = want.outer
    if want is not mine:
        raise GraphError(
            "TG304",
            f"{v.label or v.op.name} is made inside a block repeated {dims.show(mine.count) if mine else '?'} times "
            "and used outside it",
            operands=[operand(v)],
            hint="only what the block returns leaves it",
        )
    for loop in reversed(chain):
        v = _hooks["each"](v, loop, where)
    return v


def _bind(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Arguments sorted into tensors and attributes, by the signature."""
    if not kwargs and not op.attrs and not op.variadic and len(args) == len(op.params) and not op.has_optional:
        return list(args), {}
    if op.variadic:
        first = 1 if op.attrs and args and isinstance(args[0], str) else 0  # einsum's letters, before its tensors
        rest: list[Any] = list(args[:first])
        args = args[first:]
        values = list(args[0]) if len(args) == 1 and isinstance(args[0], (list, tuple)) else list(args)
    else:
        values, rest = list(args), []
        n = len(op.inputs)
        if len(values) > n:
            values, rest = values[:n], values[n:]
        for p in op.inputs[len(values) :]:
            if p.name in kwargs:
                values.append(kwargs[p.name])
            elif p.kind == "optional":
                values.append(None)
            else:
                raise _missing_argument(op, p.name)
    attrs: dict[str, Any] = {}
    if len(rest) > len(op.attrs):
        text = f"{op.name}: {len(args)} arguments given, at most {len(op.params)} taken"
        raise OpError("TG255", text, notes=[f"{op.name}{_signature(op)}"])
    for i, p in enumerate(op.attrs):
        if i < len(rest):
            attrs[p.name] = rest[i]
        elif p.name in kwargs:
            attrs[p.name] = kwargs[p.name]
        elif p.default is inspect.Parameter.empty:
            raise _missing_argument(op, p.name)
        else:
            attrs[p.name] = p.default
    positional = () if op.variadic else op.inputs[: len(args) - len(rest)]
    given = {p.name for p in (*positional, *op.attrs[: len(rest)])}
    if twice := [n for n in kwargs if n in given]:
        raise OpError("TG255", f"{op.name}: argument {twice[0]!r} is given twice", notes=[f"{op.name}{_signature(op)}"])
    unknown = kwargs.keys() - {p.name for p in op.params}
    if unknown:
        wrong = ", ".join(sorted(unknown))
        raise OpError("TG255", f"{op.name}: unknown argument {wrong}", notes=[f"{op.name}{_signature(op)}"])
    return values, attrs


def _missing_argument(op: Op, name: str) -> OpError:
    return OpError("TG255", f"{op.name}: argument {name!r} is missing", notes=[f"{op.name}{_signature(op)}"])


def _signature(op: Op) -> str:
    return str(inspect.signature(op.fn)).replace("'", "").replace(" | ", "|")


def _lift(op: Op, values: list[Any]) -> list[Any]:
    """Numbers, sizes and small arrays as tensors, weakly typed by the tensors beside them."""
    like: DType | None = None
    for v in values:
        if hasattr(v, "__tensor__"):
            v = v.__tensor__()
        if isinstance(v, Tensor) and v.specs is None:
            like = v.dtype if like is None else dtypes.promote(like, v.dtype)
    out: list[Any] = []
    for p, v in zip(op.inputs if not op.variadic else op.inputs * len(values), values, strict=False):
        if v is None and p.kind == "optional":
            out.append(None)
        elif v is None:
            raise OpError("TG255", f"{op.name}: argument {p.name!r} is None", notes=[f"{op.name}{_signature(op)}"])
        elif isinstance(v, (bool, int, float)) and len(out) < CONDITIONS.get(op.name, 0):
            raise not_a_condition(op.name, p.name, v)
        else:
            out.append(as_tensor(v, like))
    return out


CONDITIONS = {"where": 1, "logical_and": 2, "logical_or": 2, "logical_not": 1}  # how many first inputs are truth values


def retype_error(op: Op, x: Tensor) -> DTypeError:
    """An op was given a dtype that it does not take."""
    return DTypeError("TG203", f"{op.name} does not take {x.dtype}", operands=[operand(x)])


Op.__call__ = apply  # type: ignore[method-assign, assignment]


# ------------------------------------------------------------------------------------------- walking


def topological(outputs: Iterable[Tensor], stop: Container[Tensor] = ()) -> list[Tensor]:
    """All nodes that `outputs` depend on, inputs before users, in a deterministic order; iterative.

    Nodes in `stop` are taken as given: they and what lies behind them are left out.
    """
    order: list[Tensor] = []
    seen: set[Tensor] = set()
    stack: list[tuple[Tensor, int]] = []
    for out in outputs:
        if out in seen or out in stop:
            continue
        stack.append((out, 0))
        seen.add(out)
        while stack:
            node, i = stack.pop()
            inputs = node.inputs
            n = len(inputs)
            while i < n and (inputs[i] in seen or inputs[i] in stop):
                i += 1
            if i < n:
                stack.append((node, i + 1))
                child = inputs[i]
                seen.add(child)
                stack.append((child, 0))
            else:
                order.append(node)
    return order


def reached(outputs: Iterable[Tensor]) -> set[Tensor]:
    """All nodes that `outputs` depend on."""
    stack = list(outputs)
    seen = set(stack)
    while stack:
        for t in stack.pop().inputs:
            if t not in seen:
                seen.add(t)
                stack.append(t)
    return seen


def identities(nodes: Iterable[Tensor]) -> dict[Tensor, tuple[str, int, int]]:
    """The identities of a graph's random and effectful nodes with their outermost calls counted from 0, by layer."""
    calls: dict[tuple[str, int], set[int]] = {}
    own = {t: t.attrs["identity"] for t in nodes if t.op.effect}
    for layer, ordinal, call in own.values():
        calls.setdefault((layer, ordinal), set()).add(call)
    rank = {k: {c: i for i, c in enumerate(sorted(cs))} for k, cs in calls.items()}
    return {t: (layer, n, rank[layer, n][call]) for t, (layer, n, call) in own.items()}


def rebuild(node: Tensor, inputs: tuple[Tensor, ...], attrs: dict[str, Any] | None = None) -> Tensor:
    """The same op on other inputs, in the same scope, at the same line, under the same label."""
    new = make(node.op, inputs, node.attrs if attrs is None else attrs, node.scope, node.loc)
    if node.label:
        new.label = node.label
    return new


def attach_methods(ops: Iterable[Op]) -> None:
    """Put the operators and methods that the records declare on Tensor."""
    for record in ops:
        for name in record.methods:
            setattr(Tensor, name, _method(record, name))


def _method(record: Op, name: str) -> Any:
    if name.startswith("__r") and name.endswith("__") and name not in ("__rshift__", "__round__"):

        def reflected(self: Tensor, other: Any) -> Any:
            return record(other, self)

        return reflected

    def method(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        return record(self, *args, **kwargs)

    method.__doc__ = record.doc
    method.__name__ = name
    return method
