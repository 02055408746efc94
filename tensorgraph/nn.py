"""Modules: parameters by attribute, layers by call. A Module owns Parameters and sub-modules; its paths name them."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

from . import dims, dtypes
from .dims import Dim, Shape
from .dtypes import DType
from .errors import GraphError, ModelError, ShapeError
from .op import operand
from .ops import leaf
from .ops import nn as F
from .ops.indexing import take
from .ops.random import generator
from .symbolic import Symbolic
from .tensor import Loop, Scope, Tensor, _hooks, need_sizes, scope


class Parameter(Symbolic):
    """A learned array. Sharing one object between modules ties the weight: it is stored, counted and trained once.

    shape: sizes; `init`: how `Module.init` draws it ("normal", "zeros", "ones", "uniform", or a function
    (rng, shape) -> array); `std` of "normal"; `trained=False` freezes it. `used`: how many entries of the first axis
    one token uses (None: all of them), for experts.
    """

    counted = True

    def __init__(
        self,
        shape: Iterable[Any],
        dtype: Any = "float32",
        *,
        init: str | Callable[..., Any] = "normal",
        std: float = 0.02,
        trained: bool = True,
        component: str = "",
        reading: str = "",
        used: Dim | None = None,
    ) -> None:
        self.used = used
        self.shape: Shape = dims.shape(tuple(shape))
        need_sizes("a parameter", self.shape)
        self.dtype: DType = dtypes.dtype(dtype)
        self.init, self.std, self.trained, self.component, self.reading = init, std, trained, component, reading
        self.name = ""
        self.loop: Loop | None = None
        self.times: Dim = 1
        self._leaf: Tensor | None = None

    @property
    def size(self) -> Dim:
        """How many numbers one copy holds."""
        return dims.size(self.shape)

    @property
    def count(self) -> Dim:
        """How many numbers it adds to the model: size times repetitions."""
        return dims.mul(self.size, self.times) if self.counted else 0

    @property
    def active(self) -> Dim:
        """How many of them one token uses."""
        return self.count if self.used is None else dims.mul(dims.div(self.count, self.shape[0]), self.used)

    def __tensor__(self) -> Tensor:
        """The graph's leaf for this parameter, made once."""
        if self._leaf is None:
            where = Scope("", None, component=self.component, loop=self.loop)
            self._leaf = leaf.param(
                self.name or "parameter",
                self.shape,
                self.dtype,
                trained=self.trained,
                component=self.component,
                scope=where,
            )
        self._leaf.label = self.name or "parameter"
        self._leaf.attrs["trained"], self._leaf.attrs["component"] = self.trained, self.component
        if self.used is not None:
            self._leaf.attrs["used"] = self.used
        if not self.counted:
            self._leaf.attrs["counted"] = False
        return self._leaf

    @property
    def T(self) -> Tensor:
        return self.__tensor__().T

    def __bool__(self) -> bool:  # whether it is there, as in `if self.bias`
        return True

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not hasattr(Tensor, name):
            raise AttributeError(name)
        return getattr(self.__tensor__(), name)

    def __repr__(self) -> str:
        kind = f"{self.dtype.short}{dims.show_shape(self.shape)}"
        return f"<Parameter {self.name} {kind}{'' if self.trained else ' frozen'}>"


class Buffer(Parameter):
    """An array that stands with the parameters in the state and in files, but is neither trained nor counted."""

    counted = False

    def __init__(
        self, shape: Iterable[Any], dtype: Any = "float32", *, init: str | Callable[..., Any] = "zeros"
    ) -> None:
        super().__init__(shape, dtype, init=init, trained=False)


def _forward_operator(name: str) -> Any:
    return lambda self, *args: getattr(self.__tensor__(), name)(*args)


for _name in (
    "add",
    "radd",
    "sub",
    "rsub",
    "mul",
    "rmul",
    "truediv",
    "rtruediv",
    "matmul",
    "rmatmul",
    "pow",
    "rpow",
    "neg",
    "abs",
    "lt",
    "le",
    "gt",
    "ge",
    "len",
    "iter",
    "getitem",
):
    setattr(Parameter, f"__{_name}__", _forward_operator(f"__{_name}__"))


class Module:
    """A layer: `__init__` makes parameters and sub-modules as attributes, `forward` builds the graph.

    Calling it opens a scope of its attribute path, so that every node knows its layer. `component` says what its
    parameters are (embedding, attention, mlp, norm, head, vision, connector ...); sub-modules inherit it.
    `names`, on the module at the top, maps attribute paths to the published names: see `rename`.
    """

    component: str = ""
    names: tuple[tuple[str, str], ...] = ()

    def __init__(self, component: str = "") -> None:
        if component:
            self.component = component

    def __init_subclass__(cls) -> None:
        if "__call__" in cls.__dict__:  # it would open no scope and give no names
            text = f"{cls.__name__} defines __call__: a layer defines forward, and is called"
            raise GraphError("TG305", text, hint="def forward(self, x): ...")
        super().__init_subclass__()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise GraphError("TG305", f"{type(self).__name__} has no forward", hint="def forward(self, x): ...")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if "_path" not in self.__dict__:
            self.assign_names()
        with scope(self.__dict__.get("_name", ""), type(self).__name__, self.component):
            return self.forward(*args, **kwargs)

    # -- the tree
    def children(self) -> Iterator[tuple[str, Module]]:
        """Direct sub-modules by attribute name (of lists: `layers.0`)."""
        for name, value in self.__dict__.items():
            if isinstance(value, Module) and not name.startswith("_"):
                yield name, value

    def modules(self) -> Iterator[tuple[str, Module]]:
        """This module and all below it, with their paths; each once."""
        stack: list[tuple[str, Module]] = [("", self)]
        seen: set[int] = set()
        while stack:
            path, m = stack.pop()
            if id(m) in seen:
                continue
            seen.add(id(m))
            yield path, m
            stack += [(f"{path}.{n}" if path else n, c) for n, c in reversed(list(m.children()))]

    def assign_names(self) -> None:
        """Give every parameter its name, component and multiplicity; called when the module is used as a whole."""
        component: dict[str, str] = {}
        loops: dict[str, Loop | None] = {}
        counts: dict[str, Dim] = {}
        taken: set[int] = set()
        for path, m in self.modules():
            above = path.rpartition(".")[0]
            m.__dict__["_path"] = path
            if path:
                m.__dict__["_name"] = path.rpartition(".")[2]
            component[path] = m.component or component.get(above, "")
            loop = m.loop if isinstance(m, ModuleList) else None
            loops[path] = loop or loops.get(above)
            counts[path] = dims.mul(counts.get(above, 1), loop.count) if loop else counts.get(above, 1)
            for name, value in m.__dict__.items():
                if isinstance(value, Parameter) and id(value) not in taken:
                    taken.add(id(value))
                    value.name = self.rename(f"{path}.{name}" if path else name)
                    value.component = value.component or component[path]
                    value.loop, value.times = loops[path], counts[path]

    def rename(self, path: str) -> str:
        """The published name of an attribute path, by the first pattern of `names` that fits.

        A pattern is a prefix: ("layers.{}.attn.q.", "model.layers.{}.self_attn.q_proj."), where `{}` is a number.
        """
        for ours, theirs in self.names:
            found = match_name(ours, path)
            if found is not None:
                return fill_name(theirs, found[0]) + found[1]
        return path

    def named_parameters(self) -> dict[str, Parameter]:
        """Every parameter once (a tied one under its first name), by name."""
        self.assign_names()
        out: dict[str, Parameter] = {}
        for _, m in self.modules():
            for value in m.__dict__.values():
                if isinstance(value, Parameter) and out.get(value.name) is not value:
                    if value.name in out:
                        raise GraphError("TG306", f"two parameters are called {value.name}")
                    out[value.name] = value
        return out

    def parameters(self) -> list[Parameter]:
        return list(self.named_parameters().values())

    def uses(self) -> dict[str, list[str]]:
        """For every parameter's name, the attribute paths at which it stands: more than one if it is tied."""
        self.assign_names()
        out: dict[str, list[str]] = {}
        for path, m in self.modules():
            for name, value in m.__dict__.items():
                if isinstance(value, Parameter):
                    out.setdefault(value.name, []).append(f"{path}.{name}" if path else name)
        return out

    def freeze(self, *patterns: str) -> Module:
        """Stop training parameters whose name or component fits a pattern (`*` and `?`); none: all. Returns self."""
        return self._set_trained(patterns or ("*",), False)

    def unfreeze(self, *patterns: str) -> Module:
        """Train the parameters whose name or component fits a pattern; none: all. Returns self."""
        return self._set_trained(patterns or ("*",), True)

    def _set_trained(self, patterns: tuple[str, ...], trained: bool) -> Module:
        names = self.named_parameters()
        for pattern in patterns:
            hits = [p for n, p in names.items() if fnmatch.fnmatchcase(n, pattern) or p.component == pattern]
            if not hits:
                some = ", ".join(list(names)[:3])
                raise GraphError("TG307", f"no parameter's name fits {pattern!r}", notes=[f"names are like {some}"])
            for p in hits:
                p.trained = trained and p.counted
        return self

    def init(
        self, seed: int = 0, binding: Any = None, dtype: Any = None, only: Iterable[str] | None = None
    ) -> dict[str, Any]:
        """Fresh values for all parameters (`only`: those with these names), from a seeded generator per name.

        Raises DataError[TG525] for a seed that is no whole number, or negative.
        """
        values = dims.binding(getattr(self, "binding", None), binding)
        out = {}
        every = self.named_parameters()
        for name, p in (every if only is None else {n: every[n] for n in only}).items():
            shape = tuple(dims.evaluate(d, values) for d in p.shape)
            kind = p.dtype if dtype is None else dtypes.dtype(dtype)
            out[name] = draw(p, generator(seed, name), shape).astype(kind.np)
        return out

    def total(self, trained: bool | None = None) -> Dim:
        """The number of parameters, tied ones once; only the trained or the frozen ones on request."""
        return sum_sizes([p.count for p in self.parameters() if trained is None or p.trained == trained])

    def active(self) -> Dim:
        """The number of parameters that one token uses: of experts, those it is routed to."""
        return sum_sizes([p.active for p in self.parameters()])

    def summary(self) -> str:
        """A line per parameter: name, shape, count; and the total."""
        names: dict[str, Dim] = getattr(self, "aliases", {})
        rows = [
            (n, dims.show_shape(p.shape, names), dims.show(p.count, names), "" if p.trained else "frozen")
            for n, p in self.named_parameters().items()
        ]
        rows.append(("total", "", dims.show(self.total(), names), ""))
        widths = [max(len(r[i]) for r in rows) for i in range(3)]
        return "\n".join(f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d}".rstrip() for a, b, c, d in rows)

    def __repr__(self) -> str:
        return f"<{' '.join(filter(None, (type(self).__name__, self.__dict__.get('_path', ''))))}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return cast("dict[str, Any]", _hooks["display"](self)) if "display" in _hooks else {"text/plain": repr(self)}


def match_name(pattern: str, path: str) -> tuple[list[str], str] | None:
    """If `path` begins with `pattern`: what stands for each {} (a number, or a symbolic `n`), and what follows."""
    numbers: list[str] = []
    pieces = pattern.split("{}")
    if not path.startswith(pieces[0]):
        return None
    at = len(pieces[0])
    for piece in pieces[1:]:
        end = at
        while end < len(path) and path[end].isdigit():
            end += 1
        if end == at and path.startswith("n" + piece, at):
            end += 1
        if end == at or not path.startswith(piece, end):
            return None
        numbers.append(path[at:end])
        at = end + len(piece)
    return numbers, path[at:]


def fill_name(pattern: str, numbers: Iterable[str]) -> str:
    for n in numbers:
        pattern = pattern.replace("{}", n, 1)
    return pattern


def sum_sizes(sizes: Iterable[Dim]) -> Dim:
    """A sum of many sizes: equal ones are counted first, and one expression is made at the end."""
    counts: dict[Dim, int] = {}
    for s in sizes:
        counts[s] = counts.get(s, 0) + 1
    total = sum(n * s for s, n in counts.items() if type(s) is int)
    symbolic = [n * cast("Any", s) for s, n in counts.items() if type(s) is not int]
    if not symbolic:
        return total
    import sympy

    return dims.canon(sympy.Add(total, *symbolic))


def draw(p: Parameter, rng: Any, shape: tuple[int, ...]) -> Any:
    """A fresh value for a parameter."""
    import numpy as np

    if callable(p.init):
        return p.init(rng, shape)
    if p.init == "normal":
        normal = np.asarray(rng.standard_normal(shape))  # in float64, whose bits all dtypes round
        normal *= p.std
        return normal
    if p.init == "uniform":  # PyTorch's default for linear layers: bound 1 / sqrt(inputs)
        return rng.uniform(-1.0, 1.0, shape) / max(1, shape[-1]) ** 0.5
    if p.init in ("zeros", "ones"):
        return np.full(shape, float(p.init == "ones"))
    raise ModelError(
        "TG900", f"unknown initialisation {p.init!r} of {p.name}", hint="normal, uniform, zeros, ones or a function"
    )


class ModuleList(Module):
    """Modules in a row. Of a number: `ModuleList(Block(i) for i in range(12))`. Of a symbol: `ModuleList(n, Block())`.

    Calling it runs `x = block(x, *context)` for each; a symbolic list makes its block once, with multiplicity n.
    """

    def __init__(self, modules: Any, block: Any = None) -> None:
        super().__init__()
        self.loop: Loop | None = None
        if isinstance(modules, Iterable) and not hasattr(modules, "free_symbols"):
            items = list(modules)
        else:
            n = dims.canon(modules)
            make = block if callable(block) and not isinstance(block, Module) else None
            if type(n) is int:
                if make is None:
                    raise GraphError(
                        "TG308",
                        "a list of n blocks needs a function that makes them",
                        hint="ModuleList(n, lambda i: Block(i))",
                    )
                items = [make(i) for i in range(n)]
            else:
                items = [make(0) if make else block]
                self.loop = Loop(n, None)
        for i, m in enumerate(items):
            self.__dict__["n" if self.loop else str(i)] = m

    def __len__(self) -> int:
        return sum(1 for _ in self.children())

    def __iter__(self) -> Iterator[Module]:
        return (m for _, m in self.children())

    def __getitem__(self, i: int) -> Module:
        return list(self)[i]

    def forward(self, x: Tensor, *context: Any, **kwargs: Any) -> Tensor:
        if self.loop is None:
            for m in self:
                x = m(x, *context, **kwargs)
            return x
        (block,) = list(self)
        return repeat_block(block, self.loop, x, *context, **kwargs)


def repeat_block(block: Module, loop: Loop, x: Tensor, *context: Any, **kwargs: Any) -> Tensor:
    """x after `block` was run loop.count times. Raises ShapeError[TG107] if the block changes shape or dtype."""
    with scope("", "repeat", loop=loop):
        h = leaf.enter(x, loop=loop)
        y = block(h, *context, **kwargs)
    if not dims.same_shape(y.shape, x.shape) or y.dtype != x.dtype:
        raise ShapeError(
            "TG107",
            "a block that is repeated must return what it takes",
            operands=[operand(x, "takes"), operand(y, "returns")],
        )
    return cast("Tensor", leaf.exit(y, loop=loop))


# ---------------------------------------------------------------------------------------------- layers


class Linear(Module):
    """x @ weightᵀ + bias; weight [out, in] as PyTorch stores it, or [in, out] with `transposed` (GPT-2's Conv1D)."""

    def __init__(
        self,
        inputs: Any,
        outputs: Any,
        bias: bool = True,
        *,
        transposed: bool = False,
        component: str = "",
        std: float = 0.02,
    ) -> None:
        super().__init__(component)
        shape = (inputs, outputs) if transposed else (outputs, inputs)
        reading = f"{dims.show(dims.canon(inputs))} → {dims.show(dims.canon(outputs))}"
        self.transposed = transposed
        self.weight = Parameter(shape, std=std, reading=reading)
        self.bias = Parameter((outputs,), init="zeros") if bias else None

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight.__tensor__()
        y = x @ (w if self.transposed else w.T)
        return y if self.bias is None else y + self.bias


class Embedding(Module):
    """Rows of a table [V, d] by id. `padding`: a row that gets no gradient, as in PyTorch's `padding_idx`."""

    component = "embedding"

    def __init__(
        self, count: Any, size: Any, *, padding: int | None = None, component: str = "", std: float = 0.02
    ) -> None:
        super().__init__(component)
        self.weight = Parameter((count, size), std=std)
        self.padding = padding

    def forward(self, ids: Tensor) -> Tensor:
        rows = cast("Tensor", take(self.weight, ids))
        if self.padding is None:
            return rows
        from .ops.elementwise import equal, stop_gradient, where
        from .ops.movement import unsqueeze

        pad = unsqueeze(equal(ids, self.padding), ids.ndim)
        return cast("Tensor", where(pad, stop_gradient(rows), rows))


class LayerNorm(Module):
    """(x - mean) / sqrt(variance + eps) · weight + bias, over the last axis."""

    component = "norm"

    def __init__(self, size: Any, eps: float = 1e-5, bias: bool = True, component: str = "") -> None:
        super().__init__(component)
        self.eps = eps
        self.weight = Parameter((size,), init="ones")
        self.bias = Parameter((size,), init="zeros") if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", F.layer_norm(x, self.weight, self.bias, self.eps))


class RMSNorm(Module):
    """x / sqrt(mean(x²) + eps) · weight, over the last axis; `offset=1` for Gemma's (1 + weight)."""

    component = "norm"

    def __init__(self, size: Any, eps: float = 1e-6, offset: float = 0.0, component: str = "") -> None:
        super().__init__(component)
        self.eps, self.offset = eps, offset
        self.weight = Parameter((size,), init="zeros" if offset else "ones")

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", F.rms_norm(x, self.weight, self.eps, self.offset))


def __dir__() -> list[str]:  # what completion shows
    return sorted(__all__)


__all__ = ["Buffer", "Embedding", "LayerNorm", "Linear", "Module", "ModuleList", "Parameter", "RMSNorm"]
